"""Settings of a training of copy detection; a YAML of `configs/image_copy/` names a method.

The defaults are RDCD's where the methods share a setting (its released script where paper and script disagree and the
comment says so); `sscd.yaml` and `asl.yaml` say what differs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from ascl.settings.base import Parser, Presets, build, preset

Normalize = Literal["imagenet", "half", "none"]
Pool = Literal["gem", "class+gem"]


@dataclass(frozen=True)
class CopyDataConfig:
    """Images."""

    images: str = ""
    """Folder, searched at any depth, or a .txt with a path a line."""
    validation_share: float = 0.05
    """Share of the images that is held out, chosen by their ids and never trained on."""
    validation_images: int = 400
    """At most N images are held out."""
    cache_side: int | None = None
    """Keep every image in memory with this short side in pixels (a photo of 3:2 takes 4.5 x side^2 bytes), so that
    editing and not decoding is the cost; 1.3 to 2 times views.size does. null = decode each time."""
    skip_unreadable: bool = False
    """Leave unreadable images out, with a count, instead of stopping."""
    workers: int = 2
    """Processes that decode and edit; 0 = none. They change nothing but the time."""


@dataclass(frozen=True)
class ViewsConfig:
    """What the network is shown."""

    size: int = 224
    """Side in pixels while training."""
    augmentation: Literal["simclr", "strong_blur", "advanced"] = "advanced"
    """RDCD's whole list (advanced), or SSCD's weaker ones; ASL's identities have edits of their own."""


@dataclass(frozen=True)
class CopyModelConfig:
    """The descriptor, see `ascl.image_copy.descriptors.descriptor.DescriptorSettings`."""

    backbone: str = "efficientnet_b0"
    """Any torchvision classifier by name, or timm:NAME."""
    weights: str = "default"
    """default (the publisher's, downloaded), random:SEED, or a path."""
    same_padding: bool = False
    """Pad stride-2 convolutions as TensorFlow does, for weights from there."""
    normalize: Normalize = "imagenet"
    """Scaling of the pixels that the weights were trained with: ImageNet's mean and std, [-1, 1], or [0, 1]."""
    last_stride: int = 2
    """Stride of the last stage."""
    pool: Pool = "gem"
    """GeM of the last map; class+gem of a ViT adds its class token."""
    feature_dim: int | None = None
    """Dimension of the feature before the descriptor; null = the teacher's where relations are distilled, else 512;
    0 = no such layer."""
    dim: int = 64
    """Dimension of the descriptor; 0 = no such layer: the projector's output or the feature is the descriptor."""
    projector_hidden: int = 4096
    """Hidden size of ASL's projector."""
    projector_dim: int | None = None
    """Output size of ASL's projector; null = without."""
    norm_of: Literal["projector", "feature", "embedding"] = "embedding"
    """The vector whose norm is the content norm."""
    freeze_batch_norm: bool = False
    """Keep the statistics that the backbone's batch norm came with."""
    centred: bool = False
    """Begin with biases that give feature and embedding mean 0 over the first views; short runs need it."""
    input_size: int = 288
    """Side in pixels of the square at which images are described and validated."""
    resize: Literal["squash", "crop"] = "squash"
    """squash the whole image to that square, or crop its center."""


@dataclass(frozen=True)
class TeacherConfig:
    """The teacher of RDCD's student, see `ascl.image_copy.descriptors.teachers.load_teacher`."""

    source: str | None = None
    """TorchScript file, run of `ascl copy train`, HDF5 of descriptors (of the unedited images), or a backbone's "
    "name."""
    weights: str = "default"
    """Of a backbone: default, random:SEED, or a path."""
    same_padding: bool = False
    """Of a backbone: for weights from TensorFlow."""
    normalize: Normalize = "imagenet"
    """Scaling of the pixels that its weights were trained with."""
    pool: Pool = "gem"
    """Pooling of a backbone."""
    image_size: int | None = None
    """Side in pixels at which the teacher sees an image; null = the views' size."""
    output: Literal["embeddings", "features"] = "embeddings"
    """Of a run: its descriptor, or the feature before it."""


@dataclass(frozen=True)
class SscdConfig:
    """SSCD."""

    temperature: float = 0.05
    """Divides every cosine before the softmax."""
    entropy_weight: float = 30.0
    """Weight of the entropy term; 30 is the paper's."""
    mixup: float = 0.0
    """Probability of each image to be mixed with another."""


