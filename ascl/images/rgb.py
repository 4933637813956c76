"""Turn decoded images of any mode into RGB, and recognize blank ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal

import numpy as np
from PIL import Image

Blankness = Literal["", "nearly blank", "blank"]

# How transparency is shown, recorded with every descriptor and feature that depends on it.
TRANSPARENCY = "over white, or over gray if what is visible is nearly white"
WHITE, GRAY = (255, 255, 255), (64, 64, 64)
NEARLY_WHITE = 240  # least luminance, of 255, that is hard to see on white
SHARE_SEEN = 0.05  # of the visible pixels, below which darker ones do not show a picture on white
STRIP_PIXELS = 1 << 22  # converted at a time, so that a large image is not held in several modes
BLANK_SIDE = 32  # pixels a side of the square in which blankness is measured
BLANK_DEVIATION = 3.0  # of 255; of 9,090 photographs of Flickr8k the flattest has 9.2
PLAIN_DIFFERENCE, PLAIN_SHARE = 4, 0.9  # of 255, and of the square's pixels; the plainest of those photographs: 0.81
DARKEST_KNOWN = 1 << 14  # highest gray value of 16-bit pixels up to which they may really have 12 or 14 bits


def to_rgb(image: Image.Image, factor: int = 1) -> Image.Image:
    """Convert a decoded image to RGB and reduce both sides by a whole factor, rounding up.

    Transparent pixels are laid over white; if 95 % of what is visible is nearly white, and so could not be seen there,
    over dark gray. Deep gray becomes 8-bit by the number of its bits.

    Raises:
        ValueError: the range of the pixels is unknown.
    """
    convert = _conversion(image)
    if factor == 1 and image.width * image.height <= STRIP_PIXELS:
        return convert(image)
    reduced = Image.new("RGB", (-(-image.width // factor), -(-image.height // factor)))
    top = 0
    for strip in strips(image, factor):
        rgb = convert(strip)
        reduced.paste(rgb.reduce(factor) if factor > 1 else rgb, (0, top // factor))
        top += strip.height
    return reduced


def strips(image: Image.Image, factor: int = 1) -> Iterator[Image.Image]:
    """Yield an image in horizontal strips of a multiple of `factor` rows."""
    rows = factor * max(1, STRIP_PIXELS // (image.width * factor))
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def blankness(image: Image.Image) -> Blankness:
    """Return how little an RGB image shows, reduced to 32 x 32 pixels.

    "blank": each channel deviates by less than 3 of 255. "nearly blank": 90 % of the pixels have one color, within 4 of
    255, as those of a few lines on a plain ground; descriptors of such pictures resemble one another.
    """
    small = np.asarray(image.resize((BLANK_SIDE, BLANK_SIDE), Image.Resampling.BOX), dtype=np.float32)
    if small.std(axis=(0, 1)).max() < BLANK_DEVIATION:
        return "blank"
    plain = np.abs(small - np.median(small, axis=(0, 1))).max(axis=2) <= PLAIN_DIFFERENCE
    return "nearly blank" if plain.mean() >= PLAIN_SHARE else ""


def _conversion(image: Image.Image) -> Callable[[Image.Image], Image.Image]:
    """Return the conversion of the parts of an image to RGB."""
    if image.mode.startswith("I"):
        shift = _excess_bits(image)
        return lambda part: Image.fromarray(
            np.minimum(np.asarray(part) >> shift, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers of unknown range")
    if image.has_transparency_data:
        color = _background(image)

        def over_background(part: Image.Image) -> Image.Image:
            part = part.convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", part.size, (*color, 255)), part).convert("RGB")

        return over_background
    return lambda part: part.convert("RGB")


def _excess_bits(image: Image.Image) -> int:
    """Return by how many bits the gray values of a deep image exceed 8.

    Pillow's own conversion clips at 255, so that everything is white; 12-bit values taken for 16-bit ones are black.
    """
    extremes = [(int(pixels.min()), int(pixels.max())) for pixels in map(np.asarray, strips(image))]
    lowest, highest = min(low for low, _ in extremes), max(high for _, high in extremes)
    bits = declared_bits(image)
    if lowest < 0 or highest > 65535:
        raise ValueError(f"gray values from {lowest} to {highest}, expected 0 to 65535")
    if bits is not None and highest < 1 << bits:
        return max(0, bits - 8)
    wide = image.mode == "I" and image.format not in ("PPM", "PNG")  # Pillow scales the values of these to 16 bits
    if wide and highest <= 255:
        return 0  # 8-bit values in a wider type
    check_depth(lowest, highest, 16, image)
    return 8


def declared_bits(image: Image.Image) -> int | None:
    """Return the bits of a gray TIFF's values if its tags say that there are fewer than 16; None = they do not."""
    tags = getattr(image, "tag_v2", {})
    highest = max([value for tag in (281, 341) for value in _numbers(tags.get(tag))], default=0)  # (S)MaxSampleValue
    bits = min([int(highest).bit_length() or 16, *(int(value) for value in _numbers(tags.get(258)))])  # BitsPerSample
    return bits if 8 <= bits < 16 else None


def _numbers(value: object) -> list[float]:
    """Return the numbers of a tag, which damage can make anything."""
    return [one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, int | float)]


def check_depth(lowest: int, highest: int, bits: int, image: Image.Image) -> None:
    """Raise ValueError if 16-bit values, of which the upper `bits` are seen, may have fewer bits than the file says."""
    if lowest < highest < DARKEST_KNOWN >> (16 - bits) and image.format not in ("PPM", "JPEG2000", "AVIF", "HEIF"):
        raise ValueError(f"16-bit values of at most {highest << (16 - bits)}: it is unknown whether they have 10, 12, "
                         "14 or 16 bits, and so how bright they are; save the picture with 8 bits or the full range")


def _background(image: Image.Image) -> tuple[int, int, int]:
    """Return the color over which the transparent pixels of an image are laid."""
    seen = visible = 0
    for strip in strips(image):
        rgba = strip.convert("RGBA")
        alpha = np.asarray(rgba.getchannel("A"))
        visible += int(alpha.sum(dtype=np.int64))
        seen += int(alpha[np.asarray(rgba.convert("L")) < NEARLY_WHITE].sum(dtype=np.int64))
    return GRAY if visible and seen < SHARE_SEEN * visible else WHITE
