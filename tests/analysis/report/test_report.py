"""The page of a run: whole, self-contained, escaped, its numbers those of the files, plain about what it lacks."""

import base64
import io
import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ascl import load_model
from ascl.analysis.query_ranks import QueryRanks, read_ranks
from ascl.analysis.report.charts import MOST_POINTS, Series, inline_svg, line_chart, thinned
from ascl.analysis.report.page import RunRecord, duration, render
from ascl.analysis.report.retrieved import best_and_worst, first_is_right, hubs, top_of_matrix
from ascl.core.errors import DataError
from ascl.data.split import build_split
from ascl.retrieval import rank_report, ranks

from .chromium import Browser, installed

NASTY = """<script>alert("1")</script> & 'two' "three" </title>"""
WITHOUT_END = {"meta", "img"}


class Page(HTMLParser):
    """A document, checked while it is read: every tag closed in order, ids unique, nothing fetched from anywhere."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.text, self.ids, self.links, self.sources = [], Counter(), [], [], [], []
        self.rows, self.metas, self.labels = [], {}, []
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"
        assert len(set(self.ids)) == len(self.ids)
        assert all(link.startswith("#") and link[1:] in self.ids for link in self.links)
        assert all(source.startswith("data:image/jpeg;base64,") for source in self.sources)
        assert not self.tags.keys() & {"script", "link", "iframe", "object", "embed", "base", "form"}

    def handle_starttag(self, name, attributes):
        values = dict(attributes)
        self.tags[name] += 1
        self.ids += [values["id"]] if "id" in values else []
        self.labels += [values["aria-label"]] if "aria-label" in values else []
        self.links += [values[key] for key in ("href", "xlink:href") if key in values]
        self.sources += [values[key] for key in ("src", "srcset", "poster", "data") if key in values]
        assert not any(key.startswith("on") for key in values)
        assert "url(" not in values.get("style", "")
        if name == "meta":
            self.metas[values.get("name") or values.get("http-equiv")] = values.get("content")
        if name == "tr":
            self.rows.append([])
        elif name in ("td", "th"):
            self.rows[-1].append("")
        if name not in WITHOUT_END:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        if name not in WITHOUT_END:
            self.open.pop()

    def handle_endtag(self, name):
        assert self.open and self.open[-1] == name, f"</{name}> inside {self.open}"
        self.open.pop()

    def handle_data(self, data):
        if "style" in self.open:
            assert "url(" not in data and "@import" not in data
            return
        self.text.append(data)
        if self.open and ("td" in self.open or "th" in self.open):
            self.rows[-1][-1] += data

    @property
    def said(self):
        return re.sub(r"\s+", " ", "".join(self.text))


def small_jpeg(color):
    stream = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(stream, format="jpeg")
    return stream.getvalue()


def scored(images=7, texts=15, seed=0):
    """Scores, owners that are not five in a row, and what an evaluation saves of them."""
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.arange(texts) % (images - 1))                # the last image has no caption
    scores = rng.normal(size=(images, texts)).astype(np.float32)
    scores[owner, np.arange(texts)] += 1
    counted = ranks(scores, owner)
    saved = QueryRanks(counted.i2t, counted.t2i, counted.image_queries, counted.text_queries, owner,
                       [f"image<{i}>" for i in range(images)], [f"caption {j} {NASTY}" for j in range(texts)])
    return scores, owner, saved


def record(**changes):
    scores, owner, saved = scored()
    report = {"full": rank_report(scores, owner).to_dict()}
    probes = {
        "kinds": {"noun swapped": {"asymmetry": "I", "pairs": 1234, "right": 0.7346, "ties": 0.011, "low": 0.7,
                                   "high": 0.765},
                  NASTY: {"asymmetry": "II", "pairs": 10, "right": 1.0, "ties": 0.0, "low": 0.72, "high": 1.0,
                          "higher": 0.6, "above_false": 0.55, "first_original": 0.8, "first_variant": 0.7}},
        "by_asymmetry": {"I": {"pairs": 1234, "right": 0.7346, "ties": 0.011, "low": 0.7, "high": 0.765}},
        "how": f"the share in which the score orders a pair as it should {NASTY}",
    }
    metrics = [{"kind": "train", "step": step, "loss": 5 / step, "score_true": 0.1 * step, "score_other": 0.0,
                "learning_rate": 1e-3, "steps_per_second": 2.0, "time": 1e9 + step} for step in range(10, 60, 10)]
    metrics.append({"kind": "validation", "step": 50, "rsum": 311.5, "i2t_r1": 30.0, "t2i_r1": 25.0, "time": 1e9 + 70})
    base = RunRecord(
        name=f"run {NASTY}", dataset=NASTY, model="ascl", changed=[("loss.margin", NASTY, "0.2")],
        settings=[("loss.margin", NASTY), ("out", "runs/a")], metrics=metrics, environment={"commit": NASTY},
        evaluations={"test": {"protocol": "all pairs", "split": "test", "scoring": {"block": "None"}, "commit": "abc",
                              "reports": report, "probes": probes,
                              "multi_positive": {"i2t": {"map_at_r": 12.3456}, "t2i": {"map_at_r": 9.0}},
                              "another": {"inner": {"figure": 0.123456789}, "note": NASTY}, "notes": [f"n {NASTY}"]}},
        split="test", evaluate=f"ascl eval --checkpoint 'runs/a' {NASTY}", ranks=saved,
        top=top_of_matrix(scores, 5), seconds=2.5, photos=lambda image_id: small_jpeg("red"), batch_size=64,
        validated_on="split val",
    )
    return replace(base, **changes)


# Markup


@given(st.text())
@settings(max_examples=40, deadline=None)
def test_any_text_comes_out_of_a_page_as_it_went_in(text):
    """As text, as an attribute, in a table, and where a narrow column may break it."""
    def normal(given):
        return re.sub("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", given)

    saved = record().ranks
    made = record(name=text, metrics=[], settings=[("x", text)], top=None, missing={"top": text},
                  ranks=replace(saved, captions=[text] * 15, image_ids=[text] * 7), photos=lambda image_id: None)
    read = Page(render(made))
    assert ["x", normal(text)] in read.rows and f"Run {normal(text)}" in read.text
    assert "".join(read.text).count(normal(text)) >= 20 and set(read.labels) == {"sections"}
    assert read.tags["table"] == 8 and read.tags["article"] == 16


def test_the_name_of_a_photograph_is_escaped_in_its_tag():
    saved = record().ranks
    text = render(record(ranks=replace(saved, image_ids=['"><script>'] * 7)))
    assert 'alt="&#34;&gt;&lt;script&gt;"/>' in text and "<script" not in text


def test_the_check_of_a_page_fails_on_planted_faults():
    for fault in ("<p>open", "</p>", '<img src="https://example.org/x.png"/>', "<script></script>",
                  '<a href="/x">x</a>', '<p id="a"></p><p id="a"></p>', '<p onclick="x"></p>'):
        with pytest.raises(AssertionError):
            Page(render(record(metrics=[])).replace("<h1>", f"{fault}<h1>"))


# Charts


def test_a_chart_draws_each_value_in_its_place_and_leaves_gaps():
    values = [4.0, 3.0, None, 2.0, float("nan"), 1.0]
    figure = line_chart("step", [Series("loss", [0, 10, 20, 30, 40, 50], values)])
    (line,) = figure.axes[0].lines
    np.testing.assert_array_equal(line.get_xdata(), [0, 10, 20, 30, 40, 50])
    np.testing.assert_array_equal(line.get_ydata(), [4, 3, np.nan, 2, np.nan, 1])
    assert line.get_markevery() == [3, 5]                                   # points without neighbors
    assert line_chart("step", [Series("x", [0, 1, 2], [1.0, 2, 3], dots=True)]).axes[0].lines[0].get_markevery() == [
        0, 1, 2]


@pytest.mark.parametrize("values", [[], [None], [float("inf"), None]])
def test_nothing_to_draw_is_no_chart(values):
    assert line_chart("step", [Series("loss", list(range(len(values))), values)]) is None


@given(st.lists(st.floats(-1e6, 1e6) | st.none(), min_size=1, max_size=30), st.floats(1, 1e6))
@settings(max_examples=10, deadline=None)
def test_every_point_of_a_chart_lies_within_it(values, stride):
    steps = [number * stride for number in range(len(values))]
    figure = line_chart("step", [Series("a", steps, values, dots=True)])
    if any(value is not None for value in values):
        figure.draw_without_rendering()
        axes = figure.axes[0]
        points = axes.transData.transform([pair for pair in zip(steps, values, strict=True) if pair[1] is not None])
        assert all(figure.bbox.contains(*point) and axes.bbox.padded(1).contains(*point) for point in points)


def test_charts_of_one_page_share_no_ids_and_ask_for_nothing():
    figure = line_chart("step", [Series("a", [0, 1, 2], [1.0, 2, 3]), Series("b", [0, 1], [2.0, 1], dots=True)])
    one, two = (inline_svg(figure, name, "A < B") for name in ("one", "two"))
    ids = [set(re.findall(r' id="([^"]*)"', svg)) for svg in (one, two)]
    used = [set(re.findall(r'(?:href="|url\()#([^")]*)', svg)) for svg in (one, two)]
    assert ids[0] and used[0] and not ids[0] & ids[1] and used[0] <= ids[0] and used[1] <= ids[1]
    assert "://" not in one and 'aria-label="A &lt; B"' in one


def test_a_long_series_is_thinned_to_means():
    values = np.arange(10 * MOST_POINTS, dtype=float)
    short = thinned(Series("a", values.tolist(), values.tolist()))
    assert len(short.values) == MOST_POINTS and short.values[0] == short.steps[0] == np.arange(10).mean()
    assert np.mean(short.values) == values.mean()


# What is retrieved


@pytest.mark.parametrize("seed", range(6))
def test_best_worst_and_hubs_match_loops(seed):
    scores, owner, saved = scored(seed=seed)
    k = 4
    top = top_of_matrix(scores, k)
    for direction, matrix in (("i2t", scores), ("t2i", scores.T)):
        own = [{j for j in range(matrix.shape[1]) if (owner[j] == q if direction == "i2t" else owner[q] == j)}
               for q in range(len(matrix))]
        queries = [q for q in range(len(matrix)) if own[q]]
        order = {q: sorted(range(matrix.shape[1]), key=lambda c, q=q: -matrix[q][c]) for q in queries}
        rank = {q: min(order[q].index(c) for c in own[q]) for q in queries}
        image = {q: q if direction == "i2t" else int(owner[q]) for q in queries}

        def one_an_image(found, image=image):
            return [q for place, q in enumerate(found) if image[q] not in [image[other] for other in found[:place]]]

        best, worst = best_and_worst(saved, top, direction, 3)
        # as ranked by `ranks`: wrong candidates above the best right one, and no right ones
        assert [query.number for query in worst] == one_an_image(
            sorted((q for q in queries if rank[q]), key=lambda q: (-rank[q], q)))[:3]
        assert [query.rank for query in worst] == [rank[query.number] for query in worst]

        def margin(q, order=order, own=own, matrix=matrix):
            wrong = [c for c in order[q][:k] if c not in own[q]]
            return matrix[q][order[q][0]] - matrix[q][wrong[0]] if wrong else -np.inf

        first = [q for q in queries if not rank[q]]
        assert [query.number for query in best] == one_an_image(sorted(first, key=lambda q: -margin(q)))[:3]
        for query in [*best, *worst]:
            assert [one.candidate for one in query.found] == order[query.number][:k]
            assert [one.right for one in query.found] == [c in own[query.number] for c in order[query.number][:k]]
            assert set(query.right) == own[query.number]
        found = hubs(saved, top, direction, 3)
        wrong_first = Counter(order[q][0] for q in queries if rank[q])
        assert sorted(times for _, times in found.first) == sorted(times for _, times in wrong_first.most_common(3))
        assert all(wrong_first[candidate] == times for candidate, times in found.first)
        assert (found.wrong, found.queries) == (sum(wrong_first.values()), len(queries))
        seen = Counter(c for q in queries for c in order[q][:k])
        assert found.never == sum(seen[c] == 0 for c in range(matrix.shape[1]))
        counts = [seen[c] for c in range(matrix.shape[1])]
        mean = sum(counts) / len(counts)
        third, second = (sum((c - mean) ** power for c in counts) / len(counts) for power in (3, 2))
        assert found.skewness == pytest.approx(third / second**1.5)
        assert first_is_right(saved, top, direction) == pytest.approx(sum(not rank[q] for q in queries) / len(queries))


def test_a_given_matrix_is_sorted_block_by_block():
    scores, _, _ = scored()
    top = top_of_matrix(scores, 3, block=2)
    np.testing.assert_array_equal(top.texts_of_image, np.argsort(-scores, axis=1)[:, :3])
    np.testing.assert_array_equal(top.images_of_text, np.argsort(-scores.T, axis=1)[:, :3])
    scores[1, 1] = np.nan
    with pytest.raises(DataError, match="not finite"):
        top_of_matrix(scores, 3, block=2)


def save_ranks(path, saved, **changes):
    arrays = {name: getattr(saved, name) for name in ("i2t", "t2i", "image_queries", "text_queries", "owner")}
    arrays |= {"image_ids": np.array(saved.image_ids), "captions": np.array(saved.captions)} | changes
    np.savez(path, **{name: values for name, values in arrays.items() if values is not None})


def test_ranks_are_read_back_and_damaged_ones_refused(tmp_path):
    _, _, saved = scored()
    path = tmp_path / "ranks-test.npz"
    save_ranks(path, saved)
    read = read_ranks(path)
    assert read.captions == saved.captions and read.image_ids == saved.image_ids
    assert all((getattr(read, name) == getattr(saved, name)).all() for name in ("i2t", "t2i", "owner", "text_queries"))
    save_ranks(path, saved, image_ids=None, captions=None)
    nameless = read_ranks(path)
    assert nameless.captions is nameless.image_ids is None and nameless.images == 6 and nameless.same_queries(saved)
    assert (nameless.image_id(4), nameless.caption(14), saved.caption(14)) == ("4", "14", saved.captions[14])
    for changes, word in [({"i2t": None}, "no array `i2t`"), ({"owner": saved.owner + 0.5}, "not a vector of integers"),
                          ({"owner": saved.owner + 9}, "do not fit"), ({"t2i": saved.t2i[1:]}, "do not fit")]:
        save_ranks(path, saved, **changes)
        with pytest.raises(DataError, match=word):
            read_ranks(path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match="damaged or not an archive of arrays"):
        read_ranks(path)


# The page


def test_a_full_page_is_whole_self_contained_and_escaped():
    text = render(record())
    read = Page(text)
    assert "<script" not in text and "http://" not in text and "https://" not in text
    assert NASTY.split("&")[0].strip() in read.said                         # it is there, as text
    assert read.tags["img"] == len(read.sources) > 20 and read.tags["svg"] == 5
    assert read.metas["viewport"] == "width=device-width, initial-scale=1"
    assert read.metas["Content-Security-Policy"].startswith("default-src 'none';")
    assert read.tags["table"] == text.count('class="scroll"')               # each table in its box


def test_numbers_on_the_page_are_those_of_the_files():
    made = record()
    read = Page(render(made))
    report = made.evaluations["test"]["reports"]["full"]
    for direction, label in (("i2t", "image to text"), ("t2i", "text to image")):
        row = next(row for row in read.rows if row[:2] == ["full", label])
        expected = [f"{report[direction][key]:.1f}" for key in ("r1", "r5", "r10", "median_rank", "mean_rank")]
        assert row[2:7] == expected and row[7] == str(report[direction]["queries"])
    assert f"{report['rsum']:.1f}" in next(row for row in read.rows if row[:2] == ["full", "image to text"])
    assert ["noun swapped", "I", "73.5 %", "70.0 to 76.5", "1.1 %", "1,234", "", "", ""] in read.rows
    assert [NASTY, "II", "100.0 %", "72.0 to 100.0", "0.0 %", "10", "60.0 %", "55.0 %",
            "80.0 % \u2192 70.0 %"] in read.rows
    assert ["image to text", "12.3"] in read.rows and ["text to image", "9.0"] in read.rows
    assert ["inner.figure", "0.123457"] in read.rows and ["note", NASTY] in read.rows
    assert ["loss.margin", NASTY, "0.2"] in read.rows
    assert "Best validation Rsum 311.5 at step 50" in read.said
    assert ["time in training steps, from their logged speed", "25.0 s"] in read.rows
    assert ["from the first log record to the last, stops and validations included", "1 min 00 s"] in read.rows
    assert ["encoding and scoring all pairs for this page", "2.5 s, 42 pairs/s"] in read.rows


def test_the_queries_on_the_page_are_the_best_and_the_worst():
    made = record()
    read = Page(render(made))
    for direction, candidates in (("i2t", 15), ("t2i", 7)):
        best, worst = best_and_worst(made.ranks, made.top, direction, 6)
        for query in [*best, *worst]:
            assert f"rank {query.rank + 1} of {candidates}" in read.said
        for query in worst:
            assert all(f"{one.score:.3f}" in read.said for one in query.found)
    assert "Framed in green" in read.said and "all pairs" in read.said and "ties count as lost" in read.said


def test_pages_without_photographs_show_names():
    read = Page(render(record(photos=lambda image_id: None, missing={"photos": "No photographs: gone."})))
    assert read.tags["img"] == 0 and "No photographs: gone." in read.said and "image<0>" in read.said


def test_pages_say_what_they_lack():
    nothing = record(evaluations={}, ranks=None, top=None, seconds=None, metrics=[], changed=[], environment={},
                     missing={"ranks": "no ranks: ascl eval", "metrics": "no log"})
    said = Page(render(nothing)).said
    assert said.count("ascl eval --checkpoint") >= 3 and "no log" in said and "no ranks" in said
    assert "Every setting is at its default." in said and "Nothing was logged." in said
    ranks_only = record(top=None, seconds=None, missing={"top": "Not shown: no features"})
    said = Page(render(ranks_only)).said
    assert "Not shown: no features" in said and "rank 1 of 15" in said and "Retrieved:" not in said


def test_lists_of_other_scores_than_the_ranks_are_noted():
    made = record()
    assert "other scores" not in Page(render(made)).said
    worse = replace(made.ranks, t2i=np.full_like(made.ranks.t2i, 3))
    assert "saved ranks come from other scores" in Page(render(replace(made, ranks=worse))).said


def test_a_perfect_and_a_hopeless_model_have_pages():
    scores, owner, _ = scored()
    right = (owner == np.arange(7)[:, None]).astype(np.float32)
    for matrix in (right + 0.001 * scores, -right + 0.001 * scores):
        counted = ranks(matrix, owner)
        saved = replace(record().ranks, i2t=counted.i2t, t2i=counted.t2i)
        said = Page(render(record(ranks=saved, top=top_of_matrix(matrix, 5)))).said
        assert "every query finds its own first" in said or "no query finds its own first" in said


@pytest.mark.parametrize(
    ("seconds", "said"), [(4.06, "4.1 s"), (200, "3 min 20 s"), (7500, "2 h 05 min"), (3599.7, "1 h 00 min")]
)
def test_durations(seconds, said):
    assert duration(seconds) == said


# The program


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_data, tool, train_arguments):
    """A run that was trained and evaluated, on data with captions that a page must escape; and its photographs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        folder = tmp_path_factory.mktemp("reported")
        data = Path(shutil.copytree(tiny_data, folder / "data"))
        captions = json.loads((data / "captions.json").read_text())
        for image in captions["images"]:
            image["sentences"][0]["raw"] += ' <b>& "red"</b>'
        (data / "captions.json").write_text(json.dumps(captions))
        photos = folder / "photos"
        photos.mkdir()
        for number in range(24):
            Image.new("RGB", (300, 200), (10 * number, 0, 90)).save(photos / f"photo{number:02d}.jpg")
        for kind in ("ascl", "two_tower"):
            run = folder / kind
            assert tool("train")(train_arguments(data, run, "--model.kind", kind)) == 0
            evaluate(run)
        yield folder


