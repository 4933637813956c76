"""Variants of the captions of generated scenes, each held against the truth of its scene.

Every variant is a caption of the language of `scene_language.py`. Those of Asymmetry-I are false of their scene, though
no contradiction in themselves: none says that there is a star and no star. Those of II and III are true of it, by their
structure: a shorter one is entailed by its caption, a longer one has a part that its caption leaves open. What cannot
be made so is left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import combinations, permutations, takewhile
from typing import Any, NamedTuple

import numpy as np

from ascl.analysis.probes.variants import CaptionVariant, generator_of, replaced, second_sentence
from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet
from ascl.samples.positives import concatenate
from ascl.scenes import language
from ascl.scenes.language import Kind, Meaning, read_caption
from ascl.scenes.truth import is_true
from ascl.scenes.world import BACKGROUNDS, SHAPES, Scene, pick

_ATTEMPTS = 12  # at leaving out other keywords, where the first choice leaves no caption
_DESCRIBING = ("adjective", "noun", "pattern")


class _Token(NamedTuple):
    """A phrase at caption[start:end] of a sentence. referring: a part of "the small star", which was named before."""

    start: int
    end: int
    category: str
    value: object
    sentence: int
    referring: bool


def scene_variants(captions: CaptionSet, scenes: Sequence[Scene], *, seed: int = 0) -> list[CaptionVariant]:
    """At most one variant of each kind for each caption, in the order of the captions.

    Args:
        captions: true captions of `scenes`, in the language of the data set.
        scenes: the scene of each image, in the order of `captions.image_ids`.

    Raises:
        DataError: a caption that is not of this language, or images and scenes of different number.
    """
    if len(scenes) != len(captions.image_ids):
        raise DataError(f"{len(scenes)} scenes for the {len(captions.image_ids)} images of {captions.source}")
    variants = []
    for index, (caption, image) in enumerate(zip(captions.captions, captions.owner, strict=True)):
        scene = scenes[image]
        others = [captions.captions[i] for i in captions.captions_of(image) if i != index]
        for kind, make in _MAKERS.items():
            text = make(caption, scene, others, generator_of(seed, kind, scene.image_id, caption))
            if text is not None:
                variants.append(CaptionVariant(index, kind, text))
    return variants


def entails(first: str, second: str) -> bool:
    """Whether `second` says nothing but what `first` says: True is certain, False is not.

    Every sentence of `second` has to be a part of one of `first`: the same counts, rules and backgrounds or fewer, and
    its objects found among those of `first`, with the same relations or fewer.
    """
    sentences = _read(first)
    return all(any(_part_of(part, whole) for whole in sentences) for part in _read(second))


def _part_of(part: Meaning, whole: Meaning) -> bool:
    names = ("backgrounds", "counts", "rules")
    if any(claim not in getattr(whole, name) for name in names for claim in getattr(part, name)):
        return False
    return any(
        all(whole.mentions[at].kind.says(mention.kind) and set(mention.places) <= set(whole.mentions[at].places)
            for mention, at in zip(part.mentions, chosen, strict=True))
        and all((chosen[a], relation, chosen[b]) in whole.relations for a, relation, b in part.relations)
        for chosen in permutations(range(len(whole.mentions)), len(part.mentions)))


def _swap(*categories: str, alternatives: Callable[[str, Any], list[str]]) -> Callable[..., str | None]:
    """Maker of a variant with one phrase of the categories exchanged for an alternative that makes it false."""

    def make(caption: str, scene: Scene, others: list[str], rng: np.random.Generator) -> str | None:
        choices = [(token, other) for token in _tokens(caption) if token.category in categories and not token.referring
                   for other in alternatives(caption[token.start : token.end].lower(), token.value)]
        texts = (replaced(caption, choices[place][0].start, choices[place][0].end, choices[place][1])
                 for place in rng.permutation(len(choices)))
        return next((text for text in texts if _false(text, scene)), None)

    return make


def _other_nouns(phrase: str, kind: Kind) -> list[str]:
    if kind.shape is None:
        return []
    plural = any(phrase == nouns[1] for nouns in language.NOUNS[kind.shape])
    return [language.NOUNS[shape][0][plural] for shape in SHAPES if shape != kind.shape]


def _other_adjectives(attribute: str) -> Callable[[str, Any], list[str]]:
    def alternatives(phrase: str, value: object) -> list[str]:
        named = getattr(value, attribute)
        if named is None:
            return []
        if phrase.startswith("with "):
            return _other(language.PATTERNS, named)
        return [language.ADJECTIVES[attribute][other][0] for other in language.VALUES[attribute] if other != named]

    return alternatives


def _other(words: Mapping[Any, Sequence[str]], value: object) -> list[str]:
    """The first word for each value but this one."""
    return [of[0] for other, of in words.items() if other != value]


def _roles_swapped(caption: str, scene: Scene, others: list[str], rng: np.random.Generator) -> str | None:
    """Two objects on either side of a relation change places."""
    tokens = _tokens(caption)
    related = [token for token in tokens if token.category == "relation"]
    pairs = [(a[0].start, a[-1].end, b[0].start, b[-1].end) for a, b in combinations(_objects(tokens), 2)
             if a[0].sentence == b[0].sentence and any(
                 a[-1].end <= token.start < b[0].start or token.end <= a[0].start and token.sentence == a[0].sentence
                 for token in related)]
    for place in rng.permutation(len(pairs)):
        a, a_end, b, b_end = pairs[place]
        first, second = caption[a:a_end], caption[b:b_end]
        text = caption[:a] + second + caption[a_end:b] + first + caption[b_end:]
        if first != second and _false(text, scene):
            return text
    return None


def _false(text: str, scene: Scene) -> bool:
    """Whether the text is a caption that could be true of some image and is not true of this one."""
    meanings = _readable(text)
    mentioned = [[mention.kind for mention in meaning.mentions] for meaning in meanings]
    contradicted = any(sum(other.says(kind) for other in of_sentence) > count
                       for meaning in meanings for kind, count in meaning.counts for of_sentence in mentioned)
    return bool(meanings) and not contradicted and not _true(text, scene)


def _objects(tokens: Sequence[_Token]) -> Iterator[tuple[_Token, ...]]:
    """"a small circle with dots": each object that is mentioned with "a", as its tokens; at least two."""
    for at, token in enumerate(tokens):
        described = tuple(takewhile(lambda part: part.category in _DESCRIBING, tokens[at + 1 :]))
        if token.category == "a" and any(part.category == "noun" for part in described):
            yield (token, *described)


def _detail_added(true: bool) -> Callable[..., str | None]:
    """Maker of the caption with one more sentence about what it leaves open, true of the scene or not."""

    def make(caption: str, scene: Scene, others: list[str], own: np.random.Generator) -> str | None:
        rng = generator_of(0, "detail", scene.image_id, caption)    # for both, so that they differ in one word only
        meanings = _read(caption)
        kinds = [] if any(meaning.backgrounds for meaning in meanings) else [_background]
        if not any(meaning.counts or meaning.rules for meaning in meanings):    # else they may decide the count already
            kinds += [_count, _absence]
        for _ in range(_ATTEMPTS if kinds else 0):
            right, wrong = (second_sentence(caption, detail) for detail in pick(rng, kinds)(scene, rng))
            if _true(right, scene) and _false(wrong, scene):
                return right if true else wrong
        return None

    return make


def _background(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    other = pick(rng, [ground for ground in BACKGROUNDS if ground != scene.background])
    return f"the background is {scene.background}", f"the background is {other}"


def _count(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    item = pick(rng, scene.objects)
    kind = pick(rng, [Kind(shape=item.shape), Kind(color=item.color)])
    count = sum(map(kind.fits, scene.objects))
    other = pick(rng, [number for number in range(1, 5) if number != count])

    def counted(number: int) -> str:
        noun = language.NOUNS[kind.shape][0][number > 1]
        words = f"{kind.color} {noun}" if kind.color else noun
        return f"exactly {language.NUMBERS[number]} {words}" if number > 1 else f"only one {words}"

    return counted(count), counted(other)


def _absence(scene: Scene, rng: np.random.Generator) -> tuple[str, str]:
    there = {o.shape for o in scene.objects}
    absent, present = ([shape for shape in SHAPES if (shape in there) == so] for so in (False, True))  # none is empty
    return f"there is no {pick(rng, absent)}", f"there is no {pick(rng, present)}"


def _concatenated(caption: str, scene: Scene, others: list[str], rng: np.random.Generator) -> str | None:
    new = [other for other in others if not entails(caption, other)]
    return concatenate([caption, pick(rng, new)], rng) if new else None


def _truncated(caption: str, scene: Scene, others: list[str], rng: np.random.Generator) -> str | None:
    """The part from the beginning on that is a caption and whose length is nearest to half of the words."""
    words = caption.split()
    counts = sorted(range(1, len(words)), key=lambda n: (abs(2 * n - len(words)), n))
    texts = (" ".join(words[:count]).rstrip(",;:.") for count in counts)
    return next((text for text in texts if _less(text, caption, scene)), None)


def _keywords_removed(caption: str, scene: Scene, others: list[str], rng: np.random.Generator) -> str | None:
    """Without half of what says how objects look, and of the places and backgrounds."""
    removable = [t for t in _tokens(caption) if t.category in ("adjective", "pattern", "place", "background")]
    for attempt in range(_ATTEMPTS if removable else 0):
        count = max(1, len(removable) // 2) if attempt < _ATTEMPTS // 2 else 1
        text = caption
        for place in sorted(rng.permutation(len(removable))[:count], reverse=True):
            text = _without(text, removable[place])
        if _less(text, caption, scene):
            return text
    return None


def _without(caption: str, token: _Token) -> str:
    before, after = caption[: token.start].rstrip(), caption[token.end :].lstrip()
    if not after or after[0] in ",;:.":
        for joint in (", and", " and", ","):
            before = before.removesuffix(joint)
        return before + after
    if not before:
        return after
    return replaced(f"{before} {after}", len(before) + 1, len(before) + 1 + len(after), after)


def _less(text: str, caption: str, scene: Scene) -> bool:
    """Whether the text is a caption that says a part of what the caption says, and not the whole."""
    return bool(_readable(text)) and entails(caption, text) and not entails(text, caption) and _true(text, scene)


@lru_cache(maxsize=64)
def _tokens(caption: str) -> tuple[_Token, ...]:
    """Phrases of the lexicon, as `read_caption` sees them."""
    tokens: list[_Token] = []
    start, referring = 0, False
    for number, sentence in enumerate(caption.lower().split(".")):
        position = 0
        while sentence[position:].strip():
            found = language.WORD.match(sentence, position)
            if found is None:
                raise DataError(f"caption {caption!r}: cannot read {sentence[position:].strip()!r}; variants of known "
                                "truth exist for captions of the data set `scenes` only")
            category, value = language.LEXICON[" ".join(found.group(1).split())]
            referring = category == "the" or referring and category in _DESCRIBING
            tokens.append(_Token(start + found.start(1), start + found.end(1), category, value, number, referring))
            position = found.end()
        start += len(sentence) + 1
    return tuple(tokens)


@lru_cache(maxsize=256)
def _read(text: str) -> list[Meaning]:
    """As `read_caption`: the same text is asked for its truth and for what it entails."""
    return read_caption(text)


def _readable(text: str) -> list[Meaning]:
    """As `_read`; nothing of what is no caption."""
    try:
        return _read(text)
    except DataError:
        return []


def _true(text: str, scene: Scene) -> bool:
    """As `caption_is_true`."""
    return all(is_true(meaning, scene) for meaning in _read(text))


_MAKERS: dict[str, Callable[[str, Scene, list[str], np.random.Generator], str | None]] = {
    "noun swapped": _swap("noun", alternatives=_other_nouns),
    "colour swapped": _swap("adjective", alternatives=_other_adjectives("color")),
    "size swapped": _swap("adjective", alternatives=_other_adjectives("size")),
    "texture swapped": _swap("adjective", "pattern", alternatives=_other_adjectives("texture")),
    "number swapped": _swap("number", alternatives=lambda phrase, value: [
        word for number, word in language.NUMBERS.items() if value != 1 and number != value]),
    "relation swapped": _swap("relation", alternatives=lambda phrase, value: [      # others stand after "is"
        "is " * (value == "contains") + word for word in _other(language.RELATIONS, value)]),
    "place swapped": _swap("place", alternatives=lambda phrase, value: _other(language.PLACE_PHRASES, value)),
    "background swapped": _swap("background", alternatives=lambda phrase, value: [
        phrase.replace(str(value), ground) for ground in BACKGROUNDS if ground != value]),
    "roles swapped": _roles_swapped, "false detail added": _detail_added(true=False),
    "true detail added": _detail_added(true=True), "concatenated": _concatenated, "truncated (prefix)": _truncated,
    "keywords removed": _keywords_removed}
