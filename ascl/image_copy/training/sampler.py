"""Sampling for ASL: batches of identities x images, and for each identity a pair in which one image shows more.

All random choices come from a generator or from (seed, epoch), so they are the same in every run and for any number of
workers.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import IntEnum
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from ascl.core.errors import DataError

PAIR_DRAWS = 5      # as in the published training, after which a tie is accepted

PairSelection = Literal["all", "crop", "negative", "positive"]


class ImageKind(IntEnum):
    """How an image of an identity was made."""

    ORIGINAL = 0
    CROP = 1        # part of the original
    POSITIVE = 2    # another edited copy
    NEGATIVE = 3    # hard negative: not a copy, although the original may be a crop or an edit of it


class ContentPairs(NamedTuple):
    """One pair per identity.

    If no draw gave a pair to order, `more` and `less` are the same row, so exp(1 - |more| / |less|) is 1 and has no
    gradient.
    """

    more: Tensor  # (P,) int64 rows of the batch, the images that show more
    less: Tensor  # (P,) int64, the images that show less
    tied: Tensor  # (P,) bool, True = no draw gave a pair


def draw_pairs(
    scales: Tensor, generator: torch.Generator, *, kinds: Tensor | None = None, selection: PairSelection = "all"
) -> ContentPairs:
    """Draw two images of each identity with replacement, at most five times until one shows more.

    Args:
        scales: (P, K) content scale of image k of identity p, the share of the original that it shows; its row in the
            batch is p * K + k.
        generator: of torch, for the draws.
        kinds: (P, K) `ImageKind`; needed for every selection except "all".
        selection: which pairs of different scales count. "all" is ASL. The others are our readings of ablations that
            the paper names but does not define: "crop" (ASL-Crop) only originals and crops, "positive" (ASL-Positive)
            pairs without hard negatives, "negative" (ASL-Negative) a hard negative and an image that is not one.

    Raises:
        ValueError: the shapes do not match, a scale is not finite, the selection is unknown or lacks its kinds.
    """
    if scales.dim() != 2 or 0 in scales.shape:
        raise ValueError(f"scales must be (identities, images), got {tuple(scales.shape)}")
    identities, images = scales.shape
    draws = torch.randint(images, (identities, PAIR_DRAWS, 2), generator=generator, device=generator.device)
    return pairs_of_draws(scales, draws.to(scales.device), kinds=kinds, selection=selection)


def pairs_of_draws(
    scales: Tensor, draws: Tensor, *, kinds: Tensor | None = None, selection: PairSelection = "all"
) -> ContentPairs:
    """Return the pairs of `draw_pairs` for given draws (P, n, 2) int64, which are tried in order.

    If none of the n draws gives a pair, both rows are the first image of the last draw.
    """
    identities, images = scales.shape
    if draws.dim() != 3 or draws.shape[0] != identities or draws.shape[1] < 1 or draws.shape[2] != 2:
        raise ValueError(f"draws must be ({identities}, n, 2), got {tuple(draws.shape)}")
    if not bool(scales.isfinite().all()):
        raise ValueError("content scales must be finite")
    rows = torch.arange(identities, device=scales.device)
    first, second = (scales.gather(1, draws[..., i]) for i in (0, 1))                       # (P, n)
    good = (first != second) & _counts(draws, kinds, selection, scales.shape)
    chosen = torch.where(good.any(dim=1), good.int().argmax(dim=1), draws.shape[1] - 1)     # argmax: the first True
    tied = ~good[rows, chosen]
    left, right = draws[rows, chosen].unbind(dim=1)
    swap = (first < second)[rows, chosen] & ~tied
    more, less = torch.where(swap, right, left), torch.where(swap | tied, left, right)
    return ContentPairs(rows * images + more, rows * images + less, tied)


def _counts(draws: Tensor, kinds: Tensor | None, selection: PairSelection, shape: torch.Size) -> Tensor:
    """Return (P, n) bool, whether a selection accepts the pair."""
    if selection == "all":
        return torch.ones(draws.shape[:2], dtype=torch.bool, device=draws.device)
    if kinds is None or kinds.shape != shape:
        found = None if kinds is None else tuple(kinds.shape)
        raise ValueError(f"the selection {selection!r} needs the kind of each image, {tuple(shape)}, got {found}")
    pair = kinds.gather(1, draws.flatten(1)).view_as(draws)
    if selection == "crop":
        return (pair <= ImageKind.CROP).all(dim=2)
    if selection in ("positive", "negative"):
        return (pair == ImageKind.NEGATIVE).sum(dim=2) == (selection == "negative")
    raise ValueError(f"unknown selection {selection!r} of ASL: use all, crop, negative or positive")


class IdentityBatchSampler(Sampler[list[tuple[int, int, int]]]):
    """Batches of P identities x K views, as keys (epoch, item, view); the K views of an identity are consecutive.

    An identity is an original, and occurs at most once per epoch. The order depends only on (seed, epoch).

    Args:
        originals: their number.
        identities, views: P and K of a batch, >= 1; 32 and 4 in the published training of ASL.
        seed: >= 0.

    Raises:
        DataError: too few originals for one batch.
    """

    def __init__(self, originals: int, identities: int, views: int, *, seed: int = 0) -> None:
        if identities < 1 or views < 1:
            raise ValueError(f"identities and views must be at least 1, got {identities} and {views}")
        if originals < identities:
            raise DataError(f"{originals} identities give no batch of {identities}: use more images or smaller batches")
        self._originals, self._identities, self._views, self._seed = originals, identities, views, seed
        self.set_epoch(0)

    def __len__(self) -> int:
        """Return the number of batches in a whole epoch, wherever this one starts."""
        return self._originals // self._identities

    def set_epoch(self, epoch: int, position: int = 0) -> None:
        """Choose the epoch of the next iteration, and the batch at which it starts (for a resume)."""
        if epoch < 0 or not 0 <= position <= len(self):
            raise ValueError(f"no batch {position} in epoch {epoch}: an epoch has {len(self)} batches")
        self._epoch, self._position = epoch, position

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        epoch = self._epoch
        order = np.random.default_rng([self._seed, epoch]).permutation(self._originals)
        batches = order[: len(self) * self._identities].reshape(len(self), self._identities)
        for items in batches[self._position :].tolist():
            yield [(epoch, item, view) for item in items for view in range(self._views)]
