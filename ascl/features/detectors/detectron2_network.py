"""The network of a detectron2 config with its weights, and an error message for everything that can go wrong there.

detectron2 is imported inside the functions: it is on no package registry, and only its own backend needs it.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ascl.core.errors import DataError
from ascl.core.hashing import sha256_of, sha256_of_text
from ascl.core.reading import reading
from ascl.features.detectors.weights import read_checkpoint
from ascl.images.backbones import digest_of_parameters, listed, random_seed, seeded

INSTALL = "python -m pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2.git'"
C4_HEADS, POOLED_HEADS = "Res5ROIHeads", "StandardROIHeads"  # the second serves FPN and DC5


def import_detectron2() -> None:
    """Import the parts of detectron2 that are used here; raise DataError with what to install if that fails."""
    try:
        import detectron2
        import detectron2.checkpoint
        import detectron2.model_zoo
        import detectron2.modeling  # noqa: F401
    except ImportError as error:
        if error.name == "detectron2":
            raise DataError(f"this backend needs detectron2; install it with {INSTALL}") from error
        remedy = f"reinstall it with {INSTALL}"
        if error.name == "pkg_resources":  # gone from setuptools 82
            remedy = "it needs an older setuptools: python -m pip install 'setuptools<82'"
        raise DataError(f"detectron2 is installed but cannot be imported ({error}); {remedy}") from error


def read_config(config: str, options: Sequence[str]) -> Any:
    """Return detectron2's CfgNode of a zoo name or a yaml's path, with the options applied, frozen."""
    import yaml
    from detectron2 import model_zoo
    from detectron2.config import get_cfg

    if not config.endswith((".yaml", ".yml")):
        raise DataError(f"config {config!r}: give a yaml, by its name in the model zoo or by its path")
    own = Path(config).is_file()
    if not own and config not in (known := zoo_names()):
        near = ", ".join(difflib.get_close_matches(config, known, n=3, cutoff=0.4)) or "none"
        problem = "no such file, and no such name in detectron2's model zoo"
        raise DataError(f"config {config!r}: {problem}; similar names: {near}")
    cfg = get_cfg()
    try:
        # Yaml can hold Python code, which detectron2 would run; the zoo's files came with the package.
        cfg.merge_from_file(config if own else model_zoo.get_config_file(config), allow_unsafe=not own)
    except (yaml.YAMLError, UnicodeDecodeError, OSError, KeyError, ValueError, TypeError, AssertionError) as error:
        raise DataError(f"{config}: detectron2 cannot read this config ({type(error).__name__}: {error})") from error
    try:
        cfg.merge_from_list(list(options))
    except (KeyError, ValueError, AssertionError) as error:
        wanted = f"give keys of {config} and values in turn, such as MODEL.ROI_HEADS.NUM_CLASSES 20"
        raise DataError(f"options {' '.join(options)}: {error}; {wanted}") from error
    # Built on the CPU, so that random weights and digests do not depend on the device.
    cfg.MODEL.DEVICE = "cpu"
    cfg.freeze()
    return cfg


def zoo_names() -> list[str]:
    """Return the names of all yamls of the model zoo, sorted."""
    from detectron2 import model_zoo

    folder = Path(model_zoo.__file__).parent / "configs"
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def refuse_other_detectors(cfg: Any, config: str) -> None:
    """Raise DataError unless the config is a Faster R-CNN; name the part that is not."""
    wanted = {
        "meta architecture": (cfg.MODEL.META_ARCHITECTURE, ("GeneralizedRCNN",)),
        "proposal generator": (cfg.MODEL.PROPOSAL_GENERATOR.NAME, ("RPN",)),
        "RoI head": (cfg.MODEL.ROI_HEADS.NAME, (C4_HEADS, POOLED_HEADS)),
        "input format": (cfg.INPUT.FORMAT, ("BGR", "RGB")),
    }
    for part, (found, known) in wanted.items():
        if found not in known:
            problem = f"its {part} is {found}, not {' or '.join(known)}; use one of COCO-Detection/faster_rcnn_*.yaml"
            raise DataError(f"{config} is not a Faster R-CNN that this backend supports: {problem}")


def digest_of_config(cfg: Any) -> str:
    """Return the digest of the config without its weights and device."""
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.WEIGHTS = plain.MODEL.DEVICE = ""
    return sha256_of_text(plain.dump())


def class_names(cfg: Any) -> dict[str, list[str]]:
    """Return `class_names` if detectron2 knows the config's data set and the network has one output per class."""
    from detectron2.data import MetadataCatalog

    for data_set in (*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN):
        # get() would add an unknown name to the catalog, for the whole process.
        names = list(MetadataCatalog.get(data_set).get("thing_classes", [])) if data_set in MetadataCatalog else []
        if len(names) == cfg.MODEL.ROI_HEADS.NUM_CLASSES:
            return {"class_names": names}
    return {}


