"""Processes that train together: their accelerator, what they agree on, and rows of all of them for one loss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ascl.core.errors import DataError

if TYPE_CHECKING:  # accelerate is slow to import, and a model is read and used without it
    from accelerate import Accelerator


def make_accelerator(*, mixed_precision: str = "no", cpu: bool = False) -> Accelerator:
    """Return the device and the processes of this run; start several with `torchrun` or `accelerate launch`.

    Args:
        mixed_precision: "no", "bf16" or "fp16" (fp16 needs a GPU). cpu: stay on the CPU even where there is a GPU.

    Raises:
        DataError: the precision is unknown or not possible on this machine.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    if mixed_precision not in ("no", "bf16", "fp16"):
        raise DataError(f"mixed_precision {mixed_precision!r}: choose no, bf16 or fp16")
    if mixed_precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise DataError("mixed_precision fp16 needs a GPU; on a CPU choose no or bf16")
    # a variant of the model may leave some of its parameters unused, which DDP otherwise refuses in its second step
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(mixed_precision=mixed_precision, cpu=cpu, kwargs_handlers=[unused])


def several_processes() -> bool:
    """Return whether this process trains together with others."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Return True in every process if `flag` is true in one, so that all of them stop at the same step."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum").item())


def of_every_process(accelerator: Accelerator, value: Any) -> list[Any]:
    """Return the value of each process, in the order of their ranks, in every process."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def mean_over_processes(accelerator: Accelerator, values: dict[str, float]) -> dict[str, float]:
    """Return the mean of each metric; the names have to be the same in every process."""
    each = of_every_process(accelerator, values)
    return {name: sum(process[name] for process in each) / len(each) for name in values}


@torch.no_grad()
def rows_of_all(rows: Tensor) -> Tensor:
    """Gather (B, ...) of this process to (processes * B, ...), in the order of ranks, in each; without gradients."""
    if not several_processes():
        return rows
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


class _GatherWithGradient(torch.autograd.Function):
    """Forward as `rows_of_all`; backward gives each process the sum of all processes' gradients of its rows.

    Ours, because `torch.distributed.nn` is deprecated in favor of a private module that changes its names.
    """

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        return rows_of_all(rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)       # autograd may still use what it handed in
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def rows_of_all_with_gradient(rows: Tensor) -> Tensor:
    """Gather as `rows_of_all`, with gradients, for a loss over all processes' batches that each computes whole.

    The gradients of such a loss, averaged over the processes as DDP does, are those of one process with all the rows.
    """
    return _GatherWithGradient.apply(rows) if several_processes() else rows
