"""`ascl convert`, `ascl merge` and `ascl show`: what one does with feature files."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from ascl.cli.extract import add_backend, chosen_backend, given_backend_options
from ascl.cli.options import Answer, add_device, ending
from ascl.core.errors import SettingsError
from ascl.features.backends import REGION_BACKENDS
from ascl.settings.base import Parser


def convert_parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog, description="Features of any format that is read, into one HDF5 file of ours: SCAN's .npy; .tsv of "
        "bottom-up attention or LXMERT, also its shards .tsv.0, .tsv.1; a folder of .npz or .npy, one for each image; "
        "HDF5 with an entry for each image, a file or a folder of shards; our own HDF5. A sample of the file is read "
        "again "
        "before it gets its name.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="files or folders; several are merged by image id")
    parser.add_argument("--out", required=True, metavar="FILE.h5", help="HDF5 file to write")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32",
                        help="of the features on disk; float32 is bit for bit the source")
    parser.add_argument("--kind", choices=["auto", "regions", "globals"], default="auto",
                        help="what to take of files that have both; auto = all there is")
    parser.add_argument("--max_regions", type=PositiveInt, metavar="N", help="keep the first N regions of each image")
    parser.add_argument("--ids_from", metavar="CAPTIONS.json",
                        help="Karpathy's dataset_*.json (also .gz, or in his zip): name images by the stems of its "
                             "file "
                        "names, where the features name them by COCO's or Karpathy's numbers")
    parser.add_argument("--id_field", choices=["filename", "cocoid", "imgid"],
                        help="which number or name of --ids_from the ids are; null = the one that knows them all")
    return parser


def convert(options: Namespace) -> Answer:
    from ascl.data.stores.convert import convert as convert_features

    with ending("stopped; nothing was written"):
        done = convert_features(
            options.inputs, options.out, dtype=options.dtype, kind=options.kind, max_regions=options.max_regions,
            ids_from=options.ids_from, id_field=options.id_field,
        )
    print(done.summary())
    return Answer(vars(done))


def merge_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description="Join the files of an extraction with --shard 1/N ... N/N into one.")
    parser.add_argument("out", metavar="OUT.h5", help="the file to write")
    parser.add_argument("shards", nargs="*", metavar="SHARD.h5", help="none = those beside OUT: OUT.shard-I-of-N.h5")
    return parser


def merge(options: Namespace) -> Answer:
    from ascl.features.feature_file import merge_shards, shards_beside

    out = Path(options.out)
    with ending("stopped; nothing was written"):
        shapes = merge_shards([Path(shard) for shard in options.shards] or shards_beside(out), out)
    print(f"{out}: " + ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items()))
    return Answer({"file": out, "shapes": shapes})


def show_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description="Draw the regions of an image with class, attribute and score: of a "
                                           "detector, "
                    "or of a feature file.")
    parser.add_argument("image", nargs="?", metavar="PHOTO", help="a photograph")
    parser.add_argument("--features", nargs="+", metavar="FILE", help="draw what these files hold instead of detecting")
    parser.add_argument("--image_id", metavar="ID", help="of --features; null = the photograph's stem")
    parser.add_argument("--images", metavar="FOLDER", help="where --image_id is looked for if no photograph is named")
    parser.add_argument("--top", type=PositiveInt, default=12, metavar="N",
                        help="regions to draw, best first; all are printed")
    parser.add_argument("--out", metavar="FILE.png", help="null = IMAGE-ID.regions.png")
    add_device(parser)
    add_backend(parser, REGION_BACKENDS)
    return parser


def show(options: Namespace) -> Answer:
    from ascl.core.files import atomic_path
    from ascl.features.drawing import draw_regions, table
    from ascl.features.showing import find_image, regions_by_backend, regions_from_store
    from ascl.images.read import load_image

    path = Path(options.image) if options.image else find_image(options.images, options.image_id)
    loaded = load_image(path)
    if options.features:
        given = ["backend"] * ("backend" in options.given) + given_backend_options(options)
        if given:
            raise SettingsError(f"--{given[0]} is for detecting, and --features says not to")
        regions = regions_from_store(options.features, options.image_id or path.stem, loaded.size)
    else:
        regions = regions_by_backend(chosen_backend(options), loaded)
    out = Path(options.out or f"{options.image_id or path.stem}.regions.png")
    with atomic_path(out) as temporary:
        draw_regions(loaded.image, loaded.size, regions[: options.top]).save(temporary, format="png")
    print(table(regions))
    print(f"{out}: the first {min(options.top, len(regions))} of {len(regions)} regions of {path}")
    return Answer({"image": path, "file": out, "regions": [vars(region) for region in regions]})
