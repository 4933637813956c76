"""Decoding images: what lies in people's folders."""

import struct
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import v2

from ascl.core.errors import DataError
from ascl.images.read import SquarePixels, UnreadableImage, load_image, own_pixel_limit


def smooth_image(width: int, height: int) -> Image.Image:
    """Two gradients and a bright corner: no symmetry, so that every turn and flip shows."""
    y, x = np.mgrid[0:height, 0:width]
    pixels = np.stack([255 * x / (width - 1), 255 * y / (height - 1), np.full_like(x, 90)], axis=-1).astype(np.uint8)
    pixels[: height // 4, : width // 4] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("suffix", ["png", "tif", "webp"])
@pytest.mark.parametrize(
    ("orientation", "store"),
    [  # how a camera that writes this orientation stores an upright image
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, 1)),
        (7, lambda a: np.rot90(a, 2).transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a, -1)),
    ],
)
def test_exif_orientation_is_applied(tmp_path, orientation, store, suffix):
    upright = smooth_image(40, 24)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(store(np.asarray(upright))))
    stored.save(tmp_path / f"turned.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
    loaded = load_image(tmp_path / f"turned.{suffix}")
    assert loaded.size == loaded.image.size == (40, 24)
    assert np.array_equal(np.asarray(loaded.image), np.asarray(upright))


def as_stored(mode: str) -> tuple[Image.Image, np.ndarray]:
    """An image of this mode, and the RGB that its definition gives it."""
    rgb = smooth_image(32, 32)
    gray = np.asarray(rgb.convert("L"))
    if mode == "I;16":
        return Image.fromarray(gray.astype(np.uint16) * 257), np.repeat(gray[..., None], 3, axis=2)
    if mode == "P":
        stored = rgb.quantize(64)
        return stored, np.array(stored.getpalette()).reshape(-1, 3)[np.asarray(stored)]
    if mode in ("L", "1"):
        stored = rgb.convert(mode)
        return stored, np.repeat(np.asarray(stored).astype(int)[..., None] * (255 if mode == "1" else 1), 3, axis=2)
    return rgb.convert(mode), np.asarray(rgb)


@pytest.mark.parametrize(
    ("mode", "suffix", "tolerance"),
    [("CMYK", "jpg", 12), ("P", "png", 0), ("L", "png", 0), ("1", "png", 0), ("I;16", "png", 0), ("RGBA", "png", 0)],
)
def test_every_mode_becomes_rgb(tmp_path, mode, suffix, tolerance):
    stored, wanted = as_stored(mode)
    stored.save(tmp_path / f"image.{suffix}", quality=95)
    loaded = load_image(tmp_path / f"image.{suffix}").image
    assert loaded.mode == "RGB"
    assert np.abs(np.asarray(loaded).astype(int) - wanted).max() <= tolerance


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(tmp_path, mode):
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.paste((200, 200, 200, 255), (0, 0, 4, 8))
    image.convert(mode).save(tmp_path / "image.png")
    pixels = np.asarray(load_image(tmp_path / "image.png").image)
    assert (pixels[:, 4:] == 255).all()
    assert np.abs(pixels[:, :4].astype(int) - 200).max() <= 4


def test_the_first_frame_of_an_animation_counts(tmp_path):
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "moving.gif").image.getpixel((3, 3)) == (255, 0, 0)


