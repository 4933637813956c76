"""Features of other projects straight from their files: the numbers, the order, and what each damaged file says."""

import os
import pickle
import shutil
import zipfile
from pathlib import Path

import foreign_files
import h5py
import numpy as np
import psutil
import pytest
from foreign_files import DIM, KINDS, Image, RowsOf, make_images, refused, written
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ascl.core.errors import DataError
from ascl.data.stores.open import FeatureStore, open_features

COUNTS = [3, 5, 2, 5, 4]


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> dict[str, FeatureStore]:
    images = make_images(COUNTS)
    return {kind: open_features([written(kind, tmp_path_factory.mktemp("foreign"), images)]) for kind in KINDS}


def check(store: FeatureStore, rows: list[int], images: dict[str, Image], most: int) -> None:
    """Value by value against the arrays that were written; padding is 0 and not real."""
    read = store.read(rows)
    assert read.regions.shape == (len(rows), most, DIM) and read.regions.dtype == np.float32
    assert read.boxes.shape == (len(rows), most, 4) and read.boxes.dtype == np.float32
    for i, row in enumerate(rows):
        image = images[store.image_ids[row]]
        for j in range(most):
            real = j < len(image.regions)
            assert read.mask is None and real or read.mask[i, j] == real
            assert read.regions[i, j].tolist() == (image.regions[j].tolist() if real else [0] * DIM)
            assert read.boxes[i, j].tolist() == (image.boxes[j].tolist() if real else [0] * 4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_format_gives_what_was_written_in_any_order(stores, kind):
    images = {image.image_id: image for image in make_images(COUNTS)}
    store = stores[kind]

    @settings(max_examples=10, deadline=None)
    @given(rows=st.lists(st.integers(0, len(COUNTS) - 1), max_size=7))
    def any_order(rows: list[int]) -> None:
        check(store, rows, images, 5)

    any_order()
    assert sorted(store.image_ids) == sorted(images)
    assert (store.num_regions, store.region_dim, store.global_dim, store.provenance) == (5, DIM, None, {})
    assert store.rows(["pic3", "pic0"]).tolist() == [store.image_ids.index("pic3"), store.image_ids.index("pic0")]


@pytest.mark.parametrize("kind", KINDS)
def test_equal_numbers_of_regions_need_no_mask(tmp_path, kind):
    store = open_features([written(kind, tmp_path, make_images([3, 3]))])
    assert store.read([1, 0]).mask is None
    assert store.read(np.array([], dtype=np.int64)).regions.shape == (0, 3, DIM)


@pytest.mark.parametrize("kind", ["bottom-up tsv", "npz", "h5 arrays", "h5 detections"])
def test_workers_read_the_same_after_the_parent_has_read(stores, kind):
    store = stores[kind]
    expected = store.read(range(len(store))).regions  # the handles are open when the workers are forked
    loaded = np.concatenate([batch.numpy() for batch in DataLoader(RowsOf(store), batch_size=2, num_workers=2)])
    assert np.array_equal(loaded, expected)
    assert np.array_equal(pickle.loads(pickle.dumps(store)).read([4]).regions, expected[4:])


def test_only_places_are_held_in_memory(tmp_path):
    images = make_images([20] * 30)
    for image in images:
        image.regions = np.zeros((20, 500), dtype=np.float32)
    store = open_features([foreign_files.write_tsv(tmp_path / "a.tsv", images)])
    store.read(range(30))
    assert len(pickle.dumps(store)) < 10_000  # one image has 40,000 bytes


# ---- details


@pytest.mark.parametrize("kind", ["lxmert tsv", "h5 groups"])
def test_classes_and_attributes_are_given_with_padding(stores, kind):
    images = {image.image_id: image for image in make_images(COUNTS)}
    store = stores[kind]
    rows = [4, 0, 4]
    details = store.details(rows)
    columns = {"class_ids": "objects_id", "scores": "objects_conf", "attribute_ids": "attrs_id",
               "attribute_scores": "attrs_conf"}
    for name, column in columns.items():
        padding = -1 if name.endswith("_ids") else 0
        assert details[name].dtype == (np.int32 if name.endswith("_ids") else np.float32)
        for i, row in enumerate(rows):
            values = images[store.image_ids[row]].details[column].tolist()
            assert details[name][i].tolist() == values + [padding] * (5 - len(values))
    assert store.names == {}


@pytest.mark.parametrize("kind", ["bottom-up tsv", "lxmert tsv", "npz"])
def test_sizes_are_width_and_height(stores, kind):
    sizes = stores[kind].details([3, 1])["image_sizes"]
    assert sizes.tolist() == [[643, 483], [641, 481]] and sizes.dtype == np.int32
    assert set(stores["h5 arrays"].details([0])) == set()


def test_detections_come_in_falling_order_of_confidence(tmp_path):
    images = make_images([4, 3])
    probabilities = [np.array([[0.1, 0.4, 0.2], [0.1, 0.1, 0.9], [0.4, 0.1, 0.1], [0.6, 0.2, 0.1]], dtype=np.float32),
                     np.array([[0.3, 0.1, 0.2], [0.2, 0.2, 0.1], [0.1, 0.8, 0.1]], dtype=np.float32)]
    path = foreign_files.write_detections_h5(tmp_path / "a.h5", images, probabilities)
    orders = [[1, 3, 0, 2], [2, 0, 1]]  # by the largest of each row; 0.4 twice, which stay in order
    store = open_features([path])
    whole = store.read([0, 1])
    for i, order in enumerate(orders):
        assert np.array_equal(whole.regions[i, : len(order)], images[i].regions[order])
        assert np.array_equal(whole.boxes[i, : len(order)], images[i].boxes[order])
    details = store.details([0, 1])
    assert np.allclose(details["scores"], [[0.9, 0.6, 0.4, 0.4], [0.8, 0.3, 0.2, 0]])
    assert details["class_ids"].tolist() == [[2, 0, 1, 0], [1, 0, 0, -1]]
    first = open_features([path], max_regions=2)
    assert np.array_equal(first.read([1, 0]).regions, whole.regions[[1, 0], :2])
    assert first.details([0])["class_ids"].tolist() == [[2, 0]] and first.num_regions == 2


# ---- several files, first regions, globals


def test_tsv_shards_with_other_numbers_of_regions_merge(tmp_path):
    one, two = make_images([2, 3], prefix="a"), make_images([5, 4], seed=1, prefix="b")
    paths = [foreign_files.write_tsv(tmp_path / f"train.tsv.{i}", part) for i, part in enumerate([one, two])]
    store = open_features(paths)
    check(store, [3, 0, 2, 1], {image.image_id: image for image in one + two}, 5)
    assert store.details([3, 0])["image_sizes"].tolist() == [[641, 481], [640, 480]]
    same = foreign_files.write_tsv(tmp_path / "again.tsv", one[:1])
    refused(r"image a0 has regions in both .*train\.tsv\.0 and .*again\.tsv", open_features, [paths[0], same])


def test_max_regions_keeps_the_first(stores, tmp_path):
    images = make_images(COUNTS)
    store = open_features([foreign_files.write_tsv(tmp_path / "a.tsv", images, "lxmert")], max_regions=3)
    for image in images:
        image.regions, image.boxes = image.regions[:3], image.boxes[:3]
    check(store, [2, 0, 1], {image.image_id: image for image in images}, 3)
    assert store.details([2])["class_ids"].shape == (1, 3) and len(store) == 5
    assert open_features([tmp_path / "a.tsv"], max_regions=100).num_regions == 5
    refused("max_regions is 0: keep at least 1 region", open_features, [tmp_path / "a.tsv"], max_regions=0)


def test_vectors_in_a_folder_are_globals_and_join_regions(tmp_path):
    images = make_images(COUNTS)
    att = foreign_files.write_cocobu(tmp_path / "cocobu", images)
    store = open_features([att, tmp_path / "cocobu_fc"])
    read = store.read(store.rows(["pic4", "pic1"]))
    assert np.array_equal(read.globals, [images[4].regions.mean(axis=0), images[1].regions.mean(axis=0)])
    assert np.array_equal(read.regions[1, :5], images[1].regions)
    refused("has no regions: leave max_regions out", open_features, [tmp_path / "cocobu_fc"], max_regions=3)
    with h5py.File(tmp_path / "fc.h5", "w") as file:
        for image in images:
            file[image.image_id] = image.regions[0]
    assert np.array_equal(open_features([tmp_path / "fc.h5"]).read([2]).globals[0], images[2].regions[0])


def test_a_map_of_features_is_read_row_by_row(tmp_path):
    (tmp_path / "talk_att").mkdir()
    feature_map = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    np.savez(tmp_path / "talk_att" / "9.npz", feat=feature_map)
    read = open_features([tmp_path / "talk_att"]).read([0])
    assert [read.regions[0, 3 * y + x].tolist() for y in range(2) for x in range(3)] == [
        feature_map[y, x].tolist() for y in range(2) for x in range(3)]
    assert read.boxes is None


def test_regions_as_plain_arrays_have_no_boxes(tmp_path):
    images = make_images(COUNTS)
    store = open_features([foreign_files.write_npy(tmp_path / "regions", images)])
    read = store.read([4, 1])
    assert read.boxes is None and np.array_equal(read.regions[1], images[1].regions)


def test_types_of_other_widths_become_float32(tmp_path):
    (tmp_path / "half").mkdir()
    values = np.random.default_rng(0).normal(size=(3, DIM)).astype(np.float16)
    np.save(tmp_path / "half" / "a.npy", values)
    read = open_features([tmp_path / "half"]).read([0])
    assert read.regions.dtype == np.float32 and np.array_equal(read.regions[0], values.astype(np.float32))


# ---- the index beside the file


@pytest.mark.parametrize("kind", KINDS)
def test_the_index_is_kept_and_renewed_when_the_file_changes(tmp_path, kind):
    folder = tmp_path / "one"
    folder.mkdir()
    path = written(kind, folder, make_images([3, 2]))
    beside = path.with_name(f".{path.name}.index.npz")
    open_features([path])
    before = beside.stat().st_mtime_ns
    assert open_features([path]).image_ids == ["pic0", "pic1"] and beside.stat().st_mtime_ns == before
    beside.write_bytes(beside.read_bytes()[:100])  # damaged: made again
    assert len(open_features([path])) == 2 and beside.stat().st_size > 100
    shutil.rmtree(folder)
    folder.mkdir()
    path = written(kind, folder, make_images([3, 2, 4]))
    store = open_features([path])
    assert len(store) == 3
    check(store, [2, 0, 1], {image.image_id: image for image in make_images([3, 2, 4])}, 4)


def test_a_stale_index_is_not_used(tmp_path):
    path = foreign_files.write_tsv(tmp_path / "a.tsv", make_images([3, 2]))
    open_features([path])
    foreign_files.write_tsv(path, make_images([2, 3]))  # as long as before
    os.utime(path, ns=(0, path.stat().st_mtime_ns + 1))
    check(open_features([path]), [0, 1], {image.image_id: image for image in make_images([2, 3])}, 3)


def test_a_folder_that_cannot_be_written_only_takes_a_pass_each_time(tmp_path):
    path = foreign_files.write_tsv(tmp_path / "a.tsv", make_images([3, 2]))
    (tmp_path / ".a.tsv.index.npz").mkdir()  # nothing can be renamed onto a folder, not even by root
    assert len(open_features([path])) == 2 and len(open_features([path])) == 2
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".a.tsv.index.npz", "a.tsv"]


