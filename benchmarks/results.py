"""Rows of `benchmarks/results.csv`: every figure that is quoted somewhere, and what it was measured with."""

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
    """One figure.

    Attributes:
        figure: what was measured, and on what sizes.
        value: a number, or several in the order that `figure` names.
        unit: of the value.
        command: repeats the measurement from the root of the repository.
        hardware, commit, versions: what it ran on, and with which code and libraries.
        date: year-month-day.
        note: repeats, spread, seeds, and whatever a reader would be misled without.
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
    """All rows; none where there is no file.

    Raises:
        DataError: other columns, or a row with too few or too many cells.
    """
    return _parse(_text(Path(path)), Path(path))


def append(path: str | os.PathLike, rows: Iterable[Row]) -> None:
    """Add rows below those that are there, all or none; what is there stays as it is, byte for byte.

    The file is replaced as a whole: one program at a time.

    Raises:
        DataError: a file that `read` refuses; it is left alone.
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
    """The command line that repeats a measurement; `--results FILE` is left out, it does not change any figure."""
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
    """The GPU's name, or the processor's and the number of torch's threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    """Linux keeps the processor's name out of the reach of `platform`."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def versions() -> str:
    """Python's and torch's."""
    return f"python {platform.python_version()}, torch {torch.__version__}"


def today() -> str:
    """Date in UTC."""
    return datetime.datetime.now(datetime.timezone.utc).date().isoformat()
