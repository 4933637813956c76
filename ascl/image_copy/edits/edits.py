"""Edits as people make them to copied images: each by name, at a strength from mild to hard, from a seed.

    edited = EDITS["crop"](image, 0.5, sample_rng(seed, index))
    edited.image, edited.steps, edited.content_scale

An edit draws all its chances from the generator it is given, so a sample is the same in every process and in any order
once its generator is made by `sample_rng`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from ascl.image_copy.edits import color, geometry, overlay
from ascl.image_copy.edits.canvas import Canvas
from ascl.image_copy.edits.geometry import Change, Others

LEAST_CONTENT, CHAIN_DRAWS = 0.05, 10
SEED_END = 2**32  # numpy cuts larger ones in words, and two different samples could then share their chances


@dataclass(frozen=True)
class Step:
    """One edit that was made: its name in EDITS, and what was drawn for it, which JSON takes."""

    name: str
    parameters: dict[str, Any]


@dataclass(frozen=True)
class Edited:
    """An edited copy.

    `content_scale` is the share of the ORIGINAL's area that it still shows, in [0, 1], as ASL reads it: a crop has the
    share it keeps, a sticker 1 minus the share it covers (times its opacity), pixels that fall outside are lost, and
    whatever only moves or changes colors has 1, a small copy on another photo too. Right to about 0.001 for each step.
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
            strength: in [0, 1], from mild to hard. rng: where all chances are drawn from; see `sample_rng`.
            others: RGB photos to mix in (overlays, collage); where there is none, pictures are drawn.

        Raises ValueError: a strength outside [0, 1], an image that is not RGB or has no pixels.
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


def edit_chain(
    image: Image.Image, names: Sequence[str], strength: float, rng: np.random.Generator,
    others: Sequence[Image.Image] = (),
) -> Edited:
    """Make several edits, one on the result of the other, all at one strength.

    Arguments and errors are those of `Edit`, and ValueError for a name that is not in EDITS.
    """
    if not 0 <= strength <= 1:
        raise ValueError(f"strength {strength}: between 0 (mild) and 1 (hard)")
    canvas, steps = Canvas.of(image), []
    for name in names:
        if name not in EDITS:
            raise ValueError(f"no edit {name!r}; there are {', '.join(EDITS)}")
        canvas, parameters = EDITS[name].change(canvas, strength, rng, others)
        steps.append(Step(name, parameters))
    return Edited(canvas.image, tuple(steps), canvas.content_scale)


def random_chain(
    image: Image.Image, strength: float, rng: np.random.Generator, others: Sequence[Image.Image] = (), *,
    count: int | None = None,
) -> Edited:
    """Make different edits at random, in a random order: two (mild) to four (hard) where `count` is None.

    A crop of a collage can miss the original: a chain that leaves less than `LEAST_CONTENT` of it is drawn again, up to
    `CHAIN_DRAWS` times, and then the one that shows most is taken.
    """
    tried: list[Edited] = []
    while len(tried) < CHAIN_DRAWS and not (tried and tried[-1].content_scale >= LEAST_CONTENT):
        names = rng.choice(list(EDITS), count or 2 + round(2 * strength), replace=False).tolist()
        tried.append(edit_chain(image, names, strength, rng, others))
    return max(tried, key=lambda edited: edited.content_scale)


def sample_rng(seed: int, index: int, draw: int = 0) -> np.random.Generator:
    """Return the generator of one sample: of a run's seed, the sample's index, and a draw, say epoch x views + view.

    Raises ValueError: a number outside [0, 2**32).
    """
    if not all(0 <= number < SEED_END for number in (seed, index, draw)):
        raise ValueError(f"seed {seed}, index {index}, draw {draw}: each from 0 to 2**32 - 1")
    return np.random.default_rng(np.random.SeedSequence((seed, index, draw)))
