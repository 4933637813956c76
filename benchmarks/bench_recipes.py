"""Compare methods at equal time of training on one core: recall on the test split after 60, 180 and 600 seconds.

  python benchmarks/bench_recipes.py --dataset flickr8k_small --method AsCL --method VSE++
  python benchmarks/bench_recipes.py --dataset flickr8k_small --method "tuned=optimizer.lr=2e-3 samples.negatives=none"
  python benchmarks/bench_recipes.py --dataset scenes --method AsCL --quick    tiny budgets, to test the program

For each method the time of a step is measured; then `train.max_steps` and a cosine schedule are set so that training
takes the budget, and `ascl train` and `ascl eval` run in one process on one core. Texts of a frozen encoder with a
cache are encoded before. Methods alternate. After a kill the same command continues: finished runs in --out are not
trained again. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, median, stdev

import measuring
import results
from measuring import number

from ascl.analysis.ablation.plan import Request, Run, digest_of, make_run
from ascl.analysis.ablation.results import Result, read_result
from ascl.analysis.ablation.runner import Slot, run_all
from ascl.analysis.ablation.state import state_of, steps_of
from ascl.analysis.ablation.studies import STUDIES, StudyVariant
from ascl.analysis.run_files import RECALLS
from ascl.core.errors import DataError
from ascl.core.files import write_text
from ascl.core.reading import read_json
from ascl.core.tables import markdown_table
from ascl.data.split import build_split
from ascl.retrieval import build
from ascl.settings.retrieval import Config, load_config
from ascl.training.log import METRICS, read_metrics

BUDGETS, SEEDS, PROBE_STEPS = (60.0, 180.0, 600.0), (0, 1, 2), 24
ONE_CORE = Slot({"OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""})
PLAN = "steps.json"
WHAT = "Rsum / I2T R@1 / R@5 / R@10 / T2I R@1 / R@5 / R@10"
ORDER = ("rsum", *(name for name in RECALLS if name != "rsum"))


@dataclass(frozen=True)
class Finished:
    """One finished run: its method and budget in seconds, and the step time in seconds that it was planned with."""

    method: StudyVariant
    budget: float
    planned: float
    run: Run
    result: Result


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--dataset", required=True, metavar="NAME", help="as of ascl train; it sets train.max_steps")
    result.add_argument("--method", action="append", required=True, metavar="LABEL[=SETTINGS]",
                        help="a variant of the study `methods` of ascl ablate, or a label with settings such as "
                             "'x=model.kind=vse optimizer.lr=1e-3'; may be repeated")
    result.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help="setting of every run; may be repeated")
    result.add_argument("--budget", action="append", type=float, metavar="SECONDS",
                        help=f"of training, without validation; may be repeated (default: {BUDGETS})")
    result.add_argument("--seed", action="append", type=int, help=f"may be repeated (default: {SEEDS})")
    result.add_argument("--validations", type=int, default=1,
                        help="in each run, the last one at its end (default: %(default)s)")
    result.add_argument("--probe-steps", type=int, help=f"to measure the time of a step (default: {PROBE_STEPS})")
    result.add_argument("--out", metavar="FOLDER", help="for the runs (default: runs/recipes-DATASET)")
    result.add_argument("--quick", action="store_true", help="tiny budgets; writes only to a given --results")
    result.add_argument("--results", metavar="FILE", help="CSV to add to (default: benchmarks/results.csv)")
    return result


def method_of(text: str) -> StudyVariant:
    """Parse `LABEL` or `LABEL=NAME=VALUE ...`.

    Raises:
        DataError: there is no such variant, or a setting has no value.
    """
    label, equals, words = text.partition("=")
    if not equals:
        known = {variant.label: variant for variant in STUDIES["methods"]}
        if label not in known:
            raise DataError(f"--method {label}: no such variant; choose from {', '.join(known)}, or give settings as "
                            f"'{label}=NAME=VALUE'")
        return known[label]
    settings = {}
    for word in words.split():
        name, given, value = word.partition("=")
        if not given:
            raise DataError(f"--method {text}: expected NAME=VALUE, got {word!r}")
        settings[name] = value
    return StudyVariant(label, settings)


def words_of(options: argparse.Namespace, method: StudyVariant) -> tuple[str, ...]:
    """Return the settings of a method as words of a command line, in one process without a loader of its own."""
    return ("--dataset", options.dataset, *(f"--{word}" for word in options.set), *method.words, "--train.workers=0",
            "--train.patience=null")


def fill_cache(config: Config) -> None:
    """Encode the texts that a run will draw, if the settings have a cache, so that its training only reads them."""
    if config.text.cache is None:
        return
    assert config.train.max_steps is not None                       # set by `scheduled`
    captions, store = build_split(config, config.data.train)
    assert store.region_dim is not None and store.global_dim is not None            # checked by `build_split`
    encoder = build.build_model(config, store.region_dim, store.global_dim).text
    assert encoder is not None
    batches = build.build_batches(config, build.build_pairs(config, captions, store), process=0, processes=1)
    drawn = itertools.chain.from_iterable(batches(epoch, 0) for epoch in itertools.count())
    for batch in itertools.islice(drawn, config.train.max_steps):
        encoder([*batch.captions, *(batch.positives or [])])


def train(run: Run, request: Request) -> None:
    """Train, and evaluate unless it is a trial, what is not finished yet; raise DataError if it fails."""
    if state_of(run) in ("missing", "interrupted"):
        fill_cache(run.config)
    failures = run_all([run], request, [ONE_CORE], lambda line: print(line, file=sys.stderr, flush=True))
    if failures:
        raise DataError(f"{run.name}: {failures[0].reason}")


def seconds_of_step(options: argparse.Namespace, request: Request, method: StudyVariant) -> float:
    """Return the median seconds of a training step, from a short run on its own."""
    count = options.probe_steps
    words = (*words_of(options, method), f"--train.max_steps={count}", f"--train.validate_every={count}",
             f"--train.log_every={max(1, count // 6)}", "--data.val_images=8", "--data.val_folds=1")
    run = replace(make_run(request, ("step time", method.label), words, load_config(words), "probes"), trial=True)
    train(run, request)
    found = [record for record in read_metrics(run.folder / METRICS) if record["kind"] == "train"]
    times = [(after["seconds"] - before["seconds"]) / (after["step"] - before["step"])
             for before, after in zip(found, found[1:], strict=False)]
    if not times:
        raise DataError(f"--probe-steps {count}: too few to measure the time of a step; give more")
    return median(times)


def scheduled(options: argparse.Namespace, method: StudyVariant, steps: int) -> tuple[str, ...]:
    """Return the settings that make a method's training end after so many steps, warm-ups in proportion."""
    words = words_of(options, method)
    own = load_config(words)
    if own.train.max_steps is None:
        raise DataError(f"{method.label}: set train.max_steps, with which the warm-ups are in proportion")
    share = steps / own.train.max_steps
    return (*words, f"--train.max_steps={steps}", "--optimizer.schedule=cosine",
            f"--optimizer.warmup_steps={round(share * own.optimizer.warmup_steps)}",
            f"--loss.triplet_warmup_steps={round(share * own.loss.triplet_warmup_steps)}",
            f"--train.validate_every={-(-steps // options.validations)}")


