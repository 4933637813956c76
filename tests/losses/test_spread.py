"""The hard-negative loss: published numbers, scalar loops, the floor, and an empty queue; uniformity by its loops."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.losses import hard_negative_loss
from ascl.losses.spread import pair_distances, uniformity

from .copy_cases import cosine, unit_rows, vectors


def oracle(query, queue):
    return -sum(math.log(max(1 - max(cosine(q, row) for row in queue), 1e-3)) for q in query) / len(query)


def test_published_numbers_and_gradient(shared):
    numbers = np.load(shared / "oracles" / "rdcd_hn_infonce.npz")
    query = torch.from_numpy(numbers["raw_q"]).requires_grad_()
    loss = hard_negative_loss(query, torch.from_numpy(numbers["queue"].T))
    loss.backward()
    assert loss.item() == pytest.approx(numbers["exp_hn"].item(), abs=1e-9)
    np.testing.assert_allclose(query.grad, numbers["exp_grad_hn"], atol=1e-9)


@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 6), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_it_is_the_definition(count, places, dim, seed):
    query, queue = vectors(count, dim, seed), unit_rows(places, dim, seed + 1)
    loss = hard_negative_loss(query, queue)
    assert loss.item() == pytest.approx(oracle(query.tolist(), queue.tolist()), rel=1e-9, abs=1e-9)


def test_a_step_against_the_gradient_leaves_the_nearest_negative():
    query, queue = vectors(4, 6).requires_grad_(), unit_rows(9, 6, 1).requires_grad_()
    hard_negative_loss(query, queue).backward()
    assert queue.grad is None
    with torch.no_grad():
        moved = torch.nn.functional.normalize(query - 1e-3 * query.grad, dim=1)
        before = (torch.nn.functional.normalize(query, dim=1) @ queue.T).max(dim=1).values
        assert ((moved @ queue.T).max(dim=1).values < before).all()
    assert torch.autograd.gradcheck(lambda q: hard_negative_loss(q, queue), [query])


def test_the_floor_at_a_query_that_is_in_the_queue():
    queue = unit_rows(3, 4)
    query = (2 * queue[:1]).requires_grad_()
    loss = hard_negative_loss(query, queue)
    loss.backward()
    assert loss.item() == pytest.approx(-math.log(1e-3)) and (query.grad == 0).all()


def test_an_empty_queue_costs_nothing():
    query = vectors(2, 4).requires_grad_()
    loss = hard_negative_loss(query, torch.zeros(0, 4))
    loss.backward()
    assert loss.item() == 0 and loss.shape == () and (query.grad == 0).all()


def test_half_precision_is_raised_inside():
    query, queue = vectors(5, 8).bfloat16(), unit_rows(7, 8, 1).bfloat16()
    loss = hard_negative_loss(query, queue)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(hard_negative_loss(query.double(), queue.double()).item(), rel=1e-5)


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match="queue"):
        hard_negative_loss(torch.ones(2, 4), torch.ones(3, 5))
    with pytest.raises(ValueError, match="query"):
        hard_negative_loss(torch.ones(4), torch.ones(3, 4))


@pytest.mark.parametrize("rows", [1, 3, 256])               # 3 leaves a ragged last block
@pytest.mark.parametrize("groups", [None, [0, 1, 0, 2, 2, 2, 5]])
def test_uniformity_is_the_mean_over_all_pairs_of_different_groups(rows, groups):
    points = vectors(7, 3)
    unit = points / points.norm(dim=1, keepdim=True)
    squared = [((unit[i] - unit[j]) ** 2).sum().item() for i in range(7) for j in range(i + 1, 7)
               if groups is None or groups[i] != groups[j]]
    groups = None if groups is None else torch.tensor(groups)
    found = torch.cat(list(pair_distances(points, groups, rows=rows)))
    assert sorted(found.tolist()) == pytest.approx(sorted(squared), abs=1e-12)
    expected = math.log(sum(math.exp(-2 * s) for s in squared) / len(squared))
    assert uniformity(points, groups, rows=rows) == pytest.approx(expected, rel=1e-9)


def test_uniformity_of_equal_and_of_opposite_vectors():
    assert uniformity(torch.ones(5, 3)) == pytest.approx(0, abs=1e-9)
    assert uniformity(torch.tensor([[1.0, 0], [-1.0, 0]])) == pytest.approx(-8)


@pytest.mark.parametrize("others", ["some", "every", "one row has none"])
def test_each_query_has_negatives_of_its_own(others):
    """Values and gradients of one query at a time against the rows that are others to it."""
    queue = unit_rows(7, 5, 1)
    mask = torch.rand(6, 7, generator=torch.Generator().manual_seed(2)) > (0.5 if others == "some" else -1)
    if others == "one row has none":
        mask[3] = False
    results = []
    for masked in (True, False):
        query = vectors(6, 5).requires_grad_()
        if masked:
            loss = hard_negative_loss(query, queue, others=mask)
        else:
            loss = sum(hard_negative_loss(query[i : i + 1], queue[mask[i]]) for i in range(6)) / 6
        loss.backward()
        results.append((loss.detach(), query.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
    with pytest.raises(ValueError, match=r"others must be \(6, 7\), got \(7, 6\)"):
        hard_negative_loss(vectors(6, 5), queue, others=mask.T)
