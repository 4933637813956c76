"""Photos that were moved, renamed, changed or deleted since they were indexed; renamed models; damaged indexes."""

import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ascl.cli import main
from ascl.core.errors import DataError
from ascl.image_copy.descriptors.choice import DescriberChoice
from ascl.image_copy.matching.add import add_images
from ascl.image_copy.matching.calibrate import SAVED_AGAIN, calibrate_index
from ascl.image_copy.matching.describe import ReadOptions
from ascl.image_copy.matching.forget import named_ids, prune_index
from ascl.image_copy.matching.model import create_index, describer_of
from ascl.image_copy.matching.query import query_images
from ascl.image_copy.matching.repair import repair_index
from ascl.images.find import images_of
from ascl.images.read import SquarePixels
from ascl.index.store import CopyIndex

pytest.importorskip("imagehash")
QUICK = ReadOptions(batch_size=4)


def picture(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((96, 64), Image.Resampling.BICUBIC)


def folder_of(path: Path, seeds) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        picture(seed).save(path / f"photo_{seed:03d}.png")
    return path


class Thumbnail:
    """A describer without a network: an 8 x 8 gray thumbnail minus its mean. It counts what it describes."""

    orders_norms, dim = False, 64

    def __init__(self, name: str = "thumbnail sha256:0", **settings) -> None:
        self.model, self.settings = name, {"model": name, **settings}
        self.prepare = SquarePixels(32, "squash")
        self.described = 0

    def __call__(self, pixels):
        self.described += len(pixels)
        gray = np.stack(pixels).astype(np.float32).mean(axis=3).reshape(len(pixels), 8, 4, 8, 4).mean(axis=(2, 4))
        flat = (gray - gray.mean(axis=(1, 2), keepdims=True)).reshape(len(pixels), 64)
        return flat / np.linalg.norm(flat, axis=1, keepdims=True), None


@pytest.fixture
def photos(tmp_path) -> Path:
    return folder_of(tmp_path / "photos", range(12))


@pytest.fixture
def index(tmp_path, photos) -> CopyIndex:
    made = create_index(tmp_path / "index", DescriberChoice("phash"), Thumbnail())
    add_images(made, Thumbnail(), images_of(photos), QUICK)
    return made


def held(index: CopyIndex) -> dict[str, str]:
    """Path -> id of each image."""
    return {record.path: record.id for _, record in index.each_record()}


def test_paths_are_absolute_and_a_library_that_moves_keeps_its_vectors(index, photos, tmp_path, monkeypatch):
    assert set(held(index)) == {str(path) for path in photos.iterdir()}
    vectors = index.rows.vectors.copy()
    moved = photos.rename(tmp_path / "moved")
    (moved / "photo_001.png").rename(moved / "renamed.png")
    picture(3).save(moved / "photo_003.png", compress_level=0)      # changed, in its new place
    describer = Thumbnail()
    with pytest.raises(DataError, match="'photo_003.*': .* in the index and no longer on the disk, and .*differs"):
        add_images(index, describer, images_of(moved), QUICK)
    (moved / "photo_003.png").unlink()
    monkeypatch.chdir(tmp_path)
    done, _ = add_images(index, describer, images_of("moved"), QUICK)
    assert (done.added, done.same, done.moved, describer.described) == (0, 11, 11, 0)
    assert set(held(index)) == {str(path) for path in moved.iterdir()} | {str(photos / "photo_003.png")}
    assert np.array_equal(index.rows.vectors, vectors) and index.verify() == []
    assert add_images(index, describer, images_of(moved), QUICK)[0].moved == 0


def test_what_changes_in_its_place_is_described_again_and_copies_are_images_of_their_own(index, photos):
    picture(77).save(photos / "photo_004.png")
    shutil.copy(photos / "photo_005.png", photos / "copy.png")
    describer = Thumbnail()
    done, _ = add_images(index, describer, images_of(photos), QUICK)
    assert (done.added, done.replaced, done.same, describer.described) == (2, 1, 11, 2)
    answers, _ = query_images(index, describer, images_of(photos / "photo_004.png"), QUICK, k=1)
    assert answers[0].matches[0].path == str(photos / "photo_004.png") and answers[0].matches[0].score > 0.999
    assert len(index) == 13 and len(held(index)) == 13


def test_photos_that_swap_their_names(index, photos):
    one, two = photos / "photo_001.png", photos / "photo_002.png"
    one.rename(photos / "kept")
    two.rename(one)
    (photos / "kept").rename(two)
    add_images(index, Thumbnail(), images_of(photos), QUICK)
    for path in (one, two):
        assert query_images(index, Thumbnail(), images_of(path), QUICK, k=1)[0][0].matches[0].path == str(path)
    assert len(index) == 12


def test_an_index_that_moves_with_its_photos_finds_them(index, photos, tmp_path):
    index.close()
    away = tmp_path / "away"
    away.mkdir()
    for folder in (photos, index.folder):
        folder.rename(away / folder.name)
    moved = CopyIndex(away / "index")
    match, = query_images(moved, Thumbnail(), images_of(away / "photos" / "photo_007.png"), QUICK, k=1)[0][0].matches
    assert (match.path, match.file) == (str(away / "photos" / "photo_007.png"), "there")
    shutil.copytree(away / "photos", photos)    # other copies in the old place: those are the indexed ones
    assert moved.place_of(next(record for _, record in moved.each_record())).path.parent == photos


def test_a_match_says_whether_its_file_is_there(index, photos, capsys):
    query = photos.parent / "query.png"
    shutil.copy(photos / "photo_002.png", query)
    (photos / "photo_002.png").unlink()
    match, = query_images(index, Thumbnail(), images_of(query), QUICK, k=1)[0][0].matches
    assert (Path(match.path).name, match.file) == ("photo_002.png", "gone")
    (photos / "photo_002.png").write_bytes(b"something else")
    match, = query_images(index, Thumbnail(), images_of(query), QUICK, k=1)[0][0].matches
    assert match.file == "changed"


def test_prune_forgets_what_is_gone_but_not_a_disk_that_is_not_mounted(index, photos):
    for name in ("photo_002.png", "photo_003.png"):
        (photos / name).unlink()
    (photos / "photo_004.png").write_bytes(b"something else")
    done = prune_index(index)
    assert [Path(record.path).name for record in done.removed] == ["photo_002.png", "photo_003.png"]
    assert [Path(record.path).name for record in done.changed] == ["photo_004.png"] and len(index) == 10
    assert prune_index(index).removed == []
    shutil.rmtree(photos)
    with pytest.raises(DataError, match=r"none of its 10 files is there, such as .*Mount their disk"):
        prune_index(index)
    assert len(index) == 10


def add_folder(index: CopyIndex, folder: Path, seeds) -> list[str]:
    """Index a new folder of photos, and return its paths."""
    folder_of(folder, seeds)
    add_images(index, Thumbnail(), images_of(folder), QUICK)
    return sorted(map(str, folder.iterdir()))


def test_what_the_system_does_not_say_is_not_gone(index, tmp_path):
    disk, query = tmp_path / "disk" / "photos", tmp_path / "other" / "query.png"
    paths = add_folder(index, disk, range(20, 22))
    shutil.copytree(disk, tmp_path / "again")
    disk.rename(tmp_path / "other")
    disk.symlink_to(disk)       # `stat` fails with ELOOP, as with EACCES or EIO, also for root
    (tmp_path / "other" / "photo_020.png").rename(query)
    match, = query_images(index, Thumbnail(), images_of(query), QUICK, k=1)[0][0].matches
    assert (match.path, match.file) == (paths[0], "unreachable")
    done = prune_index(index)
    assert [record.path for record in done.unreachable] == paths and done.removed == done.unmounted == []
    assert add_images(index, Thumbnail(), images_of(tmp_path / "again"), QUICK)[0].moved == 0
    assert set(paths) <= set(held(index))
    assert main(["copy", "prune", "--index", str(index.folder)]) == 3


def test_prune_keeps_what_may_be_on_a_disk_that_is_not_mounted(index, photos, tmp_path, capsys):
    album = add_folder(index, photos / "album", range(20, 22))
    disk = add_folder(index, tmp_path / "mnt" / "disk", range(30, 32))
    target = folder_of(tmp_path / "target", range(40, 42))
    (photos / "linked").symlink_to(target)
    linked = add_folder(index, photos / "linked", range(40, 42))
    for folder in (photos / "album", tmp_path / "mnt" / "disk", target):
        shutil.rmtree(folder)
    (tmp_path / "mnt" / "disk").mkdir()     # an empty mount point
    assert main(["copy", "prune", "--index", str(index.folder)]) == 3
    said = capsys.readouterr()
    assert all(f"{path}: gone\n" in said.out for path in album) and "removed 2 images" in said.out
    assert all(f"{path}: gone with all around it, kept; mount its disk" in said.err for path in disk + linked)
    index.reload()
    assert set(disk + linked) <= set(held(index)) and not set(album) & set(held(index))


def test_a_file_on_another_disk_does_not_show_that_a_disk_is_mounted(index, tmp_path):
    memory = Path("/dev/shm")
    if not memory.is_dir() or memory.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs two disks")
    with tempfile.TemporaryDirectory(dir=memory) as other:
        (tmp_path / "media").mkdir()
        (tmp_path / "media" / "one").symlink_to(other)
        add_folder(index, tmp_path / "media" / "one", range(20, 22))
        two = add_folder(index, tmp_path / "media" / "two", range(30, 32))
        shutil.rmtree(tmp_path / "media" / "two")
        assert [record.path for record in prune_index(index).unmounted] == two


def test_images_are_removed_by_id_path_or_list(index, photos, tmp_path, monkeypatch):
    ids = held(index)
    listed = tmp_path / "list.txt"
    listed.write_text(f"# gone\nphotos/photo_003.png\n\n{ids[str(photos / 'photo_004.png')]}\n")
    monkeypatch.chdir(photos)
    names = [ids[str(photos / "photo_001.png")], "photo_002.png", str(listed)]
    found = named_ids(index, names)
    assert found == [ids[str(photos / f"photo_00{number}.png")] for number in (1, 2, 3, 4)]
    with pytest.raises(DataError, match="2 of 5 names are neither ids nor paths of images in the index: x, y; nothing"):
        named_ids(index, ["x", str(listed), "y", "photo_001.png"])


def test_a_calibration_finds_the_indexed_files_or_says_what_it_could_not_compare(index, photos, tmp_path, monkeypatch):
    background = folder_of(tmp_path / "background", range(100, 130))
    picture(5).resize((90, 60)).save(background / "saved.jpg", quality=80)
    wanted, _ = calibrate_index(index, Thumbnail(), images_of(background), QUICK, rate=0.1)
    assert wanted.left_out[SAVED_AGAIN] == 1
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert calibrate_index(index, Thumbnail(), images_of(background), QUICK, rate=0.1)[0] == wanted
    moved = photos.rename(tmp_path / "moved")
    with pytest.raises(DataError, match="22 of the 22 background images with the highest scores could not"):
        calibrate_index(index, Thumbnail(), images_of(background), QUICK, rate=0.1)
    loose, _ = calibrate_index(index, Thumbnail(), images_of(background), QUICK, rate=0.1, unchecked=True)
    assert loose.threshold > wanted.threshold and "22 of the 22 background images" in loose.warnings[-1]
    add_images(index, Thumbnail(), images_of(moved), QUICK)
    assert calibrate_index(index, Thumbnail(), images_of(background), QUICK, rate=0.1)[0] == wanted
    (moved / "photo_000.png").unlink()
    partly, _ = calibrate_index(index, Thumbnail(), images_of(background), QUICK, rate=0.1)
    assert partly.threshold == wanted.threshold
    assert any("could not be compared" in warning for warning in partly.warnings)


def test_parts_are_confirmed_after_some_seconds(index, tmp_path, monkeypatch):
    parts = []
    monkeypatch.setattr(index, "add", lambda images, **how: parts.append(len(images.ids)) or CopyIndex.add(
        index, images, **how))
    more = images_of(folder_of(tmp_path / "more", range(200, 212)))
    add_images(index, Thumbnail(), more, replace(QUICK, seconds=0))
    assert parts == [4, 4, 4] and len(index) == 24


def test_a_renamed_weights_file_is_the_same_model(tmp_path, monkeypatch):
    index = create_index(tmp_path / "index", DescriberChoice("phash"), Thumbnail("a.pt sha256:12", file="a.pt", size=3))
    made = {}
    monkeypatch.setattr("ascl.image_copy.matching.model.make_describer", lambda choice, device: made["describer"])
    made["describer"] = Thumbnail("b.pt sha256:12", file="b.pt", size=3)
    assert describer_of(index) is made["describer"]
    for other, problem in ((Thumbnail("a.pt sha256:34", file="a.pt", size=3), "was made by a.pt sha256:12, not by"),
                           (Thumbnail("b.pt sha256:12", file="b.pt", size=4), "size was 3 and is now 4")):
        made["describer"] = other
        with pytest.raises(DataError, match=problem):
            describer_of(index)


def test_another_version_of_imagehash_is_named(tmp_path, monkeypatch):
    index = create_index(tmp_path / "index", DescriberChoice("phash"),
                         Thumbnail("phash-64bit (imagehash 3.9.9)", kind="phash"))
    with pytest.raises(DataError, match=r"Install that version \(pip install imagehash==3\.9\.9\), or index"):
        describer_of(index)


def test_repair_describes_damaged_images_again_and_names_the_others(index, photos):
    wanted = held(index)
    index.close()
    path = index.folder / "vectors-0000.bin"
    data = bytearray(path.read_bytes())
    data[5] ^= 8
    path.write_bytes(data)
    (photos / "photo_003.png").unlink()
    opened = CopyIndex(index.folder)
    with pytest.raises(DataError, match="every image is damaged and left out"):
        query_images(opened, Thumbnail(), images_of(photos / "photo_001.png"), QUICK, k=1)
    done = repair_index(opened, Thumbnail(), QUICK)
    assert len(done.found) == 1 and len(done.described) == 11 and done.lost == 0
    assert [record.path for record in done.forgotten] == [str(photos / "photo_003.png")]
    del wanted[str(photos / "photo_003.png")]
    assert held(opened) == wanted and opened.verify() == [] and opened.state.removed == 0
    assert repair_index(opened, Thumbnail(), QUICK).found == []


def test_the_commands_say_it(photos, tmp_path, capsys):
    folder = str(tmp_path / "hashes")

    def said(*words, status=0):
        capsys.readouterr()
        assert main(["copy", *words, "--index", folder]) == status
        return capsys.readouterr()

    said("index", str(photos))
    (photos / "photo_001.png").rename(photos / "renamed.png")
    assert "1 of them in other places or under other names" in said("index", str(photos)).out
    (photos / "photo_002.png").unlink()
    query = tmp_path / "query.png"
    picture(2).save(query)
    assert "photo_002.png (gone)" in said("query", str(query), "--k", "1").out
    assert "photo_002.png: gone\nremoved 1 images whose files are gone; 11 remain" in said("prune").out
    assert "removed 1 images" in said("remove", str(photos / "photo_003.png")).out
    assert "verified: every vector and record is as it was written" in said("info", "--verify").out
    path, = Path(folder).glob("vectors-*.bin")
    path.write_bytes(os.urandom(path.stat().st_size))
    assert "are damaged; its 10 images are left out" in said("info", "--verify", status=1).err
    assert "found: " in said("repair").err
    assert json.loads(said("repair", "--json").out)["found"] == []
    assert said("info", "--verify").err == ""
