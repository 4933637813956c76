"""Files that are opened at their first use and once in each process."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np

from ascl.core.errors import DataError

T = TypeVar("T")


class OncePerProcess(Generic[T]):
    """What `make` gives, made at the first use and once in each process; picklable where `make` is.

    A handle inherited through fork shares its state and its position with the parent.
    """

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._made: tuple[int, T] | None = None

    def __call__(self) -> T:
        if self._made is None or self._made[0] != os.getpid():
            self._made = os.getpid(), self._make()
        return self._made[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"_make": self._make, "_made": None}


class LazyFile:
    """Parts of a large binary file.

    Plain reads, not a memory map: pages of a map that were touched count as memory of the process, so that a pass over
    33 GB looks like, and in a container with a limit is, a program that needs 33 GB.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: OncePerProcess[io.FileIO] = OncePerProcess(partial(io.FileIO, path))

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on.

        Raises:
            DataError: the file ends before, or cannot be read.
        """
        data = bytearray(length)
        self._read_into(memoryview(data), offset)
        return bytes(data)

    def read_array(self, values: np.ndarray, offset: int) -> None:
        """Fill a contiguous array from its bytes in the file; errors as `read`."""
        self._read_into(values.reshape(-1).view(np.uint8).data, offset)

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        try:
            file = self._file()
            file.seek(offset)
            filled = 0
            while filled < len(buffer):  # one call returns 2 GiB at most
                count = file.readinto(buffer[filled:])
                if not count:
                    raise DataError(f"{self.path} ends before byte {offset + filled}, where more was when it was "
                                    "opened: it was changed, start again")
                filled += count
        except OSError as error:
            raise DataError(f"{self.path} cannot be read at byte {offset} ({error})") from error
