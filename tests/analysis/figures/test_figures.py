"""What is drawn are the numbers: read back from the artists and from the CSV; and the program from end to end."""

import csv
import json
import math
import shutil
from pathlib import Path

import matplotlib.colors
import matplotlib.image
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ascl import load_model
from ascl.analysis.diagnostics import Distances, Geometry, recall_by_length
from ascl.analysis.figures import style as plot_style
from ascl.analysis.figures.draw import (
    ProtocolRecalls,
    RecallCurve,
    RunCurve,
    TimeCurve,
    Values,
    VariantGeometry,
    draw_against,
    draw_curves,
    draw_geometry,
    draw_leak,
    draw_lengths,
    draw_samples,
    draw_times,
    save,
)
from ascl.retrieval import rank_report, ranks, score_all_pairs

RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10")
HEAD = ("study", "variant", "label", "seed", "run", *RECALLS, "rsum")


def containers(axes):
    """{label: (x, y, half widths or None)} of the error bars in an axes."""
    found = {}
    for container in axes.containers:
        line, _, bars = container.lines
        segments = bars[0].get_segments() if bars else None
        spread = None if segments is None else [
            None if len(segment) == 0 else float(np.abs(np.diff(segment, axis=0)).max() / 2) for segment in segments
        ]
        found.setdefault(container.get_label(), []).append((list(line.get_xdata()), list(line.get_ydata()), spread))
    return found


def texts_of(figure):
    """Every visible word of a figure."""
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_text"))]


def small_texts(figure):
    """Texts below 9 points."""
    return [text.get_text() for text in figure.findobj(lambda artist: hasattr(artist, "get_fontsize"))
            if text.get_text() and text.get_fontsize() < 9]


# Style


def lab(color, matrix=None):
    """CIE Lab of a hex color, seen through a matrix of linear light."""
    rgb = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    if matrix is not None:
        linear = np.clip(np.array(matrix) @ linear, 0, 1)
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear
    f = [c ** (1 / 3) if c > 0.008856 else 7.787 * c + 16 / 116 for c in xyz / [0.9505, 1.0, 1.089]]
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


