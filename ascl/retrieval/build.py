"""Build the parts of a retrieval run from settings, and load the model of a run."""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch

from ascl.core import checkpoint
from ascl.core.distributed import rows_of_all_with_gradient, several_processes
from ascl.core.errors import DataError, first_of
from ascl.data.captions import CaptionSet
from ascl.data.neighbors import nearest_images
from ascl.data.pairs import PairDataset, UniqueImageBatchSampler, collate
from ascl.data.stores.open import FeatureStore
from ascl.models import AsCL, EncodedImages, EncodedTexts, RetrievalModel
from ascl.models.baselines import Clip, Dime, Dsran, Imram, Scan, TwoTower, Vse, VseInfinity
from ascl.models.dropout import InputDropout
from ascl.models.text import BertWords, CachedWords
from ascl.retrieval.encode import encode_images, encode_texts
from ascl.retrieval.objective import RetrievalObjective, TripletSettings
from ascl.samples.negatives import NoiseSettings
from ascl.samples.positives import generate_positive
from ascl.settings.base import flatten, from_dict
from ascl.settings.retrieval import Config
from ascl.training.batches import TrainBatches
from ascl.training.schedule import Schedule, cosine, step_decay, warmed_up

_CHOICE = 8     # neighbors known of an image, for each that its group takes: some are free even late in an epoch

if TYPE_CHECKING:  # the loop imports accelerate, which is slow and not needed to load a model
    from ascl.training.loop import LoopSettings


def build_model(config: Config, region_dim: int, global_dim: int) -> RetrievalModel:
    """Return a newly initialized model for features of these dimensions, with its dropout and learned temperature."""
    settings, loss = config.model, config.loss
    model = _architecture(config, region_dim, global_dim)
    model.dropout = InputDropout(settings.dropout, settings.region_dropout, settings.word_dropout)
    if loss.learn_temperature:
        model.learn_temperature(loss.temperature)
    return model


def _architecture(config: Config, region_dim: int, global_dim: int) -> RetrievalModel:
    settings = config.model
    encoder = BertWords(config.text.encoder, finetune=config.text.finetune, max_words=config.text.max_words)
    text = encoder if config.text.cache is None else CachedWords(encoder, config.text.cache)
    inputs = (region_dim, global_dim, text, settings.embed_dim)
    standardize = settings.standardize
    match settings.kind:
        case "two_tower":
            return TwoTower(*inputs, standardize=standardize)
        case "vse":
            return Vse(*inputs, standardize=standardize)
        case "vse_infinity":
            return VseInfinity(*inputs, batch_norm=settings.batch_norm, standardize=standardize)
        case "clip":
            return Clip(*inputs, temperature=config.loss.temperature, standardize=standardize)
        case "scan_t2i" | "scan_i2t":
            return Scan(*inputs, direction="t2i" if settings.kind == "scan_t2i" else "i2t", pooling=settings.pooling,
                        lambda_softmax=settings.lambda_softmax, lambda_lse=settings.lambda_lse,
                        feature_norm=settings.feature_norm, standardize=standardize)
        case "imram":
            return Imram(*inputs, steps=settings.matching_steps, direction=settings.direction,
                         states=settings.matching_states, lambda_softmax=settings.lambda_softmax,
                         standardize=standardize)
        case "dsran":
            return Dsran(*inputs, num_heads=settings.num_heads, joint_graphs=settings.joint_graphs,
                         standardize=standardize)
        case "dime":
            return Dime(*inputs, num_heads=settings.num_heads, layers=settings.matching_steps,
                        direction=settings.direction, lambda_softmax=settings.lambda_softmax, standardize=standardize)
    return AsCL(region_dim, global_dim, text, settings.embed_dim, settings.num_heads, settings.local_weight,
                projections=settings.projections, tied_key_value=settings.tied_key_value, fusion=settings.fusion,
                normalize_regions=settings.normalize_regions, normalize_words=settings.normalize_words,
                sharpness=settings.sharpness, standardize=settings.standardize, student_dim=settings.student_dim,
                student_weight=settings.student_weight)


def check_chunks(config: Config, model: RetrievalModel) -> None:
    """Raise DataError if train.chunk_size is set and the model takes statistics over the whole batch."""
    chunk = config.train.chunk_size
    if chunk is not None and any(isinstance(part, torch.nn.BatchNorm1d) for part in model.modules()):
        raise DataError(f"train.chunk_size is {chunk}, but the batch normalization of model.kind {config.model.kind} "
                        "takes its statistics over the whole batch: set train.chunk_size to null")


