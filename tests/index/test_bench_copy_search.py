"""benchmarks/bench_copy_search.py works and writes well-formed rows. Nothing here is timed."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


def test_it_runs_and_writes_its_rows(monkeypatch, tmp_path, capsys):
    pytest.importorskip("faiss")
    monkeypatch.syspath_prepend(BENCHMARKS)
    path, scratch = tmp_path / "results.csv", tmp_path / "scratch"
    scratch.mkdir()
    arguments = ["--quick", "--scratch", str(scratch), "--results", str(path)]
    assert importlib.import_module("bench_copy_search").main(arguments) == 0
    assert "times faster than torch" in capsys.readouterr().out
    rows = importlib.import_module("results").read(path)
    figures = {row.figure.removeprefix("search of 60 queries in 2,000 references of 16 numbers, best 10, "): row
               for row in rows}
    assert len(figures) == len(rows) == 22
    assert all(row.note.startswith("QUICK") for row in rows)
    assert float(figures["compressed: recall@1 against exact, copies"].value) > 0.9
    assert float(figures["index: adding one by one"].value) > 0
    assert list(scratch.iterdir()) == []


def test_too_small_a_measurement_is_refused(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    module = importlib.import_module("bench_copy_search")
    assert module.main(["--queries", "1", "--results", str(tmp_path / "r.csv")]) == 2
    assert "--queries 1: must be at least 2" in capsys.readouterr().err


def test_adding_one_by_one_is_compared_with_what_the_disk_asks_for(monkeypatch, tmp_path, capsys):
    monkeypatch.syspath_prepend(BENCHMARKS)
    path = tmp_path / "results.csv"
    arguments = ["--singles", "1000", "--quick", "--scratch", str(tmp_path), "--results", str(path)]
    assert importlib.import_module("bench_copy_search").main(arguments) == 0
    rows = importlib.import_module("results").read(path)
    assert {row.figure for row in rows} >= {
        f"adding 20 images one by one to 200 of 16 numbers: {name}"
        for name in ("rate", "a bare commit and flush", "time relative to a bare commit and flush")}
    assert all(float(row.value) > 0 and row.note.startswith("QUICK") for row in rows)
    assert [one.name for one in tmp_path.iterdir()] == ["results.csv"]
