"""Feature stores: what is read back, whatever the file and the order, and what each damaged file says."""

import json
import pickle
from pathlib import Path

import h5py
import numpy as np
import pytest
from foreign_files import RowsOf, made, made_boxes, refused
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ascl.core.errors import DataError
from ascl.data.stores.open import open_features

IDS = ["pic_b", "pic_a", "pic_ü", "pic_d", "pic_e"]


def write_h5(path: Path, ids: list[str], *, attributes: dict | None = None, **datasets: np.ndarray) -> Path:
    with h5py.File(path, "w") as file:
        file.attrs.update({"format": "ascl-features", "version": 1, "provenance": json.dumps({"backend": "test"})})
        file.attrs.update(attributes or {})
        file.create_dataset("image_ids", data=ids, dtype=h5py.string_dtype("utf-8"))
        for name, values in datasets.items():
            file.create_dataset(name, data=values, chunks=(1, *values.shape[1:]) if values.ndim > 1 else None)
    return path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, np.ndarray, np.ndarray, np.ndarray]:
    regions, globals_, boxes = made(5, 3, 4), made(5, 6, seed=1), made_boxes(5, 3)
    path = tmp_path_factory.mktemp("h5") / "both.h5"
    return write_h5(path, IDS, regions=regions, globals=globals_, boxes=boxes), regions, globals_, boxes


# ---- HDF5


@settings(max_examples=30, deadline=None)
@given(rows=st.lists(st.integers(0, 4), max_size=12))
def test_any_order_with_repeats_reads_as_plain_indexing(both, rows):
    path, regions, globals_, boxes = both
    read = open_features([path]).read(np.array(rows, dtype=np.int64))
    assert np.array_equal(read.regions, regions[rows]) and read.regions.dtype == np.float32
    assert np.array_equal(read.globals, globals_[rows]) and read.globals.dtype == np.float32
    assert np.array_equal(read.boxes, boxes[rows])
    assert read.mask is None


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f2", ">f4"])
@pytest.mark.parametrize("layout", [
    {"chunks": (1, 3, 4)}, {"chunks": (2, 2, 3)}, {"chunks": None}, {"chunks": (2, 3, 4), "compression": "gzip"},
], ids=["a row a chunk", "parts of rows", "in one piece", "compressed"])
def test_every_layout_of_a_file_reads_the_same(tmp_path, dtype, layout):
    values = made(9, 3, 4).astype(dtype)
    path = write_h5(tmp_path / "f.h5", [f"pic{row}" for row in range(9)])
    with h5py.File(path, "a") as file:
        file.create_dataset("regions", data=values, **layout)
    store = open_features([path])
    for rows in ([4], [8, 0, 1, 2, 2, 7], list(range(9)), [3, 2, 1], []):
        read = store.read(np.array(rows, dtype=np.int64)).regions
        assert read.dtype == np.float32 and read.flags.writeable
        assert np.array_equal(read, values.astype(np.float32)[rows])


def test_store_tells_its_dimensions_rows_and_provenance(both):
    store = open_features([both[0]])
    assert (store.num_regions, store.region_dim, store.global_dim, len(store)) == (3, 4, 6, 5)
    assert store.image_ids == IDS
    assert store.rows(["pic_ü", "pic_b", "pic_ü"]).tolist() == [2, 0, 2]
    assert store.provenance == {str(both[0]): {"backend": "test"}}


@pytest.mark.parametrize("name", ["regions", "globals"])
def test_float16_comes_out_as_the_same_numbers_in_float32(tmp_path, name):
    values = made(5, 3, 4, dtype=np.float16) if name == "regions" else made(5, 4, dtype=np.float16)
    read = getattr(open_features([write_h5(tmp_path / "half.h5", IDS, **{name: values})]).read([3, 1]), name)
    assert read.dtype == np.float32
    assert np.array_equal(read, values[[3, 1]].astype(np.float32))


