"""The detector of `scenes`: what it should see, how its reports become regions, and that it learns."""

import copy

import numpy as np
import pytest
import torch

from ascl.core.errors import DataError
from ascl.features.writer import extract
from ascl.images.find import ImageFile
from ascl.scenes import detector
from ascl.scenes.detector import CELLS, HEADS, SIDE, STRIDE
from ascl.scenes.prepare import prepare_scenes
from ascl.scenes.render import render
from ascl.scenes.world import BACKGROUNDS, COLORS, SHAPES, SIZES, TEXTURES, make_scene

SCENES = [make_scene(3, index, split="val") for index in range(24)]      # some with an object inside another
BARS = {"progress": False}
STEPS = 8                                                               # the loss is then 0.7 of what it was
MADE = {"seed": 0, "steps": STEPS}


def pixels_of(scenes):
    return torch.stack([torch.from_numpy(np.array(render(scene))).permute(2, 0, 1) for scene in scenes]) / 255


def test_targets_match_a_loop_over_cells():
    targets = detector.targets_of(SCENES)
    found = {cell: owner for *cell, owner in zip(*(part.tolist() for part in (*targets.near, targets.owner)),
                                                 strict=True) for cell in [tuple(cell)]}
    number = 0
    for image, scene in enumerate(SCENES):
        assert list(BACKGROUNDS)[targets.heads["background"][image]] == scene.background
        for item in scene.objects:
            assert targets.image[number] == image and targets.boxes[number].tolist() == pytest.approx(item.box)
            for name in ("shape", "color", "texture"):
                assert HEADS[name][targets.heads[name][number]] == getattr(item, name)
            number += 1
        for size, name in enumerate(SIZES):
            items = [item for item in scene.objects if item.size == name]
            assert targets.centers[image, size].sum() == len(items)
            for row in range(0, CELLS, 3):
                for column in range(0, CELLS, 3):
                    middle = np.array([column + 0.5, row + 0.5]) * STRIDE
                    heats = [np.exp(-((middle - item.center) ** 2).sum() / STRIDE**2 / 2) for item in items]
                    heat = max(heats, default=0.0)
                    assert targets.heat[image, size, row, column] == pytest.approx(heat, abs=1e-5)
                    assert ((image, size, row, column) in found) == (heat > detector.NEAR)
                    if heat > detector.NEAR:
                        box = targets.boxes[found[image, size, row, column]].tolist()
                        assert box == pytest.approx(items[int(np.argmax(heats))].box)


def perfect(scenes) -> torch.Tensor:
    """What a finder without faults would say: (B, sizes, 5, CELLS, CELLS)."""
    targets = detector.targets_of(scenes)
    cells = torch.zeros(len(scenes), len(SIZES), 5, CELLS, CELLS)
    cells[:, :, 0] = torch.where(targets.centers, 5.0, 20 * targets.heat - 25)
    image, size, row, column = targets.near
    cells[image, size, 1:, row, column] = detector.shifts_of(targets.boxes[targets.owner], size, row, column)
    return cells


def test_what_is_found_are_the_objects_of_the_scene():
    for cells, scene in zip(perfect(SCENES), SCENES, strict=True):
        boxes, scores, sizes = detector.found_in(cells)
        assert len(boxes) == len(scene.objects) and (scores > 0.9).all()
        left = list(scene.objects)
        for box, size in zip(boxes.numpy(), sizes, strict=True):
            item = min(left, key=lambda item, box=box: np.abs(np.array(item.box) - box).sum())
            left.remove(item)
            assert box == pytest.approx(item.box, abs=1e-2) and SIZES[size] == item.size


def test_features_are_those_of_the_box_in_its_own_image():
    model, targets = detector.SceneDetector().eval(), detector.targets_of(SCENES)
    with torch.no_grad():
        fine, _ = model(pixels_of(SCENES))
        together = model.read(fine, targets.image, targets.boxes)
        for number in (0, 5, len(targets.image) - 1):
            own = fine[targets.image[number]][None]
            alone = model.read(own, torch.zeros(1, dtype=torch.long), targets.boxes[number][None])
            torch.testing.assert_close(alone[0], together[number])
            moved = model.read(own, torch.zeros(1, dtype=torch.long), targets.boxes[number][None] + 40)
            assert not torch.allclose(moved, alone, atol=1e-3)


@pytest.fixture(scope="module")
def trained():
    return detector.train_detector(0, STEPS, **BARS)


