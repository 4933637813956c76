"""The programs of benchmarks/ work and write well-formed rows. Nothing here is timed."""

import importlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ascl.analysis.run_files import RECALLS
from ascl.cli import program
from ascl.data.split import build_split
from ascl.models.text import BertWords
from ascl.retrieval import build
from ascl.scenes.render import write_scenes
from ascl.settings.retrieval import load_config

from .analysis.ablation.ablation_programs import make_place, started
from .image_copy.matching.drawn import scene

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Name of a program in benchmarks/ -> its module; they import one another as programs do."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def make_run(tmp_path):
    """(name, seed, rsum, **changes) -> a folder as training and evaluation leave it; only its figures are invented."""
    def make(name, seed, rsum, *, local_weight=0.6, images=1000, **evaluation):
        folder = tmp_path / name
        folder.mkdir()
        settings = {"dataset": "tiny", "out": str(folder), "model": {"local_weight": local_weight},
                    "train": {"seed": seed}}
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        environment = {"commit": "abc", "python": "3.11", "torch": "2.9", "device": "CPU, 2 threads"}
        (folder / "environment.json").write_text(json.dumps(environment))
        recalls = {"r1": rsum / 10, "r5": rsum / 6, "r10": rsum / 5}
        about = {"runs": [str(folder)], "split": "test", "protocol": "all pairs", **evaluation}
        full = {"i2t": recalls, "t2i": recalls, "images": images, "texts": 5 * images, "rsum": rsum}
        (folder / "eval-test.json").write_text(json.dumps({**about, "reports": {"full": full}}))
        return folder

    return make


def test_bench_scoring_runs_and_writes_its_rows(module, tmp_path, capsys):
    path = tmp_path / "results.csv"
    assert module("bench_scoring").main(
        ["--quick", "--device", "cpu", "--repeats", "2", "--results", str(path)]
    ) == 0
    printed = capsys.readouterr().out
    assert "| triton float32 | open: no GPU |" in printed
    rows = module("results").read(path)
    figures = {row.figure: row for row in rows}
    assert len(figures) == len(rows)
    assert not any("triton" in figure for figure in figures)
    head = "scores of 4 x 9, D 16, H 2, "
    for way, count in (("algebra float32", 11), ("reference float32", 11), ("SCAN text-to-image float32", 10),
                       ("SCAN image-to-text float32", 10)):
        assert f"| {way} | " in printed
        assert sum(figure.startswith(f"{head}{way}: ") for figure in figures) == count      # SCAN is another score
    assert float(figures[f"{head}algebra float32: largest error against float64"].value) < 1e-5
    assert all(float(row.value) >= 0 and all(vars(row).values()) and row.note.startswith("QUICK") for row in rows)
    assert {row.command for row in rows} == {
        "python benchmarks/bench_scoring.py --quick --device cpu --repeats 2"
    }
    assert all(("PROJECTED" in figure) == ("projected, not measured" in row.note) for figure, row in figures.items())
    assert f"{head}algebra float32: 1,000 x 5,000, time PROJECTED" in figures


def test_bench_training_runs_and_writes_its_rows(module, tmp_path, capsys):
    """Without time for the pairwise way, so that its figures are scaled."""
    path = tmp_path / "results.csv"
    assert module("bench_training").main(
        ["--quick", "--device", "cpu", "--seconds", "1e-6", "--dtype", "float32", "--results", str(path)]
    ) == 0
    assert "candidates against exact" in capsys.readouterr().out
    rows = module("results").read(path)
    assert len(rows) == 3 * 5                                           # five for each line of the table
    assert all(float(row.value) > 0 and all(vars(row).values()) for row in rows)
    assert {row.command for row in rows} == {
        "python benchmarks/bench_training.py --quick --device cpu --seconds 1e-6 --dtype float32"
    }
    assert {row.note.partition("SCALED ")[2][:9] for row in rows} == {"from 2 of"}
    assert {row.figure.rpartition(", ")[2] for row in rows} == {
        "exact", "3 candidates", "pairwise", "exact against pairwise", "3 candidates against exact"}
    projected = {row.figure.rpartition(", ")[2]: row for row in rows if "PROJECTED" in row.figure}
    assert "20 epochs of COCO, scores alone" in projected["exact"].figure and projected["exact"].unit == "h"
    # batches of 4 in this run; 113,287 images with 5 captions each
    assert f"{20 * (113287 * 5 // 4):,} steps" in projected["exact"].note


