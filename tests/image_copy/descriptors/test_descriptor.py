"""Descriptors: pooling, layers, norms, what is frozen, and describing images from a checkpoint."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

from ascl.core import checkpoint
from ascl.core.errors import DataError
from ascl.image_copy.descriptors.descriptor import Descriptor, Projector, load_descriptor, read_descriptor
from ascl.images.backbones import normalize_pixels
from ascl.images.find import find_images
from ascl.images.pooling import PooledBackbone, gem_pool
from ascl.images.read import SquarePixels, load_image

from ..training_cases import BACKBONE, SIDE, save_photos, tiny


def gem_by_hand(maps, p, floor=1e-6):
    pooled = torch.empty(maps.shape[:2], dtype=torch.float64)
    for b, row in enumerate(maps.tolist()):
        for c, channel in enumerate(row):
            places = [max(value, floor) ** p for line in channel for value in line]
            pooled[b, c] = (sum(places) / len(places)) ** (1 / p)
    return pooled


def pixels(count=3, side=SIDE, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, side, side), generator=generator, dtype=torch.uint8)


@given(p=st.sampled_from([1.0, 2.0, 3.0, 4.5]), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_gem_is_the_generalised_mean(p, seed):
    maps = torch.randn(2, 3, 2, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert torch.allclose(gem_pool(maps, p=p), gem_by_hand(maps, p), rtol=1e-12)


def test_gem_of_the_oracle(shared):
    numbers = np.load(shared / "oracles" / "gem_pool.npz")
    for p in (3, 1, 4):
        assert np.abs(gem_pool(torch.from_numpy(numbers["x"]), p=p).numpy() - numbers[f"exp_p{p}"]).max() < 1e-9


def test_gem_keeps_its_precision_and_finite_gradients_below_the_floor():
    maps = torch.full((1, 2, 3, 3), -1.0, requires_grad=True)
    gem_pool(maps).sum().backward()
    assert bool(maps.grad.isfinite().all())
    assert gem_pool(maps.detach().half()).dtype == torch.float32
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert gem_pool(maps.detach().bfloat16()).dtype == torch.float32
    for wrong in (torch.zeros(2, 3), torch.zeros(2, 3, 0, 4)):
        with pytest.raises(ValueError, match="maps must be"):
            gem_pool(wrong)
    with pytest.raises(ValueError, match="positive"):
        gem_pool(maps, p=0)


def test_a_descriptor_is_gem_feature_and_head():
    model = Descriptor(tiny()).eval()
    out = model(pixels())
    pooled = model.backbone(pixels())
    assert out.features.shape == (3, 16) and out.embeddings.shape == (3, 8) and out.content is out.embeddings
    assert torch.equal(out.features, pooled @ model.fc.weight.T + model.fc.bias)
    assert torch.allclose(out.embeddings, out.features @ model.head.weight.T + model.head.bias, atol=1e-6)
    assert pooled.shape == (3, 1024) and bool((pooled >= 9e-7).all())
    vectors, norms = model.describe(pixels())
    assert torch.equal(vectors, out.embeddings) and torch.allclose(norms, out.embeddings.norm(dim=1))


@pytest.mark.parametrize(("changes", "dim", "content"), [
    ({"dim": None}, 16, 16),
    ({"dim": None, "feature_dim": None}, 1024, 1024),
    ({"dim": None, "projector_dim": 6, "projector_hidden": 5, "norm_of": "projector"}, 6, 6),
    ({"projector_dim": 6, "projector_hidden": 5, "norm_of": "projector"}, 8, 6),
    ({"projector_dim": 6, "projector_hidden": 5, "norm_of": "feature"}, 8, 16),
])
def test_which_vector_is_the_descriptor_and_which_the_content(changes, dim, content):
    model = Descriptor(tiny(**changes)).eval()
    out = model(pixels())
    assert model.dim == out.embeddings.shape[1] == dim and out.content.shape[1] == content


def test_the_projector_is_that_of_asl():
    projector = Projector(16, 12, 6)
    kinds = [type(layer) for layer in projector]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.LeakyReLU, nn.Linear, nn.BatchNorm1d]
    assert projector[2].negative_slope == 0.2
    assert not projector[4].bias.requires_grad and projector[4].weight.requires_grad and projector[1].bias.requires_grad
    assert torch.equal(projector[4].bias, torch.zeros(6))


def test_pixels_are_brought_to_the_range_of_the_weights():
    levels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    half = normalize_pixels(levels, "half").flatten().tolist()
    assert half == pytest.approx([-1, -0.6, 1])
    assert normalize_pixels(levels, "none").flatten().tolist() == pytest.approx([0, 0.2, 1])
    imagenet = [(0 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225]
    assert normalize_pixels(levels, "imagenet").flatten().tolist() == pytest.approx(imagenet)
    assert torch.equal(normalize_pixels(levels, "imagenet"), normalize_pixels(levels.float(), "imagenet"))


@pytest.mark.parametrize("frozen", [False, True])
def test_frozen_batch_norm_keeps_its_statistics_in_training(frozen):
    model = Descriptor(tiny(freeze_batch_norm=frozen, projector_dim=4, projector_hidden=5)).train()
    before = {name: value.clone() for name, value in model.state_dict().items() if "running" in name}
    model(pixels(4))
    moved = {name for name, value in model.state_dict().items() if "running" in name and not value.equal(before[name])}
    assert {name.startswith("backbone.") for name in moved} == ({False} if frozen else {True, False})
    assert model.training and any(parameter.requires_grad for parameter in model.backbone.parameters())


def test_last_stride_one_doubles_the_last_map_of_a_resnet():
    side = []
    for last_stride in (2, 1):
        network = PooledBackbone("resnet18", "random:0", last_stride=last_stride).eval()
        side.append(network.network(torch.zeros(1, 3, 64, 64))["out"].shape[2])
    assert side == [2, 4]
    with pytest.raises(DataError, match="last stride 1 is only for ResNets"):
        PooledBackbone(BACKBONE, "random:0", last_stride=1)


@pytest.mark.parametrize("name", ["timm:fastvit_t12", "timm:mobilenetv3_small_050"])
def test_timm_backbones(name):
    pytest.importorskip("timm")
    network = PooledBackbone(name, "random:0").eval()
    again = PooledBackbone(name, "random:0").eval()
    images = pixels(2, 64)
    maps = network.network.forward_features(normalize_pixels(images, "imagenet"))
    assert network(images).shape == (2, network.dim) == tuple(maps.shape[:2])
    assert torch.equal(network(images), gem_pool(maps)) and torch.equal(network(images), again(images))
    assert not hasattr(network.network, "classifier") or isinstance(network.network.classifier, nn.Identity)


def test_class_token_and_patches_of_a_vision_transformer():
    timm = pytest.importorskip("timm")
    name = "vit_tiny_patch16_224"
    network = PooledBackbone(f"timm:{name}", "random:0", pool="class+gem").eval()
    images = pixels(1, 224)
    tokens = network.network.forward_features(normalize_pixels(images, "imagenet"))
    assert tokens.shape == (1, 197, 192) and network.dim == 384
    patches = gem_by_hand(tokens[:, 1:].transpose(1, 2).unsqueeze(3).detach(), 3)
    assert torch.equal(network(images)[:, :192], tokens[:, 0])
    assert torch.allclose(network(images)[:, 192:].double(), patches, rtol=1e-4)
    with pytest.raises(DataError, match="no class token"):
        PooledBackbone(BACKBONE, "random:0", pool="class+gem")
    assert timm.is_model(name)


def test_a_timm_state_dict_fills_the_whole_network(tmp_path):
    timm = pytest.importorskip("timm")
    torch.manual_seed(3)
    whole = timm.create_model("mobilenetv3_small_050")
    torch.save(whole.state_dict(), tmp_path / "weights.pth")
    network = PooledBackbone("timm:mobilenetv3_small_050", str(tmp_path / "weights.pth")).eval()
    images = normalize_pixels(pixels(2, 64), "imagenet")
    assert torch.equal(network.network.forward_features(images), whole.eval().forward_features(images))
    assert network.origin["weights"] == "weights.pth"


@pytest.mark.parametrize(
    ("backbone", "weights", "message"),
    [("shuflenet_v2_x0_5", "random:0", "shufflenet_v2_x0_5"), ("timm:fastvit_t21", "random:0", "fastvit_t12"),
     (BACKBONE, "no/such.pth", "no such file of weights"), (BACKBONE, "random:x", "random:SEED"),
     ("timm:fastvit_t12", "random:x", "random:SEED")],
)
def test_what_cannot_be_a_backbone_is_named(backbone, weights, message):
    if backbone.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(DataError, match=message):
        PooledBackbone(backbone, weights)


@pytest.mark.parametrize(("changes", "message"), [
    ({"dim": 0}, "dim is 0"), ({"input_size": -1}, "input_size is -1"), ({"norm_of": "projector"}, "needs a projector"),
])
def test_settings_that_make_no_descriptor(changes, message):
    with pytest.raises(DataError, match=message):
        tiny(**changes)


# From a checkpoint to vectors


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's checkpoint as tools/train_copy.py leaves it, and the model in it."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(5)
    model = Descriptor(tiny(norm_of="feature")).eval()
    from dataclasses import asdict

    state = {f"student.{name}": value for name, value in model.state_dict().items()}
    checkpoint.save(folder / "best.pt", {"model": state, "extra": {"descriptor": asdict(model.settings)}})
    return folder, model


def test_images_are_described_one_by_one_as_in_batches(run, tmp_path):
    folder, model = run
    paths = find_images(save_photos(tmp_path / "photos", 7)).paths
    describer = load_descriptor(folder)
    vectors, norms = describer([describer.prepare(load_image(path).image) for path in paths])
    assert vectors.dtype == norms.dtype == np.float32
    assert vectors.shape == (7, 8) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for path, vector, norm in zip(paths, vectors, norms, strict=True):
        square = load_image(path).image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
        with torch.no_grad():
            out = model(torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)[None])
        embedding = out.embeddings[0].double()
        assert np.allclose(vector, embedding / math.sqrt((embedding**2).sum()), atol=1e-5)
        assert norm == pytest.approx(out.features[0].norm().item(), rel=1e-5)


def test_a_describer_is_bound_to_its_checkpoint_and_its_preprocessing(run):
    folder, _ = run
    describer = load_descriptor(folder / "best.pt", input_size=48, resize="crop")
    assert describer.dim == 8 and describer.prepare == SquarePixels(48, "crop")
    assert describer.model.startswith(f"{BACKBONE}-8d sha256:") and describer.settings["input_size"] == 48


@pytest.mark.parametrize(
    ("objective", "weight", "expected"), [("asl", 1.0, True), ("asl", 0.0, False), ("rdcd", 1.0, False)]
)
def test_norms_order_only_what_was_trained_to(run, tmp_path, objective, weight, expected):
    state = torch.load(run[0] / "best.pt", weights_only=True)
    state["extra"]["settings"] = {"objective": objective, "asl": {"norm_ratio_weight": weight}}
    checkpoint.save(tmp_path / "best.pt", {"model": state["model"], "extra": state["extra"]})
    assert load_descriptor(tmp_path).orders_norms is expected and not load_descriptor(run[0]).orders_norms


def test_folders_and_files_that_are_not_runs_are_refused(tmp_path):
    with pytest.raises(DataError, match="no checkpoint in"):
        read_descriptor(tmp_path)
    (tmp_path / "best.pt").write_bytes(b"half a file")
    with pytest.raises(DataError, match="truncated, damaged"):
        read_descriptor(tmp_path)
    torch.save({"weights": torch.zeros(1)}, tmp_path / "best.pt")
    with pytest.raises(DataError, match="not a checkpoint of this project"):
        read_descriptor(tmp_path)
    checkpoint.save(tmp_path / "best.pt", {"model": {}, "extra": {"settings": {}}})
    with pytest.raises(DataError, match="holds no descriptor"):
        read_descriptor(tmp_path)
    checkpoint.save(tmp_path / "best.pt", {"model": {}, "extra": {"descriptor": {"backbone": BACKBONE, "depth": 2}}})
    with pytest.raises(DataError, match="another version: it sets depth"):
        read_descriptor(tmp_path)
    checkpoint.save(tmp_path / "best.pt", {"model": {}, "extra": {"descriptor": {"backbone": BACKBONE}}})
    with pytest.raises(DataError, match="does not fit its own settings"):
        read_descriptor(tmp_path)
