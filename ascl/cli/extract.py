"""`ascl extract regions|globals|descriptors`: images in, one HDF5 file out.

Options of a backend have the names of its class's arguments. Those not given take the class's defaults; those that the
chosen backend does not have are refused.
"""

from __future__ import annotations

import functools
import inspect
import typing
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from ascl.cli.options import (
    INCOMPLETE,
    Answer,
    add_batch_size,
    add_describer,
    add_device,
    add_ids,
    add_image_files,
    add_workers,
    chosen_describer,
    ending,
    given_images,
    print_left_out,
    status_of,
)
from ascl.core.errors import SettingsError
from ascl.features.backends import BATCH_SIZE, GLOBAL_BACKENDS, REGION_BACKENDS, backend_class, make_backend
from ascl.settings.base import Parser

if TYPE_CHECKING:
    from ascl.features.writer import Extraction
    from ascl.images.find import FoundImages

BACKENDS_ARE = {
    "grid": "cells of a classifier's feature map", "patches": "patches of a vision encoder",
    "bottom-up": "boxes of the bottom-up-attention detector", "torchvision": "boxes of torchvision's Faster R-CNN",
    "detectron2": "boxes of a Faster R-CNN of detectron2 (to be installed separately)",
    "classifier": "the pooled map of a torchvision classifier", "encoder": "the pooled output of a vision encoder",
}
OF_BACKENDS: dict[str, tuple[Any, str]] = {     # option -> its type, its help
    "precision": (typing.Literal["float32", "bfloat16", "float16"], "precision of the network; null = float32"),
    "weights": (str, "default (the publisher's, downloaded), random:SEED, or a path; null = default; bottom-up needs a "
                "path or random:SEED"),
    "backbone": (str, "grid, classifier: name of a torchvision classifier; null = resnet152"),
    "layer": (str, "grid, classifier: torchvision's name of a layer, null = the last map; patches: number of a block, "
              "null = the last"),
    "input_size": (PositiveInt, "grid, classifier: side in pixels of the square that the network sees; null = 224"),
    "normalize": (typing.Literal["imagenet", "half", "none"], "grid, classifier: pixel scaling with which the weights "
                  "were trained: ImageNet's mean and std, half = [-1, 1], none = [0, 1]; null = imagenet"),
    "same_padding": (bool, "grid, classifier: pad stride-2 convolutions as TensorFlow does, for weights converted from "
                     "it"),
    "resize": (typing.Literal["squash", "crop", "processor"], "squash: scale the whole image to the square; crop "
               "(grid, classifier): scale its short side to 256/224 of the square's, and take the center; processor "
               "(patches, encoder): as the model's own processor does; null = squash for grid, crop for classifier, "
               "processor for patches and encoder"),
    "model": (str, "patches, encoder: vision encoder, a name on the Hugging Face hub or a folder"),
    "grid": (PositiveInt, "grid, patches: cells per side; null = 6, which makes 36 regions"),
    "config": (str, "detectron2: name of a model-zoo config, or a path"),
    "options": (list[str], "detectron2: changes to the config, alternating keys and values"),
    "selection": (str, "bottom-up: rule that selects the regions: fixed, raise-nms, single-nms or adaptive; null = "
                  "that of the weights' publisher"),
    "min_regions": (PositiveInt, "bottom-up: fewest regions per image; null = 36, 10 for adaptive"),
    "max_regions": (PositiveInt, "detectors: most regions per image; null = 36, 100 for adaptive"),
    "score_threshold": (float, "detectors: least score of a region, from 0 to 1, except for the first --min_regions; "
                        "null = 0, 0.2 for bottom-up"),
    "nms_threshold": (float, "detectors: overlap (IoU, from 0 to 1) of two boxes above which the weaker one is "
                      "removed; null = the detector's own"),
    "short_side": (PositiveInt, "bottom-up, torchvision: scale the short side of an image to N pixels; null = 600 for "
                   "bottom-up, 800 for torchvision"),
    "long_side": (PositiveInt, "bottom-up, torchvision: but the long side to at most N pixels; null = 1000 for "
                  "bottom-up, 1333 for torchvision"),
    "min_size": (PositiveInt, "detectron2: as --short_side; null = that of the config"),
    "max_size": (PositiveInt, "detectron2: as --long_side; null = that of the config"),
    "class_names": (str, "bottom-up: path of the publisher's objects_vocab.txt; null = classes have no names"),
    "attribute_names": (str, "bottom-up: path of the publisher's attributes_vocab.txt; null = attributes have no "
                        "names"),
}
OF_WHOLE_IMAGES = ("precision", "weights", "backbone", "layer", "input_size", "normalize", "same_padding", "resize",
                   "model")     # the options of global backends


