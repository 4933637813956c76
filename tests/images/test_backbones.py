"""Backbones: where weights come from, which layer is cut, padding, and evaluation mode."""

import urllib.error

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from ascl.core.errors import DataError
from ascl.images.backbones import (
    Backbone,
    SamePadConv2d,
    load_classifier,
    normalize_pixels,
    pick_device,
    same_padding,
    use_same_padding,
)
from ascl.images.find import find_images
from ascl.images.read import load_image

PLAIN = {
    "input_size": 64, "resize": "squash", "normalize": "half", "same_padding": False, "precision": "float32",
    "device": "cpu",
}


def pixels(count: int, size: int = 64) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def state_file(tmp_path, change=lambda state: None, name: str = "resnet18"):
    state = torchvision.models.get_model(name, weights=None).state_dict()
    change(state)
    torch.save(dict(state), tmp_path / "weights.pth")
    return str(tmp_path / "weights.pth"), state


# --- weights ---------------------------------------------------------------------------------------------------------


def test_weights_from_a_file_are_the_files(tmp_path):
    path, state = state_file(tmp_path)
    model, origin = load_classifier("resnet18", path)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert origin["weights"] == "weights.pth" and len(origin["weights_sha256"]) == 64


def test_a_file_without_the_batch_counters_of_old_torch_fits(tmp_path):
    def forget_counters(state):
        for key in [key for key in state if key.endswith("num_batches_tracked")]:
            del state[key]

    path, state = state_file(tmp_path, forget_counters)
    model, _ = load_classifier("resnet18", path)
    assert torch.equal(model.state_dict()["layer4.1.bn2.running_var"], state["layer4.1.bn2.running_var"])


def test_a_file_that_does_not_fit_lists_every_wrong_key(tmp_path):
    def spoil(state):
        del state["conv1.weight"], state["bn1.bias"]
        state["extra.weight"] = torch.zeros(1)
        state["fc.weight"] = torch.zeros(365, 512)

    path, _ = state_file(tmp_path, spoil)
    wanted = (
        r"missing 2 \(conv1\.weight, bn1\.bias\); left over 1 \(extra\.weight\); "
        r"of another shape 1 \(fc\.weight \(365, 512\), expected \(1000, 512\)\)"
    )
    with pytest.raises(DataError, match=wanted):
        load_classifier("resnet18", path)


def test_files_that_are_no_state_dict_are_refused(tmp_path):
    torch.save({"epoch": 3, "state_dict": {}}, tmp_path / "run.pth")
    with pytest.raises(DataError, match="expected a state dict of resnet18.*found: epoch, state_dict"):
        load_classifier("resnet18", str(tmp_path / "run.pth"))
    (tmp_path / "text.pth").write_text("no weights")
    with pytest.raises(DataError, match="text.pth: not a complete file of weights"):
        load_classifier("resnet18", str(tmp_path / "text.pth"))
    path, _ = state_file(tmp_path)
    whole = (tmp_path / "weights.pth").read_bytes()
    (tmp_path / "cut.pth").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cut.pth: not a complete file of weights"):
        load_classifier("resnet18", str(tmp_path / "cut.pth"))
    with pytest.raises(DataError, match="absent.pth: no such file of weights"):
        load_classifier("resnet18", str(tmp_path / "absent.pth"))


def test_pickled_code_is_never_run(tmp_path):
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(DataError, match="module.pth: not a complete file of weights"):
        load_classifier("resnet18", str(tmp_path / "module.pth"))


def test_random_weights_come_from_their_seed_alone():
    before = torch.get_rng_state()
    first, origin = load_classifier("mobilenet_v2", "random:3")
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    again, same = load_classifier("mobilenet_v2", "random:3")
    _, other = load_classifier("mobilenet_v2", "random:4")
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert origin["weights_sha256"] == same["weights_sha256"] != other["weights_sha256"]