def load_network(cfg: Any, config: str, weights: str) -> tuple[Any, dict[str, str]]:
    """Return the network on the CPU with its weights, and their provenance."""
    seed = random_seed(weights)
    if seed is None:
        path = weights_file(config, weights)
        network = build_network(cfg, config)
        fill_from_checkpoint(network, config, path)
        return network, {"weights": path.name, "weights_sha256": sha256_of(path)}
    with seeded(seed):
        network = build_network(cfg, config)
        # Before the statistics: their last bits depend on the number of threads.
        digest = digest_of_parameters(network)
        settle_batch_norm(network)
    return network, {"weights": weights, "weights_sha256": digest}


def weights_file(config: str, weights: str) -> Path:
    """Return the file that `weights` names: the zoo's checkpoint, downloaded unless in the cache, or a path."""
    from detectron2 import model_zoo
    from detectron2.utils.file_io import PathManager

    if weights != "default":
        if not Path(weights).is_file():
            raise DataError(f"{weights}: no such file of weights (weights are `default`, `random:SEED` or a path)")
        return Path(weights)
    if Path(config).is_file():
        raise DataError(f"{config} is not a name in detectron2's model zoo; give the path of its weights")
    try:
        url = model_zoo.get_checkpoint_url(config)
    except RuntimeError as error:
        raise DataError(f"detectron2's model zoo has no weights for {config}; give their path") from error
    try:
        return Path(PathManager.get_local_path(url))
    except OSError as error:  # urllib's errors are OSErrors
        remedy = "download that file elsewhere and give its path as the weights"
        raise DataError(f"the weights of {config} could not be downloaded from {url} ({error}); {remedy}") from error


def build_network(cfg: Any, config: str) -> Any:
    """Return the untrained network, drawn from torch's global random numbers."""
    from detectron2.modeling import build_model

    try:
        return build_model(cfg).eval()
    except (AssertionError, KeyError, TypeError, ValueError) as error:
        problem = f"{type(error).__name__}: {error}"
        raise DataError(f"detectron2 cannot build the network of {config} with these options ({problem})") from error


def settle_batch_norm(network: Any) -> None:
    """Give an untrained network the batch norm statistics of one image of colored blobs, in place.

    detectron2 starts with mean 0 and variance 1. A frozen network then doubles its activations in every block, all
    proposals become the whole image, and neither its regions nor its speed mean anything.
    """

    def measure(norm: Any, inputs: tuple[Tensor]) -> None:
        norm.running_mean.copy_(inputs[0].mean(dim=(0, 2, 3)))
        norm.running_var.copy_(inputs[0].var(dim=(0, 2, 3)))

    norms = [module for module in network.modules() if getattr(module, "running_mean", None) is not None]
    hooks = [norm.register_forward_pre_hook(measure) for norm in norms]
    # Blobs resemble photographs: the first layers damp white noise, and a photograph would then give far larger values.
    blobs = F.interpolate(torch.rand(1, 3, 16, 16) * 255, size=(256, 256), mode="bilinear")[0]
    with torch.inference_mode():
        maps = network.backbone(network.preprocess_image([{"image": blobs}]).tensor)
        if hasattr(network.roi_heads, "res5"):
            network.roi_heads.res5(maps[network.roi_heads.in_features[0]])
    for hook in hooks:
        hook.remove()


def fill_from_checkpoint(network: Any, config: str, path: Path) -> None:
    """Load a checkpoint as detectron2 does, but raise DataError with all keys that do not fit instead of a warning.

    Keys that detectron2 ignores are ignored: `pixel_mean` and `pixel_std` (in the config), `cell_anchors` (computed).
    """
    from detectron2.checkpoint import DetectionCheckpointer

    problems: dict[str, list[str]] = {}

    class Listing(DetectionCheckpointer):
        def _load_file(self, filename: str) -> dict[str, Any]:      # detectron2's own runs what a pickle asks for
            found = read_checkpoint(Path(filename))
            return {"model": found.tensors, "matching_heuristics": found.suffixes}

        def _load_model(self, checkpoint: Any) -> Any:
            given = {key.removeprefix("module.") for key in checkpoint["model"]}
            renamed = checkpoint.get("matching_heuristics", False)  # older formats: batch norm may be folded into them
            incompatible = super()._load_model(checkpoint)
            misshapen = {key: (found, wanted) for key, found, wanted in incompatible.incorrect_shapes}
            missing = set(incompatible.missing_keys) - misshapen.keys()
            if not renamed:  # detectron2 fills in missing batch norm statistics silently
                statistics = (".running_mean", ".running_var")
                missing |= {key for key in network.state_dict() if key.endswith(statistics) and key not in given}
            problems["missing"] = sorted(missing)
            problems["left over"] = sorted(set(incompatible.unexpected_keys) - {"pixel_mean", "pixel_std"})
            problems["of another shape"] = [
                f"{key} {found} where {wanted} is wanted" for key, (found, wanted) in misshapen.items()
            ]

    with reading(path, "weights that detectron2 can read"):
        Listing(network).load(str(path))
    if any(problems.values()):
        parts = "; ".join(f"{what} {listed(keys)}" for what, keys in problems.items())
        raise DataError(f"{path} does not fit {config}: {parts}")
