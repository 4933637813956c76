"""Templates that people put pictures in: a screenshot's frame, stickers, a caption. All are drawn here.

A template is drawn once, from a generator, and can then be laid around any number of pictures with the same pixels. So
two unrelated photos can share one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageChops, ImageDraw

from ascl.image_copy.edits.canvas import Canvas, Color, between, pixels, random_color
from ascl.image_copy.edits.geometry import Change, Others
from ascl.image_copy.edits.stickers import drawn_sticker, text_mask

WORDS = """a about after all always and another at back before best big city cold come day deep down early every eyes
family feel find first for friends from garden good great green happy have home house in into just kids last late light
like long look love made me moment more morning mountain much music my never new night nothing of old on one open our
out over park people perfect place play quiet rain really red river road school sea see she simply sky small snow some
song still story street summer sun sweet take team that the these they thing this time to today together town tree two
under very walk want warm was water we week when white wild wind winter with work world year yellow you young""".split()
PHONE = 2.2  # height over width of the tallest screen


class Template(NamedTuple):
    """What is the same around and over every picture.

    size: width and height of the whole. box: left, top, width, height of the picture in it. cover, mask: RGB and its
    opacity (L, 255 = opaque), both of that size.
    """

    size: tuple[int, int]
    box: tuple[int, int, int, int]
    cover: Image.Image
    mask: Image.Image

    def around(self, canvas: Canvas) -> Canvas:
        """Show a picture in it, cut in its middle to the shape of the box."""
        (width, height), (left, top, *size) = canvas.image.size, self.box
        scale = min(width / size[0], height / size[1])
        x, y = (width - size[0] * scale) / 2, (height - size[1] * scale) / 2
        fitted = canvas.resized(size[0], size[1], box=(x, y, width - x, height - y))
        return fitted.pasted_on(Image.new("RGB", self.size), left, top).covered(self.cover, self.mask, 0, 0)


def under_template(canvas: Canvas, strength: float, rng: Generator, others: Others, *,
                   draw: Callable[[int, int, float, Generator], Template]) -> Change:
    """Show the whole picture at its size in a template that is drawn for it."""
    template = draw(*canvas.image.size, strength, rng)
    return template.around(canvas), {"size": list(template.size), "box": list(template.box)}


def screen(width: int, height: int, strength: float, rng: Generator) -> Template:
    """Draw a phone's or a browser's screen around a picture of this size, which fills 75 to 30 % of it.

    A phone's is as wide as the picture and at most `PHONE` times as high, unless the picture is higher.
    """
    share, dark = between(0.75, 0.3, strength), bool(rng.random() < 0.4)
    page, ink, pale, bar = [(level,) * 3 for level in ((18, 235, 140, 40) if dark else (255, 25, 130, 240))]
    phone = rng.random() < 0.7
    if phone:
        unit = width / 22  # height of a line of text
        size = width, pixels(max(height + 9 * unit, min(height / share, PHONE * width)))
        free = size[1] - height - 9 * unit
        left, top = 0, pixels(4 * unit + free * rng.uniform(0, 0.4))
    else:
        unit = max(width, height) / 26
        size = pixels(width / share**0.5 + 2 * unit), pixels(max(height / share**0.5, height + 8 * unit))
        left, top = pixels(unit), pixels(6 * unit)
    cover = Image.new("RGB", size, page)
    draw, accent = ImageDraw.Draw(cover), random_color(rng)

    def line(x: float, y: float, to: float, color: Color = ink, words: str = "", high: float = 0.75) -> None:
        _write(draw, words or sentence(to - x, unit * high, rng), x, y, unit * high, to - x, color)

    def lines(x: float, y: float, to: float, end: float) -> None:
        for place in np.arange(y, end - unit, 1.35 * unit):
            line(x, float(place), to)

    if phone:
        _status_bar(draw, size[0], unit, ink, bar, rng)
        _disc(draw, 1.4 * unit, 2.75 * unit, 0.9 * unit, accent)
        line(2.8 * unit, 1.9 * unit, 0.7 * width, words=" ".join(rng.choice(WORDS, 2)).title(), high=0.85)
        line(2.8 * unit, 3.0 * unit, 0.6 * width, pale, high=0.55)
        for x in (1.0, 1.5, 2.0):
            _disc(draw, width - x * unit, 2.8 * unit, 0.13 * unit, ink)
        lines(0.6 * unit, 4.2 * unit, width - 0.8 * unit, top + 0.3 * unit)
        below = top + height
        for place, mark in enumerate(("heart", "bubble", "arrow")):
            _mark(draw, mark, (0.7 + 1.9 * place) * unit, below + 0.5 * unit, 1.1 * unit, ink)
        line(0.6 * unit, below + 2.0 * unit, 0.6 * width, words=f"{int(rng.integers(2, 9999)):,} likes", high=0.8)
        lines(0.6 * unit, below + 3.2 * unit, width - 0.8 * unit, size[1] - 2 * unit)
        draw.rectangle([0, size[1] - 1.8 * unit, size[0], size[1]], fill=bar)
        for place in range(5):
            x = (place + 0.5) * width / 5 - 0.5 * unit
            _mark(draw, ("house", "ring", "cross", "heart", "disc")[place], x, size[1] - 1.5 * unit, unit, ink)
    else:
        draw.rectangle([0, 0, size[0], 1.5 * unit], fill=pale)
        draw.rounded_rectangle([2.6 * unit, 0.3 * unit, 10 * unit, 2 * unit], 0.4 * unit, fill=bar)
        for place, color in enumerate(((237, 106, 94), (245, 191, 79), (98, 197, 84))):
            _disc(draw, (0.6 + 0.7 * place) * unit, 0.75 * unit, 0.25 * unit, color)
        line(3.0 * unit, 0.55 * unit, 9.5 * unit, high=0.6)
        draw.rectangle([0, 1.5 * unit, size[0], 3 * unit], fill=bar)
        draw.rounded_rectangle([3 * unit, 1.75 * unit, size[0] - 2 * unit, 2.75 * unit], 0.5 * unit, fill=page)
        line(3.6 * unit, 2.0 * unit, 0.7 * size[0], pale, f"www.{''.join(rng.choice(WORDS, 2))}.com/photo", 0.55)
        for place, mark in enumerate(("arrow", "ring")):
            _mark(draw, mark, (0.5 + 1.2 * place) * unit, 1.85 * unit, 0.8 * unit, ink)
        line(unit, 3.7 * unit, 0.8 * size[0], high=1.3)
        lines(left + width + unit, 6 * unit, size[0] - 0.5 * unit, size[1])
        line(unit, top + height + 0.3 * unit, left + width, pale, high=0.55)
        lines(unit, top + height + 1.6 * unit, left + width, size[1])
    mask = Image.new("L", size, 255)
    mask.paste(0, (left, top, left + width, top + height))
    return Template(size, (left, top, width, height), cover, mask)


def stickers(width: int, height: int, strength: float, rng: Generator) -> Template:
    """Draw two (mild) to five stickers over a picture of this size, each 25 to 40 % of its short side."""
    cover, mask = Image.new("RGB", (width, height)), Image.new("L", (width, height))
    side = pixels(between(0.25, 0.4, strength) * min(width, height))
    for _ in range(round(between(2, 5, strength))):
        colors, opacity = drawn_sticker(side, rng)
        corner = int(rng.integers(width - side + 1)), int(rng.integers(height - side + 1))
        cover.paste(colors, corner, opacity)
        placed = Image.new("L", mask.size)
        placed.paste(opacity, corner)
        mask = ImageChops.lighter(mask, placed)
    return Template((width, height), (0, 0, width, height), cover, mask)


def caption(width: int, height: int, strength: float, rng: Generator) -> Template:
    """Write a caption in a bar of 15 to 40 % of the picture's height, above it, below it, or over its lower end."""
    bar = pixels(between(0.15, 0.4, strength) * height)
    place = str(rng.choice(["above", "below", "over"]))
    paper, ink = [((255,) * 3, (10,) * 3), ((10,) * 3, (255,) * 3), ((250, 215, 60), (20,) * 3)][int(rng.integers(3))]
    rows = 1 + int(rng.integers(2)) + round(strength)
    size = width, height + (0 if place == "over" else bar)
    top, start = (bar, 0) if place == "above" else (0, size[1] - bar)
    cover, mask = Image.new("RGB", size, paper), Image.new("L", size)
    mask.paste(255, (0, start, width, start + bar))
    letters = 0.62 * bar / rows
    for row in range(rows):
        y = start + (row + 0.5) * bar / rows - 0.4 * letters
        _write(ImageDraw.Draw(cover), sentence(0.9 * width, letters, rng), 0.05 * width, y, letters, 0.9 * width, ink)
    return Template(size, (0, top, width, height), cover, mask)


