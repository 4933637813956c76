"""Which part of a picture is which part of another, on pictures whose true relation is known."""

import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageOps

from ascl.core.errors import DataError
from ascl.image_copy.edits.canvas import Canvas
from ascl.image_copy.edits.templates import caption, screen, stickers
from ascl.image_copy.matching.geometry import COPIES, area, clipped, matches, plausible, relate
from ascl.image_copy.matching.local_features import LocalFeatures, local_features

from .drawn import scene

pytest.importorskip("cv2")


def relation_of(query: Image.Image, reference: Image.Image):
    return relate(local_features(query), local_features(reference))


def pasted(image: Image.Image, onto: Image.Image, box: tuple[int, int, int, int], feather: int = 0) -> Image.Image:
    small = image.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.LANCZOS)
    rows, columns = np.mgrid[: small.height, : small.width]
    edge = np.minimum(np.minimum(columns, small.width - 1 - columns), np.minimum(rows, small.height - 1 - rows))
    mask = np.full(edge.shape, 255, np.uint8) if not feather else np.uint8(255 * np.clip(edge / feather, 0, 1))
    result = onto.copy()
    result.paste(small, box[:2], Image.fromarray(mask))
    return result


CROP = (90, 40, 300, 220)       # of 360 x 270


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("mirrored", [False, True])
def test_a_crop_lies_within_and_the_whole_shows_more(seed, mirrored):
    whole = scene(seed)
    crop = whole.crop(CROP)
    crop = ImageOps.mirror(crop) if mirrored else crop
    found = relation_of(crop, whole)
    assert (found.kind, found.copy, found.mirrored) == ("within", True, mirrored)
    assert found.query_share > 0.98 and found.agreement > 0.9
    assert found.reference_share == pytest.approx(210 * 180 / (360 * 270), abs=0.03)
    left, top, right, bottom = CROP
    expected = [[-left / 210, -top / 180], [(360 - left) / 210, -top / 180],
                [(360 - left) / 210, (270 - top) / 180], [-left / 210, (270 - top) / 180]]
    np.testing.assert_allclose(found.corners, expected, atol=0.05)

    back = relation_of(whole, crop)
    assert back.kind in ("shows more", "unsure") and not back.copy and back.mirrored == mirrored
    assert back.reference_share > 0.98 and back.query_share == pytest.approx(found.reference_share, abs=0.03)


@pytest.mark.parametrize("seed", range(4))
def test_what_surrounds_a_picture_tells_a_border_and_a_paste_from_its_scene(seed):
    image, other = scene(seed), scene(100 + seed)
    assert relation_of(ImageOps.expand(image, (50, 30), (20, 90, 160)), image).kind == "border"
    box = (40, 60, 260, 225)
    for feather in (0, 4, 16):
        found = relation_of(pasted(image, other, box, feather), image)
        assert (found.kind, found.copy) == ("pasted", True), feather
    assert relation_of(image.point(lambda value: 0.7 * value + 30), image).kind == "same"


@pytest.mark.parametrize("seed", range(6))
def test_where_one_was_changed_inside_nobody_is_called_the_copy_of_a_crop(seed):
    """The reference is a crop with a bar over it, or the query shows a part of the reference on another picture: which
    of the two was changed cannot be told."""
    whole = scene(seed)
    crop = whole.crop(CROP)
    crop.paste((0, 0, 0), (0, 130, 210, 180))
    found = relation_of(whole, crop)
    assert found.copy is None and found.kind == "unsure" and found.agreement < 0.8
    found = relation_of(pasted(whole.crop(CROP), scene(50 + seed), (20, 30, 230, 210)), whole)
    assert found.kind in ("pasted", "unsure") and found.copy is not False and found.agreement < 0.8


@pytest.mark.parametrize("seed", range(4))
def test_a_thing_on_a_plain_ground_has_no_border(seed):
    """The whole shows more of the same ground; that could be a border too."""
    ground = Image.new("RGB", (500, 400), (250, 250, 250))
    mask = Image.new("L", (360, 270), 0)
    ImageDraw.Draw(mask).ellipse((85, 60, 275, 210), fill=255)
    ground.paste(scene(seed), (70, 65), mask)
    found = relation_of(ground, ground.crop((140, 110, 360, 290)))
    assert (found.kind, found.copy) == ("unsure", None)


def test_shares_under_a_strong_perspective():
    """The vanishing line of the reference crosses the query."""
    image, other, quad = scene(3), scene(9), ((130, 70), (280, 30), (280, 240), (130, 160))
    query = onto_quad(image, other, quad)
    found = relation_of(query, image)
    assert found.kind == "pasted" and found.reference_share > 0.97 and found.agreement > 0.9
    assert found.query_share == pytest.approx(area(np.array(quad)) / (360 * 270), abs=0.02)
    np.testing.assert_allclose(found.corners * (360, 270), quad, atol=4)