def evaluate(run):
    """The files of an evaluation, made here of the plain scores."""
    from ascl.retrieval import build

    config = build.load_run(run)[1]
    captions, store = build_split(config, "test", captions_per_image=config.data.captions_per_image)
    model = load_model(run)
    with torch.no_grad():
        scores = model.pair_scores(*build.encode_split(model, captions, store)).numpy()
    counted = ranks(scores, captions.owner)
    saved = QueryRanks(counted.i2t, counted.t2i, counted.image_queries, counted.text_queries, captions.owner,
                       captions.image_ids, captions.captions)
    save_ranks(run / "ranks-test.npz", saved)
    report = rank_report(scores, captions.owner).to_dict()
    content = {"protocol": "all pairs", "split": "test", "reports": {"full": report}}
    (run / "eval-test.json").write_text(json.dumps(content))
    np.savez(run / "scores.npz", scores=scores, owner=captions.owner)


@pytest.fixture
def run(finished, tmp_path):
    return Path(shutil.copytree(finished / "ascl", tmp_path / "run"))


@pytest.mark.parametrize("kind", ["ascl", "two_tower"])
def test_the_program_writes_the_page_of_a_run(kind, finished, tool, tmp_path, capsys):
    out = tmp_path / "page.html"
    before = {path: path.read_bytes() for path in (finished / kind).rglob("*") if path.is_file()}
    assert tool("report")([str(finished / kind), "--images", str(finished / "photos"), "--out", str(out)]) == 0
    assert {path: path.read_bytes() for path in (finished / kind).rglob("*") if path.is_file()} == before
    read = Page(out.read_text(encoding="utf-8"))
    report = json.loads((finished / kind / "eval-test.json").read_text())["reports"]["full"]
    row = next(row for row in read.rows if row[:2] == ["full", "text to image"])
    assert row[2:5] == [f"{report['t2i'][key]:.1f}" for key in ("r1", "r5", "r10")]
    assert '<b>& "red"</b>' in read.said and read.tags["img"] > 5 and "other scores" not in read.said
    assert ["train.max_steps", "4", "null"] in read.rows and ["model.embed_dim", "8", "1024"] in read.rows
    printed = capsys.readouterr().out
    assert "missing" not in printed
    saved = read_ranks(finished / kind / "ranks-test.npz")
    shown = re.findall(r'^"(.*)"$', printed, flags=re.MULTILINE)
    assert len(shown) == 3 and len(re.findall(r"^  [123]\. ", printed, flags=re.MULTILINE)) == 9
    for query, block in zip(shown, re.split(r'^".*"$', printed, flags=re.MULTILINE)[1:], strict=True):
        text = saved.captions.index(query)
        rank, own = int(saved.t2i[saved.text_queries == text][0]) + 1, saved.image_id(int(saved.owner[text]))
        if rank <= 3:
            assert f"  {rank}. {own}  " in block and block.count("<- the image it describes") == 1
        else:
            assert f"the image it describes is at rank {rank}" in block
    with Image.open(io.BytesIO(base64.b64decode(read.sources[0].partition(",")[2]))) as thumbnail:
        assert max(thumbnail.size) <= 176
    given = tmp_path / "given.html"
    assert tool("report")([str(finished / kind), "--images", str(finished / "photos"), "--out", str(given),
                           "--scores", str(finished / kind / "scores.npz")]) == 0
    assert Page(given.read_text(encoding="utf-8")).sources == read.sources


