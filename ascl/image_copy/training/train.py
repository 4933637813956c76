"""A training run of copy detection, from settings to files: what `tools/train_copy.py` calls."""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from ascl.core.errors import DataError
from ascl.core.files import write_text
from ascl.core.provenance import environment, refused_settings
from ascl.image_copy.descriptors.descriptor import DescriptorSettings
from ascl.image_copy.descriptors.teachers import Teacher, load_teacher
from ascl.image_copy.edits.augment import IdentityAugmentation, augmentation_of
from ascl.image_copy.training.data import Identities, ImageFiles, SmallImages, TrainBatches, Views, held_out, readable
from ascl.image_copy.training.objective import (
    AslModel,
    AslObjective,
    RdcdModel,
    RdcdObjective,
    SscdModel,
    SscdObjective,
)
from ascl.image_copy.training.validation import make_validation_set, validate
from ascl.images.read import SquarePixels, find_images, listed_images
from ascl.settings.base import to_dict
from ascl.settings.image_copy import CopyConfig
from ascl.training.distributed import make_accelerator
from ascl.training.loop import LoopSettings, Progress, StepLoss, check_start, fit
from ascl.training.schedule import Schedule, cosine, warmed_up

DEFAULT_FEATURE_DIM = 512
CENTRED_ON = 256  # views
IMAGES = "images.txt"  # of a run: what it was trained and validated with, in order


@dataclass(frozen=True)
class CopyData:
    """Images of a run. skipped: (path, reason) of those that could not be read."""

    train: ImageFiles
    validation: ImageFiles
    skipped: list[tuple[Path, str]]


def images_of(source: str) -> list[Path]:
    """A folder's images, or those that a .txt names, one a line."""
    if not source:
        raise DataError("no images: give --images FOLDER")
    return listed_images(source) if source.endswith(".txt") and not Path(source).is_dir() else find_images(source)


