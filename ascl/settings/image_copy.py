"""Every setting of a training of copy detection, typed and frozen; a YAML of `configs/image_copy/` names a method.

The defaults are RDCD's where the methods share a setting (its released script where paper and script disagree and the
comment says so); `sscd.yaml` and `asl.yaml` say what differs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ascl.settings.retrieval import load_settings, read_settings, setting_names, settings_from_dict, to_dict

Normalize = Literal["imagenet", "half", "none"]
Pool = Literal["gem", "class+gem"]


@dataclass(frozen=True)
class CopyDataConfig:
    """Images and how they come.

    images: folder, searched at any depth, or a .txt with a path a line.
    validation_share, validation_images: the share of the images that is held out, and at most so many; chosen by their
        ids, never trained on.
    cache_side: keep every image in memory with this short side in pixels (a photo of 3:2 then takes 4.5 x side^2
        bytes), so that editing and not decoding is the cost; null = decode each time. 1.3 to 2 times views.size does.
    skip_unreadable: leave unreadable images out, with a count, instead of stopping.
    workers: processes that decode and edit. They change nothing but the time.
    """

    images: str = ""
    validation_share: float = 0.05
    validation_images: int = 400
    cache_side: int | None = None
    skip_unreadable: bool = False
    workers: int = 2


@dataclass(frozen=True)
class ViewsConfig:
    """What the network is shown. size: side in pixels while training.

    augmentation: RDCD's whole list (`advanced`), or SSCD's weaker ones; ASL's identities have edits of their own.
    """

    size: int = 224
    augmentation: Literal["simclr", "strong_blur", "advanced"] = "advanced"


@dataclass(frozen=True)
class CopyModelConfig:
    """The descriptor; see `ascl.image_copy.descriptors.descriptor.DescriptorSettings`.

    feature_dim: null = the teacher's dimension where relations are distilled, and 512 elsewhere; 0 = no such layer.
    dim: of the descriptor; 0 = no such layer, the projector's output or the feature is the descriptor.
    centred: begin with biases that give feature and embedding mean 0 over the first views; short runs need it, see
        `Descriptor.centre`.
    input_size, resize: of the square at which images are described when the run is used, and validated.
    """

    backbone: str = "efficientnet_b0"
    weights: str = "default"
    same_padding: bool = False
    normalize: Normalize = "imagenet"
    last_stride: int = 2
    pool: Pool = "gem"
    feature_dim: int | None = None
    dim: int = 64
    projector_hidden: int = 4096
    projector_dim: int | None = None
    norm_of: Literal["projector", "feature", "embedding"] = "embedding"
    freeze_batch_norm: bool = False
    centred: bool = False
    input_size: int = 288
    resize: Literal["squash", "crop"] = "squash"


@dataclass(frozen=True)
class TeacherConfig:
    """Whom RDCD's student follows; see `ascl.image_copy.descriptors.teachers.load_teacher`.

    source: TorchScript file, run of this program, HDF5 of descriptors (of the unedited images), or a backbone's name.
    output: of a run, its descriptor (`embeddings`) or the feature before it.
    """

    source: str | None = None
    weights: str = "default"
    same_padding: bool = False
    normalize: Normalize = "imagenet"
    pool: Pool = "gem"
    image_size: int | None = None
    output: Literal["embeddings", "features"] = "embeddings"


@dataclass(frozen=True)
class SscdConfig:
    """SSCD. mixup: probability of each image to be mixed with another. entropy_weight 30 is the paper's."""

    temperature: float = 0.05
    entropy_weight: float = 30.0
    mixup: float = 0.0


@dataclass(frozen=True)
class RdcdConfig:
    """RDCD. Weights are the paper's 1, 10, 5; the released script has 1, 1, 5.

    entropy_weight: of the in-batch loss, where `contrastive` is simclr.
    """

    contrastive: Literal["moco", "simclr"] = "moco"
    distillation: Literal["rsd", "seed", "fkd", "none"] = "rsd"
    contrastive_weight: float = 1.0
    distillation_weight: float = 10.0
    hard_negative_weight: float = 5.0
    temperature: float = 0.07
    student_temperature: float = 0.07
    teacher_temperature: float = 0.04
    queue_size: int = 65536
    momentum: float = 0.99
    entropy_weight: float = 0.0


