"""Average recalls of finished runs over seeds; print a Markdown table, add rows to benchmarks/results.csv.

  python benchmarks/flickr8k.py "AsCL=runs/a0,runs/a1,runs/a2" "AsCL w/o MF=runs/b0,runs/b1,runs/b2"
  python benchmarks/flickr8k.py runs/ablation-flickr8k_small/table2.csv

Each run was trained by tools/train.py and evaluated by tools/eval.py, so its folder holds settings.yaml,
environment.json and eval-test.json. The runs of one label may differ only in their seed. The CSV of a study of
tools/ablate.py names all its variants. Shares of probes in the right order are reported if they were evaluated. It
works for any data set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import results

from ascl.analysis.ablation.table import read_table
from ascl.analysis.run_files import flat, read_evaluation, recalls_of, run_settings
from ascl.core.errors import DataError
from ascl.core.tables import markdown_table

GROUPS = {
    "I2T": ("i2t_r1", "i2t_r5", "i2t_r10"), "T2I": ("t2i_r1", "t2i_r5", "t2i_r10"), "Rsum": ("rsum",),
    "Probes": ("I", "II", "III"),
}
UNITS = {"I2T": "percent", "T2I": "percent", "Rsum": "sum of six percentages", "Probes": "percent"}
NAMES = {"I2T": "I2T R@1 / R@5 / R@10", "T2I": "T2I R@1 / R@5 / R@10", "Rsum": "Rsum",
         "Probes": "probes in the right order, I / II / III"}


@dataclass(frozen=True)
class Run:
    """One finished run. settings: all except seed and output folder, by dotted name. metrics: of GROUPS, in percent."""

    folder: Path
    seed: int
    settings: dict[str, Any]
    environment: dict[str, str]
    metrics: dict[str, float]
    tested_on: str


@dataclass(frozen=True)
class Summary:
    """The runs of one label, with each metric's mean and sample standard deviation (None for a single run)."""

    label: str
    runs: tuple[Run, ...]
    metrics: dict[str, tuple[float, float | None]]

    @property
    def seeds(self) -> str:
        return ", ".join(str(run.seed) for run in self.runs)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("labels", nargs="+", metavar="LABEL=RUN[,RUN...] | STUDY.csv",
                        help="run folders, one per seed, or a table of tools/ablate.py")
    result.add_argument("--split", default="test", help="read eval-SPLIT.json (default: %(default)s)")
    result.add_argument("--results", metavar="FILE", default=results.RESULTS,
                        help="CSV to add to (default: benchmarks/results.csv)")
    return result


def read_run(folder: Path, split: str) -> Run:
    """Read a run folder.

    Raises:
        DataError, FileNotFoundError: a file is missing or damaged, or the evaluation is not of this run alone.
    """
    saved = run_settings(folder)
    if saved is None:
        raise DataError(f"no file {folder / 'settings.yaml'}: create it with python tools/train.py")
    settings = flat(saved)
    path = folder / f"eval-{split}.json"
    if not path.exists():
        raise DataError(f"no file {path}: create it with python tools/eval.py --checkpoint {folder}")
    evaluation = read_evaluation(path)
    for key, wanted in (("protocol", "all pairs"), ("split", split)):
        if evaluation.get(key) != wanted:
            raise DataError(f"{path}: {key} is {evaluation.get(key)!r}, expected {wanted!r}; evaluate the run again")
    if len(evaluation.get("runs", [])) != 1:
        raise DataError(f"{path}: evaluates {evaluation.get('runs')} together, expected one run; evaluate it alone")
    try:
        full = evaluation["reports"]["full"]
        probes = evaluation.get("probes", {"by_asymmetry": {}})["by_asymmetry"]
        metrics = recalls_of(full) | {
            name: 100 * found["right"] for name, found in probes.items() if found["right"] is not None
        }
        tested_on = f"{settings['dataset']} {split}, {full['images']:,} images x {full['texts']:,} captions"
        seed = settings.pop("train.seed")
        settings.pop("out")
        environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
        environment = {name: environment[name] for name in ("commit", "device", "python", "torch")}
    except (KeyError, ValueError) as error:
        raise DataError(f"{folder}: {error} is missing from settings.yaml, environment.json or {path.name}, or one is "
                        "damaged; train or evaluate the run again") from None
    return Run(folder, seed, settings, environment, metrics, tested_on)


