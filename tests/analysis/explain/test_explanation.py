"""A pair's score taken apart: it adds up to what the model says, by loops too; the picture shows these numbers."""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.axes import Axes
from matplotlib.text import Text
from PIL import Image

from ascl import load_model
from ascl.analysis.explain.drawing import Picture, draw_explanations, save_explanations
from ascl.analysis.explain.explanation import explain_pair, word_labels
from ascl.core.errors import DataError
from ascl.models import AsCL, EncodedImages, EncodedTexts
from ascl.models.baselines.two_tower import TwoTower
from ascl.models.text import BertWords


def example(k=4, longest=6, dim=24, heads=4, masked=True, dtype=torch.float64, seed=0, **variant):
    """AsCL with perturbed weights, one image and one text, some of whose tokens are not real."""
    torch.manual_seed(seed)
    model = AsCL(8, 6, None, dim, heads, 0.7, **variant).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
        mask = None
        if masked:
            mask = torch.rand(1, k) > 0.4
            mask[0, seed % k] = True
        image = model.encode_images(torch.randn(1, k, 8, dtype=dtype), torch.randn(1, 6, dtype=dtype), mask)
    real = torch.rand(1, longest) > 0.3
    real[0, seed % longest] = True
    student = None if image.student is None else torch.nn.functional.normalize(torch.randn(1, 3, dtype=dtype), dim=1)
    return model, image, EncodedTexts(2 * torch.randn(1, longest, dim, dtype=dtype), real, student)


@given(
    k=st.integers(1, 7), longest=st.integers(1, 7), heads=st.sampled_from([1, 2, 4]), masked=st.booleans(),
    variant=st.sampled_from([{}, {"projections": False}, {"tied_key_value": True}, {"fusion": False},
                             {"normalize_regions": False}, {"student_dim": 3, "student_weight": 0.4}]),
    dtype=st.sampled_from([torch.float64, torch.float32]), seed=st.integers(0, 1000),
)
@settings(max_examples=60, deadline=None)
def test_everything_adds_up_to_the_models_own_score(k, longest, heads, masked, variant, dtype, seed):
    model, image, text = example(k, longest, 8, heads, masked, dtype, seed, **variant)
    explained = explain_pair(model, image, text)
    near = pytest.approx if dtype is torch.float64 else lambda value: pytest.approx(value, rel=0, abs=2e-6)
    assert explained.score == near(float(model.pair_scores(image, text).detach()))
    assert explained.word_terms.sum() + explained.region_terms.sum() == near(explained.local)
    assert explained.word_totals.sum() == near(explained.local)
    assert explained.region_totals.sum() == near(explained.local)
    assert explained.pairs.sum() == near(explained.local)
    assert explained.attended_part + explained.whole_part == near(explained.global_)
    weight, student = variant.get("student_weight", 0), explained.student or 0
    assert (1 - weight) * (0.7 * explained.local + 0.3 * explained.global_) + weight * student == near(explained.score)
    parts = explained.to_dict()
    assert sum(parts[name]["in_the_score"] for name in ("local", "global", "student") if parts[name]) == near(
        explained.score)
    # each term is split among what was attended to, without remainder
    np.testing.assert_allclose(explained.region_pairs.sum(axis=0), explained.region_terms, rtol=0, atol=2e-6)
    np.testing.assert_allclose(explained.word_pairs.sum(axis=1), explained.word_terms, rtol=0, atol=2e-6)
    real = torch.ones(k) if image.mask is None else image.mask[0]
    assert explained.regions.tolist() == real.nonzero()[:, 0].tolist()
    assert len(explained.words) == int(text.mask.sum())


def test_local_and_global_are_those_of_the_model():
    model, image, text = example()
    explained = explain_pair(model, image, text)
    model.local_weight = 1.0
    assert explained.local == pytest.approx(float(model.pair_scores(image, text).detach()))
    model.local_weight = 0.0
    assert explained.global_ == pytest.approx(float(model.pair_scores(image, text).detach()))
    assert explained.attended_part + explained.whole_part == pytest.approx(explained.global_)


