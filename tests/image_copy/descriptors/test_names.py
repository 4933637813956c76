"""What a text means: a path by its form and by what is there, or else a name."""

import os

import pytest
import torch

from ascl.core import checkpoint
from ascl.core.errors import DataError
from ascl.image_copy.descriptors.names import Named, model_named, refuse_unknown
from ascl.image_copy.descriptors.published import SSCD

from ..sscd_files import TorchvisionModel, randomized, write_traced


@pytest.mark.parametrize(("text", "wanted"), [
    ("sscd_disc_mixup", Named("sscd", "sscd_disc_mixup")),
    ("phash", Named("phash")),
    ("resnet50", Named("backbone", "resnet50")),
    ("torchvision:resnet50", Named("backbone", "resnet50")),
    ("timm:vit_base_patch16_224.dino", Named("backbone", "timm:vit_base_patch16_224.dino")),
])
def test_names(text, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    os.mkdir(text)                                              # what is called so here changes nothing
    assert model_named(text) == wanted
    if wanted.kind != "backbone" or ":" not in text:
        assert model_named(f"./{text}") == Named("checkpoint", f"./{text}")


def test_paths_are_judged_by_what_is_there(tmp_path):
    torch.save({"format": checkpoint.FORMAT, "model": {"a": torch.zeros(3)}}, tmp_path / "epoch9.pt")
    write_traced(randomized(TorchvisionModel(deep=True)), tmp_path / "sscd.torchscript.pt")
    torch.save(randomized(TorchvisionModel(deep=True)).state_dict(), tmp_path / "weights.pt")
    (tmp_path / "damaged.pt").write_bytes(b"PK\3\4")
    (tmp_path / "last.pt").write_bytes(b"damaged too")
    (tmp_path / "a.run").mkdir()
    os.mkfifo(tmp_path / "pipe.pt")                             # opening it would wait for ever
    kinds = {name: model_named(str(tmp_path / name)).kind for name in os.listdir(tmp_path)}
    assert kinds == {"epoch9.pt": "checkpoint", "last.pt": "checkpoint", "a.run": "checkpoint",
                     "sscd.torchscript.pt": "torchscript", "weights.pt": "torchscript", "damaged.pt": "torchscript",
                     "pipe.pt": "torchscript"}


@pytest.mark.parametrize("text", ["runs/none", "a.pt", "./resnet50", "resnet50/"])
def test_a_path_where_nothing_is(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no such file or run, and with a path separator or a suffix it is no name"):
        model_named(text)


def test_unknown_names_say_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="no model is named 'sscd_disc_mixpu': neither phash, nor a published file of "
                                        "SSCD, nor a backbone of torchvision; the nearest are sscd_disc_mixup"):
        model_named("sscd_disc_mixpu")
    os.mkdir("myrun")
    with pytest.raises(DataError, match=r"'myrun'.*\./myrun is the path of what is called so here"):
        refuse_unknown("myrun", ("resnet50",))
    refuse_unknown("resnet50", ("resnet50",))


def test_every_published_file_is_named_by_itself():
    assert all(model_named(name) == Named("sscd", name) for name in SSCD)