def test_region_count_gives_a_mask_and_clears_the_padding(tmp_path):
    regions = made(5, 3, 4)
    regions[1, 2] = np.nan  # padding may hold anything
    counts = np.array([3, 2, 1, 3, 3], dtype=np.int32)
    store = open_features([write_h5(tmp_path / "r.h5", IDS, regions=regions, region_count=counts)])
    read = store.read([1, 2, 0])
    assert read.mask.tolist() == [[True, True, False], [True, False, False], [True, True, True]]
    assert np.array_equal(read.regions[0, :2], regions[1, :2])
    assert not read.regions[~read.mask].any()


@pytest.mark.parametrize("suffix", [".h5", ".npy"])
def test_workers_read_the_same_after_the_parent_has_read(tmp_path, suffix):
    regions = made(40, 3, 4)
    path = tmp_path / f"test_ims{suffix}"
    if suffix == ".npy":
        np.save(path, regions)
    else:
        write_h5(path, [str(i) for i in range(40)], regions=regions)
    store = open_features([path])
    store.read([0])  # the handle is open when the workers are forked
    loaded = np.concatenate([batch.numpy() for batch in DataLoader(RowsOf(store), batch_size=4, num_workers=2)])
    assert np.array_equal(loaded, regions)
    pickled = pickle.dumps(store)
    assert len(pickled) < regions.nbytes + 2000
    assert np.array_equal(pickle.loads(pickled).read([7]).regions[0], regions[7])


def test_a_pickled_npy_store_does_not_carry_the_array(tmp_path):
    np.save(tmp_path / "test_ims.npy", made(50, 30, 30))
    store = open_features([tmp_path / "test_ims.npy"])
    store.read([0])
    assert len(pickle.dumps(store)) < 3000


# ---- what is known beside features


DETAILS = {"image_sizes": np.array([[640, 480], [1, 2], [3, 4], [5, 6], [7, 8]], dtype=np.int32),
           "scores": np.linspace(0, 1, 15, dtype=np.float32).reshape(5, 3),
           "class_ids": np.arange(15, dtype=np.int32).reshape(5, 3),
           "attribute_ids": np.arange(15, 30, dtype=np.int64).reshape(5, 3),
           "attribute_scores": np.linspace(1, 0, 15, dtype=np.float16).reshape(5, 3)}


def test_details_are_given_by_row_with_padding_cleared(tmp_path):
    counts = np.array([3, 2, 1, 3, 3], dtype=np.int32)
    path = write_h5(tmp_path / "d.h5", IDS, regions=made(5, 3, 4), region_count=counts, **DETAILS)
    with h5py.File(path, "a") as file:
        file.create_dataset("class_names", data=["dog", "straße"], dtype=h5py.string_dtype("utf-8"))
    store = open_features([path])
    assert store.names == {"class_names": ["dog", "straße"]}
    rows = [2, 0, 2, 1]
    details = pickle.loads(pickle.dumps(store)).details(rows)
    assert details.keys() == DETAILS.keys()
    for name, values in details.items():
        padding = -1 if name.endswith("_ids") else 0
        assert values.dtype == (np.float32 if "scores" in name else np.int32)
        for i, row in enumerate(rows):
            for j, value in enumerate(values[i]):
                real = name == "image_sizes" or j < counts[row]
                assert value == (DETAILS[name][row, j] if real else padding)
    refused("row 5 is outside the 5 images", store.details, [5])
    assert open_features([path], max_regions=2).details([0])["class_ids"].tolist() == [[0, 1]]
    assert open_features([path], globals_from="mean-region").details([0])["class_ids"].tolist() == [[0, 1, 2]]


def test_files_without_details_give_none(both, tmp_path):
    store = open_features([both[0]])
    assert (store.details([1]), store.names) == ({}, {})
    np.save(tmp_path / "x_ims.npy", made(4, 3, 6))
    assert open_features([tmp_path / "x_ims.npy"]).details([0]) == {}