# Machado, Oliveira and Fernandes (2009), severity 1
SIGHT = {
    "normal": None,
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def nearest(colors, matrix):
    points = [lab(color, matrix) for color in colors]
    return min(np.linalg.norm(a - b) for i, a in enumerate(points) for b in points[:i])


@pytest.mark.parametrize("sight", SIGHT)
def test_colours_differ_for_every_sight(sight):
    assert nearest(plot_style.COLORS, SIGHT[sight]) > 25


def test_colours_differ_in_grey():
    lightness = [lab(color)[0] for color in plot_style.COLORS]
    assert min(np.diff(sorted(lightness))) > 9 and max(lightness) < 82         # white is 100
    assert min(abs(np.diff(lightness))) > 11                                   # neighbors in the list


def test_the_gate_of_colours_fails_on_matplotlibs_own():
    own = [f"C{number}" for number in range(7)]
    assert min(nearest(own, matrix) for matrix in SIGHT.values()) < 25
    assert min(np.diff(sorted(lab(color)[0] for color in own))) < 9


def test_series_differ():
    styles = [tuple(sorted(plot_style.series_style(number).items())) for number in range(28)]
    assert len(set(styles)) == 28


# Drawing


def test_samples_hold_mean_spread_and_seeds():
    none, both = Values("none", (290.0, 296.0, 301.0)), Values("both", (310.5,))
    drawing = draw_samples({"positives": [none, both], "negatives": [both]}, "tiny, test split; seeds 0, 1, 2")
    left, right = drawing.figure.axes
    (x, y, spread), (single, below, no_spread) = [entry for entries in containers(left).values() for entry in entries]
    assert x == [pytest.approx(887 / 3)] and y == [0] and spread == [pytest.approx(5.507570547)]
    assert single == [310.5] and below == [1] and no_spread is None
    ticks = [line for line in left.lines if line.get_label() == "_seeds"]
    assert [list(line.get_xdata()) for line in ticks] == [[290.0, 296.0, 301.0]]
    assert [label.get_text() for label in left.get_yticklabels()] == ["none", "both"]
    assert left.get_xlim() == right.get_xlim() and left.get_ylim()[0] > left.get_ylim()[1]    # the first on top
    assert left.get_xlim()[0] < 290 and left.get_xlim()[1] > 310.5
    assert "295.7 ± 5.5" in texts_of(drawing.figure) and "Rsum" in left.get_xlabel()
    assert any("1 to 3 seeds" in text for text in texts_of(drawing.figure))
    assert drawing.rows[0] == {"panel": "positives", "label": "none", "figure": "rsum", "mean": none.mean,
                               "std": none.std, "seeds": 3, "values": "290 296 301"}
    assert [row["label"] for row in drawing.rows] == ["none", "both", "both"]


def made_geometry(shift, text_text=True):
    return Geometry(
        Distances(0.9 + shift, 0.1, 10), Distances(0.6 + shift, 0.2, 20) if text_text else None,
        Distances(1.39 + shift, 0.03, 45), Distances(1.38 + shift, 0.04, 180),
        0.8 + shift, 0.4 + shift if text_text else None, -3.9 + shift, -3.8 + shift, 4.0, 5.0,
    )


def test_geometry_holds_each_distance_in_its_panel():
    variants = [VariantGeometry("AsCL", ("a", "b"), (made_geometry(0.0), made_geometry(0.02)), True),
                VariantGeometry("two towers", ("c",), (made_geometry(0.1, text_text=False),), False)]
    other_order = draw_geometry(variants[::-1], "tiny")         # the first has no two texts of one image
    assert len(other_order.figure.legends[0].get_texts()) == 4
    drawing = draw_geometry(variants, "tiny")
    expected = [
        {"image and its text": (0.91, 1.0), "texts of one image": (0.61,)},
        {"two images": (1.40, 1.49), "texts of two images": (1.39, 1.48)},
        {"image and its text": (0.81, 0.9), "texts of one image": (0.41,)},
        {"two images": (-3.89, -3.8), "texts of two images": (-3.79, -3.7)},
    ]
    for axes, kinds in zip(drawing.figure.axes, expected, strict=True):
        assert axes.get_xlabel()
        drawn = [(x[0], spread) for entries in containers(axes).values() for x, _, spread in entries]
        means = [value for values in kinds.values() for value in values]
        assert sorted(x for x, _ in drawn) == pytest.approx(sorted(means))
        for x, spread in drawn:
            several = any(x == pytest.approx(values[0]) for values in kinds.values())
            assert spread == ([pytest.approx(0.02 / math.sqrt(2))] if several else None)
    [legend] = drawing.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [kind for kinds in expected[:2] for kind in kinds]
    said = " ".join(texts_of(drawing.figure))
    assert "AsCL *" in said and "* the score" in said and "two towers *" not in said
    assert drawing.rows[0]["positive_image_text_mean"] == 0.9 and drawing.rows[0]["apart_texts_pairs"] == 180
    assert drawing.rows[2]["positive_text_text"] is None and [row["run"] for row in drawing.rows] == ["a", "b", "c"]


def test_lengths_hold_recalls_intervals_and_counts():
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 15, 80)
    variants = {"AsCL": recall_by_length(generator.integers(0, 12, (2, 80)), lengths, (5, 9)),
                "w/o P&N": recall_by_length(generator.integers(0, 12, 80), lengths, (5, 9))}
    drawing = draw_lengths(variants, "tiny")
    for axes, k in zip(drawing.figure.axes, (1, 5, 10), strict=True):
        assert axes.get_ylabel() == f"R@{k} (%)"
        for (label, found), (drawn_label, [(_, y, _)]) in zip(variants.items(), containers(axes).items(), strict=True):
            assert drawn_label.startswith(label)
            assert y == pytest.approx([entry.recall[k] for entry in found])
        for container, found in zip(axes.containers, variants.values(), strict=True):
            ends = [sorted(segment[:, 1]) for segment in container.lines[2][0].get_segments()]
            assert np.allclose(ends, [[entry.low[k], entry.high[k]] for entry in found])
    bottom = drawing.figure.axes[-1]
    assert [label.get_text() for label in bottom.get_xticklabels()] == [
        f"{name}\nn = {entry.queries}" for name, entry in zip(("3–5", "6–9", "10–14"), variants["AsCL"], strict=True)]
    said = " ".join(texts_of(drawing.figure))
    assert "mean of 2 seeds" in said and "1 seed" in said and "Wilson" in said
    assert [row["queries"] for row in drawing.rows[:3]] == [entry.queries for entry in variants["AsCL"]]
    assert drawing.rows[0]["r5_low"] == variants["AsCL"][0].low[5] and drawing.rows[3]["r1_seed_std"] is None


def test_curves_hold_every_run_and_their_mean():
    runs = [RunCurve("AsCL", "a", ((20, 6.0), (40, 4.0), (60, 3.0)), ((40, 100.0),)),
            RunCurve("AsCL", "b", ((20, 5.0), (40, 3.0)), ((40, 120.0),)),
            RunCurve("other", "c", ((20, 1.0),), ())]
    drawing = draw_curves(runs, "tiny", " of 5 folds")
    assert "validation Rsum of 5 folds (at most 600)" in texts_of(drawing.figure)
    loss, rsum = drawing.figure.axes
    lines = [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in loss.lines]
    assert [line[1:] for line in lines[:2]] == [([20, 40, 60], [6, 4, 3]), ([20, 40], [5, 3])]
    assert lines[2] == ("AsCL (mean of 2 seeds)", [20, 40], [5.5, 3.5])
    assert lines[3] == ("other (1 seed)", [20], [1.0])
    assert [list(line.get_ydata()) for line in rsum.lines] == [[100], [120], [110], []]
    assert "loss" in loss.get_ylabel() and "Rsum" in rsum.get_ylabel() and "step" in loss.get_xlabel()
    assert {"figure": "loss", "label": "AsCL", "run": "mean", "step": 40, "value": 3.5} in drawing.rows
    assert sum(row["run"] == "c" for row in drawing.rows) == 1


