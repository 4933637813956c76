"""Reading parts of large files from several processes, without mapping them into memory."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError


class LazyFile:
    """A binary file, opened at its first read and once in each process; picklable.

    Plain reads, not a memory map: pages of a map that were touched count as memory of the process, so that a pass over
    33 GB looks like, and in a container with a limit is, a program that needs 33 GB.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: io.FileIO | None = None
        self._process: int | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_file": None, "_process": None}

    def read(self, offset: int, length: int) -> bytearray:
        """`length` bytes from `offset` on.

        Raises:
            DataError: the file ends before, or cannot be read.
        """
        data = bytearray(length)
        self.read_into(memoryview(data), offset)
        return data

    def read_array(self, values: np.ndarray, offset: int) -> None:
        """Fill a contiguous array from its bytes in the file; errors as `read`."""
        self.read_into(values.reshape(-1).view(np.uint8).data, offset)

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill the buffer from `offset` on; errors as `read`."""
        try:
            file = self._opened()
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

    def _opened(self) -> io.FileIO:
        # A handle inherited through fork shares its position with the parent, so each process opens its own.
        if self._file is None or self._process != os.getpid():
            self._file, self._process = open(self.path, "rb", buffering=0), os.getpid()
        return self._file
