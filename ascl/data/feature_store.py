"""Image features on disk behind one interface: our HDF5 layout, SCAN's `.npy`, and several files merged by image id.

HDF5 layout, version 1. Attributes of the root: `format` = "ascl-features", `version` = 1, `provenance` (JSON). Data
sets: `image_ids` (N,) UTF-8 strings; `regions` (N, K, R) float16 or float32; `boxes` (N, K, 4) float32, pixels of the
original image, x1 y1 x2 y2; `region_count` (N,) int32 only where some image has fewer than K real regions; `globals`
(N, G). A file has regions, globals or both. Nothing is ever read as a whole; COCO's train regions are 33 GB.
"""

from __future__ import annotations

import itertools
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from ascl.data.captions import SCAN_CAPTIONS_PER_IMAGE, count_scan_captions, read_scan_ids
from ascl.errors import DataError

FORMAT = "ascl-features"
VERSION = 1
_SAMPLED_IMAGES = 64  # of a .npy: enough to catch a wrong repeat, cheap on 33 GB
_TOOLS = {"regions": "tools/extract_regions.py", "globals": "tools/extract_globals.py"}


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


class FeatureStore(ABC):
    """Features of images by row. Safe in DataLoader workers: files are opened lazily, once in each process.

    Attributes:
        image_ids: one for each row, unique.
        region_dim, num_regions: R and K, None without regions.
        global_dim: G, None without globals.
        source: the file or files, for messages.
        provenance: file -> how its features were made (empty for files that do not say).
    """

    image_ids: list[str]
    region_dim: int | None = None
    num_regions: int | None = None
    global_dim: int | None = None
    source: str
    provenance: dict[str, dict[str, Any]]

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
        """Rows of the given images, (n,) int64, in that order.

        Raises:
            DataError: an image is not in the store; names the images, the file and the command that makes features.
        """
        missing = [image_id for image_id in image_ids if image_id not in self._row_of]
        if missing:
            raise _missing_images(missing, self.source, self.kinds, self.image_ids)
        return np.array([self._row_of[image_id] for image_id in image_ids], dtype=np.int64)

    def read(self, rows: np.ndarray | Sequence[int]) -> Features:
        """Features of the given rows, in that order; rows may repeat.

        Raises:
            DataError: a row outside the store, or a value that is not finite (names file, row and image id).
        """
        rows = np.asarray(rows, dtype=np.int64)
        if rows.ndim != 1:
            raise DataError(f"rows have to be a list of row numbers, got shape {rows.shape}")
        outside = rows[(rows < 0) | (rows >= len(self))]
        if len(outside):
            raise DataError(f"row {outside[0]} is outside the {len(self)} images of {self.source}")
        return self.read_kinds(rows, self.kinds)

    @abstractmethod
    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        """As `read`, only the kinds asked for (a merge reads from each file only what it uses); rows are in range."""


