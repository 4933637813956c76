"""Fetching large files: resumed after a kill, never spliced from two versions, checked before they get their name.

While `NAME` is fetched, `NAME.part` holds the bytes so far, `NAME.part.json` says of which version of the file they
are, and `NAME.part.lock` keeps a second process away. `NAME` itself is either absent or has the published checksum.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import json
import os
import re
import shutil
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
from ascl.core.files import write_text

CHUNK = 1 << 20
_TRANSIENT = frozenset({408, 425, 429, 500, 502, 503, 504})  # worth another try; every other refusal is final
_LONGEST_PAUSE = 120.0  # seconds


@dataclass(frozen=True)
class RemoteFile:
    """A file of a publisher: address (http or https, else a DataError), bytes, lower-case hexadecimal SHA-256."""

    url: str
    size: int
    sha256: str

    def __post_init__(self) -> None:
        try:
            address = urlsplit(self.url)
            valid = address.scheme in ("http", "https") and bool(address.hostname) and bool(self.name)
        except ValueError:  # brackets that do not fit
            valid = False
        if not valid:
            raise DataError(f"{self.url!r} is no address of a file: it has to be http://... or https://...")

    @property
    def name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]


@dataclass(frozen=True)
class Patience:
    """timeout: seconds without a byte before the connection counts as lost. attempts: in a row without a new byte.
    backoff: seconds before the second attempt, doubled for each further one. sleep: how to wait for some seconds."""

    timeout: float = 60.0
    attempts: int = 6
    backoff: float = 1.0
    sleep: Callable[[float], None] = time.sleep


USUAL_PATIENCE = Patience()


@dataclass(eq=False)
class _Interrupted(Exception):
    """A fault that may pass; `wait` is what the server asks for, in seconds."""

    reason: str
    wait: float = 0.0


def at_mirror(file: RemoteFile, mirror: str | None) -> RemoteFile:
    """The same file, of the same checksum, under a mirror's address: `mirror` + "/" + its name."""
    return file if mirror is None else replace(file, url=f"{mirror.rstrip('/')}/{file.name}")


def fetch(file: RemoteFile, folder: str | os.PathLike, *, patience: Patience = USUAL_PATIENCE,
          progress: bool = True) -> Path:
    """The file in `folder`, with the published size and checksum; what is there already is not fetched again.

    Raises:
        DataError: the server refuses or stays away, offers another size, or sends what has another checksum (nothing is
            kept then); no room on the disk; another process fetches the same file; or `folder` has a false one.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    final, part = folder / file.name, folder / f"{file.name}.part"
    if final.exists():
        _refuse_false(final, file, f"remove it, and the same command fetches {file.url}", progress)
        return final
    lock = FileLock(f"{part}.lock", timeout=0)
    try:
        with lock:
            try:
                _fetch_all(file, part, patience, progress)
                _name_when_true(file, part, final, progress)
            finally:
                if not part.exists():
                    with suppress(OSError):  # some systems keep the file of a lock that is held
                        Path(lock.lock_file).unlink()
    except Timeout:
        raise DataError(f"{part}: another process is fetching this file; wait for it to end") from None
    return final


def fetched(file: RemoteFile, folder: str | os.PathLike) -> int:
    """Bytes of the file that `folder` holds already, whole or in part."""
    places = (Path(folder) / file.name, Path(folder) / f"{file.name}.part")
    return max(place.stat().st_size if place.exists() else 0 for place in places)


def require_space(folder: str | os.PathLike, needed: int, what: str) -> None:
    """Refuse before the work begins what will not fit on the disk of `folder`, which need not exist yet."""
    place = Path(folder).absolute()
    free = shutil.disk_usage(next(near for near in (place, *place.parents) if near.exists())).free
    if needed > free:
        raise DataError(f"{what} needs {readable(needed)} on the disk of {folder}, {readable(free)} are free: make "
                        f"room, or let {folder} be a link to a larger disk")


def readable(size: int) -> str:
    """1234567 -> "1.2 MB"."""
    power = sum(size >= 999.5 * 1000**larger for larger in range(4))
    return f"{size / 1000**power:.1f} {' kMGT'[power]}B" if power else f"{size} bytes"


def refuse_full_disk(error: OSError, path: Path) -> NoReturn:
    """An error while writing, as a message that says what to do; what is there already stays."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise DataError(f"{path}: the disk is full ({readable(shutil.disk_usage(path.parent).free)} free); make room, "
                        "and the same command goes on from here") from error
    raise DataError(f"{path} cannot be written ({error.strerror or error}); see to that and call again") from error


def _name_when_true(file: RemoteFile, part: Path, final: Path, progress: bool) -> None:
    remedy = (f"the same command fetches it again; if it ends so again, {file.url} has changed or is altered on the "
              f"way: try a mirror, or put a true copy at {final}")
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
    if size != file.size:
        raise DataError(f"{path} has {size} bytes, the published file has {file.size}: {remedy}")
    digest = hashlib.sha256()
    with open(path, "rb") as content, _bar(size, 0, f"sha256 of {file.name}", progress) as bar:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
            bar.update(len(chunk))
    if digest.hexdigest() != file.sha256:
        raise DataError(f"{path} has the sha256 {digest.hexdigest()}, the published file has {file.sha256}: {remedy}")


