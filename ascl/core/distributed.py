"""Rows of all processes that train together, for losses that compare across them."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def several_processes() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


@torch.no_grad()
def rows_of_all(rows: Tensor) -> Tensor:
    """(B, ...) of this process -> (processes * B, ...) in the order of ranks, the same in each; without gradients."""
    if not several_processes():
        return rows
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


class _GatherWithGradient(torch.autograd.Function):
    """Forward as `rows_of_all`; backward gives each process the sum of all processes' gradients of its rows."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        return rows_of_all(rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)       # autograd may still use what it handed in
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def rows_of_all_with_gradient(rows: Tensor) -> Tensor:
    """As `rows_of_all`, with gradients, for a loss over the batches of all processes that each of them computes whole.

    The gradients of such a loss, averaged over the processes as DDP does, are those of one process with all the rows.
    """
    return _GatherWithGradient.apply(rows) if several_processes() else rows
