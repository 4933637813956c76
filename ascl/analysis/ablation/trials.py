"""Tuning trials: the settings that every variant of a study is tried with, and the choice by the validation split."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ascl.analysis.ablation.plan import CHOSEN_HERE, Request, Run, Use
from ascl.analysis.ablation.results import Result, read_training
from ascl.analysis.ablation.state import describe, failure_of, steps_of
from ascl.analysis.ablation.studies import STUDIES, StudyVariant
from ascl.core.errors import DataError, SettingsError
from ascl.settings.base import check_name, flatten, leaf_types, read_yaml
from ascl.settings.retrieval import Config

OWN = StudyVariant("its defaults")


def read_trials(path: Path) -> tuple[StudyVariant, ...]:
    """Return the trials of a YAML file, after the first one, which adds no settings to a variant's own.

    `grid` names a list of values for each of some settings, and means every combination of them; `trials` lists
    settings that belong together. A file may have both.

    Raises:
        SettingsError: the file has neither, a name is unknown, or the settings would make the validations of two trials
            incomparable.
    """
    values = read_yaml(path)
    for name in values:
        check_name(name, ("grid", "trials"), str(path))
    grid, listed = values.get("grid") or {}, values.get("trials") or []
    each: list[Mapping[str, Any]] = []
    if grid:
        axes = flatten(grid) if isinstance(grid, Mapping) else {}
        if not axes or not all(isinstance(options, list) and options for options in axes.values()):
            raise SettingsError(f"{path}: grid must name settings with lists of values, as optimizer.lr: [1.0e-3, "
                                "2.0e-3]")
        each += [dict(zip(axes, point, strict=True)) for point in itertools.product(*axes.values())]
    if not isinstance(listed, list) or not all(isinstance(one, Mapping) for one in listed):
        raise SettingsError(f"{path}: trials must be a list of settings by name, as - {{optimizer.lr: 1.0e-3}}")
    each += [flatten(one) for one in listed]
    if not each:
        raise SettingsError(f"{path} has no trials: give `grid`, `trials` or both")
    found: dict[str, StudyVariant] = {OWN.label: OWN}
    for one in each:
        for name in one:
            check_name(name, leaf_types(Config), str(path))
            if name.startswith("data.") or f"--{name}" in CHOSEN_HERE:
                raise SettingsError(f"{path}: {name} cannot differ between trials, which are compared on the same "
                                    "validation data with the same seed: leave it out")
        settings = {name: value if isinstance(value, str) else json.dumps(value) for name, value in one.items()}
        label = str(StudyVariant("", settings)) or OWN.label
        found.setdefault(label, StudyVariant(label, settings))
    return tuple(found.values())


@dataclass(frozen=True)
class Tried:
    """One trial of a variant.

    result: of its training; None if it diverged or is not finished. state: see `state.State`, or the error message of a
    folder that holds another run. reason: why it diverged.
    """

    trial: StudyVariant
    run: Run
    state: str
    result: Result | None = None
    reason: str = ""

    @property
    def validation(self) -> float:
        """Best Rsum on the validation split; -inf without a result."""
        return -math.inf if self.result is None or self.result.validation is None else self.result.validation

    @property
    def settled(self) -> bool:
        return self.result is not None or self.state == "diverged"


def tried(request: Request, runs: Sequence[Run]) -> dict[Use, list[Tried]]:
    """Return the trials of each (study, label), in order of the request; {} if it has none.

    Args:
        runs: from `plan_trials`.
    """
    of_run: dict[str, tuple[str, Result | None, str]] = {}
    for run in runs:
        state, result, reason = describe(run), None, ""
        if state == "finished":
            try:
                result = read_training(run.folder, run.config.train.seed, processes=run.processes, steps=steps_of(run))
            except (DataError, OSError) as error:
                state = str(error)
            else:
                if result.validation is None:
                    state, result = "without a validation in its log: remove its folder to train it again", None
        elif state == "diverged":
            reason = failure_of(run) or ""
        of_run[run.digest] = state, result, reason
    by_use = {use: run for run in runs for use in run.uses}
    return {(study, variant.label): [
        Tried(trial, run, *of_run[run.digest]) for trial in request.trials
        for run in [by_use[study, variant.label, trial.label]]
    ] for study in request.studies for variant in STUDIES[study] if request.trials}


def choices(tried: Mapping[Use, Sequence[Tried]]) -> dict[Use, Tried]:
    """Return the trial with the best validation of each variant all of whose trials are finished or diverged.

    The first of equal ones is chosen. A variant whose trials all diverged has no choice.
    """
    found = {}
    for use, of_variant in tried.items():
        best = max(of_variant, key=lambda one: one.validation)
        if all(one.settled for one in of_variant) and best.result is not None:
            found[use] = best
    return found


def chosen_settings(request: Request, runs: Sequence[Run]) -> dict[Use, StudyVariant] | None:
    """Return the trial that was chosen for each (study, label), as `plan` takes it; None without trials.

    Args:
        runs: from `plan_trials`.
    """
    return {use: one.trial for use, one in choices(tried(request, runs)).items()} if request.trials else None
