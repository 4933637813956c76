"""Training views of an image: the augmentation of RDCD and SSCD, and ASL's identities with several content scales.

Both can be pickled for worker processes. All random draws are seeded by the numbers of the sample. Pixels are uint8;
the model normalizes them later, on the device.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ascl.image_copy.edits.canvas import Canvas
from ascl.image_copy.edits.color import JITTERS, jittered, jpeg_compressed, quickly_blurred
from ascl.image_copy.edits.edits import Edited, edit_chain, random_chain, sample_rng
from ascl.image_copy.edits.geometry import crop_share, rotated
from ascl.image_copy.edits.overlay import with_sticker, with_text
from ascl.image_copy.training.sampler import ImageKind
from ascl.images.backbones import seeded

BLUR_SIZE = 224  # side in pixels of the square that the published blur radii refer to
WORKING_SIDES = 4  # a crop of 8 % of the area still has 1.1 times the pixels of the square
HARMLESS = ("flip", "padding", "aspect", "blur", "jpeg", "colour_jitter", "grey")  # they remove no content


class View(NamedTuple):
    """An input of the network: (3, size, size) uint8, and the share of the original's area that it shows, in [0, 1]."""

    pixels: Tensor
    content_scale: float


@dataclass(frozen=True)
class CopyAugmentation:
    """RDCD's list of random changes, in its order, each with its own probability (the defaults are the paper's).

    Flip, quarter turn, text, sticker, rotation, resized crop, color jitter, gray, blur, JPEG. `augmentation_of` gives
    the weaker lists of SSCD.

    Where the paper is silent, we read it as follows. A rotated picture keeps the largest upright rectangle without
    empty corners. The crop has torchvision's ranges. Blur radii scale with the size of the square. Images with a short
    side of more than four times `size` are first reduced by a whole factor, because finer detail is lost anyway.
    """

    size: int = 224  # side of the square in pixels, >= 1
    crop_area: tuple[float, float] = (0.08, 1.0)  # range of the share of the area, uniform
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)  # range of width over height, log-uniform
    flip: float = 0.5  # probability, as for each change
    quarter_turn: float = 0.05
    text: float = 0.1
    text_size: tuple[float, float] = (0.1, 0.3)  # in short sides of the picture, as for stickers
    text_opacity: tuple[float, float] = (0.1, 1.0)
    sticker: float = 0.2
    sticker_size: tuple[float, float] = (0.1, 0.5)
    sticker_opacity: tuple[float, float] = (0.7, 1.0)
    rotation: float = 0.05
    colour_jitter: float = 0.8
    jitter: tuple[float, float, float, float] = (0.8, 0.8, 0.8, 0.2)  # largest change of JITTERS; the hue circle is 1
    grey: float = 0.2
    blur: float = 0.5
    blur_radius: tuple[float, float] = (1.0, 5.0)  # in pixels of a square of 224
    jpeg: float = 0.2
    jpeg_quality: tuple[int, int] = (0, 100)  # both ends included

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size {self.size}: give at least one pixel")
        for name in ("flip", "quarter_turn", "text", "sticker", "rotation", "colour_jitter", "grey", "blur", "jpeg"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: a probability must be between 0 and 1")
        ends = {"crop_area": 1, "text_opacity": 1, "sticker_opacity": 1, "jpeg_quality": 100}
        for name in ("crop_area", "crop_ratio", "text_size", "text_opacity", "sticker_size", "sticker_opacity",
                     "blur_radius", "jpeg_quality"):
            (low, high), end = getattr(self, name), ends.get(name, math.inf)
            if not 0 <= low <= high <= end or (low == 0 and name.startswith("crop")):
                least = "> 0" if name.startswith("crop") else ">= 0"
                raise ValueError(f"{name} {low}, {high}: give low {least}, high >= low, and high <= {end}")
        if min(self.jitter) < 0 or self.jitter[3] > 0.5:
            raise ValueError(f"jitter {self.jitter}: must be at least 0, and hue at most 0.5")

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> View:
        """Return one view of an upright RGB image."""
        canvas = Canvas.of(reduced(image, WORKING_SIDES * self.size))
        if rng.random() < self.flip:
            canvas = canvas.flipped(horizontal=True)
        if rng.random() < self.quarter_turn:
            canvas = canvas.turned(int(rng.integers(1, 4)))
        if rng.random() < self.text:
            canvas, _ = with_text(canvas, rng.uniform(*self.text_size), rng.uniform(*self.text_opacity), rng)
        if rng.random() < self.sticker:
            canvas, _ = with_sticker(canvas, rng.uniform(*self.sticker_size), rng.uniform(*self.sticker_opacity), rng)
        if rng.random() < self.rotation:
            canvas = rotated(canvas, rng.uniform(0, 360), "inscribed", (0, 0, 0))
        canvas = canvas.resized(self.size, self.size, box=self.crop_box(canvas.image, rng))
        return View(to_tensor(self._recolored(canvas.image, rng)), canvas.content_scale)

    def views(self, image: Image.Image, *, seed: int, index: int, epoch: int = 0, count: int = 2) -> list[View]:
        """Return the views of sample `index` in an epoch: the same in every process, in any order; see `sample_rng`."""
        return [self(image, sample_rng(seed, index, epoch * count + view)) for view in range(count)]

    def crop_box(self, image: Image.Image, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """Draw torchvision's random resized crop: left, top, right, bottom in whole pixels.

        torchvision draws from torch's global generator, which is seeded from `rng` and then restored.
        """
        with seeded(int(rng.integers(2**63))):
            top, left, height, width = v2.RandomResizedCrop.get_params(image, [*self.crop_area], [*self.crop_ratio])
        return left, top, left + width, top + height

    def _recolored(self, image: Image.Image, rng: np.random.Generator) -> Image.Image:
        if rng.random() < self.colour_jitter:
            most = np.array(self.jitter)
            drawn = np.maximum(rng.uniform(-most, most) + (1, 1, 1, 0), (0, 0, 0, -1)).tolist()
            image = jittered(image, {JITTERS[i]: drawn[i] for i in rng.permutation(4)})
        if rng.random() < self.grey:
            image = image.convert("L").convert("RGB")
        if rng.random() < self.blur:
            image = quickly_blurred(image, rng.uniform(*self.blur_radius) * self.size / BLUR_SIZE)
        if rng.random() < self.jpeg:
            low, high = self.jpeg_quality
            image = jpeg_compressed(image, int(rng.integers(low, high + 1)))
        return image


Strength = Literal["simclr", "strong_blur", "advanced"]


def augmentation_of(strength: Strength, size: int = 224) -> CopyAugmentation:
    """Return one of SSCD's augmentations: SimCLR's list, the same with stronger blur, or that plus RDCD's edits.

    Raises ValueError for another name.
    """
    if strength == "advanced":
        return CopyAugmentation(size)
    if strength in ("simclr", "strong_blur"):
        radius = (0.1, 2.0) if strength == "simclr" else (1.0, 5.0)
        return CopyAugmentation(size, quarter_turn=0, text=0, sticker=0, rotation=0, jpeg=0, blur_radius=radius)
    raise ValueError(f"unknown augmentation {strength!r}; use simclr, strong_blur or advanced")


class IdentityView(NamedTuple):
    """One image of an identity: (3, size, size) uint8, the share of the photo's area shown, in [0, 1], and its kind."""

    pixels: Tensor
    content_scale: float
    kind: ImageKind


@dataclass(frozen=True)
class IdentityAugmentation:
    """ASL's identity: one photo as several images that show more or less of it, squashed to a square.

    All content scales of an identity are shares of the photo, so they can be compared. The kinds are our readings,
    because the paper names its ablations but does not define them:

    ORIGINAL: the photo as it is; if the identity also has a hard negative, a rectangle of the photo.
    CROP: a rectangle of the original, without other edits.
    POSITIVE: the original after one to three random edits (`random_chain`), so it shows as much or less.
    NEGATIVE: all of the photo, with up to two harmless edits: the original is a crop of it, so it is not a copy.
    """

    size: int = 256  # side of the square in pixels, >= 1
    kinds: tuple[ImageKind, ...] = tuple(ImageKind)  # view i of the batch sampler is image i, of kinds[i]
    original_area: tuple[float, float] = (0.3, 0.8)  # share of the photo in an original with a hard negative, uniform
    crop_area: tuple[float, float] = (0.1, 0.9)  # share of the original that a crop keeps, uniform

    def __post_init__(self) -> None:
        if self.size < 1 or not self.kinds:
            raise ValueError(f"size {self.size}, {len(self.kinds)} kinds: give at least one pixel and one kind")
        for name in ("original_area", "crop_area"):
            low, high = getattr(self, name)
            if not 0 < low <= high <= 1:
                raise ValueError(f"{name} {low}, {high}: must be a range in (0, 1]")

    def __call__(
        self, image: Image.Image, view: int, *, seed: int, index: int, epoch: int = 0,
        others: Sequence[Image.Image] = (),
    ) -> IdentityView:
        """Return image `view` of the identity of sample `index`: the same in every process, in any order of the views.

        Args:
            image: the photo, upright RGB.
            view: 0 to len(kinds) - 1; ValueError for others.
            seed, index, epoch: select the random draws; see `sample_rng`.
            others: photos to mix in, without the photo itself; if empty, pictures are drawn instead.
        """
        if not 0 <= view < len(self.kinds):
            raise ValueError(f"view {view}: the identity has {len(self.kinds)} kinds of images, counted from 0")
        draw = epoch * (len(self.kinds) + 1)
        rng = sample_rng(seed, index, draw + 1 + view)
        original = Canvas.of(reduced(image, WORKING_SIDES * self.size))
        kind = self.kinds[view]
        if kind != ImageKind.NEGATIVE and ImageKind.NEGATIVE in self.kinds:  # one crop for all views of the identity
            original = _random_crop(original, self.original_area, sample_rng(seed, index, draw))
        shown: Canvas | Edited = original
        scale = 1.0
        if kind == ImageKind.NEGATIVE:
            names = rng.choice(HARMLESS, int(rng.integers(3)), replace=False).tolist()
            shown = edit_chain(original.image, names, rng.uniform(0.0, 0.6), rng, others)
        elif kind == ImageKind.POSITIVE:
            shown = random_chain(original.image, rng.random(), rng, others, count=int(rng.integers(1, 4)))
            scale = original.content_scale  # the edited image's own scale is a share of the original, not of the photo
        elif kind == ImageKind.CROP:
            shown = _random_crop(original, self.crop_area, rng)
        square = shown.image.resize((self.size, self.size), Image.Resampling.BILINEAR)
        return IdentityView(to_tensor(square), scale * shown.content_scale, kind)

    def views(
        self, image: Image.Image, *, seed: int, index: int, epoch: int = 0, others: Sequence[Image.Image] = ()
    ) -> list[IdentityView]:
        """Return all images of the identity, in the order of `kinds`."""
        return [self(image, i, seed=seed, index=index, epoch=epoch, others=others) for i in range(len(self.kinds))]


def _random_crop(canvas: Canvas, area: tuple[float, float], rng: np.random.Generator) -> Canvas:
    stretch = math.exp(rng.uniform(-1, 1) * math.log(1.5))
    return crop_share(canvas, rng.uniform(*area), stretch, rng)[0]


def reduced(image: Image.Image, short_side: int) -> Image.Image:
    """Return the image reduced by the largest whole factor that keeps its short side at least `short_side`."""
    factor = min(image.size) // short_side
    return image.reduce(factor) if factor > 1 else image


def to_tensor(image: Image.Image | np.ndarray) -> Tensor:
    """Return an RGB image as (3, height, width) uint8 with its own memory."""
    return torch.from_numpy(np.asarray(image).transpose(2, 0, 1).copy())
