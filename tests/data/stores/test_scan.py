"""SCAN's `.npy`: rows that repeat an image, the order of reading, and what each file that does not fit says."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from foreign_files import made, refused

from ascl.data.captions import load_captions
from ascl.data.split import build_split
from ascl.data.stores.convert import convert
from ascl.data.stores.open import open_features
from ascl.settings.retrieval import Config, DataConfig


@pytest.mark.parametrize("repeat", [1, 5])
@pytest.mark.parametrize("evidence", ["number", "captions beside", "ids an image", "ids a caption"])
def test_scan_repeat_is_inferred_from_captions_or_ids(tmp_path, repeat, evidence):
    regions = made(4, 3, 6)
    np.save(tmp_path / "test_ims.npy", np.repeat(regions, repeat, axis=0))
    captions = 20 if evidence == "number" else None
    if evidence == "captions beside":
        (tmp_path / "test_caps.txt").write_text("a dog\n" * 20)
    if evidence.startswith("ids"):
        (tmp_path / "test_ids.txt").write_text("".join(f"n{i}\n" * (1 if "image" in evidence else 5) for i in range(4)))
    store = open_features([tmp_path / "test_ims.npy"], captions=captions)
    assert store.image_ids == ([f"n{i}" for i in range(4)] if evidence.startswith("ids") else ["0", "1", "2", "3"])
    read = store.read([2, 0, 2])
    assert np.array_equal(read.regions, regions[[2, 0, 2]]) and read.regions.dtype == np.float32
    assert (read.globals, read.boxes, read.mask, store.global_dim) == (None, None, None, None)


def test_scan_with_one_caption_an_image_is_not_taken_for_a_repeat(tmp_path):
    np.save(tmp_path / "x_ims.npy", made(10, 3, 6))
    assert len(open_features([tmp_path / "x_ims.npy"], captions=10)) == 10


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("repeated", [False, True])
@pytest.mark.parametrize("known", [False, True])
def test_captions_per_image_follow_from_rows_and_lines(tmp_path, count, repeated, known):
    regions = made(6, 2, 3)
    regions[1] = regions[0]  # one photograph twice does not mislead
    np.save(tmp_path / "test_ims.npy", np.repeat(regions, count if repeated else 1, axis=0))
    lines = "".join(f"a dog {i}\n" for i in range(6 * count))
    (tmp_path / "test_caps.txt.gz").write_bytes(gzip.compress(lines.encode()))
    data = DataConfig(captions=str(tmp_path), features=[str(tmp_path / "{split}_ims.npy")], global_source="mean-region",
                      scan_captions_per_image=count if known else None)
    captions, store = build_split(Config(data=data), "test")
    assert captions.owner.tolist() == np.repeat(range(6), count).tolist()
    assert np.array_equal(store.read(store.rows(captions.image_ids)).regions, regions)
    assert load_captions(tmp_path, "test").owner.tolist() == captions.owner.tolist()


def test_a_store_of_other_images_than_the_captions_is_refused_with_both_counts(tmp_path):
    np.save(tmp_path / "test_ims.npy", made(12, 2, 3))
    (tmp_path / "test_caps.txt").write_text("a dog\n" * 50)
    data = DataConfig(captions=str(tmp_path), features=[str(tmp_path / "test_ims.npy")], global_source="mean-region")
    refused("12 rows for 50 captions", build_split, Config(data=data), "test")
    five = replace(data, scan_captions_per_image=5)
    refused("12 rows, but 50 captions are 10 images with 5", build_split, Config(data=five), "test")
    (tmp_path / "test_caps.txt").rename(tmp_path / "kept")
    convert([tmp_path / "test_ims.npy"], tmp_path / "rows.h5", progress=False)  # keeps the numbers as ids
    (tmp_path / "kept").rename(tmp_path / "test_caps.txt")
    converted = replace(data, features=[str(tmp_path / "rows.h5")])
    refused("50 captions of split test for the 12 images of", build_split, Config(data=converted), "test")
    converted = replace(five, features=[str(tmp_path / "rows.h5")])
    refused("12 images, but .* has captions of 10", build_split, Config(data=converted), "test")


def test_scan_errors(tmp_path):
    path = tmp_path / "test_ims.npy"
    refused(r"no file .*test_ims\.npy; data/README\.md", open_features, [path])
    np.save(path, made(4, 3, 6))
    refused("4 rows for 21 captions, which does not fit", open_features, [path], captions=21)
    refused("4 rows for 2 captions, which does not fit", open_features, [path], captions=2)
    (tmp_path / "test_ids.txt").write_text("a\nb\nc\n")
    refused("4 rows for the 3 images of its ids file", open_features, [path])
    (tmp_path / "test_ids.txt").write_text("a\nb\n")
    refused("rows 0 and 1 should be one image", open_features, [path])
    (tmp_path / "test_ids.txt").write_text("a\nb\na\nc\n")
    refused("image id a is given twice, in row 0 .* and in row 2", open_features, [path])
    (tmp_path / "test_ids.txt").unlink()
    np.save(path, np.repeat(made(200, 1, 2), 5, axis=0))
    refused("an image has more than 1 rows", open_features, [path])
    np.save(path, np.repeat(made(3, 1, 2), 5, axis=0) + (np.arange(15) == 8)[:, None, None])
    refused("an image has more than 1 rows.*scan_captions_per_image", open_features, [path], captions=15)
    refused("rows 5 and 8 should be one image", open_features, [path], captions=15, scan_captions_per_image=5)
    refused("15 captions, which is not a multiple of 4", open_features, [path], captions=15, scan_captions_per_image=4)
    refused("has 15 rows, but 30 captions are 10 images", open_features, [path], captions=30, scan_captions_per_image=3)
    np.save(path, made(4, 6))
    refused(r"has shape \(4, 6\)", open_features, [path])
    np.save(path, np.zeros((4, 3, 6), dtype=np.int64))
    refused("type int64, expected floats", open_features, [path])
    np.save(path, made(40, 3, 6))
    path.write_bytes(path.read_bytes()[:-100])
    refused(r"test_ims\.npy \(.* is truncated, damaged or not an array .*download it again", open_features, [path])
    path.write_bytes(b"hello")
    refused("is truncated, damaged or not an array", open_features, [path])


def test_scan_names_file_row_and_image_of_a_value_that_is_not_finite(tmp_path):
    regions = made(4, 3, 6)
    regions[2, 1, 1] = np.inf
    np.save(tmp_path / "test_ims.npy", np.repeat(regions, 5, axis=0))
    store = open_features([tmp_path / "test_ims.npy"], captions=20)
    assert store.read([0, 1, 3]).regions.shape == (3, 3, 6)
    refused(r"test_ims\.npy: `regions` of row 10 \(image 2\) has values that are not finite", store.read, [3, 2])


def test_scan_reads_any_type_and_order_without_mapping_the_file(tmp_path):
    values = made(40, 3, 6, dtype=np.float64)
    rows = [39, 0, 1, 2, 2, 1, 17]
    for dtype in ("<f4", ">f4", "<f2", "<f8"):
        np.save(tmp_path / "x_ims.npy", values.astype(dtype))
        read = open_features([tmp_path / "x_ims.npy"]).read(rows).regions
        assert read.dtype == np.dtype("=f4") and np.array_equal(read, values.astype(dtype)[rows].astype(np.float32))
    store = open_features([tmp_path / "x_ims.npy"])
    store.read(rows)
    maps = Path("/proc/self/maps")
    assert not maps.exists() or "x_ims.npy" not in maps.read_text()
    np.save(tmp_path / "x_ims.npy", np.asfortranarray(values))
    refused(r"x_ims\.npy is in Fortran order", open_features, [tmp_path / "x_ims.npy"])
    np.save(tmp_path / "x_ims.npy", values)
    with open(tmp_path / "x_ims.npy", "r+b") as file:
        file.truncate(3000)  # behind the back of an open store
    refused(r"x_ims\.npy ends before byte 5744.*it was changed", store.read, [39])
