"""One vector for the whole image: the average of the backbone's last map (2048-d for a ResNet-152)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ascl.images.backbones import Backbone, Normalize, Precision


class GlobalBackend:
    """A `Backend` that makes one vector per image."""

    names: dict[str, list[str]] = {}

    def __init__(
        self, backbone: str = "resnet152", weights: str = "default", layer: str | None = None, *, input_size: int = 224,
        resize: Literal["squash", "crop"] = "crop", normalize: Normalize = "imagenet", same_padding: bool = False,
        precision: Precision = "float32", device: str = "cpu",
    ) -> None:
        """Load the backbone; arguments as for `GridBackend`, errors as for `Backbone`. `layer` may give a vector."""
        self.backbone = Backbone(
            backbone, weights, layer, input_size=input_size, resize=resize, normalize=normalize,
            same_padding=same_padding, precision=precision, device=device,
        )
        self.dim, self.prepare = self.backbone.shape[0], self.backbone.prepare
        self.settings = {"backend": "global", **self.backbone.settings}

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return `globals` (B, C) float32 for B arrays from `prepare`; `sizes` is not used."""
        output = self.backbone(pixels)
        return {"globals": (output.mean(dim=(2, 3)) if output.dim() == 4 else output).cpu().numpy()}
