"""torchvision's detector: against its own forward, naive pooling and naive suppression, and what is refused."""

import copy
import json
import math
import pickle
import urllib.error

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn_v2
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from ascl.core.errors import DataError
from ascl.features.detectors.torchvision_detector import (
    DetectorPixels,
    TorchvisionDetectorBackend,
    load_detector,
    select_detections,
)

from .cases import overlap

SMALL = {"weights": "random:0", "short_side": 96, "long_side": 160}
SIZE = (130, 90)


def with_few_proposals(model: nn.Module) -> None:
    """Thirty proposals instead of 1000: the box head is most of the work."""
    model.rpn._post_nms_top_n["testing"] = 30


def backend_of(**changes) -> TorchvisionDetectorBackend:
    backend = TorchvisionDetectorBackend(**SMALL | changes)
    with_few_proposals(backend.model)
    return backend


@pytest.fixture(scope="module")
def backend() -> TorchvisionDetectorBackend:
    return backend_of()


def picture(seed: int, width: int, height: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (7, 9, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.NEAREST)


def pair() -> list[np.ndarray]:
    return [np.array(picture(seed, *SIZE)) for seed in (1, 2)]


# --- detections and features -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def like_torchvision() -> tuple[TorchvisionDetectorBackend, nn.Module]:
    """A backend at torchvision's own thresholds, and torchvision's model of the same weights."""
    backend = backend_of(max_regions=100, score_threshold=0.05)
    model = fasterrcnn_resnet50_fpn_v2(weights=None, weights_backbone=None, min_size=96, max_size=160).eval()
    model.load_state_dict(backend.model.state_dict())
    with_few_proposals(model)
    return backend, model


@pytest.mark.parametrize("size", [(130, 90), (50, 41), (70, 400)])
def test_detections_are_those_of_torchvisions_forward(like_torchvision, size):
    backend, model = like_torchvision
    pixels = [backend.prepare(picture(seed, *size)) for seed in (1, 2)]
    height, width = pixels[0].shape[:2]
    found = backend.extract(pixels, np.array([[width, height]] * 2))
    with torch.inference_mode():
        wanted = model([torch.from_numpy(image.copy()).permute(2, 0, 1) / 255 for image in pixels])
    for row, image in enumerate(wanted):
        count = len(image["scores"])
        assert 5 < count == found["region_count"][row]
        assert np.array_equal(found["class_ids"][row, :count], image["labels"])
        assert np.allclose(found["scores"][row, :count], image["scores"], atol=1e-5)
        assert np.allclose(found["boxes"][row, :count], image["boxes"], atol=1e-3)


def naive_pooling(level: torch.Tensor, stride: int, box: list[float]) -> torch.Tensor:
    """(C, H, W) and one box -> (C, 7, 7): each bin the mean of 2x2 bilinear samples."""
    _, height, width = level.shape
    x1, y1, x2, y2 = (value / stride for value in box)
    bin_width, bin_height = max(x2 - x1, 1) / 7, max(y2 - y1, 1) / 7
    pooled = torch.zeros(len(level), 7, 7)
    for row in range(7):
        for column in range(7):
            for sample_y in (0.25, 0.75):
                for sample_x in (0.25, 0.75):
                    y = min(max(y1 + (row + sample_y) * bin_height, 0), height - 1)
                    x = min(max(x1 + (column + sample_x) * bin_width, 0), width - 1)
                    top, left = int(y), int(x)
                    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
                    upper = level[:, top, left] * (1 - x + left) + level[:, top, right] * (x - left)
                    lower = level[:, bottom, left] * (1 - x + left) + level[:, bottom, right] * (x - left)
                    pooled[:, row, column] += (upper * (1 - y + top) + lower * (y - top)) / 4
    return pooled


def test_features_are_the_box_heads_of_each_detected_box_alone(backend):
    pixels = pair()
    found = backend.extract(pixels, np.array([SIZE] * 2))
    assert found["regions"].shape == (2, 36, 1024) and found["regions"].dtype == np.float32
    assert len(np.unique(found["regions"][0], axis=0)) == 36
    for row in (0, 1):
        images, _ = backend.model.transform([torch.from_numpy(pixels[row]).permute(2, 0, 1) / 255])
        height, width = images.image_sizes[0]
        with torch.inference_mode():
            maps = list(backend.model.backbone(images.tensors).values())
            for index in (0, 1, 17, 35):
                x1, y1, x2, y2 = found["boxes"][row, index].tolist()
                box = [x1 * width / SIZE[0], y1 * height / SIZE[1], x2 * width / SIZE[0], y2 * height / SIZE[1]]
                side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
                level = min(max(math.floor(4 + math.log2(side / 224)), 2), 5)
                pooled = naive_pooling(maps[level - 2][0], 2**level, box)
                wanted = backend.model.roi_heads.box_head(pooled[None])[0]
                assert np.allclose(found["regions"][row, index], wanted, atol=2e-3 * wanted.abs().max().item())


def with_threshold(backend: TorchvisionDetectorBackend, threshold: float) -> TorchvisionDetectorBackend:
    other = copy.copy(backend)  # of the same model
    other.score_threshold = threshold
    return other


def test_a_threshold_leaves_the_rest_of_the_rows_empty(backend):
    sizes = np.array([SIZE] * 2)
    every = backend.extract(pair(), sizes)
    assert every["region_count"].tolist() == [36, 36]
    assert (np.diff(every["scores"], axis=1) <= 0).all() and every["scores"].max() <= 1
    threshold = float(every["scores"][0, 10])
    found = with_threshold(backend, threshold).extract(pair(), sizes)
    counts = found["region_count"]
    assert counts.dtype == np.int32 and counts[0] == 10  # the one at the threshold is left out, as by torchvision
    for row, count in enumerate(counts):
        assert np.allclose(found["regions"][row, :count], every["regions"][row, :count], atol=1e-4)
        assert (found["class_ids"][row, :count] == every["class_ids"][row, :count]).all()
        assert (found["class_ids"][row, count:] == -1).all()
        for name in ("regions", "boxes", "scores"):
            assert not found[name][row, count:].any()


def test_there_is_always_one_region(backend):
    sizes = np.array([SIZE] * 2)
    every, found = (with_threshold(backend, threshold).extract(pair(), sizes) for threshold in (0, 0.9999))
    assert found["region_count"].tolist() == [1, 1]
    for name in ("boxes", "scores", "class_ids"):
        assert np.array_equal(found[name][:, 0], every[name][:, 0])
    backend.model.rpn._post_nms_top_n["testing"] = 0
    try:
        found = backend.extract(pair(), sizes)
    finally:
        with_few_proposals(backend.model)
    assert found["region_count"].tolist() == [1, 1] and found["class_ids"][:, 0].tolist() == [0, 0]
    assert np.allclose(found["boxes"][:, 0], [0, 0, *SIZE]) and found["regions"][:, 0].any(axis=1).all()


def naive_selection(boxes, scores, most, score_threshold, nms_threshold):
    """Greedy, one candidate after the other. boxes (P, C, 4), scores (P, C) -> [(score, class, box)]."""
    candidates = []
    for of_proposal, row in zip(boxes, scores, strict=True):
        for label in range(1, len(row)):
            x1, y1, x2, y2 = of_proposal[label]
            box = [min(max(x1, 0), 60), min(max(y1, 0), 40), min(max(x2, 0), 60), min(max(y2, 0), 40)]
            if box[2] - box[0] >= 0.01 and box[3] - box[1] >= 0.01:
                candidates.append((row[label], label, box))
    candidates.sort(key=lambda c: -c[0])
    kept = candidates[:1] or [(0.0, 0, [0.0, 0.0, 60.0, 40.0])]
    for candidate in candidates[1:]:
        if candidate[0] <= score_threshold:
            break
        if all(other[1] != candidate[1] or overlap(other[2], candidate[2]) <= nms_threshold for other in kept):
            kept.append(candidate)
    return kept[:most]


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 1000), proposals=st.integers(0, 30), most=st.integers(1, 20),
    first=st.sampled_from([1, 3, 2048]), score_threshold=st.sampled_from([0.0, 0.2, 0.8]),
    nms_threshold=st.sampled_from([0.3, 0.5]),
)
def test_selection_is_the_naive_one_however_few_candidates_it_begins_with(
    seed, proposals, most, first, score_threshold, nms_threshold
):
    rng = np.random.default_rng(seed)
    corners = rng.uniform(-10, 60, (proposals, 4, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(0, 30, (proposals, 4, 2))], axis=2)
    logits = rng.normal(0, 2, (proposals, 4))
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    wanted = naive_selection(boxes.tolist(), scores.tolist(), most, score_threshold, nms_threshold)
    found = select_detections(
        torch.tensor(boxes), torch.tensor(scores), (40, 60), most, score_threshold, nms_threshold, first=first
    )
    assert found.labels.tolist() == [label for _, label, _ in wanted]
    assert found.scores.tolist() == pytest.approx([score for score, _, _ in wanted])
    assert np.allclose(found.boxes, np.array([box for _, _, box in wanted]).reshape(-1, 4))


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_boxes_are_in_pixels_of_each_original(backend):
    pixels = [pair()[0]] * 2
    boxes = backend.extract(pixels, np.array([SIZE, (260, 45)]))["boxes"]
    assert np.allclose(boxes[1], boxes[0] * [2, 0.5, 2, 0.5], rtol=1e-5, atol=1e-4)
    assert boxes.min() >= 0 and boxes.dtype == np.float32
    assert boxes[0, :, 0::2].max() <= SIZE[0] and boxes[0, :, 1::2].max() <= SIZE[1]
    assert (boxes[:, :, 2:] > boxes[:, :, :2]).all()