def region_features_parser(prog: str) -> Parser:
    return extraction_parser(
        prog, "Extract region features of images into one HDF5 file, for data.features of ascl train.", REGION_BACKENDS
    )


def global_features_parser(prog: str) -> Parser:
    return extraction_parser(
        prog, "Extract one feature vector per image into one HDF5 file, for data.features of ascl train.",
        GLOBAL_BACKENDS,
    )


def extraction_parser(prog: str, description: str, kinds: tuple[str, ...]) -> Parser:
    parser = Parser(prog=prog, description=description)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", metavar="FOLDER", help="folder, searched at any depth, or a .txt file with one "
                        "path per line")
    source.add_argument("--dataset", help="data set (name of a file in configs/): extract the images that its captions "
                        "name, from its data.images folder")
    parser.add_argument("--out", required=True, metavar="FILE.h5",
                        help="HDF5 file to write; FILE.h5.parts/ holds the work in progress")
    add_resume(parser, "work that a stopped run left in FILE.h5.parts/")
    parser.add_argument("--shard", metavar="I/N",
                        help="extract only part I of N, on one of several machines; then ascl merge joins the parts")
    add_batch_size(parser, None, "most images of one shape per forward pass; null = 32, 4 for detectors")
    add_workers(parser)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16",
                        help="type of the features in the file")
    add_image_files(parser)
    add_ids(parser, "stem")
    parser.add_argument("--engine", choices=["local", "ray"], default="local",
                        help="local: this process; ray: actors of Ray Data, on the current cluster or this machine")
    parser.add_argument("--actors", type=PositiveInt, metavar="N",
                        help="ray: number of actors, each with a backend; null = as many as fit")
    parser.add_argument("--gpus_per_actor", type=float, metavar="N",
                        help="ray: GPUs per actor; null = 1 if the cluster has GPUs, else 0")
    add_device(parser)
    add_backend(parser, kinds)
    return parser


def region_features(options: Namespace) -> Answer:
    return extract(options)


def global_features(options: Namespace) -> Answer:
    return extract(options)


def extract(options: Namespace) -> Answer:
    from ascl.datasets.locate import data_set_images
    from ascl.features.cluster import on_ray
    from ascl.features.writer import Shard
    from ascl.features.writer import extract as extract_features
    from ascl.images.find import FoundImages

    if options.engine != "ray" and (options.actors or options.gpus_per_actor is not None):
        raise SettingsError("--actors and --gpus_per_actor need --engine ray")
    part = None if options.shard is None else Shard(*shard_of(options.shard))
    # before the backend, which is slow to load, so that a wrong folder is reported at once
    if options.images:
        images = given_images(options, options.images, ids=options.id)
    else:
        images = FoundImages(data_set_images(options.dataset))
    arguments = backend_arguments(options)
    compute, device = None, options.device
    if options.engine == "ray":
        make = functools.partial(make_backend, options.backend, arguments, options.device)
        gpus = 0.0 if options.device == "cpu" else options.gpus_per_actor
        compute, device = on_ray(make, actors=options.actors, gpus=gpus), "cpu"  # this process only reads the settings
    with ending("stopped; the same command with --resume continues from here"):
        done = extract_features(
            make_backend(options.backend, arguments, device), images, options.out,
            batch_size=options.batch_size or BATCH_SIZE.get(options.backend, 32), workers=options.workers,
            dtype=options.dtype, strict=options.strict, resume=options.resume,
            shard=part, compute=compute,
        )
    print(done.summary())
    print_left_out(images, images.faults)
    return Answer(result_of(done, images), INCOMPLETE if done.skipped else status_of(images.faults))


def result_of(done: Extraction, images: FoundImages) -> dict[str, Any]:
    """Return the result of an extraction as JSON values."""
    return {**vars(done), "passed_over": images.passed_over_values(),
            "skipped": [*({"image": fault.path, "reason": fault.reason} for fault in images.faults), *done.skipped]}


def add_resume(parser: Parser, left: str) -> None:
    parser.add_argument("--resume", action="store_true", help=f"continue with the {left}")


