"""`ascl models`, and an index without a model: the list and the choice agree, and neither touches the network."""

import json
import socket

import numpy as np
import pytest
import torch
from PIL import Image

from ascl.cli import main
from ascl.image_copy.descriptors import published

from ..image_copy.sscd_files import TorchvisionModel, randomized, write_traced

pytest.importorskip("imagehash")
NAME = "sscd_disc_blur"


@pytest.fixture(autouse=True)
def no_network(tmp_path, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    (tmp_path / "photos").mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(tmp_path / "photos" / f"{number}.png")
    monkeypatch.chdir(tmp_path)


def test_the_list(capsys):
    assert main(["models"]) == 0
    said = capsys.readouterr().out
    assert "sscd_disc_mixup         to download, 99 MB" in said and "phash                   here" in said
    assert "https://dl.fbaipublicfiles.com/sscd-copy-detection/ to" in said and "resnext50_32x4d" in said
    assert "without --model, an index takes phash, because nothing better is here; crops and overlays defeat it" in said
    assert main(["models", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["default"] == "phash" and told["folder"].endswith("/cache/ascl/models")
    assert {"name", "about", "source", "at_hand", "bytes"} == set(told["models"][0])


def test_an_index_without_a_model_takes_the_best_here_and_says_which(capsys):
    words = ["copy", "index", "photos", "--workers", "0"]
    assert main([*words, "--index", "one", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["model"].startswith("phash")
    assert "no model was chosen: images are described by phash, because nothing better is here; crops and overlays " \
           "defeat it. A better one is downloaded if it is named: sscd_disc_mixup (99 MB)" in said.err
    published.models_folder().mkdir(parents=True)
    write_traced(randomized(TorchvisionModel(deep=True)), published.place_of(NAME))
    assert main(["models", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["default"] == NAME
    assert main([*words, "--index", "two", "--json"]) == 0
    said = capsys.readouterr()
    assert json.loads(said.out)["model"].startswith(NAME)
    assert f"described by {NAME}, the best file of SSCD's here" in said.err
    assert main(["copy", "info", "--index", "two", "--json"]) == 0
    assert main(["copy", "query", "photos/1.png", "--index", "one", "--workers", "0"]) == 0    # as it was made
    assert main([*words, "--index", "one"]) == 0
    assert "no model was chosen" not in capsys.readouterr().err


@pytest.mark.parametrize(("name", "problem"), [
    ("sscd_disc_huge", "no model is named 'sscd_disc_huge'"), ("resnet_fifty", "no model is named 'resnet_fifty'"),
    ("photos", "./photos is the path of what is called so here"), ("runs/none", "no such file or run"),
    ("timm:no_such_net", "timm has no backbone 'no_such_net'"),
    ("torchvision:resnet_fifty", "no model is named 'resnet_fifty'"),
])
def test_unknown_names_are_one_line(name, problem, capsys):
    assert main(["copy", "index", "photos", "--index", "idx", "--model", name]) == 1
    said = capsys.readouterr().err
    assert problem in said and said.startswith("error: ") and said.count("\n") == 1


def test_two_models_for_one_index(capsys):
    assert main(["copy", "index", "photos", "--index", "idx", "--model", "phash"]) == 0
    capsys.readouterr()
    assert main(["copy", "index", "photos", "--index", "idx", "--model", "resnet18", "--weights", "random:0"]) == 1
    said = capsys.readouterr().err
    assert "their descriptors cannot be compared" in said and said.count("\n") == 1