@pytest.mark.parametrize(("name", "values", "match"), [
    ("scores", made(5, 2), r"`scores` has shape \(5, 2\), expected \(5, 3\)"),
    ("class_ids", made(5, 3), "`class_ids` has type float32, expected whole numbers"),
    ("image_sizes", np.zeros((5, 3), dtype=int), r"`image_sizes` has shape \(5, 3\), expected \(5, 2\)"),
])
def test_details_that_do_not_fit_are_named(tmp_path, name, values, match):
    refused(match, open_features, [write_h5(tmp_path / "d.h5", IDS, regions=made(5, 3, 4), **{name: values})])


def with_names(path: Path, ids: list[str], names: list[str] | None, *, regions: int = 3) -> Path:
    classes = np.arange(len(ids) * regions, dtype=np.int32).reshape(len(ids), regions)
    write_h5(path, ids, regions=made(len(ids), regions, 4), class_ids=classes)
    if names is not None:
        with h5py.File(path, "a") as file:
            file.create_dataset("class_names", data=names, dtype=h5py.string_dtype("utf-8"))
    return path


def test_merged_details_are_those_that_all_region_files_have(tmp_path):
    a, b = with_names(tmp_path / "a.h5", ["x", "y"], ["dog"]), with_names(tmp_path / "b.h5", ["z"], ["dog"], regions=2)
    globals_ = write_h5(tmp_path / "g.h5", ["z", "y", "x"], globals=made(3, 5))
    store = open_features([a, b, globals_])
    assert store.names == {"class_names": ["dog"]}
    assert store.details(store.rows(["z", "x"]))["class_ids"].tolist() == [[0, 1, -1], [0, 1, 2]]
    unnamed = with_names(tmp_path / "c.h5", ["w"], None)
    assert open_features([a, unnamed]).names == {}
    bare = write_h5(tmp_path / "d.h5", ["v"], regions=made(1, 3, 4))
    assert open_features([a, bare]).details([0, 2]) == {}
    other = with_names(tmp_path / "e.h5", ["u"], ["cat"])
    refused(r"a\.h5 and .*e\.h5 cannot be merged: their class_names differ", open_features, [a, other])


def test_a_mistyped_image_gets_the_nearest_of_the_file_s_own_ids(tmp_path):
    store = open_features([write_h5(tmp_path / "f.h5", ["1000092795", "667626_18933", "x"], regions=made(3, 2, 4))])
    with pytest.raises(DataError, match=r"1 image in .*f\.h5: 66762618933\. The nearest of the file's own ids is "
                                        r"'667626_18933'\. "):
        store.rows(["66762618933"])
    refused(r"ids look like '1000092795'\. ", store.rows, ["photograph"])


# ---- several files


def test_regions_and_globals_of_two_files_meet_by_image_id(tmp_path):
    regions, globals_ = made(3, 2, 4), made(4, 6)
    a = write_h5(tmp_path / "regions.h5", ["x", "y", "z"], regions=regions)
    b = write_h5(tmp_path / "globals.h5", ["w", "z", "y", "x"], globals=globals_)
    store = open_features([a, b])
    read = store.read(store.rows(["y", "x", "y"]))
    assert np.array_equal(read.regions, regions[[1, 0, 1]])
    assert np.array_equal(read.globals, globals_[[2, 3, 2]])
    assert read.mask is None and read.boxes is None
    assert set(store.provenance) == {str(a), str(b)}
    refused(r"no features of 1 image in .*regions\.h5: w\. .*Extract regions of the images", store.rows, ["x", "w"])
    refused("image w has no regions", store.read, [3])


def test_images_spread_over_files_with_and_without_mask_and_boxes(tmp_path):
    one, two = made(2, 3, 4), made(3, 3, 4, seed=1)
    counts = np.array([3, 1, 2], dtype=np.int32)
    a = write_h5(tmp_path / "a.h5", ["x", "y"], regions=one, globals=made(2, 5),
                 boxes=made_boxes(2, 3))
    b = write_h5(tmp_path / "b.h5", ["p", "q", "r"], regions=two, globals=made(3, 5, seed=1), region_count=counts)
    store = open_features([a, b])
    read = store.read(store.rows(["q", "x", "r", "y"]))
    assert np.array_equal(read.regions[[1, 3]], one)
    assert np.array_equal(read.regions[0, 0], two[1, 0]) and np.array_equal(read.regions[2, :2], two[2, :2])
    assert read.mask.sum(axis=1).tolist() == [1, 3, 2, 3]
    assert np.array_equal(read.globals,
                          np.stack([made(3, 5, seed=1)[1], made(2, 5)[0], made(3, 5, seed=1)[2], made(2, 5)[1]]))
    assert read.boxes is None
    assert store.read(np.array([], dtype=np.int64)).regions.shape == (0, 3, 4)


