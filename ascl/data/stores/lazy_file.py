"""Parts of large files, read from several processes."""

from __future__ import annotations

import io
from functools import partial
from pathlib import Path

import numpy as np

from ascl.core.errors import DataError
from ascl.core.files import OncePerProcess


class LazyFile:
    """Parts of a large binary file.

    Plain reads, not a memory map: pages of a map that were touched count as memory of the process, so that a pass over
    33 GB looks like, and in a container with a limit is, a program that needs 33 GB.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: OncePerProcess[io.FileIO] = OncePerProcess(partial(io.FileIO, path))

    def read(self, offset: int, length: int) -> bytes:
        """Return `length` bytes from `offset` on; a DataError where the file ends before, or cannot be read."""
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
                    raise DataError(f"{self.path} ends before byte {offset + filled}: it was changed, start again")
                filled += count
        except OSError as error:
            raise DataError(f"{self.path} cannot be read at byte {offset} ({error})") from error
