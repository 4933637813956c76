"""Evaluate copy detection: descriptors or predictions against a ground truth, with the protocol in the report.

  python tools/eval_copy.py --queries Q.h5 --references R.h5 --ground-truth GT.csv
  python tools/eval_copy.py ... --background B.h5 --score-norm sscd         SSCD's score normalisation (isc, negatives)
  python tools/eval_copy.py ... --background B.h5 --whiten 256              PCA whitening fitted on the background
  python tools/eval_copy.py ... --k 10                                      10 per query, not 500,000 over all queries
  python tools/eval_copy.py ... --whiten 256 --save-submission S.h5         the same vectors, for the challenge's server
  python tools/eval_copy.py ... --norm-filter --edits EDITS.csv --bootstrap 1000 --out report.json
  python tools/eval_copy.py --predictions P.csv --ground-truth GT.csv       predictions made elsewhere
  python tools/eval_copy.py --queries original.h5 strong.h5 --references original.h5 distractors.h5 \\
      --ground-truth copydays                                               Copydays: one file a folder (block)

Descriptors: HDF5 with `vectors` and `image_names` (several files are one set in parts), or a DISC2021 submission, given
on both sides. Ground truth: CSV query_id,reference_id, blank reference = distractor (DISC2021, NDEC; gzip too).
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from ascl.core.errors import DataError
from ascl.core.files import write_text

BACKGROUND_OPTIONS = ("weight", "start", "end")
NEGATIVE_OPTIONS = ("beta", "neighbours", "iterations")


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    files = result.add_argument_group("files")
    files.add_argument("--queries", nargs="+", metavar="Q.h5", help="descriptors of the queries")
    files.add_argument("--references", nargs="+", metavar="R.h5", help="descriptors of the references")
    files.add_argument("--predictions", metavar="P.csv", help="query_id,reference_id,score instead of a search; "
                       "descriptors are then needed for --norm-filter only")
    files.add_argument("--ground-truth", required=True, metavar="GT.csv", help="or `copydays`: by picture number")
    files.add_argument("--background", nargs="+", metavar="B.h5", help="descriptors of images that nobody copied")
    files.add_argument("--edits", metavar="EDITS.csv", help="query_id,kind,strength,content_scale: report by kind")
    files.add_argument("--save-predictions", metavar="P.csv", help="write the candidates with all their digits")
    files.add_argument("--save-submission", metavar="S.h5", help="write the vectors that were compared, at most 256 "
                       "numbers each, as DISC2021's descriptor track takes them")
    files.add_argument("--out", metavar="REPORT.json", help="write the report, and REPORT.md beside it")
    rule = result.add_argument_group("protocol")
    rule.add_argument("--candidates", type=int, help="best pairs over all queries (default: 500000)")
    rule.add_argument("--k", type=int, help="best references of each query instead (copydays: 100)")
    rule.add_argument("--score-norm", choices=["sscd", "isc", "negatives"],
                      help="subtract the background's scores, or its vectors (negatives)")
    rule.add_argument("--weight", type=float, help="of the background scores (beta); sscd 1, isc 2")
    rule.add_argument("--start", type=int, help="first of the largest background scores, from 0; sscd 0, isc 9")
    rule.add_argument("--end", type=int, help="last of them; sscd 2, isc 9")
    rule.add_argument("--beta", type=float, help="of negatives: share that is subtracted (0.35)")
    rule.add_argument("--neighbours", type=int, help="of negatives: nearest vectors averaged (10)")
    rule.add_argument("--iterations", type=int, help="of negatives (1)")
    rule.add_argument("--whiten", type=int, metavar="D", help="dimensions of a PCA whitening fitted on the background")
    rule.add_argument("--norm-filter", action="store_true", help="also without pairs whose query shows more (ASL)")
    rule.add_argument("--bootstrap", type=int, default=0, metavar="N", help="intervals from N draws of the queries")
    rule.add_argument("--seed", type=int, default=0, help="of the draws")
    rule.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="of the search")
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        report = evaluate(options)
        print(report.to_markdown())
        if options.out:
            path = Path(options.out)
            markdown = path.with_suffix(".md")
            if markdown == path:
                raise DataError(f"--out {path} is where the Markdown goes; name a .json file")
            write_text(path, json.dumps(report.to_dict(), indent=2) + "\n")
            write_text(markdown, report.to_markdown())
            print("saved:", path, markdown)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; no unfinished file was left", file=sys.stderr)
        return 130
    return 0


def evaluate(options: argparse.Namespace):
    import torch

    from ascl.image_copy.descriptors.files import read_descriptors, write_submission
    from ascl.image_copy.evaluation import files as copy_files
    from ascl.image_copy.evaluation import protocol
    from ascl.image_copy.evaluation.candidates import find_candidates, given_candidates
    from ascl.image_copy.evaluation.copydays import NEIGHBOURS, copydays_ground_truth
    from ascl.image_copy.evaluation.evaluate import evaluate_candidates

    check(options)
    copydays = options.ground_truth == "copydays"
    truth = None if copydays else copy_files.read_ground_truth(options.ground_truth)
    edits = copy_files.read_edits(options.edits) if options.edits else None
    sides = None
    if options.queries:
        sides = (read_descriptors(options.queries, "query", folder_ids=copydays),
                 read_descriptors(options.references, "reference"))
    if options.predictions:
        query, reference, score = copy_files.read_predictions(options.predictions)
        candidates = given_candidates(query, reference, score, options.predictions)
    else:
        assert sides is not None  # check
        if options.device == "cuda" and not torch.cuda.is_available():
            raise DataError("--device cuda: torch sees no GPU here; use --device cpu")
        device = ("cuda" if torch.cuda.is_available() else "cpu") if options.device == "auto" else options.device
        chosen = protocol.Protocol(normalization=normalisation(options, protocol), whiten=options.whiten, device=device)
        if options.k or (copydays and not options.candidates):
            chosen = replace(chosen, candidates="per query", limit=options.k or NEIGHBOURS)
        elif options.candidates:
            chosen = replace(chosen, limit=options.candidates)
        background = read_descriptors(options.background, "reference") if options.background else None
        candidates = find_candidates(*sides, background, chosen)
    if truth is None:
        if sides is None:
            raise DataError("--ground-truth copydays needs --queries and --references, whose ids it reads")
        truth = copydays_ground_truth(sides[0].names, sides[1].names)
    report = evaluate_candidates(
        candidates, truth, norms=sides if options.norm_filter else None, edits=edits, copydays=copydays,
        bootstrap_samples=options.bootstrap, seed=options.seed,
    )
    if options.save_predictions:
        copy_files.write_predictions(
            options.save_predictions, candidates.query, candidates.reference, candidates.score
        )
    if options.save_submission:
        assert candidates.compared is not None  # check
        write_submission(options.save_submission, *candidates.compared)
    return report


def check(options: argparse.Namespace) -> None:
    """Refuse options that contradict one another or would be passed over in silence."""
    given = {name for name, value in vars(options).items() if value is not None and value is not False}
    if bool(options.queries) != bool(options.references):
        raise DataError("--queries and --references belong together")
    if not options.predictions and not options.queries:
        raise DataError("give --queries and --references, or --predictions")
    if options.save_submission and (options.predictions or options.score_norm in ("sscd", "isc")):
        why = "--predictions has none" if options.predictions else (
            f"--score-norm {options.score_norm} needs inner products of one dimension more, and the challenge compares "
            "distances"
        )
        raise DataError(f"--save-submission writes vectors that were compared by distance; {why}")
    searching = {"candidates", "k", "score_norm", "whiten", "background", *BACKGROUND_OPTIONS, *NEGATIVE_OPTIONS}
    if options.predictions and given & searching:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(given & searching))
        raise DataError(f"{names}: of a search, and --predictions has been searched already; leave them out")
    if options.norm_filter and not options.queries:
        raise DataError("--norm-filter needs the norms: give --queries and --references too")
    if options.candidates is not None and options.k is not None:
        raise DataError("--candidates and --k are two rules; give one")
    for name in ("candidates", "k", "whiten"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise DataError(f"--{name} {getattr(options, name)}: at least 1")
    if options.bootstrap < 0:
        raise DataError(f"--bootstrap {options.bootstrap}: 0 or more")
    unused = given & set(BACKGROUND_OPTIONS if options.score_norm not in ("sscd", "isc") else NEGATIVE_OPTIONS)
    if options.score_norm is None:
        unused |= given & set(NEGATIVE_OPTIONS)
    if unused:
        raise DataError(f"--{sorted(unused)[0]} says nothing with --score-norm {options.score_norm}; leave it out")


def normalisation(options: argparse.Namespace, protocol):
    """The chosen normalisation with the published settings, less those that were given."""
    published = {None: None, "sscd": protocol.SSCD, "isc": protocol.ISC, "negatives": protocol.ISC_WINNER}
    chosen = published[options.score_norm]
    names = NEGATIVE_OPTIONS if options.score_norm == "negatives" else BACKGROUND_OPTIONS
    changes = {name: getattr(options, name) for name in names if getattr(options, name) is not None}
    return replace(chosen, **changes) if chosen is not None else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
