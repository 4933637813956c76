"""What ASL trains on: batches of identities x images, and in each identity a pair of which one image shows more.

Everything random is drawn from a generator or from (seed, epoch): the same in every run and for any number of workers.
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

PAIR_DRAWS = 5      # of the published training: then a tie is taken as it is

PairSelection = Literal["all", "crop", "negative", "positive"]


class ImageKind(IntEnum):
    """How an image of an identity came about."""

    ORIGINAL = 0
    CROP = 1        # part of the original
    POSITIVE = 2    # another edited copy
    NEGATIVE = 3    # hard negative: no copy, though the original may be a crop or an edit of it


class ContentPairs(NamedTuple):
    """One pair an identity.

    Where no draw gave a pair to order, `more` and `less` are one row, so that exp(1 - |more| / |less|) is 1 and has no
    gradient.
    """

    more: Tensor  # (P,) int64 rows of the batch, the image that shows more
    less: Tensor  # the one that shows less
    tied: Tensor  # (P,) bool, True where no draw gave a pair


def draw_pairs(
    scales: Tensor, generator: torch.Generator, *, kinds: Tensor | None = None, selection: PairSelection = "all"
) -> ContentPairs:
    """For each identity two of its images, drawn with replacement, at most five times until one shows more.

    Args:
        scales: (P, K) content scale of image k of identity p, the share of the original that it shows; its row in the
            batch is p * K + k.
        generator: of torch, for the draws. kinds: (P, K) `ImageKind`; needed for every selection but "all".
        selection: which pairs count, beside having two scales. "all" is ASL. The others are our readings of ablations
            that the paper names without defining them: "crop" (ASL-Crop) pairs of originals and crops alone,
            "positive" (ASL-Positive) pairs without hard negatives, "negative" (ASL-Negative) pairs of a hard negative
            with an image that is none.

    Raises:
        ValueError: shapes that do not fit, a scale that is not finite, an unknown selection, or one without kinds.
    """
    if scales.dim() != 2 or 0 in scales.shape:
        raise ValueError(f"scales must be (identities, images), got {tuple(scales.shape)}")
    identities, images = scales.shape
    draws = torch.randint(images, (identities, PAIR_DRAWS, 2), generator=generator, device=generator.device)
    return pairs_of_draws(scales, draws.to(scales.device), kinds=kinds, selection=selection)


def pairs_of_draws(
    scales: Tensor, draws: Tensor, *, kinds: Tensor | None = None, selection: PairSelection = "all"
) -> ContentPairs:
    """`draw_pairs` with the draws given: (P, n, 2) int64, images of identity p in the order in which they are tried.

    Where none of the n gives a pair, both rows are the first image of the last draw.
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
    """(P, n) bool: whether a selection takes the pair."""
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
    raise ValueError(f"no selection {selection!r} of ASL: use all, crop, negative or positive")


class IdentityBatchSampler(Sampler[list[tuple[int, int, int]]]):
    """Batches of P identities x K views, as keys (epoch, item, view); the K views of an identity are consecutive.

    An identity is an original, and occurs at most once an epoch. The order depends on (seed, epoch) alone.

    Args:
        originals: how many there are. seed: >= 0.
        identities, views: P and K of a batch, >= 1; the published training of ASL has 32 and 4.

    Raises:
        DataError: too few originals for one batch.
    """

    def __init__(self, originals: int, identities: int, views: int, *, seed: int = 0) -> None:
        if identities < 1 or views < 1:
            raise ValueError(f"needs identities and views of at least 1, got {identities} and {views}")
        if originals < identities:
            raise DataError(f"{originals} identities give no batch of {identities}: use more images or smaller batches")
        self._originals, self._identities, self._views, self._seed = originals, identities, views, seed
        self.set_epoch(0)

    def __len__(self) -> int:
        """Return the batches of a whole epoch, wherever this one starts."""
        return self._originals // self._identities

    def set_epoch(self, epoch: int, position: int = 0) -> None:
        """Choose the epoch that the next iteration gives, and the batch it starts at (for a resume)."""
        if epoch < 0 or not 0 <= position <= len(self):
            raise ValueError(f"no batch {position} in epoch {epoch}: an epoch has {len(self)} batches")
        self._epoch, self._position = epoch, position

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        epoch = self._epoch
        order = np.random.default_rng([self._seed, epoch]).permutation(self._originals)
        batches = order[: len(self) * self._identities].reshape(len(self), self._identities)
        for items in batches[self._position :].tolist():
            yield [(epoch, item, view) for item in items for view in range(self._views)]
