"""Unpack untrusted zip and tar archives: write nothing outside the folder and nothing half, and continue after a kill.

Each file is written under a temporary name and renamed, so a file with its final name is complete. Files that are
already there with the content of the archive are not written again.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple, cast

from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.core.files import atomic_path, readable, require_space
from ascl.core.reading import reading, require_file, shown
from ascl.datasets.download import CHUNK

LARGEST_RATIO = 100  # most unpacked bytes per byte of the archive; photos have 1, JSON about 5
_SMALL = 1 << 20  # an archive that unpacks to fewer bytes is harmless at any ratio
Wanted = Callable[[PurePosixPath], bool]
_LONGEST_HEADER = 1 << 20  # bytes of a tar's extra header, which is read whole into memory; a path has 4,096 at most
_REMEDY = "remove it and download it again"


@dataclass(frozen=True)
class Unpacked:
    """The result of `unpack`."""

    files: int  # files of the archive that are in the folder now
    written: int  # files of these that were not there before


class _Member(NamedTuple):
    """What an archive says about a member."""

    name: str
    kind: str  # "file", "folder", or another kind in words
    size: int
    crc: int | None  # CRC-32; None in a tar
    open: Callable[[], IO[bytes]]

    @property
    def path(self) -> PurePosixPath:
        """Path of the unpacked file within the folder."""
        return PurePosixPath(self.name)


def unpack(archive: str | os.PathLike, folder: str | os.PathLike, *, wanted: Wanted = lambda member: True,
           progress: bool = True) -> Unpacked:
    """Unpack a zip, or a tar with or without compression, into `folder`, and keep the archive's folders.

    Args:
        archive: zip or tar file; its content decides which.
        folder: made if it does not exist.
        wanted: returns for the path of a member whether to unpack it.
        progress: show a progress bar.

    Raises:
        DataError: the archive is truncated, damaged or encrypted; a member leads out of the folder, is a link or a
            device, or occurs twice; or it unpacks to more than `LARGEST_RATIO` times its size, or more than the disk
            holds. Nothing of a zip is written then. A tar has no list of members, so those before the fault are.
    """
    archive, folder = Path(archive), Path(folder)
    require_file(archive, "archive")
    with reading(archive, "a zip", _REMEDY):
        is_zip = zipfile.is_zipfile(archive)
    if is_zip:
        with reading(archive, "a zip", _REMEDY):
            zipped = zipfile.ZipFile(archive)
        with zipped:
            members = list(_checked(_zip_members(zipped), archive, wanted))
            missing = sum(m.size for m in members if not _has_size(folder / m.path, m.size))
            require_space(folder, missing, f"what {shown(archive)} holds")
            return _write_all(members, archive, folder, progress)
    with reading(archive, "a zip or tar", _REMEDY):
        tar = tarfile.open(archive, tarinfo=_ShortHeaders)
    with tar:
        require_space(folder, 0 if folder.exists() else archive.stat().st_size, f"what {shown(archive)} holds")
        return _write_all(_checked(_tar_members(tar, archive, folder), archive, wanted), archive, folder, progress)


class _ShortHeaders(tarfile.TarInfo):
    """A member of a tar that refuses an extra header that would fill the memory."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _ShortHeaders:
        found = super().frombuf(buf, encoding, errors)
        if not (found.isreg() or found.isdir()) and found.size > _LONGEST_HEADER:
            raise tarfile.HeaderError(f"a header of {found.size:,} bytes")
        return found


def _zip_members(file: zipfile.ZipFile) -> Iterator[_Member]:
    for info in file.infolist():
        mode = stat.S_IFMT(info.external_attr >> 16)  # 0 if the archive was not packed on Unix
        kind = "folder" if info.filename.endswith("/") else "encrypted" if info.flag_bits & 1 else "file"
        kind = kind if mode in (0, stat.S_IFREG, stat.S_IFDIR) else "a link or device"
        yield _Member(info.filename, kind, info.file_size, info.CRC, functools.partial(file.open, info))