class Hdf5Features(FeatureStore):
    """One HDF5 file of the layout above.

    Raises:
        DataError: no such file, truncated or foreign file, other version, or data sets whose shapes do not fit.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.source = str(path)
        self._file: h5py.File | None = None
        self._process: int | None = None
        with _open_hdf5(self.path) as file:
            self._read_layout(file)

    def _read_layout(self, file: h5py.File) -> None:
        if file.attrs.get("format") != FORMAT:
            raise DataError(
                f"{self.path} is HDF5 but not a feature file of this project: attribute `format` is "
                f"{file.attrs.get('format')!r}, expected {FORMAT!r}. {_remedy(self.path, frozenset(_TOOLS))}"
            )
        if file.attrs.get("version") != VERSION:
            found = file.attrs.get("version")
            raise DataError(f"{self.path} has layout version {found}, this program reads version {VERSION}")
        if "image_ids" not in file or not {"regions", "globals"} & set(file):
            there = ", ".join(file) or "nothing"
            raise DataError(f"{self.path} needs `image_ids` and `regions` or `globals`, it has: {there}")
        self.image_ids = list(file["image_ids"].asstr()[:])
        _refuse_repeated(self.image_ids, self.source)
        provenance = file.attrs.get("provenance")
        try:
            self.provenance = {} if provenance is None else {self.source: json.loads(provenance)}
        except json.JSONDecodeError as error:
            raise DataError(f"{self.path}: attribute `provenance` is not JSON ({error})") from error
        if "regions" in file:
            _, self.num_regions, self.region_dim = self._shape(file, "regions", (None, None))
        if "globals" in file:
            _, self.global_dim = self._shape(file, "globals", (None,))
        self._has_boxes = "boxes" in file and self.num_regions is not None
        if self._has_boxes:
            self._shape(file, "boxes", (self.num_regions, 4))
        self._region_count = self._counts(file) if "region_count" in file and self.num_regions is not None else None

    def _shape(self, file: h5py.File, name: str, rest: tuple[int | None, ...]) -> tuple[int, ...]:
        """Shape of a data set after a check: (N,) + rest, None = any size of at least 1, float16 or float32."""
        data = file[name]
        expected = (len(self.image_ids), *rest)
        fits = data.ndim == len(expected) and all(
            size == want if want is not None else size > 0 for size, want in zip(data.shape, expected, strict=True)
        )
        if not fits:
            wanted = ", ".join("any" if size is None else str(size) for size in expected)
            raise DataError(f"{self.path}: `{name}` has shape {data.shape}, expected ({wanted})")
        if data.dtype.kind != "f":
            raise DataError(f"{self.path}: `{name}` has type {data.dtype}, expected float16 or float32")
        return data.shape

    def _counts(self, file: h5py.File) -> np.ndarray:
        counts = np.asarray(file["region_count"][:])
        if counts.shape != (len(self.image_ids),):
            raise DataError(f"{self.path}: `region_count` has shape {counts.shape}, expected ({len(self.image_ids)},)")
        wrong = np.flatnonzero((counts < 1) | (counts > self.num_regions))
        if len(wrong):
            row = wrong[0]
            raise DataError(
                f"{self.path}, row {row} (image {self.image_ids[row]}): region_count {counts[row]} is not within "
                f"1 to {self.num_regions}"
            )
        return counts

    def _handle(self) -> h5py.File:
        # A handle inherited through fork shares state with the parent, so each process opens its own.
        if self._file is None or self._process != os.getpid():
            self._file, self._process = _open_hdf5(self.path), os.getpid()
        return self._file

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None, "_process": None}

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        regions = mask = boxes = globals_ = None
        if "regions" in kinds:
            regions = self._gather("regions", rows)
            if self._region_count is not None:
                mask = np.arange(regions.shape[1]) < self._region_count[rows, None]
                regions[~mask] = 0.0  # what a writer left in the padding is no feature
            self._check_finite("regions", regions, rows)
            boxes = self._gather("boxes", rows) if self._has_boxes else None
        if "globals" in kinds:
            globals_ = self._gather("globals", rows)
            self._check_finite("globals", globals_, rows)
        return Features(regions, globals_, boxes, mask)

    def _gather(self, name: str, rows: np.ndarray) -> np.ndarray:
        """Rows of a data set as float32. h5py's own list of rows is slow: read runs of neighbouring rows as slices."""
        data = self._handle()[name]
        unique, position = np.unique(rows, return_inverse=True)
        values = np.empty((len(unique), *data.shape[1:]), dtype=np.float32)
        try:
            for start, stop in _runs_of_neighbours(unique):
                data.read_direct(values, np.s_[unique[start] : unique[stop - 1] + 1], np.s_[start:stop])
        except OSError as error:
            remedy = _remedy(self.path, frozenset({name}))
            raise DataError(f"{self.path}: `{name}` cannot be read, the file is damaged ({error}). {remedy}") from error
        return values if np.array_equal(unique, rows) else values[position]

    def _check_finite(self, name: str, values: np.ndarray, rows: np.ndarray) -> None:
        wrong = _first_not_finite(values)
        if wrong is not None:
            raise _not_finite(self, name, rows[wrong], rows[wrong], _remedy(self.path, frozenset({name})))