@dataclass(frozen=True)
class RdcdConfig:
    """RDCD."""

    contrastive: Literal["moco", "simclr"] = "moco"
    """Negatives from a queue of a momentum encoder, or from the batch."""
    distillation: Literal["rsd", "seed", "fkd", "none"] = "rsd"
    """Relations to the queue (rsd), SEED's, the feature itself (fkd), or none."""
    contrastive_weight: float = 1.0
    """Weight of the contrastive loss."""
    distillation_weight: float = 10.0
    """Weight of the distillation; the paper's 10, the released script has 1."""
    hard_negative_weight: float = 5.0
    """Weight of the hard-negative loss."""
    temperature: float = 0.07
    """Of the contrastive loss."""
    student_temperature: float = 0.07
    """Of the student's relations."""
    teacher_temperature: float = 0.04
    """Of the teacher's relations."""
    queue_size: int = 65536
    """Entries of the queue."""
    momentum: float = 0.99
    """Of the momentum encoder."""
    entropy_weight: float = 0.0
    """Weight of the entropy term of the in-batch loss, where contrastive is simclr."""


@dataclass(frozen=True)
class AslConfig:
    """ASL and its baseline."""

    classification_weight: float = 10.0
    """Weight of the classification loss."""
    smoothing: float = 0.1
    """Label smoothing."""
    triplet_weight: float = 1.0
    """Weight of the triplet loss."""
    norm_ratio_weight: float = 1.0
    """Weight of the norm-ratio loss; 0 = the baseline alone."""
    reading: Literal["all", "crop", "negative", "positive", "triplet"] = "all"
    """Which pairs are ordered: all is ASL, the others are our readings of its ablations; triplet takes all pairs and a
    margin on the norms instead of their ratio."""
    margin: float = 0.3
    """Of the reading triplet."""


@dataclass(frozen=True)
class CopyOptimizerConfig:
    """Optimizer. RDCD's paper writes Adam with lr 1.0; its released script has SGD, the default here."""

    kind: Literal["sgd", "adam"] = "sgd"
    """Optimizer."""
    lr: float = 1.0
    """Learning rate, cosine schedule."""
    lr_per_256: bool = True
    """lr is that of a batch of 256 images over all processes, and scales with the batch."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 1e-6
    """L2 penalty."""
    warmup_epochs: float = 5.0
    """Epochs of a linear warm-up."""
    final_lr: float = 0.0
    """Learning rate at the end."""
    clip_norm: float | None = None
    """Largest norm of the gradient; null = not clipped."""


@dataclass(frozen=True)
class CopyTrainConfig:
    """Training; an epoch is one pass over the images."""

    epochs: int = 100
    """Passes over the images."""
    max_steps: int | None = None
    """End after N steps, where that is earlier; null = no limit."""
    batch_size: int = 256
    """Originals a step, in each process; ASL makes four images of each, the others two views."""
    seed: int = 0
    """Of weights, order and edits."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Type of the matrix products; fp16 needs a GPU."""
    channels_last: bool = False
    """Memory layout that some processors are faster with."""
    validate_every: int | None = None
    """Validate every N steps; null = at the end of each epoch."""
    checkpoint_every: int = 500
    """Write last.pt every N steps."""
    log_every: int = 20
    """Log metrics every N steps."""
    select: str = "muap"
    """Metric of the validation by which best.pt is chosen."""
    rank_tolerance: float = 0.01
    """Share of the largest singular value above which one counts for the RPR."""


@dataclass(frozen=True)
class CopyConfig:
    """Run."""

    method: str = ""
    """Method: name of a file in configs/image_copy/."""
    objective: Literal["sscd", "rdcd", "asl"] = "rdcd"
    """What is trained; the method's file sets it."""
    out: str = "runs/copy"
    """Run folder."""
    data: CopyDataConfig = field(default_factory=CopyDataConfig)
    views: ViewsConfig = field(default_factory=ViewsConfig)
    model: CopyModelConfig = field(default_factory=CopyModelConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    sscd: SscdConfig = field(default_factory=SscdConfig)
    rdcd: RdcdConfig = field(default_factory=RdcdConfig)
    asl: AslConfig = field(default_factory=AslConfig)
    optimizer: CopyOptimizerConfig = field(default_factory=CopyOptimizerConfig)
    train: CopyTrainConfig = field(default_factory=CopyTrainConfig)


SHORT = {"images": "data.images", "workers": "data.workers", "dim": "model.dim", "backbone": "model.backbone",
         "weights": "model.weights", "teacher": "teacher.source", "seed": "train.seed",
         "batch_size": "train.batch_size"}


def presets(saved: Path | None = None) -> Presets:
    """Files that stand in the place of the defaults: a resumed run's settings, the method's.

    Args:
        saved: settings.yaml of a run that is resumed.
    """
    def chosen(given: Namespace) -> list[Path]:
        files = [] if saved is None else [saved]
        if given.method or saved is None:
            files.append(preset(given.method, "method", "image_copy"))
        return files

    return chosen


def load_copy_config(arguments: Sequence[str], saved: Path | None = None) -> CopyConfig:
    """Settings of a command line: defaults, the method's, each `--config FILE`, then `--name value`; the last wins.

    Raises:
        SettingsError: an unknown name (with the nearest right one), a value of the wrong type, an unknown method.
    """
    parser = Parser(short=SHORT, presets=presets(saved), add_help=False)
    parser.add_settings(CopyConfig)
    return build(CopyConfig, parser.read(arguments))
