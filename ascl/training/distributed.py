"""The little that several processes need beside `accelerate`."""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, gather_object

from ascl.core.errors import DataError


def make_accelerator(*, mixed_precision: str = "no", cpu: bool = False) -> Accelerator:
    """The device and the processes of this run; start several with `torchrun` or `accelerate launch`.

    Args:
        mixed_precision: "no", "bf16" or "fp16" (fp16 needs a GPU).
        cpu: stay on the CPU even where there is a GPU.

    Returns:
        Accelerator; `.device`, `.process_index` and `.num_processes` are what a data loader needs to take its share.

    Raises:
        DataError: the precision is unknown or not possible on this machine.
    """
    if mixed_precision not in ("no", "bf16", "fp16"):
        raise DataError(f"mixed_precision {mixed_precision!r}: choose no, bf16 or fp16")
    if mixed_precision == "fp16" and (cpu or not torch.cuda.is_available()):
        raise DataError("mixed_precision fp16 needs a GPU; on a CPU choose no or bf16")
    # a variant of the model may leave some of its parameters unused, which DDP otherwise refuses in its second step
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    return Accelerator(mixed_precision=mixed_precision, cpu=cpu, kwargs_handlers=[unused])


def any_process(accelerator: Accelerator, flag: bool) -> bool:
    """True in every process as soon as `flag` is true in one, so that all of them stop at the same step."""
    if accelerator.num_processes == 1:
        return flag
    count = accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="sum")
    return bool(count.item() > 0)


def of_every_process(accelerator: Accelerator, value: Any) -> list[Any]:
    """The value of each process, in the order of their indices, in every process."""
    return [value] if accelerator.num_processes == 1 else gather_object([value])


def mean_over_processes(accelerator: Accelerator, values: dict[str, float]) -> dict[str, float]:
    """The mean of each figure; the names have to be the same in every process."""
    if accelerator.num_processes == 1:
        return values
    each = of_every_process(accelerator, values)
    return {name: sum(process[name] for process in each) / len(each) for name in values}
