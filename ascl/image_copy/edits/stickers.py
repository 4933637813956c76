"""Things to lay over a picture, all drawn here: stickers, lines of text, and pictures in place of missing photos."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ascl.image_copy.edits.canvas import Color, pixels, random_color

BRIGHT: tuple[Color, ...] = (
    (255, 204, 51), (238, 68, 68), (68, 170, 238), (102, 204, 102), (255, 136, 34), (204, 102, 221), (255, 255, 255),
)
INK: Color = (45, 35, 30)
OVERSAMPLING = 2  # drawings are made larger and then reduced, because Pillow draws hard edges
LARGEST_DRAWING = 1024  # pixels; larger stickers are enlarged drawings
LETTERS = np.array(list("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789!?#@&%+-=*"))
FONT_MEASURE = 32  # pixels at which a line is measured; its width grows with the font size


def drawn_sticker(size: int, rng: np.random.Generator) -> tuple[Image.Image, Image.Image]:
    """Draw a random sticker of `size` x `size` pixels: its colors (RGB) and opacity (L, 255 = opaque)."""
    side = min(size, LARGEST_DRAWING) * OVERSAMPLING
    image = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    DRAWINGS[int(rng.integers(len(DRAWINGS)))](ImageDraw.Draw(image), side, rng)
    image = image.resize((size, size), Image.Resampling.BILINEAR)
    return image.convert("RGB"), image.getchannel("A")


def face(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    """Draw a round face that smiles, laughs, frowns, wonders or winks."""
    mood, stroke = int(rng.integers(5)), pixels(0.05 * side)
    _ellipse(draw, side, 0.5, 0.5, 0.48, 0.48, _bright(rng), outline=0.03)
    for x in (0.33, 0.67):
        if mood == 4 and x > 0.5:
            draw.line(_scaled(side, (0.58, 0.4, 0.76, 0.4)), fill=INK, width=stroke)
        else:
            _ellipse(draw, side, x, 0.38, 0.06, 0.09, INK)
    if mood in (0, 4):
        draw.arc(_scaled(side, (0.25, 0.3, 0.75, 0.8)), 25, 155, fill=INK, width=stroke)
    elif mood == 1:
        draw.chord(_scaled(side, (0.24, 0.32, 0.76, 0.84)), 0, 180, fill=(150, 20, 30), outline=INK)
    elif mood == 2:
        draw.arc(_scaled(side, (0.28, 0.6, 0.72, 1.0)), 205, 335, fill=INK, width=stroke)
    else:
        _ellipse(draw, side, 0.5, 0.7, 0.09, 0.12, INK)


def star(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    """Draw a star of five to eight rays."""
    rays = int(rng.integers(5, 9))
    corners = [((0.48, 0.22)[i % 2], math.pi * i / rays) for i in range(2 * rays)]
    _polygon(draw, side, [(0.5 + r * math.sin(a), 0.5 - r * math.cos(a)) for r, a in corners], _bright(rng))


def heart(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    """Draw a heart."""
    angles = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    x = 16 * np.sin(angles) ** 3
    y = 13 * np.cos(angles) - 5 * np.cos(2 * angles) - 2 * np.cos(3 * angles) - np.cos(4 * angles)
    _polygon(draw, side, list(zip(0.5 + x / 35, 0.47 - y / 35, strict=True)), _bright(rng))


def arrow(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    """Draw a thick arrow in any direction."""
    angle = rng.uniform(0, 2 * math.pi)
    outline = [(0.46, 0), (0.05, 0.36), (0.05, 0.14), (-0.46, 0.14), (-0.46, -0.14), (0.05, -0.14), (0.05, -0.36)]
    sine, cosine = math.sin(angle), math.cos(angle)
    _polygon(draw, side, [(0.5 + x * cosine - y * sine, 0.5 + x * sine + y * cosine) for x, y in outline], _bright(rng))


def bubble(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    """Draw a speech bubble with a word."""
    _polygon(draw, side, [(0.25, 0.6), (0.5, 0.6), (0.2, 0.97)], (255, 255, 255))
    box = _scaled(side, (0.03, 0.12, 0.97, 0.7))
    draw.rounded_rectangle(box, 0.2 * side, fill=(255, 255, 255), outline=INK, width=pixels(0.02 * side))
    words = text_mask(random_words(1, rng)[:6], pixels(0.3 * side), 0.8 * side)
    draw.bitmap(((side - words.width) // 2, round(0.41 * side - words.height / 2)), words, fill=INK)


def flower(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    """Draw petals around a disc."""
    petals, color = int(rng.integers(5, 9)), _bright(rng)
    for i in range(petals):
        angle = 2 * math.pi * i / petals
        x, y = 0.5 + 0.29 * math.sin(angle), 0.5 - 0.29 * math.cos(angle)
        _ellipse(draw, side, x, y, 0.17, 0.17, color, outline=0.01)
    _ellipse(draw, side, 0.5, 0.5, 0.2, 0.2, _bright(rng), outline=0.02)


def ring(draw: ImageDraw.ImageDraw, side: int, rng: np.random.Generator) -> None:
    """Draw a road sign: a ring with a bar, with the photo visible between them."""
    color, width = _bright(rng), pixels(0.13 * side)
    draw.ellipse(_scaled(side, (0.03, 0.03, 0.97, 0.97)), outline=color, width=width)
    draw.line(_scaled(side, (0.2, 0.2, 0.8, 0.8)), fill=color, width=width)


DRAWINGS: tuple[Callable[[ImageDraw.ImageDraw, int, np.random.Generator], None], ...] = (
    face, face, face, star, heart, arrow, bubble, flower, ring,  # faces are more frequent, as in practice
)


def _bright(rng: np.random.Generator) -> Color:
    return BRIGHT[int(rng.integers(len(BRIGHT)))]


def _scaled(side: int, values: tuple[float, ...]) -> list[float]:
    return [value * side for value in values]


def _ellipse(
    draw: ImageDraw.ImageDraw, side: int, x: float, y: float, rx: float, ry: float, fill: Color, outline: float = 0.0
) -> None:
    box = _scaled(side, (x - rx, y - ry, x + rx, y + ry))
    draw.ellipse(box, fill=fill, outline=INK if outline else None, width=pixels(outline * side))


def _polygon(draw: ImageDraw.ImageDraw, side: int, points: list[tuple[float, float]], fill: Color) -> None:
    draw.polygon([(x * side, y * side) for x, y in points], fill=fill, outline=INK, width=pixels(0.02 * side))


def random_words(count: int, rng: np.random.Generator) -> str:
    """Return `count` words of two to nine random letters, digits and signs."""
    return " ".join("".join(rng.choice(LETTERS, int(rng.integers(2, 10)))) for _ in range(count))


@functools.lru_cache(maxsize=64)
def default_font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Return Pillow's own font at a size in pixels, which needs no font file."""
    return ImageFont.load_default(size)


def text_mask(text: str, height: int, most_width: float) -> Image.Image:
    """Draw a line of text as a mask (L), with letters of a height in pixels, or smaller if it would be too wide."""
    measured = default_font(FONT_MEASURE).getlength(text)
    font = default_font(max(1, min(height, int(FONT_MEASURE * most_width / measured))))
    left, top, right, bottom = font.getbbox(text)
    mask = Image.new("L", (pixels(right - left), pixels(bottom - top)))
    ImageDraw.Draw(mask).text((-left, -top), text, fill=255, font=font)
    return mask


def drawn_picture(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Draw soft colors with a few shapes, in place of a photo to mix in."""
    soft = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    image = soft.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(4, 10))):
        (x1, x2), (y1, y2) = np.sort(rng.uniform(0, 1, 2)) * width, np.sort(rng.uniform(0, 1, 2)) * height
        shape = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        shape([float(x1), float(y1), float(x2), float(y2)], fill=random_color(rng))
    return image