def oracle(model, attention, queries, keys):
    """(cosines, shares) of each query by loops over heads and keys, from the matrices alone."""
    dim, heads = model.embed_dim, model.num_heads
    size = dim // heads
    identity = torch.eye(dim, dtype=queries.dtype)
    if hasattr(attention, "in_proj_weight"):
        to_query, to_key, to_value = attention.in_proj_weight.detach().split(dim)
        out, scale = attention.out_proj.weight.detach(), size**-0.5
    else:
        to_query = to_key = to_value = out = identity
        scale = attention.scale
    cosines, shares = [], []
    for q in queries:
        brought = []                                                # what each key adds to the attended vector
        for number in range(len(keys)):
            parts = []
            for head in range(heads):
                rows = slice(head * size, (head + 1) * size)
                logits = [float((to_query @ q)[rows] @ (to_key @ k)[rows]) * scale for k in keys]
                largest = max(logits)
                exps = [np.exp(logit - largest) for logit in logits]
                parts.append(exps[number] / sum(exps) * (to_value @ keys[number])[rows])
            brought.append(out @ torch.cat(parts))
        attended = sum(brought)
        norms = float(q.norm()) * float(attended.norm())
        cosines.append(float(q @ attended) / norms)
        shares.append([float(q @ part) / norms for part in brought])
    return np.array(cosines), np.array(shares)


@pytest.mark.parametrize("variant", [{}, {"projections": False}, {"tied_key_value": True}], ids=str)
def test_terms_and_shares_match_loops_over_heads_and_tokens(variant):
    model, image, text = example(k=5, longest=5, dim=8, heads=2, **variant)
    v, w = image.regions[0, image.mask[0]], text.words[0, text.mask[0]]
    explained = explain_pair(model, image, text)
    cosines, shares = oracle(model, model.region_to_word, v, w)
    np.testing.assert_allclose(explained.region_cosines, cosines)
    np.testing.assert_allclose(explained.region_pairs, shares.T / (2 * len(v)))
    cosines, shares = oracle(model, model.word_to_region, w, v)
    np.testing.assert_allclose(explained.word_cosines, cosines)
    np.testing.assert_allclose(explained.word_pairs, shares / (2 * len(w)))


@pytest.mark.parametrize("variant", [{}, {"fusion": False}], ids=str)
def test_attention_sums_to_one_and_is_uniform_without_fusion(variant):
    model, image, text = example(**variant)
    explained = explain_pair(model, image, text)
    for weights, keys in ((explained.region_to_word, len(explained.words)),
                          (explained.word_to_region, len(explained.regions))):
        np.testing.assert_allclose(weights.sum(axis=-1), 1)
        assert (abs(weights - 1 / keys).max() < 1e-12) == (not model.fusion)


def test_what_is_not_real_has_no_part():
    model, image, text = example()
    explained = explain_pair(model, image, text)
    regions, words = image.regions.clone(), text.words.clone()
    regions[~image.mask], words[~text.mask] = 100.0, -100.0
    changed = explain_pair(model, EncodedImages(regions, image.globals, image.mask), EncodedTexts(words, text.mask))
    assert changed.to_dict() == explained.to_dict()


def test_words_keep_their_numbers_in_another_order():
    model, image, text = example(longest=5, masked=False)
    text = EncodedTexts(text.words, torch.ones_like(text.mask))
    order = torch.tensor([3, 0, 4, 1, 2])
    explained = explain_pair(model, image, text)
    turned = explain_pair(model, image, EncodedTexts(text.words[:, order], text.mask))
    np.testing.assert_allclose(turned.word_totals, explained.word_totals[order])
    np.testing.assert_allclose(turned.pairs, explained.pairs[order])


def test_the_plain_numbers_are_the_arrays():
    model, image, text = example()
    explained = explain_pair(model, image, text, words=["word"] * int(text.mask.sum()))
    content = json.loads(json.dumps(explained.to_dict(), allow_nan=False))
    assert [word["total"] for word in content["words"]] == explained.word_totals.tolist()
    assert [region["region"] for region in content["regions"]] == explained.regions.tolist()
    terms = [entry["own_term"] for kind in ("words", "regions") for entry in content[kind]]
    assert sum(terms) == pytest.approx(content["local"]["score"])
    assert content["local"]["in_the_score"] + content["global"]["in_the_score"] == pytest.approx(content["score"])
    assert np.array(content["attention"]["region_to_word"]).shape == (4, len(explained.regions), len(explained.words))


