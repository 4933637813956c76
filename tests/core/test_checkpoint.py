"""Checkpoints: whole or not at all, readable without foreign code, of the right architecture."""

import random
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from ascl import load_model
from ascl.core import checkpoint
from ascl.core.errors import DataError
from ascl.image_copy.descriptors.descriptor import load_descriptor
from ascl.image_copy.descriptors.teachers import load_teacher
from ascl.training.checkpoints import RunFolder


def everything(name):
    return True


def test_what_is_saved_is_read_back(tmp_path):
    state = {"weights": torch.randn(3, 4), "nested": {"list": [1, 2.5, None], "tuple": (True, "x")}}
    checkpoint.save(tmp_path / "run" / "last.pt", state)
    read = checkpoint.load(tmp_path / "run" / "last.pt")
    assert torch.equal(read["weights"], state["weights"])
    assert read["nested"] == state["nested"]
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["last.pt"]


def test_a_full_disk_keeps_the_previous_checkpoint_whole(tmp_path):
    path = tmp_path / "last.pt"
    checkpoint.save(path, {"value": torch.arange(10)})
    before = path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # the kernel refuses to write beyond, as on a full disk
    try:
        with pytest.raises(DataError, match=r"last\.pt.*previous last\.pt is intact.* free\)") as caught:
            checkpoint.save(path, {"value": torch.zeros(100_000)})
        with pytest.raises(DataError, match=r"best\.pt: File too large; nothing was written"):
            checkpoint.save(tmp_path / "best.pt", {"value": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "File too large" in str(caught.value)
    assert path.read_bytes() == before
    assert checkpoint.load(path)["value"].tolist() == list(range(10))
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]  # no unfinished file takes the room


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_no_space_left_is_said_in_so_many_words(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "last.pt", {"value": 1})
    really_open = open
    monkeypatch.setattr(
        "builtins.open", lambda file, mode="r", **rest: really_open("/dev/full" if mode == "wb" else file, mode, **rest)
    )
    with pytest.raises(DataError, match="No space left on device"):
        checkpoint.save(tmp_path / "last.pt", {"value": torch.zeros(1000)})
    monkeypatch.undo()
    assert checkpoint.load(tmp_path / "last.pt")["value"] == 1


def test_a_kill_while_writing_keeps_the_previous_checkpoint(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "last.pt", {"value": 1})

    def killed(state, file):
        file.write(b"half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(tmp_path / "last.pt", {"value": 2})
    assert checkpoint.load(tmp_path / "last.pt")["value"] == 1
    assert len(list(tmp_path.iterdir())) == 1


class Payload:
    """Unpickling this would run code."""

    def __reduce__(self):
        return (print, ("run by a checkpoint",))


def test_files_that_are_no_checkpoint_are_refused_by_name(tmp_path, capsys):
    path = tmp_path / "last.pt"
    with pytest.raises(FileNotFoundError, match="no checkpoint at"):
        checkpoint.load(path)
    checkpoint.save(path, {"value": torch.zeros(1000)})
    whole = path.read_bytes()
    for content in (whole[:-30], whole[: len(whole) // 2], whole[:10], b"", b"not a checkpoint at all"):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"last\.pt.*truncated, damaged"):
            checkpoint.load(path)
    torch.save({"state_dict": torch.zeros(3)}, path)
    with pytest.raises(DataError, match="not a checkpoint of this project"):
        checkpoint.load(path)
    torch.save({"format": checkpoint.FORMAT, "version": 99}, path)
    with pytest.raises(DataError, match="version 99"):
        checkpoint.load(path)
    torch.save({"format": checkpoint.FORMAT, "version": 1, "payload": Payload()}, path)
    with pytest.raises(DataError, match="truncated, damaged or not a checkpoint"):
        checkpoint.load(path)
    assert "run by" not in capsys.readouterr().out


def test_random_generators_continue_where_they_were(tmp_path):
    def draw():
        return random.random(), float(np.random.normal()), torch.rand(2).tolist()

    np.random.normal()  # leaves a second normal number waiting inside
    checkpoint.save(tmp_path / "rng.pt", {"rng": checkpoint.rng_state()})
    expected = [draw(), draw()]
    checkpoint.restore_rng(checkpoint.load(tmp_path / "rng.pt")["rng"])
    assert [draw(), draw()] == expected
    checkpoint.restore_rng(checkpoint.load(tmp_path / "rng.pt")["rng"])
    with checkpoint.undisturbed_rng():
        draw()
    assert draw() == expected[0]


def test_another_architecture_is_refused_with_the_names_that_differ(tmp_path):
    state = checkpoint.model_state(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2)), everything)
    for other, message in (
        (nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)), r"0\.weight \(4, 3\) instead of \(5, 3\)"),
        (nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)), r"missing: 2\.weight, 2\.bias"),
        (nn.Sequential(nn.Linear(3, 4)), r"unknown to the model: 1\.weight"),
    ):
        before = {name: value.clone() for name, value in other.state_dict().items()}
        with pytest.raises(DataError, match=rf"best\.pt is a checkpoint of another architecture.*{message}"):
            checkpoint.load_model_state(other, state, keep=everything, path=tmp_path / "best.pt")
        assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_frozen_weights_may_be_left_out_and_trained_ones_not():
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"trained parameters would be missing.*0\.weight"):
        checkpoint.model_state(model, lambda name: name.startswith("1."))
    model[0].requires_grad_(False)
    state = checkpoint.model_state(model, lambda name: name.startswith("1."))
    assert sorted(state) == ["1.bias", "1.weight"]
    other = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    frozen = other[0].weight.clone()
    checkpoint.load_model_state(other, state, keep=lambda name: name.startswith("1."), path="best.pt")
    assert torch.equal(other[1].weight, model[1].weight)
    assert torch.equal(other[0].weight, frozen)


