"""Checkpoints: find, write whole or not at all, read without running their code; they hold all that a resume needs."""

from __future__ import annotations

import io
import os
import pickle
import random
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
LAST = "last.pt"  # the newest weights of a run, and all that a resume needs
BEST = "best.pt"  # the best weights of a run on its validation split


def find(run: str | os.PathLike) -> Path:
    """Return `run` itself if it is a file, else its best.pt, else its last.pt with a warning.

    Raises:
        DataError: none of these files exists.
    """
    run = Path(run)
    for path in (run, run / BEST, run / LAST):
        if path.is_file():
            if path == run / LAST:
                warnings.warn(f"{run} has no {BEST}; reading {LAST}, the newest weights, which need not be the best on "
                              "the validation split", stacklevel=3)
            return path
    raise DataError(f"no checkpoint in {run}: it has neither {BEST} nor {LAST}; give the folder of a training run")


def save(path: str | os.PathLike, state: dict[str, Any]) -> None:
    """Write a state of tensors, numbers, strings, lists, tuples and dicts, whole or not at all.

    Raises:
        DataError: the file cannot be written, for example because the disk is full. The previous file is kept, and no
            temporary file is left.
    """
    # through a Python file, because torch's own writer hides why a write failed
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        torch.save({"format": FORMAT, "version": VERSION, **state}, file)


def load(path: str | os.PathLike) -> dict[str, Any]:
    """Read what `save` wrote, onto the CPU. Only tensors and plain containers are read; code in the file is never run.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is truncated, damaged, or not a checkpoint of this project.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise DataError(f"{path} ({path.stat().st_size:,} bytes) is truncated, damaged or not a checkpoint of this "
                        f"project: {_first_line(error)}") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DataError(f"{path} is readable but not a checkpoint of this project: its format is not {FORMAT!r}")
    if state.get("version") != VERSION:
        raise DataError(f"{path} has checkpoint version {state.get('version')}; this program reads version {VERSION}: "
                        "use the version of ascl that wrote it")
    return state


def check_plain(values: Any, what: str) -> None:
    """Refuse values that `load` could not read back, before hours of training depend on them.

    Raises:
        TypeError: `values` holds anything but tensors, numbers, strings, None and plain containers of these.
    """
    written = io.BytesIO()
    try:
        torch.save(values, written)
        written.seek(0)
        torch.load(written, weights_only=True)
    except Exception as error:  # pickle raises a different type for each kind of value
        kinds = "tensors, numbers, strings and plain containers"
        raise TypeError(f"{what} may hold only {kinds}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def model_state(model: nn.Module, keep: Callable[[str], bool]) -> dict[str, Tensor]:
    """Return the parameters and buffers whose names `keep` accepts.

    A frozen encoder need not be saved, because it can be loaded from its source again.

    Raises:
        ValueError: `keep` leaves out a trained parameter.
    """
    lost = [name for name, parameter in model.named_parameters() if parameter.requires_grad and not keep(name)]
    if lost:
        raise ValueError(f"trained parameters would be missing from the checkpoint: {first_of(lost)}")
    return {name: value for name, value in model.state_dict().items() if keep(name)}


def load_model_state(
    model: nn.Module, state: dict[str, Tensor], *, keep: Callable[[str], bool], path: str | os.PathLike
) -> None:
    """Copy saved values into `model`, in place; values whose names `keep` refuses stay as they are.

    Raises:
        DataError: the checkpoint is of another architecture; the message lists the names and shapes that differ.
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
        raise DataError(f"{path} is a checkpoint of another architecture. {listed}. Use the settings with which the "
                        "run was trained.")
    model.load_state_dict(state, strict=False)


def rng_state() -> dict[str, Any]:
    """Return the state of the global random generators of Python, numpy, torch and this process's GPU.

    It consists of tensors and plain values, so that a checkpoint can hold it.
    """
    kind, keys, *rest = cast(tuple, np.random.get_state(legacy=True))
    state: dict[str, Any] = {
        "python": random.getstate(), "numpy": (kind, torch.from_numpy(keys.astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_rng(state: dict[str, Any]) -> None:
    """Set the global random generators to a state that `rng_state` returned."""
    kind, keys, *rest = state["numpy"]
    random.setstate(state["python"])
    np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


@contextmanager
def undisturbed_rng() -> Iterator[None]:
    """Restore the global random generators when the block ends."""
    state = rng_state()
    try:
        yield
    finally:
        restore_rng(state)
