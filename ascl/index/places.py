"""Where the file of an indexed image is now: photos and indexes are moved, together or apart."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Literal, NamedTuple

from ascl.index.state import Record

Status = Literal["there", "changed", "unreachable", "gone"]


class Place(NamedTuple):
    """The file of an image."""

    path: Path  # where it is, or where it was
    # `changed`: a file of another size is in its place; `gone`: no file is; `unreachable`: the system does not say,
    # such as for a folder without permission or a network disk that does not answer
    status: Status


def relative_to(folder: Path, path: str) -> str:
    """Return a path relative to the folder of the index; "" on another drive of Windows."""
    try:
        return os.path.relpath(os.path.abspath(path), os.path.realpath(folder))
    except ValueError:
        return ""


def paths_of(record: Record, folder: Path) -> list[str]:
    """Return where the file of an image may be: at its absolute path, and in its place relative to the index."""
    beside = os.path.normpath(os.path.join(os.path.realpath(folder), record.relative)) if record.relative else ""
    return [path for path in dict.fromkeys([record.path, beside]) if path]


def place_of(record: Record, folder: Path) -> Place:
    """Return where the file of an image is. Only its size is compared; nothing is opened."""
    changed = unreachable = None
    for path in paths_of(record, folder):
        try:
            found = os.stat(path)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            continue
        except OSError:
            unreachable = unreachable or path
            continue
        if stat.S_ISREG(found.st_mode):
            if record.size in (-1, found.st_size):
                return Place(Path(path), "there")
            changed = changed or path
    if unreachable:     # it may be there
        return Place(Path(unreachable), "unreachable")
    return Place(Path(changed), "changed") if changed else Place(Path(record.path), "gone")