@pytest.mark.parametrize("size", [(1, 1), (1, 10000), (10000, 1), (3, 5)])
def test_pixels_and_strips_have_regions(backend, size):
    found = backend.extract([backend.prepare(picture(0, *size))], np.array([size]))
    count = found["region_count"][0]
    assert count > 0 and np.isfinite(found["regions"]).all()
    boxes = found["boxes"][0, :count]
    assert (boxes >= 0).all() and (boxes[:, 0::2] <= size[0]).all() and (boxes[:, 1::2] <= size[1]).all()


def test_a_strip_as_the_first_image_changes_no_later_one(backend):
    strip, strip_size = np.asarray(picture(0, 160, 1)), np.array([(160, 1)])
    wanted = backend.extract(pair(), np.array([SIZE] * 2))
    fresh = backend_of()
    fresh.extract([strip], strip_size)
    found = fresh.extract(pair(), np.array([SIZE] * 2))
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)
    # The fault that this guards against: left to itself, torchvision takes the strides from the first image.
    unguarded, _ = load_detector("random:0")
    unguarded.transform.min_size, unguarded.transform.max_size = (96,), 160
    with torch.inference_mode():
        unguarded([torch.zeros(3, 1, 160)])
    assert unguarded.roi_heads.box_roi_pool.scales[0] != 1 / 4
    assert fresh.model.roi_heads.box_roi_pool.scales == [1 / 4, 1 / 8, 1 / 16, 1 / 32]


