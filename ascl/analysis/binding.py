"""Does a score know what belongs to what? Generated scenes that hold the same things, told apart by a true caption.

Recall mixes finding the right things with binding them. Here a caption's own scene is compared only with scenes of the
same bag (`ascl.scenes.ceilings`): the same background and the same numbers of each color, shape, texture and size. Any
score of bags alone has the right order in half of these pairs, whatever its recall; the truth has it in all.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ascl.core.tables import markdown_table
from ascl.data.captions import CaptionSet
from ascl.retrieval.ranking import Matrix
from ascl.scenes.ceilings import bags
from ascl.scenes.language import read_caption
from ascl.scenes.world import Scene

_MANY = 3   # captions of this many objects and more are one row
HOW = ("A caption's own scene against each scene of the same bag (the same background and the same numbers of each "
       "color, shape, texture and size) of which the caption is false. right: mean share of these above which the own "
       "scene scores, equal scores counted as half; scores that see only bags have 50 %. first: share of captions "
       "whose own scene scores above all of them.")


@dataclass(frozen=True)
class Binding:
    """Metrics of some captions, in percent; see HOW. captions: those with a false scene in their bag."""

    right: float
    first: float
    captions: int


@dataclass(frozen=True)
class BindingReport:
    """The metrics of all captions, and of those that mention 0, 1, 2, or 3 and more objects."""

    by_objects: dict[str, Binding]

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON."""
        return {name: asdict(metrics) for name, metrics in self.by_objects.items()}

    def to_markdown(self) -> str:
        """Return a table with a row for each number of objects that captions mention, and the definitions."""
        rows = [[name, metrics.captions, f"{metrics.right:.1f}", f"{metrics.first:.1f}"]
                for name, metrics in self.by_objects.items()]
        return f"{markdown_table(['objects mentioned', 'captions', 'right', 'first'], rows)}\n\n{HOW}\n"


def binding_report(scores: Matrix, captions: CaptionSet, scenes: Sequence[Scene],
                   truth: np.ndarray) -> BindingReport | None:
    """Return the metrics; None if no caption is false of a scene of its bag.

    Args:
        scores: (N_images, N_texts), higher = more similar.
        captions: of the images, in the language of the data set.
        scenes: the scene of each image.
        truth: (N_images, N_texts) of `truth_matrix`.
    """
    bag = bags(scenes)
    members = [np.flatnonzero(bag == number) for number in range(int(bag.max()) + 1)]
    right, objects = [], []
    for text, owner in enumerate(captions.owner.tolist()):
        others = members[bag[owner]]
        others = others[~truth[others, text]]
        if not len(others):
            continue
        own, false = float(scores[owner, text]), np.asarray(scores[others, text], dtype=np.float64)
        right.append(((own > false).mean() + (own >= false).mean()) / 2)
        objects.append(max(len(meaning.mentions) for meaning in read_caption(captions.captions[text])))
    if not right:
        return None
    share, number = np.array(right), np.minimum(objects, _MANY)
    rows = {"all": np.ones(len(share), dtype=bool),
            **{f"{n} or more" if n == _MANY else str(n): number == n for n in range(_MANY + 1)}}
    return BindingReport({name: Binding(100 * float(share[of].mean()), 100 * float((share[of] == 1).mean()),
                                        int(of.sum())) for name, of in rows.items() if of.any()})
