"""Tuning trials: what a file means, what is started, and what the validation split chooses."""

import csv
import json
import os
import shutil
import signal

import pytest
import yaml

from ascl.analysis.ablation.plan import Request, plan, plan_trials
from ascl.analysis.ablation.trials import chosen_settings, read_trials
from ascl.core.errors import DataError, SettingsError

from .ablation_programs import OUT, make_place, running, start, started, tables, wait_for

TWO = ["--only", "AsCL", "--only", "w/o P&N"]
RATES = {"grid": {"optimizer.lr": [0.1, 0.3]}}       # the programs of these tests have 0.3 for AsCL, 0.1 for w/o P&N


def trials_file(folder, content):
    path = folder / "trials.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def trial_rows(folder, study="table2"):
    with (folder / f"{study}_trials.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["state"] != "missing"]


# Files


def test_a_grid_is_every_combination_and_a_list_is_as_it_stands(tmp_path):
    found = read_trials(trials_file(tmp_path, {
        "grid": {"optimizer": {"lr": [5.0e-4, 0.1]}, "loss.kind": ["triplet", "contrastive"]},
        "trials": [{"optimizer.lr": 0.1, "loss": {"kind": "triplet"}}, {"train": {"patience": None}},
                   {"samples.mixture_kinds": ["dropout", "gaussian"]}, {}]}))
    assert [trial.label for trial in found] == [
        "its defaults", "loss.kind=triplet optimizer.lr=0.0005", "loss.kind=contrastive optimizer.lr=0.0005",
        "loss.kind=triplet optimizer.lr=0.1", "loss.kind=contrastive optimizer.lr=0.1", "train.patience=null",
        'samples.mixture_kinds=["dropout", "gaussian"]']
    runs = plan_trials(Request("flickr8k", ("baselines",), (0,), (), tmp_path, trials=(found[4], found[-1])))
    configs = {use: run.config for run in runs for use in run.uses}
    one = configs["baselines", "VSE++", "loss.kind=contrastive optimizer.lr=0.1"]
    assert (one.model.kind, one.loss.kind, one.optimizer.lr, one.train.seed) == ("vse", "contrastive", 0.1, 1000)
    assert configs["baselines", "AsCL", found[-1].label].samples.mixture_kinds == ["dropout", "gaussian"]
    assert all(run.trial and run.folder.parent == tmp_path / "trials" for run in runs)


@pytest.mark.parametrize(("content", "message"), [
    ({}, "has no trials"), ({"grids": {}}, "unknown setting 'grids'"),
    ({"grid": {"optimizer.lr": 0.1}}, "lists of values"), ({"grid": [1]}, "lists of values"),
    ({"grid": {"optimizer.lr": []}}, "lists of values"),
    ({"trials": {"optimizer.lr": 0.1}}, "must be a list"), ({"trials": [0.1]}, "must be a list"),
    ({"trials": [{"optimizer.rate": 0.1}]}, "unknown setting 'optimizer.rate'"),
    ({"trials": [{"train.seed": 3}]}, "train.seed cannot differ between trials"),
    ({"grid": {"data.val_images": [3]}}, "data.val_images cannot differ between trials"),
])
def test_files_that_are_none_are_refused(tmp_path, content, message):
    with pytest.raises(SettingsError, match=message):
        read_trials(trials_file(tmp_path, content))


def test_a_seed_of_the_tables_is_none_of_the_trials(tmp_path):
    trials = read_trials(trials_file(tmp_path, RATES))
    with pytest.raises(DataError, match="trial_seed 3 is also a seed of the tables"):
        Request("flickr8k", ("table2",), (1, 3), (), tmp_path, trials=trials, trial_seed=3)


# Runs


@pytest.fixture(scope="module")
def tuned_once(tmp_path_factory):
    """A folder in which two variants were tuned and trained with two seeds, by a command that was killed in between."""
    folder = make_place(tmp_path_factory.mktemp("tuned") / "place")
    trials_file(folder, RATES)
    (folder / "hold").touch()
    words = ["--seeds", "2", *TWO, "--trials", "trials.yaml"]
    first = start(folder, *words)
    wait_for(lambda: list(folder.glob("runs/*/trials/*/last.pt")))
    os.killpg(first.pid, signal.SIGKILL)
    assert first.wait(60) == -signal.SIGKILL
    wait_for(lambda: not running(folder))
    (folder / "hold").unlink()
    again = start(folder, *words)
    assert again.wait(300) == 0, again.complained()
    return folder


@pytest.fixture
def tuned(tuned_once, place):
    return shutil.copytree(tuned_once, place, dirs_exist_ok=True)


def test_the_best_by_validation_is_trained_with_the_seeds_and_no_trial_is_tested(tuned):
    runs = {folder.name for folder in (tuned / OUT / "runs").iterdir()}
    trials = {folder.name for folder in (tuned / OUT / "trials").iterdir()}
    order = [name for name, _ in started(tuned)]
    # the kill came in the first trial
    assert order[0] == order[1] and [resumed for _, resumed in started(tuned)].count("True") == 1
    assert len(trials) == 6 and len(runs) == 4 and set(order[:7]) == trials and set(order[7:]) == runs
    assert len(order) == 11 and not (tuned / "TWICE").exists()
    evaluated = {line.split()[0] for line in (tuned / "evaluated.txt").read_text().splitlines()}
    assert evaluated == runs and not list((tuned / OUT / "trials").glob("*/eval-*"))
    text, rows = tables(tuned / OUT)
    assert {(row["label"], row["chosen"]) for row in rows} == {
        ("AsCL", "optimizer.lr=0.3"), ("w/o P&N", "optimizer.lr=0.1")}
    for row in rows:
        settings = yaml.safe_load((tuned / row["run"] / "settings.yaml").read_text())
        assert settings["optimizer"]["lr"] == (0.3 if row["label"] == "AsCL" else 0.1)
        assert settings["train"]["seed"] in (0, 1) and (row["best_step"], row["stopped_early"]) == ("6", "False")
    assert "tried with the same 3 settings" in text and "the seed 1000" in text
    assert "| AsCL | `optimizer.lr=0.3` | 100.0 | 6 | 0 of 2 |" in text
    assert "--optimizer.lr=0.3 --train.seed 0" in text.partition("## Commands")[2]
    assert "- w/o MF: 0 of 3 trials are done, so" in text.partition("## Not finished")[2]


def test_every_trial_is_a_row(tuned):
    rows = trial_rows(tuned / OUT)
    assert [(row["label"], row["trial"], row["chosen"]) for row in rows] == [
        ("AsCL", "its defaults", "False"), ("AsCL", "optimizer.lr=0.1", "False"), ("AsCL", "optimizer.lr=0.3", "True"),
        ("w/o P&N", "its defaults", "False"), ("w/o P&N", "optimizer.lr=0.1", "True"),
        ("w/o P&N", "optimizer.lr=0.3", "False")]
    for row in rows:
        log = [json.loads(line) for line in (tuned / row["run"] / "metrics.jsonl").read_text().splitlines()]
        assert float(row["validation"]) == pytest.approx(log[-1]["rsum"])
        assert (row["seed"], row["steps"], row["seconds"], row["commit"]) == ("1000", "6", "3.0", "c")


def test_nothing_is_done_twice_and_more_seeds_use_the_same_choice(tuned, ablate):
    again = ("--trials", "trials.yaml", *TWO)
    before, count = tables(tuned / OUT), len(started(tuned))
    assert ablate("--seeds", "3", *again) == 0
    assert len(started(tuned)) == count + 2
    assert [row["chosen"] for row in tables(tuned / OUT)[1]] == ["optimizer.lr=0.3"] * 3 + ["optimizer.lr=0.1"] * 3
    assert ablate("--seeds", "2", "--report", "--trials", "trials.yaml") == 0
    assert tables(tuned / OUT) == before


def test_a_variant_is_chosen_for_only_when_all_its_trials_are_known(tuned, ablate, capsys):
    request = Request("tiny", ("table2",), (0,), (), OUT, trials=read_trials(tuned / "trials.yaml"))
    trials = plan_trials(request)
    assert set(chosen_settings(request, trials)) == {("table2", "AsCL"), ("table2", "w/o P&N")}
    lost = next(run for run in trials if ("table2", "AsCL", "optimizer.lr=0.1") in run.uses)
    (lost.folder / "best.pt").unlink()
    chosen = chosen_settings(request, trials)
    assert set(chosen) == {("table2", "w/o P&N")}
    assert {use for run in plan(request, chosen) for use in run.uses} == {("table2", "w/o P&N")}
    assert ablate("--seeds", "1", "--dry_run", "--trials", "trials.yaml", "--only", "AsCL") == 0
    states = [line.split()[0] for line in capsys.readouterr().out.splitlines() if not line.startswith(" ")]
    assert sorted(states) == ["finished", "finished", "interrupted"]       # three trials, and no run of the table yet


def test_a_trial_that_diverges_counts_as_tried_and_is_not_chosen(place, ablate):
    trials_file(place, {"trials": [{"optimizer.lr": 2.0}]})
    words = ["--seeds", "1", "--only", "AsCL", "--trials", "trials.yaml"]
    assert ablate(*words) == 0
    count = len(started(place))
    assert ablate(*words) == 0 and len(started(place)) == count == 2 + 1
    rows = {row["trial"]: row for row in trial_rows(place / OUT)}
    assert rows["optimizer.lr=2.0"]["state"] == "diverged" and "step 4" in rows["optimizer.lr=2.0"]["reason"]
    assert rows["optimizer.lr=2.0"]["validation"] == "" and rows["its defaults"]["chosen"] == "True"
    assert [row["chosen"] for row in tables(place / OUT)[1]] == ["its defaults"]


def test_a_trial_that_fails_otherwise_leaves_its_variant_without_a_choice(place, ablate, capsys):
    trials_file(place, {"trials": [{"loss.kind": "triplet"}]})
    assert ablate("--seeds", "1", "--only", "AsCL", "--trials", "trials.yaml") == 1
    assert "failed: " in capsys.readouterr().err
    text, rows = tables(place / OUT)
    assert rows == [] and "No run is finished yet." in text
    assert "AsCL, trial loss.kind=triplet" in text and "ValueError: this one cannot be trained" in text


def test_bad_trials_are_refused_before_anything_starts(place, ablate, capsys):
    trials_file(place, RATES)
    for more, message in ((["--trials", "none.yaml"], "none.yaml"), (["--trials", "trials.yaml", "--trial_seed", "0"],
                                                                     "trial_seed 0 is also a seed")):
        assert ablate("--seeds", "1", *more) != 0
        assert message in capsys.readouterr().err and started(place) == []