@given(width=st.integers(1, 400), height=st.integers(1, 400))
@settings(max_examples=60, deadline=None)
def test_a_large_image_is_reduced_to_just_what_the_network_takes(width, height):
    prepare = DetectorPixels(40, 66)
    pixels = prepare(Image.new("RGB", (width, height)))
    transform = GeneralizedRCNNTransform(40, 66, [0.0] * 3, [1.0] * 3).eval()
    images, _ = transform([torch.zeros(3, *pixels.shape[:2])])
    if min(width, height) > 40 or max(width, height) > 66:
        assert images.image_sizes[0] == pixels.shape[:2]
        assert min(pixels.shape[:2]) <= 40 and max(pixels.shape[:2]) <= 66
        assert max(pixels.shape[:2]) == 66 or min(pixels.shape[:2]) == 40
    else:
        assert pixels.shape == (height, width, 3)


@pytest.mark.parametrize("width", [1078, 1089, 1156])
def test_no_side_is_lost_to_rounding(width):
    """800 / width * width is a hair below 800; a short side of 799 would be enlarged again on the device."""
    assert int(width * (800 / width)) == 799
    assert DetectorPixels(800, 1333)(Image.new("RGB", (width, 1300))).shape[1] == 800


def test_preparation_goes_to_workers_and_keeps_small_images(backend):
    prepare = pickle.loads(pickle.dumps(backend.prepare))
    small = picture(3, 100, 80)
    assert np.array_equal(prepare(small), np.asarray(small)) and prepare(small).dtype == np.uint8


# --- weights, settings, modes ----------------------------------------------------------------------------------------


