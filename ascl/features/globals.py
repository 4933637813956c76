"""One vector for the whole image: the average of the backbone's last map (2048-d of a ResNet-152)."""

from __future__ import annotations

from typing import Literal

import numpy as np

from ascl.images.backbones import Backbone, Normalize, Precision


class GlobalBackend:
    """A `Backend`: one vector an image."""

    names: dict[str, list[str]] = {}

    def __init__(
        self,
        backbone: str = "resnet152",
        weights: str = "default",
        layer: str | None = None,
        *,
        input_size: int = 224,
        resize: Literal["squash", "crop"] = "crop",
        normalize: Normalize = "imagenet",
        same_padding: bool = False,
        precision: Precision = "float32",
        device: str = "cpu",
    ) -> None:
        """Load the backbone.

        Args:
            backbone: name of any torchvision classifier.
            weights: `default` (torchvision's own, downloaded at the first use), `random:SEED`, or the path of a state
                dict.
            layer: torchvision's name of a layer, or of a part of the model; None = the last spatial map.
                The vector of `flatten` is taken as it is.
            input_size: side in pixels of the square that goes in.
            resize: `squash` scales the whole image to the square; `crop` scales its short side to 256/224 of the input
                size and keeps the center.
            normalize: what the weights were trained with: `imagenet` mean and std, `half` = [-1, 1], `none` = [0, 1].
            same_padding: pad stride-2 convolutions as TensorFlow does, for weights from there.
            precision: of the network (autocast); the features are float32.
            device: a torch device.

        Raises:
            DataError: see `Backbone`.
        """
        self.backbone = Backbone(
            backbone, weights, layer, input_size=input_size, resize=resize, normalize=normalize,
            same_padding=same_padding, precision=precision, device=device,
        )
        self.dim = self.backbone.shape[0]
        self.prepare = self.backbone.prepare
        self.settings = {"backend": "global", **self.backbone.settings}

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return `globals` (B, C) float32 of B arrays from `prepare`; `sizes` does not matter here."""
        output = self.backbone(pixels)
        pooled = output.mean(dim=(2, 3)) if output.dim() == 4 else output
        return {"globals": pooled.float().cpu().numpy()}
