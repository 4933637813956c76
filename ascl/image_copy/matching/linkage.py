"""Groups of images from the pairs of them that were judged copies."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Linkage = Literal["star", "single", "complete"]
Place = tuple[int, int]         # numbers of two images


def linked_by(linkage: Linkage, count: int, strengths: dict[Place, float]) -> list[list[int]]:
    """Return groups of at least two images; no image is in two.

    Args:
        linkage: "star": every member is a copy of the first. "single": all that chains of copies join. "complete": all
            are copies of one another, in one direction or the other.
        count: images.
        strengths: (copy, original) -> the strength of the evidence; both ways where the direction is not known.

    Returns:
        The numbers of the images of each group, the one with the most copies first, then by their evidence.
    """
    joined = {"star": _star, "single": _single, "complete": _complete}[linkage]
    evidence = _adjacent(strengths)
    return [members for part in components(count, strengths) for members in joined(part, evidence)]


def components(count: int, copies: Iterable[Place]) -> list[list[int]]:
    """Return the images that chains of copies join, two or more, the largest component first."""
    ends = np.array(list(copies), np.int64).reshape(-1, 2)
    _, labels = connected_components(coo_matrix((np.ones(len(ends)), tuple(ends.T)), (count, count)), directed=False)
    parts = defaultdict(list)
    for place, label in enumerate(labels.tolist()):
        parts[label].append(place)
    return sorted((part for part in parts.values() if len(part) > 1), key=lambda part: (-len(part), part))


def _adjacent(strengths: dict[Place, float]) -> dict[int, dict[int, float]]:
    """Return original -> its copies, with the strength of their evidence."""
    found = defaultdict[int, dict[int, float]](dict)
    for (copy, original), strength in strengths.items():
        found[original][copy] = strength
    return found


def _star(part: Sequence[int], evidence: dict[int, dict[int, float]]) -> list[list[int]]:
    """Return the image with the most copies and these, then the same among the rest."""
    free, groups = set(part), []
    while free:
        center = max(sorted(free), key=lambda place: sum(copy in free for copy in evidence[place]))
        members = [copy for copy in evidence[center] if copy in free]
        free -= {center, *members}
        if members:
            groups.append([center, *sorted(members, key=lambda copy: (-evidence[center][copy], copy))])
    return groups


def _single(part: Sequence[int], evidence: dict[int, dict[int, float]]) -> list[list[int]]:
    """Return all, the image with the most copies first."""
    inside = set(part)
    center = max(part, key=lambda place: sum(copy in inside for copy in evidence[place]))
    return [sorted(part, key=lambda place: (place != center, -evidence[center].get(place, 0), place))]


def _complete(part: Sequence[int], evidence: dict[int, dict[int, float]]) -> list[list[int]]:
    """Join groups of which each image is a copy of each, or its original, the strongest evidence first."""
    group_of = {place: [place] for place in part}
    for _, copy, original in sorted((-strength, copy, place) for place in part
                                    for copy, strength in evidence[place].items()):
        one, other = group_of[original], group_of[copy]
        if one is not other and all(b in evidence[a] or a in evidence[b] for a in one for b in other):
            joined = one + other
            group_of.update(dict.fromkeys(joined, joined))
    groups = {id(group): group for group in group_of.values() if len(group) > 1}
    return [members for group in groups.values() for members in _single(group, evidence)]
