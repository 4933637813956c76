"""Write the report files of a study from finished runs and from score matrices of outside models."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ascl.analysis.ablation.commands import shown
from ascl.analysis.ablation.plan import Request, Run, Use
from ascl.analysis.ablation.results import Result, Row, Study, best_baseline, compare, read_result
from ascl.analysis.ablation.runner import Failure
from ascl.analysis.ablation.state import describe, fingerprint_of, steps_of
from ascl.analysis.ablation.studies import STUDIES
from ascl.analysis.ablation.table import draw_study, summary_csv, to_csv, to_markdown, trials_csv
from ascl.analysis.ablation.trials import Tried, choices
from ascl.core.errors import DataError
from ascl.core.files import atomic_folder, atomic_path, write_text
from ascl.core.reading import json_kind, read_json

SOURCE = "source.json"


def write_reports(request: Request, runs: Sequence[Run], failures: Sequence[Failure] = (),
                  trials: Mapping[Use, Sequence[Tried]] | None = None) -> list[Path]:
    """Write STUDY.md, .csv, _summary.csv and .png of each study from the runs that are finished.

    A finished run whose files cannot be read is listed with the reason; the other runs still get their table. With
    `trials`, from `ablation.trials`, STUDY_trials.csv has a line for each of them.
    """
    reasons = {failure.run.digest: failure.reason for failure in failures}
    results: dict[str, Result] = {}
    for run in runs:
        state = describe(replace(run, probe_captions=0))        # a table does not need probes
        if state != "finished":
            reasons.setdefault(run.digest, state)
            continue
        try:
            results[run.digest] = read_result(run.folder, run.evaluation, run.config.train.seed,
                                              processes=run.processes, steps=steps_of(run))
        except (DataError, OSError) as error:
            reasons[run.digest] = str(error)
    outside, elsewhere = _comparable(outside_rows(request), results)
    trials, written = trials or {}, []
    chosen = choices(trials)
    split = (runs or [one.run for of_variant in trials.values() for one in of_variant])[0].config.data.test
    for name in request.studies:
        rows, unfinished = [], []
        for variant in STUDIES[name]:
            use = (name, variant.label)
            own = [run for run in runs if use in run.uses]
            finished = tuple(results[run.digest] for run in own if run.digest in results)
            rows.append(Row(variant.label, str(variant), finished, shown(own[0]) if own else "",
                            baseline=variant.is_baseline, chosen=chosen[use].trial.label if use in chosen else ""))
            unfinished += [f"{variant.label}, seed {run.config.train.seed} ({run.folder.name}): {reasons[run.digest]}"
                           for run in own if run.digest not in results]
            if use in trials and use not in chosen:
                unfinished += _without_choice(variant.label, trials[use], reasons)
        study = Study(name, request.dataset, split, request.seeds, (*rows, *outside), (*unfinished, *elsewhere),
                      len(request.trials), request.trial_seed)
        first, baseline = study.rows[0], best_baseline(study.rows)
        comparisons = compare(study.rows, first) + compare(study.rows, None if baseline is first else baseline)
        texts = {".md": to_markdown(study, comparisons), ".csv": to_csv(study),
                 "_summary.csv": summary_csv(study, comparisons)}
        if request.trials:
            texts["_trials.csv"] = trials_csv({use: of for use, of in trials.items() if use[0] == name}, chosen)
        for ending, text in texts.items():
            write_text(request.out / f"{name}{ending}", text)
        with atomic_path(request.out / f"{name}.png") as unfinished_file:
            draw_study(study, comparisons).savefig(unfinished_file, format="png")
        written += [request.out / f"{name}{ending}" for ending in (*texts, ".png")]
    return written


def _without_choice(label: str, trials: Sequence[Tried], reasons: Mapping[str, str]) -> list[str]:
    """Return lines on why a variant's settings are not chosen yet: a line for each trial that failed or diverged."""
    settled = sum(one.settled for one in trials)
    lines = [f"{label}: {settled} of {len(trials)} trials are done, so its settings are not chosen yet"]
    for one in trials:
        reason = one.reason or reasons.get(one.run.digest, one.state)
        if one.result is None and reason not in ("missing", "interrupted"):
            lines.append(f"{label}, trial {one.trial.label} ({one.run.folder.name}): {reason}")
    return lines


def _comparable(outside: Sequence[Row], results: Mapping[str, Result]) -> tuple[list[Row], list[str]]:
    """Return the outside models that ranked the same queries as the runs, and a line about each of the others."""
    ours = next((result.ranks for result in results.values() if result.ranks is not None), None)
    rows, lines = [], []
    for row in outside:
        theirs = row.results[0].ranks
        if ours is None or theirs is None or ours.same_queries(theirs):
            rows.append(row)
        else:
            lines.append(f"{row.label}: left out, its {theirs.images} images and {len(theirs.owner)} captions are not "
                         f"the {ours.images} and {len(ours.owner)} of the runs here, or not in their order")
    return rows, lines


def add_outside(request: Request, name: str, scores: Path) -> str | None:
    """Evaluate the score matrix of an outside model, unless that is done already; return None or why it failed.

    The model is then in every report of this folder until its folder in OUT/scores is removed. If the evaluation
    fails, nothing changes.

    Raises:
        DataError: a variant or another outside model has this name.
    """
    if name in {variant.label for variants in STUDIES.values() for variant in variants}:
        raise DataError(f"outside model {name!r}: a variant has this name; choose another")
    folder = request.out / "scores" / (re.sub(r"[^\w+-]+", "_", name) or "_")
    fingerprint = fingerprint_of(scores)
    source = {"name": name, "file": str(scores), "fingerprint": fingerprint}
    note = folder / SOURCE
    if note.exists():
        known = _read_source(note)
        if known["name"] != name:
            raise DataError(f"outside model {name!r}: {folder} belongs to {known['name']!r}; choose another name")
        if fingerprint is not None and known.get("fingerprint") == fingerprint:
            return None
    try:
        with atomic_folder(folder) as new:
            command = [sys.executable, "-m", "ascl", "eval", "--scores", str(scores), "--out", str(new)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
                raise _Failed(f"{lines[-1]} (exit status {done.returncode}; {shlex.join(command)})")
            write_text(new / SOURCE, json.dumps(source, indent=2) + "\n")
            shutil.rmtree(folder, ignore_errors=True)
    except _Failed as failed:
        return str(failed)
    return None


class _Failed(Exception):
    """The evaluation of an outside model failed; the message says how."""


def _read_source(note: Path) -> dict[str, Any]:
    """Return what is known of an outside model: `name` and `fingerprint`."""
    again = "remove its folder and add the scores again"
    source = read_json(note, dict, again)
    if not isinstance(source.get("name"), str):
        raise DataError(f"{note}: expected `name` as a text, found {json_kind(source.get('name'))}; {again}")
    return source


def outside_rows(request: Request) -> list[Row]:
    """Return a row for each outside model that was evaluated in this folder, in order of their names."""
    rows = []
    for note in sorted((request.out / "scores").glob(f"[!.]*/{SOURCE}")):
        name = _read_source(note)["name"]
        evaluations = list(note.parent.glob("eval-*.json"))
        if len(evaluations) != 1:
            raise DataError(f"{note.parent} holds {len(evaluations)} evaluations instead of one; remove it, and add "
                            f"the scores of {name} again")
        rows.append(Row(name, "outside model", (read_result(note.parent, evaluations[0], None),), outside=True))
    return rows
