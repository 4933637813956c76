"""Writing features: the file's layout, resuming after a kill at any moment, and what is refused."""

import json
import multiprocessing
import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from ascl.core.errors import DataError
from ascl.data.stores.open import open_features
from ascl.data.stores.writing import create_rows
from ascl.features import writer
from ascl.features.feature_file import merge_shards, shards_beside
from ascl.features.writer import Shard, extract
from ascl.images.find import ImageFile, find_images
from ascl.images.read import SquarePixels


class Colors:
    """A backend without a network: a 3x3 thumbnail of each image as its 9 regions, times a gain."""

    names: dict = {}

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = gain
        self.settings = {"backend": "colors", "gain": gain}
        self.prepare = SquarePixels(3, "squash")

    def extract(self, pixels, sizes):
        assert len({array.shape for array in pixels}) == 1
        with np.errstate(invalid="ignore"):
            regions = np.stack(pixels).reshape(-1, 9, 3).astype(np.float32) * self.gain
        boxes = np.tile(np.concatenate([0 * sizes, sizes], axis=1)[:, None].astype(np.float32), (9, 1))
        return {"regions": regions, "boxes": boxes}


def color_of(index: int) -> tuple[int, int, int]:
    return (index * 7 % 256, index * 31 % 256, index * 101 % 256)


@pytest.fixture
def images(tmp_path) -> list[ImageFile]:
    """23 images, each of one color that tells its index."""
    (tmp_path / "images").mkdir()
    for index in range(23):
        image = Image.new("RGB", (10 + index, 20), color_of(index))
        image.save(tmp_path / "images" / f"image_{index:02d}.png")
    return list(find_images(tmp_path / "images", ids="stem"))


QUICK = {"batch_size": 3, "workers": 0, "part_size": 5, "progress": False, "resume": True}


def contents(path: Path) -> dict:
    """Every dataset and attribute; the provenance without its date."""
    with h5py.File(path) as file:
        provenance = json.loads(file.attrs["provenance"])
        provenance.pop("date")
        datasets = {name: (file[name][()].tolist(), str(file[name].dtype), file[name].chunks) for name in file}
        return {**datasets, "provenance": provenance, "format": file.attrs["format"], "version": file.attrs["version"]}


def test_the_file_holds_each_images_own_rows_in_the_promised_layout(images, tmp_path):
    done = extract(Colors(), images, tmp_path / "out" / "features.h5", **QUICK)
    with h5py.File(done.path) as file:
        assert file.attrs["format"] == "ascl-features" and file.attrs["version"] == 1
        assert file["image_ids"].asstr()[:].tolist() == [f"image_{index:02d}" for index in range(23)]
        assert file["image_sizes"][:].tolist() == [[10 + index, 20] for index in range(23)]
        assert file["image_sizes"].dtype == np.int32
        assert file["regions"].dtype == np.float16 and file["boxes"].dtype == np.float32
        for index in range(23):
            assert file["regions"][index].tolist() == [list(color_of(index))] * 9
            assert file["boxes"][index, 0].tolist() == [0, 0, 10 + index, 20]
        provenance = json.loads(file.attrs["provenance"])
    assert provenance["settings"]["gain"] == 1.0 and provenance["settings"]["images"] == 23
    (made_with,) = provenance["versions"]
    assert set(made_with) >= {"ascl", "python", "torch", "numpy", "PIL", "h5py"} and provenance["skipped"] == []
    assert done.shapes["regions"] == (23, 9, 3) and done.extracted == 23
    assert "regions 23x9x3" in done.summary() and "images/s" in done.summary()
    assert [path.name for path in done.path.parent.iterdir()] == ["features.h5"]  # no parts, no temporaries


