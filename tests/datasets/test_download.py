"""Fetching from a real server on this machine that breaks off, stalls, changes its file and lies."""

import errno
import hashlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ascl.core.errors import DataError
from ascl.core.files import readable
from ascl.datasets import download
from ascl.datasets.download import Patience, RemoteFile, at_mirror, fetch, fetched

from ..faulty_server import Server
from ..warm_python import REPOSITORY, Program

HASTY = Patience(timeout=5.0, attempts=3, backoff=0.0)
CONTENT = np.random.default_rng(0).bytes(3_000_000)  # more than one piece of a megabyte
OTHER = np.random.default_rng(1).bytes(len(CONTENT))


def refused(message: str, call, *arguments, **more) -> None:
    with pytest.raises(DataError, match=message):
        call(*arguments, **more)


@pytest.fixture
def server():
    server = Server(CONTENT)
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


def remote(server: Server, content: bytes = CONTENT) -> RemoteFile:
    return RemoteFile(f"{server.url}/some/file.zip", len(content), hashlib.sha256(content).hexdigest())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fetch_hastily(file: RemoteFile, folder: Path, patience: Patience = HASTY) -> Path:
    return fetch(file, folder, patience=patience, progress=False)


def broken_off(server: Server, folder: Path, at: int = 1_234_567) -> None:
    """Leave the first `at` bytes as an earlier call that broke off would."""
    server.faults = [("cut", at)] + [("status", 503, {})] * HASTY.attempts
    refused("503", fetch_hastily, remote(server), folder)
    assert fetched(remote(server), folder) == at
    server.faults, server.requests, server.sent = [], [], 0


# ---- all is well


def test_a_fetched_file_is_whole_alone_and_not_fetched_again(server, tmp_path):
    path = fetch_hastily(remote(server), tmp_path / "new" / "folder")
    assert path.read_bytes() == CONTENT
    assert names(path.parent) == ["file.zip"]
    assert fetch_hastily(remote(server), path.parent) == path
    assert len(server.requests) == 1


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cuts=st.lists(st.integers(1, len(CONTENT)), max_size=4))
def test_wherever_it_breaks_off_each_byte_comes_once(server, tmp_path, cuts):
    server.sent, server.faults = 0, [("cut", cut) for cut in cuts]
    path = fetch_hastily(remote(server), tmp_path)
    assert path.read_bytes() == CONTENT and server.sent == len(CONTENT)
    path.unlink()


