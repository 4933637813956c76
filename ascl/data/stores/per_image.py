"""What the formats of other projects have in common: an image at a time, each with its own number of regions."""

from __future__ import annotations

import json
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ascl.core.errors import DataError
from ascl.core.files import atomic_path
from ascl.data.stores.base import (
    DETAILS,
    Features,
    FeatureStore,
    first_not_finite,
    not_finite,
    refuse_repeated,
)

MOST_REGIONS = 1000  # of an image; detectors give 100 at most, so more means that the file is misread
_INDEX_VERSION = 1
Index = dict[str, np.ndarray]


@dataclass
class ImageFeatures:
    """One image: regions (k, R) and boxes (k, 4) or None, or globals (G,)."""

    regions: np.ndarray | None = None
    boxes: np.ndarray | None = None
    globals: np.ndarray | None = None


class PerImageFeatures(FeatureStore):
    """A store that reads image by image. Held in memory: ids, and the place and number of regions of each image.

    A subclass calls `_describe` when it knows its images, and implements `_image` and, where the format has details,
    `_image_details`.
    """

    _counts: np.ndarray | None = None
    _sizes: np.ndarray | None = None
    _has_boxes = False
    _detail_names: Sequence[str] = ()

    def _describe(
        self, source: str, image_ids: list[str], dim: int, counts: np.ndarray | None, sizes: np.ndarray | None = None
    ) -> None:
        """Take over what the images are: regions where there are `counts` (N,), else globals; sizes (N, 2)."""
        refuse_repeated(image_ids, source)
        self.source, self.image_ids, self.provenance = source, image_ids, {}
        if counts is None:
            self.global_dim = dim
            return
        self.region_dim, self.num_regions, self._counts, self._sizes = dim, int(counts.max()), counts, sizes
        wrong = np.flatnonzero((counts < 1) | (counts > MOST_REGIONS))
        if len(wrong):
            raise DataError(f"{self.place(wrong[0])}: {counts[wrong[0]]} regions, expected 1 to {MOST_REGIONS}")

    def place(self, row: int) -> str:
        """Where an image is, for messages."""
        return f"{self.source}, row {row} (image {self.image_ids[row]})"

    def remedy(self, kinds: frozenset[str]) -> str:
        return (f"If the file names the same images otherwise, convert it: python tools/convert_features.py "
                f"{self.source} --out FILE.h5 --ids-from CAPTIONS.json")

    @abstractmethod
    def _image(self, row: int) -> ImageFeatures:
        """Features of one image in float32, of the shapes described."""

    def _image_details(self, row: int) -> dict[str, np.ndarray]:
        """Of one image, (k,) arrays under the names in `_detail_names`; not asked for where these are none."""
        return {}

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        unique, position = np.unique(rows, return_inverse=True)  # in the order of the file, each image once
        wanted = kinds & self.kinds
        read = Features(None, None)
        if "globals" in wanted:
            read.globals = np.zeros((len(unique), self.global_dim or 0), dtype=np.float32)
        if "regions" in wanted:
            read.regions = np.zeros((len(unique), self.num_regions or 0, self.region_dim or 0), dtype=np.float32)
            read.boxes = np.zeros((*read.regions.shape[:2], 4), dtype=np.float32) if self._has_boxes else None
            read.mask = self._mask(unique)
        if wanted:
            for i, row in enumerate(unique):
                self._fill(read, i, self._image(row))
        for name, values in (("regions", read.regions), ("globals", read.globals)):
            wrong = None if values is None else first_not_finite(values)
            if wrong is not None:
                raise not_finite(self, name, unique[wrong], unique[wrong], f"It is {self.place(unique[wrong])}")
        if np.array_equal(unique, rows):
            return read
        return Features(*(None if values is None else values[position]
                          for values in (read.regions, read.globals, read.boxes, read.mask)))

    def _fill(self, read: Features, i: int, image: ImageFeatures) -> None:
        if read.globals is not None:
            read.globals[i] = image.globals
        if read.regions is not None and image.regions is not None:
            read.regions[i, : len(image.regions)] = image.regions
            if read.boxes is not None:
                read.boxes[i, : len(image.regions)] = image.boxes

    def _mask(self, rows: np.ndarray) -> np.ndarray | None:
        assert self._counts is not None and self.num_regions is not None
        if (self._counts == self.num_regions).all():
            return None
        return np.arange(self.num_regions) < self._counts[rows, None]

    def _details(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        found = {}
        if self._sizes is not None:
            found["image_sizes"] = self._sizes[rows].astype(np.int32)
        for name in self._detail_names:
            dtype, padding = DETAILS[name]
            found[name] = np.full((len(rows), self.num_regions or 0), padding, dtype=dtype)
        if self._detail_names:
            for i, row in enumerate(rows):
                for name, values in self._image_details(row).items():
                    found[name][i, : len(values)] = values
        return found


def kept_index(path: Path, stamp: dict[str, int | str], build: Callable[[], Index]) -> Index:
    """What `build` finds in a pass over `path`: from the last time, where `stamp` is still the same, else anew.

    It is kept in `.NAME.index.npz` beside `path` where that folder can be written; COCO's TSV of 33 GB takes minutes.
    """
    kept = path.with_name(f".{path.name}.index.npz")
    text = json.dumps({"version": _INDEX_VERSION, **stamp}, sort_keys=True)
    try:
        with np.load(kept, allow_pickle=False) as file:
            if str(file["stamp"]) == text:
                return {name: file[name] for name in file.files if name != "stamp"}
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # absent or damaged: a pass over the file brings it back
    found = build()
    try:
        with atomic_path(kept) as temporary, open(temporary, "wb") as out:
            np.savez(out, stamp=np.array(text), **found)  # type: ignore[arg-type]
    except OSError:
        pass  # a read-only folder: the next opening takes a pass again
    return found


def stamp_of_file(path: Path) -> dict[str, int | str]:
    """What tells that a file is still the same."""
    about = path.stat()
    return {"bytes": about.st_size, "modified_ns": about.st_mtime_ns}
