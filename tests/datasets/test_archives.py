"""Unpacking: what strangers may have put into an archive, kills at any moment, and full disks."""

import errno
import io
import os
import shutil
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ascl.core.errors import DataError
from ascl.datasets.archives import Unpacked, unpack

FILES = {f"train/{i}.jpg": np.random.default_rng(i).bytes(1000 * i) for i in range(5)}  # 0.jpg is empty
KINDS = ["zip", "tar", "tar.gz", "tar.xz"]


def refused(message: str, call, *arguments, **more) -> None:
    with pytest.raises(DataError, match=message):
        call(*arguments, **more)


def pack(path: Path, files: dict[str, bytes]) -> Path:
    """An archive of the kind that the name says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, content in files.items():
                file.writestr(name, content)
    else:
        compression = {".tar": "w", ".gz": "w:gz", ".xz": "w:xz"}[path.suffix]
        with tarfile.open(path, compression) as file:
            for name, content in files.items():
                add_to_tar(file, name, content)
    return path


def add_to_tar(file: tarfile.TarFile, name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE,
               to: str = "") -> None:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(content), kind, to
    file.addfile(info, io.BytesIO(content))


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def unpack_quietly(archive: Path, folder: Path, **more) -> Unpacked:
    return unpack(archive, folder, progress=False, **more)


@pytest.fixture(params=KINDS)
def archive(request, tmp_path) -> Path:
    return pack(tmp_path / f"data.{request.param}", FILES)


# ---- all is well


def test_everything_comes_out_once(archive, tmp_path):
    assert unpack_quietly(archive, tmp_path / "out") == Unpacked(5, 5)
    assert tree(tmp_path / "out") == FILES
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.jpg")}
    assert unpack_quietly(archive, tmp_path / "out") == Unpacked(5, 0)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.jpg")} == written


def test_what_is_damaged_or_missing_is_written_again(archive, tmp_path):
    out = tmp_path / "out"
    unpack_quietly(archive, out)
    (out / "train/1.jpg").unlink()
    (out / "train/2.jpg").write_bytes(FILES["train/2.jpg"][:-1])
    (out / "train/3.jpg").write_bytes(FILES["train/3.jpg"][:-1] + b"!")  # right size, false content
    (out / "train/4.jpg").unlink()
    assert unpack_quietly(archive, out) == Unpacked(5, 4)
    assert tree(out) == FILES


def test_only_what_is_wanted_and_no_droppings(tmp_path):
    files = {**FILES, "__MACOSX/train/._1.jpg": b"x", "train/.DS_Store": b"x"}
    for kind in KINDS:
        archive = pack(tmp_path / f"data.{kind}", files)
        assert unpack_quietly(archive, tmp_path / kind, wanted=lambda member: member.stem > "2") == Unpacked(2, 2)
        assert set(tree(tmp_path / kind)) == {"train/3.jpg", "train/4.jpg"}
        assert unpack_quietly(archive, tmp_path / kind).files == 5


def test_folders_and_unix_modes_of_a_zip(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        for name, mode in (("a/", stat.S_IFDIR | 0o755), ("a/b", stat.S_IFREG | 0o4777), ("./c", 0)):
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            file.writestr(info, b"" if name.endswith("/") else b"x")
    assert unpack_quietly(tmp_path / "a.zip", tmp_path / "out") == Unpacked(2, 2)
    assert not (tmp_path / "out/a/b").stat().st_mode & (stat.S_ISUID | 0o111)


# ---- strangers


OUTSIDE = ["../evil", "train/../../evil", "/evil", "//evil", "C:/evil", "c:evil", "..\\evil", "\\evil", "a\\b", "..",
           "."]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_nothing_leads_out_of_the_folder(tmp_path, name, kind):
    archive = pack(tmp_path / f"a.{kind}", {"good": b"1", name: b"2"})
    before = set(tmp_path.rglob("*")) | {tmp_path / "deep", tmp_path / "deep/out", tmp_path / "deep/out/good"}
    refused("leads out of the folder", unpack_quietly, archive, tmp_path / "deep/out")
    assert set(tmp_path.rglob("*")) <= before
    if kind == "zip":
        assert not (tmp_path / "deep").exists()  # a zip is looked through before anything is written


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from(["..", ".", "a", "b", "", "C:", "\\"]), min_size=1, max_size=5).map("/".join))
def test_no_name_of_any_make_leads_out(tmp_path, name):
    shutil.rmtree(tmp_path / "deep", ignore_errors=True)
    (tmp_path / "deep").mkdir()
    try:
        unpack_quietly(pack(tmp_path / "a.zip", {name or "x": b"1"}), tmp_path / "deep/out")
    except DataError:
        pass
    inside = [path for path in tmp_path.rglob("*") if path.is_file() and (tmp_path / "deep/out") in path.parents]
    assert set(path for path in tmp_path.rglob("*") if path.is_file()) == {tmp_path / "a.zip", *inside}


@pytest.mark.parametrize("mode", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO, stat.S_IFSOCK])
def test_a_zip_holds_no_links_and_devices(tmp_path, mode):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.writestr("good", b"1")
        info = zipfile.ZipInfo("link")
        info.external_attr = (mode | 0o777) << 16
        file.writestr(info, "../../etc")
        file.writestr("link/evil", b"2")
    refused("member link: a link or device", unpack_quietly, tmp_path / "a.zip", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_a_tar_holds_no_links_and_devices(tmp_path, kind):
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        add_to_tar(file, "good", b"1")
        add_to_tar(file, "link", kind=kind, to="..")
        add_to_tar(file, "link/evil", b"2")
    refused("member link: a link or device", unpack_quietly, tmp_path / "a.tar", tmp_path / "out")
    assert tree(tmp_path) == {"a.tar": (tmp_path / "a.tar").read_bytes(), "out/good": b"1"}


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_a_bomb_is_refused(tmp_path, kind):
    archive = pack(tmp_path / f"a.{kind}", {"bomb": bytes(20_000_000)})
    assert archive.stat().st_size < 200_000
    refused(r"would unpack to 20\.0 MB or more, over 100 times as much", unpack_quietly, archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert unpack_quietly(pack(tmp_path / f"b.{kind}", {"small": bytes(500_000)}), tmp_path / "out").written == 1


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_a_name_occurs_once(tmp_path, kind):
    archive = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("a", b"1")
            file.writestr("./a", b"2")
    else:
        with tarfile.open(archive, "w") as file:
            add_to_tar(file, "a", b"1")
            add_to_tar(file, "./a", b"2")
    refused("member ./a: occurs twice", unpack_quietly, archive, tmp_path / "out")


def test_an_encrypted_zip_is_named(tmp_path):
    archive = pack(tmp_path / "a.zip", {"a": b"1"})
    content = bytearray(archive.read_bytes())
    content[content.index(b"PK\x01\x02") + 8] |= 1  # general purpose flag, bit 0
    archive.write_bytes(content)
    refused("member a: encrypted; unpack it by hand", unpack_quietly, archive, tmp_path / "out")


def test_an_unknown_compression_is_named(tmp_path):
    archive = pack(tmp_path / "a.zip", {"a": b"1"})
    content = bytearray(archive.read_bytes())
    for header, offset in ((b"PK\x01\x02", 10), (b"PK\x03\x04", 8)):
        content[content.index(header) + offset] = 99
    archive.write_bytes(content)
    refused("unpack it with another program", unpack_quietly, archive, tmp_path / "out")


# ---- damage


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.6])
def test_a_truncated_archive_is_named_and_leaves_only_whole_files(tmp_path, kind, share):
    whole = pack(tmp_path / f"whole.{kind}", FILES).read_bytes()
    (tmp_path / f"a.{kind}").write_bytes(whole[: int(share * len(whole))])
    refused("truncated.*remove it and download it again", unpack_quietly, tmp_path / f"a.{kind}", tmp_path / "out")
    assert tree(tmp_path / "out").items() <= FILES.items()


def test_a_false_byte_in_a_zip_is_found(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:  # stored, so that only the CRC can tell
        for name, content in FILES.items():
            file.writestr(name, content)
    content = bytearray((tmp_path / "a.zip").read_bytes())
    content[content.index(FILES["train/3.jpg"]) + 5] ^= 1
    (tmp_path / "a.zip").write_bytes(content)
    refused("Bad CRC-32.*train/3.jpg", unpack_quietly, tmp_path / "a.zip", tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {"train/0.jpg", "train/1.jpg", "train/2.jpg"}


def test_no_archive(tmp_path):
    refused("no archive", unpack_quietly, tmp_path / "a.zip", tmp_path / "out")
    (tmp_path / "a.zip").write_bytes(b"<html>404</html>" * 100)
    refused("damaged or not a zip or tar", unpack_quietly, tmp_path / "a.zip", tmp_path / "out")
    for empty in (bytes(100_000), pack(tmp_path / "b.zip", {}).read_bytes(), pack(tmp_path / "b.tar", {}).read_bytes()):
        (tmp_path / "a.zip").write_bytes(empty)
        refused("holds no file", unpack_quietly, tmp_path / "a.zip", tmp_path / "out")


# ---- this machine


@pytest.mark.parametrize("kind", KINDS)
def test_the_disk_is_too_small(tmp_path, kind, monkeypatch):
    archive = pack(tmp_path / f"a.{kind}", FILES)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10, 5, 9_000))
    refused("free some space", unpack_quietly, archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_disk_fills_up_on_the_way(archive, tmp_path, monkeypatch):
    replace = os.replace

    def full(source, target):
        if Path(target).name == "3.jpg":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    refused("3.jpg: No space left .* run the command again", unpack_quietly, archive, tmp_path / "out")
    assert set(tree(tmp_path / "out")) == {"train/0.jpg", "train/1.jpg", "train/2.jpg"}
    monkeypatch.undo()
    assert unpack_quietly(archive, tmp_path / "out") == Unpacked(5, 2)
    assert tree(tmp_path / "out") == FILES


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_killed_at_any_moment_it_goes_on_and_nothing_is_half_there(tmp_path, kind):
    files = {f"{i:03d}.bin": np.random.default_rng(i).bytes(200_000) for i in range(150)}
    archive, out = pack(tmp_path / f"a.{kind}", files), tmp_path / "out"
    program = f"from ascl.datasets.archives import unpack; unpack({str(archive)!r}, {str(out)!r})"
    command = [sys.executable, "-c", program]
    kills = 0
    for at_least in (1, 60):
        program = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        while program.poll() is None and len(list(out.glob("*.bin"))) < at_least:
            time.sleep(0.005)
        program.send_signal(signal.SIGKILL)
        kills += program.wait() == -signal.SIGKILL
        there = {name: content for name, content in tree(out).items() if name.endswith(".bin")}
        assert there.items() <= files.items()
    assert kills
    already = len(there)
    assert unpack_quietly(archive, out) == Unpacked(150, 150 - already)
    assert tree(out) == files


def test_a_tar_of_the_current_folder_is_unpacked(tmp_path):
    """`tar -czf x.tgz .` begins with the folder itself."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.txt").write_text("a")
    with tarfile.open(tmp_path / "x.tgz", "w:gz") as tar:
        tar.add(tmp_path / "in", arcname=".")
    assert unpack(tmp_path / "x.tgz", tmp_path / "out", progress=False).files == 1
    assert (tmp_path / "out" / "a.txt").read_text() == "a"


def test_a_tar_with_a_huge_extra_header_is_refused_before_it_is_read(tmp_path):
    long = tarfile.TarInfo("././@LongLink")
    long.type, long.size = tarfile.GNUTYPE_LONGNAME, 1 << 34
    (tmp_path / "x.tar").write_bytes(long.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(DataError, match="a header of 17,179,869,184 bytes"):
        unpack(tmp_path / "x.tar", tmp_path / "out", progress=False)
