"""Write our feature file: its frame and data sets, and read back its provenance; shared by all programs that do."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ascl.core import hdf5
from ascl.core.errors import DataError
from ascl.data.stores.base import NAMES
from ascl.data.stores.hdf5 import FORMAT, VERSION, provenance_in

CHUNK_BYTES = 1 << 16


def write_frame(file: h5py.File, image_ids: list[str], names: dict[str, list[str]], provenance: dict[str, Any]) -> None:
    """Write everything but the data sets with a row per image."""
    file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
    file.attrs["provenance"] = json.dumps(provenance)
    for name, texts in {"image_ids": image_ids, **names}.items():
        file.create_dataset(name, data=texts, dtype=h5py.string_dtype("utf-8"))


def create_rows(file: h5py.File, name: str, like: np.ndarray | h5py.Dataset, total: int) -> h5py.Dataset:
    """Create a data set of `total` rows, in chunks of about 64 KiB (at least one image), for quick random reads."""
    row = like.shape[1:]
    rows = min(total, max(1, CHUNK_BYTES // max(1, like.dtype.itemsize * math.prod(row))))
    return file.create_dataset(name, (total, *row), like.dtype, chunks=(rows, *row))


def provenance_of(path: Path, remedy: str = "choose another output file") -> dict[str, Any]:
    """Return the provenance of a finished file, with its `settings` and the `skipped` images.

    Raises:
        DataError: the file is damaged or not of ours; the message ends with `remedy`.
    """
    hdf5.try_in_child("provenance", [path], partial(_provenance_of, path, remedy), remedy)
    made = _provenance_of(path, remedy)
    if made is None or not isinstance(made.get("settings"), dict) or not isinstance(made.get("skipped"), list):
        raise DataError(f"{path} exists and is not a feature file of this project: {remedy}")
    return made


def _provenance_of(path: Path, remedy: str) -> dict[str, Any] | None:
    with hdf5.open_hdf5(path, remedy, "a feature file of this project") as file:
        return provenance_in(file) if hdf5.attribute_of(file, "format") == FORMAT else None


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each data set with a row per image."""
    with h5py.File(path, "r") as file:
        return {name: file[name].shape for name in file if name not in NAMES.values()}
