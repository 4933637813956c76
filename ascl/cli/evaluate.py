"""`ascl eval`: recalls in both directions over every pair, printed and saved as JSON and Markdown."""

from __future__ import annotations

import json
from pathlib import Path

from jsonargparse import Namespace
from jsonargparse.typing import PositiveInt

from ascl.cli.options import Answer, add_run_data, ending, run_data
from ascl.core.errors import SettingsError
from ascl.settings.base import Parser

COMPUTING = ("save_scores", "dtype", "block", "probes", "probe_captions")   # options for computing scores


def evaluate_parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog, description="Evaluate retrieval over all pairs of images and texts: of a run, of an ensemble of "
        "runs (their scores are averaged), or of given scores. On COCO's 5K test split, ECCV Caption and CxC are "
        "reported too if their authors' package is installed (pip install 'ascl[labels]'); on `scenes`, where all true "
        "pairs are known, mAP@R and R-Precision.",
    )
    source = parser.add_mutually_exclusive_group(required=True)
    # in a group that excludes, so `Parser.add_argument` does not see it
    source.add_argument("--checkpoint", nargs="+", action="extend", metavar="RUN",
                        help="run folders or checkpoint files")
    source.add_argument("--scores", metavar="FILE", help="given scores: .npz with array `scores` (images, texts), "
                        "larger is better, and array `owner` (texts,), the image of each text; or .npy with --owner or "
                        "--captions_per_image. (texts, images), and images repeated for each of their texts, are "
                        "recognized. With arrays `image_ids` and `caption_ids` of COCO's numbers, also ECCV Caption "
                        "and CxC")
    parser.add_argument("--owner", metavar="FILE", help="--scores: .npy, or text with one number a line: the image of "
                        "each text, counted from 0; null = array `owner` of the file")
    parser.add_argument("--captions_per_image", type=PositiveInt, metavar="N", help="--scores: instead of --owner, "
                        "where each image has N texts, one image after the other")
    parser.add_argument("--split", help="split to evaluate; null = the run's test split")
    parser.add_argument("--folds", type=PositiveInt, metavar="N", help="also report the mean over N consecutive folds "
                        "of the images (5 for COCO 1K)")
    parser.add_argument("--protocol", choices=["all-pairs", "paired"], default="all-pairs",
                        help="paired: a diagnostic of what an evaluation would report that sees the answer; not saved")
    add_run_data(parser)
    parser.add_argument("--probes", action="store_true", help="also score variants of each caption that say something "
                        "false, more or less, and report how often the score orders them correctly; scores 5 to 9 more "
                        "texts per caption")
    parser.add_argument("--probe_captions", type=PositiveInt, metavar="N",
                        help="--probes for only N captions, evenly spread")
    parser.add_argument("--backend", choices=["auto", "reference", "algebra", "triton"], default="auto",
                        help="how pairs are scored. reference: torch's attention, slow; algebra: the same result, "
                        "faster; triton: a GPU kernel; auto: algebra")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"],
                        help="type of the matrix products, null = the model's; softmax and sums stay in float32")
    parser.add_argument("--block", type=PositiveInt, metavar="N",
                        help="score blocks of N images and N texts at a time; null = by the free memory")
    parser.add_argument("--save_scores", metavar="FILE.npz", help="also write the scores, as --scores reads them")
    parser.add_argument("--out", metavar="FOLDER", help="folder for eval-*.json, eval-*.md and ranks-*.npz; null = the "
                        "run folder, or the folder of --scores")
    return parser


def evaluate(options: Namespace) -> Answer:
    check(options)
    import torch

    from ascl.analysis import evaluation as evaluations

    with ending("stopped; no unfinished file was left"):
        if options.protocol == "paired":
            return paired(options)
        if options.scores:
            made = evaluations.evaluate_given(options.scores, folds=options.folds, owner=options.owner,
                                              captions_per_image=options.captions_per_image)
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
    """Print the leak diagnostic, and do not save it."""
    from ascl.analysis.evaluation import evaluate_paired, markdown
    from ascl.analysis.leakage import WARNING

    reports = evaluate_paired(options.checkpoint[0], options.split, overrides=run_data(options))
    print(f"{WARNING}\n\n{markdown(reports)}\n{WARNING}\n(not saved)")
    return Answer({"warning": WARNING, "reports": {name: report.to_dict() for name, report in reports.items()}})


def check(options: Namespace) -> None:
    """Refuse options that would be ignored."""
    computing = [f"--{name}" for name in COMPUTING if options[name]] + ["--backend"] * (options.backend != "auto")
    if options.protocol == "paired":
        if not options.checkpoint or len(options.checkpoint) > 1:
            raise SettingsError("--protocol paired needs one model: give one --checkpoint")
        beside = ["--folds"] * bool(options.folds) + computing
        if beside:
            raise SettingsError("--protocol paired is a diagnostic of the whole split, without folds, probes or saved "
                                f"scores: leave {', '.join(beside)} out")
    owners = [f"--{name}" for name in ("owner", "captions_per_image") if options[name]]
    if owners and not options.scores:
        raise SettingsError(f"{', '.join(owners)}: for given scores (--scores); a run's captions say it themselves")
    if options.scores and computing:
        raise SettingsError(f"{', '.join(computing)}: for computing scores, which --scores gives; to compute them with "
                            "a model, give --checkpoint instead")
