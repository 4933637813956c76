"""HDF5 of other projects: a group or a data set for each image, in one file or in shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.data.stores.base import require_file
from ascl.data.stores.per_image import ImageFeatures, Index, PerImageFeatures, kept_index, stamp_of_file

_MOST_OPEN = 64  # files at a time; a process may open 1,024 on most systems
_BOX_FILE = "region_bbox.h5"
_DETAILS = {
    "class_ids": "objects_id",
    "scores": "objects_conf",
    "attribute_ids": "attrs_id",
    "attribute_scores": "attrs_conf",
}
_LAYOUT_NAMES = ("arrays", "groups", "detections")


class Hdf5PerImage(PerImageFeatures):
    """One or several HDF5 files of one of these layouts, told by the first entry:

    - arrays: `{id}` is a data set, (G,) = features of the whole image, or (k, R) = regions; boxes (k, 4) under the same
      name in a `region_bbox.h5` beside the files.
    - groups: `{id}/features` (k, R), `{id}/boxes` (k, 4) and, if there, LXMERT's `objects_id`, `objects_conf`,
      `attrs_id`, `attrs_conf` (k,).
    - detections: `{id}_features` (k, R), `{id}_boxes` (k, 4) and, if there, `{id}_cls_prob` (k, classes). Where that
      is there, regions are in falling order of confidence, an image's largest class probability; ties keep their order.

    Raises:
        DataError: no such file, damaged, another layout, or entries that differ in what they hold.
    """

    def __init__(self, paths: Sequence[str | os.PathLike]) -> None:
        self._paths = [Path(path) for path in paths if Path(path).name != _BOX_FILE]
        if not self._paths:
            raise DataError(f"{paths[0]} holds boxes alone, no features: give the files of the features")
        for path in self._paths:
            require_file(path)
        self._files: dict[Path, h5py.File] = {}
        self._process: int | None = None
        box_file = self._paths[0].with_name(_BOX_FILE)
        self._box_file = box_file if box_file.is_file() else None
        several = len(self._paths) > 1
        beside = self._paths[0].parent if several else self._paths[0]
        index = kept_index(beside, self._stamp(), self._index)
        self._layout = _LAYOUT_NAMES[int(index["layout"])]
        self._has_boxes = bool(index["boxes"])
        self._sorted = self._layout == "detections" and bool(index["details"])
        self._detail_names = () if not index["details"] else (
            tuple(_DETAILS) if self._layout == "groups" else ("scores", "class_ids")
        )
        self._file_of_row = index["file_of_row"]
        source = f"{beside} ({len(self._paths)} files)" if several else str(self._paths[0])
        counts = index["counts"] if index["counts"].any() else None
        self._describe(source, index["image_ids"].tolist(), int(index["dim"]), counts)

    def place(self, row: int) -> str:
        return f"{self._paths[self._file_of_row[row]]}, entry {self.image_ids[row]}"

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}, "_process": None}

    def _stamp(self) -> dict[str, int | str]:
        paths = self._paths if self._box_file is None else [*self._paths, self._box_file]
        text = "\n".join(f"{path.name} {stamp_of_file(path)}" for path in paths)
        return {"files": len(paths), "sha256": hashlib.sha256(text.encode()).hexdigest()}

    def _index(self) -> Index:
        ids: list[str] = []
        counts: list[int] = []
        file_of_row: list[int] = []
        first: tuple[str, int, bool, bool, bool] | None = None
        for number, path in enumerate(self._paths):
            file = self._open(path)
            keys = set(file)
            layout = _layout_of(path, file, keys)
            names = sorted(key.removesuffix("_features") for key in keys if layout != "detections" or
                           key.endswith("_features"))
            for name in tqdm(names, unit=" images", desc=f"index of {path.name}", disable=None):
                shape, boxes, details = self._look(path, file, keys, layout, name)
                found = (layout, shape[-1], len(shape) == 2, boxes, details)
                first = first or found
                if found != first:
                    raise DataError(f"{path}, entry {name}: {_said(found)}, but the first entry: {_said(first)}; the "
                                    "entries have to hold the same")
                ids.append(name)
                counts.append(shape[0] if len(shape) == 2 else 0)
                file_of_row.append(number)
        if first is None:
            raise DataError(f"{self._paths[0]} holds no image")
        layout, dim, _, boxes, details = first
        return {
            "image_ids": np.array(ids),
            "counts": np.array(counts, dtype=np.int64),
            "file_of_row": np.array(file_of_row, dtype=np.int32),
            "layout": np.array(_LAYOUT_NAMES.index(layout)),
            "dim": np.array(dim),
            "boxes": np.array(boxes),
            "details": np.array(details),
        }

    def _look(
        self, path: Path, file: h5py.File, keys: set[str], layout: str, name: str
    ) -> tuple[tuple[int, ...], bool, bool]:
        """Shape of an entry's features, whether it has boxes, and whether it has classes."""
        where = f"{path}, entry {name}"
        if layout == "detections":
            features = file[f"{name}_features"]
            boxes, details = f"{name}_boxes" in keys, f"{name}_cls_prob" in keys
        elif layout == "groups":
            group = file[name]
            if not isinstance(group, h5py.Group) or "features" not in group:
                raise DataError(f"{where} has no `features`")
            features, boxes = group["features"], "boxes" in group
            details = all(column in group for column in _DETAILS.values())
        else:
            features, details = file[name], False
            boxes = self._box_file is not None and getattr(features, "ndim", 0) == 2
        if not isinstance(features, h5py.Dataset) or features.ndim not in (1, 2) or features.dtype.kind != "f":
            raise DataError(f"{where}: expected features of floats, (regions, dimension) or (dimension,); found "
                            f"{features}")
        return features.shape, boxes, details

    def _image(self, row: int) -> ImageFeatures:
        name, file = self.image_ids[row], self._opened(self._paths[self._file_of_row[row]])
        try:
            if self._counts is None:
                return ImageFeatures(globals=file[name][:])
            boxes = None
            if self._layout == "arrays":
                regions = file[name][:]
                if self._box_file is not None:
                    boxes = self._opened(self._box_file)[name][:]
            else:
                separator = "/" if self._layout == "groups" else "_"
                regions = file[f"{name}{separator}features"][:]
                boxes = file[f"{name}{separator}boxes"][:] if self._has_boxes else None
            if self._sorted:
                order = self._order(file[f"{name}_cls_prob"][:])
                regions, boxes = regions[order], None if boxes is None else boxes[order]
        except (OSError, KeyError, IndexError) as error:
            raise self._damaged(row, error) from error
        for kind, values, width in (("features", regions, self.region_dim), ("boxes", boxes, 4)):
            if values is not None and values.shape != (self._counts[row], width):
                raise DataError(f"{self.place(row)}: its {kind} have shape {values.shape}, expected "
                                f"({self._counts[row]}, {width})")
        return ImageFeatures(regions, boxes)

    def _image_details(self, row: int) -> dict[str, np.ndarray]:
        name, file = self.image_ids[row], self._opened(self._paths[self._file_of_row[row]])
        try:
            if self._layout == "groups":
                found = {ours: file[f"{name}/{column}"][:] for ours, column in _DETAILS.items()}
            else:
                probabilities = file[f"{name}_cls_prob"][:]
                probabilities = probabilities[self._order(probabilities)]
                found = {"scores": probabilities.max(axis=1), "class_ids": probabilities.argmax(axis=1)}
        except (OSError, KeyError, IndexError) as error:
            raise self._damaged(row, error) from error
        assert self._counts is not None  # details belong to regions
        for kind, values in found.items():
            if values.shape != (self._counts[row],):
                raise DataError(f"{self.place(row)}: its {kind} have shape {values.shape}, expected one for each of "
                                f"{self._counts[row]} regions")
        return found

    def _damaged(self, row: int, error: Exception) -> DataError:
        return DataError(f"{self.place(row)} cannot be read ({error}); the file is damaged, fetch it again")

    @staticmethod
    def _order(probabilities: np.ndarray) -> np.ndarray:
        return np.argsort(-probabilities.max(axis=1), kind="stable")

    def _opened(self, path: Path) -> h5py.File:
        # A handle inherited through fork shares state with the parent, so each process opens its own.
        if self._process != os.getpid():
            self._files, self._process = {}, os.getpid()
        if path not in self._files:
            if len(self._files) >= _MOST_OPEN:
                self._files.pop(next(iter(self._files))).close()
            self._files[path] = self._open(path)
        return self._files[path]

    def _open(self, path: Path) -> h5py.File:
        try:
            return h5py.File(path, "r")
        except OSError as error:
            raise DataError(f"{path} is truncated or no HDF5 file ({error}): fetch it again") from error


def looks_per_image(file: h5py.File) -> bool:
    """Whether an HDF5 file that is not ours may be one of these."""
    if {"format", "version"} & set(file.attrs) or "image_ids" in file:
        return False  # ours, perhaps damaged or of another version: its own reader says so
    return any(key.endswith("_features") or isinstance(file[key], h5py.Group) or file[key].ndim in (1, 2)
               for key in list(file)[:1])


def _layout_of(path: Path, file: h5py.File, keys: set[str]) -> str:
    if not keys:
        raise DataError(f"{path} is an empty HDF5 file")
    if "pos_boxes" in keys:
        raise DataError(f"{path} has the regions of all images in one data set and their ids in another file (VQA "
                        "code); this is not read, take the TSV or HDF5 that it was made from")
    if any(key.endswith("_features") for key in keys):
        return "detections"
    return "groups" if isinstance(file[min(keys)], h5py.Group) else "arrays"


def _said(found: tuple[str, int, bool, bool, bool]) -> str:
    layout, dim, regions, boxes, details = found
    what = "regions" if regions else "one vector"
    beside = f"{'with' if boxes else 'no'} boxes, {'with' if details else 'no'} classes"
    return f"{what} of dimension {dim} ({layout}, {beside})"
