"""Features of a Hugging Face vision transformer: its patch tokens pooled to a grid as regions, and its pooled vector.

This works with any encoder that has one token per square or rectangular patch: CLIP, SigLIP (and SigLIP2 of a fixed
resolution), DINOv2 with and without registers, DINOv3 ViT, ViT, DeiT, BEiT and similar ones. Only the vision tower of a
two-tower model is loaded.
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
from ascl.core.hub import one_try_at_the_hub
from ascl.features.grid import grid_regions
from ascl.images.backbones import Precision, autocast, digest_of_parameters, listed

Resize = Literal["processor", "squash"]
SUPPORTED = (
    "supported are encoders with one token per patch: CLIP, SigLIP, SigLIP2 of a fixed resolution, DINOv2 (with or "
    "without registers), DINOv3 ViT, ViT, DeiT, BEiT"
)
# Parameter names, in transformers' vision models, of the tokens that come before the patch tokens.
CLASS_TOKENS = {"cls_token", "class_embedding"}
PREFIX_TOKENS = {*CLASS_TOKENS, "register_tokens", "distillation_token"}
PROCESSOR_TOLERANCE = 3.0  # gray levels of 255; see `refuse_other_preprocessing`


@dataclass(frozen=True)
class ProcessorPixels:
    """The scaling and cropping of a checkpoint's own image processor; cheap to send to a worker process.

    `scaled` is the size of the whole image before its center is cut out: (height, width), or the length of the short
    side.
    """

    height: int  # of the output, in pixels
    width: int
    scaled: tuple[int, int] | int
    resample: int  # Pillow's number for the filter

    def view(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of a (width, height) image that is kept: x1, y1, x2, y2 in pixels of that image."""
        if isinstance(self.scaled, int):
            # The processors round the long side down.
            rows, columns = (self.scaled * side // min(width, height) for side in (height, width))
        else:
            rows, columns = self.scaled
        top, left = (rows - self.height) // 2, (columns - self.width) // 2
        x, y = width / columns, height / rows
        return (left * x, top * y, (left + self.width) * x, (top + self.height) * y)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return an RGB image as (height, width, 3) uint8.

        Only the part that is kept is scaled: scaling all of a 1x10000 strip first would take gigabytes. The filter
        reads the pixels around that part, so the result is that of scaling first and then cropping.
        """
        return np.asarray(image.resize((self.width, self.height), self.resample, box=self.view(*image.size)))


@dataclass(frozen=True)
class Normalization:
    """The arithmetic of an image processor: (pixel * scale - mean) / std, channel by channel."""

    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, pixels: Tensor) -> Tensor:
        """Return (B, H, W, 3) uint8 pixels as (B, 3, H, W) float32."""
        mean, std = (torch.tensor(values, device=pixels.device) for values in (self.mean, self.std))
        return ((pixels.float() * self.scale - mean) / std).permute(0, 3, 1, 2)


class VisionEncoder:
    """A frozen vision tower, from prepared images to tokens, always in evaluation mode.

    Attributes:
        prepare: PIL image -> (H, W, 3) uint8; runs in the workers.
        map_size, dim, layers: (rows, columns) of patches; length of a token; number of blocks.
        prefix, class_token: number of tokens before the patch tokens; whether the first is a class token.
        pooled_dim: length of the pooled vector; None without a trained pooler.
    """

    def __init__(self, model: str, *, resize: Resize, device: str, precision: Precision) -> None:
        """Load the vision tower and its image processor; arguments as for `PatchBackend`.

        Raises:
            DataError: there is no such folder or hub name; the architecture has no patch tokens; weights are missing;
                the processor does more than scale, crop and normalize.
        """
        self.model, config, untrained_pooler = load_vision_tower(model)
        processor = load_processor(model)
        self.prepare, self.normalize = preprocessing_of(processor, model, resize)
        refuse_other_preprocessing(processor, model, self.prepare, self.normalize, resize)
        self.settings: dict[str, Any] = {
            "model": Path(model).resolve().name if Path(model).exists() else model,  # files hold no local paths
            "model_type": config.model_type, "weights_sha256": digest_of_parameters(self.model),
            "input_size": [self.prepare.height, self.prepare.width],
            "scaled": list(scaled) if isinstance(scaled := self.prepare.scaled, tuple) else scaled,
            "resample": self.prepare.resample, "resize": resize, "rescale_factor": self.normalize.scale,
            "image_mean": list(self.normalize.mean), "image_std": list(self.normalize.std), "precision": precision,
        }
        self.precision: Precision = precision
        self.device = torch.device(device)
        self.model.to(self.device)
        # The layout of the tokens follows from the parameters, and the output for a blank image has to confirm it.
        height, width = self.prepare.height, self.prepare.width
        patch_height, patch_width = np.broadcast_to(config.patch_size, 2).tolist()
        rows, columns = self.map_size = (height // patch_height, width // patch_width)
        # Where the patch size does not divide a side (384 by 14), the right or bottom margin is not seen.
        self.seen = (rows * patch_height / height, columns * patch_width / width)
        architecture = f"{model}: the architecture {config.model_type}"
        try:
            output = self([np.zeros((height, width, 3), dtype=np.uint8)], hidden_states=True)
        except (RuntimeError, ValueError, TypeError, AttributeError) as error:
            problem = f"does not take the {width}x{height} images that its image processor makes ({first_line(error)})"
            raise DataError(f"{architecture} {problem}; {SUPPORTED}") from error
        tokens = getattr(output, "last_hidden_state", None)
        if tokens is None or tokens.dim() != 3 or output.hidden_states is None:
            raise DataError(f"{architecture} gives no patch tokens in a known form; {SUPPORTED}")
        self.dim = tokens.shape[2]
        self.layers = len(output.hidden_states) - 1
        pooled = None if untrained_pooler else getattr(output, "pooler_output", None)
        self.pooled_dim = None if pooled is None else pooled.shape[1]
        sizes = {name.rpartition(".")[2]: parameter.numel() for name, parameter in self.model.named_parameters()}
        self.class_token = not CLASS_TOKENS.isdisjoint(sizes)
        self.prefix = sum(sizes[name] for name in PREFIX_TOKENS & sizes.keys()) // self.dim
        if tokens.shape[1] != self.prefix + rows * columns:
            raise DataError(
                f"{architecture} gives no patch tokens in a known form: it has {tokens.shape[1]} tokens instead of "
                f"{rows}x{columns} for the patches and {self.prefix} before them; {SUPPORTED}"
            )

    def __call__(self, pixels: list[np.ndarray], *, hidden_states: bool = False) -> Any:
        """Return transformers' output for B arrays from `prepare`: on the device, in the precision of the network."""
        self.model.eval()  # at every call: with drop path in training mode, the same image would vary
        with torch.inference_mode(), autocast(self.device, self.precision):
            batch = torch.from_numpy(np.stack(pixels)).to(self.device, non_blocking=True)
            return self.model(pixel_values=self.normalize(batch), output_hidden_states=hidden_states)


class PatchBackend:
    """A `Backend` that makes grid * grid regions per image, means of patch tokens, row by row from the top left."""

    names: dict[str, list[str]] = {}

    def __init__(
        self, model: str, *, grid: int = 6, layer: int = -1, resize: Resize = "processor", device: str = "cpu",
        precision: Precision = "float32",
    ) -> None:
        """Load the vision tower and the image processor.

        Args:
            model: a folder with `config.json`, weights and `preprocessor_config.json`, or a name on the hub.
            grid: cells on a side (6 = 36 regions); at most as many as there are patches.
            layer: 0 is the embedded patches, i the output of block i; negative numbers count from the end. For the last
                block the model's `last_hidden_state` is taken. It comes after the final layer norm if the model applies
                that to its tokens (ViT, DeiT, DINOv2, DINOv3, SigLIP), and before it if only the pooled vector is
                normalized (CLIP; BEiT with mean pooling).
            resize: `processor` does what the checkpoint's processor does, including its center crop: no region covers
                what is outside. `squash` scales the whole image: only the aspect ratio is lost.
            precision: of the network (autocast); the features are float32. device: a torch device.

        Raises:
            DataError: see `VisionEncoder`; a grid or a layer that the model does not have.
        """
        self.encoder = VisionEncoder(model, resize=resize, device=device, precision=precision)
        rows, columns = self.encoder.map_size
        if not 1 <= grid <= min(rows, columns):
            problem = f"a grid of {grid}x{grid} regions does not fit; choose 1 to {min(rows, columns)}"
            raise DataError(f"{model} has {rows}x{columns} patches: {problem}")
        layers = self.encoder.layers
        if not -layers - 1 <= layer <= layers:
            raise DataError(f"{model} has {layers} blocks: layer {layer} is not one of {-layers - 1} to {layers}")
        self.grid, self.layer, self.dim, self.prepare = grid, layer, self.encoder.dim, self.encoder.prepare
        self.last = layer in (-1, layers)
        self.settings = {"backend": "patches", **self.encoder.settings, "grid": grid, "layer": layer}

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return `regions`, each the mean over its cell's patch tokens, and `boxes`; see `Backend.extract`.

        A box covers exactly the patches that its cell averages. Cells overlap if the grid does not divide the patches
        (16x16 to 6x6).
        """
        encoder = self.encoder
        output = encoder(pixels, hidden_states=not self.last)
        # The last of `hidden_states` is never read: only some versions of transformers apply the final norm to it.
        tokens = output.last_hidden_state if self.last else output.hidden_states[self.layer]
        patches = tokens[:, encoder.prefix :].float().transpose(1, 2).unflatten(2, encoder.map_size)  # (B, D, h, w)
        return grid_regions(patches, self.grid, self.prepare.view, sizes, encoder.seen)


class PatchGlobalBackend:
    """A `Backend` that makes one vector per image, with the same encoders as `PatchBackend`.

    The vector is the checkpoint's `pooler_output` if its pooler was trained. For CLIP that is the class token after
    `post_layernorm`, before the projection to the space shared with texts; for SigLIP the attention pooling; for DINOv2
    and DINOv3 the class token after the final norm. Otherwise (a ViT whose file has no pooler) it is the class token of
    `last_hidden_state`, and without a class token (I-JEPA) the mean of the patch tokens. `settings` say which.
    """

    names: dict[str, list[str]] = {}

    def __init__(
        self, model: str, *, resize: Resize = "processor", device: str = "cpu", precision: Precision = "float32"
    ) -> None:
        """Load the vision tower and its image processor; arguments and errors as for `VisionEncoder`."""
        self.encoder = VisionEncoder(model, resize=resize, device=device, precision=precision)
        self.prepare = self.encoder.prepare
        self.pooling = "class_token" if self.encoder.class_token else "mean_patch"
        if self.encoder.pooled_dim is not None:
            self.pooling = "pooler_output"
        self.dim = self.encoder.pooled_dim or self.encoder.dim
        self.settings = {"backend": "patch_global", **self.encoder.settings, "pooling": self.pooling}

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return `globals` (B, G) float32 for B arrays from `prepare`; `sizes` is not used."""
        output = self.encoder(pixels)
        if self.pooling == "pooler_output":
            vectors = output.pooler_output
        elif self.pooling == "class_token":
            vectors = output.last_hidden_state[:, 0]
        else:
            vectors = output.last_hidden_state[:, self.encoder.prefix :].float().mean(dim=1)
        return {"globals": vectors.float().cpu().numpy()}


def load_vision_tower(model: str) -> tuple[nn.Module, Any, bool]:
    """Return the vision tower in float32, its configuration, and whether its pooler is untrained (not in the file)."""
    from transformers import AutoConfig, AutoModel  # seconds to import, and not needed by the other backends
    from transformers.utils import logging

    like_a_path = model.startswith((".", "~", os.sep)) or model.count("/") > 1
    if like_a_path and not Path(model).is_dir():
        raise DataError(f"{model}: no such folder with a model; give one, or a hub name such as OWNER/NAME")
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # else transformers reports each weight of the text tower as unexpected
    try:
        with one_try_at_the_hub(not Path(model).exists()):
            config = AutoConfig.from_pretrained(model, trust_remote_code=False)
            config = getattr(config, "vision_config", config)
            if getattr(config, "patch_size", None) is None:
                raise DataError(f"{model}: the architecture {config.model_type} has no patch tokens; {SUPPORTED}")
            tower, report = AutoModel.from_pretrained(model, config=config, dtype=torch.float32,
                                                      output_loading_info=True, trust_remote_code=False)
    except DataError:
        raise
    except Exception as error:  # each library behind it raises exceptions of its own
        raise DataError(cannot_load(model, "model", error)) from error
    finally:
        logging.set_verbosity(verbosity)
    missing = sorted(report["missing_keys"])
    needed = [name for name in missing if not name.startswith("pooler.")]
    if needed:  # transformers fills them with random numbers
        raise DataError(f"{model}: the file has no weights for {listed(needed)} of {config.model_type}; {SUPPORTED}")
    return tower.eval(), config, bool(missing)


def load_processor(model: str) -> Any:
    """Return the checkpoint's image processor; raise DataError if it has none."""
    from transformers import AutoImageProcessor

    try:
        with one_try_at_the_hub(not Path(model).exists()):
            return AutoImageProcessor.from_pretrained(model, trust_remote_code=False)
    except Exception as error:  # as above
        problem = cannot_load(model, "image processor", error)
        raise DataError(f"{problem}; put preprocessor_config.json beside the weights") from error


def cannot_load(model: str, what: str, error: Exception) -> str:
    if Path(model).exists():
        return f"{model}: no {what} could be loaded from this folder ({first_line(error)})"
    return f"{model}: no such folder, and no {what} could be loaded from the hub under this name ({first_line(error)})"


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
            raise DataError(f"{model}: its image processor gives no input size ({described}); {SUPPORTED}")
        scaled = output
    elif output is None or scaled is None or not resized or padded:
        problem = f"its image processor does not make all images one size ({described})"
        raise DataError(f"{model}: {problem}; use resize `squash`, which does")
    if np.less(scaled, output).any():  # the processor would pad with black
        problem = f"its image processor crops to more than it scales to ({described})"
        raise DataError(f"{model}: {problem}; use resize `squash`")
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
    """Raise DataError unless the processor itself gives the same pixels for a probe image.

    Flipped channels or another crop would spoil the features silently. Pillow and torch round differently, by one or
    two gray levels; a crop that is off by one pixel differs by more than ten.
    """
    if resize == "squash":  # the geometry differs on purpose, so the probe has a single color
        probe = Image.new("RGB", (prepare.width, prepare.height), (30, 128, 220))
    else:
        y, x = np.mgrid[0 : 2 * prepare.height + 5, 0 : 3 * prepare.width + 4]
        waves = [np.sin(x / 5), np.sin(y / 5), np.sin((x + y) / 7)]
        probe = Image.fromarray((128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8))
    ours = normalize(torch.from_numpy(prepare(probe).copy())[None])
    try:
        theirs = torch.as_tensor(processor(probe, return_tensors="pt")["pixel_values"])
    except Exception as error:  # processors of other tasks can raise anything
        problem = f"its image processor does not take a plain image ({first_line(error)})"
        raise DataError(f"{model}: {problem}; {SUPPORTED}") from error
    if theirs.shape != ours.shape:
        found = f"it gives shape {tuple(theirs.shape)} instead of {tuple(ours.shape)}"
    else:
        levels = torch.tensor(normalize.std).view(3, 1, 1) / normalize.scale
        difference = ((ours - theirs).abs() * levels).max().item()
        if difference <= PROCESSOR_TOLERANCE:
            return
        found = f"its pixels differ by {difference:.0f} gray levels"
    does = f"{type(processor).__name__} does more than scale, crop and normalize"
    raise DataError(f"{model}: {does} ({found}); {SUPPORTED}")
