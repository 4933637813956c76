"""The file of an index's vectors: rows one after the other, appended and mapped into memory.

How many of its rows count is written in the database, with a checksum of each batch. A batch is on the disk before the
database counts it; bytes beyond the rows that count are what a killed writer left, and the next one cuts them off.
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
    """Return the name of the file that holds the vectors of a state."""
    return f"vectors-{state.layout:04d}.bin"


def map_vectors(folder: Path, state: State) -> np.ndarray:
    """Return the rows that count, (rows, dimension), mapped into memory; DataError: the file is missing or short."""
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
    """Write parts behind the rows that count, flushed to the disk; returns (first row, rows, checksum) of each."""
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
    """Return the CRC-32 of the bytes of rows."""
    return zlib.crc32(np.ascontiguousarray(rows).data)


def row_bytes(state: State) -> int:
    return state.dimension * np.dtype(VECTOR_TYPES[state.metric]).itemsize


def sync_folder(folder: Path) -> None:
    """Flush the names in a folder to the disk; systems that cannot open a folder have no such thing."""
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
