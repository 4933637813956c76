"""Settings of a retrieval run. A YAML of `configs/` and the command line say what differs from the defaults.

The defaults are the paper's where it states them (AsCL, section 3.1, COCO); where it is silent they are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from ascl.settings.base import Parser, Presets, build, preset


@dataclass(frozen=True)
class DataConfig:
    """Captions and features."""

    captions: str = ""
    """Karpathy JSON, COCO caption JSON, or a folder of SCAN's {split}_caps.txt; {split} in the name is filled in."""
    features: list[str] = field(default_factory=list)
    """Files that together hold regions and globals, separated by commas: our HDF5 (one or two), another format that is
    read, or one SCAN .npy; {split} in a name is filled in."""
    global_source: Literal["files", "mean-region"] = "files"
    """Where the global feature comes from; mean-region where no file has one, as in SCAN's release."""
    captions_per_image: int | None = 5
    """Keep the first N captions of each image when evaluating (a few of COCO's have six or seven); null = all."""
    val_images: int | None = None
    """Validate while training on the first N images of the split, to save time; null = all."""
    train: str = "train"
    """Name of the split to train on."""
    val: str = "val"
    """Name of the split that chooses the checkpoint."""
    test: str = "test"
    """Name of the split to evaluate."""
    images: str | None = None
    """Folder of the images themselves, searched at any depth; null = not at hand."""
    prepare: str = "see data/README.md"
    """The command that a message names when a file is missing."""


@dataclass(frozen=True)
class TextConfig:
    """Text encoder."""

    encoder: str = "bert-base-uncased"
    """Name on the Hugging Face hub, or folder, of a BERT-like encoder."""
    finetune: bool = False
    """Train the encoder too."""
    max_words: int | None = None
    """Cut texts after N tokens; null = the encoder's own limit."""
    cache: str | None = None
    """Folder that keeps the words of a frozen encoder, encoded once; null = encode them in each step."""


@dataclass(frozen=True)
class ModelConfig:
    """Model, see `ascl.models.AsCL`."""

    kind: Literal["ascl", "two_tower", "vse", "vse_infinity", "scan_t2i", "scan_i2t", "clip", "imram"] = "ascl"
    """AsCL, or a baseline of `ascl.models.baselines`, whose own settings come from configs/baselines/KIND.yaml."""
    embed_dim: int = 1024
    """Dimension of the joint space."""
    num_heads: int = 8
    """Heads of the cross-modal attention."""
    local_weight: float = 0.8
    """u1: share of the local score; the rest is the global score's."""
    projections: bool = True
    """Learn the attention's projections; false attends to the features as they are."""
    fusion: bool = True
    """Let image and text meet before the global score; false = "w/o MF"."""
    normalize_regions: bool = True
    """Scale each region to length 1."""
    normalize_words: bool = True
    """Scale each word to length 1."""
    sharpness: float = 4.0
    """Factor of the attention's logits."""
    standardize: bool = False
    """Standardize image features by the statistics of 1,000 training images."""
    pooling: Literal["mean", "logsumexp"] = "mean"
    """Of SCAN, over the tokens that attend."""
    lambda_softmax: float | None = None
    """Inverse temperature of SCAN's and IMRAM's attention; null = the papers' for this direction."""
    lambda_lse: float | None = None
    """Inverse temperature of SCAN's logsumexp; null = the paper's for this direction."""
    matching_steps: int = 3
    """Matching steps of IMRAM."""


@dataclass(frozen=True)
class SamplesConfig:
    """Generated samples (AsCL, section 2.2)."""

    negatives: Literal[
        "none", "gaussian", "shuffle", "token_cutoff", "feature_cutoff", "cutoff", "dropout", "mixture"
    ] = "mixture"
    """Noise on the words of caption and generated positive; mixture draws one of mixture_kinds for each caption;
    none = "w/o Neg"."""
    mixture_kinds: list[str] = field(
        default_factory=lambda: ["gaussian", "shuffle", "token_cutoff", "feature_cutoff", "dropout"]
    )
    """Kinds of noise that mixture draws from, separated by commas."""
    gaussian_scale: float = 1.0
    """Standard deviation of the noise, relative to the root mean square of the caption's own words."""
    token_ratio: float = 0.3
    """Share of the words that token cutoff sets to zero."""
    feature_ratio: float = 0.3
    """Share of the features that feature cutoff sets to zero."""
    dropout: float = 0.5
    """Probability of dropout noise."""
    positives: Literal["none", "concatenate", "prefix", "keywords", "both", "both-prefix"] = "both"
    """concatenate: two captions of the image (Asymmetry-II); keywords: content words removed, prefix: the first words
    kept (Asymmetry-III); both: concatenation or keywords, drawn for each caption; both-prefix: concatenation or prefix;
    none = "w/o Pos"."""
    positive_ratio: float = 0.5
    """Share of the keywords that are removed, or of the words that stay as prefix."""