# ---- what is wrong with a file


def test_nothing_pickled_is_opened(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "went off",))

    image = make_images([3])[0]
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "a.npz", x=image.regions, bbox=image.boxes, num_bbox=3, info=np.array(Bomb(), object))
    assert np.array_equal(open_features([tmp_path / "npz"]).read([0]).regions[0], image.regions)
    np.savez(tmp_path / "npz" / "a.npz", x=np.array([Bomb()], object), num_bbox=1)
    refused(r"a\.npz.*", open_features, [tmp_path / "npz"])
    (tmp_path / "npy").mkdir()
    np.save(tmp_path / "npy" / "a.npy", np.array([Bomb()], object), allow_pickle=True)
    with pytest.raises(DataError):
        open_features([tmp_path / "npy"]).read([0])
    assert not (tmp_path / "went off").exists()


def damaged_tsv(change) -> bytes:
    """Three rows, the second of them with changed cells."""
    rows = [foreign_files.tsv_row(image, "bottom-up") for image in make_images([3, 4, 2])]
    cells = rows[1].split(b"\t")
    return b"\n".join([rows[0], b"\t".join(change(cells)), rows[2]]) + b"\n"


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c[:-1], r"a\.tsv, line 2 \(image pic1\): 5 columns, the first row has 6; the row is damaged"),
    (lambda c: [*c, b""], r"line 2 .*7 columns"),
    (lambda c: [*c[:3], b"four", *c[4:]], r"line 2 .*whole numbers .*four"),
    (lambda c: [*c[:3], b"0", *c[4:]], r"line 2 .*num_boxes is 0"),
    (lambda c: [*c[:3], b"3", *c[4:]], r"line 2 .*`boxes` has 64 bytes, 3 boxes have 48"),
    (lambda c: [*c[:5], c[5][:-8]], r"line 2 .*`features` has 9. bytes, which 4 boxes do not divide"),
    (lambda c: [*c[:5], foreign_files.text(np.zeros((4, 5), np.float32))],
     r"line 1 .* holds regions of 24 bytes .*line 2 .*regions of 20 bytes"),
    (lambda c: [b"pic0", *c[1:]], r"line 2 .*the image id is given twice, first in .*line 1 .*skip_broken"),
])
def test_a_damaged_row_of_a_tsv_is_named_when_it_is_opened(tmp_path, change, message):
    (tmp_path / "a.tsv").write_bytes(damaged_tsv(change))
    refused(message, open_features, [tmp_path / "a.tsv"])