def test_times_hold_the_best_so_far_of_every_run_and_their_mean():
    runs = [TimeCurve("AsCL", "a", ((10.0, 100.0), (20.0, 90.0), (30.0, 130.0))),
            TimeCurve("AsCL", "b", ((15.0, 110.0), (25.0, 120.0))), TimeCurve("other", "c", ((5.0, 80.0),))]
    drawing = draw_times(runs, "tiny", " of 5 folds")
    (axes,) = drawing.figure.axes
    lines = [(line.get_label(), list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines]
    assert [line[1:] for line in lines[:2]] == [([10, 20, 30], [100, 100, 130]), ([15, 25], [110, 120])]
    # from when both have a value; the run that ended keeps its own
    assert lines[2] == ("AsCL (mean of 2 seeds)", [15, 20, 25, 30], [105, 105, 110, 125])
    assert lines[3] == ("other (1 seed)", [5], [80]) and len(lines) == 4
    assert axes.get_xscale() == "log" and "seconds" in axes.get_xlabel() and "of 5 folds" in axes.get_ylabel()
    assert {"label": "AsCL", "run": "mean", "seconds": 30.0, "best": 125.0} in drawing.rows
    assert sum(row["run"] == "a" for row in drawing.rows) == 3


def test_recall_against_a_number_holds_means_and_spreads():
    def seeds(*values):
        return [{"rsum": value, "i2t_r1": value / 10, "t2i_r1": value / 20} for value in values]

    curve = RecallCurve("AsCL", {0.5: seeds(300, 310), 0.1: seeds(200)}, mark=0.5)
    drawing = draw_against([curve], title="Recall", x_label="u1", mark_label="trained", log=True)
    left, right = drawing.figure.axes
    [(x, y, spread)] = containers(left)["AsCL (1 to 2 seeds)"]
    assert x == [0.1, 0.5] and y == [200, 305] and spread == [None, pytest.approx(50**0.5)]
    assert containers(right)["AsCL: image to text"][0][1] == [20, 30.5]
    assert containers(right)["AsCL: text to image"][0][1] == [10, 15.25]
    rings = [(list(line.get_xdata()), list(line.get_ydata())) for line in left.lines if line.get_label() == "_marked"]
    assert rings == [([0.5], [305])]
    assert left.get_xscale() == "log" and any("ring: trained" in text for text in texts_of(drawing.figure))
    assert drawing.rows[0] == {"at": 0.1, "marked": False, "label": "AsCL", "figure": "rsum", "mean": 200.0,
                               "std": None, "seeds": 1, "values": "200"}


def test_the_leak_is_labelled_and_holds_the_bars():
    def recalls(start):
        return {name: start + 5.0 * place for place, name in enumerate(RECALLS)}

    drawing = draw_leak({"AsCL": [ProtocolRecalls("honest", False, (recalls(10), recalls(14))),
                                  ProtocolRecalls("PAIRED", True, (recalls(60),))]}, "tiny")
    for axes, start in zip(drawing.figure.axes, (0, 15), strict=True):
        honest, paired = [container for container in axes.containers if hasattr(container, "patches")]
        assert [bar.get_height() for bar in honest] == [12 + start, 17 + start, 22 + start]
        assert [bar.get_height() for bar in paired] == [60 + start, 65 + start, 70 + start]
        assert honest[0].get_hatch() is None and paired[0].get_hatch()
        assert axes.get_ylim()[0] == 0
    said = " ".join(texts_of(drawing.figure))
    assert "NOT A RESULT" in said and "12.0" in said and "PAIRED" in said
    assert [row["is_a_result"] for row in drawing.rows] == [True] * 3 + [False] * 3 + [True] * 3 + [False] * 3


def every_drawing():
    runs = [RunCurve("a", "a", ((1, 1.0), (2, 0.5)), ((2, 10.0),))]
    return {
        "samples": draw_samples({"p": [Values("x", (1.0, 2.0))], "n": [Values("y", (3.0,))]}, "about"),
        "geometry": draw_geometry([VariantGeometry("a", ("r",), (made_geometry(0.0),), True)], "about"),
        "lengths": draw_lengths({"a": recall_by_length(np.arange(9), np.arange(9), (3,))}, "about"),
        "curves": draw_curves(runs, "about"),
        "times": draw_times([TimeCurve("a", "r", ((1.0, 3.0), (70.0, 4.0)))], "about"),
        "against": draw_against([RecallCurve("a", {0.1: [{"rsum": 1.0, "i2t_r1": 2.0, "t2i_r1": 3.0}]})], title="t",
                                x_label="x"),
        "leak": draw_leak({"a": [ProtocolRecalls("PAIRED", True, (dict.fromkeys(RECALLS, 1.0),))]}, "about"),
    }


def test_every_figure_is_readable_and_saved_whole(tmp_path):
    for name, drawing in every_drawing().items():
        drawing.figure.draw_without_rendering()
        assert small_texts(drawing.figure) == [], name
        for axes in drawing.figure.axes:
            assert axes.get_xlabel() or axes.get_ylabel(), name
        assert any("1 seed" in text or "1 to 2 seeds" in text for text in texts_of(drawing.figure)), name
        saved = save(drawing, tmp_path / "new", name)
        width, height = drawing.figure.get_size_inches() * 150
        assert matplotlib.image.imread(saved[0]).shape[:2] == pytest.approx((height, width), abs=1)
        rows = list(csv.DictReader(saved[1].open()))
        assert len(rows) == len(drawing.rows)
        assert rows[0] == {key: "" if value is None else str(value) for key, value in drawing.rows[0].items()}
    assert len(list((tmp_path / "new").iterdir())) == 14


def test_the_gate_of_readable_text_fails_on_small_print():
    figure = Figure()
    figure.text(0, 0, "small print", fontsize=7)
    assert small_texts(figure) == ["small print"]


def test_a_failed_picture_leaves_the_old_one(tmp_path, monkeypatch):
    drawing = every_drawing()["samples"]
    before = [path.read_bytes() for path in save(drawing, tmp_path, "figure")]

    def fails(unfinished, **settings):
        Path(unfinished).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(drawing.figure, "savefig", fails)
    with pytest.raises(OSError, match="disk full"):
        save(drawing, tmp_path, "figure")
    assert [(tmp_path / name).read_bytes() for name in ("figure.png", "figure.csv")] == before
    assert len(list(tmp_path.iterdir())) == 2


# The program


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_data, tiny_runs):
    """Two AsCL runs and a two-tower run, evaluated."""
    folder = Path(shutil.copytree(tiny_runs, tmp_path_factory.mktemp("figure_runs"), dirs_exist_ok=True))
    for name in ("a0", "a1", "towers"):
        evaluate(folder / name, tiny_data)
    return folder


