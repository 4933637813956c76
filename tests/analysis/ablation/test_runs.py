"""What `ascl ablate` starts, skips, resumes and divides; and once with the real programs, killed in between."""

import csv
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from ascl.analysis.ablation.commands import launcher
from ascl.analysis.ablation.plan import Request, choose, plan
from ascl.analysis.ablation.runner import last_line, log_of, make_slots, visible_gpus
from ascl.analysis.ablation.state import stamp, state_of
from ascl.core.errors import DataError

from ...warm_python import REPOSITORY, Program
from .ablation_programs import OUT, make_place, running, start, started, tables, wait_for

TWO = ["--only", "AsCL", "--only", "w/o P&N"]


@pytest.fixture(scope="module")
def finished_once(tmp_path_factory):
    """A folder with small programs, in which two seeds of AsCL and w/o P&N were trained, two at a time."""
    folder = make_place(tmp_path_factory.mktemp("ablation") / "place")
    done = start(folder, "--seeds", "2", *TWO, "--parallel", "2", "--threads", "3")
    assert done.wait(300) == 0, done.complained()
    return folder


@pytest.fixture
def finished(finished_once, place):
    """`finished_once` in the working directory."""
    return shutil.copytree(finished_once, place, dirs_exist_ok=True)


def run_of(place, label="AsCL", seed=0):
    """Folder of a finished run."""
    rows = tables(place / OUT)[1]
    return next(place / row["run"] for row in rows if (row["label"], row["seed"]) == (label, str(seed)))


def test_each_run_is_trained_once_and_the_table_holds_what_was_evaluated(finished):
    runs = finished / OUT / "runs"
    assert len(started(finished)) == 4 and {resumed for _, resumed in started(finished)} == {"False"}
    assert sorted(run for run, _ in started(finished)) == sorted(entry.name for entry in runs.iterdir())
    text, rows = tables(finished / OUT)
    assert [(row["label"], row["seed"]) for row in rows] == [
        ("AsCL", "0"), ("AsCL", "1"), ("w/o P&N", "0"), ("w/o P&N", "1")]
    assert rows[2]["variant"] == "samples.negatives=none samples.positives=none"
    for row in rows:
        report = json.loads((finished / row["run"] / "eval-test.json").read_text())["reports"]["full"]
        assert float(row["rsum"]) == pytest.approx(report["rsum"])
        assert float(row["t2i_r5"]) == pytest.approx(report["t2i"]["r5"])
        assert (row["steps"], row["pairs"]) == ("6", "48")
    sums = [float(row["rsum"]) for row in rows[:2]]
    assert f"| {np.mean(sums):.1f} ± {np.std(sums, ddof=1):.1f} | 6 | 48 |" in text
    assert "Equal budget: every run took 6 steps and saw 48 pairs" in text
    assert "w/o MF, seed 0" in text.partition("## Not finished")[2]                # --only leaves the rest unfinished
    assert (finished / OUT / "table2.png").read_bytes().startswith(b"\x89PNG")
    for path in finished.glob("environment-*.json"):
        assert json.loads(path.read_text())["OMP_NUM_THREADS"] == "3"


def test_what_is_finished_is_not_started_again(finished, ablate, capsys):
    before = tables(finished / OUT)
    assert ablate("--seeds", "2", *TWO) == 0
    assert len(started(finished)) == 4 and tables(finished / OUT) == before
    # the hash does not see where things lie
    assert ablate("--seeds", "2", *TWO, "--train.workers", "7", "--data.prepare", "somehow") == 0
    assert len(started(finished)) == 4
    # one seed more is one run more, and another study knows the run that it shares with this one
    assert ablate("--seeds", "3", "--only", "AsCL") == 0 and len(started(finished)) == 5
    capsys.readouterr()
    assert ablate("--seeds", "1", "--study", "positives", "--dry-run") == 0
    assert states(capsys.readouterr().out) == ["missing", "missing", "missing", "finished"]


def states(printed):
    """First words of what --dry-run prints of each run."""
    return [line.split()[0] for line in printed.splitlines() if not line.startswith(" ")]


