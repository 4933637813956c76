"""The common part of other projects' formats: they are read image by image, each with its own number of regions."""

from __future__ import annotations

import json
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ascl.core.errors import DataError
from ascl.core.files import atomic_path
from ascl.data.stores.base import DETAILS, Features, FeatureStore, refuse_repeated

MOST_REGIONS = 1000  # per image; detectors give at most 100, so more means that the file is misread
_INDEX_VERSION = 2


@dataclass
class ImageFeatures:
    """Features of one image: regions (k, R) with boxes (k, 4) or None, or else globals (G,)."""

    regions: np.ndarray | None = None
    boxes: np.ndarray | None = None
    globals: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """What a pass over the source finds about one image."""

    image_id: str
    where: str  # for messages
    count: int  # number of regions, 0 = one vector for the whole image
    dim: int  # dimension of a region or of the vector
    boxes: bool = False
    details: bool = False
    size: tuple[int, int] = (0, 0)  # width and height, zeros if unknown
    place: tuple[int, ...] = ()  # what the reader needs to find it again
    layout: str = ""  # if a format has several

    def kind(self) -> str:
        """Return what all images of a store must have in common, in words."""
        what = "regions" if self.count else "one vector"
        beside = (" with boxes" if self.boxes else "") + (" with classes" if self.details else "")
        return f"{what} of dimension {self.dim}{beside}" + (f" ({self.layout})" if self.layout else "")


@dataclass(frozen=True)
class Index:
    """All entries: arrays with one row per image, and 0-dimensional arrays for what they have in common."""

    image_ids: np.ndarray
    counts: np.ndarray
    sizes: np.ndarray
    places: np.ndarray
    dim: np.ndarray
    boxes: np.ndarray
    details: np.ndarray
    layout: np.ndarray