def test_names_are_cocos(backend):
    names = backend.names["class_names"]
    assert len(names) == 91 and names[0] == "__background__" and names[1] == "person" and names[90] == "toothbrush"
    found = backend.extract(pair(), np.array([SIZE] * 2))["class_ids"]
    assert found.dtype == np.int32 and found.min() >= 1 and found.max() <= 90


def test_weights_from_a_file_are_the_files_and_others_are_refused(tmp_path, backend):
    state = backend.model.state_dict()
    torch.save(state, tmp_path / "coco.pth")
    loaded = TorchvisionDetectorBackend(str(tmp_path / "coco.pth"))
    assert all(torch.equal(value, state[key]) for key, value in loaded.model.state_dict().items())
    assert loaded.settings["weights"] == "coco.pth" and len(loaded.settings["weights_sha256"]) == 64
    few = {key: value for key, value in state.items() if key.startswith("roi_heads.box_predictor")}
    few["roi_heads.box_predictor.cls_score.bias"] = torch.zeros(81)
    few["roi_heads.mask.weight"] = torch.zeros(1)
    torch.save(few, tmp_path / "head.pth")
    wanted = r"missing \d+ \(.*left over 1 \(roi_heads\.mask\.weight\).*cls_score\.bias \(81,\), expected \(91,\)"
    with pytest.raises(DataError, match=wanted):
        TorchvisionDetectorBackend(str(tmp_path / "head.pth"))
    with pytest.raises(DataError, match="no file .*absent.pth: weights are `default`"):
        TorchvisionDetectorBackend(str(tmp_path / "absent.pth"))


def test_random_weights_come_from_their_seed_alone(backend):
    before = torch.get_rng_state()
    _, origin = load_detector("random:0")
    assert torch.equal(torch.get_rng_state(), before)
    assert origin["weights_sha256"] == backend.settings["weights_sha256"]
    assert origin["weights_sha256"] != load_detector("random:1")[1]["weights_sha256"]
    with pytest.raises(DataError, match="write random:SEED"):
        load_detector("random:one")


def test_without_a_network_the_published_weights_say_what_to_fetch(monkeypatch, tmp_path):
    def unreachable(*args, **kwargs):
        raise urllib.error.URLError("no route")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(DataError, match=r"could not be downloaded from https://.*fasterrcnn.*give its path"):
        TorchvisionDetectorBackend()


@pytest.mark.parametrize(
    "changes",
    [{"max_regions": 0}, {"short_side": 200}, {"short_side": 0}, {"score_threshold": 1.5}, {"nms_threshold": -0.1}],
)
def test_numbers_out_of_range_are_refused(changes):
    with pytest.raises(DataError, match=str(next(iter(changes.values())))):
        TorchvisionDetectorBackend(**SMALL | changes)


def test_settings_hold_all_that_decides_the_numbers(backend):
    base = backend.settings
    assert json.loads(json.dumps(base)) == base
    changes = {
        "weights": "random:1", "max_regions": 10, "score_threshold": 0.1, "nms_threshold": 0.4, "short_side": 80,
        "long_side": 161, "precision": "bfloat16",
    }
    assert set(changes) <= set(base)
    changed = backend_of(**changes).settings
    assert all(changed[name] == value != base[name] for name, value in changes.items())


def test_it_works_in_evaluation_mode_whatever_was_done_before(backend):
    sizes = np.array([SIZE] * 2)
    wanted = backend.extract(pair(), sizes)
    backend.model.train()
    found = backend.extract(pair(), sizes)
    assert not backend.model.training
    assert all(np.array_equal(found[name], wanted[name]) for name in wanted)


def test_low_precision_touches_no_coordinate():
    """Boxes come from float32 arithmetic: rounded to bfloat16 at any step they would lie on a coarse lattice."""
    found = backend_of(precision="bfloat16").extract(pair(), np.array([(160, 111)] * 2))
    boxes = torch.from_numpy(found["boxes"])
    inside = (boxes > 1) & (boxes < 100)
    assert (boxes != boxes.bfloat16().float())[inside].float().mean() > 0.9
    assert found["regions"].dtype == np.float32 and np.isfinite(found["regions"]).all()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_scores_of_the_cpu(backend, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    sizes = np.array([SIZE] * 2)
    cpu, gpu = backend.extract(pair(), sizes), backend_of(device="cuda").extract(pair(), sizes)
    assert np.array_equal(cpu["region_count"], gpu["region_count"])
    assert np.allclose(cpu["scores"], gpu["scores"], atol=1e-2)
