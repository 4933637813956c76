"""SSCD's files are read as weights, with equal outputs; the code of any other TorchScript runs only if trusted."""

import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ascl.cli import main
from ascl.core.errors import DataError
from ascl.image_copy.descriptors.choice import DescriberChoice
from ascl.image_copy.descriptors.sscd import sscd_network
from ascl.image_copy.descriptors.teachers import load_teacher
from ascl.image_copy.descriptors.torchscript import is_torchscript, read_torchscript
from ascl.images.backbones import normalize_pixels

from ..sscd_files import ClassyModel, TorchvisionModel, randomized, write_traced

MODELS = {"basic": lambda: TorchvisionModel(deep=False), "bottleneck": lambda: TorchvisionModel(deep=True),
          "classy": ClassyModel}


class Writes(nn.Module):
    """Leaves a file wherever it runs."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        torch.save(pixels, "canary")
        return pixels[:, :, ::16, ::16].flatten(1)


@pytest.fixture
def writes(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.jit.script(Writes()).save("writes.torchscript.pt")
    return tmp_path / "writes.torchscript.pt"


@pytest.mark.parametrize("kind", MODELS)
def test_published_files_give_the_vectors_of_their_own_code(tmp_path, kind, monkeypatch):
    model = randomized(MODELS[kind]())
    path = tmp_path / "sscd.torchscript.pt"
    write_traced(model, path)
    pixels = torch.randint(0, 256, (3, 3, 96, 80), generator=torch.Generator().manual_seed(1)).float()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = torch.jit.load(str(path))((pixels / 255 - mean) / std)
    assert (expected @ expected.T).triu(1).max() < 0.9999         # the images differ
    monkeypatch.setattr(torch.jit, "load", lambda *_: pytest.fail("the file's code was loaded"))
    teacher = load_teacher(str(path))
    assert torch.allclose(teacher.embed(pixels, ()), expected, atol=1e-5) and teacher.dim == 8 and not teacher.norms
    torch.save(model.state_dict(), tmp_path / f"sscd.{'classy' if kind == 'classy' else 'torchvision'}.pt")
    weights = load_teacher(str(next(tmp_path.glob("sscd.[ct]*[yn].pt"))))
    assert torch.equal(weights.embed(pixels, ()), teacher.embed(pixels, ()))


def test_the_published_sizes_are_built():
    """ResNet-50 of 512 numbers, and ResNeXt-101 32x4d of 1024 with Classy Vision's names."""
    from torchvision.models.resnet import Bottleneck, ResNet, resnet50

    with torch.device("meta"):
        large = ResNet(Bottleneck, [3, 4, 23, 3], num_classes=1024, groups=32, width_per_group=4)
    for model in (resnet50(num_classes=512), large):
        state = {name: torch.zeros(value.shape) for name, value in model.state_dict().items()}
        made = sscd_network({f"backbone.{name}": value for name, value in state.items()}, "x")
        assert made is not None
        assert {name: value.shape for name, value in made.state_dict().items()} == \
            {name: value.shape for name, value in state.items()}
        assert made.layer2[0].conv2.groups == model.layer2[0].conv2.groups


def test_names_are_those_of_torchs_own_reader(tmp_path):
    model = randomized(TorchvisionModel(deep=True))
    write_traced(model, tmp_path / "a.pt")
    found = read_torchscript(tmp_path / "a.pt").tensors
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def dilated():
    model = TorchvisionModel(deep=True)
    for module in model.backbone.layer4.modules():
        if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3):
            module.dilation = module.padding = (2, 2)
    return model


def other_floor():
    model = TorchvisionModel(deep=True)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.1
    return model