def test_thresholds_of_an_index_by_itself_and_by_a_background(module, tmp_path, capsys):
    pytest.importorskip("cv2")
    photos, path = tmp_path / "photos", tmp_path / "results.csv"
    photos.mkdir()
    for seed in range(14):
        scene(seed, 120, 90).save(photos / f"{seed}.png")
    arguments = ["--photos", str(photos), "--index", "6", "--background", "5", "--splits", "2", "--results", str(path)]
    assert module("bench_calibration").main(arguments) == 0
    rows = module("results").read(path)
    assert len(rows) == 2 * 4 and all(0 <= float(row.value) <= 100 for row in rows)
    assert all("3 photographs in the rest" in row.note for row in rows)
    assert "calibrated with" in capsys.readouterr().out
    assert module("bench_calibration").main([*arguments, "--index", "60"]) == 2
    assert "65 are needed" in capsys.readouterr().err


def test_geometry_is_counted_by_edit(module, tmp_path, capsys):
    pytest.importorskip("cv2")
    photos, folder, path = tmp_path / "photos", tmp_path / "bench", tmp_path / "results.csv"
    photos.mkdir()
    for seed in range(14):
        scene(seed).save(photos / f"{seed}.png")
    sizes = {"references": 6, "queries": 12, "distractors": 1, "reverse_crops": 4, "background": 1}
    assert program.main(["copy", "benchmark", "--images", str(photos), "--out", str(folder), "--workers", "0",
                         *(word for name, size in sizes.items() for word in (f"--{name}", str(size)))]) == 0
    arguments = ["--benchmark", str(folder), "--results", str(path)]
    assert module("bench_geometry").main(arguments) == 0
    counts = {row.figure: [int(value) for value in row.value.split(" / ")] for row in module("results").read(path)}
    true, reverse, *times = counts.values()
    assert sum(true) == 12 and true[0] >= 8 and true[2] == 0 and sum(reverse) == 4 and reverse[0] <= 1
    assert len(times) == 2
    assert "| reverse_crop | " in (printed := capsys.readouterr().out) and " + 0 + " in printed
    assert module("bench_geometry").main(["--benchmark", str(photos), "--results", str(path)]) == 2
    assert "is no benchmark of ascl copy benchmark" in capsys.readouterr().err
    assert len(module("results").read(path)) == 4


def test_hard_negatives_of_every_role_are_counted_by_geometry(module, tmp_path, capsys):
    """The cells of the table, mild + medium + hard, add up to the rows."""
    pytest.importorskip("cv2")
    photos, folder, path = tmp_path / "photos", tmp_path / "bench", tmp_path / "results.csv"
    photos.mkdir()
    for seed in range(14):
        scene(seed, 240, 180).save(photos / f"{seed}.png")
    sizes = {"references": 3, "queries": 6, "distractors": 1, "reverse_crops": 3, "templates": 2, "bursts": 2,
             "background": 0}
    assert program.main(["copy", "benchmark", "--kind", "hard", "--images", str(photos), "--out", str(folder),
                         "--workers", "0", *(word for name, size in sizes.items() for word in (f"--{name}", str(size)))
                         ]) == 0
    assert module("bench_geometry").main(["--benchmark", str(folder), "--results", str(path)]) == 0
    printed = capsys.readouterr().out
    for of, count, begins in (("true pairs", 6, ("in_", "paste", "chain")), ("reverse crops", 3, ("reverse_crop",)),
                              ("templates", 2, ("template",)), ("bursts", 2, ("burst",))):
        (row,) = [row for row in module("results").read(path) if f" {of}, called" in row.figure]
        assert row.figure.startswith("geometry, hard copy benchmark, seed 0, 3 + 3 + 2 + 2 references: of ")
        counts = [int(value) for value in row.value.split(" / ")]
        table = [line.strip("| ").split(" | ") for line in printed.splitlines()
                 if line.startswith(tuple(f"| {begin}" for begin in begins))]
        assert sum(counts) == count
        assert counts == [sum(sum(map(int, line[column].split(" + "))) for line in table) for column in range(1, 5)]


