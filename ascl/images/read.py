"""Decode images, and turn them into squares of pixels."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ascl.core.errors import DataError

IMAGENET_SHORT_SIDE = 256 / 224  # ImageNet's evaluation scales the short side to 256 and keeps the central 224
WHOLE_PIXELS = 24_000_000  # larger images are reduced while they are decoded: no backbone needs so many pixels
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
MOST_PIXELS = 1_000_000_000  # a file with more is treated as a decompression bomb


class UnreadableImage(DataError):
    """A file is not a complete image; the message names it, `reason` says why."""

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(f"{path}: cannot be read as an image ({reason})")
        self.reason = reason


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Suspend Pillow's guard against decompression bombs, which refuses photos of 200 megapixels; ours replaces it."""
    theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = theirs


class LoadedImage(NamedTuple):
    """An upright RGB image, and its upright (width, height) on disk, which is larger if the image was reduced."""

    image: Image.Image
    size: tuple[int, int]


def load_image(path: str | os.PathLike, *, whole_pixels: int = WHOLE_PIXELS) -> LoadedImage:
    """Return an image upright (its EXIF orientation applied) and in RGB, whatever its mode on disk.

    Transparent pixels are composed over white, as on a page. 16-bit gray becomes 8-bit. Of an animation, the first
    frame is taken. An image of more than `whole_pixels` is reduced by a whole factor (a JPEG while it is decoded).

    Raises:
        UnreadableImage: the file is empty or truncated, its format or range is unknown, or it has more than
            `MOST_PIXELS` pixels.
        DataError: the disk cannot deliver the file (it is missing, there is no permission, or a network disk fails).
            This is not the image's fault, so the image must not be skipped.
    """
    stream = None
    try:
        with own_pixel_limit(), open(path, "rb") as stream, Image.open(stream) as file:
            return decoded(file, whole_pixels)
    except MemoryError:
        raise
    except Exception as error:  # broken files make Pillow's decoders raise a dozen unrelated types
        if isinstance(error, OSError) and error.errno is not None:
            problem = f"the file cannot be read from the disk ({error.strerror})"
            raise DataError(f"{path}: {problem}; check its path and permissions, then run the same again") from error
        reason = str(error).replace(repr(stream), "the file")  # reasons are stored in files: no paths of this machine
        raise UnreadableImage(path, f"{type(error).__name__}: {reason}") from error


def decoded(file: Image.Image, whole_pixels: int) -> LoadedImage:
    """Decode an opened image file as `load_image` does."""
    width, height = file.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than {MOST_PIXELS:,}: too large to decode")
    factor = math.ceil(math.sqrt(width * height / whole_pixels))
    if factor > 1:
        file.draft(None, (width // factor, height // factor))  # formats other than JPEG ignore this
    drafted = file.size != (width, height)
    file.load()  # before reading the tag: Pillow turns a TIFF upright itself, and then removes the tag
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF is no reason to lose a photo
        orientation = None
    image = to_rgb(file)
    if orientation not in (None, 1):
        image.info = {}  # Pillow rewrites the tags of an image that it turns, and fails on damaged ones
        image.getexif()[ExifTags.Base.Orientation] = orientation
        image = ImageOps.exif_transpose(image)
    size = image.size
    if drafted:
        size = (height, width) if orientation in QUARTER_TURNS else (width, height)
    factor = math.ceil(math.sqrt(image.width * image.height / whole_pixels))
    return LoadedImage(image.reduce(factor) if factor > 1 else image, size)


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any mode to RGB, as described in `load_image`."""
    if image.mode.startswith("I"):
        # 16-bit gray, also stored as 32-bit numbers: Pillow's own conversion clips at 255, so that everything is white.
        pixels = np.asarray(image)
        lowest, highest = int(pixels.min()), int(pixels.max())
        if lowest < 0 or highest > 65535:
            raise ValueError(f"gray values from {lowest} to {highest}, expected 0 to 65535")
        if pixels.dtype.itemsize == 2 or highest > 255 or image.format == "PPM":
            pixels = pixels >> 8  # others are 8-bit values in a wider type; Pillow scales those of a PGM to 16 bits
        return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers of unknown range")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class SquarePixels:
    """Scales an image to a square of `size` x `size` pixels; cheap to send to a worker process.

    `squash` scales the whole image to the square: only the aspect ratio is lost. `crop` is ImageNet's evaluation: it
    scales the short side to 256/224 of the size and takes the center, which keeps 7/8 of the short side.
    """

    size: int
    resize: Literal["squash", "crop"]

    def view(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of a (width, height) image that the square shows: x1, y1, x2, y2 in pixels of the image."""
        if self.resize == "squash":
            return (0.0, 0.0, float(width), float(height))
        side = min(width, height) / IMAGENET_SHORT_SIDE
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """Return an RGB image as (size, size, 3) uint8, scaled bilinearly with antialiasing."""
        square = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=self.view(*image.size))
        return np.asarray(square)
