"""Soft triplet, triplet over norms and smoothed cross-entropy: published numbers, scalar loops, and the edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.losses import norm_triplet_loss, smoothed_cross_entropy, soft_triplet_loss

from .copy_cases import softmax, vectors


def soft_triplet_oracle(features, labels):
    total = 0.0
    for i, row in enumerate(features):
        distance = [math.dist(row, other) for other in features]
        positive = max(d for j, d in enumerate(distance) if labels[j] == labels[i])
        negatives = [d for j, d in enumerate(distance) if labels[j] != labels[i]]
        if negatives:
            total -= math.log(softmax([positive, min(negatives)])[1])
    return total / len(features)


def test_published_soft_triplet_and_its_gradient(shared):
    numbers = np.load(shared / "oracles" / "bot_soft_triplet.npz")
    features = torch.from_numpy(numbers["features"]).requires_grad_()
    loss = soft_triplet_loss(features, torch.from_numpy(numbers["labels"]))
    loss.backward()
    assert loss.item() == pytest.approx(numbers["exp_loss"].item(), abs=1e-9)
    np.testing.assert_allclose(features.grad, numbers["exp_grad"], atol=1e-9)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 10**6), st.floats(0.01, 100))
@settings(max_examples=40, deadline=None)
def test_soft_triplet_is_the_definition_for_any_labels(count, classes, seed, scale):
    features = scale * vectors(count, 3, seed)
    labels = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    loss = soft_triplet_loss(features, labels)
    assert loss.item() == pytest.approx(soft_triplet_oracle(features.tolist(), labels.tolist()), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0], [0, 0, 1]])
def test_equal_rows_lonely_rows_and_one_class_are_finite(labels):
    features = torch.ones(len(labels), 4, requires_grad=True)
    loss = soft_triplet_loss(features, torch.tensor(labels))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(2) if len(set(labels)) > 1 else 0)
    assert features.grad.isfinite().all()


def test_near_rows_far_from_the_origin_keep_their_distance():
    features = 1000 + torch.tensor([[0.0, 0.0], [0.25, 0.0], [0.0, 0.5], [0.5, 0.5]])
    labels = [0, 0, 1, 1]
    many, repeated = features.repeat(20, 1), torch.tensor(labels).repeat(20)    # beyond 25 rows torch multiplies
    assert soft_triplet_loss(many, repeated).item() == pytest.approx(
        soft_triplet_oracle(features.tolist(), labels), rel=1e-5)


def test_half_precision_is_raised_inside():
    features, labels = vectors(6, 8).bfloat16(), torch.tensor([0, 0, 1, 1, 2, 2])
    loss = soft_triplet_loss(features, labels)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(soft_triplet_loss(features.double(), labels).item(), rel=1e-5)


def test_gradients_are_those_of_finite_differences():
    labels = torch.tensor([0, 0, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda f: soft_triplet_loss(f, labels), [vectors(5, 3).requires_grad_()])
    pair = [vectors(4, 3).requires_grad_(), vectors(4, 3, seed=1).requires_grad_()]
    assert torch.autograd.gradcheck(lambda a, b: norm_triplet_loss(a, b, margin=0.5), pair)


def test_norm_triplet_is_the_hinge_of_the_definition():
    more, less = vectors(5, 3), vectors(5, 3, seed=1)
    origin = [0.0] * 3
    hinges = [max(0.0, 0.3 + math.dist(b, origin) - math.dist(a, origin))
              for a, b in zip(more.tolist(), less.tolist(), strict=True)]
    assert 0 < sum(h == 0 for h in hinges) < 5
    assert norm_triplet_loss(more, less, margin=0.3).item() == pytest.approx(sum(hinges) / 5, rel=1e-9)
    empty = torch.zeros(0, 3, requires_grad=True)
    assert norm_triplet_loss(empty, empty, margin=0.3).item() == 0


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6), st.floats(0, 0.9))
@settings(max_examples=40, deadline=None)
def test_smoothed_cross_entropy_is_the_definition(count, classes, seed, smoothing):
    logits = 3 * vectors(count, classes, seed)
    labels = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        logs = [math.log(p) for p in softmax(row)]
        expected -= (1 - smoothing) * logs[label] + smoothing * sum(logs) / classes
    loss = smoothed_cross_entropy(logits, labels, smoothing=smoothing)
    assert loss.item() == pytest.approx(expected / count, rel=1e-9, abs=1e-12)
    assert smoothed_cross_entropy(logits.half(), labels, smoothing=smoothing).dtype == torch.float32


def test_bad_input_is_refused_by_name():
    rows = torch.ones(3, 4)
    for labels in (torch.zeros(3), torch.zeros(2, dtype=torch.long)):
        with pytest.raises(ValueError, match="labels"):
            soft_triplet_loss(rows, labels)
        with pytest.raises(ValueError, match="labels"):
            smoothed_cross_entropy(rows, labels, smoothing=0.1)
    with pytest.raises(ValueError, match="smoothing"):
        smoothed_cross_entropy(rows, torch.zeros(3, dtype=torch.long), smoothing=1.0)
    with pytest.raises(ValueError, match="margin"):
        norm_triplet_loss(rows, rows, margin=-1)
    with pytest.raises(ValueError, match="one shape"):
        norm_triplet_loss(rows, rows[:2], margin=0)
