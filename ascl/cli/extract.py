"""The command line that the extraction programs share: one set of options, one way to run and to fail.

Options of a backend are named as its class's arguments; those not given take the class's own defaults, and one that
the chosen backend does not have is refused.
"""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ascl.core.errors import DataError
from ascl.features.backends import BATCH_SIZE, backend_class, make_backend
from ascl.features.cluster import on_ray
from ascl.features.writer import Shard, extract
from ascl.images.read import images_of

BACKEND_OPTIONS = (
    "backbone", "weights", "layer", "input_size", "resize", "normalize", "same_padding", "grid", "model", "config",
    "options", "selection", "min_regions", "max_regions", "score_threshold", "nms_threshold", "short_side", "long_side",
    "min_size", "max_size", "class_names", "attribute_names", "precision",
)


def given_backend_options(options: argparse.Namespace) -> list[str]:
    """Flags of backends that the command line has."""
    return [flag(name) for name in BACKEND_OPTIONS if hasattr(options, name)]


def add_backend_options(parser: argparse.ArgumentParser, kinds: tuple[str, ...]) -> None:
    """Options of all these backends; the first is the default."""
    parser.add_argument("--backend", choices=kinds, default=kinds[0], help="what makes the features")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")

    def add(*names: str, **settings: Any) -> None:
        parser.add_argument(*names, default=argparse.SUPPRESS, **settings)

    add("--precision", choices=("float32", "bfloat16", "float16"), help="of the products; float32 if not said")
    add("--weights", help="default (the publisher's, downloaded), random:SEED, or a path")
    if {"grid", "classifier"} & {*kinds}:
        add("--backbone", help="grid, classifier: any torchvision classifier by name, resnet152 if not said")
        add("--layer", help="grid, classifier: torchvision's name of a layer, the last map if not said; patches: "
            "number of the block, the last if not said")
        add("--input-size", type=positive, help="grid, classifier: side in pixels of the square that goes in, 224")
        add("--normalize", choices=("imagenet", "half", "none"),
            help="grid, classifier: ImageNet's mean and std, [-1, 1], or [0, 1]: what the weights were trained with")
        add("--same-padding", action="store_true",
            help="grid, classifier: pad stride-2 convolutions as TensorFlow, for weights from there")
        add("--resize", choices=("squash", "crop", "processor"),
            help="squash: the whole image to a square; crop: short side to 256/224 of the input size, then the centre; "
            "processor (patches, encoder): as the model's own processor")
    if {"patches", "encoder"} & {*kinds}:
        add("--model", help="patches, encoder: name on the Hugging Face hub or folder of a vision encoder")
    if "grid" in kinds:
        add("--grid", type=positive, help="grid, patches: cells on a side; 6, which makes 36 regions, if not said")
        add("--config", help="detectron2: name of a model-zoo config or a path")
        add("--options", nargs="+", metavar="KEY VALUE", help="detectron2: settings of the config to change")
        add("--selection", help="bottom-up: rule that picks the regions; the one of the weights if not said")
        add("--min-regions", type=positive, help="bottom-up: fewest regions of an image, 36")
        add("--max-regions", type=positive, help="detectors: most regions of an image, 36")
        add("--score-threshold", type=float, help="detectors: a region beyond the fewest has at least this score")
        add("--nms-threshold", type=float, help="detectors: overlap above which the weaker of two boxes goes")
        add("--short-side", type=positive, help="bottom-up, torchvision: pixels to which the image is scaled")
        add("--long-side", type=positive, help="bottom-up, torchvision: and at most this many for the long side")
        add("--min-size", type=positive, help="detectron2: as --short-side; the config's if not said")
        add("--max-size", type=positive, help="detectron2: as --long-side; the config's if not said")
        add("--class-names", help="bottom-up: the publisher's objects_vocab.txt")
        add("--attribute-names", help="bottom-up: the publisher's attributes_vocab.txt")


