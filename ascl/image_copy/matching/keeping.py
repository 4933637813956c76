"""Which image of a group of copies to keep, how the others differ from it, and which of them it makes superfluous."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import ExifTags, Image

from ascl.core.errors import DataError
from ascl.image_copy.matching.geometry import SURE
from ascl.image_copy.matching.groups import SAME_FILE, SCORE, CopyGroup, Pair
from ascl.images.read import load_image
from ascl.index.places import Status
from ascl.index.state import Record
from ascl.index.store import CopyIndex

Keep = Literal["largest", "least_compressed", "oldest"]
WHOLE = (SAME_FILE, "same", SCORE)                      # reasons for which a copy shows no less than its original
CONTAINED = (SAME_FILE, "same", "within")       # reasons for which the original shows all that the copy shows
SPOT = 0.005            # share of the common area: a larger spot that differs is something that was changed
SHARE = 0.985           # of a picture that must be within the one to keep; its corners are known to about half a pixel
COLOR, GRAY = 0.7, 4.0  # least share of its colors that the one to keep must have; mean chroma up to which all is gray
AGREEMENT = 0.9         # share of the common area that must look alike where one makes the other superfluous
BIGGER = 1.1            # times as many pixels, or bytes a pixel, are worth a word
SECONDS = 2.0           # by which the times of two files may differ without a word
PIXELS = 1_000_000      # of a picture as it is read here
TAKEN = "%Y:%m:%d %H:%M:%S"     # EXIF


@dataclass(frozen=True)
class Member:
    """An image of a group, as its file is now.

    Attributes:
        record, path, status: what the index knows, where the file is or was, and whether it is there.
        size: width and height in pixels, upright; None if the file cannot be read.
        time: seconds since 1970 at which it was taken, by its EXIF data, or else last changed; None if it is not there.
        by_camera: whether EXIF says so.
        more: what the file holds that was not compared, in words: further frames or pages, transparency; "" = nothing.
        chroma: mean over the pixels of the difference of the largest and least of red, green and blue, from 0 to 255.
        pair: the judgement of this image and the one to keep; None if they were not judged copies, or it is that one.
        is_copy: whether it is this image that is the `copy` of the pair.
        superfluous: whether the one to keep shows all that this one shows, as far as geometry can tell: spots that
            differ and cover less than about 1 % of the picture may go unseen.
        differences: from the one to keep, in words.
    """

    record: Record
    path: Path
    status: Status
    size: tuple[int, int] | None
    time: float | None
    by_camera: bool
    more: str = ""
    chroma: float = 0.0
    pair: Pair | None = None
    is_copy: bool = False
    superfluous: bool = False
    differences: tuple[str, ...] = ()

    @property
    def pixels(self) -> int:
        return self.size[0] * self.size[1] if self.size else 0

    @property
    def bytes_per_pixel(self) -> float:
        return self.record.size / self.pixels if self.pixels else 0.0


def members_of(index: CopyIndex, group: CopyGroup, keep: Keep = "largest") -> list[Member]:
    """Return the images of a group, the one to keep first, the others as in the group.

    Only an image that shows all of the group's original can be kept: the original itself, or one that is the same.
    Among these, "largest" prefers more pixels, "least_compressed" more bytes a pixel, and "oldest" the earlier time.
    """
    members = [_member(index, record) for record in group.records]
    content = {record.id: record.sha256 for record in group.records}    # pairs name one image of each file only
    judged = {frozenset((content[pair.copy], content[pair.original])): pair for pair in group.pairs}

    def pair_of(one: Member, other: Member) -> Pair | None:
        return judged.get(frozenset((one.record.sha256, other.record.sha256)))

    first = members[0]
    whole = [first] + [one for one in members[1:] if (pair := pair_of(one, first)) and pair.reason in WHOLE
                       and _shown(pair, content[pair.original] == one.record.sha256) >= SHARE]
    colors = max(one.chroma for one in whole)
    whole = [one for one in whole if _has_colors(one.chroma, colors)]
    ranked = {"largest": lambda one: (one.pixels, one.record.size, -one.time),
              "least_compressed": lambda one: (one.bytes_per_pixel, one.pixels, -one.time),
              "oldest": lambda one: (-one.time, one.pixels, one.record.size)}
    kept = max((one for one in whole if one.size and one.status == "there"), key=ranked[keep], default=first)
    return [kept, *(_compared(one, kept, pair, pair is not None and content[pair.copy] == one.record.sha256)
                    for one in members if one is not kept for pair in [pair_of(one, kept)])]


def _member(index: CopyIndex, record: Record) -> Member:
    path, status = index.place_of(record)
    size, time, by_camera, more, chroma = None, None, False, "", 0.0
    try:
        image, size, animated = load_image(path, whole_pixels=PIXELS)
        small = np.asarray(image.resize((64, 64), Image.Resampling.BOX)).astype(np.int16)
        time, chroma = path.stat().st_mtime, float(np.ptp(small, axis=2).mean())
        more = "further frames or pages" if animated else ""
        with suppress(Exception), Image.open(path) as file:     # damaged EXIF is no reason to lose a photo
            if file.mode in ("RGBA", "LA", "PA") or "transparency" in file.info:
                more = more or "transparency"
            tags = file.getexif()
            taken = tags.get_ifd(ExifTags.IFD.Exif).get(ExifTags.Base.DateTimeOriginal)
            time, by_camera = datetime.strptime(str(taken).strip("\0 "), TAKEN).timestamp(), True
    except (DataError, OSError):    # gone or changed meanwhile
        pass
    return Member(record, path, status, size, time, by_camera, more, chroma)


def _shown(pair: Pair, of_original: bool) -> float:
    """Return which share of a pair's copy is within its original, or the reverse; 1 where geometry was not asked."""
    if pair.relation is None:
        return 1.0
    return pair.relation.reference_share if of_original else pair.relation.query_share