@pytest.mark.parametrize(("model", "why"), [
    (lambda: TorchvisionModel(deep=True, p=2.0), "another exponent"),
    (lambda: nn.Sequential(TorchvisionModel(deep=True), nn.Softmax(dim=1)), "another operation"),
    (dilated, "other strides"), (other_floor, "another floor of the variance"),
])
def test_a_network_of_the_same_names_that_computes_something_else_is_not_taken_for_sscds(tmp_path, model, why):
    made = randomized(model())
    write_traced(made, tmp_path / "a.pt")
    with pytest.raises(DataError, match="of another network than SSCD's"):
        load_teacher(str(tmp_path / "a.pt"))
    pixels = torch.randint(0, 256, (2, 3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = made(normalize_pixels(pixels, "imagenet"))
    assert torch.allclose(load_teacher(str(tmp_path / "a.pt"), trust_code=True).embed(pixels, ()), expected, atol=1e-5)


@pytest.mark.parametrize("bomb", ["modules", "lists"])
def test_small_files_that_would_never_end_or_fill_the_memory(tmp_path, bomb):
    """Each module holds the one before it twice; or one long list is asked for again and again."""
    if bomb == "modules":
        data = b"\x80\x02c__torch__\nM\n)\x81}b"
        for _ in range(60):
            data = b"\x80\x02" + data.removeprefix(b"\x80\x02") + b"q\x00c__torch__\nM\n)\x81}(U\x01ah\x00U\x01bh\x00ub"
        data += b"."
    else:
        data = b"\x80\x02](" + b"K\x01" * 20_000 + b"eq\x000" \
            + b"ctorch.jit._pickle\nbuild_intlist\nq\x010](" + b"h\x01h\x00\x85R" * 50_000 + b"e."
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", data)
        archive.writestr("a/code/__torch__.py", "")
    with pytest.raises(DataError, match=r"a\.pt .* is truncated, damaged or not a TorchScript file"):
        read_torchscript(tmp_path / "a.pt")


def test_weights_that_do_not_fit_are_listed(tmp_path):
    state = randomized(TorchvisionModel(deep=True)).state_dict()
    del state["backbone.layer2.1.bn1.bias"]
    torch.save(state, tmp_path / "a.torchvision.pt")
    with pytest.raises(DataError, match=r"a\.torchvision\.pt.*missing 1 .layer2\.1\.bn1\.bias"):
        load_teacher(str(tmp_path / "a.torchvision.pt"))
    torch.save({"a": torch.zeros(2)}, tmp_path / "b.torchvision.pt")
    with pytest.raises(DataError, match=r"b\.torchvision\.pt.*do not have the names of SSCD's"):
        load_teacher(str(tmp_path / "b.torchvision.pt"))


def test_code_runs_only_if_it_is_trusted(writes):
    assert is_torchscript(writes)
    with pytest.raises(DataError, match="to use it is to run its code.*trust_code"):
        load_teacher(str(writes))
    assert not Path("canary").exists()
    assert load_teacher(str(writes), trust_code=True).dim == 3 * 14 * 14
    assert Path("canary").exists()


def test_an_index_never_makes_a_query_run_code(writes, capsys):
    os.makedirs("photos")
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"photos/{seed}.png")
    index = ["copy", "index", "photos", "--index", "idx", "--model", str(writes), "--input_size", "32",
             "--workers", "0"]
    assert main(index) == 1
    assert "trust_code" in capsys.readouterr().err and not Path("canary").exists()
    assert main([*index, "--trust_code"]) == 0
    Path("canary").unlink()
    query = ["copy", "query", "photos/1.png", "--index", "idx", "--workers", "0"]
    assert main(query) == 1
    assert "trust_code" in capsys.readouterr().err and not Path("canary").exists()
    for place in Path("idx").rglob("*.json"):                   # whoever wrote the index cannot grant trust
        place.write_text(place.read_text().replace('"input_size"', '"trust_code": true, "input_size"'))
    assert main(query) == 1 and not Path("canary").exists()
    assert main([*query, "--trust_code"]) == 0
    assert Path("canary").exists()


def test_records_of_an_index_hold_no_trust():
    choice = DescriberChoice("torchscript", "/a.pt", trust_code=True)
    assert "trust_code" not in choice.to_record()
    assert not DescriberChoice.from_record({**choice.to_record(), "trust_code": True}, "idx").trust_code
    with pytest.raises(DataError, match="idx records no model"):
        DescriberChoice.from_record({"kind": "torchscript", "sauce": 1}, "idx")
    with pytest.raises(DataError, match="idx records no model"):
        DescriberChoice.from_record(None, "idx")


def test_a_script_with_other_data_is_refused(tmp_path):
    write_traced(randomized(TorchvisionModel(deep=True)), tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as old, zipfile.ZipFile(tmp_path / "b.pt", "w") as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith("/data.pkl"):
                content = b"cposix\nsystem\n(S'touch canary'\ntR."
            new.writestr(name, content)
    with pytest.raises(DataError, match=r"b\.pt.*asks for posix\.system, which was not run"):
        load_teacher(str(tmp_path / "b.pt"))
