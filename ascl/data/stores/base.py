"""The interface of every store of image features, and the error messages that they share."""

from __future__ import annotations

import difflib
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError, first_of
from ascl.core.reading import require_file, shown
from ascl.data.text_files import GET_DATA

KINDS = frozenset({"regions", "globals"})
# What a store may hold besides features: name -> (type, value of padded regions); see `details`.
DETAILS: dict[str, tuple[type, int]] = {"image_sizes": (np.int32, 0), "scores": (np.float32, 0),
                                        "class_ids": (np.int32, -1), "attribute_ids": (np.int32, -1),
                                        "attribute_scores": (np.float32, 0)}
LARGEST = 1e10  # magnitude of a feature; networks give at most thousands, misread bytes 1e19
LARGEST_SIDE = 1_000_000  # pixels of an image
_LONGEST_ID = 1000  # characters
_BEYOND = 0.5  # share of an image's side by which a box may exceed it: enlarged boxes, not another image's
NAMES = {"class_ids": "class_names", "attribute_ids": "attribute_names"}  # ids -> the list that names them


@dataclass
class Features:
    """Features of n images.

    Attributes:
        regions: (n, K, R) float32, None if the store has none; rows beyond an image's real regions are padding, 0.
        globals: (n, G) float32, None if the store has none.
        boxes: (n, K, 4) float32, x1 y1 x2 y2 in pixels of the original image, None if the store has none.
        mask: (n, K) bool, True = a real region; None = all are real.
    """

    regions: np.ndarray | None
    globals: np.ndarray | None
    boxes: np.ndarray | None = None
    mask: np.ndarray | None = None

    def taken(self, index: np.ndarray | slice, regions: slice = slice(None)) -> Features:
        """Return the features of some images, with some regions of each."""
        kept, boxes, mask = (None if values is None else values[index][:, regions]
                             for values in (self.regions, self.boxes, self.mask))
        return Features(kept, None if self.globals is None else self.globals[index], boxes, mask)

    def real_regions(self) -> np.ndarray | None:
        """Return the mask (n, K) bool, even if all regions are real; None without regions."""
        if self.regions is None or self.mask is not None:
            return self.mask
        return np.ones(self.regions.shape[:2], dtype=bool)


