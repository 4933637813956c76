"""Find equal items, so that each distinct one is computed once: equal captions then have equal scores, and ties show.

A matrix product rounds differently in blocks of other sizes. Without this, equal captions in different blocks would get
scores that differ in the last bit, and some would win where all should tie.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

CHECKED_TOGETHER = 256          # items checked at a time, because a check makes copies


@dataclass(frozen=True, eq=False)
class Distinct:
    """The distinct rows among N, numbered by first appearance.

    first: (U,) int64, the first row with each content. number: (N,) int64, the distinct row that each row equals.
    """

    first: np.ndarray
    number: np.ndarray

    @property
    def source(self) -> np.ndarray:
        """(N,) int64: for each row the first row that equals it."""
        return self.first[self.number]

    def copies_of(self, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rows (M,) that equal one of the chosen distinct rows, and for each its place in `chosen`."""
        if len(self.first) == len(self.number):     # each row is its own number; this is called for every tile
            return chosen, np.arange(len(chosen))
        by_number, starts = self._by_number
        counts = starts[chosen + 1] - starts[chosen]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return by_number[np.repeat(starts[chosen], counts) + within], np.repeat(np.arange(len(chosen)), counts)

    @cached_property
    def _by_number(self) -> tuple[np.ndarray, np.ndarray]:
        by_number = np.argsort(self.number, kind="stable")
        return by_number, np.searchsorted(self.number[by_number], np.arange(len(self.first) + 1))


def distinct_rows(values: Tensor, *more: Tensor, mask: Tensor | None = None) -> Distinct:
    """Find the rows that are equal bit for bit in all tensors.

    Args:
        values: (N, ...) floats. more: other tensors (N, ...) of floats.
        mask: (N, K) bool over the second dimension of `values`; where it is False, `values` does not count.
    """
    def bits(index: slice | Tensor) -> Iterator[Tensor]:
        """Yield the content of some rows of each tensor, (n, F) integers of at most 32 bits."""
        if mask is None:
            parts = [values[index]]
        else:
            kept = mask[index]
            parts = [values[index].masked_fill(~kept.unsqueeze(-1), 0), kept.to(values.dtype)]
        for part in [*parts, *(tensor[index] for tensor in more)]:
            yield part.detach().flatten(1).contiguous().view(torch.int16 if part.element_size() == 2 else torch.int32)

    generator = torch.Generator().manual_seed(0)
    factors = [torch.randint(-2**31, 2**31, (part.shape[1],), generator=generator, dtype=torch.int32).to(part.device)
               for part in bits(slice(0, 1))]
    blocks = [slice(start, start + CHECKED_TOGETHER) for start in range(0, len(values), CHECKED_TOGETHER)]
    # products modulo 2^32, summed in 64 bits: a sum of integers does not depend on the order of its terms
    sums = torch.cat([torch.stack([(part * factor).sum(dim=1) for part, factor in
                                   zip(bits(block), factors, strict=True)]).sum(dim=0) for block in blocks])
    _, first, number = np.unique(sums.cpu().numpy(), return_index=True, return_inverse=True)
    source = first[number]
    for row in np.flatnonzero(source != np.arange(len(sums))):          # equal sums do not prove equal rows
        pair = torch.tensor([row, source[row]], device=values.device)
        if not all(torch.equal(part[0], part[1]) for part in bits(pair)):
            source[row] = row
    return distinct_items(source.tolist())


def distinct_items(items: Sequence[Hashable]) -> Distinct:
    """Find equal items of a list, such as texts."""
    numbers: dict[Hashable, int] = {}
    number = np.array([numbers.setdefault(item, len(numbers)) for item in items], dtype=np.int64)
    return Distinct(np.unique(number, return_index=True)[1], number)
