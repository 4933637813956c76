"""Hard negatives: a reference and a query that resemble each other although the query is no copy of the reference.

Each function is (photo, partner, kind, strength, rng) -> (reference, query). The query is made from `photo`; so is the
reference, except that a template's is made from `partner`, another photo.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageFilter

from ascl.image_copy.benchmark.plan import AFTERWARDS, BURST, REVERSE_CROP, TEMPLATE
from ascl.image_copy.edits.canvas import Canvas, between
from ascl.image_copy.edits.color import jittered
from ascl.image_copy.edits.edits import EDITS, Edited, Step, edit_chain
from ascl.image_copy.edits.geometry import homography
from ascl.image_copy.edits.templates import TEMPLATES

HARMLESS = ("flip", "jpeg", "blur", "colour_jitter", "grey")  # one of them for half of the plain reverse-crop queries
UNIT = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
Pair = tuple[Edited, Edited]


def reverse_crop(photo: Image.Image, partner: Image.Image, kind: str, strength: float, rng: Generator) -> Pair:
    """The reference is a crop, and the query shows the whole photo, perhaps edited; `plan` lists the kinds."""
    how = kind.removeprefix(f"{REVERSE_CROP}_")
    if how == "caption":
        return edit_chain(photo, ("crop", "in_caption"), strength, rng), edit_chain(photo, (), 0.0, rng)
    reference = EDITS["crop"](photo, strength, rng)
    if kind == REVERSE_CROP:
        names = [HARMLESS[int(rng.integers(len(HARMLESS)))]] if rng.random() < 0.5 else []
        return reference, edit_chain(photo, names, 0.2, rng)
    names = rng.choice(AFTERWARDS, 2, replace=False).tolist() if how == "two" else [how]
    return reference, edit_chain(photo, names, float(rng.uniform(0.0, 0.5)), rng)


def template(photo: Image.Image, partner: Image.Image, kind: str, strength: float, rng: Generator) -> Pair:
    """Two unrelated photos in one template, drawn for the shape of the reference's; the other is cut to it."""
    name = kind.removeprefix(f"{TEMPLATE}_")
    drawn = TEMPLATES[name](*partner.size, strength, rng)
    step = Step(f"in_{name}", {"size": list(drawn.size), "box": list(drawn.box)})
    reference, query = drawn.around(Canvas.of(partner)), drawn.around(Canvas.of(photo))
    return (Edited(reference.image, (step,), reference.content_scale),
            Edited(query.image, (step,), query.content_scale))


def burst(photo: Image.Image, partner: Image.Image, kind: str, strength: float, rng: Generator) -> Pair:
    """Simulate two photographs of one scene: two windows of a photo, each of which shows 8 to 45 % that the other
    does not, with an angle, an exposure, a white balance, a sharpness and noise of its own.

    Nothing in the scene moves, and nothing has depth, as in a real burst it would.
    """
    common, part = 1 - between(0.1, 0.4, strength), rng.random()
    move = 1 - np.array([common**part, common ** (1 - part)])  # in sides of a window; common is (1 - x) (1 - y)
    sides = np.array(photo.size) / (1 + move)
    apart = rng.choice([-0.5, 0.5], 2) * move * sides
    first, second = (_seen_from(np.array(photo.size) / 2 + sign * apart, sides, photo.size, rng) for sign in (-1, 1))
    return _frame(photo, first, sides, second, rng), _frame(photo, second, sides, first, rng)


def _seen_from(center: np.ndarray, sides: np.ndarray, size: tuple[int, int], rng: Generator) -> np.ndarray:
    """Return (4, 2), the corners in the photo of a window that is turned and seen at an angle, a little each."""
    angle = rng.uniform(-0.03, 0.03) * sides.min() / sides.max()
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    corners = center + ((UNIT - 0.5) * sides) @ turn.T + rng.uniform(-0.01, 0.01, (4, 2)) * sides
    return np.clip(corners, 0, size)


def share_outside(window: np.ndarray, other: np.ndarray) -> float:
    """Return the share of what a window (its corners in the photo, (4, 2)) shows that another does not."""
    grid = np.stack(np.meshgrid(*[(np.arange(64) + 0.5) / 64] * 2), axis=-1).reshape(-1, 2)
    mapped = np.linalg.inv(homography(UNIT, other)) @ homography(UNIT, window)
    places = mapped @ np.column_stack([grid, np.ones(len(grid))]).T
    return 1 - float(((places[:2] > 0) & (places[:2] < places[2])).all(axis=0).mean())


def _frame(photo: Image.Image, window: np.ndarray, sides: np.ndarray, other: np.ndarray, rng: Generator) -> Edited:
    width, height = np.maximum(1, np.rint(sides).astype(int)).tolist()
    canvas = Canvas.of(photo).warped(homography(window, UNIT * (width, height)), width, height, (0, 0, 0))
    brightness, balance = float(np.exp(rng.uniform(-0.25, 0.25))), rng.uniform(0.95, 1.05, 3)
    radius, noise = rng.uniform(0, 0.004) * min(width, height), rng.uniform(0, 5)
    image = jittered(canvas.image, {"brightness": brightness}).filter(ImageFilter.GaussianBlur(radius))
    pixels = np.asarray(image) * balance + rng.normal(0, noise, (height, width, 3))
    image = Image.fromarray(np.rint(pixels.clip(0, 255)).astype(np.uint8))
    drawn = {"corners": window.round(2).tolist(), "alone": round(share_outside(window, other), 4),
             "brightness": brightness, "balance": balance.round(4).tolist(), "radius": radius, "noise": noise}
    return Edited(image, (Step("frame", drawn),), canvas.content_scale)


PAIRS: dict[str, Callable[[Image.Image, Image.Image, str, float, Generator], Pair]] = {
    REVERSE_CROP: reverse_crop, TEMPLATE: template, BURST: burst,
}