def onto_quad(image: Image.Image, onto: Image.Image, quad) -> Image.Image:
    corners = np.array([[0, 0], [image.width, 0], [image.width, image.height], [0, image.height]], dtype=np.float64)
    rows = []
    for (x, y), (u, v) in zip(quad, corners, strict=True):      # query (x, y) -> reference (u, v), as PIL wants it
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    values = np.linalg.solve(np.array(rows, dtype=np.float64), corners.ravel())
    laid, mask = (part.transform(onto.size, Image.Transform.PERSPECTIVE, values, Image.Resampling.BICUBIC)
                  for part in (image, Image.new("L", image.size, 255)))
    result = onto.copy()
    result.paste(laid, (0, 0), mask)
    return result


def test_two_parts_of_a_scene_are_copies_of_neither():
    kinds = []
    for image in map(scene, range(4)):
        found = relation_of(image.crop((0, 0, 250, 270)), image.crop((110, 0, 360, 270)))
        kinds.append(found.kind)
        assert found.copy is None and found.query_share == pytest.approx(140 / 250, abs=0.04)
    assert set(kinds) <= {"partial", "unsure"} and kinds.count("partial") >= 2


def test_unrelated_pictures_have_no_relation():
    features = [local_features(scene(seed)) for seed in range(12)]
    features += [local_features(Image.new("RGB", (300, 200), (9, 9, 9))), local_features(Image.new("RGB", (3, 900)))]
    found = [relate(a, b) for i, a in enumerate(features) for j, b in enumerate(features) if i != j]
    assert found == [None] * (14 * 13)


def test_two_pictures_under_one_template_are_not_related():
    """A wide frame with a pattern, as of a program's window: what they share is the frame alone."""
    frame, box = scene(7, 400, 300), (50, 40, 350, 260)
    shown = [pasted(scene(seed), frame, box) for seed in (20, 21, 22)]
    for one, other in ((0, 1), (1, 2), (2, 0)):
        found = relation_of(shown[one], shown[other])
        assert found is None or found.agreement < 0.6


