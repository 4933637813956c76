"""Get a data set ready: generate or fetch it, unpack it, and check all of it.

  python tools/prepare_data.py --dataset scenes             generates images, captions, features and a text encoder
  python tools/prepare_data.py --dataset coco               fetches captions and images (20 GB), unpacks them, checks
  python tools/prepare_data.py --dataset flickr30k          fetches captions, says how to get the images, checks
  python tools/prepare_data.py --dataset coco --check       only checks: no network, nothing is written

Settings follow as in training: --data.captions FILE, --data.images FOLDER, --data.features FILE,FILE.
Exit status: 0 all is well, 1 something is missing or wrong, 2 settings or a fetch that cannot work, 130 stopped.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ascl.core.errors import DataError
from ascl.settings.retrieval import ConfigError, load_config

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    result.add_argument("--dataset", required=True, help="name of a file in configs/")
    result.add_argument("--check", action="store_true", help="only check; exit status 1 where anything is missing")
    result.add_argument("--verify-images", action="store_true", help="decode every image in the check")
    fetching = result.add_argument_group("fetching")
    fetching.add_argument("--only", choices=["captions", "images", "annotations"],
                          help="fetch this alone; annotations (COCO's own caption files) are fetched only so")
    fetching.add_argument("--mirror", metavar="URL", help="where the publisher's files lie under the same names; their "
                                                          "checksums stay the publisher's")
    scenes = result.add_argument_group("scenes")
    scenes.add_argument("--train", type=int, default=2000, help="images of the split")
    scenes.add_argument("--val", type=int, default=200)
    scenes.add_argument("--test", type=int, default=500)
    scenes.add_argument("--seed", type=int, default=0)
    scenes.add_argument("--backbone", default="resnet18", help="torchvision classifier with random weights")
    scenes.add_argument("--layer", default="layer1", help="its layer that gives the features")
    return result


def main(arguments: list[str]) -> int:
    options, settings = parser().parse_known_args(arguments)
    from ascl.datasets import check_dataset, fetch_dataset, how_to_get, table
    from ascl.datasets.published import PUBLISHED
    from ascl.scenes.prepare import prepare_scenes

    published = PUBLISHED.get(options.dataset)
    try:
        config = load_config(["--dataset", options.dataset, *settings], CONFIGS)
        if (options.only or options.mirror) and (published is None or options.check):
            raise ConfigError("--only and --mirror are for fetching "
                              f"{', '.join(PUBLISHED)}; {'--check' if options.check else options.dataset} fetches none")
        if options.dataset == "scenes" and not options.check:
            prepare_scenes(
                Path(config.data.captions).parent, train=options.train, val=options.val, test=options.test,
                seed=options.seed, backbone=options.backbone, layer=options.layer,
            )
        elif published is not None and not options.check:
            fetch_dataset(config, published, only=options.only, mirror=options.mirror)
        checks = check_dataset(config, verify_images=options.verify_images, progress=True)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    print(table(checks))
    if published is not None and any(check.what == "images" and check.state == "MISSING" for check in checks):
        print("\n".join(["", *how_to_get(published, config.data)]))
    return 0 if all(check.ok for check in checks) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