def test_ceilings_of_scenes_are_printed_and_written(module, tmp_path, capsys):
    path = tmp_path / "results.csv"
    captions = write_scenes(tmp_path, train=0, val=0, test=40, seed=0, family=20, images=False)
    arguments = ["--captions", str(captions), "--results", str(path)]
    assert module("scene_ceilings").main(arguments) == 0
    printed = capsys.readouterr().out
    assert "| own scene | bag, bound | 5.0 | 25.0 | 50.0 | 5.0 | 25.0 | 50.0 | 160.0 |" in printed
    assert "| every true pair | binding | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 100.0 | 600.0 |" in printed
    rows = module("results").read(path)
    assert len(rows) == 6 and all(all(vars(row).values()) for row in rows)
    assert rows[0].figure.startswith("scenes of seed 0, test of 40 x 200, family 20, share 1: bag, bound, own scene")
    assert rows[0].value == "5.0 / 25.0 / 50.0 / 5.0 / 25.0 / 50.0 / 160.0"
    assert module("scene_ceilings").main([*arguments, "--split", "val"]) == 2
    assert "no image of split 'val'" in capsys.readouterr().err and len(module("results").read(path)) == 6


def test_growth_is_measured_and_drawn_again_from_its_rows(module, tmp_path, capsys):
    path, figure, again = tmp_path / "results.csv", tmp_path / "docs" / "growth.png", tmp_path / "again.png"
    arguments = ["--growth", "--quick", "--device", "cpu", "--results", str(path)]
    assert module("bench_scoring").main(
        [*arguments, "--sizes", "2,4", "--repeats", "1", "--figure", str(figure)]
    ) == 0
    assert "| 4 | 16 | " in capsys.readouterr().out
    rows = module("results").read(path)
    assert [row.figure for row in rows] == [
        f"ranks of {n} x {n}, D 16, H 2, algebra float32: {what}"
        for n in (2, 4) for what in ("time", "peak memory above the items")
    ]
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert module("bench_scoring").main([*arguments, "--plot-only", "--figure", str(again)]) == 0
    assert again.read_bytes() == figure.read_bytes()
    assert len(module("results").read(path)) == len(rows)


def test_a_plot_shows_one_run(module):
    growth, results = module("growth"), module("results")

    def rows(commit, *sizes):
        return [results.Row(f"ranks of {n:,} x {n:,}, D 256, H 4, algebra float32: {what}", str(n * factor), "", "", "",
                            commit, "", "", "")
                for n in sizes for what, factor in (("time", 2), ("peak memory above the items", 3))]

    other = results.Row("recall", "1", *[""] * 7)
    found = growth.points([*rows("old", 500, 1000), other, *rows("new", 2000, 1000), other])
    assert found == growth.Points([1000, 2000], [2000.0, 4000.0], [3000.0, 6000.0])
    with pytest.raises(ValueError, match="no rows of --growth"):
        growth.points([other])
    with pytest.raises(ValueError, match="two sizes"):
        growth.points(rows("new", 500))


def scan_naive(regions, words, *, over_regions, temperature):
    """Equations 1 to 5 of the paper for one pair, entry by entry; `over_regions`: words attend to regions."""
    queries, context = (words, regions) if over_regions else (regions, words)
    similarity = [[max(float(q @ c), 0.1 * float(q @ c)) for c in context] for q in queries]
    cosines = []
    for i, query in enumerate(queries):
        weights = []
        for j in range(len(context)):
            of_all_queries = sum(similarity[other][j] ** 2 for other in range(len(queries))) ** 0.5
            weights.append(np.exp(temperature * similarity[i][j] / of_all_queries))
        attended = sum(w * c for w, c in zip(weights, context, strict=True)) / sum(weights)
        cosines.append(float(query @ attended) / (np.linalg.norm(query) * np.linalg.norm(attended)))
    return np.mean(cosines)


