"""Who copied whom: a persistent index of images, and questions to it.

  python tools/find_copies.py index photos/ --index DIR --checkpoint RUN       a run of tools/train_copy.py describes
  python tools/find_copies.py index photos/ --index DIR --backbone resnet50    a pretrained network with GeM
  python tools/find_copies.py index photos/ --index DIR --method phash         perceptual hash (the default), a baseline
  python tools/find_copies.py add new.jpg more/ --index DIR [--replace]
  python tools/find_copies.py remove old_id another_id --index DIR
  python tools/find_copies.py calibrate unrelated_photos/ --index DIR --false-positive-rate 1e-3
  python tools/find_copies.py query upload.jpg --index DIR [--k 10] [--json] [--predictions P.csv]
  python tools/find_copies.py info --index DIR
  python tools/find_copies.py compact --index DIR                              gives removed rows back

An image's id is its file's name without the suffix. What was confirmed survives a kill at any moment, and several
processes may use one index. `index` on an index that is there adds what is new. Exit status: 0 done, 1 refused, 130
stopped (what was confirmed is kept; the same command goes on).
"""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from ascl.core.errors import DataError
from ascl.images.read import images_of


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    commands = result.add_subparsers(dest="command", required=True)

    def command(name: str, help: str, *, model: bool = False) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help, allow_abbrev=False)
        made.add_argument("--index", required=True, metavar="DIR", help="folder of the index")
        if model:
            add_model_options(made)
        return made

    index = command("index", "describe images and make an index of them, or go on with one", model=True)
    index.add_argument("images", nargs="+", metavar="FOLDER", help="folders, images, or lists (.txt)")
    index.add_argument("--exact-up-to", type=int, metavar="N", help="images, of a new index, up to which the search is "
                       "exact and not compressed (100000)")
    add = command("add", "add images", model=True)
    add.add_argument("images", nargs="+", metavar="PATH", help="images, folders, or lists (.txt)")
    for one in (index, add):
        one.add_argument("--replace", action="store_true", help="new content takes the place of the old under its id")
    remove = command("remove", "remove images by id")
    remove.add_argument("ids", nargs="+", metavar="ID")
    query = command("query", "the best matches of images: score, direction, and whether it is a copy", model=True)
    query.add_argument("images", nargs="+", metavar="IMAGE", help="images, folders, or lists (.txt)")
    query.add_argument("--k", type=int, default=10, help="most matches of each image (default: %(default)s)")
    query.add_argument("--json", action="store_true", help="print JSON")
    query.add_argument("--predictions", metavar="P.csv", help="write every match for tools/eval_copy.py")
    query.add_argument("--exact", action="store_true", help="look at every image, not through the compressed index")
    query.add_argument("--margin", type=float, help="relative difference of two norms up to which the direction is "
                       "unclear (0.02; 0 is the published rule)")
    calibrate = command("calibrate", "threshold of a false-positive rate from images that nobody copied", model=True)
    calibrate.add_argument("images", nargs="+", metavar="BACKGROUND", help="folders, images, or lists (.txt)")
    calibrate.add_argument("--false-positive-rate", type=float, default=1e-3, metavar="RATE",
                           help="share of unrelated images that may be called copies (default: %(default)s)")
    calibrate.add_argument("--confidence", type=float, default=0.95, help="of the intervals (default: %(default)s)")
    calibrate.add_argument("--score-norm", action="store_true", help="subtract from every score the mean of the "
                           "query's 3 best on the background (SSCD)")
    info = command("info", "what the index holds and how it is searched")
    info.add_argument("--json", action="store_true", help="print JSON")
    command("compact", "give the rows of removed images back, and build the compressed index again where one is due")
    return result


