"""The published checkpoints of the bottom-up-attention detector, recognized and read by their key names.

Three are in circulation, all ported from the same Caffe model:

* `caffe`: `bua-caffe-frcn-r101-k36.pth` and `-k10-100.pth` of bottom-up-attention.pytorch. The names are those of the
  network. The background comes first among classes and attributes, and objectness has two outputs per anchor. The file
  has its own anchors (`cell_anchors.0`: Caffe's rounded ones) and no batch counters.
* `detectron2`: `faster_rcnn_from_caffe.pkl`, `_attr.pkl` and `_attr_original.pkl` of py-bottom-up-attention: a pickle
  of `{"model": {name: array}, ...}`. The attribute layers are called `cls_embedding`, `fc_attr` and `attr_score` (the
  first file lacks them). The background comes last and has no box, and objectness has one output per anchor.
* `huggingface`: `pytorch_model.bin` or `model.safetensors` of `unc-nlp/frcnn-vg-finetuned`: the tensors of the second,
  flat, with batch counters.

`network.Convention` lists the other differences. No pickle can run code here.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ascl.core.checkpoint import read_tensors
from ascl.core.errors import DataError
from ascl.core.hashing import sha256_of
from ascl.core.reading import reading
from ascl.features.detectors.network import CAFFE, DETECTRON2, HUGGING_FACE, BottomUpDetector, DetectorShape, initialize
from ascl.images.backbones import digest_of_parameters, listed, random_seed, refuse_misfit

Kind = Literal["caffe", "detectron2", "huggingface"]
CONVENTIONS = {"caffe": CAFFE, "detectron2": DETECTRON2, "huggingface": HUGGING_FACE}

ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
OBJECTNESS = "proposal_generator.rpn_head.objectness_logits."
PREDICTOR = "roi_heads.box_predictor."
# The network's names of the attribute layers, and those of the two ports that follow detectron2.
PORTED = {"cls_embed.": "cls_embedding.", "attr_linear1.": "fc_attr.", "attr_linear2.": "attr_score."}
BACKGROUND_FIRST = ("cls_score.", "cls_embed.", "attr_linear2.")  # rows in another order than in those two ports
BESIDE_THE_MODEL = {"__author__", "matching_heuristics", "optimizer", "scheduler", "iteration"}  # ignored


class Checkpoint(NamedTuple):
    """Tensors of a file by name; `wrapped`: they are under "model"; `suffixes`: their names lack prefixes."""

    tensors: dict[str, Tensor]
    wrapped: bool
    suffixes: bool


def load_detector(weights: str, shape: DetectorShape) -> tuple[BottomUpDetector, Kind, dict[str, str]]:
    """Return the detector with published or random weights.

    Args:
        weights: path of a published checkpoint, or `random:SEED` (untrained, of the kind `caffe`).
        shape: sizes of the network; the attribute head is left out if the file has none.

    Returns:
        The network on the CPU in evaluation mode, the kind of checkpoint, and the provenance of the weights (a name,
        and the digest of the file or of the random parameters).

    Raises:
        DataError: there is no such file, it cannot be read without running code, or its tensors are not exactly those
            of the network (all that do not fit are listed).
    """
    seed = random_seed(weights)
    if seed is not None:
        detector = BottomUpDetector(shape, CAFFE).eval()
        initialize(detector, seed)
        return detector, "caffe", {"weights": weights, "weights_sha256": digest_of_parameters(detector)}
    path = Path(weights)
    checkpoint = read_checkpoint(path)
    kind = kind_of(checkpoint, shape, path)
    if not any(layer in name for name in checkpoint.tensors for layer in (*PORTED, *PORTED.values())):
        shape = replace(shape, attributes=0)
    with torch.device("meta"):  # drawing 65 million numbers that the file replaces takes seconds
        detector = BottomUpDetector(shape, CONVENTIONS[kind])
    state = to_network(fitting_tensors(checkpoint, kind, detector, path), kind, detector.state_dict())
    state.setdefault(ANCHORS, CONVENTIONS[kind].anchors(shape))
    detector.load_state_dict(state, assign=True)
    return detector.requires_grad_(False).eval(), kind, {"weights": path.name, "weights_sha256": sha256_of(path)}


def kind_of(checkpoint: Checkpoint, shape: DetectorShape, path: Path) -> Kind:
    """Return the port that a file comes from, by its names; without an attribute head, by its objectness outputs."""
    names = checkpoint.tensors
    objectness = next((name for name in names if name.endswith("rpn_head.objectness_logits.weight")), None)
    if objectness is None:
        begin = ", ".join(list(names)[:5]) or "nothing"
        problem = f"no tensor in it is called {OBJECTNESS}weight; it begins with {begin}"
        raise DataError(f"{path}: not a checkpoint of the bottom-up-attention detector: {problem}")
    has_ported = any(layer in name for name in names for layer in PORTED.values())
    has_own = any(layer in name for name in names for layer in PORTED)
    two_outputs = names[objectness].shape[:1] == (6 * len(shape.anchor_scales),)
    if has_own or (two_outputs and not has_ported):
        return "caffe"
    return "detectron2" if checkpoint.wrapped else "huggingface"  # they have the same names


def fitting_tensors(checkpoint: Checkpoint, kind: Kind, detector: BottomUpDetector, path: Path) -> dict[str, Tensor]:
    """Return the file's tensors that the network reads, by the port's full names; raise DataError on a misfit."""
    wanted = wanted_shapes(detector, kind)
    found = with_prefixes(checkpoint.tensors, wanted) if checkpoint.suffixes else dict(checkpoint.tensors)
    for name in list(found):  # drop the batch counters of training, which no norm reads in evaluation
        norm = name.removesuffix("num_batches_tracked")
        if norm != name and norm + "running_var" in wanted and found[name].numel() == 1:
            del found[name]
    refuse_misfit(f"{path} does not fit the bottom-up-attention detector (kind {kind})", found, wanted, [ANCHORS])
    return {name: tensor.float() for name, tensor in found.items()}


def with_prefixes(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Complete names that lack their prefixes (`res5.0.conv1.weight`), by detectron2's rule for files that ask for it.

    Each wanted name takes the longest name of the file that it ends with; a name that several would take is left over.
    """
    taken: dict[str | None, list[str]] = defaultdict(list)
    for full in wanted:
        parts = full.split(".")
        tails = (".".join(parts[i:]) for i in range(len(parts)))  # longest first
        taken[next((tail for tail in tails if tail in tensors), None)].append(full)
    # Like detectron2, do not guess.
    return {taken[name][0] if len(taken[name]) == 1 else name: tensor for name, tensor in tensors.items()}


