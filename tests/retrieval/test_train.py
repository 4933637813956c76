"""From a command line to a number, through the programs themselves, on a data set of two dozen random images."""

import json
import re
import shutil
import signal

import h5py
import numpy as np
import pytest
import torch
import yaml
from filelock import FileLock

from ascl import load_model
from ascl.analysis.leakage import WARNING
from ascl.core import checkpoint
from ascl.models.baselines.two_tower import TwoTower
from ascl.retrieval import fold_report, rank_report, score_all_pairs
from ascl.retrieval.objective import RetrievalObjective
from ascl.training.log import read_metrics

from ..same_bits import same_bits


@pytest.fixture(autouse=True)
def on_the_cpu(monkeypatch):
    """Bit for bit holds on a CPU; a machine with a GPU would train there."""
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")


@pytest.fixture(scope="module")
def module_patch():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield patch


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_data, tool, train_arguments, module_patch):
    """Two finished runs that differ in their seed."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        assert tool("train")(train_arguments(tiny_data, folder / str(seed), "--train.seed", str(seed))) == 0
    return [folder / "0", folder / "1"]


def contents(folder):
    """Every file of a folder and what it holds."""
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def split_of(folder, split="test"):
    """(regions, globals, mask, captions, owner) of a split, read here without the project's readers."""
    images = json.loads((folder / "captions.json").read_text())["images"]
    rows = [row for row, image in enumerate(images) if image["split"] == split]
    with h5py.File(folder / "regions.h5") as file:
        regions, count = torch.from_numpy(file["regions"][rows]), torch.from_numpy(file["region_count"][rows])
    with h5py.File(folder / "globals.h5") as file:
        globals_ = torch.from_numpy(file["globals"][rows])
    captions = [sentence["raw"] for row in rows for sentence in images[row]["sentences"]]
    owner = [i for i, row in enumerate(rows) for _ in images[row]["sentences"]]
    return regions, globals_, torch.arange(regions.shape[1]) < count[:, None], captions, np.array(owner)


def reference_scores(run, folder):
    """(N_images, N_texts) by the plain reference, and the owner."""
    model = load_model(run)
    regions, globals_, mask, captions, owner = split_of(folder)
    with torch.no_grad():
        return model.pair_scores(model.encode_images(regions, globals_, mask), model.encode_texts(captions)), owner


def state_of(checkpoint):
    """What a checkpoint holds."""
    return torch.load(checkpoint, weights_only=True)


# Training


def test_a_run_leaves_everything_that_it_needs(runs):
    run = runs[0]
    settings = yaml.safe_load((run / "settings.yaml").read_text())
    assert settings["model"]["embed_dim"] == 8 and settings["train"]["seed"] == 0 and settings["out"] == str(run)
    assert set(json.loads((run / "environment.json").read_text())) == {"commit", "python", "torch", "device"}
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines if line["kind"] == "train"] == [1, 2, 3, 4]
    assert [line["step"] for line in lines if line["kind"] == "validation"] == [2, 4]
    assert all(np.isfinite(line["loss"]) for line in lines if line["kind"] == "train")
    assert list((run / "tensorboard").iterdir())
    best, last = (state_of(run / name) for name in ("best.pt", "last.pt"))
    assert last["progress"]["step"] == 4 and last["extra"]["settings"] == settings
    assert best["progress"]["best"] == max(line["rsum"] for line in lines if line["kind"] == "validation")
    # the frozen encoder is not ours to store
    assert not any(name.startswith("text.") for name in last["model"])


def test_the_validation_is_the_recall_of_the_validation_split(runs, tiny_data):
    model = load_model(runs[0] / "last.pt")
    regions, globals_, mask, captions, owner = split_of(tiny_data, "val")
    with torch.no_grad():
        scores = model.pair_scores(model.encode_images(regions, globals_, mask), model.encode_texts(captions))
    report = rank_report(scores, owner)
    logged = [line for line in read_metrics(runs[0] / "metrics.jsonl") if line["kind"] == "validation"][-1]
    assert logged["rsum"] == pytest.approx(report.rsum) and logged["t2i_r5"] == pytest.approx(report.t2i.r5)
    assert logged["i2t_median_rank"] == report.i2t.median_rank


