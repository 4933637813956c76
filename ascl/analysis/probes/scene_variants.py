"""Variants of the captions of generated scenes, each checked against the truth of its scene.

Every variant is a caption in the language of `ascl.scenes.language`. Variants of Asymmetry-I are false of their scene,
but not contradictory: none says that there is a star and no star. Variants of II and III are true by construction: a
caption entails its shorter variant, and a longer one adds a part that the caption leaves open. Some captions have no
variant of a kind.
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

_ATTEMPTS = 12  # at removing other keywords, if the first choice does not leave a caption
_DESCRIBING = ("adjective", "noun", "pattern")


class _Token(NamedTuple):
    """A phrase at caption[start:end]. referring: part of an object that was named before, as in "the small star"."""

    start: int
    end: int
    category: str
    value: object
    sentence: int
    referring: bool


def scene_variants(captions: CaptionSet, scenes: Sequence[Scene], *, seed: int = 0) -> list[CaptionVariant]:
    """Return at most one variant of each kind per caption, in the order of the captions.

    Args:
        captions: true captions of `scenes`, in the language of the data set.
        scenes: the scene of each image, in the order of `captions.image_ids`.

    Raises:
        DataError: a caption is not in this language, or the numbers of images and scenes differ.
    """
    if len(scenes) != len(captions.image_ids):
        raise DataError(f"{len(scenes)} scenes for the {len(captions.image_ids)} images of {captions.source}: give one "
                        "scene per image")
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
    """Return whether `first` entails `second`; True is certain, False is not.

    Every sentence of `second` must be part of a sentence of `first`: a subset of its counts, rules, backgrounds,
    objects and relations.
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
    """Return a function that swaps one phrase of the categories for an alternative that makes the caption false."""

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
    """Return the first word for each other value."""
    return [of[0] for other, of in words.items() if other != value]


def _roles_swapped(caption: str, scene: Scene, others: list[str], rng: np.random.Generator) -> str | None:
    """Swap two objects on either side of a relation."""
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
    """Return whether the text is a caption that is false of this scene but could be true of another."""
    meanings = _readable(text)
    mentioned = [[mention.kind for mention in meaning.mentions] for meaning in meanings]
    contradicted = any(sum(other.says(kind) for other in of_sentence) > count
                       for meaning in meanings for kind, count in meaning.counts for of_sentence in mentioned)
    return bool(meanings) and not contradicted and not _true(text, scene)


def _objects(tokens: Sequence[_Token]) -> Iterator[tuple[_Token, ...]]:
    """Yield the tokens of each object mentioned with "a", such as "a small circle with dots"; at least two."""
    for at, token in enumerate(tokens):
        described = tuple(takewhile(lambda part: part.category in _DESCRIBING, tokens[at + 1 :]))
        if token.category == "a" and any(part.category == "noun" for part in described):
            yield (token, *described)


def _detail_added(true: bool) -> Callable[..., str | None]:
    """Return a function that adds a sentence on something the caption leaves open, true of the scene or not."""

    def make(caption: str, scene: Scene, others: list[str], own: np.random.Generator) -> str | None:
        rng = generator_of(0, "detail", scene.image_id, caption)    # same for true and false: they differ in one word
        meanings = _read(caption)
        kinds = [] if any(meaning.backgrounds for meaning in meanings) else [_background]
        if not any(meaning.counts or meaning.rules for meaning in meanings):    # these may determine the count already
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
    absent, present = ([shape for shape in SHAPES if (shape in there) == so] for so in (False, True))  # both nonempty
    return f"there is no {pick(rng, absent)}", f"there is no {pick(rng, present)}"


def _concatenated(caption: str, scene: Scene, others: list[str], rng: np.random.Generator) -> str | None:
    new = [other for other in others if not entails(caption, other)]
    return concatenate([caption, pick(rng, new)], rng) if new else None


def _truncated(caption: str, scene: Scene, others: list[str], rng: np.random.Generator) -> str | None:
    """Return the prefix that is a caption and whose length is closest to half of the words."""
    words = caption.split()
    counts = sorted(range(1, len(words)), key=lambda n: (abs(2 * n - len(words)), n))
    texts = (" ".join(words[:count]).rstrip(",;:.") for count in counts)
    return next((text for text in texts if _less(text, caption, scene)), None)


def _keywords_removed(caption: str, scene: Scene, others: list[str], rng: np.random.Generator) -> str | None:
    """Remove half of the adjectives, patterns, places and backgrounds."""
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
    """Return whether the text is a caption that says a strict part of what `caption` says."""
    return bool(_readable(text)) and entails(caption, text) and not entails(text, caption) and _true(text, scene)


@lru_cache(maxsize=64)
def _tokens(caption: str) -> tuple[_Token, ...]:
    """Return the phrases of the lexicon in a caption, as `read_caption` reads them."""
    tokens: list[_Token] = []
    start, referring = 0, False
    for number, sentence in enumerate(caption.lower().split(".")):
        position = 0
        while sentence[position:].strip():
            found = language.WORD.match(sentence, position)
            if found is None:
                raise DataError(f"caption {caption!r}: cannot read {sentence[position:].strip()!r}; give captions of "
                                "the data set `scenes`, whose truth is known")
            category, value = language.LEXICON[" ".join(found.group(1).split())]
            referring = category == "the" or referring and category in _DESCRIBING
            tokens.append(_Token(start + found.start(1), start + found.end(1), category, value, number, referring))
            position = found.end()
        start += len(sentence) + 1
    return tuple(tokens)


@lru_cache(maxsize=256)
def _read(text: str) -> list[Meaning]:
    """Return `read_caption`, cached, because truth and entailment of a text are both checked."""
    return read_caption(text)


def _readable(text: str) -> list[Meaning]:
    """Return `_read`, or [] if the text is not a caption."""
    try:
        return _read(text)
    except DataError:
        return []


def _true(text: str, scene: Scene) -> bool:
    """Return whether the text is true of the scene."""
    return all(is_true(meaning, scene) for meaning in _read(text))


_MAKERS: dict[str, Callable[[str, Scene, list[str], np.random.Generator], str | None]] = {
    "noun swapped": _swap("noun", alternatives=_other_nouns),
    "colour swapped": _swap("adjective", alternatives=_other_adjectives("color")),
    "size swapped": _swap("adjective", alternatives=_other_adjectives("size")),
    "texture swapped": _swap("adjective", "pattern", alternatives=_other_adjectives("texture")),
    "number swapped": _swap("number", alternatives=lambda phrase, value: [
        word for number, word in language.NUMBERS.items() if value != 1 and number != value]),
    "relation swapped": _swap("relation", alternatives=lambda phrase, value: [      # other relations follow "is"
        "is " * (value == "contains") + word for word in _other(language.RELATIONS, value)]),
    "place swapped": _swap("place", alternatives=lambda phrase, value: _other(language.PLACE_PHRASES, value)),
    "background swapped": _swap("background", alternatives=lambda phrase, value: [
        phrase.replace(str(value), ground) for ground in BACKGROUNDS if ground != value]),
    "roles swapped": _roles_swapped, "false detail added": _detail_added(true=False),
    "true detail added": _detail_added(true=True), "concatenated": _concatenated, "truncated (prefix)": _truncated,
    "keywords removed": _keywords_removed}
