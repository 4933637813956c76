"""Backbones: any torchvision classifier, with published, saved or random weights, up to a chosen layer."""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ascl.core.checkpoint import read_tensors
from ascl.core.errors import DataError
from ascl.core.hashing import sha256_of
from ascl.images.read import SquarePixels

Normalize = Literal["imagenet", "half", "none"]
Precision = Literal["float32", "bfloat16", "float16"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalize_pixels(pixels: Tensor, normalize: Normalize) -> Tensor:
    """Return (B, 3, H, W) pixels of 0..255 in the range that a network was trained with; integers become float32.

    `imagenet` = ImageNet's mean and std, `half` = [-1, 1], `none` = [0, 1].
    """
    pixels = pixels if pixels.is_floating_point() else pixels.float()
    if normalize == "half":
        return (pixels - 127.5) / 127.5
    if normalize == "none":
        return pixels / 255
    mean, std = (pixels.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels / 255 - mean) / std


class SamePadConv2d(nn.Conv2d):
    """A convolution padded like TensorFlow's "SAME": as little as possible, the odd pixel on the right and bottom.

    A 3x3 convolution of stride 2 over an even side then pads only right and bottom, where torch pads all four sides.
    Weights trained with one padding see every map shifted by half a pixel with the other.
    """

    def forward(self, input: Tensor) -> Tensor:
        rows, columns = map(same_padding, input.shape[-2:], self.kernel_size, self.stride, self.dilation)
        padded = F.pad(input, (*columns, *rows))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def same_padding(side: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Return how many pixels TensorFlow's "SAME" adds before and after a side, for ceil(side / stride) outputs."""
    total = max((math.ceil(side / stride) - 1) * stride + (kernel - 1) * dilation + 1 - side, 0)
    return total // 2, total - total // 2


def use_same_padding(model: nn.Module) -> None:
    """Turn every padded convolution of stride > 1, in place, into a `SamePadConv2d` with the same parameters."""
    for module in model.modules():
        if type(module) is nn.Conv2d and max(module.stride) > 1 and module.padding != (0, 0):
            module.__class__ = SamePadConv2d


# The suppressed warning is about train mode, which is never used here.
TRACING = {"tracer_kwargs": {"leaf_modules": [SamePadConv2d]}, "suppress_diff_warning": True}


def load_classifier(backbone: str, weights: str) -> tuple[nn.Module, dict[str, str]]:
    """Return a torchvision classifier by name (such as `resnet152`), and where its weights come from.

    Arguments and errors are those of `load_torchvision`; an unknown backbone is a DataError with the nearest names.
    """
    refuse_unknown("torchvision", backbone, torchvision.models.list_models(module=torchvision.models))
    # The two Inceptions take most of a minute to draw weights that a file overwrites, and warn without this argument.
    slow = backbone in ("googlenet", "inception_v3") and weights != "default"
    return load_torchvision(backbone, weights, **({"init_weights": weights.startswith("random:")} if slow else {}))


def refuse_unknown(library: str, backbone: str, known: Sequence[str]) -> None:
    """Raise a DataError with the nearest names unless the backbone is in `known`."""
    if backbone not in known:
        near = difflib.get_close_matches(backbone, known, n=3, cutoff=0.4)
        raise DataError(f"{library} has no backbone {backbone!r}; the nearest are {', '.join(near) or 'none'}")


def load_torchvision(name: str, weights: str, **untrained: Any) -> tuple[Any, dict[str, str]]:
    """Return a torchvision model with its weights, and where they come from.

    Args:
        name: a name of `torchvision.models.get_model`.
        weights: `default` (torchvision's own, downloaded to its cache on first use), `random:SEED`, or the path of a
            state dict of exactly this model.
        untrained: further arguments of the model, used unless its weights are the published ones.

    Returns:
        The model in evaluation mode, and `{"weights": a name, "weights_sha256": digest of the file or parameters}`.

    Raises:
        DataError: the published weights cannot be downloaded, or the file does not exist or does not fit (the message
            lists all keys that differ).
    """
    seed = random_seed(weights)
    if weights == "default":
        published = torchvision.models.get_model_weights(name).DEFAULT
        try:
            model = torchvision.models.get_model(name, weights=published)
        except OSError as error:  # urllib's errors are OSErrors
            remedy = "download that file on another machine and give its path as the weights"
            raise DataError(
                f"the weights {published} could not be downloaded from {published.url} ({error}); {remedy}"
            ) from error
        origin = {"weights": str(published), "weights_sha256": digest_of_parameters(model)}
    elif seed is not None:
        with seeded(seed):
            model = torchvision.models.get_model(name, weights=None, **untrained)
        origin = {"weights": weights, "weights_sha256": digest_of_parameters(model)}
    else:
        model = torchvision.models.get_model(name, weights=None, **untrained)
        fill_from_file(model, name, Path(weights))
        origin = {"weights": Path(weights).name, "weights_sha256": sha256_of(weights)}
    return model.eval(), origin


def random_seed(weights: str) -> int | None:
    """Return SEED of weights `random:SEED`, None for other weights; a DataError if it is not a whole number."""
    if not weights.startswith("random:"):
        return None
    seed = weights.removeprefix("random:")
    if not seed.isdecimal():
        raise DataError(f"weights {weights!r}: write random:SEED with a whole number, such as random:0")
    return int(seed)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Draw torch's random numbers on the CPU from this seed; afterwards, restore the generator."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` also seeds GPUs, which takes milliseconds
        yield


def fill_from_file(model: nn.Module, backbone: str, path: Path) -> None:
    """Load the state dict in `path` into `model`; a DataError unless it fits exactly."""
    state = read_tensors(path, "a file of weights", "weights are `default`, `random:SEED` or a path")
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        found = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise DataError(f"{path}: expected a state dict of {backbone} (names to tensors), found: {found[:500]}")
    # Files from before torch 0.4.1 lack the batch counters, which evaluation never reads.
    wanted = {key: value.shape for key, value in model.state_dict().items()}
    optional = [key for key in wanted if key.endswith("num_batches_tracked")]
    refuse_misfit(f"{path} does not fit {backbone}", state, wanted, optional)
    model.load_state_dict(state, strict=False)


def refuse_misfit(
    problem: str, found: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]], optional: Sequence[str] = ()
) -> None:
    """Raise a DataError that lists the names that are missing (unless optional), left over, or of another shape."""
    missing = [name for name in wanted if name not in found and name not in optional]
    left_over = [name for name in found if name not in wanted]
    misshapen = [
        f"{name} {tuple(found[name].shape)}, expected {tuple(shape)}"
        for name, shape in wanted.items()
        if name in found and tuple(found[name].shape) != tuple(shape)
    ]
    if missing or left_over or misshapen:
        lists = f"missing {listed(missing)}; left over {listed(left_over)}; of another shape {listed(misshapen)}"
        raise DataError(f"{problem}: {lists}")


