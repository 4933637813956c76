"""Read what users give: whatever a library raises becomes a DataError that names the file, and sizes have limits."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import zipfile
from collections.abc import Container, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from ascl.core.errors import DataError
from ascl.core.limits import ARRAY_BYTES, TEXT_BYTES, Limit

DOWNLOAD_AGAIN = "download it again"
MISSING = "missing"
_KINDS = {stat.S_IFDIR: "a folder", stat.S_IFIFO: "a named pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device",
          stat.S_IFBLK: "a device"}


def require_file(path: str | os.PathLike, what: str = "file", remedy: str = "") -> os.stat_result:
    """Return the status of a regular file. Nothing else is ever opened: reading a pipe or a device may not end.

    Args:
        what: the expected kind of file, without article. remedy: what to do if there is none, an imperative.

    Raises:
        DataError: the file does not exist, is a link that leads nowhere or in a circle, or is not a regular file.
    """
    if (kind := irregular(path)) == MISSING:
        raise DataError(f"no {what} {shown(path)}{f': {remedy}' if remedy else ''}")
    if kind is not None:
        raise DataError(f"{shown(path)} is {kind}, expected a {what}")
    return os.stat(path)


def irregular(path: str | os.PathLike) -> str | None:
    """Return what a path is if it is no regular file, as in "a named pipe" or "missing"; None for a regular file."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return "a link to a file that does not exist" if os.path.islink(path) else MISSING
    except (OSError, ValueError) as error:  # a ValueError is about NUL in the name
        return f"a path that cannot be followed ({getattr(error, 'strerror', None) or error})"
    return None if stat.S_ISREG(mode) else _KINDS.get(stat.S_IFMT(mode), "not a regular file")


def shown(path: str | os.PathLike) -> str:
    """Return a path as one line that can be printed and stored in any encoding.

    Bytes that are not UTF-8 become `\\xe9`, line breaks `\\n`.
    """
    text = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\N{REPLACEMENT CHARACTER}", os.fspath(path))  # of no byte
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


@contextmanager
def reading(path: str | os.PathLike, what: str, remedy: str = DOWNLOAD_AGAIN) -> Iterator[None]:
    """Turn whatever a library raises while it reads the file `path` into a DataError.

    Libraries raise a dozen unrelated types for damaged files. Only calls of such a library belong into the block, so
    that no fault of our own is taken for one of the file's.

    Args:
        path: of the file; a folder or a device is refused before the block is entered.
        what: the expected kind of file with its article, as in "a .npy file".
        remedy: what the user should do, an imperative.

    Raises:
        DataError: the file does not exist, cannot be read, is damaged or is of another kind.
    """
    size = require_file(path, remedy=remedy).st_size
    try:
        yield
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(f"{shown(path)} needs more memory than there is: {remedy}, if it should be smaller") from error
    except Exception as error:
        # an invalid argument is a position outside the file, which a damaged one names
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL) and error.strerror:
            problem = f"cannot be read ({error.strerror}); check the disk and permissions"
            raise DataError(f"{shown(path)} {problem}") from error
        raise DataError(f"{shown(path)} ({size:,} bytes) is truncated, damaged or not {what} ({reason(error)}): "
                        f"{remedy}") from error


def reason(error: BaseException) -> str:
    """Return the first line of an exception's message, or its type if it has none, in at most 300 characters."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    text = f"{type(error).__name__}: {line}" if isinstance(error, LookupError) or not line else line
    return text.encode("utf-8", "backslashreplace").decode()[:300]


def read_text(path: str | os.PathLike, what: str = "a text file", remedy: str = DOWNLOAD_AGAIN) -> str:
    """Return the content of a UTF-8 file, without byte order mark.

    Raises:
        DataError: as `reading`; or the file is larger than `limits.TEXT_BYTES`, or not UTF-8 (the message names the
            row).
    """
    TEXT_BYTES.check(require_file(path).st_size, shown(path))
    with reading(path, what, remedy):
        data = Path(path).read_bytes()
    return decode(data, path)


def decode(data: bytes, path: str | os.PathLike) -> str:
    """Return UTF-8 bytes of a file as text, without byte order mark; DataError names the first row that is not."""
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{shown(path)}, row {row}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error


def read_json(path: str | os.PathLike, kind: type | None = dict, remedy: str = DOWNLOAD_AGAIN) -> Any:
    """Return the content of a JSON file.

    Args:
        kind: the type that the whole content must have; None = any.

    Raises:
        DataError: as `read_text`; or the file is not JSON, nested too deep, or of another type.
    """
    return parse_json(read_text(path, "JSON", remedy), path, kind, remedy)


def parse_json(text: str, where: str | os.PathLike, kind: type | None = dict, remedy: str = DOWNLOAD_AGAIN) -> Any:
    """Return the value of a JSON text; `where` names its file, and its row if it is one of many."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:  # a ValueError is also a number of more than 4,300 digits
        raise DataError(f"{shown(where)} is truncated or not JSON ({reason(error)}): {remedy}") from error
    if kind is not None and not isinstance(value, kind):
        raise DataError(f"{shown(where)}: expected {_JSON_NAMES[kind]}, found {json_kind(value)}: {remedy}")
    return value


