"""How much binding decides on generated scenes: recalls of matchers that know the scenes, with and without it.

A bag of a scene is its background and how many of its objects have each attribute: what is there, without what belongs
to what. Every mean over oracle regions is a function of the bag and the mean place, which a family shares. So no model
that sees images only through such means tells the scenes of a family apart, and `bag_bounds` are its ceilings. A model
that changes each region in a way that is not linear before its mean is not bound by them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from ascl.scenes.language import ATTRIBUTES
from ascl.scenes.world import Scene

DEPTHS = (1, 5, 10)
_BLOCK = 2**22  # scores that are compared at a time


class Recalls(NamedTuple):
    """Recall at each of DEPTHS, in percent, image to text and text to image."""

    i2t: tuple[float, ...]
    t2i: tuple[float, ...]


def bags(scenes: Sequence[Scene]) -> np.ndarray:
    """Return (N,) int64: the number of each scene's bag; scenes of the same bag have the same number."""
    numbers: dict[tuple, int] = {}
    return np.array([numbers.setdefault(_bag(scene), len(numbers)) for scene in scenes], dtype=np.int64)


def _bag(scene: Scene) -> tuple:
    counts = (Counter(getattr(item, name) for item in scene.objects) for name in ATTRIBUTES)
    return scene.background, *(tuple(sorted(count.items())) for count in counts)


def binding_scores(truth: np.ndarray) -> np.ndarray:
    """Return the scores (N, M) of a matcher that knows all scenes: true pairs first, rarely true captions before.

    truth: (N, M) bool, whether each caption is true of each scene.
    """
    return truth * (2 - truth.mean(axis=0))


def bag_scores(truth: np.ndarray, bag: np.ndarray) -> np.ndarray:
    """Return the scores (N, M) of a matcher that knows of a scene only its bag, and how likely captions then are.

    It is the ratio of two shares: of the bag's scenes of which the caption is true, and of all scenes. A contrastive
    loss trains scores towards the logarithm of such a ratio.

    Args:
        truth: (N, M) bool; each caption is true of a scene.
        bag: (N,) numbers of `bags`.
    """
    return (_shares(truth, bag) / truth.mean(axis=0))[bag]


def _shares(truth: np.ndarray, bag: np.ndarray) -> np.ndarray:
    """Return (bags, M): of what share of each bag's scenes each caption is true."""
    return np.stack([truth[bag == number].mean(axis=0) for number in range(bag.max() + 1)])


def expected_recalls(scores: np.ndarray, right: np.ndarray) -> Recalls:
    """Return the recalls of scores, where the order among equal scores is drawn at random: their exact expectation.

    Args:
        scores: (N, M), higher = more similar.
        right: (N, M) bool; each row and each column has a right pair.
    """
    return Recalls(*(tuple(100 * float(hit.mean()) for hit in _hits(*of_queries))
                     for of_queries in ((scores, right), (scores.T, right.T))))


def _hits(scores: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return (DEPTHS, queries): probability that a right candidate is among the first; rows are queries."""
    step = max(1, _BLOCK // max(1, scores.shape[1]))
    parts = []
    for first in range(0, len(scores), step):
        block, good = scores[first : first + step], right[first : first + step]
        best = np.where(good, block, -np.inf).max(axis=1, keepdims=True)
        before, equal = (block > best).sum(axis=1), block == best
        parts.append([_drawn(equal.sum(axis=1), (equal & good).sum(axis=1), depth - before) for depth in DEPTHS])
    return np.concatenate(parts, axis=1)


def _drawn(size: np.ndarray, right: np.ndarray, draws: np.ndarray) -> np.ndarray:
    """Return the probability that some of `draws` items, drawn from `size` without return, is one of `right`."""
    missed = np.ones(np.broadcast_shapes(size.shape, right.shape, draws.shape))
    for number in range(max(DEPTHS)):
        left = size - number
        missed *= np.where((number < draws) & (left > 0), np.clip(left - right, 0, None) / np.maximum(left, 1), 1.0)
    return 1 - missed


def bag_bounds(bag: np.ndarray, owner: np.ndarray, truth: np.ndarray | None = None) -> Recalls:
    """Return the best recalls that any matcher can expect that gives the scenes of a bag the same scores.

    It may know everything else, even who wrote a caption; among scenes of equal scores the order is random. Without
    truth the bounds are exact, and so are those of text to image with it. With truth, those of image to text are upper
    bounds, exact at 1; they are of no use where some caption is true of every scene of a bag, because one vague caption
    serves them all.

    Args:
        bag: (N,) numbers of `bags`.
        owner: (N_captions,) scene of each caption; every scene has one.
        truth: (N, N_captions) bool, if every true pair counts; None = a caption belongs to its scene only.
    """
    size = np.bincount(bag)
    if truth is None:
        of_bag = [np.minimum(depth, size) / size for depth in DEPTHS]   # as many of its scenes as there are places
        return Recalls(tuple(100 * float(share[bag].mean()) for share in of_bag),
                       tuple(100 * float(share[bag[owner]].mean()) for share in of_bag))
    true = np.rint(_shares(truth, bag) * size[:, None])
    best = -np.sort(-true, axis=1)[:, : max(DEPTHS)].cumsum(axis=1)
    i2t = [np.minimum(best[:, min(depth, best.shape[1]) - 1], size).sum() / size.sum() for depth in DEPTHS]
    # the first scenes are of one bag, unless it is smaller than the depth and one true scene of it is enough
    t2i = [_drawn(size[:, None], true, np.array(depth)).max(axis=0).mean() for depth in DEPTHS]
    return Recalls(tuple(100 * float(share) for share in i2t), tuple(100 * float(share) for share in t2i))


def ceilings(scenes: Sequence[Scene], owner: np.ndarray, truth: np.ndarray) -> Iterator[tuple[str, str, Recalls]]:
    """Yield (labels, matcher, recalls) of every matcher here, by both kinds of labels.

    Args:
        scenes: N scenes.
        owner: (M,) scene of each caption; every scene has one.
        truth: (N, M) of `truth_matrix`.
    """
    bag = bags(scenes)
    own = owner == np.arange(len(scenes))[:, None]
    for labels, right, given in (("own scene", own, None), ("every true pair", truth, truth)):
        yield labels, "bag, bound", bag_bounds(bag, owner, given)
        yield labels, "bag, likelihood ratio", expected_recalls(bag_scores(truth, bag), right)
        yield labels, "binding", expected_recalls(binding_scores(truth), right)