def summarize(label: str, runs: Sequence[Run]) -> Summary:
    """Return mean and spread over the runs of one label.

    Raises:
        DataError: two runs have the same seed, or differ in more than their seed.
    """
    first = runs[0]
    for run in runs[1:]:
        names = sorted(first.settings.keys() | run.settings.keys())
        different = [name for name in names if first.settings.get(name) != run.settings.get(name)]
        if different:
            raise DataError(f"{label}: {first.folder} and {run.folder} differ in {', '.join(different)}; "
                            "runs of one label may differ in train.seed only")
    if len({run.seed for run in runs}) < len(runs):
        raise DataError(f"{label}: seeds {[run.seed for run in runs]}, expected a different one for each run")
    metrics = {}
    for name in (name for names in GROUPS.values() for name in names):
        values = [run.metrics[name] for run in runs if name in run.metrics]
        if len(values) < len(runs):
            continue                    # a mean over some of the seeds is not comparable
        metrics[name] = (mean(values), stdev(values) if len(values) > 1 else None)
    return Summary(label, tuple(runs), metrics)


def settings_hash(settings: dict[str, Any]) -> str:
    """Return twelve hexadecimal digits that identify the settings."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def table(summaries: Sequence[Summary]) -> str:
    """Return a Markdown table with a row per label."""
    heads = {"i2t_r1": "I2T R@1", "i2t_r5": "R@5", "i2t_r10": "R@10", "t2i_r1": "T2I R@1", "t2i_r5": "R@5",
             "t2i_r10": "R@10", "rsum": "Rsum", "I": "I", "II": "II", "III": "III"}
    shown = {name: head for name, head in heads.items() if any(name in summary.metrics for summary in summaries)}

    def cell(found: tuple[float, float | None] | None) -> str:
        if found is None:
            return ""
        return f"{found[0]:.1f}" + ("" if found[1] is None else f" ± {found[1]:.1f}")

    return markdown_table(["", "seeds", *shown.values()], [
        [summary.label, len(summary.runs), *(cell(summary.metrics.get(name)) for name in shown)]
        for summary in summaries
    ])


def rows(summary: Summary, command: str) -> list[results.Row]:
    """Return one row per group of metrics; hardware, commit and versions are those of the training runs."""
    def common(describe: Callable[[dict[str, str]], str]) -> str:
        return " and ".join(dict.fromkeys(describe(run.environment) for run in summary.runs))

    first = summary.runs[0]
    about = f"settings {settings_hash(first.settings)}, runs {', '.join(run.folder.name for run in summary.runs)}"
    return [
        results.Row(
            figure=f"{first.tested_on}, {summary.label}, {NAMES[group]}",
            value=" / ".join(f"{summary.metrics[name][0]:.1f}" for name in names),
            unit=UNITS[group],
            command=command,
            hardware=common(lambda environment: environment["device"]),
            commit=common(lambda environment: environment["commit"]),
            versions=common(lambda environment: f"python {environment['python']}, torch {environment['torch']}"),
            date=results.today(),
            note=f"{_spread(summary, names)}; {about}",
        )
        for group, names in GROUPS.items() if summary.metrics.keys() >= set(names)
    ]


def _spread(summary: Summary, names: Sequence[str]) -> str:
    deviations = [summary.metrics[name][1] for name in names]
    if len(summary.runs) == 1:
        return f"seed {summary.seeds} alone: no spread"
    given = " / ".join(f"{deviation:.1f}" for deviation in deviations)
    return f"mean over seeds {summary.seeds}; sample standard deviation {given}"


def read_labels(argument: str, split: str) -> list[Summary]:
    """Read `LABEL=RUN,RUN` or the CSV of a study, without its outside models."""
    if argument.endswith(".csv"):
        of_label: dict[str, list[str]] = {}
        for line in read_table(Path(argument)):
            of_label.setdefault(line["label"], []).append(line["run"])
        return [summarize(label, [read_run(Path(run), split) for run in runs]) for label, runs in of_label.items()]
    label, _, folders = argument.partition("=")
    if not label or not all(folders.split(",")):
        raise DataError(f"{argument!r}: expected LABEL=RUN or LABEL=RUN,RUN,...")
    return [summarize(label, [read_run(Path(folder), split) for folder in folders.split(",")])]


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        summaries = [summary for argument in options.labels for summary in read_labels(argument, options.split)]
        tested = {run.tested_on: run.folder for summary in summaries for run in summary.runs}
        if len(tested) > 1:
            raise DataError("runs tested on different sets cannot be compared: "
                            + "; ".join(f"{folder}: {what}" for what, folder in tested.items()))
        print(f"{next(iter(tested))}\n\n{table(summaries)}\n")
        command = results.command(__file__, arguments)
        results.append(options.results, [row for summary in summaries for row in rows(summary, command)])
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"added to {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
