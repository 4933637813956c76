"""Unpacking zip and tar archives of strangers: nothing outside the folder, nothing half-written, again after a kill.

Each file is written under another name and renamed, so whatever has its final name is whole. What is there already with
the content of the archive is not written again.
"""

from __future__ import annotations

import functools
import gzip
import lzma
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
from ascl.core.files import atomic_path
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


class _Member(NamedTuple):
    """What an archive says of a member. kind: "file", "folder" or what else it is. crc: CRC-32, a tar has none."""

    name: str
    kind: str
    size: int
    crc: int | None
    open: Callable[[], IO[bytes]]

    @property
    def path(self) -> PurePosixPath:
        """Where it goes."""
        return PurePosixPath(self.name)


def unpack(archive: str | os.PathLike, folder: str | os.PathLike, *, wanted: Wanted = lambda member: True,
           progress: bool = True) -> Unpacked:
    """Unpack a zip, or a tar with or without compression, into `folder`, with the folders that the archive has.

    Args:
        archive: the file; its kind is told by content.
        folder: made where it is absent.
        wanted: says for the path of a member whether it is to be unpacked.
        progress: show a bar.

    Raises:
        DataError: a truncated, damaged or encrypted archive; a member that leads out of the folder, is a link or a
            device, or occurs twice; more than `LARGEST_RATIO` times the archive's size, or than the disk holds. Of a
            zip nothing is written then; of a tar, which has no list of its members, what lies before the fault.
    """
    archive, folder = Path(archive), Path(folder)
    if not archive.is_file():
        raise DataError(f"no archive {archive}")
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as zipped:
                members = list(_checked(_zip_members(zipped), archive, wanted))
                missing = sum(m.size for m in members if not _has_size(folder / m.path, m.size))
                require_space(folder, missing, f"what {archive} holds")
                return _write_all(members, archive, folder, progress)
        if tarfile.is_tarfile(archive):
            require_space(folder, 0 if folder.exists() else archive.stat().st_size, f"what {archive} holds")
            with tarfile.open(archive) as tar:
                return _write_all(_checked(_tar_members(tar, folder), archive, wanted), archive, folder, progress)
    except _DAMAGE as error:
        raise DataError(f"{archive} is truncated or damaged ({error}): remove it and fetch it again") from error
    except (NotImplementedError, RuntimeError) as error:  # a compression or an encryption that Python does not know
        raise DataError(f"{archive}: {error}; unpack it with another program") from error
    raise DataError(f"{archive} is neither zip nor tar, or is truncated: remove it and fetch it again")


def _zip_members(file: zipfile.ZipFile) -> Iterator[_Member]:
    for info in file.infolist():
        mode = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not packed on Unix
        kind = "folder" if info.is_dir() else "encrypted" if info.flag_bits & 1 else "file"
        kind = kind if mode in (0, stat.S_IFREG, stat.S_IFDIR) else "a link or device"
        yield _Member(info.filename, kind, info.file_size, info.CRC, functools.partial(file.open, info))


def _tar_members(file: tarfile.TarFile, folder: Path) -> Iterator[_Member]:
    for info in file:
        kind = "file" if info.isreg() else "folder" if info.isdir() else "a link or device"
        content = functools.partial(_tar_content, file, info, str(folder.absolute()))
        yield _Member(info.name, kind, info.size, None, content)


def _tar_content(file: tarfile.TarFile, info: tarfile.TarInfo, folder: str) -> IO[bytes]:
    # Python's own refusals, beside those of `_checked`; only files are asked for, which have a content
    return cast(IO[bytes], file.extractfile(tarfile.data_filter(info, folder)))


def _checked(members: Iterable[_Member], archive: Path, wanted: Wanted) -> Iterator[_Member]:
    """The files that are asked for; the first thing that does not belong into an archive of data refuses it."""
    seen: set[PurePosixPath] = set()
    size, total = archive.stat().st_size, 0
    for member in members:
        path, name = member.path, member.name
        if path.parts[:1] == ("__MACOSX",) or path.name == ".DS_Store":  # what macOS adds
            continue
        if (name.startswith("/") or "\\" in name or "\0" in name or ".." in path.parts or not path.parts
                or re.match("[A-Za-z]:", name)):
            raise DataError(f"{archive}, member {name!r}: leads out of the folder; do not trust this archive")
        if member.kind == "folder":
            continue
        if member.kind != "file":
            raise DataError(f"{archive}, member {name}: {member.kind}; unpack it by hand if you trust it")
        if path in seen:
            raise DataError(f"{archive}, member {path}: occurs twice; fetch the archive again")
        seen.add(path)
        total += member.size
        if total > max(LARGEST_RATIO * size, _SMALL):
            raise DataError(f"{archive} has {readable(size)} and would unpack to {readable(total)} or more, over "
                            f"{LARGEST_RATIO} times as much: do not trust this archive")
        if wanted(path):
            yield member
    if not seen:  # also a file of nothing but zeros, made by a download that never began
        raise DataError(f"{archive} holds no file: remove it and fetch it again")


def _write_all(members: Iterable[_Member], archive: Path, folder: Path, progress: bool) -> Unpacked:
    files = written = 0
    for member in tqdm(members, unit=" files", desc=f"unpacking {archive.name}", disable=not progress, leave=False):
        files += 1
        if not _is_there(folder / member.path, member):
            _write(member, folder / member.path)
            written += 1
    if hasattr(os, "sync"):  # not on Windows; once, as a hundred thousand single calls would outlast the unpacking
        os.sync()
    return Unpacked(files, written)


def _has_size(target: Path, size: int) -> bool:
    return target.is_file() and target.stat().st_size == size


def _is_there(target: Path, member: _Member) -> bool:
    if not _has_size(target, member.size):
        return False
    with open(target, "rb") as present:
        if member.crc is None:
            with member.open() as packed:
                return all(chunk == present.read(CHUNK) for chunk in iter(lambda: packed.read(CHUNK), b""))
        return member.crc == functools.reduce(lambda crc, chunk: zlib.crc32(chunk, crc),
                                              iter(lambda: present.read(CHUNK), b""), 0)


def _write(member: _Member, target: Path) -> None:
    with member.open() as packed:
        try:
            with atomic_path(target, flush=False) as unfinished:
                with open(unfinished, "wb") as sink:
                    for chunk in iter(lambda: _read(packed), b""):
                        sink.write(chunk)
                if not _has_size(unfinished, member.size):
                    raise zipfile.BadZipFile(f"member {member.path} ends early")
        except OSError as error:
            refuse_full_disk(error, target)


def _read(packed: IO[bytes]) -> bytes:
    """A piece of a member; errors of the archive, some of which are OSErrors, never pass for those of the target."""
    try:
        return packed.read(CHUNK)
    except OSError as error:
        raise zipfile.BadZipFile(str(error)) from error
