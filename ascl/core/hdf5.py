"""HDF5 files: read without trusting what they promise or where they lead, and write so that a full disk is an error.

A function that reads takes the file's remedy, what the user should do if the file is damaged, as `reading` does.
"""

from __future__ import annotations

import io
import math
import os
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import h5py
import numpy as np

from ascl.core.errors import DataError
from ascl.core.limits import ARRAY_BYTES, CHUNK_BYTES, TEXT_BYTES
from ascl.core.reading import DOWNLOAD_AGAIN, reading, require_file, shown

KIND = "an HDF5 file"
STUCK = 5.0  # seconds that one step of a sound file never takes
_passed: set[tuple] = set()  # what was looked for, and path, bytes and time of modification of each file
_is_child = False
_BYTES_AT_ONCE = 1 << 26
_TEXTS_AT_ONCE = 1000  # many texts of a hostile file may be one and the same long one


def open_hdf5(path: str | os.PathLike, remedy: str = DOWNLOAD_AGAIN, what: str = KIND) -> h5py.File:
    """Open a file for reading; DataError if it is not a sound HDF5 file. what: the expected kind, with its article."""
    with reading(path, what, remedy):
        return h5py.File(path, "r")


def try_in_child(what: str, paths: Sequence[str | os.PathLike], look: Callable[[], object],
                 remedy: str = DOWNLOAD_AGAIN) -> None:
    """Run `look`, which reads `what` in `paths`, in a forked child first.

    On some damaged files libhdf5 never returns, or crashes. The child may compute `STUCK` seconds between two calls of
    `alive`; waiting for a disk does not count. What `look` returns or raises is ignored: the caller then runs it again,
    in this process. Files that have passed are not tried again, nor is anything on a system without fork.

    Raises:
        DataError: a file does not exist, or the child was killed.
    """
    global _is_child
    about = [require_file(path) for path in paths]
    stamp = what, *((os.path.abspath(path), one.st_size, one.st_mtime_ns)
                    for path, one in zip(paths, about, strict=True))
    if stamp in _passed or _is_child or not hasattr(os, "fork"):
        return
    try:
        child = os.fork()
    except OSError:     # a system that grants no second process of this size
        return
    if not child:
        _is_child = True
        with suppress(BaseException):
            signal.signal(signal.SIGPROF, signal.SIG_DFL)  # it ends the process
            alive()
            look()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status:
        how = "never returns from" if status == -signal.SIGPROF else f"ends the process (status {status}) on"
        several = f" or one of {len(paths) - 1} others" if len(paths) > 1 else ""
        raise DataError(f"{shown(paths[0])}{several} is damaged: the HDF5 library {how} it: {remedy}")
    _passed.add(stamp)


def alive() -> None:
    """Say, within `try_in_child`, that a step has ended; call it once for each of many."""
    if _is_child:
        signal.setitimer(signal.ITIMER_PROF, STUCK)


def keys_of(group: h5py.Group, remedy: str = DOWNLOAD_AGAIN) -> list[str]:
    """Return the names in a group, sorted; DataError if the group is damaged."""
    with reading(group.file.filename, KIND, remedy):
        return sorted(group)


def member_of(group: h5py.Group, name: str, remedy: str = DOWNLOAD_AGAIN) -> h5py.Group | h5py.Dataset | None:
    """Return what a group holds under a name; None if it holds nothing.

    Raises:
        DataError: it is a link, which may lead to any other file; or the group is damaged.
    """
    with reading(group.file.filename, KIND, remedy):
        link = group.get(name, getlink=True)
        if link is None:
            return None
        if not isinstance(link, h5py.HardLink):
            raise DataError(f"{shown(group.file.filename)}: `{name}` is a link to {link.path!r}"
                            f"{f' in {link.filename!r}' if isinstance(link, h5py.ExternalLink) else ''}, and links are "
                            "not followed: copy the values into the file")
        return group[name]


