"""Explain the scores of an image and captions with the model of a run; write a plot and its numbers."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from ascl.analysis.explain.drawing import Picture, save_explanations
from ascl.analysis.explain.explanation import PairExplanation, explain_pair, word_labels
from ascl.analysis.run_files import run_settings
from ascl.core.errors import DataError
from ascl.core.files import atomic_path, write_text
from ascl.core.provenance import environment
from ascl.data.captions import CaptionSet
from ascl.data.split import build_split, data_paths
from ascl.data.stores.open import Features, FeatureStore
from ascl.features.drawing import named
from ascl.features.grid import grid_boxes
from ascl.features.showing import find_image
from ascl.images.read import LoadedImage, load_image
from ascl.retrieval import build
from ascl.retrieval.encode import encode_images
from ascl.settings.retrieval import Config

UNKNOWN_SIZE = (600, 600)       # of an image without photograph and without a size in the feature file
MOST_CAPTIONS = 2


class Explained(NamedTuple):
    """The result of `explain`. notes: what the plot lacks, and why. files: the files written."""

    pairs: list[tuple[str, PairExplanation]]
    content: dict[str, Any]
    notes: list[str]
    files: list[Path]


@torch.no_grad()
def explain(run: str, image: str, captions: Sequence[str], *, images: str | None = None, grid: bool = False,
            overrides: dict[str, Any] | None = None, out: Path | None = None) -> Explained:
    """Explain the score of one image with one caption, or with two side by side.

    Args:
        run: run folder or checkpoint.
        image: an image id of the run's data set, or the path of a photograph whose stem is one.
        images: folder of photographs; None = the settings'.
        grid: for feature files without boxes: take the regions as cells of a square grid, row by row.
        overrides: data settings that replace the run's, by field name.
        out: plot to write, with the numbers as JSON next to it; None = `IMAGE-ID.explained.png` in this folder.

    Raises:
        DataError: the image has no features, the model cannot be explained, or it is a copy detection run.
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
        notes.append("a caption exceeded the text encoder's limit and was truncated: its last words do not affect the "
                     "score")
    content = {
        "run": str(run), "image": image_id, "photo": None if path is None else str(path), "features": store.source,
        "boxes": None if boxes is None else "the feature file's" if features.boxes is not None else "a grid, as asked",
        "notes": notes, **environment(), "explanations": contents}
    out = out or Path(f"{Path(image_id).name}.explained.png")
    numbers = out.with_suffix(".json")
    picture = Picture(None if loaded is None else loaded.image, boxes, size)
    with atomic_path(out) as temporary:
        save_explanations(pairs, picture, f"image {image_id}, run {run}", temporary)
    write_text(numbers, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return Explained(pairs, content, notes, [out, numbers])


def store_with(config: Config, image_id: str) -> FeatureStore:
    """Open the features of whichever split holds this image; if none does, those of any split."""
    opened: dict[tuple[Path, ...], FeatureStore] = {}
    failed: list[Exception] = []
    for split in dict.fromkeys((config.data.test, config.data.val, config.data.train)):
        paths = tuple(data_paths(config.data, split)[1:])
        if paths in opened:
            continue
        try:
            opened[paths] = build_split(config, split)[1]
        except (DataError, OSError) as error:       # another split's files may exist and hold the image
            failed.append(error)
            continue
        if image_id in opened[paths].image_ids:
            return opened[paths]
    if not opened:
        raise failed[0]
    return next(iter(opened.values()))              # the error of its `rows` names the image and shows some ids


def _photo(path: Path | None, image_id: str, folder: str | None, of_settings: str | None,
           notes: list[str]) -> tuple[LoadedImage | None, Path | None]:
    """Load the photograph; return it and its path. A missing one is an error only if `folder` was given."""
    if path is None and folder is not None:
        path = find_image(folder, image_id)
    if path is None and of_settings is None:
        notes.append("no photograph: the run's settings name no folder of images (data.images); give their folder")
    elif path is None:
        try:
            path = find_image(of_settings, image_id)
        except DataError as error:
            notes.append(f"no photograph: {error}; give another folder")
    return (None, None) if path is None else (load_image(path), path)


def _size(image_id: str, loaded: LoadedImage | None, details: dict[str, np.ndarray], features: Features,
          store: FeatureStore) -> tuple[int, int]:
    """Return width and height of the image to which the boxes refer."""
    width, height = (int(side) for side in details.get("image_sizes", UNKNOWN_SIZE))
    if loaded is not None:
        if "image_sizes" in details and loaded.size != (width, height):
            raise DataError(f"image {image_id} has {loaded.size[0]}x{loaded.size[1]} pixels, but {store.source} was "
                            f"extracted from one of {width}x{height}: give the photograph that it was extracted from")
        return loaded.size
    if "image_sizes" not in details and features.boxes is not None:
        width, height = (max(1, math.ceil(side)) for side in features.boxes[0, :, 2:].max(axis=0))
    return width, height


def _boxes(features: Features, size: tuple[int, int], grid: bool, source: str, notes: list[str]) -> np.ndarray | None:
    """Return the boxes (K, 4) of every region of the file, or None if they are unknown."""
    if features.boxes is not None:
        if grid:
            raise DataError(f"{source} has boxes: explain it without `grid`")
        return features.boxes[0]
    assert features.regions is not None             # checked by `build_split`
    count = features.regions.shape[1]
    side = math.isqrt(count)
    if grid:
        real = count if features.mask is None else int(features.mask[0].sum())
        if side * side != count or real != count:
            raise DataError(f"{source}: {real} regions of at most {count} are not a square grid: explain it without "
                            "`grid`")
        return grid_boxes(side, side, side) * np.tile(size, 2)
    square = f"; if they are a {side}x{side} grid, row by row, set `grid`" if side * side == count else ""
    notes.append(f"{source} has no boxes for its {count} regions, so none are drawn{square}")
    return None


def _with_regions(content: dict[str, Any], boxes: np.ndarray | None, details: dict[str, np.ndarray],
                  names: dict[str, list[str]]) -> dict[str, Any]:
    """Add the box and the detector's label of each region to the numbers of an explanation."""
    for region in content["regions"]:
        number = region["region"]
        words = [named(kind, number, details, names) for kind in ("attribute", "class")]
        region["label"] = " ".join(filter(None, words)) or None
        region["box"] = None if boxes is None else boxes[number].tolist()
    return content