def _has_colors(chroma: float, wanted: float) -> bool:
    return wanted <= GRAY or chroma >= COLOR * wanted


def _compared(one: Member, kept: Member, pair: Pair | None, is_copy: bool) -> Member:
    """Return an image with its judgement against the one to keep, and the differences."""
    said = []
    superfluous = (pair is not None and pair.reason in CONTAINED and one.status == kept.status == "there"
                   and bool(one.size and kept.size) and (pair.reason == SAME_FILE or not one.more)
                   and (is_copy or not pair.directed))
    relation = None if pair is None else pair.relation
    if pair is not None and relation is not None and (
            relation.changed > SPOT or relation.agreement < AGREEMENT or relation.inliers < SURE
            or _shown(pair, not is_copy) < SHARE or not _has_colors(kept.chroma, one.chroma)):
        superfluous = False     # it may show what the one to keep does not
    if pair is None:
        said.append("a copy within the group, not judged against the one to keep")
    elif pair.reason == SAME_FILE:
        said.append("the same file")
    elif relation is not None:
        said += {"within": [f"shows {relation.reference_share:.0%} of it"], "border": ["in a border"],
                 "pasted": ["on another picture"]}.get(relation.kind, []) if is_copy else (
                     ["shows more"] * pair.directed)
        said += ["mirrored"] * relation.mirrored
        said += [f"looks alike on {relation.agreement:.0%}"] * (relation.agreement < AGREEMENT)
        said += [f"differs in a spot of {relation.changed:.1%}"] * (relation.changed > SPOT)
    said += ["fewer colors"] * (not _has_colors(one.chroma, kept.chroma))
    said += ["more colors"] * (not _has_colors(kept.chroma, one.chroma))
    said += [f"has {one.more}, not compared"] * bool(one.more)
    if one.status != "there" or not one.size:
        said.append({"there": "cannot be read", "changed": "another file now"}.get(one.status, one.status))
    elif kept.size and (pair is None or pair.reason != SAME_FILE):
        if max(one.pixels, kept.pixels) > BIGGER * min(one.pixels, kept.pixels):
            said.append(f"{'smaller' if one.pixels < kept.pixels else 'larger'}: {one.size[0]} x {one.size[1]} pixels, "
                        f"not {kept.size[0]} x {kept.size[1]}")
        if one.bytes_per_pixel * BIGGER < kept.bytes_per_pixel:
            said.append("more compressed")
        if one.path.suffix.lower() != kept.path.suffix.lower():
            said.append(one.path.suffix.lower().removeprefix(".") or "no suffix")
    if one.time is not None and kept.time is not None and abs(one.time - kept.time) > SECONDS:
        said.append("older" if one.time < kept.time else "newer")
    return replace(one, pair=pair, is_copy=is_copy, superfluous=superfluous, differences=tuple(said))
