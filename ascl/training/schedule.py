"""Learning rates as pure functions of the step (0-based: the step about to be taken), so a resume needs no state.

All functions raise ValueError for arguments out of range.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence

Schedule = Callable[[int], float]


def step_decay(base: float, *, gamma: float, after_epochs: Sequence[int], steps_per_epoch: int) -> Schedule:
    """Return a schedule that starts at `base` and multiplies it by `gamma` after each of these numbers of epochs."""
    _require(base > 0, f"the base learning rate is {base}: it must be > 0")
    _require(0 < gamma <= 1, f"gamma is {gamma}: it must be in (0, 1]")
    _require(steps_per_epoch >= 1, "steps_per_epoch must be at least 1")
    _require(all(epochs >= 1 for epochs in after_epochs) and list(after_epochs) == sorted(set(after_epochs)),
             f"the rate decays after epochs {list(after_epochs)}: give rising numbers of at least 1")
    return lambda step: base * gamma ** bisect.bisect_right(after_epochs, step // steps_per_epoch)


def cosine(base: float, *, final: float, total_steps: int) -> Schedule:
    """Return half a cosine from `base` at step 0 to `final` at the last step, and `final` after that.

    Source: SGDR (Loshchilov and Hutter, 2017), equation 5 without restarts.
    """
    _require(0 <= final <= base and base > 0,
             f"a cosine schedule from {base} to {final} is impossible: it needs 0 <= final <= base and base > 0")
    _require(total_steps >= 1, f"total_steps is {total_steps}: it must be at least 1")

    def learning_rate(step: int) -> float:
        done = min(1.0, step / max(1, total_steps - 1))
        return final + (base - final) * (1 + math.cos(math.pi * done)) / 2

    return learning_rate


def warmed_up(schedule: Schedule, *, warmup_steps: int) -> Schedule:
    """Return `schedule` with a linear warm-up: step 0 gets 1 / warmup_steps of its rate; 0 = no warm-up.

    The warm-up does not delay `schedule`, so decays stay at the same epochs.
    """
    _require(warmup_steps >= 0, f"warmup_steps is {warmup_steps}: it must be at least 0")
    return lambda step: schedule(step) * (min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
