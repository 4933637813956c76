"""The log of a run: metrics.jsonl, TensorBoard and a progress bar."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.core.files import saving, write_text
from ascl.core.reading import json_kind, parse_json, read_text, shown

METRICS = "metrics.jsonl"
_KEPT = "the checkpoints are intact"


class RunLog:
    """A writer of metrics to `folder`/metrics.jsonl, `folder`/tensorboard and the progress bar.

    A line of metrics.jsonl is one JSON object: `kind` ("train" or "validation"), `step` (steps taken so far), `epoch`
    (of the last one, from 1), the metrics, and `time` (seconds since 1970). A metric that is not finite is null.

    Args:
        folder: the run's folder. total_steps: length of the progress bar.
        resume_at: (step, step of the last validation) of the checkpoint that the run resumes from; later lines are
            removed, because their steps are repeated. None starts a new log.
        enabled: False in every process but the main one; the log then does nothing.
    """

    def __init__(
        self, folder: str | os.PathLike, *, total_steps: int, resume_at: tuple[int, int] | None, enabled: bool = True
    ) -> None:
        self.enabled = enabled
        if not enabled:
            return
        from torch.utils.tensorboard import SummaryWriter  # slow to import

        folder = Path(folder)
        step, validated_step = resume_at or (0, 0)
        last = {"train": step, "validation": validated_step}
        records = read_metrics(folder / METRICS) if resume_at and (folder / METRICS).exists() else []
        kept = [record for record in records if record["step"] <= last.get(record["kind"], step)]
        write_text(folder / METRICS, "".join(json.dumps(record) + "\n" for record in kept))
        self._folder = folder
        with saving(folder, _KEPT):
            self._file = open(folder / METRICS, "a", encoding="utf-8")
            self._tensorboard = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        # disable=None: no bar if the output is not a terminal; each line is printed instead
        self._bar = tqdm(total=total_steps, initial=step, unit="step", disable=None, dynamic_ncols=True)

    def advance(self) -> None:
        """Count one more step."""
        if self.enabled:
            self._bar.update()

    def write(self, kind: str, step: int, epoch: int, values: dict[str, float]) -> None:
        """Write the metrics of one step ("train") or one validation ("validation")."""
        if not self.enabled:
            return
        finite = {name: value if math.isfinite(value) else None for name, value in values.items()}
        line = {"kind": kind, "step": step, "epoch": epoch, **finite, "time": round(time.time(), 3)}
        with saving(self._folder, _KEPT):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
            for name, value in values.items():
                self._tensorboard.add_scalar(f"{kind}/{name}", value, step)
        text = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        if self._bar.disable or kind != "train":
            self.message(f"{kind} at step {step}, epoch {epoch}: {text}")
        else:
            self._bar.set_postfix_str(text)

    def message(self, text: str) -> None:
        """Print a line above the progress bar, to stderr."""
        if self.enabled:
            tqdm.write(text, file=sys.stderr)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, *error: object) -> None:
        if self.enabled:
            self._bar.close()
            with saving(self._folder, _KEPT):
                self._file.close()
                self._tensorboard.close()


def read_metrics(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Read the records of a metrics.jsonl; skip an incomplete last line, which a killed run may leave.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: another line is not JSON, not a record with `kind` and `step`, or a metric is not a number; or the
            file is not UTF-8.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no metrics at {shown(path)}: give the {METRICS} of a run folder")
    remedy = "repair or remove the line"
    *lines, unfinished = read_text(path, "a log of metrics", remedy).split("\n")  # complete lines end with a line feed
    records = [_record(line, f"{shown(path)}, line {number}", remedy) for number, line in enumerate(lines, start=1)]
    with suppress(DataError):
        records.append(_record(unfinished, shown(path), remedy))
    return records


def _record(line: str, where: str, remedy: str) -> dict[str, Any]:
    record = parse_json(line, where, None, remedy)
    if not isinstance(record, dict) or type(record.get("step")) is not int or not isinstance(record.get("kind"), str):
        raise DataError(f"{where} is not a record with `kind` and `step`; {remedy}")
    for name, value in record.items():
        if name != "kind" and not isinstance(value, (int, float, type(None))):
            raise DataError(f"{where}: expected `{name}` as a number, found {json_kind(value)}; {remedy}")
    return record
