"""`ascl copy groups|undo`: which photos of a folder are copies of one another, and what to do about it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from ascl.cli import copies
from ascl.cli.options import INCOMPLETE, Answer, ending, given_images
from ascl.core.errors import SettingsError, first_of
from ascl.core.reading import shown
from ascl.settings.base import Parser

if TYPE_CHECKING:
    from ascl.image_copy.matching.groups import Progress

NAMED = 5               # files that a message names


def groups_parser(prog: str) -> Parser:
    parser = copies.describing_parser(
        prog, "Find the groups of copies in a folder, or in an index: the same files, saved again, smaller, cropped, "
        "edited, or pasted into other pictures. Writes groups.json, groups.csv and a page to look at, groups.html. "
        "Nothing is moved without --apply, and nothing is ever deleted.", "FOLDER", required=False,
    )
    parser.add_argument("--out", default="copy_groups", metavar="DIR", help="folder to write; without --index also of "
                        "the index, so that the same command continues")
    parser.add_argument("--linkage", choices=["star", "single", "complete"], default="star", help="what makes a group: "
                        "every member is a copy of one original (star), chains of copies join (single), all are copies "
                        "of one another (complete)")
    parser.add_argument("--candidates", type=PositiveInt, default=10, metavar="N", help="images, the best by their "
                        "descriptors, that each image is compared with")
    parser.add_argument("--min_score", type=float, metavar="S", help="pairs of lower scores are not looked at; null = "
                        "all candidates are")
    parser.add_argument("--scores_only", action="store_true", help="do not look at the pictures: a pair of at least "
                        "--min_score is a copy, or of the calibration's threshold")
    parser.add_argument("--keep", choices=["largest", "least_compressed", "oldest"], default="largest",
                        help="which image of a group to keep, of those that show all of its original")
    parser.add_argument("--shown", type=NonNegativeInt, default=200, metavar="N",
                        help="groups on the page, the largest")
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--move_to", metavar="DIR", help="move superfluous images there: those of which geometry "
                        "confirms that the image to keep shows all that they show")
    action.add_argument("--hardlink", action="store_true", help="replace files by hard links to the one to keep, where "
                        "every byte is the same")
    parser.add_argument("--apply", action="store_true", help="do what --move_to or --hardlink plan, and write a file "
                        "for ascl copy undo; without it, they are only listed")
    return parser


def groups(options: Namespace) -> Answer:
    from ascl.image_copy.matching.gallery import write_groups
    from ascl.image_copy.matching.group_files import group_values, write_group_files
    from ascl.image_copy.matching.groups import find_groups
    from ascl.image_copy.matching.keeping import members_of
    from ascl.index.store import CopyIndex

    if options.apply and not (options.move_to or options.hardlink):
        raise SettingsError("--apply needs --move_to DIR or --hardlink: what is to be done?")
    if not options.images and options.index is None:
        raise SettingsError("give a FOLDER of photos, or the --index of one")
    if not options.images and (options.exclude or options.strict):
        raise SettingsError("--exclude and --strict choose files of a FOLDER; give one, or leave them out")
    away = Path(options.move_to or "/").resolve()
    inside = [photos for photos in options.images if options.move_to and away.is_relative_to(Path(photos).resolve())]
    if inside:
        raise SettingsError(f"--move_to {options.move_to} lies in {inside[0]}, where the next call would find what was "
                            "moved; give a folder outside")
    out = Path(options.out)
    folder, indexed, among = options.index or str(out / "index"), Answer({}), None
    with ending("stopped; what was described and compared is kept, and the same command continues"):
        if options.images and options.index is None:
            require_own(folder, options.images, options.out)
        if options.images:
            indexed = copies.index(Namespace(**vars(options) | {
                "index": folder, "id": None, "exact_up_to": None, "replace": options.index is None,
                "no_calibration": True}))
            among = {os.path.abspath(path) for path in given_images(options, *options.images, ids="path").paths}
        opened = CopyIndex(folder)
        with watching() as progress:
            found = find_groups(opened, linkage=options.linkage, candidates=options.candidates, among=among,
                                geometry=not options.scores_only, min_score=options.min_score,
                                threads=max(1, options.workers), progress=progress)
        members = [members_of(opened, group, options.keep) for group in found.groups]
    judged = "their scores" if options.scores_only else "geometry"
    about = [f"{opened.state.model['name'].partition(' sha256:')[0]}; each image compared with the "
             f"{options.candidates} most alike, judged by {judged}; linkage {options.linkage}"]
    values = group_values(found, members)
    write_group_files(out, values)
    write_groups(out / "groups.html", found, list(zip(found.groups, members, strict=True)), about, options.shown)
    copied = sum(len(group.records) for group in found.groups)
    superfluous = [one for group in members for one in group if one.superfluous]
    print(f"{len(found.groups):,} groups of {copied:,} images among {found.images:,}; {len(superfluous):,} of them are "
          f"superfluous ({sum(one.record.size for one in superfluous) / 2**20:,.1f} MiB); {len(found.open):,} pairs "
          "are left open")
    print(f"written: {out / 'groups.html'}, groups.csv, groups.json")
    lacking = 0 if among is None else (len(among) - found.images - len(found.not_read)
                                       - len(indexed.content["skipped"]))
    if lacking > 0:
        print(f"warning: {lacking:,} photos were not compared, because the index holds them under other paths; give "
              "another --out", file=sys.stderr)
    if found.not_read:
        print(f"warning: {len(found.not_read):,} indexed images are gone, changed or not readable, and were left out: "
              f"{first_of(found.not_read, NAMED)}", file=sys.stderr)
    done = tidied(options, members, out)
    return Answer({**values, "indexed": indexed.content, **done}, INCOMPLETE if found.not_read or done.get("left") else
                  indexed.status)


def require_own(folder: str, photos: list[str], out: str) -> None:
    """Refuse an index of other photos: ids of two folders may be the same."""
    from ascl.index.store import CopyIndex, is_index

    roots = [os.path.abspath(one) for one in photos]
    for _, record in CopyIndex(folder).each_record() if is_index(folder) else ():
        if not any(record.path == root or Path(record.path).is_relative_to(root) for root in roots) and not any(
                root.endswith(".txt") for root in roots):
            raise SettingsError(f"--out {out} holds the index of other photos, such as {shown(record.path)}; give "
                                "another --out, or --index")


def tidied(options: Namespace, members: list, out: Path) -> dict[str, Any]:
    """Plan or do what the options say with superfluous files, and return it as JSON values."""
    from ascl.image_copy.matching.tidying import planned_links, planned_moves, tidy

    if not (options.move_to or options.hardlink):
        return {}
    steps = planned_links(members) if options.hardlink else planned_moves(members, Path(options.move_to))
    doing = "become hard links" if options.hardlink else f"move to {options.move_to}"
    values = [vars(step) for step in steps]
    if not options.apply or not steps:
        print(f"{len(steps):,} files would {doing}: {first_of([step.path for step in steps], NAMED)}; nothing was "
              "changed: add --apply" if steps else "no file is superfluous, so nothing is to be done")
        return {"planned": values}
    undo = out / f"undo-{datetime.now():%Y%m%d-%H%M%S}.jsonl"
    left = tidy(steps, undo)
    print(f"{len(steps) - len(left):,} files done: they {doing}; ascl copy undo {undo} takes it back")
    for line in left:
        print(f"  left as it is: {line}", file=sys.stderr)
    return {"steps": values, "left": left, "undo": str(undo)}


@contextmanager
def watching() -> Iterator[Progress]:
    """Yield what shows the progress of several things in turn, on a terminal."""
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def show(doing: str, done: int, total: int) -> None:
        if doing not in bars or bars[doing].total != total:
            for bar in bars.values():
                bar.close()
            bars[doing] = tqdm(total=total, desc=doing, disable=None)
        bars[doing].update(done - bars[doing].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


def undo_parser(prog: str) -> Parser:
    parser = Parser(prog=prog, description="Take back what ascl copy groups --apply did: moved files return to their "
                    "places, hard links become files of their own.")
    parser.add_argument("file", metavar="FILE", help="undo-*.jsonl that it wrote, or its --out DIR, for the last of "
                        "them")
    return parser


def undo(options: Namespace) -> Answer:
    from ascl.image_copy.matching.tidying import undone

    file = Path(options.file)
    if file.is_dir():
        written = sorted(file.glob("undo-*.jsonl"))
        if not written:
            print(f"nothing is to be taken back: {shown(file)} holds no undo-*.jsonl")
            return Answer({"undone": 0, "left": []})
        file = written[-1]
    count, left = undone(file)
    if not left:
        file.rename(file.with_suffix(".done"))
    print(f"{count:,} files are as they were")
    for line in left:
        print(f"  not taken back: {line}", file=sys.stderr)
    return Answer({"undone": count, "left": left}, INCOMPLETE if left else 0)
