"""`ascl prepare`: get a data set ready, or say what is missing."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat, NonNegativeInt, PositiveInt

from ascl.cli.options import Answer, add_seed, ending
from ascl.core.errors import SettingsError
from ascl.settings import retrieval
from ascl.settings.base import Parser, build

SHORT = {"images": "data.images", "train": "train_images", "val": "val_images", "test": "test_images"}
SIZES = {"scenes": {"train": 2000, "val": 200, "test": 500}, "scenes_lab": {"train": 10000, "val": 1000, "test": 1000}}


def prepare_parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog, short=SHORT, presets=retrieval.presets(), usage="%(prog)s --dataset NAME [OPTION ...] "
        "[--SETTING VALUE ...]",
        description="Get the data set of --dataset ready and check it. `scenes` is generated: images, captions, a "
        "region detector, features and a text encoder. So is `scenes_lab`, larger and harder, with oracle regions: the "
        "objects' own attributes and places with noise; its images are drawn only where --data.images names their "
        "folder. For coco, captions and images are downloaded (20 GB) and unpacked; for flickr30k, captions are "
        "downloaded. The settings say where the data are, such as --data.captions. Exit status 1: something is missing "
        "or wrong.",
    )
    parser.add_argument("--check", action="store_true", help="only check: use no network and write nothing")
    parser.add_argument("--verify_images", action="store_true", help="decode every image in the check")
    parser.add_argument("--only", choices=["captions", "images", "annotations"],
                        help="download only this; annotations (COCO's own caption files) are downloaded only "
                             "with this option")
    parser.add_argument("--mirror", metavar="URL", help="download the publisher's files from here, under the same "
                        "names and with the publisher's checksums")
    scenes = parser.add_argument_group("scenes, scenes_lab")
    for split in ("train", "val", "test"):
        sizes = ", ".join(f"{of[split]:,} for {name}" for name, of in SIZES.items())
        scenes.add_argument(f"--{split}_images", type=NonNegativeInt, metavar="N",
                            help=f"images of the split {split}; also --{split}; null = {sizes}")
    add_seed(parser, "seed of the generated scenes")
    scenes.add_argument("--detector_steps", type=PositiveInt, default=350, metavar="N",
                        help="scenes: training steps of the region detector, 16 images each")
    scenes.add_argument("--family", type=PositiveInt, default=20, metavar="N",
                        help="scenes_lab: scenes of a family, which differ only in which object has which attributes "
                        "and stands where; 1 = no families")
    scenes.add_argument("--family_share", type=ClosedUnitInterval, default=1.0, metavar="SHARE",
                        help="scenes_lab: share of the scenes that are in families, from 0 to 1")
    scenes.add_argument("--noise", type=NonNegativeFloat, default=0.1, metavar="STD",
                        help="scenes_lab: standard deviation of the noise on each number of a region; attributes are "
                        "0 or 1")
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
        if config.dataset in SIZES and not options.check:
            prepare_generated(config, options)
        elif published is not None and not options.check:
            fetch_dataset(config, published, only=options.only, mirror=options.mirror)
        checks = check_dataset(config, verify_images=options.verify_images, progress=True)
    print(table(checks))
    if published is not None and any(check.what == "images" and check.state == "MISSING" for check in checks):
        print("\n".join(["", *how_to_get(published, config.data)]))
    return Answer([vars(check) for check in checks], 0 if all(check.ok for check in checks) else 1)


def prepare_generated(config: retrieval.Config, options: Namespace) -> None:
    """Generate the data set of the settings, a key of SIZES."""
    from ascl.scenes.prepare import prepare_lab, prepare_scenes

    folder = Path(config.data.captions).parent
    sizes = {split: count if options[f"{split}_images"] is None else options[f"{split}_images"]
             for split, count in SIZES[config.dataset].items()}
    if config.dataset == "scenes":
        prepare_scenes(folder, **sizes, seed=options.seed, detector_steps=options.detector_steps)
    else:
        prepare_lab(folder, **sizes, seed=options.seed, family=options.family, family_share=options.family_share,
                    noise=options.noise, images=config.data.images is not None)