def wanted_shapes(detector: BottomUpDetector, kind: Kind) -> dict[str, tuple[int, ...]]:
    """Return the port's name and shape for everything in the network's state dict."""
    shapes = {}
    for name, tensor in detector.state_dict().items():
        rows, *rest = tensor.shape
        if kind != "caffe":
            if name.startswith(OBJECTNESS):
                rows //= 2
            elif name.startswith(PREDICTOR + "bbox_pred."):
                rows -= 4
            name = ported(name)
        shapes[name] = (rows, *rest)
    return shapes


def ported(name: str) -> str:
    """Return the name that a tensor of the network has in the two ports that follow detectron2."""
    for own, other in PORTED.items():
        name = name.replace(PREDICTOR + own, PREDICTOR + other)
    return name


def to_network(tensors: Mapping[str, Tensor], kind: Kind, names: Iterable[str]) -> dict[str, Tensor]:
    """Return a port's tensors with the network's names and order of rows; fill what the port lacks with zeros.

    With zero logits for the background, the softmax ranks anchors by their one logit, as those ports do. Zero deltas
    leave the background's box in place, and no rule uses it.
    """
    if kind == "caffe":
        return dict(tensors)
    own_names = {ported(name): name for name in names}
    state = {}
    for other, tensor in tensors.items():
        name = own_names[other]
        if name.startswith(OBJECTNESS):
            tensor = torch.cat([torch.zeros_like(tensor), tensor])
        elif name.startswith(PREDICTOR + "bbox_pred."):
            tensor = torch.cat([torch.zeros_like(tensor[:4]), tensor])
        elif name.removeprefix(PREDICTOR).startswith(BACKGROUND_FIRST):
            tensor = tensor.roll(1, dims=0)
        state[name] = tensor
    return state


def read_checkpoint(path: Path) -> Checkpoint:
    """Return the tensors of a .pkl (plain pickle), a .safetensors, or any other file from `torch.save`."""
    what, remedy = "a file of tensors only", "weights are `random:SEED` or the path of a published file"
    content: Any
    if path.suffix.lower() == ".safetensors":
        with reading(path, what, remedy):
            content = safetensors.torch.load_file(path)
    elif path.suffix.lower() == ".pkl":
        with reading(path, what, remedy), open(path, "rb") as file:
            content = ArrayUnpickler(file, encoding="latin1").load()  # for byte strings of Python 2
    else:
        content = read_tensors(path, what, remedy, admitted=ARRAY_PARTS)  # detectron2 may store arrays
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__} instead of a dictionary of names and tensors")
    wrapped = isinstance(content.get("model"), Mapping)
    suffixes = wrapped and bool(content.get("matching_heuristics"))
    unknown = sorted(map(str, set(content) - BESIDE_THE_MODEL - {"model"})) if wrapped else []
    if unknown:
        raise DataError(f"{path}: besides `model` it holds {listed(unknown)}, which no published checkpoint has")
    model = content["model"] if wrapped else content
    tensors = {}
    for name, value in model.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            value = torch.tensor(value.astype(value.dtype.newbyteorder("=")))
        tensors[str(name)] = value
    other = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if other:
        raise DataError(f"{path}: not all values are tensors of numbers: {listed(other)}")
    return Checkpoint(tensors, wrapped, suffixes)


class ArrayUnpickler(pickle._Unpickler):  # type: ignore[name-defined]
    """An unpickler for plain containers and numpy arrays; it stops at any other name, before importing it.

    It is Python's plain one, because a damaged file can make the compiled one ask for 64 GB.
    """

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # renamed in numpy 2; old files have the old name
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which was not run")
        return ADMITTED[module, name]


@lru_cache(maxsize=16)      # a text that a file asks for a thousand times is kept once
def encode_latin1(text: str, encoding: str) -> bytes:
    """Return the bytes that protocol 2 wrote as text; the real `_codecs.encode` would import a codec of any name."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


RECONSTRUCT = np.empty(0).__reduce__()[0]  # asked of numpy, because its versions keep it in different modules
ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict, ("_codecs", "encode"): encode_latin1,
    ("numpy", "ndarray"): np.ndarray, ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.numeric", "_frombuffer"): np.empty(0).__reduce_ex__(5)[0],
}
ARRAY_PARTS: list[Any] = [
    np.ndarray, np.dtype, *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int64")),
    *((RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
