"""Features of any format that is read -> our HDF5. Example:

python tools/convert_features.py trainval_36/*.tsv --out data/coco/regions.h5 --ids-from data/coco/dataset_coco.json
"""

import argparse
import sys

from ascl.core.errors import DataError
from ascl.data.stores.convert import convert
from ascl.data.stores.ids import FIELDS


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description="Features of any format that is read, into one HDF5 file of this program.",
        epilog="IN: SCAN's .npy; .tsv of bottom-up attention or LXMERT, also its shards .tsv.0, .tsv.1; a folder of "
               ".npz or .npy, one for each image; HDF5 with an entry for each image, a file or a folder of shards; our "
               "own HDF5. The file is written under another name, and renamed when a sample of it was read again.",
    )
    result.add_argument("inputs", nargs="+", metavar="IN", help="several are merged by image id")
    result.add_argument("--out", required=True, help="HDF5 file to write")
    result.add_argument("--dtype", choices=("float32", "float16"), default="float32",
                        help="of the features on disk (default: float32, bit for bit the source)")
    result.add_argument("--kind", choices=("auto", "regions", "globals"), default="auto",
                        help="what to take of files that have both (default: all there is)")
    result.add_argument("--max-regions", type=int, metavar="N", help="keep the first N regions of each image")
    result.add_argument("--ids-from", metavar="CAPTIONS.json",
                        help="Karpathy's dataset_*.json (also .gz, or in his zip): name images by the stems of its "
                             "file names, where the features name them by COCO's or Karpathy's numbers")
    result.add_argument("--id-field", choices=FIELDS,
                        help="which number or name of --ids-from the ids are (default: the one that knows them all)")
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        done = convert(
            options.inputs, options.out, dtype=options.dtype, kind=options.kind, max_regions=options.max_regions,
            ids_from=options.ids_from, id_field=options.id_field,
        )
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; nothing was written", file=sys.stderr)
        return 130
    print(done.summary())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