TEMPLATES: dict[str, Callable[[int, int, float, Generator], Template]] = {
    "screen": screen, "stickers": stickers, "caption": caption,
}


def sentence(width: float, letters: float, rng: Generator) -> str:
    """Return random words that about fill a line of this width in letters of this height."""
    words, room = [str(rng.choice(WORDS)).capitalize()], width / letters * 1.9
    while sum(map(len, words)) + len(words) + 6 < room:
        words.append(str(rng.choice(WORDS)))
    return " ".join(words)


def _write(draw: ImageDraw.ImageDraw, text: str, x: float, y: float, letters: float, width: float, ink: Color) -> None:
    draw.bitmap((round(x), round(y)), text_mask(text, pixels(letters), max(1.0, width)), fill=ink)


def _disc(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float, color: Color) -> None:
    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=color)


def _status_bar(draw: ImageDraw.ImageDraw, width: int, unit: float, ink: Color, bar: Color, rng: Generator) -> None:
    draw.rectangle([0, 0, width, 1.4 * unit], fill=bar)
    clock = f"{int(rng.integers(24))}:{int(rng.integers(60)):02d}"
    _write(draw, clock, 0.7 * unit, 0.35 * unit, 0.75 * unit, 4 * unit, ink)
    charge = width - 2.3 * unit
    draw.rectangle([charge, 0.4 * unit, charge + 1.5 * unit, 1.05 * unit], outline=ink)
    draw.rectangle([charge, 0.4 * unit, charge + rng.uniform(0.2, 1.5) * unit, 1.05 * unit], fill=ink)
    for step in range(4):  # bars of the signal
        x = charge - (2.0 - 0.4 * step) * unit
        draw.rectangle([x, (0.9 - 0.16 * step) * unit, x + 0.22 * unit, 1.05 * unit], fill=ink)


