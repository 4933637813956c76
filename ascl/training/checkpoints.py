"""The folder of a run, new or resumed, and its checkpoints."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from ascl.core import checkpoint
from ascl.core.checkpoint import BEST, LAST
from ascl.core.distributed import of_every_process
from ascl.core.errors import DataError
from ascl.training.average import WeightAverage


@dataclass
class Progress:
    """The progress of a run, saved in its checkpoints."""

    step: int = 0  # steps taken
    validated_step: int = 0  # steps taken at the last validation
    best: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] | None = None
    validations_since_best: int = 0
    seconds: float = field(default=0.0, compare=False)  # training time, without validations and checkpoints

    def out_of_patience(self, patience: int | None) -> bool:
        """Return whether the last `patience` validations were all no better than the best one; None never ends."""
        return patience is not None and self.validations_since_best >= patience


class RunFolder:
    """The folder of a run. Opening it checks that the run can be trained, loads last.pt on resume and writes nothing.

    Attributes:
        path: the folder. progress: updated by the loop. resumed: whether the run continues from last.pt.
        average: moving average of the weights, updated by the loop, or None.
    """

    def __init__(
        self, path: str | os.PathLike, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, *,
        conditions: Mapping[str, int | str], resume: bool = False, saved: Callable[[str], bool] = lambda name: True,
        extra: dict[str, Any] | None = None, average_decay: float | None = None,
    ) -> None:
        """
        Args:
            model, optimizer: everything that is trained; a resume loads their state. The model moves to the device.
            conditions: values that a resume must not change, from `LoopSettings.conditions`.
            resume: continue from last.pt.
            saved: name of a parameter or buffer -> whether checkpoints include it. May exclude only frozen weights.
            extra: plain values stored in checkpoints under "extra", such as the resolved settings.
            average_decay: of the moving average of the weights, see `WeightAverage`; None = no average.

        Raises:
            DataError: nothing to resume, the folder holds another run, the conditions differ from the checkpoint's, or
                average_decay is out of range.
            ValueError: the optimizer or `saved` leaves out a trained parameter.
            TypeError: a checkpoint cannot store `extra`.
        """
        self.path, self.progress, self.resumed = Path(path), Progress(), resume
        self._last, self._accelerator, self._model, self._optimizer = self.path / LAST, accelerator, model, optimizer
        self._conditions, self._saved, self._extra = dict(conditions), saved, extra or {}
        if resume and not self._last.exists():
            raise DataError(f"nothing to resume: {self._last} is missing; start without resume")
        if not resume and (self._last.exists() or (self.path / BEST).exists()):
            raise DataError(f"{self.path} already holds a run; resume it, or choose another folder")
        optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        forgotten = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in optimized]
        if forgotten:
            raise ValueError(f"the optimizer lacks trained parameters: {', '.join(forgotten)}; add or freeze them")
        checkpoint.check_plain(self._extra, "extra")
        checkpoint.model_state(model, saved)  # refuse an invalid `saved` now, not at the first checkpoint
        model.to(accelerator.device)
        self.average = None if average_decay is None else WeightAverage(model, average_decay)
        self._generators = self._resume() if resume else {}

    def _resume(self) -> dict[str, Any]:
        state = checkpoint.load(self._last)
        if "optimizer" not in state:
            raise DataError(f"{self._last} holds a model but no training state; resume from the {LAST} of a run")
        with checkpoint.content_of(self._last):
            for name, value in self._conditions.items():
                before = state["conditions"].get(name, value)  # older checkpoints lack some conditions; skip those
                if before != value:
                    raise DataError(f"{self._last} was trained with {name} = {before}, now it is {value}: a resume "
                                    "would not continue that run. Use the same value, or start a new run")
            checkpoint.load_model_state(self._model, state["model"], keep=self._saved, path=self._last)
            self.progress = Progress(**state["progress"])
            if self.average is not None:
                self.average.load(state["average"])
            generators = {"rng": list(state["rng"]), "scaler": state["scaler"]}
        try:
            self._optimizer.load_state_dict(state["optimizer"])
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise DataError(f"{self._last} holds the state of another optimizer ({error}); resume with the settings "
                            "of that run") from error
        return generators

    def restore_generators(self) -> None:
        """Restore the scaler and this process's random generators from the resumed run's checkpoint."""
        if self._accelerator.scaler is not None and self._generators["scaler"]:
            self._accelerator.scaler.load_state_dict(self._generators["scaler"])
        checkpoint.restore_rng(self._generators["rng"][self._accelerator.process_index])

    def save_last(self) -> None:
        """Write last.pt. Every process has to call this, because each has its own random generators."""
        processes, scaler = of_every_process(self._accelerator, checkpoint.rng_state()), self._accelerator.scaler
        epoch, batch = divmod(self.progress.step, int(self._conditions["steps_per_epoch"]))
        self._save(
            LAST, optimizer=self._optimizer.state_dict(), scaler=None if scaler is None else scaler.state_dict(),
            rng=processes, epoch=epoch, batch=batch, conditions=self._conditions,
            average=None if self.average is None else self.average.state(),
        )
        # no process leaves before the file exists: when one process ends, a launcher kills the others
        self._accelerator.wait_for_everyone()

    def save_best(self) -> None:
        """Write best.pt, with the model's current weights."""
        self._save(BEST)

    def _save(self, name: str, **state: Any) -> None:
        if self._accelerator.is_main_process:
            model = checkpoint.model_state(self._model, self._saved)
            state |= {"model": model, "progress": asdict(self.progress), "extra": self._extra}
            checkpoint.save(self.path / name, state)

    def kept(self) -> str:
        """Return a clause for error messages: whether there is a checkpoint."""
        return f"The last checkpoint {self._last} is kept" if self._last.exists() else "There is no checkpoint yet"
