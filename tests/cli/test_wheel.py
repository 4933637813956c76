"""The wheel: installed into an empty folder, used in another, without the repository."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PARTS = ("ascl", "configs", "setup.py", "pyproject.toml", "README.md", "LICENSE")
EVERYTHING = """
import runpy, sys
import ascl
from ascl.cli import main
print(ascl.__file__)
assert main("prepare --dataset scenes --train 40 --val 10 --test 10 --detector_steps 2".split()) == 0
assert main("train --dataset scenes --train.max_steps 2 --batch_size 8 --workers 0".split()) == 0
script = sys.argv[1]
sys.argv = [script, "eval", "--checkpoint", "runs/scenes", "--json"]
runpy.run_path(script, run_name="__main__")
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """Folder with the package as `pip install` leaves it, dependencies left out."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for part in PARTS:
        whole = REPOSITORY / part
        copy = shutil.copytree if whole.is_dir() else shutil.copy
        copy(whole, source / part)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source], check=True)
    wheel, = folder.glob("ascl-*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", folder / "site", wheel], check=True)
    return folder / "site"


def test_a_wheel_prepares_trains_and_evaluates_in_an_empty_folder(installed, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(installed), "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1"}

    shipped = {path.relative_to(installed / "ascl" / "configs") for path in installed.rglob("ascl/configs/**/*.yaml")}
    assert shipped == {path.relative_to(REPOSITORY / "configs") for path in REPOSITORY.glob("configs/**/*.yaml")}
    words = [sys.executable, "-c", EVERYTHING, installed / "bin" / "ascl"]      # one process, which imports torch once
    ran = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    where, rest = ran.stdout.split("\n", 1)
    assert where == str(installed / "ascl" / "__init__.py")
    made = json.loads(rest[rest.rindex("\n{"):])
    assert 0 <= made["reports"]["full"]["rsum"] <= 600
    assert json.loads((tmp_path / "runs/scenes/environment.json").read_text())["commit"] != ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "runs"]
