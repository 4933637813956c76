"""Grid regions and global vectors against naive means and boxes by hand."""

import json
import math

import numpy as np
import pytest
import torch

from ascl.core.errors import DataError
from ascl.features.globals import GlobalBackend
from ascl.features.grid import GridBackend, grid_boxes

SETTINGS = {"backbone": "resnet18", "weights": "random:0", "normalize": "half"}


def squares(count: int, size: int) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (count, size, size, 3), dtype=np.uint8))


def covered(cell: int, grid: int, length: int) -> list[int]:
    """Places of a map that overlap the cell [cell, cell + 1) / grid of its length: the definition, place by place."""
    return [
        place for place in range(length) if place * grid < (cell + 1) * length and (place + 1) * grid > cell * length
    ]


@pytest.mark.parametrize(("input_size", "layer", "grid"), [(64, "layer2", 3), (56, "layer2", 6), (64, "layer3", 4)])
def test_regions_are_means_over_their_cells_of_the_map(input_size, layer, grid):
    backend = GridBackend(**SETTINGS, layer=layer, input_size=input_size, grid=grid)
    batch = squares(2, input_size)
    maps = backend.backbone(batch).numpy()
    found = backend.extract(batch, np.array([[100, 50], [30, 60]]))["regions"]
    assert found.shape == (2, grid * grid, backend.dim) and found.dtype == np.float32
    for row in range(grid):
        for column in range(grid):
            places = [
                maps[:, :, y, x]
                for y in covered(row, grid, maps.shape[2])
                for x in covered(column, grid, maps.shape[3])
            ]
            assert np.allclose(found[:, row * grid + column], sum(places) / len(places), atol=1e-5)


@pytest.mark.parametrize(("grid", "height", "width"), [(6, 7, 7), (2, 2, 2), (3, 8, 5), (1, 4, 4)])
def test_boxes_cover_exactly_the_averaged_cells(grid, height, width):
    boxes = grid_boxes(grid, height, width)
    for row in range(grid):
        for column in range(grid):
            ys, xs = covered(row, grid, height), covered(column, grid, width)
            wanted = [xs[0] / width, ys[0] / height, (xs[-1] + 1) / width, (ys[-1] + 1) / height]
            assert boxes[row * grid + column].tolist() == pytest.approx(wanted)


def test_boxes_are_in_pixels_of_the_original():
    sizes = np.array([[640, 480], [300, 600]])
    batch = squares(2, 64)
    squash = GridBackend(**SETTINGS, input_size=64, grid=2, resize="squash").extract(batch, sizes)["boxes"]
    assert squash.dtype == np.float32
    assert squash[0].tolist() == [[0, 0, 320, 240], [320, 0, 640, 240], [0, 240, 320, 480], [320, 240, 640, 480]]
    assert squash[1].tolist() == [[0, 0, 150, 300], [150, 0, 300, 300], [0, 300, 150, 600], [150, 300, 300, 600]]
    crop = GridBackend(**SETTINGS, input_size=64, grid=2, resize="crop").extract(batch, sizes)["boxes"]
    # 640x480: the central square of 480 * 7 / 8 = 420 pixels, from (110, 30) to (530, 450)
    assert crop[0].tolist() == [[110, 30, 320, 240], [320, 30, 530, 240], [110, 240, 320, 450], [320, 240, 530, 450]]


def test_a_region_answers_to_what_is_inside_its_box_most():
    backend = GridBackend(**SETTINGS, layer="layer1", input_size=64, grid=4)
    plain = np.full((64, 64, 3), 128, dtype=np.uint8)
    change = []
    for box in grid_boxes(4, 16, 16):
        x1, y1, x2, y2 = (box * 64).astype(int)
        marked = plain.copy()
        marked[y1:y2, x1:x2] = 255
        before, after = backend.extract([plain, marked], np.array([[64, 64]] * 2))["regions"]
        change.append(np.linalg.norm(after - before, axis=1))
    assert np.argmax(change, axis=1).tolist() == list(range(16))


def test_a_map_that_is_too_small_and_a_vector_are_refused():
    with pytest.raises(DataError, match="2x2 map of a 64x64 image: too small for 6x6"):
        GridBackend(**SETTINGS, input_size=64, grid=6)
    with pytest.raises(DataError, match="layer flatten of resnet18 gives a vector"):
        GridBackend(**SETTINGS, layer="flatten", input_size=64)


def test_the_default_is_36_regions_of_224_pixels():
    backend = GridBackend("mobilenet_v2", "random:0", same_padding=True)
    assert backend.map_size == [7, 7] and backend.grid == 6 and backend.dim == 1280


def test_a_global_vector_is_the_classifiers_average_pool():
    backend = GlobalBackend(**SETTINGS, input_size=64)
    batch = squares(3, 64)
    found = backend.extract(batch, np.zeros((3, 2)))["globals"]
    maps = backend.backbone(batch).numpy()
    wanted = [[math.fsum(channel.flatten().tolist()) / channel.size for channel in image] for image in maps]
    assert found.shape == (3, backend.dim) == (3, 512) and found.dtype == np.float32
    assert np.allclose(found, wanted, atol=1e-5)
    pooled = GlobalBackend(**SETTINGS, layer="flatten", input_size=64).extract(batch, np.zeros((3, 2)))["globals"]
    assert np.allclose(found, pooled, atol=1e-5)


@pytest.mark.parametrize("make", [GridBackend, GlobalBackend])
def test_settings_hold_all_that_decides_the_numbers(make):
    plain = {**SETTINGS, "backbone": "squeezenet1_1", "layer": "features.3", "input_size": 64}
    base = make(**plain).settings
    assert json.loads(json.dumps(base)) == base
    changes = {
        "weights": "random:1", "layer": "features.4", "input_size": 96, "normalize": "none", "same_padding": True,
        "backbone": "squeezenet1_0", "resize": "crop" if make is GridBackend else "squash",
    }
    for name, value in changes.items():
        assert make(**plain | {name: value}).settings != base, name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_features_of_the_cpu():
    batch, sizes = squares(2, 64), np.array([[64, 64]] * 2)
    cpu = GridBackend(**SETTINGS, input_size=64, grid=2).extract(batch, sizes)["regions"]
    gpu = GridBackend(**SETTINGS, input_size=64, grid=2, device="cuda").extract(batch, sizes)["regions"]
    assert np.allclose(cpu, gpu, atol=1e-2)
