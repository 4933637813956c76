"""Settings of a retrieval run. A YAML file of `configs/` and the command line set what differs from the defaults.

The defaults are the paper's where it states them (AsCL, section 3.1, COCO), and otherwise ours. docs/papers.md lists
where they differ.
"""

from __future__ import annotations

import functools
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
    """Karpathy's JSON, COCO's caption JSON, or a folder of SCAN's {split}_caps.txt; {split} in the name is replaced by
    the name of the split."""
    features: list[str] = field(default_factory=list)
    """Files that together hold region and global features, separated by commas: one or two HDF5 files of `ascl
    extract`, or files that `ascl convert` reads; {split} in a name is replaced by the name of the split."""
    global_source: Literal["files", "mean-region"] = "files"
    """Source of the global features: files, or the mean of the regions if no file has them, as in SCAN's release."""
    captions_per_image: int | None = 5
    """When evaluating, keep the first N captions of each image (a few of COCO's have six or seven); null = all."""
    scan_captions_per_image: int | None = None
    """Captions per image of SCAN's {split}_caps.txt without ids file; null = by the numbers of captions and of rows of
    the features."""
    val_images: int | None = None
    """While training, validate on the first N images of the split, to save time; null = all. The metrics are then
    called by it, such as rsum_of_first_300_images."""
    val_folds: int = 1
    """While training, validate on N consecutive blocks of these images, each with its own captions only, and average,
    as COCO's five folds of 1K do: 1/N of the pairs. The metrics are then called by it, such as rsum_of_5_folds."""
    train: str = "train"
    """Name of the split to train on."""
    val: str = "val"
    """Name of the split that chooses the checkpoint."""
    test: str = "test"
    """Name of the split to evaluate."""
    images: str | None = None
    """Folder of the images, searched at any depth; training needs only their features; null = not available."""
    prepare: str = "see data/README.md"
    """Command that error messages suggest when a file of the data set is missing."""
    prepare_features: str = ""
    """The same for a missing feature file; empty = that of prepare."""


@dataclass(frozen=True)
class TextConfig:
    """Text encoder."""

    encoder: str = "bert-base-uncased"
    """BERT-like encoder: name on the Hugging Face hub, or a folder."""
    finetune: bool = False
    """Train the encoder too; false = frozen."""
    max_words: int | None = None
    """Truncate texts after N tokens; null = the encoder's own limit."""
    cache: str | None = None
    """Folder for the word vectors of a frozen encoder, computed once; null = compute them in every step."""


@dataclass(frozen=True)
class ModelConfig:
    """Model (see `ascl.models.AsCL`)."""

    kind: Literal["ascl", "two_tower", "vse", "vse_infinity", "scan_t2i", "scan_i2t", "clip", "imram", "dsran",
                  "dime"] = "ascl"
    """AsCL, or a baseline of `ascl.models.baselines`; configs/baselines/KIND.yaml sets what differs for a baseline."""
    embed_dim: int = 1024
    """Dimension of the joint space."""
    num_heads: int = 8
    """Heads of the cross-modal attention; dsran, dime: heads of the attention within an item."""
    local_weight: float = 0.8
    """Weight of the local score (u1 in the paper), from 0 to 1; the global score has the rest."""
    projections: bool = True
    """Learn the projections of the attention; false = attend to the features as they are."""
    tied_key_value: bool = False
    """Key and value of an attention head share one matrix, as in the paper's equation 1; false = one matrix each."""
    fusion: bool = True
    """Fuse image and text before the global score; false = the ablation "w/o MF"."""
    normalize_regions: bool = True
    """Scale each region to length 1."""
    normalize_words: bool = True
    """Scale each word to length 1."""
    sharpness: float = 4.0
    """Factor on the logits of the attention; a larger one attends to fewer tokens."""
    student_dim: int | None = None
    """Dimension of a student: a vector for each item as in VSE++, trained beside the cross-modal score; null = none."""
    student_weight: float = 0.5
    """Weight of the student's cosine in the score, from 0 to 1; the cross-modal score has the rest."""
    standardize: bool = False
    """Standardize image features with mean and standard deviation of 1,000 training images."""
    dropout: float = 0.0
    """In training, set image features and word vectors to zero with this probability."""
    region_dropout: float = 0.0
    """In training, leave out whole regions with this probability."""
    word_dropout: float = 0.0
    """In training, leave out whole words with this probability."""
    batch_norm: bool = False
    """vse_infinity: normalize the hidden units of the region encoder over the batch, as published."""
    pooling: Literal["mean", "logsumexp", "sum", "max"] = "mean"
    """scan: pooling over the tokens that attend."""
    feature_norm: Literal["clipped_l2norm", "l2norm", "softmax", "clipped", "no_norm"] = "clipped_l2norm"
    """scan: normalization of the similarities before the attention; clipped_l2norm = the published one."""
    lambda_softmax: float | None = None
    """scan, imram, dime: inverse temperature of the attention; null = the paper's value for this direction."""
    lambda_lse: float | None = None
    """scan: inverse temperature of logsumexp pooling; null = the paper's value for this direction."""
    matching_steps: int = 3
    """imram: number of matching steps; dime: number of interaction layers."""
    matching_states: Literal["raw", "normalized", "inner"] = "raw"
    """imram: states between steps. raw: compared by cosines (the paper); normalized: scaled to length 1 after each step
    (the released code); inner: compared by inner products (the released scripts)."""
    direction: Literal["both", "t2i", "i2t"] = "both"
    """imram, dime: t2i = words attend to regions, i2t = regions attend to words."""
    joint_graphs: int = 2
    """dsran: number of graphs of regions and whole image, 1, 2 or 4."""


