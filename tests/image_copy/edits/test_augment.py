"""Training views: RDCD's list with its probabilities, SSCD's strengths, ASL's identities."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ascl.image_copy.edits.augment import CopyAugmentation, IdentityAugmentation, augmentation_of, reduced, to_tensor
from ascl.image_copy.edits.edits import sample_rng
from ascl.image_copy.edits.stickers import drawn_picture
from ascl.image_copy.training.sampler import ImageKind
from ascl.images.find import find_images
from ascl.images.read import load_image

NOTHING = CopyAugmentation(
    64, crop_area=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0, quarter_turn=0, text=0, sticker=0, rotation=0,
    colour_jitter=0, grey=0, blur=0, jpeg=0,
)


def photo(width=120, height=90, seed=0) -> Image.Image:
    return drawn_picture(width, height, np.random.default_rng(seed))


@pytest.mark.parametrize("size", [(120, 90), (1, 1), (2, 300), (500, 3), (2000, 1500)])
def test_views_have_one_shape_whatever_the_image(size):
    augmentation = CopyAugmentation(32, text=0.5, sticker=0.5, rotation=0.5, quarter_turn=0.5, jpeg=0.5)
    for index in range(12):
        for view in augmentation.views(photo(*size), seed=0, index=index):
            assert view.pixels.shape == (3, 32, 32) and view.pixels.dtype == torch.uint8
            assert 0 <= view.content_scale <= 1


def test_without_any_change_a_square_image_is_itself():
    view = NOTHING(photo(64, 64), np.random.default_rng(0))
    assert torch.equal(view.pixels, to_tensor(photo(64, 64))) and view.content_scale == 1
    assert np.array_equal(view.pixels.permute(1, 2, 0).numpy(), np.asarray(photo(64, 64)))


def test_the_content_scale_is_the_share_of_the_crop():
    crop = replace(NOTHING, crop_area=(0.25, 0.25), crop_ratio=(0.75, 4 / 3))
    for index in range(10):
        assert crop(photo(), sample_rng(0, index)).content_scale == pytest.approx(0.25, abs=0.005)
    # No square of the whole area fits into a strip: the central square then, as torchvision does.
    strip = replace(NOTHING, crop_area=(1.0, 1.0))(photo(300, 30), np.random.default_rng(0))
    assert strip.content_scale == pytest.approx(0.1, abs=0.005)


def test_crops_are_drawn_from_the_ranges_of_the_paper():
    """Area and shape over many draws against their definition: uniform, and log-uniform, where the box fits."""
    augmentation = CopyAugmentation()
    image, rng = photo(300, 300), np.random.default_rng(0)
    boxes = np.array([augmentation.crop_box(image, rng) for _ in range(3000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    small = width * height < 0.5 * 90_000  # of these every shape fits
    quantiles = [0.1, 0.25, 0.5, 0.75, 0.9]
    expected = 0.08 + 0.42 * np.array(quantiles)
    assert np.quantile((width * height / 90_000)[small], quantiles) == pytest.approx(expected, abs=0.03)
    expected = (2 * np.array(quantiles) - 1) * np.log(4 / 3)
    assert np.quantile(np.log(width / height)[small], quantiles) == pytest.approx(expected, abs=0.04)
    assert boxes.min() >= 0 and boxes[:, 2:].max() <= 300


def test_crops_depend_on_the_given_generator_alone_and_leave_torchs_as_it_was():
    augmentation = CopyAugmentation()
    torch.manual_seed(7)
    expected = torch.rand(3)
    drawn = []
    for seed in (7, 8):
        torch.manual_seed(seed)
        drawn.append(augmentation.crop_box(photo(), np.random.default_rng(5)))
        assert seed != 7 or torch.equal(torch.rand(3), expected)
    assert drawn[0] == drawn[1] != augmentation.crop_box(photo(), np.random.default_rng(6))


@pytest.mark.parametrize(("change", "probability"), [
    ("quarter_turn", 0.05), ("flip", 0.5), ("text", 0.1), ("sticker", 0.2), ("rotation", 0.05), ("colour_jitter", 0.8),
    ("grey", 0.2), ("blur", 0.5), ("jpeg", 0.2),
])
def test_every_change_comes_with_its_probability(change, probability):
    """Changed views counted over 400 with this change alone; within four standard deviations."""
    assert getattr(CopyAugmentation(), change) == probability
    augmentation, image = replace(NOTHING, **{change: probability}), photo(64, 64)
    changed = sum(not torch.equal(augmentation(image, sample_rng(1, i)).pixels, to_tensor(image)) for i in range(400))
    assert abs(changed - 400 * probability) < 4 * (400 * probability * (1 - probability)) ** 0.5 + 1


def test_strengths_of_sscd():
    weak, strong, full = (augmentation_of(name, 96) for name in ("simclr", "strong_blur", "advanced"))
    assert full == CopyAugmentation(96)
    assert weak.text == weak.sticker == weak.rotation == weak.quarter_turn == weak.jpeg == 0
    assert weak.blur_radius == (0.1, 2.0) and replace(weak, blur_radius=(1.0, 5.0)) == strong
    with pytest.raises(ValueError, match="use simclr"):
        augmentation_of("harder")


@pytest.mark.parametrize("wrong", [
    {"size": 0}, {"flip": 1.5}, {"jpeg": -0.1}, {"crop_area": (0.0, 1.0)}, {"crop_area": (0.5, 1.2)},
    {"blur_radius": (5.0, 1.0)}, {"text_opacity": (0.5, 2.0)}, {"jpeg_quality": (0, 101)}, {"jitter": (1, 1, 1, 0.6)},
    {"crop_ratio": (0.0, 1.0)},
])
def test_settings_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        CopyAugmentation(**wrong)


class Views(Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return self.make.views(photo(60, 50, index), seed=3, index=index, epoch=2)


@pytest.mark.parametrize("make", [CopyAugmentation(24), IdentityAugmentation(24)])
def test_views_are_the_same_in_every_worker_and_after_pickling(make):
    alone = [Views(make)[i] for i in range(10)]
    workers = list(DataLoader(Views(pickle.loads(pickle.dumps(make))), batch_size=None, num_workers=2))
    for one, other in zip(alone, workers, strict=True):
        for view, same in zip(one, other, strict=True):
            assert torch.equal(view.pixels, same.pixels) and view.content_scale == same.content_scale


def test_views_of_a_sample_an_epoch_and_a_seed_differ():
    augmentation = CopyAugmentation(32)
    one = augmentation.views(photo(), seed=0, index=0)
    assert not torch.equal(one[0].pixels, one[1].pixels)
    for numbers in ({"epoch": 1}, {"seed": 1}, {"index": 1}):
        other = augmentation.views(photo(), **({"seed": 0, "index": 0} | numbers))
        assert not any(torch.equal(a.pixels, b.pixels) for a in one for b in other)


def test_large_images_are_reduced_by_whole_factors_only():
    assert reduced(photo(400, 300), 100).size == (134, 100)
    assert reduced(photo(199, 300), 100).size == (199, 300)
    assert reduced(photo(3, 300), 100).size == (3, 300)


def test_identities_are_ordered_by_what_they_show():
    augmentation = IdentityAugmentation(32)
    for index in range(25):
        original, crop, positive, negative = augmentation.views(photo(seed=index), seed=0, index=index)
        kinds = [view.kind for view in (original, crop, positive, negative)]
        assert kinds == [ImageKind.ORIGINAL, ImageKind.CROP, ImageKind.POSITIVE, ImageKind.NEGATIVE]
        assert negative.content_scale == 1
        assert 0.29 < original.content_scale < 0.81
        assert crop.content_scale < original.content_scale
        assert 0 < positive.content_scale <= original.content_scale + 1e-6
        assert all(view.pixels.shape == (3, 32, 32) for view in (original, crop, positive, negative))


def test_without_a_hard_negative_the_original_is_the_photo():
    kinds = (ImageKind.ORIGINAL, ImageKind.CROP, ImageKind.CROP)
    original, one, two = IdentityAugmentation(48, kinds).views(photo(48, 48), seed=0, index=0)
    assert original.content_scale == 1 and torch.equal(original.pixels, to_tensor(photo(48, 48)))
    assert one.content_scale != two.content_scale and max(one.content_scale, two.content_scale) < 0.92


def test_every_view_of_an_identity_has_the_same_original_whatever_the_order():
    augmentation = IdentityAugmentation(24, (ImageKind.ORIGINAL, ImageKind.NEGATIVE, ImageKind.ORIGINAL))
    views = augmentation.views(photo(), seed=5, index=9, epoch=3)
    assert torch.equal(views[0].pixels, views[2].pixels)
    alone = augmentation(photo(), 2, seed=5, index=9, epoch=3)
    assert torch.equal(alone.pixels, views[2].pixels) and alone.content_scale == views[2].content_scale
    other = augmentation(photo(), 2, seed=5, index=9, epoch=4)
    assert other.content_scale != alone.content_scale


def test_identities_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="0 kinds"):
        IdentityAugmentation(32, ())
    with pytest.raises(ValueError, match="crop_area"):
        IdentityAugmentation(32, crop_area=(0.0, 0.5))
    with pytest.raises(ValueError, match="view 4"):
        IdentityAugmentation(32)(photo(), 4, seed=0, index=0)


def test_views_of_real_photos_show_what_they_say(shared):
    """A view without sticker or turn, scaled back, is found in its photo: its colors are near the crop's."""
    augmentation = replace(NOTHING, crop_area=(0.3, 0.9), crop_ratio=(0.75, 4 / 3))
    for index, path in enumerate(find_images(shared / "data" / "flickr8k" / "full1000").paths[:8]):
        image = load_image(path).image
        view = augmentation(image, sample_rng(0, index))
        rng = sample_rng(0, index)
        rng.random(5)  # flip, quarter turn, text, sticker, rotation
        box = augmentation.crop_box(image, rng)
        cut = image.crop(box).resize((64, 64), Image.Resampling.BILINEAR)
        assert (to_tensor(cut).float() - view.pixels.float()).abs().mean() < 6
        area = (box[2] - box[0]) * (box[3] - box[1]) / (image.width * image.height)
        assert view.content_scale == pytest.approx(area, abs=0.005)
