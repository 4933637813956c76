"""Evaluate: recalls in both directions over every pair, printed and saved as JSON and Markdown.

  python tools/eval.py --checkpoint RUN                      the test split of the run's data set
  python tools/eval.py --checkpoint RUN_A RUN_B              an ensemble: averaged scores
  python tools/eval.py --checkpoint RUN --folds 5            COCO: 5K, and 1K as the mean of five folds
  python tools/eval.py --checkpoint RUN --save-scores S.npz  also keep the score matrix
  python tools/eval.py --checkpoint RUN --probes             also: does the score order variants of the captions right
  python tools/eval.py --scores FILE.npz                     a score matrix from elsewhere: arrays scores, owner
  python tools/eval.py --checkpoint RUN --protocol paired    what an evaluation that sees the answer would say

On COCO's 5K test split ECCV Caption and CxC come beside the recalls where their authors' package is installed
(pip install eccv_caption); on `scenes`, whose whole truth is known, mAP@R and R-Precision.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ascl.core.errors import DataError


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = result.add_mutually_exclusive_group(required=True)
    source.add_argument("--checkpoint", nargs="+", metavar="RUN", help="run folder(s) or checkpoint file(s)")
    source.add_argument("--scores", metavar="FILE.npz", help="arrays `scores` (images, texts) and `owner` (texts,); "
                        "with COCO's numbers `image_ids` and `caption_ids` also ECCV Caption and CxC")
    result.add_argument("--split", help="default: the test split of the settings")
    result.add_argument("--folds", type=int, help="also the mean over this many consecutive folds of images")
    result.add_argument("--protocol", choices=["all-pairs", "paired"], default="all-pairs")
    result.add_argument("--captions", help="captions file or folder, where the run's is no longer in place")
    result.add_argument("--features", nargs="+", help="feature files, where the run's are no longer in place")
    result.add_argument("--probes", action="store_true",
                        help="make variants of each caption that say something false, more or less, and count how "
                        "often the score orders them right: 5 to 9 further texts a caption are encoded")
    result.add_argument("--probe-captions", type=int, metavar="N", help="--probes for N captions only, evenly spread")
    result.add_argument("--backend", choices=["auto", "reference", "algebra", "triton"], default="auto",
                        help="how pairs are scored (default: auto)")
    result.add_argument("--dtype", choices=["float32", "bfloat16", "float16"],
                        help="of the matrix products (default: the model's); softmax and sums stay in float32")
    result.add_argument("--block", type=int, metavar="N",
                        help="images, and texts, whose pairs are scored at a time (default: by the free memory)")
    result.add_argument("--save-scores", metavar="FILE.npz", help="also write scores and owner, as --scores reads them")
    result.add_argument("--out",
                        help="folder for eval-*.json, .md and ranks-*.npz; default: the run, or beside the scores")
    return result


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    import torch

    from ascl.analysis import evaluation as run
    from ascl.analysis.leakage import WARNING

    overrides = {name: getattr(options, name) for name in ("captions", "features") if getattr(options, name)}
    try:
        if options.protocol == "paired":
            if not options.checkpoint or len(options.checkpoint) > 1:
                raise DataError("--protocol paired looks inside one model: give one --checkpoint")
            if options.folds or options.save_scores or options.dtype or options.block or options.backend != "auto":
                raise DataError("--protocol paired is a diagnostic of the whole split: leave --folds, --save-scores, "
                                "--backend, --dtype and --block out")
            if options.probes or options.probe_captions:
                raise DataError("--protocol paired sees the answer: there is nothing to probe; leave --probes out")
            reports = run.evaluate_paired(options.checkpoint[0], options.split, overrides=overrides)
            print(f"{WARNING}\n\n{run.markdown(reports)}\n{WARNING}\n(not saved)")
            return 0
        if options.scores:
            if options.save_scores or options.dtype or options.block or options.backend != "auto":
                raise DataError("--save-scores, --backend, --dtype and --block are about computing scores: "
                                "these are in a file already")
            if options.probes or options.probe_captions:
                raise DataError("--probes need a model that can score other texts: give --checkpoint")
            evaluation = run.evaluate_given(options.scores, folds=options.folds)
            folder, name = Path(options.scores).parent, Path(options.scores).stem
        else:
            scoring = {"backend": options.backend, "block": options.block,
                       "dtype": getattr(torch, options.dtype) if options.dtype else None}
            evaluation = run.evaluate_runs(
                options.checkpoint, options.split, folds=options.folds, overrides=overrides, scoring=scoring,
                save_scores=Path(options.save_scores) if options.save_scores else None,
                probes=options.probes or options.probe_captions is not None, probe_captions=options.probe_captions,
            )
            first = Path(options.checkpoint[0])
            folder = first.parent if first.is_file() else first
            name = evaluation.about["split"] + ("-ensemble" if len(options.checkpoint) > 1 else "")
        print(run.evaluation_markdown(evaluation))
        saved = run.save_evaluation(evaluation, Path(options.out) if options.out else folder, name)
    except (DataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; no unfinished file was left", file=sys.stderr)
        return 130
    print("saved:", *saved)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