def test_training_descends_on_scenes_that_it_has_not_seen(trained):
    pixels, targets = pixels_of(SCENES), detector.targets_of(SCENES)

    def loss(model):
        with torch.no_grad():               # by the statistics of the batch: a few steps leave no running ones
            return detector.detection_loss(model.train(), pixels, targets, torch.Generator().manual_seed(0)).item()

    trained = copy.deepcopy(trained)
    assert loss(trained) < 0.9 * loss(detector.SceneDetector())


class Perfect(detector.SceneDetectorBackend):
    """A backend whose finder is perfect."""

    def __init__(self, weights, scenes):
        super().__init__(weights)
        cells = perfect(scenes)
        self.model.forward = lambda images: (self.model.stem(images - 0.5), cells)


def test_the_file_says_what_and_where_and_nothing_is_known_beyond_the_certainty_of_the_network(trained, tmp_path):
    detector.save_detector(tmp_path / "detector.pt", trained, MADE)
    backend = Perfect(tmp_path / "detector.pt", SCENES)
    sizes = np.full((len(SCENES), 2), 2 * SIDE)                            # originals of twice the side
    rows = backend.extract([np.array(render(scene)) for scene in SCENES], sizes)
    assert rows["regions"].shape == (len(SCENES), detector.MOST, 27)
    assert (rows["globals"] == rows["regions"][:, 0]).all()
    for row, scene in enumerate(SCENES):
        count = rows["region_count"][row]
        assert count == 1 + len(scene.objects) and not rows["regions"][row, count:].any()
        assert rows["boxes"][row, 0].tolist() == [0, 0, 2 * SIDE, 2 * SIDE]
        parts = np.split(rows["regions"][row, :count], np.cumsum([6, 6, 4, 5, 2]), axis=1)
        shape, color, texture, background, size, place = parts
        for certain in (shape, color, texture, size):
            assert not certain[0].any() and certain[1:].sum(axis=1) == pytest.approx(1, abs=1e-5)
        assert background[0].sum() == pytest.approx(1, abs=1e-5) and not background[1:].any()
        assert place[0].tolist() == [0.5, 0.5, 1, 1]
        assert rows["class_ids"][row, :count].tolist() == [0, *(1 + shape[1:].argmax(axis=1))]
        assert rows["attribute_ids"][row, 0] == len(COLORS) + background[0].argmax()
        left = list(scene.objects)
        for box, of_size, where in zip(rows["boxes"][row, 1:count], size[1:], place[1:], strict=True):
            item = min(left, key=lambda item, box=box: np.abs(2 * np.array(item.box) - box).sum())
            left.remove(item)
            assert box == pytest.approx(2 * np.array(item.box), abs=0.05) and SIZES[of_size.argmax()] == item.size
            center, sides = (box[:2] + box[2:]) / 4 / SIDE, (box[2:] - box[:2]) / 2 / SIDE
            assert where == pytest.approx([*center, *sides], abs=1e-4)
    assert backend.names["class_names"] == ["image", *SHAPES] and len(TEXTURES) == 4


def test_one_pass_gives_regions_and_globals_and_goes_by_the_weights(trained, tmp_path):
    (tmp_path / "images").mkdir()
    images = []
    for scene in SCENES[:5]:
        images.append(ImageFile(tmp_path / "images" / f"{scene.image_id}.png", scene.image_id))
        render(scene).save(images[-1].path)
    detector.save_detector(tmp_path / "detector.pt", trained, MADE)
    backend = detector.SceneDetectorBackend(tmp_path / "detector.pt")
    made = extract(backend, images, tmp_path / "features.h5", batch_size=4, workers=0, **BARS)
    assert made.shapes["regions"] == (5, detector.MOST, 27)
    assert made.shapes["globals"] == (5, 27)
    detector.save_detector(tmp_path / "other.pt", detector.train_detector(1, 1, **BARS), MADE)
    with pytest.raises(DataError, match="weights_sha256 was"):
        extract(detector.SceneDetectorBackend(tmp_path / "other.pt"), images, tmp_path / "features.h5", **BARS)


def test_a_detector_of_other_settings_is_not_taken_in_silence(tmp_path):
    size = {"train": 4, "val": 1, "test": 1, "seed": 0}
    prepare_scenes(tmp_path, **size, detector_steps=1)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*.*")}
    prepare_scenes(tmp_path, **size, detector_steps=1)
    with pytest.raises(DataError, match=r"detector.pt was trained with .*'steps': 1.*requested are .*'steps': 2"):
        prepare_scenes(tmp_path, **size, detector_steps=2)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*.*")} == before
