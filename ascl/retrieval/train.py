"""Train a retrieval model, from settings to a run folder."""

from __future__ import annotations

from functools import partial

import torch

from ascl.core.distributed import make_accelerator
from ascl.core.provenance import refused_settings
from ascl.data.split import build_split
from ascl.models import RetrievalModel
from ascl.retrieval import build
from ascl.retrieval.encode import check_dimensions
from ascl.retrieval.report import RetrievalReport
from ascl.retrieval.scoring.all_pairs import rank_all_pairs
from ascl.settings.retrieval import Config
from ascl.training.checkpoints import Progress
from ascl.training.optimizer import build_optimizer
from ascl.training.run import loop_settings, train_run


def train(config: Config, *, resume: bool = False) -> Progress:
    """Train one model and write checkpoints, metrics, settings and environment to `config.out`.

    Raises:
        DataError, FileNotFoundError: data or settings do not fit; raised before the first step.
    """
    accelerator = make_accelerator(mixed_precision=config.train.mixed_precision)
    captions, store = build_split(config, config.data.train)
    val_captions, val_store = build_split(config, config.data.val, captions_per_image=config.data.captions_per_image,
                                          images=config.data.val_images)
    val_store.rows(val_captions.image_ids)                                  # missing images should fail now
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
        batches = build.build_batches(config, pairs, accelerator.process_index, accelerator.num_processes)
        loop = loop_settings(config, batches.steps_per_epoch, trained_on=captions.described)
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
        images, texts = build.encode_split(model, val_captions, val_store)
        return flat_metrics(rank_all_pairs(model, images, texts, val_captions.owner))

    progress = train_run(config, accelerator, model, optimizer, batches=batches, step_loss=objective, validate=validate,
                         learning_rate=learning_rate, settings=loop, resume=resume, described=described,
                         extra={"region_dim": store.region_dim, "global_dim": store.global_dim},
                         saved=partial(build.is_saved, config), average_decay=rates.average_decay)
    if accelerator.is_main_process:
        report_truncated(model)
    return progress


def flat_metrics(report: RetrievalReport) -> dict[str, float]:
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
