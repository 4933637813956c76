"""Sizes and pixels of the detector's input, against loops and Pillow."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ascl.features.detectors.input import MEAN_BGR, network_input, resized_size


@pytest.mark.parametrize(
    ("height", "width", "resize", "wanted"),
    [
        (480, 640, "opencv", (600, 800)),
        (333, 500, "opencv", (600, 901)),  # 900.9
        (300, 600, "opencv", (500, 1000)),  # the long side decides
        (333, 500, "torch", (600, 901)),
        (300, 600, "pillow", (500, 1000)),
        (1, 1, "opencv", (600, 600)),
        (1, 10_000, "opencv", (16, 1000)),
        (10_000, 1, "torch", (1000, 16)),
    ],
)
def test_sizes_of_resized_images(height, width, resize, wanted):
    size = resized_size(height, width, 600, 1000, resize)
    assert (size.height, size.width) == wanted
    if resize != "opencv":
        assert size.scale_y == wanted[0] / height and size.scale_x == wanted[1] / width
    elif 16 not in wanted:
        assert size.scale_y == size.scale_x == (min(600 / min(height, width), 1000 / max(height, width)))


@given(st.integers(1, 3000), st.integers(1, 3000), st.sampled_from(["opencv", "pillow", "torch"]))
def test_a_resized_image_keeps_its_limits_and_its_aspect(height, width, resize):
    size = resized_size(height, width, 600, 1000, resize)
    assert 16 <= min(size.height, size.width) <= 600 and max(size.height, size.width) <= 1000
    assert min(size.height, size.width) == 600 or max(size.height, size.width) == 1000
    if min(size.height, size.width) > 16:
        assert abs(size.height * width - size.width * height) <= 0.5 * (height + width) + 1e-6


def interpolated(image: np.ndarray, size, scale_y: float, scale_x: float) -> np.ndarray:
    """(H, W, C) float -> (h, w, C): bilinear between pixel centers, the edge repeated."""
    height, width = image.shape[:2]
    out = np.zeros((size.height, size.width, image.shape[2]))
    for row in range(size.height):
        for column in range(size.width):
            y = max((row + 0.5) / scale_y - 0.5, 0)
            x = max((column + 0.5) / scale_x - 0.5, 0)
            top, left = min(int(y), height - 1), min(int(x), width - 1)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            fy, fx = y - top, x - left
            out[row, column] = (1 - fy) * ((1 - fx) * image[top, left] + fx * image[top, right]) + fy * (
                (1 - fx) * image[below, left] + fx * image[below, right]
            )
    return out


@pytest.mark.parametrize("resize", ["opencv", "torch", "pillow"])
@pytest.mark.parametrize(("height", "width"), [(7, 13), (29, 17), (40, 60), (1, 1), (1, 200)])
def test_network_input_against_loops(resize, height, width):
    pixels = np.random.default_rng(0).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    size = resized_size(height, width, 20, 33, resize)
    found = network_input(torch.from_numpy(pixels), size, resize)
    assert found.shape == (2, 3, size.height, size.width) and found.dtype == torch.float32
    for image, result in zip(pixels, found.permute(0, 2, 3, 1).numpy(), strict=True):
        reversed_channels = image[:, :, ::-1].astype(np.float64)
        if resize == "pillow":
            filtered = Image.fromarray(image).resize((size.width, size.height), Image.Resampling.BILINEAR)
            wanted = np.asarray(filtered)[:, :, ::-1] - np.array(MEAN_BGR)
            assert np.abs(result - wanted).max() < 1.001  # Pillow filters in fixed point: a half may round otherwise
            assert np.abs(result - wanted).mean() < 0.05
        else:
            wanted = interpolated(reversed_channels - np.array(MEAN_BGR), size, size.scale_y, size.scale_x)
            assert np.allclose(result, wanted, atol=2e-3)
