"""`ascl train` and `ascl copy train`: settings in, a run folder out."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from ascl.cli.options import Answer, ending
from ascl.core.errors import DataError
from ascl.settings import image_copy, retrieval
from ascl.settings.base import Parser, Presets, build


def train_parser(prog: str) -> Parser:
    return settings_parser(
        prog, retrieval.Config, retrieval.SHORT, retrieval.presets,
        "Train a retrieval model. Settings come from defaults, then configs/DATASET.yaml, then --config files, then "
        "options; the last wins. On several GPUs: accelerate launch tools/train.py ...",
    )


def train(options: Namespace) -> Answer:
    from ascl.retrieval.train import train as train_model

    config = build(retrieval.Config, options)
    progress = run(train_model, config, options)
    (name, best), *others = (progress.best_metrics or {}).items()       # Rsum comes first
    return training_answer(progress, config.train.patience, [
        f"best validation R{name[1:].replace('_', ' ')} {best:.1f} at step {progress.best_step}: "
        + ", ".join(f"{name} {value:.1f}" for name, value in others),
        f"evaluate with: ascl eval --checkpoint {options.resume or config.out}",
    ])


def copy_train_parser(prog: str) -> Parser:
    return settings_parser(
        prog, image_copy.CopyConfig, image_copy.SHORT, image_copy.presets,
        "Train an image descriptor for copy detection. Settings come from defaults, then "
        "configs/image_copy/METHOD.yaml, then --config files, then options; the last wins. On several GPUs: accelerate "
        "launch tools/train_copy.py ...",
    )


def copy_train(options: Namespace) -> Answer:
    from ascl.image_copy.descriptors.names import as_model
    from ascl.image_copy.training.train import train as train_descriptor

    config = build(image_copy.CopyConfig, options)
    progress = run(train_descriptor, config, options)
    best = progress.best_metrics or {}
    shown = ("muap", "recall_at_1", "rpr", "uniformity", "gap", "ordered_crops")
    return training_answer(progress, config.train.patience, [
        f"best {config.train.select} {progress.best:.4f} at step {progress.best_step}: "
        + ", ".join(f"{name} {best[name]:.3f}" for name in shown if name in best),
        "extract descriptors with: ascl extract descriptors "
        f"--model {as_model(options.resume or config.out)} --images FOLDER --out FILE.h5",
    ])


def settings_parser(
    prog: str, kind: type, short: Mapping[str, str], presets_of: Callable[..., Presets], description: str
) -> Parser:
    """Return the parser of a training command: every setting, and `--resume`."""
    def presets(given: Namespace) -> list[Path]:
        saved = None if given.resume is None else Path(given.resume) / "settings.yaml"
        if saved is not None and not saved.exists():
            raise DataError(f"{saved} does not exist: give --resume the folder of a run")
        return list(presets_of(saved=saved)(given))

    parser = Parser(prog=prog, description=description, short=short, presets=presets,
                    usage="%(prog)s [--resume RUN] [--config FILE] [--SETTING VALUE ...]")
    parser.add_argument("--resume", metavar="RUN", help="run folder: continue this run exactly where it stopped, with "
                        "its settings")
    parser.add_settings(kind)
    return parser


def run(train: Callable[..., Any], config: Any, options: Namespace) -> Any:
    """Train; after Ctrl-C, if there is a checkpoint, say how to continue."""
    if options.resume is not None:
        config = replace(config, out=options.resume)
    command = "copy train" if isinstance(config, image_copy.CopyConfig) else "train"
    try:
        return train(config, resume=options.resume is not None)
    except KeyboardInterrupt as stopped:
        if not (Path(config.out) / "last.pt").exists():
            raise
        with ending(f"continue with: ascl {command} --resume {config.out}"):
            raise stopped


def training_answer(progress: Any, patience: int | None, lines: list[str]) -> Answer:
    """Print why a training ended and its result, and return the result."""
    early = progress.out_of_patience(patience)
    why = (f"stopped early: the last {progress.validations_since_best} validations were no better than the best "
           f"(train.patience {patience})" if early else "all steps were taken")
    print(f"ended after step {progress.step}: {why}", *lines, sep="\n")
    return Answer({"best": progress.best, "best_step": progress.best_step, "steps": progress.step,
                   "stopped_early": early, "seconds": progress.seconds, "metrics": progress.best_metrics or {}})