def split_of(model, data, split):
    """Encoded items and owners, without the project's readers of features and captions."""
    import h5py

    content = json.loads((data / "captions.json").read_text())["images"]
    rows = [row for row, image in enumerate(content) if image["split"] == split]
    with h5py.File(data / "regions.h5") as file:
        regions, count = torch.from_numpy(file["regions"][rows]), torch.from_numpy(file["region_count"][rows])
    with h5py.File(data / "globals.h5") as file:
        whole = torch.from_numpy(file["globals"][rows])
    captions = [sentence["raw"] for row in rows for sentence in content[row]["sentences"]]
    owner = np.array([place for place, row in enumerate(rows) for _ in content[row]["sentences"]])
    ids = [Path(content[row]["filename"]).stem for row in rows]
    with torch.no_grad():
        images = model.encode_images(regions, whole, torch.arange(regions.shape[1]) < count[:, None])
        return images, model.encode_texts(captions), owner, captions, ids


def evaluate(run, data):
    """The files of an evaluation, as the format says."""
    model = load_model(run)
    images, texts, owner, captions, ids = split_of(model, data, "test")
    scores = score_all_pairs(model, images, texts)
    found, report = ranks(scores, owner), rank_report(scores, owner)
    np.savez(run / "ranks-test.npz", i2t=found.i2t, t2i=found.t2i, image_queries=found.image_queries,
             text_queries=found.text_queries, owner=owner, image_ids=np.array(ids), captions=np.array(captions))
    (run / "eval-test.json").write_text(json.dumps({"reports": {"full": report.to_dict()}}))


def table(path, study, variants, runs=("a0", "a1"), folder=Path(".")):
    """A study's CSV: {label: (settings, [rsum of each seed])}."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([*HEAD, "steps"])
        for label, (settings, values) in variants.items():
            for seed, value in enumerate(values):
                run = folder / runs[seed % len(runs)]
                writer.writerow([study, settings, label, seed, run, *[value / 6] * 6, value, 4])
    return path


def drawn(folder, name):
    """Rows of the CSV beside a picture, after a look at the picture's size."""
    assert matplotlib.image.imread(folder / f"{name}.png").shape[1] in (1500, 1650)
    return list(csv.DictReader((folder / f"{name}.csv").open()))


