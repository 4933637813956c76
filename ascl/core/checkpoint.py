"""Checkpoints: found, written whole or not at all, read without running foreign code, enough to resume exactly."""

from __future__ import annotations

import errno
import io
import os
import pickle
import random
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ascl.core.errors import DataError, first_of
from ascl.core.files import atomic_path

FORMAT = "ascl-checkpoint"
VERSION = 1
LAST = "last.pt"  # of a run: the newest weights and all that a resume needs
BEST = "best.pt"  # of a run: the best weights by its validation


def find(run: str | os.PathLike) -> Path:
    """Return `run` itself where it is a file, else its best.pt, else its last.pt, with a warning.

    Raises DataError: none of them.
    """
    run = Path(run)
    for path in (run, run / BEST, run / LAST):
        if path.is_file():
            if path == run / LAST:
                warnings.warn(f"{run} has no {BEST}, so {LAST} is read: the newest weights, not the best on the "
                              "validation split", stacklevel=3)
            return path
    raise DataError(f"no checkpoint in {run}: expected {BEST} or {LAST} of a training run")


def save(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Write a state of tensors, numbers, strings, lists, tuples and dicts; `path` holds the old or the new one, whole.

    Raises DataError: the file cannot be written, for example to a full disk; what `path` held stays, and nothing else.
    """
    path = Path(path)
    try:
        # through a file of Python's, because torch's own writer hides the reason of a failed write
        with atomic_path(path) as temporary, open(temporary, "wb") as file:
            torch.save({"format": FORMAT, "version": VERSION, **state}, file)
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error  # torch's writer raises its own error on top of the system's
        while cause is not None and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if cause is None:
            raise
        advice = "Check the folder and its permissions"
        if cause.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            advice = f"Make room on this disk ({shutil.disk_usage(path.parent).free / 2**20:.0f} MiB free)"
        kept = f"the previous {path.name} is whole and was kept" if path.exists() else f"there is no {path.name} yet"
        message = f"could not write the checkpoint {path}: {cause.strerror}; {kept}. {advice}, then resume."
        raise DataError(message) from error


def load(path: str | os.PathLike) -> dict[str, Any]:
    """Read what `save` wrote, onto the CPU. Only tensors and plain containers are read; no code of the file is run.

    Raises FileNotFoundError: no such file; DataError: truncated, damaged, or not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} ({path.stat().st_size} bytes) is truncated, damaged or no checkpoint of this project: "
                        f"{_first_line(error)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DataError(f"{path} is readable but no checkpoint of this project: it has no format {FORMAT!r}")
    if state.get("version") != VERSION:
        raise DataError(f"{path} has checkpoint version {state.get('version')}; this program reads version {VERSION}")
    return state


def check_plain(values: Any, what: str) -> None:
    """Refuse what `load` would refuse to read, before hours of training depend on it.

    Raises TypeError: `values` hold something else than tensors, numbers, strings, None and plain containers of them.
    """
    written = io.BytesIO()
    try:
        torch.save(values, written)
        written.seek(0)
        torch.load(written, weights_only=True)
    except Exception as error:  # whatever pickle meets; each kind has an exception of its own
        kinds = "tensors, numbers, strings and plain containers"
        raise TypeError(f"{what} has to be {kinds}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def model_state(model: nn.Module, keep: Callable[[str], bool]) -> dict[str, Tensor]:
    """The parameters and buffers whose names `keep` accepts; a frozen encoder can be left out because it has a source.

    Raises ValueError: `keep` leaves out a parameter that is trained.
    """
    lost = [name for name, parameter in model.named_parameters() if parameter.requires_grad and not keep(name)]
    if lost:
        raise ValueError(f"trained parameters would be missing from the checkpoint: {first_of(lost)}")
    return {name: value for name, value in model.state_dict().items() if keep(name)}


def load_model_state(
    model: nn.Module, state: dict[str, Tensor], *, keep: Callable[[str], bool], path: str | os.PathLike
) -> None:
    """Copy saved values into `model`, in place; what `keep` refuses stays as it is.

    Raises DataError: the checkpoint is of another architecture; the names and shapes that differ are listed.
    """
    wanted = {name: value for name, value in model.state_dict().items() if keep(name)}
    state = {name: value for name, value in state.items() if keep(name)}
    differences = {
        "missing": [name for name in wanted if name not in state],
        "unknown to the model": [name for name in state if name not in wanted],
        "other shapes": [f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}"
                         for name, value in wanted.items() if name in state and state[name].shape != value.shape],
    }
    listed = "; ".join(f"{what}: {first_of(names)}" for what, names in differences.items() if names)
    if listed:
        raise DataError(f"{path} is a checkpoint of another architecture. {listed}. Use the settings that the run was "
                        "trained with.")
    model.load_state_dict(state, strict=False)


def rng_state() -> dict[str, Any]:
    """The global random generators of python, numpy, torch and this process's GPU, as tensors and plain numbers."""
    kind, keys, *rest = cast(tuple, np.random.get_state(legacy=True))
    state: dict[str, Any] = {
        "python": random.getstate(), "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Put the global random generators back to what `rng_state` returned."""
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def undisturbed_rng() -> Iterator[None]:
    """Whatever runs inside leaves the global random generators as they were."""
    state = rng_state()
    try:
        yield
    finally:
        restore_rng(state)
