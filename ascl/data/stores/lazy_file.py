"""Read parts of a large file from several processes."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np

from ascl.core.errors import DataError
from ascl.core.files import OncePerProcess


class LazyFile:
    """A large binary file that is read in parts.

    It uses plain reads, not a memory map: touched pages of a map count as memory of the process, so a pass over 33 GB
    would look like a program that needs 33 GB, and be killed as one in a container with a memory limit.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: OncePerProcess[io.FileIO] = OncePerProcess(partial(io.FileIO, path))

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; a DataError if the file ends earlier or cannot be read."""
        data = bytearray(length)
        self._read_into(memoryview(data), offset)
        return bytes(data)

    def read_array(self, values: np.ndarray, offset: int) -> None:
        """Fill a contiguous array with bytes from `offset` on; errors are those of `read`."""
        self._read_into(values.reshape(-1).view(np.uint8).data, offset)

    def _read_into(self, buffer: memoryview, offset: int) -> None:
        try:
            file = self._file()
            file.seek(offset)
            filled = 0
            while filled < len(buffer):  # one call returns at most 2 GiB
                count = file.readinto(buffer[filled:])
                if not count:
                    raise DataError(f"{self.path} ends before byte {offset + filled}: it was changed while open; run "
                                    "the program again")
                filled += count
        except OSError as error:
            raise DataError(f"{self.path} cannot be read at byte {offset} ({error}): check the disk") from error
