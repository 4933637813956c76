"""What files of features promise and mean is checked: types, values, boxes, sizes, links and side indexes."""

import io
import json
import os
import resource
import zipfile

import foreign_files
import h5py
import numpy as np
import pytest
from foreign_files import DIM, made, made_boxes, make_images, refused, text, tsv_row, write_groups_h5, write_tsv

from ascl.cli import main
from ascl.core.errors import DataError
from ascl.data.stores.convert import convert
from ascl.data.stores.float_type import float_type
from ascl.data.stores.open import open_features

SHAPE = (8, 36, 64)
FEATURES = {
    "signed": lambda rng: rng.normal(size=SHAPE), "rectified": lambda rng: np.maximum(rng.normal(size=SHAPE), 0),
    "sparse": lambda rng: np.maximum(rng.normal(size=SHAPE) - 1.5, 0), "large": lambda rng: 100 * rng.random(SHAPE),
    "normalized": lambda rng: rng.normal(size=SHAPE) / 45, "narrow": lambda rng: 0.5 + rng.random(SHAPE) / 2,
    "whole numbers": lambda rng: rng.integers(0, 50, SHAPE),
    "few digits": lambda rng: rng.integers(0, 512, SHAPE) / 512,
}


# ---- types and values


@pytest.mark.parametrize("kind", FEATURES)
@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<f2"])
@pytest.mark.parametrize("digits", ["f8", "f4", "f2"])
def test_the_type_of_features_is_recognized(kind, dtype, digits):
    values = FEATURES[kind](np.random.default_rng(0)).astype(digits).astype(dtype)
    found = float_type([image.tobytes() for image in values], values.shape[-1] * values.itemsize)
    assert found == np.dtype(dtype)


def test_bytes_that_no_type_explains_are_refused(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (8, 36 * 256), dtype=np.uint8)
    assert float_type([image.tobytes() for image in noise], 256) is None
    images = make_images([3] * 4)
    for image in images:
        image.regions = np.frombuffer(np.random.default_rng(1).bytes(3 * 64 * 4), np.float32).reshape(3, 64)
    refused(r"a\.tsv, line 1 .*the 256 bytes of a region are neither float32 nor float64 nor float16", open_features,
            [write_tsv(tmp_path / "a.tsv", images)])


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_a_tsv_of_another_type_is_read_as_what_it_is(tmp_path, dtype):
    images = make_images([36, 12, 36])
    path = tmp_path / "a.tsv"
    rows = []
    for image in images:
        image.regions = made(len(image.regions), 32, seed=len(rows)).astype(dtype)
        cells = tsv_row(image, "bottom-up").split(b"\t")
        cells[4] = text(image.boxes.astype(np.float64))
        rows.append(b"\t".join(cells))
    path.write_bytes(b"\n".join(rows) + b"\n")
    store = open_features([path])
    read = store.read([0, 1, 2])
    assert (store.region_dim, read.regions.dtype) == (32, np.float32)
    for i, image in enumerate(images):
        assert np.array_equal(read.regions[i, : len(image.regions)], image.regions.astype(np.float32))
        assert np.array_equal(read.boxes[i, : len(image.boxes)], image.boxes)
    assert convert([path], tmp_path / "out.h5", progress=False).checked == 3


def test_details_of_another_size_are_read_by_length(tmp_path):
    image, = make_images([5])
    image.details |= {"objects_id": image.details["objects_id"].astype(np.int32),
                      "objects_conf": image.details["objects_conf"].astype(np.float64)}
    details = open_features([write_tsv(tmp_path / "a.tsv", [image], "lxmert")]).details([0])
    assert details["class_ids"][0].tolist() == image.details["objects_id"].tolist()
    assert np.allclose(details["scores"][0], image.details["objects_conf"])


@pytest.mark.parametrize("kind", ["bottom-up tsv", "npz", "h5 groups"])
@pytest.mark.parametrize(("change", "message"), [
    (lambda image: image.regions.__setitem__((1, 2), 3.7e19), r"not finite or above 1e\+10"),
    (lambda image: image.boxes.__setitem__((1, 0), np.nan), r"region 2 .*has the box nan"),
    (lambda image: image.boxes.__setitem__(1, [50, 50, 20, 60]), r"region 2 .*has the box 50 50 20 60"),
    (lambda image: image.boxes.__setitem__(1, [0, 0, 2000, 60]), r"region 2 .*has the box 0 0 2000 60"),
])
def test_impossible_values_are_refused_with_their_place(tmp_path, kind, change, message):
    images = make_images([3, 4, 2])
    change(images[1])
    store = open_features([foreign_files.written(kind, tmp_path, images)])
    if kind == "h5 groups" and "2000" in message:
        return                                              # the size of its images is not known
    assert len(store.read([0, 2]).regions) == 2
    with pytest.raises(DataError, match=message) as caught:
        store.read([0, 1])
    assert "pic1" in str(caught.value)