def test_values_that_could_not_be_read_again_are_refused_before_training():
    checkpoint.check_plain({"settings": {"lr": 1e-4, "names": ["a"], "none": None}}, "extra")
    with pytest.raises(TypeError, match="extra may hold only tensors"):
        checkpoint.check_plain({"folder": Path("runs")}, "extra")
    with pytest.raises(TypeError, match="extra may hold only tensors"):
        checkpoint.check_plain({"function": lambda: 1}, "extra")


def test_the_best_checkpoint_of_a_run_is_found_or_the_last_with_a_warning(tmp_path):
    with pytest.raises(DataError, match=r"no checkpoint in .*neither best\.pt nor last\.pt"):
        checkpoint.find(tmp_path)
    checkpoint.save(tmp_path / "last.pt", {})
    with pytest.warns(UserWarning, match=r"has no best\.pt; reading last\.pt"):
        assert checkpoint.find(tmp_path) == tmp_path / "last.pt"
    checkpoint.save(tmp_path / "best.pt", {})
    assert checkpoint.find(str(tmp_path)) == tmp_path / "best.pt"
    assert checkpoint.find(tmp_path / "last.pt") == tmp_path / "last.pt"    # by name, without a warning


@pytest.mark.parametrize("reader", [
    lambda run: load_model(run), lambda run: load_descriptor(run), lambda run: load_teacher(str(run)),
    lambda run: RunFolder(run, Accelerator(cpu=True), *made(), conditions={"steps_per_epoch": 1}, resume=True),
], ids=["load_model", "load_descriptor", "teacher", "resume"])
def test_every_reader_refuses_a_checkpoint_of_another_version(tmp_path, reader):
    for name in ("best.pt", "last.pt"):
        torch.save({"format": checkpoint.FORMAT, "version": 2, "model": {}, "extra": {}}, tmp_path / name)
    with pytest.raises(DataError, match=r"\.pt has checkpoint version 2; this program reads version 1"):
        reader(tmp_path)


def made():
    model = nn.Linear(2, 2)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)