def test_dry_run_prints_commands_that_train_what_it_says_and_starts_nothing(place, ablate, capsys):
    assert ablate("--seeds", "0,3", "--only", "w/o Neg", "--train.max_steps=2", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[::2]] == ["missing", "missing"] and "seed 3 (table2: w/o Neg)" in lines[2]
    assert started(place) == [] and not (place / "runs").exists()
    words = shlex.split(lines[3])
    assert words[:2] == ["ascl", "train"]
    assert subprocess.run([sys.executable, "-m", *words]).returncode == 0          # by hand, and then it is known
    assert ablate("--seeds", "0,3", "--only", "w/o Neg", "--train.max_steps=2", "--dry-run") == 0
    assert states(capsys.readouterr().out) == ["missing", "interrupted"]


def test_a_failing_variant_stops_no_other_and_is_listed(finished, ablate, capsys):
    place = finished
    failing = ["--only", "w triplet loss", "--only", "w/o MF"]
    assert ablate("--seeds", "1", *failing) == 1
    printed = capsys.readouterr()
    assert "failed: " in printed.err and "w triplet loss" in printed.err
    assert "ValueError: this one cannot be trained (exit status 1" in printed.err
    text, rows = tables(place / OUT)
    assert [row["label"] for row in rows] == ["AsCL", "w/o P&N", "w/o MF"]
    assert "ValueError: this one cannot be trained" in text.partition("## Not finished")[2]
    (log,) = (path for path in (place / OUT / "logs").glob("*.log") if "ValueError" in path.read_text())
    assert log.read_text().startswith("$ ") and "loading" in log.read_text()
    # tried again, because it is not finished; the other is
    assert ablate("--seeds", "1", *failing) == 1 and len(started(place)) == 4 + 3


