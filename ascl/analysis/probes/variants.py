"""Variants of a caption whose direction is known: what a probe of asymmetry asks a model to put in order.

Asymmetry-I: the text says something false of its image. II: it says more that is true. III: it says less, still true.
`scene_variants.py` makes them for generated scenes, where truth is exact, `caption_variants.py` for captions that
people wrote.
"""

from __future__ import annotations

import re
import zlib
from typing import NamedTuple

import numpy as np

KINDS = {
    **dict.fromkeys(("noun swapped", "colour swapped", "size swapped", "texture swapped", "number swapped",
                     "relation swapped", "place swapped", "background swapped", "roles swapped", "false detail added"),
                    "I"),
    "true detail added": "II", "concatenated": "II", "truncated (prefix)": "III", "keywords removed": "III"}
_ARTICLE = re.compile(r"\b(an?)(\s+)$", re.IGNORECASE)
_SPOKEN_WITH_Y = ("uni", "use")  # "a unicycle"


class CaptionVariant(NamedTuple):
    """caption: index of the caption it was made of. kind: a key of KINDS."""

    caption: int
    kind: str
    text: str


def generator_of(seed: int, kind: str, image_id: str, caption: str) -> np.random.Generator:
    """The random numbers of one variant: the same whatever else is in the data set, and in whatever order."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in (kind, image_id, caption))])


def replaced(caption: str, start: int, end: int, new: str) -> str:
    """The caption with `new` instead of caption[start:end]: first letter and a/an as they have to be."""
    if not caption[:start].strip() and caption[start:end][:1].isupper():
        new = new[:1].upper() + new[1:]
    return with_article(caption[:start], new) + new + caption[end:]


def with_article(before: str, word: str) -> str:
    """What stands before a word, with the a or an at its end that fits the word."""
    n = "n" if word.lower()[:1] in "aeiou" and not word.startswith(_SPOKEN_WITH_Y) else ""
    return _ARTICLE.sub(lambda article: article[1][0] + n + article[2], before)


def second_sentence(caption: str, sentence: str) -> str:
    """The caption and then another sentence, with one full stop between them."""
    return caption.rstrip(" .,;:") + ". " + sentence
