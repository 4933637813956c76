"""From settings to runs: what a study needs, where each run lies, and how far it has come."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from ascl.analysis.ablation.studies import STUDIES, Variant
from ascl.core.errors import DataError, SettingsError
from ascl.core.files import write_text
from ascl.settings.base import read_settings, to_dict
from ascl.settings.retrieval import Config, load_config
from ascl.training.log import METRICS, read_metrics

# Where things lie and how they are fetched: the same run, whatever they say.
NOT_IN_HASH = ("out", "data.images", "data.prepare", "text.cache", "train.workers", "train.log_every",
               "train.checkpoint_every")
# Of these the names count and not the folders: data that was moved is the same data.
PATHS_IN_HASH = ("data.captions", "data.features")
CHOSEN_HERE = {"--dataset": "--dataset", "--out": "--out", "--train.seed": "--seeds"}
STAMP = "ablation.json"

State = Literal["finished", "trained", "interrupted", "missing"]


@dataclass(frozen=True)
class Request:
    """What was asked for.

    Attributes:
        settings: of every run, as words of a command line. A variant's own settings win over them, and they over what
            the YAML of a baseline says.
        out: folder of the ablation.
        configs, tools: folders of the repository.
        processes: that train one run together.
        probe_captions: of how many captions variants are probed in the evaluation; 0 = none.
    """

    dataset: str
    studies: tuple[str, ...]
    seeds: tuple[int, ...]
    settings: tuple[str, ...]
    out: Path
    configs: Path
    tools: Path
    processes: int = 1
    probe_captions: int = 0

    def __post_init__(self) -> None:
        for word in self.settings:
            name = word.partition("=")[0]
            if name in CHOSEN_HERE:
                raise DataError(f"--settings cannot hold {name}: give {CHOSEN_HERE[name]} to this program instead")
        if self.processes < 1:
            raise DataError(f"--processes is {self.processes}: has to be at least 1")
        if self.probe_captions < 0:
            raise DataError(f"--probe-captions is {self.probe_captions}: has to be at least 0")


@dataclass(frozen=True)
class Run:
    """One training with its evaluation; several studies may share it.

    Attributes:
        digest: sha256 of the settings that its numbers depend on, in hexadecimal.
        arguments: of tools/train.py.
        uses: (study, label) of each variant that this is a run of.
        probe_captions: of the evaluation, see `Request`; 0 takes one with probes as well.
    """

    digest: str
    folder: Path
    config: Config
    arguments: tuple[str, ...]
    uses: tuple[tuple[str, str], ...] = field(compare=False)
    processes: int = 1
    probe_captions: int = 0

    @property
    def name(self) -> str:
        """What messages call it."""
        labels = dict.fromkeys(f"{study}: {label}" for study, label in self.uses)
        return f"{self.folder.name} seed {self.config.train.seed} ({', '.join(labels)})"

    @property
    def evaluation(self) -> Path:
        """The file that tools/eval.py leaves."""
        return self.folder / f"eval-{self.config.data.test}.json"


def digest_of(config: Config, processes: int = 1) -> str:
    """sha256 of everything that a run's numbers depend on; the order of the settings is no part of it."""
    return _digest(_flat(to_dict(config)), processes)


def _digest(settings: dict[str, Any], processes: int) -> str:
    flat = {name: value for name, value in settings.items() if name not in NOT_IN_HASH}
    for name in PATHS_IN_HASH:
        value = flat.get(name) or ""
        flat[name] = [Path(path).name for path in value] if isinstance(value, list) else Path(value).name
    if processes > 1:       # each has a batch of its own
        flat["processes"] = processes
    return hashlib.sha256(json.dumps(flat, sort_keys=True).encode()).hexdigest()


