"""The programs of benchmarks/ work and write well-formed rows. Nothing here is timed."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def module(monkeypatch):
    """Name of a program in benchmarks/ -> its module; they import one another as programs do."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    return importlib.import_module


@pytest.fixture
def make_run(tmp_path):
    """(name, seed, rsum, **changes) -> a folder as training and evaluation leave it; only its figures are invented."""
    def make(name, seed, rsum, *, local_weight=0.6, images=1000, **evaluation):
        folder = tmp_path / name
        folder.mkdir()
        settings = {"dataset": "tiny", "out": str(folder), "model": {"local_weight": local_weight},
                    "train": {"seed": seed}}
        (folder / "settings.yaml").write_text(yaml.safe_dump(settings))
        environment = {"commit": "abc", "python": "3.11", "torch": "2.9", "device": "CPU, 2 threads"}
        (folder / "environment.json").write_text(json.dumps(environment))
        recalls = {"r1": rsum / 10, "r5": rsum / 6, "r10": rsum / 5}
        about = {"runs": [str(folder)], "split": "test", "protocol": "all pairs", **evaluation}
        full = {"i2t": recalls, "t2i": recalls, "images": images, "texts": 5 * images, "rsum": rsum}
        (folder / "eval-test.json").write_text(json.dumps({**about, "reports": {"full": full}}))
        return folder

    return make


def test_bench_retrieval_runs_and_writes_its_rows(module, tmp_path):
    """Without time for the pairwise way, so that its figures are scaled."""
    path = tmp_path / "results.csv"
    done = subprocess.run(
        [sys.executable, str(BENCHMARKS / "bench_retrieval.py"), "--quick", "--device", "cpu", "--seconds", "1e-6",
         "--results", str(path)],
        capture_output=True, text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "times better" in done.stdout
    rows = module("results").read(path)
    assert len(rows) == 3 * 6                                           # three for each line of the table
    assert all(float(row.value) > 0 and all(vars(row).values()) for row in rows)
    assert {row.command for row in rows} == {
        "python benchmarks/bench_retrieval.py --quick --device cpu --seconds 1e-6"
    }
    assert all(row.note.startswith("QUICK") for row in rows)
    assert {row.note.partition("SCALED ")[2][:9] for row in rows} == {"from 2 of"}


def test_rows_are_added_below_what_is_there(module, tmp_path):
    results, path = module("results"), tmp_path / "results.csv"
    row = results.Row("recall, of a, \"b\"", "1.0", "percent", "python x", "CPU", "abc", "torch", "2026-01-01", "a\nb")
    results.append(path, [row])
    before = path.read_bytes()
    results.append(path, [row, row])
    assert path.read_bytes().startswith(before)
    assert results.read(path) == [row] * 3
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("content", "message"), [
    ("time,value\n", "its first row is time,value"), ("{header}\na,b\n", "row 2: 2 cells"),
])
def test_a_file_of_another_kind_is_left_alone(module, tmp_path, content, message):
    results, path = module("results"), tmp_path / "results.csv"
    path.write_text(content.format(header=",".join(results.COLUMNS)))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=message):
        results.append(path, [])
    assert path.read_bytes() == before


def test_generated_lengths_are_distributed_as_the_real_ones(module, shared):
    text_lengths = module("scoring_job").text_lengths
    real = text_lengths(str(shared / "data" / "captions" / "coco_testall_caps.txt.gz"), "coco_testall", 4000)
    generated = text_lengths(None, "test", 4000)
    for found, expected in zip(generated[:2], real[:2], strict=True):
        assert found.mean() == pytest.approx(expected.mean(), rel=0.1)
        np.testing.assert_allclose(np.percentile(found, [10, 50, 90]), np.percentile(expected, [10, 50, 90]), atol=2)


@pytest.mark.parametrize(("arguments", "message"), [
    (["--shape", "10,3"], "H has to divide D"), (["--shape", "10"], "expected D,H"), (["--batch", "0"], "at least 1"),
    (["--captions", "nowhere_caps.txt"], "nowhere_caps.txt"),
])
def test_bench_retrieval_refuses_bad_arguments(module, capsys, arguments, message):
    assert module("bench_retrieval").main(["--quick", "--device", "cpu", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_recalls_over_seeds(module, make_run, tmp_path, capsys):
    path = tmp_path / "results.csv"
    runs = [make_run(f"a{seed}", seed, rsum) for seed, rsum in enumerate((250.0, 260.0, 264.0))]
    alone = make_run("b", 7, 200.0, local_weight=1.0)
    assert module("flickr8k").main([f"A, w/o B={','.join(map(str, runs))}", f"C={alone}", "--results", str(path)]) == 0
    printed = capsys.readouterr().out
    # sample standard deviation of 250, 260, 264: squares 64 + 4 + 36 over 2
    assert "| A, w/o B | 3 | 25.8 ± 0.7 |" in printed and "| 258.0 ± 7.2 |" in printed
    assert "| C | 1 | 20.0 | 33.3 | 40.0 |" in printed
    rows = module("results").read(path)
    assert [row.value for row in rows[:3]] == ["25.8 / 43.0 / 51.6", "25.8 / 43.0 / 51.6", "258.0"]
    assert len(rows) == 6
    assert "seeds 0, 1, 2; sample standard deviation 7.2" in rows[2].note and "no spread" in rows[5].note
    assert rows[0].hardware == "CPU, 2 threads" and rows[0].commit == "abc"
    assert rows[0].figure == "tiny test, 1,000 images x 5,000 captions, A, w/o B, I2T R@1 / R@5 / R@10"


def test_runs_that_do_not_belong_together_are_refused(module, make_run, tmp_path, capsys):
    first = make_run("first", 0, 250.0)
    wrong = {
        "differ in model.local_weight": make_run("other", 1, 250.0, local_weight=1.0),
        "a different one for each run": make_run("again", 0, 250.0),
        "tested on different sets": make_run("fewer", 1, 250.0, images=500),
        "expected one run": make_run("ensemble", 1, 250.0, runs=["a", "b"]),
        "protocol is 'paired'": make_run("leaking", 1, 250.0, protocol="paired"),
        "no file": tmp_path / "nowhere",
    }
    path = tmp_path / "results.csv"
    for message, folder in wrong.items():
        assert module("flickr8k").main([f"A={first},{folder}", "--results", str(path)]) == 2
        assert message in capsys.readouterr().err
    assert module("flickr8k").main(["A=", "--results", str(path)]) == 2
    assert not path.exists()
