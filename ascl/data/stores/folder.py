"""A file for each image: npz archives or npy arrays in a folder, an image's id being the stem of its file's name."""

from __future__ import annotations

import hashlib
import os
import zipfile
import zlib
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.data.stores.per_image import Entry, ImageFeatures, PerImageFeatures, kept_index

_DAMAGED = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)


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
        index = kept_index(self.folder, {**stamp, "boxes": str(self._box_folder)}, lambda: self._entries(names))
        self._describe(str(folder), index)

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

    def _entries(self, names: Sequence[str]) -> Iterator[Entry]:
        for name in tqdm(names, unit=" files", desc=f"index of {self.folder.name}", disable=None):
            try:
                entry = self._look(self.folder / name)
            except _DAMAGED as error:
                raise _damaged(self.folder / name, error) from error
            yield entry

    def _image(self, row: int) -> ImageFeatures:
        try:
            image = self._load(self._path(row))
            if self._box_folder is not None and image.regions is not None and image.boxes is None:
                path = self._box_folder / f"{self.image_ids[row]}.npy"
                image.boxes = _float32(path, np.load(path, allow_pickle=False), "fiu")
        except _DAMAGED as error:
            raise _damaged(self._path(row), error) from error
        return image

    def _entry(self, path: Path, shape: tuple[int, ...], boxes: bool = False, size: tuple[int, int] = (0, 0)) -> Entry:
        """Of features (k, R) or (G,)."""
        count = shape[0] if len(shape) == 2 else 0
        if len(shape) == 2 and count == 0:
            raise DataError(f"{path} holds no region; an image needs at least one, move it away")
        has_boxes = len(shape) == 2 and (boxes or self._box_folder is not None)
        return Entry(path.name.removesuffix(self.ending), str(path), count, shape[-1], has_boxes, size=size)

    @abstractmethod
    def _look(self, path: Path) -> Entry:
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

    def _look(self, path: Path) -> Entry:
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
            return self._entry(path, _flattened(path, shapes["feat"]), size=size)
        count = _count_of(path, numbers.get("num_bbox"), shapes.get("bbox"))
        dim = shapes["x"][1 if _by_rows(path, shapes["x"], count) else 0]
        return self._entry(path, (count, dim), "bbox" in shapes, size)

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

    def _look(self, path: Path) -> Entry:
        with open(path, "rb") as file:
            shape = _header(file)
        if len(shape) not in (1, 2):
            raise DataError(f"{path} has shape {shape}, expected (dimension,) or (regions, dimension); a file with all "
                            "images in it is given by its own path")
        if shape[1:] == (4,):
            raise DataError(f"{path} has shape {shape}: these are boxes, no features; give the folder of the features")
        return self._entry(path, shape)

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
