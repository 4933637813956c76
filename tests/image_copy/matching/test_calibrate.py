"""An index that is calibrated with its own images."""

import hashlib
import json
import sys

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ascl.cli import main
from ascl.core.errors import DataError
from ascl.image_copy.matching import calibrate
from ascl.image_copy.matching.calibrate import calibrate_by_itself, is_due
from ascl.image_copy.matching.query import calibration_of
from ascl.image_copy.matching.report import info_text, warnings_of
from ascl.index.calibration import calibrated, lowest_threshold
from ascl.index.images import Images
from ascl.index.store import CopyIndex

from .drawn import scene

pytest.importorskip("cv2")
MODEL = {"name": "toy", "settings": {}, "choice": {}, "orders_norms": False}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Folder of ten scenes and four copies of the first two, smaller or cropped: PNG files `SCENE-NUMBER.png`."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed in range(10):
        scene(seed).save(folder / f"{seed}-0.png")
    for seed in range(2):
        scene(seed).resize((240, 180)).save(folder / f"{seed}-1.png")
        scene(seed).crop((50, 30, 320, 250)).save(folder / f"{seed}-2.png")
    return folder


def index_of(folder, paths, vectors) -> CopyIndex:
    """An index of these files; equal bytes are one file."""
    index = CopyIndex.create(folder, MODEL, metric="ip", dimension=vectors.shape[1])
    digests = [np.frombuffer(hashlib.sha256(path.read_bytes()).digest(), np.uint8) for path in paths]
    index.add(Images([path.name for path in paths], list(map(str, paths)), np.stack(digests),
                     np.array([path.stat().st_size for path in paths]), vectors.astype(np.float32),
                     np.full(len(paths), np.nan, np.float32)))
    return index


def described(paths) -> np.ndarray:
    """Unit vectors: those of one scene are nearly the same, so that only pictures tell copies and strangers apart."""
    rng = np.random.default_rng(0)
    centers = rng.normal(size=(20, 6))
    vectors = np.stack([centers[int(path.name.partition("-")[0])] + 0.05 * rng.normal(size=6) for path in paths])
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_the_score_of_an_image_is_that_of_the_best_other_scene(pictures, tmp_path):
    paths = sorted(pictures.glob("*.png"))
    vectors = described(paths)
    made = calibrate_by_itself(index_of(tmp_path / "index", paths, vectors), rate=0.2)
    scenes = np.array([path.name.partition("-")[0] for path in paths])
    similarity = np.where(scenes[:, None] == scenes, -1.0, vectors.astype(np.float32) @ vectors.astype(np.float32).T)
    expected = similarity.max(axis=1)
    opened = CopyIndex(tmp_path / "index")
    np.testing.assert_allclose(opened.calibration_arrays()["scores"], np.sort(expected), atol=1e-6)
    assert made.threshold == pytest.approx(lowest_threshold(expected, 0.2), abs=2e-6)
    assert made.source == "index" and made == calibration_of(opened)
    assert (made.achieved.total, made.images, sum(made.left_out.values())) == (14, 14, 0)
    assert "own images" in made.warnings[0] and made.warnings[0] in warnings_of(opened)
    assert "of 14 images of the index, wanted" in info_text(opened)
    assert "images of the index that are most alike and not related by geometry" in info_text(opened)
    nearest = made.nearest[0]
    assert nearest.score == pytest.approx(expected.max(), abs=1e-6) and nearest.path.endswith(".png")
    # a sample is drawn by its seed, and what was compared is not compared again
    some = [calibrate_by_itself(opened, rate=0.2, sample=6, seed=seed) for seed in (3, 3, 4)]
    assert some[0] == some[1] != some[2] and some[0].achieved.total == 6


def test_what_is_left_out_is_counted(pictures, tmp_path, monkeypatch):
    folder = tmp_path / "photos"
    folder.mkdir()
    paths = []
    for name in ("0-0", "0-1", "1-0", "2-0", "3-0"):
        paths.append(folder / f"{name}.png")
        paths[-1].write_bytes((pictures / f"{name}.png").read_bytes())
    (folder / "0-9.png").write_bytes(paths[0].read_bytes())             # a file twice
    plain = Image.new("RGB", (200, 160), (250, 250, 250))
    ImageDraw.Draw(plain).line((20, 20, 60, 24), (0, 0, 0))
    plain.save(folder / "4-0.png")
    paths += [folder / "0-9.png", folder / "4-0.png"]
    index = index_of(tmp_path / "index", paths, described(paths))
    paths[4].write_bytes(b"another file")
    made = calibrate_by_itself(index, rate=0.3)
    assert made.left_out["repeated"] == 1 and made.left_out["nearly blank"] == 1 and made.left_out["not read"] >= 1
    assert made.achieved.total + sum(made.left_out.values()) == 7
    monkeypatch.setattr(calibrate, "OWN_NEIGHBORS", 1)
    near = np.eye(8)[[0, 0, 1, 2, 3, 0, 4]] + 1e-3 * np.arange(7)[:, None]
    index = index_of(tmp_path / "other", paths, near / np.linalg.norm(near, axis=1, keepdims=True))
    assert calibrate_by_itself(index, rate=0.3).left_out["related to all of their neighbors"] >= 1


