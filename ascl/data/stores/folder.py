"""A file for each image: npz archives or npy arrays in a folder, an image's id being the stem of its file's name."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.data.stores.per_image import ImageFeatures, Index, PerImageFeatures, kept_index

_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class _Found:
    """What the headers of an image's file say: axes of its features, whether it has boxes, its size or zeros."""

    count: int
    dim: int
    boxes: bool | None  # None: one vector for the whole image, of which there are no boxes
    size: tuple[int, int] = (0, 0)  # width, height


class FolderFeatures(PerImageFeatures):
    """The files of one ending in a folder, in the order of their names. The first opening looks into each of them.

    Where the folder is called `NAME_att` and a `NAME_box` lies beside it, that holds each image's boxes as
    `{id}.npy` (k, 4): self-critical.pytorch's arrangement of `cocobu_att`, `cocobu_fc` and `cocobu_box`.

    Raises:
        DataError: no such folder, no such files, a damaged file, or files that differ in what they hold (each named).
    """

    ending: str

    def __init__(self, folder: str | os.PathLike) -> None:
        self.folder = Path(folder)
        names, stamp = self._listing()
        beside = self.folder.with_name(self.folder.name.removesuffix("_att") + "_box")
        self._box_folder = beside if self.folder.name.endswith("_att") and beside.is_dir() else None
        index = kept_index(self.folder, {**stamp, "boxes": str(self._box_folder)}, lambda: self._index(names))
        counts = index["counts"] if index["counts"].any() else None
        self._has_boxes = bool(index["boxes"])
        image_ids = [name.removesuffix(self.ending) for name in names]
        sizes = index["sizes"] if index["sizes"].all() else None
        self._describe(str(folder), image_ids, int(index["dim"]), counts, sizes)

    def place(self, row: int) -> str:
        return str(self._path(row))

    def _path(self, row: int) -> Path:
        return self.folder / f"{self.image_ids[row]}{self.ending}"

    def _listing(self) -> tuple[list[str], dict[str, int | str]]:
        """Names of the files, sorted, and what tells that they are still the same."""
        if not self.folder.is_dir():
            raise DataError(f"no folder {self.folder}")
        with os.scandir(self.folder) as entries:
            files = sorted((entry for entry in entries if _is_of(entry.name, self.ending)), key=lambda e: e.name)
            about = [(entry.name, entry.stat()) for entry in files]
        digest = hashlib.sha256()
        for name, stat in about:
            digest.update(f"{name}\n{stat.st_size} {stat.st_mtime_ns}\n".encode())
        if not about:
            raise DataError(f"{self.folder} has no {self.ending} file")
        return [name for name, _ in about], {"files": len(about), "sha256": digest.hexdigest()}

    def _index(self, names: Sequence[str]) -> Index:
        found: list[_Found] = []
        for name in tqdm(names, unit=" files", desc=f"index of {self.folder.name}", disable=None):
            try:
                found.append(self._look(self.folder / name))
                if found[-1].count == 0 and found[-1].boxes is not None:
                    raise DataError(f"{self.folder / name} holds no region; an image needs at least one, move it away")
            except _DAMAGED as error:
                raise _damaged(self.folder / name, error) from error
            first, last = found[0], found[-1]
            if _said(first) != _said(last):
                raise DataError(f"{self.folder}: {names[0]} holds {_said(first)}, {name} holds {_said(last)}; the "
                                "files of a folder have to hold the same, move the others away")
        return {
            "counts": np.array([one.count for one in found], dtype=np.int64),
            "sizes": np.array([one.size for one in found], dtype=np.int32),
            "dim": np.array(found[0].dim),
            "boxes": np.array(bool(found[0].boxes)),
        }

    def _image(self, row: int) -> ImageFeatures:
        try:
            image = self._load(self._path(row))
            if self._box_folder is not None and image.regions is not None and image.boxes is None:
                path = self._box_folder / f"{self.image_ids[row]}.npy"
                image.boxes = _float32(path, np.load(path, allow_pickle=False), "fiu")
        except _DAMAGED as error:
            raise _damaged(self._path(row), error) from error
        self._check(row, image)
        return image

    def _check(self, row: int, image: ImageFeatures) -> None:
        """The file may have been replaced since it was indexed, and boxes lie in files of their own."""
        count = 0 if self._counts is None else int(self._counts[row])
        expected = {
            "regions": (count, self.region_dim) if count else None,
            "boxes": (count, 4) if count and self._has_boxes else None,
            "globals": None if count else (self.global_dim,),
        }
        for name, shape in expected.items():
            values = getattr(image, name)
            if shape is not None and (values is None or values.shape != shape):
                found = "none" if values is None else values.shape
                raise DataError(f"{self.place(row)}: its {name} have shape {found}, expected {shape}; boxes and "
                                "features are of other images, or the file was replaced since the folder was opened")

    @abstractmethod
    def _look(self, path: Path) -> _Found:
        """What a file holds, from the headers of its arrays."""

    @abstractmethod
    def _load(self, path: Path) -> ImageFeatures:
        """The arrays of a file, boxes where they lie in it."""


