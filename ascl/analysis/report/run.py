"""Write the report of a run: the content of its folder, what its model retrieves, and photographs."""

from __future__ import annotations

import io
import json
import os
import time
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from ascl.analysis.evaluation import bar, load_split
from ascl.analysis.query_ranks import QueryRanks, read_ranks
from ascl.analysis.report.page import Photos, RunRecord, render
from ascl.analysis.report.retrieved import spread, top_of_matrix
from ascl.analysis.run_files import flat, read_evaluation, run_settings
from ascl.core.errors import DataError
from ascl.core.files import write_text
from ascl.core.reading import read_json
from ascl.data.captions import captions_exist
from ascl.data.split import data_paths, split_captions
from ascl.images.find import by_any_id
from ascl.images.read import load_image
from ascl.retrieval import load_scores, top_pairs
from ascl.retrieval.scoring.all_pairs import TopPairs
from ascl.settings.base import from_dict, to_dict
from ascl.settings.retrieval import Config
from ascl.training.log import METRICS, read_metrics

TOP = 10                        # candidates per query that a report uses
THUMBNAIL = (176, 70)           # longer side in pixels, JPEG quality: 5 to 10 kB each


EXAMPLES = 3                    # text queries that the program prints
BEST = 3                        # images per query


class Reported(NamedTuple):
    """The page of a run. missing: what it lacks, and why. examples: text queries with their best images."""

    file: Path
    missing: dict[str, str]
    examples: list[dict[str, Any]]


def report(run: str, *, split: str | None = None, images: str | None = None, overrides: dict[str, Any] | None = None,
           scores: str | None = None, out: Path | None = None) -> Reported:
    """Write a report of a run as one HTML page, which states what is missing.

    Args:
        run: run folder.
        split: the split whose queries are shown; None = the test split of the settings.
        images: folder of photographs; None = the settings'.
        overrides: data settings that replace the run's, by field name.
        scores: score matrix that the evaluation saved, instead of scoring all pairs again.
        out: None = `report.html` in the run's folder.

    Raises:
        DataError: the folder is not a retrieval run's, its files are damaged, the split is unknown, or the scores
            belong to another split.
    """
    folder = Path(run)
    saved = run_settings(folder)
    if saved is None:
        raise DataError(f"{folder / 'settings.yaml'} does not exist: give the folder of a run of `ascl train`")
    config = from_dict(Config, saved, str(folder / "settings.yaml"))
    split = split or config.data.test
    evaluate = f"ascl eval --checkpoint {run}" + ("" if split == config.data.test else f" --split {split}")
    missing: dict[str, str] = {}
    metrics: list[dict[str, Any]] = []
    if os.path.lexists(folder / METRICS):
        metrics = read_metrics(folder / METRICS)
    else:
        missing["metrics"] = f"{METRICS} is not in the run's folder, so there are no curves."
    path = folder / "environment.json"
    environment = read_json(path, dict, "remove or repair it") if os.path.lexists(path) else {}
    ranks, top, seconds = _retrieved(config, folder, split, overrides or {}, scores, evaluate, missing)
    settings, defaults = flat(to_dict(config)), flat(to_dict(Config()))
    record = RunRecord(
        name=folder.resolve().name, dataset=config.dataset, model=config.model.kind,
        changed=[(name, _shown(value), _shown(defaults[name])) for name, value in settings.items()
                 if value != defaults[name]],
        settings=[(name, _shown(value)) for name, value in settings.items()],
        metrics=metrics, environment=environment,
        evaluations={path.stem.removeprefix("eval-"): read_evaluation(path, whole=True)
                     for path in sorted(folder.glob("eval-*.json"))},
        split=split, evaluate=evaluate, ranks=ranks, top=top, seconds=seconds,
        photos=(lambda image_id: None) if ranks is None else _photos(images, config.data.images, missing),
        batch_size=config.train.batch_size, missing=missing,
        validated_on=f"{config.data.val_folds} folds of " * (config.data.val_folds > 1)
        + f"the first {config.data.val_images} images of " * (config.data.val_images is not None)
        + f"split {config.data.val}")
    out = out or folder / "report.html"
    write_text(out, render(record))
    return Reported(out, missing, [] if ranks is None or top is None else _examples(ranks, top))


