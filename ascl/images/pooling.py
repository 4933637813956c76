"""Backbones of descriptors: a torchvision or timm network up to its last map, pooled to one vector."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ascl.core.errors import DataError
from ascl.core.hashing import sha256_of
from ascl.core.hub import one_try_at_the_hub
from ascl.core.reading import reason
from ascl.core.tensors import at_least_float32, check_positive
from ascl.images import backbones
from ascl.images.backbones import Normalize
from ascl.images.weights import TIMM

TRACED_SIZE = 224  # side in pixels of the image with which the last map is found; other sizes work as well
Pool = Literal["gem", "class+gem"]
_LAST_MAPS: dict[str, str] = {}  # backbone -> layer, cached because tracing is slow and a run builds several backbones


def gem_pool(maps: Tensor, *, p: float = 3.0, floor: float = 1e-6) -> Tensor:
    """Return the generalized mean over places: mean(max(x, floor)^p)^(1/p).

    Source: Radenovic et al. 2018; p = 3 and the floor are RDCD's and ASL's.

    Args:
        maps: (B, C, H, W). Half precision is raised to float32.
        p: exponent, > 0; 1 gives the mean, infinity would give the maximum.
        floor: smaller values count as this, > 0, so that roots and gradients stay finite.

    Returns:
        (B, C) >= floor.

    Raises:
        ValueError: the maps have another shape, or p or floor is not positive.
    """
    if maps.dim() != 4 or 0 in maps.shape:
        raise ValueError(f"maps must be (B, C, H, W), got {tuple(maps.shape)}")
    check_positive(p=p, floor=floor)
    with torch.autocast(maps.device.type, enabled=False):
        return at_least_float32(maps).clamp_min(floor).pow(p).mean(dim=(2, 3)).pow(1 / p)


class PooledBackbone(nn.Module):
    """A backbone that turns pixels into one vector, by GeM over its last map.

    Attributes:
        dim: dimension of the vector.
        origin: `{"weights": name, "weights_sha256": digest}` of its first weights.
    """

    def __init__(
        self, backbone: str, weights: str, *, same_padding: bool = False, normalize: Normalize = "imagenet",
        last_stride: int = 2, pool: Pool = "gem",
    ) -> None:
        """Build the backbone up to its last map.

        Args:
            backbone: name of a torchvision classifier, or `timm:NAME`.
            weights: `default` (the publisher's), `random:SEED`, or the path of a state dict.
            same_padding: pad stride-2 convolutions as TensorFlow does (torchvision backbones).
            normalize: pixel scaling with which the weights were trained; see `normalize_pixels`.
            last_stride: 1 keeps the last stage of a ResNet at the resolution of the one before (ASL); 2 as published.
            pool: "class+gem" puts the class token of a vision transformer before the GeM of its patches (DINO).

        Raises:
            DataError: the backbone is unknown (the message gives the nearest names), or weights or options do not fit.
        """
        super().__init__()
        self.normalize: Normalize = normalize
        self.pool: Pool = pool
        self.network: Any
        self.is_timm = backbone.startswith(TIMM)
        if last_stride not in (1, 2):
            raise DataError(f"last stride {last_stride}: use 2, or 1 for a ResNet")
        if self.is_timm:
            if same_padding or last_stride == 1:
                raise DataError(f"{backbone}: same padding and last stride 1 are only for torchvision's backbones")
            self.network, self.origin = _timm_network(backbone.removeprefix(TIMM), weights)
        else:
            classifier, self.origin = backbones.load_classifier(backbone, weights)
            if same_padding:
                backbones.use_same_padding(classifier)
            if last_stride == 1:
                _undo_last_stride(classifier, backbone)
            if backbone not in _LAST_MAPS:
                _LAST_MAPS[backbone] = backbones.last_map(classifier, backbone, TRACED_SIZE)
            self.network = backbones.cut_at(classifier, backbone, _LAST_MAPS[backbone])
        was_training = self.network.training
        with torch.no_grad():
            self.dim = self.eval()(torch.zeros(1, 3, TRACED_SIZE, TRACED_SIZE)).shape[1]
        self.train(was_training)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return (B, dim) vectors, at least float32 and not L2-normalized, of (B, 3, H, W) pixels of 0..255.

        If the backbone's last layer is a vector or has a single place, pooling changes nothing.
        """
        images = backbones.normalize_pixels(pixels, self.normalize)
        output = self.network.forward_features(images) if self.is_timm else self.network(images)["out"]
        if output.dim() == 4:
            if self.pool != "gem":
                raise DataError("pool class+gem: this backbone has no class token; use gem")
            if self.is_timm and output.shape[1] != self.network.num_features == output.shape[3]:
                output = output.permute(0, 3, 1, 2)  # some of timm's transformers are channels-last
            return gem_pool(output)
        if output.dim() != 3:
            raise DataError(f"the backbone's last layer is {tuple(output.shape)}, neither a map nor tokens")
        prefix = self.network.num_prefix_tokens if self.is_timm else 1
        patches = gem_pool(output[:, prefix:].transpose(1, 2).unsqueeze(3))
        return patches if self.pool == "gem" else torch.cat([output[:, 0].to(patches.dtype), patches], dim=1)


def _undo_last_stride(classifier: nn.Module, backbone: str) -> None:
    """Set stride 1 in the first block of a ResNet's last stage."""
    stage = getattr(classifier, "layer4", nn.Identity())
    strided = [conv for conv in stage.modules() if isinstance(conv, nn.Conv2d) and conv.stride == (2, 2)]
    if not strided:
        raise DataError(f"last stride 1 is only for ResNets, and {backbone} is not one: use 2")
    for conv in strided:
        conv.stride = (1, 1)


def _timm_network(name: str, weights: str) -> tuple[Any, dict[str, str]]:
    try:
        import timm
    except ImportError as error:
        raise DataError(f"backbone {TIMM}{name} needs timm: pip install 'ascl[copy]', or pip install timm") from error
    backbones.refuse_unknown("timm", name.split(".")[0], timm.list_models())
    network: Any
    seed, published = backbones.random_seed(weights), weights == "default"
    try:
        with backbones.seeded(seed or 0), one_try_at_the_hub(published):
            network = timm.create_model(name, pretrained=published)
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise DataError(f"{TIMM}{name} could not be made with weights {weights!r} ({reason(error)}); give the path of "
                        "a weights file, fetched elsewhere") from error
    from_file = not published and seed is None
    if from_file:
        backbones.fill_from_file(network, name, Path(weights))
    network.reset_classifier(0, "")
    if from_file:
        return network, {"weights": Path(weights).name, "weights_sha256": sha256_of(weights)}
    source = f"{TIMM}{name} (pretrained)" if published else weights
    return network, {"weights": source, "weights_sha256": backbones.digest_of_parameters(network)}