class ScanFeatures(FeatureStore):
    """SCAN's `{split}_ims.npy`, floats (rows, K, R), memory-mapped. It has neither boxes nor features of the whole
    image.

    Some copies repeat each image's row five times. The repeat is inferred from the ids file beside it, else from the
    number of captions, and checked on a sample of images: rows of one image are equal, those of neighbouring images are
    not.

    Args:
        path: the `.npy`.
        captions: number of captions of the whole split; None = counted in `{split}_caps.txt` beside the `.npy` if it is
            there, else each row is an image. Not used where there is an ids file.

    Raises:
        DataError: no such file, truncated, not (rows, K, R), or no repeat that fits.
    """

    def __init__(self, path: str | os.PathLike, *, captions: int | None = None) -> None:
        self.path = Path(path)
        self.source = str(path)
        self.provenance = {}
        self._array: np.ndarray | None = None
        array = self._mapped()
        if array.ndim != 3 or array.dtype.kind != "f" or 0 in array.shape:
            raise DataError(
                f"{path} has shape {array.shape} and type {array.dtype}, expected floats (rows, regions, dimension)"
            )
        total, self.num_regions, self.region_dim = array.shape
        split = self.path.name.removesuffix(".npy").removesuffix("_ims")
        ids = read_scan_ids(self.path.parent, split)
        if ids is not None:
            # A line for each image or for each caption; lines of one image follow one another.
            self.image_ids = [name for name, _ in itertools.groupby(ids)]
            _refuse_repeated(self.image_ids, f"{split}_ids.txt beside {path}")
            self.repeat = self._repeat_from_images(total, len(self.image_ids))
        else:
            captions = count_scan_captions(self.path.parent, split) if captions is None else captions
            self.repeat = 1 if captions is None else self._repeat_from_captions(total, captions)
            self.image_ids = [str(i) for i in range(total // self.repeat)]
        self._check_repeat()

    def _repeat_from_images(self, total: int, images: int) -> int:
        if total % images:
            raise DataError(
                f"{self.path} has {total} rows for the {images} images of its ids file: "
                "one of the two is of another split"
            )
        return total // images

    def _repeat_from_captions(self, total: int, captions: int) -> int:
        if captions < total or captions % total:
            raise DataError(
                f"{self.path} has {total} rows for {captions} captions, which does not fit: the captions are of "
                "another split, or were cut before they were counted (give the number of captions of the whole split)"
            )
        # As many rows as captions: one caption an image, or each image five times; the rows tell.
        repeated = captions == total and total % SCAN_CAPTIONS_PER_IMAGE == 0 and self._equal_rows(0, 1)
        return SCAN_CAPTIONS_PER_IMAGE if repeated else 1

    def _check_repeat(self) -> None:
        first = np.unique(np.linspace(0, len(self) - 1, _SAMPLED_IMAGES).astype(np.int64)) * self.repeat
        for row in first:
            for other in range(row + 1, row + self.repeat):
                if not self._equal_rows(row, other):
                    raise DataError(
                        f"{self.path}: rows {row} and {other} should be one image ({self.repeat} rows an image, "
                        "inferred from the ids or the captions) but differ; they are of different splits"
                    )
        same = [self._equal_rows(row - self.repeat, row) for row in first[1:]]
        if sum(same) > len(same) / 2:  # a repeat of five leaves four of five neighbours equal, real images next to none
            raise DataError(
                f"{self.path}: neighbouring images have equal features, so an image has more than {self.repeat} rows; "
                "put the split's caps.txt or ids.txt beside the features, or give the number of captions of the whole "
                "split"
            )

    def _equal_rows(self, row: int, other: int) -> bool:
        return np.array_equal(self._mapped()[row], self._mapped()[other])

    def _mapped(self) -> np.ndarray:
        if self._array is None:
            _require_file(self.path)
            try:
                self._array = np.load(self.path, mmap_mode="r", allow_pickle=False)
            except (ValueError, EOFError, OSError) as error:
                raise DataError(f"{self.path} is truncated or no .npy file ({error}): fetch it again") from error
        return self._array

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_array": None}  # pickled, a memory map would become all of its gigabytes

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        if "regions" not in kinds:
            return Features(None, None)
        regions = self._mapped()[rows * self.repeat].astype(np.float32, copy=False)
        wrong = _first_not_finite(regions)
        if wrong is not None:
            raise _not_finite(self, "regions", rows[wrong] * self.repeat, rows[wrong], "Fetch the file again")
        return Features(regions, None)


class MergedFeatures(FeatureStore):
    """Several stores as one, by image id: regions from one file and globals from another, or images spread over files.

    Each image takes its regions from the one store that has them, and its globals likewise; rows follow the stores in
    order.

    Raises:
        DataError: stores of different dimensions, or two stores with the same kind of features for one image.
    """

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        self._stores = list(stores)
        self.source = " + ".join(store.source for store in stores)
        self.provenance = {name: made for store in stores for name, made in store.provenance.items()}
        self.image_ids = list(dict.fromkeys(image_id for store in stores for image_id in store.image_ids))
        self.region_dim = self._common("region_dim")
        self.num_regions = self._common("num_regions")
        self.global_dim = self._common("global_dim")
        self._places = {kind: self._places_of(kind) for kind in self.kinds}

    def _common(self, name: str) -> int | None:
        values = {store.source: getattr(store, name) for store in self._stores if getattr(store, name) is not None}
        if len(set(values.values())) > 1:
            differing = ", ".join(f"{source}: {value}" for source, value in values.items())
            raise DataError(f"feature files with different {name} cannot be merged ({differing})")
        return next(iter(values.values()), None)

    def _places_of(self, kind: str) -> np.ndarray:
        """(N, 2) int64: the store and its row that hold this kind for each image, -1 where none does."""
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        places = np.full((len(self.image_ids), 2), -1, dtype=np.int64)
        for number, store in enumerate(self._stores):
            if kind not in store.kinds:
                continue
            rows = np.array([row_of[image_id] for image_id in store.image_ids], dtype=np.int64)
            taken = rows[places[rows, 0] >= 0]
            if len(taken):
                other = self._stores[places[taken[0], 0]].source
                raise DataError(
                    f"image {self.image_ids[taken[0]]} has {kind} in both {other} and {store.source} "
                    f"({len(taken)} such images): give only one of the files"
                )
            places[rows] = np.stack([np.full(len(rows), number), np.arange(len(rows))], axis=1)
        return places

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """As in `FeatureStore`; an image that only one of its kinds has is missing too."""
        for kind in sorted(self.kinds):
            placed = self._places[kind][:, 0] >= 0
            missing = [name for name in image_ids if name not in self._row_of or not placed[self._row_of[name]]]
            if missing:
                having = [store for store in self._stores if kind in store.kinds]
                source = " + ".join(store.source for store in having)
                raise _missing_images(missing, source, frozenset({kind}), having[0].image_ids)
        return super().rows(image_ids)

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        merged = Features(None, None)
        if "regions" in kinds:
            selections, parts = self._parts("regions", rows)
            merged.regions = _assemble(len(rows), selections, [part.regions for part in parts])
            merged.boxes = _assemble(len(rows), selections, [part.boxes for part in parts])
            if any(part.mask is not None for part in parts):
                all_real = [np.ones((len(selected), self.num_regions or 0), dtype=bool) for selected in selections]
                masks = [real if part.mask is None else part.mask for part, real in zip(parts, all_real, strict=True)]
                merged.mask = _assemble(len(rows), selections, masks)
        if "globals" in kinds:
            selections, parts = self._parts("globals", rows)
            merged.globals = _assemble(len(rows), selections, [part.globals for part in parts])
        return merged

    def _parts(self, kind: str, rows: np.ndarray) -> tuple[list[np.ndarray], list[Features]]:
        """What each store that has this kind gives: positions in `rows`, and the features for them."""
        places = self._places[kind][rows]
        without = rows[places[:, 0] < 0]
        if len(without):
            raise DataError(f"image {self.image_ids[without[0]]} has no {kind} in {self.source}")
        having = [number for number, store in enumerate(self._stores) if kind in store.kinds]
        selections = [np.flatnonzero(places[:, 0] == number) for number in having]
        parts = [
            self._stores[number].read_kinds(places[selected, 1], frozenset({kind}))
            for number, selected in zip(having, selections, strict=True)
        ]
        return selections, parts


class MeanRegionGlobals(FeatureStore):
    """A store without globals, with the mean of each image's real regions in their place; asked for, never silent."""

    def __init__(self, store: FeatureStore) -> None:
        if store.kinds != {"regions"}:
            raise DataError(
                f"{store.source} gives {', '.join(sorted(store.kinds))}: globals from regions need regions alone"
            )
        self._store = store
        self.source, self.provenance, self.image_ids = store.source, store.provenance, store.image_ids
        self.region_dim, self.num_regions, self.global_dim = store.region_dim, store.num_regions, store.region_dim

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        return self._store.rows(image_ids)

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        features = self._store.read_kinds(rows, frozenset({"regions"}))
        if "globals" in kinds:
            assert features.regions is not None  # the constructor asked for a store with regions
            real = features.regions.shape[1] if features.mask is None else features.mask.sum(axis=1, keepdims=True)
            features.globals = features.regions.sum(axis=1) / np.float32(real)  # rows that are not real are 0
        return features if "regions" in kinds else Features(None, features.globals)


def open_features(
    paths: Sequence[str | os.PathLike],
    *,
    captions: int | None = None,
    globals_from: Literal["files", "mean-region"] = "files",
) -> FeatureStore:
    """Open feature files as one store.

    Args:
        paths: our `.h5` files (regions, globals, or both) and SCAN's `.npy`; several are merged by image id.
        captions: number of captions of the whole split, from which the rows an image has in a `.npy` are inferred; None
            = from the caption and ids files beside it.
        globals_from: "files" = what the files hold, None where they hold none (a `.npy` never does); "mean-region" =
            the mean of the image's regions, for files without globals.

    Raises:
        DataError: a file is missing, damaged, foreign or does not fit the others; the message names it and the remedy.
    """
    if isinstance(paths, (str, os.PathLike)) or not paths:
        raise DataError(f"feature files have to be given as a list of at least one path, got {paths!r}")
    stores = [
        ScanFeatures(path, captions=captions) if Path(path).suffix == ".npy" else Hdf5Features(path) for path in paths
    ]
    store = stores[0] if len(stores) == 1 else MergedFeatures(stores)
    return MeanRegionGlobals(store) if globals_from == "mean-region" else store


def _open_hdf5(path: Path) -> h5py.File:
    _require_file(path)
    try:
        return h5py.File(path, "r")
    except OSError as error:
        remedy = _remedy(path, frozenset(_TOOLS))
        raise DataError(f"{path} is truncated or no HDF5 file ({error}). {remedy}") from error


def _require_file(path: Path) -> None:
    if path.is_file():
        return
    if path.suffix == ".npy":
        raise DataError(f"no file {path}; data/README.md says where each data set goes and how to get it")
    raise DataError(f"no file {path}. {_remedy(path, frozenset(_TOOLS))}")


def _remedy(path: str | os.PathLike, kinds: frozenset[str]) -> str:
    commands = [f"python {_TOOLS[kind]} --images FOLDER --out {path}" for kind in sorted(kinds, reverse=True)]
    return "Make it with: " + " or ".join(commands)


def _missing_images(missing: list[str], source: str, kinds: frozenset[str], present: list[str]) -> DataError:
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    commands = " or ".join(f"python {_TOOLS[kind]} --images FOLDER --out FILE" for kind in sorted(kinds, reverse=True))
    return DataError(
        f"no features of {len(missing)} image{'s' if len(missing) > 1 else ''} in {source}: {shown}. "
        f"The file's own ids look like {present[0]!r}. Make features of the images with: {commands}"
    )


def _refuse_repeated(image_ids: list[str], source: str) -> None:
    first_row: dict[str, int] = {}
    for row, image_id in enumerate(image_ids):
        if first_row.setdefault(image_id, row) != row:
            raise DataError(f"{source}: image id {image_id} is given twice, in rows {first_row[image_id]} and {row}")
    if not image_ids:
        raise DataError(f"{source} holds no image")


def _first_not_finite(values: np.ndarray) -> int | None:
    """Index of the first entry along axis 0 with a NaN or infinity."""
    finite = np.isfinite(values)
    if finite.all():
        return None
    return int(np.argmin(finite.reshape(len(values), -1).all(axis=1)))


def _not_finite(store: FeatureStore, name: str, file_row: int, row: int, remedy: str) -> DataError:
    return DataError(
        f"{store.source}: `{name}` of row {file_row} (image {store.image_ids[row]}) has values that are not finite. "
        f"{remedy}"
    )


def _runs_of_neighbours(rows: np.ndarray) -> Iterator[tuple[int, int]]:
    """(start, stop) of the stretches of ascending `rows` that follow one another without a gap."""
    if not len(rows):
        return
    breaks = np.flatnonzero(np.diff(rows) > 1) + 1
    yield from zip([0, *breaks], [*breaks, len(rows)], strict=True)


def _assemble(n: int, selections: Sequence[np.ndarray], parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """One array of n rows from parts and their positions; None where a part is missing."""
    present = [part for part in parts if part is not None]
    if len(present) < len(parts):
        return None
    whole = np.empty((n, *present[0].shape[1:]), dtype=present[0].dtype)
    for selected, part in zip(selections, present, strict=True):
        whole[selected] = part
    return whole
