"""The best model at hand, from empty caches upward; nothing here touches a network."""

import os

import pytest
import torch
import yaml

from ascl.core.errors import DataError
from ascl.image_copy.descriptors import at_hand, published
from ascl.image_copy.descriptors.at_hand import best_at_hand, models, runs_in
from ascl.image_copy.descriptors.choice import DescriberChoice, make_describer
from ascl.images import weights

pytest.importorskip("imagehash")


@pytest.fixture(autouse=True)
def nothing_here(tmp_path, monkeypatch):
    """Empty caches, in an empty folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(weights, "timm_at_hand", lambda: [])
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")


def make_run(path, age, settings, file="best.pt"):
    touch(path / file)
    (path / "settings.yaml").write_text(yaml.safe_dump(settings) if isinstance(settings, dict) else settings)
    os.utime(path / file, (2e9 - age, 2e9 - age))


def test_the_order(tmp_path):
    best = best_at_hand()
    assert (best.name, best.choice) == ("phash", DescriberChoice("phash"))
    for told in ("crops and overlays defeat it", "downloaded if it is named: sscd_disc_mixup (99 MB), or torchvision:"):
        assert told in best.why
    touch(weights.place_of("resnet50"))
    assert best_at_hand().choice == DescriberChoice("backbone", "resnet50")
    touch(weights.place_of("mobilenet_v2"))         # the one that is measured
    best = best_at_hand()
    assert best.name == "torchvision:mobilenet_v2" and "not trained for copies" in best.why
    work = tmp_path / "work" / "runs"
    make_run(work / "asl", 1, {"objective": "asl", "views": {}})            # found less than its backbone
    make_run(work / "f30k", 1, {"dataset": "flickr30k", "model": {}})       # of retrieval
    make_run(work / "broken", 1, "objective: [")
    make_run(work / "begun", 1, {"objective": "sscd", "views": {}}, file="metrics.jsonl")
    assert best_at_hand().name == "torchvision:mobilenet_v2"
    make_run(work / "old", 20, {"objective": "sscd", "views": {}})
    make_run(work / "new", 10, {"objective": "rdcd", "views": {}}, file="last.pt")
    best = best_at_hand()
    assert best.choice == DescriberChoice("checkpoint", "runs/new") and "your newest run of rdcd" in best.why
    assert runs_in("runs") == [("runs/asl", "asl"), ("runs/new", "rdcd"), ("runs/old", "sscd")]
    for name in ("sscd_imagenet_mixup", "sscd_disc_mixup"):
        touch(published.place_of(name))
    assert best_at_hand().choice == DescriberChoice("sscd", "sscd_disc_mixup")


def test_a_choice_by_default_downloads_nothing():
    touch(weights.place_of("resnet50"))
    best = best_at_hand()
    weights.place_of("resnet50").unlink()           # in between
    assert not best.choice.download
    with pytest.raises(DataError, match="weights of resnet50 are not on this machine: name it as the model"):
        make_describer(best.choice)


def test_without_imagehash_nothing_is_left(monkeypatch):
    monkeypatch.setattr(at_hand, "find_spec", lambda name: None)
    with pytest.raises(DataError, match="no model is on this machine: name one.*or pip install imagehash"):
        best_at_hand()


def test_the_list_names_what_can_be_named(monkeypatch, tmp_path):
    make_run(tmp_path / "work" / "mine", 1, {"objective": "sscd", "views": {}})
    monkeypatch.setattr(weights, "timm_at_hand", lambda: ["timm:resnet18.a1_in1k"])
    found = {one.name: one for one in models(".")}
    for name, model in found.items():
        choice = DescriberChoice.from_options({"model": name})
        assert choice is not None and choice.kind in ("sscd", "checkpoint", "backbone", "phash"), name
        assert model.at_hand or model.source.startswith("https://") and model.bytes, name
    assert found["./mine"].at_hand and found["timm:resnet18.a1_in1k"].at_hand and found["phash"].at_hand
    assert [name for name, model in found.items() if name.startswith("sscd")] == list(published.SSCD)
    assert len([name for name in found if name.startswith("torchvision:")]) == len(weights.torchvision_names())
