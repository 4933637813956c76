"""Norm ratio, its loss and the direction of a pair: numbers of the published procedure, gradients, and the edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.asymmetry import Direction, direction, norm_ratio, norm_ratio_loss


def loss_oracle(more, less):
    """Scalar loops over the definition."""
    terms = []
    for a, b in zip(more, less, strict=True):
        terms.append(math.exp(1 - math.sqrt(sum(x * x for x in a)) / math.sqrt(sum(x * x for x in b))))
    return sum(terms) / len(terms)


def vectors(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_published_loss_and_its_gradient(shared):
    given_numbers = np.load(shared / "oracles" / "asl_norm_ratio.npz")
    features = torch.from_numpy(given_numbers["features"]).requires_grad_()
    more, less = (torch.from_numpy(given_numbers[name]) for name in ("pair_hi", "pair_lo"))
    loss = norm_ratio_loss(features[more], features[less])
    loss.backward()
    assert loss.item() == pytest.approx(given_numbers["exp_loss"].item(), abs=1e-9)
    np.testing.assert_allclose(features.grad, given_numbers["exp_grad_features"], atol=1e-9)
    per_pair = torch.exp(1 - norm_ratio(features.detach()[more], features.detach()[less]))
    np.testing.assert_allclose(per_pair, given_numbers["exp_per_pair"], atol=1e-9)


def test_published_filter_of_candidates(shared):
    given_numbers = np.load(shared / "oracles" / "asl_test_filter.npz")
    query, reference = given_numbers["query_features"], given_numbers["ref_features"]
    ratio = norm_ratio(torch.from_numpy(query), torch.from_numpy(reference))
    np.testing.assert_allclose(ratio, given_numbers["exp_ratio"], atol=1e-9)
    answer = direction(np.linalg.norm(query, axis=1), np.linalg.norm(reference, axis=1))
    assert ((answer != Direction.B_COPIES_A) == given_numbers["exp_keep"]).all()
    assert (answer == Direction.UNCLEAR).any()              # a ratio of exactly 1 is among them, and kept


@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_loss_is_the_mean_of_the_definition(count, dim, seed):
    more, less = vectors(count, dim, seed), vectors(count, dim, seed + 1)
    assert norm_ratio_loss(more, less).item() == pytest.approx(loss_oracle(more.tolist(), less.tolist()), rel=1e-9)


def test_gradient_is_that_of_finite_differences_and_moves_both_sides():
    more, less = vectors(4, 3).requires_grad_(), vectors(4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(norm_ratio_loss, [more, less])
    norm_ratio_loss(more, less).backward()
    with torch.no_grad():                                   # a step against the gradient: |more| grows, |less| shrinks
        assert ((more - 1e-3 * more.grad).norm(dim=1) > more.norm(dim=1)).all()
        assert ((less - 1e-3 * less.grad).norm(dim=1) < less.norm(dim=1)).all()


def test_order_decides_on_which_side_of_one_a_pair_lies():
    assert norm_ratio_loss(torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 4.0]])).item() < 1
    assert norm_ratio_loss(torch.tensor([[0.0, 4.0]]), torch.tensor([[3.0, 4.0]])).item() > 1


def test_a_vector_against_itself_costs_one_and_has_no_gradient():
    features = vectors(1, 5).requires_grad_()
    loss = norm_ratio_loss(features[[0, 0]], features[[0, 0]])
    loss.backward()
    assert loss.item() == 1 and (features.grad == 0).all()


@pytest.mark.parametrize(("more", "less", "expected"), [
    (0.0, 0.0, math.e), (0.0, 1.0, math.e), (1.0, 0.0, 0.0), (1e-30, 1.0, math.e), (1.0, 1e-30, 0.0),
    (1e19, 1.0, 0.0), (1.0, 1e19, math.e), (1e-30, 0.0, math.e),
])
def test_zero_tiny_and_huge_vectors_stay_finite(more, less, expected):
    a, b = (torch.tensor([[value, 0.0]], requires_grad=True) for value in (more, less))
    loss = norm_ratio_loss(a, b)
    loss.backward()
    assert loss.item() == pytest.approx(expected, abs=1e-6)
    assert a.grad.isfinite().all() and b.grad.isfinite().all()
    assert norm_ratio(a, b).isfinite().all()


def test_no_pair_costs_nothing_and_still_has_a_gradient():
    features = torch.ones(3, 4, requires_grad=True)
    loss = norm_ratio_loss(features[:0], features[:0])
    loss.backward()
    assert loss.item() == 0 and (features.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_inside(dtype):
    more, less = 300 * vectors(8, 16).to(dtype), 300 * vectors(8, 16, seed=1).to(dtype)    # squares leave float16
    loss = norm_ratio_loss(more, less)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(norm_ratio_loss(more.double(), less.double()).item(), rel=1e-5)


# ---- direction


def test_the_smaller_norm_is_the_copy():
    norms_a, norms_b = np.array([1.0, 3.0, 2.0]), np.array([2.0, 1.0, 2.0])
    assert [Direction(d).name for d in direction(norms_a, norms_b)] == ["A_COPIES_B", "B_COPIES_A", "UNCLEAR"]


@given(st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 2))
def test_direction_turns_round_with_the_pair_and_is_the_same_for_tensors_and_arrays(a, b, margin):
    tensors = torch.tensor([a], dtype=torch.float64), torch.tensor([b], dtype=torch.float64)
    arrays = [tensor.numpy() for tensor in tensors]
    answer = direction(*tensors, margin=margin)
    assert isinstance(answer, torch.Tensor) and isinstance(direction(*arrays, margin=margin), np.ndarray)
    assert answer.item() == direction(*arrays, margin=margin).item() == -direction(*tensors[::-1], margin=margin).item()
    ratio = a / b if b else (math.inf if a else 1.0)
    if not any(math.isclose(ratio, edge, rel_tol=1e-12) for edge in (1 + margin, 1 / (1 + margin))):
        expected = 1 if ratio > 1 + margin else -1 if ratio < 1 / (1 + margin) else 0
        assert answer.item() == expected


def test_direction_of_all_pairs_zeros_and_nan():
    assert direction(np.array([[1.0], [3.0]]), np.array([2.0, 3.0])).tolist() == [[-1, -1], [1, 0]]
    assert direction(torch.tensor([0.0, 0.0, math.nan]), torch.tensor([0.0, 1.0, 1.0])).tolist() == [0, -1, 0]


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"one shape.*\(2, 3\).*\(3, 3\)"):
        norm_ratio(torch.zeros(2, 3), torch.zeros(3, 3))
    with pytest.raises(ValueError, match="one shape"):
        norm_ratio_loss(torch.zeros(()), torch.zeros(()))
    for margin in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="margin"):
            direction(torch.ones(1), torch.ones(1), margin=margin)
