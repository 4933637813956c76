"""The detectron2 backend against detectron2's own predictor and against naive loops.

What needs detectron2 itself is skipped where it is not installed: it is on no package registry. Everything else, the
choice of the regions and the scaling of images, runs everywhere.
"""

import json
import math
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.ops import roi_align

from ascl.core.errors import DataError
from ascl.features.detectors.detectron2_backend import Detectron2Backend, ShortestEdgePixels, best_boxes
from ascl.features.writer import extract

from .cases import overlap

ZOO = "COCO-Detection/faster_rcnn_R_50_{}_3x.yaml"


def photo(width: int = 100, height: int = 60, seed: int = 0) -> Image.Image:
    """Smooth blobs, so that scaling keeps what is in the image."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def run(backend: Detectron2Backend, *images: Image.Image) -> dict[str, np.ndarray]:
    return backend.extract([backend.prepare(image) for image in images], np.array([image.size for image in images]))


# --- without detectron2 ----------------------------------------------------------------------------------------------


def test_without_detectron2_it_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "detectron2", None)  # what an import finds where there is none
    with pytest.raises(DataError, match=r"needs detectron2; install it with python -m pip install .*git"):
        Detectron2Backend(ZOO.format("C4"), "random:0")


def test_importing_the_backend_imports_no_detectron2(detectron2):
    code = "import sys, ascl.features.detectors.detectron2_backend; sys.exit('detectron2' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_regions": 0}, "max_regions 0: give at least 1"),
        ({"min_size": -1}, "min_size -1: give pixels"),
        ({"max_size": 0}, "max_size 0: give at least 1 pixel"),
        ({"nms_threshold": 1.5}, "nms_threshold 1.5: give an IoU between 0 and 1"),
        ({"score_threshold": -0.1}, "score_threshold -0.1: give a score between 0 and 1"),
        ({"score_threshold": math.nan}, "score_threshold nan: give a score between 0 and 1"),
    ],
)
def test_numbers_out_of_range_are_refused(arguments, message):
    with pytest.raises(DataError, match=message):
        Detectron2Backend(ZOO.format("C4"), "random:0", **arguments)


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((640, 480), (1067, 800)),  # 640 * 800 / 480 = 1066.67
        ((480, 640), (800, 1067)),
        ((2000, 1000), (1333, 667)),  # 1600 x 800 would be too long
        ((1, 1), (800, 800)),
        ((1, 5000), (1, 1333)),  # 0.27 pixels wide
    ],
)
def test_the_short_side_is_scaled_unless_the_long_one_grows_too_long(size, wanted):
    prepare = pickle.loads(pickle.dumps(ShortestEdgePixels(800, 1333)))
    assert prepare.scaled(*size) == wanted
    image = photo(*size)
    assert np.array_equal(prepare(image), np.asarray(image.resize(wanted, Image.Resampling.BILINEAR)))
    assert np.array_equal(ShortestEdgePixels(0, 1333)(image), np.asarray(image))


def naive_best(boxes, scores, image_size, original, max_regions, nms_threshold, score_threshold):
    """[(score, class, proposal, box in the original)], best first: one pair of boxes after the other."""
    height, width = image_size
    found = []
    for proposal, row in enumerate(boxes.tolist()):
        for label, box in enumerate(row):
            score = scores[proposal, label].item()
            if all(math.isfinite(value) for value in (*box, score)):
                x1, x2 = (min(max(value, 0.0), width) for value in box[0::2])
                y1, y2 = (min(max(value, 0.0), height) for value in box[1::2])
                if x2 > x1 and y2 > y1:
                    found.append((score, label, proposal, [x1, y1, x2, y2]))
    found.sort(key=lambda item: -item[0])
    kept: list = []
    for item in found:
        if (item[0] >= score_threshold or not kept) and len(kept) < max_regions:
            if not any(item[1] == other[1] and overlap(item[3], other[3]) > nms_threshold for other in kept):
                kept.append(item)
    scale = (original[0] / width, original[1] / height) * 2
    return [(*item[:3], [value * s for value, s in zip(item[3], scale, strict=True)]) for item in kept]


def random_boxes(seed: int, proposals: int, classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes around few centers, so that many overlap; some leave the image of 60 x 80, some have no area.

    Every score is there twice, for the order of equal ones.
    """
    random = np.random.default_rng(seed)
    centers = random.uniform(-10, 90, (proposals, 1, 2)).round(-1) + random.normal(0, 3, (proposals, classes, 2))
    halves = random.uniform(-1, 25, (proposals, 1, 2)) + random.normal(0, 1, (proposals, classes, 2))
    ranks = random.permutation(proposals * classes).reshape(proposals, classes) // 2
    boxes = np.concatenate([centers - halves, centers + halves], axis=2)
    return torch.from_numpy(boxes).float(), torch.from_numpy(ranks / (proposals * classes)).float()


