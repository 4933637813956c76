"""Readers of caption files: counts and texts of real files, and every way in which a file can be wrong."""

import gzip
import json
import os
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet, captions_exist, load_captions, load_coco, load_karpathy, load_scan


def refused(message: str, call, *arguments, **more) -> None:
    with pytest.raises(DataError, match=message):
        call(*arguments, **more)


def image(name: str, split: str, *raw: str) -> dict:
    sentences = [{"raw": text, "sentid": 100 + i, "tokens": text.split()} for i, text in enumerate(raw)]
    return {"filename": name, "split": split, "sentences": sentences}


def write_json(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


def write_karpathy(path: Path, *images: dict) -> Path:
    return write_json(path, {"images": list(images), "dataset": "small"})


def write_scan(folder: Path, split: str, captions: list[str], ids: list[str] | None = None) -> Path:
    (folder / f"{split}_caps.txt").write_text("\n".join(captions) + "\n", encoding="utf-8")
    if ids is not None:
        (folder / f"{split}_ids.txt").write_text("\n".join(ids) + "\n", encoding="utf-8")
    return folder


# ---- CaptionSet


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(1, 4))
def test_captions_of_and_limit_match_a_scan_of_the_owners(owner, limit):
    captions = CaptionSet([f"i{i}" for i in range(6)], [f"c{j}" for j in range(len(owner))], np.array(owner, int), "x")
    limited = captions.limit_captions(limit)
    for i in range(6):
        of_image = [j for j, o in enumerate(owner) if o == i]
        assert captions.captions_of(i) == of_image
        assert [limited.captions[j] for j in limited.captions_of(i)] == [f"c{j}" for j in of_image[:limit]]
    assert [int(c[1:]) for c in limited.captions] == sorted(int(c[1:]) for c in limited.captions)  # order of the file


def test_subset_keeps_the_given_order_and_all_captions():
    captions = CaptionSet(["a", "b", "c"], ["a0", "c0", "b0", "a1"], np.array([0, 2, 1, 0]), "x")
    chosen = captions.subset([2, 0])
    assert chosen.image_ids == ["c", "a"]
    assert chosen.captions == ["c0", "a0", "a1"]
    assert chosen.owner.tolist() == [0, 1, 1]
    assert captions.subset([]).captions == []


def test_caption_set_refuses_what_does_not_fit():
    refused("outside the 1 images", CaptionSet, ["a"], ["x"], np.array([1]), "f.json")
    refused("2 captions but owner", CaptionSet, ["a"], ["x", "y"], np.array([0]), "f.json")
    with pytest.raises(DataError, match="f.json: image id a given to more than one image"):
        CaptionSet(["a", "a"], ["x", "y"], np.array([0, 1]), "f.json")
    captions = CaptionSet(["a"], ["x"], np.array([0]), "f.json")
    with pytest.raises(IndexError, match="image 1 of 1"):
        captions.captions_of(1)
    with pytest.raises(ValueError, match="at least 1"):
        captions.limit_captions(0)


# ---- Karpathy


def test_karpathy_reads_one_split_with_unequal_captions(tmp_path):
    path = write_karpathy(tmp_path / "dataset_x.json", image("COCO_val2014_1.jpg", "test", " A dog .\n", "Two\ndogs"),
                          image("b.png", "train", "no"), image("c.jpg", "test"),
                          image("d.e.jpg", "test", "Ein Hündchen"))
    captions = load_karpathy(path, "test")
    assert captions.image_ids == ["COCO_val2014_1", "c", "d.e"]
    assert captions.captions == ["A dog .", "Two dogs", "Ein Hündchen"]
    assert captions.owner.tolist() == [0, 0, 2] and captions.owner.dtype == np.int64
    assert captions.source == str(path)


def test_karpathy_train_includes_restval_unless_told_otherwise(tmp_path):
    path = write_karpathy(tmp_path / "d.json", image("a.jpg", "train", "x"), image("b.jpg", "restval", "y"))
    assert load_karpathy(path, "train").image_ids == ["a", "b"]
    assert load_karpathy(path, "train", restval_in_train=False).image_ids == ["a"]
    assert load_karpathy(path, "restval").image_ids == ["b"]