def test_a_validation_of_a_part_is_called_by_it_and_chooses_the_checkpoint(tiny_data, tmp_path, tool, train_arguments,
                                                                           capsys):
    run = tmp_path / "run"
    part = ["--data.val_folds", "2", "--data.val_images", "4"]
    assert tool("train")(train_arguments(tiny_data, run, *part)) == 0
    name = "rsum_of_2_folds_of_first_4_images"
    assert "best validation Rsum of 2 folds of first 4 images" in capsys.readouterr().out
    regions, globals_, mask, captions, owner = split_of(tiny_data, "val")
    kept = np.flatnonzero(owner < 4)
    model = load_model(run / "last.pt")
    with torch.no_grad():
        images = model.encode_images(regions[:4], globals_[:4], mask[:4])
        report = fold_report(model.pair_scores(images, model.encode_texts([captions[i] for i in kept])), owner[kept], 2)
    logged = [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == "validation"]
    assert logged[-1][name] == pytest.approx(report.rsum)
    assert logged[-1][name.replace("rsum", "t2i_r1")] == pytest.approx(report.t2i.r1)
    assert not logged[-1].keys() & {"rsum", "t2i_r1"}
    assert state_of(run / "best.pt")["progress"]["best"] == max(line[name] for line in logged)
    # another part is no continuation: the best so far would not be comparable
    assert tool("train")(["--resume", str(run), "--data.val_folds", "1"]) == 1
    assert f"trained with select = {name}, now it is rsum_of_first_4_images" in capsys.readouterr().err


def test_what_is_trained_moves_and_what_is_frozen_does_not(runs, tiny_bert):
    from transformers import AutoModel

    first, second = (state_of(run / "last.pt")["model"] for run in runs)
    assert all(not torch.equal(first[name], second[name]) for name in first)
    source = AutoModel.from_pretrained(tiny_bert).state_dict()
    for name, value in load_model(runs[0]).text.encoder.state_dict().items():
        assert torch.equal(value, source[name])


@pytest.mark.parametrize("more", [
    [], ["--text.finetune", "true"], ["--train.workers", "2", "--samples.positives", "concatenate"],
    ["--train.chunk_size", "3"],
], ids=["frozen", "finetuned", "workers", "chunks"])
def test_two_halves_equal_a_whole(tiny_data, tmp_path, tool, train_arguments, more):
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    train = tool("train")
    assert train(train_arguments(tiny_data, whole, *more)) == 0
    assert train(train_arguments(tiny_data, halves, *more, "--train.max_steps", "2")) == 0
    assert state_of(halves / "last.pt")["progress"]["step"] == 2
    assert train(["--resume", str(halves), "--train.max_steps", "4"]) == 0
    states = [state_of(run / "last.pt") for run in (whole, halves)]
    for state in states:
        state["extra"]["settings"].pop("out")
    same_bits(*states)
    logs = [[{k: v for k, v in line.items() if k not in ("time", "seconds", "steps_per_second", "data_wait")}
             for line in read_metrics(run / "metrics.jsonl")] for run in (whole, halves)]
    assert logs[0] == logs[1]
    assert yaml.safe_load((halves / "settings.yaml").read_text())["train"]["max_steps"] == 4


def test_early_stopping_says_why_the_training_ended(tiny_data, tmp_path, tool, train_arguments, monkeypatch, capsys):
    given = iter([5.0, 4.0, 3.0])
    monkeypatch.setattr("ascl.retrieval.train.flat_metrics", lambda report: {"rsum": next(given)})
    more = ["--train.patience", "2", "--train.max_steps", "9", "--json"]
    assert tool("train")(train_arguments(tiny_data, tmp_path / "run", *more)) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["best_step"], answer["steps"], answer["stopped_early"]) == (2, 6, True)
    assert tool("train")(["--resume", str(tmp_path / "run")]) == 0
    assert "ended after step 6: stopped early: the last 2 validations were no better" in capsys.readouterr().out


