"""`ascl copy eval` and `ascl copy benchmark`: how good a descriptor is, and a benchmark to find out on."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from ascl.cli.options import Answer, add_device, add_seed, add_workers, ending
from ascl.core.errors import SettingsError
from ascl.settings.base import Parser

OF_SCORES = ("weight", "start", "end")                  # of --score_norm sscd and isc
OF_VECTORS = ("beta", "neighbours", "iterations")       # of --score_norm negatives
OF_A_SEARCH = ("candidates", "k", "score_norm", "whiten", "background", *OF_SCORES, *OF_VECTORS)


def evaluate_parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog, description="Evaluate copy detection: descriptors or predictions against a ground truth, with the "
        "protocol in the report. Descriptors: HDF5 with `vectors` and `image_names` (several files are one set in "
        "parts), "
        "or a DISC2021 submission, given on both sides. Ground truth: CSV query_id,reference_id, blank reference = "
        "distractor (DISC2021, NDEC; gzip too), or `copydays`: by picture number, one file a folder (block).",
    )
    files = parser.add_argument_group("files")
    files.add_argument("--queries", nargs="+", metavar="Q.h5", help="descriptors of the queries")
    files.add_argument("--references", nargs="+", metavar="R.h5", help="descriptors of the references")
    files.add_argument("--predictions", metavar="P.csv", help="query_id,reference_id,score instead of a search; "
                       "descriptors are then needed for --norm_filter only")
    files.add_argument("--ground_truth", required=True, metavar="GT.csv", help="the true pairs, or `copydays`")
    files.add_argument("--background", nargs="+", metavar="B.h5", help="descriptors of images that nobody copied")
    files.add_argument("--edits", metavar="EDITS.csv", help="query_id,kind,strength,content_scale: report by kind")
    files.add_argument("--save_predictions", metavar="P.csv", help="write the candidates with all their digits")
    files.add_argument("--save_submission", metavar="S.h5", help="write the vectors that were compared, at most 256 "
                       "numbers each, as DISC2021's descriptor track takes them")
    files.add_argument("--out", metavar="REPORT.json", help="write the report, and REPORT.md beside it")
    rule = parser.add_argument_group("protocol")
    rule.add_argument("--candidates", type=PositiveInt, metavar="N", help="best pairs over all queries; null = 500,000")
    rule.add_argument("--k", type=PositiveInt, metavar="N", help="best references of each query instead (copydays: "
                                                                 "100)")
    rule.add_argument("--score_norm", choices=["sscd", "isc", "negatives"],
                      help="subtract the background's scores, or its vectors (negatives)")
    rule.add_argument("--weight", type=float, help="of the background scores (beta); null = sscd 1, isc 2")
    rule.add_argument("--start", type=NonNegativeInt, metavar="N",
                      help="first of the largest background scores, from 0; null = sscd 0, isc 9")
    rule.add_argument("--end", type=NonNegativeInt, metavar="N", help="last of them; null = sscd 2, isc 9")
    rule.add_argument("--beta", type=float, help="of negatives: share that is subtracted; null = 0.35")
    rule.add_argument("--neighbours", type=PositiveInt, metavar="N",
                      help="of negatives: nearest vectors averaged; null = 10")
    rule.add_argument("--iterations", type=PositiveInt, metavar="N", help="of negatives; null = 1")
    rule.add_argument("--whiten", type=PositiveInt, metavar="D",
                      help="dimensions of a PCA whitening fitted on the background")
    rule.add_argument("--norm_filter", action="store_true", help="also without pairs whose query shows more (ASL)")
    rule.add_argument("--bootstrap", type=NonNegativeInt, default=0, metavar="N",
                      help="intervals from N draws of the queries")
    add_seed(parser, "of the draws")
    add_device(parser)
    return parser


def evaluate(options: Namespace) -> Answer:
    check(options)
    from ascl.core.files import write_text

    out = None if options.out is None else Path(options.out)
    with ending("stopped; no unfinished file was left"):
        report = report_of(options)
        if out is not None:
            write_text(out, json.dumps(report.to_dict(), indent=2) + "\n")
            write_text(out.with_suffix(".md"), report.to_markdown())
    print(report.to_markdown())
    if out is not None:
        print("saved:", out, out.with_suffix(".md"))
    return Answer(report.to_dict())


def report_of(options: Namespace) -> Any:
    """The report, and the files that are written on the way."""
    from ascl.image_copy.descriptors.files import read_descriptors, write_submission
    from ascl.image_copy.evaluation import files
    from ascl.image_copy.evaluation.candidates import find_candidates, given_candidates
    from ascl.image_copy.evaluation.copydays import NEIGHBOURS, copydays_ground_truth
    from ascl.image_copy.evaluation.evaluate import evaluate_candidates
    from ascl.image_copy.evaluation.protocol import Protocol
    from ascl.images.backbones import pick_device

    copydays = options.ground_truth == "copydays"
    truth = None if copydays else files.read_ground_truth(options.ground_truth)
    edits = files.read_edits(options.edits) if options.edits else None
    sides = None
    if options.queries:
        sides = (read_descriptors(options.queries, "query", folder_ids=copydays),
                 read_descriptors(options.references, "reference"))
    if options.predictions:
        query, reference, score = files.read_predictions(options.predictions)
        candidates = given_candidates(query, reference, score, options.predictions)
    else:
        assert sides is not None  # check
        chosen = Protocol(
            normalization=normalization(options), whiten=options.whiten, device=pick_device(options.device)
        )
        if options.k or (copydays and not options.candidates):
            chosen = replace(chosen, candidates="per query", limit=options.k or NEIGHBOURS)
        elif options.candidates:
            chosen = replace(chosen, limit=options.candidates)
        background = read_descriptors(options.background, "reference") if options.background else None
        candidates = find_candidates(*sides, background, chosen)
    if truth is None:
        assert sides is not None  # check
        truth = copydays_ground_truth(sides[0].names, sides[1].names)
    report = evaluate_candidates(
        candidates, truth, norms=sides if options.norm_filter else None, edits=edits, copydays=copydays,
        bootstrap_samples=options.bootstrap, seed=options.seed,
    )
    if options.save_predictions:
        files.write_predictions(options.save_predictions, candidates.query, candidates.reference, candidates.score)
    if options.save_submission:
        assert candidates.compared is not None  # check
        write_submission(options.save_submission, *candidates.compared)
    return report


def check(options: Namespace) -> None:
    """Refuse options that contradict one another or would be passed over in silence."""
    given = {name for name in options.given if options[name]}
    if bool(options.queries) != bool(options.references):
        raise SettingsError("--queries and --references belong together")
    if not options.predictions and not options.queries:
        raise SettingsError("give --queries and --references, or --predictions")
    if options.ground_truth == "copydays" and not options.queries:
        raise SettingsError("--ground_truth copydays needs --queries and --references, whose ids it reads")
    if options.save_submission and (options.predictions or options.score_norm in ("sscd", "isc")):
        why = "--predictions has none" if options.predictions else (
            f"--score_norm {options.score_norm} needs inner products of one dimension more, and the challenge compares "
            "distances"
        )
        raise SettingsError(f"--save_submission writes vectors that were compared by distance; {why}")
    if options.predictions and given & set(OF_A_SEARCH):
        names = ", ".join(f"--{name}" for name in sorted(given & set(OF_A_SEARCH)))
        raise SettingsError(f"{names}: of a search, and --predictions has been searched already; leave them out")
    if options.norm_filter and not options.queries:
        raise SettingsError("--norm_filter needs the norms: give --queries and --references too")
    if options.candidates is not None and options.k is not None:
        raise SettingsError("--candidates and --k are two rules; give one")
    if options.out is not None and Path(options.out).suffix == ".md":
        raise SettingsError(f"--out {options.out} is where the Markdown goes; name a .json file")
    unused = set(OF_SCORES if options.score_norm not in ("sscd", "isc") else OF_VECTORS)
    unused |= set(OF_VECTORS) if options.score_norm is None else set()
    wrong = [name for name in options.given if name in unused]
    if wrong:
        raise SettingsError(f"--{wrong[0]} says nothing with --score_norm {options.score_norm}; leave it out")


def normalization(options: Namespace) -> Any:
    """The chosen normalization with the published settings, less those that were given."""
    from ascl.image_copy.evaluation import protocol

    published = {None: None, "sscd": protocol.SSCD, "isc": protocol.ISC, "negatives": protocol.ISC_WINNER}
    chosen = published[options.score_norm]
    names = OF_VECTORS if options.score_norm == "negatives" else OF_SCORES
    changes = {name: options[name] for name in names if options[name] is not None}
    return replace(chosen, **changes) if chosen is not None else None


def benchmark_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description="A benchmark of image copy detection from any folder of photos, in the "
                                           "layout of "
                    "DISC2021. Sizes that are not given are shares of the photos that can be used.")
    parser.add_argument("--images", required=True, metavar="FOLDER", help="photos, searched at any depth")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to make; must not exist")
    for name, help in (
        ("references", "originals in the reference set"),
        ("queries", "edited copies of references; null = as many as references"),
        ("distractors", "queries that are copies of no reference"),
        ("reverse_crops", "hard negatives: the reference is a crop, the query shows more"),
        ("background", "photos for score normalization and calibration"),
    ):
        parser.add_argument(f"--{name}", type=NonNegativeInt, metavar="N", help=help)
    add_seed(parser, "of the choice and the edits")
    parser.add_argument("--jpeg_quality", type=PositiveInt, metavar="N", help="of the queries written; null = 95")
    parser.add_argument("--max_side", type=PositiveInt, metavar="N",
                        help="pixels of a photo before it is edited; null = 1024")
    parser.add_argument("--min_side", type=PositiveInt, metavar="N",
                        help="pixels; photos with a smaller side are left out; null = 32")
    add_workers(parser)
    return parser


def benchmark(options: Namespace) -> Answer:
    from ascl.image_copy.benchmark.make import make_benchmark
    from ascl.image_copy.benchmark.plan import BenchmarkSettings

    started = time.perf_counter()
    names = BenchmarkSettings.__dataclass_fields__
    settings = BenchmarkSettings(**{name: options[name] for name in names if options[name] is not None})
    with ending("stopped; nothing was left behind"):
        done = make_benchmark(options.images, options.out, settings, workers=options.workers)
    print(f"{done.summary()}\n{time.perf_counter() - started:.1f} s")
    return Answer(vars(done))