def test_karpathy_reads_gzip_and_a_byte_order_mark(tmp_path):
    content = b"\xef\xbb\xbf" + json.dumps({"images": [image("a.jpg", "val", "x")]}).encode()
    (tmp_path / "d.json.gz").write_bytes(gzip.compress(content))
    assert load_karpathy(tmp_path / "d.json.gz", "val").captions == ["x"]
    assert load_karpathy(tmp_path / "d.json", "val").captions == ["x"]  # found as its .gz


def test_karpathy_errors_name_file_place_and_remedy(tmp_path):
    path = tmp_path / "d.json"
    refused(r"no file .*d\.json; data/README\.md says", load_karpathy, path, "test")
    write_karpathy(path, image("a.jpg", "val", "x"), image("b.jpg", "train", "y"))
    refused(r"no split 'test'; splits there: train, val", load_karpathy, path, "test")
    write_karpathy(path, image("a.jpg", "val", "x", "  \n"))
    refused(r"d\.json, image a\.jpg, sentid 101: empty caption", load_karpathy, path, "val")
    write_karpathy(path, image("a.jpg", "val", "x"), image("a.png", "val", "y"))
    refused("image id a given to more than one image", load_karpathy, path, "val")
    write_karpathy(path, image("a.jpg", "val", "b'x y'"), image("b.jpg", "val", 'b"it\'s"'))
    refused("bytes literal", load_karpathy, path, "val")
    write_karpathy(path, {"filename": "a.jpg", "split": "val", "sentences": [{"tokens": ["x"]}]})
    refused(r"key `raw` is missing", load_karpathy, path, "val")
    write_karpathy(path, {"filename": "a.jpg", "sentences": []})
    refused(r"images\[0\]: key `split` is missing", load_karpathy, path, "val")
    write_json(path, {"pictures": []})
    refused(r"no list of objects `images` \(keys: pictures\)", load_karpathy, path, "val")
    write_json(path, [1])
    refused("expected a JSON object, found a JSON list", load_karpathy, path, "val")
    path.write_text('{"images": [\n{"filename": ', encoding="utf-8")
    refused("truncated or not JSON .*line 2", load_karpathy, path, "val")


