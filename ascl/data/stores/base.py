"""What every store of image features gives, and the messages that all of them share."""

from __future__ import annotations

import difflib
import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError, first_of
from ascl.data.text_files import GET_DATA

KINDS = frozenset({"regions", "globals"})
# What a store may know beside features: name -> type, and the value of regions that are not real; see `details`.
DETAILS: dict[str, tuple[type, int]] = {"image_sizes": (np.int32, 0), "scores": (np.float32, 0),
                                        "class_ids": (np.int32, -1), "attribute_ids": (np.int32, -1),
                                        "attribute_scores": (np.float32, 0)}
NAMES = {"class_ids": "class_names", "attribute_ids": "attribute_names"}  # ids -> what says what they stand for


@dataclass
class Features:
    """Features of n images.

    Attributes:
        regions: (n, K, R) float32, or None from a store without regions; rows beyond an image's real regions are 0.
        globals: (n, G) float32, or None from a store without globals.
        boxes: (n, K, 4) float32, pixels of the original image, x1 y1 x2 y2, or None where the store has none.
        mask: (n, K) bool, True = a real region; None means that all are real.
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
        """Return (n, K) bool, also where all are real; None without regions."""
        if self.regions is None or self.mask is not None:
            return self.mask
        return np.ones(self.regions.shape[:2], dtype=bool)


class FeatureStore(ABC):
    """Features of images by row. Safe in DataLoader workers: files are opened lazily, once in each process.

    Attributes:
        image_ids: one for each row, unique.
        region_dim, num_regions, global_dim: R and K, None without regions; G, None without globals.
        source: the file or files, for messages.
        provenance: file -> how its features were made (empty for files that do not say).
        names: what ids of `details` stand for: "class_names", "attribute_names"; empty for files that do not say.
        numbered: the ids are no more than the numbers of the rows.
    """

    image_ids: list[str]
    region_dim: int | None = None
    num_regions: int | None = None
    global_dim: int | None = None
    source: str
    provenance: dict[str, dict[str, Any]]
    names: dict[str, list[str]] = {}  # replaced by stores that have names, never changed in place
    numbered: bool = False

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def kinds(self) -> frozenset[str]:
        """What the store gives: "regions", "globals" or both."""
        dims = {"regions": self.region_dim, "globals": self.global_dim}
        return frozenset(kind for kind, dim in dims.items() if dim is not None)

    @cached_property
    def _row_of(self) -> dict[str, int]:
        return {image_id: row for row, image_id in enumerate(self.image_ids)}

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """Rows of the given images, (n,) int64, in that order; a DataError names images that are not in the store."""
        missing = [image_id for image_id in image_ids if image_id not in self._row_of]
        if missing:
            raise missing_images(missing, self.source, self.image_ids, self.remedy(self.kinds))
        return np.array([self._row_of[image_id] for image_id in image_ids], dtype=np.int64)

    def read(self, rows: np.ndarray | Sequence[int]) -> Features:
        """Features of the given rows, in that order; rows may repeat.

        Raises:
            DataError: a row outside the store, or a value that is not finite (file, row and image id named).
        """
        return self.read_kinds(self._checked(rows), self.kinds)

    @abstractmethod
    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        """As `read`, only the kinds asked for (a merge reads from each file only what it uses); rows are in range."""

    def details(self, rows: np.ndarray | Sequence[int]) -> dict[str, np.ndarray]:
        """What is known of the given rows beside features, in that order; nothing where the store knows nothing.

        Returns:
            Of these, those that the store has for every image: `image_sizes` (n, 2) int32, width and height of the
            upright image in pixels; `scores` (n, K) float32, the detector's confidence; `class_ids` (n, K) int32;
            `attribute_ids` (n, K) int32; `attribute_scores` (n, K) float32. Of regions that are not real, scores are 0
            and ids -1.

        Raises:
            DataError: a row outside the store, or a damaged file.
        """
        return self._details(self._checked(rows))

    def _details(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {}

    def _checked(self, rows: np.ndarray | Sequence[int]) -> np.ndarray:
        """Rows as (n,) int64, all of them in the store."""
        rows = np.asarray(rows, dtype=np.int64)
        if rows.ndim != 1:
            raise DataError(f"rows have to be a list of row numbers, got shape {rows.shape}")
        outside = rows[(rows < 0) | (rows >= len(self))]
        if len(outside):
            raise DataError(f"row {outside[0]} is outside the {len(self)} images of {self.source}")
        return rows

    def _check_finite(self, name: str, values: np.ndarray, rows: np.ndarray, *, repeat: int = 1) -> None:
        """Refuse values of some rows that are not finite; an image has `repeat` rows in the file."""
        wrong = first_not_finite(values)
        if wrong is not None:
            row = int(rows[wrong])
            raise DataError(f"{self.source}: `{name}` of row {row * repeat} (image {self.image_ids[row]}) has values "
                            f"that are not finite. {self._remedy_of_values(name, row)}")

    def _remedy_of_values(self, name: str, row: int) -> str:
        """What to do where values are not finite, as a sentence."""
        return extraction_of(frozenset({name}))

    def remedy(self, kinds: frozenset[str]) -> str:
        """What to do where images are missing, as a sentence."""
        return extraction_of(kinds)


def require_file(path: Path) -> None:
    if not path.is_file():
        raise DataError(f"no file {path}; {GET_DATA}" if path.suffix == ".npy" else
                        f"no file {path}. {extraction_of(KINDS)}")


def extraction_of(kinds: frozenset[str]) -> str:
    return f"Extract {' or '.join(sorted(kinds, reverse=True))} of the images"


def missing_images(missing: list[str], source: str, present: list[str], remedy: str) -> DataError:
    near = difflib.get_close_matches(missing[0], present, n=1, cutoff=0.8) if len(missing) == 1 else []
    own = f"nearest of the file's own ids is {near[0]!r}" if near else f"file's own ids look like {present[0]!r}"
    return DataError(f"no features of {len(missing)} image{'s' if len(missing) > 1 else ''} in {source}: "
                     f"{first_of(missing)}. The {own}. {remedy}")


def refuse_repeated(image_ids: list[str], source: str) -> None:
    first_row: dict[str, int] = {}
    for row, image_id in enumerate(image_ids):
        if first_row.setdefault(image_id, row) != row:
            raise DataError(f"{source}: image id {image_id} is given twice, in rows {first_row[image_id]} and {row}")
    if not image_ids:
        raise DataError(f"{source} holds no image")


def first_not_finite(values: np.ndarray) -> int | None:
    """Index of the first entry along axis 0 with a NaN or infinity."""
    finite = np.isfinite(values)
    return None if finite.all() else int(np.argmin(finite.reshape(len(values), -1).all(axis=1)))


def runs_of_neighbors(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, stop) of the stretches of `rows` in which each row is the one after the last."""
    if len(rows):
        yield from itertools.pairwise([0, *(np.flatnonzero(np.diff(rows) != 1) + 1), len(rows)])
