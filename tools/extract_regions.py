"""Region features of the images of a folder, a list or a data set -> HDF5. Examples:

python tools/extract_regions.py --images photos/ --out data/photos/regions.h5 --backbone resnet50
python tools/extract_regions.py --dataset coco --out data/coco/regions.h5 --backend bottom-up \
  --weights bua-caffe-frcn-r101-k36.pth --precision float16
"""

import sys
from pathlib import Path

from ascl.cli.extract import extraction_parser, run_extraction
from ascl.datasets.locate import data_set_images
from ascl.features import REGION_BACKENDS

CONFIGS = Path(__file__).resolve().parents[1] / "configs"

if __name__ == "__main__":
    parser = extraction_parser("Region features of images, into one HDF5 file.", REGION_BACKENDS)
    sys.exit(run_extraction(parser.parse_args(), lambda name: data_set_images(name, CONFIGS)))
