"""Finding images and naming them: what lies in people's folders."""

import os
import socket
import sys
from pathlib import Path

import pytest
from PIL import Image

from ascl.core.errors import DataError
from ascl.images.find import by_any_id, find_images, images_of
from ascl.images.formats import heif_is_read

LATIN = os.fsdecode(b"caf\xe9")
as_unix = pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes, and pipes, are of Linux")


def folder_of(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).touch()
    return path


def test_images_are_found_at_any_depth_sorted_and_the_rest_is_counted(tmp_path):
    folder_of(tmp_path, "b.jpg", "a/z.PNG", "a/deep/c.jpeg", ".hidden/d.jpg", "._e.jpg", "notes.txt", "a/@eaDir/z.jpg",
              "a/IMG.NEF", "README", "#recycle/f.jpg", "Thumbs.db")
    found = find_images(tmp_path)
    assert found.ids == ["a/deep/c.jpeg", "a/z.PNG", "b.jpg"]
    assert found.paths == [tmp_path / name for name in found.ids]
    assert {name: kind.count for name, kind in found.passed_over.items()} == {
        "hidden": 2, ".txt": 1, ".nef": 1, "of no image format": 1, "thumbnails or removed files of the system": 3}
    assert found.passed_over_text().startswith("1 .nef (a/IMG.NEF), 1 .txt (notes.txt), 2 hidden (._e.jpg, .hidden), ")


def test_a_camera_library_has_an_id_for_each_file(tmp_path):
    names = ["100/IMG_0001.jpg", "100/IMG_0001.png", "101/IMG_0001.jpg"]
    assert find_images(folder_of(tmp_path, *names)).ids == names
    with pytest.raises(DataError, match=r"id 'IMG_0001': \S+100/IMG_0001.jpg and \S+100/IMG_0001.png; use paths as"):
        find_images(tmp_path, ids="stem")
    assert find_images(tmp_path / "101", ids="stem").ids == ["IMG_0001"]
    assert by_any_id(folder_of(tmp_path, "only.jpg")) == {
        **{name: tmp_path / name for name in [*names, "only.jpg"]}, "only": tmp_path / "only.jpg",
        "101/IMG_0001": tmp_path / names[2]}


def test_ids_of_several_sources_begin_with_the_folder_and_with_more_where_it_takes_more(tmp_path):
    folder_of(tmp_path, "a/2019/x.jpg", "a/2020/x.jpg", "b/2019/x.jpg", "c.png")
    first, second, other = tmp_path / "a/2019", tmp_path / "a/2020", tmp_path / "b/2019"
    assert images_of(first, second, tmp_path / "c.png").ids == ["2019/x.jpg", "2020/x.jpg", "c.png"]
    assert images_of(first, second, other).ids == ["a/2019/x.jpg", "2020/x.jpg", "b/2019/x.jpg"]
    assert images_of(first / "x.jpg", second / "x.jpg").ids == ["2019/x.jpg", "2020/x.jpg"]
    assert images_of(first / "x.jpg").ids == ["x.jpg"]


def test_linked_folders_are_followed_loops_end_and_an_image_is_named_by_its_own_place(tmp_path):
    folder_of(tmp_path, "elsewhere/far.jpg", "images/own/near.jpg")
    os.symlink(tmp_path / "elsewhere", tmp_path / "images" / "linked")
    os.symlink(tmp_path / "images", tmp_path / "elsewhere" / "back")
    os.symlink(tmp_path / "images" / "own", tmp_path / "images" / "again")
    assert find_images(tmp_path / "images").ids == ["linked/far.jpg", "own/near.jpg"]


def test_a_missing_and_an_empty_folder_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(DataError, match="no image in .*; looked for .apng, "):
        find_images(tmp_path)
    assert len(find_images(tmp_path, empty=True)) == 0
    (tmp_path / "film.mov").touch()
    with pytest.raises(DataError, match=r"no image in .*; passed over: 1 .mov \(film.mov\)"):
        find_images(tmp_path)


