"""The provenance that a run records, and how it refuses settings."""

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
    """Return which code runs: the commit, with `-dirty` if files changed, or the version of an installed package.

    The commit counts only if its repository tracks this file, not if a virtual environment happens to lie in one.
    An installed package adds the SHA-256 of its wheel, or of its list of files if the installer did not record the
    wheel's: "0.2.0 (wheel sha256 0123456789ab)". Files that are neither tracked nor installed give the bare version.
    """
    try:
        _git("ls-files", "--error-unmatch", Path(__file__).name)
        return _git("describe", "--always", "--dirty", "--abbrev=12")
    except (OSError, subprocess.CalledProcessError):
        return _installed_version()


def environment() -> dict[str, str]:
    """Return what a result depends on besides settings and data: `commit` (see `code_version`), versions, device."""
    import torch  # slow to import, and a feature file needs only `code_version`

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {"commit": code_version(), "python": platform.python_version(), "torch": torch.__version__, "device": device}


@contextmanager
def refused_settings() -> Iterator[None]:
    """Turn a `ValueError` of a part that is being built into a `DataError` about the settings, which the user gave."""
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
        return __version__  # the installed package is not the code that runs
    archive = json.loads(package.read_text("direct_url.json") or "{}").get("archive_info", {})
    if wheel := archive.get("hashes", {}).get("sha256"):
        return f"{__version__} (wheel sha256 {wheel[:12]})"
    files = hashlib.sha256((package.read_text("RECORD") or "").encode()).hexdigest()
    return f"{__version__} (RECORD sha256 {files[:12]})"
