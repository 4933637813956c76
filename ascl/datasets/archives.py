"""Unpacking zip and tar archives of strangers: nothing outside the folder, nothing half-written, again after a kill.

Each file is written under another name and renamed, so whatever has its final name is whole. What is there already with
the content of the archive is not written again.
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.datasets.download import CHUNK, readable, refuse_full_disk, require_space

LARGEST_RATIO = 100  # unpacked bytes for each byte of the archive; photographs have 1, JSON about 5
_SMALL = 1 << 20  # an archive that unpacks to less is harmless at any ratio
Wanted = Callable[[PurePosixPath], bool]
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, gzip.BadGzipFile, lzma.LZMAError, zlib.error, EOFError)


@dataclass(frozen=True)
class Unpacked:
    """files: that the folder now has from the archive. written: those among them that were not there before."""

    files: int
    written: int


@dataclass(frozen=True)
class _Member:
    """A file of an archive: where it goes, its size in bytes, its CRC-32 (a tar has none) and how to read it."""

    path: PurePosixPath
    size: int
    crc: int | None
    open: Callable[[], IO[bytes]]


def unpack(
    archive: str | os.PathLike, folder: str | os.PathLike, *, wanted: Wanted = lambda member: True,
    progress: bool = True,
) -> Unpacked:
    """Unpack a zip, or a tar with or without compression, into `folder`, with the folders that the archive has.

    Args:
        archive: the file; its kind is told by content.
        folder: made where it is absent.
        wanted: says for the path of a member whether it is to be unpacked.
        progress: show a bar.

    Raises:
        DataError: a truncated or damaged archive; one that is encrypted; a member that leads out of the folder, is a
            link or a device, or occurs twice; one that would unpack to more than `LARGEST_RATIO` times its size, or to
            more than the disk holds. Of a zip nothing is written then; of a tar, which has no list of its members, what
            lies before the fault.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise DataError(f"no archive {archive}")
    try:
        if zipfile.is_zipfile(archive):
            return _unpack_zip(archive, folder, wanted, progress)
        if tarfile.is_tarfile(archive):
            return _unpack_tar(archive, folder, wanted, progress)
    except _DAMAGE as error:
        raise DataError(f"{archive} is truncated or damaged ({error}): remove it and fetch it again") from error
    except (NotImplementedError, RuntimeError) as error:  # a compression or an encryption that Python does not know
        raise DataError(f"{archive}: {error}; unpack it with another program") from error
    raise DataError(f"{archive} is neither zip nor tar, or is truncated: remove it and fetch it again")


def _unpack_zip(archive: Path, folder: Path, wanted: Wanted, progress: bool) -> Unpacked:
    with zipfile.ZipFile(archive) as file:
        members = list(_zip_members(file, archive, wanted))
        _refuse_empty(archive, len(file.infolist()))
        _refuse_bomb(archive, sum(member.size for member in members))
        missing = [member for member in members if not _is_there(folder / member.path, member)]
        require_space(folder, sum(member.size for member in missing), f"what {archive} holds")
        with _bar(archive, sum(member.size for member in missing), progress) as bar:
            for member in missing:
                _write(member, folder, bar)
    _flush_to_disk()
    return Unpacked(len(members), len(missing))


def _zip_members(file: zipfile.ZipFile, archive: Path, wanted: Wanted) -> Iterator[_Member]:
    """Every file of a zip that is asked for; the first thing that does not belong into one refuses all."""
    seen: set[PurePosixPath] = set()
    for info in file.infolist():
        if _is_dropping(info.filename):
            continue
        path = _safe_path(info.filename, archive)
        kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not packed on Unix
        if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise DataError(f"{archive}, member {info.filename}: a link or device, which no data set needs")
        if info.is_dir():
            continue
        if info.flag_bits & 1:
            raise DataError(f"{archive}, member {info.filename}: encrypted; unpack it by hand")
        _refuse_twice(path, seen, archive)
        if wanted(path):
            yield _Member(path, info.file_size, info.CRC, lambda info=info: file.open(info))  # type: ignore[misc]


