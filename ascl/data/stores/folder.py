"""Read a folder with one npz or npy file per image; an image's id is its file name without the suffix."""

from __future__ import annotations

import hashlib
import os
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.core.reading import array_header, array_headers, read_array, read_arrays, reading, require_file
from ascl.data.stores.per_image import Entry, ImageFeatures, PerImageFeatures, Wrong, kept_index

_MEMBERS = ("x", "feat", "bbox", "num_bbox", "image_w", "image_h")  # of an npz; others may be pickled
_FEATURES = _MEMBERS[:3]


class FolderFeatures(PerImageFeatures):
    """A store of the files with one suffix in a folder, sorted by name; the first opening reads each header.

    If the folder is called `NAME_att` and there is a `NAME_box` beside it, the latter holds each image's boxes as
    `{id}.npy` (k, 4), as in self-critical.pytorch's `cocobu_att`, `cocobu_fc` and `cocobu_box`.

    Raises:
        DataError: the folder does not exist or has no such files, a file is damaged, or files differ in what they hold
            (the message names them).
    """

    ending: str

    def __init__(self, folder: str | os.PathLike, *, skip_broken: bool = False) -> None:
        self.folder = Path(folder)
        names, stamp = self._listing()
        beside = self.folder.with_name(self.folder.name.removesuffix("_att") + "_box")
        self._box_folder = beside if self.folder.name.endswith("_att") and beside.is_dir() else None
        index = kept_index(self.folder, {**stamp, "boxes": str(self._box_folder)},
                           lambda wrong: self._entries(names, wrong), skip_broken=skip_broken)
        self._describe(str(folder), index)

    def place(self, row: int) -> str:
        return str(self._path(row))

    def _path(self, row: int) -> Path:
        return self.folder / f"{self.image_ids[row]}{self.ending}"

    def _listing(self) -> tuple[list[str], dict[str, int | str]]:
        """Return the sorted names of the files, and a stamp that shows whether they have changed."""
        if not self.folder.is_dir():
            raise DataError(f"no folder {self.folder}")
        files = files_of(self.folder, self.ending)
        if not files:
            raise DataError(f"{self.folder} has no {self.ending} file")
        digest = hashlib.sha256()
        for path in files:  # a pipe or a broken link is refused when it is looked at
            about = os.lstat(path) if not path.is_file() else os.stat(path)
            digest.update(f"{path.name}\n{about.st_size} {about.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
        return [path.name for path in files], {"files": len(files), "sha256": digest.hexdigest()}

    def _entries(self, names: Sequence[str], wrong: Wrong) -> Iterator[Entry]:
        for name in tqdm(names, unit=" files", desc=f"index of {self.folder.name}", disable=None):
            try:
                entry = self._look(self.folder / name)
            except DataError as error:
                wrong(error)
            else:
                yield entry

    def _image(self, row: int) -> ImageFeatures:
        image = self._load(self._path(row))
        if self._box_folder is not None and image.regions is not None and image.boxes is None:
            path = self._box_folder / f"{self.image_ids[row]}.npy"
            image.boxes = _float32(path, read_array(path), "fiu")
        return image

    def _entry(self, path: Path, shape: tuple[int, ...], boxes: bool = False, size: tuple[int, int] = (0, 0)) -> Entry:
        """Return the entry of a file whose features have shape (k, R) or (G,)."""
        name = path.name.removesuffix(self.ending)
        if len(shape) == 1:
            return Entry(name, str(path), 0, shape[0], size=size)
        if shape[0] == 0:
            raise DataError(f"{path} holds no region; an image needs at least one: move the file away")
        return Entry(name, str(path), shape[0], shape[1], boxes or self._box_folder is not None, size=size)

    @abstractmethod
    def _look(self, path: Path) -> Entry:
        """Return what a file holds, from the headers of its arrays."""

    @abstractmethod
    def _load(self, path: Path) -> ImageFeatures:
        """Return the features of a file, and the boxes if it holds them."""


class NpzFolder(FolderFeatures):
    """npz files of bottom-up-attention.pytorch and MCAN, or of self-critical.pytorch.

    The former have `x` with `bbox` (k, 4), `num_bbox`, `image_h` and `image_w`; `x` is (k, R) or (R, k), which the
    number of boxes decides. The latter have only `feat`, (k, R) or a map (h, w, R) that is read row by row. Pickled
    members are never opened, such as `info` with classes and confidences.
    """

    ending = ".npz"

    def _look(self, path: Path) -> Entry:
        headers = array_headers(path, names=_MEMBERS)
        shapes = {name: header.shape for name, header in headers.items() if name in _FEATURES}
        numbers = {name: _number(path, name, values) for name, values in
                   read_arrays(path, names=headers.keys() - shapes.keys()).items()}
        if "x" not in shapes and "feat" not in shapes:
            raise DataError(f"{path} has neither `x` nor `feat`: give the folder of the features")
        size = (numbers.get("image_w", 0), numbers.get("image_h", 0))
        if "x" not in shapes:
            return self._entry(path, _flattened(path, shapes["feat"]), size=size)
        count = _count_of(path, numbers.get("num_bbox"), shapes.get("bbox"))
        dim = shapes["x"][1 if _by_rows(path, shapes["x"], count) else 0]
        return self._entry(path, (count, dim), "bbox" in shapes, size)

    def _load(self, path: Path) -> ImageFeatures:
        arrays = read_arrays(path, names=_MEMBERS)
        if "x" not in arrays:
            feat = _float32(path, arrays["feat"])
            return ImageFeatures(feat.reshape(_flattened(path, feat.shape)))
        boxes = _float32(path, arrays["bbox"], "fiu") if "bbox" in arrays else None
        number = _number(path, "num_bbox", arrays["num_bbox"]) if "num_bbox" in arrays else None
        x = _float32(path, arrays["x"])
        count = _count_of(path, number, None if boxes is None else boxes.shape)
        return ImageFeatures(x if _by_rows(path, x.shape, count) else x.T, boxes)


class NpyFolder(FolderFeatures):
    """npy files, all with features of whole images, (G,), or all with regions, (k, R)."""

    ending = ".npy"

    def _look(self, path: Path) -> Entry:
        size = require_file(path).st_size
        with reading(path, "an array (.npy)"), open(path, "rb") as file:
            shape = array_header(file, size).shape
        if len(shape) not in (1, 2):
            raise DataError(f"{path} has shape {shape}, expected (dimension,) or (regions, dimension); if this file "
                            "holds all images, give its own path")
        if shape[1:] == (4,):
            raise DataError(f"{path} has shape {shape}: these are boxes, not features; give the folder of the features")
        return self._entry(path, shape)

    def _load(self, path: Path) -> ImageFeatures:
        values = _float32(path, read_array(path))
        return ImageFeatures(globals=values) if values.ndim == 1 else ImageFeatures(regions=values)


def files_of(folder: Path, ending: str) -> list[Path]:
    """Return the files with a suffix in a folder, without hidden ones, sorted by name."""
    return sorted(folder.glob(f"[!.]*{ending}"))


def _float32(path: Path, values: np.ndarray, types: str = "f") -> np.ndarray:
    if values.dtype.kind not in types:
        raise DataError(f"{path} has an array of type {values.dtype}, expected floats")
    with np.errstate(over="ignore"):  # what float32 cannot hold is found as not finite
        return values.astype(np.float32, copy=False)


def _number(path: Path, name: str, values: np.ndarray) -> int:
    if values.size != 1 or values.dtype.kind not in "fiu" or not abs(number := values.item()) < 1 << 31:
        raise DataError(f"{path}: `{name}` is {values.dtype} of shape {values.shape}, expected a whole number: "
                        "download it again")
    return int(number)


def _count_of(path: Path, number: int | None, boxes: tuple[int, ...] | None) -> int:
    """Return the number of regions, from `num_bbox` and `bbox`."""
    if boxes is not None and (len(boxes) != 2 or boxes[1] != 4):
        raise DataError(f"{path}: `bbox` has shape {boxes}, expected (boxes, 4)")
    if number is None and boxes is None:
        raise DataError(f"{path} has neither `bbox` nor `num_bbox`, so it is unknown whether `x` is (regions, "
                        "dimension) or (dimension, regions); add one of them")
    if number is not None and boxes is not None and number != boxes[0]:
        raise DataError(f"{path}: `num_bbox` is {number}, `bbox` has {boxes[0]} rows; the file is damaged: download it "
                        "again")
    return boxes[0] if number is None and boxes is not None else number or 0


def _by_rows(path: Path, shape: tuple[int, ...], count: int) -> bool:
    """Return whether `x` is (regions, dimension) and not the transpose."""
    if len(shape) != 2 or count not in shape:
        raise DataError(f"{path}: `x` has shape {shape}, which does not fit {count} boxes")
    if shape[0] == shape[1]:
        raise DataError(f"{path}: `x` is {shape[0]} x {shape[1]} with as many boxes: which axis is which?")
    return shape[0] == count


def _flattened(path: Path, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) not in (2, 3) or 0 in shape:
        raise DataError(f"{path}: `feat` has shape {shape}, expected (regions, dimension) or a map of regions")
    return int(np.prod(shape[:-1])), shape[-1]
