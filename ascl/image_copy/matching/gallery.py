"""Show groups of copies, or the matches of queries, as one self-contained page with the matched areas drawn."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ascl.core.errors import DataError
from ascl.core.files import atomic_path
from ascl.core.html import templates_of
from ascl.image_copy.matching.geometry import Relation
from ascl.image_copy.matching.groups import CopyGroup, CopyGroups
from ascl.image_copy.matching.keeping import Member
from ascl.image_copy.matching.query import Answer
from ascl.images.read import load_image

SIDE = 320              # pixels of the longer side of a picture on the page
QUALITY = 80            # of its JPEG
QUERIES = 200           # on a page
DRAWN = 6               # areas on the picture that the others are compared with
PIXELS = 1_000_000      # of a picture as it is read
KINDS = {True: ("yes", "copy"), False: ("no", "no copy"), None: ("open", "match")}


@dataclass(frozen=True)
class _Shot:
    """A picture on the page: its JPEG in base64 or why there is none, the polygons to draw, and what is said of it."""

    jpeg: str
    absent: str
    areas: list[list[list[float]]]
    first: bool
    kind: str
    label: str
    name: str
    lines: Sequence[str]


@dataclass(frozen=True)
class _Section:
    title: str
    pictures: list[_Shot]


def write_groups(path: str | os.PathLike, found: CopyGroups, groups: Sequence[tuple[CopyGroup, Sequence[Member]]],
                 about: Sequence[str], most: int) -> None:
    """Write the first groups as a page.

    Args:
        path: of the page.
        found, groups: what was found, and its groups with their members, of which the first is to be kept.
        about: lines on how the groups were found.
        most: groups to show.
    """
    sections = []
    for number, (group, members) in enumerate(groups[:most], 1):
        tight = "" if len(members) == 2 else f", {group.tightness:.0%} of the pairs confirmed"
        sections.append(_Section(f"Group {number}: {len(members)} images{tight}",
                                 [_member_shot(member, not place, members) for place, member in enumerate(members)]))
    left_out = f"{len(groups) - most:,} more groups are in the list beside this page" if len(groups) > most else ""
    _write(path, f"{len(groups):,} groups of copies among {found.images:,} images", [*about, *filter(None, [left_out])],
           sections)


def _member_shot(member: Member, first: bool, members: Sequence[Member]) -> _Shot:
    size = f"{member.size[0]} x {member.size[1]} pixels, {_in_bytes(member.record.size)}" if member.size else ""
    pair, (kind, label) = member.pair, ("no", "superfluous") if member.superfluous else ("open", "copy")
    areas = [] if pair is None else [_area(pair.relation, 0 if member.is_copy else 1)]
    if first:
        kind, label = "yes", "keep"
        areas = [_area(one.pair.relation, int(one.is_copy)) for one in members[1:] if one.pair is not None][:DRAWN]
    score = [] if first or pair is None else [f"{pair.reason}, score {pair.score:.3f}" + (
        "" if pair.relation is None else f", {pair.relation.inliers} points")]
    return _shot(member.path, member.status, areas, first, kind, label, member.record.id,
                 [*filter(None, [size]), *score, *member.differences])


def write_answers_page(path: str | os.PathLike, answers: Sequence[Answer], about: Sequence[str], *,
                       most: int = QUERIES) -> None:
    """Write the matches of the first queries as a page, each query beside its matches."""
    sections = []
    for answer in answers[:most]:
        areas = [_area(match.relation, 0) for match in answer.matches][:DRAWN]
        shots = [_shot(Path(answer.path), "there", areas, True, "yes", "query", answer.path, [answer.blank])]
        for match in answer.matches:
            kind, label = KINDS[match.copy]
            found = match.geometry + ("" if match.relation is None else f", {match.relation.inliers} points")
            lines = [f"score {match.score:.3f}", *filter(None, [found]), match.direction]
            shots.append(_shot(Path(match.path), match.file, [_area(match.relation, 1)], False, kind, label, match.id,
                               lines))
        sections.append(_Section(answer.path, shots))
    left_out = f"{len(answers) - most:,} more queries are not shown" if len(answers) > most else ""
    _write(path, f"Matches of {len(answers):,} images", [*about, *filter(None, [left_out])], sections)


def _area(relation: Relation | None, side: int) -> np.ndarray:
    return np.zeros((0, 2)) if relation is None else relation.common()[side]


def _shot(path: Path, status: str, areas: Sequence[np.ndarray], first: bool, kind: str, label: str, name: str,
          lines: Sequence[str]) -> _Shot:
    jpeg, absent = "", {"changed": "another file now"}.get(status, status)
    if status == "there":
        try:
            jpeg = _jpeg(load_image(path, whole_pixels=PIXELS).image)
        except DataError:
            absent = "cannot be read"
    drawn = [area.tolist() for area in areas if len(area) and not _is_all(area)]
    return _Shot(jpeg, absent, drawn, first, kind, label, name, lines)


def _is_all(area: np.ndarray) -> bool:
    """Return whether a polygon goes round the whole picture, where a line would say nothing."""
    return bool((np.minimum(area, 1 - area).min(axis=1) < 0.02).all() and np.ptp(area, axis=0).min() > 0.96)


def _jpeg(image: Image.Image) -> str:
    image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    made = io.BytesIO()
    image.save(made, "JPEG", quality=QUALITY)
    return base64.b64encode(made.getvalue()).decode()


def _in_bytes(count: int) -> str:
    return f"{count / 2**20:.1f} MiB" if count >= 2**20 else f"{max(1, round(count / 1024))} KiB"


def _write(path: str | os.PathLike, title: str, about: Iterable[str], groups: Sequence[_Section]) -> None:
    page = templates_of("ascl.image_copy.matching").get_template("gallery.html")
    text = page.render(title=title, groups=groups, about=about)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