def test_models_without_such_a_sum_and_items_that_are_not_one_pair_are_refused(tiny_bert):
    model, image, text = example()
    with pytest.raises(DataError, match="TwoTower.*AsCL"):
        explain_pair(TwoTower(8, 6, BertWords(str(tiny_bert)), 8), image, text)
    with pytest.raises(ValueError, match="one image and one text"):
        explain_pair(model, EncodedImages.cat([image, image]), text)
    with pytest.raises(ValueError, match="1 labels"):
        explain_pair(model, image, EncodedTexts(text.words, torch.ones_like(text.mask)), words=["only"])


def test_labels_are_the_pieces_that_the_encoder_reads(tiny_bert):
    encoder = BertWords(str(tiny_bert), max_words=4)
    for text in ("the red dogs", "a dog runs and a cat sits on grass"):
        _, mask = encoder([text])
        labels = word_labels(encoder, text, int(mask.sum()))
        assert len(labels) == int(mask.sum()) and labels[0] == text.split()[0]
    assert word_labels(encoder, "the red dogs", 4) == ["the", "red", "dog", "##s"]
    assert word_labels(None, "the red dogs", 3) == ["0", "1", "2"]


# The picture


BOXES = np.array([[0, 0, 50, 40], [50, 0, 100, 40], [0, 40, 50, 80], [50, 40, 100, 80]], dtype=np.float32)


@pytest.fixture
def explained():
    model, image, text = example()
    return explain_pair(model, image, text, words=[f"word{number}" for number in range(int(text.mask.sum()))])


def axes_titled(figure, start):
    """The axes, in subfigures too, whose title begins so."""
    return [axes for axes in figure.findobj(Axes)
            if start in (axes.get_title(loc="left") + axes.get_title(loc="center"))[: len(start)]]


@pytest.mark.parametrize("photo", [None, Image.new("RGB", (100, 80), "green")], ids=["absent", "photo"])
def test_the_picture_shows_the_numbers(explained, photo):
    figure = draw_explanations([("a caption", explained)], Picture(photo, BOXES, (100, 80)), "title")
    (heat,) = axes_titled(figure, "Contribution of word-region pairs")
    np.testing.assert_array_equal(heat.images[0].get_array(), explained.pairs)
    (bars,) = axes_titled(figure, "Contribution of each word")
    widths = [bar.get_width() for bar in bars.patches]
    np.testing.assert_allclose(widths, [*explained.word_terms, *explained.region_pairs.sum(axis=1)])
    assert sum(widths) == pytest.approx(explained.local)
    (regions,) = axes_titled(figure, "Contribution of each region")
    corners = {patch.get_bbox().bounds for patch in regions.patches}
    expected = BOXES[explained.regions]
    assert corners == {(x1, y1, x2 - x1, y2 - y1) for x1, y1, x2, y2 in expected.tolist()}
    for title, matrix in (("Region to word (each", explained.region_to_word.mean(0).T),
                          ("Word to region (each", explained.word_to_region.mean(0))):
        (axes,) = axes_titled(figure, title)
        np.testing.assert_array_equal(axes.images[0].get_array(), matrix)
    assert len(axes_titled(figure, "word")) == len(explained.words)             # one small photograph each


def test_without_boxes_nothing_is_drawn_on_a_photograph(explained):
    figure = draw_explanations([("a", explained)], Picture(Image.new("RGB", (9, 9)), None, (9, 9)), "title")
    assert axes_titled(figure, "Contribution of word") and not axes_titled(figure, "Contribution of each region")


def test_two_captions_share_their_scales(explained):
    model, image, text = example(seed=1, longest=3)
    other = explain_pair(model, image, text)
    figure = draw_explanations([("a", explained), ("b", other)], Picture(None, BOXES, (100, 80)), "title")
    first, second = axes_titled(figure, "Contribution of word-region pairs")
    assert first.images[0].get_clim() == second.images[0].get_clim()
    assert first.images[0].get_clim()[1] == max(abs(explained.pairs).max(), abs(other.pairs).max())
    first, second = axes_titled(figure, "Contribution of each word")
    assert first.get_xlim() == second.get_xlim()


def test_any_caption_can_be_drawn(explained, tmp_path):
    caption = "costs $5 or $6_{a} <b>&amp;</b> \\frac{1} " + "word " * 200
    save_explanations([(caption, explained)], Picture(None, BOXES, (100, 80)), caption[:40], tmp_path / "x.png")
    with Image.open(tmp_path / "x.png") as image:
        assert image.size[0] > 300


