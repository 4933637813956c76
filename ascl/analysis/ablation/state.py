"""Determine the state of a run from its folder, and write the stamp that records it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any, Literal

from ascl.analysis.ablation.plan import Run, digest_of_settings
from ascl.analysis.run_files import flat, read_evaluation
from ascl.core.errors import DataError, SettingsError
from ascl.core.files import write_text
from ascl.core.reading import read_json, reading
from ascl.settings.base import read_settings, to_dict
from ascl.settings.retrieval import Config
from ascl.training.log import METRICS, read_metrics

STAMP = "ablation.json"

State = Literal["finished", "trained", "diverged", "interrupted", "missing"]


def saved_settings(run: Run) -> dict[str, Any] | None:
    """Return the settings, by dotted name, that the run's folder was trained with, or None if nothing was started.

    Raises:
        DataError: the folder holds another run, or was trained on other data of the same name.
    """
    path = run.folder / "settings.yaml"
    if not path.exists():
        return None
    advice = "move this folder away, or choose another folder for the ablation"
    try:
        saved = read_settings(Config, path)
    except SettingsError as error:
        raise DataError(f"{run.folder} was made by another version: {error}; {advice}") from error
    if digest_of_settings(saved, run.processes) != run.digest:
        raise DataError(f"{path} holds other settings than those of this run; {advice}")
    known = _read_stamp(run).get("data", {})
    for name, content in _data_contents(run).items():
        if known.get(name, content) != content:
            raise DataError(f"{run.folder} was trained with {name}, whose content has changed since; {advice}")
    for then, now in zip(_data_files(saved), _data_files(flat(to_dict(run.config))), strict=True):
        if then.exists() and now.exists() and not then.samefile(now):
            raise DataError(f"{run.folder} was trained with {then}, but this run uses {now}, another file of the same "
                            f"name; {advice}")
    return saved


def _data_files(settings: dict[str, Any], split: str = "train") -> list[Path]:
    paths = [settings["data.captions"], *settings["data.features"]]
    return [Path(path.replace("{split}", settings[f"data.{split}"])) for path in paths]


def _data_contents(run: Run) -> dict[str, str]:
    """Return the digest of each caption and feature file of the run, by file name; missing files are skipped."""
    settings = flat(to_dict(run.config))
    files = dict.fromkeys(path for split in ("train", "val", "test") for path in _data_files(settings, split))
    return {path.name: _content_of(path) for path in files if path.exists()}


def _content_of(path: Path) -> str:
    """Return the sha256 of names, sizes and 16 samples of each file: features are too large to read completely."""
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
    """Return the state of a run; raise DataError if its folder holds another run.

    `finished`: trained and, unless it is a trial, evaluated with the current checkpoint. `trained`: only the evaluation
    is missing. `diverged`: a trial that cannot be trained to the end. `interrupted`: there is a checkpoint to resume
    from. `missing`: there is no checkpoint.
    """
    if saved_settings(run) is None:
        return "missing"
    if failure_of(run) is not None:
        return "diverged"
    stamp = _read_stamp(run)
    fingerprint = fingerprint_of(run.folder / "best.pt")
    if fingerprint is None or stamp.get("digest") != run.digest or stamp.get("trained") != fingerprint:
        return "interrupted" if (run.folder / "last.pt").exists() else "missing"
    evaluated = run.trial or (stamp.get("evaluated") == fingerprint and _is_evaluation_of(run))
    return "finished" if evaluated else "trained"


def _is_evaluation_of(run: Run) -> bool:
    """Return whether eval-SPLIT.json is complete and evaluates this folder's run, not another one."""
    try:
        content = read_evaluation(run.evaluation)
    except (DataError, OSError):
        return False
    ranks = run.evaluation.with_name(f"ranks-{run.config.data.test}.npz")
    return ([Path(str(source)).name for source in content.get("runs", [])] == [run.folder.name]
            and content.get("protocol") == "all pairs" and (run.probe_captions == 0 or "probes" in content)
            and (not ranks.exists() or fingerprint_of(ranks) is not None))


def describe(run: Run) -> str:
    """Return `state_of` as text; if the folder holds another run, the error message."""
    try:
        return state_of(run)
    except DataError as error:
        return f"refused: {error}"


def stamp(run: Run, *, evaluated: bool) -> None:
    """Record that the run is trained, or also evaluated, with the current checkpoint."""
    fingerprint = fingerprint_of(run.folder / "best.pt")
    if fingerprint is None:
        raise DataError(f"{run.folder / 'best.pt'} is missing or damaged: remove the folder to train this run again")
    content: dict[str, Any] = {"digest": run.digest, "processes": run.processes, "trained": fingerprint}
    before = _read_stamp(run)
    if before.get("trained") == fingerprint:                # an evaluation does not change what is known of training
        content |= {name: before[name] for name in ("steps", "data") if name in before}
    else:
        records = read_metrics(run.folder / METRICS)
        content |= {"steps": records[-1]["step"] if records else None, "data": _data_contents(run)}
    if evaluated:
        content["evaluated"] = fingerprint
    write_text(run.folder / STAMP, json.dumps(content, indent=2) + "\n")


def stamp_failure(run: Run, reason: str) -> None:
    """Record that a trial diverged: it counts as tried, and is not started again until its folder is removed."""
    write_text(run.folder / STAMP, json.dumps({"digest": run.digest, "diverged": reason}, indent=2) + "\n")


def failure_of(run: Run) -> str | None:
    """Return why a trial diverged, or None if it did not."""
    stamp = _read_stamp(run)
    reason = stamp.get("diverged") if run.trial and stamp.get("digest") == run.digest else None
    return reason if isinstance(reason, str) else None


def steps_of(run: Run) -> int | None:
    """Return the number of training steps of a finished run, or None if it was not recorded."""
    return _read_stamp(run).get("steps")


def _read_stamp(run: Run) -> dict[str, Any]:
    """Return the stamp of a run, or {} if there is none that can be read: the run's state is then found anew."""
    path = run.folder / STAMP
    try:
        content = read_json(path)
    except DataError:
        return {}
    fits = isinstance(content.get("data", {}), dict) and isinstance(content.get("steps"), (int, type(None)))
    return content if fits else {}


def fingerprint_of(path: Path) -> str | None:
    """Return a digest of the content of a checkpoint or score file, or None if it is not a complete zip archive.

    It is computed from the archive's checksums, which is fast for large files, and is the same for a copy of the file.
    """
    try:
        with reading(path, "a zip archive"), zipfile.ZipFile(path) as archive:
            parts = [(part.filename, part.CRC, part.file_size) for part in archive.infolist()]
    except DataError:
        return None
    return hashlib.sha256(repr(parts).encode()).hexdigest()