def test_what_cannot_be_done(pictures, tmp_path, monkeypatch):
    empty = CopyIndex.create(tmp_path / "empty", MODEL, metric="ip", dimension=6)
    with pytest.raises(DataError, match="holds no images yet"):
        calibrate_by_itself(empty, rate=0.1)
    paths = [pictures / "0-0.png", pictures / "0-1.png"]
    index = index_of(tmp_path / "index", paths, described(paths))
    with pytest.raises(DataError, match="no image of the index is left.*2 related to all of their neighbors"):
        calibrate_by_itself(index, rate=0.1)
    with pytest.raises(DataError, match="a sample of 0 images"):
        calibrate_by_itself(index, rate=0.1, sample=0)
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match=r"needs OpenCV: pip install"):
        calibrate_by_itself(index, rate=0.1)


def test_the_command(pictures, tmp_path, capsys):
    index = str(tmp_path / "index")
    assert main(["copy", "index", str(pictures), "--index", index, "--model", "phash", "--workers", "0"]) == 0
    assert calibration_of(CopyIndex(index)) is None                     # 14 images are too few to do so unasked
    words = ["copy", "calibrate", "--index", index, "--false_positive_rate", "0.2"]
    assert main([*words, "--json"]) == 0
    captured = capsys.readouterr()
    made = json.loads(captured.out[captured.out.index("{"):])
    assert made["source"] == "index" and made["achieved"]["total"] == 14
    assert "the threshold comes from the index's own images" in captured.err
    for more, problem in ((["--score_norm"], "--score_norm has no effect without BACKGROUND"),
                          (["--unchecked"], "--unchecked has no effect without BACKGROUND"),
                          ([str(pictures), "--sample", "5"], "--sample has no effect with BACKGROUND"),
                          ([str(pictures), "--seed", "5"], "--seed has no effect with BACKGROUND"),
                          (["--sample", "0"], "at least 1, got 0")):
        assert main([*words, *more]) == 2
        assert problem in capsys.readouterr().err
    assert main(["copy", "query", str(pictures / "0-2.png"), "--index", index, "--json", "--workers", "0"]) == 0
    captured = capsys.readouterr()
    matches = json.loads(captured.out)["queries"][0]["matches"]
    assert matches[0]["copy"] is True and matches[-1]["copy"] is False and "own images" in captured.err


def test_a_new_index_is_calibrated_by_itself(pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(calibrate, "FEWEST", 8)
    folder, index = tmp_path / "photos", tmp_path / "index"
    folder.mkdir()
    for path in sorted(pictures.glob("*.png"))[:10]:
        (folder / path.name).write_bytes(path.read_bytes())
    words = ["copy", "index", str(folder), "--index", str(index), "--model", "phash", "--workers", "0"]
    assert main([*words, "--no_calibration"]) == 0
    assert calibration_of(CopyIndex(index)) is None and "calibrated with" not in capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "cv2", None)
        assert main(words) == 0
        assert "not calibrated, so that a query says neither yes nor no: geometric verification needs OpenCV" in (
            capsys.readouterr().err)
    assert main(words) == 0
    assert "calibrated with 10 of its own images: a copy has a score" in capsys.readouterr().out
    first = calibration_of(CopyIndex(index))
    assert first.source == "index" and first.wanted == 0.01
    assert main(words) == 0 and "calibrated with" not in capsys.readouterr().out
    for path in sorted(pictures.glob("*.png"))[10:]:
        (folder / path.name).write_bytes(path.read_bytes())
    assert main(words) == 0                                             # it has grown by 40 %
    assert "calibrated with 14 of its own images" in capsys.readouterr().out
    opened = CopyIndex(index)
    background = calibrated(np.linspace(0, 0.5, 200), 0.01, confidence=0.95, images=4, added=4, left_out={},
                            score_norm=None)
    opened.set_calibration(background.to_dict(), {"scores": np.linspace(0, 0.5, 200)})
    assert not is_due(opened)                                           # what a user measured is not replaced
