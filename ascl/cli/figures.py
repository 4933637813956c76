"""`ascl figures`: plot finished runs and studies, as PNG with the plotted numbers as CSV."""

from __future__ import annotations

from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from ascl.cli.options import Answer, add_run_data, ending, run_data
from ascl.core.errors import SettingsError
from ascl.settings.base import Parser

FIGURES = {       # figure -> name of its files, what it shows
    "samples": ("figure3_samples", "the paper's figure 3, Rsum by kind of positives and negatives (from a folder of "
                "ascl ablate)"),
    "alignment": ("figure4_alignment", "the paper's figure 4, alignment and uniformity"),
    "length": ("figure5_length", "the paper's figure 5, text-to-image recall by length of the query"),
    "curves": ("curves", "training loss and validation Rsum"),
    "time": ("time", "best validation Rsum so far against the seconds of training"),
    "local-weight": ("local_weight", "recall of a trained model that is scored with other local weights (u1)"),
    "trained-weight": ("trained_weight", "recall of models trained with other local weights (from a folder of ascl "
                       "ablate)"),
    "temperature": ("temperature", "recall of models trained with other temperatures (from a folder of ascl ablate)"),
    "leak": ("leak", "how much an evaluation gains that sees the answer"),
}
OF_STUDIES = ("samples", "temperature", "trained-weight")
OF_MODELS = ("alignment", "local-weight", "leak")       # these run a model


def figures_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description="Plot one figure as PNG, with the plotted numbers as CSV. "
                    + "; ".join(f"{name}: {shows}" for name, (_, shows) in FIGURES.items()) + ".")
    parser.add_argument("figure", choices=list(FIGURES), help="figure to plot")
    parser.add_argument("sources", nargs="+", metavar="SOURCE",
                        help="RUN: a run folder; LABEL=RUN,RUN: several seeds under one label; TABLE.csv: all variants "
                        "of a study; FOLDER: a folder of ascl ablate, all variants of its studies")
    parser.add_argument("--only", nargs="+", default=[], metavar="LABEL", help="plot only these labels, in this order")
    parser.add_argument("--split", help="split to evaluate; null = the run's test split, for local-weight the images "
                        "on which it was validated")
    add_run_data(parser)
    parser.add_argument("--bins", type=PositiveInt, nargs="+", metavar="WORDS",
                        help="length: most words of a query in each bin but the last; null = 6 8 10 12 15")
    parser.add_argument("--sample", type=PositiveInt, metavar="N",
                        help="length: draw only N of the queries, 1000 in the paper; null = all")
    parser.add_argument("--seed", type=NonNegativeInt, default=0, metavar="N", help="length: seed of --sample")
    parser.add_argument("--out", default="docs/figures", metavar="FOLDER", help="folder to write to")
    return parser


def figures(options: Namespace) -> Answer:
    check(options)
    from ascl.analysis.figures.draw import save

    with ending("stopped; no unfinished file was left"):
        saved = save(draw(options), options.out, FIGURES[options.figure][0])
    if options.figure == "leak":
        from ascl.analysis.leakage import WARNING

        print(WARNING)
    print("saved:", *saved)
    return Answer({"files": saved})


def check(options: Namespace) -> None:
    """Refuse options that would be ignored."""
    for name, takes in (("only", [one for one in FIGURES if one not in OF_STUDIES]), ("split", [*OF_MODELS, "length"]),
                        ("captions", OF_MODELS), ("features", OF_MODELS), ("bins", ["length"]), ("sample", ["length"])):
        if options[name] and options.figure not in takes:
            raise SettingsError(f"--{name} is only for {', '.join(takes)}, not {options.figure}; leave it out")
    if options.seed and not options.sample:
        raise SettingsError("--seed is for --sample: give both, or leave it out")


def draw(options: Namespace) -> Any:
    """Return the figure that the options name."""
    from ascl.analysis.figures import sources

    if options.figure == "samples":
        return sources.samples(options.sources)
    if options.figure == "temperature":
        return sources.against_setting(options.sources, "loss.temperature")
    if options.figure == "trained-weight":
        return sources.against_setting(options.sources, "model.local_weight")
    groups = sources.run_groups(options.sources, options.only)
    if options.figure in ("curves", "time"):
        return sources.curves(groups) if options.figure == "curves" else sources.times(groups)
    if options.figure == "length":
        return sources.lengths(groups, options.split, last_lengths=options.bins or sources.LAST_LENGTHS,
                               sample=options.sample, seed=options.seed)
    by_name = {"alignment": sources.alignment, "local-weight": sources.local_weight, "leak": sources.leak}
    return by_name[options.figure](groups, options.split, overrides=run_data(options))
