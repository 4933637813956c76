"""A training run of copy detection, from settings to files."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ascl.core.distributed import make_accelerator
from ascl.core.errors import DataError
from ascl.core.provenance import refused_settings
from ascl.core.reading import read_text
from ascl.image_copy.descriptors.descriptor import DescriptorSettings
from ascl.image_copy.descriptors.teachers import Teacher, load_teacher
from ascl.image_copy.edits.augment import IdentityAugmentation, augmentation_of
from ascl.image_copy.training.asl import AslModel, AslObjective
from ascl.image_copy.training.data import Identities, Photos, SmallImages, Views, held_out, readable
from ascl.image_copy.training.rdcd import RdcdModel, RdcdObjective
from ascl.image_copy.training.sampler import IdentityBatchSampler
from ascl.image_copy.training.sscd import SscdModel, SscdObjective
from ascl.image_copy.training.validation import make_validation_set, validate
from ascl.images.find import images_of, stem_of
from ascl.images.read import SquarePixels
from ascl.settings.image_copy import CopyConfig
from ascl.training.batches import TrainBatches
from ascl.training.checkpoints import Progress
from ascl.training.loop import LoopSettings, StepLoss
from ascl.training.optimizer import build_optimizer
from ascl.training.run import loop_settings, train_run
from ascl.training.schedule import Schedule, cosine, warmed_up

DEFAULT_FEATURE_DIM = 512
CENTERED_ON = 256  # views
IMAGES = "images.txt"  # file of a run that lists its training and validation images, in order


class CopyData(NamedTuple):
    """The images of a run; `skipped` lists (path, reason) of those that could not be read."""

    train: Photos
    validation: Photos
    skipped: list[tuple[Path, str]]


def build_data(config: CopyConfig) -> CopyData:
    """Return training and held-out images, in memory if `data.cache_side` is set."""
    settings = config.data
    for name, least in (("workers", 0), ("validation_images", 2), ("cache_side", 1)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise DataError(f"data.{name} is {value}: must be at least {least}")
    images = images_of(settings.images, ids="stem", strict=not settings.skip_unreadable)
    found, skipped = images.paths, [(Path(fault.path), fault.reason) for fault in images.faults]
    if settings.cache_side is None and settings.skip_unreadable:
        found, unreadable = readable(found, workers=settings.workers)
        skipped += unreadable
    train, validation = held_out(found, settings.validation_share, settings.validation_images)
    if settings.cache_side is None:
        return CopyData(Photos(train), Photos(validation), skipped)
    small, small_validation = (
        SmallImages(paths, settings.cache_side, workers=settings.workers, skip_unreadable=settings.skip_unreadable)
        for paths in (train, validation)
    )
    return CopyData(small, small_validation, [*skipped, *small.skipped, *small_validation.skipped])


def build_teacher(config: CopyConfig, train: Photos) -> Teacher | None:
    """Return the teacher of an RDCD run, or None without distillation."""
    if config.objective != "rdcd" and config.teacher.source is not None:
        raise DataError(f"teacher.source has no effect on {config.objective}, which has no distillation; leave it out")
    if config.objective != "rdcd" or config.rdcd.distillation == "none":
        return None
    if config.teacher.source is None:
        raise DataError("rdcd needs a teacher: set teacher.source, or set rdcd.distillation to none")
    return load_teacher(items=[stem_of(path) for path in train.paths], **asdict(config.teacher))


def descriptor_settings(config: CopyConfig, teacher: Teacher | None) -> DescriptorSettings:
    """Return the settings of a run's descriptor, with the sizes that depend on the teacher filled in."""
    values = asdict(config.model)
    del values["centred"]
    if values["feature_dim"] is None:
        relations = config.rdcd.distillation in ("rsd", "seed")
        values["feature_dim"] = teacher.dim if teacher is not None and relations else DEFAULT_FEATURE_DIM
    return DescriptorSettings(**values | {name: values[name] or None for name in ("feature_dim", "dim")})


def build_objective(
    config: CopyConfig, settings: DescriptorSettings, teacher: Teacher | None, classes: int
) -> tuple[nn.Module, StepLoss]:
    """Return the model to train, and its training step."""
    if config.objective == "sscd":
        return SscdModel(settings), SscdObjective(**asdict(config.sscd))
    if config.objective == "asl":
        return AslModel(settings, classes), AslObjective(**asdict(config.asl))
    values = asdict(config.rdcd)
    model = RdcdModel(
        settings, contrastive=config.rdcd.contrastive, distillation=config.rdcd.distillation,
        queue_size=values.pop("queue_size"), teacher_dim=None if teacher is None else teacher.dim,
    )
    return model, RdcdObjective(teacher=teacher, **values)


def build_batches(config: CopyConfig, train: Photos, process: int, processes: int) -> TrainBatches:
    """Return the training batches of one process; an image occurs at most once per epoch, in one process."""
    seed, size, workers, views = config.train.seed, config.views.size, config.data.workers, 1
    dataset: Views | Identities
    if config.objective == "asl":
        dataset = Identities(train, IdentityAugmentation(size), seed)
        views = len(dataset.augmentation.kinds)
    else:
        dataset = Views(train, augmentation_of(config.views.augmentation, size), seed)
    sampler = IdentityBatchSampler(len(train), config.train.batch_size, views, seed=seed)
    return TrainBatches(dataset, sampler, dataset.collate, workers=workers, process=process, processes=processes)