class FeatureStore(ABC):
    """Features of images, by row. Safe in DataLoader workers: each process opens the files itself, on first use.

    Attributes:
        image_ids: unique id of each row.
        region_dim, num_regions: R and K; None without regions.
        global_dim: G; None without globals.
        source: the file or files, for messages.
        provenance: file -> how its features were made; empty if the files do not say.
        names: "class_names" and "attribute_names", which name the ids in `details`; empty if the files do not say.
        numbered: whether the ids are only the numbers of the rows.
        skipped: why images were left out, a text for each.
    """

    image_ids: list[str]
    region_dim: int | None = None
    num_regions: int | None = None
    global_dim: int | None = None
    source: str
    provenance: dict[str, dict[str, Any]]
    names: dict[str, list[str]] = {}  # replaced by stores that have names, never changed in place
    numbered: bool = False
    skipped: Sequence[str] = ()

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def kinds(self) -> frozenset[str]:
        """What the store holds: "regions", "globals" or both."""
        dims = {"regions": self.region_dim, "globals": self.global_dim}
        return frozenset(kind for kind, dim in dims.items() if dim is not None)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.image_ids)}

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """Return the rows of the given images, (n,) int64, in that order; a DataError names missing images."""
        missing = [image_id for image_id in image_ids if image_id not in self._row_of]
        if missing:
            raise missing_images(missing, self.source, self.image_ids, self.remedy(self.kinds))
        return np.array([self._row_of[image_id] for image_id in image_ids], dtype=np.int64)

    def read(self, rows: np.ndarray | Sequence[int]) -> Features:
        """Return the features of the given rows, in that order; rows may repeat.

        Raises:
            DataError: a row is outside the store; a value is not finite or above `LARGEST`; or a box is no box of the
                image (the message names file, row and image id).
        """
        return self.read_kinds(self._checked(rows), self.kinds)

    @abstractmethod
    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        """Return only the given kinds of features, as `read` does; all rows are in range.

        A merged store reads from each file only what it uses.
        """

    def details(self, rows: np.ndarray | Sequence[int]) -> dict[str, np.ndarray]:
        """Return what the store holds about the given rows besides features, in that order.

        Returns:
            Those of these that it has for every image: `image_sizes` (n, 2) int32, width and height of the upright
            image in pixels; `scores` (n, K) float32, the detector's confidence; `class_ids` (n, K) int32;
            `attribute_ids` (n, K) int32; `attribute_scores` (n, K) float32. For padded regions, scores are 0 and ids
            -1.

        Raises:
            DataError: a row is outside the store, the file is damaged, or a value is outside its range.
        """
        found = self._details(self._checked(rows))
        self._check_details(found, np.asarray(rows))
        return found

    def _details(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {}

    def _checked(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Return rows as (n,) int64; a DataError if one is not in the store."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.ndim != 1:
            raise DataError(f"rows must be a list of row numbers, got shape {rows.shape}")
        outside = rows[(rows < 0) | (rows >= len(self))]
        if len(outside):
            raise DataError(f"row {outside[0]} is outside the {len(self)} images of {self.source}")
        return rows

    def _check_values(self, name: str, values: np.ndarray, rows: np.ndarray, *, repeat: int = 1) -> None:
        """Raise a DataError for features that are not finite, or too large; an image has `repeat` rows in the file."""
        wrong = first_absurd(values)
        if wrong is not None:
            row = int(rows[wrong])
            raise DataError(f"{self.source}: `{name}` of row {row * repeat} (image {self.image_ids[row]}) has values "
                            f"that are not finite or above {LARGEST:g}. {self._remedy_of_values(name, row)}")

    def _check_boxes(self, boxes: np.ndarray, mask: np.ndarray | None, rows: np.ndarray,
                     sizes: np.ndarray | None) -> None:
        """Raise a DataError for boxes that no region of an image can have; NaN fails every comparison.

        Args:
            boxes: (n, K, 4). mask: (n, K), True = a real region; None = all. rows: (n,).
            sizes: (n, 2) width and height, 0 = unknown; None = all unknown.
        """
        sides = np.full((len(rows), 2), LARGEST_SIDE) if sizes is None else np.where(sizes > 0, sizes, LARGEST_SIDE)
        sides = sides[:, None].astype(np.float64)
        first, last = boxes[..., :2], boxes[..., 2:]
        within = (first <= last) & (first >= -_BEYOND * sides - 1) & (last <= (1 + _BEYOND) * sides + 1)
        fine = np.all(within, axis=2) | (False if mask is None else ~mask)
        if not fine.all():
            i, region = np.argwhere(~fine)[0].tolist()
            row, box = int(rows[i]), " ".join(f"{side:g}" for side in boxes[i, region].tolist())
            known = "" if sizes is None or not sizes[i].all() else f" of an image of {sizes[i][0]}x{sizes[i][1]} pixels"
            raise DataError(f"{self.source}: region {region + 1} of row {row} (image {self.image_ids[row]}) has the "
                            f"box {box}{known}, expected x1 y1 x2 y2 in its pixels. "
                            f"{self._remedy_of_values('regions', row)}")

    def _check_details(self, found: dict[str, np.ndarray], rows: np.ndarray) -> None:
        """Raise a DataError for details outside their range; see `details`. Padding is within it."""
        limits = {"image_sizes": (1, LARGEST_SIDE, "1 to 1,000,000 pixels"), "scores": (-1e-3, 1 + 1e-3, "0 to 1"),
                  "class_ids": (-1, 1 << 30, "whole numbers from 0"), "attribute_ids": (-1, 1 << 30, "whole numbers "
                  "from 0"), "attribute_scores": (-1e-3, 1 + 1e-3, "0 to 1")}
        for name, values in found.items():
            least, most, wanted = limits[name]
            fine = (values >= least) & (values <= most)
            if not fine.all():
                i, place = np.argwhere(~fine)[0].tolist()
                row = int(rows[i])
                raise DataError(f"{self.source}: `{name}` of row {row} (image {self.image_ids[row]}) has the value "
                                f"{values[i, place]:g}, expected {wanted}. {self._remedy_of_values('regions', row)}")

    def _remedy_of_values(self, name: str, row: int) -> str:
        """Return what to do about values that are not finite, as a sentence."""
        return extraction_of(frozenset({name}))

    def remedy(self, kinds: frozenset[str]) -> str:
        """Return what to do about missing images, as a sentence."""
        return extraction_of(kinds)


def require_features(path: Path) -> None:
    """Raise DataError if a file of features does not exist or is not a regular file."""
    if not os.path.lexists(path):
        raise DataError(f"no file {shown(path)}; {GET_DATA}" if path.suffix == ".npy" else
                        f"no file {shown(path)}. {extraction_of(KINDS)}")
    require_file(path, "file of features")


def extraction_of(kinds: frozenset[str]) -> str:
    return f"Extract {' or '.join(sorted(kinds, reverse=True))} of the images"


def missing_images(missing: list[str], source: str, present: list[str], remedy: str) -> DataError:
    near = difflib.get_close_matches(missing[0], present, n=1, cutoff=0.8) if len(missing) == 1 else []
    own = f"nearest of the file's own ids is {near[0]!r}" if near else f"file's own ids look like {present[0]!r}"
    return DataError(f"no features of {len(missing)} image{'s' if len(missing) > 1 else ''} in {source}: "
                     f"{first_of(missing)}. The {own}. {remedy}")


def check_ids(image_ids: list[str], source: str, place: Callable[[int], str] = "row {} (from 0)".format) -> None:
    """Raise DataError unless every image has an id of its own; `place` says where a row is."""
    first_row: dict[str, int] = {}
    for row, image_id in enumerate(image_ids):
        if problem := wrong_id(image_id):
            raise DataError(f"{source}: the image id {image_id!r} of {place(row)} {problem}: name the image otherwise")
        if (first := first_row.setdefault(image_id, row)) != row:
            raise DataError(f"{source}: image id {image_id} is given twice, in {place(first)} and in {place(row)}: "
                            "remove one of them, or convert with skip_broken, which leaves such rows out")
    if not image_ids:
        raise DataError(f"{source} holds no image")


def wrong_id(image_id: str) -> str | None:
    """Return why a text cannot be the id of an image, as a predicate; None if it can."""
    if not image_id.strip():
        return "is empty"
    if "\0" in image_id:
        return "holds a NUL character"
    if len(image_id) > _LONGEST_ID:
        return f"has {len(image_id):,} characters"
    try:
        image_id.encode("utf-8")
    except UnicodeEncodeError:
        return "is not UTF-8"
    return None


def first_absurd(values: np.ndarray, largest: float = LARGEST) -> int | None:
    """Return the index of the first entry along axis 0 with a NaN or a magnitude above `largest`; None without one.

    Two passes without a copy find that all is well, because a comparison with NaN fails.
    """
    largest = min(largest, float(np.finfo(values.dtype).max))  # float16 has no 1e10
    if not values.size or (values.min() >= -largest and values.max() <= largest):
        return None
    fine = (values >= -largest) & (values <= largest)
    return int(np.argmin(fine.reshape(len(values), -1).all(axis=1)))


def runs_of_neighbors(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """Yield (start, stop) of each run of consecutive row numbers in `rows`."""
    if len(rows):
        yield from itertools.pairwise([0, *(np.flatnonzero(np.diff(rows) != 1) + 1), len(rows)])
