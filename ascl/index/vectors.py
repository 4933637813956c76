"""The file of an index's vectors: consecutive rows, appended and mapped into memory.

The database stores how many of its rows count, and a checksum of each batch. A batch is on the disk before the database
counts it. Bytes beyond the counted rows are left from a killed writer, and the next writer truncates them.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.core.reading import reading, shown
from ascl.index.state import RESTORE, State, damaged

VECTOR_TYPES: dict[str, Any] = {"ip": np.float32, "hamming": np.uint8}
Batch = tuple[int, int, int]    # first row, rows, checksum
NO_CHECKSUM = -1                # no CRC-32 is negative


def vectors_file(state: State) -> str:
    """Return the name of the file with the vectors of a state."""
    return f"vectors-{state.layout:04d}.bin"


def map_vectors(folder: Path, state: State) -> np.ndarray:
    """Return the counted rows, (rows, dimension), mapped into memory; DataError if the file is missing.

    Rows that a truncated file lacks are zero, and do not have the checksums of their batches.
    """
    if not state.rows:
        return np.empty((0, state.dimension), VECTOR_TYPES[state.metric])
    path = folder / vectors_file(state)
    if not path.exists():
        raise damaged(path, "the file is missing")
    with reading(path, "the vectors of an index", RESTORE):
        held = min(path.stat().st_size // row_bytes(state), state.rows)
        shape = (held, state.dimension)
        vectors = np.asarray(np.memmap(path, VECTOR_TYPES[state.metric], "r", shape=shape)) if held else np.empty(shape)
        if held == state.rows:
            return vectors
        padded = np.zeros((state.rows, state.dimension), VECTOR_TYPES[state.metric])
        padded[:held] = vectors
        return padded


def append_vectors(folder: Path, state: State, parts: Iterable[np.ndarray]) -> list[Batch]:
    """Write parts after the counted rows, flush them to the disk, and return the batches.

    Raises:
        DataError: the disk is full or fails; the counted rows are as they were.
    """
    path = folder / vectors_file(state)
    new = not path.exists()
    batches, first = [], state.rows
    try:
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
    except OSError as error:
        with suppress(OSError):     # a full disk gets its space back
            os.truncate(path, state.rows * row_bytes(state))
        raise DataError(f"{shown(path)}: cannot be written ({error.strerror}); the index is as it was before this "
                        "change. Free space on the disk, then run the same again") from error
    return batches


class CheckedVectors:
    """The counted rows of an index, each batch compared with its checksum before it is used for the first time.

    Attributes:
        vectors: (n, d), mapped into memory.
        left_out: numbers of the rows that are found to be damaged so far, ascending, int64.
        tiled: whether every row is in exactly one batch; if not, the list of batches is damaged.
    """

    def __init__(self, vectors: np.ndarray, batches: Sequence[Batch], known: dict[Batch, bool]) -> None:
        """`known`: batch -> whether it is intact, as far as it is known; it is kept up to date."""
        self.vectors, self._known = vectors, known
        self.left_out = np.empty(0, np.int64)
        self._batches = [batch for batch in batches if 0 <= batch[0] < batch[0] + batch[1] <= len(vectors)]
        self._firsts = np.array([first for first, _, _ in self._batches], np.int64)
        self._seen = np.zeros(len(self._batches), bool)
        ends = self._firsts + np.array([rows for _, rows, _ in self._batches], np.int64)
        self.tiled = np.array_equal([0, *ends], [*self._firsts, len(vectors)])
        if not self.tiled:     # the list of batches is damaged: only rows of intact batches count
            covered = np.zeros(len(vectors), bool)
            for batch in self._batches:
                if self._is_intact(batch):
                    covered[batch[0] : batch[0] + batch[1]] = True
            self.left_out = np.flatnonzero(~covered)

    def check(self, rows: np.ndarray | None = None, *, first: int = 0) -> None:
        """Check the batches that hold these rows; None = all rows from `first` on."""
        if not self.tiled:
            return
        if rows is None:
            wanted = np.arange(max(0, int(np.searchsorted(self._firsts, first, "right")) - 1), len(self._batches))
        else:
            wanted = np.unique(np.searchsorted(self._firsts, rows, "right") - 1)
        for place in wanted[~self._seen[wanted]]:
            self._seen[place] = True
            batch = self._batches[place]
            if not self._is_intact(batch):
                self.left_out = np.union1d(self.left_out, np.arange(batch[0], batch[0] + batch[1]))

    def batches(self) -> list[Batch]:
        """Return batches that hold every row once; rows whose checksum is lost are in batches of `NO_CHECKSUM`."""
        if self.tiled:
            return self._batches
        lost = [(first, end - first, NO_CHECKSUM) for first, end in ranges_of(self.left_out)]
        kept, end = list[Batch](), 0
        for batch in sorted([*(one for one in self._batches if self._is_intact(one)), *lost]):
            if batch[0] >= end:
                kept.append(batch)
                end = batch[0] + batch[1]
        return kept

    def _is_intact(self, batch: Batch) -> bool:
        if batch not in self._known:
            self._known[batch] = checksum_of(self.vectors[batch[0] : batch[0] + batch[1]]) == batch[2]
        return self._known[batch]


def ranges_of(rows: np.ndarray) -> list[tuple[int, int]]:
    """Return ascending row numbers as ranges (first, end), the end not included."""
    parts = np.split(rows, np.flatnonzero(np.diff(rows) != 1) + 1) if len(rows) else []
    return [(int(part[0]), int(part[-1]) + 1) for part in parts]


def checksum_of(rows: np.ndarray) -> int:
    """Return the CRC-32 of the rows' bytes."""
    return zlib.crc32(np.ascontiguousarray(rows).data)


def checksum_of_file(path: Path) -> int:
    """Return the CRC-32 of a file; `OSError` if it cannot be read."""
    checksum = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


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
