"""The command line that the two extraction programs share: one set of options, one way to run and to fail."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from ascl.errors import DataError
from ascl.features.backbones import pick_device
from ascl.features.images import find_images
from ascl.features.writer import Backend, extract


def extraction_parser(description: str, *, resize: str) -> argparse.ArgumentParser:
    """Options of every extraction with a torchvision backbone; `resize` is the default that suits the features."""
    parser = argparse.ArgumentParser(
        description=f"{description} A run that was stopped goes on when the same command is given again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--images", required=True, help="folder, searched at any depth; an image's id is its stem")
    parser.add_argument("--out", required=True, help="HDF5 file to write; OUT.parts/ holds the work in progress")
    parser.add_argument("--backbone", default="resnet152", help="any torchvision classifier by name")
    parser.add_argument("--weights", default="default", help="default (downloaded), random:SEED, or a path")
    parser.add_argument("--layer", help="torchvision's name of a layer, such as layer3; by default the last map")
    parser.add_argument("--input-size", type=positive, default=224, help="side in pixels of the square that goes in")
    parser.add_argument(
        "--resize",
        choices=("squash", "crop"),
        default=resize,
        help="squash: the whole image to a square; crop: short side to 256/224 of the input size, then the centre",
    )
    parser.add_argument(
        "--normalize",
        choices=("imagenet", "half", "none"),
        default="imagenet",
        help="ImageNet's mean and std, [-1, 1], or [0, 1]: what the weights were trained with",
    )
    parser.add_argument(
        "--same-padding", action="store_true", help="pad stride-2 convolutions as TensorFlow, for weights from there"
    )
    parser.add_argument("--batch-size", type=positive, default=32, help="images a forward pass")
    parser.add_argument("--workers", type=natural, default=2, help="processes that decode images; 0 = none apart")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the features on disk")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave unreadable images out and list them, instead of stopping"
    )
    return parser


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def natural(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0")
    return int(text)


def backbone_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The options that `GridBackend` and `GlobalBackend` take alike."""
    names = ("backbone", "weights", "layer", "input_size", "resize", "normalize", "same_padding")
    return {name: getattr(options, name) for name in names} | {"device": pick_device(options.device)}


def run_extraction(options: argparse.Namespace, make_backend: Any) -> int:
    """Extract and print the summary; what a user can mend is printed without a traceback. Returns the exit status."""
    try:
        images = find_images(options.images)  # before the backbone: a wrong folder is told at once
        backend: Backend = make_backend(options)
        done = extract(
            backend,
            images,
            options.out,
            batch_size=options.batch_size,
            workers=options.workers,
            dtype=options.dtype,
            skip_unreadable=options.skip_unreadable,
        )
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(done.summary())
    return 0
