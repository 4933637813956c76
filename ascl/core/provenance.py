"""What a run notes of its surroundings, and how it refuses settings."""

from __future__ import annotations

import hashlib
import json
import platform
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from ascl import __version__
from ascl.core.errors import DataError


def code_version() -> str:
    """Return which code runs: the commit with `-dirty` where it has changes, or the version of an installed package.

    The commit is that of the repository which tracks this very file, not of one that some virtual environment lies in.
    An installed package adds the SHA-256 of its wheel, or where the installer did not keep that, of its list of files:
    "0.2.0 (wheel sha256 0123456789ab)". The bare version is for files that are neither tracked nor installed.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return _installed_version()


def environment() -> dict[str, str]:
    """Return what a number depends on beside settings and data: `commit` (see `code_version`), versions, device."""
    import torch  # here: slow to import, and a feature file needs the version alone

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"commit": code_version(), "python": platform.python_version(), "torch": torch.__version__, "device": device}


@contextmanager
def refused_settings() -> Iterator[None]:
    """Turn what the parts refuse while they are built into an error of the settings, which the user gave."""
    try:
        yield
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"settings: {error}") from error


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


def _installed_version() -> str:
    try:
        package = metadata.distribution("ascl")
    except metadata.PackageNotFoundError:
        return __version__
    if Path(str(package.locate_file("ascl/core/provenance.py"))).resolve() != Path(__file__).resolve():
        return __version__  # the installed package is another copy
    archive = json.loads(package.read_text("direct_url.json") or "{}").get("archive_info", {})
    if wheel := archive.get("hashes", {}).get("sha256"):
        return f"{__version__} (wheel sha256 {wheel[:12]})"
    files = hashlib.sha256((package.read_text("RECORD") or "").encode()).hexdigest()
    return f"{__version__} (RECORD sha256 {files[:12]})"
