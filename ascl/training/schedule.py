"""Learning rates as pure functions of the step (0-based: the step about to be taken), so a resume needs no state.

All raise ValueError for numbers that make no schedule.
"""

from __future__ import annotations

import math
from collections.abc import Callable

Schedule = Callable[[int], float]


def step_decay(base: float, *, gamma: float, every_epochs: int, steps_per_epoch: int) -> Schedule:
    """Return `base`, multiplied by `gamma` after each `every_epochs` epochs: the paper's schedule."""
    _require(base > 0, f"base learning rate {base}: has to be > 0")
    _require(0 < gamma <= 1, f"gamma {gamma}: has to be in (0, 1]")
    _require(every_epochs >= 1 and steps_per_epoch >= 1, "every_epochs and steps_per_epoch have to be at least 1")
    return lambda step: base * gamma ** (step // (every_epochs * steps_per_epoch))


def cosine(base: float, *, final: float, total_steps: int) -> Schedule:
    """Return half a cosine from `base` at step 0 to `final` at the last step, and `final` from there on.

    Source: SGDR (Loshchilov and Hutter, 2017), equation 5 without restarts.
    """
    _require(0 <= final <= base and base > 0, f"cosine from {base} to {final}: needs 0 <= final <= base and base > 0")
    _require(total_steps >= 1, f"total_steps {total_steps}: has to be at least 1")

    def learning_rate(step: int) -> float:
        done = min(1.0, step / max(1, total_steps - 1))
        return final + (base - final) * (1 + math.cos(math.pi * done)) / 2

    return learning_rate


def warmed_up(schedule: Schedule, *, warmup_steps: int) -> Schedule:
    """Return `schedule` with a linear warm-up over its first steps: step 0 takes 1 / warmup_steps of it.

    The clock of `schedule` is not shifted, so its decay stays at the same epochs. `warmup_steps` 0: no warm-up.
    """
    _require(warmup_steps >= 0, f"warmup_steps {warmup_steps}: has to be at least 0")
    return lambda step: schedule(step) * (min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0)


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