def test_a_resume_with_other_captions_is_refused(tiny_data, tmp_path, tool, train_arguments, capsys):
    """One word of one training caption, with the counts as they were; the same file elsewhere is the same."""
    for name in ("moved", "changed"):
        shutil.copytree(tiny_data, tmp_path / name)
    run = tmp_path / "run"
    assert tool("train")(train_arguments(tiny_data, run, "--train.max_steps", "2")) == 0
    before = (run / "last.pt").read_bytes()
    captions = tmp_path / "changed" / "captions.json"
    changed = json.loads(captions.read_text(encoding="utf-8"))
    changed["images"][3]["sentences"][0]["raw"] += " today"
    captions.write_text(json.dumps(changed), encoding="utf-8")
    go_on = ["--resume", str(run), "--train.max_steps", "3", "--data.captions"]
    capsys.readouterr()
    assert tool("train")([*go_on, str(captions)]) == 1
    said = capsys.readouterr().err
    assert "trained with training data = 25 captions of 12 images (" in said and "start a new run" in said
    assert (run / "last.pt").read_bytes() == before
    assert tool("train")([*go_on, str(tmp_path / "moved" / "captions.json")]) == 0


def test_a_cache_of_words_changes_no_number_but_by_rounding(tiny_data, tmp_path, tool, train_arguments, runs):
    cache = ["--text.cache", str(tmp_path / "words")]
    for name in ("cold", "warm"):
        assert tool("train")(train_arguments(tiny_data, tmp_path / name, *cache)) == 0
    folders = (runs[0], tmp_path / "cold", tmp_path / "warm")
    plain, cold, warm = (state_of(run / "last.pt")["model"] for run in folders)
    same_bits(cold, warm)
    for name in plain:
        torch.testing.assert_close(plain[name], cold[name], atol=5e-3, rtol=0)     # Adam's step is the rate, 5e-4, each


def test_ctrl_c_saves_and_the_resume_goes_on_as_if_nothing_had_been(tiny_data, tmp_path, tool, train_arguments, runs,
                                                                    monkeypatch, capsys):
    """The signal comes in the middle of the third step; both halves together equal the run that was never stopped."""
    original = RetrievalObjective.__call__

    def stopping(self, model, batch, step, generator):
        if step == 2:
            signal.raise_signal(signal.SIGINT)
        return original(self, model, batch, step, generator)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(RetrievalObjective, "__call__", stopping)
        assert tool("train")(train_arguments(tiny_data, run)) == 130
    assert f"ascl train --resume {run}" in capsys.readouterr().err
    assert state_of(run / "last.pt")["progress"]["step"] == 3
    assert tool("train")([f"--resume={run}"]) == 0
    stopped, never = (state_of(r / "last.pt") for r in (run, runs[0]))
    same_bits(stopped["model"], never["model"])
    same_bits(stopped["optimizer"], never["optimizer"])


