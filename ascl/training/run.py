"""Start and finish a run: from built parts to a folder with checkpoints, metrics, settings and environment."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import yaml
from accelerate import Accelerator
from filelock import FileLock, Timeout
from torch import nn

from ascl.core.distributed import described_processes
from ascl.core.errors import DataError
from ascl.core.files import make_folder, write_text
from ascl.core.provenance import environment
from ascl.settings.image_copy import CopyConfig
from ascl.settings.retrieval import Config
from ascl.training.batches import TrainBatches
from ascl.training.checkpoints import Progress, RunFolder
from ascl.training.loop import LoopSettings, StepLoss, Validate, fit
from ascl.training.schedule import Schedule


def loop_settings(
    config: Config | CopyConfig, steps_per_epoch: int, *, select: str = "rsum", trained_on: str = ""
) -> LoopSettings:
    """Return the settings of the loop, from the configuration of either half."""
    names = ("epochs", "seed", "max_steps", "validate_every", "patience", "checkpoint_every", "log_every")
    return LoopSettings(
        steps_per_epoch=steps_per_epoch, clip_norm=config.optimizer.clip_norm, select=select, trained_on=trained_on,
        **{name: getattr(config.train, name) for name in names},
    )


def train_run(
    config: Config | CopyConfig, accelerator: Accelerator, model: nn.Module, optimizer: torch.optim.Optimizer, *,
    batches: TrainBatches, step_loss: StepLoss, validate: Validate, learning_rate: Schedule, settings: LoopSettings,
    resume: bool, described: Sequence[str], extra: dict[str, Any], saved: Callable[[str], bool] = lambda name: True,
    environment_extra: dict[str, Any] | None = None, files: dict[str, str] | None = None,
    average_decay: float | None = None,
) -> Progress:
    """Open the run folder `config.out`, write settings and environment, print a summary, and train.

    A resume rewrites settings.yaml but keeps environment.json and `files` from the start of the run.

    Args:
        config: all settings of the run, saved as settings.yaml and in its checkpoints.
        accelerator, model, optimizer, batches, step_loss, validate, learning_rate, settings: see `fit`.
        resume, saved, average_decay: see `RunFolder`.
        extra: plain values that checkpoints store in addition to the settings.
        described: lines on data and model, printed before the first step.
        environment_extra: entries of environment.json in addition to `provenance.environment`.
        files: name -> text of further files to write at the start of a new run.

    Raises:
        DataError: another process trains in this folder, or as `RunFolder` and `fit`.
    """
    with only_training(Path(config.out), accelerator, resume):
        run = RunFolder(
            config.out, accelerator, model, optimizer, conditions=settings.conditions(accelerator), resume=resume,
            saved=saved, extra={"settings": asdict(config), **extra}, average_decay=average_decay,
        )
        if accelerator.is_main_process:
            texts = {"settings.yaml": yaml.safe_dump(asdict(config), sort_keys=False)}
            if not resume:
                about = environment() | (environment_extra or {})
                texts |= {"environment.json": json.dumps(about, indent=2) + "\n"} | (files or {})
            for name, text in texts.items():
                write_text(run.path / name, text)
            trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
            print(f"training in {described_processes(accelerator)}", *described, sep="\n")
            print(f"{trained / 1e6:.1f} M trained parameters; {settings.total_steps} steps, "
                  f"{settings.steps_per_epoch} per epoch; run folder {config.out}", flush=True)
        return fit(
            accelerator, model, optimizer, run, train_batches=batches, step_loss=step_loss, validate=validate,
            learning_rate=learning_rate, settings=settings,
        )


@contextmanager
def only_training(folder: Path, accelerator: Accelerator, resume: bool) -> Iterator[None]:
    """Hold a run folder for this training alone; the main process does so for all processes of the run."""
    if not accelerator.is_main_process or (resume and not folder.exists()):
        yield
        return
    make_folder(folder)
    lock = folder / ".lock"
    try:
        with FileLock(lock, timeout=0):     # the system releases it when the process dies
            try:
                yield
            finally:
                lock.unlink()
    except Timeout:
        raise DataError(f"another process is training in {folder}; wait for it, or choose another folder") from None
    finally:
        with suppress(OSError):
            folder.rmdir()                  # of a run that was refused, nothing else is there
