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
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from ascl.core.errors import DataError
from ascl.core.hashing import sha256_of
from ascl.features.detectors.network import (
    CAFFE,
    DETECTRON2,
    HUGGING_FACE,
    BottomUpDetector,
    Convention,
    DetectorShape,
    initialize,
)
from ascl.images.backbones import digest_of_parameters, listed, random_seed, refuse_misfit

Kind = Literal["caffe", "detectron2", "huggingface"]
CONVENTIONS: dict[Kind, Convention] = {"caffe": CAFFE, "detectron2": DETECTRON2, "huggingface": HUGGING_FACE}

ANCHORS = "proposal_generator.anchor_generator.cell_anchors.0"
OBJECTNESS = "proposal_generator.rpn_head.objectness_logits."
PREDICTOR = "roi_heads.box_predictor."
# The network's names of the attribute layers, and those of the two ports that follow detectron2.
PORTED = {"cls_embed.": "cls_embedding.", "attr_linear1.": "fc_attr.", "attr_linear2.": "attr_score."}
BACKGROUND_FIRST = ("cls_score.", "cls_embed.", "attr_linear2.")  # rows in another order than in those two ports
BESIDE_THE_MODEL = {"__author__", "matching_heuristics", "optimizer", "scheduler", "iteration"}  # left alone


@dataclass(frozen=True)
class Checkpoint:
    """Tensors of a file by their names; `wrapped` in a dictionary under "model"; `suffixes`: names lack prefixes."""

    tensors: dict[str, Tensor]
    wrapped: bool
    suffixes: bool


def load_detector(weights: str, shape: DetectorShape) -> tuple[BottomUpDetector, Kind, dict[str, str]]:
    """Return the detector with published or random weights.

    Args:
        weights: path of a published checkpoint, or `random:SEED` (untrained, of the kind `caffe`).
        shape: sizes of the network; without the attribute head where the file has none.

    Returns:
        The network on the CPU in evaluation mode, the kind of checkpoint, and `{"weights": a name, "weights_sha256":
        digest}`, the digest of the file or of the random parameters.

    Raises:
        DataError: no such file, a file that cannot be read without running code, or one whose tensors are not exactly
            the network's: all that are missing, left over or of another shape are listed.
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
    state = to_network(fitting_tensors(checkpoint, kind, detector, path), kind)
    state.setdefault(ANCHORS, CONVENTIONS[kind].anchors(shape))
    detector.load_state_dict(state, assign=True)
    return detector.requires_grad_(False).eval(), kind, {"weights": path.name, "weights_sha256": sha256_of(path)}


def kind_of(checkpoint: Checkpoint, shape: DetectorShape, path: Path) -> Kind:
    """Return the port that a file's names belong to; without an attribute head the outputs of objectness tell.

    The second and the third have the same names: the one is wrapped under "model", the other flat.
    """
    names = checkpoint.tensors
    objectness = next((name for name in names if name.endswith("rpn_head.objectness_logits.weight")), None)
    if objectness is None:
        raise DataError(
            f"{path}: no checkpoint of the bottom-up-attention detector: nothing in it is called "
            f"{OBJECTNESS}weight; it begins with {', '.join(list(names)[:5]) or 'nothing'}"
        )
    has_ported = any(layer in name for name in names for layer in PORTED.values())
    has_own = any(layer in name for name in names for layer in PORTED)
    two_outputs = names[objectness].shape[:1] == (6 * len(shape.anchor_scales),)
    if has_own or (two_outputs and not has_ported):
        return "caffe"
    return "detectron2" if checkpoint.wrapped else "huggingface"


def fitting_tensors(checkpoint: Checkpoint, kind: Kind, detector: BottomUpDetector, path: Path) -> dict[str, Tensor]:
    """Return the file's tensors that the network reads, by the port's full names, all of the port's shapes.

    Raises:
        DataError: see `load_detector`; names and shapes in it are the file's.
    """
    wanted = wanted_shapes(detector, kind)
    found = with_prefixes(checkpoint.tensors, wanted) if checkpoint.suffixes else dict(checkpoint.tensors)
    for name in [name for name in found if is_batch_counter(name, found[name], wanted)]:
        del found[name]  # how many batches a norm saw in training: no norm reads it in evaluation
    refuse_misfit(
        f"{path} does not fit the bottom-up-attention detector (kind {kind})", found, wanted, optional=[ANCHORS]
    )
    return {name: tensor.float() for name, tensor in found.items()}


def is_batch_counter(name: str, tensor: Tensor, wanted: Mapping[str, Any]) -> bool:
    counter = "num_batches_tracked"
    return name.endswith(counter) and name.removesuffix(counter) + "running_var" in wanted and tensor.numel() == 1


def with_prefixes(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Complete names that lack their prefixes (`res5.0.conv1.weight`), by detectron2's rule for files that ask for it.

    Each wanted name takes the longest name of the file that it ends with. A name that several would take is left as it
    is, to be reported as left over.
    """
    taken: dict[str, list[str]] = {}
    for full in wanted:
        parts = full.split(".")
        tails = (".".join(parts[i:]) for i in range(len(parts)))  # longest first
        tail = next((tail for tail in tails if tail in tensors), None)
        if tail is not None:
            taken.setdefault(tail, []).append(full)
    return {
        taken[name][0] if len(taken.get(name, [])) == 1 else name: tensor  # as detectron2, refuse to choose
        for name, tensor in tensors.items()
    }


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


