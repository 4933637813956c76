"""Train an image descriptor for copy detection:

  python tools/train_copy.py --method rdcd --images photos/ --teacher sscd_disc_mixup.torchscript.pt --dim 64 --out RUN
  python tools/train_copy.py --method sscd --images photos/ --out RUN       (also asl, and rdcd_small ... for two cores)
  python tools/train_copy.py --resume RUN                                   goes on exactly where RUN stopped

Settings are the defaults of ascl/settings/image_copy.py, then configs/image_copy/<method>.yaml, then --config FILE,
then the command line. A teacher is a TorchScript file, a run of this program, the name of a torchvision or `timm:`
backbone, or an HDF5 file of descriptors (then it sees the images unedited). Several GPUs:
`accelerate launch tools/train_copy.py`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ascl.core.errors import DataError
from ascl.settings.image_copy import SHORT_NAMES, copy_setting_names, load_copy_config, read_copy_settings
from ascl.settings.retrieval import ConfigError, take_option

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "image_copy"


def main(arguments: list[str]) -> int:
    if not arguments or "--help" in arguments or "-h" in arguments:
        names = (f"  --{name}" for name in copy_setting_names())
        print(__doc__, "Settings:", *names, sep="\n")
        print("Short:", *(f"  --{short} = --{name}" for short, name in SHORT_NAMES.items()), sep="\n")
        return 0
    config = None
    try:
        saved, (run, arguments) = None, take_option(arguments, "--resume")
        if run is not None:
            path = Path(run) / "settings.yaml"
            if not path.exists():
                raise ConfigError(f"--resume {run}: {path} does not exist; give the folder of a run")
            saved = read_copy_settings(path) | {"out": run}
        config = load_copy_config(arguments, CONFIGS, saved)
        if not config.method:
            known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.yaml")))
            raise ConfigError(f"no method: give --method, one of {known}")
        from ascl.image_copy.training.train import train  # torch is slow to import: settings are checked before

        progress = train(config, resume=run is not None)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"\n{stopped or 'stopped'}", file=sys.stderr)
        if config is not None and (Path(config.out) / "last.pt").exists():
            print(f"continue with: python tools/train_copy.py --resume {config.out}", file=sys.stderr)
        return 130
    best = progress.best_metrics or {}
    chosen = ("muap", "recall_at_1", "rpr", "uniformity", "gap", "ordered_crops")
    print(f"best {config.train.select} {progress.best:.4f} at step {progress.best_step}: "
          + ", ".join(f"{name} {best[name]:.3f}" for name in chosen if name in best))
    print(f"describe with: python tools/extract_descriptors.py --checkpoint {config.out} --images FOLDER --out D.h5")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
