"""What an index knows: its committed state, and a record of each image."""

from __future__ import annotations

import math
import re
import struct
import zlib
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from ascl.core.errors import DataError
from ascl.core.reading import parse_json, shown
from ascl.index import Metric

FORMAT, VERSION = "ascl-index", 3
COMPRESSED_FILE = re.compile(r"\d{8,}-compressed\.faiss")
MOST = 2**53    # numbers up to here are exact in JSON and SQLite


@dataclass(frozen=True)
class State:
    """The committed state of an index."""

    model: dict[str, Any]  # the model that made the vectors, fit for JSON, with a `name`
    metric: Metric  # `ip`: float32 unit rows, by inner product; `hamming`: bits in uint8, by the share that agrees
    dimension: int  # floats (`ip`) or bytes (`hamming`) per row
    exact_up_to: int  # up to this number of images the search is exact
    change: int = 0  # number of this state
    layout: int = 0  # number of compactions that moved rows; part of the name of the vectors' file
    added: int = 0  # rows ever added
    rows: int = 0  # rows of the vectors' file, including removed ones
    removed: int = 0  # removed rows among them
    removed_checksum: int = 0  # CRC-32 of their numbers, in the order of removal (`checksum_of_numbers`)
    compressed: dict[str, Any] | None = None  # how it was built, its `file`, `checksum`, and the `rows` it covers
    calibration: dict[str, Any] | None = None  # see `ascl.index.calibration`
    arrays: dict[str, int] | None = None  # name -> CRC-32 of the calibration's arrays

    @property
    def images(self) -> int:
        """Number of images."""
        return self.rows - self.removed

    def after(self, **changes: Any) -> State:
        """Return the next state, with these changes."""
        return replace(self, change=self.change + 1, **changes)


def read_state(text: str, path: Path) -> tuple[State, int]:
    """Return the state that a JSON text in the database `path` holds, and its version, which may be older.

    Raises:
        DataError: the text is of another format, a newer version or another shape.
    """
    held = parse_json(text, path, remedy=RESTORE)
    form, version = held.pop("format", None), held.pop("version", None)
    if form != FORMAT:
        raise DataError(f"{path} is not an index of images: its format is {form!r}, not {FORMAT!r}")
    if not _is_count(version):
        raise damaged(path, f"its version is {version!r}")
    if version > VERSION:
        raise DataError(f"{path.parent} is an index of version {version}; this program reads up to {VERSION}: "
                        "update ascl")
    try:
        state = State(**held)
    except TypeError as error:
        raise damaged(path, str(error)) from error
    counts = ("dimension", "exact_up_to", "change", "layout", "added", "rows", "removed", "removed_checksum")
    wrong = [name for name in counts if not _is_count(getattr(state, name))]
    wrong += [one.name for one in fields(State)[-3:] if not isinstance(getattr(state, one.name), dict | None)]
    if wrong or state.dimension < 1 or state.removed > state.rows or state.metric not in ("ip", "hamming"):
        raise damaged(path, f"its state has impossible values{': ' * bool(wrong)}{', '.join(wrong)}")
    if not isinstance(state.model, dict):
        raise damaged(path, "its state names no model")
    about = state.compressed
    if about is not None and not (COMPRESSED_FILE.fullmatch(str(about.get("file")))    # nothing outside the folder
                                  and all(_is_count(about.get(name)) for name in ("rows", "probes"))):
        raise damaged(path, "its state describes no compressed index")
    return state, version


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= MOST


class Record(NamedTuple):
    """What the index knows about an image besides its vector."""

    id: str
    path: str  # absolute path of the file that was added
    relative: str  # the same, relative to the folder of the index
    sha256: bytes  # digest of the file
    size: int  # size of the file in bytes, -1 = unknown
    norm: float  # content norm, NaN if the method has none


def record_checksum(row: Any, image: Any, path: Any, relative: Any, sha256: Any, size: Any, norm: Any) -> int | None:
    """Return the CRC-32 of a record's columns; None if they have other types, which only damage gives them."""
    if not (isinstance(row, int) and isinstance(image, str) and isinstance(size, int)
            and isinstance(norm, float | None) and all(isinstance(one, bytes) for one in (path, relative, sha256))):
        return None
    name = image.encode("utf-8", "surrogatepass")
    number = math.nan if norm is None or math.isnan(norm) else norm
    head = struct.pack("<qqdQQQ", row, size, number, len(name), len(path), len(relative))
    return zlib.crc32(b"".join([head, name, path, relative, sha256]))


RESTORE = "restore it, or index the images again"


def damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{shown(path)}: a file of the index is damaged ({reason}). "
                     f"{RESTORE[0].upper()}{RESTORE[1:]}")
