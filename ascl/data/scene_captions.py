"""What can be said about a scene: writing captions, reading them back, and whether a caption is true of a scene.

The language, for one sentence (a caption is one or more sentences, each ended by a full stop or the end):

- "a red circle and a square with stripes": each a/an is an object of its own, so all of them have to be there at once;
- "a star is above a circle, which is inside a box", "to the left of a star is a heart", "a box contains a disc";
- "the circle" is the object mentioned earlier in the same sentence that the words fit;
- "three objects", "only one star", "no striped things": exact counts; "every circle is red", "all shapes are small";
- "in the top left corner", "at the bottom", "on a white background", "the background is gray".

What is not said is open: "a circle" is true of an image with a circle and three stars. A caption is read into a
`Meaning` per sentence; `caption_is_true` is the plain definition, `truth_matrix` the same for many of both.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import permutations

import numpy as np

from ascl.data.scene_world import (
    BACKGROUNDS,
    COLOURS,
    INVERSE,
    PLACES,
    SHAPES,
    SIZES,
    TEXTURES,
    Scene,
    SceneObject,
    generator,
    holds,
    is_at,
    pick,
)
from ascl.errors import DataError

ATTRIBUTES = ("size", "texture", "colour", "shape")
_VALUES = {"size": SIZES, "texture": TEXTURES, "colour": tuple(COLOURS), "shape": SHAPES}
ADJECTIVES: dict[str, dict[str, tuple[str, ...]]] = {
    "size": {"small": ("small", "little", "tiny"), "large": ("large", "big")},
    "texture": {
        "solid": ("solid", "plain"),
        "striped": ("striped",),
        "dotted": ("dotted", "spotted"),
        "checkered": ("checkered",),
    },
    "colour": {colour: (colour, "violet") if colour == "purple" else (colour,) for colour in COLOURS},
}
PATTERNS = {"striped": ("with stripes",), "dotted": ("with dots", "with spots"), "checkered": ("with checks",)}
NOUNS: dict[str | None, tuple[tuple[str, str], ...]] = {  # singular, plural; None names any shape
    "circle": (("circle", "circles"), ("disc", "discs")),
    "square": (("square", "squares"), ("box", "boxes")),
    "triangle": (("triangle", "triangles"),),
    "star": (("star", "stars"),),
    "cross": (("cross", "crosses"),),
    "heart": (("heart", "hearts"),),
    None: (("object", "objects"), ("shape", "shapes"), ("thing", "things")),
}
RELATIONS = {
    "left_of": ("to the left of", "left of"),
    "right_of": ("to the right of", "right of"),
    "above": ("above", "over"),
    "below": ("below", "under", "beneath"),
    "inside": ("inside", "within", "surrounded by"),
    "next_to": ("next to", "adjacent to"),
}
_CONTAINS = ("contains", "surrounds", "encloses")  # verbs, where the other relations follow "is"
PLACE_PHRASES = {
    place: (f"in the {place} corner", f"at the {place}") if " " in place else (f"at the {place}",) for place in PLACES
} | {"middle": ("in the middle", "in the center"), "left": ("on the left",), "right": ("on the right",)}
_GROUNDS = ("on a {} background", "against a {} background", "on {}", "the background is {}")
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
_INTRODUCTIONS = ("", "", "", "there is", "a picture of", "we see", "this image shows")


@dataclass(frozen=True)
class Kind:
    """A description: the attributes that are named, None for those that are not."""

    size: str | None = None
    texture: str | None = None
    colour: str | None = None
    shape: str | None = None

    def fits(self, item: SceneObject) -> bool:
        return all(getattr(self, a) in (None, getattr(item, a)) for a in ATTRIBUTES)

    def merged(self, other: Kind) -> Kind:
        return Kind(*(getattr(other, a) or getattr(self, a) for a in ATTRIBUTES))

    def says(self, other: Kind) -> bool:
        """Whether everything that `other` names is named here with the same value."""
        return self.merged(other) == self


@dataclass(frozen=True)
class Mention:
    """An object that has to be there, and the places (keys of PLACES) where it has to be."""

    kind: Kind
    places: tuple[str, ...] = ()


@dataclass
class Meaning:
    """What one sentence claims; all of it has to hold."""

    mentions: list[Mention] = field(default_factory=list)  # different objects
    relations: list[tuple[int, str, int]] = field(default_factory=list)  # between mentions
    counts: list[tuple[Kind, int]] = field(default_factory=list)  # exactly so many of a kind
    rules: list[tuple[Kind, Kind]] = field(default_factory=list)  # all of one kind, at least one, are of the other
    backgrounds: list[str] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------------------------- truth


def caption_is_true(caption: str, scene: Scene) -> bool:
    """Whether all that the caption says holds in the scene. DataError where it is no caption of this language."""
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
    """`caption_is_true` for every pair.

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
    """Attributes and relations of many scenes as arrays; a description's matches are looked up once."""

    def __init__(self, scenes: Sequence[Scene]):
        slots = max((len(s.objects) for s in scenes), default=0)
        self.scenes = scenes
        self.real = np.array([[i < len(s.objects) for i in range(slots)] for s in scenes], dtype=bool)
        self.real = self.real.reshape(len(scenes), slots)
        self.background = np.array([s.background for s in scenes], dtype=object)
        self.values = {a: np.full((len(scenes), slots), None, dtype=object) for a in ATTRIBUTES}
        self.places = {p: np.zeros((len(scenes), slots), dtype=bool) for p in PLACES}
        self.relations = {r: np.zeros((len(scenes), slots, slots), dtype=bool) for r in INVERSE}
        for n, scene in enumerate(scenes):
            for i, a in enumerate(scene.objects):
                for attribute in ATTRIBUTES:
                    self.values[attribute][n, i] = getattr(a, attribute)
                for place, at in self.places.items():
                    at[n, i] = is_at(place, a, scene)
                for j, b in enumerate(scene.objects):
                    for relation, held in self.relations.items():
                        held[n, i, j] = i != j and holds(relation, a, b, scene)
        self._matches: dict[Mention, np.ndarray] = {}

    def matches(self, mention: Mention) -> np.ndarray:
        """(N, slots) bool: which object of each scene fits the description and stands in its places."""
        if mention not in self._matches:
            fits = self.real.copy()
            for attribute in ATTRIBUTES:
                wanted = getattr(mention.kind, attribute)
                if wanted is not None:
                    fits &= self.values[attribute] == wanted
            for place in mention.places:
                fits &= self.places[place]
            self._matches[mention] = fits
        return self._matches[mention]

    def is_true(self, meaning: Meaning) -> np.ndarray:
        """(N,) bool."""
        true = np.ones(len(self.scenes), dtype=bool)
        for ground in meaning.backgrounds:
            true &= self.background == ground
        for kind, count in meaning.counts:
            true &= self.matches(Mention(kind)).sum(axis=1) == count
        for kind, rule in meaning.rules:
            of_kind, both = self.matches(Mention(kind)), self.matches(Mention(kind.merged(rule)))
            # `merged` would overwrite an attribute that both name; then they agree or the rule is false
            agree = kind.merged(rule).says(kind)
            true &= of_kind.any(axis=1) & (of_kind == both).all(axis=1) & agree
        fits = [self.matches(mention) for mention in meaning.mentions]
        for fit in fits:  # cheap and necessary: few scenes are left for the assignments below
            true &= fit.any(axis=1)
        if len(fits) > 1:
            left = np.flatnonzero(true)
            true[left] = self._assignable(left, fits, meaning.relations)
        return true

    def _assignable(self, rows: np.ndarray, fits: list[np.ndarray], relations: Sequence[tuple[int, str, int]]):
        """(len(rows),) bool: some choice of different objects, one for each mention, fits the relations."""
        chosen = _choices(self.real.shape[1], len(fits))
        good = np.ones((len(rows), len(chosen)), dtype=bool)
        for k, fit in enumerate(fits):
            good &= fit[rows][:, chosen[:, k]]
        for a, relation, b in relations:
            good &= self.relations[relation][rows][:, chosen[:, a], chosen[:, b]]
        return good.any(axis=1)