def test_bad_base64_and_values_are_named_when_they_are_read(tmp_path):
    (tmp_path / "a.tsv").write_bytes(damaged_tsv(lambda c: [*c[:5], b"?" + c[5][1:]]))
    store = open_features([tmp_path / "a.tsv"])
    assert store.read([2, 0]).regions.shape == (2, 4, DIM)
    refused(r"a\.tsv, line 2 \(image pic1\): `features` is not base64", store.read, [0, 1])
    bad = np.full((4, DIM), np.nan, dtype=np.float32)
    (tmp_path / "b.tsv").write_bytes(damaged_tsv(lambda c: [*c[:5], foreign_files.text(bad)]))
    with pytest.raises(DataError, match=r"b\.tsv: `regions` of row 1 \(image pic1\) has values that are not.*line 2"):
        open_features([tmp_path / "b.tsv"]).read([0, 1])


@pytest.mark.parametrize("cut", [1, 5, 8, 60, 150])
def test_a_truncated_tsv_is_told_from_its_last_row(tmp_path, cut):
    path = foreign_files.write_tsv(tmp_path / "a.tsv", make_images([3, 3]), end=b"\n")
    path.write_bytes(path.read_bytes()[: -cut - 1])
    refused(r"line 2.*truncated", open_features, [path])
    whole = foreign_files.write_tsv(tmp_path / "b.tsv", make_images([3, 3]), end=b"\n")
    whole.write_bytes(whole.read_bytes()[:-1])  # only the line feed is missing: nothing is lost
    assert len(open_features([whole])) == 2


