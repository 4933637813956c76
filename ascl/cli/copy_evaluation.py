"""`ascl copy eval` and `ascl copy benchmark`: evaluate copy detection, and make a benchmark for it."""

from __future__ import annotations

import json
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from ascl.cli.groups import watching
from ascl.cli.options import (
    INCOMPLETE,
    Answer,
    add_device,
    add_image_files,
    add_seed,
    add_workers,
    ending,
    print_left_out,
    status_of,
)
from ascl.core.errors import SettingsError
from ascl.settings.base import Parser

OF_SCORES = ("weight", "start", "end")                  # options of --score_norm sscd and isc
OF_VECTORS = ("beta", "neighbours", "iterations")       # options of --score_norm negatives
OF_GEOMETRY = ("query_images", "reference_images", "verify_cache")      # options of --verify
OF_A_SEARCH = ("candidates", "k", "score_norm", "whiten", "background", *OF_SCORES, *OF_VECTORS)


def evaluate_parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog, description="Evaluate copy detection: descriptors or predictions against a ground truth. The report "
        "states the protocol. Descriptors: HDF5 files with `vectors` and `image_names` (ascl extract descriptors; "
        "several files form one set), or one DISC2021 submission, given as both --queries and --references.",
    )
    files = parser.add_argument_group("files")
    files.add_argument("--queries", nargs="+", metavar="Q.h5", help="descriptors of the queries")
    files.add_argument("--references", nargs="+", metavar="R.h5", help="descriptors of the references")
    files.add_argument("--predictions", metavar="P.csv", help="CSV query_id,reference_id,score, evaluated instead of a "
                       "search; descriptors are then only needed for --norm_filter")
    files.add_argument("--ground_truth", required=True, metavar="GT.csv", help="true pairs, CSV "
                       "query_id,reference_id as in DISC2021 and NDEC, also gzipped; a query without a copy has no "
                       "reference_id. Or the word copydays: pairs by Copydays' picture numbers, with one descriptor "
                       "file per folder (block)")
    files.add_argument("--background", nargs="+", metavar="B.h5",
                       help="descriptors of background images, which have no copies, for --score_norm and --whiten")
    files.add_argument("--edits", metavar="EDITS.csv",
                       help="CSV query_id,kind,strength,content_scale: also report by kind of edit")
    files.add_argument("--hard_negatives", metavar="N.csv", help="CSV query_id,reference_id of pairs that are alike "
                       "but no copies: also report how many are among the top pairs, by kind of edit")
    files.add_argument("--save_predictions", metavar="P.csv",
                       help="write the candidate pairs and their scores, as --predictions reads them")
    files.add_argument("--save_submission", metavar="S.h5", help="write the compared vectors, of at most 256 "
                       "dimensions, as a submission to DISC2021's descriptor track")
    files.add_argument("--out", metavar="REPORT.json", help="write the report, also as REPORT.md")
    look = parser.add_argument_group("geometry")
    look.add_argument("--verify", type=PositiveInt, metavar="N", help="relate the N best candidates of each query by "
                      "geometry, as ascl copy query --verify does, and evaluate the candidates in the order that this "
                      "gives (needs OpenCV); null = the scores decide")
    look.add_argument("--query_images", metavar="FOLDER", help="--verify: folder of the queries' pictures; their ids "
                      "are paths in it, or file names without the suffix")
    look.add_argument("--reference_images", metavar="FOLDER", help="--verify: folder of the references' pictures")
    look.add_argument("--verify_cache", metavar="DIR", help="--verify: folder that keeps what is found, 0.1 MB a "
                      "picture, so that another evaluation of the same pictures is quick; null = a temporary one")
    look.add_argument("--workers", type=NonNegativeInt, default=2, metavar="N", help="--verify: threads that read and "
                      "compare pictures; 0 = one")
    rule = parser.add_argument_group("protocol")
    rule.add_argument("--candidates", type=PositiveInt, metavar="N",
                      help="evaluate the N best pairs over all queries; null = 500,000, as in DISC2021")
    rule.add_argument("--k", type=PositiveInt, metavar="N",
                      help="evaluate the N best references of each query instead; null = 100 for copydays")
    rule.add_argument("--score_norm", choices=["sscd", "isc", "negatives"], help="normalization with the background: "
                      "subtract its scores from each score (sscd, isc), or its nearest vectors from each vector "
                      "(negatives); null = none")
    rule.add_argument("--weight", type=float, help="sscd, isc: factor of the mean background score that is subtracted "
                      "(beta); null = 1 for sscd, 2 for isc")
    rule.add_argument("--start", type=NonNegativeInt, metavar="N", help="sscd, isc: first rank, from 0, of the query's "
                      "background scores that are averaged; null = 0 for sscd, 9 for isc")
    rule.add_argument("--end", type=NonNegativeInt, metavar="N",
                      help="sscd, isc: last rank that is averaged; null = 2 for sscd, 9 for isc")
    rule.add_argument("--beta", type=float, help="negatives: factor of the mean vector that is subtracted; null = 0.35")
    rule.add_argument("--neighbours", type=PositiveInt, metavar="N",
                      help="negatives: number of nearest background vectors that are averaged; null = 10")
    rule.add_argument("--iterations", type=PositiveInt, metavar="N",
                      help="negatives: number of subtractions; null = 1")
    rule.add_argument("--whiten", type=PositiveInt, metavar="D",
                      help="first whiten to D dimensions by a PCA of the background; null = no whitening")
    rule.add_argument("--norm_filter", action="store_true", help="also evaluate without the pairs whose query has the "
                      "larger norm, and so shows more than the reference (ASL)")
    rule.add_argument("--bootstrap", type=NonNegativeInt, default=0, metavar="N",
                      help="confidence intervals from N bootstrap resamples of the queries; 0 = none")
    add_seed(parser, "seed of the bootstrap")
    add_device(parser)
    return parser


