"""Download large files: resume after a kill, never mix two versions, and check a file before it gets its name.

During the download of `NAME`, `NAME.part` holds the bytes so far, `NAME.part.json` says to which version of the file
they belong, and `NAME.part.lock` excludes other processes. `NAME` itself is absent or has the published checksum, if
there is one.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, NoReturn
from urllib.parse import urlsplit

from filelock import FileLock, Timeout
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.core.files import make_folder, room_left, write_text
from ascl.core.reading import read_json, shown

CHUNK = 1 << 20
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})  # worth another attempt; all other errors are final
_LONGEST_PAUSE = 120.0  # seconds


@dataclass(frozen=True)
class RemoteFile:
    """A published file; a DataError if its address is not http or https."""

    url: str
    size: int | None  # bytes; None = as many as the server says
    sha256: str | None  # lower-case hexadecimal; None = none is published
    instead: str = "give a mirror, or download it by hand (data/README.md says where it goes)"  # if the address fails

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.url)
            valid = address.scheme in ("http", "https") and bool(address.hostname) and bool(self.name)
        except ValueError:  # unbalanced brackets
            valid = False
        if not valid:
            raise DataError(f"{self.url!r} is not the address of a file: give http://... or https://...")

    @property
    def name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]


@dataclass(frozen=True)
class Patience:
    """How long to wait for a server, and how often to try."""

    timeout: float = 60.0  # seconds without a byte before the connection counts as lost
    attempts: int = 6  # failures in a row, without a new byte, before giving up
    backoff: float = 1.0  # seconds before the second attempt, doubled for each further one
    sleep: Callable[[float], None] = time.sleep  # waits for some seconds


USUAL_PATIENCE = Patience()


@dataclass(eq=False)
class _Interrupted(Exception):
    """A fault that may pass."""

    reason: str
    wait: float = 0.0  # seconds for which the server asks to wait


def at_mirror(file: RemoteFile, mirror: str | None) -> RemoteFile:
    """Return the file, with the same checksum, at a mirror's address: `mirror` + "/" + its name."""
    return file if mirror is None else replace(file, url=f"{mirror.rstrip('/')}/{file.name}")


def fetch(file: RemoteFile, folder: str | os.PathLike, *, patience: Patience = USUAL_PATIENCE,
          progress: bool = True) -> Path:
    """Download a file into `folder` unless it is there, check its size and checksum, and return its path.

    Raises:
        DataError: the server refuses or does not answer, or its file has another size or checksum (nothing is kept
            then); the disk is full; another process downloads the same file; or a different file is in `folder`.
    """
    folder = make_folder(folder)
    final, part = folder / file.name, folder / f"{file.name}.part"
    if final.exists():
        _refuse_false(final, file, f"remove it, and the same command downloads {file.url}", progress)
        return final
    lock = FileLock(f"{part}.lock", timeout=0)
    try:
        with lock:
            try:
                size = _fetch_all(file, part, patience, progress)
                _name_when_true(replace(file, size=size), part, final, progress)
            finally:
                if not part.exists():
                    with suppress(OSError):  # some systems cannot remove the file of a held lock
                        Path(lock.lock_file).unlink()
    except Timeout:
        raise DataError(f"{part}: another process is downloading this file; wait for it to finish") from None
    return final


def fetched(file: RemoteFile, folder: str | os.PathLike) -> int:
    """Return how many bytes of the file are in `folder` already."""
    places = (Path(folder) / file.name, Path(folder) / f"{file.name}.part")
    return max(place.stat().st_size if place.exists() else 0 for place in places)


def refuse_full_disk(error: OSError, path: Path) -> NoReturn:
    """Raise a DataError that says what to do about an error while writing; what has been written stays."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DataError(f"{shown(path)}: the disk is full{room_left(path)}: free some space, and the same command "
                        "continues from here") from error
    raise DataError(f"{shown(path)} cannot be written ({error.strerror or error}): check the folder and its "
                    "permissions, then run the same command again") from error


def _name_when_true(file: RemoteFile, part: Path, final: Path, progress: bool) -> None:
    remedy = (f"the same command downloads it again; if this happens again, {file.url} has changed or is altered on "
              f"the way: {file.instead}, or put a correct copy at {final}")
    try:
        _refuse_false(part, file, remedy, progress)
        with open(part, "rb+") as written:
            os.fsync(written.fileno())
        os.replace(part, final)
    except DataError:
        part.unlink()
        raise
    finally:
        if not part.exists():
            _version_file(part).unlink(missing_ok=True)


def _refuse_false(path: Path, file: RemoteFile, remedy: str, progress: bool) -> None:
    size = path.stat().st_size
    if file.size is not None and size != file.size:
        raise DataError(f"{path} has {size} bytes, the published file has {file.size}: {remedy}")
    if file.sha256 is None:
        return
    digest = hashlib.sha256()
    with open(path, "rb") as content, _bar(size, 0, f"sha256 of {file.name}", progress) as bar:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != file.sha256:
        raise DataError(f"{path} has the sha256 {digest.hexdigest()}, the published file has {file.sha256}: {remedy}")


def _bar(total: int | None, done: int, what: str, progress: bool) -> tqdm:
    return tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=what, disable=not progress, leave=False)


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _fetch_all(file: RemoteFile, part: Path, patience: Patience, progress: bool) -> int:
    """Try until `part` has all bytes, and return their number; only attempts without a new byte count as failures."""
    failures, furthest = 0, 0
    with open(part, "ab") as sink, _bar(file.size, sink.tell(), file.name, progress) as bar:
        while sink.tell() != (size := _size(file, part)) or size is None:
            try:
                _fetch_rest(file, part, sink, patience.timeout, bar)
            except _Interrupted as fault:
                have = sink.tell()
                failures = 0 if have > furthest else failures + 1
                furthest = max(furthest, have)
                if failures >= patience.attempts:
                    held = f"{have} of {_size(file, part)} bytes are in {part}; the same command continues from " \
                           "there" if have else "the same command tries again"
                    raise DataError(f"{file.url}: {fault.reason}, {failures} times in a row; {held}; or "
                                    f"{file.instead}") from fault
                pause = min(max(patience.backoff * 2 ** max(failures - 1, 0), fault.wait), _LONGEST_PAUSE)
                if progress:
                    bar.write(f"{file.name}: {fault.reason}; trying again in {pause:.0f} s")
                patience.sleep(pause)
        return size


def _size(file: RemoteFile, part: Path) -> int | None:
    """Return the size of the whole file: the published one, or the server's, which `part` records; None = unknown."""
    return _version(part, file.url)[1] if file.size is None else file.size


