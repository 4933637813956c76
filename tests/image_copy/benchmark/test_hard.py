"""The hard benchmark: what each kind of query and of hard negative shows, and that the standard one stays as it was."""

import csv
import hashlib
import json
from collections import Counter
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ascl.cli import main
from ascl.core.errors import DataError
from ascl.image_copy.benchmark import pairs, plan
from ascl.image_copy.benchmark.make import make_benchmark
from ascl.image_copy.benchmark.plan import (
    AFTERWARDS,
    HARD_KINDS,
    LEVELS,
    BenchmarkSettings,
    HardBenchmarkSettings,
    QueryPlan,
)
from ascl.image_copy.benchmark.queries import QueryMaker
from ascl.image_copy.edits.edits import sample_rng
from ascl.image_copy.edits.templates import TEMPLATES

from ..matching.drawn import scene

SMALL = HardBenchmarkSettings(references=6, queries=27, distractors=3, reverse_crops=24, templates=9, bursts=3,
                              background=2, seed=3)


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """60 pictures of several shapes; one is larger than the standard benchmark lets photos be."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(59):
        width, height = [(120, 90), (90, 120), (150, 80)][number % 3]
        scene(number, width, height).save(folder / f"photo{number:02d}.jpg", quality=95)
    scene(59, 1200, 90).save(folder / "wide.png")
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


def test_every_kind_is_there_with_its_role(made):
    edits = rows(made / "edits.csv")
    assert Counter(row["role"] for row in edits) == {
        "copy": 27, "distractor": 3, "reverse_crop": 24, "template": 9, "burst": 3}
    kinds = {role: {row["kind"] for row in edits if row["role"] == role} for role in HardBenchmarkSettings.kinds}
    assert kinds["copy"] == set(HARD_KINDS) and len(HARD_KINDS) == 9
    assert kinds["reverse_crop"] == {f"reverse_crop_{how}" for how in (*AFTERWARDS, "two", "caption")}
    assert kinds["template"] == {f"template_{name}" for name in TEMPLATES} and kinds["burst"] == {"burst"}
    cells = Counter((row["kind"], row["strength"]) for row in edits if row["role"] == "copy")
    assert set(cells) == {(kind, level) for kind in HARD_KINDS for level in LEVELS} and set(cells.values()) == {1}
    for row in edits:
        steps = [step["name"] for step in json.loads(row["steps"])]
        if row["kind"].startswith("chain_"):
            assert len(steps) == len(set(steps)) == int(row["kind"][-1])
        elif row["role"] == "copy":
            assert steps[-1] == row["kind"] and len(steps) <= 2


def test_hard_negatives_are_in_no_true_pair_and_each_has_its_reference(made):
    edits = {row["query_id"]: row for row in rows(made / "edits.csv")}
    negatives = rows(made / "hard_negatives.csv")
    truth = {row["query_id"]: row["reference_id"] for row in rows(made / "ground_truth.csv")}
    assert len(negatives) == 36 and not any(truth[row["query_id"]] for row in negatives)
    references = {row["reference_id"] for row in negatives}
    assert len(references) == 36 and references.isdisjoint(truth.values())
    assert {path.stem for path in (made / "references").iterdir()} == references | set(truth.values()) - {""}
    source = {row["image_id"]: (row["role"], row["source_image"]) for row in rows(made / "sources.csv")}
    for row in negatives:
        edit = edits[row["query_id"]]
        role, photo = source[row["reference_id"]]
        assert role == edit["role"] and (photo == edit["source_image"]) == (role != "template")
    used = [row["source_image"] for row in edits.values() if row["role"] == "template"]
    used += [photo for role, photo in source.values() if role == "template"]
    assert len(set(used)) == 18


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(made, photos, tmp_path):
    make_benchmark(photos, tmp_path / "again", SMALL, workers=2)
    assert contents(tmp_path / "again") == contents(made)
    make_benchmark(photos, tmp_path / "other", HardBenchmarkSettings(**asdict(SMALL) | {"seed": 4}))
    assert (tmp_path / "other" / "edits.csv").read_bytes() != (made / "edits.csv").read_bytes()


def test_photos_keep_their_sizes_and_qualities_differ(made, photos, tmp_path):
    for row in rows(made / "sources.csv"):
        (file,) = (made / ("background" if row["role"] == "background" else "references")).glob(f"{row['image_id']}.*")
        if row["role"] in ("reference", "background"):
            assert file.read_bytes() == (photos / row["source_image"]).read_bytes()
    for name in ("queries", "references"):
        (tmp_path / name).mkdir()
    for settings, width in ((SMALL, 1200), (BenchmarkSettings(), 1024)):
        plan_of_wide = QueryPlan("Q0", "distractor", photos / "wide.png", "", "jpeg", "mild")
        QueryMaker(tmp_path, [plan_of_wide], [], settings)[0]
        assert Image.open(tmp_path / "queries" / "Q0.jpg").width == width
    tables = {tuple(Image.open(path).quantization[0]) for path in (made / "queries").iterdir()}
    assert len(tables) > 10
    assert "quality 60 to 95, made from photos as they" in (made / "README.md").read_text()


@pytest.mark.parametrize("name", list(TEMPLATES))
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_two_photos_in_one_template_share_its_pixels_and_no_others(name, strength):
    black, white = Image.new("RGB", (160, 120)), Image.new("RGB", (90, 140), (255, 255, 255))
    reference, query = pairs.template(white, black, f"template_{name}", strength, sample_rng(0, 1))
    assert reference.image.size == query.image.size
    first, second = (np.asarray(edited.image).astype(int) for edited in (reference, query))
    same, photo = (first == second).all(axis=2), ((second - first) == 255).all(axis=2)
    template = same.mean()
    assert 0.03 < template < 0.85 and (same | photo).mean() > (0.8 if name == "stickers" else 0.99)
    assert 0 < query.content_scale < 1                      # a photo of another shape is cut
    area = 160 * 120 / same.size
    assert photo.mean() <= area + 0.01 and photo.mean() == pytest.approx(reference.content_scale * area, abs=0.1)


@pytest.mark.parametrize("size", [(300, 200), (200, 300), (900, 180)])
@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_each_frame_of_a_burst_shows_something_that_the_other_does_not(size, strength):
    """Its corners, drawn as polygons and counted in pixels, against the share that it states."""
    for draw in range(5):
        frames = pairs.burst(scene(1, *size), scene(2, *size), "burst", strength, sample_rng(5, draw))
        windows = []
        for frame in frames:
            drawn = Image.new("1", size)
            corners = frame.steps[0].parameters["corners"]
            ImageDraw.Draw(drawn).polygon([(x - 0.5, y - 0.5) for x, y in corners], fill=1)
            windows.append(np.asarray(drawn))
        for window, other, frame in zip(windows, windows[::-1], frames, strict=True):
            alone = (window & ~other).sum() / window.sum()
            assert alone == pytest.approx(frame.steps[0].parameters["alone"], abs=0.03)
            assert 0.08 <= frame.steps[0].parameters["alone"] < 0.48
            assert frame.content_scale == pytest.approx(window.mean(), abs=0.02)
            assert np.asarray(frame.image).min(axis=2).mean() > 20      # no black margin
        first, second = (frame.steps[0].parameters for frame in frames)
        assert first["brightness"] != second["brightness"] and first["noise"] != second["noise"]


@pytest.mark.parametrize("how", [*AFTERWARDS, "two", "caption"])
def test_an_edited_reverse_crop_shows_more_than_its_reference(how):
    photo = scene(3, 160, 120)
    reference, query = pairs.reverse_crop(photo, photo, f"reverse_crop_{how}", 0.5, sample_rng(6, 0))
    names = [step.name for step in query.steps]
    assert names == [how] if how in AFTERWARDS else len(set(names)) == (2 if how == "two" else 0)
    assert [step.name for step in reference.steps] == (["crop", "in_caption"] if how == "caption" else ["crop"])
    assert reference.content_scale < 0.55 and query.content_scale > 0.8
    assert (query.image == photo) == (how == "caption")


def test_open_sizes_scale_with_the_folder_and_leave_out_no_role():
    few, many = (HardBenchmarkSettings().for_photos(count) for count in (7, 1000))
    names = ("references", "distractors", "reverse_crops", "templates", "bursts", "background")
    assert [getattr(few, name) for name in names[:-1]] == [2, 1, 1, 1, 1]
    assert [getattr(many, name) for name in names] == [300, 80, 140, 70, 80, 160]
    assert many.photos == 300 + 80 + 140 + 2 * 70 + 80 + 160 and many.queries == 300
    assert HardBenchmarkSettings(templates=100).for_photos(1000).photos <= 1000


def test_too_few_photos_are_refused_with_what_is_needed(photos, tmp_path):
    with pytest.raises(DataError, match=r"6 references \+ 3 distractors \+ 24 reverse crops \+ 2 x 30 templates \+ 3 "
                                        r"bursts \+ 2 background need 98 different photos, but of 60 images 60 can"):
        make_benchmark(photos, tmp_path / "out", HardBenchmarkSettings(**asdict(SMALL) | {"templates": 30}))
    with pytest.raises(DataError, match="bursts -1: give at least 0"):
        HardBenchmarkSettings(bursts=-1)


def test_without_templates_and_bursts_there_are_none(photos, tmp_path):
    settings = HardBenchmarkSettings(**asdict(SMALL) | {"templates": 0, "bursts": 0})
    counts = make_benchmark(photos, tmp_path / "out", settings).counts
    assert (counts["references"], counts["templates"], counts["bursts"]) == (30, 0, 0)
    assert {row["role"] for row in rows(tmp_path / "out" / "edits.csv")} == {"copy", "distractor", "reverse_crop"}


def test_the_command_makes_both_and_refuses_what_the_standard_one_has_not(photos, tmp_path, capsys):
    words = ["copy", "benchmark", "--images", str(photos), "--out", str(tmp_path / "out"), "--workers", "0"]
    assert main([*words, "--bursts", "2"]) != 0
    assert "--bursts has no effect with --kind standard; leave it out, or give --kind hard" in capsys.readouterr().err
    assert main([*words, "--kind", "hard", "--bursts", "2", "--references", "4"]) == 0
    assert "2 bursts" in capsys.readouterr().out


def test_the_standard_benchmark_has_the_queries_that_it_had():
    """Published numbers are of these: photos, references, kinds and strengths of a seed, by their hash."""
    settings = BenchmarkSettings(references=20, queries=90, distractors=9, reverse_crops=11, background=4, seed=1)
    found = [Path(f"photo{number:02d}.jpg") for number in range(60)]
    roles = plan.assign_roles(plan.UsablePhotos(found, [], 60), settings, 60)
    ids = {path: path.stem for path in found}
    plans = plan.plan_queries(roles, ids, settings)
    text = "\n".join(" ".join(map(str, one[:6])) for one in plans)
    assert hashlib.sha256(text.encode()).hexdigest()[:16] == "621c6342e2840a08"
    assert list(asdict(settings)) == ["references", "queries", "distractors", "reverse_crops", "background", "seed",
                                      "jpeg_quality", "max_side", "min_side"]