@pytest.mark.parametrize(("direction", "over_regions", "temperature"), [
    ("text_to_image", True, 9), ("image_to_text", False, 4),
])
def test_scan_is_the_papers(module, direction, over_regions, temperature):
    scan, lengths = module("scan"), [1, 5, 3]
    regions, words = (torch.nn.functional.normalize(torch.randn(*shape, dtype=torch.float64), dim=-1)
                      for shape in ((4, 6, 7), (3, 5, 7)))
    scores = scan.score_all(getattr(scan, direction), regions, words, lengths, torch.device("cpu"))
    expected = [[scan_naive(image.numpy(), text[:length].numpy(), over_regions=over_regions, temperature=temperature)
                 for text, length in zip(words, lengths, strict=True)] for image in regions]
    np.testing.assert_allclose(scores.numpy(), expected, atol=1e-6)                 # kept in float32


IMAGES, TEXTS, REGIONS, WORDS, DIM, HEADS = 3, 6, 4, 5, 16, 2


def counted(module, way):
    """Of texts of one length, which need no padding."""
    job_module = module("scoring_job")
    job = job_module.Job("scores", way, "float32", DIM, HEADS, IMAGES, TEXTS, REGIONS, "cpu", 1.0, None, "test", 8)
    inputs = job_module._Inputs(job, DIM, HEADS, IMAGES, REGIONS, [np.full(TEXTS, WORDS)])
    return job_module.count_flops(job, inputs)


def test_products_of_the_algebra_are_those_of_the_formula_and_sums_over_tokens(module):
    needed = module("scoring_job").needed_flops([WORDS] * TEXTS, REGIONS, DIM, HEADS)
    regions, words = IMAGES * REGIONS, TEXTS * WORDS                    # query tokens
    of_mean = 2 * HEADS * (words * regions * IMAGES + regions * words * TEXTS)
    of_cosine = 2 * (TEXTS * regions * IMAGES + IMAGES * words * TEXTS)
    algebra, fused = counted(module, "algebra"), counted(module, "triton")
    assert algebra.pair == pytest.approx(needed + (of_mean + of_cosine) / (IMAGES * TEXTS))
    # the fused kernel prepares the same items, and its products are not seen by the counter
    assert fused.pair == needed and fused.prepared == algebra.prepared > 0


def test_products_of_the_plain_ways(module):
    projections = 2 * DIM**2 * 4 * (REGIONS + WORDS)
    attention = 2 * 2 * 2 * REGIONS * WORDS * DIM                       # logits and sums of values, two directions
    global_ = 2 * DIM**2 * (1 + 1 + 2 + 1 / TEXTS)                      # X_v, X_w, gate; X_g once for all texts
    reference = counted(module, "reference")
    assert (reference.pair, reference.prepared) == (pytest.approx(projections + attention + global_), 0)
    for way in module("scoring_job").SCAN:
        assert counted(module, way).pair == 2 * 2 * REGIONS * WORDS * DIM


def test_shares_of_a_profile_are_of_the_whole(module):
    job_module = module("scoring_job")
    shares = job_module.profile(
        job_module.Job("scores", "algebra", "float32", DIM, HEADS, IMAGES, TEXTS, REGIONS, "cpu", 1.0, None, "test", 8)
    )
    assert sum(shares.values()) == pytest.approx(1) and shares["matrix products"] > 0
    assert list(shares) == ["matrix products", "softmax", "copies", "other elementwise", "other"]


def test_rows_are_added_below_what_is_there(module, tmp_path):
    results, path = module("results"), tmp_path / "results.csv"
    row = results.Row("recall, of a, \"b\"", "1.0", "percent", "python x", "CPU", "abc", "torch", "2026-01-01", "a\nb")
    results.append(path, [row])
    before = path.read_bytes()
    results.append(path, [row, row])
    assert path.read_bytes().startswith(before)
    assert results.read(path) == [row] * 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("content", "message"), [
    ("time,value\n", "its first row is time,value"), ("{header}\na,b\n", "row 2: 2 cells"),
])
def test_a_file_of_another_kind_is_left_alone(module, tmp_path, content, message):
    results, path = module("results"), tmp_path / "results.csv"
    path.write_text(content.format(header=",".join(results.COLUMNS)))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        results.append(path, [])
    assert path.read_bytes() == before


