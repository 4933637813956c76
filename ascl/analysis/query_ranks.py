"""Read the ranks that an evaluation writes to `ranks-SPLIT.npz`."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from ascl.core.errors import DataError
from ascl.core.reading import read_arrays

Direction = Literal["i2t", "t2i"]


@dataclass(frozen=True, eq=False)
class QueryRanks:
    """The rank of every query of one evaluation; 0 is best.

    i2t: (Q_images,) number of wrong captions ranked before the image's best right one. t2i: (Q_texts,) number of wrong
    images ranked before the caption's own. image_queries, text_queries: the image or caption of each entry of `i2t` and
    `t2i`. owner: (N_texts,) image of each caption. image_ids, captions: (N_images,) and (N_texts,) names; None for
    scores without names.
    """

    i2t: np.ndarray
    t2i: np.ndarray
    image_queries: np.ndarray
    text_queries: np.ndarray
    owner: np.ndarray
    image_ids: list[str] | None = None
    captions: list[str] | None = None

    @property
    def images(self) -> int:
        """Number of images; without names, the largest image number in owners and queries, plus 1."""
        if self.image_ids is not None:
            return len(self.image_ids)
        return max([-1, *self.owner.tolist(), *self.image_queries.tolist()]) + 1

    def image_id(self, image: int) -> str:
        """Return an image's name, or its number if it has none."""
        return str(image) if self.image_ids is None else self.image_ids[image]

    def caption(self, text: int) -> str:
        """Return a text's caption, or its number if the caption is not known."""
        return str(text) if self.captions is None else self.captions[text]

    def of(self, direction: Direction) -> tuple[np.ndarray, np.ndarray]:
        """Return (queries, their ranks) of a direction."""
        return (self.image_queries, self.i2t) if direction == "i2t" else (self.text_queries, self.t2i)

    def right(self, direction: Direction, query: int) -> list[int]:
        """Return the right candidates of a query."""
        return np.flatnonzero(self.owner == query).tolist() if direction == "i2t" else [int(self.owner[query])]

    def same_queries(self, other: QueryRanks) -> bool:
        """Return whether both ranked the same queries of the same test set, as far as the files show."""
        arrays = ("image_queries", "text_queries", "owner")
        names = ((self.image_ids, other.image_ids), (self.captions, other.captions))
        return (all(np.array_equal(getattr(self, name), getattr(other, name)) for name in arrays)
                and all(own is None or others is None or own == others for own, others in names))


def read_ranks(path: str | os.PathLike) -> QueryRanks:
    """Read the ranks of one evaluation.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: it is not a readable npz file, an array is missing, or the arrays do not fit each other.
    """
    path = Path(path)
    again = "evaluate again with `ascl eval`"
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no ranks at {path}: create them with `ascl eval`")
    arrays = read_arrays(path, again)
    numbers = ("i2t", "t2i", "image_queries", "text_queries", "owner")
    for name in numbers:
        if name not in arrays:
            raise DataError(f"{path} has no array `{name}` (found: {', '.join(sorted(arrays)) or 'none'}): {again}")
        if arrays[name].ndim != 1 or arrays[name].dtype.kind not in "iu":
            raise DataError(f"{path}: `{name}` is {arrays[name].dtype} {arrays[name].shape}, not a vector of integers: "
                            f"{again}")
    for name in ("image_ids", "captions"):
        if name in arrays and (arrays[name].ndim != 1 or arrays[name].dtype.kind != "U"):
            raise DataError(f"{path}: `{name}` is {arrays[name].dtype} {arrays[name].shape}, not a vector of texts: "
                            f"{again}")
    image_ids, captions = (arrays[name].tolist() if name in arrays else None for name in ("image_ids", "captions"))
    found = QueryRanks(**{name: arrays[name].astype(np.int64) for name in numbers}, image_ids=image_ids,
                       captions=captions)
    texts = len(found.owner)
    ranks = ((found.i2t, texts), (found.t2i, found.images))
    within = (*ranks, (found.owner, found.images), (found.image_queries, found.images), (found.text_queries, texts))
    fits = (len(found.i2t) == len(found.image_queries) > 0 and len(found.t2i) == len(found.text_queries) > 0
            and (captions is None or len(captions) == texts)
            and all(((values >= 0) & (values < count)).all() for values, count in within))
    if not fits:
        raise DataError(f"{path}: ranks, queries, owners and names do not fit each other: {again}")
    return found