def test_patterns_leave_out_names_and_paths_at_any_depth(tmp_path):
    folder_of(tmp_path, "a.jpg", "a_small.jpg", "old/b.jpg", "keep/old/c.jpg", "keep/raw/d.jpg", "raw/e.jpg")
    found = find_images(tmp_path, exclude=["*_small.*", "old/", "keep/raw"])
    assert found.ids == ["a.jpg", "raw/e.jpg"] and found.passed_over["excluded"].count == 4
    assert images_of(tmp_path / "a.jpg", tmp_path / "a_small.jpg", exclude=["*_small*"]).ids == ["a.jpg"]


@pytest.mark.parametrize(("kind", "suffix"), [
    ("JPEG", ""), ("PNG", ".orig"), ("GIF", ""), ("WEBP", ""), ("BMP", ""), ("TIFF", ""), ("AVIF", ""),
    ("JPEG2000", ""), ("JPEG", ".jfif"), ("AVIF", ".avif"), ("JPEG2000", ".jp2"), ("JPEG", ".2020-01-01"),
])
def test_the_first_bytes_decide_where_the_suffix_does_not(tmp_path, kind, suffix):
    Image.new("RGB", (20, 20), "red").save(tmp_path / f"IMG{suffix}", kind)
    (tmp_path / "text").write_text("no image")
    (tmp_path / "raw.cr2").write_bytes(b"II*\0\x10\0\0\0CR\2\0")
    found = find_images(tmp_path)
    assert found.ids == [f"IMG{suffix}"]
    assert {name: kind.count for name, kind in found.passed_over.items()} == {"of no image format": 1, ".cr2": 1}


@pytest.mark.skipif(heif_is_read(), reason="pillow-heif is installed")
def test_heic_without_its_library_is_counted_with_the_remedy(tmp_path):
    folder_of(tmp_path, "a.jpg", "b.heic", "c.HEIC")
    found = find_images(tmp_path)
    assert found.ids == ["a.jpg"]
    assert found.passed_over_text().startswith("2 .heic, which needs pillow-heif: pip install 'ascl[heic]' (b.heic, c.")


