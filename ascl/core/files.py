"""Files that are written whole or not at all, whatever kills the writer, and handles that processes do not share."""

from __future__ import annotations

import errno
import os
import platform
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Generic, TypeVar

import psutil

from ascl.core.errors import DataError
from ascl.core.reading import shown

T = TypeVar("T")


def _place() -> str:
    """Return where the numbers of processes hold: the machine's name and, on Linux, the number of the namespace."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # another system, or no /proc
        namespace = ""
    return re.sub("[^0-9A-Za-z-]", "-", platform.node() + "-" + re.sub("[^0-9]", "", namespace)).rstrip("-")


# the place is part of it: machines and containers may share a folder, and each can check only its own processes
_SUFFIX = f".{_place()}.{{}}.tmp"
_TEMPORARY = re.compile(r"\.(.+)" + re.escape(_SUFFIX).replace(r"\{\}", r"(\d+)"))


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OF_A_WRITE = _NO_ROOM | {errno.EROFS}  # whatever file they name
_IN_WORDS = re.compile(r"\(os error (\d+)\)")
_SLACK = 60.0  # seconds by which the clocks of this machine and of a network disk may differ


@contextmanager
def atomic_path(path: str | os.PathLike, *, flush: bool = True) -> Iterator[Path]:
    """Yield a temporary path in the same folder; on success it replaces `path`, on any error it is removed.

    The temporary file is flushed to the disk before the rename, so that after a power cut `path` holds the old or the
    new content, whole. With `flush=False` the caller flushes, once for many files. Temporary files of killed processes
    are removed first.

    Raises:
        DataError: the system refuses to write (full disk, permissions); see `saving`.
    """
    path = Path(path)
    with saving(path):
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
            with suppress(OSError):  # such as a disk that became read-only; the first error says so
                temporary.unlink()
            raise


@contextmanager
def saving(path: str | os.PathLike, kept: str | None = None) -> Iterator[None]:
    """Turn the system's refusal to write `path` into a DataError that names it and says what to do.

    Args:
        path: the final file or folder, which the user knows.
        kept: what has become of it, a clause; None = it is written whole or not at all.

    Raises:
        DataError: the disk is full or read-only, a quota or a limit is reached, or the folder cannot be written.
    """
    path = Path(path)
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        cause = _refusal(error, path)
        if cause is None:
            raise
        if kept is None:
            kept = f"the previous {path.name} is intact" if os.path.lexists(path) else "nothing was written"
        advice = "check the folder and its permissions"
        if cause.errno in _NO_ROOM:
            advice = f"free some space on its disk{room_left(path)}"
        elif cause.errno in (errno.EIO, errno.EROFS):
            advice = "check the disk"
        raise DataError(f"cannot write {shown(path)}: {cause.strerror}; {kept}; {advice}, then run the command again"
                        ) from error


def _refusal(error: BaseException | None, path: Path) -> OSError | None:
    """Return the system's error about writing `path` that `error` is, or that a library wrapped in it; None if none."""
    while error is not None:
        if in_words := _IN_WORDS.search(str(error)):  # as safetensors has it
            return OSError(int(in_words[1]), os.strerror(int(in_words[1])))
        if isinstance(error, OSError) and error.errno is not None:
            names = (error.filename, error.filename2)
            named = [Path(os.fsdecode(name)) for name in names if isinstance(name, str | bytes)]
            if error.errno in _OF_A_WRITE or any(_belongs(one, path) for one in named):
                return error
            if error.errno == errno.EIO and not named:  # a call on an open file
                return error
        error = error.__cause__ or error.__context__
    return None


def _belongs(named: Path, path: Path) -> bool:
    """Return whether a file is `path`, its temporary one, a folder above it, or something inside it."""
    temporary = named.parent == path.parent and named.name.startswith(f".{path.name}.")
    return temporary or named == path or named in path.parents or path in named.parents