def test_the_feature_store_reads_what_was_written(images, tmp_path):
    class Means(Colors):
        def extract(self, pixels, sizes):
            return {"globals": super().extract(pixels, sizes)["regions"].mean(axis=1)}

    extract(Colors(), images, tmp_path / "regions.h5", **QUICK)
    extract(Means(), images, tmp_path / "globals.h5", **QUICK)
    store = open_features([tmp_path / "regions.h5", tmp_path / "globals.h5"])
    read = store.read(store.rows(["image_20", "image_03", "image_20"]))
    assert (store.num_regions, store.region_dim, store.global_dim) == (9, 3, 3)
    assert read.globals.tolist() == [list(color_of(20)), list(color_of(3)), list(color_of(20))]
    assert read.regions[1].tolist() == [list(color_of(3))] * 9
    assert read.boxes[1, 0].tolist() == [0, 0, 13, 20]


@pytest.mark.parametrize("other", [{"workers": 2}, {"batch_size": 64}, {"part_size": 100}, {"part_size": 1}])
def test_how_the_work_is_cut_changes_nothing(images, tmp_path, other):
    extract(Colors(), images, tmp_path / "one.h5", **QUICK)
    extract(Colors(), images, tmp_path / "other.h5", **QUICK | other)
    one, two = contents(tmp_path / "one.h5"), contents(tmp_path / "other.h5")
    one["provenance"]["settings"].pop("part_size"), two["provenance"]["settings"].pop("part_size")
    assert one == two


def test_float32_is_kept_whole(images, tmp_path):
    extract(Colors(1 / 3), images, tmp_path / "whole.h5", dtype="float32", **QUICK)
    with h5py.File(tmp_path / "whole.h5") as file:
        wanted = np.array([color_of(index) for index in range(23)], dtype=np.float32) * np.float32(1 / 3)
        assert np.array_equal(file["regions"][:, 4], wanted)


def test_chunks_are_one_large_image_or_many_small_ones(tmp_path):
    with h5py.File(tmp_path / "chunks.h5", "w") as file:
        large = create_rows(file, "large", np.zeros((1, 36, 2048), np.float16), 100)
        small = create_rows(file, "small", np.zeros((1, 2048), np.float16), 100)
        few = create_rows(file, "few", np.zeros((1, 4), np.float32), 3)
        assert (large.chunks, small.chunks, few.chunks) == ((1, 36, 2048), (16, 2048), (3, 4))


# --- a kill at any moment --------------------------------------------------------------------------------------------


def die_at_rename(number: int, before: bool, images, out) -> None:
    """Run in a child: extract, and be killed right before or right after the rename of this number."""
    real, seen = os.replace, iter(range(10**6))

    def replace(source, target):
        mine = next(seen) == number
        if mine and before:
            os.kill(os.getpid(), signal.SIGKILL)
        real(source, target)
        if mine:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace
    extract(Colors(), images, out, **QUICK)


# 23 images in parts of 5: settings.json, five parts and the file make seven renames
@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("number", range(7))
def test_a_kill_around_any_rename_loses_at_most_a_part(images, tmp_path, number, before):
    out = tmp_path / "killed.h5"
    child = multiprocessing.get_context("fork").Process(target=die_at_rename, args=(number, before, images, out))
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    assert out.exists() == (number == 6 and not before)
    done = extract(Colors(), images, out, **QUICK)
    extract(Colors(), images, tmp_path / "whole.h5", **QUICK)
    assert contents(out) == contents(tmp_path / "whole.h5")
    finished = min(max(number - before, 0), 5)
    assert done.extracted == 23 - min(5 * finished, 23)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "killed.h5", "whole.h5"}


def test_a_full_disk_keeps_the_finished_parts(images, tmp_path, monkeypatch):
    real, saved = np.savez, []

    def full_after_two(file, **rows):
        if len(saved) == 2:
            file.write(b"half")
            raise OSError(28, "No space left on device")
        saved.append(1)
        real(file, **rows)

    monkeypatch.setattr(np, "savez", full_after_two)
    with pytest.raises(DataError, match=r"00000010\.npz: No space left"):
        extract(Colors(), images, tmp_path / "full.h5", **QUICK)
    assert sorted(path.name for path in (tmp_path / "full.h5.parts").glob("*")) == [
        "00000000.npz", "00000005.npz", "lock", "settings.json"
    ]
    monkeypatch.undo()
    assert extract(Colors(), images, tmp_path / "full.h5", **QUICK).extracted == 13