def test_other_tsv_files_are_refused(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"1\t2\t3\n")
    refused(r"line 1: 3 columns, expected 6 \(image_id.*or 10 \(img_id", open_features, [tmp_path / "a.tsv"])
    (tmp_path / "a.tsv.gz").write_bytes(b"\x1f\x8b")
    refused("unpack it with gunzip", open_features, [tmp_path / "a.tsv.gz"])
    refused("no file .*nowhere.tsv", open_features, [tmp_path / "nowhere.tsv"])
    images = make_images([2, 3])
    header = "\t".join(("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")).encode()
    rows = [header, b"", *(foreign_files.tsv_row(image, "bottom-up") for image in images)]
    (tmp_path / "c.tsv").write_bytes(b"\n".join(rows))
    check(open_features([tmp_path / "c.tsv"]), [1, 0], {image.image_id: image for image in images}, 3)


def test_damaged_npz_files_are_named(tmp_path):
    image = make_images([3])[0]
    folder = tmp_path / "npz"

    def opened(**arrays) -> FeatureStore:
        shutil.rmtree(folder, ignore_errors=True)
        foreign_files.write_npz(folder, make_images([3, 4]))
        if arrays:
            np.savez(folder / "pic1.npz", **arrays)
        return open_features([folder])

    for arrays, message in [
        ({"bbox": image.boxes}, r"pic1\.npz has neither `x` nor `feat`: give the folder"),
        ({"x": image.regions}, "neither `bbox` nor `num_bbox`"),
        ({"x": image.regions, "num_bbox": 4}, r"pic1\.npz: `x` has shape \(3, 6\), which does not fit 4 boxes"),
        ({"x": image.regions, "num_bbox": 4, "bbox": image.boxes}, "`num_bbox` is 4, `bbox` has 3 rows"),
        ({"x": image.regions, "bbox": image.boxes[:, :3]}, r"`bbox` has shape \(3, 3\)"),
        ({"x": np.zeros((3, 3)), "num_bbox": 3}, "which axis is which"),
        ({"x": image.regions[:, :5], "bbox": image.boxes}, "regions of dimension 6.*holds regions of dimension 5"),
        ({"x": image.regions[:0], "num_bbox": 0}, r"pic1\.npz holds no region"),
        ({"x": image.regions, "num_bbox": 3}, r"pic0\.npz holds regions of dimension 6 with boxes, .*pic1\.npz holds"),
    ]:
        refused(message, opened, **arrays)
    opened()
    path = folder / "pic1.npz"
    path.write_bytes(path.read_bytes()[:-30])
    refused(r"pic1\.npz \(.* is truncated, damaged", open_features, [folder])
    store = opened()
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", b"nothing")
    refused(r"pic1\.npz \(.* is truncated, damaged", store.read, [1])
    store = opened()
    np.savez(path, x=image.regions, bbox=image.boxes)
    refused(r"pic1\.npz: its regions have shape \(3, 6\), expected \(4, 6\)", store.read, [1])


