"""A folder with small programs, and the command there."""

import pytest

from ascl.cli import main

from .ablation_programs import make_place


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with small programs, which is also the working directory."""
    monkeypatch.chdir(make_place(tmp_path / "place"))
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    return tmp_path / "place"


@pytest.fixture
def ablate(place):
    """(*more) -> exit status of `ascl ablate` on study table2 in the working directory, in this process."""
    return lambda *more: main(["ablate", "--dataset", "tiny", "--study", "table2", "--parallel", "1", *more])
