"""One feature vector for each image of a folder, a list or a data set -> HDF5. Examples:

python tools/extract_globals.py --images photos/ --out data/photos/globals.h5 --backbone resnet152
python tools/extract_globals.py --dataset coco --out data/coco/globals.h5 --backend encoder --model facebook/dinov2-base
"""

import sys
from pathlib import Path

from ascl.cli.extract import extraction_parser, run_extraction
from ascl.datasets.locate import data_set_images
from ascl.features import GLOBAL_BACKENDS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

if __name__ == "__main__":
    parser = extraction_parser("One feature vector for each image, into one HDF5 file.", GLOBAL_BACKENDS)
    sys.exit(run_extraction(parser.parse_args(), lambda name: data_set_images(name, CONFIGS)))