@lru_cache
def _choices(slots: int, count: int) -> np.ndarray:
    """(P, count): every ordered choice of `count` different slots."""
    return np.array(list(permutations(range(slots), count)), dtype=np.int64).reshape(-1, count)


# -------------------------------------------------------------------------------------------------------------- reading


def _lexicon() -> dict[str, tuple[str, object]]:
    """Phrase -> (category, value)."""
    words: dict[str, tuple[str, object]] = {"a": ("a", None), "an": ("a", None), "the": ("the", None)}
    words |= {w: ("is", None) for w in ("is", "are")}
    words |= {w: ("which", None) for w in ("which", "that", "which is", "that is")}
    words |= {w: ("join", None) for w in (",", ";", ":", "and", "while", *_INTRODUCTIONS[3:], "there are", "exactly")}
    words |= {w: ("no", None) for w in ("no", "without any")} | {"only one": ("number", 1)}
    words |= {"every": ("all", None), "all": ("all", None), "with": ("with", None), "inside it": ("inside it", None)}
    for attribute, values in ADJECTIVES.items():
        words |= {w: ("adjective", Kind(**{attribute: value})) for value, ws in values.items() for w in ws}
    words |= {w: ("pattern", Kind(texture=value)) for value, ws in PATTERNS.items() for w in ws}
    words |= {w: ("noun", Kind(shape=shape)) for shape, nouns in NOUNS.items() for ws in nouns for w in ws}
    words |= {w: ("relation", relation) for relation, ws in RELATIONS.items() for w in ws}
    words |= {w: ("relation", "contains") for w in _CONTAINS}
    words |= {w: ("place", place) for place, ws in PLACE_PHRASES.items() for w in ws}
    words |= {w.format(g): ("background", g) for g in BACKGROUNDS for w in _GROUNDS}
    return words | {word: ("number", number) for number, word in NUMBERS.items()}


