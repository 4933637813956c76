"""tools/find_copies.py from a folder of pictures to an answer, and what it refuses."""

import json
import multiprocessing
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ascl.core.errors import DataError
from ascl.image_copy.descriptors.choice import DescriberChoice
from ascl.image_copy.evaluation.files import read_predictions
from ascl.image_copy.matching.add import add_images
from ascl.image_copy.matching.calibrate import SAVED_AGAIN, UNUSABLE, calibrate_index
from ascl.image_copy.matching.describe import ReadOptions
from ascl.image_copy.matching.model import create_index, describer_of
from ascl.image_copy.matching.query import DIRECTIONS, query_images
from ascl.images.find import images_of
from ascl.images.read import SquarePixels
from ascl.index.calibration import ScoreNorm
from ascl.index.store import CopyIndex

from .drawn import scene

pytest.importorskip("imagehash")
QUICK = ReadOptions(batch_size=4)
BACKBONE = ["--model", "mobilenet_v2", "--weights", "random:0", "--input-size", "32", "--device", "cpu"]
RESNET = ["--model", "resnet18", "--weights", "random:0", "--input-size", "32"]  # tells images apart untrained


def picture(seed: int, width: int = 96, height: int = 64) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (7, 7, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def folder_of(path: Path, seeds, prefix: str = "photo") -> Path:
    path.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        picture(seed).save(path / f"{prefix}_{seed:03d}.png")
    return path


class Brightness:
    """A describer without a network: an 8 x 8 gray thumbnail minus its mean; the norm is the mean brightness."""

    def __init__(self, name: str = "brightness sha256:0", scale: float = 1.0, orders_norms: bool = True) -> None:
        self.model, self.settings = name, {"model": name, "scale": scale}
        self.dim, self.orders_norms, self.scale = 64, orders_norms, scale
        self.prepare = SquarePixels(32, "squash")  # no torch: forked processes use it

    def __call__(self, pixels):
        gray = np.stack(pixels).astype(np.float32).mean(axis=3).reshape(len(pixels), 8, 4, 8, 4).mean(axis=(2, 4))
        flat = (gray - gray.mean(axis=(1, 2), keepdims=True)).reshape(len(pixels), 64) * self.scale
        return flat / np.linalg.norm(flat, axis=1, keepdims=True), gray.mean(axis=(1, 2))


@dataclass(frozen=True)
class DarkPixels(SquarePixels):
    """Blackens images of one width."""

    size: int = 32
    resize: str = "squash"
    width: int = 40

    def __call__(self, image):
        return super().__call__(image) * (image.width != self.width)


def bright_index(folder: Path, photos: Path, describer=None) -> tuple[CopyIndex, Brightness]:
    describer = describer or Brightness()
    index = create_index(folder, DescriberChoice("phash"), describer)
    add_images(index, describer, images_of(photos), QUICK)
    return index, describer


# --- the program -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [["--model", "phash"], RESNET], ids=["phash", "backbone"])
def test_from_a_folder_to_an_answer_and_back(tool, tmp_path, capsys, model):
    main = tool("find_copies")
    photos, index = folder_of(tmp_path / "photos", range(20)), str(tmp_path / "index")
    assert main(["index", str(photos), "--index", index, *model]) == 0
    assert "added 20 images" in capsys.readouterr().out
    assert main(["index", str(photos), "--index", index]) == 0  # goes on with the recorded model
    assert "added 0 images; 20 were there already" in capsys.readouterr().out

    query = tmp_path / "upload.bmp"  # the same pixels: an untrained network tells little else
    picture(3).save(query)
    assert main(["query", str(query), "--index", index, "--k", "2", "--json", "--device", "cpu"]) == 0
    answer = json.loads(capsys.readouterr().out)
    (asked,) = answer["queries"]
    assert (asked["query"], asked["id"], len(asked["matches"])) == (str(query), "upload.bmp", 2)
    best = asked["matches"][0]
    assert best["id"] == "photo_003.png" and best["path"].endswith(best["id"]) and best["score"] == pytest.approx(1)
    assert best["copy"] is None and best["direction"] in DIRECTIONS.values()
    assert answer["index"]["images"] == 20 and answer["index"]["calibration"] is None

    background = folder_of(tmp_path / "background", range(100, 140), "other")
    assert main(["calibrate", str(background), "--index", index, "--false-positive-rate", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert "of 40 background images, wanted at most 0.1" in printed and "95% interval" in printed
    assert main(["query", str(query), "--index", index, "--json"]) == 0
    matches = json.loads(capsys.readouterr().out)["queries"][0]["matches"]
    assert matches[0]["copy"] is True and matches[-1]["copy"] is False and len(matches) == 10
    assert matches[0]["false_positives"]["low"] <= matches[0]["false_positives"]["high"] < 0.3
    assert main(["query", str(query), "--index", index]) == 0
    table = capsys.readouterr().out
    assert "photo_003" in table and "yes" in table

    assert main(["remove", "photo_003.png", "photo_004.png", "--index", index]) == 0
    assert "removed 2 images; 18 remain" in capsys.readouterr().out
    assert main(["query", str(query), "--index", index, "--json"]) == 0
    (asked,) = json.loads(capsys.readouterr().out)["queries"]
    assert "photo_003.png" not in {match["id"] for match in asked["matches"]}
    assert main(["add", str(photos / "photo_003.png"), str(query), "--index", index]) == 0
    assert main(["compact", "--index", index]) == 0
    capsys.readouterr()
    assert main(["info", "--index", index]) == 0
    text = capsys.readouterr().out
    assert "20 images" in text and "rows of removed images: 0" in text and "calibration: a copy" in text
    assert main(["info", "--index", index, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 20 and report["model"] == CopyIndex(index).state.model["name"]


def test_predictions_are_read_by_the_evaluation(tool, tmp_path, capsys):
    main = tool("find_copies")
    photos, index = folder_of(tmp_path / "photos", range(8)), str(tmp_path / "index")
    queries = tmp_path / "queries"
    queries.mkdir()
    for seed in range(8):
        picture(seed).save(queries / f"Q{seed}.jpg", quality=70)
    assert main(["index", str(photos), "--index", index, "--model", "phash", "--id", "stem"]) == 0
    out = tmp_path / "predictions.csv"
    assert main(["query", str(queries), "--index", index, "--k", "3", "--predictions", str(out)]) == 0
    names, references, scores = read_predictions(out)
    assert len(names) == 24 and set(names) == {f"Q{seed}" for seed in range(8)} and max(scores) <= 1
    truth = tmp_path / "truth.csv"
    truth.write_text("query_id,reference_id\n" + "".join(f"Q{seed},photo_{seed:03d}\n" for seed in range(8)))
    capsys.readouterr()
    assert tool("eval_copy")(["--predictions", str(out), "--ground-truth", str(truth)]) == 0
    assert "100.0" in capsys.readouterr().out


def test_an_index_of_another_model_is_refused_by_name(tool, tmp_path, capsys):
    main = tool("find_copies")
    photos, index = folder_of(tmp_path / "photos", range(3)), str(tmp_path / "index")
    assert main(["index", str(photos), "--index", index, *BACKBONE]) == 0
    before = CopyIndex(index).state
    assert main(["add", str(photos), "--index", index, "--model", "phash"]) == 1
    assert "was made by mobilenet_v2-imagenet-gem sha256:" in capsys.readouterr().err
    assert main(["query", str(photos), "--index", index, "--weights", "random:1"]) == 1
    errors = capsys.readouterr().err
    assert errors.count("sha256:") == 2 and "cannot be compared" in errors
    assert main(["index", str(photos), "--index", index, "--input-size", "64"]) == 1
    assert "input_size was 32 and is now 64" in capsys.readouterr().err
    assert main(["index", str(photos), "--index", index, "--exact-up-to", "5"]) == 2
    assert CopyIndex(index).state == before


def test_a_model_that_moved_is_named_and_can_be_pointed_to(tool, tmp_path, capsys):
    import torchvision

    main = tool("find_copies")
    photos, index, weights = folder_of(tmp_path / "photos", range(3)), str(tmp_path / "index"), tmp_path / "w.pth"
    import torch

    torch.save(torchvision.models.mobilenet_v2(weights=None).state_dict(), weights)
    assert main(["index", str(photos), "--index", index, "--model", "mobilenet_v2", "--weights", str(weights),
                 "--input-size", "32"]) == 0
    (tmp_path / "elsewhere").mkdir()
    moved = weights.rename(tmp_path / "elsewhere" / "w.pth")
    assert main(["query", str(photos), "--index", index]) == 1
    assert "if that has moved, say where it is" in capsys.readouterr().err
    assert main(["query", str(photos), "--index", index, "--weights", str(moved)]) == 0


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [(["index", "{empty}"], "no image in "), (["index", "{absent}"], "no such image or folder"),
     (["index", "{photos}", "--weights", "random:0"], "weights has no effect without a model"),
     (["index", "{photos}", "--model", "phash", "--resize", "crop"], "resize does not apply to a phash"),
     (["index", "{photos}", "--model", "mobilenet_v9"], "nearest are"),
     (["index", "{photos}", "--exact-up-to", "-1"], "exact_up_to: expected a whole number of at least 0, got -1"),
     (["query", "{photos}"], "no index there; make one first"),
     (["query", "{photos}", "--k", "0"], "k: expected a whole number of at least 1, got 0"),
     (["add", "{photos}"], "no index there"), (["remove", "x"], "no index there"),
     (["calibrate", "{photos}"], "no index there"), (["info"], "no index there"), (["compact"], "no index there")],
)
def test_what_is_refused_without_an_index(tool, tmp_path, capsys, arguments, problem):
    (tmp_path / "empty").mkdir()
    places = {"photos": folder_of(tmp_path / "photos", range(2)), "empty": tmp_path / "empty",
              "absent": tmp_path / "absent"}
    arguments = [argument.format(**places) for argument in arguments]
    assert tool("find_copies")([*arguments, "--index", str(tmp_path / "index")]) == (2 if "expected" in problem else 1)
    assert problem in capsys.readouterr().err
    assert not (tmp_path / "index").exists()


def test_images_that_cannot_be_used(tool, tmp_path, capsys):
    main = tool("find_copies")
    photos, index = folder_of(tmp_path / "photos", range(4)), str(tmp_path / "index")
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 no more")
    picture(9, 200, 5).save(photos / "line.png")
    assert main(["index", str(photos), "--index", index, "--model", "phash", "--strict"]) == 1
    assert "broken.jpg: cannot be read as an image" in capsys.readouterr().err
    assert main(["index", str(photos), "--index", index]) == 3
    told = capsys.readouterr()
    assert "added 4 images" in told.out and "skipped 2 images" in told.err
    assert "line.png: too small, 200 x 5 pixels; at least 16" in told.err
    assert main(["remove", "photo_001.png", "nobody", "--index", index]) == 1
    assert "1 of 2 names are neither ids nor paths of images in the index: nobody" in capsys.readouterr().err


# --- adding ----------------------------------------------------------------------------------------------------------


def test_ids_and_files_that_come_twice(tmp_path):
    photos = folder_of(tmp_path / "photos", range(4))
    index, describer = bright_index(tmp_path / "index", photos)
    copied = tmp_path / "copied"
    shutil.copytree(photos, copied)
    twice = [*images_of(photos), *images_of(copied), *images_of(photos / "photo_001.png")]
    done, _ = add_images(index, describer, twice, QUICK)
    assert (done.added, done.same) == (0, 9)
    picture(77).save(copied / "photo_002.png")
    with pytest.raises(DataError, match=r"'photo_002\.png': .*photos/\S+, which is in the index, and .*copied"):
        add_images(index, describer, images_of(copied), QUICK)
    done, _ = add_images(index, describer, images_of(copied), QUICK, overwrite=True)
    assert (done.added, done.same, done.replaced, len(index)) == (1, 3, 1, 4)
    one, two = folder_of(tmp_path / "one", [50], "x"), folder_of(tmp_path / "two", [51], "x")
    (two / "x_051.png").rename(two / "x_050.png")
    with pytest.raises(DataError, match=r"'x_050\.png' and different content: .*one.* and .*two"):
        add_images(index, describer, [*images_of(one), *images_of(two)], QUICK)


def test_what_was_confirmed_before_a_broken_image_stays(tmp_path):
    photos = folder_of(tmp_path / "photos", range(8))
    (photos / "photo_007.png").write_bytes(b"")
    index = create_index(tmp_path / "index", DescriberChoice("phash"), Brightness())
    with pytest.raises(DataError, match=r"photo_007\.png: cannot be read"):
        add_images(index, Brightness(), images_of(photos), ReadOptions(batch_size=4, together=3, strict=True))
    assert len(CopyIndex(index.folder)) == 6
    done, skipped = add_images(index, Brightness(), images_of(photos), ReadOptions())
    assert (done.added, done.same, len(skipped), len(index)) == (1, 6, 1, 7)


@pytest.mark.parametrize("workers", [0, 2])
def test_descriptors_that_are_not_finite_name_the_image(tmp_path, workers):
    photos = folder_of(tmp_path / "photos", range(3))
    describer = Brightness()
    describer.prepare = DarkPixels()  # nothing is left of the thumbnail of the second
    picture(1, 40, 40).save(photos / "photo_001.png")
    index = create_index(tmp_path / "index", DescriberChoice("phash"), describer)
    with np.errstate(invalid="ignore"), pytest.raises(DataError, match=r"photo_001\.png\): its descriptor is not fin"):
        add_images(index, describer, images_of(photos), ReadOptions(workers=workers))
    assert len(index) == 0


def add_folder(index: Path, photos: Path) -> None:
    add_images(CopyIndex(index), Brightness(), images_of(photos), ReadOptions(batch_size=4, together=2))


def test_two_processes_add_folders_at_the_same_time(tmp_path):
    index, _ = bright_index(tmp_path / "index", folder_of(tmp_path / "photos", range(2)))
    folders = [folder_of(tmp_path / name, seeds, name) for name, seeds in (("a", range(9)), ("b", range(30, 39)))]
    shutil.copy(folders[0] / "a_003.png", folders[1] / "a_003.png")  # both bring it
    index.close()       # SQLite forbids a child to open what its parent has open
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=add_folder, args=(index.folder, folder)) for folder in folders]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert len(CopyIndex(index.folder)) == 2 + 9 + 9


# --- direction and calibration ---------------------------------------------------------------------------------------


def test_the_direction_is_that_of_the_stored_norms(tmp_path):
    photos = folder_of(tmp_path / "photos", range(6))
    index, describer = bright_index(tmp_path / "index", photos)
    queries = tmp_path / "queries"
    queries.mkdir()
    for name, factor in (("less", 0.7), ("same", 1.0), ("more", 1.2)):
        picture(2).point(lambda value, by=factor: min(255, value * by)).save(queries / f"{name}.png")
    answers, _ = query_images(index, describer, images_of(queries), QUICK, k=1)
    found = {answer.id: answer.matches[0] for answer in answers}
    assert {match.id for match in found.values()} == {"photo_002.png"}
    assert {name: match.direction for name, match in found.items()} == {
        "less.png": "query copies reference", "same.png": "unclear", "more.png": "reference copies query"
    }
    assert found["less.png"].norm_ratio == pytest.approx(0.7, abs=0.02) and found["same.png"].norm_ratio == 1
    answers, _ = query_images(index, describer, images_of(queries), QUICK, k=1, margin=5.0)
    assert {answer.matches[0].direction for answer in answers} == {"unclear"}
    with pytest.raises(DataError, match="margin -1"):
        query_images(index, describer, images_of(queries), QUICK, k=1, margin=-1)


def test_geometry_confirms_a_copy_and_says_who_lies_within_whom(tool, tmp_path, capsys):
    pytest.importorskip("cv2")
    main = tool("find_copies")
    photos, queries, index = tmp_path / "photos", tmp_path / "queries", str(tmp_path / "index")
    photos.mkdir()
    queries.mkdir()
    scenes = [scene(seed) for seed in range(6)]
    for seed, image in enumerate(scenes):
        image.save(photos / f"{seed}.png")
    scenes[0].crop((60, 40, 320, 240)).save(photos / "part of 0.png")
    scenes[4].crop((90, 40, 330, 240)).save(queries / "crop.png")
    scenes[0].save(queries / "whole.png")
    scene(99).save(queries / "stranger.png")
    assert main(["index", str(photos), "--index", index, "--model", "phash"]) == 0
    (photos / "1.png").unlink()
    (photos / "3.png").write_bytes(b"x" * (photos / "3.png").stat().st_size)
    capsys.readouterr()
    assert main(["query", str(queries), "--index", index, "--k", "7", "--verify", "7", "--json"]) == 0
    found = {asked["id"]: {match["id"]: match for match in asked["matches"]}
             for asked in json.loads(capsys.readouterr().out)["queries"]}
    crop, whole, stranger = (found[name] for name in ("crop.png", "whole.png", "stranger.png"))
    assert next(iter(crop)) == "4.png" and crop["4.png"]["geometry"] == "within" and crop["4.png"]["copy"] is True
    assert crop["4.png"]["direction"] == "query copies reference" and crop["4.png"]["relation"]["inliers"] >= 15
    assert [crop[f"{gone}.png"]["geometry"] for gone in (1, 3)] == ["not read"] * 2
    assert {crop[name]["geometry"] for name in ("0.png", "2.png", "5.png")} == {"not confirmed"}
    assert list(whole)[0] == "0.png" and whole["0.png"]["geometry"] == "same" and list(whole)[-1] == "part of 0.png"
    assert (whole["part of 0.png"]["geometry"], whole["part of 0.png"]["copy"]) == ("shows more", False)
    assert whole["part of 0.png"]["direction"] == "reference copies query"
    assert {match["geometry"] for match in stranger.values()} == {"not confirmed", "not read"}
    assert all(match["copy"] is None for match in stranger.values())

    out = tmp_path / "p.csv"
    assert main(["query", str(queries / "whole.png"), "--index", index, "--verify", "1", "--predictions",
                 str(out)]) == 0
    _, references, scores = read_predictions(out)
    assert references[0] == "0.png" and 2 < scores[0] < 3 and max(scores[1:]) <= 1      # the others were not looked at
    assert main(["query", str(queries / "crop.png"), "--index", index, "--k", "2", "--verify", "7"]) == 0
    table = capsys.readouterr().out
    assert " geometry " in table and "within, " in table and " points" in table
    assert main(["query", str(queries / "crop.png"), "--index", index]) == 0
    assert " geometry " not in capsys.readouterr().out
    capsys.readouterr()
    page = tmp_path / "page.html"
    assert main(["query", str(queries), "--index", index, "--verify", "7", "--copies_only", "--html", str(page)]) == 0
    said = capsys.readouterr()
    assert "stranger.png:\n  no match" in said.out and "within" in said.out and "shows more" not in said.out
    assert page.read_text().count("<polygon") >= 1 and "no copy" not in page.read_text()
    assert main(["query", str(queries), "--index", index, "--min_score", "1.5", "--json"]) == 0
    assert all(answer["matches"] == [] for answer in json.loads(capsys.readouterr().out)["queries"])
    assert main(["query", str(queries), "--index", index, "--copies_only"]) == 2
    assert "has no calibration" in capsys.readouterr().err
    (photos / "4.png").unlink()         # its features are kept beside the index
    assert main(["query", str(queries / "crop.png"), "--index", index, "--k", "1", "--verify", "7", "--json"]) == 0
    (match,) = json.loads(capsys.readouterr().out)["queries"][0]["matches"]
    assert (match["id"], match["file"], match["geometry"]) == ("4.png", "gone", "within")
    assert main(["query", str(queries / "crop.png"), "--index", index, "--verify", "0"]) == 2


def test_a_background_that_overlaps_is_left_out_with_a_count(tmp_path):
    photos = folder_of(tmp_path / "photos", range(12))
    index, describer = bright_index(tmp_path / "index", photos)
    background = folder_of(tmp_path / "background", range(100, 130), "other")
    alone, _ = calibrate_index(index, describer, images_of(background), QUICK, rate=0.1)
    assert alone.left_out["in the index"] == 0 and alone.achieved.total == 30
    shutil.copy(photos / "photo_003.png", background / "renamed.png")           # the same file
    picture(4).save(background / "saved_again.bmp")                             # the same descriptor
    picture(5).resize((90, 60)).save(background / "saved.jpg", quality=80)      # the same picture, saved again
    shutil.copy(background / "other_100.png", background / "twice.png")
    (background / "broken.png").write_bytes(b"")
    made, skipped = calibrate_index(index, describer, images_of(background), ReadOptions(),
                                    rate=0.1)
    assert made.left_out == {"in the index": 2, SAVED_AGAIN: 1, "repeated": 1,
                             UNUSABLE: 1} and len(skipped) == 1
    assert (made.threshold, made.achieved) == (alone.threshold, alone.achieved)
    with pytest.raises(DataError, match="no background image is left.*12 in the index"):
        calibrate_index(index, describer, images_of(photos), QUICK, rate=0.1)


def test_without_imagehash_the_calibration_says_what_was_not_looked_for(tmp_path, monkeypatch):
    photos = folder_of(tmp_path / "photos", range(12))
    index, describer = bright_index(tmp_path / "index", photos)
    background = folder_of(tmp_path / "background", range(100, 130), "other")
    picture(5).resize((90, 60)).save(background / "saved.jpg", quality=80)
    monkeypatch.setitem(sys.modules, "imagehash", None)
    made, _ = calibrate_index(index, describer, images_of(background), QUICK, rate=0.1)
    assert made.left_out[SAVED_AGAIN] == 0 and made.achieved.total == 31
    assert made.warnings[-1].startswith("did not look for background images that are indexed images saved again: ")
    assert "pip install imagehash" in made.warnings[-1]


def test_a_background_photo_of_an_indexed_name_counts_and_the_nearest_are_named(tmp_path):
    """Cameras count from 1 again: a name says nothing of what is in the file."""
    photos = folder_of(tmp_path / "photos", range(12))
    index, describer = bright_index(tmp_path / "index", photos)
    background = folder_of(tmp_path / "background", range(100, 130), "other")
    picture(55).save(background / "photo_005.png")
    crop = picture(7, 480, 320).crop((0, 0, 440, 300))
    crop.save(background / "crop.png")
    made, _ = calibrate_index(index, describer, images_of(background), QUICK, rate=0.1)
    assert made.achieved.total == 32 and sum(made.left_out.values()) == 0
    scores = {path: describer([describer.prepare(Image.open(path))])[0][0] for path in images_of(background).paths}
    rows = {path.name: describer([describer.prepare(Image.open(path))])[0][0] for path in images_of(photos).paths}
    best = {str(path): max(rows, key=lambda image: rows[image] @ vector) for path, vector in scores.items()}
    assert [one.score for one in made.nearest] == sorted((one.score for one in made.nearest), reverse=True)
    assert made.nearest[0].path == str(background / "crop.png") and made.nearest[0].match == "photo_007.png"
    assert all(one.match == best[one.path] for one in made.nearest) and len(made.nearest) == 3


def test_the_direction_is_unclear_for_norms_that_were_not_trained_to_order(tmp_path, tool, capsys):
    photos = folder_of(tmp_path / "photos", range(6))
    index, describer = bright_index(tmp_path / "index", photos, Brightness(orders_norms=False))
    dark = tmp_path / "dark.png"
    picture(2).point(lambda value: value * 0.5).save(dark)
    answers, _ = query_images(index, describer, images_of(dark), QUICK, k=6)
    assert {match.direction for match in answers[0].matches} == {"unclear"}
    assert answers[0].matches[0].norm_ratio == pytest.approx(0.5, abs=0.02)
    assert tool("find_copies")(["info", "--index", str(index.folder)]) == 0
    assert "direction: always unclear" in capsys.readouterr().out


def test_a_first_call_that_fails_binds_nobody_to_its_model(tmp_path, tool, capsys):
    photos, main = folder_of(tmp_path / "photos", range(3)), tool("find_copies")
    (photos / "broken.png").write_bytes(b"")
    index = str(tmp_path / "index")
    assert main(["index", str(photos), "--index", index, "--model", "phash", "--strict"]) == 1
    (photos / "broken.png").unlink()
    assert main(["index", str(photos), "--index", index, *BACKBONE[:-2]]) == 0
    assert "3 images, described by mobilenet_v2" in capsys.readouterr().out
    (photos / "broken.png").write_bytes(b"")
    other = str(tmp_path / "other")
    assert main(["index", str(photos), "--index", other, *BACKBONE[:-2], "--strict"]) == 1
    (photos / "broken.png").unlink()
    assert main(["index", str(photos), "--index", other]) == 0      # the model of the call that failed
    assert "3 images, described by mobilenet_v2" in capsys.readouterr().out


def test_an_index_made_anew_meanwhile_is_not_written_to(tmp_path):
    index = create_index(tmp_path / "index", DescriberChoice("phash"), Brightness())
    create_index(tmp_path / "index", DescriberChoice("phash"), Brightness("another sha256:1"))
    photos = folder_of(tmp_path / "photos", range(2))
    with pytest.raises(DataError, match="made anew meanwhile, by another"):
        add_images(index, Brightness(), images_of(photos), QUICK)
    assert len(CopyIndex(tmp_path / "index")) == 0


def test_the_yes_and_no_of_a_calibration_and_of_an_index_that_grew(tmp_path):
    photos = folder_of(tmp_path / "photos", range(10))
    index, describer = bright_index(tmp_path / "index", photos)
    background = images_of(folder_of(tmp_path / "background", range(100, 150), "other"))
    made, _ = calibrate_index(index, describer, background, QUICK, rate=0.2)
    answers, _ = query_images(index, describer, background, QUICK, k=3)
    said_yes = [any(match.copy for match in answer.matches) for answer in answers]
    assert sum(said_yes) == made.achieved.count <= 10
    for answer in answers:
        for match in answer.matches:
            assert match.copy == (match.score >= made.threshold)
            assert match.false_positives.count == sum(other.matches[0].score >= match.score for other in answers)
    add_images(index, describer, images_of(folder_of(tmp_path / "more", range(200, 215))), QUICK)
    answers, _ = query_images(index, describer, background[:2], QUICK, k=3)
    assert {match.copy for answer in answers for match in answer.matches} == {None}


def test_score_normalization_by_the_background(tmp_path):
    photos = folder_of(tmp_path / "photos", range(10))
    index, describer = bright_index(tmp_path / "index", photos)
    background = images_of(folder_of(tmp_path / "background", range(100, 120), "other"))
    made, _ = calibrate_index(index, describer, background, QUICK, rate=0.25, score_norm=ScoreNorm(1.0, 0, 2))
    vectors = {path.stem: describer([describer.prepare(Image.open(path))])[0][0]
               for path in [*background.paths, *images_of(photos).paths]}
    best = []
    names = [path.stem for path in background.paths]
    for name in names:
        among = sorted(float(vectors[name] @ vectors[other]) for other in names if other != name)[-3:]
        scores = [float(vectors[name] @ vectors[f"photo_{seed:03d}"]) for seed in range(10)]
        best.append(max(scores) - sum(among) / 3)
    assert np.allclose(index.calibration_arrays()["scores"], sorted(best), atol=1e-6)
    assert made.achieved.count == 4         # of 20: (4 + 1) / (20 + 1) is below 0.25
    answers, _ = query_images(CopyIndex(index.folder), describer, images_of(photos / "photo_003.png"), QUICK, k=2)
    among = sorted(float(vectors["photo_003"] @ vectors[name]) for name in names)[-3:]
    match = answers[0].matches[0]
    assert match.score == pytest.approx(1, abs=1e-6) and match.normalised == pytest.approx(1 - sum(among) / 3, abs=1e-6)
    assert match.copy == (match.normalised >= made.threshold)
    with pytest.raises(DataError, match="20 background images are too few for score normalization with place 30"):
        calibrate_index(index, describer, background, QUICK, rate=0.25, score_norm=ScoreNorm(1.0, 0, 30))


def test_another_describer_of_the_same_name_and_other_settings_is_refused(tmp_path):
    index, _ = bright_index(tmp_path / "index", folder_of(tmp_path / "photos", range(2)))
    with pytest.raises(DataError, match="was made by brightness sha256:0, not by phash"):
        describer_of(index, DescriberChoice("phash"))


def test_real_photographs_by_a_real_network(shared, tool, tmp_path, capsys):
    main, index = tool("find_copies"), str(tmp_path / "index")
    photos = sorted((shared / "data" / "flickr8k" / "full1000").glob("*.jpg"))[:24]
    crops = tmp_path / "crops"
    crops.mkdir()
    for path in photos[:8]:
        with Image.open(path) as image:
            width, height = image.size
            image.crop((width // 8, height // 8, width, height)).save(crops / f"crop_{path.stem}.jpg", quality=70)
    weights = shared / "weights" / "mobilenet_v2_imagenet.pth"
    assert main(["index", *map(str, photos), "--index", index, "--model", "mobilenet_v2", "--weights", str(weights),
                 "--same-padding", "--normalize", "half", "--input-size", "128"]) == 0
    capsys.readouterr()
    assert main(["query", str(crops), "--index", index, "--k", "1", "--json"]) == 0
    queries = json.loads(capsys.readouterr().out)["queries"]
    assert [f"crop_{answer['matches'][0]['id']}" for answer in queries] == [answer["id"] for answer in queries]