@dataclass(frozen=True)
class LossConfig:
    """Loss."""

    kind: Literal["contrastive", "triplet"] = "contrastive"
    """triplet: hardest negative, the ablation "w triplet loss"."""
    temperature: float = 0.05
    """Divides every score before the softmax."""
    margin: float = 0.2
    """Of the triplet loss."""
    triplet_warmup_steps: int = 1000
    """Steps in which the triplet loss goes over from all negatives to the hardest."""
    norm_ratio_weight: float = 0.0
    """Weight of a term that the paper does not have: it orders the norm of a concatenated caption above its original's,
    and this above its truncation's; 0 = without."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer: Adam."""

    lr: float = 5e-4
    """Learning rate."""
    encoder_lr: float = 1e-5
    """Learning rate of a text encoder that is trained too."""
    schedule: Literal["step", "cosine"] = "step"
    """step: times decay_factor every decay_epochs; cosine: down to final_lr."""
    decay_epochs: int = 10
    """Epochs between two steps of the step schedule."""
    decay_factor: float = 0.1
    """Factor of each step."""
    final_lr: float = 0.0
    """Learning rate at the end of the cosine schedule."""
    warmup_steps: int = 0
    """Steps of a linear warm-up."""
    weight_decay: float = 0.0
    """L2 penalty."""
    clip_norm: float | None = None
    """Largest norm of the gradient; null = not clipped."""


@dataclass(frozen=True)
class TrainConfig:
    """Training; an epoch is one pass over the captions."""

    epochs: int = 20
    """Passes over the captions."""
    max_steps: int | None = None
    """End after N steps, where that is earlier; null = no limit."""
    batch_size: int = 64
    """Pairs a step, in each process."""
    gather_negatives: bool = True
    """Several processes take the loss of their batches as one, so that what is learned depends on how many pairs there
    are in all and not on how many processes share them; false = each has negatives of its own, a cheaper step."""
    chunk_size: int | None = None
    """Encode and score N pairs of a process at a time, for batches larger than the memory: the same loss and gradients
    in more time; null = all at once."""
    seed: int = 0
    """Of weights, order, dropout and generated samples."""
    workers: int = 2
    """Processes that load batches; 0 = none."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Type of the matrix products; fp16 needs a GPU."""
    validate_every: int = 1000
    """Validate every N steps."""
    checkpoint_every: int = 500
    """Write last.pt every N steps."""
    log_every: int = 20
    """Log metrics every N steps."""


@dataclass(frozen=True)
class Config:
    """Run."""

    dataset: str = ""
    """Data set: name of a file in configs/."""
    out: str = "runs/default"
    """Run folder."""
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


SHORT = {"images": "data.images", "seed": "train.seed", "batch_size": "train.batch_size", "workers": "train.workers"}


def presets(saved: Path | None = None) -> Presets:
    """Files that stand in the place of the defaults: a resumed run's settings, the data set's, a baseline's own.

    Args:
        saved: settings.yaml of a run that is resumed.
    """
    def chosen(given: Namespace) -> list[Path]:
        files = [] if saved is None else [saved]
        if given.dataset:
            files.append(preset(given.dataset, "data set"))
        if given.model.kind != "ascl":
            files.append(preset(given.model.kind, "baseline", "baselines"))
        return files

    return chosen


def load_config(arguments: Sequence[str], saved: Path | None = None) -> Config:
    """Settings of a command line: defaults, presets, each `--config FILE`, then `--name value`; the last wins.

    Args:
        arguments: such as ["--dataset", "coco", "--model.embed_dim", "512"].
        saved: settings.yaml of a run that is resumed.

    Raises:
        SettingsError: an unknown name (with the nearest right one), a value of the wrong type, an unknown data set.
    """
    parser = Parser(short=SHORT, presets=presets(saved), add_help=False)
    parser.add_settings(Config)
    return build(Config, parser.read(arguments))
