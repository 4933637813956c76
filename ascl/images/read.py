"""Finding the images of a folder or a list, decoding each, and turning it into a square of pixels."""

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
WHOLE_PIXELS = 24_000_000  # an image of more is reduced while it is decoded: no backbone looks at so many
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations of a picture that lies on its side
MOST_PIXELS = 1_000_000_000  # beyond this a file is taken for a decompression bomb


class UnreadableImage(DataError):
    """A file that is no whole image; the message names it, `reason` says why."""

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(f"{path}: cannot be read as an image ({reason})")
        self.reason = reason


def find_images(folder: str | os.PathLike) -> list[Path]:
    """Return every image below `folder`, at any depth and through linked folders, sorted by path.

    An image's id is its file name without the suffix (`Path.stem`), as in every public split file. Names that begin
    with a dot are passed over: they are the droppings of operating systems. A DataError where there is no such folder,
    no image in it, or two images of the same id.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of images")
    paths: list[Path] = []
    visited: set[str] = set()  # a link to a folder above would otherwise be followed for ever
    for root, folders, files in os.walk(folder, followlinks=True):
        visited.add(os.path.realpath(root))
        shown = [name for name in folders if not name.startswith(".")]
        folders[:] = [name for name in shown if os.path.realpath(os.path.join(root, name)) not in visited]
        paths += [Path(root, name) for name in files if not name.startswith(".") and is_image_name(name)]
    if not paths:
        raise DataError(f"{folder}: no image in this folder or below it (looked for {', '.join(sorted(SUFFIXES))})")
    paths.sort()
    image_ids(paths)
    return paths


def images_of(*sources: str | os.PathLike) -> list[Path]:
    """Return the images of folders (`find_images`), of lists in .txt files (`listed_images`) and of single files.

    They come in the order of the sources; what several sources name comes once. A DataError where there is no source,
    or one that is not there, or as of the two functions.
    """
    if not sources or "" in sources:
        raise DataError("no images: name a folder, a list of images (.txt) or an image")
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
    """Return each image's id, its file's stem; two files of one stem, or a name that is not UTF-8, are a DataError."""
    first_of: dict[str, Path] = {}
    for path in paths:
        if path.stem in first_of:
            both = f"{first_of[path.stem]} and {path}"
            remedy = "rename one, or extract the two folders into two files"
            raise DataError(f"two images have the id {path.stem!r}: {both}; {remedy}")
        first_of[path.stem] = path
        check_utf8(path)
    return list(first_of)


def check_utf8(path: Path) -> None:
    """Raise a DataError for a file name that is not UTF-8: no file of ours could hold the image's id."""
    try:
        path.stem.encode("utf-8")
    except UnicodeEncodeError:
        raise DataError(f"{os.fsencode(path)!r}: the file's name is not UTF-8; rename it") from None


def listed_images(path: str | os.PathLike) -> list[Path]:
    """Return the images that a text file names, one a line, in its order; relative to the file's own folder.

    Empty lines and lines that begin with `#` are passed over. A DataError where there is no such file, it is not UTF-8
    or names no image, or a name (with its row) has no file, or two images have one id.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except FileNotFoundError:
        raise DataError(f"{path}: no such list of images") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 ({error}), no list of images; convert it") from error
    paths = []
    for row, line in enumerate(lines, start=1):
        name = line.strip()
        if not name or name.startswith("#"):
            continue
        image = path.parent / name
        if not image.is_file():
            raise DataError(f"{path}, row {row}: no file {image}")
        paths.append(image)
    if not paths:
        raise DataError(f"{path} names no image")
    image_ids(paths)
    return paths


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Suspend Pillow's guard against decompression bombs, which refuses photographs of 200 megapixels, for ours."""
    theirs, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = theirs


class LoadedImage(NamedTuple):
    """An upright RGB image, and the (width, height) it has on disk when upright: larger where it was reduced."""

    image: Image.Image
    size: tuple[int, int]


