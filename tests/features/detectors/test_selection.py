"""The rules that choose regions, against loops over classes, boxes and thresholds."""


import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from ascl.features.detectors.selection import (
    first_survivors,
    padded_rows,
    raised_thresholds,
    select_by_confidence,
    select_by_raising_nms,
    surviving_confidence,
)

from .cases import greedy


def confidence_oracle(boxes, probabilities, threshold, legacy) -> list[float]:
    """Class by class, as the published loop does it."""
    confidence = [0.0] * len(boxes)
    for scores in zip(*probabilities, strict=True):
        for index in greedy(boxes, scores, threshold, legacy):
            confidence[index] = max(confidence[index], scores[index])
    return confidence


def random_boxes(count: int, seed: int) -> torch.Tensor:
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 60, (count, 2))
    return torch.tensor(np.concatenate([corners, corners + rng.uniform(5, 60, (count, 2))], axis=1)).float()


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.8])
def test_surviving_confidence_of_a_batch_against_the_loop_over_classes(legacy, threshold):
    counts = [40, 1, 17, 25]  # ragged: the shorter ones are padded inside
    boxes = [random_boxes(count, seed) for seed, count in enumerate(counts)]
    probabilities = [torch.randn(count, 12).softmax(dim=1) for count in counts]
    found = surviving_confidence(boxes, probabilities, threshold, legacy)
    for row, corners, values in zip(found, boxes, probabilities, strict=True):
        wanted = confidence_oracle(corners.tolist(), values.tolist(), threshold, legacy)
        assert row.tolist() == wanted


whole_box = st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(1, 6), st.integers(1, 6))
proposal = st.tuples(whole_box, st.lists(st.integers(0, 4), min_size=3, max_size=3))


@settings(deadline=None, max_examples=60)
@given(st.lists(proposal, min_size=1, max_size=15), st.booleans())
def test_surviving_confidence_with_tied_probabilities(rows, legacy):
    boxes = torch.tensor([[x, y, x + w, y + h] for (x, y, w, h), _ in rows], dtype=torch.float32)
    probabilities = torch.tensor([values for _, values in rows]) / 8
    (found,) = surviving_confidence([boxes], [probabilities], 0.313, legacy)
    assert found.tolist() == confidence_oracle(boxes.tolist(), probabilities.tolist(), 0.313, legacy)


def test_suppression_is_of_each_class_by_itself():
    boxes = [torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 10, 10]])]
    probabilities = [torch.tensor([[0.6, 0.1], [0.5, 0.3], [0.4, 0.2]])]
    # The first class keeps the first, the second class the second; the third stays for none.
    assert surviving_confidence(boxes, probabilities, 0.3, True)[0].tolist() == pytest.approx([0.6, 0.3, 0])


def test_1600_classes_and_300_proposals_match_class_after_class():
    boxes, probabilities = random_boxes(300, 0), torch.randn(300, 1600).mul(3).softmax(dim=1)
    (found,) = surviving_confidence([boxes], [probabilities], 0.3, True)
    wanted = torch.zeros(300)
    inclusive = boxes + torch.tensor([0, 0, 1, 1])  # legacy boxes end with their last pixel
    for scores in probabilities.T:
        kept = nms(inclusive, scores, 0.3)
        wanted[kept] = torch.maximum(wanted[kept], scores[kept])
    assert torch.equal(found, wanted)


@given(
    st.lists(st.integers(0, 10), min_size=1, max_size=30), st.integers(1, 12), st.integers(0, 12),
    st.sampled_from([0.0, 0.2, 0.5, 1.0]),
)
def test_selection_by_confidence_against_its_words(tenths, minimum, more, threshold):
    confidence, maximum = torch.tensor(tenths) / 10, minimum + more
    found = select_by_confidence(confidence, minimum, maximum, threshold).tolist()
    ranked = sorted(range(len(tenths)), key=lambda i: -tenths[i])  # Python's sort is stable
    wanted = [i for i in ranked if confidence[i] >= threshold]
    if len(wanted) < minimum:
        wanted = ranked[:minimum]
    assert found == wanted[:maximum]


