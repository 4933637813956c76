"""Decode images, and turn them into squares of pixels."""

from __future__ import annotations

import errno
import logging
import math
import os
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ascl.core.errors import DataError, SettingsError
from ascl.core.limits import IMAGE_PIXELS
from ascl.core.reading import irregular, reason, shown
from ascl.images.formats import formats_of, is_heic, lacking
from ascl.images.rgb import check_depth, to_rgb

IMAGENET_SHORT_SIDE = 256 / 224  # ImageNet's evaluation scales the short side to 256 and keeps the central 224
WHOLE_PIXELS = 24_000_000  # larger images are reduced while they are decoded: no backbone needs so many pixels
QUARTER_TURNS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
# Pillow warns of damage without naming the file, on the standard error; what costs a picture is in our own messages.
warnings.filterwarnings("ignore", module=r"PIL\.")
logging.getLogger("PIL").addHandler(logging.NullHandler())
# Decoders that hold several copies of a picture: each of its pixels counts so often for the limit.
COPIES = {"JPEG2000": 4, "WEBP": 3, "AVIF": 3, "HEIF": 3}
OF_THE_FILE = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.EOVERFLOW)  # errors that do not mean that the disk fails


class UnreadableImage(DataError):
    """A file is not a complete image; the message names it, `reason` says why."""

    def __init__(self, path: str | os.PathLike, reason: str) -> None:
        super().__init__(f"{shown(path)}: cannot be read as an image ({reason})")
        self.reason = reason


_guard = threading.Lock()
_suspended: list[int | None] = []       # Pillow's limit, once for each thread that is reading


@contextmanager
def own_pixel_limit() -> Iterator[None]:
    """Suspend Pillow's guard against decompression bombs, which refuses photos of 200 megapixels; ours replaces it.

    The guard is one for all threads: the last of them to finish restores it.
    """
    with _guard:
        _suspended.append(_suspended[0] if _suspended else Image.MAX_IMAGE_PIXELS)
        Image.MAX_IMAGE_PIXELS = None
    try:
        yield
    finally:
        with _guard:
            theirs = _suspended.pop()
            if not _suspended:
                Image.MAX_IMAGE_PIXELS = theirs


class LoadedImage(NamedTuple):
    """An upright RGB image, and its upright (width, height) on disk, which is larger if the image was reduced."""

    image: Image.Image
    size: tuple[int, int]
    animated: bool = False  # the file has further frames or pages


def load_image(path: str | os.PathLike, *, whole_pixels: int = WHOLE_PIXELS) -> LoadedImage:
    """Return an image upright (its EXIF orientation applied) and in RGB, whatever its mode on disk.

    `ascl.images.rgb.to_rgb` says what becomes of transparency and of 16-bit gray. Of an animation, the first frame is
    taken. An image of more than `whole_pixels` is reduced by a whole factor (a JPEG while it is decoded).

    Raises:
        UnreadableImage: the file is empty or truncated, its format or range is unknown, it may not be read, or it has
            more pixels than `limits.IMAGE_PIXELS`, which is checked before anything is decoded.
        DataError: the disk cannot deliver the file (it is missing or no regular file, or a network disk fails). This is
            not the image's fault, so the image must not be skipped.
    """
    kind = irregular(path)
    if kind is not None:
        raise _undelivered(path, kind)
    try:
        with own_pixel_limit(), open(path, "rb") as stream:
            head = stream.read(32)
            stream.seek(0)
            missing = lacking(".heic") if is_heic(head) else None
            if missing is not None:
                raise UnreadableImage(path, f"HEIC needs {missing}")
            with Image.open(stream, formats=formats_of(head)) as file:
                return decoded(file, whole_pixels)
    except (SettingsError, UnreadableImage):
        raise
    except DataError as error:
        raise UnreadableImage(path, str(error)) from error
    except UnidentifiedImageError as error:  # Pillow's message has the path: reasons are stored in files
        raise UnreadableImage(path, content_of(head)) from error
    except MemoryError as error:
        raise UnreadableImage(path, "it needs more memory than there is") from error
    except Exception as error:  # broken files make Pillow's decoders raise a dozen unrelated types
        if isinstance(error, OSError) and error.errno is not None and error.errno not in OF_THE_FILE:
            raise _undelivered(path, error.strerror) from error
        raise UnreadableImage(path, reason(error)) from error


def _undelivered(path: str | os.PathLike, why: str | None) -> DataError:
    return DataError(f"{shown(path)}: the file cannot be read from the disk ({why}); check its path and permissions, "
                     "then run the same again")


def content_of(head: bytes) -> str:
    """Return what a file that is no image seems to be, from its first bytes."""
    if not head:
        return "the file is empty"
    if head.lstrip().startswith(b"<"):
        return "it is a web page or a drawing in XML, no picture in pixels"
    if head.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS: run git lfs pull"
    return "its content is of no format that is read, or its header is damaged"


def decoded(file: Image.Image, whole_pixels: int) -> LoadedImage:
    """Decode an opened image file as `load_image` does."""
    width, height = file.size
    taken = pixels_to_decode(file)
    more = f", for which {file.format} takes the memory of more" if taken > width * height else ""
    IMAGE_PIXELS.check(taken, f"{width} x {height}{more}")
    factor = math.ceil(math.sqrt(width * height / whole_pixels))
    if factor > 1:
        file.draft(None, (width // factor, height // factor))  # formats other than JPEG ignore this
    drafted = file.size != (width, height)
    deep = ";16" in str([part[3] for part in getattr(file, "tile", ())]) and not file.mode.startswith("I")
    file.load()  # before reading the tag: Pillow turns a TIFF upright itself, and then removes the tag
    if deep:  # Pillow has kept the upper 8 bits
        extremes = np.array(file.getextrema()).reshape(-1, 2)[: 1 if file.mode in ("L", "LA") else 3]
        check_depth(int(extremes[:, 0].min()), int(extremes[:, 1].max()), 8, file)
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # damaged EXIF is no reason to lose a photo
        orientation = None
    factor = math.ceil(math.sqrt(file.width * file.height / whole_pixels))
    size = (width, height) if drafted else file.size
    image = to_rgb(file, factor)
    if orientation not in (None, 1):
        image.info = {}  # Pillow rewrites the tags of an image that it turns, and fails on damaged ones
        image.getexif()[ExifTags.Base.Orientation] = orientation
        image = ImageOps.exif_transpose(image)
        if orientation in QUARTER_TURNS:
            size = (size[1], size[0])
    return LoadedImage(image, size, has_more_frames(file))


def pixels_to_decode(file: Image.Image) -> int:
    """Return how many pixels of 4 bytes an opened file takes while it is decoded."""
    pixels = file.width * file.height * COPIES.get(file.format or "", 1)
    tags = getattr(file, "tag_v2", None)
    if file.format == "TIFF" and tags is not None:  # the decoder holds a whole tile or strip besides
        tile = (tags.get(322), tags.get(323))
        side = tile if None not in tile else (file.width, min(file.height, tags.get(278) or file.height))
        bits = tags.get(258) or (8,)
        pixels += math.prod(side) * max(bits) * max(len(bits), tags.get(277) or 1) // 32
    return pixels


def has_more_frames(file: Image.Image) -> bool:
    """Return whether a file has further frames or pages; the second picture of a stereo photo does not count."""
    try:
        return file.format != "MPO" and bool(getattr(file, "is_animated", False))
    except Exception:  # the first frame was good
        return False


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