def load_image(path: str | os.PathLike, *, whole_pixels: int = WHOLE_PIXELS) -> LoadedImage:
    """Return the image upright (its EXIF orientation applied) and in RGB, whatever its mode on disk.

    Transparent pixels are laid over white, as a page shows them; 16-bit grey is brought to 8 bits; of an animation the
    first frame counts. Above `whole_pixels` it is reduced by a whole factor (a JPEG while it is decoded).

    Raises:
        UnreadableImage: empty, truncated, of no format or range that is known, or of more than `MOST_PIXELS`.
        DataError: the disk does not give the file (missing, no permission, a network disk that fails): no fault of the
            image, which must not be left out for it.
    """
    stream = None
    try:
        with own_pixel_limit(), open(path, "rb") as stream, Image.open(stream) as file:
            return decoded(file, whole_pixels)
    except MemoryError:
        raise
    except Exception as error:  # broken files make Pillow's decoders raise a dozen unrelated types
        if isinstance(error, OSError) and error.errno is not None:
            problem = f"the disk does not give this file ({error.strerror})"
            raise DataError(f"{path}: {problem}; see to it, then run the same again") from error
        reason = str(error).replace(repr(stream), "the file")  # reasons are kept: no path of this machine in them
        raise UnreadableImage(path, f"{type(error).__name__}: {reason}") from error


def decoded(file: Image.Image, whole_pixels: int) -> LoadedImage:
    """Return an opened file, whose pixels are still to be read, as `load_image` gives it."""
    width, height = file.size
    if width * height > MOST_PIXELS:
        raise ValueError(f"{width} x {height} pixels, more than {MOST_PIXELS:,}: too large to decode")
    factor = math.ceil(math.sqrt(width * height / whole_pixels))
    if factor > 1:
        file.draft(None, (width // factor, height // factor))  # only a JPEG can; others ignore it
    drafted = file.size != (width, height)
    file.load()  # before the tag is read: Pillow turns a TIFF itself, and then takes the tag away
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF is no reason to lose a photograph
        orientation = None
    image = to_rgb(file)
    if orientation not in (None, 1):
        image.info = {}  # Pillow rewrites the tags of what it turns, and fails on damaged ones
        image.getexif()[ExifTags.Base.Orientation] = orientation
        image = ImageOps.exif_transpose(image)
    size = image.size
    if drafted:
        size = (height, width) if orientation in QUARTER_TURNS else (width, height)
    factor = math.ceil(math.sqrt(image.width * image.height / whole_pixels))
    return LoadedImage(image.reduce(factor) if factor > 1 else image, size)


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn any mode into RGB: see `load_image`."""
    if image.mode.startswith("I"):
        # 16-bit grey, also in 32-bit numbers: Pillow's own conversion clips at 255, and all is white.
        pixels = np.asarray(image)
        lowest, highest = int(pixels.min()), int(pixels.max())
        if lowest < 0 or highest > 65535:
            raise ValueError(f"grey values from {lowest} to {highest}, where 0 to 65535 is wanted")
        if pixels.dtype.itemsize == 2 or highest > 255 or image.format == "PPM":
            pixels = pixels >> 8  # others are 8-bit values in a wider type; Pillow brings those of a PGM to 16 bits
        return Image.fromarray(pixels.astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("pixels are floating-point numbers, whose range nothing tells")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class SquarePixels:
    """Cuts and scales an image to a square of `size` pixels; cheap to send to a worker process.

    `squash` scales the whole image to the square: nothing is lost, the aspect ratio is. `crop` is ImageNet's
    evaluation: the short side scaled to 256/224 of the size, then the center (7/8 of the short side is kept).
    """

    size: int
    resize: Literal["squash", "crop"]

    def view(self, width: int, height: int) -> tuple[float, float, float, float]:
        """Return the part of a (width, height) image that the square shows: x1, y1, x2, y2 in its pixels."""
        if self.resize == "squash":
            return (0.0, 0.0, float(width), float(height))
        side = min(width, height) / IMAGENET_SHORT_SIDE
        left, top = (width - side) / 2, (height - side) / 2
        return (left, top, left + side, top + side)

    def __call__(self, image: Image.Image) -> np.ndarray:
        """RGB image -> (size, size, 3) uint8, bilinear with antialiasing."""
        square = image.resize((self.size, self.size), Image.Resampling.BILINEAR, box=self.view(*image.size))
        return np.asarray(square)