def test_the_program_says_what_is_missing(run, tool, capsys):
    (run / "ranks-test.npz").unlink()
    (run / "eval-test.json").unlink()
    (run / "metrics.jsonl").unlink()
    assert tool("report")([str(run)]) == 0
    said = Page((run / "report.html").read_text()).said
    assert f"ascl eval --checkpoint {run}" in said and "there are no curves" in said
    assert "missing: ranks-test.npz" in capsys.readouterr().out
    assert tool("report")([str(run), "--split", "val"]) == 0
    assert "--split val" in Page((run / "report.html").read_text()).said
    capsys.readouterr()
    assert tool("report")([str(run), "--split", "tset"]) == 1
    said = capsys.readouterr().err
    assert "split tset has not been evaluated and cannot be: " in said and "no split 'tset'; splits there: " in said
    assert tool("report")([str(run), "--split", "val", "--captions", str(run / "gone.json")]) == 0   # cannot be asked
    assert "--split val" in Page((run / "report.html").read_text()).said


def test_a_page_is_made_without_photographs_features_or_checkpoint(run, finished, tool, capsys):
    assert tool("report")([str(run)]) == 0
    read = Page((run / "report.html").read_text())
    assert "data.images" in read.said and read.tags["img"] == 0 and "photo18" in read.said
    assert tool("report")([str(run), "--features", "gone.h5"]) == 0
    assert "gone.h5 does not exist" in Page((run / "report.html").read_text()).said
    (run / "best.pt").unlink()
    (run / "last.pt").unlink()
    assert tool("report")([str(run)]) == 0
    said = Page((run / "report.html").read_text()).said
    assert "no checkpoint" in said and "rank 1 of" in said


