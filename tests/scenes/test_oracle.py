"""Oracle regions against a loop over objects and their attributes, their file, and the data set that has them."""

import json
import os
from pathlib import Path

import h5py
import numpy as np
import pytest

from ascl.core.errors import DataError
from ascl.data.captions import load_captions
from ascl.data.stores.open import open_features
from ascl.datasets import check_dataset
from ascl.scenes import prepare
from ascl.scenes.oracle import COLUMNS, MOST, REGION_DIM, noisy_regions, oracle_regions, write_oracle
from ascl.scenes.prepare import prepare_lab
from ascl.scenes.render import load_scene_records, write_scenes
from ascl.scenes.world import make_scene
from ascl.settings.retrieval import load_config

LAB = {"train": 24, "val": 8, "test": 12, "seed": 3, "family": 4, "family_share": 1.0, "noise": 0.1}


@pytest.fixture(scope="module")
def lab(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("lab")
    prepare_lab(folder, **LAB)
    return folder


@pytest.mark.parametrize("more", [{}, {"family": 8}])
def test_regions_say_what_each_object_is_and_where_and_nothing_else(more):
    for index in range(30):
        scene = make_scene(2, index, **more)
        rows = oracle_regions(scene)
        assert rows.shape == (1 + len(scene.objects), REGION_DIM) == (1 + len(scene.objects), 25)
        for number, row in enumerate(rows):
            said = {name: value for (name, value), one in zip(COLUMNS, row, strict=False) if one}
            assert sorted(row[:-2])[-len(said):] == [1] * len(said) and sum(row[:-2]) == len(said)
            if number == 0:
                assert said == {"background": scene.background} and row[-2:].tolist() == [0, 0]
                continue
            item = scene.objects[number - 1]
            assert said == {name: getattr(item, name) for name in ("size", "texture", "color", "shape")}
            x1, y1, x2, y2 = item.box
            assert row[-2:] == pytest.approx([3 * ((x1 + x2) / 2 / scene.side - 0.5),
                                              3 * ((y1 + y2) / 2 / scene.side - 0.5)], abs=1e-5)


def test_no_mean_tells_the_scenes_of_a_family_apart():
    for number in range(20):
        means = np.array([oracle_regions(make_scene(0, 20 * number + k, family=20)).mean(axis=0) for k in range(20)])
        assert means[:, :-2] == pytest.approx(np.broadcast_to(means[0, :-2], (20, 23)), abs=1e-6)
        assert means == pytest.approx(np.broadcast_to(means[0], means.shape), abs=2e-4)     # boxes have two decimals


def test_noise_is_normal_independent_and_the_same_whatever_the_size():
    scenes = [make_scene(0, index, family=20) for index in range(400)]
    noise = [noisy_regions(scene, 0, index, split="train", noise=0.25) - oracle_regions(scene)
             for index, scene in enumerate(scenes)]
    values = np.concatenate([rows.ravel() for rows in noise])
    assert values.mean() == pytest.approx(0, abs=0.01) and values.std() == pytest.approx(0.25, abs=0.005)
    assert (np.abs(values) > 0.5).mean() == pytest.approx(0.0455, abs=0.006)
    first = np.array([rows[0, :2] for rows in noise])
    assert abs(np.corrcoef(first.T)[0, 1]) < 0.15 and abs(np.corrcoef(first[:-1, 0], first[1:, 0])[0, 1]) < 0.15
    again = noisy_regions(scenes[7], 0, 7, split="train", noise=0.25) - oracle_regions(scenes[7])
    assert np.array_equal(again, noise[7])
    for other in ({"seed": 1}, {"split": "val"}, {"index": 8}):
        given = {"seed": 0, "index": 7, "split": "train"} | other
        assert not np.allclose(noisy_regions(scenes[7], **given, noise=0.25) - oracle_regions(scenes[7]), noise[7])
    assert np.array_equal(noisy_regions(scenes[7], 0, 7, split="train", noise=0), oracle_regions(scenes[7]))


def test_the_file_holds_the_regions_of_each_scene(lab):
    store = open_features([lab / "features.h5"], globals_from="mean-region")
    scenes = [(split, index, scene) for split in ("train", "val", "test")
              for index, scene in enumerate(load_scene_records(lab, split))]
    assert store.image_ids == [scene.image_id for _, _, scene in scenes]
    features = store.read(np.arange(len(scenes)))
    details = store.details(np.arange(len(scenes)))
    for row, (split, index, scene) in enumerate(scenes):
        assert scene == make_scene(3, index, split=split, family=4)
        count = 1 + len(scene.objects)
        expected = noisy_regions(scene, 3, index, split=split, noise=0.1)
        assert features.mask[row].tolist() == [k < count for k in range(MOST)]
        assert np.array_equal(features.regions[row, :count], expected)
        assert features.globals[row] == pytest.approx(expected.mean(axis=0), abs=1e-6)
        assert features.boxes[row, 0].tolist() == [0, 0, 224, 224]
        for number, item in enumerate(scene.objects, 1):
            assert features.boxes[row, number].tolist() == pytest.approx(item.box)
            assert store.names["class_names"][details["class_ids"][row, number]] == item.shape
            assert store.names["attribute_names"][details["attribute_ids"][row, number]] == item.color
        assert store.names["attribute_names"][details["attribute_ids"][row, 0]] == scene.background


def arrays(path: Path) -> dict[str, list]:
    with h5py.File(path) as file:
        return {name: file[name][:].tolist() for name in file}


def test_regions_know_nothing_of_the_captions(lab, tmp_path):
    content = json.loads((lab / "dataset_scenes.json").read_text())
    for image in content["images"]:
        image["sentences"] = [{"raw": "a circle", "tokens": ["a", "circle"], "imgid": 0, "sentid": 0}]
    (tmp_path / "dataset_scenes.json").write_text(json.dumps(content))
    write_oracle(tmp_path / "dataset_scenes.json", tmp_path / "features.h5", noise=0.1)
    assert arrays(tmp_path / "features.h5") == arrays(lab / "features.h5")


def test_a_larger_data_set_begins_the_same(lab, tmp_path):
    write_scenes(tmp_path, train=30, val=8, test=12, seed=3, family=4, images=False)
    write_oracle(tmp_path / "dataset_scenes.json", tmp_path / "features.h5", noise=0.1)
    small, large = arrays(lab / "features.h5"), arrays(tmp_path / "features.h5")
    of_large = dict(zip(large["image_ids"], large["regions"], strict=True))
    assert all(of_large[name] == regions for name, regions in zip(small["image_ids"], small["regions"], strict=True))


def test_other_noise_is_refused_and_the_same_is_kept(lab):
    before = (lab / "features.h5").read_bytes()
    prepare_lab(lab, **LAB)
    with pytest.raises(DataError, match=r"features.h5 was made with other settings: noise was 0.1 and is now 0.2"):
        prepare_lab(lab, **{**LAB, "noise": 0.2})
    for noise in (-0.1, float("nan"), float("inf")):
        with pytest.raises(DataError, match="must be at least 0 and finite"):
            write_oracle(lab / "dataset_scenes.json", lab / "other.h5", noise=noise)
    assert (lab / "features.h5").read_bytes() == before and not (lab / "other.h5").exists()


@pytest.mark.parametrize("stage", ["write_scenes", "write_oracle", "write_small_bert"])
def test_a_call_that_was_stopped_is_completed_by_the_next(stage, lab, tmp_path, monkeypatch):
    def stopped(*arguments, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(prepare, stage, stopped)
        with pytest.raises(KeyboardInterrupt):
            prepare_lab(tmp_path, **LAB)
    prepare_lab(tmp_path, **LAB)
    assert arrays(tmp_path / "features.h5") == arrays(lab / "features.h5")
    for name in ("dataset_scenes.json", *(f"text_encoder/{name}" for name in os.listdir(lab / "text_encoder"))):
        assert (tmp_path / name).read_bytes() == (lab / name).read_bytes(), name


def test_the_preset_finds_a_whole_data_set(tool, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    sizes = ["--train", "12", "--val", "4", "--test", "4", "--family", "4"]
    assert tool("prepare_data")(["--dataset", "scenes_lab", *sizes]) == 0
    assert "regions 6 x 25, globals 25" in capsys.readouterr().out
    config = load_config(["--dataset", "scenes_lab"])
    assert all(check.ok for check in check_dataset(config)) and not Path("data/scenes_lab/images").exists()
    assert len(load_captions(config.data.captions, "train").captions) == 60
    images = ["--images", "data/scenes_lab/images"]
    assert tool("prepare_data")(["--dataset", "scenes_lab", *sizes, *images, "--verify_images"]) == 0
    assert len(os.listdir("data/scenes_lab/images")) == 20