def test_a_truncated_gzip_is_named(tmp_path):
    whole = gzip.compress(json.dumps({"images": [image("a.jpg", "val", "x" * 999)]}).encode())
    (tmp_path / "d.json.gz").write_bytes(whole[: len(whole) // 2])
    message = r"d\.json\.gz .* is truncated, damaged or not gzip .* download it again"
    refused(message, load_karpathy, tmp_path / "d.json.gz", "val")


# ---- COCO


def test_coco_groups_captions_by_image_and_keeps_images_without(tmp_path):
    images = [{"id": 7, "file_name": "p7.jpg"}, {"id": 3, "file_name": "p3.jpg"}, {"id": 9, "file_name": "p9.jpg"}]
    said = [(3, "three a"), (7, "seven a"), (3, "three b")]
    annotations = [{"id": i, "image_id": owner, "caption": text} for i, (owner, text) in enumerate(said)]
    path = write_json(tmp_path / "captions_val2014.json", {"images": images, "annotations": annotations})
    captions = load_coco(path)
    assert captions.image_ids == ["p7", "p3", "p9"]
    assert captions.captions == ["seven a", "three a", "three b"]
    assert captions.owner.tolist() == [0, 1, 1]
    assert load_captions(path, "val").captions == captions.captions
    assert load_captions(tmp_path, "val").captions == captions.captions
    refused("holds COCO's captions of val, not of split test", load_captions, path, "test")


def test_coco_errors_name_the_annotation(tmp_path):
    path = tmp_path / "captions.json"
    images = [{"id": 7, "file_name": "p7.jpg"}]
    write_json(path, {"images": images, "annotations": [{"id": 5, "image_id": 8, "caption": "x"}]})
    refused("annotation 5: image_id 8 is not among", load_coco, path)
    write_json(path, {"images": images, "annotations": [{"id": 5, "image_id": 7, "caption": " "}]})
    refused("annotation 5 of image_id 7: empty caption", load_coco, path)
    write_json(path, {"images": images * 2, "annotations": [{"id": 5, "image_id": 7, "caption": "x"}]})
    refused("two images have the id 7", load_coco, path)


def test_coco_ids_may_be_numbers_or_texts(tmp_path):
    images = [{"id": "100", "file_name": "a.jpg"}, {"id": 7.0, "file_name": "b.jpg"}]
    annotations = [{"id": 1, "image_id": 100, "caption": "x"}, {"id": 2, "image_id": "7", "caption": "y"}]
    captions = load_coco(write_json(tmp_path / "captions.json", {"images": images, "annotations": annotations}))
    assert captions.captions == ["x", "y"] and captions.owner.tolist() == [0, 1] and captions.caption_ids == [1, 2]


# ---- wrong types


def test_sentences_may_be_plain_texts(tmp_path):
    plain = {"filename": "a.jpg", "split": "val", "sentences": ["a  dog", {"raw": "a cat", "sentid": 3}]}
    captions = load_karpathy(write_karpathy(tmp_path / "d.json", plain), "val")
    assert captions.captions == ["a dog", "a cat"] and captions.caption_ids is None


VALUES = {"null": None, "number": 12345, "nan": float("nan"), "truth": True, "list": ["a dog"], "object": {"a": 1},
          "blank": "  ", "cut surrogate": "a dog \ud83d", "utf-16": "a\0 \0d\0o\0g\0", "huge": 10**400}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES.keys())
def test_a_value_of_another_type_is_refused_with_its_place(tmp_path, value):
    path = tmp_path / "captions_val2014.json"

    def karpathy(change) -> None:
        entry = image("a.jpg", "val", "x", "y")
        change(entry)
        write_karpathy(path, image("b.jpg", "val", "z"), entry)
        with pytest.raises(DataError, match=re.escape(str(path))) as error:
            load_karpathy(path, "val")
        assert "\n" not in str(error.value) and str(error.value).encode()
        return str(error.value)

    assert "image a.jpg, sentid 101" in karpathy(lambda entry: entry["sentences"][1].update(raw=value))
    assert "images[1]" in karpathy(lambda entry: entry.update(filename=value))
    assert "images[1]" in karpathy(lambda entry: entry.update(split=value))
    if not isinstance(value, str):
        if value != ["a dog"]:  # plain texts are read
            assert "image a.jpg" in karpathy(lambda entry: entry.update(sentences=value))
            if not isinstance(value, dict):
                assert "image a.jpg, sentences[1]" in karpathy(lambda entry: entry["sentences"].__setitem__(1, value))
        if value not in (None, 12345):
            assert "sentences[0]" in karpathy(lambda entry: entry["sentences"][0].update(sentid=value))
        for key in ("images", "annotations"):
            write_json(path, {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], key: value})
            refused(rf"captions_val2014\.json.*`?{key}", load_coco, path)
            write_json(path, {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [], key: [value]})
            refused(rf"{key}(\[0\]|`|.*missing)", load_coco, path)
    for key, place in (("caption", "annotation 5 of image_id 1"), ("image_id", "annotation 5")):
        annotation = {"id": 5, "image_id": 1, "caption": "x", key: value}
        write_json(path, {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [annotation]})
        refused(re.escape(f"{path}, {place}"), load_coco, path)


def test_json_nested_too_deep_or_with_a_number_of_5000_digits_is_refused(tmp_path):
    path = tmp_path / "d.json"
    for text in ('{"images": ' + "[" * 100_000, '{"images": [' + "9" * 5000 + "]}"):
        path.write_text(text)
        refused(r"d\.json is truncated or not JSON", load_karpathy, path, "val")


def test_a_file_that_unpacks_to_more_than_the_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("ASCL_MAX_TEXT_BYTES", "1e6")
    (tmp_path / "test_caps.txt.gz").write_bytes(gzip.compress(b"a" * 10_000_000))
    refused(r"test_caps\.txt\.gz unpacks to at least: .*ASCL_MAX_TEXT_BYTES", load_scan, tmp_path, "test")
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("dataset_x.json", " " * 10_000_000)
    refused(r"x\.zip, member dataset_x\.json unpacks .*ASCL_MAX_TEXT_BYTES", load_captions, tmp_path / "x.zip", "val")


