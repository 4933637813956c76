"""Read text from a plain file, a gzip file or a member of a zip, the forms in which captions are published."""

from __future__ import annotations

import gzip
import io
import os
import zipfile
from pathlib import Path
from typing import IO, Any

from ascl.core.errors import DataError
from ascl.core.limits import TEXT_BYTES
from ascl.core.reading import DOWNLOAD_AGAIN, decode, json_kind, reading, shown

GET_DATA = "data/README.md says where each data set goes and how to get it"
CAPTION_ARCHIVE = "caption_datasets.zip"  # Karpathy publishes his three split files in it
_GZIP_MAGIC = b"\x1f\x8b"
_CHUNK = 1 << 24


def locate(path: Path) -> Path | None:
    """Return where the text of `path` is: the file, its `.gz`, or a member of a zip; None if there is none.

    A zip is read like a folder: `caption_datasets.zip/dataset_coco.json` is its member of that name, at any depth. The
    path of a zip means its only JSON file. A missing file is also looked for in a `caption_datasets.zip` beside it.
    A path that is neither file nor folder, such as a pipe or a link to nothing, is returned too: reading refuses it.

    Raises:
        DataError: a zip is damaged, or several of its members fit (the message lists them).
    """
    if os.path.lexists(path) and not path.is_dir():
        return _only_json(path) if path.suffix == ".zip" and path.is_file() else path
    gzipped = path.with_name(path.name + ".gz")
    if gzipped.is_file():
        return gzipped
    archive = _archive_of(path)
    if archive is not None:
        found = _members_named(archive, path.relative_to(archive).as_posix())
        if len(found) > 1:
            raise DataError(f"{archive} has several members {shown(path.relative_to(archive))}: "
                            f"{', '.join(map(shown, found))}; name one")
        return archive / found[0] if found else None
    beside = path.parent / CAPTION_ARCHIVE
    found = _members_named(beside, path.name) if beside.is_file() else []
    return beside / found[0] if len(found) == 1 else None


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file that `locate` found, without byte order mark; gzip is detected by content.

    Raises:
        DataError: the file does not exist, is truncated or damaged, is or unpacks to more than `limits.TEXT_BYTES`, or
            is not UTF-8 (the message names the row).
    """
    archive = _archive_of(path)
    if archive is not None:
        data = _read_member(archive, path.relative_to(archive).as_posix())
    elif not os.path.lexists(path):
        raise DataError(f"no file {shown(path)}; {GET_DATA}")
    else:
        with reading(path, "a text file"), open(path, "rb") as file:
            data = _within_limit(file, f"{shown(path)} has at least")
    if data.startswith(_GZIP_MAGIC):
        with reading(archive or path, f"gzip in its member {path.name}" if archive else "gzip"):
            data = _within_limit(gzip.GzipFile(fileobj=io.BytesIO(data)), f"{shown(path)} unpacks to at least")
    return decode(data, path)


def checked_text(value: Any, where: str, what: str, remedy: str = "correct it") -> str:
    """Return a value of a file that must be a text: not empty, and fit to be stored as UTF-8.

    Args:
        where: file and place, for the message.
        what: the value should be, such as "the caption".

    Raises:
        DataError: the value is of another type, blank, or holds a NUL (UTF-16 read as UTF-8 has many) or half of a
            surrogate pair, which programs that cut text by bytes leave.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: expected {what} as a text, found {json_kind(value)}; {remedy}")
    if not value.strip():
        raise DataError(f"{where}: empty {what.removeprefix('the ')}; {remedy}")
    if "\0" in value:
        raise DataError(f"{where}: {what} holds a NUL character; if the file is UTF-16, convert it to UTF-8, else "
                        f"{remedy}")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(f"{where}: {what} holds a cut character ({value[error.start]!a} is half of a surrogate pair); "
                        f"{remedy}") from error
    return value


def one_line(text: str) -> str:
    """Return a text stripped and with single spaces: COCO has captions with line breaks."""
    return " ".join(text.split())


def read_lines(path: Path, what: str, remedy: str) -> list[str]:
    """Return the lines of a file that `locate` found, each through `checked_text` and `one_line`.

    Blank lines at the end do not count. Only a line feed ends a line, not the ten other characters of
    `str.splitlines`.

    Args:
        what: a line should be, such as "the caption".
        remedy: what to do about a line that is blank or cannot be used.
    """
    text = read_text(path).rstrip()
    if not text:
        raise DataError(f"{path} is empty: {DOWNLOAD_AGAIN}")
    return [one_line(checked_text(line, f"{path}, row {row}", what, remedy))
            for row, line in enumerate(text.split("\n"), start=1)]


def _within_limit(stream: IO[bytes] | gzip.GzipFile, where: str) -> bytes:
    """Read a stream to its end, but never much more than the limit."""
    data = bytearray()
    while piece := stream.read(_CHUNK):
        data += piece
        TEXT_BYTES.check(len(data), where)
    return bytes(data)


def _archive_of(path: Path) -> Path | None:
    """Return the zip that `path` leads into; None if it leads into none."""
    return next((folder for folder in path.parents if folder.suffix == ".zip" and folder.is_file()), None)


def _members(archive: Path) -> list[str]:
    with reading(archive, "a zip"), zipfile.ZipFile(archive) as file:
        return [name for name in file.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]


def _members_named(archive: Path, name: str) -> list[str]:
    """Return the member with that path, or else all whose path ends with it: repacked archives add a folder."""
    members = _members(archive)
    return [name] if name in members else [member for member in members if member.endswith(f"/{name}")]


def _only_json(archive: Path) -> Path:
    found = [name for name in _members(archive) if name.endswith((".json", ".json.gz"))]
    if len(found) != 1:
        choice = " to choose from" if found else ""
        example = shown(archive / [*found, "NAME.json"][0])
        raise DataError(f"{archive} holds {len(found) or 'no'} caption files{choice}: name one as a path, like "
                        f"{example}; it holds: {_listed(archive)}")
    return archive / found[0]


def _listed(archive: Path) -> str:
    return ", ".join(sorted(shown(member) for member in _members(archive))) or "nothing"


def _read_member(archive: Path, name: str) -> bytes:
    if name not in _members(archive):
        raise DataError(f"{archive} has no member {shown(name)}; it holds: {_listed(archive)}")
    # it may be encrypted, or packed in a way that Python does not know
    what = f"a zip with a readable member {shown(name)}"
    with reading(archive, what, "download it again, or unpack it by hand and give the path of the file"):
        with zipfile.ZipFile(archive) as file, file.open(name) as member:
            return _within_limit(member, f"{archive}, member {shown(name)} unpacks to at least")
