"""`ascl convert`, `ascl merge` and `ascl show`: convert, join and look at feature files."""

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
        prog=prog, description="Convert features to one HDF5 file of our own format. Formats that are read: SCAN's "
        ".npy; .tsv of bottom-up attention or LXMERT, also as shards .tsv.0, .tsv.1; a folder of .npz or .npy files, "
        "one per image; HDF5 with one entry per image, as a file or a folder of shards; our own HDF5. A sample is "
        "compared with the source before the file gets its name.",
    )
    parser.add_argument("inputs", nargs="+", metavar="IN", help="files or folders; several are joined by image id")
    parser.add_argument("--out", required=True, metavar="FILE.h5", help="HDF5 file to write")
    parser.add_argument("--dtype", choices=["float32", "float16"], default="float32",
                        help="type of the features in the file; float32 keeps the source bit for bit")
    parser.add_argument("--kind", choices=["auto", "regions", "globals"], default="auto",
                        help="which features to take; auto = all that the inputs have")
    parser.add_argument("--max_regions", type=PositiveInt, metavar="N",
                        help="keep the first N regions of each image; null = all")
    parser.add_argument("--skip_broken", action="store_true",
                        help="leave out images that are damaged or given twice, and list them, instead of stopping; "
                        "takes a second pass over the inputs")
    parser.add_argument("--scan_captions_per_image", type=PositiveInt, metavar="N",
                        help="captions per image of the {split}_caps.txt beside SCAN's .npy; null = by the numbers of "
                        "captions and of rows")
    parser.add_argument("--ids_from", metavar="CAPTIONS.json",
                        help="Karpathy's dataset_*.json or COCO's captions_*.json (also .gz, or in a zip), "
                        "for features whose ids are COCO's or Karpathy's numbers: replace these by file names without "
                        "the suffix")
    parser.add_argument("--id_field", choices=["filename", "cocoid", "imgid"],
                        help="field of --ids_from that holds the ids of the features; null = the one that has them all")
    return parser


def convert(options: Namespace) -> Answer:
    from ascl.data.stores.convert import convert as convert_features

    with ending("stopped; nothing was written"):
        done = convert_features(
            options.inputs, options.out, dtype=options.dtype, kind=options.kind, max_regions=options.max_regions,
            ids_from=options.ids_from, id_field=options.id_field, skip_broken=options.skip_broken,
            scan_captions_per_image=options.scan_captions_per_image,
        )
    print(done.summary())
    return Answer(vars(done))


def merge_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description="Join the files that ascl extract wrote with --shard 1/N to N/N.")
    parser.add_argument("out", metavar="OUT.h5", help="HDF5 file to write")
    parser.add_argument("shards", nargs="*", metavar="SHARD.h5",
                        help="files to join; if none are given, those beside OUT.h5 named OUT.shard-I-of-N.h5")
    return parser


def merge(options: Namespace) -> Answer:
    from ascl.features.feature_file import merge_shards, shards_beside

    out = Path(options.out)
    with ending("stopped; nothing was written"):
        shapes = merge_shards([Path(shard) for shard in options.shards] or shards_beside(out), out)
    print(f"{out}: " + ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items()))
    return Answer({"file": out, "shapes": shapes})


def show_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description="Draw the regions of an image, with class, attribute and score where they "
                    "are known: those that --backend finds, or those of a feature file (--features).")
    parser.add_argument("image", nargs="?", metavar="PHOTO",
                        help="image file; not needed with --images and --image_id")
    parser.add_argument("--features", nargs="+", metavar="FILE",
                        help="feature files: draw the regions stored for this image")
    parser.add_argument("--image_id", metavar="ID",
                        help="id of the image in --features; null = the name of PHOTO without the suffix")
    parser.add_argument("--images", metavar="FOLDER",
                        help="folder, searched at any depth, that holds the image --image_id, if PHOTO is not given")
    parser.add_argument("--top", type=PositiveInt, default=12, metavar="N",
                        help="draw the N best regions; all are printed")
    parser.add_argument("--out", metavar="FILE.png", help="picture to write; null = IMAGE-ID.regions.png")
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
            raise SettingsError(f"--{given[0]} finds regions, and --features draws stored ones: leave one of them out")
        regions = regions_from_store(options.features, options.image_id or path.stem, loaded.size)
    else:
        regions = regions_by_backend(chosen_backend(options), loaded)
    out = Path(options.out or f"{options.image_id or path.stem}.regions.png")
    with atomic_path(out) as temporary:
        draw_regions(loaded.image, loaded.size, regions[: options.top]).save(temporary, format="png")
    print(table(regions))
    print(f"{out}: the best {min(options.top, len(regions))} of {len(regions)} regions of {path}")
    return Answer({"image": path, "file": out, "regions": [vars(region) for region in regions]})