def test_ranks_of_other_captions_than_the_data_are_noticed(run, tool):
    saved = read_ranks(run / "ranks-test.npz")
    save_ranks(run / "ranks-test.npz", saved, captions=np.array(["other", *saved.captions[1:]]))
    assert tool("report")([str(run)]) == 0
    assert "other images or captions than split test has now" in Page((run / "report.html").read_text()).said


def test_what_is_no_run_of_retrieval_is_refused_by_name(run, finished, tool, tmp_path, capsys):
    def refused(line, *words, status=1):
        capsys.readouterr()
        assert tool("report")(line) == status
        message = capsys.readouterr().err
        assert all(word in message for word in words) and "Traceback" not in message, message
        assert not list(tmp_path.rglob("report.html"))

    refused([str(tmp_path / "nowhere")], "settings.yaml", "ascl train")
    refused([str(run), "--images", str(tmp_path / "none")], "no such folder")
    np.savez(tmp_path / "few.npz", scores=np.zeros((2, 3)), owner=np.array([0, 1, 1]))
    refused([str(run), "--scores", str(tmp_path / "few.npz")], "other images or texts", "--save-scores")
    (run / "eval-test.json").write_text("{")
    refused([str(run)], "eval-test.json", "evaluate again")
    (run / "ranks-test.npz").unlink()
    refused([str(run), "--scores", str(tmp_path / "few.npz")], "ranks-test.npz is missing")
    copy_run = tmp_path / "copy"
    copy_run.mkdir()
    (copy_run / "settings.yaml").write_text("objective: sscd\nmodel: {backbone: resnet50}\n")
    refused([str(copy_run)], "copy detection", "sscd", "ascl copy eval")
    for text, word in (("[1, 2]", "expected settings by name"), ("a: [", "not valid YAML"),
                       ("loss: {margn: 1}", "margn")):
        (copy_run / "settings.yaml").write_text(text)
        refused([str(copy_run)], word, status=2 if word == "margn" else 1)


