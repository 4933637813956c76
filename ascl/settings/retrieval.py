"""Every setting, typed and frozen. A YAML of `configs/` and the command line say what differs from the defaults.

The defaults are the paper's where it states them (AsCL, section 3.1, COCO); where it is silent they are ours.
"""

from __future__ import annotations

import dataclasses
import difflib
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import yaml
from jsonargparse import ArgumentError, ArgumentParser, Namespace


@dataclass(frozen=True)
class DataConfig:
    """Where captions and features lie.

    captions: Karpathy JSON, COCO caption JSON, or a folder of SCAN-style `{split}_caps.txt`.
    features: files that together hold regions and globals: our HDF5 (one or two), or one SCAN `.npy`.
        `{split}` in any of these names is replaced by the split's.
    global_source: `files`, or `mean-region` where no globals exist (SCAN's release): the mean region stands in.
    captions_per_image: keep the first so many of each image when evaluating (COCO has a few images with six or
        seven); null = all.
    val_images: validate while training on the first so many images of the split, to save time; null = all.
    train, val, test: names of the splits.
    images: folder with the images themselves, at any depth, to extract features of and to check; null = not at hand.
    prepare: the command that a message names when a file is missing.
    """

    captions: str = ""
    features: list[str] = field(default_factory=list)
    global_source: Literal["files", "mean-region"] = "files"
    captions_per_image: int | None = 5
    val_images: int | None = None
    train: str = "train"
    val: str = "val"
    test: str = "test"
    images: str | None = None
    prepare: str = "see data/README.md"


@dataclass(frozen=True)
class TextConfig:
    """Text encoder. cache: folder for the words of a frozen encoder, encoded once; null = encode in each step."""

    encoder: str = "bert-base-uncased"
    finetune: bool = False
    max_words: int | None = None
    cache: str | None = None


@dataclass(frozen=True)
class ModelConfig:
    """See `ascl.models.AsCL`; `standardize` takes its statistics of 1,000 training images.

    kind: a rival of `ascl.models.baselines` in the place of AsCL. Settings of its own (loss, samples) come with it from
        `configs/baselines/<kind>.yaml`; only embed_dim, standardize and those below are settings of rivals.
        `two_tower` is the floor without any meeting of image and text before the score.
    pooling: of SCAN over the tokens that attend. lambda_softmax, lambda_lse: inverse temperatures of SCAN's and IMRAM's
        attention and of SCAN's logsumexp; null = the papers' for this direction. matching_steps: of IMRAM.
    """

    kind: Literal["ascl", "two_tower", "vse", "vse_infinity", "scan_t2i", "scan_i2t", "clip", "imram"] = "ascl"
    embed_dim: int = 1024
    num_heads: int = 8
    local_weight: float = 0.8
    projections: bool = True
    fusion: bool = True
    normalize_regions: bool = True
    normalize_words: bool = True
    sharpness: float = 4.0
    standardize: bool = False
    pooling: Literal["mean", "logsumexp"] = "mean"
    lambda_softmax: float | None = None
    lambda_lse: float | None = None
    matching_steps: int = 3


@dataclass(frozen=True)
class SamplesConfig:
    """Generated samples (AsCL, section 2.2).

    negatives: noise on the words of caption and generated positive; `mixture` draws one of `mixture_kinds` for each
        caption; `none` = "w/o Neg".
    positives: `concatenate` two captions of the image (Asymmetry-II), `keywords` removes content words or `prefix`
        keeps the first words (Asymmetry-III), `both` draws concatenation or keyword truncation for each caption,
        `both-prefix` concatenation or prefix; `none` = "w/o Pos". positive_ratio: share of the keywords that go, or of
        the words that stay as prefix.
    gaussian_scale: standard deviation, relative to the root mean square of the caption's own words.
    token_ratio, feature_ratio: share of words or of features that cutoff sets to zero. dropout: probability.
    """

    negatives: Literal[
        "none", "gaussian", "shuffle", "token_cutoff", "feature_cutoff", "cutoff", "dropout", "mixture"
    ] = "mixture"
    mixture_kinds: list[str] = field(
        default_factory=lambda: ["gaussian", "shuffle", "token_cutoff", "feature_cutoff", "dropout"]
    )
    gaussian_scale: float = 1.0
    token_ratio: float = 0.3
    feature_ratio: float = 0.3
    dropout: float = 0.5
    positives: Literal["none", "concatenate", "prefix", "keywords", "both", "both-prefix"] = "both"
    positive_ratio: float = 0.5