def test_a_text_of_many_words_stays_within_what_can_be_rendered():
    model, image, text = example(longest=400)
    explained = explain_pair(model, image, text)
    assert len(explained.words) > 200
    figure = draw_explanations([("many", explained)], Picture(None, BOXES, (100, 80)), "title")
    assert figure.get_size_inches()[1] * figure.dpi <= 30_000
    titles = [axes.get_title().split() for axes in figure.findobj(Axes)]
    labels = [title[0] for title in titles if len(title) == 2 and title[0] in explained.words]
    strongest = sorted(np.argsort(-abs(explained.word_totals), kind="stable")[:36])
    assert labels == [explained.words[j] for j in strongest]


# The program


@pytest.fixture
def run(tiny_runs) -> Path:
    return tiny_runs / "a0"


def arguments(run, *more, image="photo20", caption=("a red dog runs",)):
    return ["--checkpoint", str(run), "--image", str(image), "--caption", *caption, *more]


def test_the_program_writes_a_picture_and_numbers_that_add_up(run, tiny_data, tool, tmp_path, capsys):
    out = tmp_path / "out.png"
    captions = ("a red dog runs on grass", "the blue cat sits")
    assert tool("explain")(arguments(run, "--out", str(out), caption=captions)) == 0
    with Image.open(out) as image:
        image.verify()
    content = json.loads((tmp_path / "out.json").read_text())
    model = load_model(run)
    with h5py.File(tiny_data / "regions.h5") as regions, h5py.File(tiny_data / "globals.h5") as globals_:
        row = list(regions["image_ids"].asstr()[:]).index("photo20")
        count = int(regions["region_count"][row])
        image = model.encode_images(torch.from_numpy(regions["regions"][row : row + 1, :count]),
                                    torch.from_numpy(globals_["globals"][row : row + 1]))
    assert [one["caption"] for one in content["explanations"]] == list(captions)
    for one in content["explanations"]:
        expected = float(model.pair_scores(image, model.encode_texts([one["caption"]])).detach())
        assert one["score"] == pytest.approx(expected, abs=1e-6) == one["pair_scores"]
        terms = sum(entry["own_term"] for kind in ("words", "regions") for entry in one[kind])
        assert one["local_weight"] * terms + one["global"]["in_the_score"] == pytest.approx(expected, abs=1e-6)
        assert [region["region"] for region in one["regions"]] == list(range(count))
        assert [word["word"] for word in one["words"]] == one["caption"].split()
    said = capsys.readouterr().out
    assert content["photo"] is None and "no photograph" in said and "no boxes" in said
    assert f"score {content['explanations'][0]['score']:+.4f}" in said


def test_a_students_part_is_said_and_drawn(tiny_data, tmp_path, tool, train_arguments, capsys):
    run, out = tmp_path / "run", tmp_path / "out.png"
    more = ["--model.student_dim", "4", "--model.student_weight", "0.3", "--train.max_steps", "1"]
    assert tool("train")(train_arguments(tiny_data, run, *more)) == 0
    assert tool("explain")(arguments(run, "--out", str(out))) == 0
    one, = json.loads(out.with_suffix(".json").read_text())["explanations"]
    assert one["student"]["weight"] == 0.3 and one["score"] == pytest.approx(one["pair_scores"], abs=1e-6)
    assert sum(one[part]["in_the_score"] for part in ("local", "global", "student")) == pytest.approx(one["score"])
    student = one["student"]
    assert f"+ student {student['score']:+.4f} ({student['in_the_score']:+.4f})" in capsys.readouterr().out
    model, image, text = example(student_dim=3)
    explained = explain_pair(model, image, text)
    figure = draw_explanations([("a caption", explained)], Picture(None, BOXES, (100, 80)), "title")
    texts = [text.get_text() for text in figure.findobj(Text)]
    assert any(f"+ student {explained.student:+.4f} x 0.5" in text for text in texts)


def with_grid(data: Path, folder: Path, **more) -> list[str]:
    """A copy of the features in which every region is real, and options that name it."""
    with h5py.File(data / "regions.h5") as old, h5py.File(folder / "grid.h5", "w") as new:
        new.attrs.update(old.attrs)
        for name in ("image_ids", "regions"):
            old.copy(name, new)
        for name, values in more.items():
            new[name] = values
    return ["--features", str(folder / "grid.h5"), str(data / "globals.h5")]


