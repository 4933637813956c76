"""Which code ran: the commit of the repository that tracks it, else the version of the package."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ascl
from ascl.core.errors import DataError
from ascl.core.provenance import environment, refused_settings

PACKAGE = Path(ascl.__file__).parent
ASK = "import sys; from ascl.core.provenance import code_version; print(code_version()); print('torch' in sys.modules)"
GIT = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]


def install(folder: Path) -> Path:
    """A copy of the package in `folder`: the files that the question needs."""
    for name in ("__init__.py", "core/__init__.py", "core/errors.py", "core/provenance.py"):
        (folder / "ascl" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(PACKAGE / name, folder / "ascl" / name)
    return folder


def version_in(folder: Path) -> str:
    """What the copy in `folder` says, asked in a process of its own that finds no other."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", ASK], cwd=folder.parent, capture_output=True, text=True, check=True,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), "GIT_CEILING_DIRECTORIES": str(folder.parents[1])},
    )
    answer, with_torch = done.stdout.splitlines()
    assert with_torch == "False"                    # as light as the commands that only need a version
    return answer


def commit_all(repository: Path, *names: str) -> str:
    for command in (["init", "-q"], ["add", *names], ["commit", "-q", "-m", "x"]):
        subprocess.run([*GIT, *command], cwd=repository, check=True)
    done = subprocess.run([*GIT, "rev-parse", "HEAD"], cwd=repository, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_tracked_code_is_its_commit(tmp_path):
    checkout = install(tmp_path / "checkout")
    commit = commit_all(checkout, "ascl")
    assert version_in(checkout) == commit[:12]
    with open(checkout / "ascl" / "core" / "errors.py", "a") as file:
        file.write("# changed\n")
    assert version_in(checkout) == f"{commit[:12]}-dirty"


def test_a_package_inside_another_repository_is_not_that_repository(tmp_path):
    site = install(tmp_path / "project" / "venv")
    (tmp_path / "project" / "theirs.py").write_text("")
    commit_all(tmp_path / "project", "theirs.py")
    assert version_in(site) == ascl.__version__     # the files are neither tracked nor installed
    info = site / "ascl-0.2.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: ascl\nVersion: 0.2.0\n")
    (info / "RECORD").write_text("ascl/__init__.py,sha256=abc,10\n")
    recorded = version_in(site)
    assert recorded.startswith(f"{ascl.__version__} (RECORD sha256 ")
    (info / "RECORD").write_text("ascl/__init__.py,sha256=other,10\n")
    assert version_in(site) != recorded
    (info / "direct_url.json").write_text(json.dumps({"archive_info": {"hashes": {"sha256": "0123456789abcdef"}}}))
    assert version_in(site) == f"{ascl.__version__} (wheel sha256 0123456789ab)"
    (site / "ascl-0.2.0.dist-info").rename(tmp_path / "ascl-0.2.0.dist-info")
    assert version_in(site) == ascl.__version__


def test_the_environment_names_code_and_versions():
    assert set(environment()) == {"commit", "python", "torch", "device"} and all(environment().values())


def test_what_a_part_refuses_is_an_error_of_the_settings():
    with pytest.raises(DataError, match="settings: margin must be"), refused_settings():
        raise ValueError("margin must be >= 0")
    with pytest.raises(DataError, match="^no such file"), refused_settings():
        raise DataError("no such file")