@settings(deadline=None)  # other work on the machine may take the time of an example
@given(
    seed=st.integers(0, 10**6),
    proposals=st.integers(1, 12),
    classes=st.integers(1, 4),
    max_regions=st.integers(1, 30),
    nms_threshold=st.sampled_from([0.0, 0.3, 0.5, 1.0]),
    score_threshold=st.sampled_from([0.0, 0.4, 1.0]),
    first=st.sampled_from([1, 32]),  # how many candidates are looked at first must not matter
)
def test_the_best_boxes_are_those_of_naive_loops(
    seed, proposals, classes, max_regions, nms_threshold, score_threshold, first
):
    boxes, scores = random_boxes(seed, proposals, classes)
    if seed % 3 == 0:
        boxes[0, 0, 2], scores[-1, -1] = math.inf, math.nan
    rules = {"max_regions": max_regions, "nms_threshold": nms_threshold, "score_threshold": score_threshold}
    found = best_boxes(boxes, scores, (60, 80), np.array([300, 150]), first=first, **rules)
    wanted = naive_best(boxes, scores, (60, 80), (300, 150), **rules)
    assert found.scores.tolist() == [item[0] for item in wanted]
    assert found.classes.tolist() == [item[1] for item in wanted]
    assert found.proposals.tolist() == [item[2] for item in wanted]
    assert np.allclose(found.boxes.numpy(), np.array([item[3] for item in wanted]).reshape(-1, 4), atol=1e-4)


def test_no_box_leaves_the_original_by_a_rounding():
    beyond = 0
    for width in range(100, 1000, 9):
        scaled_width, scaled_height = ShortestEdgePixels(800, 1333).scaled(width, 300)
        whole = torch.tensor([[[0.0, 0.0, scaled_width, scaled_height]]])
        beyond += bool(np.float32(scaled_width) * np.float32(width / scaled_width) > width)
        found = best_boxes(
            whole, torch.ones(1, 1), (scaled_height, scaled_width), np.array([width, 300]), max_regions=1,
            nms_threshold=0.5, score_threshold=0.0,
        )
        assert found.boxes[0, 2] <= width and found.boxes[0, 3] <= 300
    assert beyond  # the multiplication alone does leave it


@pytest.mark.parametrize(("shared", "survivors"), [(66.65, 2), (66.68, 1)])  # IoU 66.65 / 133.35 < 0.5 < 66.68 / 133.32
@pytest.mark.parametrize("label", [1, 1200])
def test_the_thousandth_class_is_suppressed_as_exactly_as_the_first(shared, survivors, label):
    boxes = torch.zeros(3, 1201, 4)
    boxes[:, :] = torch.tensor([[0, 0, 100, 100], [100 - shared, 0, 200 - shared, 100], [900, 900, 1300, 1300]])[
        :, None
    ]
    scores = torch.zeros(3, 1201)
    scores[0, label], scores[1, label], scores[2, 0] = 0.9, 0.8, 0.7
    rules = {"max_regions": 9, "nms_threshold": 0.5, "score_threshold": 0.5}
    found = best_boxes(boxes, scores, (1333, 1333), np.array([1333, 1333]), **rules)
    assert found.classes.tolist() == [label] * survivors + [0]


# --- the same numbers as detectron2 ----------------------------------------------------------------------------------


