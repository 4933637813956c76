"""Variants of human captions, by small deterministic edits of their words, without a model or a corpus.

The truth of a variant is not known exactly, unlike for generated scenes. A false variant adds an object, a color or a
number that no caption of the image mentions, nor anything close to it (`lexicon.py`). A true detail comes from another
caption of the same image. If an edit does not apply to a caption, there is no variant.

A manual check compared 60 variants of each kind (Flickr8k test captions) with their photographs. Of 60, well-formed /
false or true as intended (undecidable counts as wrong): noun swapped 58 / 57, color 60 / 57, number 60 / 56, relation
58 / 57, roles 58 / 60 (though most make no sense: "a large wave rides a surfer"), false detail 60 / 58, true detail
60 / 53 (writers err; 4 say nothing new), concatenated 60 / 57, truncated 56 / 59, keywords removed 58 / 60.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from ascl.analysis.probes import lexicon
from ascl.analysis.probes.lexicon import Noun
from ascl.analysis.probes.variants import CaptionVariant, generator_of, replaced, second_sentence, with_article
from ascl.data.captions import CaptionSet
from ascl.samples.positives import concatenate, truncate_prefix
from ascl.scenes.world import pick

_WORD = re.compile(r"[A-Za-z]+(?:[-'][A-Za-z]+)*")
_GENDERED = frozenset("he she him his her hers himself herself".split())
_WITH_ON = frozenset("put puts putting turn turns turning try tries trying bite bites biting go goes going".split())
_PLAY = frozenset("play plays playing played".split())
_SINGULAR = frozenset("a an the another one each every".split())
_BEFORE_SUBJECT = frozenset("while as where when".split())
_COLOR_VERBS = frozenset("in is are wearing dressed painted all".split())
_DRAWS = 100    # attempts to find a false detail; nearly every image lacks most details


class _Word(NamedTuple):
    """A word at caption[start:end]; text is in lower case."""

    start: int
    end: int
    text: str


class _Named(NamedTuple):
    """A noun in a caption: word number `at` is `name`. group: nouns that it excludes. number: 0 singular, 1 plural."""

    at: int
    name: str
    noun: Noun
    group: tuple[Noun, ...]
    number: int


class _Image(NamedTuple):
    """An image. words: of all its captions. others: its other captions. details: candidates for false details."""

    words: frozenset[str]
    others: list[str]
    details: Sequence[_Named]


def caption_variants(captions: CaptionSet, *, seed: int = 0) -> list[CaptionVariant]:
    """Return at most one variant of each kind per caption, in the order of the captions.

    False details are true details of other images of the set, drawn by their frequency. Otherwise a variant depends
    only on its image.
    """
    read = [_words(caption) for caption in captions.captions]
    of_image = [captions.captions_of(image) for image in range(len(captions.image_ids))]
    known = [frozenset(word.text for i in own for word in read[i]) for own in of_image]
    details = [found for i, image in enumerate(captions.owner) for found in _new_details(
        captions.captions[i], [captions.captions[j] for j in of_image[image] if j != i])]
    variants = []
    for index, (caption, image) in enumerate(zip(captions.captions, captions.owner, strict=True)):
        others = [captions.captions[i] for i in of_image[image] if captions.captions[i] != caption]
        about = _Image(known[image], others, details)
        for kind, make in _MAKERS.items():
            text = make(caption, about, generator_of(seed, kind, captions.image_ids[image], caption))
            if text is not None:
                variants.append(CaptionVariant(index, kind, text))
    return variants


def _noun_swapped(caption: str, image: _Image, rng: np.random.Generator) -> str | None:
    words = _words(caption)
    people = [lexicon.GROUPS[name].nouns for name in ("adults", "young")]
    gendered = any(word.text in _GENDERED for word in words)
    choices = [(named, other) for named in _swappable(words) if not (gendered and named.group in people)
               for other in named.group if other is not named.noun and _absent(other, image.words)]
    if not choices:
        return None
    named, other = pick(rng, choices)
    word = words[named.at]
    return replaced(caption, word.start, word.end, other.names[0][named.number])


def _color_swapped(caption: str, image: _Image, rng: np.random.Generator) -> str | None:
    words = _words(caption)
    if image.words & lexicon.MANY_COLORS:
        return None

    def said_of_a_thing(at: int) -> bool:
        following = _next(caption, words, at)
        if following is None:
            return _text(words, at - 1) in _COLOR_VERBS
        return following not in lexicon.LOOSE_ENDS and following not in lexicon.NOT_AFTER_COLOR

    places = [word for at, word in enumerate(words) if word.text in lexicon.COLOR_WORDS and said_of_a_thing(at)]
    colors = [color for color, near in lexicon.COLORS.items() if image.words.isdisjoint(near)]
    if not places or not colors:
        return None
    word = pick(rng, places)
    return replaced(caption, word.start, word.end, pick(rng, colors))


def _number_swapped(caption: str, image: _Image, rng: np.random.Generator) -> str | None:
    """Replace a number by a larger one; a smaller one would be true, because three things include two."""
    words = _words(caption)
    texts = [word.text for word in words]
    places = [word for at, word in enumerate(words)
              if word.text in lexicon.NUMBERS[:6] and any(map(_is_plural, texts[at + 1 : at + 4]))
              and lexicon.NOT_AFTER_NUMBER.isdisjoint(texts[at + 1 : at + 3])]
    if not places:
        return None
    word = pick(rng, places)
    value = lexicon.NUMBERS.index(word.text)
    larger = [number for number in lexicon.NUMBERS[value + 2 : value + 5] if number not in image.words]
    return replaced(caption, word.start, word.end, pick(rng, larger)) if larger else None


def _relation_swapped(caption: str, image: _Image, rng: np.random.Generator) -> str | None:
    places = []
    for found in _RELATION.finditer(caption):
        phrase = " ".join(found.group().lower().split())
        after = [word.text for word in _words(caption[found.end() :])[:4]]
        before = _text(_words(caption[: found.start()])[-1:], 0)
        lost = not after or phrase in lexicon.NEED_DETERMINER and after[0] not in lexicon.DETERMINERS
        if (not lost and after[0] != "to" and before not in _WITH_ON and lexicon.NOT_PLACES.isdisjoint(after)
                and not after[0].endswith("ing")):
            places.append((found, lexicon.RELATIONS[phrase]))
    if not places:
        return None
    found, other = pick(rng, places)
    return replaced(caption, found.start(), found.end(), other)


def _roles_swapped(caption: str, image: _Image, rng: np.random.Generator) -> str | None:
    """Swap subject and object of a verb that is not symmetric."""
    words = _words(caption)
    phrases = [(at, words[at].start, words[end].end) for at, end in _noun_phrases(caption, words)]
    pairs = []
    for (at, a, a_end), (_, b, b_end) in pairwise(phrases):
        first, second = caption[a:a_end].lower(), caption[b:b_end].lower()
        subject = at == 0 or words[at - 1].text in _BEFORE_SUBJECT
        if subject and _ROLES.fullmatch(caption[a_end:b].lower()) and first.split()[1:] != second.split()[1:]:
            pairs.append((a, a_end, b, b_end))
    if not pairs:
        return None
    a, a_end, b, b_end = pick(rng, pairs)
    first, second = caption[a:a_end], caption[b:b_end]
    if first[0].isupper():
        first, second = first[0].lower() + first[1:], second[0].upper() + second[1:]
    return caption[:a] + second + caption[a_end:b] + first + caption[b_end:]


def _noun_phrases(caption: str, words: list[_Word]) -> Iterator[tuple[int, int]]:
    """Yield first and last word of phrases like "a small brown dog": determiner, modifiers, singular noun."""
    for at, word in enumerate(words):
        for end in range(at + 1, min(at + 5, len(words))) if word.text in _SINGULAR else ():
            name = words[end].text
            if name in lexicon.LOOSE_ENDS or _next(caption, words, end - 1) is None:
                break
            singular = name in lexicon.NOUNS_OF_ROLES or any(number == 0 for _, _, number in _NOUNS.get(name, []))
            if singular and _ends_phrase(_text(words, end + 1)):
                yield at, end
                break


def _false_detail_added(caption: str, image: _Image, rng: np.random.Generator) -> str | None:
    for place in rng.integers(len(image.details), size=_DRAWS) if image.details else []:
        if _absent(image.details[place].noun, image.words):
            return second_sentence(caption, _there_is(image.details[place]))
    return None


def _true_detail_added(caption: str, image: _Image, rng: np.random.Generator) -> str | None:
    new = _new_details(caption, image.others)
    return second_sentence(caption, _there_is(pick(rng, new))) if new else None


def _concatenated(caption: str, image: _Image, rng: np.random.Generator) -> str | None:
    """Concatenate with another caption of the image, like the generated positives of training."""
    return concatenate([caption, pick(rng, image.others)], rng) if image.others else None


def _truncated(caption: str, image: _Image, rng: np.random.Generator) -> str | None:
    """Keep the first half of the words, without final words that need what followed them."""
    return _shorter(_trimmed(truncate_prefix(caption)), caption)


def _keywords_removed(caption: str, image: _Image, rng: np.random.Generator) -> str | None:
    """Remove half (at least one) of the last phrase and the adjectives before nouns, so that a sentence remains."""
    words = _words(caption)
    spans = [(word.start, words[at + 1].start) for at, word in enumerate(words)
             if word.text in lexicon.ADJECTIVES and _before_noun(caption, words, at)]
    last = [found for found in _LAST_PHRASE.finditer(caption) if len(_words(caption[: found.start()])) > 1]
    if last:
        spans.append((last[-1].start(), len(caption)))
    if not spans:
        return None
    chosen = rng.permutation(len(spans))[: (len(spans) + 1) // 2]
    text = caption
    for start, end in sorted((spans[place] for place in chosen), reverse=True):
        text = text[:start] if end == len(caption) else _cut(text, start, end)
    return _shorter(_trimmed(text), caption)


def _before_noun(caption: str, words: list[_Word], at: int) -> bool:
    """Return whether this adjective can be removed: a noun, or an adjective before one, follows directly."""
    following = _next(caption, words, at)
    if following is None or following in lexicon.LOOSE_ENDS | lexicon.FORMS_OF_VERBS:
        return False
    between = caption[words[at - 1].end : words[at].start].strip() if at else ""
    listed = between != "" or at > 0 and words[at - 1].text == "and"        # "large, black and white dog"
    return not listed and (following in lexicon.ADJECTIVES or not following.endswith("ed"))


def _cut(text: str, start: int, end: int) -> str:
    """Remove text[start:end]; the next word takes over its capital letter and its article."""
    rest = text[end].upper() + text[end + 1 :] if text[start].isupper() else text[end:]
    return with_article(text[:start], rest.split()[0]) + rest


def _trimmed(text: str) -> str:
    """Remove final words that need what followed them, and trailing punctuation."""
    words = text.split()
    while words and re.sub(r"\W+", "", words[-1]).lower() in {*lexicon.LOOSE_ENDS, *lexicon.ADJECTIVES, ""}:
        words.pop()
    return " ".join(words).rstrip(" ,;:")


def _shorter(text: str, caption: str) -> str | None:
    return text if _words(text) and len(_words(text)) < len(_words(caption)) else None


@lru_cache(maxsize=64)
def _words(caption: str) -> list[_Word]:
    return [_Word(found.start(), found.end(), found.group().lower()) for found in _WORD.finditer(caption)]


def _text(words: Sequence[_Word], at: int) -> str:
    """Return word number `at`, or "" beyond the ends."""
    return words[at].text if 0 <= at < len(words) else ""


def _next(caption: str, words: list[_Word], at: int) -> str | None:
    """Return the word that follows after white space only, or None."""
    if at + 1 == len(words) or caption[words[at].end : words[at + 1].start].strip():
        return None
    return words[at + 1].text


def _is_plural(word: str) -> bool:
    return word in lexicon.PLURALS_WITHOUT_S or word.endswith("s") and not word.endswith(("ss", "us", "is"))


def _swappable(words: list[_Word]) -> list[_Named]:
    """Return nouns of the lexicon that are not part of a compound, such as "dog" in "dog house" or "hot dog"."""
    found = []
    for at, word in enumerate(words):
        before = _text(words, at - 1)
        if not _ends_phrase(_text(words, at + 1)) or (before, word.text) in _COMPOUNDS:
            continue
        if word.text in _NOUNS:
            found += [_Named(at, word.text, *place) for place in _NOUNS[word.text]
                      if word.text not in lexicon.ALSO_VERBS or _before_thing(before, place[2])]
        elif word.text in _SPORTS and before in _PLAY:
            found.append(_Named(at, word.text, _SPORTS[word.text], lexicon.SPORTS, 0))
        elif word.text in _GROUNDS and before in _BEFORE_GROUND:
            found.append(_Named(at, word.text, _GROUNDS[word.text], lexicon.GROUNDS, 0))
    return found


def _before_thing(before: str, number: int) -> bool:
    """Return whether the next word is a noun and not a verb: "the stick", "carrying sticks", not "he sticks"."""
    known = (lexicon.LOOSE_ENDS, lexicon.ADJECTIVES, lexicon.NUMBERS, lexicon.VERBS_OF_ROLES)
    return not (number and before in _SINGULAR) and (any(before in some for some in known) or before.endswith("ing"))


def _ends_phrase(following: str) -> bool:
    """Return whether a noun before this word ends its phrase, unlike in a compound or in "a bed of roses"."""
    if following in lexicon.LOOSE_ENDS or following in lexicon.FORMS_OF_VERBS:
        return following != "of"
    return not following or following.endswith("ed") or following.endswith("ing") and following not in _NOUNS_IN_ING


def _absent(noun: Noun, known: frozenset[str]) -> bool:
    """Return whether none of the words refers to this noun."""
    return known.isdisjoint(noun.words)


def _new_details(caption: str, others: list[str]) -> list[_Named]:
    """Return, once each, salient nouns of the other captions of whose group this caption names nothing."""
    here = frozenset(word.text for word in _words(caption))     # otherwise the writers may mean the same object
    new: dict[str, _Named] = {}
    for named in (named for other in others for named in _swappable(_words(other))):
        if named.group in _SALIENT and all(_absent(noun, here) for noun in named.group):
            new.setdefault(named.noun.names[0][0], named)
    return list(new.values())


def _there_is(named: _Named) -> str:
    return f"There are {named.name}." if named.number else with_article("There is a ", named.name) + f"{named.name}."


def _by_name(nouns: Sequence[Noun]) -> dict[str, Noun]:
    return {singular: noun for noun in nouns for singular, _ in noun.names}


def _nouns() -> dict[str, list[tuple[Noun, tuple[Noun, ...], int]]]:
    """Return name -> (noun, its group, number), one entry per group that has the name."""
    table: dict[str, list[tuple[Noun, tuple[Noun, ...], int]]] = {}
    for group in lexicon.GROUPS.values():
        for noun in group.nouns:
            for names in noun.names:
                for number, name in enumerate(dict.fromkeys(names)):
                    table.setdefault(name, []).append((noun, group.nouns, number))
    return table


_NOUNS = _nouns()
_SPORTS, _GROUNDS = _by_name(lexicon.SPORTS), _by_name(lexicon.GROUNDS)
_SALIENT = [group.nouns for group in lexicon.GROUPS.values() if group.salient]
_BEFORE_GROUND = frozenset("the in on through into across over deep".split())
_COMPOUNDS = {
    (first, second + ending) for firsts, second in (
        ("train", "car"), ("laptop", "computer"), ("hot", "dog"), ("teddy", "bear"),
        ("tennis soccer golf cricket rugby beach bowling", "ball"))
    for first in firsts.split() for ending in ("", "s")}
_NOUNS_IN_ING = frozenset("racing skiing railing building wedding parking crossing clothing painting ceiling".split())
_RELATION = re.compile(
    rf"\b(?:{'|'.join(sorted(lexicon.RELATIONS, key=len, reverse=True))})\b".replace(" ", r"\s+"), re.IGNORECASE)
_ROLES = re.compile(rf"\s+(?:is\s+)?(?:{'|'.join(sorted(lexicon.VERBS_OF_ROLES))})"
                    rf"(?:\s+(?:{'|'.join(lexicon.PREPOSITIONS_OF_ROLES)}))?\s+")
_LAST_PHRASE = re.compile(
    rf"\s(?:in front of|next to|{'|'.join(lexicon.LAST_PHRASES)})\s(?=[\w' -]+[\s.]*$)", re.IGNORECASE)
_MAKERS: dict[str, Callable[[str, _Image, np.random.Generator], str | None]] = {
    "noun swapped": _noun_swapped, "colour swapped": _color_swapped, "number swapped": _number_swapped,
    "relation swapped": _relation_swapped, "roles swapped": _roles_swapped, "false detail added": _false_detail_added,
    "true detail added": _true_detail_added, "concatenated": _concatenated, "truncated (prefix)": _truncated,
    "keywords removed": _keywords_removed}
