"""Regions drawn on their image: boxes with class, attribute and score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

# Paul Tol's "bright" scheme and black: distinct in print and to color-blind readers.
COLORS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#000000")
LONG_SIDE = 1600  # pixels of a drawing; larger photographs are reduced to it
SHORT_SIDE = 480  # small photographs are enlarged to it, so that labels fit


@dataclass(frozen=True)
class Region:
    """One region of an image: its box x1 y1 x2 y2 in pixels of the upright original, and what is known about it."""

    number: int
    box: tuple[float, float, float, float]
    score: float | None = None
    class_name: str | None = None
    attribute: str | None = None

    @property
    def words(self) -> str:
        """Return attribute and class, as far as they are known: `brown dog`."""
        return " ".join(filter(None, (self.attribute, self.class_name)))

    @property
    def label(self) -> str:
        """Return number, attribute, class and score, as far as they are known: `3: brown dog 0.91`."""
        score = "" if self.score is None else f"{self.score:.2f}"
        return " ".join(filter(None, (f"{self.number}:", self.words, score))).removesuffix(":")


def regions_of(
    boxes: np.ndarray, details: dict[str, np.ndarray], names: dict[str, list[str]], count: int | None = None
) -> list[Region]:
    """Return the regions of one image, sorted by descending score if there are scores.

    Args:
        boxes: (K, 4).
        details: any of `scores`, `class_ids` and `attribute_ids`, each (K,).
        names: `class_names`, `attribute_names`; an id without a name is shown as `class 17`.
        count: number of real regions, which come first in `boxes`; None = all.
    """
    regions = [
        Region(
            number=row, box=tuple(box), score=float(details["scores"][row]) if "scores" in details else None,
            class_name=named("class", row, details, names), attribute=named("attribute", row, details, names),
        )
        for row, box in enumerate(boxes[:count].tolist())
    ]
    return sorted(regions, key=lambda region: -(region.score or 0.0))  # stable: a grid keeps its order


def named(kind: str, row: int, details: dict[str, np.ndarray], names: dict[str, list[str]]) -> str | None:
    ids = details.get(f"{kind}_ids")
    if ids is None or ids[row] < 0:
        return None
    texts = names.get(f"{kind}_names", [])
    return texts[ids[row]] if ids[row] < len(texts) else f"{kind} {ids[row]}"


def draw_regions(image: Image.Image, size: tuple[int, int], regions: Sequence[Region]) -> Image.Image:
    """Return the image with the regions drawn on it, the smallest on top.

    Args:
        image: upright RGB, perhaps reduced.
        size: width and height of the upright original; boxes are in its pixels.
        regions: what to draw.
    """
    scale = min(max(1.0, SHORT_SIDE / min(size)), LONG_SIDE / max(size))
    width, height = (max(1, round(side * scale)) for side in size)
    drawing = image.resize((width, height), Image.Resampling.LANCZOS)
    canvas = ImageDraw.Draw(drawing)
    font = ImageFont.load_default(max(12, height // 45))
    by_area = sorted(regions, key=lambda region: np.subtract(region.box[2:], region.box[:2]).prod(), reverse=True)
    for region in by_area:
        x1, y1, x2, y2 = (side * scale for side in region.box)
        corners = (x1, y1, max(x1, x2 - 1), max(y1, y2 - 1))
        canvas.rectangle(corners, outline=color_of(region), width=max(2, height // 250))
    for region in by_area:  # after all boxes, so that no line crosses a label
        x1, y1 = (side * scale for side in region.box[:2])
        left, top, right, bottom = canvas.textbbox((0, 0), region.label, font=font)
        x = min(max(0.0, x1), max(0.0, width - (right - left) - 4))  # inside the drawing, whatever the box
        y = min(max(0.0, y1), max(0.0, height - (bottom - top) - 4))
        color = color_of(region)
        ink = "black" if int(ImageColor.getcolor(color, "L")) > 140 else "white"  # type: ignore[arg-type]  # gray
        canvas.rectangle((x, y, x + right - left + 4, y + bottom - top + 4), fill=color)
        canvas.text((x + 2 - left, y + 2 - top), region.label, font=font, fill=ink)
    return drawing


def color_of(region: Region) -> str:
    """Return the color of the region's class, the same in all drawings; without a class, a color by region number."""
    key = region.number if region.class_name is None else sum(map(ord, region.class_name))
    return COLORS[key % len(COLORS)]


def table(regions: Sequence[Region]) -> str:
    """Return the regions as text, one per line under a header."""
    lines = [f"{'region':>6}  {'score':>5}  {'x1 y1 x2 y2':<27}  class"]
    for region in regions:
        score = "" if region.score is None else f"{region.score:.3f}"
        box = " ".join(f"{side:6.1f}" for side in region.box)
        lines.append(f"{region.number:>6}  {score:>5}  {box:<27}  {region.words}".rstrip())
    return "\n".join(lines)
