"""Seeing why: a pair's score explained, and a run as one page. What `tools/explain.py` and `tools/report.py` call."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from tqdm import tqdm

from ascl.analysis.evaluation import on_best_device
from ascl.analysis.explain.drawing import Picture, save_explanations
from ascl.analysis.explain.explanation import PairExplanation, explain_pair, word_labels
from ascl.analysis.query_ranks import QueryRanks, read_ranks
from ascl.analysis.report.page import Photos, RunRecord, render
from ascl.analysis.report.retrieved import top_of_matrix
from ascl.core.errors import DataError
from ascl.core.files import atomic_path, write_text
from ascl.core.provenance import environment
from ascl.data.captions import CaptionSet, captions_exist, load_captions
from ascl.data.split import build_split, data_paths
from ascl.data.stores.open import Features, FeatureStore
from ascl.features.drawing import named
from ascl.features.grid import grid_boxes
from ascl.features.showing import find_image
from ascl.images.read import LoadedImage, find_images, load_image
from ascl.retrieval import build, load_scores, top_pairs
from ascl.retrieval.encode import encode_images
from ascl.retrieval.scoring.all_pairs import TopPairs
from ascl.settings.base import from_dict, to_dict
from ascl.settings.retrieval import Config
from ascl.training.log import METRICS, read_metrics

UNKNOWN_SIZE = (600, 600)       # of an image whose photograph is not at hand and whose file does not tell
MOST_CAPTIONS = 2
TOP = 10                        # candidates of each query that a report looks at
THUMBNAIL = (176, 70)           # longer side in pixels, JPEG quality: 5 to 10 kB each


# One pair


@dataclass(frozen=True)
class Explained:
    """What `explain` found and wrote. notes: what the picture lacks, and why."""

    pairs: list[tuple[str, PairExplanation]]
    content: dict[str, Any]
    notes: list[str]
    files: list[Path]


@torch.no_grad()
def explain(
    run: str, image: str, captions: Sequence[str], *, images: str | None = None, grid: bool = False,
    overrides: dict[str, Any] | None = None, out: Path | None = None,
) -> Explained:
    """Explain the score of one image with one caption, or with two side by side.

    Args:
        run: run folder or checkpoint.
        image: an image id of the run's data set, or a photograph's path whose stem is one.
        images: folder of photographs; None = the settings'.
        grid: where the feature file has no boxes: its regions are the cells of a square grid, row by row.
        overrides: data settings that replace the run's, by field name.
        out: picture to write, the numbers beside it as JSON; None = `IMAGE-ID.explained.png` here.

    Raises:
        DataError: an image without features, a model that cannot be explained, a run of copy detection.
    """
    if not 1 <= len(captions) <= MOST_CAPTIONS:
        raise DataError(f"{len(captions)} captions: give one, or two to compare")
    run_settings(Path(run) if Path(run).is_dir() else Path(run).parent)
    model, config = build.load_run(run)
    config = replace(config, data=replace(config.data, **(overrides or {})))
    path = Path(image) if Path(image).is_file() else None
    image_id = image if path is None else path.stem
    store = store_with(config, image_id)
    row = store.rows([image_id])
    features, details = store.read(row), {name: part[0] for name, part in store.details(row).items()}
    notes: list[str] = []
    loaded, path = _photo(path, image_id, images, config.data.images, notes)
    size = _size(image_id, loaded, details, features, store)
    boxes = _boxes(features, size, grid, store.source, notes)
    encoded = encode_images(model, CaptionSet([image_id], [], np.zeros(0, dtype=np.int64), store.source), store)
    pairs, contents = [], []
    for caption in captions:
        text = model.encode_texts([caption])
        words = word_labels(model.text, caption, int(text.mask.sum()))
        explanation = explain_pair(model, encoded, text, words)
        pairs.append((caption, explanation))
        contents.append({"caption": caption, "pair_scores": float(model.pair_scores(encoded, text)),
                         **_with_regions(explanation.to_dict(), boxes, details, store.names)})
    if getattr(model.text, "truncated", 0):
        notes.append("a caption was longer than the text encoder's limit and was cut: its last words have no part in "
                     "the score")
    content = {
        "run": str(run), "image": image_id, "photo": None if path is None else str(path), "features": store.source,
        "boxes": None if boxes is None else "the feature file's" if features.boxes is not None else "a grid, as asked",
        "notes": notes, **environment(), "explanations": contents,
    }
    out = out or Path(f"{Path(image_id).name}.explained.png")
    numbers = out.with_suffix(".json")
    picture = Picture(None if loaded is None else loaded.image, boxes, size)
    with atomic_path(out) as temporary:
        save_explanations(pairs, picture, f"image {image_id}, run {run}", temporary)
    write_text(numbers, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return Explained(pairs, content, notes, [out, numbers])


def run_settings(folder: Path) -> dict[str, Any] | None:
    """What a run's settings.yaml says, None where there is none.

    Raises:
        DataError: no settings, or those of a run of copy detection, whose folder looks like one of retrieval.
    """
    path = folder / "settings.yaml"
    if not path.is_file():
        return None
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds no settings by name: give the folder of a run of tools/train.py")
    if "objective" in values:
        raise DataError(
            f"{folder} is a run of copy detection (tools/train_copy.py, objective {values['objective']}): it has no "
            "words and no captions; tools/eval_copy.py reports on its descriptors"
        )
    return values


def store_with(config: Config, image_id: str) -> FeatureStore:
    """The features of a run's data set that hold this image, of whichever split; any of them where none does."""
    opened: dict[tuple[Path, ...], FeatureStore] = {}
    failed: list[Exception] = []
    for split in dict.fromkeys((config.data.test, config.data.val, config.data.train)):
        paths = tuple(data_paths(config.data, split)[1:])
        if paths in opened:
            continue
        try:
            opened[paths] = build_split(config, split)[1]
        except (DataError, OSError) as error:       # one split's files may be gone and another's hold the image
            failed.append(error)
            continue
        if image_id in opened[paths].image_ids:
            return opened[paths]
    if not opened:
        raise failed[0]
    return next(iter(opened.values()))              # its `rows` says what is missing, and what its ids look like


