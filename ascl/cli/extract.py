"""`ascl extract regions|globals|descriptors`: images in, one HDF5 file out.

Options of a backend are named as its class's arguments; those not given take the class's own defaults, and one that
the chosen backend does not have is refused.
"""

from __future__ import annotations

import functools
import inspect
import typing
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from ascl.cli.options import (
    Answer,
    add_batch_size,
    add_describer,
    add_device,
    add_skip_unreadable,
    add_workers,
    chosen_describer,
    ending,
)
from ascl.core.errors import SettingsError
from ascl.features.backends import BATCH_SIZE, GLOBAL_BACKENDS, REGION_BACKENDS, backend_class, make_backend
from ascl.settings.base import Parser

OF_BACKENDS: dict[str, tuple[Any, str]] = {     # option -> its type, its help
    "precision": (typing.Literal["float32", "bfloat16", "float16"], "type of the matrix products; null = float32"),
    "weights": (str, "default (the publisher's, downloaded), random:SEED, or a path"),
    "backbone": (str, "grid, classifier: any torchvision classifier by name; null = resnet152"),
    "layer": (str, "grid, classifier: torchvision's name of a layer, null = the last map; patches: number of the "
    "block, "
              "null = the last"),
    "input_size": (PositiveInt, "grid, classifier: side in pixels of the square that goes in; null = 224"),
    "normalize": (typing.Literal["imagenet", "half", "none"], "grid, classifier: ImageNet's mean and std, [-1, 1], or "
                  "[0, 1]: what the weights were trained with; null = imagenet"),
    "same_padding": (bool, "grid, classifier: pad stride-2 convolutions as TensorFlow does, for weights from there"),
    "resize": (typing.Literal["squash", "crop", "processor"], "squash: the whole image to a square; crop: short side "
    "to "
               "256/224 of the input size, then the center; processor (patches, encoder): as the model's own "
               "processor"),
    "model": (str, "patches, encoder: name on the Hugging Face hub or folder of a vision encoder"),
    "grid": (PositiveInt, "grid, patches: cells on a side; null = 6, which makes 36 regions"),
    "config": (str, "detectron2: name of a model-zoo config or a path"),
    "options": (list[str], "detectron2: settings of the config to change, key and value in turn"),
    "selection": (str, "bottom-up: rule that picks the regions; null = the one of the weights"),
    "min_regions": (PositiveInt, "bottom-up: fewest regions of an image; null = 36"),
    "max_regions": (PositiveInt, "detectors: most regions of an image; null = 36"),
    "score_threshold": (float, "detectors: a region beyond the fewest has at least this score"),
    "nms_threshold": (float, "detectors: overlap above which the weaker of two boxes goes"),
    "short_side": (PositiveInt, "bottom-up, torchvision: pixels to which the image is scaled"),
    "long_side": (PositiveInt, "bottom-up, torchvision: and at most this many for the long side"),
    "min_size": (PositiveInt, "detectron2: as --short_side; null = the config's"),
    "max_size": (PositiveInt, "detectron2: as --long_side; null = the config's"),
    "class_names": (str, "bottom-up: the publisher's objects_vocab.txt"),
    "attribute_names": (str, "bottom-up: the publisher's attributes_vocab.txt"),
}
OF_WHOLE_IMAGES = ("precision", "weights", "backbone", "layer", "input_size", "normalize", "same_padding", "resize",
                   "model")     # the options that global backends have


def region_features_parser(prog: str) -> Parser:
    return extraction_parser(prog, "Region features of images, into one HDF5 file.", REGION_BACKENDS)


def global_features_parser(prog: str) -> Parser:
    return extraction_parser(prog, "One feature vector for each image, into one HDF5 file.", GLOBAL_BACKENDS)


def extraction_parser(prog: str, description: str, kinds: tuple[str, ...]) -> Parser:
    parser = Parser(prog=prog, description=description)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--images", metavar="FOLDER", help="folder, searched at any depth, or a .txt with a path a "
                                                           "line; "
                        "an image's id is its stem")
    source.add_argument("--dataset", help="name of a file in configs/: the images of its captions, from its folder")
    parser.add_argument("--out", required=True, metavar="FILE.h5",
                        help="HDF5 file to write; OUT.parts/ holds the work in progress")
    add_resume(parser, "what a stopped run left in OUT.parts/")
    parser.add_argument("--shard", metavar="I/N",
                        help="only part I of N, for several machines; ascl merge joins them")
    add_batch_size(parser, None, "most images of one shape in a forward pass; null = 32, of detectors 4")
    add_workers(parser)
    parser.add_argument("--dtype", choices=["float16", "float32"], default="float16", help="of the features on disk")
    add_skip_unreadable(parser)
    parser.add_argument("--engine", choices=["local", "ray"], default="local",
                        help="ray: by actors of Ray Data, on the cluster at hand or on this machine")
    parser.add_argument("--actors", type=PositiveInt, metavar="N",
                        help="ray: backends at work at a time; null = as many as fit")
    parser.add_argument("--gpus_per_actor", type=float, metavar="N",
                        help="ray: GPUs of each backend; null = one where the cluster has any")
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
    from ascl.images.read import images_of

    if options.engine != "ray" and (options.actors or options.gpus_per_actor is not None):
        raise SettingsError("--actors and --gpus_per_actor are for --engine ray")
    part = None if options.shard is None else Shard(*shard_of(options.shard))
    # before the backend: a wrong folder is told at once
    images = images_of(options.images) if options.images else data_set_images(options.dataset)
    arguments = backend_arguments(options)
    compute, device = None, options.device
    if options.engine == "ray":
        make = functools.partial(make_backend, options.backend, arguments, options.device)
        gpus = 0.0 if options.device == "cpu" else options.gpus_per_actor
        compute, device = on_ray(make, actors=options.actors, gpus=gpus), "cpu"  # here only settings are asked for
    with ending("stopped; the same command with --resume goes on from here"):
        done = extract_features(
            make_backend(options.backend, arguments, device), images, options.out,
            batch_size=options.batch_size or BATCH_SIZE.get(options.backend, 32), workers=options.workers,
            dtype=options.dtype, skip_unreadable=options.skip_unreadable, resume=options.resume,
            shard=part, compute=compute,
        )
    print(done.summary())
    return Answer(vars(done))


