"""Settings of copy-detection training. A YAML file of `configs/image_copy/` sets what differs for a method.

Settings that the methods share have RDCD's values by default. Where its paper and its released script disagree, a
docstring names both.
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
    """Folder of the training images, searched at any depth, or a .txt file with one path per line."""
    validation_share: float = 0.05
    """Share of the images that is held out for validation and never trained on, chosen by their ids."""
    validation_images: int = 400
    """Hold out at most N images."""
    cache_side: int | None = None
    """Keep all images in memory, scaled to this short side in pixels, to decode them only once; 1.3 to 2 times
    views.size is enough. A 3:2 photo takes 4.5 x side^2 bytes. null = decode each time."""
    skip_unreadable: bool = False
    """Leave out unreadable images, and count them, instead of stopping."""
    workers: int = 2
    """Processes that decode and edit images; 0 = do so in the main process. The results do not depend on it."""


@dataclass(frozen=True)
class ViewsConfig:
    """Views (the edited images that the network sees)."""

    size: int = 224
    """Side of a view in pixels."""
    augmentation: Literal["simclr", "strong_blur", "advanced"] = "advanced"
    """advanced: RDCD's full list of edits; simclr, strong_blur: SSCD's weaker ones. asl has its own edits."""


@dataclass(frozen=True)
class CopyModelConfig:
    """Descriptor (see `ascl.image_copy.descriptors.descriptor.DescriptorSettings`)."""

    backbone: str = "efficientnet_b0"
    """Name of a torchvision classifier, or timm:NAME."""
    weights: str = "default"
    """default (the publisher's, downloaded), random:SEED, or a path."""
    same_padding: bool = False
    """Pad stride-2 convolutions as TensorFlow does, for weights converted from it."""
    normalize: Normalize = "imagenet"
    """Pixel scaling with which the weights were trained: ImageNet's mean and std, half = [-1, 1], none = [0, 1]."""
    last_stride: int = 2
    """Stride of the backbone's last stage."""
    pool: Pool = "gem"
    """gem: GeM pooling of the last map; class+gem: also the class token of a ViT."""
    feature_dim: int | None = None
    """Dimension of the feature before the descriptor; null = the teacher's if relations are distilled, else 512;
    0 = no such layer."""
    dim: int = 64
    """Dimension of the descriptor; 0 = no such layer: the descriptor is the projector's output, or else the feature."""
    projector_hidden: int = 4096
    """Hidden dimension of ASL's projector."""
    projector_dim: int | None = None
    """Output dimension of ASL's projector; null = no projector."""
    norm_of: Literal["projector", "feature", "embedding"] = "embedding"
    """Vector whose norm is the content norm."""
    freeze_batch_norm: bool = False
    """Keep the backbone's pretrained batch-norm statistics."""
    centred: bool = False
    """Set the initial biases so that feature and embedding have mean 0 over the first views; short runs need it."""
    input_size: int = 288
    """Side in pixels of the square in which images are described and validated."""
    resize: Literal["squash", "crop"] = "squash"
    """squash: scale the whole image to that square; crop: take the center."""


@dataclass(frozen=True)
class TeacherConfig:
    """Teacher of RDCD's student (see `ascl.image_copy.descriptors.teachers.load_teacher`)."""

    source: str | None = None
    """A name of `ascl models`, whose weights are downloaded if they are not here, or a path: of a run, of a TorchScript
    file, or of an HDF5 file of descriptors (of the unedited images)."""
    weights: str = "default"
    """Backbone: default (the publisher's, downloaded), random:SEED, or a path."""
    same_padding: bool = False
    """Backbone: pad stride-2 convolutions as TensorFlow does, for weights converted from it."""
    normalize: Normalize = "imagenet"
    """Pixel scaling with which its weights were trained: ImageNet's mean and std, half = [-1, 1], none = [0, 1]."""
    pool: Pool = "gem"
    """Backbone: gem, or class+gem for a ViT."""
    image_size: int | None = None
    """Side in pixels at which the teacher sees an image; null = views.size."""
    output: Literal["embeddings", "features"] = "embeddings"
    """Run of `ascl copy train`: follow its descriptor, or the feature before it."""
    trust_code: bool = False
    """Run the code in a TorchScript file that is not SSCD's; it can read and write your files."""


@dataclass(frozen=True)
class SscdConfig:
    """SSCD."""

    temperature: float = 0.05
    """Divides every cosine before the softmax."""
    entropy_weight: float = 30.0
    """Weight of the entropy term; the paper's is 30."""
    mixup: float = 0.0
    """Probability that an image is mixed with another."""


@dataclass(frozen=True)
class RdcdConfig:
    """RDCD."""

    contrastive: Literal["moco", "simclr"] = "moco"
    """moco: negatives from a queue of a momentum encoder; simclr: from the batch."""
    distillation: Literal["rsd", "seed", "fkd", "none"] = "rsd"
    """rsd: distill relations to the queue; seed: relations as SEED does; fkd: the feature itself; none: no teacher."""
    contrastive_weight: float = 1.0
    """Weight of the contrastive loss."""
    distillation_weight: float = 10.0
    """Weight of the distillation loss; 10 is the paper's, the released script has 1."""
    hard_negative_weight: float = 5.0
    """Weight of the hard-negative loss."""
    temperature: float = 0.07
    """Temperature of the contrastive loss."""
    student_temperature: float = 0.07
    """Temperature of the student's relations."""
    teacher_temperature: float = 0.04
    """Temperature of the teacher's relations."""
    queue_size: int = 65536
    """Entries of the queue."""
    momentum: float = 0.99
    """Momentum of the momentum encoder, from 0 to 1."""
    entropy_weight: float = 0.0
    """simclr: weight of the entropy term of the in-batch loss."""


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
    """Weight of the norm-ratio loss; 0 = only the baseline."""
    reading: Literal["all", "crop", "negative", "positive", "triplet"] = "all"
    """Which pairs the norm-ratio loss orders. all is ASL, the others are our readings of its ablations; triplet orders
    all pairs by a margin between the norms instead of their ratio."""
    margin: float = 0.3
    """Margin of the reading triplet."""


@dataclass(frozen=True)
class CopyOptimizerConfig:
    """Optimizer."""

    kind: Literal["sgd", "adam"] = "sgd"
    """sgd as in RDCD's released script; its paper names Adam."""
    lr: float = 1.0
    """Learning rate at the start of the cosine schedule."""
    lr_per_256: bool = True
    """Scale lr with the batch: lr is for 256 images over all processes."""
    momentum: float = 0.9
    """Momentum of SGD."""
    weight_decay: float = 1e-6
    """Factor of the L2 penalty on the weights."""
    warmup_epochs: float = 5.0
    """Epochs of a linear warm-up."""
    final_lr: float = 0.0
    """Learning rate at the end of the cosine schedule."""
    clip_norm: float | None = None
    """Clip the norm of the gradient to this; null = no clipping."""


@dataclass(frozen=True)
class CopyTrainConfig:
    """Training (an epoch is one pass over the images)."""

    epochs: int = 100
    """Passes over the images."""
    max_steps: int | None = None
    """Stop after N steps, even if epochs are left; null = no limit."""
    batch_size: int = 256
    """Original images per step, in each process; asl makes four images of each, the others two views."""
    seed: int = 0
    """Seed of weights, order and edits."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the matrix products; no = float32; fp16 needs a GPU."""
    channels_last: bool = False
    """Use the channels-last memory layout, which is faster on some processors."""
    validate_every: int | None = None
    """Validate every N steps; null = at the end of each epoch."""
    patience: int | None = None
    """Stop early, after N validations in a row that were no better than the best one; null = never."""
    checkpoint_every: int = 500
    """Write last.pt every N steps."""
    log_every: int = 20
    """Log metrics every N steps."""
    select: str = "muap"
    """Validation metric that chooses best.pt; larger is better."""
    rank_tolerance: float = 0.01
    """A singular value counts for the RPR (share of the dimensions in use) if it exceeds this share of the largest."""


@dataclass(frozen=True)
class CopyConfig:
    """Run."""

    method: str = ""
    """Method: name of a file in configs/image_copy/ without .yaml, such as asl."""
    objective: Literal["sscd", "rdcd", "asl"] = "rdcd"
    """Training objective; the file of the method sets it."""
    out: str = "runs/copy"
    """Run folder, for checkpoints, metrics and the settings."""
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
    """Return a function from options to YAML files that replace defaults: of a resumed run, and of a method.

    Args:
        saved: settings.yaml of the run to resume.
    """
    def chosen(given: Namespace) -> list[Path]:
        files = [] if saved is None else [saved]
        if given.method or saved is None:
            files.append(preset(given.method, "method", "image_copy"))
        return files

    return chosen


def load_copy_config(arguments: Sequence[str], saved: Path | None = None) -> CopyConfig:
    """Return the settings of a command line: defaults, the method's, `--config` files, then options; the last wins.

    Raises:
        SettingsError: a name is unknown (the message suggests the nearest), a value has the wrong type, or the method
            is unknown.
    """
    parser = Parser(short=SHORT, presets=presets(saved), add_help=False)
    parser.add_settings(CopyConfig)
    return build(CopyConfig, parser.read(arguments))