def test_ctrl_c_before_the_first_step_promises_nothing(tiny_data, tmp_path, tool, train_arguments, monkeypatch, capsys):
    def stopped(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("ascl.retrieval.train.build_split", stopped)
    assert tool("train")(train_arguments(tiny_data, tmp_path / "run")) == 130
    assert "resume" not in capsys.readouterr().err and not (tmp_path / "run").exists()


@pytest.mark.parametrize("more", [
    "--model.kind two_tower", "--model.fusion false", "--model.projections false", "--model.tied_key_value true",
    "--model.normalize_regions false --model.normalize_words false", "--model.num_heads 1",
    "--loss.kind triplet --loss.triplet_warmup_steps 2", "--loss.kind triplet --loss.triplet_warmup_steps 0",
    "--samples.positives none", "--samples.positives none --samples.negatives none",
    *(f"--samples.positives {kind}" for kind in ("prefix", "keywords", "both", "both-prefix")),
    *(f"--samples.negatives {kind}" for kind in (
        "none", "gaussian", "shuffle", "token_cutoff", "feature_cutoff", "cutoff", "dropout")),
    "--loss.norm_ratio_weight 0.5", "--loss.norm_ratio_weight 0.5 --samples.positives both --model.kind two_tower",
    "--loss.norm_ratio_weight 0.5 --samples.positives keywords --model.fusion false",
    "--samples.mixture_kinds [shuffle,dropout]", "--optimizer.schedule cosine --optimizer.warmup_steps 2",
    "--model.dropout 0.3 --model.region_dropout 0.3 --model.word_dropout 0.3", "--loss.label_smoothing 0.1",
    "--loss.learn_temperature true", "--optimizer.kind adamw --optimizer.weight_decay 0.1",
    "--optimizer.average_decay 0.9", "--optimizer.decay_after [1]", "--model.student_dim 4",
    "--model.student_dim 4 --model.student_weight 0.2 --train.candidates 1",
    "--text.max_words 2", "--data.val_images 3", "--data.captions_per_image 1", "--optimizer.clip_norm null",
])
def test_every_variant_takes_a_step_and_is_read_back(tiny_data, tmp_path, tool, train_arguments, more):
    run = tmp_path / "run"
    assert tool("train")(train_arguments(tiny_data, run, "--train.max_steps", "1", *more.split())) == 0
    train, validation = read_metrics(run / "metrics.jsonl")
    assert np.isfinite(train["loss"]) and train["gradient_norm"] > 0
    assert next(value for name, value in validation.items() if name.startswith("rsum")) > 0
    saved = state_of(run / "last.pt")["model"]
    model = load_model(run / "last.pt")
    assert isinstance(model, TwoTower) == ("two_tower" in more)
    assert all(torch.equal(model.state_dict()[name], value) for name, value in saved.items())


def test_a_run_starts_from_the_weights_of_another(runs, tiny_data, tmp_path, tool, train_arguments, capsys):
    """With a learning rate of nearly 0 it ends with them."""
    still = ["--optimizer.lr", "1e-30", "--train.max_steps", "1"]
    run = tmp_path / "run"
    assert tool("train")(train_arguments(tiny_data, run, "--init", str(runs[0]), *still, "--train.seed", "5")) == 0
    best = state_of(runs[0] / "best.pt")["model"]
    assert f"started from {len(best)} tensors of {runs[0] / 'best.pt'}" in capsys.readouterr().out
    assert all(torch.equal(value, best[name]) for name, value in state_of(run / "last.pt")["model"].items())
    # what does not fit is listed and keeps its own start
    parts = tmp_path / "parts"
    more = ["--init", str(runs[0]), *still, "--model.tied_key_value", "true", "--loss.learn_temperature", "true"]
    assert tool("train")(train_arguments(tiny_data, parts, *more)) == 0
    said = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("started from"))
    assert "that do not fit: log_scale is new" in said and "in_proj_weight is not in this model" in said
    copied = state_of(parts / "last.pt")["model"]
    assert torch.equal(copied["gate.weight"], best["gate.weight"]) and copied["log_scale"] == -np.log(0.05).astype("f")


@pytest.mark.parametrize(("more", "message"), [
    ("--model.kind two_tower", "none of the weights of .*best.pt fits this model .*: give a run of the same model"),
    ("--init NOWHERE", "no checkpoint in NOWHERE"),
])
def test_a_start_that_fits_nothing_is_refused(runs, tiny_data, tmp_path, tool, train_arguments, capsys, more, message):
    arguments = train_arguments(tiny_data, tmp_path / "run", "--init", str(runs[0]), *more.split())
    assert tool("train")(arguments) == 1
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and re.search(message, errors[0]) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(("more", "message"), [
    ("--loss.kind triplet --loss.label_smoothing 0.1", "loss.label_smoothing belongs to the contrastive loss"),
    ("--loss.kind triplet --loss.learn_temperature true", "loss.learn_temperature belongs to the contrastive loss"),
    ("--loss.learn_temperature true --loss.temperature 0.001", "must start at 0.01 or above, got 0.001"),
    ("--loss.label_smoothing 1", "label_smoothing must be at least 0 and below 1"),
    ("--model.dropout 1", "dropout is 1.0: it must be at least 0 and below 1"),
    ("--optimizer.average_decay 1", "average_decay is 1.0: it must be at least 0 and below 1, or null"),
    ("--optimizer.decay_after [3,2]", "give rising numbers of at least 1"),
    ("--train.candidates 2", "a student chooses them, and model.student_dim is null: set it to a dimension"),
    ("--model.student_dim 4 --train.candidates 0", "candidates must be at least 1"),
    ("--model.kind vse --train.candidates 2", "train.candidates is 2, but only AsCL has a student"),
    ("--model.kind vse --model.student_dim 4", "model.student_dim is 4, but only AsCL has a student"),
    ("--model.student_dim 4 --model.fusion false", "a student needs fusion"),
    ("--model.student_dim 4 --model.student_weight 2", "student_weight must lie in [0, 1], got 2"),
])
def test_settings_that_exclude_one_another_are_refused(
    tiny_data, tmp_path, tool, train_arguments, capsys, more, message
):
    assert tool("train")(train_arguments(tiny_data, tmp_path / "run", *more.split())) == 1
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if line.startswith("error")]
    assert len(errors) == 1 and message in errors[0]


