"""Our feature file: HDF5, layout version 1.

Attributes of the root: `format` = "ascl-features", `version` = 1, `provenance` (JSON). Data sets: `image_ids` (N,)
UTF-8 strings; `regions` (N, K, R) float16 or float32; `boxes` (N, K, 4) float32, x1 y1 x2 y2 in pixels of the original
image; `region_count` (N,) int32, only if some image has fewer than K real regions; `globals` (N, G). A file has
regions, globals or both. It may have `image_sizes` (N, 2), width and height of the upright image; `scores`,
`class_ids`, `attribute_ids`, `attribute_scores` (N, K); and the names of the ids, `class_names` and `attribute_names`,
UTF-8 strings. Data sets are never read as a whole: COCO's train regions have 33 GB.
"""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ascl.core import hdf5
from ascl.core.errors import DataError
from ascl.core.files import OncePerProcess
from ascl.core.limits import ARRAY_BYTES
from ascl.core.reading import parse_json, reading
from ascl.data.stores import base
from ascl.data.stores.base import DETAILS, NAMES, Features, FeatureStore

FORMAT = "ascl-features"
VERSION = 1
_REMEDY = "extract the features again, or take a sound copy of the file"


class Hdf5Features(FeatureStore):
    """A store that reads an HDF5 file of the layout above.

    Raises:
        DataError: the file does not exist, is truncated, or has another format or version; or shapes do not fit.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        self.source = str(path)
        self._file = OncePerProcess(partial(open_hdf5, self.path))
        with open_hdf5(self.path) as file:
            self._read_layout(file)

    def _read_layout(self, file: h5py.File) -> None:
        if (found := hdf5.attribute_of(file, "format")) != FORMAT:
            raise DataError(f"{self.path} is HDF5 but not a feature file of this project (attribute `format` is "
                            f"{found!r}, expected {FORMAT!r}), nor of another layout that is read; it holds "
                            f"{contents_of(file)}. Keep it, and write its features in one of the layouts of "
                            "docs/data.md, such as a data set for each image")
        if (version := hdf5.attribute_of(file, "version")) != VERSION:
            raise DataError(f"{self.path} has layout version {version}, this program reads version {VERSION}: use the "
                            "version of ascl that wrote it")
        keys = set(hdf5.keys_of(file))
        ids = hdf5.dataset_of(file, "image_ids", _REMEDY)
        if ids is None or not {"regions", "globals"} & keys:
            raise DataError(f"{self.path} needs `image_ids` and `regions` or `globals`, it has: {contents_of(file)}")
        self.image_ids = hdf5.texts_of(ids, _REMEDY)
        base.check_ids(self.image_ids, self.source)
        made = provenance_in(file)
        self.provenance = {} if made is None else {self.source: made}
        if "regions" in keys:
            _, self.num_regions, self.region_dim = self._shape(file, "regions", (None, None))
        if "globals" in keys:
            _, self.global_dim = self._shape(file, "globals", (None,))
        self._has_boxes = "boxes" in keys and self.num_regions is not None
        if self._has_boxes:
            self._shape(file, "boxes", (self.num_regions, 4))
        self._region_count = self._counts(file) if "region_count" in keys and self.num_regions is not None else None
        self._detail_names = [name for name in DETAILS
                              if name in keys and (name == "image_sizes" or self.num_regions is not None)]
        for name in self._detail_names:
            row = (2,) if name == "image_sizes" else (self.num_regions,)
            self._shape(file, name, row, "f" if DETAILS[name][0] is np.float32 else "iu")
        named = {name: hdf5.dataset_of(file, name, _REMEDY) for name in NAMES.values()}
        self.names = {name: hdf5.texts_of(data, _REMEDY) for name, data in named.items() if data is not None}

    def _shape(self, file: h5py.File, name: str, rest: tuple[int | None, ...], types: str = "f") -> tuple[int, ...]:
        """Return the shape of a data set, after checking its type and that the shape is (N, *rest).

        In `rest`, None stands for any size of at least 1.
        """
        data = hdf5.dataset_of(file, name, _REMEDY)
        assert data is not None  # the caller has seen it
        expected = (len(self.image_ids), *rest)
        if data.ndim != len(expected) or any(size != want if want is not None else size < 1
                                             for size, want in zip(data.shape, expected, strict=True)):
            wanted = ", ".join("any" if size is None else str(size) for size in expected)
            raise DataError(f"{self.path}: `{name}` has shape {data.shape}, expected ({wanted})")
        if data.dtype.kind not in types:
            wanted = "float16 or float32" if types == "f" else "whole numbers"
            raise DataError(f"{self.path}: `{name}` has type {data.dtype}, expected {wanted}")
        ARRAY_BYTES.check(data.dtype.itemsize * math.prod(data.shape[1:]), f"{self.path}: an image in `{name}`")
        return data.shape

    def _counts(self, file: h5py.File) -> np.ndarray:
        data = hdf5.dataset_of(file, "region_count", _REMEDY)
        assert data is not None  # the caller has seen it
        counts = hdf5.values_of(data, _REMEDY)
        if counts.dtype.kind not in "iu":
            raise DataError(f"{self.path}: `region_count` has type {counts.dtype}, expected whole numbers")
        if counts.shape != (len(self.image_ids),):
            raise DataError(f"{self.path}: `region_count` has shape {counts.shape}, expected ({len(self.image_ids)},)")
        wrong = np.flatnonzero((counts < 1) | (counts > self.num_regions))
        if len(wrong):
            row = wrong[0]
            raise DataError(f"{self.path}, row {row} (image {self.image_ids[row]}): region_count {counts[row]} is not "
                            f"within 1 to {self.num_regions}")
        return counts

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        regions = mask = boxes = globals_ = None
        if "regions" in kinds:
            regions = self._gather("regions", rows)
            if self._region_count is not None:
                mask = np.arange(regions.shape[1]) < self._region_count[rows, None]
                regions[~mask] = 0.0  # a writer may have left other values in the padding
            self._check_values("regions", regions, rows)
            if self._has_boxes:
                boxes = self._gather("boxes", rows)
                sizes = self._gather("image_sizes", rows, np.int32) if "image_sizes" in self._detail_names else None
                self._check_boxes(boxes, mask, rows, sizes)
        if "globals" in kinds:
            globals_ = self._gather("globals", rows)
            self._check_values("globals", globals_, rows)
        return Features(regions, globals_, boxes, mask)

    def _details(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        found = {name: self._gather(name, rows, DETAILS[name][0]) for name in self._detail_names}
        if self._region_count is not None:
            padding = np.arange(self.num_regions or 0) >= self._region_count[rows, None]
            for name in found.keys() - {"image_sizes"}:
                found[name][padding] = DETAILS[name][1]
        return found

    def _gather(self, name: str, rows: np.ndarray, dtype: type = np.float32) -> np.ndarray:
        """Return rows of a data set, in that order.

        Indexing h5py by a list of rows is slow, and so are slices of single rows. So runs of consecutive rows are
        selected through h5py's low-level interface. float16 is read as it is, because HDF5 converts it slowly.
        """
        with reading(self.path, hdf5.KIND, _REMEDY):
            data = self._file()[name]
            rest = data.shape[1:]
        unique, position = np.unique(rows, return_inverse=True)
        half = data.dtype == np.float16 and dtype is np.float32
        stored = np.empty((len(unique), *rest), dtype=np.float16 if half else dtype)
        with reading(self.path, hdf5.KIND, _REMEDY):
            space = data.id.get_space()
            for start, stop in base.runs_of_neighbors(unique):
                shape = (stop - start, *rest)
                space.select_hyperslab((int(unique[start]), *(0 for _ in rest)), shape)
                data.id.read(h5py.h5s.create_simple(shape), space, stored[start:stop])
        if not np.array_equal(unique, rows):
            stored = stored[position]
        if half:            # numpy would take forty times longer
            import torch  # half a GiB of memory that a conversion without float16 does not need

            return torch.from_numpy(stored).float().numpy()
        return stored


def open_hdf5(path: Path) -> h5py.File:
    """Open a file of features; DataError if it is missing or damaged."""
    base.require_features(path)
    return hdf5.open_hdf5(path, _REMEDY)


def provenance_in(file: h5py.File) -> dict[str, Any] | None:
    """Return how a file of ours was made; None if it does not say."""
    text = hdf5.attribute_of(file, "provenance")
    return None if text is None else parse_json(text if isinstance(text, str) else repr(text),
                                                f"{file.filename}, attribute `provenance`", remedy=_REMEDY)


def contents_of(file: h5py.File) -> str:
    """Return the names in a file, with the shapes of data sets, for messages."""
    found = []
    for name in hdf5.keys_of(file)[:10]:
        with reading(file.filename, hdf5.KIND):
            one = file.get(name, getclass=True) is h5py.Dataset and file.get(name, getlink=True)
            found.append(f"{name} {file[name].shape}" if isinstance(one, h5py.HardLink) else name)
    return ", ".join(found) + (", ..." if len(file) > len(found) else "") or "nothing"
