"""The detector of `scenes`: what it should see, how its reports become regions, and that it learns."""

import numpy as np
import pytest
import torch

from ascl.core.errors import DataError
from ascl.features.writer import extract
from ascl.scenes import detector
from ascl.scenes.detector import (
    ATTRIBUTES,
    CELLS,
    MOST,
    SIDE,
    STRIDE,
    WIDTHS,
    SceneDetector,
    SceneDetectorBackend,
    Seen,
    boxes_of,
    detection_loss,
    regions_of,
    save_detector,
    shifts_of,
    targets_of,
    train_detector,
)
from ascl.scenes.render import render
from ascl.scenes.world import BACKGROUNDS, COLORS, SHAPES, SIZES, TEXTURES, make_scene

SCENES = [make_scene(3, index, split="val") for index in range(24)]      # some with an object inside another


def test_targets_match_a_loop_over_cells():
    targets = targets_of(SCENES)
    near = set(zip(*(part.tolist() for part in targets.near), strict=True))
    found = {cell: row for row, cell in enumerate(zip(*(part.tolist() for part in targets.near), strict=True))}
    for image, scene in enumerate(SCENES):
        assert list(BACKGROUNDS)[targets.backgrounds[image]] == scene.background
        for size, name in enumerate(SIZES):
            items = [item for item in scene.objects if item.size == name]
            assert targets.centers[image, size].sum() == len(items)
            for row in range(0, CELLS, 3):
                for column in range(0, CELLS, 3):
                    middle = np.array([column + 0.5, row + 0.5]) * STRIDE
                    heats = [np.exp(-((middle - item.center) ** 2).sum() / STRIDE**2 / 2) for item in items]
                    heat = max(heats, default=0.0)
                    assert targets.heat[image, size, row, column] == pytest.approx(heat, abs=1e-5)
                    assert ((image, size, row, column) in near) == (heat > detector.NEAR)
                    if heat > detector.NEAR:
                        item, at = items[int(np.argmax(heats))], found[image, size, row, column]
                        assert targets.boxes[at].tolist() == pytest.approx(item.box)
                        assert [values[index] for values, index in zip(
                            ATTRIBUTES.values(), targets.attributes[at], strict=True)
                        ] == [item.shape, item.color, item.texture]


def test_boxes_come_back_from_their_shifts():
    targets = targets_of(SCENES)
    shifts = shifts_of(targets.boxes, *targets.near[1:])
    torch.testing.assert_close(boxes_of(shifts, *targets.near[1:]), targets.boxes, rtol=0, atol=1e-3)


def perfect(scenes) -> Seen:
    """What a network without faults would say."""
    targets, hidden = targets_of(scenes), torch.rand(len(scenes), len(SIZES), 4, CELLS, CELLS)
    image, size, row, column = targets.near
    cells = torch.zeros(len(scenes), len(SIZES), sum(WIDTHS), CELLS, CELLS)
    cells[:, :, 0] = torch.where(targets.centers, 5.0, 20 * targets.heat - 25)
    cells[image, size, 1:5, row, column] = shifts_of(targets.boxes, size, row, column)
    at = 5
    for number, values in enumerate(ATTRIBUTES.values()):
        cells[image, size, at + targets.attributes[:, number], row, column] = 20.0
        at += len(values)
    background = 20 * torch.nn.functional.one_hot(targets.backgrounds, len(BACKGROUNDS)).float()
    return Seen(hidden, cells, torch.rand(len(scenes), 4), background)


def test_regions_are_the_objects_of_the_scene():
    seen = perfect(SCENES)
    for row, scene in enumerate(SCENES):
        regions = regions_of(Seen(*(part[row] for part in seen)))
        assert len(regions["boxes"]) == 1 + len(scene.objects)
        assert regions["boxes"][0].tolist() == [0, 0, SIDE, SIDE] and regions["class_ids"][0] == 0
        assert [*COLORS, *BACKGROUNDS][regions["attribute_ids"][0]] == scene.background
        vectors = regions["regions"].numpy()
        assert vectors.shape[1] == 4 + 6 + 6 + 4 + 2 + 5 + 4
        assert vectors[0, :4] == pytest.approx(seen.whole[row]) and vectors[0, 4:22] == pytest.approx(np.zeros(18))
        assert vectors[0, -4:].tolist() == [0.5, 0.5, 1, 1]
        left = list(scene.objects)
        for box, vector, class_id, color in zip(*(regions[name][1:].numpy() for name in (
                "boxes", "regions", "class_ids", "attribute_ids")), strict=True):
            item = min(left, key=lambda item: np.abs(np.array(item.box) - box).sum())
            left.remove(item)
            assert box == pytest.approx(item.box, abs=1e-2)
            assert (SHAPES[class_id - 1], list(COLORS)[color]) == (item.shape, item.color)
            shape, color, texture, size, ground = np.split(vector[4:27], np.cumsum([6, 6, 4, 2]))
            said = (SHAPES[shape.argmax()], list(COLORS)[color.argmax()], TEXTURES[texture.argmax()],
                    SIZES[size.argmax()])
            assert said == (item.shape, item.color, item.texture, item.size) and not ground.any()
            width, height = box[2] - box[0], box[3] - box[1]
            assert vector[-4:] * SIDE == pytest.approx([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2, width, height],
                                                       abs=1e-3)


def test_an_image_without_objects_has_the_region_of_the_whole():
    seen = perfect(SCENES[:1])
    seen.cells[:, :, 0] = -9
    assert len(regions_of(Seen(*(part[0] for part in seen)))["boxes"]) == 1


def test_a_perfect_report_costs_less_than_an_untrained_one_and_training_descends():
    targets = targets_of(SCENES)
    pixels = torch.stack([torch.from_numpy(np.array(render(scene))).permute(2, 0, 1) for scene in SCENES]) / 255
    def loss(model):
        return detection_loss(model(pixels), targets).item()

    untrained = loss(SceneDetector().eval())
    assert detection_loss(perfect(SCENES), targets).item() < 0.1 < untrained
    assert loss(train_detector(0, 8, progress=False)) < 0.8 * untrained


def test_one_pass_gives_regions_and_globals_and_goes_by_the_weights(tmp_path):
    (tmp_path / "images").mkdir()
    images = []
    for scene in SCENES[:5]:
        images.append(tmp_path / "images" / f"{scene.image_id}.png")
        render(scene).save(images[-1])
    save_detector(tmp_path / "detector.pt", train_detector(0, 2, progress=False))
    backend = SceneDetectorBackend(tmp_path / "detector.pt")
    made = extract(backend, images, tmp_path / "features.h5", batch_size=4, workers=0, progress=False)
    dim = 64 + 6 + 6 + 4 + 2 + 5 + 4
    assert made.shapes["regions"] == (5, MOST, dim) and made.shapes["globals"] == (5, 64 + 5)
    save_detector(tmp_path / "other.pt", train_detector(1, 2, progress=False))
    with pytest.raises(DataError, match="weights_sha256 was"):
        extract(SceneDetectorBackend(tmp_path / "other.pt"), images, tmp_path / "features.h5", progress=False)
