"""Write our feature file: its frame and data sets, and read back its provenance; shared by all programs that do."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ascl.core.errors import DataError
from ascl.data.stores.base import NAMES
from ascl.data.stores.hdf5 import FORMAT, VERSION

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


def provenance_of(path: Path) -> dict[str, Any]:
    """Return the provenance of a finished file; a DataError if it is not a file of ours."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") == FORMAT:
                return json.loads(file.attrs["provenance"])
    except (OSError, KeyError, json.JSONDecodeError):
        pass
    raise DataError(f"{path} exists and is not a feature file of this project; choose another output file or delete it")


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    """Return the shape of each data set with a row per image."""
    with h5py.File(path, "r") as file:
        return {name: file[name].shape for name in file if name not in NAMES.values()}