def add_model_options(parser: argparse.ArgumentParser) -> None:
    model = parser.add_argument_group(
        "model", "chosen when the index is made and recorded in it; later only to say where it is now"
    )
    source = model.add_mutually_exclusive_group()
    source.add_argument("--checkpoint", metavar="RUN", help="a run of tools/train_copy.py, or one of its checkpoints")
    source.add_argument("--model", metavar="FILE", help="TorchScript file: normalised pixels -> vectors")
    source.add_argument("--backbone", metavar="NAME", help="a torchvision classifier, or timm:NAME, with GeM alone")
    source.add_argument("--method", choices=("phash",), help="perceptual hash of 64 bits")
    model.add_argument("--weights", help="of --backbone: default, random:SEED or a path (default)")
    model.add_argument("--same-padding", action="store_true", help="of --backbone: for weights from TensorFlow")
    model.add_argument("--pool", choices=("gem", "class+gem"), help="of --backbone (gem)")
    model.add_argument("--normalize", choices=("imagenet", "half", "none"),
                       help="of --backbone and --model: what the weights were trained with (imagenet)")
    model.add_argument("--input-size", type=int, help="side of the square; as the run says, else 288")
    model.add_argument("--resize", choices=("squash", "crop"),
                       help="squash the whole image, or crop its centre; as the run says, else squash")
    model.add_argument("--ordered-norms", action="store_true", help="of --model and --backbone: it was trained with a "
                       "norm-ratio loss, so that norms tell who copied whom; a run of train_copy.py knows")
    work = parser.add_argument_group("work")
    work.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ...")
    work.add_argument("--batch-size", type=int, default=32, help="images in a forward pass (default: %(default)s)")
    work.add_argument("--workers", type=int, default=0, help="processes that decode (default: %(default)s, none apart)")
    work.add_argument("--skip-unreadable", action="store_true",
                      help="leave images out that cannot be read or are too small, and list them")


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        for name, least in (("batch_size", 1), ("workers", 0), ("k", 1), ("input_size", 1), ("exact_up_to", 0)):
            value = getattr(options, name, None)
            if value is not None and value < least:
                raise DataError(f"--{name.replace('_', '-')} {value}: at least {least}")
        COMMANDS[options.command](options)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; what was confirmed is in the index, and the same command goes on", file=sys.stderr)
        return 130
    return 0


def run_index(options: argparse.Namespace) -> None:
    from ascl.image_copy.descriptors.choice import DescriberChoice, make_describer
    from ascl.image_copy.matching.model import create_index, recorded_choice
    from ascl.index.store import EXACT_UP_TO, CopyIndex, is_index

    images = images_of(*options.images)
    index = CopyIndex(options.index) if is_index(options.index) else None
    if index is not None and index.state.added:
        if options.exact_up_to not in (None, index.state.exact_up_to):
            raise DataError(f"--exact-up-to is for a new index; {options.index} has {index.state.exact_up_to}")
        describer = open_model(index, options)
    else:
        choice = DescriberChoice.from_options(vars(options))
        if choice is None and index is not None:    # what an earlier call chose before its first image failed
            choice = recorded_choice(index)
        if choice is None:
            choice = DescriberChoice("phash")
            print("no model was chosen: images are described by the perceptual hash, a baseline without direction that "
                  "crops defeat; --checkpoint RUN gives a learned descriptor", file=sys.stderr)
        describer = make_describer(choice, device_of(options))
        exact = EXACT_UP_TO if options.exact_up_to is None else options.exact_up_to
        index = create_index(options.index, choice, describer, exact_up_to=exact)
    add_to(index, describer, images, options)


def run_add(options: argparse.Namespace) -> None:
    from ascl.index.store import CopyIndex

    index = CopyIndex(options.index)
    images = images_of(*options.images)
    add_to(index, open_model(index, options), images, options)


def add_to(index: Any, describer: Any, images: list, options: argparse.Namespace) -> None:
    from ascl.image_copy.matching.add import add_images

    with reading(options, len(images)) as how:
        done, skipped = add_images(index, describer, images, how, overwrite=options.replace)
    print(f"added {done.added:,} images" + f", {done.replaced:,} of them in the place of others" * bool(done.replaced)
          + f"; {done.same:,} were there already" * bool(done.same))
    tell_skipped(skipped)
    if index.compress_if_due():
        about = index.state.compressed
        print(f"compressed index built: {about['factory']}, recall@10 {about['recall_at_10']:.3f}")
    print(f"{index.folder}: {len(index):,} images by {index.state.model['name']}")
    tell_warnings(index)


def run_remove(options: argparse.Namespace) -> None:
    from ascl.index.store import CopyIndex

    index = CopyIndex(options.index)
    print(f"removed {index.remove(options.ids):,} images; {len(index):,} remain")