def test_a_run_of_an_older_version_is_read(runs, tmp_path):
    state = state_of(runs[0] / "best.pt")
    state["extra"]["settings"]["optimizer"]["encoder_lr"] = 1e-5
    checkpoint.save(tmp_path / "best.pt", {name: value for name, value in state.items() if name != "format"})
    assert torch.equal(load_model(tmp_path).gate.bias, load_model(runs[0]).gate.bias)


def test_two_towers_are_evaluated_like_any_model(tiny_data, tmp_path, tool, train_arguments):
    run = tmp_path / "run"
    assert tool("train")(train_arguments(tiny_data, run, "--model.kind", "two_tower")) == 0
    assert tool("eval")(["--checkpoint", str(run)]) == 0
    scores, owner = reference_scores(run, tiny_data)
    assert json.loads((run / "eval-test.json").read_text())["reports"]["full"] == rank_report(scores, owner).to_dict()


def test_mean_regions_stand_in_for_globals_where_asked(tiny_data, tmp_path, tool, train_arguments):
    run = tmp_path / "run"
    more = ["--data.features", f"[{tiny_data / 'regions.h5'}]", "--data.global_source", "mean-region"]
    assert tool("train")(train_arguments(tiny_data, run, *more)) == 0
    assert load_model(run).global_dim == 8
    assert tool("eval")(["--checkpoint", str(run)]) == 0


def test_help_lists_the_settings(tool, capsys):
    assert tool("train")(["--help"]) == 0
    assert "--model.embed_dim" in capsys.readouterr().out


# Evaluation


