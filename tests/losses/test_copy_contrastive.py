"""InfoNCE against a queue and SSCD's loss: published numbers, scalar loops, gradients, and the edges."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.losses import info_nce_queue, sscd_loss

from .copy_cases import cosine, softmax, unit_rows, vectors


def info_nce_oracle(query, key, queue, temperature):
    terms = []
    for q, k in zip(query, key, strict=True):
        terms.append(-math.log(softmax([cosine(q, other) / temperature for other in [k, *queue]])[0]))
    return sum(terms) / len(terms)


def sscd_oracle(rows, in_common, temperature, entropy_weight, mean_over_positives):
    """in_common: (i, j) -> whether two different rows have content in common."""
    count, info_nce, entropy = len(rows), 0.0, 0.0
    for i, row in enumerate(rows):
        similar = [cosine(row, other) for other in rows]
        negatives = [j for j in range(count) if j != i and not in_common(i, j)]
        positives = [j for j in range(count) if j != i and in_common(i, j)]
        against = sum(math.exp(similar[j] / temperature) for j in negatives) + 1e-6
        costs = [-math.log(math.exp(similar[j] / temperature) / (math.exp(similar[j] / temperature) + against))
                 for j in positives]
        info_nce += sum(costs) / (max(1, len(costs)) if mean_over_positives else 1)
        if negatives:
            entropy -= math.log(math.sqrt(max(2 - 2 * max(similar[j] for j in negatives), 1e-6)))
    return info_nce / count + entropy_weight * entropy / count


# ---- InfoNCE against a queue


def test_published_info_nce_and_its_gradient(shared):
    numbers = np.load(shared / "oracles" / "rdcd_hn_infonce.npz")
    query = torch.from_numpy(numbers["raw_q"]).requires_grad_()
    key, queue = torch.from_numpy(numbers["k"]), torch.from_numpy(numbers["queue"].T)
    loss = info_nce_queue(query, key, queue, temperature=numbers["temperature"].item())
    loss.backward()
    assert loss.item() == pytest.approx(numbers["exp_infonce"].item(), abs=1e-9)
    np.testing.assert_allclose(query.grad, numbers["exp_grad_infonce"], atol=1e-9)


@given(st.integers(1, 5), st.integers(0, 6), st.integers(2, 6), st.integers(0, 10**6), st.floats(0.03, 2))
@settings(max_examples=40, deadline=None)
def test_info_nce_is_the_cross_entropy_of_the_definition(count, places, dim, seed, temperature):
    query, key, queue = vectors(count, dim, seed), vectors(count, dim, seed + 1), unit_rows(places, dim, seed + 2)
    loss = info_nce_queue(query, key, queue, temperature=temperature)
    expected = info_nce_oracle(query.tolist(), key.tolist(), queue.tolist(), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_equal_cosines_give_the_logarithm_of_the_number_of_candidates():
    query = torch.eye(8)[:3]
    away = torch.eye(8)[4:].repeat(5, 1)                        # every cosine is 0
    assert info_nce_queue(query, torch.eye(8)[3:6], away, temperature=0.07).item() == pytest.approx(math.log(21))


def test_an_empty_queue_costs_nothing_and_has_no_gradient():
    query = vectors(2, 3).requires_grad_()
    loss = info_nce_queue(query, vectors(2, 3, 1), torch.zeros(0, 3), temperature=0.07)
    loss.backward()
    assert loss.item() == 0 and (query.grad == 0).all()


def test_only_the_query_gets_a_gradient():
    query, key, queue = (x.requires_grad_() for x in (vectors(3, 4), vectors(3, 4, 1), unit_rows(5, 4, 2)))
    info_nce_queue(query, key, queue, temperature=0.2).backward()
    assert query.grad.abs().sum() > 0 and key.grad is None and queue.grad is None
    assert torch.autograd.gradcheck(lambda q: info_nce_queue(q, key, queue, temperature=0.2), [query])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_inside_under_autocast_too(dtype):
    query, key, queue = (x.to(dtype) for x in (vectors(6, 16), vectors(6, 16, 1), unit_rows(30, 16, 2)))
    exact = info_nce_queue(query.double(), key.double(), queue.double(), temperature=0.02).item()
    loss = info_nce_queue(query, key, queue, temperature=0.02)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact, rel=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = info_nce_queue(query.float(), key.float(), queue.float(), temperature=0.02)
    assert under.dtype == torch.float32 and under.item() == pytest.approx(exact, rel=1e-5)


# ---- SSCD


def test_published_sscd_loss_and_its_gradient(shared):
    numbers = np.load(shared / "oracles" / "sscd_loss_plain.npz")
    raw, labels = torch.from_numpy(numbers["raw"]).requires_grad_(), torch.from_numpy(numbers["labels"])
    settings_ = {name: numbers[name].item() for name in ("temperature", "entropy_weight")}
    loss = sscd_loss(raw, labels, **settings_)
    loss.backward()
    assert loss.item() == pytest.approx(numbers["exp_total"].item(), abs=1e-9)
    np.testing.assert_allclose(raw.grad, numbers["exp_grad_raw"], atol=1e-9)
    plain = sscd_loss(raw, labels, temperature=settings_["temperature"], entropy_weight=0)
    assert plain.item() == pytest.approx(numbers["exp_infonce"].item(), abs=1e-9)
    one_hot = torch.nn.functional.one_hot(labels).double()      # two copies of each: both forms agree
    assert sscd_loss(raw, one_hot, **settings_).item() == pytest.approx(loss.item(), abs=1e-9)


@given(st.integers(1, 8), st.integers(1, 4), st.integers(0, 10**6), st.floats(0.05, 1), st.floats(0, 30))
@settings(max_examples=40, deadline=None)
def test_sscd_loss_is_the_definition_for_any_labels(count, classes, seed, temperature, weight):
    rows = vectors(count, 4, seed)
    labels = torch.randint(classes, (count,), generator=torch.Generator().manual_seed(seed))
    loss = sscd_loss(rows, labels, temperature=temperature, entropy_weight=weight)
    expected = sscd_oracle(rows.tolist(), lambda i, j: labels[i] == labels[j], temperature, weight, False)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 10**6), st.floats(0.05, 1), st.floats(0, 30))
@settings(max_examples=40, deadline=None)
def test_mixed_rows_are_positives_of_all_with_which_they_share_an_image(count, classes, seed, temperature, weight):
    rows, generator = vectors(count, 4, seed), torch.Generator().manual_seed(seed)
    shares = torch.rand(count, classes, generator=generator) * (torch.rand(count, classes, generator=generator) < 0.4)
    loss = sscd_loss(rows, shares, temperature=temperature, entropy_weight=weight)
    expected = sscd_oracle(
        rows.tolist(), lambda i, j: any(a > 0 and b > 0 for a, b in zip(shares[i], shares[j], strict=True)),
        temperature, weight, True,
    )
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-9)


def test_a_tiny_share_is_a_share():
    shares = torch.tensor([[1.0, 1e-30, 0.0], [0.0, 1e-30, 1.0], [1.0, 0.0, 0.0]])
    rows = vectors(3, 4)
    whole = (shares > 0).float()
    assert sscd_loss(rows, shares, temperature=0.1, entropy_weight=1) == sscd_loss(
        rows, whole, temperature=0.1, entropy_weight=1)


@pytest.mark.parametrize("labels", [[0, 0, 0], [0, 1, 2], [0]], ids=["no negative", "no positive", "batch of one"])
def test_batches_without_negatives_or_positives_are_finite(labels):
    for form in (torch.tensor(labels), torch.nn.functional.one_hot(torch.tensor(labels))):
        rows = vectors(len(labels), 4).requires_grad_()
        loss = sscd_loss(rows, form, temperature=0.05, entropy_weight=30)
        loss.backward()
        assert loss.isfinite() and rows.grad.isfinite().all()


def test_a_small_temperature_does_not_overflow():
    rows = vectors(6, 4).float().requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 2, 2])
    loss = sscd_loss(rows, labels, temperature=0.005, entropy_weight=1)        # exp(200) has no float32
    loss.backward()
    exact = sscd_oracle(rows.double().tolist(), lambda i, j: labels[i] == labels[j], 0.005, 1, False)
    assert loss.item() == pytest.approx(exact, rel=1e-4) and rows.grad.isfinite().all()


def test_copies_of_another_image_at_the_very_same_place_stop_at_the_floor():
    rows = torch.ones(4, 3, dtype=torch.float64, requires_grad=True)
    loss = sscd_loss(rows, torch.tensor([0, 0, 1, 1]), temperature=0.05, entropy_weight=1)
    loss.backward()
    assert loss.item() == pytest.approx(math.log(3) + 0.5 * math.log(1e6), rel=1e-6)
    assert rows.grad.isfinite().all()


def test_sscd_gradient_is_that_of_finite_differences():
    rows = vectors(6, 3).requires_grad_()
    labels = torch.tensor([0, 0, 1, 1, 1, 2])
    assert torch.autograd.gradcheck(lambda r: sscd_loss(r, labels, temperature=0.3, entropy_weight=2), [rows])


ROWS, QUEUE = torch.ones(3, 4), torch.zeros(5, 4)


@pytest.mark.parametrize(("loss", "inputs", "settings_", "message"), [
    (info_nce_queue, (ROWS, ROWS[:2], QUEUE), {}, r"query \(3, 4\), key \(2, 4\)"),
    (info_nce_queue, (ROWS, ROWS, QUEUE.T), {}, r"queue must be \(Q, 4\).*\(4, 5\)"),
    (info_nce_queue, (ROWS, ROWS, QUEUE), {"temperature": 0.0}, "temperature"),
    (sscd_loss, (ROWS[:0], torch.ones(0, dtype=torch.long)), {"entropy_weight": 1}, "at least 1"),
    (sscd_loss, (ROWS, torch.zeros(3)), {"entropy_weight": 1}, "labels"),
    (sscd_loss, (ROWS, torch.zeros(2, 5)), {"entropy_weight": 1}, "labels"),
    (sscd_loss, (ROWS, torch.zeros(3, dtype=torch.long)), {"entropy_weight": -1}, "entropy_weight"),
])
def test_bad_input_is_refused_by_name(loss, inputs, settings_, message):
    with pytest.raises(ValueError, match=message):
        loss(*inputs, **{"temperature": 0.1} | settings_)