def test_a_pipe_or_a_link_to_nothing_is_named_and_never_opened(tmp_path):
    os.mkfifo(tmp_path / "d.json")
    (tmp_path / "link.json").symlink_to("nowhere.json")
    refused(r"d\.json is a named pipe, expected a", load_captions, tmp_path / "d.json", "val")
    refused(r"link\.json is a link to a file that does not exist", load_captions, tmp_path / "link.json", "val")


# ---- SCAN


def test_scan_without_ids_counts_five_an_image_and_names_images_by_number(tmp_path):
    write_scan(tmp_path, "test", [f"caption {i}" for i in range(10)])
    captions = load_scan(tmp_path, "test")
    assert captions.image_ids == ["0", "1"]
    assert captions.owner.tolist() == [0] * 5 + [1] * 5
    assert load_scan(tmp_path, "test", captions_per_image=2).image_ids == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("ids", [["x", "y"], ["x", "x", "x", "y", "y", "y"]])  # a line an image, a line a caption
def test_scan_takes_images_from_the_ids_file(tmp_path, ids):
    write_scan(tmp_path, "dev", [f"c{i}" for i in range(6)], ids)
    captions = load_scan(tmp_path, "dev")
    assert captions.image_ids == ["x", "y"]
    assert captions.owner.tolist() == [0, 0, 0, 1, 1, 1]
    refused("2", load_scan, tmp_path, "dev", captions_per_image=2)


def test_scan_reads_windows_line_ends_mark_gzip_and_odd_characters(tmp_path):
    # two of the line ends of `str.splitlines` lie inside a caption
    text = "\ufeffA dog .\r\nA c\u2028at\u0085 runs\r\nUn café\r\n\r\n"
    (tmp_path / "test_caps.txt.gz").write_bytes(gzip.compress(text.encode()))
    captions = load_scan(tmp_path, "test", captions_per_image=3)
    assert captions.captions == ["A dog .", "A c at runs", "Un café"]


def test_scan_errors_name_file_row_and_remedy(tmp_path):
    refused(r"no test_caps.txt .* splits there: none. data/README", load_scan, tmp_path, "test")
    write_scan(tmp_path, "dev", ["a"] * 5)
    refused("splits there: dev", load_scan, tmp_path, "val")
    write_scan(tmp_path, "dev", ["a", "b", " ", "d", "e"])
    refused(r"dev_caps\.txt, row 3: empty caption; write one into this row, but do", load_scan, tmp_path, "dev")
    write_scan(tmp_path, "dev", ["a"] * 7)
    refused("7 captions, which is not a multiple of 5", load_scan, tmp_path, "dev")
    write_scan(tmp_path, "dev", ["a"] * 7, ["x", "y"])
    refused("7 captions for the 2 images of its ids file", load_scan, tmp_path, "dev")
    write_scan(tmp_path, "dev", ["a"] * 4, ["x", "y"])
    message = "image x has 2 captions by the ids file, but scan_captions_per_image is 5"
    refused(message, load_scan, tmp_path, "dev", captions_per_image=5)
    write_scan(tmp_path, "dev", ["a"] * 4, ["x", "y", "x", "y"])
    refused("image ids x, y given to more than one", load_scan, tmp_path, "dev")
    write_scan(tmp_path, "dev", ["a"] * 4, ["x", "", "y", "z"])
    refused(r"dev_ids\.txt, row 2: empty id", load_scan, tmp_path, "dev")
    (tmp_path / "dev_caps.txt").write_bytes(b"fine\nalso fine\ncaf\xe9 in latin-1\n")
    refused(r"dev_caps\.txt, row 3: not UTF-8", load_scan, tmp_path, "dev")
    (tmp_path / "dev_caps.txt").write_bytes(b"\n\n")
    refused("is empty", load_scan, tmp_path, "dev")


