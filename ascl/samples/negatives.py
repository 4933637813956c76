"""Generated negatives: noise on projected words (Asymmetry-I; AsCL, section "noise information").

Every function takes words (B, L, D) and a mask (B, L), changes only real words, draws for each caption independently,
and is differentiable in the words. Padding stays bit for bit. All draws come from one torch.Generator on the words'
device, so its state decides the result.

A score built from attention over words and means over words does not depend on their order: it cannot tell a shuffled
caption from the original. Shuffling is here because it is in the paper; the score can see all other kinds.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ascl.core.tensors import at_least_float32, check_positive

CUTOFFS = ("token_cutoff", "feature_cutoff")
BASIC_KINDS = ("gaussian", "shuffle", *CUTOFFS, "dropout")
KINDS = (*BASIC_KINDS, "cutoff", "mixture")


@dataclass(frozen=True)
class NoiseSettings:
    """Kind and amount of noise.

    Attributes:
        kind: one of `KINDS`; "cutoff" draws one of the two cutoffs for each caption, "mixture" one of `mixture_kinds`.
        gaussian_scale: standard deviation, relative to the root mean square of the caption's own words, > 0.
        token_ratio: share of a caption's real words that is set to zero, in (0, 1).
        feature_ratio: share of the D features that is set to zero in all words of a caption, in (0, 1).
        dropout: probability that an element is set to zero, in (0, 1).
        mixture_kinds: the kinds that "mixture" draws from, a subset of `BASIC_KINDS`.

    Raises:
        ValueError: a kind is unknown or an amount is out of range.
    """

    kind: str = "mixture"
    gaussian_scale: float = 1.0
    token_ratio: float = 0.3
    feature_ratio: float = 0.3
    dropout: float = 0.5
    mixture_kinds: tuple[str, ...] = BASIC_KINDS

    def __post_init__(self) -> None:
        _check_kind(self.kind, KINDS)
        if not self.mixture_kinds:
            raise ValueError(f"mixture_kinds is empty: name at least one of {', '.join(BASIC_KINDS)}")
        for kind in self.mixture_kinds:
            _check_kind(kind, BASIC_KINDS)
        check_positive(gaussian_scale=self.gaussian_scale)
        for name in ("token_ratio", "feature_ratio", "dropout"):
            _check_share(name, getattr(self, name))


def add_noise(words: Tensor, mask: Tensor, settings: NoiseSettings, generator: Generator | None) -> Tensor:
    """Return a noised copy of each caption's words.

    Args:
        words: (B, L, D) floating point.
        mask: (B, L) bool, True = a real word.
        settings: kind and amount of the noise.
        generator: on the words' device; None = torch's default generator for that device.

    Returns:
        (B, L, D), with the type and device of `words`.

    Raises:
        ValueError: words or mask have another shape or type.
    """
    if settings.kind in ("mixture", "cutoff"):
        kinds = CUTOFFS if settings.kind == "cutoff" else settings.mixture_kinds
        return mixture(words, mask, generator, kinds=kinds, settings=settings)
    return _basic(settings.kind, words, mask, generator, settings)


def gaussian(words: Tensor, mask: Tensor, generator: Generator | None, *, scale: float) -> Tensor:
    """Add normal noise with standard deviation `scale` times the root mean square of the caption's real words.

    The scale is relative, because the paper gives none and the 1.0 of the released code means something different for
    every model. The root mean square has no gradient: with one, the words would learn to be small.
    """
    _check_inputs(words, mask)
    check_positive(scale=scale)
    real = at_least_float32(words.detach().masked_fill(~mask[..., None], 0.0))
    elements = mask.sum(dim=1).clamp(min=1) * words.shape[2]
    deviation = scale * (real.square().sum(dim=(1, 2)) / elements).sqrt()  # (B,)
    noise = torch.randn(words.shape, generator=generator, device=words.device, dtype=real.dtype)
    return _on_real(words + (noise * deviation[:, None, None]).to(words.dtype), words, mask)


def shuffle(words: Tensor, mask: Tensor, generator: Generator | None) -> Tensor:
    """Permute the real words of each caption among their places; if there are two or more, at least two move."""
    _check_inputs(words, mask)
    count = mask.sum(dim=1, keepdim=True)  # (B, 1)
    position = torch.arange(mask.shape[1], device=mask.device)
    padding = position >= count  # (B, L), in the order of `places`
    places = torch.argsort((~mask).byte(), dim=1, stable=True)  # places of real words in order, then of padding
    source = _random_order(mask, generator)  # places of real words in random order, then of padding
    unmoved = (padding | (source == places)).all(dim=1, keepdim=True)
    rotated = places.gather(1, (position + 1) % count.clamp(min=1))
    index = torch.empty_like(places).scatter(1, places, torch.where(unmoved, rotated, source))
    return _on_real(words.gather(1, index[..., None].expand_as(words)), words, mask)


def token_cutoff(words: Tensor, mask: Tensor, generator: Generator | None, *, ratio: float) -> Tensor:
    """Set a share `ratio` of each caption's real words to zero: at least one, but not all if there are two or more."""
    _check_inputs(words, mask)
    _check_share("ratio", ratio)
    count = mask.sum(dim=1, keepdim=True)  # (B, 1)
    cut_count = torch.round(count * ratio).long().clamp(min=1).minimum((count - 1).clamp(min=1))
    order = _random_order(mask, generator)
    rank = torch.empty_like(order).scatter(1, order, torch.arange(mask.shape[1], device=mask.device).expand_as(order))
    return words.masked_fill(((rank < cut_count) & mask)[..., None], 0.0)