def _tar_members(file: tarfile.TarFile, archive: Path, folder: Path) -> Iterator[_Member]:
    while True:
        with reading(archive, "a tar", _REMEDY):
            info = file.next()
        if info is None:
            return
        kind = "file" if info.isreg() else "folder" if info.isdir() else "a link or device"
        content = functools.partial(_tar_content, file, info, str(folder.absolute()))
        yield _Member(info.name, kind, info.size, None, content)


def _tar_content(file: tarfile.TarFile, info: tarfile.TarInfo, folder: str) -> IO[bytes]:
    # adds Python's own refusals to those of `_checked`; only files come here, and they have content
    return cast(IO[bytes], file.extractfile(tarfile.data_filter(info, folder)))


def _checked(members: Iterable[_Member], archive: Path, wanted: Wanted) -> Iterator[_Member]:
    """Yield the wanted files; raise a DataError at the first member that does not belong in an archive of data."""
    seen: set[PurePosixPath] = set()
    size, total = archive.stat().st_size, 0
    for member in members:
        path, name = member.path, member.name
        where = f"{archive}, member {shown(name)}"
        if path.parts[:1] == ("__MACOSX",) or path.name == ".DS_Store":  # added by macOS
            continue
        if member.kind == "folder" and not path.parts:  # "./", the first member of many a tar
            continue
        if (name.startswith("/") or "\\" in name or "\0" in name or ".." in path.parts or not path.parts
                or re.match("[A-Za-z]:", name)):
            raise DataError(f"{where}: leads out of the folder; do not trust this archive")
        if member.kind == "folder":
            continue
        if member.kind != "file":
            raise DataError(f"{where}: {member.kind}; unpack it by hand if you trust it")
        if path in seen:
            raise DataError(f"{where}: occurs twice; download the archive again")
        seen.add(path)
        total += member.size
        if total > max(LARGEST_RATIO * size, _SMALL):
            raise DataError(f"{archive} has {readable(size)} and would unpack to {readable(total)} or more, over "
                            f"{LARGEST_RATIO} times as much: do not trust this archive")
        if wanted(path):
            yield member
    if not seen:  # also a file of only zeros, left by a download that never began
        raise DataError(f"{archive} holds no file: remove it and download it again")


def _write_all(members: Iterable[_Member], archive: Path, folder: Path, progress: bool) -> Unpacked:
    files = written = 0
    for member in tqdm(members, unit=" files", desc=f"unpacking {archive.name}", disable=not progress, leave=False):
        files += 1
        if not _is_there(folder / member.path, member, archive):
            _write(member, folder / member.path, archive)
            written += 1
    if hasattr(os, "sync"):  # not on Windows; once, because 100,000 single calls would take longer than unpacking
        os.sync()
    return Unpacked(files, written)


def _has_size(target: Path, size: int) -> bool:
    return target.is_file() and target.stat().st_size == size


def _is_there(target: Path, member: _Member, archive: Path) -> bool:
    if not _has_size(target, member.size):
        return False
    with open(target, "rb") as present:
        if member.crc is None:
            return all(chunk == present.read(CHUNK) for chunk in _content(member, archive))
        return member.crc == functools.reduce(lambda crc, chunk: zlib.crc32(chunk, crc),
                                              iter(lambda: present.read(CHUNK), b""), 0)


def _write(member: _Member, target: Path, archive: Path) -> None:
    with atomic_path(target, flush=False) as unfinished:
        with open(unfinished, "wb") as sink:
            for chunk in _content(member, archive):
                sink.write(chunk)
        if not _has_size(unfinished, member.size):
            raise DataError(f"{archive} is damaged: its member {shown(member.name)} ends early; {_REMEDY}")


def _content(member: _Member, archive: Path) -> Iterator[bytes]:
    """Yield the content of a member in chunks."""
    what = f"an archive with a readable member {shown(member.name)}"  # Python does not know every compression
    with reading(archive, what, f"{_REMEDY}, or unpack it with another program"):
        packed = member.open()
    with packed:
        while True:
            with reading(archive, what, _REMEDY):
                chunk = packed.read(CHUNK)
            if not chunk:
                return
            yield chunk