def _unpack_tar(archive: Path, folder: Path, wanted: Wanted, progress: bool) -> Unpacked:
    size = archive.stat().st_size
    require_space(folder, 0 if folder.exists() else size, f"what {archive} holds")
    files = written = total = 0
    seen: set[PurePosixPath] = set()
    with open(archive, "rb") as packed, tarfile.open(fileobj=packed) as file, _bar(archive, size, progress) as bar:
        for info in file:
            bar.update(packed.tell() - bar.n)
            if _is_dropping(info.name):
                continue
            path = _safe_path(info.name, archive)
            if info.isdir():
                continue
            if not info.isreg():
                raise DataError(f"{archive}, member {info.name}: a link or device, which no data set needs")
            tarfile.data_filter(info, str(folder.absolute()))  # Python's own refusals, beside those above
            _refuse_twice(path, seen, archive)
            total += info.size
            _refuse_bomb(archive, total)
            if not wanted(path):
                continue
            member = _Member(path, info.size, None, lambda info=info: _tar_content(file, info))  # type: ignore[misc]
            files += 1
            if not _is_there(folder / path, member):
                _write(member, folder)
                written += 1
    _refuse_empty(archive, len(seen))
    _flush_to_disk()
    return Unpacked(files, written)


def _tar_content(file: tarfile.TarFile, info: tarfile.TarInfo) -> IO[bytes]:
    content = file.extractfile(info)
    assert content is not None  # only asked for regular files
    return content


def _safe_path(name: str, archive: Path) -> PurePosixPath:
    """The member's path below the folder; refuses whatever could lead out of it on any system."""
    path = PurePosixPath(name)
    out = (
        name.startswith("/") or "\\" in name or "\0" in name or ".." in path.parts or not path.parts
        or re.match("[A-Za-z]:", name)
    )
    if out:
        raise DataError(f"{archive}, member {name!r}: leads out of the folder; nobody packs a data set so: do not "
                        "trust this archive")
    return path


def _is_dropping(name: str) -> bool:
    """What macOS adds to archives."""
    return name.startswith("__MACOSX/") or name.rpartition("/")[2] == ".DS_Store"


def _refuse_twice(path: PurePosixPath, seen: set[PurePosixPath], archive: Path) -> None:
    if path in seen:
        raise DataError(f"{archive}, member {path}: occurs twice; fetch the archive again")
    seen.add(path)


def _refuse_empty(archive: Path, files: int) -> None:
    if not files:  # also a file of nothing but zeros, made by a download that never began
        raise DataError(f"{archive} holds no file: remove it and fetch it again")


def _refuse_bomb(archive: Path, total: int) -> None:
    size = archive.stat().st_size
    if total > max(LARGEST_RATIO * size, _SMALL):
        raise DataError(f"{archive} has {readable(size)} and would unpack to {readable(total)} or more, over "
                        f"{LARGEST_RATIO} times as much: do not trust this archive")


def _is_there(target: Path, member: _Member) -> bool:
    if not target.is_file() or target.stat().st_size != member.size:
        return False
    with open(target, "rb") as present:
        if member.crc is not None:
            crc = 0
            while chunk := present.read(CHUNK):
                crc = zlib.crc32(chunk, crc)
            return crc == member.crc
        with member.open() as packed:
            return all(chunk == present.read(CHUNK) for chunk in iter(lambda: packed.read(CHUNK), b""))


def _write(member: _Member, folder: Path, bar: tqdm | None = None) -> None:
    target = folder / member.path
    unfinished = target.with_name(f".{target.name}.unpacking")  # always the same: the next call writes over it
    with member.open() as packed:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with open(unfinished, "wb") as sink:
                for chunk in iter(lambda: _read(packed), b""):
                    sink.write(chunk)
                    if bar is not None:
                        bar.update(len(chunk))
            if unfinished.stat().st_size != member.size:
                raise zipfile.BadZipFile(f"member {member.path} ends early")
            os.replace(unfinished, target)
        except OSError as error:
            unfinished.unlink(missing_ok=True)
            refuse_full_disk(error, target)
        except BaseException:
            unfinished.unlink(missing_ok=True)
            raise


def _read(packed: IO[bytes]) -> bytes:
    """A piece of a member; errors of the archive, some of which are OSErrors, never pass for those of the target."""
    try:
        return packed.read(CHUNK)
    except OSError as error:
        raise zipfile.BadZipFile(str(error)) from error


def _bar(archive: Path, total: int, progress: bool) -> tqdm:
    return tqdm(total=total, unit="B", unit_scale=True, desc=f"unpacking {archive.name}", disable=not progress,
                leave=False)


def _flush_to_disk() -> None:
    """Once for all files: a hundred thousand single calls would take longer than the unpacking."""
    if hasattr(os, "sync"):  # not on Windows
        os.sync()
