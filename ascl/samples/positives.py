"""Generated positives: from an image's captions, a longer one (Asymmetry-II) or a shorter one (Asymmetry-III).

Random choices come from the numpy generator that is passed in. Nothing needs an nltk corpus or model: nltk's
RegexpTagger tags words by a list of function words and by their endings.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from nltk.tag import RegexpTagger

STRATEGIES = ("concatenate", "prefix", "keywords", "both", "both-prefix")

_FUNCTION_WORDS = """
a an the this that these those some any each every either neither another other others both all no and or but nor so
yet as while when where because if than then though although until i me my mine you your yours he him his she her
hers it its we us our ours they them their theirs himself herself itself themselves someone something somebody
anyone anything everyone everything who whom whose which what there here of in on at by for with from to into onto
off over under above below between among through across along against around about behind beside besides near toward
towards next front back upon within without inside outside out up down before after during past via per like am is
are was were be been being has have had having do does did doing can could will would may might must shall should
not very too also just only such more most less least quite rather still even ever never again together one two
three four five six seven eight nine ten several many few much lot lots couple
"""
_EDGE = re.compile(r"^\W+|\W+$")
# The last rule matches everything, so that an unknown word is a noun, as in every such tagger.
_RULES = [
    (rf"^(?:{'|'.join(_FUNCTION_WORDS.split())})$", "FUNCTION"),
    (r"^\W*$", "PUNCTUATION"),
    (r"^\d[\d.,:]*$", "NUMBER"),
    (r"^.+ly$", "ADVERB"),
    (r"^.+(?:ing|ed)$", "VERB"),
    (r"^.+(?:ful|ous|ish|ive|less|able|ible)$", "ADJECTIVE"),
    (r"^.+$", "NOUN"),
]
_KEYWORD_TAGS = frozenset({"VERB", "ADJECTIVE", "NOUN"})


@cache
def _tagger() -> RegexpTagger:
    """Return nltk's tagger. Its import brings all of scipy.stats, a second that an evaluation has no use for."""
    from nltk.tag import RegexpTagger

    return RegexpTagger(_RULES)


@lru_cache(maxsize=2**16)
def _tag(word: str) -> str:
    """Return the tag of a word, which depends only on the word."""
    return _tagger().tag([word])[0][1]


class Positive(NamedTuple):
    """A generated positive."""

    text: str
    order: int  # 1 = it says more than the caption, -1 = less, 0 = it is an unchanged caption


def concatenate(captions: Sequence[str], rng: np.random.Generator) -> str:
    """Return two captions of an image as two sentences, drawn by index, in random order; a single one unchanged.

    The first keeps its final period, ! or ?, or gets a period; white space before it is removed.

    Raises:
        ValueError: there is no caption.
    """
    if not captions:
        raise ValueError("an image without captions has nothing to concatenate")
    if len(captions) == 1:
        return captions[0]
    first, second = (captions[i] for i in rng.choice(len(captions), size=2, replace=False))
    sentence = re.sub(r"[\s.,;:!?]+$", "", first)
    if not sentence:
        return second
    end = re.search(r"[.!?]", first[len(sentence) :])
    return f"{sentence}{end.group() if end else '.'} {second}"


def truncate_prefix(caption: str, *, ratio: float = 0.5) -> str:
    """Return the first ceil(ratio * n) of a caption's n words, as the method's released successor does (ratio 0.5).

    Args:
        caption: at least one word; white space separates words.
        ratio: share of the words that is kept, in (0, 1].

    Raises:
        ValueError: the caption is empty or the ratio out of range.
    """
    words = _words(caption)
    if not 0 < ratio <= 1:
        raise ValueError(f"ratio must be in (0, 1], got {ratio}")
    return " ".join(words[: max(math.ceil(ratio * len(words) - 1e-9), 1)])  # 0.1 * 30 is a little more than 3


def truncate_keywords(caption: str, rng: np.random.Generator, *, ratio: float = 0.5) -> str:
    """Return the caption without some of its keywords (nouns, adjectives, verbs), drawn at random as in the paper.

    Function words directly before a removed keyword are removed too: "a fence in front of a house" without "house" is
    "a fence in front".

    Args:
        caption: at least one word; white space separates words.
        rng: draws the keywords to remove.
        ratio: share of the keywords that is removed, in (0, 1); at least one, but not all. A caption with fewer than
            two keywords is returned unchanged.

    Raises:
        ValueError: the caption is empty or the ratio out of range.
    """
    words = _words(caption)
    if not 0 < ratio < 1:
        raise ValueError(f"ratio must be between 0 and 1, got {ratio}")
    tags = [_tag(_EDGE.sub("", word).lower()) for word in words]
    keywords = [i for i, tag in enumerate(tags) if tag in _KEYWORD_TAGS]
    if len(keywords) < 2:
        return caption
    count = min(max(round(ratio * len(keywords)), 1), len(keywords) - 1)
    gone = set(rng.choice(keywords, size=count, replace=False).tolist())
    for i in range(len(words) - 2, -1, -1):
        if i + 1 in gone and tags[i] == "FUNCTION":
            gone.add(i)
    return " ".join(word for i, word in enumerate(words) if i not in gone)


def generate_positive(strategy: str, captions: Sequence[str], index: int, rng: np.random.Generator, *,
                      ratio: float = 0.5) -> Positive:
    """Return a generated positive for one caption of an image, and which of the two says more.

    A concatenation counts as saying more whichever two captions it joins, although with five captions per image only
    two in five include this caption. In Flickr8k, 2.5% of them have fewer words than the caption.

    Args:
        strategy: "concatenate" (two captions of the image), "prefix" or "keywords" (this caption, shortened), "both"
            (concatenate or keywords, with equal probability), "both-prefix" (concatenate or prefix).
        captions: all captions of the image.
        index: index of this caption among them.
        rng: makes every random choice.
        ratio: share of the words that "prefix" keeps, or of the keywords that "keywords" removes.

    Raises:
        ValueError: the strategy is unknown, the ratio out of range, or the caption empty.
    """
    if strategy not in STRATEGIES:
        raise ValueError(f"unknown strategy {strategy!r} for positives: use one of {', '.join(STRATEGIES)}")
    if strategy == "concatenate" or (strategy.startswith("both") and rng.random() < 0.5):
        text = concatenate(captions, rng)
        return Positive(text, 0 if text in captions else 1)
    caption = captions[index]
    text = (truncate_prefix(caption, ratio=ratio) if strategy.endswith("prefix") else
            truncate_keywords(caption, rng, ratio=ratio))
    return Positive(text, -1 if len(text.split()) < len(caption.split()) else 0)


def _words(caption: str) -> list[str]:
    words = caption.split()
    if not words:
        raise ValueError("an empty caption cannot be truncated")
    return words
