"""The queue of earlier embeddings of MoCo and RDCD: a ring buffer that is saved with the model."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ascl.core.tensors import at_least_float32

UNIT_TOLERANCE = 1e-2   # for a row's norm: bfloat16 rows miss 1 by up to 0.004


class EmbeddingQueue(nn.Module):
    """The last `size` embeddings, fewer at the beginning; the oldest are replaced first.

    It starts empty, because random vectors would be negatives that no image has. All state is in buffers, so a
    state_dict resumes it bit for bit. With several processes, each holds the whole queue: enqueue the gathered rows of
    all processes in each, in the order of the ranks, or the queues drift apart.
    """

    storage: Tensor
    written: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        if size < 1 or dim < 1:
            raise ValueError(f"a queue needs a size and a dimension of at least 1, got {size} and {dim}")
        self.size, self.dim = size, dim
        self.register_buffer("storage", torch.zeros(size, dim))
        self.register_buffer("written", torch.zeros((), dtype=torch.int64))     # rows ever; modulo size = next place

    def __len__(self) -> int:
        return min(int(self.written), self.size)

    @property
    def rows(self) -> Tensor:
        """Return a copy of the (filled, dim) unit rows, in the order of their places; take it once per step.

        It is a copy because the backward of losses against the old queue runs after `enqueue`, which writes in place.
        """
        return self.storage[: len(self)].clone()

    @torch.no_grad()
    def enqueue(self, unit_rows: Tensor) -> None:
        """Replace the oldest rows by (B, dim) rows, B >= 0; if B exceeds the size, keep the last ones.

        Raises ValueError for another shape, and for rows that are not of length 1 (or NaN), because the losses do not
        normalize them.
        """
        if unit_rows.dim() != 2 or unit_rows.shape[1] != self.dim:
            raise ValueError(f"the queue takes rows (B, {self.dim}), got {tuple(unit_rows.shape)}")
        norms = at_least_float32(unit_rows).norm(dim=1)
        if not bool(((norms - 1).abs() <= UNIT_TOLERANCE).all()):
            raise ValueError(f"the queue takes rows of length 1, got lengths from {norms.min():.4g} to "
                             f"{norms.max():.4g}: normalize them first")
        start, count = int(self.written), len(unit_rows)
        kept = min(count, self.size)
        places = torch.arange(start + count - kept, start + count, device=self.storage.device) % self.size
        self.storage[places] = unit_rows[count - kept :].to(self.storage)
        self.written += count
