"""What a run notes of its surroundings, and how it refuses settings."""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ascl.core.errors import DataError


def commit() -> str:
    """Commit of the code that runs, `-dirty` where it has changes, `unknown` outside a repository."""
    try:
        return subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=Path(__file__).parent, capture_output=True,
            text=True, check=True,
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def environment() -> dict[str, str]:
    """What a number depends on beside settings and data."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"commit": commit(), "python": platform.python_version(), "torch": torch.__version__, "device": device}


@contextmanager
def refused_settings() -> Iterator[None]:
    """What the parts refuse while they are built came from the settings: an error of the user's, not of the program."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"settings: {error}") from error
