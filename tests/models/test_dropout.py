"""Dropout of features, regions and words: rates, what is always kept, and evaluation without it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.models import AsCL
from ascl.models.base import TextEncoder
from ascl.models.dropout import InputDropout, kept


class Ones(TextEncoder):
    dim = 4

    def forward(self, texts):
        return torch.ones(len(texts), 6, 4), torch.arange(6) < torch.tensor([[6], [1]] * (len(texts) // 2))


@given(st.integers(1, 8), st.integers(1, 9), st.floats(0, 0.95), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_tokens_are_left_out_but_padding_never_comes_in_and_no_item_is_emptied(items, tokens, rate, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, tokens + 1, (items, 1), generator=generator)
    mask = torch.arange(tokens) < lengths
    left = kept(mask, rate)
    assert not (left & ~mask).any() and left.any(dim=1).all()


def test_the_rate_is_the_share_of_tokens_that_are_left_out():
    torch.manual_seed(0)
    mask = torch.ones(400, 50, dtype=torch.bool)
    assert kept(mask, 0.2).float().mean().item() == pytest.approx(0.8, abs=0.01)


def test_features_keep_their_mean():
    torch.manual_seed(0)
    dropped = InputDropout(features=0.3).of_features(torch.ones(300, 300))
    assert (dropped == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert dropped.mean().item() == pytest.approx(1, abs=0.01)


def test_a_model_drops_in_training_only():
    torch.manual_seed(0)
    model = AsCL(5, 4, Ones(), embed_dim=8, num_heads=2)
    model.dropout = InputDropout(0.5, 0.5, 0.5)
    images = torch.ones(2, 7, 5), torch.ones(2, 4)
    texts = ["one", "two"]
    assert torch.equal(model.eval().encode_texts(texts).mask, Ones()(texts)[1])
    assert model.dropout.of_regions(images[0], None) is None
    still = [model.encode_images(*images).regions for _ in range(2)]
    assert torch.equal(*still)
    model.train()
    assert not torch.equal(model.encode_images(*images).regions, still[0])
    words = torch.cat([model.encode_texts(texts).mask for _ in range(50)])
    assert 0 < words[::2].sum() < 300 and words[1::2].sum() == 50                   # the only word of a text stays
    masks = torch.cat([model.dropout.of_regions(images[0], None) for _ in range(50)])
    assert 0.4 < masks.float().mean() < 0.6


@pytest.mark.parametrize(("name", "values"), [
    ("dropout", (1.0, 0, 0)), ("region_dropout", (0, -0.1, 0)), ("word_dropout", (0, 0, float("nan"))),
])
def test_a_probability_out_of_range_is_refused(name, values):
    with pytest.raises(ValueError, match=f"^{name} is .*: it must be at least 0 and below 1"):
        InputDropout(*values)