def backend_arguments(options: argparse.Namespace) -> dict[str, Any]:
    """The given options as arguments of the chosen backend's class.

    Raises:
        DataError: an option that this backend does not have, lacks, or has with other values.
    """
    kind = options.backend
    known = inspect.signature(backend_class(kind), eval_str=True).parameters
    arguments = {name: getattr(options, name) for name in BACKEND_OPTIONS if hasattr(options, name)}
    takes = ", ".join(flag(name) for name in BACKEND_OPTIONS if name in known)
    for name, value in arguments.items():
        if name not in known:
            raise DataError(f"{flag(name)} is nothing for --backend {kind}, which takes {takes}")
        hint = without_none(known[name].annotation)
        allowed = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        if allowed and value not in allowed:
            raise DataError(f"{flag(name)} {value}: --backend {kind} has {', '.join(allowed)}")
        if hint is int and not isinstance(value, int):
            arguments[name] = whole_number(name, value)
        if hint is str and Path(value).exists():
            arguments[name] = str(Path(value).absolute())  # an actor on another machine may stand elsewhere
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in arguments:
            raise DataError(f"--backend {kind} needs {flag(name)}")
    return arguments


def without_none(hint: Any) -> Any:
    """`X` of `X | None`."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if type(None) in typing.get_args(hint) and len(kinds) == 1 else hint


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def whole_number(name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{flag(name)} {text}: a whole number is wanted") from None


def extraction_parser(description: str, kinds: tuple[str, ...]) -> argparse.ArgumentParser:
    """Options of a program that extracts features with one of these backends."""
    parser = argparse.ArgumentParser(description=description, allow_abbrev=False)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--images", help="folder, searched at any depth, or a .txt with a path a line; an image's id is its stem"
    )
    source.add_argument("--dataset", help="name of a file in configs/: the images of its captions, from its folder")
    parser.add_argument("--out", required=True, help="HDF5 file to write; OUT.parts/ holds the work in progress")
    parser.add_argument("--resume", action="store_true", help="go on with what a stopped run left in OUT.parts/")
    parser.add_argument("--shard", type=shard, metavar="I/N", help="only part I of N, for several machines; "
                        "tools/merge_features.py joins them")
    parser.add_argument("--batch-size", type=positive, help="most images of one shape in a forward pass")
    parser.add_argument("--workers", type=natural, default=2, help="processes that decode images; 0 = none apart")
    parser.add_argument("--dtype", choices=("float16", "float32"), default="float16", help="of the features on disk")
    parser.add_argument(
        "--skip-unreadable", action="store_true", help="leave unreadable images out and list them, instead of stopping"
    )
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: by actors of Ray Data, on "
                        "the cluster at hand or on this machine")
    parser.add_argument("--actors", type=positive, help="ray: backends at work at a time; as many as fit if not said")
    parser.add_argument("--gpus-per-actor", type=float, help="ray: GPUs of each backend; one where the cluster has "
                        "any if not said")
    add_backend_options(parser, kinds)
    return parser


def positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not at least 1")
    return int(text)


def natural(text: str) -> int:
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} is not at least 0")
    return int(text)


def shard(text: str) -> Shard:
    number, _, count = text.partition("/")
    try:
        return Shard(int(number), int(count))
    except ValueError as error:  # a DataError is one too
        raise argparse.ArgumentTypeError(f"{text} is no shard such as 1/4 ({error})") from None


def run_extraction(options: argparse.Namespace, dataset_images: Callable[[str], list[Path]]) -> int:
    """Extract and print the summary; what a user can mend is printed without a traceback. Returns the exit status."""
    try:
        # Before the backend: a wrong folder is told at once.
        images = images_of(options.images) if options.images else dataset_images(options.dataset)
        arguments = backend_arguments(options)
        compute, device = None, options.device
        if options.engine == "ray":
            make = functools.partial(make_backend, options.backend, arguments, options.device)
            gpus = 0.0 if options.device == "cpu" else options.gpus_per_actor
            compute, device = on_ray(make, actors=options.actors, gpus=gpus), "cpu"  # here only settings are asked for
        elif options.actors or options.gpus_per_actor is not None:
            raise DataError("--actors and --gpus-per-actor are for --engine ray")
        done = extract(
            make_backend(options.backend, arguments, device),
            images,
            options.out,
            batch_size=options.batch_size or BATCH_SIZE.get(options.backend, 32),
            workers=options.workers,
            dtype=options.dtype,
            skip_unreadable=options.skip_unreadable,
            resume=options.resume,
            shard=options.shard,
            compute=compute,
        )
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command with --resume goes on from here", file=sys.stderr)
        return 130
    print(done.summary())
    return 0