def _photo(
    path: Path | None, image_id: str, folder: str | None, of_settings: str | None, notes: list[str]
) -> tuple[LoadedImage | None, Path | None]:
    """The photograph and where it was; a folder that was asked for has to have it, that of the settings need not."""
    if path is None and folder is not None:
        path = find_image(folder, image_id)
    if path is None and of_settings is None:
        notes.append("no photograph: the run's settings name no folder of images (data.images); give --images FOLDER")
    elif path is None:
        try:
            path = find_image(of_settings, image_id)
        except DataError as error:
            notes.append(f"no photograph: {error}; give --images FOLDER")
    return (None, None) if path is None else (load_image(path), path)


def _size(
    image_id: str, loaded: LoadedImage | None, details: dict[str, np.ndarray], features: Features, store: FeatureStore
) -> tuple[int, int]:
    """Width and height in whose pixels the boxes are."""
    known = tuple(int(side) for side in details["image_sizes"]) if "image_sizes" in details else None
    if loaded is not None:
        if known is not None and known != loaded.size:
            raise DataError(
                f"image {image_id} is {loaded.size[0]}x{loaded.size[1]} pixels, but {store.source} was made of one of "
                f"{known[0]}x{known[1]}: give the photograph that the features were made of"
            )
        return loaded.size
    if known is not None:
        return known[0], known[1]
    if features.boxes is not None:
        right, bottom = features.boxes[0, :, 2:].max(axis=0)
        return max(1, math.ceil(right)), max(1, math.ceil(bottom))
    return UNKNOWN_SIZE


