"""Limits on what one file may unpack to, so that a small damaged or hostile file cannot fill the memory.

Each limit is an environment variable, because it must also reach worker processes: `ASCL_MAX_IMAGE_PIXELS=1e9 ascl
...`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from ascl.core.errors import DataError, SettingsError


@dataclass(frozen=True)
class Limit:
    """The largest size that is accepted, in `unit`; the environment variable `setting` replaces `default`."""

    setting: str
    default: int
    unit: str

    @property
    def most(self) -> int:
        """The limit in force.

        Raises:
            SettingsError: the environment variable is not a positive number.
        """
        text = os.environ.get(self.setting, "")
        try:
            most = int(float(text)) if text else self.default
        except (ValueError, OverflowError):
            most = 0
        if most < 1:
            raise SettingsError(f"{self.setting}={text}: give a positive number of {self.unit}, such as "
                                f"{self.default:.3g}")
        return most

    def check(self, size: int, where: str) -> None:
        """Raise DataError if `size` is above the limit; `where` names the file, and what in it is so large."""
        if size > self.most:
            raise DataError(f"{where}: {size:,} {self.unit}, more than the limit of {self.most:,}; if the file is "
                            f"genuine, set the environment variable {self.setting} to a larger number")


IMAGE_PIXELS = Limit("ASCL_MAX_IMAGE_PIXELS", 256_000_000, "pixels")  # decoded, 4 bytes each; phones take 200e6
TEXT_BYTES = Limit("ASCL_MAX_TEXT_BYTES", 1 << 29, "bytes")  # unpacked; the largest, COCO's captions, are 0.15e9
ARRAY_BYTES = Limit("ASCL_MAX_ARRAY_BYTES", 1 << 33, "bytes")  # unpacked; scores of 5,000 x 25,010 are 0.5e9
CHUNK_BYTES = Limit("ASCL_MAX_CHUNK_BYTES", 1 << 30, "bytes")  # of HDF5, which unpacks whole chunks; ours have 64 KiB
YAML_NODES = Limit("ASCL_MAX_YAML_NODES", 100_000, "values")  # with every alias expanded; settings have about 100
YAML_BYTES = Limit("ASCL_MAX_YAML_BYTES", 1 << 18, "bytes")  # takes seconds to read; settings have 3,000
