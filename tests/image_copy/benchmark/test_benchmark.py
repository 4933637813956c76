"""The generated benchmark: roles, ground truth, balance, bad folders, kills."""

import csv
import json
import os
import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from PIL import Image

from ascl.core.errors import DataError
from ascl.image_copy.benchmark.make import make_benchmark
from ascl.image_copy.benchmark.near_duplicates import NearDuplicates
from ascl.image_copy.benchmark.plan import (
    KINDS,
    LEVELS,
    SHARES,
    BenchmarkSettings,
    QueryPlan,
    usable_photos,
)
from ascl.image_copy.benchmark.queries import QueryMaker
from ascl.image_copy.edits.stickers import drawn_picture

from ...warm_python import REPOSITORY, Program

SMALL = BenchmarkSettings(references=12, queries=60, distractors=6, reverse_crops=7, background=5, seed=3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """40 different photos in two folders, 64 x 48."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(40):
        path = folder / ("deep" if number % 2 else ".") / f"photo{number:02d}.{'png' if number % 5 == 0 else 'jpg'}"
        path.parent.mkdir(exist_ok=True)
        drawn_picture(64, 48, np.random.default_rng(number)).save(path)
    return folder


@pytest.fixture(scope="module")
def made(photos, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("out") / "benchmark"
    make_benchmark(photos, out, SMALL)
    return out


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_files_and_counts_are_those_asked_for(made):
    names = {path.name for path in made.iterdir()}
    assert names == {"references", "queries", "background", "ground_truth.csv", "edits.csv", "hard_negatives.csv",
                     "sources.csv", "skipped.csv", "benchmark.json", "README.md"}
    count = {name: len(list((made / name).iterdir())) for name in ("references", "queries", "background")}
    assert count == {"references": 12 + 7, "queries": 60 + 6 + 7, "background": 5}
    described = json.loads((made / "benchmark.json").read_text())
    assert described["settings"]["seed"] == 3 and described["settings"]["jpeg_quality"] == 95
    assert described["counts"]["queries"] == 73 and described["counts"]["copies"] == 60
    assert "quality 95" in (made / "README.md").read_text() and "73 images" in (made / "README.md").read_text()


def test_the_ground_truth_is_in_the_layout_of_disc(made):
    lines = (made / "ground_truth.csv").read_text().splitlines()
    assert lines[0] == "query_id,reference_id" and len(lines) == 74
    truth = dict(line.split(",") for line in lines[1:])
    assert {path.stem for path in (made / "queries").iterdir()} == set(truth)
    references = {path.stem for path in (made / "references").iterdir()}
    assert sum(bool(reference) for reference in truth.values()) == 60
    assert {reference for reference in truth.values() if reference} < references
    edits = {row["query_id"]: row for row in rows(made / "edits.csv")}
    source = {row["image_id"]: row["source_image"] for row in rows(made / "sources.csv")}
    for query, reference in truth.items():
        assert (edits[query]["role"] == "copy") == bool(reference)
        assert not reference or source[reference] == edits[query]["source_image"]
    every = Counter(reference for reference in truth.values() if reference)
    assert len(every) == 12 and set(every.values()) == {5}


def test_roles_share_no_photo(made):
    edits, sources = rows(made / "edits.csv"), rows(made / "sources.csv")
    by_role = {role: {row["source_image"] for row in edits if row["role"] == role} for role in
               ("copy", "distractor", "reverse_crop")}
    by_role["background"] = {row["source_image"] for row in sources if row["role"] == "background"}
    every = [source for sources in by_role.values() for source in sources]
    assert len(every) == len(set(every)) == 12 + 6 + 7 + 5
    assert by_role["copy"] == {row["source_image"] for row in sources if row["role"] == "reference"}


def test_kinds_and_strengths_are_balanced(made):
    edits = rows(made / "edits.csv")
    cells = Counter((row["kind"], row["strength"]) for row in edits if row["role"] == "copy")
    assert set(cells) == {(kind, level) for kind in KINDS for level in LEVELS} and set(cells.values()) <= {1, 2}
    assert {row["kind"] for row in edits if row["role"] == "reverse_crop"} == {"reverse_crop"}
    for row in edits:
        low, high = LEVELS[row["strength"]]
        assert low <= float(row["strength_value"]) <= high and 0 < float(row["content_scale"]) <= 1
        steps = json.loads(row["steps"])
        assert row["kind"] in ("combination", "reverse_crop") or [step["name"] for step in steps] == [row["kind"]]


def test_references_and_background_are_the_originals_byte_for_byte(made, photos):
    for row in rows(made / "sources.csv"):
        folder = made / ("background" if row["role"] == "background" else "references")
        (file,) = folder.glob(f"{row['image_id']}.*")
        if row["role"] != "reverse_crop":
            assert file.read_bytes() == (photos / row["source_image"]).read_bytes()


def test_the_references_of_hard_negatives_are_crops_of_what_the_query_shows(made, photos):
    edits = {row["query_id"]: row for row in rows(made / "edits.csv")}
    hard = rows(made / "hard_negatives.csv")
    assert len(hard) == 7
    for row in hard:
        query = Image.open(made / "queries" / f"{row['query_id']}.jpg")
        reference = Image.open(made / "references" / f"{row['reference_id']}.jpg")
        share = float(row["reference_content_scale"])
        assert query.size == (64, 48) and float(edits[row["query_id"]]["content_scale"]) == 1 > share
        assert share == pytest.approx(reference.width * reference.height / (64 * 48), abs=0.01)
        photo = np.asarray(Image.open(photos / edits[row["query_id"]]["source_image"]).convert("RGB")).astype(float)
        cut = np.asarray(reference).astype(float)
        best = min(
            abs(photo[top : top + reference.height, left : left + reference.width] - cut).mean()
            for top in range(48 - reference.height + 1) for left in range(64 - reference.width + 1)
        )
        assert best < 8  # JPEG's own error


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(made, photos, tmp_path):
    make_benchmark(photos, tmp_path / "again", SMALL, workers=2)
    assert contents(tmp_path / "again") == contents(made)
    other = BenchmarkSettings(references=12, queries=60, distractors=6, reverse_crops=7, background=5, seed=4)
    make_benchmark(photos, tmp_path / "other", other)
    assert (tmp_path / "other" / "ground_truth.csv").read_bytes() != (made / "ground_truth.csv").read_bytes()


def test_sizes_that_are_not_given_are_shares_of_the_folder(photos, tmp_path):
    done = make_benchmark(photos, tmp_path / "default", BenchmarkSettings())
    assert done.counts["references"] == 18 + 4 and done.counts["copies"] == 18 and done.counts["mix_ins"] == 4
    assert done.counts["distractors"] == 4 and done.counts["reverse_crops"] == 4 and done.counts["background"] == 10
    filled = BenchmarkSettings(references=900).for_photos(1000)
    assert filled.photos is not None and 980 <= filled.photos <= 1000 and filled.queries == 900
    assert sum(SHARES.values()) < 1


def test_without_left_over_photos_others_are_mixed_in(photos, tmp_path):
    settings = BenchmarkSettings(references=34, queries=10, distractors=6, reverse_crops=0, background=0)
    make_benchmark(photos, tmp_path / "a", settings)
    assert json.loads((tmp_path / "a" / "benchmark.json").read_text())["mixed_in"] == "photos of distractor queries"
    make_benchmark(photos, tmp_path / "b", BenchmarkSettings(references=40, queries=60))
    assert json.loads((tmp_path / "b" / "benchmark.json").read_text())["mixed_in"] == "drawn pictures"
    assert rows(tmp_path / "b" / "hard_negatives.csv") == []


def test_no_photo_is_mixed_into_its_own_copy(tmp_path):
    """A collage of nine cells of a red photo: one cell is red, and the others are blue where there is a blue photo."""
    own, other = tmp_path / "red.png", tmp_path / "blue.png"
    Image.new("RGB", (60, 60), (255, 0, 0)).save(own)
    Image.new("RGB", (60, 60), (0, 0, 255)).save(other)
    (tmp_path / "queries").mkdir()
    plan = QueryPlan("Q0", "distractor", own, "", "collage", "hard")
    for pool, blue in (([own], 0), ([own, other], 8)):
        QueryMaker(tmp_path, [plan], pool, SMALL)[0]
        pixels = np.asarray(Image.open(tmp_path / "queries" / "Q0.jpg")).astype(int)
        for channel, cells in ((0, 1), (2, blue)):
            near = (abs(pixels - 255 * (np.arange(3) == channel)) < 30).all(axis=2)
            assert near.mean() == pytest.approx(cells / 9, abs=0.03)


def test_it_stops_looking_when_there_are_enough(photos):
    settings = BenchmarkSettings(references=3, queries=3, distractors=1, reverse_crops=1, background=1)
    found = sorted(path for path in photos.rglob("*") if path.is_file())
    assert usable_photos(found, settings, 0, mix_ins=20).looked_at == 6 + 20


def test_unreadable_tiny_and_duplicate_photos_are_left_out_with_their_reason(photos, tmp_path):
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    (folder / "broken.jpg").write_bytes(b"no image")
    (folder / "cut.jpg").write_bytes((folder / "photo02.jpg").read_bytes()[:300])
    drawn_picture(300, 10, np.random.default_rng(0)).save(folder / "thin.png")
    Image.open(folder / "photo04.jpg").resize((128, 96)).save(folder / "larger.jpg", quality=60)
    shutil.copy(folder / "photo06.jpg", folder / "copy.jpg")
    done = make_benchmark(folder, tmp_path / "out", BenchmarkSettings(references=20, background=5))
    left_out = json.loads((tmp_path / "out" / "benchmark.json").read_text())["left_out"]
    assert left_out == {"near-duplicate of another photo": 2, "too small": 1, "unreadable": 2}
    reasons = {row["source_image"]: row["reason"] for row in rows(tmp_path / "out" / "skipped.csv")}
    assert reasons["thin.png"] == "too small: 300 x 10 pixels" and "unreadable" in reasons["broken.jpg"]
    assert len({"copy.jpg", "photo06.jpg"} & set(reasons)) == len({"larger.jpg", "photo04.jpg"} & set(reasons)) == 1
    assert "2 unreadable" in done.summary() and "skipped.csv" in done.summary()


def test_too_few_photos_are_refused_with_the_numbers(photos, tmp_path):
    (tmp_path / "photos").mkdir()
    for path in sorted(photos.glob("*.jpg"))[:5]:
        shutil.copy(path, tmp_path / "photos")
    (tmp_path / "photos" / "broken.jpg").write_bytes(b"x")
    settings = BenchmarkSettings(references=4, queries=4, distractors=2, reverse_crops=1, background=3)
    with pytest.raises(DataError, match=r"4 references \+ 2 distractors \+ 1 reverse crops \+ 3 background need 10 "
                                        r"different photos, but of 6 images 5 can be used \(1 unreadable\)"):
        make_benchmark(tmp_path / "photos", tmp_path / "out", settings)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["photos"]


def test_empty_folders_and_an_existing_folder_are_refused(photos, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no image in .*empty"):
        make_benchmark(tmp_path / "empty", tmp_path / "out", SMALL)
    with pytest.raises(DataError, match="no such folder"):
        make_benchmark(tmp_path / "nowhere", tmp_path / "out", SMALL)
    shutil.copytree(photos, tmp_path / "photos")
    with pytest.raises(DataError, match="is in the folder of photos"):
        make_benchmark(tmp_path / "photos", tmp_path / "photos" / "new" / "out", SMALL)
    (tmp_path / "existing").mkdir()
    with pytest.raises(DataError, match="exists already"):
        make_benchmark(photos, tmp_path / "existing", SMALL)


@pytest.mark.parametrize("wrong", [{"references": 0}, {"queries": 0}, {"background": -1}, {"seed": -1},
                                   {"jpeg_quality": 101}, {"min_side": 0}])
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(DataError, match=next(iter(wrong)).split("_")[0].replace("jpeg", "JPEG")):
        BenchmarkSettings(**wrong)


def test_a_failure_in_the_middle_leaves_nothing(photos, tmp_path, monkeypatch):
    def full(image, path, *_, **__):
        raise OSError("No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space left"):
        make_benchmark(photos, tmp_path / "out", SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_photo_that_goes_away_meanwhile_is_named(photos, tmp_path, monkeypatch):
    shutil.copytree(photos, tmp_path / "photos")
    copy, copied = shutil.copyfile, []

    def copy_and_lose(source, target):
        copied.append(copy(source, target))
        if len(copied) == 12 + 5:  # all that are copied as they are; the queries are still to be made
            shutil.rmtree(tmp_path / "photos")

    monkeypatch.setattr(shutil, "copyfile", copy_and_lose)
    with pytest.raises(DataError, match="the file cannot be read from the disk"):
        make_benchmark(tmp_path / "photos", tmp_path / "out", SMALL, workers=1)
    assert len(copied) == 17 and list(tmp_path.iterdir()) == []


def test_a_killed_run_leaves_no_benchmark_and_the_next_one_makes_it(photos, tmp_path):
    words = ["--images", str(photos), "--out", str(tmp_path / "out"),
             "--references", "12", "--queries", "20000", "--workers", "0", "--distractors", "6",
             "--reverse-crops", "7", "--background", "5", "--seed", "3"]
    program = Program(REPOSITORY / "tools" / "make_copy_benchmark.py", *words)
    queries = tmp_path / "out.tmp" / "queries"
    deadline = time.monotonic() + 60
    while not (queries.is_dir() and len(os.listdir(queries)) > 5) and time.monotonic() < deadline:
        time.sleep(0.02)
    program.kill()
    assert queries.is_dir() and not (tmp_path / "out").exists()
    make_benchmark(photos, tmp_path / "out", SMALL)
    assert len(list((tmp_path / "out" / "queries").iterdir())) == 73
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]


def test_a_strangers_folder_and_another_process_are_left_alone(photos, tmp_path):
    (tmp_path / "out.tmp").mkdir()
    (tmp_path / "out.tmp" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="not an unfinished benchmark"):
        make_benchmark(photos, tmp_path / "out", SMALL)
    assert (tmp_path / "out.tmp" / "thesis.tex").read_text() == "years of work"
    with FileLock(tmp_path / ".other.lock"), pytest.raises(DataError, match="another process"):
        make_benchmark(photos, tmp_path / "other", SMALL)


def test_the_tool_makes_one_and_says_what_is_wrong(photos, tmp_path, tool, capsys):
    main = tool("make_copy_benchmark")
    arguments = ["--images", str(photos), "--out", str(tmp_path / "out"), "--references", "10", "--queries", "5",
                 "--workers", "0", "--jpeg-quality", "80"]
    assert main(arguments) == 0
    assert "5 copies" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text())["settings"]["jpeg_quality"] == 80
    assert main(arguments) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("distance", [0, 1, 4, 6])
def test_near_duplicates_are_those_of_the_plain_comparison(distance):
    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (20, 8), dtype=np.uint8)
    hashes = []
    for _ in range(300):
        bits = np.unpackbits(base[rng.integers(20)])
        bits[rng.choice(64, int(rng.integers(0, 10)), replace=False)] ^= 1
        hashes.append(np.packbits(bits))
    duplicates, kept = NearDuplicates(distance), []
    for one in hashes:
        near = any((np.unpackbits(one) != np.unpackbits(other)).sum() <= distance for other in kept)
        assert duplicates.add(one) == near
        if not near:
            kept.append(one)