def _boxes(
    features: Features, size: tuple[int, int], grid: bool, source: str, notes: list[str]
) -> np.ndarray | None:
    """(K, 4) boxes of every region of the file, or None where nothing is known of them."""
    if features.boxes is not None:
        if grid:
            raise DataError(f"{source} has boxes: leave --grid out")
        return features.boxes[0]
    assert features.regions is not None             # `build_split` refuses others
    count = features.regions.shape[1]
    side = math.isqrt(count)
    whole = features.mask is None or bool(features.mask[0].all())
    if grid:
        if side * side != count or not whole:
            real = count if features.mask is None else int(features.mask[0].sum())
            raise DataError(f"{source}: {real} regions of at most {count} are no square grid: leave --grid out")
        return grid_boxes(side, side, side) * np.tile(size, 2)
    square = f"; if they are the cells of a {side}x{side} grid, row by row, say --grid" if side * side == count else ""
    notes.append(f"{source} has no boxes of its {count} regions, so none is drawn{square}")
    return None


def _with_regions(
    content: dict[str, Any], boxes: np.ndarray | None, details: dict[str, np.ndarray], names: dict[str, list[str]]
) -> dict[str, Any]:
    """The numbers of an explanation with the box of each region and what a detector called it."""
    for region in content["regions"]:
        number = region["region"]
        words = [named(kind, number, details, names) for kind in ("attribute", "class")]
        region["label"] = " ".join(word for word in words if word) or None
        region["box"] = None if boxes is None else [float(side) for side in boxes[number]]
    return content


# One run


@dataclass(frozen=True)
class Reported:
    """The page of a run, and what it lacks."""

    file: Path
    missing: dict[str, str]


def report(
    run: str, *, split: str | None = None, images: str | None = None, overrides: dict[str, Any] | None = None,
    scores: str | None = None, out: Path | None = None,
) -> Reported:
    """Write everything that is known of a run as one HTML page; what is missing is said there.

    Args:
        run: run folder.
        split: whose queries are shown; None = the test split of the settings.
        images: folder of photographs; None = the settings'.
        overrides: data settings that replace the run's, by field name.
        scores: a matrix kept by `tools/eval.py --save-scores`, in the place of scoring all pairs anew.
        out: None = `report.html` in the run's folder.

    Raises:
        DataError: no folder of a run of retrieval, damaged files in it, no such split, or scores that are not of it.
    """
    folder = Path(run)
    saved = run_settings(folder)
    if saved is None:
        raise DataError(f"{folder / 'settings.yaml'} does not exist: give the folder of a run of tools/train.py")
    config = from_dict(Config, saved, str(folder / "settings.yaml"))
    split = split or config.data.test
    evaluate = f"python tools/eval.py --checkpoint {run}" + ("" if split == config.data.test else f" --split {split}")
    missing: dict[str, str] = {}
    metrics: list[dict[str, Any]] = []
    if (folder / METRICS).is_file():
        metrics = read_metrics(folder / METRICS)
    else:
        missing["metrics"] = f"{METRICS} is not in the run's folder: there are no curves."
    ranks, top, seconds = _retrieved(config, folder, split, overrides or {}, scores, evaluate, missing)
    photos = _photos(images, config.data.images, missing) if ranks is not None else _no_photo
    defaults = _flat(to_dict(Config()))
    settings = _flat(to_dict(config))
    record = RunRecord(
        name=folder.resolve().name, dataset=config.dataset, model=config.model.kind,
        changed=[(name, _shown(value), _shown(defaults[name])) for name, value in settings.items()
                 if value != defaults[name]],
        settings=[(name, _shown(value)) for name, value in settings.items()],
        metrics=metrics, environment=_read_json(folder / "environment.json") or {},
        evaluations={path.stem.removeprefix("eval-"): _read_json(path) or {}
                     for path in sorted(folder.glob("eval-*.json"))},
        split=split, evaluate=evaluate, ranks=ranks, top=top, seconds=seconds, photos=photos,
        batch_size=config.train.batch_size, missing=missing,
        validated_on=f"the first {config.data.val_images} images of split {config.data.val}"
        if config.data.val_images else f"split {config.data.val}",
    )
    out = out or folder / "report.html"
    write_text(out, render(record))
    return Reported(out, missing)


