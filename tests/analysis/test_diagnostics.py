"""The metrics beside recall, against scalar loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.analysis.diagnostics import (
    count_words,
    effective_dimensions,
    geometry,
    item_vectors,
    local_and_global_scores,
    recall_by_length,
    recall_by_local_weight,
)
from ascl.analysis.leakage import protocols
from ascl.core.errors import DataError
from ascl.models import AsCL, EncodedImages, EncodedTexts
from ascl.models.base import TextEncoder
from ascl.models.baselines.two_tower import TwoTower
from ascl.retrieval import rank_report, score_all_pairs


def unit_rows(rows):
    """Each row of a list of lists divided by its length."""
    return [[x / math.sqrt(sum(y * y for y in row)) for x in row] for row in rows]


def distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def geometry_by_loops(images, texts, owner):
    """Every metric of `geometry` but the dimensions, pair by pair."""
    images, texts = unit_rows(images.tolist()), unit_rows(texts.tolist())
    image_text = [distance(images[owner[t]], texts[t]) for t in range(len(texts))]
    text_text, apart_texts = [], []
    for a in range(len(texts)):
        for b in range(a + 1, len(texts)):
            (text_text if owner[a] == owner[b] else apart_texts).append(distance(texts[a], texts[b]))
    apart_images = [distance(images[a], images[b]) for a in range(len(images)) for b in range(a + 1, len(images))]

    def summary(values):
        mean = sum(values) / len(values)
        return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / len(values)), len(values)

    def align(values):
        return sum(v**2 for v in values) / len(values)

    def uniform(values):
        return math.log(sum(math.exp(-2 * v**2) for v in values) / len(values))

    return {
        "positive_image_text": summary(image_text), "positive_text_text": summary(text_text),
        "apart_images": summary(apart_images), "apart_texts": summary(apart_texts),
        "align_image_text": align(image_text), "align_text_text": align(text_text),
        "uniform_images": uniform(apart_images), "uniform_texts": uniform(apart_texts),
    }


def test_geometry_is_that_of_the_loops():
    images, texts = torch.randn(7, 5), 3 * torch.randn(13, 5)
    owner = np.array([0, 3, 1, 1, 2, 3, 4, 5, 0, 3, 5, 5, 0])   # image 6 has no text; texts of an image lie apart
    found = geometry(images, texts, owner)
    for name, expected in geometry_by_loops(images, texts, owner).items():
        value = getattr(found, name)
        value = value if isinstance(value, float) else (value.mean, value.std, value.pairs)
        assert value == pytest.approx(expected, abs=1e-7), name
    assert found.image_dimensions == pytest.approx(effective_dimensions(torch.nn.functional.normalize(images, dim=1)))


def test_geometry_does_not_depend_on_the_order_of_the_texts():
    images, texts, owner = torch.randn(5, 4), torch.randn(9, 4), np.arange(9) % 5
    order = torch.randperm(9)
    a, b = geometry(images, texts, owner), geometry(images, texts[order], owner[order.numpy()])
    for name, value in vars(a).items():
        other = getattr(b, name)
        assert vars(value) == pytest.approx(vars(other)) if hasattr(value, "mean") else value == pytest.approx(other)


def test_geometry_of_known_vectors():
    """Two pairs on the axes: positives lie on each other, all others stand at right angles."""
    axes = torch.eye(2)
    found = geometry(axes, axes, [0, 1])
    assert found.positive_image_text.mean == 0 and found.positive_text_text is None and found.align_text_text is None
    assert found.apart_texts.mean == pytest.approx(math.sqrt(2)) and found.apart_images.pairs == 1
    assert found.uniform_images == pytest.approx(-4)
    assert found.image_dimensions == pytest.approx(1)              # two points lie on a line


@pytest.mark.parametrize(("images", "texts", "owner", "words"), [
    (torch.eye(2), torch.eye(2), [0, 0], "at least two images"),
    (torch.eye(2), torch.eye(2), [0, 2], "owner[1] is 2"),
    (torch.eye(2), torch.eye(2), [0], "2 columns"),
    (torch.eye(2), torch.tensor([[1.0, 0], [0, 0]]), [0, 1], "text 1 has norm 0"),
    (torch.tensor([[1.0, 0], [math.nan, 0]]), torch.eye(2), [0, 1], "image 1 has norm nan"),
])
def test_geometry_refuses(images, texts, owner, words):
    with pytest.raises(DataError) as refused:
        geometry(images, texts, owner)
    assert words in str(refused.value)


def test_effective_dimensions():
    along = torch.linspace(-1, 1, 9)[:, None] * torch.tensor([1.0, 2.0, 3.0])
    assert effective_dimensions(along) == pytest.approx(1, abs=1e-6)
    assert effective_dimensions(torch.ones(4, 3)) == 1
    even = torch.cat([torch.eye(3), -torch.eye(3)])
    assert effective_dimensions(even) == pytest.approx(3)
    # variances 4 : 1 on two axes, by hand
    uneven = torch.tensor([[2.0, 0], [-2, 0], [0, 1], [0, -1]])
    assert effective_dimensions(uneven) == pytest.approx(math.exp(-0.8 * math.log(0.8) - 0.2 * math.log(0.2)))


# Vectors of single items


class Letters(TextEncoder):
    """Words of 4 dimensions by their number of letters."""

    dim = 4

    def forward(self, texts):
        words = [[len(word) for word in text.split()] for text in texts]
        longest = max(map(len, words))
        hidden = torch.zeros(len(texts), longest, 4)
        mask = torch.zeros(len(texts), longest, dtype=torch.bool)
        for row, lengths in enumerate(words):
            for place, length in enumerate(lengths):
                hidden[row, place] = torch.tensor([length, length**2, math.sin(length), 1.0])
                mask[row, place] = True
        return hidden, mask


TEXTS = ["a dog", "two small dogs run", "snow", "a man with hats", "red balls"]


def items(model):
    mask = torch.tensor([[True, True, True], [True, False, False], [True, True, False]])
    with torch.no_grad():
        return model.encode_images(torch.randn(3, 3, 6), torch.randn(3, 5), mask), model.encode_texts(TEXTS)


def mean_of_real(tokens, mask):
    """Scalar loops: mean of the rows where mask holds."""
    real = [row for row, kept in zip(tokens.tolist(), mask.tolist(), strict=True) if kept]
    return torch.tensor([sum(column) / len(real) for column in zip(*real, strict=True)])


def test_the_vectors_of_two_towers_decide_the_score():
    model = TwoTower(6, 5, Letters(), embed_dim=4).eval()
    images, texts = items(model)
    vectors = item_vectors(model, images, texts)
    assert vectors.decide_score
    torch.testing.assert_close((vectors.images @ vectors.texts.T).float(), model.pair_scores(images, texts).detach())


def test_the_vectors_of_ascl_are_those_of_plain_means_and_decide_nothing():
    model = AsCL(6, 5, Letters(), embed_dim=4, num_heads=2).eval()
    images, texts = items(model)
    vectors = item_vectors(model, images, texts)
    assert not vectors.decide_score
    for i in range(3):
        v = mean_of_real(images.regions[i], images.mask[i])
        first, second = model.attended_image_global.weight @ v, model.image_global.weight @ images.globals[i]
        t = torch.sigmoid(model.gate.weight @ torch.cat([first, second]) + model.gate.bias)
        expected = t * first + (1 - t) * second
        torch.testing.assert_close(vectors.images[i].float(), expected.detach() / expected.detach().norm())
    for t in range(len(TEXTS)):
        expected = (model.text_global.weight @ mean_of_real(texts.words[t], texts.mask[t])).detach()
        torch.testing.assert_close(vectors.texts[t].float(), expected / expected.norm())


def test_the_vectors_of_ascl_without_fusion_decide_its_global_score():
    model = AsCL(6, 5, Letters(), embed_dim=4, num_heads=2, local_weight=0.0, fusion=False).eval()
    assert item_vectors(model, *items(model)).decide_score
    model.local_weight = 0.8
    assert not item_vectors(model, *items(model)).decide_score


def test_no_items_have_no_vectors():
    model = TwoTower(6, 5, Letters(), embed_dim=4).eval()
    images, texts = items(model)
    with pytest.raises(ValueError, match="no images or no texts"):
        item_vectors(model, images, texts[:0])


# Recall by length


def lengths_by_loops(ranks, lengths, last, at):
    """{(bin, K): (queries, percent of each run)}"""
    found = {}
    for number in range(len(last) + 1):
        low = -math.inf if number == 0 else last[number - 1]
        high = math.inf if number == len(last) else last[number]
        chosen = [q for q, length in enumerate(lengths) if low < length <= high]
        if chosen:
            for k in at:
                found[number, k] = len(chosen), [
                    100 * sum(1 for q in chosen if run[q] < k) / len(chosen) for run in ranks
                ]
    return found


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_recall_by_length_is_that_of_the_loops(data):
    queries, seeds = data.draw(st.integers(1, 30)), data.draw(st.integers(1, 3))
    ranks = [data.draw(st.lists(st.integers(0, 15), min_size=queries, max_size=queries)) for _ in range(seeds)]
    lengths = data.draw(st.lists(st.integers(1, 12), min_size=queries, max_size=queries))
    last = sorted(data.draw(st.sets(st.integers(1, 12), max_size=4)))
    found = recall_by_length(np.array(ranks), np.array(lengths), last)
    expected = lengths_by_loops(ranks, lengths, last, (1, 5, 10))
    assert sum(entry.queries for entry in found) == queries
    assert len(found) == len(expected) // 3
    for entry, number in zip(found, sorted({number for number, _ in expected}), strict=True):
        for k in (1, 5, 10):
            count, percents = expected[number, k]
            assert entry.queries == count and entry.seeds == seeds
            assert entry.recall[k] == pytest.approx(np.mean(percents))
            assert entry.low[k] <= entry.recall[k] + 1e-9 and entry.recall[k] <= entry.high[k] + 1e-9
            if seeds > 1:
                assert entry.seed_std[k] == pytest.approx(np.std(percents, ddof=1))
            else:
                assert entry.seed_std is None
        inside = [length for length in lengths if entry.shortest <= length <= entry.longest]
        assert len(inside) == entry.queries                         # the bins say which lengths they hold


def test_seeds_do_not_narrow_the_interval():
    """The runs answer the same queries: three of them say no more about other queries than one."""
    ranks, lengths = np.array([0, 0, 3, 20, 0, 9]), np.full(6, 4)
    one, three = (recall_by_length(np.tile(ranks, (seeds, 1)), lengths, []) for seeds in (1, 3))
    assert one[0].low == three[0].low and one[0].high == three[0].high
    assert three[0].seed_std == {1: 0.0, 5: 0.0, 10: 0.0}


@pytest.mark.parametrize(("ranks", "lengths", "last", "words"), [
    (np.zeros((2, 3)), np.ones(4), [2], "do not fit"),
    (np.zeros((1, 0)), np.ones(0), [2], "no queries"),
    (np.zeros(3), np.ones(3), [4, 4], "must increase, got 4, 4"),
])
def test_recall_by_length_refuses(ranks, lengths, last, words):
    with pytest.raises(DataError, match=words):
        recall_by_length(ranks, lengths, last)


@pytest.mark.parametrize(("caption", "words"), [
    ("A man , in a hat .", 5), ("a well-lit dog's bed", 4), ("...", 0), ("naïve café №5", 3), ("2 dogs' tails", 3),
])
def test_count_words(caption, words):
    assert count_words(caption) == words


# Recall by local weight


@pytest.mark.parametrize("variant", [{}, {"fusion": False}, {"student_dim": 4, "student_weight": 0.6}], ids=str)
def test_the_mixture_of_both_scores_is_the_score_at_every_weight(variant):
    """Of the score of pairs: a student has no part."""
    model = AsCL(6, 5, Letters(), embed_dim=8, num_heads=2, local_weight=0.3, **variant).eval()
    with torch.no_grad():
        images = model.encode_images(torch.randn(5, 3, 6), torch.randn(5, 5))
        texts = model.encode_texts(TEXTS * 2)
    owner = np.arange(10) % 5
    local, global_ = local_and_global_scores(model, images, texts)
    assert model.local_weight == 0.3 and model.student_weight == variant.get("student_weight", 0.5)
    model.student_weight = 0.0
    weights = [0.0, 0.25, 0.3, 1.0]
    for weight, report in zip(weights, recall_by_local_weight(local, global_, owner, weights), strict=True):
        model.local_weight = weight
        with torch.no_grad():
            reference = model.pair_scores(images, texts)
        torch.testing.assert_close(weight * local + (1 - weight) * global_, reference, atol=1e-6, rtol=0)
        # texts come in equal pairs, so that two ways to the same score may break their ties apart
        torch.testing.assert_close(score_all_pairs(model, images, texts), reference, atol=1e-6, rtol=0)
        assert report.texts == 10 and report == rank_report(weight * local + (1 - weight) * global_, owner)


def test_a_student_is_part_of_the_honest_evaluation_that_the_leaking_one_is_compared_with():
    model = AsCL(6, 5, Letters(), embed_dim=8, num_heads=2, student_dim=4, student_weight=0.6).eval()
    with torch.no_grad():
        images, texts = model.encode_images(torch.randn(5, 3, 6), torch.randn(5, 5)), model.encode_texts(TEXTS)
        found = protocols(model, images, texts, np.arange(5))
        paired = found["PAIRED (sees the answer)"] - 0.4 * 0.2 * found["PAIRED, global score alone (sees the answer)"]
        honest = found["all pairs (honest)"] - 0.4 * 0.2 * found["all pairs, global score alone (honest)"]
        torch.testing.assert_close(found["all pairs (honest)"], model.pair_scores(images, texts), atol=1e-6, rtol=0)
        torch.testing.assert_close(paired, honest, atol=1e-6, rtol=0)       # they differ in the global score alone


def test_progress_counts_every_pair_of_both_scores():
    model = AsCL(6, 5, None, embed_dim=4, num_heads=1).eval()
    images = EncodedImages(torch.randn(4, 2, 4), torch.randn(4, 4))
    texts = EncodedTexts(torch.randn(6, 3, 4), torch.ones(6, 3, dtype=torch.bool))
    done = []
    local_and_global_scores(model, images, texts, progress=done.append)
    assert sum(done) == 2 * 4 * 6
