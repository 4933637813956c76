"""The language of the captions of `scenes`: its words, what a sentence means, and reading a caption back.

One sentence (a caption is one or more sentences, each ended by a full stop or the end):

- "a red circle and a square with stripes": each a/an is an object of its own, so all of them have to be there at once;
- "a star is above a circle, which is inside a box", "to the left of a star is a heart", "a box contains a disc";
- "the circle" is the object mentioned earlier in the same sentence that the words fit;
- "three objects", "only one star", "no striped things": exact counts; "every circle is red", "all shapes are small";
- "in the top left corner", "at the bottom", "on a white background", "the background is gray".

What is not said is open: "a circle" is true of an image with a circle and three stars. A caption is read into a
`Meaning` per sentence. What makes one true: truth.py. Writing captions: captions.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace

from ascl.core.errors import DataError
from ascl.scenes.world import BACKGROUNDS, COLORS, PLACES, SHAPES, SIZES, TEXTURES, SceneObject

ATTRIBUTES = ("size", "texture", "color", "shape")
VALUES = {"size": SIZES, "texture": TEXTURES, "color": tuple(COLORS), "shape": SHAPES}
ADJECTIVES: dict[str, dict[str, tuple[str, ...]]] = {
    "size": {"small": ("small", "little", "tiny"), "large": ("large", "big")},
    "texture": {"solid": ("solid", "plain"), "striped": ("striped",), "dotted": ("dotted", "spotted"),
                "checkered": ("checkered",)},
    "color": {color: (color, "violet") if color == "purple" else (color,) for color in COLORS},
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
RELATIONS = {"left_of": ("to the left of", "left of"), "right_of": ("to the right of", "right of"),
             "above": ("above", "over"), "below": ("below", "under", "beneath"),
             "inside": ("inside", "within", "surrounded by"), "next_to": ("next to", "adjacent to")}
CONTAINING = ("contains", "surrounds", "encloses")  # verbs, where the other relations follow "is"
PLACE_PHRASES = {
    place: (f"in the {place} corner", f"at the {place}") if " " in place else (f"at the {place}",) for place in PLACES
} | {"middle": ("in the middle", "in the center"), "left": ("on the left",), "right": ("on the right",)}
GROUND_PHRASES = ("on a {} background", "against a {} background", "on {}", "the background is {}")
NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five"}
INTRODUCTIONS = ("", "", "", "there is", "a picture of", "we see", "this image shows")


@dataclass(frozen=True)
class Kind:
    """A description by attributes; None = not named."""

    size: str | None = None
    texture: str | None = None
    color: str | None = None
    shape: str | None = None

    def fits(self, item: SceneObject) -> bool:
        return all(getattr(self, a) in (None, getattr(item, a)) for a in ATTRIBUTES)

    def merged(self, other: Kind) -> Kind:
        return Kind(*(getattr(other, a) or getattr(self, a) for a in ATTRIBUTES))

    def says(self, other: Kind) -> bool:
        """Return whether this names everything that `other` names, with the same values."""
        return self.merged(other) == self


@dataclass(frozen=True)
class Mention:
    """An object that the scene must contain, and the places (keys of PLACES) where it must be."""

    kind: Kind
    places: tuple[str, ...] = ()


@dataclass
class Meaning:
    """The claims of one sentence, all of which must hold."""

    mentions: list[Mention] = field(default_factory=list)  # different objects
    relations: list[tuple[int, str, int]] = field(default_factory=list)  # between mentions
    counts: list[tuple[Kind, int]] = field(default_factory=list)  # kind and its exact number
    rules: list[tuple[Kind, Kind]] = field(default_factory=list)  # all of one kind, at least one, are of the other
    backgrounds: list[str] = field(default_factory=list)


# Reading


def _lexicon() -> dict[str, tuple[str, object]]:
    """Phrase -> (category, value)."""
    words: dict[str, tuple[str, object]] = {"a": ("a", None), "an": ("a", None), "the": ("the", None)}
    words |= {w: ("is", None) for w in ("is", "are")}
    words |= {w: ("which", None) for w in ("which", "that", "which is", "that is")}
    words |= {w: ("join", None) for w in (",", ";", ":", "and", "while", *INTRODUCTIONS[3:], "there are", "exactly")}
    words |= {w: ("no", None) for w in ("no", "without any")} | {"only one": ("number", 1)}
    words |= {"every": ("all", None), "all": ("all", None), "with": ("with", None), "inside it": ("inside it", None)}
    for attribute, values in ADJECTIVES.items():
        words |= {w: ("adjective", Kind(**{attribute: value})) for value, ws in values.items() for w in ws}
    words |= {w: ("pattern", Kind(texture=value)) for value, ws in PATTERNS.items() for w in ws}
    words |= {w: ("noun", Kind(shape=shape)) for shape, nouns in NOUNS.items() for ws in nouns for w in ws}
    words |= {w: ("relation", relation) for relation, ws in RELATIONS.items() for w in ws}
    words |= {w: ("relation", "contains") for w in CONTAINING}
    words |= {w: ("place", place) for place, ws in PLACE_PHRASES.items() for w in ws}
    words |= {w.format(g): ("background", g) for g in BACKGROUNDS for w in GROUND_PHRASES}
    return words | {word: ("number", number) for number, word in NUMBERS.items()}


LEXICON = _lexicon()
WORD = re.compile(
    r"\s*("
    + "|".join(re.escape(w).replace(r"\ ", r"\s+") for w in sorted(LEXICON, key=len, reverse=True))  # longest first
    + r")(?=[\s,;:]|$)"
)


def read_caption(caption: str) -> list[Meaning]:
    """Return the meanings of the caption's sentences, in order. A DataError names what cannot be read."""
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
        return DataError(f"caption {self.caption!r}: cannot read {rest!r}; truth is defined for captions of the data "
                         "set `scenes` only")

    def next_is(self, *categories: str) -> bool:
        return self.at < len(self.words) and self.words[self.at][0] in categories

    def take(self, *categories: str):
        """Consume the next word and return its value; it must be of one of the categories."""
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
        """Return whether a comma or "and" comes next, followed by a word of the category."""
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
        """Return the index of the object: a new one after "a", an earlier one after "the"."""
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
            relation, other = self.take("relation"), self.mention()
            self.take("is")
            self.meaning.relations.append((self.mention(), relation, other))

    def clause(self) -> None:
        """Read an object and the claims about it; "which" refers to the object named last."""
        subject = last = self.mention()
        while self.next_is("is", "which", "relation", "place", "with") or self.followed_by("which"):
            self.skip("join")
            if self.next_is("which"):
                self.take("which")
                subject = last
            self.skip("is")
            if self.next_is("relation"):
                relation, last = self.take("relation"), self.mention()
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