def evaluate(options: Namespace) -> Answer:
    check(options)
    from ascl.core.files import write_text
    from ascl.images.find import FoundImages, Skipped

    out = None if options.out is None else Path(options.out)
    with ending("stopped; no unfinished file was left"):
        report = report_of(options)
        if out is not None:
            write_text(out, json.dumps(report.to_dict(), indent=2) + "\n")
            write_text(out.with_suffix(".md"), report.to_markdown())
    print(report.to_markdown())
    if out is not None:
        print("saved:", out, out.with_suffix(".md"))
    skipped = [Skipped(**one) for one in report.sections.get("verification", {}).get("not_read", [])]
    print_left_out(FoundImages(), skipped)
    return Answer(report.to_dict(), status_of(skipped))


def report_of(options: Namespace) -> Any:
    """Return the report, and write the predictions and the submission if asked for."""
    from ascl.image_copy.descriptors.files import read_descriptors, write_submission
    from ascl.image_copy.evaluation import files
    from ascl.image_copy.evaluation.candidates import find_candidates, given_candidates
    from ascl.image_copy.evaluation.copydays import NEIGHBOURS, copydays_ground_truth
    from ascl.image_copy.evaluation.evaluate import evaluate_candidates
    from ascl.image_copy.evaluation.protocol import Protocol
    from ascl.image_copy.evaluation.verified import verify_candidates
    from ascl.image_copy.matching.local_features import opencv
    from ascl.images.backbones import pick_device

    if options.verify:
        opencv()        # a search may take long, so first see whether it is there
    copydays = options.ground_truth == "copydays"
    truth = None if copydays else files.read_ground_truth(options.ground_truth)
    edits = files.read_edits(options.edits) if options.edits else None
    negatives = files.read_hard_negatives(options.hard_negatives) if options.hard_negatives else None
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
    verified = None
    if options.verify:
        with watching() as progress:
            verified = verify_candidates(
                candidates, options.query_images, options.reference_images, options.verify, cache=options.verify_cache,
                threads=max(1, options.workers), progress=progress,
            )
        candidates = verified.candidates
    report = evaluate_candidates(
        candidates, truth, norms=sides if options.norm_filter else None, edits=edits, negatives=negatives,
        copydays=copydays, bootstrap_samples=options.bootstrap, seed=options.seed, verified=verified,
    )
    if options.save_predictions:
        files.write_predictions(options.save_predictions, candidates.query, candidates.reference, candidates.score)
    if options.save_submission:
        assert candidates.compared is not None  # check
        write_submission(options.save_submission, *candidates.compared)
    return report


def check(options: Namespace) -> None:
    """Refuse options that contradict one another or would be ignored."""
    given = {name for name in options.given if options[name]}
    if bool(options.queries) != bool(options.references):
        raise SettingsError("--queries and --references belong together: give both")
    if not options.predictions and not options.queries:
        raise SettingsError("give --queries and --references, or --predictions")
    if options.ground_truth == "copydays" and not options.queries:
        raise SettingsError("--ground_truth copydays needs --queries and --references, because it pairs their ids")
    if options.save_submission and (options.predictions or options.score_norm in ("sscd", "isc")):
        why = "--predictions has no vectors" if options.predictions else (
            f"--score_norm {options.score_norm} compares by inner products with one more dimension, and the challenge "
            "by distance"
        )
        raise SettingsError(f"--save_submission writes vectors that were compared by distance, but {why}")
    if options.predictions and given & set(OF_A_SEARCH):
        names = ", ".join(f"--{name}" for name in sorted(given & set(OF_A_SEARCH)))
        raise SettingsError(f"{names}: options of a search, and --predictions are its result; leave them out")
    if options.norm_filter and not options.queries:
        raise SettingsError("--norm_filter needs norms: give --queries and --references too")
    if options.candidates is not None and options.k is not None:
        raise SettingsError("--candidates and --k are two ways to choose candidates: give one")
    if options.hard_negatives and not (options.edits or options.verify):
        raise SettingsError("--hard_negatives are counted by kind, and by what geometry calls them: give --edits or "
                            "--verify too")
    folders = [name for name in ("query_images", "reference_images") if options[name] is None]
    if options.verify and folders:
        raise SettingsError(f"--verify looks at the pictures: give {' and '.join(f'--{name}' for name in folders)} too")
    without = [name for name in OF_GEOMETRY if options[name] is not None]
    if without and not options.verify:
        raise SettingsError(f"--{without[0]} has no effect without --verify; leave it out, or say how many candidates "
                            "to verify")
    if options.out is not None and Path(options.out).suffix == ".md":
        raise SettingsError(f"--out {options.out}: name a .json file; the Markdown is written beside it")
    unused = set(OF_SCORES if options.score_norm not in ("sscd", "isc") else OF_VECTORS)
    unused |= set(OF_VECTORS) if options.score_norm is None else set()
    wrong = [name for name in options.given if name in unused]
    if wrong:
        norm = "without --score_norm" if options.score_norm is None else f"with --score_norm {options.score_norm}"
        raise SettingsError(f"--{wrong[0]} has no effect {norm}; leave it out")


