"""Teachers: files, runs, backbones, cached descriptors; all of them frozen."""

from dataclasses import asdict

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ascl.core import checkpoint
from ascl.core.errors import DataError
from ascl.image_copy.descriptors.descriptor import Descriptor
from ascl.image_copy.descriptors.files import write_descriptors
from ascl.image_copy.descriptors.teachers import load_teacher, teacher_describer
from ascl.images.backbones import normalize_pixels
from ascl.images.pooling import PooledBackbone

from ..training_cases import BACKBONE, SIDE, tiny


class Script(nn.Module):
    """As the published files: normalized pixels to vectors; batch norm shows whether it is in evaluation mode."""

    def __init__(self, unit: bool):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.BatchNorm2d(6), nn.ReLU())
        self.unit = unit

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        vectors = self.layers(images).mean(dim=(2, 3))
        return F.normalize(vectors, dim=1) if self.unit else vectors


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scripts")
    torch.manual_seed(1)
    networks = {}
    for unit in (True, False):
        networks[unit] = Script(unit).eval()
        torch.jit.script(networks[unit]).save(str(folder / f"{unit}.torchscript.pt"))
    return folder, networks


def pixels(count=4, side=SIDE):
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(7), dtype=torch.uint8)


def test_a_torchscript_file_sees_normalize_pixels(scripts):
    folder, networks = scripts
    path = folder / "False.torchscript.pt"
    teacher = load_teacher(str(path), normalize="half", trust_code=True)
    with torch.no_grad():
        expected = networks[False](normalize_pixels(pixels(), "half"))
    assert torch.allclose(teacher.embed(pixels(), ()), expected, atol=1e-6) and teacher.dim == 6
    assert teacher.model.startswith("False.torchscript.pt sha256:") and len(teacher.model.split(":")[1]) == 64
    larger = load_teacher(str(path), normalize="half", image_size=48, trust_code=True)
    resized = F.interpolate(pixels().float(), (48, 48), mode="bilinear", antialias=True)
    with torch.no_grad():
        assert torch.allclose(larger.embed(pixels(), ()), networks[False](normalize_pixels(resized, "half")), atol=1e-6)


def test_norms_of_a_network_that_normalizes_are_not_used(scripts):
    for unit, expected in ((True, False), (False, True)):
        teacher = load_teacher(str(scripts[0] / f"{unit}.torchscript.pt"), trust_code=True)
        describer = teacher_describer(teacher, input_size=SIDE, resize="squash")
        assert not describer.orders_norms                           # its file does not say how it was trained
        square = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        vectors, norms = describer([square])
        assert np.linalg.norm(vectors[0]) == pytest.approx(1, abs=1e-6) and (norms is not None) is expected
        if expected:
            assert teacher_describer(teacher, input_size=SIDE, resize="squash", orders_norms=True).orders_norms
        else:
            with pytest.raises(DataError, match="its norms cannot order anything"):
                teacher_describer(teacher, input_size=SIDE, resize="squash", orders_norms=True)


@pytest.mark.parametrize("output", ["embeddings", "features"])
def test_a_run_teaches_by_its_descriptor_or_its_feature(tmp_path, output):
    torch.manual_seed(2)
    model = Descriptor(tiny()).eval()
    state = {f"student.{name}": value for name, value in model.state_dict().items()}
    checkpoint.save(tmp_path / "last.pt", {"model": state, "extra": {"descriptor": asdict(model.settings)}})
    teacher = load_teacher(str(tmp_path), output=output)
    with torch.no_grad():
        assert torch.equal(teacher.embed(pixels(), ()), getattr(model(pixels()), output))
    assert teacher.dim == {"embeddings": 8, "features": 16}[output] and teacher.about["output"] == output


def test_an_untrained_backbone_teaches_by_gem():
    teacher = load_teacher(BACKBONE, weights="random:3")
    with torch.no_grad():
        assert torch.equal(teacher.embed(pixels(), ()), PooledBackbone(BACKBONE, "random:3").eval()(pixels()))
    other = load_teacher(BACKBONE, weights="random:3", normalize="half")
    assert other.model != teacher.model  # the same weights that see other pixels are another model


def test_a_teacher_stays_as_it_is(scripts):
    script = load_teacher(str(scripts[0] / "True.torchscript.pt"), trust_code=True)
    for teacher in (script, load_teacher(BACKBONE, weights="random:0")):
        before = {name: value.clone() for name, value in teacher.state_dict().items()}
        teacher.train()
        assert not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
        assert not teacher.embed(pixels(), ()).requires_grad
        assert all(torch.equal(value, before[name]) for name, value in teacher.state_dict().items())


def test_cached_descriptors_are_found_by_the_ids_of_the_images(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    write_descriptors(tmp_path / "teacher.h5", list("edcba"), vectors, model="big")
    teacher = load_teacher(str(tmp_path / "teacher.h5"), items=["a", "c", "d"])
    assert teacher.embed(pixels(2), ["c", "a"]).tolist() == vectors[[2, 4]].tolist()
    assert teacher.model == "big (cached, of the unedited images)" and teacher.about["kind"] == "cached"
    assert not teacher.state_dict()
    with pytest.raises(DataError, match="lacks 2 of the 3 training images, such as x, y"):
        load_teacher(str(tmp_path / "teacher.h5"), items=["a", "x", "y"])
    with pytest.raises(DataError, match="cannot describe images"):
        teacher_describer(teacher, input_size=SIDE, resize="squash")


def test_sources_that_are_not_teachers_are_named(tmp_path):
    for name in ("no/such/file.pt", "sscd.torchscript.pt"):
        with pytest.raises(DataError, match="no such file or run"):
            load_teacher(name)
    with pytest.raises(DataError, match="no such file of descriptors"):
        load_teacher("teacher.h5")
    with pytest.raises(DataError, match="no model is named 'resnet_50'.*the nearest are resnet50"):
        load_teacher("resnet_50")
    with pytest.raises(DataError, match="cannot teach"):
        load_teacher("phash")
    (tmp_path / "x.pt").write_bytes(b"nothing")
    with pytest.raises(DataError, match="truncated, damaged"):
        load_teacher(str(tmp_path / "x.pt"))

    class Scalar(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.mean()

    torch.jit.script(Scalar()).save(str(tmp_path / "scalar.pt"))
    with pytest.raises(DataError, match="instead of vectors"):
        load_teacher(str(tmp_path / "scalar.pt"), trust_code=True)