def _mark(draw: ImageDraw.ImageDraw, mark: str, x: float, y: float, side: float, ink: Color) -> None:
    """Draw a button's line drawing in a square with this corner."""
    shapes: dict[str, list[tuple[float, float]]] = {
        "heart": [(0.5, 1), (0, 0.4), (0.1, 0.1), (0.35, 0.05), (0.5, 0.25), (0.65, 0.05), (0.9, 0.1), (1, 0.4),
                  (0.5, 1)],
        "bubble": [(0.1, 0.1), (0.9, 0.1), (0.9, 0.7), (0.45, 0.7), (0.15, 1), (0.2, 0.7), (0.1, 0.7), (0.1, 0.1)],
        "arrow": [(1, 0.1), (0, 0.45), (0.45, 0.55), (0.6, 1), (1, 0.1)],
        "house": [(0, 0.5), (0.5, 0), (1, 0.5), (0.85, 0.5), (0.85, 1), (0.15, 1), (0.15, 0.5), (0, 0.5)],
        "cross": [(0.5, 0), (0.5, 1), (0.5, 0.5), (0, 0.5), (1, 0.5)],
    }
    if mark in shapes:
        draw.line([(x + a * side, y + b * side) for a, b in shapes[mark]], fill=ink, width=pixels(0.09 * side))
    else:
        draw.ellipse([x, y, x + side, y + side], outline=ink, width=pixels(0.09 * side),
                     fill=ink if mark == "disc" else None)