def test_files_with_other_numbers_of_regions_are_filled_up(tmp_path):
    one, two = made_boxes(2, 3), made_boxes(1, 5, seed=1)
    a = write_h5(tmp_path / "a.h5", ["x", "y"], regions=one, boxes=one)
    b = write_h5(tmp_path / "b.h5", ["z"], regions=two, boxes=two)
    store = open_features([a, b])
    read = store.read(store.rows(["y", "z"]))
    assert store.num_regions == 5 and read.mask.tolist() == [[True] * 3 + [False] * 2, [True] * 5]
    for values in (read.regions, read.boxes):
        assert np.array_equal(values[0, :3], one[1]) and not values[0, 3:].any() and np.array_equal(values[1], two[0])
    assert store.read([0]).mask.tolist() == [[True] * 3 + [False] * 2]


def test_files_that_do_not_fit_each_other_are_refused(tmp_path):
    a = write_h5(tmp_path / "a.h5", ["x", "y"], regions=made(2, 3, 4))
    b = write_h5(tmp_path / "b.h5", ["z"], regions=made(1, 3, 5))
    c = write_h5(tmp_path / "c.h5", ["z", "y"], regions=made(2, 3, 4))
    refused(r"different region_dim cannot be merged \(.*a\.h5: 4, .*b\.h5: 5\)", open_features, [a, b])
    refused(r"image y has regions in both .*a\.h5 and .*c\.h5", open_features, [a, c])
    refused("list of at least one path", open_features, [])
    refused("list of at least one path", open_features, str(a))


def test_mean_region_globals_are_the_mean_of_real_regions_and_only_on_request(tmp_path):
    regions, counts = made(2, 3, 4), np.array([3, 2], dtype=np.int32)
    path = write_h5(tmp_path / "a.h5", ["x", "y"], regions=regions, region_count=counts)
    assert open_features([path]).read([0]).globals is None
    store = open_features([path], globals_from="mean-region")
    read = store.read(store.rows(["y", "x"]))
    assert store.global_dim == 4
    np.testing.assert_allclose(read.globals, [regions[1, :2].mean(axis=0), regions[0].mean(axis=0)], rtol=1e-6,
                               atol=1e-6)
    np.save(tmp_path / "test_ims.npy", made(4, 3, 6))
    read = open_features([tmp_path / "test_ims.npy"], globals_from="mean-region").read([2])
    np.testing.assert_allclose(read.globals[0], made(4, 3, 6)[2].mean(axis=0), rtol=1e-6, atol=1e-6)
    with_globals = write_h5(tmp_path / "b.h5", ["x"], regions=made(1, 3, 4), globals=made(1, 4))
    refused("need files with only regions", open_features, [with_globals], globals_from="mean-region")


# ---- what is wrong with a file


def test_missing_images_are_counted_and_named_with_the_command(both):
    with pytest.raises(DataError) as caught:
        open_features([both[0]]).rows(["pic_a"] + [f"new{i}" for i in range(8)])
    message = str(caught.value)
    assert "no features of 8 images" in message and "new0, new1, new2, new3, new4 and 3 more" in message
    assert str(both[0]) in message and "'pic_b'" in message
    assert "Extract regions or globals of the images" in message


def test_rows_outside_the_store_are_refused(both):
    store = open_features([both[0]])
    refused("row 5 is outside the 5 images", store.read, [0, 5])
    refused("row -1 is outside", store.read, [-1])
    refused("list of row numbers", store.read, np.zeros((1, 1), dtype=int))