def listed(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def digest_of_parameters(model: nn.Module) -> str:
    """Return the SHA-256 of the names and values of a model's state dict."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Backbone:
    """A frozen classifier, from image to the output of one layer; it always runs in evaluation mode.

    Attributes:
        prepare: turns a PIL image into (S, S, 3) uint8; runs in the workers.
        layer: name of the layer, chosen or found.
        shape: shape of its output for one image, (C, H, W) for a map and (C,) for a vector.
        settings: everything that decides the output; fit for JSON.
    """

    def __init__(
        self, backbone: str, weights: str, layer: str | None, *, input_size: int, resize: Literal["squash", "crop"],
        normalize: Normalize, same_padding: bool, precision: Precision, device: str,
    ) -> None:
        """Load the classifier and cut it at the layer.

        Args:
            layer: a node of `torchvision.models.feature_extraction.get_graph_node_names`, or a part of the model that
                holds nodes (`layer3`, `features.14`); None = the last spatial map.
            device: a torch device.
            backbone, weights, input_size, resize, normalize, same_padding, precision: see `load_classifier`,
                `SquarePixels`, `normalize_pixels`, `use_same_padding` and `autocast`.
        """
        self.prepare = SquarePixels(input_size, resize)
        self.normalize: Normalize = normalize
        self.precision: Precision = precision
        self.device = torch.device(device)
        classifier, origin = load_classifier(backbone, weights)
        if same_padding:
            use_same_padding(classifier)
        self.layer = layer or last_map(classifier, backbone, input_size)
        self.model = cut_at(classifier, backbone, self.layer).to(self.device)
        blank = np.zeros((input_size, input_size, 3), dtype=np.uint8)
        self.shape = tuple(self([blank]).shape[1:])
        self.settings = {
            "backbone": backbone, **origin, "layer": self.layer, "input_size": input_size, "resize": resize,
            "normalize": normalize, "same_padding": same_padding, "precision": precision,
        }

    def __call__(self, pixels: list[np.ndarray]) -> Tensor:
        """Return the layer's output for B squares of (S, S, 3) uint8: (B, C, H, W) or (B, C) float32 on the device.

        The tokens of a transformer are returned as a map too, without the class token.
        """
        self.model.eval()  # on every call: batch norm left in train mode would silently drift with every batch
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(pixels)).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            with autocast(self.device, self.precision):
                output = self.model(normalize_pixels(batch, self.normalize))["out"].float()
            if is_token_shape(output.shape):
                side = math.isqrt(output.shape[1] - 1)
                output = output[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        if output.dim() not in (2, 4):
            raise DataError(f"layer {self.layer}: its output {tuple(output.shape)} is neither a map nor a vector; "
                            "choose another layer")
        return output


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Return the context of mixed precision for a forward pass; for float32 it does nothing."""
    wanted = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=wanted, enabled=precision != "float32")


