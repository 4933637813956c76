"""Features of a Hugging Face vision transformer: its patch tokens pooled to a grid as regions, and its pooled vector.

Any encoder that makes one token of each square or rectangular patch will do: CLIP, SigLIP (and SigLIP2 of a fixed
resolution), DINOv2 with and without registers, DINOv3 ViT, ViT, DeiT, BEiT and their like. Of a model with two towers
only the vision tower is loaded.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ascl.core.errors import DataError
from ascl.features.grid import grid_regions
from ascl.images.backbones import Precision, autocast, digest_of_parameters, listed

Resize = Literal["processor", "squash"]
SUPPORTED = (
    "supported are encoders with one token a patch: CLIP, SigLIP, SigLIP2 of a fixed resolution, DINOv2 (with "
    "registers or without), DINOv3 ViT, ViT, DeiT, BEiT"
)
# How transformers' vision models call the parameters of the tokens that come before those of the patches.
CLASS_TOKENS = {"cls_token", "class_embedding"}
PREFIX_TOKENS = {*CLASS_TOKENS, "register_tokens", "distillation_token"}
PROCESSOR_TOLERANCE = 3.0  # grey levels of 255; see `refuse_other_preprocessing`


@dataclass(frozen=True)
class ProcessorPixels:
    """Scales and crops an image as a checkpoint's own image processor does; cheap to send to a worker process.

    The whole image is scaled to `scaled` before its center is cut out: (height, width), or the short side's length.
    """

    height: int  # of the output, in pixels
    width: int
    scaled: tuple[int, int] | int
    resample: int  # Pillow's number of the filter

    def view(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of a (width, height) image that is shown: x1, y1, x2, y2 in pixels of that image."""
        if isinstance(self.scaled, int):
            # The processors round the long side down.
            rows, columns = (self.scaled * side // min(width, height) for side in (height, width))
        else:
            rows, columns = self.scaled
        top, left = (rows - self.height) // 2, (columns - self.width) // 2
        x, y = width / columns, height / rows
        return (left * x, top * y, (left + self.width) * x, (top + self.height) * y)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """RGB image -> (height, width, 3) uint8.

        The part to be shown is scaled at once: scaling all of a 1x10000 strip first would take gigabytes. The filter
        sees the pixels around that part, so the result is that of scaling and then cropping.
        """
        return np.asarray(image.resize((self.width, self.height), self.resample, box=self.view(*image.size)))


@dataclass(frozen=True)
class Normalization:
    """What a processor does to the values: (pixel * scale - mean) / std, channel by channel."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, H, W) float32."""
        mean, std = (torch.tensor(values, device=pixels.device) for values in (self.mean, self.std))
        return ((pixels.float() * self.scale - mean) / std).permute(0, 3, 1, 2)


class VisionEncoder:
    """A frozen vision tower, from prepared image to tokens. Always in evaluation mode, whatever was done to it.

    Attributes:
        prepare: PIL image -> (H, W, 3) uint8; runs in the workers.
        map_size, dim, layers: (rows, columns) of patches; length of a token; number of blocks.
        prefix, class_token: number of tokens before those of the patches; whether the first is a class token.
        pooled_dim: of the trained pooled vector; None where there is none.
    """

    def __init__(self, model: str, *, resize: Resize, device: str, precision: Precision) -> None:
        """See `PatchBackend` for the arguments.

        A DataError for no such folder or hub name, an architecture without patch tokens, weights that are missing, a
        processor that does something else than scale, crop and normalize.
        """
        self.model, config, untrained_pooler = load_vision_tower(model)
        processor = load_processor(model)
        self.prepare, self.normalize = preprocessing_of(processor, model, resize)
        refuse_other_preprocessing(processor, model, self.prepare, self.normalize, resize)
        self.settings: dict[str, Any] = {
            "model": Path(model).resolve().name if Path(model).exists() else model,  # no path of this machine in files
            "model_type": config.model_type, "weights_sha256": digest_of_parameters(self.model),
            "input_size": [self.prepare.height, self.prepare.width],
            "scaled": list(scaled) if isinstance(scaled := self.prepare.scaled, tuple) else scaled,
            "resample": self.prepare.resample, "resize": resize, "rescale_factor": self.normalize.scale,
            "image_mean": list(self.normalize.mean), "image_std": list(self.normalize.std), "precision": precision,
        }
        self.precision: Precision = precision
        self.device = torch.device(device)
        self.model.to(self.device)
        # The tokens' layout is found from the parameters, and checked on the output for a blank image.
        height, width = self.prepare.height, self.prepare.width
        patch_height, patch_width = np.broadcast_to(config.patch_size, 2).tolist()
        rows, columns = self.map_size = (height // patch_height, width // patch_width)
        # A side that the patch does not divide (384 by 14) leaves a margin at the right and the bottom unseen.
        self.seen = (rows * patch_height / height, columns * patch_width / width)
        architecture = f"{model}: the architecture {config.model_type}"
        try:
            output = self([np.zeros((height, width, 3), dtype=np.uint8)], hidden_states=True)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            problem = f"does not take the {width}x{height} images that its image processor makes ({first_line(error)})"
            raise DataError(f"{architecture} {problem}; {SUPPORTED}") from error
        tokens = getattr(output, "last_hidden_state", None)
        if tokens is None or tokens.dim() != 3 or output.hidden_states is None:
            raise DataError(f"{architecture} gives no patch tokens that are known here; {SUPPORTED}")
        self.dim = tokens.shape[2]
        self.layers = len(output.hidden_states) - 1
        pooled = None if untrained_pooler else getattr(output, "pooler_output", None)
        self.pooled_dim = None if pooled is None else pooled.shape[1]
        sizes = {name.rpartition(".")[2]: parameter.numel() for name, parameter in self.model.named_parameters()}
        self.class_token = not CLASS_TOKENS.isdisjoint(sizes)
        self.prefix = sum(sizes[name] for name in PREFIX_TOKENS & sizes.keys()) // self.dim
        if tokens.shape[1] != self.prefix + rows * columns:
            raise DataError(
                f"{architecture} gives no patch tokens that are known here: {tokens.shape[1]} tokens where "
                f"{rows}x{columns} patches and {self.prefix} tokens before them are wanted; {SUPPORTED}"
            )

    def __call__(self, pixels: list[np.ndarray], *, hidden_states: bool = False) -> Any:
        """B arrays from `prepare` -> transformers' output on the device, in the precision of the network."""
        self.model.eval()  # here and not once: drop path left training would differ with every batch
        with torch.inference_mode(), autocast(self.device, self.precision):
            batch = torch.from_numpy(np.stack(pixels)).to(self.device, non_blocking=True)
            return self.model(pixel_values=self.normalize(batch), output_hidden_states=hidden_states)


class PatchBackend:
    """A `Backend`: grid * grid regions an image, the mean patch tokens of its cells, row by row from the top left."""

    names: dict[str, list[str]] = {}

    def __init__(
        self, model: str, *, grid: int = 6, layer: int = -1, resize: Resize = "processor", device: str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        """Load the vision tower and the image processor.

        Args:
            model: a folder with `config.json`, weights and `preprocessor_config.json`, or a name on the hub.
            grid: cells on a side (6 = 36 regions); at most as many as there are patches.
            layer: 0 is the embedded patches, i the plain output of block i, and that of the last block is replaced by
                the model's `last_hidden_state`: after the final layer norm where the model applies one to its tokens
                (ViT, DeiT, DINOv2, DINOv3, SigLIP), before it where that norm is the pooled vector's alone (CLIP; BEiT
                with mean pooling). Negative numbers count from the end: -1 the last, -2 the last block but one.
            resize: `processor` does what the checkpoint's processor does, a crop of the center included: what is
                outside is in no region. `squash` scales the whole image: nothing is lost but the aspect ratio.
            precision: of the network (autocast); the features are float32. device: a torch device.

        Raises:
            DataError: see `VisionEncoder`; a grid or a layer that the model has not.
        """
        self.encoder = VisionEncoder(model, resize=resize, device=device, precision=precision)
        rows, columns = self.encoder.map_size
        if not 1 <= grid <= min(rows, columns):
            raise DataError(f"{model} has {rows}x{columns} patches: a grid of {grid}x{grid} regions does not fit")
        layers = self.encoder.layers
        if not -layers - 1 <= layer <= layers:
            raise DataError(f"{model} has {layers} blocks: layer {layer} is not one of {-layers - 1} to {layers}")
        self.grid, self.layer, self.dim, self.prepare = grid, layer, self.encoder.dim, self.encoder.prepare
        self.last = layer in (-1, layers)
        self.settings = {"backend": "patches", **self.encoder.settings, "grid": grid, "layer": layer}

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return `regions`, each the mean over its cell's patch tokens, and `boxes`; see `Backend.extract`.

        A box covers exactly the patches averaged; where the grid does not divide them (16x16 to 6x6), cells overlap.
        """
        encoder = self.encoder
        output = encoder(pixels, hidden_states=not self.last)
        # The library's versions differ in whether the last of `hidden_states` has passed the norm: it is never read.
        tokens = output.last_hidden_state if self.last else output.hidden_states[self.layer]
        patches = tokens[:, encoder.prefix :].float().transpose(1, 2).unflatten(2, encoder.map_size)  # (B, D, h, w)
        return grid_regions(patches, self.grid, self.prepare.view, sizes, encoder.seen)


class PatchGlobalBackend:
    """A `Backend`: one vector an image, of the same encoders as `PatchBackend`.

    It is the checkpoint's `pooler_output` where it has a trained one: of CLIP the class token after `post_layernorm`,
    before the projection to the space that it shares with texts; of SigLIP the attention pooling; of DINOv2 and DINOv3
    the class token after the final norm. Otherwise (a ViT whose file has no pooler) the class token of
    `last_hidden_state`, and where there is none (I-JEPA) the mean of the patch tokens. `settings` say which.
    """

    names: dict[str, list[str]] = {}

    def __init__(
        self, model: str, *, resize: Resize = "processor", device: str = "cpu", precision: Precision = "float32"
    ) -> None:
        """Load the vision tower and the image processor; arguments as of `PatchBackend`, errors of `VisionEncoder`."""
        self.encoder = VisionEncoder(model, resize=resize, device=device, precision=precision)
        self.prepare = self.encoder.prepare
        self.pooling = "class_token" if self.encoder.class_token else "mean_patch"
        if self.encoder.pooled_dim is not None:
            self.pooling = "pooler_output"
        self.dim = self.encoder.pooled_dim or self.encoder.dim
        self.settings = {"backend": "patch_global", **self.encoder.settings, "pooling": self.pooling}

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return `globals` (B, G) float32 of B arrays from `prepare`; `sizes` does not matter here."""
        output = self.encoder(pixels)
        if self.pooling == "pooler_output":
            vectors = output.pooler_output
        elif self.pooling == "class_token":
            vectors = output.last_hidden_state[:, 0]
        else:
            vectors = output.last_hidden_state[:, self.encoder.prefix :].float().mean(dim=1)
        return {"globals": vectors.float().cpu().numpy()}


def load_vision_tower(model: str) -> tuple[nn.Module, Any, bool]:
    """Load the vision tower in float32, its configuration, and whether the file lacks its pooler (untrained then)."""
    from transformers import AutoConfig, AutoModel  # seconds to import, and not needed by the other backends
    from transformers.utils import logging

    like_a_path = model.startswith((".", "~", os.sep)) or model.count("/") > 1
    if like_a_path and not Path(model).is_dir():
        raise DataError(f"{model}: no such folder with a model (give one, or a name on the hub such as OWNER/NAME)")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # the library would report each weight of the text tower as unexpected
    try:
        config = AutoConfig.from_pretrained(model)
        config = getattr(config, "vision_config", config)
        if getattr(config, "patch_size", None) is None:
            raise DataError(f"{model}: the architecture {config.model_type} has no patch tokens; {SUPPORTED}")
        tower, report = AutoModel.from_pretrained(model, config=config, dtype=torch.float32, output_loading_info=True)
    except DataError:
        raise
    except Exception as error:  # each of the libraries behind it has exceptions of its own
        raise DataError(cannot_load(model, "model", error)) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(report["missing_keys"])
    needed = [name for name in missing if not name.startswith("pooler.")]
    if needed:  # the library fills them with random numbers
        raise DataError(f"{model}: the file has no weights for {listed(needed)} of {config.model_type}; {SUPPORTED}")
    return tower.eval(), config, bool(missing)


def load_processor(model: str) -> Any:
    """Load the checkpoint's image processor; a DataError where it has none."""
    from transformers import AutoImageProcessor

    try:
        return AutoImageProcessor.from_pretrained(model)
    except Exception as error:  # as above
        problem = cannot_load(model, "image processor", error)
        raise DataError(f"{problem}; it is described in preprocessor_config.json beside the weights") from error


def cannot_load(model: str, what: str, error: Exception) -> str:
    where = "this folder" if Path(model).exists() else "no such folder, and the hub under this name"
    return f"{model}: no {what} could be loaded from {where} ({first_line(error)})"


def first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def preprocessing_of(processor: Any, model: str, resize: Resize) -> tuple[ProcessorPixels, Normalization]:
    """Return an image processor's geometry, for the workers, and its normalization, for the device."""
    settings = processor.to_dict()
    size = dict(settings.get("size") or {})
    crop = dict(settings.get("crop_size") or {}) if settings.get("do_center_crop") else {}
    exact = (size["height"], size["width"]) if {"height", "width"} <= size.keys() else None
    output = (crop["height"], crop["width"]) if crop else exact
    scaled = exact or (size.get("shortest_edge") if size.keys() == {"shortest_edge"} else None)
    resized, padded = settings.get("do_resize"), settings.get("do_pad")
    described = f"size {size}, crop_size {crop or None}, do_resize {resized}, do_pad {padded}"
    if resize == "squash":
        if output is None and "shortest_edge" in size:
            output = (size["shortest_edge"],) * 2
        if output is None:
            raise DataError(f"{model}: its image processor names no input size ({described}); {SUPPORTED}")
        scaled = output
    elif output is None or scaled is None or not resized or padded:
        remedy = "resize `squash` scales every image to one size"
        raise DataError(f"{model}: its image processor gives no images of one size ({described}); {remedy}")
    if np.less(scaled, output).any():  # the processor would pad with black
        raise DataError(f"{model}: its image processor cuts out more than it has scaled ({described}); try `squash`")
    mean_and_std: list[tuple[float, ...]] = [(0.0,) * 3, (1.0,) * 3]
    if settings.get("do_normalize"):
        mean_and_std = [tuple(map(float, settings[name])) for name in ("image_mean", "image_std")]
    scale = float(settings.get("rescale_factor") or 1 / 255) if settings.get("do_rescale") else 1.0
    resample = settings.get("resample")
    pixels = ProcessorPixels(*output, scaled, int(Image.Resampling.BILINEAR if resample is None else resample))
    return pixels, Normalization(scale, *mean_and_std)


def refuse_other_preprocessing(
    processor: Any, model: str, prepare: ProcessorPixels, normalize: Normalization, resize: Resize
) -> None:
    """Compare with the processor itself on a probe: flipped channels or another crop would ruin features unseen.

    Pillow and torch round differently, by a grey level or two; a crop off by one pixel changes this by more than ten.
    """
    if resize == "squash":  # the geometry differs on purpose; one color has none
        probe = Image.new("RGB", (prepare.width, prepare.height), (30, 128, 220))
    else:
        y, x = np.mgrid[0 : 2 * prepare.height + 5, 0 : 3 * prepare.width + 4]
        waves = [np.sin(x / 5), np.sin(y / 5), np.sin((x + y) / 7)]
        probe = Image.fromarray((128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8))
    ours = normalize(torch.from_numpy(prepare(probe).copy())[None])
    try:
        theirs = torch.as_tensor(processor(probe, return_tensors="pt")["pixel_values"])
    except Exception as error:  # processors of other tasks fail in ways of their own
        problem = f"its image processor takes no plain image ({first_line(error)})"
        raise DataError(f"{model}: {problem}; {SUPPORTED}") from error
    if theirs.shape != ours.shape:
        found = f"it gives {tuple(theirs.shape)} where {tuple(ours.shape)} is wanted"
    else:
        levels = torch.tensor(normalize.std).view(3, 1, 1) / normalize.scale
        difference = ((ours - theirs).abs() * levels).max().item()
        if difference <= PROCESSOR_TOLERANCE:
            return
        found = f"its pixels differ by {difference:.0f} grey levels"
    does = f"{type(processor).__name__} does more than scale, crop and normalize"
    raise DataError(f"{model}: {does} ({found}); {SUPPORTED}")
