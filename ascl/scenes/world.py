"""The world of the generated data set: its objects, scenes from a seed, and relations between objects.

Everything that a caption can say is defined here, on attributes and boxes alone, so that truth never depends on pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ascl.core.errors import DataError

SPLITS = ("train", "val", "test")
SIZES = ("small", "large")
TEXTURES = ("solid", "striped", "dotted", "checkered")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
CONTAINERS = ("circle", "square")  # roomy enough to show another object inside
COLORS = {"red": (214, 38, 42), "green": (40, 150, 62), "blue": (42, 92, 214), "yellow": (247, 214, 44),
          "orange": (246, 132, 22), "purple": (138, 58, 178)}
# no word in common with COLORS, so that a color word says whether it means an object
BACKGROUNDS = {"white": (244, 244, 242), "gray": (150, 152, 156), "black": (34, 34, 38), "beige": (226, 208, 170),
               "pink": (244, 190, 206)}
INVERSE = {"left_of": "right_of", "right_of": "left_of", "above": "below", "below": "above", "inside": "contains",
           "contains": "inside", "next_to": "next_to"}
# place -> (column or None, row or None) of the image's 3 x 3 thirds
PLACES: dict[str, tuple[int | None, int | None]] = {
    "top left": (0, 0), "top right": (2, 0), "bottom left": (0, 2), "bottom right": (2, 2), "middle": (1, 1),
    "top": (None, 0), "bottom": (None, 2), "left": (0, None), "right": (2, None)}
MAX_OBJECTS = 5
MAX_FAMILY = 100  # more and more draws of attributes would have too few arrangements
Look = tuple[str, str, str, str]  # shape, color, size, texture
_DIRECTIONS = {"left_of": (0, 1), "right_of": (0, -1), "above": (1, 1), "below": (1, -1)}  # axis and sign
# In fractions of the image's side. Objects stand near the centers of a 3 x 3 grid, so two centers differ along an axis
# by at most 0.03 (same column or row) or at least 0.29: no relation and no place is ever a matter of opinion.
_APART, _NEIGHBOR = 0.15, 0.45
_LARGE, _SMALL, _INNER = (0.255, 0.28), (0.15, 0.17), (0.125, 0.145)
_PITCH, _JITTER = (0.315, 0.33), 0.012
_DRAWS = 30  # of an arrangement, for each scene of a family, before other attributes are drawn


@dataclass(frozen=True)
class SceneObject:
    """One drawn object; `box` is the tight x1, y1, x2, y2 in pixels, `rgb` its main color, `angle` in degrees."""

    shape: str
    color: str
    size: str
    texture: str
    box: tuple[float, float, float, float]
    rgb: tuple[int, int, int]
    angle: float

    @property
    def center(self) -> tuple[float, float]:
        return (self.box[0] + self.box[2]) / 2, (self.box[1] + self.box[3]) / 2


@dataclass(frozen=True)
class Scene:
    """One image before it is drawn; `image_id` is the stem of its file, `side` its width and height in pixels."""

    image_id: str
    side: int
    background: str
    background_rgb: tuple[int, int, int]
    objects: tuple[SceneObject, ...]

    def record(self) -> dict[str, Any]:
        """Return the scene as JSON types; `Scene.from_record` reads it back exactly."""
        objects = [{"colour" if name == "color" else name: list(value) if isinstance(value, tuple) else value
                    for name, value in vars(o).items()} for o in self.objects]  # version 1 of the file says "colour"
        return {"side": self.side, "background": self.background, "background_rgb": list(self.background_rgb),
                "objects": objects}

    @classmethod
    def from_record(cls, image_id: str, record: dict[str, Any]) -> Scene:
        """Return the scene of a record; DataError if a key is missing or its value impossible."""
        objects = record.get("objects")
        if not isinstance(objects, list) or not all(isinstance(o, dict) for o in objects):
            raise DataError("expected `objects` as a list of objects")
        made = tuple(
            SceneObject(_one_of(o, "shape", SHAPES), _one_of(o, "colour", COLORS), _one_of(o, "size", SIZES),
                        _one_of(o, "texture", TEXTURES), _numbers(o, "box", 4), _numbers(o, "rgb", 3),
                        *_numbers({"angle": [o.get("angle")]}, "angle", 1))
            for o in objects
        )
        side = _numbers({"side": [record.get("side")]}, "side", 1)[0]
        return cls(image_id, side, _one_of(record, "background", BACKGROUNDS),
                   _numbers(record, "background_rgb", 3), made)


def _one_of(record: dict[str, Any], key: str, known: Iterable[str]) -> str:
    if not isinstance(record.get(key), str) or record[key] not in known:
        raise DataError(f"expected `{key}` as one of {', '.join(known)}, found {record.get(key)!r}")
    return record[key]


def _numbers(record: dict[str, Any], key: str, count: int) -> Any:
    """Return a list of numbers as a tuple."""
    values = record.get(key)
    if not isinstance(values, list) or len(values) != count or not all(
            isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e6 for value in values):
        raise DataError(f"expected `{key}` as {count} number{'s' if count > 1 else ''}, found {values!r}")
    return tuple(values)


def inside(a: SceneObject, b: SceneObject) -> bool:
    """Return whether a's box lies within b's; boxes overlap in no other way."""
    return a.box[0] > b.box[0] and a.box[1] > b.box[1] and a.box[2] < b.box[2] and a.box[3] < b.box[3]


def holds(relation: str, a: SceneObject, b: SceneObject, scene: Scene) -> bool:
    """Return whether `a relation b` is true; relations are the keys of INVERSE.

    Left, right, above, below compare centers along one axis. Next to: neighbors in a row or a column, and neither of
    them inside another object, whose outline would lie between.
    """
    dx = (b.center[0] - a.center[0]) / scene.side
    dy = (b.center[1] - a.center[1]) / scene.side
    if relation in _DIRECTIONS:
        axis, sign = _DIRECTIONS[relation]
        return sign * (dx, dy)[axis] > _APART
    if relation in ("inside", "contains"):
        return inside(a, b) if relation == "inside" else inside(b, a)
    if relation != "next_to":
        raise KeyError(relation)
    nested = any(inside(x, other) for x in (a, b) for other in scene.objects)
    near, far = sorted((abs(dx), abs(dy)))
    return not nested and near < _APART < far < _NEIGHBOR


def is_at(place: str, item: SceneObject, scene: Scene) -> bool:
    """Return whether the object's center lies in the place, a key of PLACES."""
    column, row = PLACES[place]
    x, y = (min(2, int(3 * c / scene.side)) for c in item.center)
    return column in (None, x) and row in (None, y)