def test_samples_from_tables(runs, tool, tmp_path, capsys):
    study = tmp_path / "study"
    study.mkdir()
    table(study / "positives.csv", "positives", {"none": ("", [290, 296]), "short": ("", [300, 302])}, folder=runs)
    table(study / "negatives.csv", "negatives", {"none": ("", [291.0]), "mixture": ("", [305.0])}, folder=runs)
    with (study / "negatives.csv").open("a") as file:               # an outside model stands in every table
        file.write("negatives,,somebody's,,,1,2,3,4,5,6,21,\n")
    assert tool("figures")(["samples", str(study), "--out", str(tmp_path / "out")]) == 0
    assert "figure3_samples.png" in capsys.readouterr().out
    rows = drawn(tmp_path / "out", "figure3_samples")
    assert [(row["label"], float(row["mean"]), row["seeds"]) for row in rows] == [
        ("none", 293.0, "2"), ("short", 301.0, "2"), ("none", 291.0, "1"), ("mixture", 305.0, "1")]
    assert float(rows[1]["std"]) == pytest.approx(2**0.5)
    one_by_one = ["samples", str(study / "positives.csv"), str(study / "negatives.csv"), "--out", str(tmp_path / "two")]
    assert tool("figures")(one_by_one) == 0
    assert (tmp_path / "two/figure3_samples.csv").read_bytes() == (tmp_path / "out/figure3_samples.csv").read_bytes()


@pytest.mark.parametrize(("figure", "study", "setting", "name"), [
    ("temperature", "loss", "loss.temperature", "temperature"),
    ("trained-weight", "fusion", "model.local_weight", "trained_weight"),
])
def test_recall_against_what_was_trained(runs, tool, tmp_path, figure, study, setting, name):
    variants = {"AsCL": ("", [400]), "b": (f"{setting}=0.1", [200, 210]),
                "a": (f"loss.kind=contrastive {setting}=0.05", [300])}
    table(tmp_path / f"{study}.csv", study, variants, folder=runs)
    assert tool("figures")([figure, str(tmp_path), "--out", str(tmp_path)]) == 0
    rows = [row for row in drawn(tmp_path, name) if row["figure"] == "rsum"]
    assert [(float(row["at"]), float(row["mean"]), row["values"]) for row in rows] == [
        (0.05, 300.0, "300"), (0.1, 205.0, "200 210")]


def test_alignment(runs, tool, tmp_path, tiny_data):
    sources = [f"AsCL={runs / 'a0'},{runs / 'a1'}", str(runs / "towers")]
    assert tool("figures")(["alignment", *sources, "--out", str(tmp_path)]) == 0
    rows = drawn(tmp_path, "figure4_alignment")
    assert [(row["label"], row["vectors_decide_the_score"]) for row in rows] == [
        ("AsCL", "False"), ("AsCL", "False"), ("towers", "True")]
    model = load_model(runs / "towers")
    images, texts, owner, *_ = split_of(model, tiny_data, "test")
    cosines = model.pair_scores(images, texts).detach()
    distances = [math.sqrt(2 - 2 * float(cosines[owner[t], t])) for t in range(len(owner))]
    assert float(rows[2]["positive_image_text_mean"]) == pytest.approx(sum(distances) / len(distances), abs=1e-5)
    assert int(rows[2]["positive_image_text_pairs"]) == 13 and int(rows[2]["apart_images_pairs"]) == 15


def test_length(runs, tool, tmp_path):
    sources = [f"AsCL={runs / 'a0'},{runs / 'a1'}", str(runs / "towers")]
    assert tool("figures")(["length", *sources, "--bins", "6", "--out", str(tmp_path)]) == 0
    rows = drawn(tmp_path, "figure5_length")
    assert [row["label"] for row in rows] == ["AsCL"] * 2 + ["towers"] * 2
    with np.load(runs / "towers" / "ranks-test.npz") as saved:
        short = [rank for rank, text in zip(saved["t2i"], saved["text_queries"], strict=True)
                 if len(str(saved["captions"][text]).split()) <= 6]
        assert 0 < len(short) < len(saved["t2i"]) == sum(int(row["queries"]) for row in rows[2:])
    assert int(rows[2]["queries"]) == len(short) and rows[2]["longest"] == "6"
    assert float(rows[2]["r5"]) == pytest.approx(100 * sum(rank < 5 for rank in short) / len(short))


