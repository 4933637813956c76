"""From finished runs to the files of a study, and outside models that are to stand beside them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from ascl.ablate.plan import Request, Run, describe, fingerprint_of, train_command
from ascl.ablate.runner import Failure, launcher
from ascl.analysis.ablation import STUDIES, Result, Row, Study, compare, read_result
from ascl.analysis.ablation_table import draw, to_csv, to_markdown
from ascl.errors import DataError
from ascl.files import write_text

SOURCE = "source.json"


def write_reports(request: Request, runs: Sequence[Run], failures: Sequence[Failure] = ()) -> list[Path]:
    """STUDY.md, STUDY.csv and STUDY.png of each study, from whatever is finished.

    Raises:
        DataError: a finished run's files cannot be read.
    """
    reasons = {failure.run.digest: failure.reason for failure in failures}
    results: dict[str, Result] = {}
    for run in runs:
        state = describe(replace(run, probe_captions=0))        # a table takes figures without probes as well
        if state == "finished":
            seed = run.config.train.seed
            results[run.digest] = read_result(run.folder, run.evaluation, seed, processes=run.processes)
        else:
            reasons.setdefault(run.digest, state)
    outside = outside_rows(request)
    written = []
    for name in request.studies:
        study = _study(name, request, runs, results, outside, reasons)
        comparisons = compare(study.rows)
        paths = [request.out / f"{name}.{suffix}" for suffix in ("md", "csv", "png")]
        write_text(paths[0], to_markdown(study, comparisons))
        write_text(paths[1], to_csv(study))
        draw(study, comparisons, paths[2])
        written += paths
    return written


def _study(
    name: str, request: Request, runs: Sequence[Run], results: Mapping[str, Result], outside: Sequence[Row],
    reasons: Mapping[str, str],
) -> Study:
    rows, unfinished = [], []
    for variant in STUDIES[name]:
        own = [run for run in runs if (name, variant.label) in run.uses]
        finished = tuple(results[run.digest] for run in own if run.digest in results)
        rows.append(Row(variant.label, str(variant), finished, shown(own[0], request)))
        unfinished += [f"{variant.label}, seed {run.config.train.seed} ({run.folder.name}): {reasons[run.digest]}"
                       for run in own if run.digest not in results]
    return Study(name, request.dataset, runs[0].config.data.test, request.seeds, (*rows, *outside), tuple(unfinished))


def shown(run: Run, request: Request) -> str:
    """The command that trains a run, as one would type it in the repository."""
    words = train_command(run, request, launcher(run.processes), resume=False)
    words = ["python", *words[1:]] if run.processes == 1 else ["accelerate", "launch", *words[3:]]
    root = f"{request.tools.parent}/"
    return shlex.join([word.removeprefix(root) for word in words])


# Outside models


def add_outside(request: Request, name: str, scores: Path) -> str | None:
    """Evaluate a score matrix through tools/eval.py, where that has not been done; None or why it failed.

    From then on the model stands in every report of this folder, until its folder in OUT/scores is removed.
    """
    folder = request.out / "scores" / (re.sub(r"[^\w.+-]+", "_", name) or "_")
    fingerprint = fingerprint_of(scores)
    source = {"name": name, "file": str(scores), "fingerprint": fingerprint}
    note = folder / SOURCE
    if fingerprint is not None and note.exists():
        known = json.loads(note.read_text(encoding="utf-8"))
        if known["name"] != name:
            raise DataError(f"--scores {name!r}: {folder} is that of {known['name']!r} already; choose another name")
        if known["fingerprint"] == fingerprint:
            return None
    folder.mkdir(parents=True, exist_ok=True)
    for old in [note, *folder.glob("eval-*"), *folder.glob("ranks-*")]:
        old.unlink(missing_ok=True)
    command = [sys.executable, str(request.tools / "eval.py"), "--scores", str(scores), "--out", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        return f"{lines[-1]} (exit status {done.returncode}; {shlex.join(command)})"
    write_text(note, json.dumps(source, indent=2) + "\n")
    return None


def outside_rows(request: Request) -> list[Row]:
    """A row for each outside model that was evaluated in this folder, by name."""
    rows = []
    for note in sorted((request.out / "scores").glob(f"*/{SOURCE}")):
        name = json.loads(note.read_text(encoding="utf-8"))["name"]
        evaluations = list(note.parent.glob("eval-*.json"))
        if len(evaluations) != 1:
            raise DataError(f"{note.parent} holds {len(evaluations)} evaluations instead of one; remove it, and give "
                            f"--scores {name}=FILE.npz again")
        rows.append(Row(name, "outside model", (read_result(note.parent, evaluations[0], None),), outside=True))
    return rows