def free_space(path: str | os.PathLike) -> int | None:
    """Return the free bytes on the disk of a path that need not exist yet; None if they are unknown."""
    whole = Path(path).absolute()
    try:
        return shutil.disk_usage(next(near for near in (whole, *whole.parents) if near.is_dir())).free
    except (OSError, StopIteration):
        return None


def room_left(path: str | os.PathLike) -> str:
    """Return the free space on the disk of a path for a message, such as " (1.2 MB free)"; "" if it is unknown."""
    free = free_space(path)
    return "" if free is None else f" ({readable(free)} free)"


def require_space(path: str | os.PathLike, needed: int, what: str = "it") -> None:
    """Raise DataError if `needed` bytes of `what` do not fit on the disk of `path`, which need not exist yet.

    Where the free space is unknown, nothing is refused.
    """
    free = free_space(path)
    if free is not None and needed > free:
        raise DataError(f"cannot write {shown(path)}: {what} needs about {readable(needed)}, and {readable(free)} are "
                        "free: free some space on its disk, or choose a place on another one")


def readable(size: int) -> str:
    """Return a number of bytes in a readable unit: 1234567 -> "1.2 MB"."""
    power = sum(size >= 999.5 * 1000**larger for larger in range(4))
    return f"{size / 1000**power:.1f} {' kMGT'[power]}B" if power else f"{size} bytes"


def make_folder(path: str | os.PathLike) -> Path:
    """Return a folder, made with its parents if it does not exist.

    Raises:
        DataError: it cannot be made; see `saving`.
    """
    with saving(path):
        Path(path).mkdir(parents=True, exist_ok=True)
    return Path(path)


def clear_killed(folder: Path) -> dict[str, Path]:
    """Remove the temporary files in `folder` whose writers have ended.

    Those of processes that cannot be seen from here stay: of another machine, another container, or another user.

    Returns:
        Name of the final file -> temporary file, for writers that still run.
    """
    living = {}
    for name in os.listdir(folder) if folder.is_dir() else []:
        if (found := _TEMPORARY.fullmatch(name)) and _sees_writer(folder / name):
            if _still_runs(int(found[2]), folder / name):
                living[found[1]] = folder / name
            else:
                _remove(folder / name)
    return living


def _sees_writer(written: Path) -> bool:
    """Return whether the writer of a file, a process of this place, would be seen if it still ran."""
    try:
        if os.path.islink("/proc/self") and os.readlink("/proc/self") != str(os.getpid()):
            return False  # /proc is another namespace's
        return not hasattr(os, "getuid") or os.getuid() in (0, os.lstat(written).st_uid)  # /proc may hide other users'
    except OSError:
        return False


def _still_runs(process: int, written: Path) -> bool:
    """Return whether the process that wrote a file still runs; systems give the number of an ended one to another."""
    try:
        return psutil.Process(process).create_time() <= os.lstat(written).st_mtime + _SLACK
    except psutil.AccessDenied:
        return True
    except (psutil.NoSuchProcess, OSError):
        return False


def _remove(path: Path) -> None:
    """Remove a file or a folder if the system lets us: clearing is a courtesy, and stops no writer."""
    with suppress(OSError):  # gone meanwhile, or another user's in a folder where each removes only their own
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


@cache
def _clear_once(folder: Path) -> None:
    """Clear a folder once per process: it may hold 100,000 files, each written through `atomic_path`."""
    clear_killed(folder)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write UTF-8 text through `atomic_path`."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def atomic_folder(path: str | os.PathLike) -> Iterator[Path]:
    """Yield an empty folder beside `path`; on success it gets that free name, on any error it is removed.

    Raises:
        DataError: as `atomic_path`.
    """
    path = Path(path)
    with saving(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        clear_killed(path.parent)
        temporary = path.with_name(f".{path.name}{_SUFFIX.format(os.getpid())}")
        temporary.mkdir()
        try:
            yield temporary
            os.replace(temporary, path)
        except BaseException:
            _remove(temporary)
            raise


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