def test_generated_lengths_are_distributed_as_the_real_ones(module, shared):
    text_lengths = module("scoring_job").text_lengths
    real = text_lengths(str(shared / "data" / "captions" / "coco_testall_caps.txt.gz"), "coco_testall", 4000)
    generated = text_lengths(None, "test", 4000)
    for found, expected in zip(generated[:2], real[:2], strict=True):
        assert found.mean() == pytest.approx(expected.mean(), rel=0.1)
        np.testing.assert_allclose(np.percentile(found, [10, 50, 90]), np.percentile(expected, [10, 50, 90]), atol=2)


@pytest.mark.parametrize(("program", "arguments", "message"), [
    ("bench_training", ["--shape", "10,3"], "H must divide D"), ("bench_scoring", ["--shape", "10"], "expected D,H"),
    ("bench_training", ["--batch", "0"], "at least 1"), ("bench_scoring", ["--texts", "0"], "at least 1"),
    ("bench_training", ["--captions", "nowhere_caps.txt"], "nowhere_caps.txt"),
    ("bench_scoring", ["--captions", "nowhere_caps.txt"], "nowhere_caps.txt"),
    ("bench_scoring", ["--way", "triton"], "open: no GPU"), ("bench_scoring", ["--sizes", "5,a"], "whole numbers"),
    ("bench_scoring", ["--sizes", "500"], "two or more"),
    ("bench_scoring", ["--plot-only"], "belongs to --growth"),
    ("bench_scoring", ["--growth", "--way", "SCAN text-to-image"], "no SCAN"),
])
def test_bad_arguments_are_refused(module, capsys, program, arguments, message):
    assert module(program).main(["--quick", "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_recalls_over_seeds(module, make_run, tmp_path, capsys):
    path = tmp_path / "results.csv"
    runs = [make_run(f"a{seed}", seed, rsum) for seed, rsum in enumerate((250.0, 260.0, 264.0))]
    alone = make_run("b", 7, 200.0, local_weight=1.0)
    assert module("flickr8k").main([f"A, w/o B={','.join(map(str, runs))}", f"C={alone}", "--results", str(path)]) == 0
    printed = capsys.readouterr().out
    # sample standard deviation of 250, 260, 264: squares 64 + 4 + 36 over 2
    assert "| A, w/o B | 3 | 25.8 ± 0.7 |" in printed and "| 258.0 ± 7.2 |" in printed
    assert "| C | 1 | 20.0 | 33.3 | 40.0 |" in printed
    rows = module("results").read(path)
    assert [row.value for row in rows[:3]] == ["25.8 / 43.0 / 51.6", "25.8 / 43.0 / 51.6", "258.0"]
    assert len(rows) == 6
    assert "seeds 0, 1, 2; sample standard deviation 7.2" in rows[2].note and "no spread" in rows[5].note
    assert rows[0].hardware == "CPU, 2 threads" and rows[0].commit == "abc"
    assert rows[0].figure == "tiny test, 1,000 images x 5,000 captions, A, w/o B, I2T R@1 / R@5 / R@10"


def test_a_study_stands_for_its_variants_with_their_probes(module, make_run, tmp_path, capsys):
    shares = [{"I": {"right": 0.5 + seed / 10}, "II": {"right": 0.25}, "III": {"right": 1.0}} for seed in (0, 1)]
    probed = [make_run(f"a{seed}", seed, 200.0, probes={"kinds": {}, "by_asymmetry": shares[seed]}) for seed in (0, 1)]
    half = [make_run("b0", 0, 100.0, probes={"kinds": {}, "by_asymmetry": shares[0]}), make_run("b1", 1, 100.0)]
    recalls = ",".join(RECALLS)
    empty = "," * len(RECALLS)
    lines = [f"study,variant,label,seed,run,{recalls}",
             *(f"s,,A,{seed},{run}{empty}" for seed, run in enumerate(probed)),
             *(f"s,,B,{seed},{run}{empty}" for seed, run in enumerate(half)),
             f"s,,theirs,,{tmp_path / 'outside'}{empty}"]
    study, path = tmp_path / "s.csv", tmp_path / "results.csv"
    study.write_text("\n".join(lines) + "\n")
    assert module("flickr8k").main([str(study), "--results", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "| 200.0 ± 0.0 | 55.0 ± 7.1 | 25.0 ± 0.0 | 100.0 ± 0.0 |" in printed
    assert "| 100.0 ± 0.0 |  |  |  |" in printed and "theirs" not in printed
    rows = module("results").read(path)
    assert [row.value for row in rows if "probes" in row.figure] == ["55.0 / 25.0 / 100.0"] and len(rows) == 7
    study.write_text("label,rsum\nA,3\n")
    assert module("flickr8k").main([str(study), "--results", str(path)]) == 2
    assert "give a table that `ascl ablate` wrote" in capsys.readouterr().err


def test_runs_that_do_not_belong_together_are_refused(module, make_run, tmp_path, capsys):
    first = make_run("first", 0, 250.0)
    wrong = {
        "differ in model.local_weight": make_run("other", 1, 250.0, local_weight=1.0),
        "a different one for each run": make_run("again", 0, 250.0),
        "tested on different sets": make_run("fewer", 1, 250.0, images=500),
        "expected one run": make_run("ensemble", 1, 250.0, runs=["a", "b"]),
        "protocol is 'paired'": make_run("leaking", 1, 250.0, protocol="paired"),
        "no file": tmp_path / "nowhere",
    }
    path = tmp_path / "results.csv"
    for message, folder in wrong.items():
        assert module("flickr8k").main([f"A={first},{folder}", "--results", str(path)]) == 2
        assert message in capsys.readouterr().err
    assert module("flickr8k").main(["A=", "--results", str(path)]) == 2
    assert not path.exists()


@pytest.fixture
def recipes(module, tmp_path, monkeypatch):
    """(*more) -> exit status of bench_recipes in a folder with small programs, whose steps take half a second."""
    monkeypatch.chdir(make_place(tmp_path / "place"))
    common = ["--quick", "--dataset", "tiny", "--method", "AsCL", "--method",
              "mine=samples.negatives=none model.fusion=false", "--set", "optimizer.warmup_steps=3",
              "--results", str(tmp_path / "results.csv")]
    return lambda *more: module("bench_recipes").main([*common, *more])


def test_recipes_train_for_their_budget_and_a_finished_run_is_not_trained_again(recipes, module, tmp_path, capsys):
    budgets = ["--budget", "4", "--budget", "1", "--seed", "0", "--seed", "1"]
    assert recipes(*budgets) == 0
    printed = capsys.readouterr().out
    rows = module("results").read(tmp_path / "results.csv")
    assert [row.figure.partition("captions, after ")[2].partition(":")[0] for row in rows] == [
        f"{budget} s of training on one core" for budget in (1, 4) for _ in range(4)]
    # methods alternate
    assert [row.figure.split(": ")[1] for row in rows[:4]] == [f"{name}, seed {seed}" for seed in (0, 1)
                                                               for name in ("AsCL", "mine")]
    for row, steps in zip(rows, [2] * 4 + [8] * 4, strict=True):
        assert row.note.startswith(f"QUICK: tiny sizes, a test of the program and not a measurement; {steps} steps in "
                                   f"{steps / 2} s (planned with 0.500 s a step)")
        # of 6 steps in the settings of the data set
        assert f"--train.max_steps={steps} --optimizer.schedule=cosine" in row.note
        assert f"--optimizer.warmup_steps={steps // 2} " in row.note
        assert row.commit == "c" and row.hardware == "CPU" and len(row.value.split(" / ")) == 7
    assert all(("samples.negatives=none" in row.note) == ("mine" in row.figure) for row in rows)
    sums = [float(row.value.split(" / ")[0]) for row in rows[1:4:2]]
    assert f"| mine | 1 | 2 | 2 | 1.0 ± 0.0 | {np.mean(sums):.1f} ± {np.std(sums, ddof=1):.1f} |" in printed
    (report, *_) = [path for path in Path("runs").glob("*/runs/*/eval-test.json")]
    assert json.loads(report.read_text())["reports"]["full"]["rsum"] > 0
    # two probes, eight runs; tested were the runs alone
    assert len(started(Path())) == 2 + 8 and len(Path("evaluated.txt").read_text().splitlines()) == 8
    assert all(json.loads(path.read_text())["OMP_NUM_THREADS"] == "1" for path in Path().glob("environment-*.json"))
    assert recipes(*budgets) == 0
    assert len(started(Path())) == 10 and module("results").read(tmp_path / "results.csv") == rows


def test_the_texts_that_a_run_draws_are_encoded_before_it(module, tiny_data, tmp_path, train_arguments, monkeypatch):
    config = load_config(train_arguments(tiny_data, tmp_path / "run", "--text.cache", str(tmp_path / "words")))
    module("bench_recipes").fill_cache(config)
    # what is missing in training would be encoded now
    monkeypatch.setattr(BertWords, "forward", lambda *_: pytest.fail("encodes"))
    captions, store = build_split(config, "train")
    words = build.build_model(config, store.region_dim, store.global_dim).text
    batches = build.build_batches(config, build.build_pairs(config, captions, store), process=0, processes=1)
    drawn = [batch for epoch in (0, 1) for batch in batches(epoch, 0)][:4]
    assert batches.steps_per_epoch == 3 and drawn[0].positives                      # 4 steps are more than an epoch
    for batch in drawn:
        assert len(words(batch.captions)[0]) == len(words(batch.positives)[0]) == 8


def test_a_recipe_that_was_killed_goes_on_with_its_steps(recipes, module, tmp_path):
    assert recipes() == 0
    rows = module("results").read(tmp_path / "results.csv")
    killed = next(path.parent for path in Path("runs").glob("*/runs/*/ablation.json"))
    for name in ("ablation.json", "best.pt", "eval-test.json"):
        (killed / name).unlink()
    shutil.rmtree(Path("runs") / "recipes-tiny" / "probes")                     # the plan is kept beside the runs
    assert recipes() == 0
    assert started(Path())[4:] == [(killed.name, "True")]
    assert module("results").read(tmp_path / "results.csv") == rows


@pytest.mark.parametrize(("more", "message"), [
    (["--method", "AsCL+"], "no such variant"), (["--method", "x=model.kind"], "expected NAME=VALUE"),
    (["--method", "mine=loss.margin=1"], "two methods have one label"), (["--budget", "0"], "must be above 0"),
    (["--set", "train.max_steps=null"], "set train.max_steps"), (["--set", "model.kinds=vse"], "model.kind"),
    (["--set", "loss.kind=triplet"], "ValueError: this one cannot be trained"), (["--probe-steps", "1"], "too few"),
])
def test_bad_recipes_are_refused(recipes, capsys, more, message):
    assert recipes(*more) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(("format_", "what"), [("npy", "SCAN's .npy"), ("tsv", "bottom-up attention's TSV")])
def test_bench_convert_runs_and_writes_its_rows(module, tmp_path, capsys, format_, what):
    path, scratch = tmp_path / "results.csv", tmp_path / "scratch"
    scratch.mkdir()
    arguments = ["--quick", "--format", format_, "--repeats", "1", "--scratch", str(scratch), "--results", str(path)]
    assert module("bench_convert").main(arguments) == 0
    assert "times the copy" in capsys.readouterr().out
    rows = module("results").read(path)
    assert [row.unit for row in rows] == ["images/s", "s", "times the copy", "MiB", "MiB"]
    assert all(row.figure.startswith(what) and float(row.value) > 0 and row.note.startswith("QUICK") for row in rows)
    assert float(rows[4].value) <= float(rows[3].value) < 200          # not what the measuring process has
    assert list(scratch.iterdir()) == []


def test_a_failed_conversion_is_no_figure(module, tmp_path):
    source = tmp_path / "a_ims.npy"
    source.write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"the conversion failed: error: .*a_ims\.npy .*is truncated"):
        module("bench_convert").convert(source, tmp_path / "out.h5", "float32")


@pytest.mark.parametrize(("more", "figures"), [([], 12), (["--case", "globals"], 4), (["--memory"], 3)])
def test_bench_extraction_runs_and_writes_its_rows(module, tmp_path, capsys, more, figures):
    path, photographs = tmp_path / "results.csv", tmp_path / "photographs"
    photographs.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 256, (30, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(photographs / f"{index}.jpg")
    arguments = ["--quick", "--device", "cpu", "--workers", "1", "--images", str(photographs), "--results", str(path)]
    assert module("bench_extraction").main([*arguments, *more]) == 0
    rows = module("results").read(path)
    assert len({row.figure for row in rows}) == len(rows) == figures
    assert all(float(row.value) >= 0 and row.note.startswith("QUICK") for row in rows)
    assert str(tmp_path) not in "".join(row.note + row.figure for row in rows)
    assert module("bench_extraction").main([*arguments, "--case", "nothing"]) == 2
    assert "no case has this in its name" in capsys.readouterr().err


def test_copy_table_judges_a_hash_and_a_network_on_one_benchmark(module, tool, tmp_path, capsys):
    photographs, path = tmp_path / "photographs", tmp_path / "results.csv"
    photographs.mkdir()
    for index in range(30):
        pixels = np.random.default_rng(index).integers(0, 256, (6, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 48), Image.Resampling.NEAREST).save(photographs / f"{index:02d}.png")
    sizes = ["--references", "8", "--queries", "20", "--distractors", "4", "--reverse-crops", "3", "--background", "4"]
    made = ["--images", str(photographs), "--out", str(tmp_path / "bench"), *sizes, "--workers", "0"]
    assert tool("make_copy_benchmark")(made) == 0
    arguments = ["--benchmark", str(tmp_path / "bench"), "--bootstrap", "20", "--results", str(path)]
    network = "--model resnet18 --weights random:0 --input-size 64 --workers 0"
    pytest.importorskip("imagehash", reason="the perceptual hash needs imagehash (extra `copy`)")
    assert module("copy_table").main([*arguments, "hash=phash", f"untrained={network}"]) == 0
    assert "| hash | 64 bits | " in capsys.readouterr().out
    figures = {row.figure: row.value for row in module("results").read(path)}
    head = "copy benchmark of 11 references, 27 queries, "
    assert 0 <= float(figures[f"{head}hash, muAP"]) <= 100
    assert 0 < float(figures[f"{head}untrained, RPR (tolerance 0.01)"]) <= 1
    assert f"{head}untrained, TP / FP / precision at the top |GT| pairs, norm-ratio filter" in figures
    assert module("copy_table").main([*arguments, "nothing=--model resnet99"]) == 2
    assert "resnet99" in capsys.readouterr().err


def test_planted_copies_are_found_and_counted(module, tmp_path, capsys):
    pytest.importorskip("cv2")
    pytest.importorskip("imagehash")
    photos, path = tmp_path / "photos", tmp_path / "results.csv"
    photos.mkdir()
    for seed in range(7):
        scene(seed).save(photos / f"{seed}.png")
    arguments = ["--images", str(photos), "--photos", "6", "--copies", "5", "--model", "phash", "--threads", "1",
                 "--results", str(path)]
    assert module("bench_groups").main(arguments) == 0
    first, by_kind, *_ = module("results").read(path)
    score, precision, recall, _, _ = (float(value) for value in first.value.split(" / "))
    assert min(precision, recall) > 60 and score == pytest.approx(2 / (1 / precision + 1 / recall), abs=0.2)
    assert by_kind.figure.endswith("by kind") and by_kind.value
    assert module("bench_groups").main([*arguments[:2], "--photos", "7", *arguments[4:]]) == 2
    assert "give at least 8" in capsys.readouterr().err