def test_a_grid_is_drawn_where_the_user_says_that_it_is_one(run, tiny_data, tool, tmp_path, capsys):
    photo = tmp_path / "photos" / "photo20.png"
    photo.parent.mkdir()
    Image.new("RGB", (60, 40), "red").save(photo)
    features = with_grid(tiny_data, tmp_path)
    out = tmp_path / "out.png"
    assert tool("explain")(arguments(run, *features, "--out", str(out))) == 0
    assert "2x2 grid" in capsys.readouterr().out and json.loads(out.with_suffix(".json").read_text())["boxes"] is None
    for image, more in ((photo, []), ("photo20", ["--images", str(photo.parent)])):
        assert tool("explain")(arguments(run, *features, "--grid", "--out", str(out), *more, image=image)) == 0
        content = json.loads(out.with_suffix(".json").read_text())
        boxes = [region["box"] for region in content["explanations"][0]["regions"]]
        assert boxes == [[0, 0, 30, 20], [30, 0, 60, 20], [0, 20, 30, 40], [30, 20, 60, 40]]
        assert content["photo"] == str(photo)


def test_boxes_and_names_come_from_the_feature_file(run, tiny_data, tool, tmp_path, capsys):
    boxes = np.tile(np.array([[1, 2, 30, 40]], dtype=np.float32), (24, 4, 1))
    ids = np.tile(np.array([0, 1, -1, 0], dtype=np.int32), (24, 1))
    features = with_grid(tiny_data, tmp_path, boxes=boxes, class_ids=ids, class_names=["dog", "cat"],
                         image_sizes=np.tile(np.array([60, 40], dtype=np.int32), (24, 1)))
    assert tool("explain")(arguments(run, *features, "--out", str(tmp_path / "out.png"))) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    regions = content["explanations"][0]["regions"]
    assert [region["label"] for region in regions] == ["dog", "cat", None, "dog"]
    assert [region["box"] for region in regions] == [[1, 2, 30, 40]] * 4
    assert "cat" in capsys.readouterr().out
    photo = tmp_path / "photo20.png"
    Image.new("RGB", (61, 40)).save(photo)
    assert tool("explain")(arguments(run, *features, image=photo)) == 1
    assert "61x40" in capsys.readouterr().err
    assert tool("explain")(arguments(run, *features, "--grid")) == 1
    assert "without `grid`" in capsys.readouterr().err


def test_what_cannot_be_explained_is_refused_by_name(
    run, tiny_runs, tiny_data, tool, tmp_path, capsys, monkeypatch
):
    def refused(line, *words, status=1):
        capsys.readouterr()
        before = sorted(tmp_path.rglob("*"))
        assert tool("explain")(line) == status
        message = capsys.readouterr().err
        message = message[message.index("error: ") :]
        assert all(word in message for word in words) and "Traceback" not in message, message
        assert sorted(tmp_path.rglob("*")) == before

    monkeypatch.chdir(tmp_path)
    refused(arguments(run, image="nobody"), "nobody", "photo00")
    refused(arguments(run, caption=("a", "b", "c")), "3 captions")
    refused(arguments(run, caption=("  ",)), "no words")
    refused(arguments(run, "--out", "x.jpg"), "x.jpg", ".png", status=2)
    with h5py.File(tiny_data / "regions.h5") as file:
        fewer = file["image_ids"].asstr()[int(np.argmin(file["region_count"][:]))]
    refused(arguments(run, "--grid", image=fewer), "not a square grid")
    refused(arguments(run, "--images", str(tmp_path / "none")), "no such folder")
    refused(arguments(tmp_path / "nowhere"), "no checkpoint")
    copy_run = tmp_path / "copy"
    copy_run.mkdir()
    shutil.copy(run / "best.pt", copy_run)
    (copy_run / "settings.yaml").write_text("objective: rdcd\nmodel: {}\n")
    refused(arguments(copy_run), "copy detection", "rdcd")
    refused(arguments(copy_run / "best.pt"), "copy detection")
    refused(arguments(tiny_runs / "towers"), "TwoTower", "AsCL")


def test_a_caption_that_was_cut_is_said(run, tool, tmp_path, capsys):
    assert tool("explain")(arguments(run, "--out", str(tmp_path / "x.png"), caption=("a red dog " * 9,))) == 0
    assert "was truncated" in capsys.readouterr().out
