"""Get a data set ready, or say what is missing and where it comes from.

  python tools/prepare_data.py --dataset scenes             generates images, captions, features and a text encoder
  python tools/prepare_data.py --dataset flickr30k          checks captions and features of every split
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ascl.config import ConfigError, load_config
from ascl.errors import DataError

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--dataset", required=True, help="name of a file in configs/")
    result.add_argument("--check", action="store_true", help="only check; exit status 1 where anything is missing")
    scenes = result.add_argument_group("scenes")
    scenes.add_argument("--train", type=int, default=2000, help="images of the split")
    scenes.add_argument("--val", type=int, default=200)
    scenes.add_argument("--test", type=int, default=500)
    scenes.add_argument("--seed", type=int, default=0)
    scenes.add_argument("--backbone", default="resnet18", help="torchvision classifier with random weights")
    scenes.add_argument("--layer", default="layer1", help="its layer that gives the features")
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    from ascl.prepare import HOW_TO_GET, check_dataset, prepare_scenes

    try:
        config = load_config(["--dataset", options.dataset], CONFIGS)
        if options.dataset == "scenes" and not options.check:
            prepare_scenes(
                Path(config.data.captions).parent, train=options.train, val=options.val, test=options.test,
                seed=options.seed, backbone=options.backbone, layer=options.layer,
            )
        checks = check_dataset(config)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    for check in checks:
        print(f"{'ok     ' if check.ok else 'MISSING'}  {check.what}: {check.found}")
    if all(check.ok for check in checks):
        return 0
    if options.dataset in HOW_TO_GET:
        print(f"\nTo get {options.dataset}: {HOW_TO_GET[options.dataset]}")
    return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