@dataclass(frozen=True)
class SamplesConfig:
    """Generated samples (AsCL, section 2.2)."""

    negatives: Literal[
        "none", "gaussian", "shuffle", "token_cutoff", "feature_cutoff", "cutoff", "dropout", "mixture"
    ] = "mixture"
    """Noise that makes a negative from the words of a caption or generated positive. mixture draws one of
    mixture_kinds for each caption, cutoff one of the two cutoffs; none = the ablation "w/o Neg"."""
    mixture_kinds: list[str] = field(
        default_factory=lambda: ["gaussian", "token_cutoff", "feature_cutoff", "dropout"]
    )
    """Kinds of noise that mixture draws from, separated by commas. The paper's mixture has shuffle too, which cannot
    teach: the score does not see the order of words, so a shuffled caption scores as its original."""
    gaussian_scale: float = 1.0
    """gaussian: standard deviation of the noise, relative to the root mean square of the caption's own words."""
    token_ratio: float = 0.3
    """token_cutoff: share of the words that are set to zero, between 0 and 1."""
    feature_ratio: float = 0.3
    """feature_cutoff: share of the features that are set to zero, between 0 and 1."""
    dropout: float = 0.5
    """dropout: probability that an element is set to zero, between 0 and 1."""
    positives: Literal["none", "concatenate", "prefix", "keywords", "both", "both-prefix"] = "both"
    """Generated positive captions. concatenate: two captions of the image (Asymmetry-II). keywords: a caption without
    some content words; prefix: only its first words (Asymmetry-III). both: concatenate or keywords, drawn for each
    caption; both-prefix: concatenate or prefix. none = the ablation "w/o Pos"."""
    positive_ratio: float = 0.5
    """keywords: share of the keywords that are removed; prefix: share of the words that are kept; between 0 and 1."""