@as_unix
def test_what_is_no_file_is_named_and_never_opened(tmp_path):
    folder_of(tmp_path, "fine.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    os.mkfifo(tmp_path / "pipe")
    os.mkfifo(tmp_path / "pipe.txt")
    os.symlink("loop", tmp_path / "loop")
    os.symlink("nowhere.jpg", tmp_path / "dangling.jpg")
    os.symlink("/dev/zero", tmp_path / "device.png")
    with socket.socket(socket.AF_UNIX) as server:
        here = os.getcwd()
        os.chdir(tmp_path)  # the path of a socket has at most 108 bytes
        server.bind("socket.jpg")
        os.chdir(here)
    found = find_images(tmp_path)
    assert found.ids == ["fine.jpg"] and found.passed_over[".txt"].count == 1
    reasons = {Path(fault.path).name: fault.reason for fault in found.faults}
    assert reasons == {
        "pipe.jpg": "a named pipe", "pipe": "a named pipe", "device.png": "a device", "socket.jpg": "a socket",
        "loop": "a path that cannot be followed (Too many levels of symbolic links)",
        "dangling.jpg": "a link to a file that does not exist"}
    with pytest.raises(DataError, match=r"dangling\.jpg: a link to a file that does not exist; repair or remove it"):
        find_images(tmp_path, strict=True)
    assert images_of(tmp_path / "fine.jpg", tmp_path / "pipe.jpg").ids == ["fine.jpg"]
    with pytest.raises(DataError, match=r"no image in .*pipe\.jpg; cannot be read: .*pipe\.jpg: a named pipe"):
        images_of(tmp_path / "pipe.jpg")
    with pytest.raises(DataError, match=r"pipe\.txt is a named pipe, expected a list of images"):
        images_of(tmp_path / "pipe.txt")


@as_unix
def test_names_that_are_not_utf8_become_printable_ids(tmp_path):
    folder_of(tmp_path, f"{LATIN}/a.jpg", f"{LATIN}.png")
    found = find_images(tmp_path)
    assert found.ids == ["caf\\xe9.png", "caf\\xe9/a.jpg"] and all(path.exists() for path in found.paths)
    assert find_images(tmp_path, ids="stem").ids == ["caf\\xe9", "a"]
    assert images_of(tmp_path / LATIN, tmp_path / f"{LATIN}.png").ids == ["caf\\xe9/a.jpg", "caf\\xe9.png"]
    assert find_images(tmp_path, exclude=["caf*"], empty=True).passed_over["excluded"].count == 2
    folder_of(tmp_path, "caf\\xe9.png")
    with pytest.raises(DataError, match="two images have the id .*rename one"):
        find_images(tmp_path)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_without_permission_is_named(tmp_path):
    folder_of(tmp_path, "a.jpg", "closed/b.jpg")
    (tmp_path / "closed").chmod(0)
    found = find_images(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    assert found.ids == ["a.jpg"]
    assert found.faults[0].reason == "the folder cannot be read (Permission denied)"


def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch):
    folder_of(tmp_path, "a.jpg", "closed/b.jpg")
    real = os.scandir

    def scandir(path):
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_images(tmp_path)
    assert found.ids == ["a.jpg"] and found.faults[0].path == str(tmp_path / "closed")


def test_a_list_keeps_its_order_starts_from_its_own_folder_and_names_images_as_it_does(tmp_path):
    folder_of(tmp_path, "b.jpg", "sub/a.png", "c.bmp")
    rows = f"# mine\nsub/a.png\r\n\n{tmp_path / 'c.bmp'}\n./b.jpg\nb.jpg\n"
    (tmp_path / "list.txt").write_text(rows, encoding="utf-8")
    found = images_of(tmp_path / "list.txt")
    assert found.ids == ["sub/a.png", str(tmp_path / "c.bmp"), "b.jpg"]
    assert [path.name for path in found.paths] == ["a.png", "c.bmp", "b.jpg"]
    assert found.passed_over["given twice"].count == 1
    assert images_of(tmp_path / "list.txt", ids="stem").ids == ["a", "c", "b"]


@pytest.mark.parametrize(("content", "problem"), [
    (b"none.jpg\n", r"list.txt, row 1: missing"), (b"# nothing\n", "names no image"),
    (b"b.jpg\n\xff\xfe\xff", "row 2: not UTF-8"),
])
def test_a_wrong_list_is_told_with_its_row(tmp_path, content, problem):
    folder_of(tmp_path, "b.jpg")
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=problem):
        images_of(tmp_path / "list.txt")


def test_a_missing_file_of_a_list_does_not_cost_the_others(tmp_path):
    folder_of(tmp_path, "b.jpg")
    (tmp_path / "list.txt").write_text("b.jpg\nnone.jpg\n")
    found = images_of(tmp_path / "list.txt")
    assert found.ids == ["b.jpg"]
    assert [(fault.path, fault.reason) for fault in found.faults] == [
        (str(tmp_path / "none.jpg"), f"{tmp_path / 'list.txt'}, row 2: missing")]
    with pytest.raises(DataError, match="row 2: missing"):
        images_of(tmp_path / "list.txt", strict=True)


def test_folders_lists_and_files_are_sources_of_images_each_file_once(tmp_path):
    folder_of(tmp_path, "sub/a.png", "sub/b.png", "c.bmp")
    (tmp_path / "list.txt").write_text("c.bmp\nsub/b.png\n", encoding="utf-8")
    found = images_of(tmp_path / "list.txt", tmp_path / "sub", tmp_path / "c.bmp")
    assert found.ids == ["c.bmp", "sub/b.png", "sub/a.png"]
    for wrong, problem in (("nowhere", "no such image or folder"), ("none.txt", "no list of images ")):
        with pytest.raises(DataError, match=problem):
            images_of(tmp_path / wrong)
    with pytest.raises(DataError, match="no images"):
        images_of("")