def feature_cutoff(words: Tensor, mask: Tensor, generator: Generator | None, *, ratio: float) -> Tensor:
    """Set a share `ratio` of the D features to zero in all real words of a caption: at least one, but not all."""
    _check_inputs(words, mask)
    _check_share("ratio", ratio)
    batch, _, dim = words.shape
    cut_count = min(max(round(ratio * dim), 1), max(dim - 1, 1))
    order = torch.rand(batch, dim, generator=generator, device=words.device).argsort(dim=1)
    cut = torch.zeros(batch, dim, dtype=torch.bool, device=words.device).scatter(1, order[:, :cut_count], True)
    return words.masked_fill(cut[:, None, :] & mask[..., None], 0.0)


def dropout(words: Tensor, mask: Tensor, generator: Generator | None, *, p: float) -> Tensor:
    """Set each element to zero with probability `p`, and divide the others by 1 - p (`torch.nn.functional.dropout`)."""
    _check_inputs(words, mask)
    _check_share("p", p)
    kept = torch.rand(words.shape, generator=generator, device=words.device) >= p
    return _on_real(words * kept / (1 - p), words, mask)


def mixture(words: Tensor, mask: Tensor, generator: Generator | None, *, kinds: tuple[str, ...],
            settings: NoiseSettings) -> Tensor:
    """Add noise of one kind to each caption, drawn from `kinds` with equal probability; amounts from `settings`."""
    _check_inputs(words, mask)
    if not kinds:
        raise ValueError(f"kinds is empty: name at least one of {', '.join(BASIC_KINDS)}")
    drawn = torch.randint(len(kinds), (len(words),), generator=generator, device=words.device)
    noised = words
    # every kind on the whole batch, then a choice per caption: this never waits for a count from the device
    for number, kind in enumerate(kinds):
        of_kind = _basic(kind, words, mask, generator, settings)
        noised = torch.where((drawn == number)[:, None, None], of_kind, noised)
    return noised


def _basic(kind: str, words: Tensor, mask: Tensor, generator: Generator | None, settings: NoiseSettings) -> Tensor:
    _check_kind(kind, BASIC_KINDS)
    if kind == "gaussian":
        return gaussian(words, mask, generator, scale=settings.gaussian_scale)
    if kind == "shuffle":
        return shuffle(words, mask, generator)
    if kind == "token_cutoff":
        return token_cutoff(words, mask, generator, ratio=settings.token_ratio)
    if kind == "feature_cutoff":
        return feature_cutoff(words, mask, generator, ratio=settings.feature_ratio)
    return dropout(words, mask, generator, p=settings.dropout)


def _random_order(mask: Tensor, generator: Generator | None) -> Tensor:
    """Return (B, L) places in random order, those of real words first."""
    keys = torch.rand(mask.shape, generator=generator, device=mask.device)
    return torch.argsort(keys + (~mask).to(keys.dtype), dim=1)


def _on_real(noised: Tensor, words: Tensor, mask: Tensor) -> Tensor:
    """Return `noised` at real words, and `words` bit for bit at padding."""
    return torch.where(mask[..., None], noised, words)


def _check_inputs(words: Tensor, mask: Tensor) -> None:
    if words.ndim != 3 or not words.is_floating_point():
        raise ValueError(f"words must be floating point (B, L, D), got {tuple(words.shape)} of {words.dtype}")
    if mask.shape != words.shape[:2] or mask.dtype != torch.bool:
        raise ValueError(f"mask must be bool {tuple(words.shape[:2])}, True = a real word, got {tuple(mask.shape)} "
                         f"of {mask.dtype}")


def _check_kind(kind: str, kinds: tuple[str, ...]) -> None:
    if kind not in kinds:
        raise ValueError(f"unknown noise {kind!r}: use one of {', '.join(kinds)}")


def _check_share(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be between 0 and 1, got {value}")