def test_length_of_a_sample_of_the_queries(runs, tool, tmp_path, capsys):
    with np.load(runs / "towers" / "ranks-test.npz") as saved:
        ranks = saved["t2i"]
    sizes, intervals = (len(ranks), len(ranks) - 1, 3), {}
    for size in sizes:
        sampled = ["--bins", "99", "--sample", str(size), "--seed", "7", "--out", str(tmp_path)]
        assert tool("figures")(["length", str(runs / "towers"), f"again={runs / 'towers'}", *sampled]) == 0
        row, other = drawn(tmp_path, "figure5_length")
        assert int(row["queries"]) == size and row == other | {"label": "towers"}   # one sample for all
        intervals[size] = float(row["r10_high"]) - float(row["r10_low"])
        if size == len(ranks):
            assert float(row["r10"]) == pytest.approx(100 * np.mean(ranks < 10))    # each query once
        elif size == len(ranks) - 1:                                                # one query is missing
            hits = float(row["r10"]) * size / 100
            assert min(abs(hits - np.sum(ranks < 10) + lost) for lost in (0, 1)) == pytest.approx(0, abs=1e-6)
    assert intervals[3] > intervals[len(ranks)]
    assert tool("figures")(["length", str(runs / "towers"), "--sample", "1000", "--out", str(tmp_path)]) == 1
    assert f"a sample of 1,000 queries, but {runs / 'towers'} ranked only {len(ranks)}" in capsys.readouterr().err
    assert tool("figures")(["length", str(runs / "towers"), "--seed", "7", "--out", str(tmp_path)]) == 2
    assert "--seed is for --sample" in capsys.readouterr().err
    assert tool("figures")(["curves", str(runs / "towers"), "--sample", "3", "--out", str(tmp_path)]) == 2
    assert "--sample is only for length" in capsys.readouterr().err


def test_curves(runs, tool, tmp_path):
    sources = [f"AsCL={runs / 'a0'},{runs / 'a1'}", str(runs / "towers")]
    assert tool("figures")(["curves", *sources, "--out", str(tmp_path)]) == 0
    rows = drawn(tmp_path, "curves")
    log = [json.loads(line) for line in (runs / "a1" / "metrics.jsonl").read_text().splitlines()]
    for kind, name in (("train", "loss"), ("validation", "rsum")):
        assert [(int(row["step"]), float(row["value"])) for row in rows
                if row["figure"] == name and row["run"] == str(runs / "a1")] == [
            (line["step"], pytest.approx(line[name])) for line in log if line["kind"] == kind]