def shard_of(text: str) -> tuple[int, int]:
    """Parse a shard: "1/4" -> (1, 4)."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise SettingsError(f"--shard {text}: expected I/N with I from 1 to N, such as 1/4")
    return int(number), int(count)


def add_backend(parser: Parser, kinds: tuple[str, ...]) -> None:
    """Add the options of these backends; the first is the default."""
    group = parser.add_argument_group("backend")
    group.add_argument("--backend", choices=list(kinds), default=kinds[0],
                       help="source of the features. " + "; ".join(f"{kind}: {BACKENDS_ARE[kind]}" for kind in kinds))
    for name, (kind, help) in OF_BACKENDS.items():
        if "grid" not in kinds and name not in OF_WHOLE_IMAGES:
            continue
        if kind is bool:
            group.add_argument(f"--{name}", action="store_true", help=help)
        elif kind == list[str]:
            group.add_argument(f"--{name}", nargs="+", metavar="KEY VALUE", help=help)
        else:
            group.add_argument(f"--{name}", type=kind, help=help)


def given_backend_options(options: Namespace) -> list[str]:
    """Return the options of backends that are on the command line."""
    return [name for name in OF_BACKENDS if name in options.given]


def chosen_backend(options: Namespace) -> Any:
    """Return the chosen backend, ready to extract."""
    return make_backend(options.backend, backend_arguments(options), options.device)


def backend_arguments(options: Namespace) -> dict[str, Any]:
    """Return the given options as arguments of the chosen backend's class.

    Raises:
        SettingsError: an option is not one of this backend's, is missing, or has an impossible value.
    """
    kind = options.backend
    known = inspect.signature(backend_class(kind), eval_str=True).parameters
    arguments = {name: options[name] for name in given_backend_options(options)}
    takes = ", ".join(f"--{name}" for name in OF_BACKENDS if name in known)
    for name, value in arguments.items():
        if name not in known:
            raise SettingsError(f"--{name} is not an option of --backend {kind}, which takes {takes}")
        hint = without_none(known[name].annotation)
        allowed = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        if allowed and value not in allowed:
            raise SettingsError(f"--{name} {value}: --backend {kind} takes {', '.join(allowed)}")
        if hint is int and not isinstance(value, int):
            try:
                arguments[name] = int(value)
            except ValueError:
                raise SettingsError(f"--{name} {value}: expected a whole number") from None
        if hint is str and Path(value).exists():
            arguments[name] = str(Path(value).absolute())  # an actor may have another working directory
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in arguments:
            raise SettingsError(f"--backend {kind} needs --{name}")
    return arguments


def without_none(hint: Any) -> Any:
    """Return `X` of `X | None`."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if type(None) in typing.get_args(hint) and len(kinds) == 1 else hint


def descriptors_parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog, description="Extract one copy-detection descriptor per image into one HDF5 file, for ascl copy eval "
        "or as the teacher of RDCD. Descriptors have length 1; `norms` are the content norms. With --queries the file "
        "is a submission to DISC2021's descriptor track: queries and references sorted by id, at most 256 dimensions, "
        "no norms.",
    )
    parser.add_argument("--images", required=True, metavar="FOLDER",
                        help="folder, searched at any depth, or a .txt file with one path per line")
    parser.add_argument("--queries", metavar="FOLDER", help="folder or .txt file of query images: write a DISC2021 "
                        "submission, with --images as its references")
    parser.add_argument("--out", required=True, metavar="FILE.h5", help="HDF5 file to write; must not exist")
    add_describer(parser, required=True)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="float32",
                        help="precision of the network")
    add_device(parser)
    add_batch_size(parser, 64)
    add_workers(parser)
    add_image_files(parser)
    add_ids(parser, "stem")
    add_resume(parser, "work that a stopped run left")
    return parser


def descriptors(options: Namespace) -> Answer:
    from ascl.image_copy.descriptors.choice import make_network_describer
    from ascl.image_copy.descriptors.extract import extract_descriptors, extract_submission
    from ascl.images.backbones import pick_device

    choice = chosen_describer(options)
    images = given_images(options, options.images, ids=options.id)
    queries = given_images(options, options.queries, ids=options.id) if options.queries else None
    describer = make_network_describer(choice, pick_device(options.device), options.precision)
    how = {"batch_size": options.batch_size, "workers": options.workers, "strict": options.strict,
           "resume": options.resume}
    with ending("stopped; the same command with --resume continues from here"):
        if queries is None:
            done = [extract_descriptors(describer, images, options.out, **how)]
        else:
            done = extract_submission(describer, queries, images, options.out, **how)
    for one in done:
        print(one.summary())
    sides = [images] if queries is None else [queries, images]
    for side in sides:
        print_left_out(side, side.faults)
    if queries is not None:
        counts = [one.shapes["vectors"][0] for one in done]
        print(f"{options.out}: {counts[0]} queries and {counts[1]} references")
    status = INCOMPLETE if any(one.skipped for one in done) else max(status_of(side.faults) for side in sides)
    return Answer([result_of(one, side) for one, side in zip(done, sides, strict=True)], status)
