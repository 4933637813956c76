"""Published checkpoints by their names: generated files of each kind, faults in them, pickles that would run code."""

import os
import pickle
import re

import numpy as np
import pytest
import safetensors.torch
import torch

from ascl.core.errors import DataError
from ascl.features.detectors.boxes import caffe_anchors, centered_anchors
from ascl.features.detectors.network import BottomUpDetector, DetectorShape
from ascl.features.detectors.weights import load_detector, wanted_shapes

from .cases import CONVENTIONS, SMALL

ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
HEAD, PREDICTOR = "proposal_generator.rpn_head", "roi_heads.box_predictor"


def published_shapes(kind: str, shape: DetectorShape, attributes: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a kind's file, written out from the publishers' modules and not from ours."""
    shapes: dict[str, tuple[int, ...]] = {}

    def conv(name, inputs, outputs, kernel):
        shapes[f"{name}.weight"] = (outputs, inputs, kernel, kernel)
        for part in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{name}.norm.{part}"] = (outputs,)
        if kind == "huggingface":
            shapes[f"{name}.norm.num_batches_tracked"] = ()

    def layer(name, *size):
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = size, size[:1]

    width = shape.width
    conv("backbone.stem.conv1", 3, width, 7)
    inputs = width
    stages = ("backbone.res2", "backbone.res3", "backbone.res4", "roi_heads.res5")
    for level, (name, blocks) in enumerate(zip(stages, shape.blocks, strict=True)):
        middle, outputs = width * 2**level, 4 * width * 2**level
        for block in range(blocks):
            if block == 0:
                conv(f"{name}.0.shortcut", inputs, outputs, 1)
            conv(f"{name}.{block}.conv1", inputs if block == 0 else outputs, middle, 1)
            conv(f"{name}.{block}.conv2", middle, middle, 3)
            conv(f"{name}.{block}.conv3", middle, outputs, 1)
        inputs = outputs
    caffe, anchors, dim = kind == "caffe", 3 * len(shape.anchor_scales), 32 * width
    shapes[ANCHORS] = (anchors, 4)
    layer(f"{HEAD}.conv", shape.rpn_channels, 16 * width, 3, 3)
    layer(f"{HEAD}.objectness_logits", anchors * (2 if caffe else 1), shape.rpn_channels, 1, 1)
    layer(f"{HEAD}.anchor_deltas", 4 * anchors, shape.rpn_channels, 1, 1)
    layer(f"{PREDICTOR}.cls_score", shape.classes + 1, dim)
    layer(f"{PREDICTOR}.bbox_pred", 4 * (shape.classes + (1 if caffe else 0)), dim)
    if attributes:
        names = ("cls_embed", "attr_linear1", "attr_linear2") if caffe else ("cls_embedding", "fc_attr", "attr_score")
        shapes[f"{PREDICTOR}.{names[0]}.weight"] = (shape.classes + 1, shape.class_embedding)
        layer(f"{PREDICTOR}.{names[1]}", shape.attribute_hidden, dim + shape.class_embedding)
        layer(f"{PREDICTOR}.{names[2]}", shape.attributes + 1, shape.attribute_hidden)
    return shapes


def published_state(kind: str, attributes: bool = True) -> dict[str, torch.Tensor]:
    state = {name: torch.randn(size) * 0.2 for name, size in published_shapes(kind, SMALL, attributes).items()}
    for name, value in state.items():
        if name.endswith("running_var"):
            value.abs_().add_(0.5)
    for name in [name for name in state if name.endswith("num_batches_tracked")]:
        state[name] = torch.tensor(7)
    make = caffe_anchors if kind == "caffe" else centered_anchors
    state[ANCHORS] = make(SMALL.anchor_scales) + 0.25  # not what the network would make by itself
    return state


def write(state: dict[str, torch.Tensor], kind: str, folder, **more):
    """A file as the kind's publisher writes it."""
    if kind == "caffe":
        torch.save({"model": state, "iteration": 319999, **more}, folder / "bua-caffe-frcn-r101-k36.pth")
        return folder / "bua-caffe-frcn-r101-k36.pth"
    if kind == "detectron2":
        arrays = {name: value.numpy() for name, value in state.items()}
        (folder / "faster_rcnn_from_caffe_attr.pkl").write_bytes(
            pickle.dumps({"model": arrays, "__author__": "someone", **more})
        )
        return folder / "faster_rcnn_from_caffe_attr.pkl"
    torch.save(state, folder / "pytorch_model.bin")
    return folder / "pytorch_model.bin"


KINDS = pytest.mark.parametrize("kind", ["caffe", "detectron2", "huggingface"])

# --- names and values ------------------------------------------------------------------------------------------------


@KINDS
def test_names_and_shapes_of_the_full_size_are_the_publishers(kind):
    with torch.device("meta"):
        detector = BottomUpDetector(DetectorShape(), CONVENTIONS[kind])
    published = published_shapes(kind, DetectorShape())
    counted = {name: size for name, size in published.items() if not name.endswith("num_batches_tracked")}
    assert wanted_shapes(detector, kind) == counted
    assert counted[f"{PREDICTOR}.cls_score.weight"] == (1601, 2048)
    assert counted[f"{PREDICTOR}.bbox_pred.weight"] == ((6404 if kind == "caffe" else 6400), 2048)
    assert counted[f"{HEAD}.objectness_logits.weight"] == ((24 if kind == "caffe" else 12), 512, 1, 1)
    assert counted["backbone.res4.22.conv2.weight"] == (256, 256, 3, 3)
    assert len(counted) == 5 * (1 + 3 * 33 + 4) + 1 + 6 + 4 + 5  # stem, 33 blocks, 4 shortcuts; anchors, heads


def background_first(rows: torch.Tensor, kind: str) -> torch.Tensor:
    return rows if kind == "caffe" else torch.cat([rows[-1:], rows[:-1]])


@KINDS
def test_a_file_becomes_the_network_that_its_publisher_runs(kind, tmp_path):
    state = published_state(kind)
    detector, found_kind, origin = load_detector(str(write(state, kind, tmp_path)), SMALL)
    assert found_kind == kind and not detector.training
    assert len(origin["weights_sha256"]) == 64 and "/" not in origin["weights"]
    images = torch.randn(1, 3, 64, 80) * 70
    with torch.inference_mode():
        feature_map = detector.feature_map(images, "float32")
        objectness, deltas = detector.proposal_generator.rpn_head(feature_map, "float32")
        (found,) = detector(images, [0.1])
    # Backbone: every tensor is where it was.
    own = detector.state_dict()
    unchanged = [name for name in state if name.startswith(("backbone", "roi_heads.res5")) and "batches" not in name]
    assert len(unchanged) > 100 and all(torch.equal(own[name], state[name]) for name in unchanged)
    assert torch.equal(own[ANCHORS], state[ANCHORS])
    # Objectness: the publisher's own formula.
    hidden = torch.conv2d(feature_map, state[f"{HEAD}.conv.weight"], state[f"{HEAD}.conv.bias"], padding=1).relu()
    name = f"{HEAD}.objectness_logits"
    logits = torch.conv2d(hidden, state[f"{name}.weight"], state[f"{name}.bias"])
    if kind == "caffe":
        probability = logits.unflatten(1, (2, -1)).softmax(dim=1)[:, 1]  # (1, A, h, w)
    else:
        probability = logits.sigmoid()
    assert torch.allclose(objectness.sigmoid(), probability.permute(0, 2, 3, 1).flatten(1), atol=1e-5)
    # Classes, boxes and attributes from the features.
    linear = {
        layer: found.features @ state[f"{PREDICTOR}.{layer}.weight"].T + state[f"{PREDICTOR}.{layer}.bias"]
        for layer in ("cls_score", "bbox_pred")
    }
    probabilities = linear["cls_score"].softmax(dim=1)
    foreground = probabilities[:, 1:] if kind == "caffe" else probabilities[:, :-1]
    assert torch.allclose(found.class_probabilities[:, 1:], foreground, atol=1e-5)
    boxes = linear["bbox_pred"].unflatten(1, (-1, 4))
    assert torch.allclose(found.box_deltas[:, 1:], boxes[:, 1:] if kind == "caffe" else boxes, atol=1e-4)
    embed, first, last = (
        ("cls_embed", "attr_linear1", "attr_linear2") if kind == "caffe" else ("cls_embedding", "fc_attr", "attr_score")
    )
    embedded = state[f"{PREDICTOR}.{embed}.weight"][linear["cls_score"].argmax(dim=1)]
    inner = torch.cat([found.features, embedded], dim=1) @ state[f"{PREDICTOR}.{first}.weight"].T
    attributes = (inner + state[f"{PREDICTOR}.{first}.bias"]).relu() @ state[f"{PREDICTOR}.{last}.weight"].T
    attributes = attributes + state[f"{PREDICTOR}.{last}.bias"]
    scores = attributes.softmax(dim=1)[:, 1:] if kind == "caffe" else attributes[:, :-1].softmax(dim=1)
    assert torch.equal(found.attribute_ids, scores.argmax(dim=1) + 1)
    assert torch.allclose(found.attribute_scores, scores.amax(dim=1), atol=1e-5)


@KINDS
def test_every_change_of_a_file_reaches_the_network(kind, tmp_path):
    state = published_state(kind)
    base = load_detector(str(write(state, kind, tmp_path)), SMALL)[0].state_dict()
    shifted = {name: value + 1 for name, value in state.items()}
    other = load_detector(str(write(shifted, kind, tmp_path)), SMALL)[0].state_dict()
    for name, value in other.items():
        changed = (value - base[name]).flatten(1) if value.dim() > 1 else (value - base[name])[:, None]
        expected = torch.ones(len(changed), 1)
        if kind != "caffe" and "objectness" in name:
            expected[: len(expected) // 2] = 0  # filled by the loader: these kinds have one output an anchor
        if kind != "caffe" and "bbox_pred" in name:
            expected[:4] = 0
        assert torch.allclose(changed, expected.expand_as(changed), atol=1e-4), name


@KINDS
def test_order_of_the_keys_and_absent_anchors_do_not_matter(kind, tmp_path):
    state = published_state(kind)
    wanted = load_detector(str(write(state, kind, tmp_path)), SMALL)[0].state_dict()
    turned = dict(reversed(list(state.items())))
    del turned[ANCHORS]
    found = load_detector(str(write(turned, kind, tmp_path)), SMALL)[0].state_dict()
    make = caffe_anchors if kind == "caffe" else centered_anchors
    assert torch.equal(found.pop(ANCHORS), make(SMALL.anchor_scales))
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


@pytest.mark.parametrize("kind", ["caffe", "detectron2"])
def test_a_file_without_an_attribute_head_gives_a_network_without(kind, tmp_path):
    detector, found_kind, _ = load_detector(str(write(published_state(kind, attributes=False), kind, tmp_path)), SMALL)
    assert found_kind == kind and detector.shape.attributes == 0
    with torch.inference_mode():
        (found,) = detector(torch.randn(1, 3, 64, 80) * 70, [0.1])
    assert found.attribute_ids is None and found.attribute_scores is None


def test_half_precision_and_safetensors_are_read(tmp_path):
    state = published_state("huggingface")
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    wanted = load_detector(str(write(state, "huggingface", tmp_path)), SMALL)[0].state_dict()
    detector, kind, _ = load_detector(str(tmp_path / "model.safetensors"), SMALL)
    assert kind == "huggingface"
    assert all(torch.equal(value, wanted[name]) for name, value in detector.state_dict().items())
    half = {name: value.half() for name, value in state.items()}
    found = load_detector(str(write(half, "huggingface", tmp_path)), SMALL)[0].state_dict()
    assert all(value.dtype == torch.float32 for value in found.values())
    assert all(torch.allclose(value, wanted[name], atol=0.02) for name, value in found.items())


def test_names_without_their_prefixes_are_completed_where_the_file_asks_for_it(tmp_path):
    state = published_state("detectron2")
    wanted = load_detector(str(write(state, "detectron2", tmp_path)), SMALL)[0].state_dict()
    prefixes = r"^(backbone|proposal_generator|roi_heads)\."
    short = {re.sub(prefixes, "", name): value for name, value in state.items()}
    path = write(short, "detectron2", tmp_path, matching_heuristics=True)
    found = load_detector(str(path), SMALL)[0].state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())
    with pytest.raises(DataError, match=r"missing \d+ \(backbone\.stem.*left over \d+ \(stem"):
        load_detector(str(write(short, "detectron2", tmp_path)), SMALL)
    ambiguous = {re.sub(r"^backbone\.res\d", "", name).lstrip("."): value for name, value in state.items()}
    with pytest.raises(DataError, match=r"left over \d+ \(0\.shortcut\.weight"):
        load_detector(str(write(ambiguous, "detectron2", tmp_path, matching_heuristics=True)), SMALL)


def test_random_weights_come_from_their_seed_alone():
    first, kind, origin = load_detector("random:3", SMALL)
    torch.manual_seed(99)
    again, _, same = load_detector("random:3", SMALL)
    _, _, other = load_detector("random:4", SMALL)
    assert kind == "caffe" and origin["weights"] == "random:3"
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert origin == same and origin["weights_sha256"] != other["weights_sha256"]
    with pytest.raises(DataError, match="write random:SEED"):
        load_detector("random:one", SMALL)


# --- faults ----------------------------------------------------------------------------------------------------------


@KINDS
def test_a_file_that_does_not_fit_lists_every_wrong_name_as_the_file_has_it(kind, tmp_path):
    state = published_state(kind)
    last = "attr_linear2" if kind == "caffe" else "attr_score"
    del state["backbone.res3.1.conv2.weight"], state[f"{PREDICTOR}.{last}.bias"]
    state["roi_heads.mask_head.weight"] = torch.zeros(1)
    state["backbone.res2.0.conv9.norm.num_batches_tracked"] = torch.tensor(1)  # of a norm that is not there
    state[f"{PREDICTOR}.cls_score.weight"] = torch.zeros(81, 128)
    wanted = (
        rf"missing 2 \(backbone\.res3\.1\.conv2\.weight, {PREDICTOR}\.{last}\.bias\); "
        rf"left over 2 \(.*mask_head\.weight, .*conv9.*\); "
        rf"of another shape 1 \({PREDICTOR}\.cls_score\.weight \(81, 128\), expected \(10, 128\)\)"
    )
    with pytest.raises(DataError, match=wanted):
        load_detector(str(write(state, kind, tmp_path)), SMALL)


@KINDS
def test_any_one_missing_tensor_is_refused(kind, tmp_path):
    state = published_state(kind)
    optional = [name for name in state if name.endswith("num_batches_tracked")] + [ANCHORS]
    for name in [name for name in state if name not in optional][::5]:
        less = {other: value for other, value in state.items() if other != name}
        with pytest.raises(DataError, match="missing|not a checkpoint"):
            load_detector(str(write(less, kind, tmp_path)), SMALL)


def test_permuted_values_are_refused_where_shapes_differ_and_batch_counters_are_left_alone(tmp_path):
    state = published_state("caffe")
    one, other = f"{HEAD}.conv.weight", f"{HEAD}.anchor_deltas.weight"
    state[one], state[other] = state[other], state[one]
    with pytest.raises(DataError, match=r"of another shape 2 \("):
        load_detector(str(write(state, "caffe", tmp_path)), SMALL)
    state = published_state("caffe")
    state["backbone.res4.0.conv1.norm.num_batches_tracked"] = torch.tensor([0])
    load_detector(str(write(state, "caffe", tmp_path)), SMALL)


def test_files_that_are_no_checkpoint_of_this_detector_are_refused(tmp_path):
    torch.save({"conv1.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, tmp_path / "resnet.pth")
    with pytest.raises(DataError, match="resnet.pth: not a checkpoint of the bottom-up.*begins with conv1.weight, fc"):
        load_detector(str(tmp_path / "resnet.pth"), SMALL)
    with pytest.raises(DataError, match=r"besides `model` it holds 1 \(trainer\)"):
        load_detector(str(write(published_state("caffe"), "caffe", tmp_path, trainer={})), SMALL)
    load_detector(str(write(published_state("caffe"), "caffe", tmp_path, optimizer={"state": {}}, scheduler={})), SMALL)
    torch.save({"model": {"a": "text"}}, tmp_path / "text.pth")
    with pytest.raises(DataError, match=r"not all values are tensors of numbers: 1 \(a\)"):
        load_detector(str(tmp_path / "text.pth"), SMALL)
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(DataError, match="holds a list instead of a dictionary"):
        load_detector(str(tmp_path / "list.pth"), SMALL)
    with pytest.raises(DataError, match="no file .*absent.pkl"):
        load_detector(str(tmp_path / "absent.pkl"), SMALL)


@KINDS
@pytest.mark.parametrize("share", [0, 0.5, 0.999])
def test_files_cut_short_are_refused(kind, share, tmp_path):
    path = write(published_state(kind), kind, tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DataError, match="damaged or not a file of tensors only"):
        load_detector(str(path), SMALL)


# --- pickles that would run code -------------------------------------------------------------------------------------


class Runs:
    """Unpickled by the plain module, this makes a file."""

    def __init__(self, path, call=os.system):
        self.path, self.call = path, call

    def __reduce__(self):
        return self.call, (f"touch {self.path}",)


@pytest.mark.parametrize("suffix", [".pkl", ".pth", ".bin"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_a_malicious_pickle_is_refused_and_nothing_runs(suffix, protocol, tmp_path):
    mark, path = tmp_path / "mark", tmp_path / f"weights{suffix}"
    content = pickle.dumps({"model": {"weight": Runs(mark)}}, protocol=protocol)
    pickle.loads(content)
    assert mark.exists()  # the fault is a real one
    mark.unlink()
    path.write_bytes(content)
    with pytest.raises(DataError, match="damaged or not a file of tensors only"):
        load_detector(str(path), SMALL)
    assert not mark.exists()


def test_code_inside_a_torch_archive_is_refused_too(tmp_path):
    torch.save({"model": {"weight": Runs(tmp_path / "mark")}}, tmp_path / "weights.pth")
    with pytest.raises(DataError, match=r"it asks for posix\.system"):
        load_detector(str(tmp_path / "weights.pth"), SMALL)
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cbuiltins\neval\n(S'1'\ntR.", b"cnumpy\nload\n(S'x'\ntR.", b"cnumpy.core.multiarray\nfromfile\n(S'x'\ntR.",
        b"cnumpy\nndarray.tofile\n(S'x'\ntR.", b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.",
        b"ccodecs\nopen\n(S'x'\ntR.", b"c_codecs\nencode\n(Vx\nVidna\ntR.", b"cascl.core.errors\nDataError\n(S'x'\ntR.",
    ],
)
def test_only_the_rebuilding_of_arrays_is_admitted(opcodes, tmp_path):
    (tmp_path / "weights.pkl").write_bytes(opcodes)
    with pytest.raises(DataError, match="it asks for"):
        load_detector(str(tmp_path / "weights.pkl"), SMALL)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("core", [b"numpy.core", b"numpy._core"])
def test_arrays_of_every_numpy_and_protocol_are_read(protocol, core, tmp_path):
    state = published_state("detectron2")
    path = write(state, "detectron2", tmp_path)
    wanted = load_detector(str(path), SMALL)[0].state_dict()
    arrays = {name: value.numpy() for name, value in state.items()}
    arrays[ANCHORS] = np.asfortranarray(arrays[ANCHORS]).astype(">f4")
    content = pickle.dumps({"model": arrays, "__author__": "someone"}, protocol=protocol)
    assert b"numpy._core" in content or b"numpy.core" in content
    if protocol < 4:  # names stand in lines there; later protocols note the length of what holds them
        content = content.replace(b"numpy._core", core)
    path.write_bytes(content)
    found = load_detector(str(path), SMALL)[0].state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_a_torch_file_of_arrays_is_read(tmp_path):
    state = published_state("caffe")
    wanted = load_detector(str(write(state, "caffe", tmp_path)), SMALL)[0].state_dict()
    torch.save({"model": {name: value.numpy() for name, value in state.items()}}, tmp_path / "arrays.pth")
    found = load_detector(str(tmp_path / "arrays.pth"), SMALL)[0].state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def test_a_pickle_of_python_2_is_read(tmp_path):
    """Its strings of bytes: the array's content as a STRING of latin-1, names as str."""
    state = published_state("detectron2")
    arrays = {name: value.numpy() for name, value in state.items()}
    wanted = load_detector(str(write(state, "detectron2", tmp_path)), SMALL)[0].state_dict()
    pickled = python_2_pickle({"model": arrays})
    (tmp_path / "old.pkl").write_bytes(pickled)
    found = load_detector(str(tmp_path / "old.pkl"), SMALL)[0].state_dict()
    assert all(torch.equal(value, wanted[name]) for name, value in found.items())


def python_2_pickle(value) -> bytes:
    """Protocol 2 as Python 2 wrote dictionaries of arrays: BINSTRING for every string."""

    def string(content: bytes) -> bytes:
        return b"T" + len(content).to_bytes(4, "little") + content

    def number(value: int) -> bytes:
        return b"J" + value.to_bytes(4, "little", signed=True)

    def array(a: np.ndarray) -> bytes:
        shape = b"(" + b"".join(number(side) for side in a.shape) + b"t"
        dtype = (
            b"cnumpy\ndtype\n("
            + string(a.dtype.str[1:].encode())
            + number(0)
            + number(1)
            + b"tR("
            + number(3)
            + string(b"<")
            + b"NNN"
            + number(-1)
            + number(-1)
            + number(0)
            + b"tb"
        )
        start = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(" + number(0) + b"t" + string(b"b") + b"tR"
        return start + b"(" + number(1) + shape + dtype + b"I00\n" + string(np.ascontiguousarray(a).tobytes()) + b"tb"

    def item(value) -> bytes:
        if isinstance(value, dict):
            return b"}(" + b"".join(string(key.encode()) + item(inner) for key, inner in value.items()) + b"u"
        return array(value)

    return b"\x80\x02" + item(value) + b"."
