"""Edits that people make to copied images: each by name, at a strength from mild to hard, from a seed.

    edited = EDITS["crop"](image, 0.5, sample_rng(seed, index))
    edited.image, edited.steps, edited.content_scale

An edit takes all random draws from its generator. With a generator from `sample_rng`, a sample is the same in every
process and in any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from PIL import Image

from ascl.image_copy.edits import color, geometry, overlay
from ascl.image_copy.edits.canvas import Canvas
from ascl.image_copy.edits.geometry import Change, Others
from ascl.image_copy.edits.templates import TEMPLATES, under_template

LEAST_CONTENT, CHAIN_DRAWS = 0.05, 10
SEED_END = 2**32  # numpy splits larger numbers into words, so two samples could share their draws


@dataclass(frozen=True)
class Step:
    """One edit that was made: its name, and its drawn parameters as JSON values."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Edited:
    """An edited copy.

    `content_scale` is the share of the ORIGINAL's area that the copy still shows, in [0, 1], as in ASL. A crop has the
    share that it keeps, a sticker 1 minus the share that it covers (times its opacity), and pixels that fall outside
    are lost. An edit that only moves pixels or changes colors has 1, also a small copy on another photo. The error is
    about 0.001 per step.
    """

    image: Image.Image  # upright RGB, at least one pixel
    steps: tuple[Step, ...]  # in the order in which they were made
    content_scale: float


@dataclass(frozen=True)
class Edit:
    """An edit under its public name."""

    name: str
    change: Callable[[Canvas, float, np.random.Generator, Others], Change]

    def __call__(
        self, image: Image.Image, strength: float, rng: np.random.Generator, others: Sequence[Image.Image] = ()
    ) -> Edited:
        """Edit a copy of an image.

        Args:
            image: upright RGB of any size (`ascl.images.read.load_image` gives it); not changed.
            strength: in [0, 1], from mild to hard.
            rng: source of all random draws; see `sample_rng`.
            others: RGB photos to mix in (overlays, collage); if empty, pictures are drawn instead.

        Raises ValueError for a strength outside [0, 1], and an image that is not RGB or has no pixels.
        """
        return edit_chain(image, (self.name,), strength, rng, others)


EDITS: dict[str, Edit] = {
    change.__name__: Edit(change.__name__, change)
    for change in (
        geometry.crop, geometry.flip, geometry.quarter_turn, geometry.rotation, geometry.padding, geometry.aspect,
        geometry.perspective, overlay.text, overlay.sticker, overlay.overlay_onto_photo, overlay.overlay_of_photo,
        overlay.collage, overlay.screenshot,
        color.blur, color.jpeg, color.pixelisation, color.colour_jitter, color.grey,
    )
}

FEATHERS = (2, 5, 10)  # percent of the short side of what is pasted
HARD_EDITS: dict[str, Edit] = {  # not drawn at random: training and the standard benchmark stay as they are
    edit.name: edit for edit in (
        Edit("tilt", geometry.tilt), Edit("paste", overlay.paste),
        *(Edit(f"paste_soft_{width}", partial(overlay.paste, feather=width / 100)) for width in FEATHERS),
        *(Edit(f"in_{name}", partial(under_template, draw=draw)) for name, draw in TEMPLATES.items()),
    )
}
BY_NAME = EDITS | HARD_EDITS


def edit_chain(
    image: Image.Image, names: Sequence[str], strength: float, rng: np.random.Generator,
    others: Sequence[Image.Image] = (),
) -> Edited:
    """Make several edits one after the other, all at one strength.

    Arguments and errors are those of `Edit`; an unknown name raises ValueError too.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength}: must be between 0 (mild) and 1 (hard)")
    canvas, steps = Canvas.of(image), []
    for name in names:
        if name not in BY_NAME:
            raise ValueError(f"unknown edit {name!r}; use one of {', '.join(BY_NAME)}")
        canvas, parameters = BY_NAME[name].change(canvas, strength, rng, others)
        steps.append(Step(name, parameters))
    return Edited(canvas.image, tuple(steps), canvas.content_scale)


def random_chain(
    image: Image.Image, strength: float, rng: np.random.Generator, others: Sequence[Image.Image] = (), *,
    count: int | None = None,
) -> Edited:
    """Make `count` different random edits in a random order; None = two (mild) to four (hard).

    A crop of a collage can miss the original. So a chain that keeps less than `LEAST_CONTENT` of it is drawn again, at
    most `CHAIN_DRAWS` times in all, and the one that shows most is returned.
    """
    tried: list[Edited] = []
    while len(tried) < CHAIN_DRAWS and not (tried and tried[-1].content_scale >= LEAST_CONTENT):
        names = rng.choice(list(EDITS), count or 2 + round(2 * strength), replace=False).tolist()
        tried.append(edit_chain(image, names, strength, rng, others))
    return max(tried, key=lambda edited: edited.content_scale)


def sample_rng(seed: int, index: int, draw: int = 0) -> np.random.Generator:
    """Return the generator of one sample, from a run's seed, its index and a draw, such as epoch * views + view.

    Raises ValueError for a number outside [0, 2**32).
    """
    if not all(0 <= number < SEED_END for number in (seed, index, draw)):
        raise ValueError(f"seed {seed}, index {index}, draw {draw}: each must be from 0 to 2**32 - 1")
    return np.random.default_rng(np.random.SeedSequence((seed, index, draw)))