LEXICON = _lexicon()
WORD = re.compile(
    r"\s*("
    + "|".join(re.escape(w).replace(r"\ ", r"\s+") for w in sorted(LEXICON, key=len, reverse=True))  # longest first
    + r")(?=[\s,;:]|$)"
)


def read_caption(caption: str) -> list[Meaning]:
    """The meanings of the caption's sentences, in order. DataError names what could not be read."""
    sentences = [s for s in caption.lower().split(".") if s.strip()]
    if not sentences:
        raise DataError("an empty caption says nothing about a scene")
    return [_Reader(sentence, caption).sentence() for sentence in sentences]


class _Reader:
    """Recursive descent over the words of one sentence."""

    def __init__(self, sentence: str, caption: str):
        self.caption = caption
        self.words: list[tuple[str, object]] = []
        self.at = 0
        self.meaning = Meaning()
        position, sentence = 0, " ".join(sentence.split())
        while position < len(sentence):
            word = WORD.match(sentence, position)
            if word is None:
                raise self._unreadable(sentence[position:].strip())
            self.words.append(LEXICON[word.group(1)])
            position = word.end()

    def _unreadable(self, rest: str) -> DataError:
        only = "truth is defined for captions of the data set `scenes` only"
        return DataError(f"caption {self.caption!r}: cannot read {rest!r}; {only}")

    def next_is(self, *categories: str) -> bool:
        return self.at < len(self.words) and self.words[self.at][0] in categories

    def take(self, *categories: str):
        """The value of the next word, which has to be of one of the categories."""
        if not self.next_is(*categories):
            found = self.words[self.at][0] if self.at < len(self.words) else "its end"
            raise self._unreadable(f"{found} where {' or '.join(categories)} is due (word {self.at + 1})")
        self.at += 1
        return self.words[self.at - 1][1]

    def skip(self, *categories: str) -> None:
        while self.next_is(*categories):
            self.at += 1

    def sentence(self) -> Meaning:
        self.skip("join")
        while self.at < len(self.words):
            if self.next_is("background"):
                self.meaning.backgrounds.append(self.take("background"))
            elif self.next_is("number", "no"):
                self.count()
            elif self.next_is("all"):
                self.rule()
            elif self.next_is("relation", "place"):
                self.fronted()
            else:
                self.clause()
            self.skip("join")
        return self.meaning

    def followed_by(self, category: str) -> bool:
        """Whether a comma or "and" comes next, and after it a word of the category."""
        return self.next_is("join") and self.at + 1 < len(self.words) and self.words[self.at + 1][0] == category

    def both(self, kind: Kind, other: Kind) -> Kind:
        merged = kind.merged(other)
        if not merged.says(kind):
            raise self._unreadable(f"{kind} that is {other}, a contradiction")
        return merged

    def kind(self) -> Kind:
        """Adjectives, a noun, perhaps a pattern: "small red circle with dots"."""
        kind = Kind()
        while self.next_is("adjective"):
            kind = self.both(kind, self.take("adjective"))
        kind = self.both(kind, self.take("noun"))
        return self.both(kind, self.take("pattern")) if self.next_is("pattern") else kind

    def predicate(self) -> Kind:
        """What follows "is": "red", "small and dotted", "circles", "a red circle"."""
        self.skip("a")
        kind = Kind()
        while self.next_is("adjective") or (kind != Kind() and self.followed_by("adjective")):
            self.skip("join")
            kind = self.both(kind, self.take("adjective"))
        if kind == Kind() or self.next_is("noun"):
            kind = self.both(kind, self.take("noun"))
        return kind

    def count(self) -> None:
        """ "three objects", "no red circle"."""
        number = self.take("number", "no") or 0
        self.meaning.counts.append((self.kind(), number))

    def rule(self) -> None:
        """ "every circle is red"."""
        self.take("all")
        kind = self.kind()
        self.take("is")
        self.meaning.rules.append((kind, self.predicate()))

    def mention(self) -> int:
        """Index of the object: a new one after "a", one from before after "the"."""
        if self.next_is("the"):
            self.take("the")
            kind = self.kind()
            found = [i for i, m in enumerate(self.meaning.mentions) if m.kind.says(kind)]
            if len(found) != 1:
                raise self._unreadable(f"'the ...' that fits {len(found)} objects mentioned before")
            return found[0]
        self.take("a")
        self.meaning.mentions.append(Mention(self.kind()))
        return len(self.meaning.mentions) - 1

    def place(self, index: int, place: str) -> None:
        before = self.meaning.mentions[index]
        self.meaning.mentions[index] = replace(before, places=(*before.places, place))

    def fronted(self) -> None:
        """ "to the left of a star is a circle", "in the middle is a circle"."""
        if self.next_is("place"):
            place = self.take("place")
            self.take("is")
            self.place(self.mention(), place)
        else:
            relation = self.take("relation")
            other = self.mention()
            self.take("is")
            self.meaning.relations.append((self.mention(), relation, other))

    def clause(self) -> None:
        """An object and what is said of it; "which" turns to the object named last."""
        subject = last = self.mention()
        while self.next_is("is", "which", "relation", "place", "with") or self.followed_by("which"):
            self.skip("join")
            if self.next_is("which"):
                self.take("which")
                subject = last
            self.skip("is")
            if self.next_is("relation"):
                relation = self.take("relation")
                last = self.mention()
                self.meaning.relations.append((subject, relation, last))
            elif self.next_is("place"):
                self.place(subject, self.take("place"))
            elif self.next_is("with"):
                self.take("with")
                inner = self.mention()
                self.take("inside it")
                self.meaning.relations.append((inner, "inside", subject))
            else:
                before = self.meaning.mentions[subject]
                self.meaning.mentions[subject] = replace(before, kind=self.both(before.kind, self.predicate()))