def test_damaged_npy_folders_are_named(tmp_path):
    images = make_images([3, 4])
    att = foreign_files.write_cocobu(tmp_path / "bu", images)
    refused("these are boxes, not features", open_features, [tmp_path / "bu_box"])
    np.save(tmp_path / "bu_box" / "pic1.npy", images[0].boxes)
    with pytest.raises(DataError, match=r"pic1\.npz: its boxes have shape \(3, 4\), expected \(4, 4\)"):
        open_features([att]).read([1])
    (tmp_path / "bu_box" / "pic1.npy").unlink()
    with pytest.raises(DataError, match=r"no file .*bu_box.pic1\.npy"):
        open_features([att]).read([1])
    np.save(tmp_path / "bu_fc" / "pic1.npy", images[1].regions)
    refused(r"pic0\.npy holds one vector .*pic1\.npy holds regions", open_features, [tmp_path / "bu_fc"])
    np.save(tmp_path / "bu_fc" / "pic0.npy", np.zeros((3, 2, 2)))
    refused("if this file holds all images, give its own path", open_features, [tmp_path / "bu_fc"])


def test_folders_without_one_kind_of_features_are_refused(tmp_path):
    refused("found: none of them", open_features, [tmp_path])
    images = make_images([3])
    foreign_files.write_npz(tmp_path / "a", images)
    np.save(tmp_path / "a" / "b.npy", images[0].boxes)
    refused(r"found: 1 \.npz, 1 \.npy", open_features, [tmp_path / "a"])
    refused("give the folder with the files of all images", open_features, [tmp_path / "a" / "pic0.npz"])
    refused("unpack it first", open_features, [tmp_path / "trainval.zip"])


