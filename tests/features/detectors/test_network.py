"""The detector's parts against naive loops, and the whole of a small one against a plain second computation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.features.detectors.boxes import (
    anchors_of_map,
    caffe_anchors,
    centered_anchors,
    clip_boxes,
    decode_boxes,
    nms,
    overlaps,
)
from ascl.features.detectors.network import CAFFE, DETECTRON2, BottomUpDetector, DetectorShape, initialize

from .cases import CONVENTIONS, SMALL, greedy, overlap


def small_detector(convention, seed: int = 0, shape: DetectorShape = SMALL) -> BottomUpDetector:
    """Random weights with norms that do something and regressions that move boxes."""
    torch.manual_seed(seed)
    detector = BottomUpDetector(shape, convention).eval()
    initialize(detector, seed)
    for name, value in detector.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith("norm.weight"):
            value.mul_(torch.empty_like(value).uniform_(0.5, 1.5))
        elif name.endswith(("norm.bias", "running_mean")) or name.split(".")[-1] == "bias":
            value.normal_(0, 0.1)
        elif "box_predictor" in name or "rpn_head" in name:
            value.normal_(0, 0.1)
    return detector


# --- boxes -----------------------------------------------------------------------------------------------------------


def test_caffes_anchors_are_the_known_ones():
    # Sides 23 x 12, 16 x 16 and 11 x 22 around the middle of (0, 0, 15, 15), times 4, 8, 16, 32.
    found = caffe_anchors((4, 8, 16, 32)).tolist()
    wanted = []
    for width, height in ((23, 12), (16, 16), (11, 22)):
        for scale in (4, 8, 16, 32):
            x, y = (width * scale - 1) / 2, (height * scale - 1) / 2
            wanted.append([7.5 - x, 7.5 - y, 7.5 + x, 7.5 + y])
    assert found == wanted
    assert found[1] == [-84, -40, 99, 55] and found[5] == [-56, -56, 71, 71] and found[9] == [-36, -80, 51, 95]


def test_centered_anchors_have_the_areas_of_their_scales():
    found = centered_anchors((4, 8, 16, 32)).tolist()
    for index, (x1, y1, x2, y2) in enumerate(found):
        side, ratio = 64 * 2 ** (index // 3), (0.5, 1, 2)[index % 3]
        assert x1 == -x2 and y1 == -y2
        assert (x2 - x1) * (y2 - y1) == pytest.approx(side**2, rel=1e-5)
        assert (y2 - y1) / (x2 - x1) == pytest.approx(ratio, rel=1e-5)


def test_anchors_of_a_map_go_row_by_row_and_anchor_by_anchor():
    cell = torch.tensor([[-1.0, -2.0, 3.0, 4.0], [0.0, 0.0, 5.0, 6.0]])
    wanted = [
        [x1 + 16 * column, y1 + 16 * row, x2 + 16 * column, y2 + 16 * row]
        for row in range(3)
        for column in range(2)
        for x1, y1, x2, y2 in cell.tolist()
    ]
    assert anchors_of_map(cell, 3, 2, 16).tolist() == wanted


def decoded(box, delta, weights, legacy) -> list[float]:
    x1, y1, x2, y2 = box
    width, height = x2 - x1 + (1 if legacy else 0), y2 - y1 + (1 if legacy else 0)
    x, y = x1 + width / 2 + delta[0] / weights[0] * width, y1 + height / 2 + delta[1] / weights[1] * height
    width *= math.exp(min(delta[2] / weights[2], math.log(62.5)))
    height *= math.exp(min(delta[3] / weights[3], math.log(62.5)))
    return [x - width / 2, y - height / 2, x + width / 2, y + height / 2]


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("weights", [(1, 1, 1, 1), (10, 10, 5, 5)])
def test_decoding_and_clipping_against_scalars(legacy, weights):
    rng = np.random.default_rng(0)
    boxes = np.sort(rng.uniform(0, 100, (30, 2, 2)), axis=1).reshape(30, 4)
    deltas = rng.normal(0, 2, (30, 4))
    deltas[0] = [0, 0, 90, 90]  # beyond the limit that keeps exp() finite
    found = decode_boxes(torch.tensor(boxes), torch.tensor(deltas), weights, legacy)
    wanted = [decoded(box, delta, weights, legacy) for box, delta in zip(boxes, deltas, strict=True)]
    assert np.allclose(found, wanted)
    edge_x, edge_y = (79, 59) if legacy else (80, 60)
    clipped = [[min(max(v, 0), edge_y if i % 2 else edge_x) for i, v in enumerate(box)] for box in wanted]
    assert np.allclose(clip_boxes(found, 60, 80, legacy), clipped)


corner = st.integers(0, 12)
box = st.tuples(corner, corner, st.integers(1, 8), st.integers(1, 8)).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)


@settings(deadline=None)
@given(st.lists(st.tuples(box, st.integers(0, 5)), min_size=1, max_size=25), st.booleans())
def test_suppression_and_overlaps_against_loops_with_tied_scores(rows, legacy):
    boxes = torch.tensor([row[0] for row in rows], dtype=torch.float32)
    scores = torch.tensor([row[1] / 5 for row in rows])
    matrix = [[overlap(a, b, legacy) for b in boxes.tolist()] for a in boxes.tolist()]
    assert np.allclose(overlaps(boxes, legacy), matrix)
    threshold = 0.437  # no overlap of small whole boxes is exactly this
    assert nms(boxes, scores, threshold, legacy).tolist() == greedy(boxes.tolist(), scores.tolist(), threshold, legacy)


def test_legacy_overlap_is_not_the_continuous_one():
    boxes = torch.tensor([[0.0, 0, 9, 9], [5, 0, 14, 9]])  # 10 x 10 pixels each, 5 columns in common: 50 / 150
    assert overlaps(boxes, True)[0, 1].item() == pytest.approx(1 / 3)
    assert overlaps(boxes, False)[0, 1].item() == pytest.approx(36 / 126)
    assert len(nms(boxes, torch.tensor([1.0, 0.5]), 0.3, True)) == 1
    assert len(nms(boxes, torch.tensor([1.0, 0.5]), 0.3, False)) == 2


def pooled(feature_map: np.ndarray, box, size: int) -> np.ndarray:
    """Caffe's RoI pooling of one box: (C, H, W) -> (C, size, size)."""
    x1, y1, x2, y2 = (math.floor(float(np.float32(v) / np.float32(16)) + 0.5) for v in box)  # half away from zero
    height, width = max(y2 - y1 + 1, 1), max(x2 - x1 + 1, 1)
    out = np.zeros((len(feature_map), size, size), dtype=np.float32)
    for row in range(size):
        for column in range(size):
            top, bottom = y1 + row * height // size, y1 + -(-(row + 1) * height // size)
            left, right = x1 + column * width // size, x1 + -(-(column + 1) * width // size)
            part = feature_map[:, max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)]
            if part.size:
                out[:, row, column] = part.reshape(len(part), -1).max(axis=1)
    return out