def to_network(tensors: Mapping[str, Tensor], kind: Kind) -> dict[str, Tensor]:
    """Bring a port's tensors to the network's names and order of rows; what a port lacks is filled with zeros.

    Zero logits of the background leave a softmax with one logit an anchor, which is what those ports rank by; zero
    deltas leave the background's box where it is, and no rule looks at it.
    """
    if kind == "caffe":
        return dict(tensors)
    own_names = {ported(PREDICTOR + own): PREDICTOR + own for own in PORTED}
    state = {}
    for name, tensor in tensors.items():
        for other, own in own_names.items():
            name = name.replace(other, own)
        if name.startswith(OBJECTNESS):
            tensor = torch.cat([torch.zeros_like(tensor), tensor])
        elif name.startswith(PREDICTOR + "bbox_pred."):
            tensor = torch.cat([torch.zeros_like(tensor[:4]), tensor])
        elif name.removeprefix(PREDICTOR).startswith(BACKGROUND_FIRST):
            tensor = tensor.roll(1, dims=0)
        state[name] = tensor
    return state


def read_checkpoint(path: Path) -> Checkpoint:
    """Read the tensors of a .pkl (plain pickle), a .safetensors, or any other file as `torch.save` writes it.

    Raises:
        DataError: no such file; not whole; it holds anything that only code could rebuild, which is not run; entries
            beside the model that no publisher's file has.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file of weights (weights are `random:SEED` or a path)")
    try:
        content = READERS.get(path.suffix.lower(), read_torch)(path)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make the readers raise a dozen unrelated types
        asked = re.search(r"GLOBAL (\S+)", str(error))  # torch's own message goes on to advise running the code
        reason = f"it asks for {asked[1]}" if asked else str(error).split("\n")[0]
        raise DataError(
            f"{path}: not a whole file of tensors alone ({type(error).__name__}: {reason}); nothing else in it was run"
        ) from error
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: holds a {type(content).__name__} where a dictionary of names and tensors is wanted")
    wrapped = isinstance(content.get("model"), Mapping)
    suffixes = wrapped and bool(content.get("matching_heuristics"))
    unknown = sorted(map(str, set(content) - BESIDE_THE_MODEL - {"model"})) if wrapped else []
    if unknown:
        raise DataError(f"{path}: beside `model` it holds {listed(unknown)}, which no published checkpoint has")
    model = content["model"] if wrapped else content
    tensors = {str(name): as_tensor(value) for name, value in model.items()}
    other = [name for name, value in tensors.items() if value is None]
    if other:
        raise DataError(f"{path}: {listed(other)} are no tensors of numbers")
    return Checkpoint({name: value for name, value in tensors.items() if value is not None}, wrapped, suffixes)


def as_tensor(value: Any) -> Tensor | None:
    """Return a tensor as it is, an array of numbers as a tensor of its own, None of anything else."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "fiu":
        return torch.tensor(value.astype(value.dtype.newbyteorder("=")))
    return value if isinstance(value, Tensor) else None


def read_pickle(path: Path) -> Any:
    with open(path, "rb") as file:
        return ArrayUnpickler(file, encoding="latin1").load()  # so Python 2's strings of bytes come through


def read_torch(path: Path) -> Any:
    with torch.serialization.safe_globals(ARRAY_PARTS):  # detectron2's checkpoints may hold arrays for tensors
        return torch.load(path, map_location="cpu", weights_only=True)


READERS: dict[str, Callable[[Path], Any]] = {".pkl": read_pickle, ".safetensors": safetensors.torch.load_file}


class ArrayUnpickler(pickle.Unpickler):
    """Rebuilds plain containers and numpy arrays; a pickle that names anything else stops before it gets it."""

    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # numpy 2 moved it, and old files say the old place
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}") from None


def encode_latin1(text: str, encoding: str) -> bytes:
    """What protocol 2 writes for bytes; the real `_codecs.encode` would import a codec of any name."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for the codec {encoding!r}")
    return text.encode("latin1")


# Taken from numpy's own answers, because the modules that hold them differ between its versions.
RECONSTRUCT = np.empty(0).__reduce__()[0]
FROM_BUFFER = np.empty(0).__reduce_ex__(5)[0]
ADMITTED: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy._core.multiarray", "_reconstruct"): RECONSTRUCT,
    ("numpy._core.numeric", "_frombuffer"): FROM_BUFFER,
    ("_codecs", "encode"): encode_latin1,
}
ARRAY_PARTS: list[Any] = [
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("float16", "float32", "float64", "int64")),
    *((RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
]