class PerImageFeatures(FeatureStore):
    """A store that reads image by image and holds only the index in memory.

    A subclass calls `_describe` once it knows its images, and implements `_image` and, for details, `_image_details`.
    """

    _detail_names: tuple[str, ...] = ()

    def _describe(self, source: str, index: Index, detail_names: tuple[str, ...] = ()) -> None:
        self.source, self.provenance = source, {}
        self.image_ids = index.image_ids.tolist()
        refuse_repeated(self.image_ids, source)
        self._places, self._has_boxes, self._counts = index.places, bool(index.boxes), index.counts
        self._sizes = index.sizes if index.sizes.all() else None
        self._detail_names = detail_names if index.details else ()
        if not index.counts.any():
            self.global_dim = int(index.dim)
            return
        self.region_dim, self.num_regions = int(index.dim), int(index.counts.max())
        wrong = np.flatnonzero((index.counts < 1) | (index.counts > MOST_REGIONS))
        if len(wrong):
            raise DataError(f"{self.place(wrong[0])}: {index.counts[wrong[0]]} regions, expected 1 to {MOST_REGIONS}")

    @abstractmethod
    def place(self, row: int) -> str:
        """Return where an image is, for messages."""

    def remedy(self, kinds: frozenset[str]) -> str:
        return "If the file has other ids for the same images, convert it with captions that have both (ids_from)"

    def _remedy_of_values(self, name: str, row: int) -> str:
        return f"It is {self.place(row)}"

    @abstractmethod
    def _image(self, row: int) -> ImageFeatures:
        """Return the features of one image in float32."""

    def _image_details(self, row: int) -> dict[str, np.ndarray]:
        """Return (k,) arrays of one image, by the names in `_detail_names`; not called if there are no names."""
        return {}

    def _checked_image(self, row: int) -> ImageFeatures:
        """Return an image whose shapes match the index; the file may have been replaced, and boxes may be elsewhere."""
        image, count = self._image(row), int(self._counts[row])
        expected: dict[str, tuple[int | None, ...]]
        expected = {"regions": (count, self.region_dim)} if count else {"globals": (self.global_dim,)}
        if self._has_boxes:
            expected["boxes"] = (count, 4)
        for name, shape in expected.items():
            values = getattr(image, name)
            if values is None or values.shape != shape:
                found = "none" if values is None else values.shape
                raise DataError(f"{self.place(row)}: its {name} have shape {found}, expected {shape}; boxes and "
                                "features are of different images, or the file was replaced since it was opened")
        return image

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        unique, position = np.unique(rows, return_inverse=True)  # each image once, in the order of the file
        read = Features(None, None)
        if "globals" in kinds & self.kinds:
            read.globals = np.zeros((len(unique), self.global_dim or 0), dtype=np.float32)
        elif "regions" in kinds & self.kinds:
            read.regions = np.zeros((len(unique), self.num_regions or 0, self.region_dim or 0), dtype=np.float32)
            read.boxes = np.zeros((*read.regions.shape[:2], 4), dtype=np.float32) if self._has_boxes else None
            if (self._counts != self.num_regions).any():
                read.mask = np.arange(self.num_regions or 0) < self._counts[unique, None]
        else:
            return read
        for i, row in enumerate(unique):
            image, count = self._checked_image(row), self._counts[row]
            if read.globals is not None:
                read.globals[i] = image.globals
            if read.regions is not None:
                read.regions[i, :count] = image.regions
            if read.boxes is not None:
                read.boxes[i, :count] = image.boxes
        for name, values in (("regions", read.regions), ("globals", read.globals)):
            if values is not None:
                self._check_finite(name, values, unique)
        return read if np.array_equal(unique, rows) else read.taken(position)

    def _details(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        found = {} if self._sizes is None else {"image_sizes": self._sizes[rows].astype(np.int32)}
        for name in self._detail_names:
            dtype, padding = DETAILS[name]
            found[name] = np.full((len(rows), self.num_regions or 0), padding, dtype=dtype)
        for i, row in enumerate(rows if self._detail_names else ()):
            for name, values in self._image_details(row).items():
                if values.shape != (self._counts[row],):
                    raise DataError(f"{self.place(row)}: its {name} have shape {values.shape}, expected one for each "
                                    f"of {self._counts[row]} regions; the file is damaged")
                found[name][i, : len(values)] = values
        return found


def kept_index(path: Path, stamp: dict[str, int | str], entries: Callable[[], Iterable[Entry]]) -> Index:
    """Return the index of `path`: the saved one if `stamp` has not changed, else what a pass with `entries` finds.

    It is saved as `.NAME.index.npz` beside `path` if that folder is writable: a pass over COCO's TSV of 33 GB takes
    minutes.

    Raises:
        DataError: there is no image, or images differ in what they hold (the message names the first two).
    """
    kept = path.with_name(f".{path.name}.index.npz")
    text = json.dumps({"version": _INDEX_VERSION, **stamp}, sort_keys=True)
    try:
        with np.load(kept, allow_pickle=False) as file:
            if str(file["stamp"]) == text:
                return Index(**{name: file[name] for name in file.files if name != "stamp"})
    except (OSError, KeyError, ValueError, TypeError, EOFError, zipfile.BadZipFile, zlib.error):
        pass  # absent or damaged: make it again
    index = _index_of(path, entries())
    try:
        with atomic_path(kept) as temporary, open(temporary, "wb") as out:
            np.savez(out, stamp=np.array(text), **vars(index))
    except OSError:
        pass  # a read-only folder: the next opening makes it again
    return index


def _index_of(path: Path, entries: Iterable[Entry]) -> Index:
    found: list[Entry] = []
    for entry in entries:
        found.append(entry)
        if entry.kind() != found[0].kind():
            raise DataError(f"{found[0].where} holds {found[0].kind()}, {entry.where} holds {entry.kind()}; all images "
                            "must hold the same: the file is damaged, or files of another kind are beside it")
    if not found:
        raise DataError(f"{path} holds no image")
    return Index(image_ids=np.array([entry.image_id for entry in found]),
                 counts=np.array([entry.count for entry in found], dtype=np.int64),
                 sizes=np.array([entry.size for entry in found], dtype=np.int32),
                 places=np.array([entry.place for entry in found], dtype=np.int64),
                 **{name: np.array(getattr(found[0], name)) for name in ("dim", "boxes", "details", "layout")})


def stamp_of_file(path: Path) -> dict[str, int | str]:
    """Return size and time of modification, which show whether a file has changed."""
    about = path.stat()
    return {"bytes": about.st_size, "modified_ns": about.st_mtime_ns}
