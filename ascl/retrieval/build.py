"""Settings into objects. Beside it only `run.py`, `prepare.py` and the programs in `tools/` read `config.py`."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from ascl.core import checkpoint
from ascl.core.distributed import rows_of_all_with_gradient, several_processes
from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet
from ascl.data.pairs import Batch, PairDataset, UniqueImageBatchSampler, collate
from ascl.data.stores.open import FeatureStore
from ascl.models import AsCL, EncodedImages, EncodedTexts, RetrievalModel
from ascl.models.base import TextEncoder
from ascl.models.baselines.clip import Clip
from ascl.models.baselines.imram import Imram
from ascl.models.baselines.scan import Scan
from ascl.models.baselines.two_tower import TwoTower
from ascl.models.baselines.vse import Vse
from ascl.models.baselines.vse_infinity import VseInfinity
from ascl.models.text import BertWords, CachedWords
from ascl.retrieval.encode import encode_images, encode_texts
from ascl.retrieval.objective import RetrievalObjective, TripletSettings
from ascl.samples.negatives import NoiseSettings
from ascl.samples.positives import generate_positive
from ascl.settings.base import from_dict
from ascl.settings.retrieval import Config
from ascl.training.schedule import Schedule, cosine, step_decay, warmed_up


def build_text_encoder(config: Config) -> TextEncoder:
    """The BERT-like encoder, cached on disk where the settings say so."""
    encoder = BertWords(config.text.encoder, finetune=config.text.finetune, max_words=config.text.max_words)
    return encoder if config.text.cache is None else CachedWords(encoder, config.text.cache)


def build_model(config: Config, region_dim: int, global_dim: int) -> RetrievalModel:
    """A model with fresh weights for features of these dimensions."""
    settings = config.model
    text = build_text_encoder(config)
    inputs = (region_dim, global_dim, text, settings.embed_dim)
    standardize = settings.standardize
    match settings.kind:
        case "two_tower":
            return TwoTower(*inputs, standardize=standardize)
        case "vse":
            return Vse(*inputs, standardize=standardize)
        case "vse_infinity":
            return VseInfinity(*inputs, standardize=standardize)
        case "clip":
            return Clip(*inputs, temperature=config.loss.temperature, standardize=standardize)
        case "scan_t2i" | "scan_i2t":
            return Scan(
                *inputs, direction="t2i" if settings.kind == "scan_t2i" else "i2t", pooling=settings.pooling,
                lambda_softmax=settings.lambda_softmax, lambda_lse=settings.lambda_lse, standardize=standardize,
            )
        case "imram":
            return Imram(
                *inputs, steps=settings.matching_steps, lambda_softmax=settings.lambda_softmax, standardize=standardize
            )
    return AsCL(
        region_dim, global_dim, text, settings.embed_dim, settings.num_heads, settings.local_weight,
        projections=settings.projections, fusion=settings.fusion, normalize_regions=settings.normalize_regions,
        normalize_words=settings.normalize_words, sharpness=settings.sharpness, standardize=settings.standardize,
    )


def fit_standardization(
    model: RetrievalModel, captions: CaptionSet, store: FeatureStore, *, images: int = 1000
) -> None:
    """Statistics of the image features, from training images spread evenly over the split, where they are used."""
    for_regions, for_globals = model.standardize_regions, model.standardize_globals
    if for_regions is None or for_globals is None:
        return
    rows = store.rows(captions.image_ids)
    features = store.read(rows[np.linspace(0, len(rows) - 1, min(images, len(rows))).astype(int)])
    assert features.regions is not None and features.globals is not None        # `build_split` refuses others
    regions = features.regions if features.mask is None else features.regions[features.mask]
    for_regions.fit(torch.from_numpy(regions).flatten(0, -2))
    for_globals.fit(torch.from_numpy(features.globals))


def build_objective(config: Config) -> RetrievalObjective:
    """Loss of a training step."""
    samples, loss = config.samples, config.loss
    noise = None
    if samples.negatives != "none":
        noise = NoiseSettings(
            kind=samples.negatives, gaussian_scale=samples.gaussian_scale, token_ratio=samples.token_ratio,
            feature_ratio=samples.feature_ratio, dropout=samples.dropout, mixture_kinds=tuple(samples.mixture_kinds),
        )
    triplet = None if loss.kind == "contrastive" else TripletSettings(loss.margin, loss.triplet_warmup_steps)
    if loss.norm_ratio_weight and samples.positives == "none":
        raise DataError(
            f"loss.norm_ratio_weight is {loss.norm_ratio_weight}, but samples.positives is none, and those are what it "
            "orders: set the one to 0 or the other to both"
        )
    return RetrievalObjective(
        loss.temperature, noise, triplet, loss.norm_ratio_weight, chunk_size=config.train.chunk_size,
        gather=rows_of_all_with_gradient if config.train.gather_negatives and several_processes() else None,
    )


def build_pairs(config: Config, captions: CaptionSet, store: FeatureStore) -> PairDataset:
    """Training pairs with their generated positives."""
    samples = config.samples
    positive = None
    if samples.positives != "none":
        if not 0 < samples.positive_ratio < 1:
            raise DataError(f"samples.positive_ratio has to lie between 0 and 1, got {samples.positive_ratio}")
        positive = partial(generate_positive, samples.positives, ratio=samples.positive_ratio)
    return PairDataset(captions, store, positive, seed=config.train.seed)


class TrainBatches:
    """(epoch, first batch) -> this process's batches: what `training.fit` asks for.

    With gathered negatives the batches of all processes in one step are one batch of the sampler, dealt out in equal
    parts: no image is in two of them. Without, they are batches of their own, and may share images. Workers start once
    and stay for all epochs; one epoch is read at a time.
    """

    def __init__(self, config: Config, pairs: PairDataset, process: int, processes: int) -> None:
        if config.train.workers < 0:
            raise DataError(f"train.workers is {config.train.workers}: has to be at least 0")
        self.config, self.pairs, self.process, self.processes = config, pairs, process, processes
        size = config.train.batch_size
        self.together = config.train.gather_negatives and processes > 1
        if self.together and size > 0:
            images = len(np.unique(pairs.captions.owner))
            if size * processes > images:
                raise DataError(f"train.batch_size {size} in each of {processes} processes with gathered negatives "
                                f"takes {size * processes} images, and {images} have captions: lower it, or set "
                                "train.gather_negatives to false")
            size *= processes
        self.sampler = UniqueImageBatchSampler(pairs.captions.owner, size, seed=config.train.seed)
        self._of_epoch: list[list[tuple[int, int]]] = []        # filled anew; the loader looks when it is iterated
        self._loader = DataLoader(
            pairs, batch_sampler=self._of_epoch, collate_fn=collate, num_workers=config.train.workers,
            persistent_workers=config.train.workers > 0, pin_memory=torch.cuda.is_available(),
        )

    @property
    def steps_per_epoch(self) -> int:
        """Full batches of each process."""
        steps = len(self.sampler) // (1 if self.together else self.processes)
        if steps == 0:
            raise DataError(f"{len(self.pairs)} captions give no full batch of {self.config.train.batch_size} for each "
                            f"of {self.processes} processes: lower train.batch_size")
        return steps

    def __call__(self, epoch: int, first: int) -> Iterator[Batch]:
        self.sampler.set_epoch(epoch, 0)
        if self.together:
            own = slice(self.process * self.config.train.batch_size, (self.process + 1) * self.config.train.batch_size)
            batches = [batch[own] for batch in self.sampler]
        else:
            batches = list(self.sampler)[self.process :: self.processes]
        self._of_epoch[:] = batches[first : self.steps_per_epoch]
        try:
            yield from self._loader
        except DataError as error:      # from a worker it comes wrapped in the worker's traceback
            raise DataError(str(error).rpartition(f"{DataError.__module__}.{DataError.__name__}: ")[2]) from error


def build_optimizer(config: Config, model: nn.Module) -> torch.optim.Optimizer:
    """Adam over everything that is trained; a fine-tuned encoder gets its own rate."""
    settings = config.optimizer
    encoder: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            (encoder if name.startswith("text.") else rest).append(parameter)
    groups = [{"params": rest, "lr_factor": 1.0}]
    if encoder:
        groups.append({"params": encoder, "lr_factor": settings.encoder_lr / settings.lr})
    return torch.optim.Adam(groups, lr=settings.lr, weight_decay=settings.weight_decay)


def build_schedule(config: Config, steps_per_epoch: int) -> Schedule:
    """Learning rate by step."""
    settings = config.optimizer
    total = config.train.epochs * steps_per_epoch
    if config.train.max_steps is not None:
        total = min(total, config.train.max_steps)
    if settings.schedule == "cosine":
        schedule = cosine(settings.lr, final=settings.final_lr, total_steps=total)
    else:
        schedule = step_decay(
            settings.lr, gamma=settings.decay_factor, every_epochs=settings.decay_epochs,
            steps_per_epoch=steps_per_epoch,
        )
    return warmed_up(schedule, warmup_steps=settings.warmup_steps)


def encode_split(
    model: RetrievalModel, captions: CaptionSet, store: FeatureStore
) -> tuple[EncodedImages, EncodedTexts]:
    """Every image and every caption of a split, encoded once."""
    return encode_images(model, captions, store), encode_texts(model, captions.captions)


def is_saved(config: Config, name: str) -> bool:
    """Whether a checkpoint holds this parameter: a frozen encoder is loaded from where it came from."""
    return config.text.finetune or not name.startswith("text.")


def find_checkpoint(run: str | os.PathLike) -> Path:
    """`run` itself where it is a file, else its best.pt, else its last.pt."""
    run = Path(run)
    candidates = [run] if run.is_file() else [run / "best.pt", run / "last.pt"]
    for path in candidates:
        if path.is_file():
            if path.name == "last.pt" and path != run:
                warnings.warn(f"{run} has no best.pt, so last.pt is read: the newest weights, not the best on the "
                              "validation split", stacklevel=2)
            return path
    raise FileNotFoundError(f"no checkpoint in {run}: expected best.pt or last.pt of a training run "
                            "(python tools/train.py --dataset NAME --out RUN)")


def load_run(run: str | os.PathLike) -> tuple[RetrievalModel, Config]:
    """Model (in evaluation mode, on the CPU) and settings of a finished or interrupted run, or of one checkpoint.

    Raises:
        FileNotFoundError: no checkpoint there, or its text encoder is gone.
        DataError: truncated, foreign, or of another architecture than its settings say.
    """
    path = find_checkpoint(run)
    state = checkpoint.load(path)
    if "settings" not in state.get("extra", {}):
        raise DataError(f"{path} holds no settings: it was not written by tools/train.py")
    extra = state["extra"]
    config = from_dict(Config, extra["settings"], str(path))
    model = build_model(config, extra["region_dim"], extra["global_dim"])
    checkpoint.load_model_state(model, state["model"], keep=partial(is_saved, config), path=path)
    return model.eval(), config


def load_model(run: str | os.PathLike) -> RetrievalModel:
    """The model of a run, ready to encode and score: `load_model("runs/flickr30k")`."""
    return load_run(run)[0]
