"""`ascl ablate`: train and evaluate the missing runs of a study, and write it as Markdown, CSV and PNG."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from ascl.analysis.ablation.studies import STUDIES
from ascl.cli.options import Answer, ending
from ascl.core.errors import SettingsError
from ascl.settings import retrieval
from ascl.settings.base import Parser, build, flatten, leaf_types, to_dict


def ablate_parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog, presets=retrieval.presets(),
        usage="%(prog)s --dataset NAME --study STUDY [OPTION ...] [--SETTING VALUE ...]",
        short={name: option for name, option in retrieval.SHORT.items() if name != "seed"},
        description="Train and evaluate the variants of a study on --dataset with several seeds, and write tables and "
        "plots to --out (runs/ablation-DATASET if not given). Finished runs are skipped, and studies share runs; after "
        "an interruption the same command continues. Several of these programs may work on one folder. Settings such "
        "as --train.max_steps 300 apply to every run, except where a variant sets them itself.",
    )
    parser.add_argument("--study", required=True, choices=[*STUDIES, "all"], help="study whose variants are compared")
    parser.add_argument("--seeds", default="5", metavar="N|LIST",
                        help="number of seeds, counted from 0, or a list of seeds such as 0,7,9")
    parser.add_argument("--trials", metavar="FILE.yaml",
                        help="first try every variant with each settings of this file and with its own; those with the "
                        "best validation are then trained with --seeds; null = no trials, a variant's own settings")
    parser.add_argument("--trial_seed", type=NonNegativeInt, default=1000, metavar="N",
                        help="seed of every trial; no seed of the tables")
    parser.add_argument("--only", action="append", default=[], metavar="LABEL",
                        help="run only this variant; may be repeated")
    parser.add_argument("--scores", action="append", default=[], metavar="NAME=FILE.npz",
                        help="add a row for another model, from a file as ascl eval --scores reads it; it stays until "
                        "its folder in OUT/scores is removed; may be repeated")
    parser.add_argument("--probe_captions", type=NonNegativeInt, default=1000, metavar="N",
                        help="also probe variants of N test captions in each run (see ascl eval --probes); 0 = none")
    parser.add_argument("--parallel", type=PositiveInt, metavar="N",
                        help="number of runs at a time, each with its own GPU; null = one per GPU, or one on a CPU")
    parser.add_argument("--processes", type=PositiveInt, default=1, metavar="N",
                        help="processes that train one run together, started by accelerate launch")
    parser.add_argument("--threads", type=PositiveInt, metavar="N",
                        help="OMP_NUM_THREADS of each process; null = unchanged, or an equal share with --parallel")
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--dry_run", action="store_true", help="only print each run, its progress and its command")
    what.add_argument("--report", action="store_true", help="only write the reports of finished runs, train nothing")
    parser.add_settings(retrieval.Config)
    return parser


def ablate(options: Namespace) -> Answer:
    from ascl.analysis.ablation.commands import shown
    from ascl.analysis.ablation.plan import Request, choose, plan, plan_trials
    from ascl.analysis.ablation.report import add_outside, write_reports
    from ascl.analysis.ablation.runner import make_slots, run_all, visible_gpus
    from ascl.analysis.ablation.state import describe
    from ascl.analysis.ablation.trials import chosen_settings, read_trials, tried

    if not options.dataset:
        raise SettingsError("no data set: give --dataset NAME")
    request = Request(
        dataset=options.dataset, studies=tuple(STUDIES) if options.study == "all" else (options.study,),
        seeds=seeds_of(options.seeds), settings=settings_of(options), processes=options.processes,
        out=Path(options.out) if "out" in options.given else Path("runs") / f"ablation-{options.dataset}",
        probe_captions=options.probe_captions, trial_seed=options.trial_seed,
        trials=() if options.trials is None else read_trials(Path(options.trials)),
    )
    trials = plan_trials(request)
    runs = plan(request, chosen_settings(request, trials))
    chosen = choose([*trials, *runs], options.only)
    outside = [outside_of(text) for text in options.scores]
    if options.dry_run:
        for one in chosen:
            print(f"{describe(one):<12}{one.name}\n    {shown(one)}")
        return Answer([{"run": one.name, "state": describe(one), "command": shown(one)} for one in chosen])
    broken = {name: reason for name, file in outside if (reason := add_outside(request, name, file))}
    failures = []
    if not options.report:
        several = options.processes > 1 or options.parallel != 1
        gpus = visible_gpus() if several else []
        slots = make_slots(options.parallel, options.processes, options.threads, gpus)
        with ending("the same command continues"):
            say = partial(print, flush=True)                                            # flush: a log file shows it
            if trials:
                failures = run_all([one for one in chosen if one.trial], request, slots, say)
                runs = plan(request, chosen_settings(request, trials))
                chosen = choose([*trials, *runs], options.only)
            failures += run_all([one for one in chosen if not one.trial], request, slots, say)
    written = write_reports(request, runs, failures, tried(request, trials))
    print("written:", *written)
    for failure in failures:
        print(f"failed: {failure.run.name}: {failure.reason}", file=sys.stderr)
    for name, reason in broken.items():
        print(f"failed: scores of {name}: {reason}", file=sys.stderr)
    failed = {**{failure.run.name: failure.reason for failure in failures}, **broken}
    return Answer({"written": written, "failed": failed}, 1 if failed else 0)


def settings_of(options: Namespace) -> tuple[str, ...]:
    """Return the settings on the command line, as options for each training."""
    values = flatten(to_dict(build(retrieval.Config, options)))
    given = [name for name in options.given if name in leaf_types(retrieval.Config) and name not in ("dataset", "out")]
    if "train.seed" in given:
        raise SettingsError("--train.seed differs between runs: give --seeds instead")
    return tuple(f"--{name}={json.dumps(values[name]) if not isinstance(values[name], str) else values[name]}"
                 for name in dict.fromkeys(given))


def seeds_of(text: str) -> tuple[int, ...]:
    """Parse seeds: "3" -> (0, 1, 2), "4,7" -> (4, 7), "4," -> (4,)."""
    try:
        numbers = [int(part) for part in text.strip("[]").split(",") if part.strip()]
    except ValueError:
        raise SettingsError(f"--seeds {text}: give a number, or a list such as 0,7,9") from None
    seeds = tuple(numbers) if "," in text else tuple(range(numbers[0] if numbers else 0))
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise SettingsError(f"--seeds {text}: give at least one seed, all of them different and 0 or larger")
    return seeds


def outside_of(text: str) -> tuple[str, Path]:
    """Parse scores of another model: "NAME=FILE" -> (name, file)."""
    name, equals, file = text.partition("=")
    if not (name and equals and file):
        raise SettingsError(f"--scores {text!r}: expected NAME=FILE.npz")
    return name, Path(file)
