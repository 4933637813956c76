"""ASL's pairs against scalar loops over the published procedure; batches of identities, their resume and processes."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from ascl.asymmetry import norm_ratio_loss
from ascl.core.errors import DataError
from ascl.image_copy.training.sampler import PAIR_DRAWS, IdentityBatchSampler, ImageKind, draw_pairs, pairs_of_draws

# ---- pairs


def counts(first, second, selection):
    """Which pairs of kinds a selection takes, written out."""
    pair = {first, second}
    return {
        "all": True, "crop": pair <= {ImageKind.ORIGINAL, ImageKind.CROP}, "positive": ImageKind.NEGATIVE not in pair,
        "negative": ImageKind.NEGATIVE in pair and len(pair) == 2,
    }[selection]


def pairs_oracle(scales, draws, kinds, selection):
    result = []
    for identity, tried in enumerate(draws):
        for a, b in tried:
            same = scales[identity][a] == scales[identity][b]
            if not same and counts(kinds[identity][a], kinds[identity][b], selection):
                result.append((a, b, False) if scales[identity][a] > scales[identity][b] else (b, a, False))
                break
        else:
            result.append((tried[-1][0], tried[-1][0], True))
    images = len(scales[0])
    return [(i * images + more, i * images + less, tied) for i, (more, less, tied) in enumerate(result)]


def as_tuples(pairs):
    return list(zip(pairs.more.tolist(), pairs.less.tolist(), pairs.tied.tolist(), strict=True))


def test_published_draws_give_the_published_pairs(shared):
    numbers = np.load(shared / "oracles" / "asl_norm_ratio.npz")
    scales, sequence = torch.from_numpy(numbers["scales"]), numbers["draws"].tolist()
    draws = []                                          # one sequence: an identity takes draws until one will do
    for row in numbers["scales"]:
        tried = []
        while not tried or (row[tried[-1][0]] == row[tried[-1][1]] and len(tried) < PAIR_DRAWS):
            tried.append(sequence.pop(0))
        draws.append(tried + [tried[-1]] * (PAIR_DRAWS - len(tried)))
    assert not sequence
    pairs = pairs_of_draws(scales, torch.tensor(draws))
    assert pairs.more.tolist() == numbers["pair_hi"].tolist() and pairs.less.tolist() == numbers["pair_lo"].tolist()
    assert pairs.tied.tolist() == numbers["tie"].tolist()
    features = torch.from_numpy(numbers["features"])
    loss = norm_ratio_loss(features[pairs.more], features[pairs.less])
    assert loss.item() == pytest.approx(numbers["exp_loss"].item(), abs=1e-9)


@given(st.integers(1, 12), st.integers(1, 5), st.integers(1, 6), st.integers(0, 10**6),
       st.sampled_from(["all", "crop", "positive", "negative"]))
@settings(max_examples=80, deadline=None)
def test_pairs_are_those_of_the_procedure(identities, images, tries, seed, selection):
    rng = np.random.default_rng(seed)
    scales = rng.integers(0, 3, (identities, images)) / 2               # few values: many ties
    kinds, draws = rng.integers(0, 4, (identities, images)), rng.integers(0, images, (identities, tries, 2))
    pairs = pairs_of_draws(
        torch.from_numpy(scales), torch.from_numpy(draws), kinds=torch.from_numpy(kinds), selection=selection)
    assert as_tuples(pairs) == pairs_oracle(scales.tolist(), draws.tolist(), kinds.tolist(), selection)


def test_draws_come_from_the_generator_and_are_fair():
    scales = torch.tensor([[1.0, 0.5, 0.25]]).expand(6000, 3)
    first, again, other = (draw_pairs(scales, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert as_tuples(first) == as_tuples(again) != as_tuples(other)
    kept = ~first.tied
    share_tied = first.tied.float().mean().item()                       # (1 / 3) ** 5 = 0.004 stay tied
    assert 0.001 < share_tied < 0.008
    seen = Counter(zip((first.more[kept] % 3).tolist(), (first.less[kept] % 3).tolist(), strict=True))
    assert set(seen) == {(0, 1), (0, 2), (1, 2)} and min(seen.values()) > 1800       # 1,992 each, five deviations


def test_a_tie_is_one_row_twice_and_costs_one_without_gradient():
    features = torch.randn(8, 4, requires_grad=True)
    pairs = draw_pairs(torch.full((2, 4), 0.7), torch.Generator().manual_seed(0))
    assert pairs.tied.all() and torch.equal(pairs.more, pairs.less)
    loss = norm_ratio_loss(features[pairs.more], features[pairs.less])
    loss.backward()
    assert loss.item() == 1 and (features.grad == 0).all()


def test_bad_pairs_are_refused_by_name():
    generator, scales = torch.Generator(), torch.rand(3, 4)
    with pytest.raises(ValueError, match="finite"):
        draw_pairs(torch.full((2, 2), float("nan")), generator)
    with pytest.raises(ValueError, match=r"\(identities, images\).*\(12,\)"):
        draw_pairs(scales.flatten(), generator)
    with pytest.raises(ValueError, match="'crop' needs the kind of each image, \\(3, 4\\), got None"):
        draw_pairs(scales, generator, selection="crop")
    with pytest.raises(ValueError, match="unknown selection 'edges'"):
        draw_pairs(scales, generator, kinds=torch.zeros(3, 4), selection="edges")
    with pytest.raises(ValueError, match=r"\(3, n, 2\)"):
        pairs_of_draws(scales, torch.zeros(2, 5, 2, dtype=torch.long))


# ---- batches of identities


@given(st.integers(1, 14), st.integers(1, 3), st.integers(1, 5), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_every_batch_is_identities_x_views(originals, identities, views, seed):
    assume(originals >= identities)
    sampler = IdentityBatchSampler(originals, identities, views, seed=seed)
    batches = list(sampler)
    assert len(batches) == len(sampler) == originals // identities
    seen = []
    for batch in batches:
        assert len(batch) == identities * views
        groups = [batch[i : i + views] for i in range(0, len(batch), views)]
        for group in groups:
            assert group == [(0, group[0][1], view) for view in range(views)]
            seen.append(group[0][1])
    assert len(seen) == len(set(seen)) == identities * len(batches)      # no identity twice in an epoch
    assert set(seen) <= set(range(originals))


def test_epochs_differ_and_are_repeatable():
    sampler, again = (IdentityBatchSampler(20, 4, 2, seed=3) for _ in range(2))
    first = list(sampler)
    assert first == list(again) and {epoch for batch in first for epoch, _, _ in batch} == {0}
    sampler.set_epoch(1)
    second = list(sampler)
    assert [[key[1:] for key in batch] for batch in second] != [[key[1:] for key in batch] for batch in first]
    again.set_epoch(1)
    assert list(again) == second
    assert list(IdentityBatchSampler(20, 4, 2, seed=4)) != first


def test_a_resume_at_a_batch_goes_on_exactly():
    sampler = IdentityBatchSampler(20, 3, 4, seed=1)
    whole = list(sampler)
    for position in range(len(sampler) + 1):
        sampler.set_epoch(0, position)
        assert list(sampler) == whole[position:] and len(sampler) == len(whole)
    sampler.set_epoch(1)
    assert len(list(sampler)) == len(whole)


def test_bad_batches_are_refused_by_name():
    with pytest.raises(DataError, match="5 identities give no batch of 6"):
        IdentityBatchSampler(5, 6, 4)
    with pytest.raises(DataError, match="0 identities"):
        IdentityBatchSampler(0, 1, 4)
    for wrong in ({"identities": 0, "views": 4}, {"identities": 1, "views": 0}):
        with pytest.raises(ValueError, match="at least 1"):
            IdentityBatchSampler(5, **wrong)
    sampler = IdentityBatchSampler(5, 2, 4)
    for epoch, position in ((-1, 0), (0, 3), (0, -1)):
        with pytest.raises(ValueError, match="no batch"):
            sampler.set_epoch(epoch, position)
