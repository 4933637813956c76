"""The file of an index's vectors: consecutive rows, appended and mapped into memory.

The database stores how many of its rows count, and a checksum of each batch. A batch is on the disk before the database
counts it. Bytes beyond the counted rows are left from a killed writer, and the next writer truncates them.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ascl.index.records import State, damaged

VECTOR_TYPES: dict[str, Any] = {"ip": np.float32, "hamming": np.uint8}


def vectors_file(state: State) -> str:
    """Return the name of the file with the vectors of a state."""
    return f"vectors-{state.layout:04d}.bin"


def map_vectors(folder: Path, state: State) -> np.ndarray:
    """Return the counted rows, (rows, dimension), mapped into memory; DataError if the file is missing or too short."""
    if not state.rows:
        return np.empty((0, state.dimension), VECTOR_TYPES[state.metric])
    path = folder / vectors_file(state)
    try:
        held = path.stat().st_size // row_bytes(state)
        if held < state.rows:
            raise damaged(path, f"it ends after {held:,} of {state.rows:,} rows")
        return np.asarray(np.memmap(path, VECTOR_TYPES[state.metric], "r", shape=(state.rows, state.dimension)))
    except FileNotFoundError as error:
        raise damaged(path, "the file is missing") from error


def append_vectors(folder: Path, state: State, parts: Iterable[np.ndarray]) -> list[tuple[int, int, int]]:
    """Write parts after the counted rows, flush them to the disk, and return (first row, rows, checksum) of each."""
    path = folder / vectors_file(state)
    new = not path.exists()
    batches, first = [], state.rows
    with open(path, "w+b" if new else "r+b") as file:
        file.truncate(first * row_bytes(state))
        file.seek(0, os.SEEK_END)
        for part in parts:
            file.write(np.ascontiguousarray(part).data)
            batches.append((first, len(part), checksum_of(part)))
            first += len(part)
        file.flush()
        os.fsync(file.fileno())
    if new:
        sync_folder(folder)
    return batches


def checksum_of(rows: np.ndarray) -> int:
    """Return the CRC-32 of the rows' bytes."""
    return zlib.crc32(np.ascontiguousarray(rows).data)


def row_bytes(state: State) -> int:
    return state.dimension * np.dtype(VECTOR_TYPES[state.metric]).itemsize


def sync_folder(folder: Path) -> None:
    """Flush the file names of a folder to the disk, on systems that can open a folder."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