def plan(request: Request) -> list[Run]:
    """Every run that the studies need, once; all variants of the first seed, then of the next, so that early tables
    already hold every variant.

    Raises:
        SettingsError: an unknown setting or data set, a value of the wrong type.
    """
    found: dict[str, Run] = {}
    resolved = {
        (study, variant.label): (variant, load_config(list(_words(request, variant)), request.configs))
        for study in request.studies for variant in STUDIES[study]
    }
    for seed in request.seeds:
        for use, (variant, config) in resolved.items():
            config = replace(config, train=replace(config.train, seed=seed))
            digest = digest_of(config, request.processes)
            if digest in found:
                found[digest] = replace(found[digest], uses=(*found[digest].uses, use))
                continue
            folder = request.out / "runs" / digest[:12]
            arguments = (*_words(request, variant), "--train.seed", str(seed), "--out", str(folder))
            found[digest] = Run(digest, folder, replace(config, out=str(folder)), arguments, (use,), request.processes,
                                request.probe_captions)
    return list(found.values())


def _words(request: Request, variant: Variant) -> tuple[str, ...]:
    """Arguments of tools/train.py without seed and folder."""
    words = ["--dataset", request.dataset, *request.settings]
    for name, value in variant.settings.items():
        words += [f"--{name}", value]
    return tuple(words)


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


# How far a run has come


def saved_settings(run: Run) -> dict[str, Any] | None:
    """Settings by dotted name that the run's folder was trained with; None where nothing was started there.

    Raises:
        DataError: they are of another run, or of other data of the same name.
    """
    path = run.folder / "settings.yaml"
    if not path.exists():
        return None
    advice = "move this folder away, or choose another --out"
    try:
        saved = read_settings(Config, path)
    except SettingsError as error:
        raise DataError(f"{run.folder} was made by another version: {error}; {advice}") from error
    if _digest(saved, run.processes) != run.digest:
        raise DataError(f"{path} holds other settings than this run has; {advice}")
    known = _read_stamp(run).get("data", {})
    for name, content in _data_contents(run).items():
        if known.get(name, content) != content:
            raise DataError(f"{run.folder} was trained with other contents of {name} than there are now; {advice}")
    for then, now in zip(_data_files(saved), _data_files(_flat(to_dict(run.config))), strict=True):
        if then.exists() and now.exists() and not then.samefile(now):
            raise DataError(f"{run.folder} was trained with {then}, and this run would be with {now}, another file of "
                            f"the same name; {advice}")
    return saved


def _data_files(settings: dict[str, Any], split: str = "train") -> list[Path]:
    paths = [settings["data.captions"], *settings["data.features"]]
    return [Path(path.replace("{split}", settings[f"data.{split}"])) for path in paths]


def _data_contents(run: Run) -> dict[str, str]:
    """What the captions and features of the run hold now, by the name of the file; without those that are not there."""
    settings = _flat(to_dict(run.config))
    files = dict.fromkeys(path for split in ("train", "val", "test") for path in _data_files(settings, split))
    return {path.name: _content_of(path) for path in files if path.exists()}