def test_bytes_literals_are_refused_only_when_every_line_is_one(tmp_path):
    write_scan(tmp_path, "dev", [str(f"dog {i}".encode()) for i in range(5)])
    refused(r"dev_caps\.txt: every caption is the text of a Python bytes literal", load_scan, tmp_path, "dev")
    write_scan(tmp_path, "dev", ["b'dog'"] + ["b boys"] * 4)
    assert load_scan(tmp_path, "dev").captions[0] == "b'dog'"


# ---- choice by content


def test_load_captions_finds_the_one_file_of_a_folder(tmp_path):
    refused(r"no captions of split 'test' in .*looked for test_caps\.txt", load_captions, tmp_path, "test")
    write_scan(tmp_path, "test", ["a"] * 5)
    assert load_captions(tmp_path, "test").image_ids == ["0"]
    assert load_captions(tmp_path / "test_caps.txt", "test").image_ids == ["0"]
    refused("holds split test, not split dev", load_captions, tmp_path / "test_caps.txt", "dev")
    path = write_karpathy(tmp_path / "dataset_x.json", image("a.jpg", "test", "x"))
    assert load_captions(path, "test").image_ids == ["a"]
    refused(r"several caption files \(dataset_x\.json, test_caps\.txt\)", load_captions, tmp_path, "test")


REAL = [("captions/dataset_coco_val2017.json.gz", "val2017", 5000, 25014),
        ("captions/dataset_flickr30k.json.gz", "val", 1014, 5070),
        ("captions/coco_dev_caps.txt.gz", "coco_dev", 1000, 5000),
        ("captions/coco_test_caps.txt.gz", "coco_test", 1000, 5000),
        ("captions/coco_testall_caps.txt.gz", "coco_testall", 5000, 25000),
        ("captions/f30k_dev_caps.txt.gz", "f30k_dev", 1014, 5070),
        ("captions/f30k_test_caps.txt.gz", "f30k_test", 1000, 5000),
        ("captions/f30k_train_caps.txt.gz", "f30k_train", 29000, 145000),
        ("flickr8k/dataset_flickr8k.json", "train", 5999, 29995), ("flickr8k/dataset_flickr8k.json", "val", 1000, 5000),
        ("flickr8k/dataset_flickr8k.json", "test", 1000, 5000), ("flickr8k/extra_unsplit.json", "none", 91, 455)]


@pytest.mark.parametrize("name, split, images, captions", REAL, ids=[f"{r[0].split('/')[1]}:{r[1]}" for r in REAL])
def test_real_files_have_the_published_counts(shared, name, split, images, captions):
    read = load_captions(shared / "data" / name, split)
    assert (len(read.image_ids), len(read.captions)) == (images, captions)
    assert np.array_equal(np.unique(read.owner), np.arange(images))
    assert all(c and c == " ".join(c.split()) for c in read.captions)


def test_real_images_of_flickr8k_have_the_ids_of_their_files(shared):
    read = load_captions(shared / "data" / "flickr8k", "test")
    assert set(read.image_ids) <= {path.stem for path in (shared / "data" / "flickr8k" / "images").iterdir()}


def test_coco_5k_test_starts_with_the_1k_test(shared):
    five, one = (load_scan(shared / "data" / "captions", f"coco_{name}") for name in ("testall", "test"))
    pairs = zip(five.subset(range(1000)).captions, one.captions, strict=True)
    # The published files themselves differ in one caption: of its last image, which has more than five.
    assert [i for i, (a, b) in enumerate(pairs) if a != b] == [4999]


def test_a_coco_file_that_does_not_say_its_split_is_refused(tmp_path):
    """It would be train, val and test at once."""
    annotations = [{"image_id": 1, "id": 1, "caption": "a dog"}]
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": annotations}
    path = write_json(tmp_path / "mine.json", content)
    refused(r"mine\.json.*captions_val\.json", load_captions, path, "val")
    named = write_json(tmp_path / "captions_val.json", content)
    assert load_captions(named, "val").image_ids == ["a"]
    refused("holds COCO's captions of val", load_captions, named, "train")


# ---- inside a zip