# -------------------------------------------------------------------------------------------------------------- writing

CAPTIONS_PER_SCENE = 5


def write_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Five different true captions, from the shortest to the most detailed.

    0: one object by two of its attributes. 1: two objects and how they stand to each other, or where they are.
    2: counts, rules, what is absent, the background. 3: every object by two or three attributes. 4: every object by all
    its attributes, where each stands to another, and the background.
    """
    writer = _Writer(scene, rng)
    return [writer.glance(), writer.pair(), writer.facts(), writer.inventory(), writer.everything()]


class _Writer:
    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene = scene
        self.rng = rng

    def pick(self, choices):
        return pick(self.rng, choices)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def some(self, choices: Sequence, count: int) -> list:
        """`count` different choices in any order."""
        return [choices[i] for i in self.rng.permutation(len(choices))[:count]]

    # words

    def words(self, kind: Kind, *, plural: bool = False) -> str:
        """ "little red disc with stripes": the kind without an article, in one of its wordings."""
        noun = self.pick(NOUNS[kind.shape])[plural]
        pattern = ""
        adjectives = []
        for attribute in ("size", "texture", "colour"):
            value = getattr(kind, attribute)
            if attribute == "texture" and value in PATTERNS and self.chance(0.35):
                pattern = " " + self.pick(PATTERNS[value])
            elif value is not None:
                adjectives.append(self.pick(ADJECTIVES[attribute][value]))
        return " ".join([*adjectives, noun]) + pattern

    def a(self, kind: Kind) -> str:
        words = self.words(kind)
        return ("an " if words[0] in "aeiou" else "a ") + words

    def adjective(self, kind: Kind) -> str:
        """A word for the first adjective that the kind names; empty where it names a shape only."""
        named = [(a, getattr(kind, a)) for a in ADJECTIVES if getattr(kind, a)]
        return self.pick(ADJECTIVES[named[0][0]][named[0][1]]) if named else ""

    def kind_of(self, item: SceneObject, attributes: Sequence[str]) -> Kind:
        return Kind(**{a: getattr(item, a) for a in attributes})

    def ground(self) -> str:
        return self.pick(_GROUNDS).format(self.scene.background)

    def on_ground(self) -> str:
        """The background as the end of a sentence."""
        ground = self.ground()
        return f", and {ground}" if ground.startswith("the") else f" {ground}"

    def introduced(self, text: str) -> str:
        return f"{self.pick(_INTRODUCTIONS)} {text}".strip()

    def relation_between(self, a: SceneObject, b: SceneObject) -> str:
        true = [r for r in INVERSE if holds(r, a, b, self.scene)]
        nested = [r for r in true if r in ("inside", "contains")]  # the one relation between these two, if it holds
        return self.pick(nested or true)

    def related(self, relation: str) -> str:
        """The relation after its subject: "is above", "contains"."""
        return self.pick(_CONTAINS) if relation == "contains" else f"is {self.pick(RELATIONS[relation])}"

    # captions

    def glance(self) -> str:
        item = self.pick(self.scene.objects)
        first, second = (self.kind_of(item, [a]) for a in self.some(ATTRIBUTES, 2))
        if second.shape is None and self.chance(0.2):
            text = self.introduced(f"{self.a(first)} that is {self.adjective(second)}")
        else:
            text = self.introduced(self.a(first.merged(second)))
        return text + self.on_ground() if self.chance(0.15) else text

    def pair(self) -> str:
        a, b = self.some(self.scene.objects, 2)
        kinds = [self.kind_of(x, [*self.some(ATTRIBUTES[:3], 1), "shape"]) for x in (a, b)]
        if self.chance(0.2):
            places = [self.pick([p for p in PLACES if is_at(p, x, self.scene)] or [""]) for x in (a, b)]
            if all(places):
                first, second = (self.pick(PLACE_PHRASES[p]) for p in places)
                return f"{first} is {self.a(kinds[0])}, and {self.a(kinds[1])} is {second}"
        relation = self.relation_between(a, b)
        if relation == "contains" and self.chance(0.4):
            text = f"{self.a(kinds[0])} with {self.a(kinds[1])} inside it"
        elif relation != "contains" and self.chance(0.3):
            text = f"{self.pick(RELATIONS[relation])} {self.a(kinds[1])} is {self.a(kinds[0])}"
        else:
            text = f"{self.a(kinds[0])} {self.related(relation)} {self.a(kinds[1])}"
        return text + self.on_ground() if self.chance(0.2) else text

    def facts(self) -> str:
        """Two or three things that need a look at all objects."""
        objects = self.scene.objects
        number, absent, same = [], [], []
        for attribute, values in _VALUES.items():
            for value in values:
                kind = Kind(**{attribute: value})
                count = sum(kind.fits(o) for o in objects)
                if count == 0:
                    absent.append(kind)
                elif count < len(objects):
                    number.append((kind, count))
                for other in ATTRIBUTES:
                    shared = {getattr(o, other) for o in objects if kind.fits(o)}
                    if other != attribute and count > 1 and len(shared) == 1:
                        same.append((kind, Kind(**{other: shared.pop()})))
                if count == len(objects):
                    same.append((Kind(), kind))
        facts = [self.counted(Kind(), len(objects)), self.counted(*self.pick(number)), self.none(self.pick(absent))]
        facts += [self.all_are(*self.pick(same))] if same else []
        facts += [_GROUNDS[-1].format(self.scene.background)]
        return _enumerated(self.some(facts, 2 + self.chance(0.5)))

    def counted(self, kind: Kind, count: int) -> str:
        if count == 1:
            return f"only one {self.words(kind)}"
        return f"{self.pick(('', '', 'exactly '))}{NUMBERS[count]} {self.words(kind, plural=True)}"

    def none(self, kind: Kind) -> str:
        plural = self.chance(0.5)
        return f"{self.pick(('there are ' if plural else 'there is ', ''))}no {self.words(kind, plural=plural)}"

    def all_are(self, kind: Kind, rule: Kind) -> str:
        """`rule` names one attribute."""
        if self.chance(0.5):
            return f"every {self.words(kind)} is {self.adjective(rule) or self.a(rule)}"
        return f"all {self.words(kind, plural=True)} are {self.adjective(rule) or self.words(rule, plural=True)}"

    def inventory(self) -> str:
        objects = self.some(self.scene.objects, len(self.scene.objects))
        attributes = ["shape", *self.some(ATTRIBUTES[:3], self.pick((1, 2)))]
        items = [self.a(self.kind_of(o, attributes)) for o in objects]
        text = self.introduced(_enumerated(items))
        return text + self.on_ground() if self.chance(0.4) else text

    def everything(self) -> str:
        objects = self.some(self.scene.objects, len(self.scene.objects))
        kinds = [self.kind_of(o, ATTRIBUTES) for o in objects]
        joints = [self.relation_between(a, b) for a, b in zip(objects, objects[1:], strict=False)]
        names = self.short_names(kinds)
        if names is None or self.chance(0.5):  # one chain: "a ... is above a ..., which is inside a ..."
            text = self.a(kinds[0])
            for i, (relation, kind) in enumerate(zip(joints, kinds[1:], strict=True)):
                text += f"{', which ' if i else ' '}{self.related(relation)} {self.a(kind)}"
        else:  # a list, then "the ... is above the ..."
            clauses = [
                f"the {self.words(names[i])} {self.related(relation)} the {self.words(names[i + 1])}"
                for i, relation in enumerate(joints)
            ]
            text = f"{_enumerated([self.a(k) for k in kinds])}; {_enumerated(clauses)}"
        if self.chance(0.4):
            text = f"{NUMBERS[len(objects)]} {self.words(Kind(), plural=True)}: {text}"
        return text + self.on_ground()

    def short_names(self, kinds: list[Kind]) -> list[Kind] | None:
        """For each kind the fewest of its attributes that tell it from the others; None where two are the same."""
        subsets = [("shape",), ("colour", "shape"), ("texture", "shape"), ("size", "shape"), ATTRIBUTES]
        names = []
        for kind in kinds:
            unique = [
                name
                for name in (Kind(**{a: getattr(kind, a) for a in subset}) for subset in subsets)
                if sum(other.says(name) for other in kinds) == 1
            ]
            if not unique:
                return None
            names.append(unique[0])
        return names


def _enumerated(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def scene_captions(scene: Scene, seed: int, index: int, *, split: str) -> list[str]:
    """The five captions that belong to `make_scene(seed, index, split=split)`."""
    return write_captions(scene, generator(seed, split, 3, index))
