"""Scores of the pairs that a student chooses: those of the plain reference, and which pairs they are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.retrieval.scoring.candidates import hardest_pairs, score_chosen

VARIANTS = [{}, {"projections": False}, {"tied_key_value": True}, {"heads": 1}, {"masked": False}, {"k": 1},
            {"longest": 1}, {"images": 1, "texts": 1}]


@settings(max_examples=50, deadline=None)
@given(images=st.integers(1, 6), count=st.integers(1, 8), seed=st.integers(0, 1000))
def test_each_item_has_its_partner_and_its_hardest_others(images, count, seed):
    cosines = np.random.default_rng(seed).permutation(images**2).reshape(images, images).astype(float)
    wanted = np.eye(images, dtype=bool)
    for i in range(images):
        others = [j for j in range(images) if j != i]
        for j in sorted(others, key=lambda j: -cosines[i, j])[:count]:
            wanted[i, j] = True
        for j in sorted(others, key=lambda j: -cosines[j, i])[:count]:
            wanted[j, i] = True
    assert hardest_pairs(torch.from_numpy(cosines), count).tolist() == wanted.tolist()


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_chosen_pairs_have_the_scores_and_gradients_of_the_reference(example, variant):
    model, images, texts = example(**variant)
    chosen = torch.rand(len(images), len(texts)) < 0.5
    chosen[0, 0] = True
    scores, expected = score_chosen(model.fusion_weights(), images, texts, chosen), model.pair_scores(images, texts)
    assert (scores[~chosen] == -torch.inf).all()
    torch.testing.assert_close(scores[chosen], expected[chosen], rtol=0, atol=1e-12)
    weights = list(model.parameters())
    for found, wanted in zip(*(torch.autograd.grad(of[chosen].sin().sum(), weights, allow_unused=True)
                               for of in (scores, expected)), strict=True):
        assert (found is None) == (wanted is None)
        if found is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


def test_in_half_precision_chosen_pairs_are_near_the_reference(example):
    model, images, texts = example(images=8, texts=8, dtype=torch.float32)
    chosen = torch.rand(8, 8) < 0.5
    with torch.autocast("cpu", torch.bfloat16):
        scores = score_chosen(model.fusion_weights(), images, texts, chosen)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores[chosen], model.pair_scores(images, texts)[chosen], rtol=0, atol=0.03)
