"""Files that are written whole or not at all, whatever kills the writer, and handles that processes do not share."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

T = TypeVar("T")

# the machine's name is part of it: machines may share a folder, and each can check only its own processes
_SUFFIX = f".{re.sub('[^0-9A-Za-z-]', '-', platform.node())}.{{}}.tmp"
_TEMPORARY = re.compile(r"\.(.+)" + re.escape(_SUFFIX).replace(r"\{\}", r"(\d+)"))


@contextmanager
def atomic_path(path: str | os.PathLike, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path`, on any error it is removed.

    The temporary file is flushed to the disk before the rename, so that after a power cut `path` holds the old or the
    new content, whole. With `flush=False` the caller flushes, once for many files. Temporary files of killed processes
    are removed first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    _clear_once(path.parent.absolute())
    temporary = path.with_name(f".{path.name}{_SUFFIX.format(os.getpid())}")
    try:
        yield temporary
        if flush:
            with open(temporary, "rb+") as written:
                os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def clear_killed(folder: Path) -> dict[str, Path]:
    """Remove the temporary files in `folder` whose writers, processes of this machine, have ended.

    Returns:
        Name of the final file -> temporary file, for writers that still run.
    """
    living = {}
    for name in os.listdir(folder) if folder.is_dir() else []:
        if found := _TEMPORARY.fullmatch(name):
            if psutil.pid_exists(int(found[2])):
                living[found[1]] = folder / name
            else:
                (folder / name).unlink(missing_ok=True)
    return living


@cache
def _clear_once(folder: Path) -> None:
    """Clear a folder once per process: it may hold 100,000 files, each written through `atomic_path`."""
    clear_killed(folder)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text through `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


class OncePerProcess(Generic[T]):
    """A value that each process makes for itself, with `make`, on first use; picklable if `make` is.

    For open files: a handle inherited through fork would share its position with the parent's.
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
