"""Finding the images of a folder and turning each into a square of pixels."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageOps

from ascl.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
IMAGENET_SHORT_SIDE = 256 / 224  # ImageNet's evaluation scales the short side to 256 and keeps the central 224


class UnreadableImage(DataError):
    """A file that is no whole image; the message names it, `reason` says why."""

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(f"{path}: cannot be read as an image ({reason})")
        self.reason = reason


def find_images(folder: str | os.PathLike) -> list[Path]:
    """Every image below `folder`, at any depth and through linked folders, sorted by path.

    An image's id is its file name without the suffix (`Path.stem`), as in every public split file. Names that begin
    with a dot are passed over: they are the droppings of operating systems.

    Raises:
        DataError: no such folder, no image in it, or two images of the same id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    paths: list[Path] = []
    visited: set[str] = set()  # a link to a folder above would otherwise be followed for ever
    for root, folders, files in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(root))
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and os.path.realpath(os.path.join(root, name)) not in visited
        ]
        paths += [Path(root, name) for name in files if not name.startswith(".") and is_image_name(name)]
    if not paths:
        raise DataError(f"{folder}: no image in this folder or below it (looked for {', '.join(sorted(SUFFIXES))})")
    paths.sort()
    image_ids(paths)
    return paths


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def image_ids(paths: Sequence[Path]) -> list[str]:
    """The id of each image: its file's stem. Two files of one stem, or a name that is not UTF-8, are a DataError."""
    first_of: dict[str, Path] = {}
    for path in paths:
        if path.stem in first_of:
            raise DataError(
                f"two images have the id {path.stem!r}: {first_of[path.stem]} and {path}; "
                "rename one, or extract the two folders into two files"
            )
        first_of[path.stem] = path
        try:
            path.stem.encode("utf-8")
        except UnicodeEncodeError:
            raise DataError(f"{os.fsencode(path)!r}: the file's name is not UTF-8; rename it") from None
    return list(first_of)


def load_image(path: str | os.PathLike) -> Image.Image:
    """The image upright (its EXIF orientation applied) and in RGB, whatever its mode on disk.

    Transparent pixels are laid over white, as a page shows them; 16-bit grey is brought to 8 bits; of an animation the
    first frame counts.

    Raises:
        UnreadableImage: missing, empty, truncated, or of no format that Pillow knows.
    """
    try:
        with Image.open(path) as file:
            return to_rgb(ImageOps.exif_transpose(file))
    except MemoryError:
        raise
    except Exception as error:  # broken files make Pillow's decoders raise a dozen unrelated types
        reason = str(error).replace(repr(str(path)), "the file")  # reasons are kept: no path of this machine in them
        raise UnreadableImage(path, f"{type(error).__name__}: {reason}") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any mode to RGB: see `load_image`."""
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)  # convert() would clip at 255: all white
        return Image.fromarray(grey).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class SquarePixels:
    """Cuts and scales an image to a square of `size` pixels; cheap to send to a worker process.

    `squash` scales the whole image to the square: nothing is lost, the aspect ratio is. `crop` is ImageNet's
    evaluation: the short side scaled to 256/224 of the size, then the centre (7/8 of the short side is kept).
    """

    size: int
    resize: Literal["squash", "crop"]

    def view(self, width: int, height: int) -> tuple[float, float, float, float]:
        """The part of a (width, height) image that the square shows: x1, y1, x2, y2 in pixels of that image."""
        if self.resize == "squash":
            return (0.0, 0.0, float(width), float(height))
        side = min(width, height) / IMAGENET_SHORT_SIDE
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """RGB image -> (size, size, 3) uint8, bilinear with antialiasing."""
        square = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=self.view(*image.size))
        return np.asarray(square)
