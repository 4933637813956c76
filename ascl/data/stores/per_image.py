"""The common part of other projects' formats: they are read image by image, each with its own number of regions."""

from __future__ import annotations

import hashlib
import json
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ascl.core.errors import DataError
from ascl.core.files import atomic_path
from ascl.core.reading import read_arrays, require_file
from ascl.data.stores.base import DETAILS, LARGEST_SIDE, Features, FeatureStore, wrong_id

MOST_REGIONS = 1000  # per image; detectors give at most 100, so more means that the file is misread
_INDEX_VERSION = 3
Wrong: TypeAlias = Callable[[DataError], None]  # raises the error about an image, or notes it and leaves the image out


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
    dim: int  # dimension of a region or of the vector; if `in_bytes`, its length in bytes
    boxes: bool = False
    details: bool = False
    size: tuple[int, int] = (0, 0)  # width and height, zeros if unknown
    place: tuple[int, ...] = ()  # what the reader needs to find it again
    layout: str = ""  # if a format has several
    in_bytes: bool = False  # because the type of its numbers is not known yet
    if_odd: str = "the file is damaged, or files of another kind are beside it"  # why it may differ from the others

    def kind(self) -> str:
        """Return what all images of a store must have in common, in words."""
        what = "regions" if self.count else "one vector"
        beside = (" with boxes" if self.boxes else "") + (" with classes" if self.details else "")
        length = f"{self.dim} bytes each" if self.in_bytes else f"dimension {self.dim}"
        return f"{what} of {length}{beside}" + (f" ({self.layout})" if self.layout else "")


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
    skipped: np.ndarray  # why images were left out


class PerImageFeatures(FeatureStore):
    """A store that reads image by image and holds only the index in memory.

    A subclass calls `_describe` once it knows its images, and implements `_image` and, for details, `_image_details`.
    """

    _detail_names: tuple[str, ...] = ()

    def _describe(self, source: str, index: Index, detail_names: tuple[str, ...] = ()) -> None:
        self.source, self.provenance = source, {}
        self.image_ids = index.image_ids.tolist()
        self.skipped = index.skipped.tolist()
        self._places, self._has_boxes, self._counts = index.places, bool(index.boxes), index.counts
        self._sizes = index.sizes if index.sizes.all() else None
        self._detail_names = detail_names if index.details else ()
        if not index.counts.any():
            self.global_dim = int(index.dim)
            return
        self.region_dim, self.num_regions = int(index.dim), int(index.counts.max())

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
                self._check_values(name, values, unique)
        if read.boxes is not None:
            self._check_boxes(read.boxes, read.mask, unique, None if self._sizes is None else self._sizes[unique])
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
                wrong = values[~((values >= -1) & (values < 1 << 30))]  # before a type of 32 bits hides it
                if len(wrong):
                    raise DataError(f"{self.place(row)}: one of its {name} is {wrong[0]:g}; the file is damaged")
                found[name][i, : len(values)] = values
        return found


def kept_index(path: Path, stamp: dict[str, int | str], entries: Callable[[Wrong], Iterable[Entry]], *,
               skip_broken: bool = False) -> Index:
    """Return the index of `path`: the saved one if `stamp` has not changed, else what a pass with `entries` finds.

    It is saved as `.NAME.index.npz` beside `path` if that folder is writable: a pass over COCO's TSV of 33 GB takes
    minutes. Its own checksum shows whether it is as it was written.

    Args:
        entries: is given what to call with the error about an image.
        skip_broken: leave out broken and repeated images and list them in `skipped`, instead of raising an error.

    Raises:
        DataError: there is no image, an image is broken, two have the same id, or images differ in what they hold.
    """
    kept = path.with_name(f".{path.name}.index.npz")
    text = json.dumps({"version": _INDEX_VERSION, "skip_broken": skip_broken, **stamp}, sort_keys=True)
    try:
        arrays = read_arrays(kept)
        digest = arrays.pop("digest", None)
        if str(arrays.pop("stamp", None)) == text and digest == _digest(text, arrays):
            return Index(**arrays)
    except (DataError, TypeError):
        pass  # absent or damaged: make it again
    index = _index_of(path, entries, skip_broken)
    try:
        with atomic_path(kept) as temporary, open(temporary, "wb") as out:
            np.savez(out, stamp=np.array(text), digest=np.array(_digest(text, vars(index))), **vars(index))
    except DataError:
        pass  # a read-only folder or a full disk: the next opening makes it again
    return index


def _digest(stamp: str, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256(stamp.encode())
    for name, values in sorted(arrays.items()):
        digest.update(f"{name} {values.dtype} {values.shape}\n".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def _index_of(path: Path, entries: Callable[[Wrong], Iterable[Entry]], skip_broken: bool) -> Index:
    skipped: list[str] = []

    def wrong(error: DataError) -> None:
        if not skip_broken:
            raise error
        skipped.append(str(error))

    by_id: dict[str, Entry] = {}
    for entry in entries(wrong):
        if problem := _problem(entry):
            wrong(DataError(f"{entry.where}: {problem}; remove it, or convert with skip_broken, which leaves such "
                            "images out"))
        elif (first := by_id.setdefault(entry.image_id, entry)) is not entry:
            wrong(DataError(f"{entry.where}: the image id is given twice, first in {first.where}: remove one of the "
                            "two, or convert with skip_broken, which keeps the first"))
        elif not skip_broken and entry.kind() != (first := next(iter(by_id.values()))).kind():
            raise DataError(f"{first.where} holds {first.kind()}, {entry.where} holds {entry.kind()}; all images must "
                            f"hold the same: {entry.if_odd}")
    if not by_id:
        raise DataError(f"{path} holds no image{f': {skipped[0]}' if skipped else ''}")
    (most, _), *others = Counter(entry.kind() for entry in by_id.values()).most_common()
    found = [entry for entry in by_id.values() if entry.kind() == most]
    skipped += [f"{entry.where} holds {entry.kind()}, most images hold {most}" for entry in by_id.values()
                if others and entry.kind() != most]
    return Index(image_ids=np.array([entry.image_id for entry in found]),
                 counts=np.array([entry.count for entry in found], dtype=np.int64),
                 sizes=np.array([entry.size for entry in found], dtype=np.int32),
                 places=np.array([entry.place for entry in found], dtype=np.int64),
                 skipped=np.array(skipped, dtype=np.str_),
                 **{name: np.array(getattr(found[0], name)) for name in ("dim", "boxes", "details", "layout")})


def _problem(entry: Entry) -> str | None:
    """Return what is wrong with an image by itself; None if nothing is."""
    if problem := wrong_id(entry.image_id):
        return f"the image id {entry.image_id[:100]!r} {problem}"
    if not 0 <= entry.count <= MOST_REGIONS:
        return f"{entry.count} regions, expected 1 to {MOST_REGIONS}"
    if not all(0 <= side <= LARGEST_SIDE for side in entry.size):
        return f"an image of {entry.size[0]} x {entry.size[1]} pixels, expected 1 to {LARGEST_SIDE:,}"
    return None


def stamp_of_file(path: Path) -> dict[str, int | str]:
    """Return size and time of modification, which show whether a file has changed."""
    about = require_file(path)
    return {"bytes": about.st_size, "modified_ns": about.st_mtime_ns}
