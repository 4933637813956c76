"""`ascl prepare`: get a data set ready, or say what is missing."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from ascl.cli.options import Answer, add_seed, ending
from ascl.core.errors import SettingsError
from ascl.settings import retrieval
from ascl.settings.base import Parser, build

SHORT = {"images": "data.images", "train": "train_images", "val": "val_images", "test": "test_images"}


def prepare_parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog, short=SHORT, presets=retrieval.presets(), usage="%(prog)s --dataset NAME [OPTION ...] "
        "[--SETTING VALUE ...]",
        description="Get the data set of --dataset ready and check it. `scenes` is generated: images, captions, a "
        "region detector, features and a text encoder. For coco, captions and images are downloaded (20 GB) and "
        "unpacked; for flickr30k, captions are downloaded. The settings say where the data are, such as "
        "--data.captions. Exit status 1: something is missing or wrong.",
    )
    parser.add_argument("--check", action="store_true", help="only check: use no network and write nothing")
    parser.add_argument("--verify_images", action="store_true", help="decode every image in the check")
    parser.add_argument("--only", choices=["captions", "images", "annotations"],
                        help="download only this; annotations (COCO's own caption files) are downloaded only "
                             "with this option")
    parser.add_argument("--mirror", metavar="URL", help="download the publisher's files from here, under the same "
                        "names and with the publisher's checksums")
    scenes = parser.add_argument_group("scenes")
    for split, count in (("train", 2000), ("val", 200), ("test", 500)):
        scenes.add_argument(f"--{split}_images", type=NonNegativeInt, default=count, metavar="N",
                            help=f"images of the split {split}; also --{split}")
    add_seed(parser, "seed of the generated scenes")
    scenes.add_argument("--detector_steps", type=PositiveInt, default=350, metavar="N",
                        help="training steps of the region detector, 16 images each")
    parser.add_settings(retrieval.Config)
    return parser


def prepare(options: Namespace) -> Answer:
    from ascl.datasets import check_dataset, fetch_dataset, how_to_get, table
    from ascl.datasets.published import PUBLISHED

    config = build(retrieval.Config, options)
    if not config.dataset:
        raise SettingsError("no data set: give --dataset NAME")
    published = PUBLISHED.get(config.dataset)
    if (options.only or options.mirror) and (published is None or options.check):
        idle = "--check" if options.check else config.dataset
        raise SettingsError(f"--only and --mirror are for downloading {', '.join(PUBLISHED)}; {idle} downloads nothing")
    with ending("stopped; the same command continues from here"):
        if config.dataset == "scenes" and not options.check:
            from ascl.scenes.prepare import prepare_scenes

            prepare_scenes(
                Path(config.data.captions).parent, train=options.train_images, val=options.val_images,
                test=options.test_images, seed=options.seed, detector_steps=options.detector_steps,
            )
        elif published is not None and not options.check:
            fetch_dataset(config, published, only=options.only, mirror=options.mirror)
        checks = check_dataset(config, verify_images=options.verify_images, progress=True)
    print(table(checks))
    if published is not None and any(check.what == "images" and check.state == "MISSING" for check in checks):
        print("\n".join(["", *how_to_get(published, config.data)]))
    return Answer([vars(check) for check in checks], 0 if all(check.ok for check in checks) else 1)
