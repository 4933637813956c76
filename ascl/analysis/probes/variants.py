"""Variants of a caption with a known direction, which a probe of asymmetry compares with the caption.

Asymmetry-I: the text says something false of its image. II: it says more, all true. III: it says less, all true.
`scene_variants.py` generates variants for generated scenes, where truth is exact, `caption_variants.py` for human
captions.
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
    """A variant of a caption. caption: index of the original caption. kind: a key of KINDS."""

    caption: int
    kind: str
    text: str


def generator_of(seed: int, kind: str, image_id: str, caption: str) -> np.random.Generator:
    """Return the random generator of one variant, independent of the other captions and of their order."""
    return np.random.default_rng([seed, *(zlib.crc32(name.encode()) for name in (kind, image_id, caption))])


def replaced(caption: str, start: int, end: int, new: str) -> str:
    """Replace caption[start:end] by `new`, and adjust capitalization and a/an."""
    if not caption[:start].strip() and caption[start:end][:1].isupper():
        new = new[:1].upper() + new[1:]
    return with_article(caption[:start], new) + new + caption[end:]


def with_article(before: str, word: str) -> str:
    """Return `before`, with its final a or an adjusted to the word that follows."""
    n = "n" if word.lower()[:1] in "aeiou" and not word.startswith(_SPOKEN_WITH_Y) else ""
    return _ARTICLE.sub(lambda article: article[1][0] + n + article[2], before)


def second_sentence(caption: str, sentence: str) -> str:
    """Append a sentence to the caption, with one period between them."""
    return caption.rstrip(" .,;:") + ". " + sentence