def normalization(options: Namespace) -> Any:
    """Return the chosen normalization, with the published settings except for those given."""
    from ascl.image_copy.evaluation import protocol

    published = {None: None, "sscd": protocol.SSCD, "isc": protocol.ISC, "negatives": protocol.ISC_WINNER}
    chosen = published[options.score_norm]
    names = OF_VECTORS if options.score_norm == "negatives" else OF_SCORES
    changes = {name: options[name] for name in names if options[name] is not None}
    return replace(chosen, **changes) if chosen is not None else None


def benchmark_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description="Make a benchmark of image copy detection from a folder of photos, in the "
                    "layout of DISC2021. Photos and their near-duplicates serve in one role only. Then describe its "
                    "images with ascl extract descriptors, and evaluate with ascl copy eval.")
    parser.add_argument("--images", required=True, metavar="FOLDER", help="folder of photos, searched at any depth")
    parser.add_argument("--out", required=True, metavar="FOLDER", help="folder to write; must not exist")
    parser.add_argument("--kind", choices=["standard", "hard"], default="standard", help="standard: single edits; "
                        "hard: chains of edits, soft pastes, templates, edited reverse crops and bursts of one scene")
    for name, help in (
        ("references", "photos in the reference set; null = 45% of the usable photos (hard: 30%)"),
        ("queries", "queries that are edited copies of references; null = as many as references"),
        ("distractors", "queries that are edited copies of photos outside the reference set; null = 10% (hard: 8%)"),
        ("reverse_crops", "hard negatives: the reference is a crop, and the query shows the whole photo; null = 10% "
         "(hard: 14%)"),
        ("templates", "only hard: two unrelated photos in one template, as reference and query; null = 7%"),
        ("bursts", "only hard: two windows of one photo, like two photographs of one scene; null = 8%"),
        ("background", "photos for score normalization and calibration; null = 25% (hard: 16%)"),
    ):
        parser.add_argument(f"--{name}", type=NonNegativeInt, metavar="N", help=help)
    add_seed(parser, "seed of the choice of photos and of the edits")
    parser.add_argument("--jpeg_quality", type=PositiveInt, metavar="N",
                        help="JPEG quality of the edited images, from 1 to 100; null = 95. With hard the highest: "
                        "each image has its own, from 60 on")
    parser.add_argument("--max_side", type=PositiveInt, metavar="N",
                        help="before editing, scale photos down to at most N pixels per side; null = 1024, with "
                        "hard as they are")
    parser.add_argument("--min_side", type=PositiveInt, metavar="N",
                        help="leave out photos whose shorter side has fewer than N pixels; null = 32")
    add_workers(parser)
    add_image_files(parser)
    return parser


def benchmark(options: Namespace) -> Answer:
    from ascl.image_copy.benchmark.make import make_benchmark
    from ascl.image_copy.benchmark.plan import BenchmarkSettings, HardBenchmarkSettings

    started = time.perf_counter()
    chosen = HardBenchmarkSettings if options.kind == "hard" else BenchmarkSettings
    sizes = [field.name for field in fields(chosen)]
    for name in ("templates", "bursts"):
        if options[name] is not None and name not in sizes:
            raise SettingsError(f"--{name} has no effect with --kind {options.kind}; leave it out, or give --kind hard")
    settings = chosen(**{name: options[name] for name in sizes if options[name] is not None})
    with ending("stopped; no unfinished benchmark was left"):
        done = make_benchmark(options.images, options.out, settings, workers=options.workers,
                              exclude=options.exclude, strict=options.strict)
    print(f"{done.summary()}\n{time.perf_counter() - started:.1f} s")
    return Answer(vars(done), 0 if done.complete else INCOMPLETE)