def add_resume(parser: Parser, left: str) -> None:
    parser.add_argument("--resume", action="store_true", help=f"go on with {left}")


def shard_of(text: str) -> tuple[int, int]:
    """"1/4" -> (1, 4)."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
        raise SettingsError(f"--shard {text} is no shard such as 1/4")
    return int(number), int(count)


def add_backend(parser: Parser, kinds: tuple[str, ...]) -> None:
    """Options of all these backends; the first is the default."""
    group = parser.add_argument_group("backend")
    group.add_argument("--backend", choices=list(kinds), default=kinds[0], help="what makes the features")
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
    """Options of backends that the command line has."""
    return [name for name in OF_BACKENDS if name in options.given]


def chosen_backend(options: Namespace) -> Any:
    """The backend that the options describe, ready to extract."""
    return make_backend(options.backend, backend_arguments(options), options.device)


def backend_arguments(options: Namespace) -> dict[str, Any]:
    """The given options as arguments of the chosen backend's class.

    Raises:
        SettingsError: an option that this backend does not have, lacks, or has with other values.
    """
    kind = options.backend
    known = inspect.signature(backend_class(kind), eval_str=True).parameters
    arguments = {name: options[name] for name in given_backend_options(options)}
    takes = ", ".join(f"--{name}" for name in OF_BACKENDS if name in known)
    for name, value in arguments.items():
        if name not in known:
            raise SettingsError(f"--{name} is nothing for --backend {kind}, which takes {takes}")
        hint = without_none(known[name].annotation)
        allowed = typing.get_args(hint) if typing.get_origin(hint) is typing.Literal else ()
        if allowed and value not in allowed:
            raise SettingsError(f"--{name} {value}: --backend {kind} has {', '.join(allowed)}")
        if hint is int and not isinstance(value, int):
            try:
                arguments[name] = int(value)
            except ValueError:
                raise SettingsError(f"--{name} {value}: a whole number is wanted") from None
        if hint is str and Path(value).exists():
            arguments[name] = str(Path(value).absolute())  # an actor on another machine may stand elsewhere
    for name, parameter in known.items():
        if parameter.default is inspect.Parameter.empty and name not in arguments:
            raise SettingsError(f"--backend {kind} needs --{name}")
    return arguments


def without_none(hint: Any) -> Any:
    """`X` of `X | None`."""
    kinds = [kind for kind in typing.get_args(hint) if kind is not type(None)]
    return kinds[0] if type(None) in typing.get_args(hint) and len(kinds) == 1 else hint


def descriptors_parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog, description="One copy-detection descriptor for each image, into one HDF5 file, as ascl copy eval "
                               "and "
        "RDCD's teacher read it. Vectors have length 1; `norms` are those of the content vector. With --queries the "
        "file "
        "is a submission to DISC2021's descriptor track: both sides sorted by id, at most 256 numbers each, no norms.",
    )
    parser.add_argument("--images", required=True, metavar="FOLDER",
                        help="folder, searched at any depth, or a .txt with a path a line")
    parser.add_argument("--queries", metavar="FOLDER", help="folder or list too: write a submission, --images being "
                                                            "its "
                        "references")
    parser.add_argument("--out", required=True, metavar="FILE.h5", help="HDF5 file to write; must not exist")
    add_describer(parser, required=True, phash=False)
    parser.add_argument("--precision", choices=["float32", "bfloat16", "float16"], default="float32",
                        help="type of the matrix products")
    add_device(parser)
    add_batch_size(parser, 64)
    add_workers(parser)
    add_skip_unreadable(parser)
    add_resume(parser, "what a stopped call left")
    return parser


def descriptors(options: Namespace) -> Answer:
    from ascl.image_copy.descriptors.choice import make_network_describer
    from ascl.image_copy.descriptors.extract import extract_descriptors, extract_submission
    from ascl.images.backbones import pick_device
    from ascl.images.read import images_of

    choice = chosen_describer(options)
    images, queries = images_of(options.images), images_of(options.queries) if options.queries else None
    describer = make_network_describer(choice, pick_device(options.device), options.precision)
    how = {"batch_size": options.batch_size, "workers": options.workers, "skip_unreadable": options.skip_unreadable,
           "resume": options.resume}
    with ending("stopped; the same command with --resume goes on from here"):
        if queries is None:
            done = [extract_descriptors(describer, images, options.out, **how)]
        else:
            done = extract_submission(describer, queries, images, options.out, **how)
    for one in done:
        print(one.summary())
    if queries is not None:
        counts = [one.shapes["vectors"][0] for one in done]
        print(f"{options.out}: {counts[0]} queries and {counts[1]} references")
    return Answer([vars(one) for one in done])