# A real browser


@pytest.mark.skipif(installed() is None, reason="no Chromium is installed")
def test_a_browser_shows_it_without_sideways_scrolling_and_fetches_nothing(tmp_path):
    long = "un" + "believ" * 60 + "able"
    _, _, saved = scored()
    wide = replace(saved, captions=[f"{long} {caption}" for caption in saved.captions], image_ids=[long] * 7)
    pages = {"full": record(), "names": record(ranks=wide, photos=lambda image_id: None),
             "nothing": record(evaluations={}, ranks=None, top=None, metrics=[], missing={"ranks": long})}
    with Browser(tmp_path / "profile") as browser:
        for name, made in pages.items():
            path = tmp_path / f"{name}.html"
            path.write_text(render(made), encoding="utf-8")
            for width in (360, 1280):
                browser.open(path, width)
                inner, scroll, errors = browser.evaluate(
                    "[innerWidth, document.documentElement.scrollWidth, "
                    "[...document.images].filter(image => !image.complete || !image.naturalWidth).length]")
                assert (inner, errors) == (width, 0) and scroll <= inner, name
                assert [url for url in browser.asked if not url.startswith("data:")] == [path.resolve().as_uri()]
            charts = browser.evaluate("[...document.querySelectorAll('svg path, svg use, svg text')]"
                                      ".filter(drawn => drawn.getBoundingClientRect().width > 0).length")
            assert charts > 20 or not made.metrics
        browser.open(tmp_path / "full.html", 360)
        assert browser.evaluate("document.querySelector('.scroll').scrollWidth > document.querySelector('.scroll')"
                                ".clientWidth")
        path = tmp_path / "broken.html"
        path.write_text(render(pages["full"]).replace("<h1>", '<h1 style="width:900px">'), encoding="utf-8")
        browser.open(path, 360)
        assert browser.evaluate("document.documentElement.scrollWidth") > 360           # the measurement can fail
