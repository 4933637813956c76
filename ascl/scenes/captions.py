"""Write captions of a scene: five true ones in the language of language.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ascl.scenes import language
from ascl.scenes.language import ADJECTIVES, ATTRIBUTES, GROUND_PHRASES, NUMBERS, RELATIONS, Kind
from ascl.scenes.world import INVERSE, PLACES, Scene, SceneObject, generator, holds, is_at, pick

CAPTIONS_PER_SCENE = 5


def write_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Return five different true captions, from the shortest to the most detailed.

    0: one object by two of its attributes. 1: two objects and how they stand to each other, or where they are.
    2: counts, rules, what is absent, the background. 3: every object by two or three attributes. 4: every object by all
    its attributes, where each stands to another, and the background.
    """
    writer = _Writer(scene, rng)
    return [writer.glance(), writer.pair(), writer.facts(), writer.inventory(), writer.everything()]


@dataclass
class _Writer:
    scene: Scene
    rng: np.random.Generator

    def pick(self, choices):
        return pick(self.rng, choices)

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def some(self, choices: Sequence, count: int) -> list:
        """Return `count` different choices in random order."""
        return [choices[i] for i in self.rng.permutation(len(choices))[:count]]

    # words

    def words(self, kind: Kind, *, plural: bool = False) -> str:
        """ "little red disc with stripes": the kind without an article, in one of its wordings."""
        noun = self.pick(language.NOUNS[kind.shape])[plural]
        pattern = ""
        adjectives = []
        for attribute in ("size", "texture", "color"):
            value = getattr(kind, attribute)
            if attribute == "texture" and value in language.PATTERNS and self.chance(0.35):
                pattern = " " + self.pick(language.PATTERNS[value])
            elif value is not None:
                adjectives.append(self.pick(ADJECTIVES[attribute][value]))
        return " ".join([*adjectives, noun]) + pattern

    def a(self, kind: Kind) -> str:
        words = self.words(kind)
        return ("an " if words[0] in "aeiou" else "a ") + words

    def adjective(self, kind: Kind) -> str:
        """Return a word for the first adjective of the kind; empty if it names only a shape."""
        named = [(a, getattr(kind, a)) for a in ADJECTIVES if getattr(kind, a)]
        return self.pick(ADJECTIVES[named[0][0]][named[0][1]]) if named else ""

    def kind_of(self, item: SceneObject, attributes: Sequence[str]) -> Kind:
        return Kind(**{a: getattr(item, a) for a in attributes})

    def ground(self) -> str:
        return self.pick(GROUND_PHRASES).format(self.scene.background)

    def on_ground(self) -> str:
        """Return the background as the end of a sentence."""
        ground = self.ground()
        return f", and {ground}" if ground.startswith("the") else f" {ground}"

    def introduced(self, text: str) -> str:
        return f"{self.pick(language.INTRODUCTIONS)} {text}".strip()

    def relation_between(self, a: SceneObject, b: SceneObject) -> str:
        true = [r for r in INVERSE if holds(r, a, b, self.scene)]
        nested = [r for r in true if r in ("inside", "contains")]  # the one relation between these two, if it holds
        return self.pick(nested or true)

    def related(self, relation: str) -> str:
        """Return the relation as it follows its subject: "is above", "contains"."""
        return self.pick(language.CONTAINING) if relation == "contains" else f"is {self.pick(RELATIONS[relation])}"

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
                first, second = (self.pick(language.PLACE_PHRASES[p]) for p in places)
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
        """Return two or three facts about all objects together."""
        objects = self.scene.objects
        number, absent, same = [], [], []
        for attribute, values in language.VALUES.items():
            for value in values:
                kind = Kind(**{attribute: value})
                of_kind = [o for o in objects if getattr(o, attribute) == value]
                count = len(of_kind)
                if count == 0:
                    absent.append(kind)
                elif count < len(objects):
                    number.append((kind, count))
                for other in ATTRIBUTES:
                    shared = {getattr(o, other) for o in of_kind}
                    if other != attribute and count > 1 and len(shared) == 1:
                        same.append((kind, Kind(**{other: shared.pop()})))
                if count == len(objects):
                    same.append((Kind(), kind))
        facts = [self.counted(Kind(), len(objects)), self.counted(*self.pick(number)), self.none(self.pick(absent))]
        facts += [self.all_are(*self.pick(same))] if same else []
        facts += [GROUND_PHRASES[-1].format(self.scene.background)]
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
            clauses = [f"the {self.words(names[i])} {self.related(relation)} the {self.words(names[i + 1])}"
                       for i, relation in enumerate(joints)]
            text = f"{_enumerated([self.a(k) for k in kinds])}; {_enumerated(clauses)}"
        if self.chance(0.4):
            text = f"{NUMBERS[len(objects)]} {self.words(Kind(), plural=True)}: {text}"
        return text + self.on_ground()

    def short_names(self, kinds: list[Kind]) -> list[Kind] | None:
        """Return for each kind the fewest attributes that distinguish it from the others; None if two are equal."""
        subsets = [("shape",), ("color", "shape"), ("texture", "shape"), ("size", "shape"), ATTRIBUTES]
        names = []
        for kind in kinds:
            unique = [name for name in (Kind(**{a: getattr(kind, a) for a in subset}) for subset in subsets)
                      if sum(other.says(name) for other in kinds) == 1]
            if not unique:
                return None
            names.append(unique[0])
        return names


def _enumerated(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else items)


def scene_captions(scene: Scene, seed: int, index: int, *, split: str) -> list[str]:
    """Return the five captions of `make_scene(seed, index, split=split)`."""
    return write_captions(scene, generator(seed, split, 3, index))
