"""Which published weights are on this machine, judged by the caches of torch and of the Hugging Face hub."""

import pytest
import torch

from ascl.images import weights

pytest.importorskip("huggingface_hub")


@pytest.fixture(autouse=True)
def caches(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"weights")


def test_torchvisions(caches):
    assert not weights.is_at_hand("resnet18")
    assert weights.place_of("resnet18") == caches / "torch" / "hub" / "checkpoints" / "resnet18-f37072fd.pth"
    touch(weights.place_of("resnet18"))
    assert weights.is_at_hand("resnet18") and not weights.is_at_hand("resnet50")
    assert weights.address_of("resnet18").startswith("https://") and 40e6 < weights.size_of("resnet18") < 50e6
    assert weights.is_at_hand("no_such_network")        # loading it says so


def test_timms(caches):
    pytest.importorskip("timm")
    name, folder = "resnet18.a1_in1k", caches / "hub" / "models--timm--resnet18.a1_in1k"
    assert not weights.is_at_hand(f"timm:{name}") and weights.timm_at_hand() == []
    touch(folder / "refs" / "main")
    (folder / "refs" / "main").write_text("abc")
    touch(folder / "snapshots" / "abc" / "config.json")
    assert not weights.is_at_hand(f"timm:{name}") and weights.timm_at_hand() == []     # a model without its weights
    touch(folder / "snapshots" / "abc" / "model.safetensors")
    assert weights.timm_at_hand() == [f"timm:{name}"]
    from huggingface_hub import try_to_load_from_cache
    assert try_to_load_from_cache(f"timm/{name}", "model.safetensors", cache_dir=str(caches / "hub"))
    assert weights.is_at_hand(f"timm:{name}")
    assert weights.is_at_hand("timm:no_such_network")