@pytest.mark.parametrize("size", [3, 14])
def test_region_pooling_is_caffes(size):
    feature_map = torch.randn(2, 3, 9, 11)
    boxes = torch.rand(40, 2, 2) * torch.tensor([170.0, 140.0])
    boxes = torch.cat([boxes.amin(1), boxes.amax(1)], dim=1)
    # Halves: 8 / 16 rounds to 1 and 24 / 16 to 2; a box inside one cell; a box at the border.
    boxes[:4] = torch.tensor([[8.0, 24, 40, 56], [17, 17, 18, 18], [0, 0, 175, 143], [170, 140, 175, 143]])
    rows = torch.cat([torch.arange(40.0)[:, None] % 2, boxes], dim=1)
    found = torchvision.ops.roi_pool(feature_map, rows, size, 1 / 16)
    for index, (image, *corners) in enumerate(rows.tolist()):
        assert np.array_equal(found[index], pooled(feature_map[int(image)].numpy(), corners, size)), corners


# --- the whole network -----------------------------------------------------------------------------------------------


def oracle(state, images, scale, convention, shape):
    """Boxes, features, probabilities, deltas and attributes of each image, from the state dict alone."""

    def conv(x, name, stride=1, padding=0, dilation=1):
        x = F.conv2d(x, state[f"{name}.weight"], stride=stride, padding=padding, dilation=dilation)
        mean, variance, weight, bias = (
            state[f"{name}.norm.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias

    def blocks(x, name, stride, dilation=1):
        index = 0
        while f"{name}.{index}.conv1.weight" in state:
            block, step = f"{name}.{index}", stride if index == 0 else 1
            shortcut = conv(x, f"{block}.shortcut", step) if f"{block}.shortcut.weight" in state else x
            x = conv(x, f"{block}.conv1", step).relu()
            x = conv(x, f"{block}.conv2", 1, dilation, dilation).relu()
            x = (conv(x, f"{block}.conv3") + shortcut).relu()
            index += 1
        return x

    def linear(x, name):
        return x @ state[f"roi_heads.box_predictor.{name}.weight"].T + state[f"roi_heads.box_predictor.{name}.bias"]

    def whole_windows(x):
        """The largest of 3x3 with stride 2: what hangs over the edge is as if it were not there."""
        rows, columns = (math.ceil((side - 3) / 2) + 1 for side in x.shape[2:])
        windows = [
            [x[:, :, 2 * r : 2 * r + 3, 2 * c : 2 * c + 3].amax(dim=(2, 3)) for c in range(columns)]
            for r in range(rows)
        ]
        return torch.stack([torch.stack(row, dim=-1) for row in windows], dim=-2)

    one = 1 if convention.legacy else 0
    results = []
    for image in images:
        height, width = image.shape[1:]
        x = whole_windows(conv(image[None], "backbone.stem.conv1", 2, 3).relu())
        for name, stride in (("res2", 1), ("res3", 2), ("res4", 2)):
            x = blocks(x, f"backbone.{name}", stride)
        head = "proposal_generator.rpn_head"
        hidden = F.conv2d(x, state[f"{head}.conv.weight"], state[f"{head}.conv.bias"], padding=1).relu()
        logits = F.conv2d(hidden, state[f"{head}.objectness_logits.weight"], state[f"{head}.objectness_logits.bias"])
        deltas = F.conv2d(hidden, state[f"{head}.anchor_deltas.weight"], state[f"{head}.anchor_deltas.bias"])
        cells = state["proposal_generator.anchor_generator.cell_anchors.0"].tolist()
        candidates = []
        for row in range(x.shape[2]):
            for column in range(x.shape[3]):
                for index, cell in enumerate(cells):
                    pair = torch.stack([logits[0, index, row, column], logits[0, len(cells) + index, row, column]])
                    anchor = [v + 16 * (row if i % 2 else column) for i, v in enumerate(cell)]
                    delta = deltas[0, 4 * index : 4 * index + 4, row, column].tolist()
                    corners = decoded(anchor, delta, (1, 1, 1, 1), convention.legacy)
                    corners = [min(max(v, 0), (height if i % 2 else width) - one) for i, v in enumerate(corners)]
                    candidates.append((pair.double().softmax(0)[1].item(), corners))

        def large(corners):
            smallest = min(corners[2] - corners[0], corners[3] - corners[1])
            return smallest > 0 and smallest + one > convention.minimum_side * scale

        if convention.filter_first:
            candidates = [candidate for candidate in candidates if large(candidate[1])]
        candidates = sorted(candidates, key=lambda candidate: -candidate[0])[: shape.proposals_before_nms]
        candidates = [candidate for candidate in candidates if large(candidate[1])]
        corners = [candidate[1] for candidate in candidates]
        kept = greedy(corners, [candidate[0] for candidate in candidates], 0.7, convention.legacy)[: shape.proposals]
        corners = [corners[index] for index in kept] or [[0, 0, width - one, height - one]]
        regions = torch.tensor(np.stack([pooled(x[0].numpy(), c, shape.pool_size) for c in corners]))
        features = blocks(regions, "roi_heads.res5", 1, 2).mean(dim=(2, 3))
        class_logits = linear(features, "cls_score")
        embedded = state["roi_heads.box_predictor.cls_embed.weight"][class_logits.argmax(dim=1)]
        attributes = linear(linear(torch.cat([features, embedded], dim=1), "attr_linear1").relu(), "attr_linear2")
        if convention.background_attribute:
            attributes = attributes.softmax(dim=1)[:, 1:]
        else:
            attributes = attributes[:, 1:].softmax(dim=1)
        results.append(
            {
                "boxes": torch.tensor(corners), "features": features,
                "class_probabilities": class_logits.softmax(dim=1),
                "box_deltas": linear(features, "bbox_pred").view(len(corners), -1, 4),
                "attribute_ids": attributes.argmax(dim=1) + 1, "attribute_scores": attributes.amax(dim=1),
            }
        )
    return results


@pytest.mark.parametrize("kind", ["caffe", "detectron2"])
@pytest.mark.parametrize(("height", "width", "scale"), [(64, 90, 0.5), (53, 71, 1.25), (16, 80, 0.1)])
def test_a_small_network_against_a_plain_second_computation(kind, height, width, scale):
    convention = CONVENTIONS[kind]
    detector = small_detector(convention)
    images = torch.randn(2, 3, height, width) * 70
    with torch.inference_mode():
        found = detector(images, [scale, scale])
        wanted = oracle(detector.state_dict(), images, scale, convention, SMALL)
    for one, other in zip(found, wanted, strict=True):
        assert len(one.boxes) > 3
        for name, value in other.items():
            result = getattr(one, name)
            assert result.shape == value.shape, name
            assert torch.allclose(result.double(), value.double(), rtol=1e-3, atol=1e-4), name


def test_the_comparison_sees_each_part_of_the_network():
    """Planted faults: the whole-network test would notice a change of any one tensor."""
    detector = small_detector(CAFFE)
    images = torch.randn(1, 3, 53, 71) * 70
    state = {name: value.clone() for name, value in detector.state_dict().items()}
    with torch.inference_mode():
        (base,) = oracle(state, images, 1.25, CAFFE, SMALL)
        for name in state:
            noise = 0.3 * torch.rand_like(state[name])
            (changed,) = oracle(state | {name: state[name] + noise}, images, 1.25, CAFFE, SMALL)
            same = all(
                changed[key].shape == base[key].shape and torch.allclose(changed[key], base[key], rtol=1e-3, atol=1e-4)
                for key in ("boxes", "features", "class_probabilities", "box_deltas", "attribute_scores")
            )
            assert not same, name


def test_regressed_boxes_belong_to_the_best_class():
    detector = small_detector(DETECTRON2)
    with torch.inference_mode():
        (found,) = detector(torch.randn(1, 3, 53, 71) * 70, [1.0])
        boxes, scores = detector.regressed(found, 53, 71)
    for index, probabilities in enumerate(found.class_probabilities.tolist()):
        best = max(range(1, 10), key=probabilities.__getitem__)
        assert scores[index].item() == probabilities[best]
        wanted = decoded(found.boxes[index].tolist(), found.box_deltas[index, best].tolist(), (10, 10, 5, 5), False)
        wanted = [min(max(v, 0), 53 if i % 2 else 71) for i, v in enumerate(wanted)]
        assert np.allclose(boxes[index], wanted, atol=1e-3)


@pytest.mark.parametrize("kind", ["caffe", "detectron2"])
def test_an_image_gives_the_same_alone_and_in_a_batch(kind):
    detector = small_detector(CONVENTIONS[kind])
    images, scales = torch.randn(5, 3, 48, 64) * 70, [0.1, 0.5, 0.5, 1.0, 0.5]
    with torch.inference_mode():
        batch = detector(images, scales)
        alone = [detector(images[i : i + 1], scales[i : i + 1])[0] for i in range(5)]
    for one, other in zip(batch, alone, strict=True):
        assert torch.allclose(one.boxes, other.boxes, atol=1e-3)
        assert torch.allclose(one.features, other.features, rtol=1e-4, atol=1e-5)
        assert torch.equal(one.attribute_ids, other.attribute_ids)


def test_where_no_proposal_is_large_enough_the_whole_image_is_the_region():
    detector = small_detector(CAFFE)
    with torch.inference_mode():
        (found,) = detector(torch.randn(1, 3, 48, 64) * 70, [60.0])  # 16 pixels of the original are 960 here
    assert found.boxes.tolist() == [[0, 0, 63, 47]]
    assert found.features.shape == (1, SMALL.region_dim)


def test_norms_stay_frozen_in_training_mode():
    detector = small_detector(CAFFE)
    images = torch.randn(2, 3, 48, 64) * 70
    with torch.inference_mode():
        wanted = detector.feature_map(images, "float32")
        state = {name: value.clone() for name, value in detector.state_dict().items()}
        assert torch.equal(detector.train().feature_map(images, "float32"), wanted)
    assert all(torch.equal(value, state[name]) for name, value in detector.state_dict().items())


def test_bfloat16_is_as_far_from_float32_as_its_digits_allow():
    detector = small_detector(CAFFE)
    images = torch.randn(1, 3, 64, 96) * 70
    with torch.inference_mode():
        feature_map = detector.feature_map(images, "float32")
        half_map = detector.feature_map(images, "bfloat16")
        boxes = detector.propose(feature_map, 64, 96, [0.5], "float32")
        features = detector.region_features(feature_map, boxes, "float32")[0]
        half_features = detector.region_features(half_map, boxes, "bfloat16")[0]
        (found,) = detector(images, [0.5], "bfloat16")
    assert half_map.dtype == torch.bfloat16 and half_features.dtype == torch.float32
    assert F.cosine_similarity(half_features, features).min() > 0.999
    assert not torch.equal(half_features, features)
    assert all(value.dtype == torch.float32 for value in (found.boxes, found.features, found.class_probabilities))


def test_random_weights_keep_activations_in_range_through_all_blocks():
    shape = replace(SMALL, blocks=(3, 4, 23, 3))
    detector = BottomUpDetector(shape, CAFFE)
    before = torch.get_rng_state()
    initialize(detector, 3)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.inference_mode():
        (found,) = detector(torch.rand(1, 3, 96, 128) * 255 - 110, [0.5])
    assert 0.05 < found.features.mean() < 20 and found.features.max() < 1000
    again = BottomUpDetector(shape, CAFFE)
    initialize(again, 3)
    assert all(torch.equal(a, b) for a, b in zip(detector.parameters(), again.parameters(), strict=True))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("kind", ["caffe", "detectron2"])
def test_a_gpu_gives_the_proposals_of_the_cpu(kind):
    detector = small_detector(CONVENTIONS[kind])
    images = torch.randn(2, 3, 64, 90) * 70
    with torch.inference_mode():
        wanted = detector(images, [0.5, 0.5])
        found = detector.cuda()(images.cuda(), [0.5, 0.5])
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one.boxes.cpu(), other.boxes, atol=0.1)
        assert F.cosine_similarity(one.features.cpu(), other.features).min() > 0.999