def planned_steps(options: argparse.Namespace, request: Request, method: StudyVariant, budget: float,
                  done: Sequence[Finished]) -> tuple[int, float]:
    """Return the steps that take the budget, and the seconds of a step that this assumes.

    A step takes as long as in the method's last finished run, or else as measured. The answer is kept in --out, so that
    all seeds, and the same command after a kill, get the same one.
    """
    path = request.out / PLAN
    kept = read_json(path, dict, "remove it") if path.exists() else {}
    key = f"{digest_of(load_config(words_of(options, method)))[:12]}, {budget:g} s"
    if key not in kept:
        last = next((one.result for one in reversed(done) if one.method == method), None)
        seconds = (last.seconds / last.steps if last is not None and last.seconds and last.steps
                   else seconds_of_step(options, request, method))
        kept[key] = {"steps": max(1, round(budget / seconds)), "seconds of a step": seconds}
        write_text(path, json.dumps(kept, indent=2) + "\n")
    return kept[key]["steps"], kept[key]["seconds of a step"]


def measure(options: argparse.Namespace, methods: Sequence[StudyVariant]) -> list[Finished]:
    """Train and evaluate every method with every budget and seed; methods alternate.

    Raises:
        DataError: a run fails.
    """
    request = Request(options.dataset, (), tuple(options.seed), (), Path(options.out))
    done: list[Finished] = []
    for budget in sorted(options.budget):
        for seed in options.seed:
            for method in methods:
                steps, planned = planned_steps(options, request, method, budget, done)
                words = scheduled(options, method, steps)
                config = load_config((*words, f"--train.seed={seed}"))
                run = make_run(request, (f"{budget:g} s", method.label), words, config)
                train(run, request)
                done.append(Finished(method, budget, planned, run, read_result(
                    run.folder, run.evaluation, seed, steps=steps_of(run))))
    return done