@pytest.mark.parametrize("name", ["regions", "globals"])
def test_a_value_that_is_not_finite_names_file_row_and_image(tmp_path, name):
    arrays = {"regions": made(5, 3, 4), "globals": made(5, 4)}
    arrays[name][3, ..., 1] = np.nan
    store = open_features([write_h5(tmp_path / "f.h5", IDS, **arrays)])
    assert len(store.read([0, 1, 2, 4]).regions) == 4
    refused(rf"f\.h5: `{name}` of row 3 \(image pic_d\).*Extract {name} of the images", store.read, [4, 3, 0])


def test_missing_truncated_and_foreign_files(tmp_path):
    path = tmp_path / "f.h5"
    refused(r"no file .*f\.h5\. Extract regions or globals of the images", open_features, [path])
    write_h5(path, IDS, regions=made(5, 3, 400))
    path.write_bytes(path.read_bytes()[:9000])
    refused(r"f\.h5 \(9,000 bytes\) is truncated, damaged or not an HDF5 file .*extract the features again",
            open_features, [path])
    path.write_bytes(b"not hdf5")
    refused("is truncated, damaged or not an HDF5 file", open_features, [path])
    write_h5(path, IDS, regions=made(5, 3, 4), attributes={"format": "other"})
    refused("attribute `format` is 'other', expected 'ascl-features'", open_features, [path])
    write_h5(path, IDS, regions=made(5, 3, 4), attributes={"version": 2})
    refused("layout version 2, this program reads version 1", open_features, [path])
    write_h5(path, IDS, regions=made(5, 3, 4), attributes={"provenance": "by hand"})
    refused("attribute `provenance` is truncated or not JSON", open_features, [path])
    write_h5(path, IDS)
    refused("needs `image_ids` and `regions` or `globals`, it has: image_ids \\(5,\\)", open_features, [path])
    write_h5(path, ["a", "b", "a"], regions=made(3, 3, 4))
    refused("image id a is given twice, in row 0 .* and in row 2", open_features, [path])


def test_a_damaged_chunk_is_reported_when_it_is_read(tmp_path):
    path = tmp_path / "f.h5"
    values = made(6, 3, 400)
    with h5py.File(write_h5(path, [str(i) for i in range(6)], globals=made(6, 2)), "a") as file:
        file.create_dataset("regions", data=values, chunks=(1, 3, 400), fletcher32=True)
        place = file["regions"].id.get_chunk_info(4).byte_offset
    content = bytearray(path.read_bytes())
    content[place + 100] ^= 0xFF
    path.write_bytes(content)
    store = open_features([path])
    assert np.array_equal(store.read([0, 5]).regions, values[[0, 5]])
    refused(r"f\.h5 .* is truncated, damaged .*extract the features again", store.read, [4])


@pytest.mark.parametrize("arrays, match", [
    ({"regions": made(4, 3, 4)}, r"`regions` has shape \(4, 3, 4\), expected \(5, any, any\)"),
    ({"regions": made(5, 3)}, r"`regions` has shape \(5, 3\)"),
    ({"regions": made(5, 3, 4).astype(np.int32)}, "`regions` has type int32"),
    ({"globals": made(5, 3, 4)}, r"`globals` has shape \(5, 3, 4\), expected \(5, any\)"),
    ({"regions": made(5, 3, 4), "boxes": made(5, 2, 4)}, r"`boxes` has shape \(5, 2, 4\), expected \(5, 3, 4\)"),
    ({"regions": made(5, 3, 4), "region_count": np.array([3, 3])}, r"`region_count` has shape \(2,\)"),
    (
        {"regions": made(5, 3, 4), "region_count": np.array([3, 3, 0, 3, 3])},
        r"row 2 \(image pic_ü\): region_count 0 is not within 1 to 3",
    ),
])
def test_arrays_that_do_not_fit_are_named(tmp_path, arrays, match):
    refused(match, open_features, [write_h5(tmp_path / "f.h5", IDS, **arrays)])