def outline(shape: str, angle: float) -> np.ndarray:
    """Return the outline (P, 2) of a shape turned by `angle` degrees; it starts at (0, 0), its longer side is 1."""
    turn = np.linspace(0, 2 * math.pi, 60, endpoint=False)
    if shape == "circle":
        points = np.stack([np.cos(turn), np.sin(turn)], axis=1)
    elif shape == "square":
        points = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], dtype=float)
    elif shape == "triangle":
        points = np.array([(0, -1), (1, 0.8), (-1, 0.8)], dtype=float)
    elif shape == "star":
        turn = np.arange(10) * math.pi / 5 - math.pi / 2
        radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.45)
        points = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
    elif shape == "cross":
        arm = 0.36
        corner = [(-arm, -1), (arm, -1), (arm, -arm), (1, -arm), (1, arm), (arm, arm)]
        points = np.array(corner + [(-x, -y) for x, y in corner])
    elif shape == "heart":
        x = 16 * np.sin(turn) ** 3
        y = -(13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn))
        points = np.stack([x, y], axis=1)
    else:
        raise KeyError(shape)
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    points = points @ np.array([[cos, sin], [-sin, cos]])
    points = points - points.min(axis=0)
    return points / points.max()


def make_scene(seed: int, index: int, *, split: str = "train", side: int = 224, family: int | None = None,
               family_share: float = 1.0) -> Scene:
    """Return scene number `index` of a split, the same whatever the size of the data set.

    Without families, four scenes in a row share their background and the multiset of colors; two in a row also share
    the multisets of shapes, textures and sizes. What goes with what, and where, is drawn for each: colors alone cannot
    tell four scenes apart, and a bag of all attributes cannot tell two.

    The scenes of a family share the background, the multisets of colors, shapes, textures and sizes, and the places
    where objects are. They differ only in which object has which attributes and stands at which place: "a red circle
    left of a blue square" and "a blue circle left of a red square". No mean of the objects can tell them apart.

    Args:
        seed: at least 0; the whole data set follows from it.
        index: at least 0, position within the split.
        split: one of SPLITS; splits are independent of one another.
        side: width and height in pixels, at least 32.
        family: number of scenes in a family, in a row, from 1 to MAX_FAMILY; None = pairs and fours as above.
        family_share: probability that a family is one, in [0, 1]; otherwise its scenes have nothing in common.
    """
    if split not in SPLITS:
        raise DataError(f"unknown split {split!r} of scenes: use one of {', '.join(SPLITS)}")
    if seed < 0 or index < 0 or side < 32:
        raise DataError(f"scenes need seed >= 0, index >= 0, side >= 32: got seed {seed}, index {index}, side {side}")
    if family is not None:
        if not 1 <= family <= MAX_FAMILY or not 0 <= family_share <= 1:
            raise DataError(f"families need 1 to {MAX_FAMILY} scenes and a share from 0 to 1: got family {family}, "
                            f"family_share {family_share}")
        number = index // family
        if generator(seed, split, 4, number).random() < family_share:
            return _make_family(seed, split, 5, number, family, side)[index % family]
        return _make_family(seed, split, 6, index, 1, side)[0]
    colors, background = _draw_colors(generator(seed, split, 0, index // 4))
    shapes, textures, sizes, nested = _draw_attributes(generator(seed, split, 1, index // 2), len(colors))
    rng = generator(seed, split, 2, index)
    pairs: list[tuple[int, int]] = []
    while not pairs:  # ends: some arrangement always fits, and each is drawn with the same chance
        shapes, textures, sizes, colors = map(partial(_shuffled, rng), (shapes, textures, sizes, colors))
        pairs = _nestings(shapes, sizes, colors) if nested else [(-1, -1)]
    outer, inner = pick(rng, pairs)
    centers = _draw_centers(rng, len(colors))
    if nested:
        centers[inner] = centers[outer]
    objects = [_draw_object(rng, (shapes[i], colors[i], sizes[i], textures[i]), centers[i], i == inner, side)
               for i in sorted(range(len(colors)), key=lambda i: i == inner)]  # drawn last, over its container
    return Scene(scene_id(split, index), side, background, _tinted(rng, BACKGROUNDS[background]), tuple(objects))


@lru_cache(maxsize=8)  # scenes are made in their order
def _make_family(seed: int, split: str, purpose: int, number: int, count: int, side: int) -> tuple[Scene, ...]:
    """Return the `count` scenes of a family, all different."""
    rng = generator(seed, split, purpose, number)
    arrangements: list[tuple[Look, ...]] = []
    while len(arrangements) < count:  # ends: most draws of three objects or more have hundreds of arrangements
        colors, background = _draw_colors(rng)
        shapes, textures, sizes, nested = _draw_attributes(rng, len(colors))
        arrangements = _arrangements(rng, shapes, colors, sizes, textures, nested, count)
    centers = _draw_centers(rng, len(colors))
    if nested:
        centers[-1] = centers[0]
    scenes = []
    for index, looks in enumerate(arrangements, number * count):
        objects = [_draw_object(rng, look, center, nested and i == len(looks) - 1, side)
                   for i, (look, center) in enumerate(zip(looks, centers, strict=True))]
        rgb = _tinted(rng, BACKGROUNDS[background])
        scenes.append(Scene(scene_id(split, index), side, background, rgb, tuple(objects)))
    return tuple(scenes)


def _arrangements(rng: np.random.Generator, shapes: list[str], colors: list[str], sizes: list[str],
                  textures: list[str], nested: bool, count: int) -> list[tuple[Look, ...]]:
    """Return at most `count` different ways to give the attributes to the objects; if nested, the first contains the
    last. Fewer, if there seem to be no more."""
    found: dict[tuple[Look, ...], None] = {}
    for _ in range(_DRAWS * count):
        attributes = [_shuffled(rng, values) for values in (shapes, colors, sizes, textures)]
        if not nested or (0, len(colors) - 1) in _nestings(attributes[0], attributes[2], attributes[1]):
            found.setdefault(tuple(zip(*attributes, strict=True)))
        if len(found) == count:
            break
    return list(found)


def _draw_centers(rng: np.random.Generator, count: int) -> np.ndarray:
    """Return (count, 2): centers near different points of the grid, in fractions of the side."""
    pitch = rng.uniform(*_PITCH)
    middle = 0.5 + rng.uniform(-1, 1, 2) * (1 - 3 * pitch) / 2
    cells = rng.permutation(9)[:count]
    steps = np.stack([cells % 3, cells // 3], axis=1) - 1
    return middle + steps * pitch + rng.uniform(-_JITTER, _JITTER, (count, 2))


def _draw_object(rng: np.random.Generator, look: Look, center: np.ndarray, inner: bool, side: int) -> SceneObject:
    """Return an object at a center in fractions of the side; inner: it has to fit into another one."""
    shape, color, size, texture = look
    extent = rng.uniform(*(_INNER if inner else _LARGE if size == "large" else _SMALL))
    angle = round(float(rng.uniform(-12, 12)), 1)
    reach = outline(shape, angle).max(axis=0) * extent
    box = np.concatenate([center - reach / 2, center + reach / 2]) * side
    return SceneObject(shape, color, size, texture, tuple(box.round(2).tolist()), _tinted(rng, COLORS[color]), angle)


def _shuffled(rng: np.random.Generator, values: list[str]) -> list[str]:
    return [values[i] for i in rng.permutation(len(values))]


def scene_id(split: str, index: int) -> str:
    """Return the stem of the image's file."""
    return f"scene_{split}_{index:06d}"


def pick(rng: np.random.Generator, choices):
    """Return one of the choices, all equally likely (rng.choice is slow and turns tuples into arrays)."""
    return choices[int(rng.integers(len(choices)))]


def generator(seed: int, split: str, purpose: int, index: int) -> np.random.Generator:
    """Return the generator of one purpose and index, so that no draw depends on the number of scenes."""
    return np.random.default_rng([seed, SPLITS.index(split), purpose, index])


def _draw_colors(rng: np.random.Generator) -> tuple[list[str], str]:
    count = int(rng.choice([2, 3, 4, MAX_OBJECTS], p=[0.15, 0.35, 0.3, 0.2]))
    colors: list[str] = []
    while len(set(colors)) < 2:  # else exchanging colors changes nothing
        colors = [pick(rng, list(COLORS)) for _ in range(count)]
    return colors, pick(rng, list(BACKGROUNDS))


def _draw_attributes(rng: np.random.Generator, count: int) -> tuple[list[str], list[str], list[str], bool]:
    """Return shapes, textures and sizes of `count` objects, and whether one contains another."""
    shapes: list[str] = []
    while len(set(shapes)) < 2:
        shapes = [pick(rng, SHAPES) for _ in range(count)]
    textures = [pick(rng, TEXTURES) for _ in range(count)]
    nested = bool(rng.random() < 0.5 and set(shapes) & set(CONTAINERS))
    sizes = [pick(rng, SIZES) for _ in range(count)]
    if nested:
        sizes[:2] = ["large", "small"]
    return shapes, textures, sizes, nested


def _nestings(shapes: list[str], sizes: list[str], colors: list[str]) -> list[tuple[int, int]]:
    """Return (outer, inner) pairs of objects where the first can visibly contain the second."""
    outers = [i for i, shape in enumerate(shapes) if shape in CONTAINERS and sizes[i] == "large"]
    inners = [i for i, size in enumerate(sizes) if size == "small"]
    return [(o, i) for o in outers for i in inners if colors[o] != colors[i]]


def _tinted(rng: np.random.Generator, rgb: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return the color with up to 9 levels of noise in each channel."""
    red, green, blue = np.clip(rgb + rng.integers(-9, 10, 3), 0, 255).tolist()
    return red, green, blue