@settings(deadline=None)
@given(width=st.integers(1, 3000), height=st.integers(1, 3000), short=st.integers(1, 900), long=st.integers(1, 1400))
def test_images_get_the_size_that_detectron2_gives_them(detectron2, width, height, short, long):
    from detectron2.data.transforms import ResizeShortestEdge

    theirs = ResizeShortestEdge.get_output_shape(height, width, short, long)
    assert ShortestEdgePixels(short, long).scaled(width, height) == (max(1, theirs[1]), max(1, theirs[0]))


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("C4", []),
        ("FPN", []),
        ("DC5", []),
        ("FPN", ["INPUT.FORMAT", "RGB"]),
        ("FPN", ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", "True"]),
        ("C4", ["INPUT.MIN_SIZE_TEST", "0"]),
    ],
)
def test_boxes_scores_and_classes_are_those_of_detectron2s_predictor(
    detectron2_checkpoint, architecture, options, narrow
):
    from detectron2 import model_zoo
    from detectron2.engine import DefaultPredictor

    path, image = detectron2_checkpoint(architecture, *options), photo()
    cfg = model_zoo.get_config(ZOO.format(architecture))
    cfg.merge_from_list([*narrow, *options, "MODEL.WEIGHTS", path, "MODEL.DEVICE", "cpu"])
    cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = 0.2
    wanted = DefaultPredictor(cfg)(np.asarray(image)[:, :, ::-1])["instances"]
    count = len(wanted)
    assert 5 < count < 100 and len(set(wanted.pred_classes.tolist())) > 1  # something to compare, nothing cut off

    backend = Detectron2Backend(
        ZOO.format(architecture), path, options=[*narrow, *options], max_regions=100, score_threshold=0.2
    )
    found = {name: value[0] for name, value in run(backend, image).items()}
    assert found["region_count"] == count
    assert found["class_ids"].tolist() == wanted.pred_classes.tolist() + [-1] * (100 - count)
    assert np.allclose(found["scores"][:count], wanted.scores.numpy(), atol=1e-6)
    assert np.allclose(found["boxes"][:count], wanted.pred_boxes.tensor.numpy(), atol=1e-3)
    assert not any(found[name][count:].any() for name in ("regions", "boxes", "scores"))

    # With no threshold the same boxes come first, and worse ones after them until the regions are full.
    full = {
        name: value[0]
        for name, value in run(
            Detectron2Backend(ZOO.format(architecture), path, options=[*narrow, *options], max_regions=100), image
        ).items()
    }
    assert full["region_count"] > count and (np.diff(full["scores"][: full["region_count"]]) <= 0).all()
    assert np.array_equal(full["boxes"][:count], found["boxes"][:count])


def naive_features(backend: Detectron2Backend, architecture: str, maps: dict, box: torch.Tensor) -> torch.Tensor:
    """The feature of one proposal by itself, (R,)."""
    heads = backend.model.roi_heads
    if architecture == "C4":
        pooled = roi_align(maps["res4"], [box[None]], 14, 1 / 16, 0, aligned=True)
        last = heads.res5(pooled)[0]
        return torch.stack([channel.sum() / channel.numel() for channel in last])
    if architecture == "FPN":  # a box of 224 pixels is read from p4, one of twice the side from p5
        side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
        level = min(max(math.floor(4 + math.log2(side / 224 + 1e-8)), 2), 5)
        pooled = roi_align(maps[f"p{level}"], [box[None]], 7, 1 / 2**level, 0, aligned=True)
    else:
        pooled = roi_align(maps["res5"], [box[None]], 7, 1 / 16, 0, aligned=True)
    hidden = pooled.flatten()
    for layer in (heads.box_head.fc1, heads.box_head.fc2):
        hidden = (layer.weight @ hidden + layer.bias).clamp(min=0)
    return hidden


