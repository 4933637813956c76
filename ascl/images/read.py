"""Find the images of a folder or a list, decode them, and turn them into squares of pixels."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ascl.core.errors import DataError

SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm"})
IMAGENET_SHORT_SIDE = 256 / 224  # ImageNet's evaluation scales the short side to 256 and keeps the central 224
WHOLE_PIXELS = 24_000_000  # larger images are reduced while they are decoded: no backbone needs so many pixels
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
MOST_PIXELS = 1_000_000_000  # a file with more is treated as a decompression bomb


class UnreadableImage(DataError):
    """A file is not a complete image; the message names it, `reason` says why."""

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(f"{path}: cannot be read as an image ({reason})")
        self.reason = reason


def find_images(folder: str | os.PathLike) -> list[Path]:
    """Return every image below `folder`, at any depth and through linked folders, sorted by path.

    The id of an image is its file name without the suffix (`Path.stem`), as in every public split file. Names that
    begin with a dot are skipped: operating systems leave such files.

    Raises:
        DataError: the folder does not exist or has no images, or two images have the same id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    paths: list[Path] = []
    visited: set[str] = set()  # a link to a parent folder would otherwise be followed forever
    for root, folders, files in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(root))
        shown = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in shown if os.path.realpath(os.path.join(root, name)) not in visited]
        paths += [Path(root, name) for name in files if not name.startswith(".") and is_image_name(name)]
    if not paths:
        raise DataError(f"{folder}: no image in this folder or below it; looked for {', '.join(sorted(SUFFIXES))}")
    paths.sort()
    image_ids(paths)
    return paths


def images_of(*sources: str | os.PathLike) -> list[Path]:
    """Return the images of folders (`find_images`), of lists in .txt files (`listed_images`) and of single files.

    They have the order of the sources; an image that several sources name comes once.

    Raises:
        DataError: no source is given, a source does not exist, or `find_images` or `listed_images` raises.
    """
    if not sources or "" in sources:
        raise DataError("no images: give a folder, a list of images (.txt) or an image")
    found: list[Path] = []
    for source in map(Path, sources):
        if source.is_dir():
            found += find_images(source)
        elif source.suffix == ".txt":
            found += listed_images(source)
        elif source.is_file():
            check_utf8(source)
            found.append(source)
        else:
            raise DataError(f"{source}: no such image or folder of images")
    if len(sources) == 1:
        return found
    first: dict[str, Path] = {}
    for path in found:
        first.setdefault(os.path.realpath(path), path)
    return list(first.values())


def is_image_name(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in SUFFIXES


def image_ids(paths: Sequence[Path]) -> list[str]:
    """Return the id of each image, its file's stem; a DataError for two equal ids or a name that is not UTF-8."""
    first_of: dict[str, Path] = {}
    for path in paths:
        if path.stem in first_of:
            both = f"{first_of[path.stem]} and {path}"
            remedy = "rename one of them, or extract their folders into two files"
            raise DataError(f"two images have the id {path.stem!r}: {both}; {remedy}")
        first_of[path.stem] = path
        check_utf8(path)
    return list(first_of)


def check_utf8(path: Path) -> None:
    """Raise a DataError for a file name that is not UTF-8, because our files store ids in UTF-8."""
    try:
        path.stem.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{os.fsencode(path)!r}: the file name is not UTF-8; rename the file") from None


def listed_images(path: str | os.PathLike) -> list[Path]:
    """Return the images that a text file names, one per line, in its order; paths are relative to the file's folder.

    Empty lines and lines that begin with `#` are skipped.

    Raises:
        DataError: the list does not exist, is not UTF-8 or names no image; a named file does not exist (the message
            gives its row); or two images have the same id.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such list of images") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: this list of images is not UTF-8 ({error}); convert it") from error
    paths = []
    for row, line in enumerate(lines, start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        image = path.parent / name
        if not image.is_file():
            raise DataError(f"{path}, row {row}: no file {image}; correct or remove this row")
        paths.append(image)
    if not paths:
        raise DataError(f"{path} names no image; write one path per line")
    image_ids(paths)
    return paths


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