def json_kind(value: Any) -> str:
    """Return what a value of a JSON or YAML file is, in words, for messages."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return f"the number {str(value)[:20]}" if abs(value) < 1e300 else "a number that is not finite or too large"
    return _JSON_NAMES.get(type(value), type(value).__name__)


_JSON_NAMES = {dict: "a JSON object", list: "a JSON list", str: "a text", int: "a number", float: "a number",
               bool: "true or false", type(None): "null"}


class ArrayHeader(NamedTuple):
    """What the header of a .npy file promises; `offset` is where the values begin."""

    shape: tuple[int, ...]
    fortran_order: bool
    dtype: np.dtype
    offset: int


def array_header(file: IO[bytes], size: int) -> ArrayHeader:
    """Return the header of an array in .npy format; call in `reading`, before any library allocates what it promises.

    Args:
        file: at its beginning.
        size: of the file, or of the member of an archive, in bytes.

    Raises:
        ValueError: the header is damaged, promises other than `size` bytes, or the array holds pickled objects.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"unknown version {version} of the .npy format")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    header = ArrayHeader(*read(file), file.tell())
    if header.dtype.hasobject:
        raise ValueError("it holds pickled objects, which are never loaded")
    promised = math.prod(header.shape) * header.dtype.itemsize
    if any(length < 0 for length in header.shape) or promised != size - header.offset:
        raise ValueError(f"the header promises shape {header.shape} of {header.dtype}, {promised:,} bytes, and "
                         f"{size - header.offset:,} bytes follow")
    return header


def read_array(path: str | os.PathLike, remedy: str = DOWNLOAD_AGAIN) -> np.ndarray:
    """Return the array of an .npy file; pickled objects are refused.

    Raises:
        DataError: as `reading`; or the array is larger than `limits.ARRAY_BYTES`.
    """
    size = require_file(path).st_size
    ARRAY_BYTES.check(size, shown(path))
    with reading(path, "an array (.npy)", remedy), open(path, "rb") as file:
        array_header(file, size)
        file.seek(0)
        return np.lib.format.read_array(file, allow_pickle=False)


def read_arrays(path: str | os.PathLike, remedy: str = DOWNLOAD_AGAIN, names: Container[str] | None = None
                ) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file; pickled objects are refused.

    Args:
        names: the arrays to read, where the file has them; None = all.

    Raises:
        DataError: as `reading`; or the arrays would unpack to more than `limits.ARRAY_BYTES`.
    """
    found = {}
    with reading(path, "an archive of arrays (.npz)", remedy):
        check_unpacked(path)
        with zipfile.ZipFile(path) as archive:
            for name, member in _arrays_in(archive, names):
                with archive.open(member) as file:
                    array_header(file, member.file_size)
                with archive.open(member) as file:
                    found[name] = np.lib.format.read_array(file, allow_pickle=False)
    return found


def array_headers(path: str | os.PathLike, remedy: str = DOWNLOAD_AGAIN, names: Container[str] | None = None
                  ) -> dict[str, ArrayHeader]:
    """Return the headers of the arrays of an .npz file; arguments and errors as for `read_arrays`."""
    with reading(path, "an archive of arrays (.npz)", remedy):
        check_unpacked(path)
        with zipfile.ZipFile(path) as archive:
            found = {}
            for name, member in _arrays_in(archive, names):
                with archive.open(member) as file:
                    found[name] = array_header(file, member.file_size)
    return found


def _arrays_in(archive: zipfile.ZipFile, names: Container[str] | None) -> Iterator[tuple[str, zipfile.ZipInfo]]:
    for member in archive.infolist():
        name = member.filename.removesuffix(".npy")
        if names is None or name in names:
            yield name, member


def check_unpacked(path: str | os.PathLike, limit: Limit = ARRAY_BYTES) -> None:
    """Raise DataError if the members of a zip file (.npz, .pt) unpack to more than the limit; call in `reading`."""
    with zipfile.ZipFile(path) as archive:
        limit.check(sum(member.file_size for member in archive.infolist()), f"{shown(path)} unpacks to")