def test_a_finished_file_is_not_made_again(images, tmp_path):
    extract(Colors(), images, tmp_path / "features.h5", **QUICK)
    before = (tmp_path / "features.h5").stat().st_mtime_ns
    again = extract(Colors(), images, tmp_path / "features.h5", **QUICK)
    assert (again.extracted, (tmp_path / "features.h5").stat().st_mtime_ns) == (0, before)
    assert "nothing was left to do" in again.summary()


# --- what is refused -------------------------------------------------------------------------------------------------


def interrupted(images, out: Path) -> None:
    """Leaves two parts."""

    class Stops(Colors):
        def extract(self, pixels, sizes):
            if sizes[0, 0] >= 20:
                raise KeyboardInterrupt
            return super().extract(pixels, sizes)

    with pytest.raises(KeyboardInterrupt):
        extract(Stops(), images, out, **QUICK)


def test_parts_and_files_of_other_settings_are_refused_and_kept(images, tmp_path):
    out = tmp_path / "features.h5"
    interrupted(images, out)
    with pytest.raises(
        DataError, match=r"features\.h5\.parts was made with other settings: gain was 1\.0 and is now 2"
    ):
        extract(Colors(2.0), images, out, **QUICK)
    with pytest.raises(DataError, match="dtype was 'float16' and is now 'float32'"):
        extract(Colors(), images, out, dtype="float32", **QUICK)
    with pytest.raises(DataError, match="image_ids_sha256 was .* images was 23 and is now 22"):
        extract(Colors(), images[1:], out, **QUICK)
    assert extract(Colors(), images, out, **QUICK).extracted == 13
    with pytest.raises(DataError, match=r"features\.h5 was made with other settings: gain"):
        extract(Colors(2.0), images, out, **QUICK)
    assert contents(out)["provenance"]["settings"]["gain"] == 1.0


def test_an_image_that_was_repaired_costs_its_part_alone(images, tmp_path):
    out = tmp_path / "features.h5"
    images[12].path.write_bytes(b"")
    with pytest.raises(DataError, match=r"image_12.*repair it, or skip such images .*, and continue with resume"):
        extract(Colors(), images, out, strict=True, **QUICK)
    Image.new("RGB", (50, 50), (1, 2, 3)).save(images[12].path)
    noise = np.random.default_rng(0).integers(0, 256, (50, 50, 3), dtype=np.uint8)
    Image.fromarray(noise).save(images[0].path)  # and one of a finished part was changed
    assert extract(Colors(), images, out, **QUICK).extracted == 23 - 5  # only the second part is still good
    with h5py.File(out) as file:
        assert file["regions"][12].tolist() == [[1, 2, 3]] * 9 and file["image_sizes"][0].tolist() == [50, 50]
    Image.fromarray(noise[:40]).save(images[1].path)
    with pytest.raises(DataError, match=r"features\.h5 was made with other settings: images_sha256 was"):
        extract(Colors(), images, out, **QUICK)


def test_a_failing_disk_is_not_an_unreadable_image(images, tmp_path):
    images[7].path.unlink()
    out = tmp_path / "features.h5"
    (tmp_path / "elsewhere").mkdir()
    images[7].path.symlink_to(tmp_path / "elsewhere" / "image.png")  # a network disk that is away
    with pytest.raises(FileNotFoundError):
        extract(Colors(), images, out, **QUICK)
    images[7].path.unlink()
    images[7].path.mkdir()
    with pytest.raises(DataError, match=r"image_07\.png: the file cannot be read from the disk"):
        extract(Colors(), images, out, **QUICK)
    images[7].path.rmdir()
    Image.new("RGB", (17, 20), color_of(7)).save(images[7].path)
    assert extract(Colors(), images, out, **QUICK).skipped == []


