"""The published checkpoints of the bottom-up-attention detector, recognized and read by their key names.

Three are in circulation, all ported from the one Caffe model:

* `caffe`: `bua-caffe-frcn-r101-k36.pth` and `-k10-100.pth` of bottom-up-attention.pytorch. The network's own names.
  The background comes first among classes and attributes, objectness has two outputs an anchor, and the file brings its
  anchors (`cell_anchors.0`: rounded ones of Caffe). Batch counters are absent from it.
* `detectron2`: `faster_rcnn_from_caffe.pkl`, `_attr.pkl` and `_attr_original.pkl` of py-bottom-up-attention: a pickle
  of `{"model": {name: array}, ...}`. The attribute layers are called `cls_embedding`, `fc_attr` and `attr_score` (and
  lacking in the first), the background comes last and has no box, objectness has one output an anchor.
* `huggingface`: `pytorch_model.bin` or `model.safetensors` of `unc-nlp/frcnn-vg-finetuned`: the tensors of the second,
  flat, with batch counters.

What else differs between them is in `detector.Convention`. No pickle is ever let run code.
"""

from __future__ import annotations

import pickle
import re
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ascl.core.errors import DataError
from ascl.core.hashing import sha256_of
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
BESIDE_THE_MODEL = {"__author__", "matching_heuristics", "optimizer", "scheduler", "iteration"}  # left alone


class Checkpoint(NamedTuple):
    """Tensors of a file by their names; `wrapped` in a dictionary under "model"; `suffixes`: names lack prefixes."""

    tensors: dict[str, Tensor]
    wrapped: bool
    suffixes: bool


def load_detector(weights: str, shape: DetectorShape) -> tuple[BottomUpDetector, Kind, dict[str, str]]:
    """Return the detector with published or random weights.

    Args:
        weights: path of a published checkpoint, or `random:SEED` (untrained, of the kind `caffe`).
        shape: sizes of the network; without the attribute head where the file has none.

    Returns the network on the CPU in evaluation mode, the kind of checkpoint, and where the weights come from (a name,
    and the digest of the file or of the random parameters). A DataError where there is no such file, it cannot be read
    without running code, or its tensors are not exactly the network's (all that do not fit are listed).
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
    """Return the port that a file's names belong to; without an attribute head the outputs of objectness tell."""
    names = checkpoint.tensors
    objectness = next((name for name in names if name.endswith("rpn_head.objectness_logits.weight")), None)
    if objectness is None:
        begin = ", ".join(list(names)[:5]) or "nothing"
        problem = f"nothing in it is called {OBJECTNESS}weight; it begins with {begin}"
        raise DataError(f"{path}: no checkpoint of the bottom-up-attention detector: {problem}")
    has_ported = any(layer in name for name in names for layer in PORTED.values())
    has_own = any(layer in name for name in names for layer in PORTED)
    two_outputs = names[objectness].shape[:1] == (6 * len(shape.anchor_scales),)
    if has_own or (two_outputs and not has_ported):
        return "caffe"
    return "detectron2" if checkpoint.wrapped else "huggingface"  # they have the same names


def fitting_tensors(checkpoint: Checkpoint, kind: Kind, detector: BottomUpDetector, path: Path) -> dict[str, Tensor]:
    """Return the file's tensors that the network reads, by the port's full names; a DataError where they do not fit."""
    wanted = wanted_shapes(detector, kind)
    found = with_prefixes(checkpoint.tensors, wanted) if checkpoint.suffixes else dict(checkpoint.tensors)
    for name in list(found):  # how many batches a norm saw in training: no norm reads it in evaluation
        norm = name.removesuffix("num_batches_tracked")
        if norm != name and norm + "running_var" in wanted and found[name].numel() == 1:
            del found[name]
    refuse_misfit(f"{path} does not fit the bottom-up-attention detector (kind {kind})", found, wanted, [ANCHORS])
    return {name: tensor.float() for name, tensor in found.items()}