@pytest.mark.parametrize(("name", "value", "message"), [
    ("scores", np.nan, "`scores` of row 1 .* has the value nan, expected 0 to 1"), ("scores", 17.0, "has the value 17"),
    ("image_sizes", -5, "`image_sizes` of row 1 .* has the value -5"), ("class_ids", -7, "has the value -7"),
])
def test_impossible_details_are_refused(tmp_path, name, value, message):
    arrays = {"scores": np.full((3, 4), 0.5, np.float32), "image_sizes": np.full((3, 2), 100, np.int32),
              "class_ids": np.zeros((3, 4), np.int32)}
    arrays[name][1, 1] = value
    store = open_features([ours(tmp_path, **arrays)])
    assert len(store.details([0, 2])["scores"]) == 2
    refused(message, store.details, [0, 1])


def test_wrong_sizes_and_ids_of_a_tsv_name_the_line(tmp_path):
    image = make_images([3])[0]
    for cell, value, message in [(1, b"-640", "line 1 .*-640 x 480 pixels"), (0, b"a\0b", "line 1 .*NUL character"),
                                 (0, b"caf\xe9", "line 1 .*is not UTF-8"), (0, b" ", "line 1 .*is empty")]:
        cells = tsv_row(image, "bottom-up").split(b"\t")
        cells[cell] = value
        path = tmp_path / "a.tsv"
        path.write_bytes(b"\t".join(cells) + b"\n")
        refused(message, open_features, [path])


