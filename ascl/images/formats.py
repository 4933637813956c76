"""The formats of images that are read: by suffix, by first bytes, and what each needs."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from PIL import Image, features

# Pillow's names. What it could read besides runs other programs (EPS), or nobody keeps photos in it.
FORMATS = ("JPEG", "MPO", "PNG", "BMP", "DIB", "GIF", "WEBP", "TIFF", "PPM", "AVIF", "JPEG2000")
HEIC = frozenset({".heic", ".heif", ".hif"})
NEEDS = {".avif": ("avif", "Pillow 11.3 or newer with AVIF: pip install -U pillow"),
         **dict.fromkeys((".jp2", ".j2k", ".jpx", ".jpf"), ("jpg_2000", "Pillow with OpenJPEG: pip install -U pillow")),
         ".webp": ("webp", "Pillow with WebP: pip install -U pillow")}
SUFFIXES = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".png", ".apng", ".bmp", ".dib", ".gif", ".tif",
                      ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"}) | HEIC | frozenset(NEEDS)
CONTENT = re.compile(  # not TIFF, with which the raw files of cameras begin too
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBP|BM.{12}[\x0c\x28\x34\x38\x6c\x7c]\0\0\0"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51"
    rb"|....ftyp(?:avif|avis|heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL
)
HEIC_CONTENT = re.compile(rb"....ftyp(?:heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL)
TIFF = re.compile(rb"II[\x2a\x2b]\0|MM\0[\x2a\x2b]")


def is_image_content(path: Path) -> bool:
    """Return whether a regular file begins as an image does; TIFF only counts in a name without a suffix."""
    with open(path, "rb") as file:
        head = file.read(32)
    return bool(CONTENT.match(head) or (not path.suffix and TIFF.match(head)))


def is_heic(head: bytes) -> bool:
    """Return whether a file that begins with these bytes needs pillow-heif; a few AVIF begin alike."""
    return bool(HEIC_CONTENT.match(head)) and b"avif" not in head


def formats_of(head: bytes) -> tuple[str, ...]:
    """Return Pillow's names of the formats that a file with these first bytes may have."""
    if is_heic(head):
        return ("HEIF",)
    return _installed()


@cache
def _installed() -> tuple[str, ...]:
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


@cache
def lacking(suffix: str) -> str | None:
    """Return what has to be installed to read files of a suffix, and how; None if nothing is missing."""
    if suffix in HEIC:
        return None if heif_is_read() else "pillow-heif: pip install 'ascl[heic]'"
    feature, remedy = NEEDS.get(suffix, ("", ""))
    return None if not feature or features.check(feature) else remedy


@cache
def heif_is_read() -> bool:
    """Let Pillow read HEIC by pillow-heif, and return whether it is installed."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return "HEIF" in Image.OPEN