@pytest.mark.parametrize("architecture", ["C4", "FPN", "DC5"])
def test_every_region_is_what_one_proposal_gives_by_itself(detectron2_checkpoint, architecture, narrow):
    """From the proposals on, everything is done again box by box: feature, scores, regressed box, suppression."""
    backend = Detectron2Backend(
        ZOO.format(architecture), detectron2_checkpoint(architecture), options=narrow, max_regions=30
    )
    image = photo()
    pixels = torch.from_numpy(backend.prepare(image).copy()).permute(2, 0, 1).flip(0).float()  # BGR
    model, predictor = backend.model, backend.model.roi_heads.box_predictor
    with torch.inference_mode():
        images = model.preprocess_image([{"image": pixels}])
        maps = model.backbone(images.tensor)
        (proposals,) = model.proposal_generator(images, maps, None)[0]
        corners = proposals.proposal_boxes.tensor
        features = [naive_features(backend, architecture, maps, box) for box in corners]
        scores = torch.stack([(predictor.cls_score(feature)).softmax(dim=0)[:-1] for feature in features])
        boxes = torch.zeros(len(corners), 5, 4)
        for i, (x1, y1, x2, y2) in enumerate(corners.tolist()):
            deltas = predictor.bbox_pred(features[i]).view(5, 4).tolist()
            for label, (dx, dy, dw, dh) in enumerate(deltas):  # in tenths of the box, sizes in fifths of a log
                width = (x2 - x1) * math.exp(min(dw / 5, math.log(1000 / 16)))
                height = (y2 - y1) * math.exp(min(dh / 5, math.log(1000 / 16)))
                x, y = (x1 + x2) / 2 + dx / 10 * (x2 - x1), (y1 + y2) / 2 + dy / 10 * (y2 - y1)
                boxes[i, label] = torch.tensor([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    wanted = naive_best(boxes, scores, proposals.image_size, image.size, 30, 0.5, 0.0)
    found = {name: value[0] for name, value in run(backend, image).items()}
    assert found["region_count"] == len(wanted) == 30 and backend.dim == found["regions"].shape[1]
    assert found["class_ids"].tolist() == [item[1] for item in wanted]
    assert np.allclose(found["scores"], [item[0] for item in wanted], atol=1e-5)
    assert np.allclose(found["boxes"], [item[3] for item in wanted], atol=1e-2)
    assert np.allclose(found["regions"], torch.stack([features[item[2]] for item in wanted]), rtol=1e-3, atol=1e-4)


# --- batches, precision, odd images ----------------------------------------------------------------------------------


def test_an_images_regions_depend_on_neither_its_batch_nor_what_was_done_to_the_network(detectron2_checkpoint, narrow):
    backend = Detectron2Backend(ZOO.format("FPN"), detectron2_checkpoint("FPN"), options=narrow, max_regions=20)
    images = [photo(seed=seed) for seed in range(3)]
    together = run(backend, *images)
    backend.model.train()
    for i, image in enumerate(images):
        for name, value in run(backend, image).items():
            assert np.allclose(value[0], together[name][i], atol=1e-3), name
    assert together["regions"].dtype == together["boxes"].dtype == together["scores"].dtype == np.float32
    assert together["class_ids"].dtype == together["region_count"].dtype == np.int32


def test_boxes_are_in_pixels_of_the_original_even_where_the_image_came_reduced(detectron2_checkpoint, narrow):
    backend = Detectron2Backend(ZOO.format("FPN"), detectron2_checkpoint("FPN"), options=narrow, max_regions=20)
    pixels = backend.prepare(photo())
    small, large = (
        backend.extract([pixels], np.array([size], dtype=np.int32))["boxes"][0] for size in ((100, 60), (1000, 1200))
    )
    assert np.allclose(small * [10, 20, 10, 20], large, atol=1e-2)
    assert small.min() >= 0 and (small.max(axis=0) <= [100, 60, 100, 60]).all()


@pytest.mark.parametrize("architecture", ["C4", "FPN"])
@pytest.mark.parametrize("size", [(1, 1), (1, 400), (400, 1), (3, 200)])
def test_odd_images_give_boxes_within_them(detectron2_checkpoint, architecture, size, narrow):
    backend = Detectron2Backend(ZOO.format(architecture), "random:0", options=narrow)
    found = run(backend, photo(*size))
    boxes = found["boxes"][0, : found["region_count"][0]]
    assert len(boxes) and (boxes[:, 2:] > boxes[:, :2]).all()
    assert boxes.min() >= 0 and (boxes[:, 2:] <= size).all()


@pytest.mark.parametrize("architecture", ["C4", "FPN"])
@pytest.mark.parametrize(("precision", "digits"), [("bfloat16", 2**-8), ("float16", 2**-11)])
def test_half_precision_gives_each_proposal_nearly_its_feature(
    detectron2_checkpoint, architecture, precision, digits, narrow
):
    """On a wide image, where boxes rounded to bfloat16 would be 2 pixels off."""
    path, image = detectron2_checkpoint(architecture), photo(1000, 100)
    wide = [*narrow, "INPUT.MAX_SIZE_TEST", "1000"]
    full, half = (
        Detectron2Backend(ZOO.format(architecture), path, options=wide, precision=name)
        for name in ("float32", precision)
    )
    pixels = torch.from_numpy(full.prepare(image).copy()).permute(2, 0, 1).flip(0).float()
    with torch.inference_mode():
        images = full.model.preprocess_image([{"image": pixels}])
        maps = full.model.backbone(images.tensor)
        (proposals,) = full.model.proposal_generator(images, maps, None)[0]
        wanted = full.box_features(maps, proposals)
        rounded = {name: value.to(getattr(torch, precision)) for name, value in maps.items()}
        found = half.box_features(rounded, proposals)
    assert found.dtype == torch.float32 and not torch.equal(found, wanted)
    assert (found - wanted).norm(dim=1).max() < 4 * digits * wanted.norm(dim=1).max()
    output = run(half, image)
    assert output["regions"].dtype == output["scores"].dtype == np.float32 and np.isfinite(output["regions"]).all()
    assert not np.array_equal(output["regions"], run(full, image)["regions"])


def test_a_network_without_a_finite_box_is_refused(detectron2_checkpoint, narrow):
    def spoil(state):
        state["roi_heads.box_predictor.cls_score.bias"][:] = math.nan

    backend = Detectron2Backend(ZOO.format("FPN"), detectron2_checkpoint("FPN", change=spoil), options=narrow)
    with pytest.raises(DataError, match="no box of finite numbers in an image of 100x60 pixels, scaled to 160x96"):
        run(backend, photo())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_gives_the_regions_of_the_cpu(detectron2_checkpoint, narrow):
    path = detectron2_checkpoint("FPN")
    cpu, gpu = (
        run(Detectron2Backend(ZOO.format("FPN"), path, options=narrow, device=device), photo())
        for device in ("cpu", "cuda")
    )
    assert np.allclose(cpu["scores"], gpu["scores"], atol=1e-2)


# --- the whole backend -----------------------------------------------------------------------------------------------


def test_random_weights_come_from_their_seed_alone_and_give_distinct_proposals(detectron2, narrow):
    before = torch.get_rng_state()
    first, again, other = (
        Detectron2Backend(ZOO.format("C4"), weights, options=narrow) for weights in ("random:3", "random:3", "random:4")
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert first.settings == again.settings
    assert first.settings["weights_sha256"] != other.settings["weights_sha256"]
    found, same, different = (run(backend, photo()) for backend in (first, again, other))
    assert np.array_equal(found["regions"], same["regions"])
    assert not np.array_equal(found["regions"], different["regions"])
    # Left as detectron2 draws it, the network sees the whole image in every proposal, and one region is all there is.
    assert found["region_count"] == 36 and len(np.unique(found["boxes"][0].round(), axis=0)) > 20


@pytest.mark.parametrize("architecture", ["C4", "FPN"])
def test_a_mask_rcnn_gives_its_boxes(detectron2, architecture, narrow):
    config = f"COCO-InstanceSegmentation/mask_rcnn_R_50_{architecture}_3x.yaml"
    backend = Detectron2Backend(config, "random:0", options=narrow)
    assert run(backend, photo())["regions"].shape == (1, 36, backend.dim)


def test_settings_hold_all_that_decides_the_numbers(detectron2, narrow):
    plain = {"config": ZOO.format("FPN"), "weights": "random:0", "options": narrow}
    base = Detectron2Backend(**plain).settings
    assert json.loads(json.dumps(base)) == base
    changes = {
        "config": ZOO.format("DC5"), "weights": "random:1", "options": [*narrow, "MODEL.RPN.NMS_THRESH", "0.6"],
        "max_regions": 10, "min_size": 64, "max_size": 100, "nms_threshold": 0.3, "score_threshold": 0.1,
        "precision": "bfloat16",
    }
    for name, value in changes.items():
        assert Detectron2Backend(**plain | {name: value}).settings != base, name
    digests = {
        Detectron2Backend(**plain | {"options": [*narrow, *more]}).settings["config_sha256"]
        for more in ([], ["MODEL.RPN.NMS_THRESH", "0.6"], ["MODEL.WEIGHTS", "elsewhere"])
    }
    assert len(digests) == 2  # where the weights lie is no part of the network


def test_a_folder_of_images_becomes_a_file_of_features(detectron2_checkpoint, tmp_path, narrow):
    paths = []
    for i, size in enumerate([(100, 60), (60, 100), (100, 60)]):
        paths.append(tmp_path / f"{i}.png")
        photo(*size, seed=i).save(paths[-1])
    backend = Detectron2Backend(ZOO.format("C4"), detectron2_checkpoint("C4"), options=narrow)
    done = extract(backend, paths, tmp_path / "out.h5", workers=0, progress=False)
    assert done.shapes["regions"] == (3, 36, backend.dim) and done.shapes["boxes"] == (3, 36, 4)
    assert done.shapes["scores"] == done.shapes["class_ids"] == (3, 36) and done.extracted == 3
