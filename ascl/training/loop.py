"""The training loop: one function, control flow in the open.

It knows nothing of images and texts; what is trained comes as callables. In the spirit of nanoGPT's train.py, with what
a long run needs: exact resume, atomic checkpoints, a clean stop on a signal, model selection, several processes.
"""

from __future__ import annotations

import math
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ascl.core import checkpoint
from ascl.core.errors import DataError
from ascl.training.distributed import any_process, mean_over_processes, of_every_process
from ascl.training.log import RunLog

TrainBatches = Callable[[int, int], Iterable[Any]]
StepLoss = Callable[[Any, Any, int, torch.Generator], dict[str, Tensor]]
Validate = Callable[[Any], dict[str, float]]

LAST = "last.pt"
BEST = "best.pt"


@dataclass(frozen=True)
class LoopSettings:
    """Settings of `fit`. A step is one update of the weights.

    Attributes:
        epochs: passes over the data.
        steps_per_epoch: batches of one epoch, in each process.
        seed: of everything that is drawn while training.
        max_steps: stop after this many steps in all, whatever `epochs` says. None: no limit.
        clip_norm: largest norm of the gradient; None: not clipped.
        validate_every: validate after each so many steps; None: at the end of each epoch. Always after the last step.
        checkpoint_every: write last.pt after each so many steps, beside once before and once after each validation.
        log_every: record the figures of each so manieth step.
        select: name of the validation's figure by which best.pt is chosen; larger is better.
        trained_on: what the training data are, in words; a resume on others is refused.
    """

    epochs: int
    steps_per_epoch: int
    seed: int = 0
    max_steps: int | None = None
    clip_norm: float | None = None
    validate_every: int | None = None
    checkpoint_every: int = 500
    log_every: int = 10
    select: str = "rsum"
    trained_on: str = ""

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "max_steps", "validate_every", "checkpoint_every", "log_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name} is {value}: has to be at least 1")
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise DataError(f"clip_norm is {self.clip_norm}: has to be > 0, or none for no clipping")
        if self.seed < 0:
            raise DataError(f"seed is {self.seed}: has to be at least 0")

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""
        planned = self.epochs * self.steps_per_epoch
        return planned if self.max_steps is None else min(planned, self.max_steps)

    def validation_due(self, step: int) -> bool:
        """Whether the model is validated after `step` steps."""
        every = self.validate_every or self.steps_per_epoch
        return step > 0 and (step % every == 0 or step == self.total_steps)


