"""Conversion to HDF5: bit for bit what the source gives, checked, whole or absent; and image ids by captions."""

import json
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import foreign_files
import h5py
import numpy as np
import pytest
from foreign_files import DIM, KINDS, make_images, refused, written
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.core.errors import DataError
from ascl.data.captions import load_captions
from ascl.data.stores.convert import convert, verify, write
from ascl.data.stores.hdf5 import Hdf5Features
from ascl.data.stores.ids import stems_of
from ascl.data.stores.open import open_features

from ...warm_python import REPOSITORY, Program

COUNTS = [3, 5, 2, 5, 4]
TOOL = REPOSITORY / "tools" / "convert_features.py"


def same(made: Hdf5Features, source, dtype: str = "float32") -> None:
    """Every row of both, bit for bit."""
    assert made.image_ids == source.image_ids and made.kinds == source.kinds and made.names == source.names
    rows = range(len(source))
    one, other = made.read(rows), source.read(rows)
    for name in ("regions", "globals", "boxes", "mask"):
        found, expected = getattr(one, name), getattr(other, name)
        if expected is not None and name in ("regions", "globals"):
            expected = expected.astype(dtype).astype(np.float32)
        assert (found is None) == (expected is None)
        assert found is None or (found.shape == expected.shape and found.tobytes() == expected.tobytes()), name
    details, expected = made.details(rows), source.details(rows)
    assert details.keys() == expected.keys()
    assert all(details[name].tobytes() == expected[name].tobytes() for name in details)


SMALL_BLOCK = 2 * 5 * (DIM + 4) * 4  # two images, so that five leave a ragged last one


# ---- what comes out


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_every_format_goes_through_unchanged(tmp_path, kind, dtype):
    source = written(kind, tmp_path, make_images(COUNTS))
    done = convert([source], tmp_path / "new" / "out.h5", dtype=dtype, progress=False, block_bytes=SMALL_BLOCK)
    same(Hdf5Features(done.path), open_features([source]), dtype)
    assert (done.images, done.checked) == (5, 5)
    with h5py.File(done.path) as file:
        assert file["regions"].dtype == dtype and file["boxes"].dtype == np.float32
        assert file["region_count"][:].tolist() == [
            COUNTS[int(name.removeprefix("pic"))] for name in Hdf5Features(done.path).image_ids]
    again = convert([done.path], tmp_path / "again.h5", dtype=dtype, progress=False)  # ours into ours
    same(Hdf5Features(again.path), Hdf5Features(done.path))


@settings(max_examples=25, deadline=None)
@given(values=st.lists(st.integers(0, 2**32 - 1), min_size=12, max_size=12))
def test_any_bits_of_a_feature_survive(tmp_path_factory, values):
    bits = np.array(values, dtype=np.uint32)
    features = np.abs(bits.view(np.float32)) < 1e10  # larger ones are refused
    regions = np.where(features, bits, 0x80000001).astype(np.uint32).view(np.float32)
    folder = tmp_path_factory.mktemp("bits")
    np.save(folder / "a_ims.npy", regions.reshape(1, 4, 3))
    convert([folder / "a_ims.npy"], folder / "out.h5", progress=False)
    with h5py.File(folder / "out.h5") as file:
        assert file["regions"][:].tobytes() == regions.tobytes()


@pytest.mark.parametrize("repeat", [1, 5])
def test_scan_is_written_once_an_image(tmp_path, repeat):
    regions = np.random.default_rng(0).normal(size=(7, 3, DIM)).astype(np.float32)
    np.save(tmp_path / "test_ims.npy", np.repeat(regions, repeat, axis=0))
    (tmp_path / "test_caps.txt").write_text("a dog\n" * 35)
    convert([tmp_path / "test_ims.npy"], tmp_path / "out.h5", progress=False, block_bytes=SMALL_BLOCK)
    with h5py.File(tmp_path / "out.h5") as file:
        assert np.array_equal(file["regions"][:], regions) and "region_count" not in file and "boxes" not in file
        assert file["image_ids"].asstr()[:].tolist() == [str(i) for i in range(7)]


def test_regions_and_globals_of_several_sources_meet(tmp_path):
    images = make_images(COUNTS)
    att = foreign_files.write_cocobu(tmp_path / "bu", images)
    source = [att, tmp_path / "bu_fc"]
    both = convert(source, tmp_path / "both.h5", progress=False, block_bytes=SMALL_BLOCK)
    same(Hdf5Features(both.path), open_features(source))
    only = convert([both.path], tmp_path / "only.h5", kind="globals", progress=False)
    assert Hdf5Features(only.path).kinds == {"globals"} and set(only.shapes) == {"image_ids", "globals"}
    refused("has no globals, only regions", convert, [att], tmp_path / "none.h5", kind="globals", progress=False)
    assert not (tmp_path / "none.h5").exists()


