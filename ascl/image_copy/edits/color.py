"""Edits that leave every pixel in place: blur, JPEG, pixelation, color, gray."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageEnhance, ImageFilter

from ascl.image_copy.edits.canvas import Canvas, between, pixels
from ascl.image_copy.edits.geometry import Change, Others, Parameters

JPEG_TILE = 65_488  # pixels: libjpeg's limit is 65,500, and its blocks are at most 16 wide
REC_601 = np.array([0.299, 0.587, 0.114])  # luma, as in Pillow's conversion to gray
REC_709 = np.array([0.213, 0.715, 0.072])  # luma, with the digits of the W3C
HUE_MEAN = np.tile(REC_709, (3, 1))
HUE_SINE = np.array([[-0.213, -0.715, 0.928], [0.143, 0.140, -0.283], [-0.787, 0.715, 0.072]])
ENHANCERS = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}
JITTERS = (*ENHANCERS, "hue")


def blur(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Blur with a Gaussian whose radius (standard deviation) is 0.3 to 3 % of the short side."""
    radius = between(0.003, 0.03, strength) * canvas.short_side
    return canvas.recolored(canvas.image.filter(ImageFilter.GaussianBlur(radius))), {"radius": radius}


def quickly_blurred(image: Image.Image, radius: float) -> Image.Image:
    """Blur with a Gaussian, from radius 2 on at half the size: half the time, half a gray level off on average."""
    if radius < 2 or min(image.size) < 4:
        return image.filter(ImageFilter.GaussianBlur(radius))
    # halving and enlarging blur too, with a variance of about 0.7 pixels, which is subtracted
    half = image.reduce(2).filter(ImageFilter.GaussianBlur(math.sqrt(radius * radius - 0.7) / 2))
    return half.resize(image.size, Image.Resampling.BILINEAR)


def jpeg(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Compress with JPEG at quality 50 to 3."""
    quality = round(between(50, 3, strength))
    return canvas.recolored(jpeg_compressed(canvas.image, quality)), {"quality": quality}


def jpeg_compressed(image: Image.Image, quality: int) -> Image.Image:
    """Return the image after JPEG compression at a quality in [0, 100]; images too large for JPEG go in tiles."""
    if max(image.size) <= JPEG_TILE:
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=max(quality, 1))  # 0 may mean default
        return Image.open(buffer).convert("RGB")
    result = Image.new("RGB", image.size)
    for top, left in itertools.product(range(0, image.height, JPEG_TILE), range(0, image.width, JPEG_TILE)):
        box = (left, top, min(left + JPEG_TILE, image.width), min(top + JPEG_TILE, image.height))
        result.paste(jpeg_compressed(image.crop(box), quality), (left, top))
    return result


def pixelisation(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Replace square blocks of 1 to 5 % of the short side by one color each."""
    width, height = canvas.image.size
    block = between(0.01, 0.05, strength) * canvas.short_side
    columns, rows = pixels(width / max(block, 1)), pixels(height / max(block, 1))
    coarse = canvas.image.resize((columns, rows), Image.Resampling.BOX)
    blocks = coarse.resize((width, height), Image.Resampling.NEAREST)
    return canvas.recolored(blocks), {"columns": columns, "rows": rows}


def colour_jitter(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Change brightness, contrast and saturation by up to 20 (mild) to 80 %, hue by up to 2 to 20 % of its circle."""
    most, hue_most = between(0.2, 0.8, strength), between(0.02, 0.2, strength)
    away = rng.choice([-1.0, 1.0], 4) * rng.uniform(0.5, 1.0, 4)  # at least half: a hard one must not vanish
    factors = dict(zip(JITTERS, [*(1 + most * away[:3]), hue_most * away[3]], strict=True))
    order = [JITTERS[i] for i in rng.permutation(4)]
    parameters = {name: float(factors[name]) for name in order}
    return canvas.recolored(jittered(canvas.image, parameters)), parameters


def jittered(image: Image.Image, factors: Parameters) -> Image.Image:
    """Return the image after these changes in order: factors >= 0, and for hue a shift in [-0.5, 0.5] of its circle."""
    for name, factor in factors.items():
        image = ENHANCERS[name](image).enhance(factor) if name in ENHANCERS else hue_shifted(image, factor)
    return image


def hue_shifted(image: Image.Image, shift: float) -> Image.Image:
    """Rotate colors about the gray axis by a share of the circle: `hueRotate` of the W3C's filter effects.

    It is one matrix, which keeps the Rec. 709 luma up to clipping; the way through HSV takes nine times as long.
    """
    angle = 2 * math.pi * shift
    matrix = HUE_MEAN + math.cos(angle) * (np.eye(3) - HUE_MEAN) + math.sin(angle) * HUE_SINE
    return image.convert("RGB", tuple(np.hstack([matrix, np.zeros((3, 1))]).ravel().tolist()))


def grey(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Convert to gray, with the eye's weights of red, green and blue (strength 0) to random ones (strength 1)."""
    weights = (1 - strength) * REC_601 + strength * rng.dirichlet([1, 1, 1])
    image = canvas.image.convert("L", (*weights.tolist(), 0.0)).convert("RGB")
    return canvas.recolored(image), {"weights": weights.round(4).tolist()}
