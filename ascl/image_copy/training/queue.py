"""A queue of earlier embeddings, as MoCo and RDCD compare with: a ring buffer that is saved with the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ascl.core.tensors import at_least_float32

UNIT_TOLERANCE = 1e-2   # of a row's norm: bfloat16 rows miss 1 by up to 0.004


class EmbeddingQueue(nn.Module):
    """The last `size` embeddings, or fewer at the beginning; the oldest go first.

    It starts empty instead of with random vectors: those would be negatives that no image ever had. All state is in
    buffers, so a state_dict resumes it bit for bit. In several processes each holds the whole queue: gather the rows
    of all of them, in the order of their ranks, and enqueue those in each, or the queues drift apart.
    """

    storage: Tensor
    written: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"a queue needs a size and a dimension of at least 1, got {size} and {dim}")
        self.size, self.dim = size, dim
        self.register_buffer("storage", torch.zeros(size, dim))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))     # rows ever; modulo size the next place

    def __len__(self) -> int:
        return min(int(self.written), self.size)

    @property
    def rows(self) -> Tensor:
        """(filled, dim) unit rows in the order of their places: a copy, to be taken once a step.

        Losses are computed against the old queue, and their backward comes after `enqueue`, which writes in place.
        """
        return self.storage[: len(self)].clone()

    @torch.no_grad()
    def enqueue(self, unit_rows: Tensor) -> None:
        """Put (B, dim) rows, B >= 0, in place of the oldest ones; of more rows than places, the last ones stay.

        Raises ValueError: another shape, or rows that are not of length 1 (NaN too): the losses take them as they are.
        """
        if unit_rows.dim() != 2 or unit_rows.shape[1] != self.dim:
            raise ValueError(f"the queue takes rows (B, {self.dim}), got {tuple(unit_rows.shape)}")
        norms = at_least_float32(unit_rows).norm(dim=1)
        if not bool(((norms - 1).abs() <= UNIT_TOLERANCE).all()):
            raise ValueError(f"the queue takes rows of length 1, got lengths from {norms.min():.4g} to "
                             f"{norms.max():.4g}: normalise them first")
        start, count = int(self.written), len(unit_rows)
        kept = min(count, self.size)
        places = torch.arange(start + count - kept, start + count, device=self.storage.device) % self.size
        self.storage[places] = unit_rows[count - kept :].to(self.storage)
        self.written += count