def test_the_first_regions_are_kept(tmp_path):
    source = foreign_files.write_tsv(tmp_path / "a.tsv", make_images(COUNTS), "lxmert")
    done = convert([source], tmp_path / "out.h5", max_regions=3, progress=False, block_bytes=SMALL_BLOCK)
    same(Hdf5Features(done.path), open_features([source], max_regions=3))
    assert done.shapes["scores"] == (5, 3)


def test_names_and_details_go_along(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.attrs.update({"format": "ascl-features", "version": 1, "provenance": json.dumps({"made": "by hand"})})
        text = h5py.string_dtype("utf-8")
        file.create_dataset("image_ids", data=["x", "y"], dtype=text)
        file.create_dataset("class_names", data=["dog", "straße"], dtype=text)
        file["regions"] = np.ones((2, 3, 4), dtype=np.float16)
        file["region_count"] = np.array([3, 2], dtype=np.int32)
        file["class_ids"] = np.array([[0, 1, 0], [1, 1, 7]], dtype=np.int32)
        file["image_sizes"] = np.array([[4, 5], [6, 7]], dtype=np.int32)
    done = convert([tmp_path / "a.h5"], tmp_path / "out.h5", progress=False)
    made = Hdf5Features(done.path)
    same(made, Hdf5Features(tmp_path / "a.h5"))
    assert made.names == {"class_names": ["dog", "straße"]}
    assert made.details([1])["class_ids"].tolist() == [[1, 1, -1]]
    assert made.provenance[str(done.path)]["sources"] == [{"made": "by hand"}]


def test_provenance_says_what_it_was_made_of(tmp_path):
    source = foreign_files.write_tsv(tmp_path / "a.tsv", make_images(COUNTS))
    npz = foreign_files.write_npz(tmp_path / "npz", make_images([2], prefix="b"))
    done = convert([source, npz], tmp_path / "out.h5", dtype="float16", progress=False)
    made = Hdf5Features(done.path).provenance[str(done.path)]
    one, two = made["settings"]["converted_from"]
    assert one["name"] == "a.tsv" and one["bytes"] == source.stat().st_size and len(one) == 3
    assert two["name"] == "npz" and two["files"] == 1 and two["bytes"] == (npz / "b0.npz").stat().st_size
    assert made["settings"]["dtype"] == "float16" and set(made["versions"]) == {"python", "numpy", "h5py"}
    assert made["date"] and len(made["sources_modified"]) == 2 and str(tmp_path) not in json.dumps(made)


# ---- whole or absent, and checked


@pytest.mark.parametrize("name", ["regions", "boxes", "image_sizes", "region_count"])
def test_a_difference_is_found(tmp_path, name):
    source = foreign_files.write_tsv(tmp_path / "a.tsv", make_images(COUNTS))
    store, done = open_features([source]), convert([source], tmp_path / "out.h5", progress=False)
    with h5py.File(done.path, "a") as file:
        file[name][3] = file[name][3] - 1
    refused(rf"`({name}|mask|regions)` of image pic3 \(row 3\) differs from .*a\.tsv", verify, store, done.path,
            store.kinds, "float32", store.image_ids)


def test_a_file_that_fails_its_check_gets_no_name(tmp_path, monkeypatch):
    def write_something_else(store, file, kinds, dtype, **options):
        write(store, file, kinds, dtype, **options)
        file["regions"][2] = file["regions"][2] + 1

    monkeypatch.setattr("ascl.data.stores.convert.write", write_something_else)
    source = foreign_files.write_tsv(tmp_path / "a.tsv", make_images(COUNTS))
    refused(r"`regions` of image pic2 \(row 2\) differs from", convert, [source], tmp_path / "out.h5", progress=False)
    assert not list(tmp_path.glob("*out*"))


def test_one_wrong_bit_is_found(tmp_path):
    source = foreign_files.write_tsv(tmp_path / "a.tsv", make_images(COUNTS))
    store, kinds = open_features([source]), frozenset({"regions"})
    done = convert([source], tmp_path / "out.h5", progress=False)
    assert verify(store, done.path, kinds, "float32", store.image_ids) == 5
    assert verify(store, done.path, kinds, "float32", store.image_ids, sample=1) in (2, 3)  # first and last always
    content, place = bytearray(done.path.read_bytes()), 0
    with h5py.File(done.path) as file:
        place = file["regions"].id.get_chunk_info(0).byte_offset
    content[place] ^= 1
    done.path.write_bytes(content)
    with pytest.raises(DataError, match=r"`regions` of image pic0 \(row 0\) differs from"):
        verify(store, done.path, kinds, "float32", store.image_ids)
    refused("image ids, names or kinds", verify, store, done.path, kinds, "float32", ["other"] * 5)


def test_values_beyond_float16_name_the_image(tmp_path):
    images = make_images(COUNTS)
    images[3].regions[1, 2] = 1e6
    source = foreign_files.write_tsv(tmp_path / "a.tsv", images)
    with pytest.raises(DataError, match=r"`regions` of image pic3 \(row 3\) are not finite in float16; use float32"):
        convert([source], tmp_path / "out.h5", dtype="float16", progress=False)
    assert not (tmp_path / "out.h5").exists()


def test_a_second_call_does_nothing_and_other_files_stay(tmp_path):
    source = foreign_files.write_tsv(tmp_path / "a.tsv", make_images(COUNTS))
    out = convert([source], tmp_path / "out.h5", progress=False).path
    before = out.read_bytes()
    again = convert([source], out, progress=False)
    assert again.images == 0 and "nothing to do" in again.summary() and out.read_bytes() == before
    with pytest.raises(DataError, match=r"out\.h5 exists and was made with other settings \(dtype differ\)"):
        convert([source], out, dtype="float16", progress=False)
    foreign_files.write_tsv(source, make_images([1]))
    refused(r"made with other settings \(converted_from differ\)", convert, [source], out, progress=False)
    assert out.read_bytes() == before
    np.save(tmp_path / "x_ims.npy", np.random.default_rng(0).random((3, 2, 3)))
    convert([tmp_path / "x_ims.npy"], tmp_path / "x.h5", progress=False)
    (tmp_path / "x_ids.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match=r"x\.h5 exists and was made with other settings \(image_ids differ\)"):
        convert([tmp_path / "x_ims.npy"], tmp_path / "x.h5", progress=False)
    for content in (b"precious", foreign_files.write_groups_h5(tmp_path / "b.h5", make_images([2])).read_bytes()):
        out.write_bytes(content)
        refused("not a feature file of this project", convert, [source], out, progress=False)
        assert out.read_bytes() == content
    refused("both source and target", convert, [source], source, progress=False)


def test_a_kill_leaves_nothing_under_the_name_and_the_next_start_clears_up(tmp_path):
    rng = np.random.default_rng(0)
    np.save(tmp_path / "a_ims.npy", rng.random((800, 36, 1024), dtype=np.float32))
    out = tmp_path / "out.h5"
    program = Program(TOOL, tmp_path / "a_ims.npy", "--out", out)
    while not (left := list(tmp_path.glob(".out.h5.*.tmp"))):
        assert program.status is None
        time.sleep(0.001)
    program.kill()
    assert program.status == -signal.SIGKILL and not out.exists() and left[0].exists()
    np.save(tmp_path / "a_ims.npy", rng.random((5, 2, 3), dtype=np.float32))
    assert convert([tmp_path / "a_ims.npy"], out, progress=False).images == 5
    assert not left[0].exists()


def test_two_conversions_do_not_write_one_file(tmp_path):
    np.save(tmp_path / "a_ims.npy", np.random.default_rng(0).random((5, 2, 3)))
    program = (f"from ascl.core.files import atomic_path\nwith atomic_path({str(tmp_path / 'out.h5')!r}) as busy:\n"
               "    busy.write_bytes(b'half')\n    print(busy, flush=True)\n    input()\n    __import__('os')._exit(1)")
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        busy = Path(other.stdout.readline().decode().strip())
        with pytest.raises(DataError, match="another conversion is writing .*out.h5"):
            convert([tmp_path / "a_ims.npy"], tmp_path / "out.h5", progress=False)
        other.communicate(b"\n")
    assert busy.exists()
    convert([tmp_path / "a_ims.npy"], tmp_path / "out.h5", progress=False)
    assert not busy.exists()


@pytest.mark.parametrize("kind", ["tsv", "npy"])
def test_memory_is_that_of_a_block_not_of_the_file(tmp_path, kind):
    images = make_images([36] * 200)
    for image in images:
        image.regions = np.random.default_rng().random((36, 1024), dtype=np.float32)
    if kind == "tsv":
        source = foreign_files.write_tsv(tmp_path / "a.tsv", images)
    else:
        source = tmp_path / "a_ims.npy"
        np.save(source, np.stack([image.regions for image in images]))
    del images
    tracemalloc.start()
    try:
        convert([source], tmp_path / "out.h5", progress=False, block_bytes=1 << 20)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert source.stat().st_size > 29e6 and peak < 8e6


# ---- ids by captions


def karpathy(path: Path, *images: dict) -> Path:
    path.write_text(json.dumps({"images": images}))
    return path


@pytest.fixture
def coco(tmp_path) -> Path:
    """Numbers of which one is another image's in the other field."""
    return karpathy(tmp_path / "dataset_coco.json",
                    {"filename": "COCO_val2014_000000391895.jpg", "cocoid": 391895, "imgid": 0, "split": "test"},
                    {"filename": "COCO_train2014_000000000009.jpg", "cocoid": 9, "imgid": 1, "split": "train"},
                    {"filename": "COCO_train2014_000000000001.jpg", "cocoid": 1, "imgid": 2, "split": "train"})


STEMS = ["COCO_val2014_000000391895", "COCO_train2014_000000000009", "COCO_train2014_000000000001"]


@pytest.mark.parametrize(("ids", "field", "expected"), [
    (["9", "391895"], None, [STEMS[1], STEMS[0]]),
    (["COCO_train2014_000000000009.jpg", "COCO_train2014_000000000001"], None, STEMS[1:]),
    (["000000000009", "000000391895.jpg"], None, [STEMS[1], STEMS[0]]),  # COCO's names of 2017
    (["2", "0"], None, [STEMS[2], STEMS[0]]),
    (["1"], "cocoid", [STEMS[2]]),
    (["1"], "imgid", [STEMS[1]]),
    (["1"], "filename", [STEMS[2]]),
])
def test_ids_become_stems(coco, ids, field, expected):
    assert stems_of(ids, coco, field) == expected


@pytest.mark.parametrize(("ids", "field", "message"), [
    (["1"], None, r"fit .* as filename and as cocoid and as imgid, which are different images: id 1 is "
                  r"COCO_train2014_000000000001 or, as imgid, COCO_train2014_000000000009; choose the field"),
    (["9", "77", "78"], None, r"as filename, 2 of 3 are unknown \(77, 78\); as cocoid, 2 of 3.*; as imgid, 3 of 3"),
    (["9", "2"], None, r"as cocoid, 1 of 2 are unknown \(2\); as imgid, 1 of 2 are unknown \(9\)"),
    (["000009"], "cocoid", r"as cocoid, 1 of 1 are unknown \(000009\)"),
    (["1", "COCO_train2014_000000000001"], None, r"several image ids are the same image .*000001"),
])
def test_ids_that_do_not_fit_are_listed(coco, ids, field, message):
    refused(message, stems_of, ids, coco, field)


def test_captions_that_cannot_tell_are_refused(tmp_path):
    twice = karpathy(tmp_path / "a.json", {"filename": "a_7.jpg", "cocoid": 7}, {"filename": "b_7.jpg", "cocoid": 7})
    refused(r"as filename, 1 fit more than one image \(7\); as cocoid, 1 fit more", stems_of, ["7"], twice)
    with pytest.raises(DataError, match=r"b.json, images\[0\]: expected `filename` as a text, found null"):
        stems_of(["7"], karpathy(tmp_path / "b.json", {"cocoid": 7}))
    (tmp_path / "c.json").write_text("{")
    refused("truncated or not JSON", stems_of, ["7"], tmp_path / "c.json")
    refused("no file .*nowhere.json", stems_of, ["7"], tmp_path / "nowhere.json")


def test_real_split_files_name_their_images(shared):
    captions = shared / "data" / "captions" / "dataset_coco_val2017.json.gz"
    stems = load_captions(captions, "val2017").image_ids
    assert stems_of([str(int(stem)) for stem in stems], captions) == stems
    flickr = shared / "data" / "captions" / "dataset_flickr30k.json.gz"
    assert len(set(stems_of([str(i) for i in range(31014)], flickr, "imgid"))) == 31014


def test_converted_ids_are_those_of_the_captions(tmp_path, coco, tool, capsys):
    images = make_images([3, 2])
    images[0].image_id, images[1].image_id = "9", "391895"
    source = foreign_files.write_tsv(tmp_path / "a.tsv", images)
    assert tool("convert_features")([str(source), "--out", str(tmp_path / "out.h5"), "--ids-from", str(coco)]) == 0
    assert "2 images in" in capsys.readouterr().out
    store = open_features([tmp_path / "out.h5"])
    read = store.read(store.rows(STEMS[:2]))
    assert np.array_equal(read.regions[0, :2], images[1].regions)
    assert np.array_equal(read.regions[1], images[0].regions)


def test_row_numbers_are_no_ids(tmp_path, coco, tool, capsys):
    np.save(tmp_path / "test_ims.npy", np.random.default_rng(0).random((3, 2, 3)))
    arguments = [str(tmp_path / "test_ims.npy"), "--out", str(tmp_path / "out.h5")]
    assert tool("convert_features")([*arguments, "--ids-from", str(coco)]) == 1
    assert "does not name its images" in capsys.readouterr().err and not (tmp_path / "out.h5").exists()
    assert tool("convert_features")([*arguments, "--id-field", "cocoid"]) == 1
    assert "give both" in capsys.readouterr().err
    assert tool("convert_features")([str(tmp_path / "none.tsv"), "--out", str(tmp_path / "out.h5")]) == 1
    assert "no file" in capsys.readouterr().err
