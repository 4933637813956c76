"""Edits: what each does to pixels, and the content scale against an oracle that knows nothing of sample points."""

import json

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from ascl.image_copy.edits.canvas import Canvas
from ascl.image_copy.edits.color import (
    REC_709,
    hue_shifted,
    jittered,
    jpeg_compressed,
    quickly_blurred,
)
from ascl.image_copy.edits.edits import (
    BY_NAME,
    EDITS,
    HARD_EDITS,
    LEAST_CONTENT,
    edit_chain,
    random_chain,
    sample_rng,
)
from ascl.image_copy.edits.geometry import homography, inscribed, rotated
from ascl.image_copy.edits.stickers import DRAWINGS, drawn_picture, drawn_sticker

NAMES = list(EDITS)
MOVING = ["crop", "flip", "quarter_turn", "rotation", "padding", "aspect", "perspective"]
COVERING = ["text", "sticker", "overlay_of_photo"]
WITHIN = ["overlay_onto_photo", "collage", "screenshot"]
COLORING = ["blur", "jpeg", "pixelisation", "colour_jitter", "grey"]
HARD = ["tilt", "paste", "paste_soft_2", "paste_soft_5", "paste_soft_10", "in_screen", "in_stickers", "in_caption"]
BIN = 5  # pixels


def photo(width=120, height=90, seed=0) -> Image.Image:
    return drawn_picture(width, height, np.random.default_rng(seed))


OTHERS = [photo(80, 100, 1), photo(150, 60, 2)]


def test_the_names_and_their_order():
    laid_over = ["text", "sticker", "overlay_onto_photo", "overlay_of_photo", "collage", "screenshot"]
    assert NAMES == [*MOVING, *laid_over, *COLORING]
    assert all(edit.name == name for name, edit in BY_NAME.items())
    assert list(HARD_EDITS) == HARD and list(BY_NAME) == NAMES + HARD


