"""Read text from a plain file, a gzip file or a member of a zip, the forms in which captions are published."""

from __future__ import annotations

import gzip
import zipfile
import zlib
from pathlib import Path

from ascl.core.errors import DataError

GET_DATA = "data/README.md says where each data set goes and how to get it"
CAPTION_ARCHIVE = "caption_datasets.zip"  # Karpathy publishes his three split files in it
_GZIP_MAGIC = b"\x1f\x8b"
_LARGEST_MEMBER = 1 << 31  # bytes; COCO's split file, the largest caption file, has 0.15e9


def locate(path: Path) -> Path | None:
    """Return where the text of `path` is: the file, its `.gz`, or a member of a zip; None if there is none.

    A zip is read like a folder: `caption_datasets.zip/dataset_coco.json` is its member of that name, at any depth. The
    path of a zip means its only JSON file. A missing file is also looked for in a `caption_datasets.zip` beside it.

    Raises:
        DataError: a zip is damaged, or several of its members fit (the message lists them).
    """
    if path.is_file():
        return _only_json(path) if path.suffix == ".zip" else path
    gzipped = path.with_name(path.name + ".gz")
    if gzipped.is_file():
        return gzipped
    archive = _archive_of(path)
    if archive is not None:
        found = _members_named(archive, path.relative_to(archive).as_posix())
        if len(found) > 1:
            raise DataError(f"{archive} has several members {path.relative_to(archive)}: {', '.join(found)}; name one")
        return archive / found[0] if found else None
    beside = path.parent / CAPTION_ARCHIVE
    found = _members_named(beside, path.name) if beside.is_file() else []
    return beside / found[0] if len(found) == 1 else None


def read_text(path: Path) -> str:
    """Return the content of a UTF-8 file that `locate` found, without byte order mark; gzip is detected by content.

    Raises:
        DataError: the file does not exist, is truncated or damaged, or is not UTF-8 (the message names the row).
    """
    archive = _archive_of(path)
    try:
        data = path.read_bytes() if archive is None else _read_member(archive, path.relative_to(archive).as_posix())
        if data.startswith(_GZIP_MAGIC):
            data = gzip.decompress(data)
    except FileNotFoundError:
        raise DataError(f"no file {path}; {GET_DATA}") from None
    except (EOFError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is truncated or damaged ({error}): download it again") from error
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        row = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, row {row}: not UTF-8 ({error.reason}); convert the file to UTF-8") from error


def _archive_of(path: Path) -> Path | None:
    """Return the zip that `path` leads into; None if it leads into none."""
    return next((folder for folder in path.parents if folder.suffix == ".zip" and folder.is_file()), None)


def _members(archive: Path) -> list[str]:
    try:
        with zipfile.ZipFile(archive) as file:
            return [name for name in file.namelist() if not name.endswith("/") and not name.startswith("__MACOSX/")]
    except (zipfile.BadZipFile, OSError) as error:
        raise DataError(f"{archive} is truncated or not a zip ({error}): download it again") from error


def _members_named(archive: Path, name: str) -> list[str]:
    """Return the member with that path, or else all whose path ends with it: repacked archives add a folder."""
    members = _members(archive)
    return [name] if name in members else [member for member in members if member.endswith(f"/{name}")]


def _only_json(archive: Path) -> Path:
    found = [name for name in _members(archive) if name.endswith((".json", ".json.gz"))]
    if len(found) != 1:
        raise DataError(f"{archive} holds {len(found) or 'no'} caption files{' to choose from' if found else ''}: name "
                        f"one as a path, like {archive / [*found, 'NAME.json'][0]}; it holds: {_listed(archive)}")
    return archive / found[0]


def _listed(archive: Path) -> str:
    return ", ".join(sorted(_members(archive))) or "nothing"


def _read_member(archive: Path, name: str) -> bytes:
    if name not in _members(archive):
        raise DataError(f"{archive} has no member {name}; it holds: {_listed(archive)}")
    with zipfile.ZipFile(archive) as file:
        info = file.getinfo(name)
        if info.file_size > _LARGEST_MEMBER:
            raise DataError(f"{archive}, member {name}: {info.file_size:,} bytes are too many for a caption file")
        try:
            return file.read(info)
        except RuntimeError as error:  # encrypted, or compressed in a way that Python does not know
            raise DataError(f"{archive}, member {name}: {error}; unpack it by hand and give its path") from error