def test_an_evaluation_of_another_checkpoint_is_made_anew(finished, ablate):
    run = run_of(finished)
    again = ("--seeds", "1", "--only", "AsCL")
    right = (run / "eval-test.json").read_text()
    request = Request("tiny", ("table2",), (0,), (), OUT, probe_captions=5)
    (planned,) = choose(plan(request), ["AsCL"])
    assert planned.folder.samefile(run) and state_of(planned) == "finished"
    for wrong in ({"runs": [f"{run}/last.pt"]}, {"runs": [str(run), "other"]}, {"protocol": "paired"}, {"reports": {}}):
        (run / "eval-test.json").write_text(json.dumps({**json.loads(right), **wrong}))
        assert state_of(planned) == "trained"
    unprobed = json.dumps({key: value for key, value in json.loads(right).items() if key != "probes"})
    (run / "eval-test.json").write_text(unprobed)
    assert (state_of(planned), state_of(replace(planned, probe_captions=0))) == ("trained", "finished")
    (run / "eval-test.json").write_text(right[: len(right) // 2])
    assert state_of(planned) == "trained"
    assert ablate(*again) == 0
    assert (run / "eval-test.json").read_text() == right and len(started(finished)) == 4     # evaluated, not trained
    # another best.pt: whatever made it, it is trained to the end and evaluated again
    with (run / "best.pt").open("wb") as file:
        np.savez(file, weight=3.5)
    assert ablate(*again) == 0
    assert started(finished)[4:] == [(run.name, "True")] and (run / "eval-test.json").read_text() == right


def held(place):
    """Trainings that took two steps and wait for the file `hold` to go."""
    logs = place.glob("runs/*/runs/*/metrics.jsonl")
    return sum(len(log.read_text().splitlines()) == 2 for log in logs)


@pytest.mark.parametrize("orphan", [False, True], ids=["all killed", "the program's child lives on"])
def test_killed_in_the_middle_and_started_again_the_tables_are_the_same(
    place, ablate, finished_once, tmp_path, orphan, capsys, monkeypatch
):
    (place / "hold").touch()
    first = start(place, "--seeds", "1", "--only", "AsCL")
    wait_for(lambda: held(place))
    if orphan:
        first.kill()
        again = start(place, "--seeds", "1", "--only", "AsCL")
        wait_for(again.said)
        assert again.said() == "waiting for 1 runs that another process is working on\n"
        assert len(started(place)) == 1 and running(place)
        (place / "hold").unlink()
        assert again.wait(120) == 0
    else:
        os.killpg(first.pid, signal.SIGKILL)
        wait_for(lambda: not running(place))
        (place / "hold").unlink()
        assert ablate("--seeds", "1", "--only", "AsCL", "--dry-run") == 0
        assert capsys.readouterr().out.startswith("interrupted")
        assert ablate("--seeds", "1", "--only", "AsCL") == 0
    first.wait(60)
    assert [resumed for _, resumed in started(place)] == ["False", "True"] and not (place / "TWICE").exists()
    text, rows = tables(place / OUT)
    # of a folder in which nobody was killed
    never = shutil.copytree(finished_once, tmp_path / "never")
    shutil.rmtree(run_of(never, "w/o P&N"))
    monkeypatch.chdir(never)
    assert ablate("--seeds", "1", "--report") == 0
    assert tables(never / OUT) == (text, rows)


def test_a_signal_ends_the_programs_and_the_next_call_goes_on(place, ablate):
    (place / "hold").touch()
    first = start(place, "--seeds", "1", "--only", "AsCL")
    wait_for(lambda: held(place))
    assert running(place)
    first.send_signal(signal.SIGINT)
    assert first.wait(60) == 130 and "the same command continues from here" in first.complained()
    assert not running(place)
    (place / "hold").unlink()
    assert ablate("--seeds", "1", "--only", "AsCL") == 0
    assert [resumed for _, resumed in started(place)] == ["False", "True"]


def test_a_run_that_another_program_has_locked_is_waited_for(place):
    request = Request("tiny", ("table2",), (0,), (), OUT)
    (run,) = choose(plan(request), ["AsCL"])
    log_of(run).parent.mkdir(parents=True)
    with FileLock(log_of(run).with_suffix(".lock")):
        waiting = start(place, "--seeds", "1", "--only", "AsCL")
        wait_for(waiting.said)
        assert waiting.said() == "waiting for 1 runs that another process is working on\n"
        assert not started(place)
    assert waiting.wait(60) == 0 and len(started(place)) == 1


def test_two_programs_on_one_folder_divide_the_runs(place):
    (place / "hold").touch()
    both = [start(place, "--seeds", "2", *TWO) for _ in range(2)]
    wait_for(lambda: held(place) == 2)                                     # one run each
    (place / "hold").unlink()
    assert [process.wait(300) for process in both] == [0, 0], [process.complained() for process in both]
    runs = [run for run, _ in started(place)]
    assert len(runs) == len(set(runs)) == 4 and not (place / "TWICE").exists()
    assert len((place / "evaluated.txt").read_text().splitlines()) == 4
    assert all(process.said().startswith("train ") for process in both)
    assert len(tables(place / OUT)[1]) == 4


def test_slots_share_out_gpus_and_threads():
    gpus = ["0", "1", "GPU-abc", "3"]
    def seen(slots):
        return [slot.environment.get("CUDA_VISIBLE_DEVICES") for slot in slots]

    assert seen(make_slots(None, 1, None, gpus)) == gpus                   # one run for each GPU
    assert seen(make_slots(None, 2, None, gpus)) == ["0,1", "GPU-abc,3"]
    assert seen(make_slots(5, 1, None, gpus)) == [*gpus, "0"]              # more runs than GPUs share them
    assert len(make_slots(None, 1, None, [])) == 1 and make_slots(None, 1, None, [])[0].environment == {}
    assert [slot.environment for slot in make_slots(2, 2, None, [], cores=8)] == [
        {"OMP_NUM_THREADS": "2", "ACCELERATE_USE_CPU": "true"}] * 2
    for wrong, name in (((0, 1, None, []), "parallel is 0"), ((1, 1, 0, []), "threads is 0"),
                        ((1, 5, None, gpus), "5 processes")):
        with pytest.raises(DataError, match=name):
            make_slots(*wrong)


def test_gpus_are_those_that_this_process_may_use(monkeypatch):
    import torch

    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus() == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5, GPU-abc")
    assert visible_gpus() == ["5", "GPU-abc"]
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    assert visible_gpus() == []


def test_several_processes_go_through_accelerate(place, ablate, capsys):
    assert ablate("--seeds", "1", "--only", "AsCL", "--processes", "2", "--dry-run") == 0
    two = capsys.readouterr().out.splitlines()
    assert two[1].strip().startswith("accelerate launch --multi_gpu --num_processes 2 ")
    assert " --main_process_port 0 -m ascl train --dataset tiny" in two[1]
    assert ablate("--seeds", "1", "--only", "AsCL", "--dry-run") == 0
    assert two[0].split()[1] != capsys.readouterr().out.split()[1]         # their batches are others: another run
    assert launcher(1) == [sys.executable]


# Outside models


def test_an_outside_model_stands_in_the_table_until_its_folder_is_removed(finished, ablate, capsys):
    def evaluations():
        return len((finished / "evaluated.txt").read_text().splitlines())

    theirs, owner, count = ["--seeds", "2", *TWO, "--scores", "Their model=theirs.npz"], np.repeat(np.arange(20), 2), 4
    np.savez(finished / "theirs.npz", scores=np.zeros((20, 40)), owner=owner)
    assert ablate(*theirs) == 0 and evaluations() == count + 1
    text, rows = tables(finished / OUT)
    assert [row["label"] for row in rows][-1] == "Their model" and rows[-1]["seed"] == rows[-1]["steps"] == ""
    assert "| Their model | scores of an outside model | outside |" in text and "An outside model has one" in text
    assert ablate(*theirs) == 0 and evaluations() == count + 1             # the same file: not again
    np.savez(finished / "theirs.npz", scores=np.ones((20, 40)), owner=owner)
    assert ablate(*theirs) == 0 and evaluations() == count + 2
    shutil.rmtree(finished / OUT / "scores")
    capsys.readouterr()
    assert ablate("--seeds", "2", *TWO, "--scores", "gone=gone.npz") == 1
    assert "failed: scores of gone: error: no score file at gone.npz (exit status 1" in capsys.readouterr().err
    assert "outside" not in tables(finished / OUT)[0]


def test_scores_that_cannot_be_evaluated_leave_those_that_were(finished, ablate, capsys):
    np.savez(finished / "theirs.npz", scores=np.zeros((20, 40)), owner=np.repeat(np.arange(20), 2))
    assert ablate("--seeds", "2", "--report", "--scores", "theirs=theirs.npz") == 0       # it trains nothing
    before = tables(finished / OUT)
    assert before[1][-1]["label"] == "theirs"
    assert ablate("--seeds", "2", "--report", "--scores", "theirs=typo.npz") == 1
    assert tables(finished / OUT) == before
    for name, message in (("AsCL", "a variant has this name"), ("their/s", None), ("their_s", "belongs to 'their/s'")):
        capsys.readouterr()
        assert ablate("--seeds", "2", "--report", "--scores", f"{name}=theirs.npz") == (1 if message else 0)
        assert message is None or message in capsys.readouterr().err
    assert [path.name for path in (OUT / "scores").iterdir() if path.name.startswith(".")] == []


def test_an_outside_model_of_other_images_is_left_out_of_the_table(finished, ablate):
    ours = finished / run_of(finished) / "ranks-test.npz"
    arrays = dict(np.load(ours))
    np.savez(ours, **arrays, captions=np.array([f"caption {number}" for number in range(40)]))
    np.savez(finished / "theirs.npz", scores=np.zeros((20, 40)), owner=np.repeat(np.arange(20), 2))
    assert ablate("--seeds", "2", "--report", "--scores", "theirs=theirs.npz") == 0
    for path in (OUT / "scores" / "theirs").glob("ranks-*"):
        np.savez(path, **{**dict(np.load(path)), "owner": np.repeat(np.arange(20)[::-1], 2)})
    assert ablate("--seeds", "2", "--report") == 0
    text, rows = tables(finished / OUT)
    assert [row["label"] for row in rows if not row["seed"]] == []
    assert "- theirs: left out, its 20 images and 40 captions are not the 20 and 40" in text


# What is damaged


@pytest.mark.parametrize(("name", "content", "message"), [
    ("environment.json", "", "environment.json is truncated"), ("environment.json", "{}", "KeyError: 'commit'"),
    ("environment.json", None, "environment.json"), ("metrics.jsonl", "{\n{}\n", "metrics.jsonl, line 1"),
])
def test_a_damaged_run_is_named_and_keeps_no_other_from_its_table(finished, ablate, name, content, message):
    path = finished / run_of(finished) / name
    path.unlink()
    if content is not None:
        path.write_text(content)
    assert ablate("--seeds", "2", "--report") == 0
    text, rows = tables(finished / OUT)
    assert len(rows) == 3 and message in text.partition("## Not finished")[2]


def test_damaged_ranks_are_made_anew_and_a_short_log_is_no_short_training(finished, ablate):
    before = tables(finished / OUT)
    run = finished / run_of(finished)
    (run / "ranks-test.npz").write_bytes(b"")
    log = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(log[:3]) + "\n")
    assert ablate("--seeds", "2", *TWO) == 0
    assert len(started(finished)) == 4
    rows = list(csv.DictReader((finished / OUT / "table2.csv").open()))
    of_log = ("seconds", "best_step", "validation", "stopped_early")
    for row, whole in zip(rows, before[1], strict=True):
        assert all(value == whole[name] for name, value in row.items() if name not in of_log)
        assert all((row[name] == "") == (Path(row["run"]).name == run.name) for name in of_log)


def test_a_run_on_data_that_has_changed_is_refused(finished, ablate, capsys):
    captions = finished / "data" / "captions.json"
    captions.write_text(captions.read_text() + " ")
    assert ablate("--seeds", "2", "--only", "AsCL") == 1
    assert "captions.json, whose content has changed since" in capsys.readouterr().err
    assert len(started(finished)) == 4


def test_the_summary_holds_means_deviations_and_tests(finished):
    rows = {row["label"]: row for row in csv.DictReader((finished / OUT / "table2_summary.csv").open())}
    runs = tables(finished / OUT)[1]
    sums = {label: [float(row["rsum"]) for row in runs if row["label"] == label] for label in ("AsCL", "w/o P&N")}
    for label, values in sums.items():
        assert float(rows[label]["rsum mean"]) == pytest.approx(np.mean(values))
        assert float(rows[label]["rsum deviation"]) == pytest.approx(np.std(values, ddof=1))
    difference = np.mean(sums["w/o P&N"]) - np.mean(sums["AsCL"])
    assert float(rows["w/o P&N"]["difference in rsum"]) == pytest.approx(difference)
    low, high = (float(rows["w/o P&N"][f"95 % over seeds, {end}"]) for end in ("low", "high"))
    assert low < difference < high and float(rows["w/o P&N"]["p sign_flip"]) in (0.5, 1.0)
    assert rows["AsCL"]["difference in rsum"] == rows["w/o MF"]["rsum mean"] == ""


# What is refused


def test_an_unknown_label_is_refused(place, ablate, capsys):
    assert ablate("--seeds", "1", "--only", "w/o Posi") == 1
    assert "no such variant" in capsys.readouterr().err and started(place) == []


@pytest.mark.parametrize(("more", "message"), [
    (["--train.seed", "3"], "give --seeds"), (["--train.max_steps", "'6"], "train.max_steps"),
    (["--model.embed_dimm", "3"], "did you mean 'model.embed_dim'"),
    (["--scores", "theirs.npz"], "expected NAME=FILE"), (["--dataset", "cocoa"], "no settings for data set"),
    (["--processes", "0"], "at least 1"), (["--parallel", "0"], "at least 1"),
    (["--probe-captions", "-1"], "at least 0"),
])
def test_bad_options_are_refused_before_anything_starts(place, ablate, more, message, capsys):
    assert ablate("--seeds", "1", *more) == 2
    assert message in capsys.readouterr().err and started(place) == []


@pytest.mark.parametrize("seeds", ["0", "-1", "1,1", "a", "", "1,-2"])
def test_bad_seeds_are_refused(ablate, seeds, capsys):
    assert ablate(f"--seeds={seeds}") == 2
    assert "--seeds" in capsys.readouterr().err


def test_a_folder_with_another_run_is_not_touched(finished, ablate, capsys):
    run = run_of(finished)
    settings = (run / "settings.yaml").read_text()
    (run / "settings.yaml").write_text(settings.replace("max_steps: 6", "max_steps: 9"))
    assert ablate("--seeds", "1", *TWO) == 1                               # the other is finished
    assert "holds other settings" in capsys.readouterr().err and len(started(finished)) == 4
    assert ablate("--seeds", "1", "--dry-run") == 0
    assert capsys.readouterr().out.startswith("refused: ")
    (run / "settings.yaml").write_text(settings.replace("batch_size", "batch_sizes"))
    assert ablate("--seeds", "1", "--dry-run") == 0
    assert "was made by another version" in capsys.readouterr().out


def test_data_that_was_moved_is_the_same_data_and_a_namesake_is_not(place, ablate, capsys):
    (place / "hold").touch()
    first = start(place, "--seeds", "1", "--only", "AsCL")
    wait_for(lambda: held(place))
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 130
    (place / "hold").unlink()
    moved = ["--data.captions", "moved/captions.json", "--data.features", "moved/regions.h5,moved/globals.h5"]
    shutil.copytree("data", "moved")
    assert ablate("--seeds", "1", "--only", "AsCL", *moved, "--dry-run") == 0
    assert "another file of the same name" in capsys.readouterr().out
    shutil.rmtree("data")
    assert ablate("--seeds", "1", "--only", "AsCL", *moved) == 0
    assert [resumed for _, resumed in started(place)] == ["False", "True"]
    run = next((place / OUT / "runs").iterdir())
    assert "captions: moved/captions.json" in (run / "settings.yaml").read_text()
    shutil.copytree("moved", "again")
    shutil.rmtree("moved")
    (run / "eval-test.json").unlink()
    assert ablate("--seeds", "1", "--only", "AsCL", *(word.replace("moved/", "again/") for word in moved)) == 0
    last = (place / "evaluated.txt").read_text().splitlines()[-1]
    assert last == f"{run.name} again/captions.json ['again/regions.h5', 'again/globals.h5']"


@pytest.mark.parametrize(("log", "line"), [
    ("$ a\nTraceback\nValueError: no\n\n", "ValueError: no"), ("$ a\nerror: what\nadvice\n", "error: what"),
    ("$ a\nerror: old\n$ b\nnew\n", "new"), ("$ a\n10 %\r20 %\r\n", "20 %"), ("$ a\n", "it printed nothing"),
    ("$ a\nerror: what\n=====\nlaunch.py FAILED\n-----\n", "error: what"),
])
def test_the_last_line_of_a_log_is_what_a_program_said_last(tmp_path, log, line):
    (tmp_path / "log").write_text(log)
    assert last_line(tmp_path / "log") == line
    assert last_line(tmp_path / "none") == "no log"


# With the real programs


def test_the_real_programs_killed_and_resumed_end_in_the_table_of_a_run_that_never_was(
    tmp_path, tiny_data, train_arguments, tool, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    settings = train_arguments(tiny_data, tmp_path, "--train.checkpoint_every", "1", "--train.max_steps", "12",
                               "--train.validate_every", "12")[2:]
    words = ["--dataset", "flickr8k", "--study", "table2", "--only", "w/o P&N", "--seeds", "1", "--parallel", "1",
             *settings]
    out = tmp_path / "runs" / "ablation-flickr8k"
    first = Program(REPOSITORY / "tools" / "ablate.py", *words)
    log = f"{out}/runs/*/metrics.jsonl"
    wait_for(lambda: any(len(p.read_text().splitlines()) >= 2 for p in tmp_path.glob(os.path.relpath(log, tmp_path))))
    os.killpg(first.pid, signal.SIGKILL)
    first.wait(60)
    run = next((out / "runs").iterdir())
    assert not (run / "best.pt").exists()                                   # it was in the middle
    assert tool("ablate")(words) == 0
    assert "--resume" in (out / "logs" / f"{run.name}.log").read_text()
    killed = tables(out)
    # the same run in one go, in this process
    request = Request("flickr8k", ("table2",), (0,), tuple(settings), Path("never"))
    (never,) = choose(plan(request), ["w/o P&N"])
    assert tool("train")(list(never.arguments)) == 0
    assert tool("eval")(["--checkpoint", str(never.folder), "--probes"]) == 0
    stamp(never, evaluated=True)
    assert state_of(never) == "finished"
    assert tool("ablate")([*words, "--out", "never", "--report"]) == 0
    text, rows = tables(Path("never"))
    assert text.replace("never/", f"{out.relative_to(tmp_path)}/") == killed[0]
    assert [{**row, "run": row["run"].replace("never/", f"{out.relative_to(tmp_path)}/")} for row in rows] == killed[1]
    assert rows[0]["steps"] == "12" and rows[0]["pairs"] == "96"
    # what eval.py wrote is what stands in the table, and its ranks are read
    report = json.loads((run / "eval-test.json").read_text())["reports"]["full"]
    assert float(rows[0]["rsum"]) == pytest.approx(report["rsum"]) and (run / "ranks-test.npz").exists()
    assert 0 <= float(rows[0]["probe I"]) <= 1 and "## Probes of asymmetry" in text
