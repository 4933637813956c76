"""Photo libraries as they are, on the command line: what is used, what is said of the rest, and the exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ascl.cli import main

pytest.importorskip("imagehash")
LATIN = os.fsdecode(b"caf\xe9")
SMALL = ["--model", "mobilenet_v2", "--weights", "random:0", "--input_size", "32", "--device", "cpu"]


def photo(seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((96, 64), Image.Resampling.BICUBIC)


@pytest.fixture
def library(tmp_path) -> Path:
    """Two folders of a camera with the same names, thumbnails, notes and an animation."""
    folder = tmp_path / "library"
    names = ["100/IMG_0001.jpg", "100/IMG_0001.png", "101/IMG_0001.jpg", "101/@eaDir/IMG_0001.jpg"]
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        photo(number).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    photo(7).save(folder / "moving.gif", save_all=True, append_images=[photo(8)])
    return folder


@pytest.fixture
def said(capsys, tmp_path):
    """Run a command on the index and return status, JSON and what is on the standard error."""
    def run(*words, status: int = 0):
        capsys.readouterr()
        assert main(["copy", *map(str, words), "--index", str(tmp_path / "index"), "--json"]) == status
        told = capsys.readouterr()
        return json.loads(told.out) if told.out else None, told.err

    return run


def test_a_camera_library_is_indexed_and_the_rest_is_said(library, said, tmp_path):
    made, told = said("index", library)
    assert made["added"] == 4 and made["skipped"] == [] and made["first_frame_only"] == [str(library / "moving.gif")]
    assert made["passed_over"] == {
        ".txt": {"count": 1, "examples": ["notes.txt"]},
        "thumbnails or removed files of the system": {"count": 1, "examples": ["101/@eaDir"]}}
    assert "passed over: 1 .txt (notes.txt), 1 thumbnails or removed" in told
    assert "warning: of 1 images with several frames or pages only the first counts: " in told
    answers = said("query", library, "--k", "1", "--exclude", "*.gif")[0]["queries"]
    assert [answer["id"] for answer in answers] == [answer["matches"][0]["id"] for answer in answers] == [
        "100/IMG_0001.jpg", "100/IMG_0001.png", "101/IMG_0001.jpg"]
    assert "was made with path: leave it out" in said("index", library, "--id", "stem", status=2)[1]
    (tmp_path / "index" / "index.sqlite").unlink()
    assert "two images have the id 'IMG_0001'" in said("index", library, "--id", "stem", status=1)[1]


def test_a_second_folder_of_a_camera_is_added_by_the_folder_above_both(library, said):
    said("index", library / "100")
    refused = said("add", library / "101", status=1)[1]
    assert f"content differs; add the folder above both, {library}, so that their ids differ, rename one, or replace " \
           "the indexed one (--replace)" in refused
    assert said("add", library)[0]["images"] == 4
    photo(9).save(library / "IMG_0001.jpg")     # here the folder above gives the same id
    assert "content differs; rename one, or" in said("add", library / "IMG_0001.jpg", status=1)[1]


def test_an_index_of_stems_is_queried_by_any_library(library, said, tmp_path):
    said("index", library / "101", "--id", "stem")
    said("add", library / "moving.gif")
    assert "paths as ids (of an index: in a new one), or rename" in said("add", library, status=1)[1]
    assert "was made with stem: leave it out" in said("index", library, "--id", "path", status=2)[1]
    answers = said("query", library, "--k", "1")[0]["queries"]
    assert {"100/IMG_0001.jpg", "101/IMG_0001.jpg"} < {answer["id"] for answer in answers}
    made, _ = said("calibrate", library / "100", library / "101", "--false_positive_rate", "0.5")
    assert made["left_out"]["in the index"] == 1
    written = tmp_path / "predictions.csv"
    said("query", library / "101", "--predictions", written)
    assert {line.split(",")[0] for line in written.read_text().splitlines()[1:]} == {"IMG_0001"}
    assert "two images have the id 'IMG_0001'" in said("query", library, "--predictions", written, status=1)[1]
    asked = said("query", library / "101" / "IMG_0001.jpg", "--k", "2")[0]["queries"][0]
    assert asked["id"] == "IMG_0001.jpg" and {match["id"] for match in asked["matches"]} == {"IMG_0001", "moving"}


def test_bad_files_are_listed_at_the_end_and_the_status_says_so(library, said, tmp_path):
    (library / "broken.jpg").write_bytes(b"<html>")
    os.symlink("nowhere", library / "dangling.jpg")
    made, told = said("index", library, status=3)
    assert made["added"] == 4
    assert {Path(one["path"]).name: one["reason"] for one in made["skipped"]} == {
        "dangling.jpg": "a link to a file that does not exist",
        "broken.jpg": "it is a web page or a drawing in XML, no picture in pixels"}
    assert "skipped 2 images:\n" in told and "dangling.jpg: a link to a file that does not exist" in told
    assert said("index", library, "--strict", status=1)[1].startswith("error: ")
    (library / "dangling.jpg").unlink()
    assert "broken.jpg: cannot be read as an image (it is a web" in said("index", library, "--strict", status=1)[1]
    assert said("query", library, "--k", "1", status=3)[0]["skipped"][0]["fault"] is True
    background = tmp_path / "background"
    background.mkdir()
    for number in range(30):
        photo(100 + number).save(background / f"{number}.png")
    (background / "empty.png").touch()
    left_out = said("calibrate", background, "--false_positive_rate", "0.1", status=3)[0]["left_out"]
    assert left_out["unreadable, too small or blank"] == 1
    out = tmp_path / "features.h5"
    arguments = ["--images", str(library), "--out", str(out), "--id", "path", "--workers", "0", "--json"]
    assert main(["extract", "descriptors", *arguments, *SMALL]) == 3
    assert main(["extract", "globals", "--images", str(library), "--out", str(tmp_path / "g.h5"), "--id", "path",
                 "--workers", "0", "--exclude", "broken*", "--backbone", "mobilenet_v2", "--weights", "random:0"]) == 0


@pytest.mark.parametrize("model", [["--model", "phash"], SMALL], ids=["phash", "network"])
def test_blank_pictures_are_no_copies_of_one_another(said, tmp_path, model):
    folder = tmp_path / "drawings"
    folder.mkdir()
    for number in range(3):
        drawing = Image.new("RGBA", (200, 200), (0, 0, 0, 0))
        ImageDraw.Draw(drawing).line([(10, 20 * number + 5), (190, 180 - 30 * number)], (255,) * 4, 6)
        drawing.save(folder / f"drawing{number}.png")
    for color in ("white", "black", "blue"):
        Image.new("RGB", (200, 200), color).save(folder / f"{color}.png")
    made, told = said("index", folder, *model)
    assert made["added"] == 3 and "white.png: blank: nothing to compare" in told
    answers = said("query", folder, "--k", "2")[0]["queries"]
    assert [(answer["id"], answer["blank"], len(answer["matches"])) for answer in answers] == [
        ("black.png", "blank", 0), ("blue.png", "blank", 0),
        *((f"drawing{number}.png", "nearly blank", 2) for number in range(3)), ("white.png", "blank", 0)]
    for answer in answers:
        if answer["blank"] != "blank" and "phash" in model:  # an untrained network tells little apart
            assert answer["matches"][0]["id"] == answer["id"] and answer["matches"][1]["score"] < 0.85


def test_nearly_blank_queries_have_matches_and_no_yes_or_no(library, said, tmp_path):
    background = tmp_path / "background"
    background.mkdir()
    for number in range(30):
        photo(100 + number).save(background / f"{number}.png")
    dot = Image.new("RGB", (200, 200), "white")
    dot.paste("black", (90, 90, 120, 120))
    dot.save(library / "dot.png")
    said("index", library)
    said("calibrate", background, "--false_positive_rate", "0.1")
    answers = {answer["id"]: answer for answer in said("query", library, "--k", "1")[0]["queries"]}
    assert answers["dot.png"]["blank"] == "nearly blank" and answers["100/IMG_0001.jpg"]["blank"] == ""
    matches = {name: answer["matches"][0] for name, answer in answers.items()}
    assert (matches["dot.png"]["score"], matches["dot.png"]["copy"]) == (1, None)
    assert matches["100/IMG_0001.jpg"]["copy"] is True


def test_a_blank_query_is_said_to_be_blank(library, said, tmp_path, capsys):
    said("index", library)
    Image.new("RGB", (50, 50), "white").save(tmp_path / "white.png")
    assert main(["copy", "query", str(tmp_path / "white.png"), "--index", str(tmp_path / "index")]) == 0
    told = capsys.readouterr()
    assert told.out == f"{tmp_path / 'white.png'}:\n  blank: nothing to compare\n" and "skipped" not in told.err


@pytest.mark.skipif(sys.platform != "linux", reason="file names of any bytes are of Linux")
def test_names_of_any_bytes_are_printed_in_any_locale(tmp_path, said):
    folder = tmp_path / "photos" / LATIN
    folder.mkdir(parents=True)
    photo(1).save(folder / "Größe.jpg")
    (folder / "é.png").write_bytes(b"x")
    made, told = said("index", tmp_path / "photos", "--model", "phash", status=3)
    assert made["added"] == 1 and "caf\\xe9/é.png: " in told
    plain = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii:strict", "PYTHONCOERCECLOCALE": "0",
             "PYTHONUTF8": "0"}
    program = ("import sys; from ascl.cli import main\n"
               "sys.exit(main(sys.argv[1:]) + 10 * main([*sys.argv[1:], '--json']))")
    asked = subprocess.run([sys.executable, "-c", program, "copy", "query", str(tmp_path / "photos"), "--index",
                            str(tmp_path / "index")], capture_output=True, env=plain)
    assert asked.returncode == 33 and b"Traceback" not in asked.stderr and b"caf\\xe9" in asked.stderr
    table, _, text = asked.stdout.decode("ascii").partition("{")
    assert r"caf\xe9/Gr\xf6\xdfe.jpg" in table
    answer = json.loads("{" + text)
    assert answer["queries"][0]["matches"][0]["id"] == "caf\\xe9/Größe.jpg"
    assert answer["skipped"][0]["path"].endswith("caf\\xe9/é.png")
