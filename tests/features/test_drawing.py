"""Drawn regions, and the program that shows them."""

import re

import h5py
import numpy as np
import pytest
from PIL import Image

from ascl.core.errors import DataError
from ascl.features.drawing import COLORS, Region, draw_regions, regions_of, table
from ascl.features.showing import regions_from_store

NAMES = {"class_names": ["background", "dog", "ball"], "attribute_names": ["red", "wet"]}


def details(**changes) -> dict[str, np.ndarray]:
    return {
        "scores": np.array([0.2, 0.9, 0.5, 0.0], np.float32), "class_ids": np.array([1, 2, 7, -1]),
        "attribute_ids": np.array([1, -1, 0, -1]),
    } | changes


def test_regions_come_best_first_with_the_names_that_are_known():
    boxes = np.arange(16, dtype=np.float32).reshape(4, 4)
    regions = regions_of(boxes, details(), NAMES, count=3)
    assert [region.number for region in regions] == [1, 2, 0]
    assert [region.label for region in regions] == ["1: ball 0.90", "2: red class 7 0.50", "0: wet dog 0.20"]
    assert regions[0].box == (4, 5, 6, 7)
    assert [region.label for region in regions_of(boxes, {}, {})] == ["0", "1", "2", "3"]
    lines = table(regions).splitlines()
    assert len(lines) == 4 and lines[1].split() == ["1", "0.900", "4.0", "5.0", "6.0", "7.0", "ball"]


def test_a_box_is_drawn_where_it_lies_also_on_a_reduced_image():
    image = Image.new("RGB", (500, 400), "white")
    region = Region(0, (1000, 400, 3000, 1200))
    drawing = np.asarray(draw_regions(image, (4000, 3200), [region]).convert("RGB")).astype(int)
    assert drawing.shape == (1280, 1600, 3)
    wanted = [int(COLORS[0][i : i + 2], 16) for i in (1, 3, 5)]
    colored = (drawing == wanted).all(axis=-1)
    rows, columns = np.flatnonzero(colored.any(axis=1)), np.flatnonzero(colored.any(axis=0))
    assert (columns[0], columns[-1] + 1) == (400, 1200) and (rows[0], rows[-1] + 1) == (160, 480)
    assert colored[460, 402] and not colored[460, 800]  # a frame, not filled


@pytest.mark.parametrize("box", [(0, 0, 3, 3), (90, 90, 100, 100), (0, 0, 100, 100), (50, 50, 50, 50), (99, 0, 100, 1)])
def test_labels_stay_inside_whatever_the_box(box):
    region = Region(3, box, 0.5, "a very long class name indeed", "attribute")
    drawing = draw_regions(Image.new("RGB", (100, 100), "white"), (100, 100), [region])
    assert drawing.size == (480, 480)
    assert (np.asarray(drawing) != 255).any()


def feature_file(path, **datasets):
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["version"] = "ascl-features", 1
        file.create_dataset("image_ids", data=["a", "photo"], dtype=h5py.string_dtype())
        file["regions"] = np.ones((2, 4, 3), np.float32)
        for name, array in datasets.items():
            file[name] = array
        for name, texts in NAMES.items():
            file.create_dataset(name, data=texts, dtype=h5py.string_dtype())
    return path


def whole_file(path):
    boxes = np.tile(np.array([10, 20, 60, 80], np.float32), (2, 4, 1))
    return feature_file(
        path, boxes=boxes, image_sizes=np.array([[9, 9], [120, 100]], np.int32),
        region_count=np.array([4, 3], np.int32), scores=np.tile(np.array([0.2, 0.9, 0.5, 0], np.float32), (2, 1)),
        class_ids=np.tile(np.array([1, 2, 7, -1], np.int32), (2, 1)),
    )


def test_the_program_draws_from_a_file_of_features(tool, capsys, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (120, 100), "white").save(tmp_path / "photos" / "photo.png")
    features = whole_file(tmp_path / "regions.h5")
    out = tmp_path / "drawn.png"
    arguments = ["--features", str(features), "--image-id", "photo", "--images", str(tmp_path), "--out", str(out)]
    assert tool("show_regions")([*arguments, "--top", "2"]) == 0
    printed = capsys.readouterr().out
    assert "the best 2 of 3 regions" in printed and "1  0.900    10.0   20.0   60.0   80.0  ball" in printed
    assert Image.open(out).size == (576, 480)
    photograph = str(tmp_path / "photos" / "photo.png")
    assert tool("show_regions")([photograph, "--features", str(features), "--out", str(out)]) == 0


def test_the_program_draws_what_a_backend_finds(tool, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (120, 100), "white").save(tmp_path / "photo.png")
    backend = ["--backbone", "mobilenet_v2", "--weights", "random:0", "--layer", "features.3", "--input-size", "32"]
    assert tool("show_regions")(["photo.png", *backend, "--grid", "2", "--device", "cpu"]) == 0
    assert "the best 4 of 4 regions of photo.png" in capsys.readouterr().out
    assert (tmp_path / "photo.regions.png").exists()


def test_what_cannot_be_shown_is_refused(tool, capsys, tmp_path):
    Image.new("RGB", (120, 101), "white").save(tmp_path / "photo.png")
    features = whole_file(tmp_path / "regions.h5")
    for arguments, problem in [
        ([str(tmp_path / "photo.png"), "--features", str(features)], "120x101 pixels, but .*made from one of 120x100"),
        (["--features", str(features), "--image-id", "photo"], "give a photograph, or a folder and the id"),
        (["--features", str(features), "--image-id", "b", "--images", str(tmp_path)], "no image with the id 'b'"),
        ([str(tmp_path / "photo.png"), "--features", str(features), "--image-id", "c"], "no features of 1 image"),
        ([str(tmp_path / "none.png")], "none.png"),
        ([str(tmp_path / "photo.png"), "--features", str(features), "--weights", "w"], "--weights finds regions"),
    ]:
        assert tool("show_regions")([*arguments, "--out", str(tmp_path / "out.png")]) == 1 + ("--weights" in arguments)
        assert re.search(problem, capsys.readouterr().err)
        assert not (tmp_path / "out.png").exists()
    with pytest.raises(DataError, match="has no boxes"):
        regions_from_store([feature_file(tmp_path / "bare.h5")], "photo")
