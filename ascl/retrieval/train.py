"""A training run of a retrieval model, from settings to files."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
import yaml

from ascl.core.files import write_text
from ascl.core.provenance import environment, refused_settings
from ascl.data.split import build_split
from ascl.models import RetrievalModel
from ascl.retrieval import build
from ascl.retrieval.encode import check_dimensions
from ascl.retrieval.ranking import RetrievalReport
from ascl.retrieval.scoring.all_pairs import rank_all_pairs
from ascl.settings.base import to_dict
from ascl.settings.retrieval import Config
from ascl.training.distributed import make_accelerator
from ascl.training.loop import LoopSettings, Progress, check_start, fit


def train(config: Config, *, resume: bool = False) -> Progress:
    """Train one model and leave everything in `config.out`: checkpoints, metrics, settings, environment.

    Raises:
        DataError, FileNotFoundError: data or settings that do not fit, before the first step.
    """
    out = Path(config.out)
    accelerator = make_accelerator(mixed_precision=config.train.mixed_precision)
    captions, store = build_split(config, config.data.train)
    val_captions, val_store = build_split(
        config, config.data.val, captions_per_image=config.data.captions_per_image, images=config.data.val_images
    )
    val_store.rows(val_captions.image_ids)                                  # all there: asked now, not after hours
    torch.manual_seed(config.train.seed)                                    # of the fresh weights
    assert store.region_dim is not None and store.global_dim is not None            # `build_split` refuses data without
    with refused_settings():
        model = build.build_model(config, store.region_dim, store.global_dim)
        check_dimensions(model, val_store)
        build.fit_standardization(model, captions, store)
        objective = build.build_objective(config)
        pairs = build.build_pairs(config, captions, store)
        batches = build.TrainBatches(config, pairs, accelerator.process_index, accelerator.num_processes)
        learning_rate = build.build_schedule(config, batches.steps_per_epoch)
        optimizer = build.build_optimizer(config, model)
    settings = LoopSettings(
        epochs=config.train.epochs, steps_per_epoch=batches.steps_per_epoch, seed=config.train.seed,
        max_steps=config.train.max_steps, clip_norm=config.optimizer.clip_norm,
        validate_every=config.train.validate_every, checkpoint_every=config.train.checkpoint_every,
        log_every=config.train.log_every, trained_on=captions.described,
    )
    saved = partial(build.is_saved, config)
    check_start(accelerator, model, optimizer, settings=settings, folder=out, resume=resume, saved=saved)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        write_text(out / "settings.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
        if not resume:                      # a resumed run keeps what it was started with; its log has the rest
            write_text(out / "environment.json", json.dumps(environment(), indent=2) + "\n")
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        print(f"{len(captions.image_ids)} images, {len(captions.captions)} captions; {trained / 1e6:.1f} M trained "
              f"parameters; {settings.total_steps} steps of "
              f"{config.train.batch_size * accelerator.num_processes} pairs; run folder {out}")
        if config.loss.kind == "triplet" and config.loss.triplet_warmup_steps >= settings.total_steps:
            print(f"loss.triplet_warmup_steps is {config.loss.triplet_warmup_steps} and training ends after "
                  f"{settings.total_steps}: the loss never becomes that of the hardest negative alone")

    def validate(model: RetrievalModel) -> dict[str, float]:
        images, texts = build.encode_split(model, val_captions, val_store)
        return flat_metrics(rank_all_pairs(model, images, texts, val_captions.owner))

    progress = fit(
        accelerator, model, optimizer, train_batches=batches, step_loss=objective, validate=validate,
        learning_rate=learning_rate, settings=settings, folder=out, resume=resume, saved=saved,
        extra={"settings": to_dict(config), "region_dim": store.region_dim, "global_dim": store.global_dim},
    )
    if accelerator.is_main_process:
        report_truncated(model)
    return progress


def flat_metrics(report: RetrievalReport) -> dict[str, float]:
    """A report as flat names for the log."""
    flat = {"rsum": report.rsum}
    for name, recalls in (("i2t", report.i2t), ("t2i", report.t2i)):
        flat |= {f"{name}_r1": recalls.r1, f"{name}_r5": recalls.r5, f"{name}_r10": recalls.r10,
                 f"{name}_median_rank": recalls.median_rank}
    return flat


def report_truncated(model: RetrievalModel) -> None:
    """Say how many texts were longer than the encoder takes."""
    count = getattr(model.text, "truncated", 0)
    if count:
        print(f"{count} texts were longer than the text encoder's limit and were cut (counted once per encoding)")
