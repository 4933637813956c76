"""Ablation studies: train and evaluate what is missing, and write each study as Markdown, CSV and PNG.

  python tools/ablate.py --dataset flickr30k --study table2 --seeds 5
  python tools/ablate.py --dataset flickr8k_small --study all --seeds 3 --settings "--train.max_steps 300"
  python tools/ablate.py --dataset coco --study baselines --seeds 3 --scores "theirs=theirs.npz"
  python tools/ablate.py --dataset coco --study table2 --dry-run

Finished runs are skipped, and studies share their runs. After Ctrl-C, a kill or a crash the same command goes on where
the runs stopped. Several of these programs may work on one folder; each run is trained by one of them.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from functools import partial
from pathlib import Path

from ascl.analysis.ablation.commands import shown
from ascl.analysis.ablation.plan import Request, choose, plan
from ascl.analysis.ablation.report import add_outside, write_reports
from ascl.analysis.ablation.runner import Stopped, make_slots, run_all, visible_gpus
from ascl.analysis.ablation.state import describe
from ascl.analysis.ablation.studies import STUDIES
from ascl.core.errors import DataError
from ascl.settings.retrieval import ConfigError

REPOSITORY = Path(__file__).resolve().parents[1]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--dataset", required=True, help="name of a YAML in configs/")
    result.add_argument("--study", required=True, choices=[*STUDIES, "all"])
    result.add_argument("--seeds", type=seeds_of, default="5", metavar="N|LIST",
                        help="how many, from 0 on, or which: 3, or 0,7,9 (default: %(default)s)")
    result.add_argument("--settings", default="", metavar='"--NAME VALUE ..."',
                        help="options of tools/train.py for every run, such as its length; what a variant sets wins")
    result.add_argument("--out", type=Path, help="folder of runs and reports (default: runs/ablation-DATASET)")
    result.add_argument("--only", action="append", default=[], metavar="LABEL",
                        help="train and evaluate this variant alone; may be given several times")
    result.add_argument("--scores", action="append", default=[], metavar="NAME=FILE.npz",
                        help="a row for an outside model, from arrays `scores` and `owner`; stays until its folder in "
                        "OUT/scores is removed; may be given several times")
    result.add_argument("--probe-captions", type=int, default=1000, metavar="N",
                        help="also probe variants of so many test captions of each run, see tools/eval.py; 0 = none "
                        "(default: %(default)s)")
    result.add_argument("--parallel", type=int, metavar="N",
                        help="runs at a time, each with its own GPU (default: one for each GPU, on a CPU one)")
    result.add_argument("--processes", type=int, default=1, metavar="P",
                        help="train each run in so many processes, through accelerate launch (default: 1)")
    result.add_argument("--threads", type=int, metavar="N",
                        help="OMP_NUM_THREADS of each process (default: unchanged, with --parallel an equal share)")
    what = result.add_mutually_exclusive_group()
    what.add_argument("--dry-run", action="store_true", help="print each run, how far it is, and its command")
    what.add_argument("--report", action="store_true", help="write the reports of what is finished, train nothing")
    return result


def seeds_of(text: str) -> tuple[int, ...]:
    """"3" -> (0, 1, 2); "4,7" or "4," -> those."""
    try:
        numbers = [int(part) for part in text.strip("[]").split(",") if part.strip()]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number, or a list such as 0,7,9") from None
    seeds = tuple(numbers) if "," in text else tuple(range(numbers[0] if numbers else 0))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"{text!r}: seeds have to be at least one, 0 or larger, and all different")
    return seeds


def words_of(settings: str) -> tuple[str, ...]:
    """Options of tools/train.py as a shell would split them."""
    try:
        return tuple(shlex.split(settings))
    except ValueError as error:
        raise DataError(f"--settings {settings!r}: {error}") from error


def outside_of(text: str) -> tuple[str, Path]:
    """"NAME=FILE" -> both."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise DataError(f"--scores {text!r}: expected NAME=FILE.npz")
    return name, Path(file)


def main(arguments: list[str]) -> int:
    # argparse takes "--train.max_steps=3" for an option of its own where it stands alone
    joined = [f"{word}={following}" if word == "--settings" else word
              for before, word, following in zip(["", *arguments], arguments, [*arguments[1:], ""], strict=False)
              if before != "--settings"]
    options = parser().parse_args(joined)
    try:
        request = Request(
            dataset=options.dataset, studies=tuple(STUDIES) if options.study == "all" else (options.study,),
            seeds=options.seeds, settings=words_of(options.settings),
            out=options.out or Path("runs") / f"ablation-{options.dataset}", configs=REPOSITORY / "configs",
            train=(str(REPOSITORY / "tools" / "train.py"),), evaluate=(str(REPOSITORY / "tools" / "eval.py"),),
            processes=options.processes, probe_captions=options.probe_captions,
        )
        runs = plan(request)
        chosen = choose(runs, options.only)
        outside = [outside_of(text) for text in options.scores]
        if options.dry_run:
            for run in chosen:
                print(f"{describe(run):<12}{run.name}\n    {shown(run, request)}")
            return 0
        broken = {name: reason for name, file in outside if (reason := add_outside(request, name, file))}
        failures = []
        if not options.report:
            several = options.processes > 1 or options.parallel != 1
            gpus = visible_gpus() if several else []
            slots = make_slots(options.parallel, options.processes, options.threads, gpus)
            failures = run_all(chosen, request, slots, say=partial(print, flush=True))  # into a file, too, at once
        written = write_reports(request, runs, failures)
    except (ConfigError, DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (Stopped, KeyboardInterrupt) as stopped:
        print(f"\n{stopped or 'stopped'}", file=sys.stderr)
        return 130
    print("written:", *written)
    for failure in failures:
        print(f"failed: {failure.run.name}: {failure.reason}", file=sys.stderr)
    for name, reason in broken.items():
        print(f"failed: scores of {name}: {reason}", file=sys.stderr)
    return 1 if failures or broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