@dataclass(frozen=True)
class LossConfig:
    """Loss."""

    kind: Literal["contrastive", "triplet"] = "contrastive"
    """contrastive: the paper's loss; triplet: hardest negative, the ablation "w triplet loss"."""
    temperature: float = 0.05
    """contrastive: divides every score before the softmax; the model clip learns it, starting here."""
    margin: float = 0.2
    """triplet: how much higher than a negative a positive must score."""
    triplet_warmup_steps: int = 1000
    """triplet: steps in which the loss moves from all negatives to the hardest."""
    label_smoothing: float = 0.0
    """contrastive: share of the target that is spread evenly over all candidates."""
    learn_temperature: bool = False
    """contrastive: learn the temperature, starting from loss.temperature and at least 0.01."""
    norm_ratio_weight: float = 0.0
    """Weight of a norm-ratio loss, which the paper does not have: the norm of a concatenated caption should exceed the
    original's, and the original's that of its truncation; 0 = off."""


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer."""

    kind: Literal["adam", "adamw"] = "adam"
    """adam: weight decay is part of the gradient; adamw: it is not, and only matrices decay."""
    lr: float = 5e-4
    """Learning rate."""
    encoder_factor: float = 0.02
    """Learning rate of the text encoder, relative to lr, if text.finetune is true."""
    schedule: Literal["step", "cosine"] = "step"
    """step: multiply by decay_factor every decay_epochs, or after the epochs of decay_after; cosine: decay to
    final_lr."""
    decay_epochs: int = 10
    """step: epochs between two decays."""
    decay_after: list[int] | None = None
    """step: numbers of epochs after which the rate decays, such as [15, 25]; null = every decay_epochs."""
    decay_factor: float = 0.1
    """step: factor of each decay."""
    final_lr: float = 0.0
    """cosine: learning rate at the end."""
    warmup_steps: int = 0
    """Steps of a linear warm-up."""
    weight_decay: float = 0.0
    """Weight decay: adam: factor of an L2 penalty; adamw: share of a weight that each step removes, times lr."""
    clip_norm: float | None = None
    """Clip the norm of the gradient to this; null = no clipping."""
    average_decay: float | None = None
    """Validate and save as best.pt an exponential moving average of the weights: at each step it keeps this share,
    such as 0.99; null = the weights themselves."""


@dataclass(frozen=True)
class TrainConfig:
    """Training (an epoch is one pass over the captions)."""

    epochs: int = 20
    """Passes over the captions."""
    max_steps: int | None = None
    """Stop after N steps, even if epochs are left; null = no limit."""
    batch_size: int = 64
    """Image-caption pairs per step, in each process."""
    gather_negatives: bool = True
    """Compute the loss over the batches of all processes together, so that the result depends on the number of pairs
    and not on the number of processes; false = each process takes negatives from its own batch, a cheaper step."""
    candidates: int | None = None
    """In training, score each item of a batch only with its true partner and the N others that the student ranks
    highest; needs model.student_dim; null = with all."""
    neighbors: int | None = None
    """Make batches of groups of N images whose whole-image features are alike, so that many wrong captions of a batch
    are close to right; null = batches of random images."""
    chunk_size: int | None = None
    """Encode and score N pairs of a process at a time, for batches larger than the memory: the same loss and gradients
    in more time; null = all at once."""
    init: str | None = None
    """Run folder or checkpoint from which to start: weights that fit are copied, others are listed."""
    seed: int = 0
    """Seed of weights, order, dropout and generated samples."""
    workers: int = 2
    """Processes that load batches; 0 = load them in the main process."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the matrix products; no = float32; fp16 needs a GPU."""
    validate_every: int = 1000
    """Validate every N steps."""
    patience: int | None = None
    """Stop early, after N validations in a row that were no better than the best one; null = never."""
    checkpoint_every: int = 500
    """Write last.pt every N steps."""
    log_every: int = 20
    """Log metrics every N steps."""


@dataclass(frozen=True)
class Config:
    """Run."""

    dataset: str = ""
    """Data set: name of a file in configs/ without .yaml, such as coco."""
    out: str = "runs/default"
    """Run folder, for checkpoints, metrics and the settings."""
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


SHORT = {"images": "data.images", "init": "train.init", "seed": "train.seed", "batch_size": "train.batch_size",
         "workers": "train.workers"}


def presets(saved: Path | None = None) -> Presets:
    """Return a function from options to YAML files that replace defaults: of a resumed run, a data set, a baseline.

    Args:
        saved: settings.yaml of the run to resume.
    """
    def chosen(given: Namespace) -> list[Path]:
        files = [] if saved is None else [saved]
        if given.dataset:
            files.append(preset(given.dataset, "data set"))
        if given.model.kind != "ascl":
            files.append(preset(given.model.kind, "baseline", "baselines"))
        return files

    return chosen


@functools.cache
def _parser(saved: Path | None) -> Parser:
    """Return the parser of `load_config`, built once: that takes longer than to read with it."""
    parser = Parser(short=SHORT, presets=presets(saved), add_help=False)
    parser.add_settings(Config)
    return parser


def load_config(arguments: Sequence[str], saved: Path | None = None) -> Config:
    """Return the settings of a command line: defaults, presets, `--config` files, then options; the last wins.

    Args:
        arguments: such as ["--dataset", "coco", "--model.embed_dim", "512"].
        saved: settings.yaml of the run to resume.

    Raises:
        SettingsError: a name is unknown (the message suggests the nearest), a value has the wrong type, or the data
            set is unknown.
    """
    return build(Config, _parser(saved).read(arguments))