def test_damaged_hdf5_is_named(tmp_path):
    images = make_images([3, 4])
    path = foreign_files.write_groups_h5(tmp_path / "a.h5", images)
    with h5py.File(path, "a") as file:
        del file["pic1/features"]
    refused(r"a\.h5, entry pic1 has no `features`", open_features, [path])
    with h5py.File(path, "a") as file:
        file["pic1/features"] = images[1].regions[:, :5]
    with pytest.raises(DataError, match=r"entry pic0 holds regions of dimension 6 .*"
                                        r"entry pic1 holds regions of dimension 5"):
        open_features([path])
    with h5py.File(path, "a") as file:
        del file["pic1/features"], file["pic1/boxes"]
        file["pic1/features"], file["pic1/boxes"] = images[1].regions, images[0].boxes
    store = open_features([path])
    refused(r"entry pic1: its boxes have shape \(3, 4\), expected \(4, 4\)", store.read, [0, 1])
    with h5py.File(tmp_path / "vqa.h5", "w") as file:
        file["image_features"], file["image_bb"] = np.zeros((9, 3)), np.zeros((9, 4))
        file["pos_boxes"] = np.zeros((2, 2))
    refused("regions of all images in one data set", open_features, [tmp_path / "vqa.h5"])
    with h5py.File(tmp_path / "ids.h5", "w") as file:
        file["a"], file["b"] = np.zeros((2, 3)), np.zeros((2, 3), dtype=int)
    refused(r"entry b: expected features of floats", open_features, [tmp_path / "ids.h5"])
    with h5py.File(tmp_path / "wide.h5", "w") as file:
        file["a"] = np.zeros((1001, 2), dtype=np.float32)
    refused("1001 regions, expected 1 to 1000", open_features, [tmp_path / "wide.h5"])
    shards = foreign_files.write_arrays_h5(tmp_path / "shards", images)
    with h5py.File(shards / "region_bbox.h5", "a") as file:
        del file["pic1"]
    with pytest.raises(DataError, match=r"feat001\.h5, entry pic1: .*region_bbox\.h5 has no `pic1`"):
        open_features([shards]).read([0, 1])
    refused("only boxes, no features", open_features, [shards / "region_bbox.h5"])


def test_more_shards_than_may_be_open_are_read(tmp_path):
    images = make_images([2] * 150)
    store = open_features([foreign_files.write_arrays_h5(tmp_path / "shards", images, shards=150, boxes=False)])
    rows = np.random.default_rng(0).permutation(150)
    expected = {image.image_id: image.regions for image in images}
    assert np.array_equal(store.read(rows).regions, [expected[store.image_ids[row]] for row in rows])
    assert sum(file.path.startswith(str(tmp_path)) for file in psutil.Process().open_files()) <= 64


def test_missing_images_say_how_ids_are_mapped(stores):
    with pytest.raises(DataError, match=r"ids look like 'pic0'\. If the file has other ids for the same images, "
                                        r"convert it with captions that have both"):
        stores["bottom-up tsv"].rows(["COCO_val2014_000000391895"])