def dataset_of(group: h5py.Group, name: str, remedy: str = DOWNLOAD_AGAIN) -> h5py.Dataset | None:
    """Return a data set whose values are all in this file; None if there is nothing of this name.

    Raises:
        DataError: it is no data set, its values are in another file or were never written, or it is compressed in
            chunks above `limits.CHUNK_BYTES`.
    """
    data = member_of(group, name, remedy)
    if data is None:
        return None
    where = f"{shown(group.file.filename)}: `{name}`"
    if not isinstance(data, h5py.Dataset):
        raise DataError(f"{where} is a group, expected a data set: {remedy}")
    with reading(group.file.filename, KIND, remedy):
        made = data.id.get_create_plist()
        layout, shape, bytes_each = made.get_layout(), data.shape, data.dtype.itemsize
        elsewhere = layout == h5py.h5d.VIRTUAL or made.get_external_count()
        chunk = made.get_chunk() if layout == h5py.h5d.CHUNKED else ()
        if chunk:
            stored = data.id.get_num_chunks()
            expected = math.prod(-(-length // step) for length, step in zip(shape, chunk, strict=True))
        elif shape is not None:
            stored, expected = data.id.get_storage_size(), math.prod(shape) * bytes_each
    if shape is None:
        raise DataError(f"{where} is empty: {remedy}")
    if elsewhere:
        raise DataError(f"{where} takes its values from other files, which is not supported: copy them into the file")
    CHUNK_BYTES.check(math.prod(chunk) * bytes_each if chunk else 0, f"{where} is stored in chunks that are too large")
    if stored < expected:  # HDF5 would give zeros
        raise DataError(f"{where} has shape {shape}, but only {stored:,} of {expected:,} "
                        f"{'chunks' if chunk else 'bytes'} were written: {remedy}")
    return data


def values_of(data: h5py.Dataset, remedy: str = DOWNLOAD_AGAIN) -> np.ndarray:
    """Return all values of a data set; DataError if it is damaged or larger than `limits.ARRAY_BYTES`."""
    ARRAY_BYTES.check(data.size * data.dtype.itemsize, f"{shown(data.file.filename)}: `{data.name}`")
    if data.ndim == 0:
        with reading(data.file.filename, KIND, remedy):
            return np.asarray(data[()])
    values = np.empty(data.shape, dtype=data.dtype)
    step = max(1, _BYTES_AT_ONCE // max(1, data.dtype.itemsize * math.prod(data.shape[1:])))
    for start in range(0, len(data), step):
        alive()
        with reading(data.file.filename, KIND, remedy):
            values[start : start + step] = data[start : start + step]
    return values


def texts_of(data: h5py.Dataset, remedy: str = DOWNLOAD_AGAIN) -> list[str]:
    """Return the texts of a data set (N,).

    Raises:
        DataError: it does not hold UTF-8 texts in one dimension, is damaged, or larger than `limits.TEXT_BYTES`.
    """
    where = f"{shown(data.file.filename)}: `{data.name}`"
    with reading(data.file.filename, KIND, remedy):
        fit = h5py.check_string_dtype(data.dtype) is not None and data.ndim == 1
        found = f"{data.dtype} {data.shape}"
    if not fit:
        raise DataError(f"{where} is {found}, expected texts (N,)")
    texts: list[str] = []
    size = len(data) * data.dtype.itemsize
    TEXT_BYTES.check(size, where)
    for start in range(0, len(data), _TEXTS_AT_ONCE):
        alive()
        with reading(data.file.filename, KIND, remedy):
            try:
                block = data.asstr("utf-8")[start : start + _TEXTS_AT_ONCE].tolist()
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: a text is not UTF-8 ({error}): {remedy}") from error
        size += sum(map(len, block))
        TEXT_BYTES.check(size, where)
        texts += block
    return texts


def attribute_of(file: h5py.File, name: str, remedy: str = DOWNLOAD_AGAIN) -> Any:
    """Return an attribute of the root, a text or a number as Python's own type; None if there is none of this name."""
    with reading(file.filename, KIND, remedy):
        value = file.attrs.get(name)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "backslashreplace")
    return value.item() if isinstance(value, np.generic) else value


class NewHdf5(h5py.File):
    """A new file that is written through Python: libhdf5 ends in a segmentation fault where its own writes fail.

    After the first write that fails, nothing more is written and libhdf5 is told that all is well. `check` and `close`
    raise the error, so call `check` from time to time; use it inside `atomic_path`.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self._sink = _Sink(path)
        try:
            super().__init__(self._sink, "w")
        except BaseException:
            self._sink.close()
            raise

    def check(self) -> None:
        """Raise the OSError of the first write that failed, if any."""
        if self._sink.error is not None:
            raise self._sink.error

    def close(self) -> None:
        super().close()
        self._sink.close()
        self.check()


class _Sink(io.RawIOBase):
    """A file that keeps the error of its first write that fails, and accepts and forgets everything after it."""

    def __init__(self, path: str | os.PathLike) -> None:
        self._file = open(path, "w+b", buffering=0)
        self._position = self._size = 0
        self.error: OSError | None = None

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        filled = os.preadv(self._file.fileno(), [view], self._position)
        view[filled:] = bytes(len(view) - filled)  # what was never written, after an error
        self._position += len(view)
        return len(view)

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        written = 0
        while self.error is None and written < len(view):
            try:
                written += os.pwrite(self._file.fileno(), view[written:], self._position + written)
            except OSError as error:
                self.error = error
        self._position += len(view)
        self._size = max(self._size, self._position)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        self._size = self._position if size is None else size
        if self.error is None:
            try:
                self._file.truncate(self._size)
            except OSError as error:
                self.error = error
        return self._size

    def close(self) -> None:
        self._file.close()
        super().close()
