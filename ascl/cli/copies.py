"""`ascl copy index|add|remove|query|calibrate|info|compact`: a persistent index of images, and questions to it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from ascl.cli.options import (
    Answer,
    add_batch_size,
    add_describer,
    add_device,
    add_skip_unreadable,
    add_workers,
    chosen_describer,
    ending,
)
from ascl.core.errors import SettingsError
from ascl.settings.base import Parser

KEPT = "what was confirmed is in the index, and the same command goes on"


def parser_of(prog: str, description: str) -> Parser:
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--index", required=True, metavar="DIR", help="folder of the index")
    return parser


def describing_parser(prog: str, description: str, images: str) -> Parser:
    """A parser of a command that describes images."""
    parser = parser_of(
        prog, f"{description} The model is chosen when the index is made and recorded in it; later its options only "
              f"say "
        "where it is now."
    )
    parser.add_argument("images", nargs="+", metavar=images, help="folders, images, or lists (.txt)")
    add_describer(parser)
    add_device(parser)
    add_batch_size(parser, 32)
    add_workers(parser)
    add_skip_unreadable(parser)
    return parser


def index_parser(prog: str) -> Parser:
    parser = describing_parser(
        prog, "Describe images and make an index of them, or go on with one; an image's id is its file's name without "
        "the suffix. Without a model images are described by the perceptual hash, a baseline.", "FOLDER",
    )
    parser.add_argument("--exact_up_to", type=NonNegativeInt, metavar="N", help="images, of a new index, up to which "
                                                                                "the "
                        "search is exact and not compressed; null = 100,000")
    add_replace(parser)
    return parser


def index(options: Namespace) -> Answer:
    from ascl.image_copy.descriptors.choice import DescriberChoice, make_describer
    from ascl.image_copy.matching.model import create_index, recorded_choice
    from ascl.images.backbones import pick_device
    from ascl.images.read import images_of
    from ascl.index.store import EXACT_UP_TO, CopyIndex, is_index

    images = images_of(*options.images)
    opened = CopyIndex(options.index) if is_index(options.index) else None
    if opened is not None and opened.state.added:
        if options.exact_up_to not in (None, opened.state.exact_up_to):
            raise SettingsError(
                f"--exact_up_to is for a new index; {options.index} has {opened.state.exact_up_to}"
            )
        describer = model_of(opened, options)
    else:
        choice = chosen_describer(options)
        if choice is None and opened is not None:    # what an earlier call chose before its first image failed
            choice = recorded_choice(opened)
        if choice is None:
            choice = DescriberChoice("phash")
            print("no model was chosen: images are described by the perceptual hash, a baseline without direction that "
                  "crops defeat; --checkpoint RUN gives a learned descriptor", file=sys.stderr)
        describer = make_describer(choice, pick_device(options.device))
        exact = EXACT_UP_TO if options.exact_up_to is None else options.exact_up_to
        opened = create_index(options.index, choice, describer, exact_up_to=exact)
    return add_to(opened, describer, images, options)


def add_parser(prog: str) -> Parser:
    parser = describing_parser(prog, "Add images to an index.", "PATH")
    add_replace(parser)
    return parser


def add(options: Namespace) -> Answer:
    from ascl.images.read import images_of
    from ascl.index.store import CopyIndex

    opened = CopyIndex(options.index)
    images = images_of(*options.images)
    return add_to(opened, model_of(opened, options), images, options)


def add_replace(parser: Parser) -> None:
    parser.add_argument("--replace", action="store_true", help="new content takes the place of the old under its id")


def add_to(opened: Any, describer: Any, images: list, options: Namespace) -> Answer:
    from ascl.image_copy.matching.add import add_images

    with reading(options, len(images)) as how, ending(f"stopped; {KEPT}"):
        done, skipped = add_images(opened, describer, images, how, overwrite=options.replace)
    compressed = opened.compress_if_due()
    tell_skipped(skipped)
    tell_warnings(opened)
    about = opened.state.compressed if compressed else None
    print(f"added {done.added:,} images" + f", {done.replaced:,} of them in the place of others" * bool(done.replaced)
          + f"; {done.same:,} were there already" * bool(done.same))
    if about is not None:
        print(f"compressed index built: {about['factory']}, recall@10 {about['recall_at_10']:.3f}")
    print(f"{opened.folder}: {len(opened):,} images by {opened.state.model['name']}")
    return Answer({"index": opened.folder, "images": len(opened), "added": done.added, "replaced": done.replaced,
                   "already_there": done.same, "skipped": [vars(one) for one in skipped], "compressed": about})


def remove_parser(prog: str) -> Parser:
    parser = parser_of(prog, "Remove images from an index by their ids; their rows are given back by ascl copy "
                             "compact.")
    parser.add_argument("ids", nargs="+", metavar="ID", help="ids of images")
    return parser


def remove(options: Namespace) -> Answer:
    from ascl.index.store import CopyIndex

    opened = CopyIndex(options.index)
    removed = opened.remove(options.ids)
    print(f"removed {removed:,} images; {len(opened):,} remain")
    return Answer({"removed": removed, "images": len(opened)})


def query_parser(prog: str) -> Parser:
    parser = describing_parser(prog, "The best matches of images: score, direction, and whether it is a copy.", "IMAGE")
    parser.add_argument("--k", type=PositiveInt, default=10, metavar="N", help="most matches of each image")
    parser.add_argument("--predictions", metavar="P.csv", help="write every match for ascl copy eval instead")
    parser.add_argument("--exact", action="store_true", help="look at every image, not through the compressed index")
    parser.add_argument("--margin", type=float, help="relative difference of two norms up to which the direction is "
                        "unclear; null = 0.02, 0 is the published rule")
    return parser


def query(options: Namespace) -> Answer:
    from ascl.image_copy.matching.query import MARGIN, query_images, write_answers
    from ascl.image_copy.matching.report import answers_table, index_report
    from ascl.images.read import images_of
    from ascl.index.store import CopyIndex

    opened = CopyIndex(options.index)
    images = images_of(*options.images)
    margin = MARGIN if options.margin is None else options.margin
    with reading(options, len(images)) as how:
        answers, skipped = query_images(
            opened, model_of(opened, options), images, how, k=options.k, margin=margin, exact=options.exact
        )
    if options.predictions:
        rows = write_answers(options.predictions, answers)
        print(f"wrote {rows:,} matches to {options.predictions}", file=sys.stderr)
    else:
        print(answers_table(answers))
    tell_skipped(skipped)
    tell_warnings(opened)
    return Answer({"index": index_report(opened), "queries": [answer.to_dict() for answer in answers],
                   "skipped": [vars(one) for one in skipped]})


def calibrate_parser(prog: str) -> Parser:
    parser = describing_parser(
        prog, "Set the threshold of a false-positive rate from images that nobody copied.", "BACKGROUND"
    )
    parser.add_argument("--false_positive_rate", type=float, default=1e-3, metavar="RATE",
                        help="share of unrelated images that may be called copies")
    parser.add_argument("--confidence", type=float, default=0.95, help="of the intervals")
    parser.add_argument("--score_norm", action="store_true", help="subtract from every score the mean of the query's 3 "
                        "best on the background (SSCD)")
    return parser


def calibrate(options: Namespace) -> Answer:
    from ascl.image_copy.matching.calibrate import SAVED_AGAIN, calibrate_index
    from ascl.image_copy.matching.report import calibration_lines
    from ascl.images.read import images_of
    from ascl.index.calibration import ScoreNorm
    from ascl.index.store import CopyIndex

    opened = CopyIndex(options.index)
    images = images_of(*options.images)
    with reading(options, len(images)) as how:
        made, skipped = calibrate_index(
            opened, model_of(opened, options), images, how, rate=options.false_positive_rate,
            confidence=options.confidence, score_norm=ScoreNorm() if options.score_norm else None,
        )
    overlap = made.left_out["in the index"] + made.left_out[SAVED_AGAIN]
    if overlap:
        print(f"warning: {overlap:,} background images are in the index, {made.left_out[SAVED_AGAIN]:,} of them saved "
              "again; they were left out", file=sys.stderr)
    print("\n".join(calibration_lines(made)))
    tell_skipped(skipped)
    tell_warnings(opened)
    return Answer({**made.to_dict(), "skipped": [vars(one) for one in skipped]})


def info_parser(prog: str) -> Parser:
    parser = parser_of(prog, "What an index holds and how it is searched.")
    parser.add_argument("--verify", action="store_true", help="read everything and name damaged batches; exit status 1 "
                        "where there are any")
    return parser


def info(options: Namespace) -> Answer:
    from ascl.image_copy.matching.report import index_report, info_text
    from ascl.index.store import CopyIndex

    opened = CopyIndex(options.index)
    print(info_text(opened))
    tell_warnings(opened)
    damaged = opened.verify() if options.verify else []
    for batch in damaged:
        print(f"damaged: {batch}", file=sys.stderr)
    return Answer({**index_report(opened), "damaged": [vars(batch) for batch in damaged]}, 1 if damaged else 0)


def compact_parser(prog: str) -> Parser:
    parser = parser_of(prog, "Give the rows of removed images back, and build the compressed index again where one is "
                       "due.")
    return parser


def compact(options: Namespace) -> Answer:
    from ascl.index.store import CopyIndex

    opened = CopyIndex(options.index)
    rows = opened.compact()
    print(f"gave back {rows:,} rows; {len(opened):,} images, searched: {opened.searched_by}")
    return Answer({"rows_given_back": rows, "images": len(opened), "search": opened.searched_by})


def model_of(opened: Any, options: Namespace) -> Any:
    """The index's model, from where the options say or where it was."""
    from ascl.image_copy.matching.model import describer_of, recorded_choice
    from ascl.images.backbones import pick_device

    return describer_of(opened, chosen_describer(options, recorded_choice(opened)), pick_device(options.device))


@contextmanager
def reading(options: Namespace, images: int) -> Iterator[Any]:
    """How images are read, with a bar on a terminal."""
    from tqdm import tqdm

    from ascl.image_copy.matching.describe import ReadOptions

    with tqdm(total=images, unit=" images", disable=None) as bar:
        yield ReadOptions(options.batch_size, options.workers, options.skip_unreadable, bar.update)


def tell_skipped(skipped: list) -> None:
    if skipped:
        print(f"skipped {len(skipped):,} images that cannot be used:", file=sys.stderr)
        for one in skipped:
            print(f"  {one.path}: {one.reason}", file=sys.stderr)


def tell_warnings(opened: Any) -> None:
    from ascl.image_copy.matching.report import warnings_of

    for warning in warnings_of(opened):
        print(f"warning: {warning}", file=sys.stderr)