@dataclass
class Progress:
    """How far a run has come; saved with it."""

    step: int = 0  # steps taken
    validated_step: int = 0  # steps taken at the last validation
    best: float | None = None
    best_step: int | None = None
    best_metrics: dict[str, float] | None = None


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came and the run was saved. No `except Exception` of a caller goes on as if it had ended.

    A tool prints the message and exits with code 130.
    """


def fit(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    train_batches: TrainBatches,
    step_loss: StepLoss,
    validate: Validate,
    learning_rate: Callable[[int], float],
    settings: LoopSettings,
    folder: str | os.PathLike,
    resume: bool = False,
    saved: Callable[[str], bool] = lambda name: True,
    extra: dict[str, Any] | None = None,
) -> Progress:
    """Train `model` and leave last.pt, best.pt, metrics.jsonl and tensorboard/ in `folder`.

    A line of training has beside the step's figures `learning_rate`, `gradient_norm` (before clipping),
    `steps_per_second` and `data_wait`: the share of the time since the last line that went into waiting for the next
    batch, averaged over processes.

    Resume is exact: 2N steps equal N steps, resume, N steps, bit for bit on a CPU. For this the random draws of a step
    come from a generator seeded by (seed, step, process), the global generators (dropout) are saved, and neither the
    loader nor the validation moves them.

    Args:
        accelerator: from `make_accelerator`, a new one for each run; device, precision, processes.
        model: trained in place, moved to the device.
        optimizer: over the model's parameters. A group with a key `lr_factor` gets that multiple of the learning rate.
        train_batches: (epoch, first batch) -> the batches of that epoch from there on, this process's share of them;
            a pure function of its arguments, with at least `steps_per_epoch` batches.
        step_loss: (model, batch, step, generator) -> {"loss": () tensor, other figures to be logged: () tensors}. Moves
            the batch to the device; every draw of its own uses `generator`, which lies on the device. In mixed
            precision it runs under autocast.
        validate: (model in eval mode) -> figures, among them `settings.select`. Runs in every process, without
            gradients; the main process's figures count.
        learning_rate: step (0-based, about to be taken) -> rate.
        settings: see LoopSettings.
        folder: the run's folder.
        resume: continue from `folder`/last.pt.
        saved: name of a parameter or buffer -> whether checkpoints hold it. May refuse frozen weights only.
        extra: plain values that checkpoints carry along under "extra", such as the resolved settings.

    Returns:
        Progress at the end.

    Raises:
        DataError: nothing to resume, a folder that holds another run, a resume under other conditions, a loader that
            ends early, a loss or gradient that is not finite, a checkpoint that cannot be written.
        TrainingInterrupted: after SIGINT or SIGTERM, once the step under way is finished and saved. A second signal,
            more than a second after the first, ends the process at once.
    """
    folder = Path(folder)
    device, process = accelerator.device, accelerator.process_index
    _check_run(model, optimizer, folder, resume)
    checkpoint.check_plain(extra, "extra")
    checkpoint.model_state(model, saved)  # an unusable `saved` is refused now and not at the first checkpoint
    model.to(device)
    progress, rng = Progress(), None
    if resume:
        progress, rng = _resume(folder / LAST, accelerator, model, optimizer, settings, saved)
    # DDP synchronises gradients in forward only, and a model of retrieval is called by other methods: so what is
    # wrapped is the whole step
    step_module, optimizer = accelerator.prepare(_Step(model, step_loss), optimizer)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    if rng is None:
        _seed_everything(settings.seed, process)
    else:
        if accelerator.scaler is not None and rng["scaler"]:
            accelerator.scaler.load_state_dict(rng["scaler"])
        checkpoint.restore_rng(rng["processes"][process])

    def save_last() -> None:
        """Called in every process: each of them has random generators of its own."""
        processes = of_every_process(accelerator, checkpoint.rng_state())
        if accelerator.is_main_process:
            state = {
                "model": checkpoint.model_state(model, saved),
                "optimizer": optimizer.state_dict(),
                "scaler": None if accelerator.scaler is None else accelerator.scaler.state_dict(),
                "rng": processes,
                "progress": asdict(progress),
                "epoch": progress.step // settings.steps_per_epoch,
                "batch": progress.step % settings.steps_per_epoch,
                "conditions": _conditions(accelerator, settings),
                "extra": extra or {},
            }
            checkpoint.save(folder / LAST, state)
        # no process leaves before the file is there: a launcher that sees one of them end kills the others
        accelerator.wait_for_everyone()

    def save_best() -> None:
        if accelerator.is_main_process:
            state = {
                "model": checkpoint.model_state(model, saved),
                "progress": asdict(progress),
                "extra": extra or {},
            }
            checkpoint.save(folder / BEST, state)

    resume_at = (progress.step, progress.validated_step) if resume else None
    batches: Iterator[Any] | None = None
    logged_at, logged_step, waited = time.monotonic(), progress.step, 0.0
    with (
        RunLog(
            folder, total_steps=settings.total_steps, resume_at=resume_at, enabled=accelerator.is_main_process
        ) as log,
        _stop_on_signals() as stop,
    ):
        while True:
            epoch, batch_index = divmod(progress.step, settings.steps_per_epoch)

            if any_process(accelerator, stop.signal is not None):
                save_last()
                raise TrainingInterrupted(
                    f"stopped by {stop.signal or 'a signal to another process'} after step {progress.step} of "
                    f"{settings.total_steps}; saved to {folder / LAST}, resume continues exactly there"
                )

            # at the top of the loop and not after the step, so that a run stopped in between validates on resume
            if settings.validation_due(progress.step) and progress.validated_step < progress.step:
                model.eval()
                with torch.no_grad(), checkpoint.undisturbed_rng():
                    # plain floats: a checkpoint is read without numpy's types
                    metrics = {name: float(value) for name, value in validate(model).items()}
                figure = _selection_figure(metrics, settings.select, progress.step)
                # the epochs done, a part of one rounded up: a validation at the end of the first says 1
                log.write("validation", progress.step, -(-progress.step // settings.steps_per_epoch), metrics)
                progress.validated_step = progress.step
                if progress.best is None or figure > progress.best:
                    progress.best, progress.best_step, progress.best_metrics = figure, progress.step, dict(metrics)
                    save_best()
                save_last()
                logged_at, logged_step, waited = time.monotonic(), progress.step, 0.0
                continue

            if progress.step >= settings.total_steps:
                return progress

            asked_at = time.monotonic()
            if batches is None or batch_index == 0:
                with checkpoint.undisturbed_rng():
                    batches = iter(train_batches(epoch, batch_index))
            try:
                with checkpoint.undisturbed_rng():
                    batch = next(batches)
            except StopIteration:
                raise DataError(
                    f"the batches of epoch {epoch} ended before batch {batch_index}, but steps_per_epoch is "
                    f"{settings.steps_per_epoch}; {_last_checkpoint(folder)}"
                ) from None
            except RuntimeError:
                if stop.signal is None:
                    raise
                continue  # Ctrl-C also reaches the loader's workers, and they end first
            waited += time.monotonic() - asked_at

            rate = learning_rate(progress.step)
            for group in optimizer.param_groups:
                group["lr"] = rate * group.get("lr_factor", 1.0)
            generator = torch.Generator(device).manual_seed(_seed_of(settings.seed, progress.step, process))

            model.train()
            figures = step_module(batch, progress.step, generator)
            loss = figures["loss"]
            if not math.isfinite(loss.item()):
                raise DataError(
                    f"the loss of step {progress.step} (epoch {epoch}, batch {batch_index}) is not finite: "
                    f"{_listed(figures)}; learning rate {rate:g}. {_last_checkpoint(folder)}. "
                    "A smaller learning rate, gradient clipping or a longer warm-up are the usual remedies."
                )
            optimizer.zero_grad(set_to_none=True)
            accelerator.backward(loss)
            gradient_norm = float(accelerator.clip_grad_norm_(parameters, settings.clip_norm or math.inf))
            # in fp16 the scaler skips such a step by itself and lowers its scale
            if accelerator.scaler is None and not math.isfinite(gradient_norm):
                raise DataError(
                    f"the gradient of step {progress.step} (epoch {epoch}, batch {batch_index}) is not finite, though "
                    f"the loss is: {_listed(figures)}; learning rate {rate:g}. {_last_checkpoint(folder)}."
                )
            optimizer.step()
            progress.step += 1
            log.advance()

            if progress.step % settings.log_every == 0:
                now = time.monotonic()
                passed = max(now - logged_at, 1e-9)
                values = mean_over_processes(accelerator, _numbers(figures) | {"data_wait": waited / passed})
                values |= {"learning_rate": rate, "gradient_norm": gradient_norm}
                values["steps_per_second"] = (progress.step - logged_step) / passed
                log.write("train", progress.step, epoch, values)
                logged_at, logged_step, waited = now, progress.step, 0.0
            # a validation takes long and may fail: what was learned is safe before it starts
            if progress.step % settings.checkpoint_every == 0 or settings.validation_due(progress.step):
                save_last()


def check_start(
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    settings: LoopSettings,
    folder: str | os.PathLike,
    resume: bool = False,
    saved: Callable[[str], bool] = lambda name: True,
) -> None:
    """Refuse what `fit` would refuse of its folder, so that a caller can write beside the run only afterwards.

    Nothing is written. Where `resume` is given, the checkpoint is read into the model and the optimizer, as `fit` does.

    Raises:
        DataError: as `fit`: a folder that holds another run, nothing to resume, a resume under other conditions.
    """
    _check_run(model, optimizer, Path(folder), resume)
    if resume:
        _resume(Path(folder) / LAST, accelerator, model, optimizer, settings, saved)


class _Step(nn.Module):
    """One training step as a module's forward, which is where accelerate and DDP put their hands on."""

    def __init__(self, model: nn.Module, step_loss: StepLoss) -> None:
        super().__init__()
        self.model = model
        self.step_loss = step_loss

    def forward(self, batch: Any, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self.step_loss(self.model, batch, step, generator)


def _check_run(model: nn.Module, optimizer: torch.optim.Optimizer, folder: Path, resume: bool) -> None:
    if resume and not (folder / LAST).exists():
        raise DataError(f"nothing to resume: {folder / LAST} is missing; start without resume")
    if not resume and any((folder / name).exists() for name in (LAST, BEST)):
        raise DataError(f"{folder} already holds a run; resume it, or choose another folder")
    optimized = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    forgotten = [n for n, p in model.named_parameters() if p.requires_grad and id(p) not in optimized]
    if forgotten:
        raise ValueError(f"parameters that the optimizer does not have: {', '.join(forgotten)}; add or freeze them")


def _conditions(accelerator: Accelerator, settings: LoopSettings) -> dict[str, int | str]:
    """What has to be the same for a resume to be a continuation."""
    return {
        "seed": settings.seed,
        "steps_per_epoch": settings.steps_per_epoch,
        "processes": accelerator.num_processes,
        "mixed_precision": accelerator.mixed_precision,
        "training data": settings.trained_on,
    }


def _resume(
    path: Path,
    accelerator: Accelerator,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    settings: LoopSettings,
    saved: Callable[[str], bool],
) -> tuple[Progress, dict[str, Any]]:
    state = checkpoint.load(path)
    if "optimizer" not in state:
        raise DataError(f"{path} holds a model but no state of a training run; resume needs a run's {LAST}")
    for name, value in _conditions(accelerator, settings).items():
        before = state["conditions"].get(name, value)       # what an older checkpoint does not tell cannot be asked
        if before != value:
            raise DataError(
                f"{path} was trained with {name} = {before}, now it is {value}: "
                "a resume would not continue that run. Use the same value, or start a new run"
            )
    checkpoint.load_model_state(model, state["model"], keep=saved, path=path)
    try:
        optimizer.load_state_dict(state["optimizer"])
    except ValueError as error:
        raise DataError(f"{path} holds the state of another optimizer: {error}") from error
    return Progress(**state["progress"]), {"processes": state["rng"], "scaler": state["scaler"]}


def _selection_figure(metrics: dict[str, float], select: str, step: int) -> float:
    if select not in metrics:
        raise DataError(f"select is {select!r}, but the validation gives {', '.join(metrics) or 'nothing'}")
    if not math.isfinite(metrics[select]):
        raise DataError(f"the validation after step {step} gives {select} = {metrics[select]}: no model can be chosen")
    return metrics[select]


def _seed_of(*parts: int) -> int:
    """A seed for torch from several numbers, without the collisions of a sum."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


def _seed_everything(seed: int, process: int) -> None:
    value = _seed_of(seed, process)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


def _numbers(figures: dict[str, Tensor]) -> dict[str, float]:
    """Read where they are needed and not at each step, because it waits for the GPU."""
    return {name: value.detach().item() for name, value in figures.items()}


def _listed(figures: dict[str, Tensor]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in _numbers(figures).items())


def _last_checkpoint(folder: Path) -> str:
    return f"The last checkpoint {folder / LAST} is kept" if (folder / LAST).exists() else "There is no checkpoint yet"


class _Stop:
    signal: str | None = None
    time: float = 0.0


@contextmanager
def _stop_on_signals() -> Iterator[_Stop]:
    """The first SIGINT or SIGTERM only sets `.signal`; one that comes more than a second later has its usual effect.

    Within that second it is the same request once more: on Ctrl-C a process started by torchrun is told by the
    terminal and again by torchrun.
    """
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
        yield stop
        return
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore() -> None:
        for number, handler in usual.items():
            signal.signal(number, handler)

    def on_signal(number: int, frame: FrameType | None) -> None:
        if stop.signal is None:
            stop.signal, stop.time = signal.Signals(number).name, time.monotonic()
        elif time.monotonic() - stop.time > 1:
            restore()
            signal.raise_signal(number)

    for number in usual:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        restore()