def test_times_of_runs_and_of_a_folder_of_studies(runs, tool, tmp_path, capsys):
    table(tmp_path / "table2.csv", "table2", {"AsCL": ("", [1, 2])}, runs=("a0", "a1"), folder=runs)
    table(tmp_path / "baselines.csv", "baselines", {"two towers": ("", [3])}, runs=("towers",), folder=runs)
    assert tool("figures")(["time", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    rows = drawn(tmp_path / "out", "time")
    assert list(dict.fromkeys((row["label"], row["run"]) for row in rows)) == [
        ("AsCL", str(runs / "a0")), ("AsCL", str(runs / "a1")), ("AsCL", "mean"), ("two towers", str(runs / "towers"))]
    log = [json.loads(line) for line in (runs / "a1" / "metrics.jsonl").read_text().splitlines()]
    validations = [line for line in log if line["kind"] == "validation"]
    best = np.maximum.accumulate([line["rsum"] for line in validations])
    assert [(float(row["seconds"]), float(row["best"])) for row in rows if row["run"] == str(runs / "a1")] == [
        (pytest.approx(line["seconds"]), pytest.approx(value))
        for line, value in zip(validations, best, strict=True)]
    old = Path(shutil.copytree(runs / "a0", tmp_path / "old"))
    lines = [{key: value for key, value in json.loads(line).items() if key != "seconds"}
             for line in (old / "metrics.jsonl").read_text().splitlines()]
    (old / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    refused(tool, capsys, ["time", str(old), "--out", str(tmp_path)], "does not say how many seconds")
    (old / "metrics.jsonl").write_text("")
    refused(tool, capsys, ["time", str(old), "--out", str(tmp_path)], "has no validation yet")


def test_validations_of_different_parts_are_not_drawn_together(runs, tool, tmp_path, capsys):
    shutil.copytree(runs / "a0", tmp_path / "folds")
    log = tmp_path / "folds" / "metrics.jsonl"
    log.write_text(log.read_text().replace('"rsum"', '"rsum_of_5_folds"'))
    curves = ["curves", str(tmp_path / "folds"), "--out", str(tmp_path)]
    assert tool("figures")(curves) == 0
    assert [row for row in drawn(tmp_path, "curves") if row["figure"] == "rsum"]
    refused(tool, capsys, ["curves", str(runs / "a1"), *curves[1:]],
            "has the validation Rsum of 5 folds, earlier runs have that of the whole split")


def test_local_weight(runs, tool, tmp_path, tiny_data):
    assert tool("figures")(["local-weight", str(runs / "a0"), "--split", "test", "--out", str(tmp_path)]) == 0
    rows = drawn(tmp_path, "local_weight")
    assert [float(row["at"]) for row in rows if row["figure"] == "rsum"] == [tenth / 10 for tenth in range(11)]
    assert {row["at"] for row in rows if row["marked"] == "True"} == {"0.8"}
    evaluated = json.loads((runs / "a0" / "eval-test.json").read_text())["reports"]["full"]
    at_trained = {row["figure"]: float(row["mean"]) for row in rows if row["at"] == "0.8"}
    assert at_trained["rsum"] == pytest.approx(evaluated["rsum"])
    assert at_trained["t2i_r1"] == pytest.approx(evaluated["t2i"]["r1"])
    model = load_model(runs / "a0")
    model.local_weight = 0.3
    images, texts, owner, *_ = split_of(model, tiny_data, "test")
    with torch.no_grad():
        expected = rank_report(model.pair_scores(images, texts), owner).rsum
    assert next(float(row["mean"]) for row in rows if row["at"] == "0.3") == pytest.approx(expected)
    # without --split it is the images that training validated on
    assert tool("figures")(["local-weight", str(runs / "a0"), "--out", str(tmp_path)]) == 0
    last = [json.loads(line) for line in (runs / "a0" / "metrics.jsonl").read_text().splitlines()]
    validated = {line["rsum"] for line in last if line["kind"] == "validation"}
    row = next(row for row in drawn(tmp_path, "local_weight") if row["at"] == "0.8" and row["figure"] == "rsum")
    assert any(float(row["mean"]) == pytest.approx(value) for value in validated)


def test_leak(runs, tool, tmp_path, capsys):
    assert tool("figures")(["leak", str(runs / "a0"), "--out", str(tmp_path)]) == 0
    assert "NOT A RESULT" in capsys.readouterr().out
    rows = drawn(tmp_path, "leak")
    evaluated = json.loads((runs / "a0" / "eval-test.json").read_text())["reports"]["full"]
    honest = {row["figure"]: float(row["mean"]) for row in rows if row["protocol"] == "all pairs (honest)"}
    assert honest == {name: pytest.approx(evaluated[name[:3]][name[4:]]) for name in RECALLS}
    assert {row["is_a_result"] for row in rows if "PAIRED" in row["protocol"]} == {"False"}


def test_a_study_names_its_runs(runs, tool, tmp_path):
    path = table(tmp_path / "table2.csv", "table2", {"AsCL": ("", [300, 310]), "none": ("x=y", [200])}, folder=runs)
    assert tool("figures")(["length", str(path), "--only", "AsCL", "--out", str(tmp_path)]) == 0
    rows = drawn(tmp_path, "figure5_length")
    assert {(row["label"], row["seeds"]) for row in rows} == {("AsCL", "2")}


def test_a_run_that_two_tables_name_is_drawn_once(runs, tool, tmp_path, capsys):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        table(tmp_path / name / "positives.csv", "positives", {"none": ("", [290, 296])}, folder=runs)
        table(tmp_path / name / "negatives.csv", "negatives", {"none": ("", [291.0])}, folder=runs)
    both = [str(tmp_path / name) for name in ("one", "two")]
    assert tool("figures")(["samples", *both, "--out", str(tmp_path)]) == 0
    assert {row["seeds"] for row in drawn(tmp_path, "figure3_samples") if row["panel"].startswith("(a)")} == {"2"}
    table(tmp_path / "two" / "positives.csv", "positives", {"none": ("", [390, 396])}, folder=runs, runs=("a1", "a0"))
    assert tool("figures")(["samples", *both, "--out", str(tmp_path)]) == 1
    assert "plot tables of different ablations separately" in capsys.readouterr().err
    first = table(tmp_path / "table2.csv", "table2", {"AsCL": ("", [300, 310])}, folder=runs)
    second = table(tmp_path / "baselines.csv", "baselines", {"AsCL": ("", [300, 310])}, folder=runs)
    assert tool("figures")(["curves", str(first), str(second), "--out", str(tmp_path)]) == 0


# What users get wrong


def refused(tool, capsys, arguments, *words):
    capsys.readouterr()
    assert tool("figures")(arguments) == 1
    message = capsys.readouterr().err
    assert "error: " in message and "Traceback" not in message
    for word in words:
        assert word in message, message


def test_runs_that_are_not_there(runs, tool, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    for figure in ("curves", "length", "alignment", "local-weight", "leak"):
        refused(tool, capsys, [figure, str(tmp_path / "nowhere"), *out], "nowhere is not a run", "ascl train")
    refused(tool, capsys, ["curves", "AsCL=", *out], "'AsCL' names no run")
    twice = ["curves", str(runs / "a0"), f"a0={runs / 'a1'}", *out]
    refused(tool, capsys, twice, "two sources are called 'a0'")
    refused(tool, capsys, ["curves", str(runs / "a0"), "--only", "b", *out], "'b': no such label", "'a0'")
    again = Path(shutil.copytree(runs / "a0", tmp_path / "again"))
    refused(tool, capsys, ["curves", f"AsCL={runs / 'a0'},{again}", *out], "'AsCL', have the seed 0")
    missing = ["curves", str(tmp_path / "table2.csv"), *out]
    refused(tool, capsys, missing, "table2.csv does not exist", "ascl ablate", "--study table2")
    assert not (tmp_path / "out").exists()


def test_ranks_that_are_not_there(runs, tool, tmp_path, capsys):
    run = Path(shutil.copytree(runs / "a0", tmp_path / "run"))
    (run / "ranks-test.npz").unlink()
    command = f"ascl eval --checkpoint {run} --split test"
    refused(tool, capsys, ["length", str(run), "--out", str(tmp_path)], "ranks-test.npz does not exist", command)
    with np.load(runs / "a0" / "ranks-test.npz") as saved:
        arrays = dict(saved)
    np.savez(run / "ranks-test.npz", **{name: array for name, array in arrays.items() if name != "captions"})
    refused(tool, capsys, ["length", str(run), "--out", str(tmp_path)], "holds no captions", command)
    other = arrays | {"captions": np.array([f"{caption} again" for caption in arrays["captions"]])}
    np.savez(run / "ranks-test.npz", **other)
    refused(tool, capsys, ["length", str(runs / "a0"), str(run), "--out", str(tmp_path)], "other queries")
    (run / "ranks-test.npz").write_bytes(b"PK\x03\x04")
    refused(tool, capsys, ["length", str(run), "--out", str(tmp_path)], "ranks-test.npz", "ascl eval")
    refused(tool, capsys, ["length", str(runs / "a0"), "--bins", "5", "4", "--out", str(tmp_path)], "must increase")


def test_tables_that_are_not_there(tool, tmp_path, capsys):
    out = ["--out", str(tmp_path / "out")]
    refused(tool, capsys, ["samples", str(tmp_path), *out], "no run of the study positives", "ascl ablate",
            "--study positives")
    table(tmp_path / "positives.csv", "positives", {"none": ("", [290])})
    refused(tool, capsys, ["samples", str(tmp_path), *out], "no run of the study negatives")
    refused(tool, capsys, ["samples", str(tmp_path / "gone.csv"), *out], "gone.csv does not exist")
    table(tmp_path / "loss.csv", "loss", {"a": ("loss.temperature=0.1", [290]), "b": ("loss.kind=triplet", [2])})
    refused(tool, capsys, ["temperature", str(tmp_path), *out], "1 finished values of loss.temperature")
    table(tmp_path / "loss.csv", "loss", {"a": ("loss.temperature=warm", [290])})
    refused(tool, capsys, ["temperature", str(tmp_path), *out], "loss.temperature=warm", "not a number")
    (tmp_path / "loss.csv").write_text("study,label\n")
    refused(tool, capsys, ["temperature", str(tmp_path), *out], "loss.csv has no column 'variant'")
    (tmp_path / "loss.csv").write_text(",".join(HEAD) + "\nloss,loss.temperature=1,a,0\n")
    refused(tool, capsys, ["temperature", str(tmp_path), *out], "loss.csv, line 2 has too few columns")
    (tmp_path / "loss.csv").write_text(",".join(HEAD) + "\nloss,loss.temperature=1,a,0,r,1,2,3,4,x,6,7\n")
    refused(tool, capsys, ["temperature", str(tmp_path), *out], "t2i_r5 is 'x'")
    run = tmp_path / "run"
    run.mkdir()
    (run / "settings.yaml").write_text("{dataset: tiny, data: {test: test}}")
    (run / "eval-test.json").write_text("{}")
    two = {"a": ("loss.temperature=0.1", [290]), "b": ("loss.temperature=0.2", [290])}
    table(tmp_path / "loss.csv", "loss", two, runs=("run",), folder=tmp_path)
    refused(tool, capsys, ["temperature", str(tmp_path), *out], "eval-test.json is not an evaluation", "evaluate again")
    assert not (tmp_path / "out").exists()


def test_models_that_cannot(runs, tool, tmp_path, capsys):
    out = ["--out", str(tmp_path)]
    refused(tool, capsys, ["local-weight", str(runs / "towers"), *out], "two_tower", "no local weight")
    refused(tool, capsys, ["leak", str(runs / "towers"), *out], "does not apply")
    empty = Path(shutil.copytree(runs / "a0", tmp_path / "empty"))
    (empty / "metrics.jsonl").write_text("")
    refused(tool, capsys, ["curves", str(empty), *out], "no training records")
    settings = (empty / "settings.yaml").read_text().replace("dataset: ''", "dataset: other")
    (empty / "settings.yaml").write_text(settings)
    (empty / "best.pt").unlink()
    (empty / "last.pt").unlink()
    refused(tool, capsys, ["alignment", str(empty), *out], "no checkpoint")
    assert list(tmp_path.iterdir()) == [empty]


def test_the_names_that_others_use():
    assert plot_style.use_style() is None and all(isinstance(color, str) for color in plot_style.COLORS)
