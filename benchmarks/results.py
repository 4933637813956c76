"""Read and write rows of `benchmarks/results.csv`: every number quoted in the documentation, with its provenance."""

from __future__ import annotations

import csv
import datetime
import io
import os
import platform
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch

from ascl.core.errors import DataError
from ascl.core.files import write_text

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "benchmarks" / "results.csv"


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        figure: what was measured, with its sizes.
        value: a number, or several in the order named in `figure`.
        unit: of the value.
        command: command line that repeats the measurement from the root of the repository.
        hardware, commit, versions: of the measurement: device, code, libraries.
        date: year-month-day.
        note: repeats, spread, seeds, and everything else needed to interpret the value.
    """

    figure: str
    value: str
    unit: str
    command: str
    hardware: str
    commit: str
    versions: str
    date: str
    note: str = ""


COLUMNS = tuple(field.name for field in fields(Row))


def read(path: str | os.PathLike) -> list[Row]:
    """Return all rows; [] if the file does not exist.

    Raises:
        DataError: the columns are not those of `Row`, or a row has too few or too many cells.
    """
    return _parse(_text(Path(path)), Path(path))


def append(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Append rows, all or none; existing rows stay unchanged, byte for byte.

    The file is replaced as a whole, so only one program may append at a time.

    Raises:
        DataError: `read` refuses the file, which is then not changed.
    """
    path = Path(path)
    text = _text(path)
    _parse(text, path)
    added = io.StringIO()
    writer = csv.writer(added, lineterminator="\n")
    if not text:
        writer.writerow(COLUMNS)
    elif not text.endswith("\n"):
        text += "\n"
    writer.writerows(astuple(row) for row in rows)
    write_text(path, text + added.getvalue())


def _text(path: Path) -> str:
    return path.read_bytes().decode("utf-8") if path.exists() else ""


def _parse(text: str, path: Path) -> list[Row]:
    if not text:
        return []
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    if tuple(header) != COLUMNS:
        raise DataError(f"{path}: its first row is {','.join(header)}, expected {','.join(COLUMNS)}; "
                        "give another file, or repair this one")
    for number, cells in enumerate(rows, start=2):
        if len(cells) != len(COLUMNS):
            raise DataError(f"{path}, row {number}: {len(cells)} cells, expected {len(COLUMNS)}; repair the row")
    return [Row(*cells) for cells in rows]


def command(program: str | os.PathLike, arguments: Sequence[str]) -> str:
    """Return the command line that repeats a measurement, without `--results FILE`, which does not affect values."""
    rest = list(arguments)
    kept = []
    while rest:
        argument = rest.pop(0)
        if argument == "--results":
            del rest[:1]
        elif not argument.startswith("--results="):
            kept.append(argument)
    return shlex.join(["python", str(Path(program).resolve().relative_to(REPOSITORY)), *kept])


def hardware(device: torch.device) -> str:
    """Return the name of the GPU, or of the processor with the number of torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    """Return the name of the processor, from /proc/cpuinfo on Linux, where `platform` does not provide it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> str:
    """Return the versions of Python and torch."""
    return f"python {platform.python_version()}, torch {torch.__version__}"


def today() -> str:
    """Return today's date in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