@dataclass(frozen=True)
class AslConfig:
    """ASL and its baseline. norm_ratio_weight 0 = the baseline alone.

    reading: which pairs are ordered: `all` is ASL, the others are our readings of its ablations; `triplet` takes all
        pairs and a margin on the norms instead of their ratio. margin: of that.
    """

    classification_weight: float = 10.0
    smoothing: float = 0.1
    triplet_weight: float = 1.0
    norm_ratio_weight: float = 1.0
    reading: Literal["all", "crop", "negative", "positive", "triplet"] = "all"
    margin: float = 0.3


@dataclass(frozen=True)
class CopyOptimizerConfig:
    """lr_per_256: lr is that of a batch of 256 images (over all processes) and scales with the batch.

    The paper of RDCD writes Adam with lr 1.0; its released script has SGD, the default here.
    """

    kind: Literal["sgd", "adam"] = "sgd"
    lr: float = 1.0
    lr_per_256: bool = True
    momentum: float = 0.9
    weight_decay: float = 1e-6
    warmup_epochs: float = 5.0
    final_lr: float = 0.0
    clip_norm: float | None = None


@dataclass(frozen=True)
class CopyTrainConfig:
    """batch_size: originals a step in each process; ASL makes four images of each, the others two views.

    validate_every: steps; null = at the end of each epoch. select: figure by which best.pt is chosen.
    rank_tolerance: share of the largest singular value above which one counts for the RPR.
    """

    epochs: int = 100
    max_steps: int | None = None
    batch_size: int = 256
    seed: int = 0
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    channels_last: bool = False
    validate_every: int | None = None
    checkpoint_every: int = 500
    log_every: int = 20
    select: str = "muap"
    rank_tolerance: float = 0.01


@dataclass(frozen=True)
class CopyConfig:
    """One run. method: name of a YAML in `configs/image_copy/`; out: folder of the run."""

    method: str = ""
    objective: Literal["sscd", "rdcd", "asl"] = "rdcd"
    out: str = "runs/copy"
    data: CopyDataConfig = field(default_factory=CopyDataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    model: CopyModelConfig = field(default_factory=CopyModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    sscd: SscdConfig = field(default_factory=SscdConfig)
    rdcd: RdcdConfig = field(default_factory=RdcdConfig)
    asl: AslConfig = field(default_factory=AslConfig)
    optimizer: CopyOptimizerConfig = field(default_factory=CopyOptimizerConfig)
    train: CopyTrainConfig = field(default_factory=CopyTrainConfig)


SHORT_NAMES = {"images": "data.images", "dim": "model.dim", "teacher": "teacher.source", "backbone": "model.backbone",
               "weights": "model.weights"}


def load_copy_config(arguments: list[str], configs: Path, saved: dict | None = None) -> CopyConfig:
    """Defaults, `configs/<--method>.yaml`, each `--config FILE`, then `--name value` pairs; see `config.load_config`.

    The names of `SHORT_NAMES` stand for longer ones.
    """
    written = [_written_out(argument) for argument in arguments]
    return load_settings(CopyConfig, "method", written, configs, saved)


def _written_out(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return f"--{SHORT_NAMES[name[2:]]}{equals}{value}" if name[:2] == "--" and name[2:] in SHORT_NAMES else argument


def read_copy_settings(path: Path) -> dict[str, object]:
    """Settings of one file, by dotted name."""
    return read_settings(path, CopyConfig)


def copy_config_from_dict(values: dict, where: str = "settings") -> CopyConfig:
    """Settings saved with a run; unknown names are errors."""
    return settings_from_dict(CopyConfig, values, where)


def copy_setting_names() -> list[str]:
    """Every leaf's dotted name."""
    return setting_names(CopyConfig)


def copy_config_to_dict(config: CopyConfig) -> dict:
    """Plain nested dict, for YAML and checkpoints."""
    return to_dict(config)