def summary(done: Sequence[Finished]) -> str:
    """Return a Markdown table with a row per method and budget."""
    lines = []
    for method, budget in dict.fromkeys((one.method.label, one.budget) for one in done):
        same = [one.result for one in done if (one.method.label, one.budget) == (method, budget)]
        lines.append([method, f"{budget:g}", len(same), same[0].steps,
                      spread([result.seconds or 0.0 for result in same]),
                      *(spread([result.metrics[name] for result in same]) for name in ORDER)])
    return markdown_table(["Method", "Budget (s)", "Seeds", "Steps", "Seconds", *WHAT.split(" / ")], lines)


def spread(values: Sequence[float]) -> str:
    """Return mean and sample standard deviation."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def rows(done: Sequence[Finished], command: str, warning: str) -> list[results.Row]:
    """Return a row per run, with hardware, commit and versions of its training."""
    found = []
    for one in done:
        result, ranks = one.result, one.result.ranks
        assert ranks is not None                                    # `ascl eval` writes them
        environment = read_json(one.run.folder / "environment.json", dict, "train the run again")
        config = one.run.config
        found.append(results.Row(
            f"{config.dataset} {config.data.test}, {ranks.images:,} images x {len(ranks.owner):,} captions, after "
            f"{one.budget:g} s of training on one core: {one.method.label}, seed {result.seed}: {WHAT}",
            " / ".join(f"{result.metrics[name]:.1f}" for name in ORDER), "sum of six percentages / percent", command,
            environment["device"], environment["commit"],
            f"python {environment['python']}, torch {environment['torch']}", results.today(),
            f"{warning}{result.steps} steps in {result.seconds or 0:.1f} s (planned with {number(one.planned)} s a "
            f"step), best of {config.train.validate_every}-step validations at step {result.best_step}; settings "
            f"{' '.join(one.run.arguments[2:-4])}; digest {one.run.digest[:12]}"))
    return found


def check_options(options: argparse.Namespace) -> list[StudyVariant]:
    """Fill in defaults, check the options and return the methods.

    Raises:
        DataError: a number is out of range, two methods have one label, or the results file cannot be read.
    """
    defaults = {"budget": [1.0], "seed": [0], "probe_steps": 4} if options.quick else {
        "budget": list(BUDGETS), "seed": list(SEEDS), "probe_steps": PROBE_STEPS}
    for name, value in (defaults | {"out": f"runs/recipes-{options.dataset}"}).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name, values in (("budget", options.budget), ("validations", [options.validations]),
                         ("probe-steps", [options.probe_steps])):
        if min(values) <= 0:
            raise DataError(f"--{name} {min(values)}: must be above 0")
    methods = [method_of(text) for text in options.method]
    if len({method.label for method in methods}) < len(methods):
        raise DataError("--method: two methods have one label; rename one")
    measuring.check_results(options)
    return methods


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        done = measure(options, check_options(options))
        print(summary(done))
        found = rows(done, results.command(__file__, arguments), measuring.QUICK_WARNING if options.quick else "")
        target = measuring.results_file(options)
        if target is not None:
            known = {replace(row, date="") for row in results.read(target)}
            results.append(target, [row for row in found if replace(row, date="") not in known])
            print(f"\nadded to {target}")
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