@pytest.mark.parametrize("kind", ["empty", "truncated", "text"])
def test_unreadable_images_are_named_with_a_reason(tmp_path, kind):
    path = tmp_path / "broken.jpg"
    smooth_image(64, 64).save(tmp_path / "whole.jpg")
    whole = (tmp_path / "whole.jpg").read_bytes()
    path.write_bytes({"empty": b"", "truncated": whole[: len(whole) // 2], "text": b"not an image"}[kind])
    with pytest.raises(UnreadableImage, match=r"broken\.jpg: cannot be read as an image \(\w+") as caught:
        load_image(path)
    assert str(tmp_path) not in caught.value.reason  # reasons go into files that are handed on


@given(width=st.integers(1, 2000), height=st.integers(1, 2000), size=st.integers(1, 600))
def test_views_lie_in_the_image_and_crop_keeps_the_aspect_ratio(width, height, size):
    assert SquarePixels(size, "squash").view(width, height) == (0, 0, width, height)
    x1, y1, x2, y2 = SquarePixels(size, "crop").view(width, height)
    assert 0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height
    assert x2 - x1 == pytest.approx(y2 - y1) == pytest.approx(min(width, height) * 7 / 8)
    assert x1 + x2 == pytest.approx(width) and y1 + y2 == pytest.approx(height)


@pytest.mark.parametrize("size", [(640, 480), (333, 500)])
def test_crop_is_the_evaluation_of_imagenet(size):
    image = smooth_image(*size)
    ours = SquarePixels(224, "crop")(image)
    theirs = np.asarray(v2.Compose([v2.Resize(256), v2.CenterCrop(224)])(image))  # rounds to whole pixels on its way
    assert ours.shape == theirs.shape == (224, 224, 3)
    assert np.abs(ours.astype(int) - theirs).mean() < 1


def test_squash_shows_all_and_crop_cuts_the_borders():
    image = Image.new("RGB", (80, 40), "black")
    image.paste((255, 255, 255), (0, 0, 10, 40))  # a white strip at the left, outside the central square
    assert SquarePixels(32, "squash")(image)[:, :3].min() == 255
    assert SquarePixels(32, "crop")(image).max() == 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK", "I;16", "I"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1)])
def test_an_image_of_one_pixel_is_an_image(tmp_path, mode, size):
    path = tmp_path / "pixel.tif"
    Image.new(mode, size, 1).save(path)
    loaded = load_image(path)
    assert loaded.size == loaded.image.size == size and loaded.image.mode == "RGB"
    assert SquarePixels(8, "crop")(loaded.image).shape == (8, 8, 3)


@pytest.mark.parametrize(("suffix", "width", "most"), [("jpg", 20_000, 24_000_000), ("png", 2_000, 240_000)])
def test_two_hundred_megapixels_are_reduced_and_keep_their_size_and_orientation(tmp_path, suffix, width, most):
    stored = Image.new("L", (width, width // 2), 40)
    stored.paste(200, (0, 0, width // 2, width // 4))  # top left as stored is top right when turned upright
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / f"large.{suffix}", exif=exif)
    loaded = load_image(tmp_path / f"large.{suffix}", whole_pixels=most)
    assert loaded.size == (width // 2, width)
    size = loaded.image.size
    assert size[0] * size[1] <= most and abs(size[1] - 2 * size[0]) <= 2  # each side is rounded up
    assert np.asarray(loaded.image.resize((2, 2), Image.Resampling.BOX))[..., 0].tolist() == [[40, 200], [40, 40]]
    assert Image.MAX_IMAGE_PIXELS is not None  # Pillow's own guard stands for everybody else


def test_a_reduced_palette_is_not_averaged_by_its_indices(tmp_path):
    image = Image.new("P", (40, 40))
    image.putpalette([255, 0, 0] + [0, 255, 0] + [0, 0, 255])
    image.paste(2, (0, 0, 40, 20))
    image.save(tmp_path / "palette.png")
    pixels = np.asarray(load_image(tmp_path / "palette.png", whole_pixels=100).image)
    assert pixels.shape == (10, 10, 3)
    assert pixels[0, 0].tolist() == [0, 0, 255] and pixels[-1, 0].tolist() == [255, 0, 0]


def test_a_decompression_bomb_is_refused_by_its_size(tmp_path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 30_000, 1, 0, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IDAT")
    with pytest.raises(UnreadableImage, match=r"\(40000 x 30000: 1,200,000,000 pixels, more than .*ASCL_MAX_IMAGE_P"):
        load_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_a_file_that_the_disk_cannot_deliver_is_no_unreadable_image(tmp_path, kind):
    if kind == "folder":
        (tmp_path / "image.jpg").mkdir()
    with pytest.raises(DataError, match=r"image\.jpg: the file cannot be read from the disk \(") as caught:
        load_image(tmp_path / "image.jpg")
    assert not isinstance(caught.value, UnreadableImage)


def test_16_bit_gray_is_not_clipped_in_any_format(tmp_path):
    gray = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    (tmp_path / "deep.pgm").write_bytes(b"P5 16 16 65535\n" + gray.astype(">u2").tobytes())
    Image.fromarray(gray).save(tmp_path / "deep.png")
    Image.fromarray(gray.astype(np.int32)).save(tmp_path / "wide.tif")
    for name in ("deep.pgm", "deep.png", "wide.tif"):
        assert np.array_equal(np.asarray(load_image(tmp_path / name).image)[..., 0], gray >> 8), name
    Image.fromarray((gray >> 8).astype(np.int32)).save(tmp_path / "narrow.tif")
    assert np.array_equal(np.asarray(load_image(tmp_path / "narrow.tif").image)[..., 0], gray >> 8)


@pytest.mark.parametrize(
    ("pixels", "problem"),
    [(np.full((4, 4), 0.5, np.float32), "floating-point"), (np.full((4, 4), 70_000, np.int32), "from 70000 to 70000"),
     (np.full((4, 4), -1, np.int32), "gray values from -1")],
)
def test_pixels_of_an_unknown_range_are_refused(tmp_path, pixels, problem):
    Image.fromarray(pixels).save(tmp_path / "image.tif")
    with pytest.raises(UnreadableImage, match=problem):
        load_image(tmp_path / "image.tif")


@pytest.mark.parametrize("damage", ["a text where a number belongs", "cut off"])
def test_damaged_exif_does_not_cost_the_photograph(tmp_path, damage):
    entries = struct.pack("<HHIHH", 0x0112, 3, 1, 6, 0) + struct.pack("<HHI4s", 0x011A, 2, 4, b"abc\0")
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, 2) + entries + struct.pack("<I", 0)
    smooth_image(40, 24).save(tmp_path / "odd.jpg", exif=exif if damage != "cut off" else exif[:20])
    assert load_image(tmp_path / "odd.jpg").size == ((24, 40) if damage != "cut off" else (40, 24))


def test_threads_that_read_at_the_same_time_restore_the_limit_of_pillow():
    before = Image.MAX_IMAGE_PIXELS
    first, second = own_pixel_limit(), own_pixel_limit()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS is None       # the second still reads
    second.__exit__(None, None, None)
    assert Image.MAX_IMAGE_PIXELS == before is not None
