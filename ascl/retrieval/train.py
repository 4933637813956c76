"""Train a retrieval model, from settings to a run folder."""

from __future__ import annotations

from functools import partial

import torch

from ascl.core.distributed import make_accelerator
from ascl.core.errors import DataError
from ascl.core.provenance import refused_settings
from ascl.data.split import build_split
from ascl.models import RetrievalModel
from ascl.retrieval import build
from ascl.retrieval.encode import check_dimensions
from ascl.retrieval.report import FoldReport, RetrievalReport, folds_of
from ascl.retrieval.scoring.all_pairs import rank_all_pairs, rank_folds
from ascl.settings.retrieval import Config
from ascl.training.checkpoints import Progress
from ascl.training.optimizer import build_optimizer
from ascl.training.run import loop_settings, train_run


def train(config: Config, *, resume: bool = False) -> Progress:
    """Train one model and write checkpoints, metrics, settings and environment to `config.out`.

    Raises:
        DataError, FileNotFoundError: data or settings do not fit; raised before the first step.
    """
    if config.train.patience is not None and config.data.val == config.data.train:
        raise DataError(f"train.patience is {config.train.patience}, but data.val is the split {config.data.val} that "
                        "is trained on: set data.val to a split that is not, or train.patience to null")
    accelerator = make_accelerator(mixed_precision=config.train.mixed_precision)
    captions, store = build_split(config, config.data.train)
    val_captions, val_store = build_split(config, config.data.val, captions_per_image=config.data.captions_per_image,
                                          images=config.data.val_images)
    val_store.rows(val_captions.image_ids)                                  # missing images should fail now
    try:
        folds = len(folds_of(val_captions.owner, len(val_captions.image_ids), config.data.val_folds))
    except DataError as error:
        raise DataError(f"data.val_folds is {config.data.val_folds}: {error}") from None
    limited = None if config.data.val_images is None else len(val_captions.image_ids)
    torch.manual_seed(config.train.seed)                                    # for the initial weights
    assert store.region_dim is not None and store.global_dim is not None            # checked by `build_split`
    with refused_settings():
        model = build.build_model(config, store.region_dim, store.global_dim)
        check_dimensions(model, val_store)
        build.check_chunks(config, model)
        build.fit_standardization(model, captions, store)
        started = [] if config.train.init is None or resume else [build.start_from(config.train.init, config, model)]
        objective = build.build_objective(config)
        pairs = build.build_pairs(config, captions, store)
        batches = build.build_batches(config, pairs, accelerator.process_index, accelerator.num_processes,
                                      device=accelerator.device)
        loop = loop_settings(config, batches.steps_per_epoch, trained_on=captions.described,
                             select=validation_name("rsum", limited, folds))
        learning_rate = build.build_schedule(config, loop)
        rates = config.optimizer
        optimizer = build_optimizer(model, lr=rates.lr, weight_decay=rates.weight_decay, kind=rates.kind,
                                    factors={"text.": rates.encoder_factor})
    described = [f"{len(captions.image_ids)} images, {len(captions.captions)} captions; "
                 f"{config.train.batch_size * accelerator.num_processes} pairs per step", *started]
    if config.loss.kind == "triplet" and config.loss.triplet_warmup_steps >= loop.total_steps:
        described.append(f"loss.triplet_warmup_steps is {config.loss.triplet_warmup_steps}, but training ends after "
                         f"{loop.total_steps} steps: the loss never uses the hardest negative alone")

    def validate(model: RetrievalModel) -> dict[str, float]:
        encoded = build.encode_split(model, val_captions, val_store)
        report = (rank_all_pairs(model, *encoded, val_captions.owner) if folds == 1 else
                  rank_folds(model, *encoded, val_captions.owner, folds))
        return {validation_name(name, limited, folds): value for name, value in flat_metrics(report).items()}

    progress = train_run(config, accelerator, model, optimizer, batches=batches, step_loss=objective, validate=validate,
                         learning_rate=learning_rate, settings=loop, resume=resume, described=described,
                         extra={"region_dim": store.region_dim, "global_dim": store.global_dim},
                         saved=partial(build.is_saved, config), average_decay=rates.average_decay)
    if accelerator.is_main_process:
        report_truncated(model)
    return progress


def validation_name(metric: str, images: int | None, folds: int) -> str:
    """Return the name of a metric over the validation split, which says so if it does not mean the whole split.

    Args:
        images: only the first N images of the split count; None = all. folds: number of folds averaged over.

    Example:
        >>> validation_name("rsum", None, 5), validation_name("rsum", 300, 1), validation_name("rsum", None, 1)
        ('rsum_of_5_folds', 'rsum_of_first_300_images', 'rsum')
    """
    return metric + f"_of_{folds}_folds" * (folds > 1) + ("" if images is None else f"_of_first_{images}_images")


def flat_metrics(report: RetrievalReport | FoldReport) -> dict[str, float]:
    """Return a report as a flat dict for the log."""
    flat = {"rsum": report.rsum}
    for name, recalls in (("i2t", report.i2t), ("t2i", report.t2i)):
        flat |= {f"{name}_{field}": getattr(recalls, field) for field in ("r1", "r5", "r10", "median_rank")}
    return flat


def report_truncated(model: RetrievalModel) -> None:
    """Print the number of truncated texts, if any."""
    count = getattr(model.text, "truncated", 0)
    if count:
        print(f"{count} texts exceeded the text encoder's limit and were truncated (counted once per encoding)")