def _content_of(path: Path) -> str:
    """sha256 of names, sizes and 16 samples of each file: features of a data set are too large to be read whole."""
    found = hashlib.sha256()
    for file in sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]:
        size = file.stat().st_size
        found.update(f"{file.relative_to(path)} {size}\n".encode())
        with open(file, "rb") as content:
            for number in range(16):
                content.seek(size * number // 16)
                found.update(content.read(1 << 16))
    return found.hexdigest()


def state_of(run: Run) -> State:
    """How far the run has come.

    `finished`: evaluated, with the checkpoint that is there now. `trained`: only the evaluation is left. `interrupted`:
    there is a checkpoint to resume from. `missing`: nothing to build on.

    Raises:
        DataError: the folder holds another run.
    """
    if saved_settings(run) is None:
        return "missing"
    stamp = _read_stamp(run)
    fingerprint = fingerprint_of(run.folder / "best.pt")
    if fingerprint is None or stamp.get("digest") != run.digest or stamp.get("trained") != fingerprint:
        return "interrupted" if (run.folder / "last.pt").exists() else "missing"
    return "finished" if stamp.get("evaluated") == fingerprint and _is_evaluation_of(run) else "trained"


def _is_evaluation_of(run: Run) -> bool:
    """Whether eval-SPLIT.json is whole and of this folder's best checkpoint, not of another evaluated by hand."""
    try:
        content = json.loads(run.evaluation.read_text(encoding="utf-8"))
        evaluated = [Path(source).name for source in content["runs"]]
        whole = "full" in content["reports"] and (run.probe_captions == 0 or "probes" in content)
        ranks = run.evaluation.with_name(f"ranks-{run.config.data.test}.npz")
        whole &= not ranks.exists() or fingerprint_of(ranks) is not None
        return evaluated == [run.folder.name] and content["protocol"] == "all pairs" and whole
    except (OSError, ValueError, KeyError, TypeError):
        return False


def describe(run: Run) -> str:
    """`state_of` for a reader: of a folder that holds another run, what is wrong."""
    try:
        return state_of(run)
    except DataError as error:
        return f"refused: {error}"


def stamp(run: Run, *, evaluated: bool) -> None:
    """Note that the run is trained, or also evaluated, with the checkpoint that is there now."""
    fingerprint = fingerprint_of(run.folder / "best.pt")
    if fingerprint is None:
        raise DataError(f"{run.folder / 'best.pt'} is missing or damaged")
    content: dict[str, Any] = {"digest": run.digest, "processes": run.processes, "trained": fingerprint}
    before = _read_stamp(run)
    if before.get("trained") == fingerprint:                # an evaluation has nothing to say about the training
        content |= {name: before[name] for name in ("steps", "data") if name in before}
    else:
        records = read_metrics(run.folder / METRICS)
        content |= {"steps": records[-1]["step"] if records else None, "data": _data_contents(run)}
    if evaluated:
        content["evaluated"] = fingerprint
    write_text(run.folder / STAMP, json.dumps(content, indent=2) + "\n")


def steps_of(run: Run) -> int | None:
    """That the finished run trained for; None where nobody noted them."""
    return _read_stamp(run).get("steps")


def _read_stamp(run: Run) -> dict[str, Any]:
    try:
        content = json.loads((run.folder / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def fingerprint_of(path: Path) -> str | None:
    """What a checkpoint or score file holds, by the checksums that a zip archive keeps of each of its parts.

    Reading those takes no longer for a large file, and a copy of the file has the same. None where there is no whole
    archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            parts = [(part.filename, part.CRC, part.file_size) for part in archive.infolist()]
    except (OSError, zipfile.BadZipFile):
        return None
    return hashlib.sha256(repr(parts).encode()).hexdigest()


# Commands


def train_command(run: Run, request: Request, launcher: Sequence[str], *, resume: bool) -> list[str]:
    """tools/train.py for this run, from the start or from where it stopped."""
    if not resume:
        return [*launcher, str(request.tools / "train.py"), *run.arguments]
    moved = [word for name in _moved(run) for word in (f"--{name}", _as_word(_flat(to_dict(run.config))[name]))]
    return [*launcher, str(request.tools / "train.py"), "--resume", str(run.folder), *moved]


def eval_command(run: Run, request: Request, python: str) -> list[str]:
    """tools/eval.py for this run's best checkpoint."""
    words = [python, str(request.tools / "eval.py"), "--checkpoint", str(run.folder), "--split", run.config.data.test]
    if run.probe_captions:
        words += ["--probe-captions", str(run.probe_captions)]
    moved = _moved(run)
    if "data.captions" in moved:
        words += ["--captions", run.config.data.captions]
    if "data.features" in moved:
        words += ["--features", *run.config.data.features]
    return words


def _moved(run: Run) -> list[str]:
    """Settings that are no part of the run and differ from those that it was started with."""
    then, now = saved_settings(run), _flat(to_dict(run.config))
    if then is None:
        return []
    return [name for name in (*NOT_IN_HASH, *PATHS_IN_HASH) if name != "out" and then[name] != now[name]]


def _as_word(value: Any) -> str:
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return "null" if value is None else str(value)


def choose(runs: Sequence[Run], labels: Sequence[str]) -> list[Run]:
    """The runs of these labels; all where there are none.

    Raises:
        DataError: a label that no study asked for has.
    """
    known = dict.fromkeys(label for run in runs for _, label in run.uses)
    for label in labels:
        if label not in known:
            raise DataError(f"--only {label!r}: no such variant here; known: {', '.join(map(repr, known))}")
    return [run for run in runs if not labels or any(label in labels for _, label in run.uses)]