def test_a_later_call_goes_on_where_the_first_stopped(server, tmp_path):
    broken_off(server, tmp_path, at=1_000_001)
    assert fetch_hastily(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.requests[0]["Range"] == "bytes=1000001-" and server.requests[0]["If-Range"] == '"one"'
    assert server.sent == len(CONTENT) - 1_000_001


def test_a_whole_part_needs_no_request(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(CONTENT)  # killed between the last byte and the checksum
    assert fetch_hastily(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.requests == [] and names(tmp_path) == ["file.zip"]


def test_a_mirror_has_the_same_name_and_checksum(server, tmp_path):
    publisher = RemoteFile("http://publisher.invalid/deep/file.zip", len(CONTENT), remote(server).sha256)
    assert at_mirror(publisher, None) is publisher
    file = at_mirror(publisher, server.url + "/copies/")
    assert file == RemoteFile(f"{server.url}/copies/file.zip", publisher.size, publisher.sha256)
    assert fetch_hastily(file, tmp_path).read_bytes() == CONTENT


# ---- two versions are never spliced


@pytest.mark.parametrize("heeds_if_range", [True, False])
def test_a_file_that_changed_in_between_is_fetched_anew(server, tmp_path, heeds_if_range):
    broken_off(server, tmp_path)
    server.content, server.etag, server.modified = OTHER, '"two"', "Sun, 22 Nov 2026 10:00:00 GMT"
    server.heeds_if_range = heeds_if_range
    assert fetch_hastily(remote(server, OTHER), tmp_path).read_bytes() == OTHER
    assert server.sent >= len(OTHER)


def test_a_server_that_lies_about_its_version_is_caught_by_the_checksum(server, tmp_path):
    """The planted fault: with the same ETag for another content the pieces are spliced, and may not pass."""
    broken_off(server, tmp_path)
    server.content = OTHER
    refused("sha256", fetch_hastily, remote(server, OTHER), tmp_path)
    assert names(tmp_path) == []
    assert fetch_hastily(remote(server, OTHER), tmp_path).read_bytes() == OTHER


def test_another_address_begins_anew(server, tmp_path):
    broken_off(server, tmp_path)
    file = RemoteFile(f"{server.url}/mirror/file.zip", len(CONTENT), remote(server).sha256)
    assert fetch_hastily(file, tmp_path).read_bytes() == CONTENT
    assert "Range" not in server.requests[0]


@pytest.mark.parametrize(("etag", "modified", "validator"), [
    (None, "Sat, 21 Nov 2026 10:00:00 GMT", "Sat, 21 Nov 2026 10:00:00 GMT"),
    ('W/"weak"', "Sat, 21 Nov 2026 10:00:00 GMT", "Sat, 21 Nov 2026 10:00:00 GMT"),
    (None, None, None),
    ('W/"weak"', None, None),
])
def test_only_what_names_the_version_for_sure_lets_it_go_on(server, tmp_path, etag, modified, validator):
    server.etag, server.modified = etag, modified
    broken_off(server, tmp_path)
    assert fetch_hastily(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.requests[0].get("If-Range") == validator
    assert ("Range" in server.requests[0]) == (validator is not None)


def test_a_server_without_ranges_sends_all_of_it_again(server, tmp_path):
    broken_off(server, tmp_path)
    server.ranges = False
    assert fetch_hastily(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.sent == len(CONTENT)


def test_a_part_that_is_too_long_or_of_unknown_version_is_thrown_away(server, tmp_path):
    (tmp_path / "file.zip.part").write_bytes(OTHER + b"more")
    assert fetch_hastily(remote(server), tmp_path).read_bytes() == CONTENT
    (tmp_path / "file.zip").unlink()
    (tmp_path / "file.zip.part").write_bytes(OTHER[:100])
    (tmp_path / "file.zip.part.json").write_text("[1, 2")
    assert fetch_hastily(remote(server), tmp_path).read_bytes() == CONTENT


# ---- what is false is refused


def test_a_wrong_checksum_leaves_nothing_and_says_what_to_do(server, tmp_path):
    server.content = OTHER
    with pytest.raises(DataError) as refusal:
        fetch_hastily(remote(server, CONTENT), tmp_path)
    for told in (remote(server, OTHER).sha256, remote(server, CONTENT).sha256, "give a mirror", "downloads it again"):
        assert told in str(refusal.value)
    assert names(tmp_path) == []


def test_another_size_is_refused_before_the_first_byte(server, tmp_path):
    server.content = CONTENT + b"!"
    refused("offers 3000001 bytes, the published file has 3000000", fetch_hastily, remote(server), tmp_path)
    assert len(server.requests) == 1 and fetched(remote(server), tmp_path) == 0


def test_a_stream_without_a_length_may_not_go_on_for_ever(server, tmp_path):
    server.faults = [("chunked",)]
    assert fetch_hastily(remote(server), tmp_path / "right").read_bytes() == CONTENT
    server.content, server.faults = CONTENT * 2, [("chunked",)]
    refused("sends more than the 3000000 bytes", fetch_hastily, remote(server), tmp_path / "long")
    assert fetched(remote(server), tmp_path / "long") == 0


def test_a_false_file_under_the_final_name_is_named_and_kept(server, tmp_path):
    for content, told in ((b"short", "has 5 bytes"), (OTHER, "has the sha256")):
        (tmp_path / "file.zip").write_bytes(content)
        refused(f"{told}.*remove it", fetch_hastily, remote(server), tmp_path)
        assert (tmp_path / "file.zip").read_bytes() == content
    assert server.requests == []


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://a/b", "a/b.zip", "http:///b.zip", "http://[a/b.zip", "http://a/"])
def test_an_address_that_is_none_is_refused(url):
    refused("is not the address of a file", RemoteFile, url, 1, "0")


# ---- size and checksum that nobody has published


def unpublished(server: Server) -> RemoteFile:
    return RemoteFile(f"{server.url}/some/file.pt", None, None, "ask somebody else")


def test_a_file_of_unknown_size_and_checksum_is_as_the_server_says(server, tmp_path):
    server.faults = [("cut", 1_234_567)]
    assert fetch_hastily(unpublished(server), tmp_path).read_bytes() == CONTENT
    assert server.requests[1]["Range"] == "bytes=1234567-" and server.sent == len(CONTENT)
    assert names(tmp_path) == ["file.pt"]


@pytest.mark.parametrize("other", [OTHER, OTHER[:2_000_000], OTHER + b"more"])
def test_one_that_changed_in_between_is_fetched_anew_with_its_new_size(server, tmp_path, other):
    server.faults = [("cut", 1_234_567)] + [("status", 503, {})] * HASTY.attempts
    refused("1234567 of 3000000 bytes are in .* or ask somebody else", fetch_hastily, unpublished(server), tmp_path)
    server.content, server.etag, server.modified = other, '"two"', "Sun, 22 Nov 2026 10:00:00 GMT"
    assert fetch_hastily(unpublished(server), tmp_path).read_bytes() == other


def test_a_part_whose_record_is_lost_is_fetched_anew(server, tmp_path):
    (tmp_path / "file.pt.part").write_bytes(CONTENT)    # it may be whole, but nobody knows
    assert fetch_hastily(unpublished(server), tmp_path).read_bytes() == CONTENT
    assert "Range" not in server.requests[0] and server.sent == len(CONTENT)


def test_every_refusal_says_what_to_do_instead(server, tmp_path):
    for fault in (("status", 404, {}), ("chunked",)):
        server.faults = [fault]
        refused("ask somebody else", fetch_hastily, unpublished(server), tmp_path)


# ---- faults of network and server


@pytest.mark.parametrize("code", [404, 403, 410, 401])
def test_a_final_refusal_is_not_tried_again(server, tmp_path, code):
    server.faults = [("status", code, {})]
    refused(f"answers {code} .*give a mirror, or download it by hand", fetch_hastily, remote(server), tmp_path)
    assert len(server.requests) == 1


def test_passing_faults_are_waited_out_longer_each_time_and_as_the_server_asks(server, tmp_path):
    pauses: list[float] = []
    server.faults = [("status", 500, {}), ("status", 503, {}), ("status", 429, {"Retry-After": "17"}),
                     ("status", 429, {"Retry-After": "99999"})]
    fetch_hastily(remote(server), tmp_path, Patience(timeout=5.0, attempts=6, backoff=1.0, sleep=pauses.append))
    assert pauses == [1.0, 2.0, 17.0, 120.0]


def test_attempts_without_a_new_byte_end(server, tmp_path):
    server.faults = [("cut", 1000), ("cut", 1000), ("cut", 0), ("cut", 0), ("cut", 0)]
    with pytest.raises(DataError, match=r"3 times in a row; 2000 of 3000000 bytes are in .*continues from there"):
        fetch_hastily(remote(server), tmp_path)
    assert len(server.requests) == 5
    assert fetch_hastily(remote(server), tmp_path).read_bytes() == CONTENT


def test_a_server_without_ranges_that_always_breaks_off_does_not_keep_us_for_ever(server, tmp_path):
    server.ranges, server.faults = False, [("cut", 1000)] * 50
    refused("3 times in a row", fetch_hastily, remote(server), tmp_path)
    assert len(server.requests) == 4


def test_a_stalled_connection_is_given_up_and_taken_up_again(server, tmp_path):
    server.faults = [("stall", 700_000)]
    started = time.monotonic()
    assert fetch_hastily(remote(server), tmp_path, Patience(0.3, 3, 0.0)).read_bytes() == CONTENT
    assert time.monotonic() - started < 5 and server.sent == len(CONTENT)


def test_nobody_there(tmp_path):
    server = Server(b"")
    server.shutdown()
    server.server_close()
    refused("connection failed .*, 3 times in a row", fetch_hastily, remote(server), tmp_path)


# ---- this machine


def test_a_full_disk_keeps_what_is_there(server, tmp_path, monkeypatch):
    class Sink:
        def __init__(self, file):
            self.file = file

        def write(self, data):
            if self.file.tell() + len(data) > 1_500_000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

        def __enter__(self):
            return self

        def __exit__(self, *error):
            self.file.close()

    monkeypatch.setattr(download, "open", lambda path, mode, **more: Sink(open(path, mode, **more)), raising=False)
    refused(r"the disk is full .* continues from here", fetch_hastily, remote(server), tmp_path)
    monkeypatch.undo()
    kept = fetched(remote(server), tmp_path)
    assert 0 < kept <= 1_500_000 and len(server.requests) == 1
    assert fetch_hastily(remote(server), tmp_path).read_bytes() == CONTENT
    assert server.requests[1]["Range"] == f"bytes={kept}-"


def test_a_folder_that_cannot_be_written_is_no_fault_of_the_network(server, tmp_path):
    (tmp_path / "file.zip.part.json").mkdir()
    refused("cannot write .*: Is a directory", fetch_hastily, remote(server), tmp_path)
    assert len(server.requests) == 1


def test_a_second_process_is_kept_away(server, tmp_path):
    with FileLock(tmp_path / "file.zip.part.lock"), pytest.raises(DataError, match="another process is downloading"):
        fetch_hastily(remote(server), tmp_path)
    assert fetch_hastily(remote(server), tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize(("size", "told"), [
    (0, "0 bytes"), (999, "999 bytes"), (1000, "1.0 kB"), (999_960, "1.0 MB"), (36_745_453, "36.7 MB"),
    (13_510_573_713, "13.5 GB"), (10**15, "1000.0 TB"),
])
def test_sizes_in_words(size, told):
    assert readable(size) == told


def test_the_program_is_killed_while_the_server_stalls_and_goes_on(server, tmp_path):
    """SIGKILL in the middle; the same command asks for the rest only, and refuses the false bytes at the end."""
    from ascl.datasets.published import PUBLISHED

    published = PUBLISHED["flickr8k"].captions
    server.content, server.faults = bytes(published.size), [("stall", 5_000_000)]
    command = [REPOSITORY / "tools" / "prepare_data.py", "--dataset", "flickr8k", "--mirror",
               server.url, "--data.captions", str(tmp_path / "dataset_flickr8k.json"), "--data.images", "null",
               "--data.features", "x.h5"]
    part = tmp_path / "caption_datasets.zip.part"
    program = Program(*command)
    deadline = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size == 5_000_000):
        assert program.status is None and time.monotonic() < deadline
        time.sleep(0.01)
    program.kill()
    assert program.status == -signal.SIGKILL
    assert part.stat().st_size == 5_000_000
    server.release.set()

    again = Program(*command)
    assert again.wait(60) == 1
    assert [request.get("Range") for request in server.requests] == [None, "bytes=5000000-"]
    assert server.sent == published.size
    assert published.sha256 in again.complained() and "Traceback" not in again.complained()
    assert "of which 5.0 MB are there" in again.said()
    assert names(tmp_path) == []
