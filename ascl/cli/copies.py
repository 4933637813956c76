"""`ascl copy index|add|remove|prune|query|calibrate|info|repair|compact`: a persistent index of images."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from ascl.cli.options import (
    INCOMPLETE,
    Answer,
    add_batch_size,
    add_describer,
    add_device,
    add_ids,
    add_image_files,
    add_seed,
    add_workers,
    chosen_describer,
    ending,
    given_images,
    print_left_out,
    status_of,
)
from ascl.core.errors import DataError, SettingsError, first_of
from ascl.settings.base import Parser

if TYPE_CHECKING:
    from ascl.image_copy.matching.describe import ReadOptions
    from ascl.images.find import FoundImages, Skipped

KEPT = "what was described until a few seconds ago is in the index, and the same command continues"


def parser_of(prog: str, description: str, *, required: bool = True) -> Parser:
    parser = Parser(prog=prog, description=description)
    parser.add_argument("--index", required=required, metavar="DIR", help="folder of the index")
    return parser


def describing_parser(prog: str, description: str, images: str, *, required: bool = True, least: str = "+") -> Parser:
    """Return the parser of a command that describes images; `required`: whether it needs an index and images; `least`:
    "*" if it needs an index only."""
    parser = parser_of(
        prog, f"{description} The model is chosen when the index is made, and recorded in it; later, give its options "
        "only if its files have moved.", required=required,
    )
    parser.add_argument("images", nargs=least if required else "*", metavar=images,
                        help="image files, folders (searched at any depth), or .txt files with one path per line")
    add_describer(parser)
    add_device(parser)
    add_batch_size(parser, 32)
    add_workers(parser)
    add_image_files(parser)
    return parser


def index_parser(prog: str) -> Parser:
    parser = describing_parser(
        prog, "Describe images and make an index of them, or continue one. If no model is chosen, a new index uses the "
        "best that is on this machine, and says which: ascl models lists them. Then query it with ascl copy query.",
        "FOLDER",
    )
    add_ids(parser, None, "; null = as in the index, path for a new one")
    parser.add_argument("--exact_up_to", type=NonNegativeInt, metavar="N", help="new index: search exactly up to N "
                        "images, and through a compressed index beyond; null = 100,000")
    add_replace(parser)
    parser.add_argument("--no_calibration", action="store_true", help="do not calibrate the index with its own images "
                        "at the end, which is done once it holds 100 images, if OpenCV is installed, and takes about "
                        "20 s")
    return parser


def index(options: Namespace) -> Answer:
    from ascl.image_copy.matching.model import open_or_create, recorded_choice, recorded_ids
    from ascl.images.backbones import pick_device
    from ascl.index.store import EXACT_UP_TO, CopyIndex, is_index

    there = CopyIndex(options.index) if is_index(options.index) else None
    used = there if there is not None and there.state.added else None
    ids = options.id or "path" if used is None else recorded_ids(used)
    exact = EXACT_UP_TO if options.exact_up_to is None else options.exact_up_to
    if used is not None:
        for option, made in (("id", ids), ("exact_up_to", used.state.exact_up_to)):
            if options[option] not in (None, made):
                raise SettingsError(f"--{option} is only for a new index; {options.index} was made with {made}: leave "
                                    "it out")
    images = given_images(options, *options.images, ids=ids)
    choice = chosen_describer(options, None if used is None else recorded_choice(used))
    opened, describer, why = open_or_create(options.index, choice, pick_device(options.device), ids=ids,
                                            exact_up_to=exact)
    if why:
        print(f"no model was chosen: images are described by {why} (--model NAME)", file=sys.stderr)
    answer = add_to(opened, describer, images, options)
    return answer if options.no_calibration else answer._replace(
        content={**answer.content, "calibration": calibrated_by_itself(opened, options)})


def calibrated_by_itself(opened: Any, options: Namespace) -> dict[str, Any] | None:
    """Calibrate an index with a few of its own images if that is due; return the calibration that it then has."""
    from ascl.cli.groups import watching
    from ascl.image_copy.matching.calibrate import BY_ITSELF, BY_ITSELF_RATE, calibrate_by_itself, is_due
    from ascl.image_copy.matching.query import calibration_of
    from ascl.image_copy.matching.report import rate_text

    made = calibration_of(opened)
    if is_due(opened):
        try:
            with watching() as progress, ending("stopped; the index is complete, and only not calibrated"):
                made = calibrate_by_itself(
                    opened, rate=BY_ITSELF_RATE if made is None else made.wanted, threads=max(1, options.workers),
                    sample=max(BY_ITSELF, 0 if made is None else made.achieved.total), progress=progress)
            print(f"calibrated with {made.achieved.total:,} of its own images: a copy has a score of at least "
                  f"{made.threshold:.6f}, false positives {rate_text(made.achieved)}. Unrelated images give a rate to "
                  f"rely on: ascl copy calibrate UNRELATED/ --index {opened.folder}")
        except DataError as error:
            print(f"not calibrated, so that a query says neither yes nor no: {error}", file=sys.stderr)
    return None if made is None else made.to_dict()


def add_parser(prog: str) -> Parser:
    parser = describing_parser(prog, "Add images to an index.", "PATH")
    add_replace(parser)
    return parser


def add(options: Namespace) -> Answer:
    from ascl.image_copy.matching.model import recorded_ids
    from ascl.index.store import CopyIndex

    opened = CopyIndex(options.index)
    images = given_images(options, *options.images, ids=recorded_ids(opened))
    return add_to(opened, model_of(opened, options), images, options)


def add_replace(parser: Parser) -> None:
    parser.add_argument("--replace", action="store_true", help="replace an indexed image by a different one with the "
                        "same id, instead of stopping")


def add_to(opened: Any, describer: Any, images: FoundImages, options: Namespace) -> Answer:
    from ascl.image_copy.matching.add import add_images
    from ascl.index.images import Conflict

    try:
        with reading(options, len(images)) as how, ending(f"stopped; {KEPT}"):
            done, skipped = add_images(opened, describer, images, how, overwrite=options.replace)
    except Conflict as error:
        raise DataError(f"{error} (--replace)") from error
    skipped = [*images.faults, *skipped]
    compressed = opened.compress_if_due()
    print_left_out(images, skipped)
    print_warnings(opened)
    about = opened.state.compressed if compressed else None
    print(f"added {done.added:,} images" + f", {done.replaced:,} of them as replacements" * bool(done.replaced)
          + f"; {done.same:,} were there already" * bool(done.same)
          + f", {done.moved:,} of them in other places or under other names" * bool(done.moved))
    if about is not None:
        print(f"compressed index built: {about['factory']}, recall@10 {about['recall_at_10']:.3f}")
    print(f"{opened.folder}: {len(opened):,} images, described by {opened.state.model['name']}")
    return Answer({"index": opened.folder, "model": opened.state.model["name"], "images": len(opened),
                   "added": done.added, "replaced": done.replaced, "already_there": done.same, "moved": done.moved,
                   "compressed": about, **left_out(images, skipped, how)}, status_of(skipped))


def remove_parser(prog: str) -> Parser:
    parser = parser_of(prog, "Remove images from an index. ascl copy compact then frees their rows on the disk.")
    parser.add_argument("ids", nargs="+", metavar="IMAGE", help="ids of images, paths of their files, or .txt files "
                        "with an id or a path per line")
    return parser


def remove(options: Namespace) -> Answer:
    from ascl.image_copy.matching.forget import named_ids
    from ascl.index.store import CopyIndex

    opened = CopyIndex(options.index)
    removed = opened.remove(named_ids(opened, options.ids))
    print(f"removed {removed:,} images; {len(opened):,} remain")
    return Answer({"removed": removed, "images": len(opened)})


def prune_parser(prog: str) -> Parser:
    return parser_of(prog, "Remove the images from an index whose files are gone, and list them. First index moved "
                     "photos where they are now: that updates their paths. Files that cannot be reached, or whose disk "
                     "may not be mounted, are listed and kept, and the exit status is 3.")


def prune(options: Namespace) -> Answer:
    from ascl.core.reading import shown
    from ascl.image_copy.matching.forget import prune_index
    from ascl.index.store import CopyIndex

    opened = CopyIndex(options.index)
    done = prune_index(opened)
    for record in done.removed:
        print(f"  {shown(record.path)}: gone")
    for record in done.changed:
        print(f"  {shown(record.path)}: another file now, index it again", file=sys.stderr)
    for record in done.unreachable:
        print(f"  {shown(record.path)}: unreachable, kept; check permissions and the disk", file=sys.stderr)
    for record in done.unmounted:
        print(f"  {shown(record.path)}: gone with all around it, kept; mount its disk, or ascl copy remove it",
              file=sys.stderr)
    print(f"removed {len(done.removed):,} images whose files are gone; {len(opened):,} remain")
    return Answer({"removed": [record.id for record in done.removed],
                   "changed": [record.id for record in done.changed],
                   "unreachable": [record.id for record in done.unreachable],
                   "unmounted": [record.id for record in done.unmounted], "images": len(opened)},
                  INCOMPLETE if done.unreachable or done.unmounted else 0)


def query_parser(prog: str) -> Parser:
    parser = describing_parser(prog, "Print the best matches of images: score, direction, and, after ascl copy "
                               "calibrate, whether they are copies.", "IMAGE")
    parser.add_argument("--k", type=PositiveInt, default=10, metavar="N", help="most matches per image")
    parser.add_argument("--predictions", metavar="P.csv", help="write the matches to this file, for ascl copy eval, "
                        "instead of printing them")
    parser.add_argument("--exact", action="store_true",
                        help="compare with every image instead of searching the compressed index")
    parser.add_argument("--verify", type=PositiveInt, metavar="N", help="look at the pictures of the N best matches: "
                        "which part of one is which part of the other, and so who can be a copy of whom (needs OpenCV, "
                        "and the pictures where they were); null = judge by the descriptors only")
    parser.add_argument("--margin", type=float, help="relative difference of two norms up to which the direction is "
                        "unclear; null = 0.02; 0 is the published rule")
    parser.add_argument("--copies_only", action="store_true", help="leave out matches that are not called copies; this "
                        "needs a calibration or --verify")
    parser.add_argument("--min_score", type=float, metavar="S", help="leave out matches of lower scores; null = keep "
                        "all")
    parser.add_argument("--html", metavar="PAGE.html", help="also write the matches as a page to look at, the common "
                        "parts drawn if they were verified")
    return parser


def query(options: Namespace) -> Answer:
    from ascl.image_copy.matching.describe import BLANK
    from ascl.image_copy.matching.gallery import write_answers_page
    from ascl.image_copy.matching.model import recorded_ids
    from ascl.image_copy.matching.query import MARGIN, query_images, write_answers
    from ascl.image_copy.matching.report import answers_table, index_report
    from ascl.index.store import CopyIndex

    opened = CopyIndex(options.index)
    if options.copies_only and not options.verify and not opened.state.calibration:
        raise SettingsError(f"--copies_only: {options.index} has no calibration, so no match is called a copy; "
                            "calibrate it, or give --verify N")
    # a ground truth has the ids of the index's rule; otherwise stems would only refuse equal names of a camera
    images = given_images(options, *options.images, ids=recorded_ids(opened) if options.predictions else "path")
    margin = MARGIN if options.margin is None else options.margin
    with reading(options, len(images)) as how:
        answers, skipped = query_images(
            opened, model_of(opened, options), images, how, k=options.k, margin=margin, exact=options.exact,
            verify=options.verify or 0,
        )
    skipped = [*images.faults, *skipped]
    answers = [answer.only(copies=options.copies_only, min_score=options.min_score) for answer in answers]
    if options.html:
        write_answers_page(options.html, answers, [f"{opened.folder}: {len(opened):,} images, described by "
                                                   f"{opened.state.model['name'].partition(' sha256:')[0]}"])
        print(f"wrote {options.html}", file=sys.stderr)
    if options.predictions:
        rows = write_answers(options.predictions, answers)
        print(f"wrote {rows:,} matches to {options.predictions}", file=sys.stderr)
    else:
        print(answers_table(answers))
    # the table has the blank ones
    print_left_out(images, [one for one in skipped if one.reason != BLANK or options.predictions])
    print_warnings(opened)
    return Answer({"index": index_report(opened), "queries": [answer.to_dict() for answer in answers],
                   **left_out(images, skipped, how)}, status_of(skipped))


def calibrate_parser(prog: str) -> Parser:
    parser = describing_parser(
        prog, "Set the score from which ascl copy query calls a match a copy, for a false-positive rate measured on "
        "background images, which have no copies in the index. Without them its own images serve: the best match of "
        "each to which geometry does not relate it (needs OpenCV, and the pictures where they were).", "BACKGROUND",
        least="*",
    )
    parser.add_argument("--false_positive_rate", type=float, default=1e-3, metavar="RATE",
                        help="accepted share of unrelated query images that get a match called a copy, from 0 to 1")
    parser.add_argument("--confidence", type=float, default=0.95,
                        help="confidence level of the printed intervals, from 0 to 1")
    parser.add_argument("--score_norm", action="store_true", help="normalize scores as SSCD does: subtract the mean of "
                        "the query's 3 best scores with the background")
    parser.add_argument("--sample", type=PositiveInt, metavar="N", help="without BACKGROUND: images of the index to "
                        "calibrate with; null = 1,000")
    add_seed(parser, "without BACKGROUND: seed of their choice")
    parser.add_argument("--unchecked", action="store_true", help="go on if none of the indexed photos is where it was, "
                        "so that copies of them among the background cannot be found")
    return parser


def calibrate(options: Namespace) -> Answer:
    from ascl.image_copy.matching.calibrate import SAVED_AGAIN, NothingCompared, calibrate_index
    from ascl.image_copy.matching.report import calibration_lines
    from ascl.index.calibration import ScoreNorm
    from ascl.index.store import CopyIndex

    only = ("sample", "seed") if options.images else ("score_norm", "unchecked")
    wrong = [name for name in only if name in options.given and options[name] not in (None, False)]
    if wrong:
        raise SettingsError(f"--{wrong[0]} has no effect {'with' if options.images else 'without'} BACKGROUND images; "
                            "leave it out")
    opened = CopyIndex(options.index)
    if not options.images:
        return calibrate_with_own(opened, options)
    images = given_images(options, *options.images, ids="path")
    try:
        with reading(options, len(images)) as how:
            made, skipped = calibrate_index(
                opened, model_of(opened, options), images, how, rate=options.false_positive_rate,
                confidence=options.confidence, score_norm=ScoreNorm() if options.score_norm else None,
                unchecked=options.unchecked,
            )
    except NothingCompared as error:
        raise DataError(f"{error} (--unchecked)") from error
    skipped = [*images.faults, *skipped]
    overlap = made.left_out["in the index"] + made.left_out[SAVED_AGAIN]
    if overlap:
        print(f"warning: left out {overlap:,} background images that are in the index, {made.left_out[SAVED_AGAIN]:,} "
              "of them as re-saved copies", file=sys.stderr)
    print("\n".join(calibration_lines(made)))
    print_left_out(images, skipped)
    print_warnings(opened)
    return Answer({**made.to_dict(), **left_out(images, skipped, how)}, status_of(skipped))


def calibrate_with_own(opened: Any, options: Namespace) -> Answer:
    from ascl.cli.groups import watching
    from ascl.image_copy.matching.calibrate import OWN_SAMPLE, calibrate_by_itself
    from ascl.image_copy.matching.report import calibration_lines

    with watching() as progress, ending("stopped; what geometry found is kept, and the same command continues"):
        made = calibrate_by_itself(
            opened, rate=options.false_positive_rate, confidence=options.confidence, seed=options.seed,
            sample=options.sample or OWN_SAMPLE, threads=max(1, options.workers), progress=progress)
    print("\n".join(calibration_lines(made)))
    print_warnings(opened)
    return Answer(made.to_dict())


def info_parser(prog: str) -> Parser:
    parser = parser_of(prog, "Print what an index holds, and how it is searched.")
    parser.add_argument("--verify", action="store_true", help="also read all vectors and the whole database, and "
                        "list what is damaged; exit status 1 if anything is")
    return parser


def info(options: Namespace) -> Answer:
    from ascl.image_copy.matching.report import index_report, info_text
    from ascl.index.store import CopyIndex

    opened = CopyIndex(options.index)
    damaged = opened.verify() if options.verify else []
    print(info_text(opened))
    print_warnings(opened)
    if options.verify and not damaged:
        print("verified: every vector and record is as it was written")
    return Answer({**index_report(opened), "damaged": [one.to_dict() for one in damaged]}, 1 if damaged else 0)


def repair_parser(prog: str) -> Parser:
    parser = parser_of(prog, "Mend a damaged index: keep what is intact, describe images again whose vectors are "
                       "damaged, and list those that must be indexed again. Nothing else may use the index meanwhile.")
    add_describer(parser)
    add_device(parser)
    add_batch_size(parser, 32)
    add_workers(parser)
    return parser


def repair(options: Namespace) -> Answer:
    from ascl.core.reading import shown
    from ascl.image_copy.matching.describe import ReadOptions
    from ascl.image_copy.matching.repair import repair_index
    from ascl.index.store import CopyIndex

    opened = CopyIndex(options.index)
    how = ReadOptions(options.batch_size, options.workers)
    done = repair_index(opened, model_of(opened, options), how)
    for damage in done.found:
        print(f"found: {damage}", file=sys.stderr)
    for record in done.forgotten:
        print(f"  {shown(record.path)}: removed, because it is gone, unreachable or changed; index it again",
              file=sys.stderr)
    lost = f"; {done.lost:,} images have lost their records: index the images again" * bool(done.lost)
    print(f"described {len(done.described):,} images again, removed {len(done.forgotten):,}{lost}" if done.found
          else "nothing is damaged")
    print(f"{opened.folder}: {len(opened):,} images")
    print_warnings(opened)
    return Answer({"found": [one.to_dict() for one in done.found], "described": done.described, "lost": done.lost,
                   "removed": [record.id for record in done.forgotten], "images": len(opened)})


def compact_parser(prog: str) -> Parser:
    parser = parser_of(prog, "Free the rows of removed images on the disk, and rebuild the compressed index if one is "
                       "due.")
    return parser


def compact(options: Namespace) -> Answer:
    from ascl.image_copy.matching.feature_cache import FEATURES, FeatureCache
    from ascl.index.store import CopyIndex

    opened = CopyIndex(options.index)
    rows = opened.compact()
    if (opened.folder / FEATURES).exists():
        FeatureCache(opened.folder).keep_only({record.sha256 for _, record in opened.each_record()})
    print(f"freed {rows:,} rows; {len(opened):,} images, searched: {opened.searched_by}")
    return Answer({"rows_given_back": rows, "images": len(opened), "search": opened.searched_by})


def model_of(opened: Any, options: Namespace) -> Any:
    """Return the index's model, from the recorded place unless the options name another."""
    from ascl.image_copy.matching.model import describer_of, recorded_choice
    from ascl.images.backbones import pick_device

    return describer_of(opened, chosen_describer(options, recorded_choice(opened)), pick_device(options.device))


@contextmanager
def reading(options: Namespace, images: int) -> Iterator[Any]:
    """Yield how images are read, with a progress bar on a terminal; then say of which only the first frame counts."""
    from tqdm import tqdm

    from ascl.image_copy.matching.describe import ReadOptions

    with tqdm(total=images, unit=" images", disable=None) as bar:
        how = ReadOptions(options.batch_size, options.workers, options.strict, bar.update)
        yield how
    if how.animated:
        print(f"warning: of {len(how.animated):,} images with several frames or pages only the first counts: "
              f"{first_of(how.animated, 3)}", file=sys.stderr)


def left_out(images: FoundImages, skipped: list[Skipped], how: ReadOptions) -> dict[str, Any]:
    """Return what a command did not use, as JSON values."""
    return {"skipped": [vars(one) for one in skipped], "passed_over": images.passed_over_values(),
            "first_frame_only": how.animated}


def print_warnings(opened: Any) -> None:
    from ascl.image_copy.matching.report import warnings_of

    for warning in warnings_of(opened):
        print(f"warning: {warning}", file=sys.stderr)