def write_zip(path: Path, **members: object) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "/") + ".json", json.dumps(content))
    return path


def karpathy(*images: dict) -> dict:
    return {"images": list(images)}


def test_a_member_of_the_publishers_zip(tmp_path):
    archive = write_zip(tmp_path / "caption_datasets.zip", dataset_coco=karpathy(image("a.jpg", "val", "in coco")),
                        dataset_flickr8k=karpathy(image("b.jpg", "val", "in flickr8k")))
    assert load_captions(archive / "dataset_coco.json", "val").captions == ["in coco"]
    assert load_karpathy(archive / "dataset_flickr8k.json", "val").captions == ["in flickr8k"]
    assert load_captions(archive / "dataset_coco.json", "val").source == str(archive / "dataset_coco.json")
    # beside it, in the place where the unpacked file would be
    assert load_captions(tmp_path / "dataset_flickr8k.json", "val").captions == ["in flickr8k"]
    assert captions_exist(tmp_path / "dataset_coco.json") and captions_exist(archive / "dataset_coco.json")
    assert not captions_exist(tmp_path / "dataset_x.json") and not captions_exist(archive / "dataset_x.json")
    write_karpathy(tmp_path / "dataset_coco.json", image("a.jpg", "val", "unpacked"))
    assert load_captions(tmp_path / "dataset_coco.json", "val").captions == ["unpacked"]


def test_a_zip_alone_stands_for_its_only_json(tmp_path):
    one = write_zip(tmp_path / "one.zip", folder__dataset_x=karpathy(image("a.jpg", "val", "x")))
    assert load_captions(one, "val").captions == ["x"]
    assert load_captions(one / "dataset_x.json", "val").captions == ["x"]  # a folder around it may be left out
    two = write_zip(tmp_path / "two.zip", dataset_x={}, dataset_y={})
    refused(r"holds 2 caption files to choose from.*two\.zip/dataset_x\.json; it", load_captions, two, "val")
    with pytest.raises(DataError, match=r"no member dataset_z\.json; it holds: dataset_x\.json, dataset_y\.json"):
        load_captions(two / "dataset_z.json", "val")
    refused(r"holds no caption files: name one", load_captions, write_zip(tmp_path / "none.zip"), "val")
    twice = write_zip(tmp_path / "twice.zip", a__dataset_x={}, b__dataset_x={})
    with pytest.raises(DataError, match=r"several members dataset_x\.json: a/dataset_x\.json, b/dataset_x\.json; name"):
        load_captions(twice / "dataset_x.json", "val")


def test_coco_and_scan_captions_in_a_zip(tmp_path):
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": [{"id": 1, "image_id": 1, "caption": "x"}]}
    archive = write_zip(tmp_path / "annotations_trainval2014.zip", annotations__captions_val2014=content)
    assert load_captions(archive, "val").captions == ["x"]
    with pytest.raises(DataError, match="holds COCO's captions of val, not of split test"):
        load_captions(archive / "annotations/captions_val2014.json", "test")
    with zipfile.ZipFile(tmp_path / "scan.zip", "w") as file:
        file.writestr("test_caps.txt", "\n".join("abcde"))
    assert load_captions(tmp_path / "scan.zip" / "test_caps.txt", "test").captions == list("abcde")


def test_a_damaged_zip_is_named(tmp_path):
    archive = write_zip(tmp_path / "caption_datasets.zip", dataset_x=karpathy(image("a.jpg", "val", "x" * 999)))
    whole = archive.read_bytes()
    archive.write_bytes(whole[:-30])
    for path in (archive, archive / "dataset_x.json", tmp_path / "dataset_x.json"):
        refused(r"caption_datasets\.zip .* is truncated, damaged or not a zip", load_captions, path, "val")
    start = whole.index(b"dataset_x.json") + len("dataset_x.json")
    archive.write_bytes(whole[: start + 5] + bytes([whole[start + 5] ^ 255]) + whole[start + 6 :])
    message = r"caption_datasets\.zip .* damaged or not a zip with a readable member dataset_x\.json"
    refused(message, load_captions, archive, "val")
