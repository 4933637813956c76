"""Read HDF5 of other projects: a group or data set per image, in one file or in shards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import h5py
import numpy as np
from tqdm import tqdm

from ascl.core import hdf5
from ascl.core.errors import DataError
from ascl.core.files import OncePerProcess
from ascl.core.reading import shown
from ascl.data.stores.base import require_features
from ascl.data.stores.per_image import Entry, ImageFeatures, PerImageFeatures, Wrong, kept_index, stamp_of_file

_MOST_OPEN = 64  # open files at a time; most systems allow 1,024 per process
_BOX_FILE = "region_bbox.h5"
_DETAILS = {"class_ids": "objects_id", "scores": "objects_conf", "attribute_ids": "attrs_id",
            "attribute_scores": "attrs_conf"}
_NAMES = {"arrays": ("{}", "{}"), "groups": ("{}/features", "{}/boxes"), "detections": ("{}_features", "{}_boxes")}


class Hdf5PerImage(PerImageFeatures):
    """One or several HDF5 files in one of these layouts, recognized by the first entry:

    - arrays: `{id}` is a data set, (G,) = features of the whole image, or (k, R) = regions; boxes (k, 4) have the same
      name in a `region_bbox.h5` beside the files.
    - groups: `{id}/features` (k, R), `{id}/boxes` (k, 4) and optionally LXMERT's `objects_id`, `objects_conf`,
      `attrs_id`, `attrs_conf` (k,).
    - detections: `{id}_features` (k, R), `{id}_boxes` (k, 4) and optionally `{id}_cls_prob` (k, classes). With the
      latter, regions are sorted by confidence, their largest class probability, highest first; ties keep their order.

    Raises:
        DataError: a file does not exist, is damaged or has another layout, or entries differ in what they hold.
    """

    def __init__(self, paths: Sequence[str | os.PathLike], *, skip_broken: bool = False) -> None:
        self._paths = [Path(path) for path in paths if Path(path).name != _BOX_FILE]
        if not self._paths:
            raise DataError(f"{paths[0]} holds only boxes, no features: give the files of the features")
        for path in self._paths:
            require_features(path)
        self._files: OncePerProcess[dict[Path, h5py.File]] = OncePerProcess(dict)
        box_file = self._paths[0].with_name(_BOX_FILE)
        self._box_file = box_file if os.path.lexists(box_file) else None
        several = len(self._paths) > 1
        beside = self._paths[0].parent if several else self._paths[0]
        index = kept_index(beside, self._stamp(), self._entries, skip_broken=skip_broken)
        self._layout = str(index.layout)
        self._sorted = self._layout == "detections" and bool(index.details)
        source = f"{beside} ({len(self._paths)} files)" if several else str(self._paths[0])
        self._describe(source, index, tuple(_DETAILS) if self._layout == "groups" else ("scores", "class_ids"))

    def place(self, row: int) -> str:
        return f"{self._paths[self._places[row, 0]]}, entry {self.image_ids[row]}"

    def _stamp(self) -> dict[str, int | str]:
        paths = self._paths if self._box_file is None else [*self._paths, self._box_file]
        text = "\n".join(f"{path.name} {stamp_of_file(path)}" for path in paths)
        return {"files": len(paths), "sha256": hashlib.sha256(text.encode()).hexdigest()}

    def _entries(self, wrong: Wrong) -> Iterator[Entry]:
        for number, path in enumerate(self._paths):
            try:
                with hdf5.open_hdf5(path) as file:
                    yield from self._entries_of(number, file, wrong)
            except DataError as error:
                wrong(error)

    def _entries_of(self, number: int, file: h5py.File, wrong: Wrong) -> Iterator[Entry]:
        path = self._paths[number]
        keys = set(hdf5.keys_of(file))
        layout = _layout_of(path, file, keys)
        names = sorted(key.removesuffix("_features") for key in keys if layout != "detections" or
                       key.endswith("_features"))
        for name in tqdm(names, unit=" images", desc=f"index of {path.name}", disable=None):
            hdf5.alive()
            try:
                entry = self._look(number, file, keys, layout, name)
            except DataError as error:
                wrong(error)
            else:
                yield entry

    def _look(self, number: int, file: h5py.File, keys: set[str], layout: str, name: str) -> Entry:
        where = f"{self._paths[number]}, entry {shown(name)}"
        boxes = details = False
        group, key = file, _NAMES[layout][0].format(name)
        if layout == "detections":
            boxes, details = f"{name}_boxes" in keys, f"{name}_cls_prob" in keys
        elif layout == "groups":
            group, key = hdf5.member_of(file, name), "features"
            members = hdf5.keys_of(group) if isinstance(group, h5py.Group) else []
            if "features" not in members:
                raise DataError(f"{where} has no `features`")
            boxes, details = "boxes" in members, all(column in members for column in _DETAILS.values())
        features = hdf5.dataset_of(group, key)
        if features is None or features.ndim not in (1, 2) or features.dtype.kind != "f":
            raise DataError(f"{where}: expected features of floats, (regions, dimension) or (dimension,); found "
                            f"{features}")
        if 0 in features.shape:
            raise DataError(f"{where} has shape {features.shape}: an image needs at least one region")
        count = features.shape[0] if features.ndim == 2 else 0
        if layout == "arrays":
            boxes = self._box_file is not None and count > 0
        return Entry(name, where, count, features.shape[-1], boxes, details, place=(number,), layout=layout)

    def _image(self, row: int) -> ImageFeatures:
        name, file = self.image_ids[row], self._opened(self._paths[self._places[row, 0]])
        of_regions, of_boxes = (pattern.format(name) for pattern in _NAMES[self._layout])
        features = self._values(row, file, of_regions)
        if self.num_regions is None:
            return ImageFeatures(globals=features)
        beside = file if self._box_file is None or self._layout != "arrays" else self._opened(self._box_file)
        boxes = self._values(row, beside, of_boxes, "fiu") if self._has_boxes else None
        if self._sorted:
            order = self._order(self._probabilities(row, file))
            features, boxes = features[order], None if boxes is None else boxes[order]
        return ImageFeatures(features, boxes)

    def _image_details(self, row: int) -> dict[str, np.ndarray]:
        name, file = self.image_ids[row], self._opened(self._paths[self._places[row, 0]])
        if self._layout == "groups":
            return {ours: self._values(row, file, f"{name}/{column}", "fiu") for ours, column in _DETAILS.items()}
        probabilities = self._probabilities(row, file)
        probabilities = probabilities[self._order(probabilities)]
        return {"scores": probabilities.max(axis=1), "class_ids": probabilities.argmax(axis=1)}

    def _values(self, row: int, file: h5py.File, name: str, types: str = "f") -> np.ndarray:
        """Return a data set of an image, floats as float32; DataError if it is missing, damaged or of another type."""
        group, _, last = name.rpartition("/")
        holder = hdf5.member_of(file, group) if group else file
        data = hdf5.dataset_of(holder, last) if isinstance(holder, h5py.Group) else None
        if data is None or data.dtype.kind not in types:
            raise DataError(f"{self.place(row)}: {file.filename} has no `{name}` of numbers; the file is damaged: "
                            "download it again")
        values = hdf5.values_of(data)
        with np.errstate(over="ignore"):  # what float32 cannot hold is found as not finite
            return values.astype(np.float32, copy=False) if values.dtype.kind == "f" else values

    def _probabilities(self, row: int, file: h5py.File) -> np.ndarray:
        """Return (k, classes) float32 in [0, 1], the probabilities of the classes of each region."""
        found = self._values(row, file, f"{self.image_ids[row]}_cls_prob")
        if found.ndim != 2 or len(found) != self._counts[row] or not found.shape[1] or not np.isfinite(found).all():
            raise DataError(f"{self.place(row)}: `cls_prob` has shape {found.shape} or values that are not finite, "
                            f"expected ({self._counts[row]}, classes): download it again")
        return found

    @staticmethod
    def _order(probabilities: np.ndarray) -> np.ndarray:
        return np.argsort(-probabilities.max(axis=1), kind="stable")

    def _opened(self, path: Path) -> h5py.File:
        files = self._files()
        if path not in files:
            if len(files) >= _MOST_OPEN:
                files.pop(next(iter(files))).close()
            files[path] = hdf5.open_hdf5(path)
        return files[path]


def looks_per_image(file: h5py.File) -> bool:
    """Return whether an HDF5 file may be in one of these layouts, and not in ours."""
    if any(hdf5.attribute_of(file, name) is not None for name in ("format", "version")):
        return False  # ours; if it is damaged or of another version, its own reader says so
    keys = hdf5.keys_of(file)
    if "image_ids" in keys or not keys:
        return False
    first = hdf5.member_of(file, keys[0])
    return keys[0].endswith("_features") or isinstance(first, h5py.Group) or getattr(first, "ndim", 0) in (1, 2)


def _layout_of(path: Path, file: h5py.File, keys: set[str]) -> str:
    if not keys:
        raise DataError(f"{path} is an empty HDF5 file")
    if "pos_boxes" in keys:
        raise DataError(f"{path} has the regions of all images in one data set and their ids in another file (VQA "
                        "code); this layout is not supported: take the TSV or HDF5 from which it was made")
    if any(key.endswith("_features") for key in keys):
        return "detections"
    return "groups" if isinstance(hdf5.member_of(file, min(keys)), h5py.Group) else "arrays"