def seen_by_colors(change, width=250, height=200) -> float:
    """Content scale of an edit that is linear in the original's colors, read off its results for three originals.

    White minus black tells how much of the original each pixel of the result shows; the colors of a third original
    name the place in it that the pixel shows. A place that no pixel shows counts 0.
    """
    y, x = np.mgrid[0:height, 0:width]
    named = np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8)
    black, white, named = (
        np.asarray(change(Image.fromarray(pixels))).astype(float)
        for pixels in (np.zeros_like(named), np.full_like(named, 255), named)
    )
    shown = (white - black).mean(axis=-1) / 255
    visible = shown > 0.05
    columns, rows = (((named - black)[visible][:, i] / shown[visible] / BIN).astype(int) for i in (0, 1))
    total, count = (np.zeros((height // BIN, width // BIN)) for _ in range(2))
    inside = (rows < height // BIN) & (columns < width // BIN)
    np.add.at(total, (rows[inside], columns[inside]), shown[visible][inside])
    np.add.at(count, (rows[inside], columns[inside]), 1)
    return float((total / np.maximum(count, 1)).mean())


@pytest.mark.parametrize("strength", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("name", MOVING + COVERING + WITHIN + HARD)
def test_content_scale_is_what_the_colors_show(name, strength):
    others = [photo(500, 400, 1)] if name.startswith("paste") else OTHERS  # it is pasted at a share of the other's size
    for draw in range(3):
        scales = []

        def change(image, draw=draw, scales=scales):
            edited = BY_NAME[name](image, strength, sample_rng(3, list(BY_NAME).index(name), draw), others)
            scales.append(edited.content_scale)
            return edited.image

        expected = seen_by_colors(change)
        assert scales[0] == scales[1] == scales[2]
        assert scales[0] == pytest.approx(expected, abs=0.05)  # a bin cut by an edge counts whole


@pytest.mark.parametrize("names", [
    ("crop", "sticker"), ("sticker", "crop"), ("rotation", "overlay_of_photo", "perspective"),
    ("collage", "crop"), ("overlay_onto_photo", "text", "rotation"), ("padding", "crop", "quarter_turn", "sticker"),
])
def test_content_scale_composes_along_chains(names):
    for draw in range(3):
        scales = []

        def change(image, draw=draw, scales=scales):
            edited = edit_chain(image, names, 0.7, sample_rng(4, 0, draw), OTHERS)
            scales.append(edited.content_scale)
            return edited.image

        assert seen_by_colors(change) == pytest.approx(scales[0], abs=0.05)


def test_the_oracle_of_the_content_scale_catches_forgotten_points():
    """Planted fault: a crop whose lost points still count shows everything."""
    assert abs(seen_by_colors(lambda image: EDITS["crop"](image, 0.6, sample_rng(0, 0)).image) - 1.0) > 0.3


def test_the_content_scale_of_a_crop_is_its_share_of_the_area():
    for draw in range(20):
        edited = EDITS["crop"](photo(300, 200), draw / 20, sample_rng(0, draw))
        box = edited.steps[0].parameters
        assert edited.content_scale == pytest.approx(box["width"] * box["height"] / 60_000, abs=0.002)
        assert edited.content_scale == pytest.approx(0.9 - 0.8 * draw / 20, abs=0.02)
        pixels = np.asarray(photo(300, 200))
        cut = pixels[box["top"] : box["top"] + box["height"], box["left"] : box["left"] + box["width"]]
        assert np.array_equal(np.asarray(edited.image), cut)


@pytest.mark.parametrize("name", COLORING)
def test_edits_of_color_leave_everything_in_place(name):
    edited = EDITS[name](photo(), 1.0, sample_rng(0, 0))
    assert edited.content_scale == 1.0 and edited.image.size == (120, 90)
    assert not np.array_equal(np.asarray(edited.image), np.asarray(photo()))


@pytest.mark.parametrize("name", ["crop", "sticker", "text", "overlay_of_photo"])
def test_harder_shows_less(name):
    mean = [np.mean([EDITS[name](photo(), s, sample_rng(0, i), OTHERS).content_scale for i in range(12)])
            for s in (0.0, 0.5, 1.0)]
    assert mean[0] > mean[1] + 0.01 > mean[2] + 0.02


@pytest.mark.parametrize("name", ["blur", "jpeg", "pixelisation", "colour_jitter", "grey"])
def test_harder_changes_colors_more(name):
    original = np.asarray(photo()).astype(int)
    change = [np.mean([abs(np.asarray(EDITS[name](photo(), s, sample_rng(0, i)).image).astype(int) - original).mean()
                       for i in range(8)]) for s in (0.0, 1.0)]
    assert change[0] < change[1]


def test_flips_and_quarter_turns_are_those_of_arrays():
    pixels = np.asarray(photo())
    assert np.array_equal(np.asarray(EDITS["flip"](photo(), 0.0, sample_rng(0, 0)).image), pixels[:, ::-1])
    assert np.array_equal(np.asarray(EDITS["flip"](photo(), 1.0, sample_rng(0, 0)).image), pixels[::-1])
    seen = set()
    for draw in range(12):
        edited = EDITS["quarter_turn"](photo(), 0.5, sample_rng(0, 0, draw))
        degrees = edited.steps[0].parameters["degrees"]
        seen.add(degrees)
        assert np.array_equal(np.asarray(edited.image), np.rot90(pixels, degrees // 90))
    assert seen == {90, 180, 270}


@pytest.mark.parametrize("turns", [1, 2, 3])
@pytest.mark.parametrize("size", [(40, 24), (31, 31)])
def test_a_rotation_by_a_right_angle_is_a_quarter_turn(size, turns):
    canvas = rotated(Canvas.of(photo(*size)), 90 * turns, "expand", (0, 0, 0))
    difference = abs(np.asarray(canvas.image).astype(int) - np.rot90(np.asarray(photo(*size)), turns))
    assert canvas.content_scale > 0.99 and (difference > 2).mean() < 0.01


def test_a_rotated_picture_has_its_points_where_its_pixels_are():
    """A bright square: the sample points inside it are found on bright pixels after the turn, and only they."""
    original = Image.new("RGB", (100, 60))
    original.paste((255, 255, 255), (60, 10, 80, 30))
    start = Canvas.of(original)
    in_square = (start.points[0] > 61) & (start.points[0] < 79) & (start.points[1] > 11) & (start.points[1] < 29)
    canvas = rotated(start, 33, "expand", (0, 0, 0))
    assert len(canvas.seen) == len(start.seen)
    x, y = canvas.points.astype(int)
    assert (np.asarray(canvas.image)[y, x, 0] > 127)[in_square].all()
    assert (np.asarray(canvas.image)[..., 0] > 127).sum() == pytest.approx(400, rel=0.05)


@pytest.mark.parametrize("operation", [
    lambda c: c.flipped(horizontal=True), lambda c: c.flipped(horizontal=False), lambda c: c.turned(1),
    lambda c: c.turned(2), lambda c: c.turned(3), lambda c: c.cropped(20, 30, 100, 60), lambda c: c.resized(70, 160),
    lambda c: c.resized(90, 50, box=(10.5, 20.0, 150.0, 99.5)), lambda c: rotated(c, 25, "same", (0, 0, 0)),
    lambda c: rotated(c, -70, "inscribed", (0, 0, 0)), lambda c: c.pasted_on(Image.new("RGB", (300, 250)), 31, 47),
    lambda c: c.warped(np.array([[1.1, 0.2, -9], [0.1, 0.8, 4], [0.0008, 0.001, 1]]), 150, 110, (0, 0, 0)),
])
def test_every_operation_moves_points_as_it_moves_pixels(operation):
    """Colors name the place in the original; each point finds its own place in the colors under it."""
    y, x = np.mgrid[0:120, 0:180]
    start = Canvas.of(Image.fromarray(np.stack([x, y, 0 * x], axis=-1).astype(np.uint8)))
    numbered = Canvas(start.image, start.points, np.arange(len(start.seen), dtype=np.float32))
    moved = operation(numbered)
    here = moved.points.astype(int)
    inner = ((here > 2) & (here < np.array(moved.image.size)[:, None] - 3)).all(axis=0)
    colors = np.asarray(moved.image).astype(float)[here[1], here[0], :2]
    places = start.points[:, moved.seen.astype(int)].T - 0.5
    off = abs(colors - places)[inner]
    assert len(off) > 800 and np.quantile(off, 0.98) < 3 and np.median(off) < 1.5


@given(st.floats(1, 500), st.floats(1, 500), st.floats(-3.1, 3.1))
def test_the_inscribed_rectangle_lies_inside_the_turned_one_and_touches_it(width, height, angle):
    w, h = inscribed(width, height, angle)
    assert w > 0 and h > 0
    corners = np.array([[w, h], [w, -h]]) / 2
    sine, cosine = np.sin(angle), np.cos(angle)
    back = abs(corners @ np.array([[cosine, -sine], [sine, cosine]]))
    over = (back - np.array([width, height]) / 2) / max(width, height)
    assert over.max() == pytest.approx(0, abs=1e-6)


def test_a_homography_takes_its_points_where_it_should():
    source = np.array([[0, 0], [10, 0], [10, 8], [0, 8]], float)
    target = np.array([[1, 2], [9, 1], [12, 9], [-1, 7]], float)
    mapped = homography(source, target) @ np.vstack([source.T, np.ones(4)])
    assert np.allclose((mapped[:2] / mapped[2]).T, target)


def test_padding_and_overlay_hold_the_original_where_they_say():
    edited = EDITS["padding"](photo(), 0.7, sample_rng(0, 0))
    sides = edited.steps[0].parameters
    left, top = sides["left"], sides["top"]
    pixels = np.asarray(edited.image)
    assert np.array_equal(pixels[top : top + 90, left : left + 120], np.asarray(photo()))
    assert edited.image.size == (120 + left + sides["right"], 90 + top + sides["bottom"])
    assert (pixels[:top] == sides["fill"]).all() and (pixels[top + 90 :] == sides["fill"]).all()
    edited = EDITS["overlay_onto_photo"](photo(), 1.0, sample_rng(0, 0), [Image.new("RGB", (9, 9), (1, 2, 3))])
    outside = (np.asarray(edited.image) == (1, 2, 3)).all(axis=-1).mean()
    assert edited.image.size == (120, 90) and outside == pytest.approx(0.9, abs=0.01)
    assert edited.content_scale == 1.0


def test_the_other_photos_are_used_and_drawn_where_there_is_none():
    plain = Image.new("RGB", (50, 50), (9, 200, 9))
    for name in ("overlay_onto_photo", "overlay_of_photo", "collage"):
        with_plain = EDITS[name](photo(), 1.0, sample_rng(0, 1), [plain]).image
        assert (abs(np.asarray(with_plain).astype(int) - (9, 200, 9)).max(axis=-1) <= 110).mean() > 0.2
        drawn = EDITS[name](photo(), 1.0, sample_rng(0, 1))
        assert drawn.image.size == with_plain.size


def test_a_collage_has_the_original_in_its_cell():
    edited = EDITS["collage"](photo(), 1.0, sample_rng(0, 0), [Image.new("RGB", (5, 5), (0, 0, 0))])
    at = edited.steps[0].parameters
    width, height = edited.image.width // at["columns"], edited.image.height // at["rows"]
    left, top = at["cell"] % at["columns"] * width, at["cell"] // at["columns"] * height
    cell = edited.image.crop((left, top, left + width, top + height))
    expected = photo().resize((width, height), Image.Resampling.BILINEAR)
    assert (at["columns"], at["rows"]) == (3, 3) and np.array_equal(np.asarray(cell), np.asarray(expected))
    assert (np.asarray(edited.image).sum(axis=-1) == 0).mean() > 0.85


def test_color_changes_are_torchvisions():
    image = photo()
    for name, adjust in (("brightness", tvf.adjust_brightness), ("contrast", tvf.adjust_contrast),
                         ("saturation", tvf.adjust_saturation)):
        for factor in (0.0, 0.4, 1.7):
            assert np.array_equal(np.asarray(jittered(image, {name: factor})), np.asarray(adjust(image, factor)))


def test_hue_turns_keep_grays_and_luma_and_go_round():
    grey = Image.fromarray(np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2))
    assert abs(np.asarray(hue_shifted(grey, 0.2)).astype(int) - np.asarray(grey)).max() <= 1
    soft = Image.fromarray((np.asarray(photo()) // 4 + 96).astype(np.uint8))  # no clipping
    luma = [np.asarray(picture).astype(float) @ REC_709 for picture in (soft, hue_shifted(soft, 0.15))]
    assert abs(luma[0] - luma[1]).max() < 2
    assert abs(np.asarray(hue_shifted(soft, 1.0)).astype(int) - np.asarray(soft)).max() <= 1
    red = np.asarray(hue_shifted(Image.new("RGB", (1, 1), (200, 60, 60)), 1 / 3))[0, 0]
    assert red.argmax() == 1  # a third of the circle on lies green
    tv = np.asarray(tvf.adjust_hue(soft, 0.1)).astype(int)
    near, far = (abs(np.asarray(hue_shifted(soft, shift)).astype(int) - tv).mean() for shift in (0.1, -0.1))
    assert near < far  # the same direction; HSV keeps other things than luma, so not the same colors


def test_gray_pixelation_and_jpeg_are_what_they_are_called():
    pixels = np.asarray(EDITS["grey"](photo(), 0.0, sample_rng(0, 0)).image)
    assert abs(pixels - np.asarray(photo().convert("L"))[..., None].astype(int)).max() <= 1
    pixels = np.asarray(EDITS["grey"](photo(), 1.0, sample_rng(0, 0)).image)
    assert (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
    edited = EDITS["pixelisation"](photo(), 1.0, sample_rng(0, 0))
    blocks = edited.steps[0].parameters
    assert len(np.unique(np.asarray(edited.image).reshape(-1, 3), axis=0)) <= blocks["columns"] * blocks["rows"]
    assert blocks == {"columns": 27, "rows": 20}
    assert EDITS["jpeg"](photo(), 1.0, sample_rng(0, 0)).steps[0].parameters == {"quality": 3}


@pytest.mark.parametrize("radius", [0.5, 2.0, 3.3, 5.0])
def test_the_quick_blur_is_near_the_plain_one(radius):
    from PIL import ImageFilter

    image = photo(224, 224)
    plain = np.asarray(image.filter(ImageFilter.GaussianBlur(radius))).astype(int)
    quick = np.asarray(quickly_blurred(image, radius)).astype(int)
    assert abs(plain - quick).mean() < 1.5
    assert (abs(plain - quick).mean() == 0) == (radius < 2)
    assert abs(plain - np.asarray(image)).mean() > abs(plain - quick).mean()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (1, 3), (5, 4), (600, 1), (1, 600), (900, 7)])
@pytest.mark.parametrize("name", BY_NAME)
def test_tiny_and_extreme_images_stay_images(name, size):
    image = photo(*size)
    before = image.tobytes()
    for strength in (0.0, 0.5, 1.0):
        for draw in range(3):
            edited = BY_NAME[name](image, strength, sample_rng(0, 1, draw), OTHERS)
            assert edited.image.mode == "RGB" and edited.image.width >= 1 and edited.image.height >= 1
            assert 0 <= edited.content_scale <= 1
            most = max(size) ** 2 + 10_000 if name in HARD else 4 * size[0] * size[1] + 1000
            assert edited.image.width * edited.image.height <= most
            json.dumps(edited.steps[0].parameters)
    assert image.tobytes() == before


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 90), st.integers(1, 90), st.floats(0, 1), st.integers(0, 10**6))
def test_random_chains_of_any_image(width, height, strength, index):
    edited = random_chain(photo(width, height), strength, sample_rng(0, index), OTHERS)
    assert edited.image.mode == "RGB" and min(edited.image.size) >= 1 and 0 <= edited.content_scale <= 1
    assert 2 <= len({step.name for step in edited.steps}) == len(edited.steps) <= 4


def test_random_chains_always_show_something():
    scales = [random_chain(photo(60, 40), 1.0, sample_rng(0, i), OTHERS).content_scale for i in range(100)]
    assert min(scales) >= LEAST_CONTENT
    names = ["collage", "crop", "crop"]  # such a chain can miss the original, so the rule above has work to do
    assert min(edit_chain(photo(60, 40), names, 1.0, sample_rng(0, i), OTHERS).content_scale for i in range(20)) == 0


def test_a_pasted_picture_fades_over_the_width_that_its_name_says():
    """White on black: from the corner of what was pasted inwards, levels rise evenly, or at once."""
    white, black = Image.new("RGB", (200, 200), (255,) * 3), Image.new("RGB", (400, 400))
    for name, percent in (("paste", 0), ("paste_soft_2", 2), ("paste_soft_5", 5), ("paste_soft_10", 10)):
        edited = BY_NAME[name](white, 0.0, sample_rng(0, 0), [black])
        levels = np.asarray(edited.image)[..., 0].astype(int)
        step = edited.steps[0].parameters
        side = round(400 * 0.6**0.5)
        row = levels[step["top"] + side // 2, step["left"] : step["left"] + side]
        assert (np.diff(row[: side // 2]) >= 0).all() and np.array_equal(row, row[::-1]) and row[side // 2] == 255
        width = percent / 100 * side
        assert (row < 255).sum() / 2 == pytest.approx(width, abs=1 + 0.1 * width)
        assert not percent or np.diff(row).max() <= 1.6 * 255 / width + 1
        assert levels[step["top"] + side // 2, : step["left"]].max(initial=0) == 0
        fading = 1 - (1 - percent / 100) ** 2       # the mean of a smooth step is a half
        assert edited.content_scale == pytest.approx(1 - fading, abs=0.01)


def test_images_too_long_for_jpeg_and_for_a_turn():
    image = Image.new("RGB", (70_000, 2), (10, 120, 200))
    image.paste((250, 0, 0), (69_000, 0, 70_000, 2))
    compressed = jpeg_compressed(image, 90)
    assert compressed.size == image.size
    assert abs(np.asarray(compressed).astype(int) - np.asarray(image)).mean() < 2
    turned = rotated(Canvas.of(image), 45, "expand", (0, 0, 0))
    assert turned.image.width * turned.image.height <= 2.1 * 140_000
    assert turned.content_scale > 0.9


@pytest.mark.parametrize("name", BY_NAME)
def test_the_same_sample_is_the_same_edit_and_another_is_not(name):
    one, two, *others = (BY_NAME[name](photo(), 0.5, sample_rng(7, index), OTHERS) for index in (5, 5, *range(6, 14)))
    assert one.image.tobytes() == two.image.tobytes() and one.steps == two.steps
    assert [step.name for step in one.steps] == [name]
    if name not in ("flip", "blur", "jpeg", "pixelisation"):  # nothing is drawn for these
        assert any(other.image.tobytes() != one.image.tobytes() for other in others)


class EditedPhotos(torch.utils.data.Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        edited = random_chain(photo(64, 48, index), 0.5, sample_rng(1, index), OTHERS)
        return index, edited.image.tobytes(), edited.content_scale


def test_edits_are_the_same_in_every_worker_and_order():
    alone = [EditedPhotos()[i] for i in range(12)]
    by_workers = list(DataLoader(EditedPhotos(), batch_size=None, num_workers=2))
    backwards = [EditedPhotos()[i] for i in reversed(range(12))][::-1]
    assert alone == [tuple(item) for item in by_workers] == backwards


def test_generators_differ_in_each_number_and_refuse_large_ones():
    first = {sample_rng(*numbers).integers(2**62) for numbers in
             [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)]}
    assert len(first) == 7
    for numbers in [(-1, 0), (2**32, 5), (0, 2**32), (0, 0, -1)]:
        with pytest.raises(ValueError, match="from 0 to"):
            sample_rng(*numbers)


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_strengths_outside_are_refused(strength):
    with pytest.raises(ValueError, match="between 0"):
        EDITS["crop"](photo(), strength, sample_rng(0, 0))


def test_other_modes_empty_images_and_unknown_names_are_refused():
    with pytest.raises(ValueError, match="not L"):
        EDITS["crop"](Image.new("L", (4, 4)), 0.5, sample_rng(0, 0))
    with pytest.raises(ValueError, match="0 x 4"):
        EDITS["crop"](Image.new("RGB", (0, 4)), 0.5, sample_rng(0, 0))
    with pytest.raises(ValueError, match="unknown edit 'melt'; use one of crop"):
        edit_chain(photo(), ["melt"], 0.5, sample_rng(0, 0))


def test_every_sticker_covers_part_of_its_square():
    shares = []
    for draw in range(60):
        colors, mask = drawn_sticker(64, np.random.default_rng(draw))
        assert colors.size == mask.size == (64, 64) and (colors.mode, mask.mode) == ("RGB", "L")
        shares.append(np.asarray(mask).mean() / 255)
    assert 0.1 < min(shares) and max(shares) < 0.95 and len(DRAWINGS) == 9
