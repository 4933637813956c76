"""Small photos and small networks for the tests of training: everything is drawn, nothing is downloaded."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from ascl.image_copy.descriptors.descriptor import Descriptor, DescriptorSettings
from ascl.images.read import load_image

BACKBONE = "shufflenet_v2_x0_5"  # with batch norm, 1,024 channels, some milliseconds for a small image
TEACHER = "squeezenet1_1"  # needs no batch norm; 1,000 channels, built three times as fast
SIDE = 32


def tiny(**changes) -> DescriptorSettings:
    """A student of SIDE pixels with random weights."""
    values = {"backbone": BACKBONE, "weights": "random:0", "feature_dim": 16, "dim": 8, "input_size": SIDE}
    return DescriptorSettings(**values | changes)


def pictures(count: int, *, seed: int = 0) -> torch.Tensor:
    """(count, 3, SIDE, SIDE) uint8 of coarse random squares; noise of single pixels would all look the same."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(0, 256, (count, 3, 4, 4), generator=generator, dtype=torch.uint8)
    return coarse.repeat_interleave(SIDE // 4, dim=2).repeat_interleave(SIDE // 4, dim=3)


def calibrated(model: Descriptor) -> Descriptor:
    """In evaluation mode, batch norm set to what it sees: an untrained network else gives all images one vector."""
    norms = [module for module in model.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    for momentum in (1.0, 0.1):
        for module in norms:
            module.momentum = momentum
        if momentum == 1.0:
            with torch.no_grad():
                model.train()(pictures(32, seed=77))
    return model.eval()


def described_alone(describer, paths: list[Path]) -> tuple[list[str], np.ndarray, np.ndarray | None]:
    """Names, vectors and norms of images that a describer sees one by one."""
    made = [describer([describer.prepare(load_image(path).image)]) for path in paths]
    norms = None if made[0][1] is None else np.concatenate([norm for _, norm in made])
    return [path.stem for path in paths], np.concatenate([vector for vector, _ in made]), norms


def save_photos(folder: Path, count: int, *, seed: int = 0) -> Path:
    """`count` pictures of a few coloured rectangles each, 40 x 48 to 60 x 48 pixels, as PNG."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        width = int(rng.integers(40, 61))
        pixels = np.full((48, width, 3), rng.integers(0, 256, 3), dtype=np.uint8)
        for _ in range(6):
            (top, left), (height, across) = rng.integers(0, (40, width - 8)), rng.integers(4, 24, 2)
            pixels[top : top + height, left : left + across] = rng.integers(0, 256, 3)
        Image.fromarray(pixels).save(folder / f"photo{number:03d}.png")
    return folder


def train_arguments(method: str, images: Path, out: Path, *more: str) -> list[str]:
    """A command line of tools/train_copy.py: 6 steps, 4 of them an epoch, on tiny pictures."""
    sizes = ["--model.projector_dim", "8", "--model.projector_hidden", "12"] if method == "asl" else ["--dim", "8"]
    teacher = ["--teacher", TEACHER, "--teacher.weights", "random:1"] if method == "rdcd" else []
    return [
        "--method", method, "--images", str(images), "--out", str(out), "--backbone", BACKBONE, "--weights", "random:0",
        "--model.last_stride", "2", "--model.input_size", str(SIDE), "--views.size", str(SIDE), *sizes, *teacher,
        "--data.validation_share", "0.2", "--data.workers", "0", "--rdcd.queue_size", "13", "--train.batch_size", "5",
        "--train.epochs", "2", "--train.max_steps", "6", "--train.validate_every", "3", "--train.log_every", "1",
        "--optimizer.lr", "0.01", "--optimizer.warmup_epochs", "0.5", *more,
    ]