def test_evaluation_prints_and_saves_the_numbers_of_the_plain_reference(runs, tiny_data, tmp_path, tool, capsys):
    assert tool("eval")(["--checkpoint", str(runs[0]), "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    scores, owner = reference_scores(runs[0], tiny_data)
    report = rank_report(scores, owner)
    saved = json.loads((tmp_path / "eval-test.json").read_text())
    assert saved["reports"] == {"full": report.to_dict()}
    assert (saved["protocol"], saved["split"], saved["runs"]) == ("all pairs", "test", [str(runs[0])])
    assert report.images == 6 and report.texts == 13
    table = (tmp_path / "eval-test.md").read_text()
    assert report.to_markdown().strip() in table and table.strip() in printed
    assert f"{report.i2t.r1:.1f}" in printed and f"Rsum {report.rsum:.1f}" in printed


def test_a_split_can_be_chosen_and_a_checkpoint_named(runs, tool, tmp_path):
    arguments = ["--checkpoint", str(runs[0] / "last.pt"), "--split", "val", "--out", str(tmp_path)]
    assert tool("eval")(arguments) == 0
    logged = [line for line in read_metrics(runs[0] / "metrics.jsonl") if line["kind"] == "validation"][-1]
    saved = json.loads((tmp_path / "eval-val.json").read_text())["reports"]["full"]
    assert saved["rsum"] == pytest.approx(logged["rsum"])


def test_an_ensemble_is_the_average_of_the_scores(runs, tiny_data, tool, tmp_path):
    assert tool("eval")(["--checkpoint", *map(str, runs), "--out", str(tmp_path)]) == 0
    (first, owner), (second, _) = (reference_scores(run, tiny_data) for run in runs)
    saved = json.loads((tmp_path / "eval-test-ensemble.json").read_text())
    assert saved["reports"]["full"] == rank_report((first + second) / 2, owner).to_dict()
    assert rank_report(first, owner) != rank_report(second, owner)


def test_folds_come_beside_the_full_set(runs, tiny_data, tool, tmp_path):
    assert tool("eval")(["--checkpoint", str(runs[0]), "--folds", "3", "--out", str(tmp_path)]) == 0
    scores, owner = reference_scores(runs[0], tiny_data)
    saved = json.loads((tmp_path / "eval-test.json").read_text())["reports"]
    assert saved == {"full": rank_report(scores, owner).to_dict(), "3 folds": fold_report(scores, owner, 3).to_dict()}
    assert "3 folds" in (tmp_path / "eval-test.md").read_text()


def test_a_score_matrix_from_elsewhere_is_ranked_the_same_way(runs, tiny_data, tool, tmp_path, capsys):
    scores, owner = reference_scores(runs[0], tiny_data)
    np.savez(tmp_path / "theirs.npz", scores=scores.numpy(), owner=owner)
    assert tool("eval")(["--scores", str(tmp_path / "theirs.npz"), "--folds", "2"]) == 0
    saved = json.loads((tmp_path / "eval-theirs.json").read_text())["reports"]
    assert saved["full"] == rank_report(scores, owner).to_dict()
    assert saved["2 folds"] == fold_report(scores, owner, 2).to_dict()
    assert (tmp_path / "eval-theirs.md").exists()


def test_saved_scores_are_ranked_the_same_and_say_how_they_were_made(runs, tool, tmp_path):
    scores, how = tmp_path / "scores.npz", ["--backend", "reference", "--dtype", "bfloat16", "--block", "2"]
    run = ["--checkpoint", str(runs[0]), "--out", str(tmp_path)]
    assert tool("eval")([*run, "--save-scores", str(scores)]) == 0
    exact = json.loads((tmp_path / "eval-test.json").read_text())
    assert tool("eval")(["--scores", str(scores)]) == 0
    assert json.loads((tmp_path / "eval-scores.json").read_text())["reports"] == exact["reports"]
    assert tool("eval")([*run, *how, "--save-scores", str(scores)]) == 0
    about = json.loads((tmp_path / "eval-test.json").read_text())["scoring"]
    assert about == {"backend": "reference", "block": "2", "dtype": "torch.bfloat16"}


@pytest.mark.parametrize("where", ["while it scores", "while it writes"])
def test_an_interrupted_evaluation_leaves_nothing_that_looks_whole(runs, tool, tmp_path, monkeypatch, where, capsys):
    def stop(*_, **__):
        raise KeyboardInterrupt

    if where == "while it scores":
        monkeypatch.setattr("ascl.analysis.evaluation.tqdm.update", stop)
    else:
        monkeypatch.setattr("numpy.lib.format.write_array", stop)
    arguments = ["--checkpoint", str(runs[0]), "--out", str(tmp_path), "--save-scores", str(tmp_path / "scores.npz")]
    assert tool("eval")(arguments) == 130
    assert "stopped; no unfinished file was left" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("more, match", [
    (["--dtype", "float16"], "can be scored in torch.float32, torch.bfloat16"),
    (["--block", "0"], "block: expected a whole number of at least 1, got 0"),
    (["--protocol", "paired", "--save-scores", "s.npz"], "leave --save_scores out"),
])
def test_evaluation_refuses_what_it_cannot_do(runs, tool, capsys, more, match):
    if torch.cuda.is_available() and "float16" in more:
        pytest.skip("a GPU can")
    assert tool("eval")(["--checkpoint", str(runs[0]), *more]) in (1, 2)
    assert match in capsys.readouterr().err


def test_the_paired_protocol_warns_twice_and_writes_nothing(runs, tiny_data, tool, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = contents(runs[0].parent)
    assert tool("eval")(["--checkpoint", str(runs[0]), "--protocol", "paired"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith(WARNING) and printed.count(WARNING) == 2 and "(not saved)" in printed
    scores, owner = reference_scores(runs[0], tiny_data)
    honest, honest_global, *leaking = printed.split("###")[1:]
    assert "honest" in honest_global and "global score alone" in honest_global
    assert "honest" in honest and f"Rsum {rank_report(scores, owner).rsum:.1f}" in honest
    assert len(leaking) == 2 and all("sees the answer" in table.splitlines()[0] for table in leaking)
    assert contents(runs[0].parent) == before and not list(tmp_path.iterdir())


def test_data_that_has_moved_can_be_pointed_to(runs, tiny_data, tool, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(tiny_data, moved)
    arguments = ["--checkpoint", str(runs[0]), "--captions", str(moved / "captions.json"), "--features",
                 str(moved / "regions.h5"), str(moved / "globals.h5"), "--out", str(tmp_path)]
    assert tool("eval")(arguments) == 0
    saved = json.loads((tmp_path / "eval-test.json").read_text())
    assert saved["captions"] == str(moved / "captions.json")
    scores, owner = reference_scores(runs[0], tiny_data)
    assert saved["reports"]["full"] == rank_report(scores, owner).to_dict()


def test_a_run_without_its_best_checkpoint_says_what_is_read(runs, tmp_path):
    shutil.copytree(runs[0], tmp_path / "run")
    (tmp_path / "run" / "best.pt").unlink()
    with pytest.warns(UserWarning, match="has no best.pt; reading last.pt"):
        load_model(tmp_path / "run")


def test_the_loaded_model_is_the_trained_one(runs, tiny_data):
    model = load_model(runs[0])
    assert not model.training and model.embed_dim == 8
    regions, globals_, mask, captions, _ = split_of(tiny_data)
    with torch.no_grad():
        images, texts = model.encode_images(regions, globals_, mask), model.encode_texts(captions)
        torch.testing.assert_close(score_all_pairs(model, images, texts), model.pair_scores(images, texts), atol=1e-5,
                                   rtol=0)
    saved = state_of(runs[0] / "best.pt")["model"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in saved.items())


def test_a_folder_in_which_another_process_trains_is_left_alone(tiny_data, tmp_path, tool, train_arguments, capsys):
    run = tmp_path / "run"

    def refused(words):
        before = {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()}
        assert tool("train")(words) == 1
        assert f"another process is training in {run}" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in run.iterdir() if path.is_file()} == before

    run.mkdir()
    with FileLock(run / ".lock"):
        refused(train_arguments(tiny_data, run))
    assert tool("train")(train_arguments(tiny_data, run)) == 0 and not (run / ".lock").exists()
    with FileLock(run / ".lock"):
        refused(["--resume", str(run)])
    assert tool("train")(["--resume", str(run)]) == 0


def test_processes_that_do_not_know_of_one_another_are_refused(tiny_data, tmp_path, train_arguments, started_together):
    """As torchrun starts them on a machine without a GPU: both would write the same files."""
    arguments = train_arguments(tiny_data, tmp_path / "run", "--train.batch_size", "4")
    ended = started_together("-m", "ascl", "train", *arguments, ACCELERATE_USE_CPU="false", CUDA_VISIBLE_DEVICES="")
    assert [program.status for program in ended] == [1, 1]
    for program in ended:
        assert "ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2" in program.complained()
    assert not (tmp_path / "run").exists()


def test_processes_that_train_together_speak_with_one_voice(tiny_data, tmp_path, train_arguments, started_together,
                                                            tool, capsys):
    arguments = train_arguments(tiny_data, tmp_path / "run", "--train.batch_size", "4", "--train.max_steps", "1")
    first, second = started_together("-m", "ascl", "train", *arguments, ACCELERATE_USE_CPU="true")
    assert (first.status, second.status) == (0, 0), first.complained() + second.complained()
    assert first.said().startswith("training in 2 processes on the CPU\n")
    assert second.said() == ""
    assert tool("train")(["--resume", str(tmp_path / "run")]) == 1
    assert "was trained with processes = 2, now it is 1" in capsys.readouterr().err
