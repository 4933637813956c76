"""Train a model: `python tools/train.py --dataset flickr30k [--out RUN] [--model.embed_dim 512] ...`

Settings are the defaults of ascl/settings/retrieval.py, then configs/<dataset>.yaml, then --config FILE, then the
command line.
`--resume RUN` goes on exactly where RUN stopped. Several GPUs: `accelerate launch tools/train.py ...`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ascl.core.errors import DataError
from ascl.settings.retrieval import ConfigError, load_config, read_settings, setting_names, take_option

CONFIGS = Path(__file__).resolve().parents[1] / "configs"


def main(arguments: list[str]) -> int:
    if not arguments or "--help" in arguments or "-h" in arguments:
        print(__doc__, "Settings:", *(f"  --{name}" for name in setting_names()), sep="\n")
        return 0
    config = None
    try:
        saved, (run, arguments) = None, take_option(arguments, "--resume")
        if run is not None:
            path = Path(run) / "settings.yaml"
            if not path.exists():
                raise ConfigError(f"--resume {run}: {path} does not exist; give the folder of a run")
            saved = read_settings(path) | {"out": run}
        config = load_config(arguments, CONFIGS, saved)
        from ascl.retrieval.train import train  # torch is slow to import: settings are checked before

        progress = train(config, resume=run is not None)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stopped:
        print(f"\n{stopped or 'stopped'}", file=sys.stderr)
        if config is not None and (Path(config.out) / "last.pt").exists():
            print(f"continue with: python tools/train.py --resume {config.out}", file=sys.stderr)
        return 130
    best = progress.best_metrics or {}
    print(f"best validation Rsum {progress.best:.1f} at step {progress.best_step}: "
          + ", ".join(f"{name} {value:.1f}" for name, value in best.items() if name != "rsum"))
    print(f"evaluate with: python tools/eval.py --checkpoint {config.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
