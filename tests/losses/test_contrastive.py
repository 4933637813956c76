"""The losses against scalar loops that follow the paper's equations."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.asymmetry import keep_generated_negatives
from ascl.losses import ascl_loss, asymmetry_loss, hardest_triplet, info_nce


def info_nce_oracle(scores, extra, temperature):
    total = 0.0
    for i, row in enumerate(scores):
        terms = [math.exp(s / temperature) for s in [*row, *(extra[i] if extra else [])]]
        total -= math.log(math.exp(row[i] / temperature) / sum(terms))
    return total / len(scores)


def term_oracle(scores, negatives, temperature):
    """Equation 3 with its -log and with alpha: a generated negative above the positive is left out of the sum."""
    columns = [list(column) for column in zip(*scores, strict=True)]
    kept = [[s for s in row if s <= scores[i][i]] for i, row in enumerate(negatives)] if negatives else None
    return info_nce_oracle(columns, None, temperature) + info_nce_oracle(scores, kept, temperature)


def triplet_oracle(scores, extra, margin, hardness):
    total = 0.0
    for i, row in enumerate(scores):
        others = [s for j, s in enumerate(row) if j != i] + ([s for s in extra[i] if s > -math.inf] if extra else [])
        hinges = [max(0.0, margin + s - row[i]) for s in others] or [0.0]
        total += hardness * max(hinges) + (1 - hardness) * sum(hinges) / len(hinges)
    return total / len(scores)


def random_scores(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


batches = st.tuples(st.integers(1, 6), st.integers(0, 5), st.integers(0, 10**6), st.floats(0.02, 2.0))


@given(batches)
@settings(max_examples=40, deadline=None)
def test_info_nce_is_the_cross_entropy_of_the_definition(case):
    size, extras, seed, temperature = case
    scores, extra = random_scores(size, size, seed=seed), random_scores(size, extras, seed=seed + 1)
    loss = info_nce(scores, extra if extras else None, temperature=temperature)
    assert loss.item() == pytest.approx(info_nce_oracle(scores.tolist(), extra.tolist(), temperature), rel=1e-9)


@given(batches, st.floats(0.01, 0.9))
@settings(max_examples=40, deadline=None)
def test_smoothed_labels_leave_a_share_of_the_target_to_the_candidates_that_count(case, smoothing):
    size, extras, seed, temperature = case
    scores, extra = random_scores(size, size, seed=seed), random_scores(size, extras, seed=seed + 1)
    extra[extra > 0.5] = -math.inf
    expected = 0.0
    for i, (row, more) in enumerate(zip(scores.tolist(), extra.tolist(), strict=True)):
        used = [s / temperature for s in [*row, *more] if s > -math.inf]
        log_sum = math.log(sum(math.exp(s) for s in used))
        costs = [log_sum - s for s in used]
        expected += ((1 - smoothing) * costs[i] + smoothing * sum(costs) / len(costs)) / size
    for of in (scores, extra):
        of.requires_grad_()
    loss = info_nce(scores, extra if extras else None, temperature=temperature, label_smoothing=smoothing)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    loss.backward()
    assert scores.grad.isfinite().all() and (not extras or (extra.grad[extra == -math.inf] == 0).all())


def test_smoothing_the_whole_label_is_refused():
    with pytest.raises(ValueError, match="label_smoothing is 1.0: it must be at least 0 and below 1"):
        info_nce(torch.eye(2), temperature=0.1, label_smoothing=1.0)


@given(batches)
@settings(max_examples=40, deadline=None)
def test_ascl_loss_is_the_mean_of_the_two_terms(case):
    size, extras, seed, temperature = case
    scores, positives = random_scores(size, size, seed=seed), random_scores(size, size, seed=seed + 1)
    negatives, noised = random_scores(size, extras, seed=seed + 2), random_scores(size, extras, seed=seed + 3)
    loss = ascl_loss(scores, negatives, positives, noised, temperature=temperature)
    expected = 0.5 * term_oracle(scores.tolist(), negatives.tolist(), temperature)
    expected += 0.5 * term_oracle(positives.tolist(), noised.tolist(), temperature)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_without_generated_samples_the_loss_is_the_plain_symmetric_one():
    scores = random_scores(5, 5)
    assert ascl_loss(scores, temperature=0.1).item() == pytest.approx(term_oracle(scores.tolist(), None, 0.1))


def test_equal_scores_give_the_logarithm_of_the_number_of_candidates():
    scores = torch.zeros(4, 4)
    assert info_nce(scores, torch.zeros(4, 3), temperature=0.05).item() == pytest.approx(math.log(7))
    full = ascl_loss(scores, scores, scores, scores, temperature=0.05)
    assert full.item() == pytest.approx(math.log(4) + math.log(8))


def test_a_generated_negative_above_the_positive_is_left_out_and_not_scored_zero():
    scores = torch.tensor([[0.5, 0.1], [0.2, 0.6]])
    negatives = torch.tensor([[0.9, 0.3], [0.1, 0.7]])
    kept = torch.tensor([[-math.inf, 0.3], [0.1, -math.inf]])
    zeroed = torch.tensor([[0.0, 0.3], [0.1, 0.0]])
    loss = asymmetry_loss(scores, negatives, lambda s, n: info_nce(s, n, temperature=0.1))
    by_hand = info_nce(scores.T, temperature=0.1) + info_nce(scores, kept, temperature=0.1)
    wrong = info_nce(scores.T, temperature=0.1) + info_nce(scores, zeroed, temperature=0.1)
    assert loss.item() == pytest.approx(by_hand.item())
    assert loss.item() != pytest.approx(wrong.item())


def test_a_tied_generated_negative_is_kept():
    assert keep_generated_negatives(torch.tensor([0.5]), torch.tensor([[0.5, 0.5001, 0.4, 0.5 + 1e-7]])).tolist() == [
        [True, False, True, True]
    ]


def test_left_out_negatives_get_no_gradient_and_the_others_a_finite_one():
    scores = random_scores(4, 4).requires_grad_()
    negatives = random_scores(4, 6, seed=1).requires_grad_()
    asymmetry_loss(scores, negatives, lambda s, n: info_nce(s, n, temperature=0.05)).backward()
    left_out = negatives.detach() > scores.detach().diagonal().unsqueeze(1)
    assert left_out.any() and not left_out.all()
    assert (negatives.grad[left_out] == 0).all()
    assert (negatives.grad[~left_out] > 0).all() and scores.grad.isfinite().all()


def test_gradients_are_those_of_finite_differences():
    inputs = [random_scores(3, 3, seed=s).requires_grad_() for s in range(4)]
    assert torch.autograd.gradcheck(lambda a, b, c, d: ascl_loss(a, b, c, d, temperature=0.3), inputs)
    assert torch.autograd.gradcheck(lambda a, b: hardest_triplet(a, b, margin=0.2, hardness=0.5), inputs[:2])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_inside(dtype):
    scores = random_scores(8, 8).to(dtype)
    loss = info_nce(scores, temperature=0.01)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(info_nce(scores.double(), temperature=0.01).item(), rel=1e-5)


@given(batches, st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_triplet_is_the_hinge_of_the_definition(case, hardness):
    size, extras, seed, margin = case
    scores, extra = random_scores(size, size, seed=seed), random_scores(size, extras, seed=seed + 1)
    if extras:
        extra[0, 0] = -math.inf
    loss = hardest_triplet(scores, extra if extras else None, margin=margin, hardness=hardness)
    expected = triplet_oracle(scores.tolist(), extra.tolist() if extras else None, margin, hardness)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_triplet_of_a_collapsed_batch_is_the_margin():
    assert hardest_triplet(torch.full((5, 5), 0.3), margin=0.2).item() == pytest.approx(0.2)


def test_triplet_in_the_place_of_the_cross_entropy():
    scores, negatives = random_scores(4, 4), random_scores(4, 4, seed=1)
    total = ascl_loss(scores, negatives, temperature=0.05, contrast=lambda s, n: hardest_triplet(s, n, margin=0.2))
    kept = negatives.masked_fill(negatives > scores.diagonal().unsqueeze(1), -math.inf)
    assert total.item() == pytest.approx(
        triplet_oracle(scores.T.tolist(), None, 0.2, 1.0) + triplet_oracle(scores.tolist(), kept.tolist(), 0.2, 1.0)
    )


def test_bad_input_is_refused_by_name():
    with pytest.raises(ValueError, match=r"\(B, B\).*\(3, 4\)"):
        info_nce(torch.zeros(3, 4), temperature=0.1)
    with pytest.raises(ValueError, match="extra_negatives"):
        info_nce(torch.zeros(3, 3), torch.zeros(2, 3), temperature=0.1)
    with pytest.raises(ValueError, match="temperature"):
        info_nce(torch.zeros(3, 3), temperature=0.0)
    with pytest.raises(ValueError, match="positive_scores"):
        ascl_loss(torch.zeros(3, 3), None, None, torch.zeros(3, 3), temperature=0.1)
    with pytest.raises(ValueError, match="hardness"):
        hardest_triplet(torch.zeros(3, 3), margin=0.2, hardness=1.5)
