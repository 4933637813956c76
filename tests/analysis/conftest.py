"""Runs that several rooms look at, and matplotlib's own settings for every test, whatever others set before."""

import matplotlib
import pytest


@pytest.fixture(autouse=True)
def matplotlibs_own_settings():
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.use("Agg")
        yield


@pytest.fixture(scope="session")
def tiny_runs(tmp_path_factory, tiny_data, tool, train_arguments):
    """Folder with two seeds of AsCL, a0 and a1, and a two-tower run, towers; tests that write into a run copy it."""
    folder = tmp_path_factory.mktemp("tiny_runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        for name, more in (("a0", []), ("a1", ["--train.seed", "1"]), ("towers", ["--model.kind", "two_tower"])):
            assert tool("train")(train_arguments(tiny_data, folder / name, *more)) == 0
    return folder