def test_fixed_and_adaptive_numbers_of_regions():
    confidence = torch.linspace(1, 0, 300)
    assert select_by_confidence(confidence, 36, 36, 0.2).tolist() == list(range(36))
    assert len(select_by_confidence(confidence, 10, 100, 0.2)) == 100
    assert len(select_by_confidence(confidence, 10, 100, 0.9)) == 30
    assert len(select_by_confidence(confidence, 10, 100, 0.99)) == 10
    assert len(select_by_confidence(confidence[:5], 36, 36, 0.2)) == 5


def test_thresholds_are_raised_by_tenths():
    assert raised_thresholds(0.3) == (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    assert raised_thresholds(0.55) == (0.55, 0.65, 0.75, 0.85, 0.95)
    assert raised_thresholds(0.95) == (0.95,)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(("minimum", "maximum"), [(3, 3), (8, 12), (20, 20), (40, 40)])
def test_raising_the_threshold_against_loops(legacy, minimum, maximum):
    boxes, scores = random_boxes(30, 5), torch.rand(30)
    boxes[20:] = boxes[:10]
    thresholds = raised_thresholds(0.3)
    for threshold in thresholds:
        wanted = greedy(boxes.tolist(), scores.tolist(), threshold, legacy)
        if len(wanted) >= minimum:
            break
    found = select_by_raising_nms(boxes, scores, minimum, maximum, thresholds, legacy)
    assert found.tolist() == wanted[:maximum]
    if minimum == 40:
        assert len(found) <= 20  # even the mildest suppression leaves fewer: they are what there is


def test_one_threshold_is_plain_suppression():
    boxes, scores = random_boxes(30, 6), torch.rand(30)
    found = select_by_raising_nms(boxes, scores, 36, 36, (0.6,), False)
    assert found.tolist() == greedy(boxes.tolist(), scores.tolist(), 0.6, False)


def test_exactly_enough_boxes_end_the_raising():
    boxes, scores = random_boxes(30, 7), torch.rand(30)
    mild, strict = (greedy(boxes.tolist(), scores.tolist(), threshold, False) for threshold in (0.4, 0.3))
    assert len(mild) > len(strict)
    assert select_by_raising_nms(boxes, scores, len(strict), 30, (0.3, 0.4), False).tolist() == strict


@pytest.mark.parametrize("first", [1, 3, 7, 64])  # how many are looked at first changes nothing
@pytest.mark.parametrize("wanted", [1, 5, 40])
def test_the_first_survivors_are_those_of_each_class_alone(first, wanted):
    rng = np.random.default_rng(wanted)
    corners = rng.uniform(0, 40, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(5, 30, (40, 2))], axis=1)
    scores, classes = np.sort(rng.integers(0, 9, 40) / 8)[::-1].copy(), rng.integers(0, 3, 40)  # with ties
    expected = []
    for name in range(3):
        rows = np.flatnonzero(classes == name)
        expected += [int(rows[i]) for i in greedy(boxes[rows].tolist(), scores[rows].tolist(), 0.3, False)]
    found = first_survivors(
        torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(classes), 0.3, wanted, first=first
    )
    assert found.tolist() == sorted(expected)[:wanted]


def test_rows_are_filled_up():
    images = [{"boxes": torch.ones(count, 4), "class_ids": torch.arange(count)} for count in (1, 2)]
    rows = padded_rows(images, 3)
    assert rows["class_ids"].tolist() == [[0, -1, -1], [0, 1, -1]] and rows["region_count"].tolist() == [1, 2]
    assert rows["boxes"].sum(axis=2).tolist() == [[4, 0, 0], [4, 4, 0]]
    assert (rows["class_ids"].dtype, rows["boxes"].dtype) == (np.int32, np.float32)