def test_parts_of_other_versions_are_recorded(images, tmp_path):
    out = tmp_path / "features.h5"
    interrupted(images, out)
    part = tmp_path / "features.h5.parts" / "00000000.npz"
    with np.load(part) as rows:
        other = {**rows, "versions": np.array(json.dumps({"ascl": "another"}))}
    np.savez(part, **other)
    extract(Colors(), images, out, **QUICK)
    with h5py.File(out) as file:
        made_with = json.loads(file.attrs["provenance"])["versions"]
    assert len(made_with) == 2 and made_with[0] == {"ascl": "another"} and made_with[1]["python"]


def test_parts_can_be_computed_in_another_working_directory(images, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    relative = [ImageFile(image.path.relative_to(tmp_path), image.id) for image in images]

    def elsewhere(plan, spans, bar):
        (tmp_path / "elsewhere").mkdir()
        monkeypatch.chdir(tmp_path / "elsewhere")
        return writer.compute_parts(Colors(), plan, spans, bar)

    assert extract(Colors(), relative, "features.h5", compute=elsewhere, **QUICK).extracted == 23
    assert (tmp_path / "features.h5").exists() and not any((tmp_path / "elsewhere").iterdir())


def test_a_file_of_someone_else_is_never_overwritten(images, tmp_path):
    (tmp_path / "notes.h5").write_text("mine")
    with pytest.raises(DataError, match=r"notes\.h5 .* not a feature file"):
        extract(Colors(), images, tmp_path / "notes.h5", **QUICK)
    assert (tmp_path / "notes.h5").read_text() == "mine"


def test_a_damaged_part_is_named(images, tmp_path):
    interrupted(images, tmp_path / "features.h5")
    part = tmp_path / "features.h5.parts" / "00000005.npz"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(DataError, match=r"00000005\.npz .* damaged .* delete only this file"):
        extract(Colors(), images, tmp_path / "features.h5", **QUICK)
    part.unlink()
    extract(Colors(), images, tmp_path / "features.h5", **QUICK)
    extract(Colors(), images, tmp_path / "whole.h5", **QUICK)
    assert contents(tmp_path / "features.h5") == contents(tmp_path / "whole.h5")


@pytest.mark.parametrize("workers", [0, 2])
def test_an_unreadable_image_stops_by_name_and_the_work_goes_on_without_it(images, tmp_path, workers):
    whole = images[0].path.read_bytes()
    images[7].path.write_bytes(b"")
    images[22].path.write_bytes(whole[: len(whole) // 2])
    out, quick = tmp_path / "features.h5", QUICK | {"workers": workers}
    with pytest.raises(DataError, match=r"image_07\.png: cannot be read .* skip such images"):
        extract(Colors(), images, out, strict=True, **quick)
    done = extract(Colors(), images, out, **quick)
    assert done.extracted == 18  # the first part was kept
    assert [skip["image"] for skip in done.skipped] == ["image_07", "image_22"]
    assert all(skip["reason"] for skip in done.skipped)
    assert "skipped 2 unreadable images" in done.summary() and "image_22: " in done.summary()
    with h5py.File(out) as file:
        ids = file["image_ids"].asstr()[:].tolist()
        assert ids == [f"image_{index:02d}" for index in range(23) if index not in (7, 22)]
        assert [row[0].tolist() for row in file["regions"]] == [list(color_of(int(name[-2:]))) for name in ids]
        assert json.loads(file.attrs["provenance"])["skipped"] == done.skipped
    assert extract(Colors(), images, out, **quick).skipped == done.skipped


def test_a_part_of_unreadable_images_only_and_then_all_of_them(images, tmp_path):
    for image in images[5:10]:
        image.path.write_bytes(b"x")
    done = extract(Colors(), images, tmp_path / "some.h5", **QUICK)
    assert done.shapes["regions"] == (18, 9, 3)
    for image in images:
        image.path.write_bytes(b"x")
    with pytest.raises(DataError, match="none of the 23 images can be read"):
        extract(Colors(), images, tmp_path / "none.h5", **QUICK)


def test_what_was_skipped_before_needs_the_same_word_again(images, tmp_path):
    images[0].path.write_bytes(b"")

    class Stops(Colors):
        def extract(self, pixels, sizes):
            if sizes[0, 0] >= 20:
                raise KeyboardInterrupt
            return super().extract(pixels, sizes)

    with pytest.raises(KeyboardInterrupt):
        extract(Stops(), images, tmp_path / "features.h5", **QUICK)
    with pytest.raises(DataError, match=r"skipped unreadable images \(image_00\)"):
        extract(Colors(), images, tmp_path / "features.h5", strict=True, **QUICK)


@pytest.mark.parametrize(("gain", "remedy"), [(1e4, "try dtype float32"), (float("inf"), "check the weights")])
def test_features_that_the_precision_cannot_hold_name_the_image(images, tmp_path, gain, remedy):
    with pytest.raises(DataError, match=f"image image_0[01]: its features are not finite in float16; {remedy}"):
        extract(Colors(gain), images, tmp_path / "features.h5", **QUICK)


# --- images of many shapes, names, counts ----------------------------------------------------------------------------


class WholeImages(Colors):
    """Each image at its own size; up to 4 regions, as many as the image's width says, class 1 for the first."""

    names = {"class_names": ["background", "thing"]}

    def __init__(self, least: int = 1) -> None:
        super().__init__()
        self.least = least
        self.prepare = np.asarray
        self.batches: list[list[tuple[int, ...]]] = []

    def extract(self, pixels, sizes):
        self.batches.append([array.shape for array in pixels])
        count = np.maximum(sizes[:, 0] % 4 + 1, self.least).astype(np.int32)
        real = np.arange(4) < count[:, None]
        means = np.stack([array.reshape(-1, 3).mean(axis=0) for array in pixels])
        return {
            "regions": np.where(real[..., None], means[:, None], 0).astype(np.float32), "region_count": count,
            "scores": real.astype(np.float32), "class_ids": np.where(real, 1, -1).astype(np.int32),
        }


def test_images_come_in_batches_of_one_shape_and_leave_in_their_own_order(images, tmp_path):
    for index, image in enumerate(images):
        Image.new("RGB", [(8, 6), (9, 6), (8, 7)][index * index % 3], color_of(index)).save(image.path)
    backend = WholeImages()
    extract(backend, images, tmp_path / "shapes.h5", **QUICK | {"part_size": 23})
    assert all(len(set(batch)) == 1 and len(batch) <= 3 for batch in backend.batches)
    assert sum(map(len, backend.batches)) == 23
    assert sum(len(batch) < 3 for batch in backend.batches) <= 2  # only the rests
    with h5py.File(tmp_path / "shapes.h5") as file:
        assert file["regions"][:, 0].tolist() == [list(color_of(index)) for index in range(23)]
        assert file["region_count"][:].tolist() == [width % 4 + 1 for width, _ in file["image_sizes"]]
        assert file["class_names"].asstr()[:].tolist() == ["background", "thing"]
    features = open_features([tmp_path / "shapes.h5"]).read(range(23))
    assert features.mask.sum(axis=1).tolist() == [[1, 2][index * index % 3] for index in range(23)]


def test_a_count_is_only_stored_where_some_image_has_fewer_regions(images, tmp_path):
    extract(WholeImages(least=4), images, tmp_path / "full.h5", **QUICK)
    assert "region_count" not in contents(tmp_path / "full.h5")


def test_other_names_for_the_same_ids_are_other_settings(images, tmp_path):
    extract(WholeImages(), images, tmp_path / "named.h5", **QUICK)
    other = WholeImages()
    other.names = {"class_names": ["background", "dog"]}
    with pytest.raises(DataError, match="names_sha256 was"):
        extract(other, images, tmp_path / "named.h5", **QUICK)


# --- one writer at a time, and only who asks goes on -----------------------------------------------------------------


def test_finished_parts_are_used_only_where_resume_says_so(images, tmp_path):
    out = tmp_path / "features.h5"
    interrupted(images, out)
    with pytest.raises(DataError, match=r"holds 2 of 5 finished parts of an earlier run: continue with resume"):
        extract(Colors(), images, out, **QUICK | {"resume": False})
    assert extract(Colors(), images, out, **QUICK).extracted == 13
    assert extract(Colors(), images, out, **QUICK | {"resume": False}).extracted == 0  # whole: nothing to go on with


def test_two_processes_never_write_one_file(images, tmp_path):
    out = tmp_path / "features.h5"

    class Meanwhile(Colors):
        def extract(self, pixels, sizes):
            with pytest.raises(DataError, match=r"another process is writing .*features\.h5"):
                extract(Colors(), images, out, **QUICK)
            return super().extract(pixels, sizes)

    assert extract(Meanwhile(), images, out, **QUICK).extracted == 23


# --- shards ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "of"), [(1, 23), (2, 23), (4, 23), (7, 7)])
@pytest.mark.parametrize("backend", [Colors, WholeImages])
def test_merged_shards_are_the_file_that_one_call_would_have_made(images, tmp_path, backend, count, of):
    """The last: as many shards as images."""
    images = images[:of]
    for number in reversed(range(1, count + 1)):
        done = extract(backend(), images, tmp_path / "merged.h5", shard=Shard(number, count), **QUICK)
        assert done.path.name == f"merged.shard-{number}-of-{count}.h5"
    shapes = merge_shards(shards_beside(tmp_path / "merged.h5"), tmp_path / "merged.h5")
    extract(backend(), images, tmp_path / "whole.h5", **QUICK)
    assert contents(tmp_path / "merged.h5") == contents(tmp_path / "whole.h5")
    assert shapes["regions"][0] == of
    assert len(list(tmp_path.iterdir())) == 1 + 2 + count  # images, the two files and the shards: no droppings


def test_a_shard_of_unreadable_images_only_is_part_of_the_whole(images, tmp_path):
    for image in images[6:12]:
        image.path.write_bytes(b"x")
    for number in range(1, 5):
        extract(WholeImages(), images, tmp_path / "f.h5", shard=Shard(number, 4), **QUICK)
    merge_shards(shards_beside(tmp_path / "f.h5"), tmp_path / "f.h5")
    extract(WholeImages(), images, tmp_path / "whole.h5", **QUICK)
    assert contents(tmp_path / "f.h5") == contents(tmp_path / "whole.h5")
    for image in images:
        image.path.write_bytes(b"x")
    shards = [
        extract(Colors(), images, tmp_path / "g.h5", shard=Shard(n, 2), **QUICK).path
        for n in (1, 2)
    ]
    with pytest.raises(DataError, match="none of the 23 images can be read"):
        merge_shards(shards, tmp_path / "g.h5")


def test_shards_that_do_not_belong_together_are_named(images, tmp_path):
    out = tmp_path / "f.h5"
    one, two = (extract(Colors(), images, out, shard=Shard(n, 3), **QUICK).path for n in (1, 2))
    other = extract(Colors(2.0), images, tmp_path / "g.h5", shard=Shard(3, 3), **QUICK).path
    halves = extract(Colors(), images, tmp_path / "h.h5", shard=Shard(2, 2), **QUICK).path
    whole = extract(Colors(), images, tmp_path / "whole.h5", **QUICK).path
    for shards, problem in [
        ([], "no shards to merge"),
        ([one, two], "shards 3/3 are missing"),
        ([one, two, one], "are both shard 1 of 3"),
        ([one, two, other], r"g\.shard-3-of-3\.h5 and .*f\.shard-1-of-3\.h5 differ in gain"),
        ([one, halves], "differ in shards"),
        ([one, whole], r"whole\.h5 is a complete file, not a shard"),
        ([one, images[0].path], "not a feature file"),
    ]:
        with pytest.raises(DataError, match=problem):
            merge_shards(shards, out)
        assert not out.exists()
    with pytest.raises(DataError, match=r"whole\.h5 exists"):
        merge_shards([one], whole)
    with pytest.raises(DataError, match="shard 4/3: the first number must be between 1"):
        Shard(4, 3)


def change_rows(shard: Path, name: str, change) -> None:
    """Replace a data set by what `change` makes of its values, or of None; None removes it."""
    with h5py.File(shard, "r+") as file:
        values = change(file[name][()] if name in file else None)
        if name in file:
            del file[name]
        if values is not None:
            file[name] = values


@pytest.mark.parametrize(("name", "change", "message"), [
    ("globals", lambda none: np.ones((7, 4), np.float32), r"`globals` is missing in .*2-of-3\.h5 and float32 \(N, 4\)"),
    ("boxes", lambda values: None, r"`boxes` is float32 \(N, 9, 4\) in .*2-of-3\.h5 and missing in .*1-of-3\.h5"),
    ("regions", lambda values: values[:-1], r"1-of-3\.h5: `regions` is .* expected numbers in 7 rows"),
    ("regions", lambda values: np.concatenate([values, values]), r"1-of-3\.h5: `regions` is .* expected numbers in 7"),
    ("regions", lambda values: values[..., :-1], r"`regions` is float16 \(N, 9, 3\) in .* and float16 \(N, 9, 2\)"),
    ("regions", lambda values: values.astype(np.float32), r"`regions` is float16 .* in .* and float32 \(N, 9, 3\) in"),
    ("regions", lambda values: values[:, 0, 0], "1-of-3.h5: `regions` has shape|`regions` is float16 "),
    ("boxes", lambda values: 1.0, r"1-of-3\.h5: `boxes` is float64 \(\), expected numbers in 7 rows"),
    ("boxes", lambda values: values.astype("S3"), r"1-of-3\.h5: `boxes` is \|S3 .*, expected numbers"),
    ("scores", lambda none: 1.0, r"1-of-3\.h5: `scores` is float64 \(\), expected numbers"),
    ("image_ids", lambda values: None, r"1-of-3\.h5 has no list `image_ids`"),
    ("image_ids", lambda values: values[0], r"1-of-3\.h5 has no list `image_ids`"),
    ("image_ids", lambda values: [*values[:-1], b"image_10"], "shards together: image id image_10 is given twice"),
    ("region_count", lambda none: np.full(7, 10), r"1-of-3\.h5, row 0 .*: region_count 10 is not within 1 to 9"),
    ("class_names", lambda none: ["cat"], r"2-of-3\.h5 has other class or attribute names than .*1-of-3\.h5"),
])
def test_a_damaged_shard_is_named_and_nothing_is_made_of_it(images, tmp_path, name, change, message):
    out = tmp_path / "f.h5"
    shards = [extract(Colors(), images, out, shard=Shard(n, 3), **QUICK).path for n in (1, 2, 3)]
    change_rows(shards[0], name, change)
    with pytest.raises(DataError, match=message):
        merge_shards(shards, out)
    assert not out.exists()


def test_counts_without_regions_are_refused(images, tmp_path):
    shard = extract(Colors(), images, tmp_path / "f.h5", shard=Shard(1, 1), **QUICK).path
    change_rows(shard, "globals", lambda none: np.ones((23, 4), np.float32))
    change_rows(shard, "regions", lambda values: None)
    change_rows(shard, "region_count", lambda none: np.ones(23, np.int32))
    with pytest.raises(DataError, match=r"1-of-1\.h5 has `region_count` without `regions`"):
        merge_shards([shard], tmp_path / "f.h5")


def test_a_killed_merge_leaves_no_file_and_the_next_clears_up(images, tmp_path):
    out = tmp_path / "f.h5"
    shards = [extract(Colors(), images, out, shard=Shard(n, 2), **QUICK).path for n in (1, 2)]

    def die() -> None:
        os.replace = lambda source, target: os.kill(os.getpid(), signal.SIGKILL)
        merge_shards(shards, out)

    child = multiprocessing.get_context("fork").Process(target=die)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL and not out.exists()
    assert any(path.name.endswith(".tmp") for path in tmp_path.iterdir())
    merge_shards(shards, out)
    assert {path.name for path in tmp_path.iterdir()} == {"images", "f.h5", *(path.name for path in shards)}
