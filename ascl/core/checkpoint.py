"""Checkpoints: find, write whole or not at all, read without running their code; they hold all that a resume needs."""

from __future__ import annotations

import io
import os
import pickle
import random
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ascl.core.errors import DataError, first_of
from ascl.core.files import atomic_path
from ascl.core.reading import check_unpacked, reading, reason

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
    state = read_tensors(path, "a checkpoint of this project", "use the other checkpoint of its run, or train again")
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise DataError(f"{path} is readable but not a checkpoint of this project: its format is not {FORMAT!r}")
    if state.get("version") != VERSION:
        raise DataError(f"{path} has checkpoint version {state.get('version')}; this program reads version {VERSION}: "
                        "use the version of ascl that wrote it")
    return state


@contextmanager
def content_of(path: str | os.PathLike) -> Iterator[None]:
    """Raise DataError for a checkpoint that can be read but holds other parts than the block expects.

    Only what takes a loaded state apart belongs into the block.
    """
    try:
        yield
    except (KeyError, IndexError, TypeError, AttributeError, ValueError, RuntimeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} can be read, but it does not hold what a checkpoint of this kind holds "
                        f"({reason(error)}): use the one of another run, or train again") from error


def read_tensors(path: str | os.PathLike, what: str, remedy: str, *, admitted: Sequence[Any] = ()) -> Any:
    """Return the content of a file of `torch.save`, onto the CPU; code in it is never run.

    Args:
        what, remedy: as for `reading`.
        admitted: classes and functions that the file may name beside those of tensors and plain containers.

    Raises:
        DataError: as `reading`; or a checksum is wrong, or the file names other classes or functions, or unpacks to
            more than `limits.ARRAY_BYTES`.
    """
    with reading(path, what, remedy):
        if zipfile.is_zipfile(path):
            check_unpacked(path)
            with zipfile.ZipFile(path) as archive:
                if (damaged := archive.testzip()) is not None:      # torch does not look at the checksums
                    raise ValueError(f"the checksum of {damaged} is wrong")
        try:
            with torch.serialization.safe_globals(list(admitted)):
                return torch.load(path, map_location="cpu", weights_only=True)
        except (pickle.UnpicklingError, RuntimeError) as error:     # torch's own advice is to run the code
            asked = re.search(r"GLOBAL (\S+)", str(error))
            cause = re.search(r"(?:WeightsUnpickler error: |PytorchStreamReader )([^.\n]+)", str(error))
            raise ValueError(f"it asks for {asked[1]}, which was not run" if asked else
                             cause[1] if cause else reason(error)) from error


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
        raise TypeError(f"{what} may hold only {kinds}: {reason(error)}") from error


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


def copy_fitting(
    model: nn.Module, state: dict[str, Tensor], *, keep: Callable[[str], bool]
) -> tuple[list[str], list[str]]:
    """Copy those saved values into `model` that it has by the same name and shape, if `keep` accepts the name.

    Returns:
        The names that were copied, and those of the model or the state, with a reason, that were not.
    """
    wanted = {name: value for name, value in model.state_dict().items() if keep(name)}
    fitting = {name: value for name, value in state.items() if name in wanted and value.shape == wanted[name].shape}
    model.load_state_dict(fitting, strict=False)
    left = [f"{name} {tuple(state[name].shape)} instead of {tuple(value.shape)}" if name in state else f"{name} is new"
            for name, value in wanted.items() if name not in fitting]
    return list(fitting), left + [f"{name} is not in this model" for name in state if name not in wanted]


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
