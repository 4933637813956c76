"""Images of any mode in RGB: transparency that shows, deep gray, blank pictures."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, TiffImagePlugin

from ascl.images import rgb
from ascl.images.read import UnreadableImage, load_image
from ascl.images.rgb import blankness, to_rgb


def drawing(color, background=(0, 0, 0, 0), line=(10, 5, 190, 180)) -> Image.Image:
    image = Image.new("RGBA", (200, 200), background)
    ImageDraw.Draw(image).line(line, color, 6)
    return image


@pytest.mark.parametrize(("color", "behind"), [
    ((255, 255, 255, 255), (64, 64, 64)), ((250, 250, 235, 255), (64, 64, 64)), ((200, 200, 200, 255), (255,) * 3),
    ((0, 0, 0, 255), (255,) * 3), ((255, 255, 0, 255), (255,) * 3), ((255, 255, 255, 0), (255,) * 3),
])
def test_what_lies_behind_transparency_shows_the_drawing(color, behind):
    image = to_rgb(drawing(color))
    assert image.getpixel((199, 0)) == behind
    assert blankness(image) == ("nearly blank" if color[3] else "blank")  # one line


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_white_drawings_differ_in_every_mode_with_transparency(tmp_path, mode):
    made = []
    for number, line in enumerate([(10, 5, 190, 180), (10, 190, 190, 20)]):
        drawing((255, 255, 255, 255), line=line).convert(mode).save(tmp_path / f"{number}.tif" if mode == "PA" else
                                                                    tmp_path / f"{number}.png")
        made.append(np.asarray(load_image(next(tmp_path.glob(f"{number}.*"))).image).astype(int))
    assert np.abs(made[0] - made[1]).mean() > 5


def test_only_light_pictures_are_laid_over_gray_however_much_is_transparent():
    mixed = drawing((255, 255, 255, 255))
    ImageDraw.Draw(mixed).rectangle((0, 190, 60, 199), (0, 0, 0, 255))  # a third of what is visible
    assert to_rgb(mixed).getpixel((199, 0)) == (255, 255, 255)
    opaque = Image.new("RGBA", (40, 40), (255, 255, 255, 255))
    assert to_rgb(opaque).getextrema() == ((255, 255),) * 3


@pytest.mark.parametrize("mode", ["RGBA", "P", "I;16", "L", "CMYK", "LA"])
@pytest.mark.parametrize("factor", [1, 3])
def test_strips_give_what_the_whole_image_gives(monkeypatch, mode, factor):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (50, 37, 4), dtype=np.uint8), "RGBA")
    if mode == "I;16":
        image = Image.fromarray(rng.integers(0, 65536, (50, 37), dtype=np.uint16))
    elif mode != "RGBA":
        image = image.convert("RGB").convert(mode) if mode in ("P", "CMYK") else image.convert(mode)
    whole = to_rgb(image, 1)
    monkeypatch.setattr(rgb, "STRIP_PIXELS", 37 * 4)
    wanted = whole.reduce(factor) if factor > 1 else whole
    assert np.array_equal(np.asarray(to_rgb(image, factor)), np.asarray(wanted))


GRADIENT = np.linspace(0, 1, 64).reshape(8, 8)


@pytest.mark.parametrize("tag", [{281: 4095}, {341: 3900}, {281: (4095,)}])
def test_twelve_bits_in_sixteen_are_scaled_by_what_the_tags_say(tmp_path, tag):
    pixels = (GRADIENT * 3900).astype(np.uint16)
    kinds = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in tag.items():
        kinds[number] = value
        kinds.tagtype[number] = 3
    Image.fromarray(pixels).save(tmp_path / "deep.tif", tiffinfo=kinds)
    assert np.array_equal(np.asarray(load_image(tmp_path / "deep.tif").image)[..., 0], pixels >> 4)


@pytest.mark.parametrize("suffix", ["tif", "png"])
@pytest.mark.parametrize("highest", [200, 1023, 4095, 16383])
def test_sixteen_bits_of_unknown_range_are_refused_and_not_black(tmp_path, suffix, highest):
    Image.fromarray((GRADIENT * highest).astype(np.uint16)).save(tmp_path / f"deep.{suffix}")
    with pytest.raises(UnreadableImage, match=f"16-bit values of at most {highest}: it is unknown whether they have"):
        load_image(tmp_path / f"deep.{suffix}")


@pytest.mark.parametrize("fill", [0, 700])
def test_a_picture_of_one_gray_needs_no_range(tmp_path, fill):
    Image.fromarray(np.full((8, 8), fill, np.uint16)).save(tmp_path / "flat.png")
    assert load_image(tmp_path / "flat.png").image.getextrema() == ((fill >> 8,) * 2,) * 3


@pytest.mark.parametrize(("factor", "fine"), [(60_000, True), (4095, False)])
def test_colors_of_sixteen_bits_are_held_to_the_same_rule(tmp_path, factor, fine):
    """A PNG by hand: Pillow reads 16 bits a color, and writes none."""
    import struct
    import zlib

    pixels = np.repeat((GRADIENT * factor).astype(">u2")[..., None], 3, axis=2)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    (tmp_path / "deep.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 8, 8, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    if fine:
        assert np.array_equal(np.asarray(load_image(tmp_path / "deep.png").image), (pixels >> 8).astype(np.uint8))
    else:
        with pytest.raises(UnreadableImage, match="16-bit values of at most 3840"):
            load_image(tmp_path / "deep.png")


def noisy(deviation: float) -> Image.Image:
    noise = np.random.default_rng(0).normal(128, deviation, (200, 200, 3))
    return Image.fromarray(noise.clip(0, 255).astype(np.uint8))


@pytest.mark.parametrize(("image", "wanted"), [
    (Image.new("RGB", (200, 200), "white"), "blank"), (Image.new("RGB", (3, 999), "red"), "blank"),
    (noisy(10), "blank"), (noisy(60), ""), (drawing((0, 0, 0, 255), (255,) * 4).convert("RGB"), "nearly blank"),
    (Image.fromarray(np.linspace(0, 90, 200)[None].repeat(200, 0).astype(np.uint8)).convert("RGB"), ""),
])
def test_blank_pictures_are_those_in_which_nothing_or_little_differs(image, wanted):
    assert blankness(image) == wanted


def test_colors_of_one_luminance_are_not_blank():
    image = Image.new("RGB", (64, 64), (200, 0, 0))
    image.paste((0, 102, 0), (0, 0, 32, 64))
    assert blankness(image) == "" and blankness(image.convert("L").convert("RGB")) == "blank"


def test_no_photograph_is_called_blank(shared):
    folder = shared / "data" / "flickr8k" / "images"
    flattest = ["3173014908_b3e69594b6.jpg", "323657582_b6b6d8f7bd.jpg", "3190677999_60bbd330fd.jpg"]  # and plainest
    paths = [path for path in sorted(folder.iterdir())[::40] + [folder / name for name in flattest] if path.exists()]
    assert len(paths) > 100 and not [path for path in paths if blankness(load_image(path).image)]