def build_data(config: CopyConfig) -> CopyData:
    """Training and held-out images, in memory where `data.cache_side` says so."""
    settings = config.data
    for name, least in (("workers", 0), ("validation_images", 2), ("cache_side", 1)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise DataError(f"data.{name} is {value}: has to be at least {least}")
    found = images_of(settings.images)
    skipped: list[tuple[Path, str]] = []
    if settings.cache_side is None and settings.skip_unreadable:
        found, skipped = readable(found, workers=settings.workers)
    train, validation = held_out(found, settings.validation_share, settings.validation_images)
    if settings.cache_side is None:
        return CopyData(ImageFiles(train), ImageFiles(validation), skipped)
    cached = [
        SmallImages(paths, settings.cache_side, workers=settings.workers, skip_unreadable=settings.skip_unreadable)
        for paths in (train, validation)
    ]
    return CopyData(cached[0], cached[1], [skip for one in cached for skip in one.skipped])


def build_teacher(config: CopyConfig, train: ImageFiles) -> Teacher | None:
    """The teacher of an RDCD run, None where nothing is distilled."""
    settings = config.teacher
    wanted = config.objective == "rdcd" and config.rdcd.distillation != "none"
    if not wanted:
        if settings.source is not None and config.objective != "rdcd":
            raise DataError(f"--teacher says nothing to {config.objective}, which distils nothing; leave it out")
        return None
    if settings.source is None:
        raise DataError("rdcd follows a teacher: give --teacher, or set rdcd.distillation to none")
    return load_teacher(
        settings.source, items=[path.stem for path in train.paths], weights=settings.weights,
        same_padding=settings.same_padding, normalize=settings.normalize, pool=settings.pool,
        image_size=settings.image_size, output=settings.output,
    )


def descriptor_settings(config: CopyConfig, teacher: Teacher | None) -> DescriptorSettings:
    """The descriptor of a run, with the sizes that depend on the teacher filled in."""
    model = config.model
    feature_dim = model.feature_dim
    if feature_dim is None:
        relations = teacher is not None and config.rdcd.distillation in ("rsd", "seed")
        feature_dim = teacher.dim if teacher is not None and relations else DEFAULT_FEATURE_DIM
    return DescriptorSettings(
        backbone=model.backbone, weights=model.weights, same_padding=model.same_padding, normalize=model.normalize,
        last_stride=model.last_stride, pool=model.pool, feature_dim=feature_dim or None, dim=model.dim or None,
        projector_hidden=model.projector_hidden, projector_dim=model.projector_dim, norm_of=model.norm_of,
        freeze_batch_norm=model.freeze_batch_norm, input_size=model.input_size, resize=model.resize,
    )


def build_objective(
    config: CopyConfig, settings: DescriptorSettings, teacher: Teacher | None, classes: int
) -> tuple[nn.Module, StepLoss]:
    """What is trained, and its step."""
    if config.objective == "sscd":
        return SscdModel(settings), SscdObjective(**asdict(config.sscd))
    if config.objective == "rdcd":
        values = asdict(config.rdcd)
        model = RdcdModel(
            settings, contrastive=config.rdcd.contrastive, distillation=config.rdcd.distillation,
            queue_size=values.pop("queue_size"), teacher_dim=None if teacher is None else teacher.dim,
        )
        return model, RdcdObjective(teacher=teacher, **values)
    return AslModel(settings, classes), AslObjective(**asdict(config.asl))


def build_batches(config: CopyConfig, train: ImageFiles, process: int, processes: int) -> TrainBatches:
    """The training batches of one process."""
    seed, size = config.train.seed, config.views.size
    dataset: Views | Identities
    if config.objective == "asl":
        augmentation = IdentityAugmentation(size)
        dataset, images = Identities(train, augmentation, seed), len(augmentation.kinds)
    else:
        dataset, images = Views(train, augmentation_of(config.views.augmentation, size), seed), 1
    return TrainBatches(
        dataset, identities=config.train.batch_size, images=images, seed=seed, workers=config.data.workers,
        process=process, processes=processes,
    )


def centre(model: Any, batches: TrainBatches, batch_size: int) -> None:
    """Centre a fresh student on the first views of the run, and its momentum encoder with it."""
    pixels: list[torch.Tensor] = []
    for batch in itertools.islice(batches(0, 0), -(-CENTRED_ON // batch_size)):
        pixels += batch.pixels.flatten(0, -4)
    model.student.centre(torch.stack(pixels[:CENTRED_ON]))
    if isinstance(model, RdcdModel):
        model.restart_key()


def build_optimizer(config: CopyConfig, model: nn.Module) -> torch.optim.Optimizer:
    """SGD with momentum or Adam over everything that is trained."""
    settings = config.optimizer
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if settings.kind == "adam":
        return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay)
    return torch.optim.SGD(
        parameters, lr=settings.lr, momentum=settings.momentum, weight_decay=settings.weight_decay
    )


def build_schedule(config: CopyConfig, steps_per_epoch: int, processes: int) -> Schedule:
    """Cosine by step after a linear warm-up; see `CopyOptimizerConfig` for the rate's dependence on the batch."""
    settings = config.optimizer
    total = config.train.epochs * steps_per_epoch
    if config.train.max_steps is not None:
        total = min(total, config.train.max_steps)
    factor = config.train.batch_size * processes / 256 if settings.lr_per_256 else 1.0
    schedule = cosine(settings.lr * factor, final=settings.final_lr * factor, total_steps=total)
    return warmed_up(schedule, warmup_steps=round(settings.warmup_epochs * steps_per_epoch))


def train(config: CopyConfig, *, resume: bool = False) -> Progress:
    """Train one descriptor and leave everything in `config.out`: checkpoints, metrics, settings, environment.

    Raises:
        DataError, FileNotFoundError: images or settings that do not fit, before the first step.
    """
    out = Path(config.out)
    accelerator = make_accelerator(mixed_precision=config.train.mixed_precision)
    data = build_data(config)
    torch.manual_seed(config.train.seed)  # of the fresh weights
    with refused_settings():
        teacher = build_teacher(config, data.train)
        settings = descriptor_settings(config, teacher)
        model, objective = build_objective(config, settings, teacher, len(data.train))
        if config.train.channels_last:
            model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if accelerator.num_processes > 1 and accelerator.device.type == "cuda":
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # the paper's; torch has none for CPUs
        if teacher is not None:
            teacher.to(accelerator.device)
        batches = build_batches(config, data.train, accelerator.process_index, accelerator.num_processes)
        if config.model.centred and not resume:
            centre(model, batches, config.train.batch_size)
        learning_rate = build_schedule(config, batches.steps_per_epoch, accelerator.num_processes)
        optimizer = build_optimizer(config, model)
    held_back = make_validation_set(
        data.validation, data.train, SquarePixels(settings.input_size, settings.resize), seed=config.train.seed,
        workers=config.data.workers,
    )
    loop = LoopSettings(
        epochs=config.train.epochs, steps_per_epoch=batches.steps_per_epoch, seed=config.train.seed,
        max_steps=config.train.max_steps, clip_norm=config.optimizer.clip_norm,
        validate_every=config.train.validate_every, checkpoint_every=config.train.checkpoint_every,
        log_every=config.train.log_every, select=config.train.select,
    )
    check_start(accelerator, model, optimizer, settings=loop, folder=out, resume=resume)
    images = [f"{side} {path.stem}" for side, one in (("train", data.train), ("validation", data.validation))
              for path in one.paths]
    if resume:
        check_same_images(out / IMAGES, images)
    if accelerator.is_main_process:
        out.mkdir(parents=True, exist_ok=True)
        if not resume:
            write_text(out / IMAGES, "\n".join(images) + "\n")
        write_text(out / "settings.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
        if not resume:  # a resumed run keeps what it was started with; its log has the rest
            about = {**environment(), "teacher": None if teacher is None else {"model": teacher.model, **teacher.about},
                     "unreadable": [[path.name, reason] for path, reason in data.skipped]}
            write_text(out / "environment.json", json.dumps(about, indent=2) + "\n")
        for line in described_run(config, data, model, teacher, loop):
            print(line, flush=True)

    def validate_student(model: Any) -> dict[str, float]:
        def describe(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            with accelerator.autocast():  # the networks alone: a search in bfloat16 would count false ties
                return model.student.describe(pixels)

        seen = validate(describe, held_back, device=accelerator.device, tolerance=config.train.rank_tolerance)
        if accelerator.is_main_process:
            for warning in seen.warnings:
                print(f"WARNING: {warning}", file=sys.stderr, flush=True)
        return seen.figures | {"warnings": float(len(seen.warnings))}

    extra = {
        "settings": to_dict(config), "descriptor": asdict(settings),
        "teacher": None if teacher is None else teacher.model,
    }
    return fit(
        accelerator, model, optimizer, train_batches=batches, step_loss=objective, validate=validate_student,
        learning_rate=learning_rate, settings=loop, folder=out, resume=resume, extra=extra,
    )


def check_same_images(path: Path, images: list[str]) -> None:
    """Refuse to go on with other images: rows of queues and classes, order and the held-out side go by their places.

    Args:
        path: what the run began with, `train ID` or `validation ID` a line.

    Raises:
        DataError: the list is gone, or images came, went, or changed sides or places.
    """
    if not path.exists():
        raise DataError(f"{path} is gone: which images the run was trained with is not known, so it cannot go on")
    began = path.read_text(encoding="utf-8").splitlines()
    if began != images:
        before, now = ({line.partition(" ")[2]: line for line in lines} for lines in (began, images))
        changed = sum(before[image] != now[image] for image in before.keys() & now.keys())
        raise DataError(
            f"the images are not those that the run began with ({path}): {len(now.keys() - before.keys())} came, "
            f"{len(before.keys() - now.keys())} went, {changed} changed between training and validation. Put them "
            "back, or start a new run"
        )


def described_run(
    config: CopyConfig, data: CopyData, model: nn.Module, teacher: Teacher | None, loop: LoopSettings
) -> list[str]:
    """What is about to be trained, in the lines that a run begins with."""
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    student = model.get_submodule("student")
    cache = ""
    if isinstance(data.train, SmallImages) and isinstance(data.validation, SmallImages):
        size = (data.train.nbytes + data.validation.nbytes) / 2**20
        cache = f", in memory with short sides of {config.data.cache_side} pixels ({size:.0f} MiB)"
    lines = [
        f"{len(data.train)} images to train with, {len(data.validation)} held out{cache}",
        f"{config.objective}: {config.model.backbone}, feature {student.feature_dim}, descriptor {student.dim}; "
        f"{trained / 1e6:.1f} M trained parameters; {loop.total_steps} steps of {config.train.batch_size} originals, "
        f"{loop.steps_per_epoch} an epoch; run folder {config.out}",
    ]
    if data.skipped:
        lines.append(f"{len(data.skipped)} unreadable images were left out, such as {data.skipped[0][0]}")
    if teacher is not None:
        lines.append(f"teacher: {teacher.model}, {teacher.dim} dimensions")
        if teacher.about.get("kind") == "cached":
            lines.append("the teacher's vectors are cached: it sees the images unedited, the student edited views")
    return lines