class NpzFolder(FolderFeatures):
    """npz files: `x` with `bbox` (k, 4), `num_bbox`, `image_h`, `image_w` (bottom-up-attention.pytorch and MCAN), or
    `feat` alone (self-critical.pytorch).

    `x` is (k, R) or (R, k), told by the number of boxes. `feat` is (k, R), or a map (h, w, R) that is read row by row.
    Nothing pickled is ever opened: `info`, with classes and confidences, is left where it is.
    """

    ending = ".npz"

    def _look(self, path: Path) -> _Found:
        with zipfile.ZipFile(path) as archive:
            members = {name.removesuffix(".npy") for name in archive.namelist()}
            shapes = {name: _shape_in(archive, name) for name in ("x", "feat", "bbox") if name in members}
            numbers = {name: _number_in(archive, name) for name in ("num_bbox", "image_w", "image_h")
                       if name in members}
        if "x" not in shapes and "feat" not in shapes:
            raise DataError(f"{path} has neither `x` nor `feat` (it has: {', '.join(sorted(members)) or 'nothing'}); "
                            "boxes alone are no features")
        size = (numbers.get("image_w", 0), numbers.get("image_h", 0))
        if "x" not in shapes:
            shape = _flattened(path, shapes["feat"])
            return _Found(*shape, boxes=self._box_folder is not None, size=size)
        count = _count_of(path, numbers.get("num_bbox"), shapes.get("bbox"))
        dim = shapes["x"][1 if _by_rows(path, shapes["x"], count) else 0]
        return _Found(count, dim, "bbox" in shapes or self._box_folder is not None, size)

    def _load(self, path: Path) -> ImageFeatures:
        with np.load(path, allow_pickle=False) as arrays:
            if "x" not in arrays.files:
                feat = _float32(path, arrays["feat"])
                return ImageFeatures(feat.reshape(_flattened(path, feat.shape)))
            boxes = _float32(path, arrays["bbox"], "fiu") if "bbox" in arrays.files else None
            number = int(arrays["num_bbox"].item()) if "num_bbox" in arrays.files else None
            x = _float32(path, arrays["x"])
        count = _count_of(path, number, None if boxes is None else boxes.shape)
        return ImageFeatures(x if _by_rows(path, x.shape, count) else x.T, boxes)


class NpyFolder(FolderFeatures):
    """npy files, all of one kind: (G,) = features of the whole image, (k, R) = regions."""

    ending = ".npy"

    def _look(self, path: Path) -> _Found:
        with open(path, "rb") as file:
            shape = _header(file)
        if len(shape) == 1:
            return _Found(0, shape[0], None)
        if len(shape) != 2:
            raise DataError(f"{path} has shape {shape}, expected (dimension,) or (regions, dimension); a file with all "
                            "images in it is given by its own path")
        if shape[1] == 4:
            raise DataError(f"{path} has shape {shape}: these are boxes, no features; give the folder of the features")
        return _Found(*shape, boxes=self._box_folder is not None)

    def _load(self, path: Path) -> ImageFeatures:
        values = _float32(path, np.load(path, allow_pickle=False))
        return ImageFeatures(globals=values) if values.ndim == 1 else ImageFeatures(regions=values)


def folder_kinds(folder: Path, endings: Sequence[str]) -> dict[str, int]:
    """Which of these endings occur in a folder, and how often."""
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries]
    counts = {ending: sum(_is_of(name, ending) for name in names) for ending in endings}
    return {ending: count for ending, count in counts.items() if count}


def _is_of(name: str, ending: str) -> bool:
    return name.endswith(ending) and not name.startswith(".")


def _said(found: _Found) -> str:
    boxes = " with boxes" if found.boxes else ""
    return f"regions of dimension {found.dim}{boxes}" if found.count else f"one vector of dimension {found.dim}"


def _damaged(path: Path, error: Exception) -> DataError:
    return error if isinstance(error, DataError) else DataError(f"{path} cannot be read ({error}): fetch it again")


def _float32(path: Path, values: Any, types: str = "f") -> np.ndarray:
    if not isinstance(values, np.ndarray):  # numpy hands out the bytes of a member that is no array
        raise DataError(f"{path} cannot be read (an array without a header): fetch it again")
    if values.dtype.kind not in types:
        raise DataError(f"{path} has an array of type {values.dtype}, expected floats")
    return values.astype(np.float32, copy=False)


def _count_of(path: Path, number: int | None, boxes: tuple[int, ...] | None) -> int:
    """Number of regions, from `num_bbox` and `bbox`."""
    if boxes is not None and (len(boxes) != 2 or boxes[1] != 4):
        raise DataError(f"{path}: `bbox` has shape {boxes}, expected (boxes, 4)")
    if number is None and boxes is None:
        raise DataError(f"{path} has neither `bbox` nor `num_bbox`, without which nothing tells whether `x` is "
                        "(regions, dimension) or (dimension, regions)")
    if number is not None and boxes is not None and number != boxes[0]:
        raise DataError(f"{path}: `num_bbox` is {number}, `bbox` has {boxes[0]} rows; the file is damaged")
    return boxes[0] if number is None and boxes is not None else number or 0


def _by_rows(path: Path, shape: tuple[int, ...], count: int) -> bool:
    """Whether `x` is (regions, dimension), not the transpose."""
    if len(shape) != 2 or count not in shape:
        raise DataError(f"{path}: `x` has shape {shape}, which does not fit {count} boxes")
    if shape[0] == shape[1]:
        raise DataError(f"{path}: `x` is {shape[0]} x {shape[1]} with as many boxes; nothing tells which axis is which")
    return shape[0] == count


def _flattened(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) not in (2, 3):
        raise DataError(f"{path}: `feat` has shape {shape}, expected (regions, dimension) or "
                        "(height, width, dimension)")
    return int(np.prod(shape[:-1])), shape[-1]


def _shape_in(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    with archive.open(f"{name}.npy") as file:
        return _header(file)


def _number_in(archive: zipfile.ZipFile, name: str) -> int:
    with archive.open(f"{name}.npy") as file:
        return int(np.lib.format.read_array(file, allow_pickle=False).item())


def _header(file: IO[bytes]) -> tuple[int, ...]:
    """Shape of an array, from the header alone."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    return read(file)[0]