def _examples(ranks: QueryRanks, top: TopPairs) -> list[dict[str, Any]]:
    """Return text queries with their best images and the rank of their own image, from 1."""
    return [{
        "query": ranks.caption(query.number), "own_image_at": query.rank + 1,
        "best": [{"image": ranks.image_id(found.candidate), "score": found.score, "own": found.right}
                 for found in query.found[:BEST]],
    } for query in spread(ranks, top, "t2i", EXAMPLES)]


def _retrieved(config: Config, folder: Path, split: str, overrides: dict[str, Any], scores: str | None, evaluate: str,
               missing: dict[str, str]) -> tuple[QueryRanks | None, TopPairs | None, float | None]:
    """Return the ranks of an evaluation, the best candidates of every query, and the seconds that scoring took."""
    path = folder / f"ranks-{split}.npz"
    if not path.is_file():
        if split != config.data.test:
            _check_split(config, split, overrides)
        if scores is not None:
            raise DataError(f"scores were given, but {path} is missing: run {evaluate}")
        missing["ranks"] = f"{path.name} is not in the run's folder. Create it with {evaluate}"
        return None, None, None
    ranks = read_ranks(path)
    k = min(TOP, ranks.images, len(ranks.owner))
    if scores is not None:
        matrix, owner = load_scores(scores)
        if matrix.shape != (ranks.images, len(ranks.owner)) or (owner != ranks.owner).any():
            raise DataError(f"{scores} holds scores of other images or texts than {path}: save those of this split "
                            f"with {evaluate} --save-scores {scores}")
        return ranks, top_of_matrix(matrix, k), None
    try:
        loaded = load_split(folder, split, overrides)
        if loaded.captions.captions != ranks.captions or loaded.captions.image_ids != ranks.image_ids:
            raise DataError(f"{path.name} holds other images or captions than split {split} has now: run {evaluate}")
        started = time.perf_counter()
        images, texts = loaded.encode()
        with bar(len(images) * len(texts), "scoring") as shown:
            top = top_pairs(loaded.model, images, texts, k, progress=shown.update)
        return ranks, top, time.perf_counter() - started
    except (DataError, OSError) as error:
        missing["top"] = f"Retrieved candidates are not shown, only ranks: {error}"
        return ranks, None, None


def _check_split(config: Config, split: str, overrides: dict[str, Any]) -> None:
    """Raise DataError for a mistyped split, which would give an empty page; not checked if the captions are missing."""
    data = replace(config.data, **overrides)
    try:
        if captions_exist(data_paths(data, split)[0]):
            split_captions(data, split)
    except DataError as error:
        raise DataError(f"split {split} has not been evaluated and cannot be: {error}") from error


def _photos(folder: str | None, of_settings: str | None, missing: dict[str, str]) -> Photos:
    """Return a function image id -> thumbnail. A missing folder is an error only if `folder` was given."""
    source = folder or of_settings
    paths: dict[str, Path] = {}
    if source is None:
        missing["photos"] = ("No photographs: the run's settings name no folder of images (data.images). Give their "
                             "folder to show them.")
    else:
        try:
            paths = by_any_id(source)
        except DataError as error:
            if folder is not None:
                raise
            missing["photos"] = f"No photographs: {error}. Give their folder to show them."
    return cache(lambda image_id: _thumbnail(paths[image_id]) if image_id in paths else None)


def _thumbnail(path: Path) -> bytes | None:
    """Return a small JPEG, or None if the file cannot be read."""
    side, quality = THUMBNAIL
    try:
        image = load_image(path).image
    except DataError:
        return None
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, format="jpeg", quality=quality, optimize=True)
    return stream.getvalue()


def _shown(value: Any) -> str:
    """Return a setting as a YAML file would show it."""
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) or not value else value