def fit_standardization(model: RetrievalModel, captions: CaptionSet, store: FeatureStore, *,
                        images: int = 1000) -> None:
    """Fit the model's standardization, if it has one, on training images spread evenly over the split."""
    for_regions, for_globals = model.standardize_regions, model.standardize_globals
    if for_regions is None or for_globals is None:
        return
    rows = store.rows(captions.image_ids)
    features = store.read(rows[np.linspace(0, len(rows) - 1, min(images, len(rows))).astype(int)])
    assert features.regions is not None and features.globals is not None        # checked by `build_split`
    regions = features.regions if features.mask is None else features.regions[features.mask]
    for_regions.fit(torch.from_numpy(regions).flatten(0, -2))
    for_globals.fit(torch.from_numpy(features.globals))


def start_from(run: str | os.PathLike, config: Config, model: RetrievalModel) -> str:
    """Copy the weights of another run that fit into `model`, and return a line on what was copied and what was not.

    Raises:
        DataError: there is no checkpoint, or none of its weights fits.
    """
    path = checkpoint.find(run)
    state = checkpoint.load(path)
    with checkpoint.content_of(path):
        copied, left = checkpoint.copy_fitting(model, state["model"], keep=partial(is_saved, config))
    if not copied:
        raise DataError(f"train.init: none of the weights of {path} fits this model ({first_of(left)}): give a run of "
                        "the same model.kind and model.embed_dim, or leave train.init out")
    return (f"started from {len(copied)} tensors of {path}"
            + (f"; without {len(left)} that do not fit: {first_of(left)}" if left else ""))


def build_objective(config: Config) -> RetrievalObjective:
    """Return the training objective.

    Raises:
        DataError: loss.norm_ratio_weight is set, but there are no generated positives.
    """
    samples, loss = config.samples, config.loss
    noise = None
    if samples.negatives != "none":
        noise = NoiseSettings(kind=samples.negatives, gaussian_scale=samples.gaussian_scale,
                              token_ratio=samples.token_ratio, feature_ratio=samples.feature_ratio,
                              dropout=samples.dropout, mixture_kinds=tuple(samples.mixture_kinds))
    triplet = None if loss.kind == "contrastive" else TripletSettings(loss.margin, loss.triplet_warmup_steps)
    if loss.norm_ratio_weight and samples.positives == "none":
        raise DataError(f"loss.norm_ratio_weight is {loss.norm_ratio_weight}, but that loss needs generated positives "
                        "and samples.positives is none: set loss.norm_ratio_weight to 0 or samples.positives to both")
    if loss.kind == "triplet" and (loss.label_smoothing or loss.learn_temperature):
        name = "loss.label_smoothing" if loss.label_smoothing else "loss.learn_temperature"
        raise DataError(f"{name} belongs to the contrastive loss, but loss.kind is triplet: choose one of them")
    if config.model.kind != "ascl":
        for name, value in (("model.student_dim", config.model.student_dim),
                            ("train.candidates", config.train.candidates)):
            if value is not None:
                raise DataError(f"{name} is {value}, but only AsCL has a student, and model.kind is "
                                f"{config.model.kind}: set {name} to null or model.kind to ascl")
    elif config.train.candidates is not None and config.model.student_dim is None:
        raise DataError(f"train.candidates is {config.train.candidates}, but a student chooses them, and "
                        "model.student_dim is null: set it to a dimension such as 256, or train.candidates to null")
    return RetrievalObjective(
        loss.temperature, noise, triplet, loss.norm_ratio_weight, chunk_size=config.train.chunk_size,
        label_smoothing=loss.label_smoothing, candidates=config.train.candidates,
        gather=rows_of_all_with_gradient if config.train.gather_negatives and several_processes() else None,
    )


def build_pairs(config: Config, captions: CaptionSet, store: FeatureStore) -> PairDataset:
    """Return the training pairs, with generated positives if the settings ask for them.

    Raises:
        DataError: samples.positive_ratio is out of range.
    """
    samples = config.samples
    positive = None
    if samples.positives != "none":
        if not 0 < samples.positive_ratio < 1:
            raise DataError(f"samples.positive_ratio is {samples.positive_ratio}: it must lie between 0 and 1")
        positive = partial(generate_positive, samples.positives, ratio=samples.positive_ratio)
    return PairDataset(captions, store, positive, seed=config.train.seed)


