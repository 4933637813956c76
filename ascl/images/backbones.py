"""Any torchvision classifier, with weights from its publisher, a file or a seed, cut at the wanted layer."""

from __future__ import annotations

import difflib
import hashlib
import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

from ascl.core.errors import DataError
from ascl.images.read import SquarePixels

Normalize = Literal["imagenet", "half", "none"]
Precision = Literal["float32", "bfloat16", "float16"]
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def normalize_pixels(pixels: Tensor, normalize: Normalize) -> Tensor:
    """(B, S, S, 3) uint8 -> (B, 3, S, S) float32: `imagenet` mean and std, `half` = [-1, 1], `none` = [0, 1]."""
    pixels = pixels.permute(0, 3, 1, 2).float()
    if normalize == "half":
        return (pixels - 127.5) / 127.5
    if normalize == "none":
        return pixels / 255
    mean, std = (torch.tensor(v, device=pixels.device).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels / 255 - mean) / std


class SamePadConv2d(nn.Conv2d):
    """A convolution padded as TensorFlow's "SAME": just enough, the odd pixel to the right and the bottom.

    A 3x3 convolution of stride 2 over an even side then pads right and bottom only, where torch pads all four sides;
    weights trained one way see every map shifted by half a pixel the other way.
    """

    def forward(self, input: Tensor) -> Tensor:
        (top, bottom), (left, right) = (
            same_padding(side, kernel, stride, dilation)
            for side, kernel, stride, dilation in zip(
                input.shape[-2:], self.kernel_size, self.stride, self.dilation, strict=True
            )
        )
        padded = F.pad(input, (left, right, top, bottom))
        return F.conv2d(padded, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


def same_padding(side: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """Pixels that TensorFlow's "SAME" adds before and after one side, so that ceil(side / stride) outputs come out."""
    needed = (math.ceil(side / stride) - 1) * stride + (kernel - 1) * dilation + 1 - side
    total = max(needed, 0)
    return total // 2, total - total // 2


def use_same_padding(model: nn.Module) -> None:
    """Turn, in place, every padded convolution of stride > 1 into a `SamePadConv2d` of the same parameters."""
    for module in model.modules():
        if type(module) is nn.Conv2d and max(module.stride) > 1 and module.padding != (0, 0):
            module.__class__ = SamePadConv2d


# How torchvision is to trace a model. The warning is about train mode, which is never used here.
TRACING = {"tracer_kwargs": {"leaf_modules": [SamePadConv2d]}, "suppress_diff_warning": True}


def load_classifier(backbone: str, weights: str) -> tuple[nn.Module, dict[str, str]]:
    """A torchvision classifier by name, and where its weights come from.

    Args:
        backbone: a name of `torchvision.models.list_models(module=torchvision.models)`, such as `resnet152`.
        weights: `default` (torchvision's own, downloaded to its cache at the first use), `random:SEED`, or a path to a
            state dict of exactly this model.

    Returns:
        The model in evaluation mode, and `{"weights": a name, "weights_sha256": digest}`; the digest is the file's for
        a path and the parameters' otherwise.

    Raises:
        DataError: no such backbone (the nearest name is given), no such file, or a file that does not fit (every
            missing and left-over key is listed).
    """
    known = torchvision.models.list_models(module=torchvision.models)
    if backbone not in known:
        near = difflib.get_close_matches(backbone, known, n=3, cutoff=0.4)
        raise DataError(f"torchvision has no backbone {backbone!r}; the nearest are {', '.join(near) or 'none'}")
    if weights == "default":
        model, name = published_classifier(backbone)
        digest = digest_of_parameters(model)
    elif weights.startswith("random:"):
        model, name = random_classifier(backbone, weights), weights
        digest = digest_of_parameters(model)
    else:
        model, name = torchvision.models.get_model(backbone, weights=None, **quick_init(backbone)), Path(weights).name
        fill_from_file(model, backbone, Path(weights))
        digest = digest_of_file(Path(weights))
    return model.eval(), {"weights": name, "weights_sha256": digest}


def published_classifier(backbone: str) -> tuple[nn.Module, str]:
    weights = torchvision.models.get_model_weights(backbone).DEFAULT
    try:
        return torchvision.models.get_model(backbone, weights=weights), str(weights)
    except OSError as error:  # urllib's errors are OSErrors
        raise DataError(
            f"the weights {weights} could not be downloaded from {weights.url} ({error}); "
            "fetch that file elsewhere and give its path as the weights"
        ) from error


def random_classifier(backbone: str, weights: str) -> nn.Module:
    seed = weights.removeprefix("random:")
    if not seed.isdecimal():
        raise DataError(f"weights {weights!r}: write random:SEED with a whole number, such as random:0")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers stay as they were
        torch.manual_seed(int(seed))
        return torchvision.models.get_model(backbone, weights=None, **quick_init(backbone, wanted=True))


def quick_init(backbone: str, wanted: bool = False) -> dict[str, bool]:
    """The two Inceptions take most of a minute to draw weights that a file overwrites, and warn unless told."""
    return {"init_weights": wanted} if backbone in ("googlenet", "inception_v3") else {}


def fill_from_file(model: nn.Module, backbone: str, path: Path) -> None:
    """Load the state dict in `path` into `model`; anything but an exact fit is a DataError."""
    if not path.is_file():
        raise DataError(f"{path}: no such file of weights (weights are `default`, `random:SEED` or a path)")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError) as error:
        raise DataError(f"{path}: not a whole file of weights that torch.load can read: {error}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        found = ", ".join(map(str, state)) if isinstance(state, Mapping) else type(state).__name__
        raise DataError(f"{path}: wanted a state dict of {backbone} (names to tensors), found: {found[:500]}")
    wanted = model.state_dict()
    # Files from before torch 0.4.1 lack these counters, which evaluation never reads.
    missing = [key for key in wanted if key not in state and not key.endswith("num_batches_tracked")]
    left_over = [key for key in state if key not in wanted]
    misshapen = [
        f"{key} {tuple(state[key].shape)} where {tuple(wanted[key].shape)} is wanted"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    if missing or left_over or misshapen:
        raise DataError(
            f"{path} does not fit {backbone}: missing {listed(missing)}; left over {listed(left_over)}; "
            f"of another shape {listed(misshapen)}"
        )
    model.load_state_dict(state, strict=False)


def listed(names: list[str]) -> str:
    return f"{len(names)} ({', '.join(names)})" if names else "none"


def digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()  # hashlib.file_digest came with Python 3.11
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def digest_of_parameters(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.contiguous().numpy().tobytes())
    return digest.hexdigest()


class Backbone:
    """A frozen classifier, from image to one layer's output. Always in evaluation mode, whatever was done to it.

    Attributes:
        prepare: PIL image -> (S, S, 3) uint8; runs in the workers.
        layer: the name of the layer, chosen or found.
        shape: of the layer's output for one image: (C, H, W) of a map, (C,) of a vector.
        settings: all that decides the numbers, fit for JSON.
    """

    def __init__(
        self,
        backbone: str,
        weights: str,
        layer: str | None,
        *,
        input_size: int,
        resize: Literal["squash", "crop"],
        normalize: Normalize,
        same_padding: bool,
        precision: Precision,
        device: str,
    ) -> None:
        """`layer` is a node of `torchvision.models.feature_extraction.get_graph_node_names`, or a part of the model
        that holds nodes (`layer3`, `features.14`); None = the last spatial map. Other arguments: `load_classifier`,
        `SquarePixels`, `normalize_pixels`, `use_same_padding`, `autocast`; `device` is a torch device.
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
            "backbone": backbone,
            **origin,
            "layer": self.layer,
            "input_size": input_size,
            "resize": resize,
            "normalize": normalize,
            "same_padding": same_padding,
            "precision": precision,
        }

    def __call__(self, pixels: list[np.ndarray]) -> Tensor:
        """B squares of (S, S, 3) uint8 -> (B, C, H, W) or (B, C) float32 on the device.

        A transformer's tokens come as a map too, without the class token.
        """
        self.model.eval()  # here and not once: batch norm left training would drift with every batch, unseen
        with torch.inference_mode():
            batch = torch.from_numpy(np.stack(pixels)).to(self.device, non_blocking=True)
            with autocast(self.device, self.precision):
                output = self.model(normalize_pixels(batch, self.normalize))["out"].float()
            if is_token_shape(output.shape):
                side = math.isqrt(output.shape[1] - 1)
                output = output[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        if output.dim() not in (2, 4):
            raise DataError(f"layer {self.layer}: its output {tuple(output.shape)} is neither a map nor a vector")
        return output


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """Mixed precision of a forward pass; none for float32."""
    wanted = torch.float16 if precision == "float16" else torch.bfloat16
    return torch.autocast(device.type, dtype=wanted, enabled=precision != "float32")


def is_map(shape: tuple[int, ...]) -> bool:
    """(B, C, H, W) with something to pool."""
    return len(shape) == 4 and min(shape[2:]) > 1


def is_token_shape(shape: tuple[int, ...]) -> bool:
    """(B, 1 + n * n, C): a class token and a square of patches, as vision transformers hand them on."""
    return len(shape) == 3 and shape[1] > 2 and math.isqrt(shape[1] - 1) ** 2 == shape[1] - 1


def cut_at(classifier: nn.Module, backbone: str, layer: str) -> nn.Module:
    """The classifier up to a layer, as a module that returns `{"out": output}`."""
    try:
        return create_feature_extractor(classifier, {layer: "out"}, **TRACING)
    except ValueError as error:
        names = get_graph_node_names(classifier, **TRACING)[1]
        near = ", ".join(difflib.get_close_matches(layer, names, n=5, cutoff=0.3) or names)
        raise DataError(f"{backbone} has no layer {layer!r}; the nearest are {near}") from error


def last_map(classifier: nn.Module, backbone: str, input_size: int) -> str:
    """Name of the last layer whose output still has more than one place, pooling to a fixed size apart."""
    names = get_graph_node_names(classifier, **TRACING)[1]
    every_layer = create_feature_extractor(classifier, names, **TRACING).eval()
    with torch.inference_mode():
        try:
            outputs = every_layer(torch.zeros(1, 3, input_size, input_size))
        except (RuntimeError, AssertionError) as error:
            raise DataError(f"{backbone} takes no images of {input_size}x{input_size} pixels: {error}") from error
    pooled = {name for name, module in classifier.named_modules() if isinstance(module, nn.AdaptiveAvgPool2d)}
    for name in reversed(names):
        output = outputs.get(name)
        if isinstance(output, Tensor) and name not in pooled and (is_map(output.shape) or is_token_shape(output.shape)):
            return name
    raise DataError(f"{backbone} makes no map of {input_size}x{input_size} images; name a layer or enlarge them")


def pick_device(name: str) -> str:
    """`auto` -> `cuda` where there is one, else `cpu`; any other name as it is."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DataError(f"device {name}: torch sees no such device here; use --device cpu")
    return name
