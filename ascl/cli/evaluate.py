"""`ascl eval`: recalls in both directions over every pair, printed and saved as JSON and Markdown."""

from __future__ import annotations

import json
from pathlib import Path

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from ascl.cli.options import Answer, add_run_data, ending, run_data
from ascl.core.errors import SettingsError
from ascl.settings.base import Parser

COMPUTING = ("save_scores", "dtype", "block", "probes", "probe_captions")   # options about scores that are computed


def evaluate_parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog, description="Evaluate a run, an ensemble of runs (their scores are averaged), or a score matrix "
                               "from "
        "elsewhere. On COCO's 5K test split ECCV Caption and CxC come beside the recalls where their authors' package "
        "is installed (pip install 'ascl[labels]'); on `scenes`, whose whole truth is known, mAP@R and R-Precision.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", nargs="+", metavar="RUN", help="run folders or checkpoint files")
    source.add_argument("--scores", metavar="FILE.npz", help="arrays `scores` (images, texts) and `owner` (texts,); "
                        "with COCO's numbers `image_ids` and `caption_ids` also ECCV Caption and CxC")
    parser.add_argument("--split", help="split of the run's data set; null = its test split")
    parser.add_argument("--folds", type=PositiveInt, metavar="N", help="also the mean over N consecutive folds of the "
                        "images (COCO 1K: 5)")
    parser.add_argument("--protocol", choices=["all-pairs", "paired"], default="all-pairs",
                        help="paired: what an evaluation that sees the answer would say, a diagnostic")
    add_run_data(parser)
    parser.add_argument("--probes", action="store_true", help="make variants of each caption that say something false, "
                        "more or less, and count how often the score orders them right: 5 to 9 more texts a caption")
    parser.add_argument("--probe_captions", type=PositiveInt, metavar="N",
                        help="--probes for N captions only, evenly spread")
    parser.add_argument("--backend", choices=["auto", "reference", "algebra", "triton"], default="auto",
                        help="how pairs are scored")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"],
                        help="of the matrix products, null = the model's; softmax and sums stay in float32")
    parser.add_argument("--block", type=PositiveInt, metavar="N",
                        help="images, and texts, whose pairs are scored at a time; null = by the free memory")
    parser.add_argument("--save_scores", metavar="FILE.npz", help="also write scores and owner, as --scores reads them")
    parser.add_argument("--out", metavar="FOLDER", help="folder of eval-*.json, .md and ranks-*.npz; null = the run, "
                                                        "or "
                        "beside the scores")
    return parser


def evaluate(options: Namespace) -> Answer:
    check(options)
    import torch

    from ascl.analysis import evaluation as evaluations

    with ending("stopped; no unfinished file was left"):
        if options.protocol == "paired":
            return paired(options)
        if options.scores:
            made = evaluations.evaluate_given(options.scores, folds=options.folds)
            folder, name = Path(options.scores).parent, Path(options.scores).stem
        else:
            made = evaluations.evaluate_runs(
                options.checkpoint, options.split, folds=options.folds, overrides=run_data(options),
                scoring={"backend": options.backend, "block": options.block,
                         "dtype": getattr(torch, options.dtype) if options.dtype else None},
                save_scores=Path(options.save_scores) if options.save_scores else None,
                probes=options.probes or options.probe_captions is not None, probe_captions=options.probe_captions,
            )
            first = Path(options.checkpoint[0])
            folder = first.parent if first.is_file() else first
            name = made.about["split"] + ("-ensemble" if len(options.checkpoint) > 1 else "")
        saved = evaluations.save_evaluation(made, Path(options.out) if options.out else folder, name)
    print(evaluations.evaluation_markdown(made))
    print("saved:", *saved)
    return Answer(json.loads(saved[0].read_text(encoding="utf-8")))


def paired(options: Namespace) -> Answer:
    """The leak diagnostic: printed, never saved."""
    from ascl.analysis.evaluation import evaluate_paired, markdown
    from ascl.analysis.leakage import WARNING

    reports = evaluate_paired(options.checkpoint[0], options.split, overrides=run_data(options))
    print(f"{WARNING}\n\n{markdown(reports)}\n{WARNING}\n(not saved)")
    return Answer({"warning": WARNING, "reports": {name: report.to_dict() for name, report in reports.items()}})


def check(options: Namespace) -> None:
    """Refuse options that would be passed over in silence."""
    computing = [f"--{name}" for name in COMPUTING if options[name]] + ["--backend"] * (options.backend != "auto")
    if options.protocol == "paired":
        if not options.checkpoint or len(options.checkpoint) > 1:
            raise SettingsError("--protocol paired looks inside one model: give one --checkpoint")
        beside = ["--folds"] * bool(options.folds) + computing
        if beside:
            raise SettingsError("--protocol paired is a diagnostic of the whole split, and there is nothing to probe "
                                f"where the answer is seen: leave {', '.join(beside)} out")
    if options.scores and computing:
        raise SettingsError(f"{', '.join(computing)}: about computing scores, and these are in a file already; probes "
                            "need a model that can score other texts: give --checkpoint")