def test_photographs(shared):
    """A crop, a reverse crop, a mirrored print in a frame, and strangers, of 12 real photographs."""
    files = sorted((shared / "data" / "flickr8k" / "full1000").glob("*.jpg"))[:12]
    photos = [Image.open(file).convert("RGB") for file in files]
    features = [local_features(photo) for photo in photos]
    found = []
    for photo, own in zip(photos, features, strict=True):
        width, height = photo.size
        crop = photo.crop((width // 5, height // 6, width * 4 // 5, height * 5 // 6))
        framed = ImageOps.expand(ImageOps.mirror(photo), 60, (240, 240, 235))
        found.append([relate(local_features(crop), own).kind, relate(own, local_features(crop)).kind,
                      relate(local_features(framed), own).kind])
    assert [kinds[0] for kinds in found] == ["within"] * 12 and [kinds[2] for kinds in found] == ["border"] * 12
    reverse = [kinds[1] for kinds in found]
    assert reverse.count("shows more") >= 10        # one is called a paste: an edge in the photo lies along the crop's
    assert [relate(a, b) for i, a in enumerate(features) for b in features[i + 1 :]] == [None] * 66


def test_the_same_pair_has_the_same_relation():
    query, reference = local_features(scene(3).rotate(7, expand=True)), local_features(scene(3))
    first, again = relate(query, reference), relate(query, reference)
    assert np.array_equal(first.corners, again.corners) and first.to_dict() == again.to_dict()
    assert first.kind in COPIES and first.to_dict()["corners"] == first.corners.round(4).tolist()


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), rows=st.integers(0, 12), columns=st.integers(0, 12), ties=st.booleans())
def test_matches_are_nearest_clearly_and_once(seed, rows, columns, ties):
    rng = np.random.default_rng(seed)

    def some(count: int) -> LocalFeatures:
        values = rng.integers(1, 4, (count, 128)) if ties else rng.integers(0, 256, (count, 128))
        return LocalFeatures((8, 8), np.zeros((count, 2), np.float32), values.astype(np.uint8), b"")

    query, reference = some(rows), some(columns)
    if rows and columns:        # near copies, so that there is something to find
        query.sift[: min(rows, columns) // 2] = reference.sift[: min(rows, columns) // 2]
    expected = {}               # reference point -> (distance, query point)
    if rows >= 4 and columns >= 4:
        for number, one in enumerate(query.descriptors.astype(np.float64)):
            distances = np.linalg.norm(reference.descriptors.astype(np.float64) - one, axis=1)
            near, second = np.argsort(distances, kind="stable")[:2]
            if distances[near] < 0.8 * distances[second] - 1e-3:
                expected.setdefault(int(near), []).append((distances[near], number))
    found = matches(query, reference)
    assert len(set(found[:, 0].tolist())) == len(set(found[:, 1].tolist())) == len(found)
    for number, at in found.tolist():
        assert at in expected and min(expected[at])[0] == pytest.approx(
            np.linalg.norm(query.descriptors[number] - reference.descriptors[at]), abs=1e-3)
    assert set(expected) <= set(found[:, 1].tolist())


@settings(max_examples=100, deadline=None)
@given(angle=st.floats(0, 6.3), scale=st.floats(0.15, 8), x=st.floats(-500, 500), y=st.floats(-500, 500))
def test_the_common_part_is_that_of_a_fine_grid(angle, scale, x, y):
    turned = min(scale, 1.5) * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = np.array([[0, 0], [90, 0], [90, 60], [0, 60]]) @ turned.T + np.array([x, y]) / 10
    grid = np.stack(np.meshgrid(np.arange(90) + 0.5, np.arange(60) + 0.5), axis=-1).reshape(-1, 2)
    inside = np.all([(grid - a) @ np.array([b[1] - a[1], a[0] - b[0]]) <= 0
                     for a, b in zip(corners, np.roll(corners, -1, axis=0), strict=True)], axis=0)
    part = clipped(corners, (90, 60))
    assert area(part) / (90 * 60) == pytest.approx(inside.mean(), abs=0.02)
    assert len(part) == 0 or ((part >= -1e-9).all() and (part <= np.array([90, 60]) + 1e-9).all())


@settings(max_examples=100, deadline=None)
@given(angle=st.floats(0, 6.3), scale=st.floats(0.15, 8), x=st.floats(-500, 500), y=st.floats(-500, 500))
def test_turned_and_scaled_is_plausible_and_mirrored_is_not(angle, scale, x, y):
    turned = scale * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    homography = np.vstack([np.column_stack([turned, [x, y]]), [0, 0, 1]])
    assert plausible(homography, (384, 256))
    assert not plausible(homography @ np.diag([-1.0, 1.0, 1.0]), (384, 256))
    assert not plausible(homography @ np.diag([9.0, 1.0, 1.0]), (384, 256))
    assert not plausible(homography @ np.diag([100.0, 100.0, 1.0]), (384, 256))
    assert not plausible(homography @ [[1, 0, 0], [0, 1, 0], [1 / 300, 0, 0.1]], (384, 256))
    assert not plausible(homography * np.nan, (384, 256))


def test_without_opencv_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(DataError, match=r"needs OpenCV: pip install 'ascl\[search\]'"):
        local_features(scene(0))


@pytest.mark.parametrize("draw", [screen, stickers, caption])
@pytest.mark.parametrize("strength", [0.2, 0.8])
def test_two_pictures_under_one_template_are_no_copies_and_one_picture_is(draw, strength):
    template = draw(360, 270, strength, np.random.default_rng(2))
    first, second = (template.around(Canvas.of(scene(seed))).image for seed in (0, 20))
    found = relation_of(first, second)
    assert found is None or (found.kind, found.copy) == ("unsure", None)
    assert relation_of(first, scene(0)).copy and relation_of(first, first.convert("L").convert("RGB")).kind == "same"


@pytest.mark.parametrize("seed", range(4))
def test_what_a_slight_rotation_fills_is_no_seam(seed):
    """The corners of a tilted photograph have one color; a reference whose edge lies there was not pasted."""
    whole = scene(seed).resize((720, 540))
    tilted = whole.rotate(4, Image.Resampling.BICUBIC, fillcolor=(250, 20, 20))
    found = relation_of(tilted, whole.crop((20, 20, 700, 480)))
    assert found.kind in ("shows more", "unsure") and not found.copy


@pytest.mark.parametrize("seed", range(4))
def test_the_picture_that_was_pasted_is_the_source(seed):
    image, other = scene(seed), scene(100 + seed)
    collage = pasted(image, other, (40, 60, 260, 225))
    found = relation_of(image, collage)
    assert (found.kind, found.copy, found.reversed) == ("source", None, True)
    framed = ImageOps.expand(image, (50, 30), (20, 90, 160))
    assert relation_of(image, framed).kind == "source" and relation_of(framed, image).kind == "border"


def test_a_spot_that_was_changed_is_measured_and_brightness_is_not():
    image = scene(1)
    changed = image.copy()
    changed.paste((250, 250, 250), (100, 80, 160, 140))
    assert relation_of(changed, image).changed == pytest.approx(60 * 60 / (360 * 270), abs=0.02)
    assert relation_of(image.point(lambda value: int(0.8 * value + 20)), image).changed < 0.005


def test_features_survive_their_bytes_and_those_of_the_mirror_image_are_found_in_it():
    features = local_features(scene(5))
    again = LocalFeatures.from_bytes(features.to_bytes())
    assert again.size == features.size and np.array_equal(again.points, features.points)
    assert np.array_equal(again.sift, features.sift) and np.array_equal(again.pixels, features.pixels)
    found = local_features(ImageOps.mirror(scene(5)))
    pairs = matches(features.mirrored, found)
    distances = np.linalg.norm(features.mirrored.points[pairs[:, 0]] - found.points[pairs[:, 1]], axis=1)
    assert len(pairs) > 0.8 * len(features.points) and (distances < 1).mean() > 0.95
    assert np.array_equal(features.mirrored.mirrored.sift, features.sift)