def is_token_shape(shape: tuple[int, ...]) -> bool:
    """Return whether this is (B, 1 + n * n, C): a vision transformer's class token and square of patches."""
    return len(shape) == 3 and shape[1] > 2 and math.isqrt(shape[1] - 1) ** 2 == shape[1] - 1


def cut_at(classifier: nn.Module, backbone: str, layer: str) -> nn.Module:
    """Return the classifier up to a layer, as a module that returns `{"out": output}`."""
    try:
        return create_feature_extractor(classifier, {layer: "out"}, **TRACING)
    except ValueError as error:
        names = get_graph_node_names(classifier, **TRACING)[1]
        near = ", ".join(difflib.get_close_matches(layer, names, n=5, cutoff=0.3) or names)
        raise DataError(f"{backbone} has no layer {layer!r}; the nearest are {near}") from error


def last_map(classifier: nn.Module, backbone: str, input_size: int) -> str:
    """Return the name of the last layer whose output has more than one place, not counting pooling to a fixed size."""
    names = get_graph_node_names(classifier, **TRACING)[1]
    every_layer = create_feature_extractor(classifier, names, **TRACING).eval()
    with torch.inference_mode():
        try:
            outputs = every_layer(torch.zeros(1, 3, input_size, input_size))
        except (RuntimeError, AssertionError) as error:
            raise DataError(f"{backbone} cannot take images of {input_size}x{input_size} pixels: {error}") from error
    pooled = {name for name, module in classifier.named_modules() if isinstance(module, nn.AdaptiveAvgPool2d)}
    for name in reversed(names):
        shape = getattr(outputs.get(name), "shape", ())
        if name not in pooled and (is_token_shape(shape) or (len(shape) == 4 and min(shape[2:]) > 1)):
            return name
    raise DataError(f"{backbone} makes no map from images of {input_size}x{input_size} pixels; choose a layer or a "
                    "larger input size")


def pick_device(name: str) -> str:
    """Return `cuda` for `auto` if there is a GPU, else `cpu`; any other name unchanged.

    Raises:
        DataError: a CUDA device is asked for and there is none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DataError(f"device {name}: torch finds no GPU on this machine; use the device cpu")
    return name
