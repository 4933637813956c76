"""Damaged images of every format that can be written here: read as RGB within the limit, or refused by name."""

import io
import re
import struct
import warnings
from functools import cache

import numpy as np
import pytest
from PIL import Image, features

from ascl.core.errors import DataError
from ascl.images.formats import heif_is_read
from ascl.images.read import load_image

LIMIT = 200_000
CASES = 60  # of each format
WRITTEN = {
    "jpeg": ("JPEG", "RGB", {}), "progressive": ("JPEG", "RGB", {"progressive": True}), "cmyk": ("JPEG", "CMYK", {}),
    "png": ("PNG", "RGBA", {}), "palette": ("PNG", "P", {"transparency": 3}), "deep": ("PNG", "I;16", {}),
    "gif": ("GIF", "P", {"save_all": True}), "apng": ("PNG", "RGB", {"save_all": True}), "bmp": ("BMP", "RGB", {}),
    "tiff": ("TIFF", "RGB", {}), "lzw": ("TIFF", "RGBA", {"compression": "tiff_lzw"}),
    "deflate": ("TIFF", "L", {"compression": "tiff_adobe_deflate"}), "pages": ("TIFF", "RGB", {"save_all": True}),
    "fax": ("TIFF", "1", {"compression": "group4"}), "ppm": ("PPM", "RGB", {}), "webp": ("WEBP", "RGB", {}),
    "lossless": ("WEBP", "RGBA", {"lossless": True}), "moving": ("WEBP", "RGB", {"save_all": True}),
    "jp2": ("JPEG2000", "RGB", {}), "avif": ("AVIF", "RGB", {"speed": 10}), "heic": ("HEIF", "RGB", {}),
}
NEEDS = {"jp2": "jpg_2000", "avif": "avif", "webp": "webp", "lossless": "webp", "moving": "webp"}


@cache
def whole(kind: str) -> bytes:
    """A file of 40 x 30 pixels with an EXIF orientation, where the format has one."""
    form, mode, options = WRITTEN[kind]
    y, x = np.mgrid[0:30, 0:40]
    pixels = np.stack([x * 6, y * 8, x * y % 256], axis=-1).astype(np.uint8)
    image = Image.fromarray(pixels)
    image = Image.fromarray(pixels[..., 0].astype(np.uint16) << 8) if mode == "I;16" else image.convert(mode)
    more = {"append_images": [image.transpose(Image.Transpose.ROTATE_180)]} if "save_all" in options else {}
    exif = Image.Exif()
    exif[0x0112] = 6
    held = {"exif": exif} if form in ("JPEG", "PNG", "WEBP", "TIFF") else {}
    stream = io.BytesIO()
    image.save(stream, form, **options, **more, **held)
    return stream.getvalue()


def damaged(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip bytes, cut, repeat or insert a piece, or write an extreme number, mostly near the beginning."""
    made = bytearray(data)
    kind = rng.integers(6)
    place = int(rng.integers(len(made)) if rng.random() < 0.3 else rng.integers(min(200, len(made))))
    if kind == 0:
        for _ in range(int(rng.integers(1, 9))):
            made[int(rng.integers(len(made)))] ^= 1 << int(rng.integers(8))
    elif kind == 1:
        del made[place:]
    elif kind == 2:
        del made[place:place + int(rng.integers(1, 64))]
    elif kind == 3:
        made[place:place] = made[:int(rng.integers(1, 400))]
    else:
        value = int(rng.choice([0, 1, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, 0x80000000, 31_600]))
        layout = str(rng.choice(["<I", ">I", "<H", ">H"]))
        piece = struct.pack(layout, value & (0xFFFF if layout[1] == "H" else 0xFFFFFFFF))
        made[place:place + len(piece)] = piece
    return bytes(made)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WRITTEN)
def test_a_damaged_image_is_read_within_the_limit_or_refused_by_name(kind, tmp_path, monkeypatch):
    if kind == "heic" and not heif_is_read():
        pytest.skip("pillow-heif is not installed")
    if kind in NEEDS and not features.check(NEEDS[kind]):
        pytest.skip(f"this Pillow has no {kind}")
    monkeypatch.setenv("ASCL_MAX_IMAGE_PIXELS", str(LIMIT))
    path, rng, outcomes = tmp_path / "image.jpg", np.random.default_rng(0), {"read": 0, "refused": 0}
    path.write_bytes(whole(kind))
    assert load_image(path).image.mode == "RGB"
    for _ in range(CASES):
        path.write_bytes(damaged(whole(kind), rng))
        try:
            with warnings.catch_warnings():
                loaded = load_image(path)
        except DataError as error:
            message = str(error)
            assert message.startswith(f"{path}: ") and "\n" not in message and "the file the file" not in message
            assert not re.search(r"<_io|BytesIO|object at 0x", message)
            outcomes["refused"] += 1
        else:
            assert loaded.image.mode == "RGB" and loaded.image.width * loaded.image.height <= LIMIT
            outcomes["read"] += 1
    assert sum(outcomes.values()) == CASES and outcomes["refused"]