def _bar(total: int, done: int, what: str, progress: bool) -> tqdm:
    return tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=what, disable=not progress, leave=False)


def _version_file(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _fetch_all(file: RemoteFile, part: Path, patience: Patience, progress: bool) -> None:
    """Attempts until `part` has the published size; only those without a new byte are counted."""
    failures, furthest = 0, 0
    with open(part, "ab") as sink, _bar(file.size, sink.tell(), file.name, progress) as bar:
        while sink.tell() != file.size:
            try:
                _fetch_rest(file, part, sink, patience.timeout, bar)
            except _Interrupted as fault:
                have = sink.tell()
                failures = 0 if have > furthest else failures + 1
                furthest = max(furthest, have)
                if failures >= patience.attempts:
                    raise DataError(f"{file.url}: {fault.reason}, {failures} times in a row; {have} of {file.size} "
                                    f"bytes are in {part}; the same command goes on from there or a mirror") from fault
                pause = min(max(patience.backoff * 2 ** max(failures - 1, 0), fault.wait), _LONGEST_PAUSE)
                if progress:
                    bar.write(f"{file.name}: {fault.reason}; again in {pause:.0f} s")
                patience.sleep(pause)


def _fetch_rest(file: RemoteFile, part: Path, sink: IO[bytes], timeout: float, bar: tqdm) -> None:
    """One request for what `sink` lacks, or for the whole where that cannot be known to be the same file."""
    have, validator = sink.tell(), _validator(part, file.url)
    headers = {"User-Agent": "ascl prepare_data", "Accept-Encoding": "identity"}
    if have and validator and have < file.size:
        headers |= {"Range": f"bytes={have}-", "If-Range": validator}
    with _connection(urllib.request.Request(file.url, headers=headers), timeout) as response:
        continued = response.status == 206 and "Range" in headers
        if continued:
            # a server that ignores If-Range, or counts otherwise, would splice two files
            if _content_range(response) != (have, file.size) or validator != _validator_of(response):
                _start_anew(file, part, sink, bar)
                raise _Interrupted("the file has changed on the server; fetched anew")
        else:
            offered = response.headers.get("Content-Length")
            if offered is not None and offered != str(file.size):
                raise DataError(f"{file.url} offers {offered} bytes, the published file has {file.size}: it has "
                                "changed or is an error page; get it from a mirror")
            _start_anew(file, part, sink, bar, _validator_of(response))
        while chunk := response.read1(CHUNK):  # read() would hold back what arrives before a stall
            if sink.tell() + len(chunk) > file.size:
                _start_anew(file, part, sink, bar)
                raise DataError(f"{file.url} sends more than the {file.size} bytes published; get it from a mirror")
            try:
                sink.write(chunk)
                sink.flush()  # what has arrived is in the file, whenever the process is killed
            except OSError as error:
                refuse_full_disk(error, part)
            bar.update(len(chunk))
    if sink.tell() != file.size:
        raise _Interrupted(f"the connection ended after {sink.tell()} of {file.size} bytes")


@contextmanager
def _connection(request: urllib.request.Request, timeout: float) -> Iterator[http.client.HTTPResponse]:
    """The answer to a request; faults of network and server as `_Interrupted` or, where final, as DataError."""
    try:
        with urllib.request.urlopen(request, timeout=timeout) as response:
            yield response
    except urllib.error.HTTPError as error:
        if error.code in _TRANSIENT:
            asked = error.headers.get("Retry-After", "")
            raise _Interrupted(f"the server answers {error.code} {error.reason}",
                               float(asked) if asked.isdecimal() else 0.0) from error
        raise DataError(f"{request.full_url}: the server answers {error.code} {error.reason}; give a mirror, or fetch "
                        "it by hand (data/README.md says where it goes)") from error
    except (http.client.InvalidURL, UnicodeError) as error:
        raise DataError(f"{request.full_url} is no valid address ({error})") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise DataError(f"{request.full_url}: certificate {reason.verify_message}; give a mirror") from error
        raise _Interrupted(f"the connection failed ({reason or type(error).__name__})") from error


def _start_anew(file: RemoteFile, part: Path, sink: IO[bytes], bar: tqdm, validator: str | None = None) -> None:
    """Empty the part, then note which version the next bytes are of: a kill in between leaves nothing to splice."""
    try:
        sink.truncate(0)
        sink.seek(0)
        write_text(_version_file(part), json.dumps({"url": file.url, "validator": validator}))
    except OSError as error:
        refuse_full_disk(error, part)
    bar.reset(total=file.size)


def _validator_of(response: http.client.HTTPResponse) -> str | None:
    """What If-Range may name: a strong ETag, else the date of the last change."""
    tag = response.headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else response.headers.get("Last-Modified")


def _validator(part: Path, url: str) -> str | None:
    """Validator of the version that `part` was begun with, None where it is of another address or unknown."""
    try:
        version = json.loads(_version_file(part).read_text(encoding="utf-8"))
        return version["validator"] if version["url"] == url else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _content_range(response: http.client.HTTPResponse) -> tuple[int, int] | None:
    """(first byte, size of the whole) of a partial answer, None where it does not say."""
    found = re.fullmatch(r"bytes (\d+)-\d+/(\d+)", response.headers.get("Content-Range", ""))
    return None if found is None else (int(found[1]), int(found[2]))
