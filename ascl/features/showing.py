"""Regions of one image, from a backend or from a feature file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ascl.core.errors import DataError
from ascl.data.stores.open import open_features
from ascl.features.drawing import Region, regions_of
from ascl.features.writer import Backend
from ascl.images.find import by_any_id
from ascl.images.read import LoadedImage


def find_image(folder: str | None, image_id: str | None) -> Path:
    """Return the file of the image with this id, a relative path or a stem, in a folder; DataError if there is none."""
    if folder is None or image_id is None:
        raise DataError("give a photograph, or a folder and the id of an image in it")
    found = by_any_id(folder).get(image_id)
    if found is None:
        raise DataError(f"{folder}: no image with the id {image_id!r}, or more than one")
    return found


def regions_by_backend(backend: Backend, loaded: LoadedImage) -> list[Region]:
    """Return the regions that the backend finds in an image, best first."""
    rows = backend.extract([backend.prepare(loaded.image)], np.array([loaded.size], dtype=np.int32))
    count = int(rows["region_count"][0]) if "region_count" in rows else None
    return regions_of(rows["boxes"][0], {name: array[0] for name, array in rows.items()}, backend.names, count)


def regions_from_store(
    paths: Sequence[str | os.PathLike], image_id: str, size: tuple[int, int] | None = None
) -> list[Region]:
    """Return the regions that feature files hold for an image, best first.

    Raises DataError if the files have no boxes, do not hold this image, or were made from one of another (width,
    height) than `size`.
    """
    store = open_features(paths)
    rows = store.rows([image_id])
    features, details = store.read(rows), store.details(rows)
    if features.boxes is None:
        raise DataError(f"{store.source} has no boxes: nothing can be drawn")
    if size is not None and "image_sizes" in details and tuple(details["image_sizes"][0]) != tuple(size):
        made = "x".join(map(str, details["image_sizes"][0]))
        problem = f"image {image_id} is {size[0]}x{size[1]} pixels, but {store.source} was made from one of {made}"
        raise DataError(f"{problem}; give the photograph that the features were made from")
    count = None if features.mask is None else int(features.mask[0].sum())
    return regions_of(features.boxes[0], {name: array[0] for name, array in details.items()}, store.names, count)