def with_prefixes(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Complete names that lack their prefixes (`res5.0.conv1.weight`), by detectron2's rule for files that ask for it.

    Each wanted name takes the longest name of the file that it ends with; one that several would take is left over.
    """
    taken: dict[str | None, list[str]] = defaultdict(list)
    for full in wanted:
        parts = full.split(".")
        tails = (".".join(parts[i:]) for i in range(len(parts)))  # longest first
        taken[next((tail for tail in tails if tail in tensors), None)].append(full)
    # As detectron2, refuse to choose.
    return {taken[name][0] if len(taken[name]) == 1 else name: tensor for name, tensor in tensors.items()}


def wanted_shapes(detector: BottomUpDetector, kind: Kind) -> dict[str, tuple[int, ...]]:
    """Return the port's name and shape of everything in the network's state dict."""
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
    """Return the name of one of the network's tensors in the two ports that follow detectron2."""
    for own, other in PORTED.items():
        name = name.replace(PREDICTOR + own, PREDICTOR + other)
    return name


def to_network(tensors: Mapping[str, Tensor], kind: Kind, names: Iterable[str]) -> dict[str, Tensor]:
    """Bring a port's tensors to the network's names and order of rows; what a port lacks is filled with zeros.

    Zero logits of the background leave a softmax with one logit an anchor, which those ports rank by; zero deltas leave
    the background's box where it is, and no rule looks at it.
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
    """Read the tensors of a .pkl (plain pickle), a .safetensors, or any other file as `torch.save` writes it."""
    if not path.is_file():
        raise DataError(f"{path}: no such file of weights (weights are `random:SEED` or a path)")
    content: Any
    try:
        if path.suffix.lower() == ".safetensors":
            content = safetensors.torch.load_file(path)
        elif path.suffix.lower() == ".pkl":
            with open(path, "rb") as file:
                content = ArrayUnpickler(file, encoding="latin1").load()  # so Python 2's strings of bytes come through
        else:
            with torch.serialization.safe_globals(ARRAY_PARTS):  # detectron2's checkpoints may hold arrays for tensors
                content = torch.load(path, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make the readers raise a dozen unrelated types
        asked = re.search(r"GLOBAL (\S+)", str(error))  # torch's own message goes on to advise running the code
        reason = f"it asks for {asked[1]}" if asked else str(error).split("\n")[0]
        problem = f"{type(error).__name__}: {reason}"
        raise DataError(f"{path}: not a whole file of tensors alone ({problem}); nothing else in it was run") from error
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__} where a dictionary of names and tensors is wanted")
    wrapped = isinstance(content.get("model"), Mapping)
    suffixes = wrapped and bool(content.get("matching_heuristics"))
    unknown = sorted(map(str, set(content) - BESIDE_THE_MODEL - {"model"})) if wrapped else []
    if unknown:
        raise DataError(f"{path}: beside `model` it holds {listed(unknown)}, which no published checkpoint has")
    model = content["model"] if wrapped else content
    tensors = {}
    for name, value in model.items():
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
            value = torch.tensor(value.astype(value.dtype.newbyteorder("=")))
        tensors[str(name)] = value
    other = [name for name, value in tensors.items() if not isinstance(value, Tensor)]
    if other:
        raise DataError(f"{path}: {listed(other)} are no tensors of numbers")
    return Checkpoint(tensors, wrapped, suffixes)


class ArrayUnpickler(pickle.Unpickler):
    """Rebuilds plain containers and numpy arrays; a pickle that names anything else stops before it gets it."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # numpy 2 moved it, and old files say the old place
        if (module, name) not in ADMITTED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return ADMITTED[module, name]


def encode_latin1(text: str, encoding: str) -> bytes:
    """Do what protocol 2 writes for bytes; the real `_codecs.encode` would import a codec of any name."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


RECONSTRUCT = np.empty(0).__reduce__()[0]  # numpy's own answer: the modules that hold it differ between its versions
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