def center(model: Any, batches: TrainBatches, batch_size: int) -> None:
    """Center a fresh student on the first views of the run, and its momentum encoder with it."""
    first = itertools.islice(batches(0, 0), -(-CENTERED_ON // batch_size))
    model.student.center(torch.cat([batch.pixels.flatten(0, -4) for batch in first])[:CENTERED_ON])
    if isinstance(model, RdcdModel):
        model.restart_key()


def build_schedule(config: CopyConfig, loop: LoopSettings, processes: int) -> Schedule:
    """Return a cosine after a linear warm-up; `CopyOptimizerConfig` says how the batch size scales the rate."""
    settings = config.optimizer
    factor = config.train.batch_size * processes / 256 if settings.lr_per_256 else 1.0
    schedule = cosine(settings.lr * factor, final=settings.final_lr * factor, total_steps=loop.total_steps)
    return warmed_up(schedule, warmup_steps=round(settings.warmup_epochs * loop.steps_per_epoch))


def train(config: CopyConfig, *, resume: bool = False) -> Progress:
    """Train one descriptor and write everything to `config.out`: checkpoints, metrics, settings, environment.

    Raises DataError or FileNotFoundError for unsuitable images or settings, before the first step.
    """
    accelerator = make_accelerator(mixed_precision=config.train.mixed_precision)
    data = build_data(config)
    torch.manual_seed(config.train.seed)  # for the fresh weights
    with refused_settings():
        teacher = build_teacher(config, data.train)
        settings = descriptor_settings(config, teacher)
        model, objective = build_objective(config, settings, teacher, len(data.train))
        if config.train.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # as in the paper; torch has none for CPUs
        if teacher is not None:
            teacher.to(accelerator.device)
        batches = build_batches(config, data.train, accelerator.process_index, accelerator.num_processes)
        if config.model.centred and not resume:
            center(model, batches, config.train.batch_size)
        loop = loop_settings(config, batches.steps_per_epoch, select=config.train.select)
        learning_rate = build_schedule(config, loop, accelerator.num_processes)
        rates = config.optimizer
        optimizer = build_optimizer(model, lr=rates.lr, weight_decay=rates.weight_decay, kind=rates.kind,
                                    momentum=rates.momentum)
    prepare = SquarePixels(settings.input_size, settings.resize)
    held_back = make_validation_set(
        data.validation, data.train, prepare, seed=config.train.seed, workers=config.data.workers
    )
    images = [f"{side} {stem_of(path)}" for side in ("train", "validation") for path in getattr(data, side).paths]
    if resume:
        check_same_images(Path(config.out) / IMAGES, images)

    def validate_student(model: Any) -> dict[str, float]:
        describe = accelerator.autocast()(model.student.describe)  # not the search: bfloat16 would make false ties
        seen = validate(describe, held_back, device=accelerator.device, tolerance=config.train.rank_tolerance)
        if accelerator.is_main_process:
            for warning in seen.warnings:
                print(f"WARNING: {warning}", file=sys.stderr, flush=True)
        return seen.metrics | {"warnings": float(len(seen.warnings))}

    return train_run(
        config, accelerator, model, optimizer, batches=batches, step_loss=objective, validate=validate_student,
        learning_rate=learning_rate, settings=loop, resume=resume, described=described(config, data, model, teacher),
        extra={"descriptor": asdict(settings), "teacher": None if teacher is None else teacher.model},
        environment_extra={"teacher": None if teacher is None else {"model": teacher.model, **teacher.about},
                           "unreadable": [[path.name, reason] for path, reason in data.skipped]},
        files={IMAGES: "\n".join(images) + "\n"},
    )


def check_same_images(path: Path, images: list[str]) -> None:
    """Raise DataError if a resumed run has other images: classes, their order and the split depend on the images.

    `path` lists the images of the run's start, one `train ID` or `validation ID` per line. Images may not be added,
    removed, moved between training and validation, or reordered, and the list must exist.
    """
    if not os.path.lexists(path):
        raise DataError(f"{path} is gone, so the images of the run are unknown and it cannot resume; start a new run")
    began = read_text(path, "a list of images", "start a new run").removesuffix("\n").split("\n")
    if began != images:
        before, now = (dict(line.partition(" ")[::-2] for line in lines) for lines in (began, images))
        changed = sum(before[image] != now[image] for image in before.keys() & now.keys())
        raise DataError(f"the images are not those that the run began with ({path}): {len(now.keys() - before.keys())} "
                        f"were added, {len(before.keys() - now.keys())} removed, {changed} moved between training and "
                        "validation. Put them back, or start a new run")


def described(config: CopyConfig, data: CopyData, model: nn.Module, teacher: Teacher | None) -> list[str]:
    """Return the lines that a run prints at its start: what it is about to train."""
    student = model.get_submodule("student")
    cache = ""
    if config.data.cache_side is not None:
        size = sum(images.nbytes for images in data[:2] if isinstance(images, SmallImages)) / 2**20
        cache = f", in memory with short sides of {config.data.cache_side} pixels ({size:.0f} MiB)"
    lines = [f"{len(data.train)} images to train with, {len(data.validation)} held out{cache}",
             f"{config.objective}: {config.model.backbone}, feature {student.feature_dim}, descriptor {student.dim}; "
             f"{config.train.batch_size} originals per step"]
    if data.skipped:
        lines.append(f"skipped {len(data.skipped)} unreadable images, such as {data.skipped[0][0]}")
    if teacher is not None:
        lines.append(f"teacher: {teacher.model}, {teacher.dim} dimensions")
        if teacher.about.get("kind") == "cached":
            lines.append("the teacher's vectors are cached: it sees the images unedited, the student edited views")
    return lines
