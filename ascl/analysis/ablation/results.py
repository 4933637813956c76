"""Read the results of finished runs and compare the variants of a study."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ascl.analysis.query_ranks import QueryRanks, read_ranks
from ascl.analysis.run_files import flat, number_at, read_evaluation, recalls_of, run_settings, validations_of
from ascl.analysis.significance import bootstrap_rsum, holm, paired_t_test, sign_flip_test, t_interval
from ascl.core.errors import DataError
from ascl.core.reading import read_json, reason
from ascl.core.statistics import Interval
from ascl.training.log import METRICS, read_metrics

TESTS = ("t_test", "sign_flip", "bootstrap")


@dataclass(frozen=True)
class Result:
    """The results of one run, or of an outside model's score matrix.

    seed: of the training; None for an outside model. metrics: `run_files.RECALLS` in percent, with Rsum as their sum;
    empty for a run that was not evaluated. steps, pairs, seconds: of the training, None if unknown; a pair is a caption
    with its image, without generated samples. probes: share of cases in the right order, 0 to 1, by asymmetry (I, II,
    III) and by kind. ranks: of every query; None if the evaluation wrote none. made_with: commit, versions and device
    of the training. validation, best_step: best Rsum on the validation split and the steps until then; validated: what
    it is of, see `validations_of`. stopped_early: whether the training ran out of patience; None if unknown.
    """

    run: str
    seed: int | None
    metrics: dict[str, float]
    steps: int | None = None
    pairs: int | None = None
    seconds: float | None = None
    probes: dict[str, float] = field(default_factory=dict)
    ranks: QueryRanks | None = None
    made_with: str = ""
    commit: str = ""
    validation: float | None = None
    validated: str = ""
    best_step: int | None = None
    stopped_early: bool | None = None


@dataclass(frozen=True)
class Row:
    """One variant or outside model with its finished results, in order of the seeds.

    command: the training command of its first run; empty for an outside model. baseline: whether it is a trained
    baseline. chosen: settings of the trial that validation chose; empty without trials.
    """

    label: str
    variant: str
    results: tuple[Result, ...]
    command: str = ""
    outside: bool = False
    baseline: bool = False
    chosen: str = ""

    def mean(self, read: Callable[[Result], float | None]) -> tuple[float, float | None] | None:
        """Return mean and sample standard deviation (n - 1) of the known values; None as deviation of one value."""
        values = [value for value in map(read, self.results) if value is not None]
        if not values:
            return None
        return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


@dataclass(frozen=True)
class Study:
    """The content of one study's tables.

    unfinished: a line for each run that is missing or has failed. trials: number of tuning trials of each variant, with
    the seed `trial_seed`; 0 = none.
    """

    name: str
    dataset: str
    split: str
    seeds: tuple[int, ...]
    rows: tuple[Row, ...]
    unfinished: tuple[str, ...] = ()
    trials: int = 0
    trial_seed: int | None = None


def read_result(folder: Path, evaluation: Path, seed: int | None, *, processes: int = 1,
                steps: int | None = None) -> Result:
    """Read the results of one run.

    Args:
        folder: of the run; an outside model's folder holds only the evaluation.
        evaluation: `eval-*.json`; the ranks are next to it as `ranks-*.npz`.
        processes, steps: see `read_training`.

    Raises:
        DataError: a file is damaged, or is not an evaluation or a training log.
        FileNotFoundError: settings or environment of a trained run are missing.
    """
    content = read_evaluation(evaluation)
    ranks = evaluation.with_name(evaluation.stem.replace("eval-", "ranks-", 1) + ".npz")
    return replace(read_training(folder, seed, processes=processes, steps=steps),
                   metrics=recalls_of(content["reports"]["full"]), probes=probes_of(content.get("probes")),
                   ranks=read_ranks(ranks) if ranks.exists() else None)


def read_training(folder: Path, seed: int | None, *, processes: int = 1, steps: int | None = None) -> Result:
    """Read what a run's folder tells of its training; an outside model's folder tells nothing.

    Args:
        processes: number of training processes, each with its own batch.
        steps: number of training steps, if recorded; the log may have lost lines since.

    Raises:
        DataError, FileNotFoundError: as `read_result`.
    """
    result = Result(str(folder), seed, {})
    if not (folder / METRICS).exists():
        return result
    records = read_metrics(folder / METRICS)
    logged, seconds = training_of(records)
    steps = logged if steps is None else steps
    again = "remove the folder to train this run again"
    environment = read_json(folder / "environment.json", dict, again)
    try:
        settings = flat(run_settings(folder) or {})
        made_with = "commit {commit}, torch {torch}, {device}".format(**environment)
        pairs = steps * int(number_at(settings, "train.batch_size")) * processes
        patience = None if settings.get("train.patience") is None else int(number_at(settings, "train.patience"))
    except (DataError, LookupError) as error:
        raise DataError(f"{folder}: settings.yaml or environment.json is damaged ({reason(error)}); {again}") from error
    result = replace(result, steps=steps, pairs=pairs, made_with=made_with, commit=str(environment["commit"]))
    if logged != steps:
        return result
    validations, validated = validations_of(records)
    values = [-math.inf if record["rsum"] is None else record["rsum"] for record in validations]
    if not values:
        return replace(result, seconds=seconds)
    best = values.index(max(values))
    return replace(result, seconds=seconds, validation=values[best], validated=validated,
                   best_step=validations[best]["step"],
                   stopped_early=patience is not None and len(values) - 1 - best >= patience)


def probes_of(probes: Mapping[str, Any] | None) -> dict[str, float]:
    """Return the shares of right orders by asymmetry and by kind; empty without probes."""
    if not probes:
        return {}
    groups = {**probes.get("by_asymmetry", {}), **probes.get("kinds", {})}
    return {name: float(group["right"]) for name, group in groups.items() if group.get("right") is not None}


def training_of(records: Sequence[Mapping[str, Any]]) -> tuple[int, float | None]:
    """Return the number of training steps and the seconds of training, as `fit` records them; None if it did not."""
    last = records[-1] if records else {"step": 0}
    seconds = last.get("seconds")
    return last["step"], None if seconds is None else float(seconds)


@dataclass(frozen=True)
class Comparison:
    """The difference in Rsum between one row and a reference: the first row of the study, or its best baseline.

    reference: label of that row. difference: in points of Rsum, averaged over the common seeds; an outside model is
    compared with all seeds. seeds: number of pairs of runs with the same seed. over_seeds: 95 % interval of the t-test.
    t_test, sign_flip: p values over seeds, raw and with Holm's correction over the rows compared with this reference.
    over_images, bootstrap: interval and p values of the bootstrap. same_runs: the row has the same runs as the
    reference, so there is nothing to compare. remark: why there is no bootstrap, if the user can fix the reason.
    """

    reference: str
    label: str
    difference: float
    seeds: int
    over_seeds: Interval | None = None
    t_test: tuple[float | None, float | None] = (None, None)
    sign_flip: tuple[float | None, float | None] = (None, None)
    over_images: Interval | None = None
    bootstrap: tuple[float | None, float | None] = (None, None)
    same_runs: bool = False
    remark: str = ""


def compare(rows: Sequence[Row], reference: Row | None, *, draws: int = 10_000) -> list[Comparison]:
    """Compare a row with every other row that shares a seed with it; return [] if it is None or has no results."""
    if reference is None or not reference.results:
        return []
    found = [_compared(reference.label, row, pairs, draws)
             for row in rows if row is not reference and (pairs := _pairs(reference, row))]
    corrected = [holm([getattr(each, test)[0] for each in found]) for test in TESTS]
    return [replace(each, t_test=(each.t_test[0], t), sign_flip=(each.sign_flip[0], sign),
                    bootstrap=(each.bootstrap[0], images))
            for each, t, sign, images in zip(found, *corrected, strict=True)]


def best_baseline(rows: Sequence[Row]) -> Row | None:
    """Return the trained baseline with the highest mean Rsum on the test split, None if none is finished."""
    known = [row for row in rows if row.baseline and row.results]
    return max(known, key=lambda row: float(np.mean([result.metrics["rsum"] for result in row.results])), default=None)


def _compared(reference: str, row: Row, pairs: Sequence[tuple[Result, Result]], draws: int) -> Comparison:
    """Compare one row with the reference, before Holm's correction, which needs all rows."""
    # rounded, so that equal sums of recalls give a difference of exactly 0
    differences = [round(other.metrics["rsum"] - first.metrics["rsum"], 9) for first, other in pairs]
    of_seeds = [] if row.outside else differences               # an outside model has no seeds
    result = Comparison(reference, row.label, float(np.mean(differences)), len(of_seeds))
    if all(first.run == other.run for first, other in pairs):
        return replace(result, same_runs=True)
    result = replace(result, over_seeds=t_interval(of_seeds), t_test=(paired_t_test(of_seeds), None),
                     sign_flip=(sign_flip_test(of_seeds), None))
    ranked = [(first.ranks, other.ranks) for first, other in pairs if first.ranks and other.ranks]
    if len(ranked) < len(pairs):
        return replace(result, remark="no bootstrap: an evaluation has no ranks; evaluate its run again")
    try:
        images = bootstrap_rsum(*zip(*ranked, strict=True), draws=draws)
    except DataError as error:
        return replace(result, remark=f"no bootstrap: {error}")
    return replace(result, over_images=images.interval, bootstrap=(images.p, None))


def _pairs(first: Row, other: Row) -> list[tuple[Result, Result]]:
    """Pair the runs of two rows by seed; pair an outside model, which has no seed, with every run of the first row."""
    if other.outside:
        return [(result, other.results[0]) for result in first.results]
    by_seed = {result.seed: result for result in first.results}
    return [(by_seed[result.seed], result) for result in other.results if result.seed in by_seed]