def _retrieved(
    config: Config, folder: Path, split: str, overrides: dict[str, Any], scores: str | None, evaluate: str,
    missing: dict[str, str],
) -> tuple[QueryRanks | None, TopPairs | None, float | None]:
    """Ranks of an evaluation, the best candidates of every query, and the seconds that it took to score them."""
    path = folder / f"ranks-{split}.npz"
    if not path.is_file():
        if split != config.data.test:
            _check_split(config, split, overrides)
        if scores is not None:
            raise DataError(f"--scores says what was retrieved, but not its ranks: {path} is missing; run {evaluate}")
        missing["ranks"] = f"{path.name} is not in the run's folder. To make it: {evaluate}"
        return None, None, None
    ranks = read_ranks(path)
    k = min(TOP, ranks.images, len(ranks.owner))
    if scores is not None:
        matrix, owner = load_scores(scores)
        if matrix.shape != (ranks.images, len(ranks.owner)) or (owner != ranks.owner).any():
            raise DataError(f"{scores} holds scores of other images or texts than {path}: keep those of this split "
                            f"with {evaluate} --save-scores {scores}")
        return ranks, top_of_matrix(matrix, k), None
    try:
        model = build.load_run(folder)[0]
        data = replace(config, data=replace(config.data, **overrides))
        captions, store = build_split(data, split, captions_per_image=config.data.captions_per_image)
        if captions.captions != ranks.captions or captions.image_ids != ranks.image_ids:
            raise DataError(f"{path.name} is of other images or captions than split {split} has now; run {evaluate}")
        started = time.perf_counter()
        encoded = build.encode_split(on_best_device(model), captions, store)
        with tqdm(total=len(encoded[0]) * len(encoded[1]), desc="scoring", unit=" pairs", unit_scale=True,
                  disable=None) as bar:
            top = top_pairs(model, *encoded, k, progress=bar.update)
        return ranks, top, time.perf_counter() - started
    except (DataError, OSError) as error:
        missing["top"] = f"What was retrieved is not shown, only ranks: {error}"
        return ranks, None, None


def _check_split(config: Config, split: str, overrides: dict[str, Any]) -> None:
    """A split that was asked for by name and never evaluated has to exist, or a mistyped one makes an empty page.

    Where the captions are no longer in place it cannot be asked, and the page says what is missing.

    Raises:
        DataError: no such split, with those present.
    """
    path = data_paths(replace(config.data, **overrides), split)[0]
    if not captions_exist(path):
        return
    try:
        load_captions(path, split)
    except DataError as error:
        raise DataError(f"--split {split} is not evaluated and cannot be: {error}") from error


def _photos(folder: str | None, of_settings: str | None, missing: dict[str, str]) -> Photos:
    """Image id -> thumbnail; a folder that was asked for has to be there, that of the settings need not."""
    source = folder or of_settings
    if source is None:
        missing["photos"] = ("No photographs: the run's settings name no folder of images (data.images). To show them, "
                             "make the page with --images FOLDER.")
        return _no_photo
    try:
        paths = {path.stem: path for path in find_images(source)}
    except DataError as error:
        if folder is not None:
            raise
        missing["photos"] = f"No photographs: {error}. To show them, make the page with --images FOLDER."
        return _no_photo
    made: dict[str, bytes | None] = {}

    def thumbnail(image_id: str) -> bytes | None:
        if image_id not in made:
            made[image_id] = _thumbnail(paths[image_id]) if image_id in paths else None
        return made[image_id]

    return thumbnail


def _no_photo(image_id: str) -> None:
    return None


def _thumbnail(path: Path) -> bytes | None:
    """A small JPEG, None of a file that cannot be read."""
    side, quality = THUMBNAIL
    try:
        image = load_image(path).image
    except DataError:
        return None
    image.thumbnail((side, side))
    stream = io.BytesIO()
    image.save(stream, format="jpeg", quality=quality, optimize=True)
    return stream.getvalue()


def _read_json(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is no JSON ({error}): remove it, or make it again") from error
    if not isinstance(content, dict):
        raise DataError(f"{path} holds a JSON {type(content).__name__}, expected an object: remove it")
    return content


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _shown(value: Any) -> str:
    """A setting as a YAML file would say it."""
    return json.dumps(value, ensure_ascii=False) if not isinstance(value, str) or not value else value
