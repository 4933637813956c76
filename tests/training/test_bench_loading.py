"""benchmarks/bench_loading.py works and writes well-formed rows. Nothing here is timed."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Name of a program in benchmarks/ -> its module; they import one another as programs do."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


def test_it_runs_and_writes_its_rows(module, tmp_path, capsys):
    path, scratch = tmp_path / "results.csv", tmp_path / "scratch"
    scratch.mkdir()
    arguments = ["--quick", "--device", "cpu", "--repeats", "1", "--scratch", str(scratch), "--results", str(path)]
    assert module("bench_loading").main([*arguments, "--cold"]) == 0
    assert "loader alone" in capsys.readouterr().out
    rows = module("results").read(path)
    assert len({row.figure for row in rows}) == len(rows) == 2 * 2 * 2         # data sets, workers, figures
    assert [row.unit for row in rows] == ["times", "ms"] * 4
    assert all(float(row.value) > 0 and row.note.startswith("QUICK") and "cold" in row.figure for row in rows)
    assert str(tmp_path) not in "".join(row.note + row.figure for row in rows)
    assert list(scratch.iterdir()) == []


@pytest.mark.parametrize(("more", "message"), [
    (["--batch", "0"], "--batch 0: must be at least 1"), (["--steps", "99"], "more --images or fewer --steps"),
    (["--shape", "10,3"], "H must divide D"), (["--workers", "-1"], "train.workers is -1"),
])
def test_bad_arguments_are_refused(module, capsys, more, message):
    assert module("bench_loading").main(["--quick", "--device", "cpu", *more]) == 2
    assert message in capsys.readouterr().err


def test_waiting_is_counted_and_nothing_else(module):
    """By a clock that moves in the loader and in the step alone."""
    bench, now = module("bench_loading"), [0.0]

    class Step:
        device = bench.torch.device("cpu")

        def __call__(self, batch):
            now[0] += 2

    def batches():
        for batch in range(4):
            now[0] += 3
            yield batch

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench.time, "perf_counter", lambda: now[0])
        found = bench.run(Step(), batches())
    assert found == (5, 3)