@dataclass(frozen=True)
class LossConfig:
    """kind `triplet` is the ablation "w triplet loss": hardest negative, eased in over `triplet_warmup_steps`.

    norm_ratio_weight: of a term that the paper does not have: it orders the norm of a concatenated caption above that
        of its original, and this above that of its truncation. 0 = without.
    """

    kind: Literal["contrastive", "triplet"] = "contrastive"
    temperature: float = 0.05
    margin: float = 0.2
    triplet_warmup_steps: int = 1000
    norm_ratio_weight: float = 0.0


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam. schedule `step` multiplies the rate by `decay_factor` every `decay_epochs`; `cosine` ends at `final_lr`."""

    lr: float = 5e-4
    encoder_lr: float = 1e-5
    schedule: Literal["step", "cosine"] = "step"
    decay_epochs: int = 10
    decay_factor: float = 0.1
    final_lr: float = 0.0
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float | None = None


@dataclass(frozen=True)
class TrainConfig:
    """An epoch is one pass over the captions. max_steps, where set, ends the run earlier than `epochs` does.

    batch_size: pairs of each process.
    gather_negatives: several processes take the loss of their batches as one, so that what is learned depends on how
        many pairs there are in all and not on how many processes share them, and each process scores its part of them;
        false = every process has negatives of its own, which is the cheaper step where batches stay as they are.
    chunk_size: encode and score so many pairs of a process at a time, for batches larger than the memory: the same loss
        and gradients, in more time; null = all at once.
    """

    epochs: int = 20
    max_steps: int | None = None
    batch_size: int = 64
    gather_negatives: bool = True
    chunk_size: int | None = None
    seed: int = 0
    workers: int = 2
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    validate_every: int = 1000
    checkpoint_every: int = 500
    log_every: int = 20


@dataclass(frozen=True)
class Config:
    """One run. dataset: name of a YAML in `configs/`; out: folder of the run."""

    dataset: str = ""
    out: str = "runs/default"
    data: DataConfig = field(default_factory=DataConfig)
    text: TextConfig = field(default_factory=TextConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)


class ConfigError(ValueError):
    """A setting is unknown or has a value that it cannot have."""


Settings = typing.TypeVar("Settings")


def _kinds(config: type, prefix: str = "") -> dict[str, typing.Any]:
    """Type of every leaf by its dotted name."""
    hints = typing.get_type_hints(config)
    kinds: dict[str, typing.Any] = {}
    for entry in dataclasses.fields(config):
        kind = hints[entry.name]
        if dataclasses.is_dataclass(kind):
            kinds |= _kinds(typing.cast(type, kind), f"{prefix}{entry.name}.")
        else:
            kinds[prefix + entry.name] = kind
    return kinds


def setting_names(config: type = Config) -> list[str]:
    """Every leaf's dotted name, as the command line takes it."""
    return list(_kinds(config))


def _check_name(name: str, where: str, config: type) -> None:
    names = setting_names(config)
    if name not in names:
        near = max(names, key=lambda known: _likeness(name, known))
        raise ConfigError(f"{where}: unknown setting {name!r}; the nearest right one is {near!r}")


def _likeness(name: str, known: str) -> tuple[float, float]:
    """How near two dotted names are, by their last parts or as a whole: `lr` is meant as `optimizer.lr`."""
    def ratio(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    whole = ratio(name, known)
    return max(whole, ratio(name.rpartition(".")[2], known.rpartition(".")[2])), whole


def _flatten(values: dict, prefix: str = "") -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in values.items():
        if isinstance(value, dict):
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + str(key)] = value
    return flat


