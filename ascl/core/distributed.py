"""Processes that train together: their accelerator, values that they share, and rows gathered for one loss."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

from ascl.core.errors import DataError

if TYPE_CHECKING:  # accelerate is slow to import, and using a trained model does not need it
    from accelerate import Accelerator


def make_accelerator(*, mixed_precision: str = "no", cpu: bool = False) -> Accelerator:
    """Return accelerate's view of this run: its device, its precision and its processes.

    `accelerate launch` starts several processes.

    Args:
        mixed_precision: "no", "bf16" or "fp16"; fp16 needs a GPU.
        cpu: use the CPU even if there is a GPU.

    Raises:
        DataError: the precision is unknown, or this machine cannot use it; or several processes were started and
            accelerate takes each for the only one, as it does on a CPU without ACCELERATE_USE_CPU; or they cannot
            reach one another.
    """
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs

    if mixed_precision not in ("no", "bf16", "fp16"):
        raise DataError(f"mixed_precision {mixed_precision!r}: choose no, bf16 or fp16")
    if mixed_precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise DataError("mixed_precision fp16 needs a GPU; on a CPU choose no or bf16")
    # a variant may leave some parameters unused, which DDP otherwise refuses at the second step
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    started = os.environ.get("WORLD_SIZE", "1")
    remedy = ("On a CPU start them with: ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes "
              f"{started} PROGRAM ...")
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision, cpu=cpu, kwargs_handlers=[unused])
    except dist.DistError as error:         # another process may have been refused below and have ended already
        reason = str(error).partition("\n")[0]
        raise DataError(f"{started} processes were started, but this one lost the others ({reason}): if one of them "
                        f"printed an error, mend that. {remedy}") from error
    if started != str(accelerator.num_processes):
        raise DataError(f"{started} processes were started, but each would train as one of {accelerator.num_processes} "
                        f"and all would write the same files. {remedy}")
    return accelerator


def described_processes(accelerator: Accelerator) -> str:
    """Return on how many processes and devices a run trains, for its first line."""
    count, device = accelerator.num_processes, accelerator.device.type
    return f"{count} process{'es' if count > 1 else ''} on {'the CPU' if device == 'cpu' else device.upper()}"


def several_processes() -> bool:
    """Return whether other processes train together with this one."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def process_index() -> int:
    """Return the number of this process among those that train together; 0 if it is alone."""
    return dist.get_rank() if several_processes() else 0


def leave(status: int) -> None:
    """End this process at once if it trained together with others; do nothing otherwise.

    A DDP model never lets go of its process group, so gloo's threads still run while the interpreter shuts down. One
    that meets a closed connection then can abort the process: a training that succeeded would end as a failure.
    """
    if several_processes():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """Return True in every process if `flag` is true in any, so that all stop at the same step."""
    if accelerator.num_processes == 1:
        return flag
    return bool(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum").item())


def of_every_process(accelerator: Accelerator, value: Any) -> list[Any]:
    """Return to every process the values of all, in the order of ranks."""
    if accelerator.num_processes == 1:
        return [value]
    from accelerate.utils import gather_object

    return gather_object([value])


def mean_over_processes(accelerator: Accelerator, values: dict[str, float]) -> dict[str, float]:
    """Return the mean of each metric over the processes; every process must pass the same names."""
    each = of_every_process(accelerator, values)
    return {name: sum(process[name] for process in each) / len(each) for name in values}


@torch.no_grad()
def rows_of_all(rows: Tensor) -> Tensor:
    """Return the rows (B, ...) of all processes as (processes * B, ...), in the order of ranks; without gradients."""
    if not several_processes():
        return rows
    gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
    dist.all_gather(gathered, rows.contiguous())
    return torch.cat(gathered)


class _GatherWithGradient(torch.autograd.Function):
    """`rows_of_all` forward; backward, each process gets the gradients of its rows, summed over all processes.

    Not `torch.distributed.nn`, which is deprecated in favor of a private module whose names change.
    """

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        return rows_of_all(rows)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        total = gradient.clone(memory_format=torch.contiguous_format)       # autograd may still use `gradient`
        dist.all_reduce(total)
        return total.chunk(dist.get_world_size())[dist.get_rank()]


def rows_of_all_with_gradient(rows: Tensor) -> Tensor:
    """Return what `rows_of_all` returns, with gradients, so that each process can compute the loss of all batches.

    Averaged over processes, as DDP does, the gradients are those of one process that has all rows.
    """
    return _GatherWithGradient.apply(rows) if several_processes() else rows
