"""Noise on words: padding untouched, amounts and draws as promised, gradients by finite differences, repeatable."""

import dataclasses

import pytest
import torch
from torch import Tensor

from ascl.samples.negatives import (
    BASIC_KINDS,
    KINDS,
    NoiseSettings,
    add_noise,
    dropout,
    feature_cutoff,
    gaussian,
    mixture,
    shuffle,
    token_cutoff,
)

SETTINGS = NoiseSettings(gaussian_scale=0.5, token_ratio=0.4, feature_ratio=0.25, dropout=0.3)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(*lengths: int, dim: int = 8, room: int = 2, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Words of the given lengths; padding holds values too, and lies in front, inside and behind, not only behind."""
    width = max(lengths) + room
    words = torch.randn(len(lengths), width, dim, generator=generator(99), dtype=dtype)
    mask = torch.zeros(len(lengths), width, dtype=torch.bool)
    for row, length in enumerate(lengths):
        mask[row, torch.randperm(width, generator=generator(row))[:length]] = True
    return words, mask


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_padding_stays_bit_for_bit_and_type_and_shape_too(kind, dtype):
    words, mask = batch(5, 1, 9, 2, 0, dtype=dtype)
    words[~mask] = torch.tensor([1.5, float("nan"), float("inf"), -0.0, 3, 4, 5, 6], dtype=dtype)
    noised = add_noise(words, mask, dataclasses.replace(SETTINGS, kind=kind), generator())
    assert noised.shape == words.shape and noised.dtype == dtype
    assert noised[mask].isfinite().all()
    view = {torch.float64: torch.int64, torch.float32: torch.int32}.get(dtype, torch.int16)
    assert torch.equal(noised[~mask].view(view), words[~mask].view(view))


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_state_decides_the_draw_and_torchs_own_state_does_not(kind):
    words, mask = batch(5, 3, 9, 4)
    settings = dataclasses.replace(SETTINGS, kind=kind)
    source = generator()
    first, second = add_noise(words, mask, settings, source), add_noise(words, mask, settings, source)
    torch.manual_seed(12345)
    assert torch.equal(add_noise(words, mask, settings, generator()), first)
    assert not torch.equal(first, second)


@pytest.mark.parametrize("kind", KINDS)
def test_every_caption_of_two_words_or_more_changes_and_the_input_does_not(kind):
    words, mask = batch(*range(2, 30))
    before = words.clone()
    for seed in range(20):
        noised = add_noise(words, mask, dataclasses.replace(SETTINGS, kind=kind), generator(seed))
        assert ((noised != words) & mask[..., None]).any(dim=(1, 2)).all()
    assert torch.equal(words, before)


@pytest.mark.parametrize("kind", KINDS)
def test_captions_of_a_batch_are_drawn_apart(kind):
    words = torch.randn(1, 12, 16, generator=generator(1)).expand(32, 12, 16)
    mask = torch.ones(32, 12, dtype=torch.bool)
    noised = add_noise(words, mask, dataclasses.replace(SETTINGS, kind=kind), generator())
    distinct = {tuple(caption.flatten().tolist()) for caption in noised}
    assert len(distinct) >= 20  # one draw for the whole batch would leave 1; two captions may still draw the same word


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "gaussian"] + ["mixture without gaussian"])
def test_gradients_match_finite_differences(kind):
    if kind.endswith("without gaussian"):
        kinds = tuple(k for k in BASIC_KINDS if k != "gaussian")
        settings = dataclasses.replace(SETTINGS, mixture_kinds=kinds)
    elif kind == "mixture":
        settings = dataclasses.replace(SETTINGS, mixture_kinds=("shuffle", "dropout"))
    else:
        settings = dataclasses.replace(SETTINGS, kind=kind)
    words, mask = batch(3, 1, 4, dim=3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda w: add_noise(w, mask, settings, generator()), words.requires_grad_())


def test_gaussian_passes_the_gradient_through_and_takes_none_through_its_size():
    words, mask = batch(3, 1, 4, dtype=torch.float64)
    weights = torch.randn(words.shape, generator=generator(5), dtype=torch.float64)
    words.requires_grad_()
    (gaussian(words, mask, generator(), scale=2.0) * weights).sum().backward()
    assert torch.equal(words.grad, weights)


# ---- each kind


def test_gaussian_has_the_size_of_each_captions_own_words():
    words, mask = batch(30, 7, 30, dim=512)
    words = words * torch.tensor([0.1, 1.0, 20.0])[:, None, None]
    words[~mask] = 1e4  # would spoil the size if it counted
    noise = gaussian(words, mask, generator(), scale=0.5) - words
    for row in range(3):
        real = words[row][mask[row]]
        size = 0.5 * (sum(float(x) ** 2 for x in real.flatten()) / real.numel()) ** 0.5
        drawn = noise[row][mask[row]]
        assert abs(float(drawn.std()) / size - 1) < 0.05 and abs(float(drawn.mean()) / size) < 0.05


def test_shuffle_is_a_permutation_of_the_real_words():
    words, mask = batch(5, 1, 9, 2)
    for seed in range(30):
        shuffled = shuffle(words, mask, generator(seed))
        for row in range(4):
            assert sorted(shuffled[row][mask[row]].tolist()) == sorted(words[row][mask[row]].tolist())
            assert torch.equal(shuffled[row], words[row]) == (row == 1)  # a caption of one word has no other order


def test_shuffle_reaches_every_order_about_equally_often():
    n = 6000
    words = torch.arange(3.0).reshape(1, 3, 1).repeat(n, 1, 1)
    shuffled = shuffle(words, torch.ones(n, 3, dtype=torch.bool), generator()).squeeze(-1)
    orders, counts = shuffled.unique(dim=0, return_counts=True)
    assert len(orders) == 5 and [0, 1, 2] not in orders.tolist()
    # the unchanged order, a sixth of the draws, is turned into one rotation, which so comes up twice as often
    assert ((counts - n / 6).abs() < 130).sum() == 4 and ((counts - n / 3).abs() < 150).sum() == 1


@pytest.mark.parametrize("ratio", [0.01, 0.2, 0.5, 0.99])
def test_token_cutoff_cuts_the_share_of_real_words_and_leaves_one(ratio):
    lengths = (1, 2, 3, 10, 25)
    words, mask = batch(*lengths)
    for seed in range(10):
        cut = token_cutoff(words, mask, generator(seed), ratio=ratio)
        gone = (cut == 0).all(dim=2)
        assert torch.equal(cut[~gone], words[~gone]) and not gone[~mask].any()
        for row, length in enumerate(lengths):
            wanted = min(max(round(length * ratio), 1), max(length - 1, 1))
            assert int(gone[row].sum()) == wanted


def test_token_cutoff_cuts_every_place_equally_often():
    words, mask = torch.ones(4000, 8, 1), torch.ones(4000, 8, dtype=torch.bool)
    share = (token_cutoff(words, mask, generator(), ratio=0.25) == 0).float().mean(dim=(0, 2))
    assert ((share - 0.25).abs() < 0.03).all()


@pytest.mark.parametrize("ratio, count", [(0.01, 1), (0.25, 4), (0.99, 15)])
def test_feature_cutoff_cuts_the_same_features_of_all_words_of_a_caption(ratio, count):
    words, mask = batch(6, 3, 9, dim=16)
    cut = feature_cutoff(words, mask, generator(), ratio=ratio)
    for row in range(3):
        gone = cut[row][mask[row]] == 0
        assert (gone == gone[0]).all() and int(gone[0].sum()) == count
        assert torch.equal(cut[row][mask[row]][~gone], words[row][mask[row]][~gone])


def test_dropout_drops_the_share_and_scales_the_rest_as_torch_does():
    words, mask = torch.ones(50, 20, 64), torch.ones(50, 20, dtype=torch.bool)
    dropped = dropout(words, mask, generator(), p=0.3)
    assert abs(float((dropped == 0).float().mean()) - 0.3) < 0.01
    expected = torch.nn.functional.dropout(torch.ones(100), 0.3).max()
    torch.testing.assert_close(dropped[dropped != 0].unique(), expected[None])


def test_mixture_gives_each_caption_one_whole_kind_with_equal_chances():
    """Each caption is recognized by what only its kind does to words that are all different from 0."""
    n = 3000
    words = 1 + torch.rand(n, 6, 20, generator=generator(3))
    mixed = mixture(words, torch.ones(n, 6, dtype=torch.bool), generator(), kinds=BASIC_KINDS, settings=SETTINGS)
    zeros = mixed == 0
    untouched = mixed == words
    token = zeros.all(dim=2).any(dim=1) & (untouched | zeros).all(dim=(1, 2))
    feature = zeros.all(dim=1).any(dim=1) & (untouched | zeros).all(dim=(1, 2))
    drop = zeros.any(dim=(1, 2)) & ~token & ~feature
    same_values = (mixed.flatten(1).sort(dim=1).values == words.flatten(1).sort(dim=1).values).all(dim=1)
    noisy = ~zeros.any(dim=(1, 2)) & ~same_values
    kinds = torch.stack([noisy, same_values, token, feature, drop])
    assert (kinds.sum(dim=0) == 1).all()
    assert ((kinds.sum(dim=1) - n / 5).abs() < 110).all()  # five standard deviations


def test_cutoff_draws_both_cutoffs_and_a_mixture_of_one_kind_is_that_kind():
    words, mask = 1 + torch.rand(200, 6, 20, generator=generator(3)), torch.ones(200, 6, dtype=torch.bool)
    zeros = add_noise(words, mask, dataclasses.replace(SETTINGS, kind="cutoff"), generator()) == 0
    token, feature = zeros.all(dim=2).any(dim=1), zeros.all(dim=1).any(dim=1)
    assert (token ^ feature).all() and 60 < int(token.sum()) < 140
    only = add_noise(words, mask, dataclasses.replace(SETTINGS, mixture_kinds=("shuffle",)), generator())
    assert torch.equal(only.flatten(1).sort(dim=1).values, words.flatten(1).sort(dim=1).values)


# ---- bad input


def test_settings_are_checked():
    with pytest.raises(ValueError, match="unknown noise 'blur': use one of gaussian, shuffle, token_cutoff"):
        NoiseSettings(kind="blur")
    with pytest.raises(ValueError, match="unknown noise 'mixture'"):
        NoiseSettings(mixture_kinds=("gaussian", "mixture"))
    with pytest.raises(ValueError, match="mixture_kinds is empty"):
        NoiseSettings(mixture_kinds=())
    for wrong in (float("nan"), float("inf"), 0.0):
        with pytest.raises(ValueError, match=f"gaussian_scale must be positive and finite, got {wrong}"):
            NoiseSettings(gaussian_scale=wrong)
    for name in ("token_ratio", "feature_ratio", "dropout"):
        for value in (0.0, 1.0, -0.5):
            with pytest.raises(ValueError, match=f"{name} must be between 0 and 1, got {value}"):
                NoiseSettings(**{name: value})


@pytest.mark.parametrize("kind", KINDS)
def test_inputs_are_checked(kind):
    words, mask = batch(3, 2)
    settings = dataclasses.replace(SETTINGS, kind=kind)
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 5\)"):
        add_noise(words, mask.float(), settings, generator())
    with pytest.raises(ValueError, match=r"mask must be bool \(2, 5\), True = a real word, got \(2, 4\)"):
        add_noise(words, mask[:, :4], settings, generator())
    with pytest.raises(ValueError, match="words must be floating point"):
        add_noise(words.long(), mask, settings, generator())