def _fetch_rest(file: RemoteFile, part: Path, sink: IO[bytes], timeout: float, bar: tqdm) -> None:
    """Request the bytes that `sink` lacks, or all if they might be of another version of the file."""
    have, size, validator = sink.tell(), _size(file, part), _version(part, file.url)[0]
    headers = {"User-Agent": "ascl", "Accept-Encoding": "identity"}
    if have and validator and size is not None and have < size:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    with _connection(file, headers, timeout) as response:
        continued = response.status == 206 and "Range" in headers
        if continued:
            # a server that ignores If-Range, or counts differently, would mix two files
            if _content_range(response) != (have, size) or validator != _validator_of(response):
                _start_anew(file, part, sink, bar)
                raise _Interrupted("the file has changed on the server; downloading all of it")
        else:
            offered = response.headers.get("Content-Length", "")
            if file.size is None:
                if not re.fullmatch(r"\d{1,18}", offered):
                    raise DataError(f"{file.url} does not say how large the file is: {file.instead}")
                size = int(offered)
            elif offered not in ("", str(file.size)):
                raise DataError(f"{file.url} offers {offered} bytes, the published file has {file.size}: it has "
                                f"changed or is an error page; {file.instead}")
            _start_anew(file, part, sink, bar, _validator_of(response), size)
        while chunk := response.read1(CHUNK):  # read() would withhold what arrives before a stall
            if size is not None and sink.tell() + len(chunk) > size:
                _start_anew(file, part, sink, bar)
                raise DataError(f"{file.url} sends more than the {size} bytes published; {file.instead}")
            try:
                sink.write(chunk)
                sink.flush()  # so that a kill loses nothing that has arrived
            except OSError as error:
                refuse_full_disk(error, part)
            bar.update(len(chunk))
    if sink.tell() != size:
        raise _Interrupted(f"the connection ended after {sink.tell()} of {size} bytes")


@contextmanager
def _connection(file: RemoteFile, headers: dict[str, str], timeout: float) -> Iterator[http.client.HTTPResponse]:
    """Yield the response to a request; turn faults of network and server into `_Interrupted`, or DataError if final."""
    try:
        request = urllib.request.Request(file.url, headers=headers)
        with urllib.request.urlopen(request, timeout=timeout) as response:
            yield response
    except urllib.error.HTTPError as error:
        if error.code in _TRANSIENT:
            asked = error.headers.get("Retry-After", "")
            raise _Interrupted(f"the server answers {error.code} {error.reason}",
                               float(asked) if asked.isdecimal() else 0.0) from error
        raise DataError(f"{file.url}: the server answers {error.code} {error.reason}; {file.instead}") from error
    except (http.client.InvalidURL, UnicodeError) as error:
        raise DataError(f"{file.url} is not a valid address ({error})") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DataError(f"{file.url}: certificate {reason.verify_message}; {file.instead}") from error
        raise _Interrupted(f"the connection failed ({reason or type(error).__name__})") from error


def _start_anew(file: RemoteFile, part: Path, sink: IO[bytes], bar: tqdm, validator: str | None = None,
                size: int | None = None) -> None:
    """Empty the part, then record the version of the next bytes: after a kill in between there is nothing to mix."""
    try:
        sink.truncate(0)
        sink.seek(0)
        write_text(_version_file(part), json.dumps({"url": file.url, "validator": validator, "size": size}))
    except OSError as error:
        refuse_full_disk(error, part)
    bar.reset(total=size or file.size)


def _validator_of(response: http.client.HTTPResponse) -> str | None:
    """Return what If-Range may name: a strong ETag, or else the date of the last change."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _version(part: Path, url: str) -> tuple[str | None, int | None]:
    """Return validator and size of the version in `part`; None for what is unknown or from another address."""
    try:
        version = read_json(_version_file(part))
    except DataError:
        return None, None
    if version.get("url") != url:
        return None, None
    validator, size = version.get("validator"), version.get("size")
    # it becomes a header of the next request
    is_header = isinstance(validator, str) and validator.isascii() and validator.isprintable()
    return validator if is_header else None, size if isinstance(size, int) and size >= 0 else None


def _content_range(response: http.client.HTTPResponse) -> tuple[int, int] | None:
    """Return (first byte, total size) of a partial response; None if it does not say."""
    found = re.fullmatch(r"bytes (\d{1,18})-\d+/(\d{1,18})", response.headers.get("Content-Range", ""))
    return None if found is None else (int(found[1]), int(found[2]))
