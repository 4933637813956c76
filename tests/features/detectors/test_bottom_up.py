"""The bottom-up backend: its arrays against its own network and loops, its settings, names and odd images."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from ascl.core.errors import DataError
from ascl.features.detectors.bottom_up import BottomUpBackend, read_names
from ascl.features.detectors.input import network_input, resized_size
from ascl.features.detectors.network import BottomUpDetector, DetectorShape

from .cases import CONVENTIONS, greedy

SMALL = DetectorShape(
    blocks=(1, 1, 2, 1), width=4, rpn_channels=8, classes=9, attributes=5, class_embedding=4, attribute_hidden=8,
    pool_size=3, proposals=60,
)
SIDES = {"short_side": 96, "long_side": 160}


def backend(kind: str = "caffe", shape: DetectorShape = SMALL, **more) -> BottomUpBackend:
    """A backend whose heads tell proposals apart; of other kinds than `caffe` through its own network."""
    made = BottomUpBackend("random:0", shape=shape, **SIDES | more)
    detector = BottomUpDetector(made.detector.shape, CONVENTIONS[kind])
    torch.manual_seed(0)
    state = made.detector.state_dict()
    for name, value in state.items():
        if "box_predictor" in name or "rpn_head" in name:
            value.normal_(0, 0.3)
    if kind != "caffe":
        state = {name: value for name, value in state.items() if "cell_anchors" not in name}
    detector.load_state_dict(state, strict=False)
    made.detector = detector
    return made


def photographs(count: int, height: int, width: int) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def sizes_of(pixels: list[np.ndarray]) -> np.ndarray:
    return np.array([[array.shape[1], array.shape[0]] for array in pixels], dtype=np.int32)


@pytest.mark.parametrize(
    ("kind", "selection", "counts"),
    [
        ("caffe", "fixed", (12, 12)),
        ("caffe", "adaptive", (3, 20)),
        ("detectron2", "raise-nms", (12, 12)),
        ("huggingface", "single-nms", (12, 12)),
        ("caffe", "single-nms", (5, 50)),
    ],
)
def test_the_arrays_are_the_networks_proposals_chosen_by_loops(kind, selection, counts):
    made = backend(kind, selection=selection, min_regions=counts[0], max_regions=counts[1])
    pixels = photographs(2, 61, 80)
    sizes = np.array([[80, 61], [160, 122]], dtype=np.int32)  # the second original was twice as large
    found = made.extract(pixels, sizes)
    convention = CONVENTIONS[kind]
    size = resized_size(61, 80, 96, 160, convention.resize)
    factors = np.array([size.scale_x, size.scale_y] * 2)
    with torch.inference_mode():
        images = network_input(torch.from_numpy(np.stack(pixels)), size, convention.resize)
        smaller = min(size.scale_x, size.scale_y)
        proposals = made.detector(images, [smaller, smaller / 2])
    for row, image in enumerate(proposals):
        probabilities = image.class_probabilities[:, 1:].numpy()
        if selection in ("fixed", "adaptive"):
            boxes = image.boxes.numpy() / factors
            confidence = np.zeros(len(boxes))
            for scores in probabilities.T:
                kept = greedy(boxes, scores, 0.3, convention.legacy)
                confidence[kept] = np.maximum(confidence[kept], scores[kept])
            chosen = np.argsort(-confidence, kind="stable")
            number = max((confidence >= 0.2).sum(), counts[0]) if selection == "adaptive" else counts[0]
            chosen = chosen[: min(number, counts[1])]
        else:
            regressed, scores = made.detector.regressed(image, size.height, size.width)
            for threshold in (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9) if selection == "raise-nms" else (0.6,):
                chosen = greedy(regressed.tolist(), scores.tolist(), threshold, convention.legacy)
                if len(chosen) >= counts[0]:
                    break
            chosen, boxes = np.array(chosen[: counts[1]]), regressed.numpy() / factors
        number = len(chosen)
        assert found["region_count"][row] == number and number > 1
        assert np.allclose(found["regions"][row, :number], image.features[chosen], rtol=1e-4, atol=1e-5)
        assert np.allclose(found["boxes"][row, :number], boxes[chosen] * (1, 2)[row], atol=1e-3)
        assert np.allclose(found["scores"][row, :number], probabilities[chosen].max(axis=1), atol=1e-6)
        assert found["class_ids"][row, :number].tolist() == (probabilities[chosen].argmax(axis=1) + 1).tolist()
        assert found["attribute_ids"][row, :number].tolist() == image.attribute_ids[chosen].tolist()
        assert np.allclose(found["attribute_scores"][row, :number], image.attribute_scores[chosen], atol=1e-6)
        for name, padding in {"regions": 0, "boxes": 0, "scores": 0, "class_ids": -1, "attribute_ids": -1}.items():
            assert (found[name][row, number:] == padding).all()


def check_interface(found: dict[str, np.ndarray], sizes: np.ndarray, most: int, dim: int) -> None:
    """All that every region backend promises."""
    count = len(sizes)
    shapes = {
        "regions": ((count, most, dim), np.float32), "boxes": ((count, most, 4), np.float32),
        "region_count": ((count,), np.int32), "scores": ((count, most), np.float32),
        "class_ids": ((count, most), np.int32), "attribute_ids": ((count, most), np.int32),
        "attribute_scores": ((count, most), np.float32),
    }
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == shapes
    assert np.isfinite(found["regions"]).all()
    assert (found["region_count"] >= 1).all() and (found["region_count"] <= most).all()
    for row, number in enumerate(found["region_count"]):
        x1, y1, x2, y2 = found["boxes"][row, :number].T
        width, height = sizes[row]
        assert (0 <= x1).all() and (x1 <= x2).all() and (x2 <= width).all()
        assert (0 <= y1).all() and (y1 <= y2).all() and (y2 <= height).all()
        assert ((0 < found["scores"][row, :number]) & (found["scores"][row, :number] <= 1)).all()
        assert (found["class_ids"][row, :number] >= 1).all() and (found["attribute_ids"][row, :number] >= 1).all()


@pytest.mark.parametrize("kind", ["caffe", "detectron2", "huggingface"])
@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 10_000), (10_000, 1), (2, 3), (17, 16), (90, 40)])
def test_odd_images_give_at_least_one_region_inside_them(kind, height, width):
    made = backend(kind)
    pixels = photographs(2, height, width)
    check_interface(made.extract(pixels, sizes_of(pixels)), sizes_of(pixels), 36, made.dim)


@pytest.mark.parametrize("kind", ["caffe", "detectron2"])
def test_an_images_features_do_not_depend_on_its_batch(kind):
    made = backend(kind, max_regions=20, min_regions=20)
    pixels = photographs(3, 50, 70)
    sizes = np.array([[70, 50], [700, 500], [70, 50]], dtype=np.int32)
    batch = made.extract(pixels, sizes)
    for index in range(3):
        alone = made.extract(pixels[index : index + 1], sizes[index : index + 1])
        for name, array in alone.items():
            assert np.allclose(array[0], batch[name][index], rtol=1e-4, atol=1e-3), name


def test_the_original_reaches_the_network_whole_and_the_workers_need_no_weights():
    prepare = backend().prepare
    image = Image.fromarray(photographs(1, 33, 21)[0])
    assert len(pickle.dumps(prepare)) < 200
    assert np.array_equal(pickle.loads(pickle.dumps(prepare))(image), np.asarray(image))


def test_training_mode_and_gradients_are_off_whatever_was_done():
    made = backend(min_regions=9, max_regions=9)
    pixels = photographs(2, 50, 70)
    wanted = made.extract(pixels, sizes_of(pixels))
    made.detector.train()
    again = made.extract(pixels, sizes_of(pixels))
    assert all(np.array_equal(again[name], array) for name, array in wanted.items())
    assert not made.detector.training


def test_bfloat16_gives_float32_features_near_those_of_float32():
    pixels = photographs(1, 50, 70)
    settings = {"min_regions": 5, "max_regions": 5}
    plain = backend(**settings).extract(pixels, sizes_of(pixels))
    half = backend(**settings, precision="bfloat16").extract(pixels, sizes_of(pixels))
    check_interface(half, sizes_of(pixels), 5, 128)
    mean, half_mean = plain["regions"].mean(axis=1)[0], half["regions"].mean(axis=1)[0]
    cosine = mean @ half_mean / np.linalg.norm(mean) / np.linalg.norm(half_mean)
    assert cosine > 0.98 and not np.array_equal(mean, half_mean)  # other boxes may be chosen: only alike on the whole


def test_settings_hold_all_that_decides_the_numbers():
    base = BottomUpBackend("random:0", shape=SMALL)
    assert json.loads(json.dumps(base.settings)) == base.settings
    assert (base.min_regions, base.max_regions, base.nms_threshold, base.selection) == (36, 36, 0.3, "fixed")
    adaptive = BottomUpBackend("random:0", shape=replace(SMALL, proposals=100), selection="adaptive")
    assert (adaptive.min_regions, adaptive.max_regions) == (10, 100)
    single = BottomUpBackend("random:0", shape=SMALL, selection="single-nms")
    assert (single.min_regions, single.nms_threshold) == (36, 0.6)
    changes = {
        "weights": "random:1", "selection": "raise-nms", "score_threshold": 0.1, "nms_threshold": 0.4,
        "short_side": 500, "long_side": 900, "precision": "bfloat16", "shape": replace(SMALL, pool_size=4),
    }
    for name, value in changes.items():
        changed = BottomUpBackend(**{"weights": "random:0", "shape": SMALL} | {name: value})
        assert changed.settings != base.settings, name
    assert BottomUpBackend("random:0", shape=SMALL, min_regions=5, max_regions=5).settings != base.settings


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_regions": 10}, "selection fixed gives one number of regions, not 10 to 36; use selection adaptive"),
        ({"min_regions": 0, "max_regions": 0}, "min_regions 0 and max_regions 0: expected 1 <= "),
        ({"selection": "adaptive", "max_regions": 61}, "max_regions 61: expected 1 <= .* <= 60, the number"),
        ({"selection": "adaptive", "min_regions": 9, "max_regions": 8}, "expected 1 <= min_regions <= max_regions"),
        ({"score_threshold": 20.0}, "score_threshold 20.0 is not a probability"),
        ({"nms_threshold": 1.0}, "nms_threshold 1.0 is not an overlap"),
        ({"short_side": 700, "long_side": 600}, "short_side 700, long_side 600: expected 16 <= short <= long"),
    ],
)
def test_settings_out_of_range_say_what_is_wanted(wrong, message):
    with pytest.raises(DataError, match=message):
        BottomUpBackend("random:0", shape=SMALL, **wrong)


def test_names_are_at_their_ids(tmp_path):
    objects, attributes = tmp_path / "objects_vocab.txt", tmp_path / "attributes_vocab.txt"
    objects.write_bytes(b"yolk\r\nGoal\r\nbathroom,bath room\r\nd\r\ne\r\nf\r\ng\r\nh\r\ni")  # line ends as published
    attributes.write_text("gray,grey\nmulti colored,multi-colored\nc\nd\ne\n")
    made = BottomUpBackend("random:0", shape=SMALL, class_names=str(objects), attribute_names=str(attributes))
    assert made.names["class_names"][:4] == ["__background__", "yolk", "goal", "bathroom"]
    assert made.names["attribute_names"] == ["__no_attribute__", "gray", "multi colored", "c", "d", "e"]
    assert len(made.names["class_names"]) == SMALL.classes + 1
    assert BottomUpBackend("random:0", shape=SMALL).names == {}
    without = BottomUpBackend("random:0", shape=replace(SMALL, attributes=0), class_names=str(objects))
    assert list(without.names) == ["class_names"]
    pixels = photographs(1, 50, 70)
    assert not any(name.startswith("attribute") for name in without.extract(pixels, sizes_of(pixels)))
    with pytest.raises(DataError, match="random:0 predicts no attributes"):
        BottomUpBackend("random:0", shape=replace(SMALL, attributes=0), attribute_names=str(attributes))


def test_vocabularies_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "objects_vocab.txt"
    path.write_text("a\nb\n")
    with pytest.raises(DataError, match="objects_vocab.txt: 2 lines, but the weights have 3 names"):
        read_names(str(path), 3, "first")
    path.write_text("a\n,b\n")
    with pytest.raises(DataError, match="line 2 has no name"):
        read_names(str(path), 2, "first")
    path.write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match="row 1: not UTF-8"):
        read_names(str(path), 1, "first")
    with pytest.raises(DataError, match="no file .*absent.txt"):
        read_names(str(tmp_path / "absent.txt"), 1, "first")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_a_gpu_gives_the_arrays_of_the_interface(precision):
    pixels = photographs(4, 300, 400)
    made = BottomUpBackend("random:0", precision=precision, device="cuda")
    check_interface(made.extract(pixels, sizes_of(pixels)), sizes_of(pixels), 36, 2048)
