"""The training loop: one function with visible control flow; model and loss come as callables.

It follows nanoGPT's train.py and adds what a long run needs: exact resume, atomic checkpoints, a clean stop on a
signal, model selection, several processes.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ascl.core.checkpoint import LAST, undisturbed_rng
from ascl.core.distributed import any_process, mean_over_processes, of_every_process
from ascl.core.errors import DataError
from ascl.core.signals import stop_on_signals
from ascl.training.checkpoints import Progress, RunFolder
from ascl.training.log import RunLog
from ascl.training.schedule import Schedule

BatchesOf = Callable[[int, int], Iterable[Any]]
StepLoss = Callable[[Any, Any, int, torch.Generator], dict[str, Tensor]]
Validate = Callable[[Any], dict[str, float]]


@dataclass(frozen=True)
class LoopSettings:
    """Settings of `fit`. A step is one update of the weights."""

    epochs: int  # passes over the data
    steps_per_epoch: int  # batches of one epoch, in each process
    seed: int = 0  # of all random numbers in training
    max_steps: int | None = None  # stop after this many steps in total, even if `epochs` allows more; None: no limit
    clip_norm: float | None = None  # largest gradient norm; None: no clipping
    validate_every: int | None = None  # in steps; None: at the end of each epoch. Always after the last step too
    patience: int | None = None  # stop after this many validations in a row without a better one; None: never
    checkpoint_every: int = 500  # write last.pt every N steps; also before and after each validation
    log_every: int = 10  # log metrics every N steps
    select: str = "rsum"  # validation metric that selects best.pt; larger is better
    trained_on: str = ""  # description of the training data; a resume on other data is refused

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("steps_per_epoch", 1), ("max_steps", 1), ("validate_every", 1),
                            ("patience", 1), ("checkpoint_every", 1), ("log_every", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise DataError(f"{name} is {value}: it must be at least {least}")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise DataError(f"clip_norm is {self.clip_norm}: it must be > 0, or null for no clipping")
        if self.patience is not None and self.total_steps <= (self.validate_every or self.steps_per_epoch):
            raise DataError(f"patience is {self.patience}, but the run validates only once, after its last step "
                            f"{self.total_steps}: lower validate_every, or set patience to null")

    @property
    def total_steps(self) -> int:
        """Number of steps of the whole run."""
        planned = self.epochs * self.steps_per_epoch
        return planned if self.max_steps is None else min(planned, self.max_steps)

    def validation_due(self, step: int) -> bool:
        """Return whether a validation follows after `step` steps."""
        every = self.validate_every or self.steps_per_epoch
        return step > 0 and (step % every == 0 or step == self.total_steps)

    def conditions(self, accelerator: Accelerator) -> dict[str, int | str]:
        """Return the values that a resume must not change."""
        return {
            # the number of processes changes the steps of an epoch, so it comes first
            "processes": accelerator.num_processes, "seed": self.seed, "steps_per_epoch": self.steps_per_epoch,
            "mixed_precision": accelerator.mixed_precision, "training data": self.trained_on,
            "select": self.select,
        }


class TrainingInterrupted(KeyboardInterrupt):
    """Raised after Ctrl-C or SIGTERM, once the run is saved; a program prints the message and exits with code 130.

    It is a KeyboardInterrupt so that a caller's `except Exception` does not mistake it for the end of the run.
    """


def fit(
    accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, run: RunFolder, *,
    train_batches: BatchesOf, step_loss: StepLoss, validate: Validate, learning_rate: Schedule, settings: LoopSettings,
    clock: Callable[[], float] = time.monotonic,
) -> Progress:
    """Train `model`, write last.pt, best.pt, metrics.jsonl and tensorboard/ to the run's folder, return the progress.

    Each training record has the step's metrics and `learning_rate`, `gradient_norm` (before clipping), `seconds`,
    `steps_per_second` and `data_wait`. `seconds` is the time spent on training since the start of the run, resumes
    included, without validations and checkpoints; validation records have it too. `data_wait` is the share of that time
    since the last record that this program waited for batches, averaged over processes. A GPU may be busy with earlier
    steps meanwhile: there, a share above 0 calls for more workers only if `steps_per_second` rises with them.

    The device is read only to log metrics, write a checkpoint or validate. If a loss or gradient is not finite, the
    next such read raises an error that names the first step where it happened. No later state is ever saved.

    Resume is exact: 2N steps equal N steps, resume, N steps, bit for bit on a CPU. To this end, a step draws from a
    generator seeded by (seed, step, process), checkpoints save the global generators (dropout), and neither the loader
    nor the validation advances them.

    Args:
        accelerator: from `make_accelerator`, a new one for each run. model: trained in place.
        optimizer: over the model's parameters. A group with a key `lr_factor` gets that multiple of the learning rate.
        run: the folder, opened with the same accelerator, model and optimizer and `settings.conditions`.
        train_batches: (epoch, first batch) -> this process's batches of that epoch, from there on. A pure function of
            its arguments, with at least `steps_per_epoch` batches.
        step_loss: (model, batch, step, generator) -> {"loss": () tensor, other metrics to log: () tensors}, with the
            same names at each step. It moves the batch to the device and draws random numbers only from `generator`,
            which is on the device. In mixed precision it runs under autocast.
        validate: (model in eval mode) -> metrics, including `settings.select`. Runs in every process without
            gradients; the main process's metrics are used.
        learning_rate: step (0-based, about to be taken) -> rate. clock: time in seconds, for `steps_per_second` and
            `data_wait`.

    Raises:
        DataError: the loader ends early, a loss or gradient is not finite, or a checkpoint cannot be written.
        TrainingInterrupted: after SIGINT or SIGTERM, once the current step is finished and saved. A second signal,
            more than a second after the first, ends the process at once.
    """
    device, process, progress = accelerator.device, accelerator.process_index, run.progress
    # wrap the whole step: DDP synchronizes gradients only in forward, but models are called by other methods
    step_module, optimizer = accelerator.prepare(_Step(model, step_loss), optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if run.resumed:
        run.restore_generators()
    else:
        seed = _seed_of(settings.seed, process)
        random.seed(seed)
        np.random.seed(seed % 2**32)
        torch.manual_seed(seed)
    # in fp16 gradients are not checked: the scaler itself skips steps that overflow and lowers its scale
    watch = _FiniteWatch(device, gradients=accelerator.scaler is None)

    def check_finite() -> None:
        """Wait for the device and raise DataError if any step so far was not finite."""
        if (found := watch.first()) is None:
            return
        step, values = found
        epoch, batch_index = divmod(step, settings.steps_per_epoch)
        what, but = ("gradient", ", though the loss is") if math.isfinite(values["loss"]) else ("loss", "")
        listed = ", ".join(f"{name} = {value:g}" for name, value in values.items())
        place = f"step {step + 1} (epoch {epoch + 1}, batch {batch_index + 1})"
        raise DataError(f"the {what} of {place} is not finite{but}: {listed}; learning rate {learning_rate(step):g}. "
                        f"{run.kept()}. Try a smaller learning rate, gradient clipping or a longer warm-up.")

    run_log = RunLog(
        run.path, total_steps=settings.total_steps, enabled=accelerator.is_main_process,
        resume_at=(progress.step, progress.validated_step) if run.resumed else None,
    )
    began = clock()  # of the stretch of training that is not yet in `progress.seconds`

    def save_last() -> None:
        nonlocal began
        check_finite()
        progress.seconds += clock() - began
        run.save_last()
        began = clock()

    batches: Iterator[Any] | None = None
    logged_seconds, logged_step, waited = progress.seconds, progress.step, 0.0
    with run_log as log, stop_on_signals() as stop:
        while True:
            epoch, batch_index = divmod(progress.step, settings.steps_per_epoch)

            if any_process(accelerator, stop.signal is not None):
                save_last()
                raise TrainingInterrupted(
                    f"stopped by {stop.signal or 'a signal to another process'} after step {progress.step} of "
                    f"{settings.total_steps}; saved to {run.path / LAST}, resume continues from there"
                )

            # at the top of the loop, not after the step, so that a run stopped in between validates on resume
            if settings.validation_due(progress.step) and progress.validated_step < progress.step:
                model.eval()
                with nullcontext() if run.average is None else run.average.applied():
                    with torch.no_grad(), undisturbed_rng():
                        # plain floats: checkpoints cannot load numpy types
                        metrics = {name: float(value) for name, value in validate(model).items()}
                    metrics = of_every_process(accelerator, metrics)[0]  # all select, and stop, by the same numbers
                    selected = _selected(metrics, settings.select, progress.step)
                    log.write("validation", progress.step, _epoch_of(progress.step, settings),
                              metrics | {"seconds": progress.seconds})
                    progress.validated_step = progress.step
                    progress.validations_since_best += 1
                    if progress.best is None or selected > progress.best:
                        progress.best, progress.best_step, progress.best_metrics = selected, progress.step, metrics
                        progress.validations_since_best = 0
                        run.save_best()
                began = clock()
                save_last()
                continue

            if progress.step >= settings.total_steps or progress.out_of_patience(settings.patience):
                return progress

            asked_at = clock()
            if batches is None or batch_index == 0:
                with undisturbed_rng():
                    batches = iter(train_batches(epoch, batch_index))
            try:
                with undisturbed_rng():
                    batch = next(batches)
            except StopIteration:
                raise DataError(f"the batches of epoch {epoch + 1} ended after {batch_index}, but steps_per_epoch "
                                f"is {settings.steps_per_epoch}: check the loader. {run.kept()}") from None
            except RuntimeError:
                if stop.signal is None:
                    raise
                continue  # Ctrl-C also ends the loader's workers, before this process
            waited += clock() - asked_at

            rate = learning_rate(progress.step)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_factor", 1.0)
            generator = torch.Generator(device).manual_seed(_seed_of(settings.seed, progress.step, process))

            model.train()
            try:
                step_metrics = step_module(batch, progress.step, generator)
            except Exception:
                check_finite()  # weights that are not finite fail in many ways: report the step that caused it
                raise
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(step_metrics["loss"])
            gradient_norm = accelerator.clip_grad_norm_(parameters, settings.clip_norm or math.inf)
            watch.see(progress.step, step_metrics, gradient_norm)
            optimizer.step()
            if run.average is not None:
                run.average.update()
            progress.step += 1
            log.advance()

            if progress.step % settings.log_every == 0:
                check_finite()
                read = {name: value.item() for name, value in step_metrics.items()}
                seconds = progress.seconds + clock() - began
                passed = max(seconds - logged_seconds, 1e-9)
                values = mean_over_processes(accelerator, read | {"data_wait": waited / passed})
                values |= {"learning_rate": rate, "gradient_norm": float(gradient_norm), "seconds": seconds,
                           "steps_per_second": (progress.step - logged_step) / passed}
                log.write("train", progress.step, _epoch_of(progress.step, settings), values)
                logged_seconds, logged_step, waited = seconds, progress.step, 0.0
            # save first, because a validation takes long and may fail
            if progress.step % settings.checkpoint_every == 0 or settings.validation_due(progress.step):
                save_last()


class _Step(nn.Module):
    """One training step as a module, because accelerate and DDP wrap modules."""

    def __init__(self, model: nn.Module, step_loss: StepLoss) -> None:
        super().__init__()
        self.model, self.step_loss = model, step_loss

    def forward(self, batch: Any, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self.step_loss(self.model, batch, step, generator)


class _FiniteWatch:
    """A record, kept on the device, of the first step that was not finite, so that steps need not wait for it."""

    def __init__(self, device: torch.device, *, gradients: bool) -> None:
        self._gradients, self._step = gradients, torch.full((), -1, device=device)
        self._values: Tensor | None = None
        self._names: list[str] = []

    @torch.no_grad()
    def see(self, step: int, metrics: dict[str, Tensor], gradient_norm: Tensor) -> None:
        """Record the step if it is the first that is not finite."""
        values = torch.stack([value.to(self._step.device, torch.float32) for value in metrics.values()])
        finite = metrics["loss"].isfinite()
        if self._gradients:
            finite = finite & gradient_norm.isfinite()
        self._step = torch.where(finite | (self._step >= 0), self._step, step)
        self._values = values if self._values is None else torch.where(self._step == step, values, self._values)
        self._names = list(metrics)

    def first(self) -> tuple[int, dict[str, float]] | None:
        """Return the first such step and its metrics, or None. Waits for the device."""
        step = int(self._step)
        if step < 0 or self._values is None:
            return None
        return step, dict(zip(self._names, self._values.tolist(), strict=True))


def _epoch_of(step: int, settings: LoopSettings) -> int:
    """Return the epoch, from 1, that the last of `step` steps belongs to."""
    return -(-step // settings.steps_per_epoch)


def _selected(metrics: dict[str, float], select: str, step: int) -> float:
    if select not in metrics:
        raise DataError(f"select is {select!r}, but the validation has the metrics {', '.join(metrics) or '(none)'}: "
                        "select one of them")
    if not math.isfinite(metrics[select]):
        raise DataError(f"the validation after step {step} gives {select} = {metrics[select]}: best.pt cannot be "
                        "selected; check the validation data")
    return metrics[select]


def _seed_of(*parts: int) -> int:
    """Return a torch seed for several numbers, without the collisions that their sum would have."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
