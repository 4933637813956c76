"""Decide whether a caption is true of a scene: `caption_is_true` defines it, `truth_matrix` is fast for many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations

import numpy as np

from ascl.scenes.language import ATTRIBUTES, VALUES, Meaning, Mention, read_caption
from ascl.scenes.world import BACKGROUNDS, INVERSE, PLACES, Scene, holds, is_at


def caption_is_true(caption: str, scene: Scene) -> bool:
    """Return whether everything in the caption holds in the scene; DataError if it is not in this language."""
    return all(is_true(meaning, scene) for meaning in read_caption(caption))


def is_true(meaning: Meaning, scene: Scene) -> bool:
    if any(ground != scene.background for ground in meaning.backgrounds):
        return False
    if any(sum(kind.fits(o) for o in scene.objects) != count for kind, count in meaning.counts):
        return False
    for kind, rule in meaning.rules:
        of_kind = [o for o in scene.objects if kind.fits(o)]
        if not of_kind or not all(rule.fits(o) for o in of_kind):
            return False
    return any(
        all(
            m.kind.fits(o) and all(is_at(place, o, scene) for place in m.places)
            for m, o in zip(meaning.mentions, chosen, strict=True)
        )
        and all(holds(relation, chosen[a], chosen[b], scene) for a, relation, b in meaning.relations)
        for chosen in permutations(scene.objects, len(meaning.mentions))
    )


def truth_matrix(captions: Sequence[str], scenes: Sequence[Scene]) -> np.ndarray:
    """Return `caption_is_true` of every pair.

    Args:
        captions: M captions of this language; DataError names the first that is not.
        scenes: N scenes of any numbers of objects.

    Returns:
        (N, M) bool: [i, j] says whether caption j is true of scene i.
    """
    table = _SceneTable(scenes)
    truth = np.empty((len(scenes), len(captions)), dtype=bool)
    for j, caption in enumerate(captions):
        truth[:, j] = True
        for meaning in read_caption(caption):
            truth[:, j] &= table.is_true(meaning)
    return truth


class _SceneTable:
    """Attributes and relations of many scenes as arrays; a description's matches are looked up once.

    Scenes are the last axis, so that what is asked of all objects of a scene runs over whole rows.
    """

    def __init__(self, scenes: Sequence[Scene]):
        slots = max((len(s.objects) for s in scenes), default=0)
        shape = (slots, len(scenes))
        self.scenes = scenes
        self.real = np.arange(slots)[:, None] < np.array([len(s.objects) for s in scenes], dtype=np.int64)
        self.background = {g: np.array([s.background == g for s in scenes], dtype=bool) for g in BACKGROUNDS}
        self.has = {(a, value): np.zeros(shape, dtype=bool) for a in ATTRIBUTES for value in VALUES[a]}
        self.places = {p: np.zeros(shape, dtype=bool) for p in PLACES}
        self.relations = {r: np.zeros((slots, *shape), dtype=bool) for r in INVERSE}
        for n, scene in enumerate(scenes):
            for i, a in enumerate(scene.objects):
                for attribute in ATTRIBUTES:
                    self.has[attribute, getattr(a, attribute)][i, n] = True
                for place, at in self.places.items():
                    at[i, n] = is_at(place, a, scene)
                for j, b in enumerate(scene.objects):
                    for relation, held in self.relations.items():
                        held[i, j, n] = i != j and holds(relation, a, b, scene)
        self._matches: dict[Mention, np.ndarray] = {}

    def matches(self, mention: Mention) -> np.ndarray:
        """Return (slots, N) bool: which objects of each scene fit the description and its places."""
        if mention not in self._matches:
            fits = self.real.copy()
            for attribute in ATTRIBUTES:
                wanted = getattr(mention.kind, attribute)
                if wanted is not None:
                    fits &= self.has[attribute, wanted]
            for place in mention.places:
                fits &= self.places[place]
            self._matches[mention] = fits
        return self._matches[mention]

    def is_true(self, meaning: Meaning) -> np.ndarray:
        """Return (N,) bool: in which scenes the meaning holds."""
        true = np.ones(len(self.scenes), dtype=bool)
        for ground in meaning.backgrounds:
            true &= self.background[ground]
        for kind, count in meaning.counts:
            true &= self.matches(Mention(kind)).sum(axis=0) == count
        for kind, rule in meaning.rules:
            of_kind, both = self.matches(Mention(kind)), self.matches(Mention(kind.merged(rule)))
            # `merged` would overwrite an attribute that both name; then they agree or the rule is false
            agree = kind.merged(rule).says(kind)
            true &= of_kind.any(axis=0) & (of_kind == both).all(axis=0) & agree
        fits = [self.matches(mention) for mention in meaning.mentions]
        for fit in fits:  # cheap and necessary: few scenes are left for the assignments below
            true &= fit.any(axis=0)
        if len(fits) > 1:
            left = np.flatnonzero(true)
            true[left] = self._assignable(left, fits, meaning.relations)
        return true

    def _assignable(self, columns: np.ndarray, fits: list[np.ndarray], relations: Sequence[tuple[int, str, int]]):
        """Return (len(columns),) bool: whether a choice of different objects, one per mention, fits the relations."""
        chosen = _choices(len(self.real), len(fits))
        good = np.ones((len(chosen), len(columns)), dtype=bool)
        for k, fit in enumerate(fits):
            good &= fit[:, columns][chosen[:, k]]
        for a, relation, b in relations:
            good &= self.relations[relation][:, :, columns][chosen[:, a], chosen[:, b]]
        return good.any(axis=0)


@lru_cache
def _choices(slots: int, count: int) -> np.ndarray:
    """Return (P, count): every ordered choice of `count` different slots."""
    return np.array(list(permutations(range(slots), count)), dtype=np.int64).reshape(-1, count)