def test_wrong_names_say_what_is_near(monkeypatch):
    with pytest.raises(DataError, match="no backbone 'resnet512'; the nearest are .*resnet152"):
        load_classifier("resnet512", "random:0")
    with pytest.raises(DataError, match="write random:SEED"):
        load_classifier("resnet18", "random:one")
    with pytest.raises(DataError, match="resnet18 has no layer 'layer5'; the nearest are .*layer"):
        Backbone("resnet18", "random:0", "layer5", **PLAIN)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == "cpu"
    with pytest.raises(DataError, match="device cuda:3"):
        pick_device("cuda:3")


def test_without_a_network_published_weights_say_what_to_fetch(monkeypatch):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torchvision.models, "get_model", unreachable)
    with pytest.raises(
        DataError, match=r"IMAGENET1K_V2 could not be downloaded from https://.*resnet152.*give its path"
    ):
        load_classifier("resnet152", "default")


# --- pixels and padding ----------------------------------------------------------------------------------------------


def test_normalizations_against_one_pixel_by_hand():
    pixel = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 3, 1, 1)
    wanted = {
        "none": [0.0, 0.2, 1.0], "half": [-1.0, (51 - 127.5) / 127.5, 1.0],
        "imagenet": [(0 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, (1 - 0.406) / 0.225],
    }
    for normalize, values in wanted.items():
        assert normalize_pixels(pixel, normalize).flatten().tolist() == pytest.approx(values)


@given(side=st.integers(1, 300), kernel=st.integers(1, 7), stride=st.integers(1, 4), dilation=st.integers(1, 3))
def test_same_padding_gives_one_output_a_stride_and_no_more_padding_than_that_needs(side, kernel, stride, dilation):
    before, after = same_padding(side, kernel, stride, dilation)
    reach = dilation * (kernel - 1) + 1
    outputs = (side + before + after - reach) // stride + 1
    assert outputs == -(-side // stride)
    assert after - before in (0, 1)
    if before + after:
        assert (side + before + after - 1 - reach) // stride + 1 < outputs


@pytest.mark.parametrize("side", [8, 9])
def test_same_padding_of_a_stride_2_convolution_against_loops(side):
    conv = nn.Conv2d(2, 3, 3, stride=2, padding=1, bias=False)
    model = nn.Sequential(conv)
    use_same_padding(model)
    image = torch.randn(1, 2, side, side)
    first = 0 if side % 2 == 0 else -1  # even: the first window starts at the image's corner, nothing above or left
    out = (side + 1) // 2
    wanted = torch.zeros(1, 3, out, out)
    for y in range(out):
        for x in range(out):
            for dy in range(3):
                for dx in range(3):
                    row, column = first + 2 * y + dy, first + 2 * x + dx
                    if 0 <= row < side and 0 <= column < side:
                        wanted[0, :, y, x] += conv.weight[:, :, dy, dx] @ image[0, :, row, column]
    assert isinstance(model[0], SamePadConv2d)
    assert torch.allclose(model(image), wanted, atol=1e-6)


def test_same_padding_changes_only_padded_strided_convolutions():
    model, _ = load_classifier("mobilenet_v2", "random:0")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    use_same_padding(model)
    same = [module for module in model.modules() if isinstance(module, SamePadConv2d)]
    assert len(same) == 5 and all(module.stride == (2, 2) and module.kernel_size == (3, 3) for module in same)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(module.groups > 1 for module in same) == 4  # the depthwise ones kept their groups


def test_same_padding_reads_real_photographs_with_more_confidence(shared):
    photographs = find_images(shared / "data" / "flickr8k" / "images").paths[:24]
    weights = str(shared / "weights" / "mobilenet_v2_imagenet.pth")
    labels = (shared / "weights" / "imagenet_labels_1001.txt").read_text().splitlines()
    squares = torch.stack([torch.from_numpy(np.asarray(load_image(path).image).copy()) for path in photographs])
    confidence, seen = {}, []
    for same in (False, True):
        model, _ = load_classifier("mobilenet_v2", weights)
        if same:
            use_same_padding(model)
        with torch.inference_mode():
            probabilities = model(normalize_pixels(squares.permute(0, 3, 1, 2), "half")).softmax(dim=1)
        confidence[same] = probabilities.max(dim=1).values.mean().item()
        seen.append([labels[index + 1].split(None, 1)[1] for index in probabilities.argmax(dim=1)])
    assert confidence[True] > confidence[False] + 0.03 and confidence[False] > 0.2
    wanted = {"1001773457_577c3a7d70": "toy terrier", "1012212859_01547e3f17": "Weimaraner"}
    for path, label in zip(photographs, seen[1], strict=True):
        assert label == wanted.get(path.stem, label)


# --- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "size", "shape"),
    [
        ("resnet18", 64, (512, 2, 2)),
        ("mobilenet_v2", 64, (1280, 2, 2)),
        ("densenet121", 64, (1024, 2, 2)),
        ("squeezenet1_1", 64, (1000, 3, 3)),
    ],
)
def test_the_last_map_is_found(name, size, shape):
    assert Backbone(name, "random:0", None, **PLAIN | {"input_size": size}).shape == shape


def test_the_last_map_of_a_resnet_is_layer4():
    found = Backbone("resnet18", "random:0", None, **PLAIN)
    model, _ = load_classifier("resnet18", "random:0")
    batch = normalize_pixels(torch.from_numpy(np.stack(pixels(2))).permute(0, 3, 1, 2), "half")
    with torch.inference_mode():
        x = model.maxpool(model.relu(model.bn1(model.conv1(batch))))
        wanted = model.layer4(model.layer3(model.layer2(model.layer1(x))))
    assert torch.allclose(found(pixels(2)), wanted, atol=1e-5)


def test_a_named_layer_is_cut_there():
    assert Backbone("resnet18", "random:0", "layer2", **PLAIN).shape == (128, 8, 8)
    assert Backbone("resnet18", "random:0", "flatten", **PLAIN).shape == (512,)


def test_a_transformers_tokens_come_as_a_map_without_the_class_token():
    backbone = Backbone("vit_b_32", "random:0", "encoder.dropout", **PLAIN | {"input_size": 224})
    assert backbone.shape == (768, 7, 7)
    square = pixels(1, 224)
    state = backbone.model.state_dict()
    batch = normalize_pixels(torch.from_numpy(np.stack(square)).permute(0, 3, 1, 2), "half")
    patches = torch.nn.functional.conv2d(batch, state["conv_proj.weight"], state["conv_proj.bias"], stride=32)
    wanted = patches[0, :, 2, 3] + state["encoder.pos_embedding"][0, 1 + 2 * 7 + 3]
    assert torch.allclose(backbone(square)[0, :, 2, 3], wanted, atol=1e-5)


def test_an_input_size_that_the_backbone_cannot_take_is_an_error():
    with pytest.raises(DataError, match="vit_b_32 cannot take images of 64x64"):
        Backbone("vit_b_32", "random:0", None, **PLAIN)


def test_batch_norm_stays_in_evaluation_mode_whatever_was_done_to_the_model():
    backbone = Backbone("mobilenet_v2", "random:0", None, **PLAIN)
    wanted = backbone(pixels(3))
    state = {name: value.clone() for name, value in backbone.model.state_dict().items()}
    backbone.model.train()
    assert torch.equal(backbone(pixels(3)), wanted)
    assert all(torch.equal(value, state[name]) for name, value in backbone.model.state_dict().items())
    assert not any(module.training for module in backbone.model.modules())


def test_an_images_features_do_not_depend_on_its_batch():
    backbone = Backbone("mobilenet_v2", "random:0", None, **PLAIN)
    batch = pixels(4)
    alone = torch.cat([backbone([square]) for square in batch])
    assert F.cosine_similarity(backbone(batch).flatten(1), alone.flatten(1)).min() > 1 - 1e-6


def test_mixed_precision_is_near_and_comes_out_as_float32():
    whole = Backbone("mobilenet_v2", "random:0", None, **PLAIN)(pixels(2))
    half = Backbone("mobilenet_v2", "random:0", None, **PLAIN | {"precision": "bfloat16"})
    output = half(pixels(2))
    assert output.dtype == torch.float32 and half.settings["precision"] == "bfloat16"
    assert not torch.equal(output, whole)  # it was really computed in less
    assert (output - whole).norm() / whole.norm() < 0.05