def run_query(options: argparse.Namespace) -> None:
    from ascl.image_copy.matching import query as find
    from ascl.image_copy.matching.report import answers_table, index_report
    from ascl.index.store import CopyIndex

    index = CopyIndex(options.index)
    images = images_of(*options.images)
    margin = find.MARGIN if options.margin is None else options.margin
    with reading(options, len(images)) as how:
        answers, skipped = find.query_images(
            index, open_model(index, options), images, how, k=options.k, margin=margin, exact=options.exact
        )
    if options.predictions:
        rows = find.write_answers(options.predictions, answers)
        print(f"wrote {rows:,} matches to {options.predictions}", file=sys.stderr)
    if options.json:
        report = index_report(index)
        queries = [answer.to_dict() for answer in answers]
        print(json.dumps({"index": report, "queries": queries, "skipped": [vars(one) for one in skipped]}, indent=1))
    elif not options.predictions:
        print(answers_table(answers))
    tell_skipped(skipped)
    tell_warnings(index)


def run_calibrate(options: argparse.Namespace) -> None:
    from ascl.image_copy.matching.calibrate import SAVED_AGAIN, calibrate_index
    from ascl.image_copy.matching.report import calibration_lines
    from ascl.index.calibration import ScoreNorm
    from ascl.index.store import CopyIndex

    index = CopyIndex(options.index)
    images = images_of(*options.images)
    with reading(options, len(images)) as how:
        made, skipped = calibrate_index(
            index, open_model(index, options), images, how, rate=options.false_positive_rate,
            confidence=options.confidence, score_norm=ScoreNorm() if options.score_norm else None,
        )
    overlap = made.left_out["in the index"] + made.left_out[SAVED_AGAIN]
    if overlap:
        print(f"warning: {overlap:,} background images are in the index, {made.left_out[SAVED_AGAIN]:,} of them "
              "saved again; they were left out", file=sys.stderr)
    print("\n".join(calibration_lines(made)))
    tell_skipped(skipped)
    tell_warnings(index)


def run_info(options: argparse.Namespace) -> None:
    from ascl.image_copy.matching.report import index_report, info_text
    from ascl.index.store import CopyIndex

    index = CopyIndex(options.index)
    print(json.dumps(index_report(index), indent=1) if options.json else info_text(index))
    tell_warnings(index)


def run_compact(options: argparse.Namespace) -> None:
    from ascl.index.store import CopyIndex

    index = CopyIndex(options.index)
    print(f"gave back {index.compact():,} rows; {len(index):,} images, searched: {index.searched_by}")


COMMANDS = {"index": run_index, "add": run_add, "remove": run_remove, "query": run_query,
            "calibrate": run_calibrate, "info": run_info, "compact": run_compact}


def open_model(index: Any, options: argparse.Namespace) -> Any:
    """The index's model, from where the options say or where it was."""
    from ascl.image_copy.descriptors.choice import DescriberChoice
    from ascl.image_copy.matching.model import describer_of, recorded_choice

    choice = DescriberChoice.from_options(vars(options), recorded_choice(index))
    return describer_of(index, choice, device_of(options))


def device_of(options: argparse.Namespace) -> str:
    from ascl.images.backbones import pick_device

    return pick_device(options.device)


class reading:
    """`ReadOptions` with a bar on a terminal."""

    def __init__(self, options: argparse.Namespace, images: int) -> None:
        self.options, self.images = options, images

    def __enter__(self) -> Any:
        from tqdm import tqdm

        from ascl.image_copy.matching.describe import ReadOptions

        self.bar = tqdm(total=self.images, unit=" images", disable=None)
        return ReadOptions(self.options.batch_size, self.options.workers, self.options.skip_unreadable, self.bar.update)

    def __exit__(self, *error: object) -> None:
        self.bar.close()


def tell_skipped(skipped: list) -> None:
    if skipped:
        print(f"skipped {len(skipped):,} images that cannot be used:", file=sys.stderr)
        for one in skipped:
            print(f"  {one.path}: {one.reason}", file=sys.stderr)


def tell_warnings(index: Any) -> None:
    from ascl.image_copy.matching.report import warnings_of

    for warning in warnings_of(index):
        print(f"warning: {warning}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