def test_a_byte_order_mark_is_no_part_of_the_first_id(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", make_images([3, 2]))
    wanted = open_features([path]).read([0, 1])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    store = open_features([path])
    assert store.image_ids == ["pic0", "pic1"] and np.array_equal(store.read([0, 1]).regions, wanted.regions)


# ---- what may be left out


def test_broken_and_repeated_images_are_left_out_and_listed_on_request(tmp_path, capsys):
    images = make_images([3, 2, 4, 3, 2, 3])
    rows = [tsv_row(image, "bottom-up").split(b"\t") for image in images]
    rows[1][0] = b"pic0"                                    # repeats the first
    rows[2][5] = rows[2][5][:-8]                            # truncated
    rows[3][3] = b"0"
    images[4].regions[0, 0] = np.nan
    rows[4] = tsv_row(images[4], "bottom-up").split(b"\t")
    path = tmp_path / "a.tsv"
    path.write_bytes(b"".join(b"\t".join(row) + b"\n" for row in rows))
    refused(r"a\.tsv, line 2 \(image pic0\): the image id is given twice, first in .*line 1 .*skip_broken",
            open_features, [path])
    assert main(["convert", str(path), "--out", str(tmp_path / "o.h5"), "--skip_broken"]) == 0
    said = capsys.readouterr().out
    assert "left out 4 images" in said and all(f"line {line} " in said for line in (2, 3, 4, 5))
    store = open_features([tmp_path / "o.h5"])
    assert store.image_ids == ["pic0", "pic5"]
    assert np.array_equal(store.read([1]).regions[0], images[5].regions)
    provenance, = store.provenance.values()
    assert len(provenance["skipped"]) == 4 and provenance["settings"]["skip_broken"]
    refused("line 2", open_features, [path])                # its index is not that of the strict reader


def test_a_damaged_file_of_a_folder_is_left_out_on_request(tmp_path):
    folder = foreign_files.write_npz(tmp_path / "npz", make_images([3, 4, 2]))
    (folder / "pic1.npz").write_bytes(b"PK damaged")
    os.mkfifo(folder / "pipe.npz")
    (folder / "loop.npz").symlink_to("loop.npz")
    (folder / "gone.npz").symlink_to("nowhere")
    with pytest.raises(DataError, match="npz"):
        open_features([folder])
    store = open_features([folder], skip_broken=True)
    assert store.image_ids == ["pic0", "pic2"]
    assert sorted(reason.split("npz")[1].strip("/.") for reason in store.skipped) == ["gone", "loop", "pic1", "pipe"]


# ---- promises: sizes and places


def ours(folder, **arrays):
    path = folder / "ours.h5"
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["version"], file.attrs["provenance"] = "ascl-features", 1, "{}"
        file.create_dataset("image_ids", data=["a", "b", "c"], dtype=h5py.string_dtype())
        for name, values in ({"regions": made(3, 4, DIM), "boxes": made_boxes(3, 4)} | arrays).items():
            file[name] = values
    return path


def test_values_in_other_files_are_refused(tmp_path):
    (tmp_path / "other").mkdir()
    other = ours(tmp_path / "other")
    layout = h5py.VirtualLayout((3, 4, DIM), "f4")
    layout[:] = h5py.VirtualSource(str(other), "regions", (3, 4, DIM))
    raw = tmp_path / "raw.bin"
    raw.write_bytes(bytes(3 * 4 * DIM * 4))
    makers = {
        r"`globals` is a link to '/x' in '.*', and links": lambda file: file.__setitem__(
            "globals", h5py.ExternalLink("/etc/passwd", "/x")),
        "`globals` is a link to '/regions', and links": lambda file: file.__setitem__(
            "globals", h5py.SoftLink("/regions")),
        "`regions` takes its values from other files": lambda file: (
            file.__delitem__("regions"), file.create_virtual_dataset("regions", layout)),
        "`regions` takes its values from other": lambda file: (file.__delitem__("regions"), file.create_dataset(
            "regions", (3, 4, DIM), "f4", external=[(str(raw), 0, h5py.h5f.UNLIMITED)])),
    }
    for message, make in makers.items():
        path = ours(tmp_path)
        with h5py.File(path, "a") as file:
            make(file)
        refused(message, open_features, [path])
    groups = write_groups_h5(tmp_path / "g.h5", make_images([3, 2]))
    with h5py.File(groups, "a") as file:
        del file["pic1/boxes"]
        file["pic1/boxes"] = h5py.ExternalLink(str(other), "boxes")
    refused("`boxes` is a link", open_features([groups]).read, [1])


def test_values_that_were_never_written_are_refused(tmp_path):
    for options in ({}, {"chunks": (1, 4, DIM)}, {"chunks": (1, 4, DIM), "compression": "gzip"}):
        path = ours(tmp_path)
        with h5py.File(path, "a") as file:
            del file["regions"]
            file.create_dataset("regions", (3, 4, DIM), "f4", **options)
        refused("`regions` has shape .*, but only 0 of", open_features, [path])


def test_sizes_are_limited_before_memory_is_taken(tmp_path, monkeypatch):
    path = ours(tmp_path)
    with h5py.File(path, "a") as file:
        del file["regions"]
        file.create_dataset("regions", data=np.zeros((3, 4000, 64), "f4"), chunks=(3, 4000, 64), compression="gzip")
    monkeypatch.setenv("ASCL_MAX_CHUNK_BYTES", "1e6")
    refused("`regions` is stored in chunks that are too large: .*ASCL_MAX_CHUNK_BYTES", open_features, [path])
    monkeypatch.setenv("ASCL_MAX_CHUNK_BYTES", "1e9")
    monkeypatch.setenv("ASCL_MAX_ARRAY_BYTES", "1e5")
    refused("an image in `regions`: 1,024,000 bytes, .*ASCL_MAX_ARRAY_BYTES", open_features, [path])
    (tmp_path / "npz").mkdir()
    np.savez_compressed(tmp_path / "npz" / "a.npz", feat=np.zeros((100, 1000), "f4"))
    refused(r"a\.npz unpacks to: 400,.*ASCL_MAX_ARRAY_BYTES", open_features, [tmp_path / "npz"])


@pytest.mark.parametrize("shape", ["(1000000000000,)", "(-1, -4)", "(9" + "9" * 400 + ",)", "(3, 2", "(True,)", "[3]"])
def test_a_header_that_promises_more_than_follows_is_refused(tmp_path, shape):
    """In little memory: an address space of 8 GiB does not hold what the header promises."""
    written = io.BytesIO()
    header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".ljust(1013) + "\n"
    written.write(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + bytes(48))
    (tmp_path / "npy").mkdir()
    (tmp_path / "npy" / "a.npy").write_bytes(written.getvalue())
    (tmp_path / "npz").mkdir()
    with zipfile.ZipFile(tmp_path / "npz" / "a.npz", "w") as archive:
        archive.writestr("feat.npy", written.getvalue())
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 33, hard))
    try:
        for kind in ("npy", "npz"):
            refused(rf"a\.{kind}", open_features, [tmp_path / kind])
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_an_altered_side_index_is_made_again(tmp_path):
    path = write_tsv(tmp_path / "a.tsv", make_images([3, 2, 4]))
    wanted = open_features([path]).read([0, 1, 2])
    kept = tmp_path / ".a.tsv.index.npz"
    with np.load(kept) as file:
        arrays = dict(file)
    sound = kept.read_bytes()
    changes = {"places": lambda v: v[::-1], "counts": lambda v: v[::-1], "image_ids": lambda v: v[::-1],
               "sizes": lambda v: v * 2, "dim": lambda v: v * 2, "skipped": lambda v: np.array(["x"])}
    for name, change in changes.items():
        np.savez(kept, **{**arrays, name: change(arrays[name])})
        store = open_features([path])
        assert store.image_ids == ["pic0", "pic1", "pic2"] and len(store.skipped) == 0
        assert np.array_equal(store.read([0, 1, 2]).regions, wanted.regions)
        assert kept.read_bytes() == sound


def test_a_foreign_file_is_not_to_be_overwritten(tmp_path):
    path = tmp_path / "theirs.h5"
    with h5py.File(path, "w") as file:
        file["features"] = made(3, 4, 2)
    with pytest.raises(DataError, match=r"it holds features \(3, 4, 2\)\. Keep it") as caught:
        open_features([path])
    assert "xtract" not in str(caught.value)
    refused("not a feature file of this project: choose another output file", convert,
            [write_tsv(tmp_path / "a.tsv", make_images([3]))], path, progress=False)
    assert json.dumps(h5py.File(path)["features"].shape) == "[3, 4, 2]"