def read_settings(path: Path, config: type = Config) -> dict[str, object]:
    """Settings of one file, by dotted name."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected settings by name, found {type(values).__name__}")
    flat = _flatten(values)
    for name in flat:
        _check_name(name, str(path), config)
    # YAML 1.1 reads an unquoted no as false
    return {name: "no" if value is False and "no" in typing.get_args(_kinds(config)[name]) else value
            for name, value in flat.items()}


def _parser(config: type) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_class_arguments(config, nested_key=None, as_group=False)
    return parser


def _from_namespace(config: type, values: Namespace | dict) -> object:
    """Frozen dataclasses out of parsed values."""
    hints = typing.get_type_hints(config)
    values = vars(values) if isinstance(values, Namespace) else values
    return config(**{
        name: _from_namespace(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
        for name, value in values.items()
    })


def from_dict(values: dict, where: str = "settings") -> Config:
    """Settings saved with a run back into a `Config`; unknown names are errors."""
    return settings_from_dict(Config, values, where)


def settings_from_dict(config: type[Settings], values: dict, where: str = "settings") -> Settings:
    """As `from_dict`, for settings of any frozen dataclass of dataclasses."""
    kinds = _kinds(config)
    for name, value in _flatten(values).items():
        _check_name(name, where, config)
        if value is None and type(None) not in typing.get_args(kinds[name]):    # the parser lets it through
            raise ConfigError(f"{where}: {name} cannot be null; leave it out for its default")
    try:
        return typing.cast(Settings, _from_namespace(config, _parser(config).parse_object(values)))
    except (ArgumentError, TypeError, ValueError) as error:
        raise ConfigError(f"{where}: {error}") from error


def to_dict(config: typing.Any) -> dict:
    """Plain nested dict, for YAML and checkpoints."""
    return dataclasses.asdict(config)


def load_config(arguments: list[str], configs: Path, saved: dict | None = None) -> Config:
    """Defaults, then `configs/<--dataset>.yaml`, a rival's own, each `--config FILE`, then `--name value` pairs.

    A rival's own settings are `configs/baselines/<model.kind>.yaml`, where the command line or a `--config FILE` names
    a kind that has one.

    Args:
        arguments: of the command line, `--dataset NAME` among them.
        configs: folder with one YAML for each data set.
        saved: settings of a run that is resumed; they stand in the place of the defaults.

    Raises:
        ConfigError: an unknown name (with the nearest right one), a value of the wrong type, an unknown data set.
    """
    return load_settings(Config, "dataset", arguments, configs, saved, within=("model.kind", "baselines"))


def load_settings(
    config: type[Settings], preset: str, arguments: list[str], configs: Path, saved: dict | None = None, *,
    within: tuple[str, str] | None = None,
) -> Settings:
    """As `load_config`, for settings of any frozen dataclass of dataclasses.

    Args:
        preset: name of the setting that names a YAML in `configs`.
        within: a second such setting, and the folder in `configs` that may hold a YAML for its value.
    """
    files: list[Path] = []
    direct: list[tuple[str, str]] = []
    rest = list(arguments)
    while rest:
        token = rest.pop(0)
        if not token.startswith("--"):
            raise ConfigError(f"command line: expected --NAME VALUE, got {token!r}")
        name, equals, value = token[2:].partition("=")
        if not equals:
            if not rest or (rest[0].startswith("--")):
                raise ConfigError(f"command line: --{name} needs a value")
            value = rest.pop(0)
        if name == "config":
            files.append(Path(value))
        else:
            _check_name(name, "command line", config)
            direct.append((name, value))
    given: dict[str, object] = {}
    for path in files:
        if not path.exists():
            raise ConfigError(f"--config {path}: no such file")
        given |= read_settings(path, config)
    given |= direct
    if within is not None and (own := configs / within[1] / f"{given.get(within[0])}.yaml").exists():
        files.insert(0, own)
    if chosen := dict(direct).get(preset):
        path = configs / f"{chosen}.yaml"
        if not path.exists():
            known = ", ".join(sorted(entry.stem for entry in configs.glob("*.yaml")))
            what = "data set" if preset == "dataset" else preset
            raise ConfigError(f"no settings for {what} {chosen!r}: {path} does not exist; known: {known}")
        files.insert(0, path)
    merged = {} if saved is None else _flatten(saved)
    for name in merged:
        _check_name(name, "settings of the run", config)
    for path in files:
        merged |= read_settings(path, config)
    kinds = _kinds(config)
    merged |= {name: _read_value(name, value, kinds[name]) for name, value in direct}
    return settings_from_dict(config, _nest(merged))


def take_option(arguments: list[str], name: str) -> tuple[str | None, list[str]]:
    """The value of `--name VALUE` or `--name=VALUE`, None where it is not given, and the other arguments."""
    for place, argument in enumerate(arguments):
        if argument.startswith(f"{name}="):
            return argument.partition("=")[2], arguments[:place] + arguments[place + 1 :]
        if argument == name:
            if place + 1 >= len(arguments):
                raise ConfigError(f"{name} needs the folder of a run")
            return arguments[place + 1], arguments[:place] + arguments[place + 2 :]
    return None, arguments


def _read_value(name: str, text: str, kind: typing.Any) -> object:
    """A value of the command line, read as YAML would be; where text is expected it stays text ("no", "2024").

    A list of texts is split at its commas, with or without brackets around it: `[data/{split}.h5]` is no YAML.
    """
    if kind is str or typing.get_origin(kind) is Literal:
        return text
    if str in typing.get_args(kind) and type(None) in typing.get_args(kind):
        return None if text in ("null", "~") else text
    if typing.get_origin(kind) is list:
        if text.startswith("[") != text.endswith("]"):
            raise ConfigError(f"command line: --{name} {text}: a bracket is missing")
        parts = text.removeprefix("[").removesuffix("]").split(",")
        return [part.strip().strip("'\"") for part in parts if part.strip()]
    try:
        value = yaml.safe_load(text) if text else ""
    except yaml.YAMLError as error:
        raise ConfigError(f"command line: --{name} {text}: not a value: {error}") from error
    # YAML 1.1 reads 5e-4 as text
    if isinstance(value, str):
        try:
            return float(text)
        except ValueError:
            return text
    return value


def _nest(flat: dict[str, object]) -> dict:
    nested: dict = {}
    for name, value in flat.items():
        *groups, leaf = name.split(".")
        target = nested
        for group in groups:
            target = target.setdefault(group, {})
        target[leaf] = value
    return nested
