"""What users get wrong: an exit status, a message with the place and the remedy, and nothing of theirs touched."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_data, tool, train_arguments) -> Path:
    """A run that nobody changes; tests that damage one copy it."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert tool("train")(train_arguments(tiny_data, run)) == 0
    return run


@pytest.fixture
def data(tiny_data, tmp_path) -> Path:
    """A copy of the data set to be damaged."""
    return Path(shutil.copytree(tiny_data, tmp_path / "data"))


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of the finished run."""
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def assert_refused(tool, tmp_path, capsys):
    """(program, arguments, *words of the message): refused, all words said, and every file as it was."""
    def check(program: str, arguments: list[str], *words: str) -> str:
        before = contents(tmp_path)
        capsys.readouterr()
        assert tool(program)(arguments) in (1, 2)  # refused, or usage
        message = capsys.readouterr().err
        message = message[message.index("error: ") :]  # behind the log's lines, where steps were taken
        for word in words:
            assert word in message, f"{word!r} is not in: {message}"
        assert "Traceback" not in message
        after = contents(tmp_path)
        assert {path: after.get(path) for path in before} == before
        return message

    return check


@pytest.fixture
def train_refused(data, tmp_path, train_arguments, assert_refused):
    """(*words, more=options): a training on `data` is refused before it makes a folder."""
    def check(*words: str, more: Sequence[str] = ()) -> None:
        assert_refused("train", train_arguments(data, tmp_path / "new", *more), *words)
        assert not (tmp_path / "new").exists()

    return check


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def edit_captions(data: Path, change) -> Path:
    """Apply `change` to the list of images."""
    path = data / "captions.json"
    content = json.loads(path.read_text())
    change(content["images"])
    path.write_text(json.dumps(content))
    return path


def remove_rows(path: Path, ids: list[str]) -> None:
    """Write an HDF5 file again without some images."""
    with h5py.File(path, "r+") as file:
        kept = [i for i, name in enumerate(file["image_ids"].asstr()[:]) if name not in ids]
        for name in list(file):
            values = file[name][kept]
            del file[name]
            file[name] = values


# Data


def test_missing_captions(data, train_refused):
    (data / "captions.json").unlink()
    train_refused(f"{data / 'captions.json'} does not exist", "ascl prepare --dataset tiny")


def test_no_data_set_at_all(tmp_path, assert_refused):
    assert_refused("train", ["--out", str(tmp_path / "new")], "no data set", "configs/", "data.captions")


def test_missing_features(data, assert_refused, run, train_refused):
    (data / "globals.h5").unlink()
    train_refused(f"{data / 'globals.h5'} does not exist", "ascl prepare --dataset tiny")
    assert_refused("eval", ["--checkpoint", str(run), "--features", str(data / "globals.h5")], str(data / "globals.h5"))


def test_an_unknown_split(data, assert_refused, run, train_refused):
    train_refused(str(data / "captions.json"), "'dev'", "test, train, val", more=["--data.val", "dev"])
    assert_refused("eval", ["--checkpoint", str(run), "--split", "dev"], "captions.json", "'dev'", "test, train, val")


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_image_without_features_is_named_before_the_first_step(split, data, train_refused):
    name = "photo03" if split == "train" else "photo14"
    remove_rows(data / "regions.h5", [name])
    train_refused(name, str(data / "regions.h5"), "Extract regions")


def test_an_image_without_features_at_evaluation(data, assert_refused, run):
    remove_rows(data / "globals.h5", ["photo20", "photo23"])
    assert_refused("eval", ["--checkpoint", str(run), "--features", str(data / "regions.h5"), str(data / "globals.h5")],
                   "2 images", str(data / "globals.h5"), "photo20, photo23", "Extract globals of the images")


@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_truncated_features(keep, data, assert_refused, run, train_refused):
    path = data / "regions.h5"
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if keep == 0.5 else keep])
    train_refused(str(path), "is truncated, damaged or not an HDF5", "extract the features again")
    assert_refused("eval", ["--checkpoint", str(run), "--features", str(path)], str(path), "is truncated, damaged")


@pytest.mark.parametrize("workers", ["0", "1"])
def test_features_that_are_not_finite(workers, data, tmp_path, train_arguments, assert_refused, run):
    with h5py.File(data / "regions.h5", "r+") as file:
        file["regions"][5, 0, 2] = np.nan
        file["regions"][22, 1, 0] = np.inf
    arguments = train_arguments(data, tmp_path / "new", "--train.workers", workers)
    words = ("row 5", "photo05", "not finite", "Extract regions of the images")
    assert_refused("train", arguments, f"error: {data / 'regions.h5'}", *words)
    assert_refused("eval", ["--checkpoint", str(run), "--features", str(data / "regions.h5"), str(data / "globals.h5")],
                   "row 22", "photo22", "not finite")


def test_an_empty_caption(data, assert_refused, run, train_refused):
    def empty(images):
        images[2]["sentences"][1]["raw"] = "  "
        images[19]["sentences"][0]["raw"] = ""

    path = edit_captions(data, empty)
    train_refused(str(path), "photo02.jpg", "sentid 21", "empty caption")
    assert_refused("eval", ["--checkpoint", str(run), "--captions", str(path)], str(path), "photo19.jpg", "sentid 190")


def test_a_caption_of_which_the_encoder_sees_nothing(data, tmp_path, train_arguments, assert_refused):
    def invisible(images):
        images[2]["sentences"][1]["raw"] = "\u200b"

    edit_captions(data, invisible)
    assert_refused("train", train_arguments(data, tmp_path / "new", "--samples.positives", "none"), r"'\u200b'",
                   "no words")


def test_a_longer_caption_is_cut_with_a_count(data, tmp_path, train_arguments, tool, capsys):
    def long(images):
        images[2]["sentences"][1]["raw"] = " ".join(["red"] * 40)

    edit_captions(data, long)
    more = ["--samples.positives", "none", "--train.max_steps", "3"]
    assert tool("train")(train_arguments(data, tmp_path / "new", *more)) == 0
    assert "1 texts exceeded the text encoder's limit and were truncated" in capsys.readouterr().out


def test_captions_that_are_no_json(data, train_refused):
    path = data / "captions.json"
    path.write_bytes(path.read_bytes()[:-30])
    train_refused(str(path), "truncated or not JSON", "line 1")


def test_features_without_globals_or_without_regions(data, assert_refused, run, train_refused):
    train_refused(str(data / "regions.h5"), "no globals", "extract globals of the images", "data.global_source",
                  more=["--data.features", f"[{data / 'regions.h5'}]"])
    train_refused(str(data / "globals.h5"), "no regions", "extract regions of the images",
                  more=["--data.features", f"[{data / 'globals.h5'}]"])
    assert_refused("eval", ["--checkpoint", str(run), "--features", str(data / "regions.h5")], str(data / "regions.h5"),
                   "no globals")


@pytest.mark.parametrize("kind", ["ascl", "two_tower"])
def test_features_of_another_dimension_than_the_model_was_trained_on(kind, data, tiny_data, tmp_path, train_arguments,
                                                                     assert_refused, tool):
    run = tmp_path / "run"
    assert tool("train")(train_arguments(tiny_data, run, "--train.max_steps", "1", "--model.kind", kind)) == 0
    rng = np.random.default_rng(0)
    with h5py.File(data / "regions.h5", "r+") as file:
        del file["regions"]
        file["regions"] = rng.normal(size=(24, 4, 6)).astype(np.float32)
    with h5py.File(data / "globals.h5", "r+") as file:  # 8 + 6 becomes 6 + 8: the same sum
        del file["globals"]
        file["globals"] = rng.normal(size=(24, 8)).astype(np.float32)
    features = ["--features", str(data / "regions.h5"), str(data / "globals.h5")]
    for protocol in ["all-pairs", "paired"] if kind == "ascl" else ["all-pairs"]:
        assert_refused("eval", ["--checkpoint", str(run), *features, "--protocol", protocol], str(data / "regions.h5"),
                       "regions of 6 and globals of 8", "8 and 6", "trained on")


def test_validation_features_of_another_dimension_are_found_before_the_first_step(data, train_refused):
    for split in ("train", "val"):
        shutil.copy(data / "regions.h5", data / f"{split}_regions.h5")
        shutil.copy(data / "globals.h5", data / f"{split}_globals.h5")
    with h5py.File(data / "val_globals.h5", "r+") as file:
        del file["globals"]
        file["globals"] = np.ones((24, 7), np.float32)
    features = f"[{data}/{{split}}_regions.h5, {data}/{{split}}_globals.h5]"
    train_refused("val_globals.h5", "globals of 7", "8 and 6", more=["--data.features", features])


# Settings


@pytest.mark.parametrize(("more", "words"), [
    (["--model.embed_dims", "8"], ["unknown option --model.embed_dims", "'model.embed_dim'"]),
    (["--dataset", "flickr31k"], ["'flickr31k'", "flickr30k"]),
    (["--model.num_heads", "3"], ["num_heads (3) must divide embed_dim (8)"]),
    (["--model.num_heads", "0"], ["num_heads"]),
    (["--model.local_weight", "1.5"], ["local_weight", "1.5"]),
    (["--loss.temperature", "0"], ["temperature"]),
    (["--loss.kind", "triplet", "--loss.margin", "-1"], ["margin"]),
    (["--loss.kind", "triplet", "--loss.triplet_warmup_steps", "-1"], ["warmup_steps"]),
    (["--samples.token_ratio", "1.5"], ["token_ratio", "1.5"]),
    (["--samples.positive_ratio", "1.5"], ["samples.positive_ratio", "1.5"]),
    (["--samples.mixture_kinds", "[fog]"], ["fog", "gaussian"]),
    (["--optimizer.lr", "0"], ["learning rate is 0"]),
    (["--optimizer.lr", "0", "--text.finetune", "true"], ["learning rate is 0"]),
    (["--optimizer.clip_norm", "0"], ["clip_norm"]),
    (["--optimizer.decay_factor", "2"], ["gamma is 2"]),
    (["--train.epochs", "0"], ["epochs is 0"]),
    (["--train.batch_size", "13"], ["batch size 13", "12"]),
    (["--train.batch_size", "0"], ["batch size 0"]),
    (["--train.neighbors", "9"], ["train.neighbors is 9", "at most 8", "null for random batches"]),
    (["--train.neighbors", "1"], ["train.neighbors is 1", "at least 2"]),
    (["--train.workers", "-1"], ["train.workers is -1"]),
    (["--train.seed", "-1"], ["seed"]),
    (["--train.patience", "0"], ["patience is 0"]),
    (["--train.patience", "2", "--train.validate_every", "4"], ["patience is 2", "only once", "lower validate_every"]),
    (["--train.patience", "2", "--data.val", "train"], ["train.patience is 2", "split train", "set data.val"]),
    (["--train.patience", "2", "--data.val", "dev"], ["no split 'dev'", "val"]),
    (["--data.val_images", "0"], ["data.val_images is 0"]),
    (["--data.val_folds", "4"], ["data.val_folds is 4", "6 images", "choose a divisor of 6"]),
    (["--data.val_folds", "0"], ["data.val_folds is 0"]),
    (["--data.captions_per_image", "0"], ["data.captions_per_image is 0"]),
    (["--text.max_words", "0"], ["text.max_words is 0"]),
    (["--text.finetune", "true", "--text.cache", "words"], ["fine-tuned", "text.cache"]),
    (["--text.encoder", "/no/such/encoder"], ["'/no/such/encoder' does not exist", "text.encoder"]),
])
def test_settings_that_cannot_be(more, words, tiny_data, tmp_path, train_arguments, assert_refused):
    assert_refused("train", train_arguments(tiny_data, tmp_path / "new", *more), *words)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_is_a_file(tiny_data, tmp_path, train_arguments, assert_refused):
    (tmp_path / "new").write_text("mine")
    assert_refused("train", train_arguments(tiny_data, tmp_path / "new"), str(tmp_path / "new"))


# Runs


def test_a_folder_that_holds_a_run_already(tiny_data, run, train_arguments, assert_refused):
    arguments = train_arguments(tiny_data, run, "--train.seed", "3")
    assert_refused("train", arguments, f"{run} already holds a run", "resume")


@pytest.mark.parametrize(("more", "words"), [
    (["--train.seed", "5"], ["seed = 0", "5"]),
    (["--train.batch_size", "4"], ["steps_per_epoch"]),
    (["--model.embed_dim", "16"], ["another architecture", "image.regions.weight"]),
    (["--model.fusion", "false"], ["another architecture", "region_to_word"]),
    (["--model.colour", "red"], ["unknown option --model.colour"]),
])
def test_a_resume_that_would_not_continue_the_run(more, words, run, assert_refused):
    assert_refused("train", ["--resume", str(run), *more], *words)


def test_nothing_to_resume(tmp_path, run, assert_refused):
    assert_refused("train", ["--resume", str(tmp_path / "none")], str(tmp_path / "none"), "does not exist")
    assert_refused("train", ["--resume"], "--resume: expected one argument")
    (run / "last.pt").unlink()
    assert_refused("train", ["--resume", str(run)], "nothing to resume", "last.pt")


def test_settings_of_a_run_that_were_damaged(run, assert_refused):
    (run / "settings.yaml").write_text("model: {embed_dim")
    assert_refused("train", ["--resume", str(run)], str(run / "settings.yaml"), "not valid YAML")


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
def test_a_truncated_checkpoint(keep, run, assert_refused):
    for name in ("best.pt", "last.pt"):
        content = (run / name).read_bytes()
        (run / name).write_bytes(content[: int(len(content) * keep) if keep == 0.5 else keep])
    assert_refused("eval", ["--checkpoint", str(run)], str(run / "best.pt"), "truncated, damaged or not a checkpoint")
    assert_refused("train", ["--resume", str(run)], str(run / "last.pt"), "truncated, damaged or not a checkpoint")


def test_a_checkpoint_of_another_architecture(run, assert_refused):
    """Its settings were edited afterwards: the numbers in it are of 8 dimensions."""
    state = torch.load(run / "best.pt", weights_only=True)
    state["extra"]["settings"]["model"]["embed_dim"] = 16
    torch.save(state, run / "best.pt")
    assert_refused("eval", ["--checkpoint", str(run)], str(run / "best.pt"), "another architecture",
                   "image.regions.weight (8, 8) instead of (16, 8)")


def test_a_checkpoint_of_another_program(run, assert_refused):
    torch.save({"model": {}}, run / "best.pt")
    assert_refused("eval", ["--checkpoint", str(run)], str(run / "best.pt"), "not a checkpoint of this project")
    torch.save({"format": "ascl-checkpoint", "version": 1, "model": {}, "extra": {}}, run / "best.pt")
    assert_refused("eval", ["--checkpoint", str(run)], str(run / "best.pt"), "holds no settings")


def test_a_checkpoint_with_a_setting_that_this_version_does_not_know(run, assert_refused):
    state = torch.load(run / "best.pt", weights_only=True)
    state["extra"]["settings"]["model"]["embed_dims"] = 16
    torch.save(state, run / "best.pt")
    assert_refused("eval", ["--checkpoint", str(run)], str(run / "best.pt"), "'model.embed_dims'", "'model.embed_dim'")


def test_no_checkpoint(tmp_path, assert_refused):
    assert_refused("eval", ["--checkpoint", str(tmp_path)], f"no checkpoint in {tmp_path}", "best.pt", "training run")


def test_a_text_encoder_that_has_gone(run, tmp_path, assert_refused):
    for name in ("best.pt", "last.pt"):
        state = torch.load(run / name, weights_only=True)
        state["extra"]["settings"]["text"]["encoder"] = str(tmp_path / "gone")
        torch.save(state, run / name)
    assert_refused("eval", ["--checkpoint", str(run)], str(tmp_path / "gone"), "does not exist", "text.encoder")


# Evaluation


@pytest.mark.parametrize(("folds", "words"), [
    ("4", ["6 images cannot be split into 4 equal folds", "divisor of 6"]),
    ("7", ["6 images cannot be split into 7 equal folds"]),
    ("0", ["folds: expected a whole number of at least 1, got 0"]),
])
def test_folds_that_do_not_divide(folds, words, run, assert_refused):
    assert_refused("eval", ["--checkpoint", str(run), "--folds", folds], *words)


def test_score_files_that_do_not_fit(tmp_path, assert_refused):
    path = tmp_path / "scores.npz"
    assert_refused("eval", ["--scores", str(path)], f"no score file at {path}")
    for arrays, words in [
        ({"scores": np.ones((2, 4))}, ["no array `owner`", "numpy.savez"]),
        ({"scores": np.ones((2, 4)), "owner": np.array([0, 0, 1])}, ["4 columns", "3 entries"]),
        ({"scores": np.ones((2, 4)), "owner": np.array([0, 0, 1, 2])}, ["owner[3] is 2", "2 rows"]),
        ({"scores": np.array([[1.0, np.nan], [0, 1]]), "owner": np.array([0, 1])}, ["scores[0, 1] is nan"]),
    ]:
        np.savez(path, **arrays)
        assert_refused("eval", ["--scores", str(path)], *words)
    path.write_bytes(path.read_bytes()[:60])
    assert_refused("eval", ["--scores", str(path)], str(path), "truncated")


def test_paired_needs_one_model_whose_items_meet(run, tiny_data, tmp_path, train_arguments, assert_refused, tool):
    assert_refused("eval", ["--checkpoint", str(run), str(run), "--protocol", "paired"], "one --checkpoint")
    np.savez(tmp_path / "scores.npz", scores=np.ones((2, 2)), owner=np.array([0, 1]))
    assert_refused("eval", ["--scores", str(tmp_path / "scores.npz"), "--protocol", "paired"], "one --checkpoint")
    towers = tmp_path / "towers"
    assert tool("train")(train_arguments(tiny_data, towers, "--model.kind", "two_tower", "--train.max_steps", "1")) == 0
    assert_refused("eval", ["--checkpoint", str(towers), "--protocol", "paired"], str(towers), "no cross-modal fusion")


def test_an_unknown_program_option_is_refused(capsys, tool):
    assert tool("eval")(["--checkpoint", "run", "--metric", "r1"]) == 2
    assert "--metric" in capsys.readouterr().err
