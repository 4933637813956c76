"""Plan the runs of a study from settings, and the folder of each run."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ascl.analysis.ablation.studies import STUDIES, StudyVariant
from ascl.analysis.run_files import flat
from ascl.core.errors import DataError
from ascl.settings.base import to_dict
from ascl.settings.retrieval import Config, load_config

# These do not affect results: runs that differ only in them are the same run.
NOT_IN_HASH = ("out", "data.images", "data.prepare", "data.prepare_features", "text.cache", "train.workers",
               "train.log_every", "train.checkpoint_every")
# Only the file names of these count: data in another folder is the same data.
PATHS_IN_HASH = ("data.captions", "data.features")
CHOSEN_HERE = {"--dataset": "dataset", "--out": "out", "--train.seed": "seeds"}
Use = tuple[str, ...]  # (study, label of the variant), and of a trial also the label of the trial


@dataclass(frozen=True)
class Request:
    """The studies, seeds and settings that were requested.

    settings: of every run, as words of a command line. They override the YAML of a baseline, and a variant's own
    settings override them. out: folder of the ablation. processes: number of processes that train one run together.
    probe_captions: number of captions to probe in the evaluation; 0 = none. trials: settings to tune each variant with,
    see `ablation.trials`; they override `settings`. trial_seed: of every trial, so that no seed of the tables was used
    to choose settings.
    """

    dataset: str
    studies: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: tuple[str, ...]
    out: Path
    processes: int = 1
    probe_captions: int = 0
    trials: tuple[StudyVariant, ...] = ()
    trial_seed: int = 1000

    def __post_init__(self) -> None:
        for word in self.settings:
            name = word.partition("=")[0]
            if name in CHOSEN_HERE:
                raise DataError(f"settings contain {name}: leave it out, it is set by the ablation's "
                                f"{CHOSEN_HERE[name]}")
        for name, least in (("processes", 1), ("probe_captions", 0)):
            if getattr(self, name) < least:
                raise DataError(f"{name} is {getattr(self, name)}: it must be at least {least}")
        if self.trials and self.trial_seed in self.seeds:
            raise DataError(f"trial_seed {self.trial_seed} is also a seed of the tables, which must not choose "
                            "settings: take another")


@dataclass(frozen=True)
class Run:
    """One training run with its evaluation; several studies may share it.

    digest: hexadecimal sha256 of the settings that its results depend on. arguments: of the training program. uses:
    each variant, or trial of a variant, that uses this run. probe_captions: see `Request`; 0 also accepts an evaluation
    with probes. trial: whether it only helps to choose settings; then it is never evaluated on the test split.
    """

    digest: str
    folder: Path
    config: Config
    arguments: tuple[str, ...]
    uses: tuple[Use, ...] = field(compare=False)
    processes: int = 1
    probe_captions: int = 0
    trial: bool = False

    @property
    def name(self) -> str:
        """Name of the run in messages."""
        labels = dict.fromkeys(map(": ".join, self.uses))
        return f"{self.folder.name} seed {self.config.train.seed} ({', '.join(labels)})"

    @property
    def evaluation(self) -> Path:
        """Path of the evaluation's JSON file."""
        return self.folder / f"eval-{self.config.data.test}.json"


def digest_of(config: Config, processes: int = 1) -> str:
    """Return the sha256 of all settings that a run's results depend on, independent of their order."""
    return digest_of_settings(flat(to_dict(config)), processes)


def digest_of_settings(settings: dict[str, Any], processes: int) -> str:
    """Return `digest_of` for settings by dotted name, as in a run's folder."""
    kept = {name: value for name, value in settings.items() if name not in NOT_IN_HASH}
    for name in PATHS_IN_HASH:
        value = kept.get(name) or ""
        kept[name] = [Path(path).name for path in value] if isinstance(value, list) else Path(value).name
    if processes > 1:       # each process has its own batch
        kept["processes"] = processes
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def plan(request: Request, chosen: Mapping[Use, StudyVariant] | None = None) -> list[Run]:
    """Return every run that the tables need, without duplicates.

    All variants of one seed come before those of the next, so that early tables already contain every variant.

    Args:
        chosen: the trial whose settings each variant gets; a variant without one is left out. None = there are no
            trials.

    Raises:
        SettingsError: a setting or data set is unknown, or a value has the wrong type.
    """
    own: dict[Use, tuple[str, ...]] = {}
    for study, variant in _variants(request):
        use = (study, variant.label)
        if chosen is None or use in chosen:
            own[use] = (*(chosen[use].words if chosen else ()), *variant.words)
    return _distinct(request, own, request.seeds)


def plan_trials(request: Request) -> list[Run]:
    """Return the runs of all tuning trials, without duplicates: each variant gets every trial once.

    Raises:
        SettingsError: as `plan`.
    """
    own: dict[Use, tuple[str, ...]] = {
        (study, variant.label, trial.label): (*trial.words, *variant.words)
        for trial in request.trials for study, variant in _variants(request)}
    return [replace(run, trial=True) for run in _distinct(request, own, (request.trial_seed,), "trials")]


def _variants(request: Request) -> list[tuple[str, StudyVariant]]:
    return [(study, variant) for study in request.studies for variant in STUDIES[study]]


def _distinct(request: Request, own: Mapping[Use, tuple[str, ...]], seeds: Sequence[int],
              room: str = "runs") -> list[Run]:
    """Return a run in OUT/`room` for each seed and each different outcome of the settings.

    Args:
        own: each use with its own settings.
    """
    resolved = []
    for use, more in own.items():
        words = ("--dataset", request.dataset, *request.settings, *more)
        resolved.append((use, words, load_config(words)))
    found: dict[str, Run] = {}
    for seed in seeds:
        for use, words, config in resolved:
            config = replace(config, train=replace(config.train, seed=seed))
            digest = digest_of(config, request.processes)
            if digest in found:
                found[digest] = replace(found[digest], uses=(*found[digest].uses, use))
            else:
                found[digest] = make_run(request, use, words, config, room)
    return list(found.values())


def make_run(request: Request, use: Use, words: Sequence[str], config: Config, room: str = "runs") -> Run:
    """Return a run in OUT/`room`.

    Args:
        words: its settings as words of a command line, without seed and folder.
        config: what they come to, with the seed.
    """
    digest = digest_of(config, request.processes)
    folder = request.out / room / digest[:12]
    arguments = (*words, "--train.seed", str(config.train.seed), "--out", str(folder))
    return Run(digest, folder, replace(config, out=str(folder)), arguments, (use,), request.processes,
               request.probe_captions)


def choose(runs: Sequence[Run], labels: Sequence[str]) -> list[Run]:
    """Return the runs with these labels, or all runs if no labels are given.

    Raises:
        DataError: none of the requested studies has a variant with this label.
    """
    known = dict.fromkeys(use[1] for run in runs for use in run.uses)
    for label in labels:
        if label not in known:
            raise DataError(f"{label!r}: no such variant in these studies; choose from {', '.join(map(repr, known))}")
    return [run for run in runs if not labels or any(use[1] in labels for use in run.uses)]
