"""The regions of an image, drawn with class, attribute and score. Examples:

python tools/show_regions.py photo.jpg --backend bottom-up --weights bua-caffe-frcn-r101-k36.pth \
  --class-names objects_vocab.txt --attribute-names attributes_vocab.txt
python tools/show_regions.py photos/cat.jpg --features data/photos/regions.h5
python tools/show_regions.py --images photos/ --features data/photos/regions.h5 --image-id cat
"""

import argparse
import sys
from pathlib import Path

from ascl.cli.extract import add_backend_options, backend_arguments, given_backend_options, positive
from ascl.core.errors import DataError
from ascl.core.files import atomic_path
from ascl.features import REGION_BACKENDS, make_backend
from ascl.features.drawing import draw_regions, table
from ascl.features.showing import find_image, regions_by_backend, regions_from_store
from ascl.images.read import load_image


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter,
                                     allow_abbrev=False)
    result.add_argument("image", nargs="?", type=Path, help="a photograph")
    result.add_argument("--features", nargs="+", metavar="FILE", help="draw what these files hold instead of detecting")
    result.add_argument("--image-id", help="of --features; the photograph's stem if not said")
    result.add_argument("--images", help="folder in which --image-id is looked for where no photograph is named")
    result.add_argument("--top", type=positive, default=12, help="regions to draw, best first (all are printed)")
    result.add_argument("--out", type=Path, help="picture to write; IMAGE-ID.regions.png if not said")
    add_backend_options(result, REGION_BACKENDS)
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        path = options.image or find_image(options.images, options.image_id)
        loaded = load_image(path)
        if options.features:
            if given_backend_options(options):
                raise DataError(f"{given_backend_options(options)[0]} is for detecting, and --features says not to")
            regions = regions_from_store(options.features, options.image_id or path.stem, loaded.size)
        else:
            backend = make_backend(options.backend, backend_arguments(options), options.device)
            regions = regions_by_backend(backend, loaded)
        out = options.out or Path(f"{options.image_id or path.stem}.regions.png")
        with atomic_path(out) as temporary:
            draw_regions(loaded.image, loaded.size, regions[: options.top]).save(temporary, format="png")
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(table(regions))
    print(f"{out}: the first {min(options.top, len(regions))} of {len(regions)} regions of {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