def build_batches(config: Config, pairs: PairDataset, process: int, processes: int, *,
                  device: torch.device | str = "cpu") -> TrainBatches:
    """Return the training batches of one process; a batch contains an image at most once.

    With gathered negatives, the processes split one batch of the sampler, so their batches share no image. Without,
    each process has its own batch of the sampler, and these may share images.

    Args:
        device: where to look for neighbors (train.neighbors).

    Raises:
        DataError: train.workers is negative, the batch is larger than the number of images, or a group of neighbors is
            larger than the batch.
    """
    size, workers, group = config.train.batch_size, config.train.workers, config.train.neighbors
    if workers < 0:
        raise DataError(f"train.workers is {workers}: it must be at least 0")
    together = config.train.gather_negatives and processes > 1
    if together and size > 0:
        images = len(np.unique(pairs.captions.owner))
        if size * processes > images:
            raise DataError(f"train.batch_size {size} in each of {processes} processes takes {size * processes} "
                            f"images, but only {images} have captions: reduce it, or set train.gather_negatives to "
                            "false")
        size *= processes
    neighbors = None
    if group is not None:
        if not 2 <= group <= size:
            raise DataError(f"train.neighbors is {group}, but a group has at least 2 images and at most {size}, a "
                            "batch: change one of them, or set train.neighbors to null for random batches")
        ids = [pairs.captions.image_ids[image] for image in np.unique(pairs.captions.owner)]
        neighbors = nearest_images(pairs.store, ids, _CHOICE * group, device=device)
    sampler = UniqueImageBatchSampler(pairs.captions.owner, size, seed=config.train.seed, neighbors=neighbors,
                                      group_size=group or 1)
    return TrainBatches(pairs, sampler, collate, workers=workers, process=process, processes=processes, shared=together)


def build_schedule(config: Config, loop: LoopSettings) -> Schedule:
    """Return the learning rate as a function of the step."""
    settings = config.optimizer
    if settings.schedule == "cosine":
        schedule = cosine(settings.lr, final=settings.final_lr, total_steps=loop.total_steps)
    else:
        every = settings.decay_epochs
        if every < 1:
            raise DataError(f"optimizer.decay_epochs is {every}: it must be at least 1")
        after = settings.decay_after if settings.decay_after is not None else range(every, loop.epochs, every)
        schedule = step_decay(settings.lr, gamma=settings.decay_factor, after_epochs=after,
                              steps_per_epoch=loop.steps_per_epoch)
    return warmed_up(schedule, warmup_steps=settings.warmup_steps)


def encode_split(model: RetrievalModel, captions: CaptionSet,
                 store: FeatureStore) -> tuple[EncodedImages, EncodedTexts]:
    """Encode every image and every caption of a split once."""
    return encode_images(model, captions, store), encode_texts(model, captions.captions)


def is_saved(config: Config, name: str) -> bool:
    """Return whether checkpoints include this parameter; a frozen encoder is loaded from its original source."""
    return config.text.finetune or not name.startswith("text.")


def load_run(run: str | os.PathLike) -> tuple[RetrievalModel, Config]:
    """Load the model (in evaluation mode, on the CPU) and the settings of a run folder or a checkpoint file.

    Raises:
        FileNotFoundError: the text encoder's folder no longer exists.
        DataError: there is no checkpoint, or it is truncated, not a retrieval checkpoint, or its weights do not match
            its settings.
    """
    path = checkpoint.find(run)
    state = checkpoint.load(path)
    with checkpoint.content_of(path):
        extra = state.get("extra", {})
        if "settings" not in extra:
            raise DataError(f"{path} holds no settings, so it is not the checkpoint of an image-text retrieval run: "
                            "give the folder of such a run")
        settings = flatten(extra["settings"])
        settings.pop("optimizer.encoder_lr", None)      # of older runs; a trained model does not need it
        config = from_dict(Config, settings, str(path))
        dims = int(extra["region_dim"]), int(extra["global_dim"])
    model = build_model(config, *dims)
    with checkpoint.content_of(path):
        checkpoint.load_model_state(model, state["model"], keep=partial(is_saved, config), path=path)
    return model.eval(), config


def load_model(run: str | os.PathLike) -> RetrievalModel:
    """Return the model of a retrieval run, ready to encode and score.

    Args:
        run: folder of a run of `ascl train`, or a checkpoint file. A folder gives its best.pt, or else its last.pt with
            a warning.

    Returns:
        An `AsCL`, or the baseline that the run trained, in evaluation mode on the CPU. `region_dim` and `global_dim`
        are the dimensions of the features that it takes. For all pairs of a split, `score_all_pairs` is faster.

    Raises:
        FileNotFoundError: the folder of its text encoder no longer exists.
        DataError: there is no checkpoint, or it is truncated, of another program, or does not fit its settings.

    Example:
        >>> model = load_model("runs/flickr30k")                                            # doctest: +SKIP
        >>> images = model.encode_images(torch.randn(2, 36, 2048), torch.randn(2, 2048))    # doctest: +SKIP
        >>> texts = model.encode_texts(["a dog runs", "two people cook", "a red bus"])      # doctest: +SKIP
        >>> model.pair_scores(images, texts).shape                                          # doctest: +SKIP
        torch.Size([2, 3])
    """
    return load_run(run)[0]
