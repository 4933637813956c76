"""Edits that lay things over the picture, or the picture into something else."""

from __future__ import annotations

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageOps

from ascl.image_copy.edits.canvas import Canvas, between, pixels, random_color, size_of_area
from ascl.image_copy.edits.geometry import Change, Others
from ascl.image_copy.edits.stickers import drawn_picture, drawn_sticker, random_words, text_mask


def text(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Write one (mild) to five lines of random text with a height of 10 to 30 % of the short side."""
    lines = []
    for _ in range(round(between(1, 5, strength))):
        canvas, line = with_text(canvas, between(0.1, 0.3, strength), between(0.7, 1.0, rng.random()), rng)
        lines.append(line)
    return canvas, {"lines": lines}


def with_text(canvas: Canvas, size: float, opacity: float, rng: Generator) -> Change:
    """Write a line of random text in a random color at a random place.

    `size` is its height relative to the short side; it is reduced until the line is no wider than the picture.
    """
    words = random_words(int(rng.integers(1, 4)), rng)
    mask = text_mask(words, pixels(size * canvas.short_side), canvas.image.width)
    left, top = _corner(canvas, mask.size, rng)
    parameters = {"text": words, "opacity": opacity, "left": left, "top": top, "height": mask.height}
    return canvas.covered(random_color(rng), _dimmed(mask, opacity), left, top), parameters


def sticker(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Add one (mild) to four stickers with a width of 20 to 50 % of the short side, at least 70 % opaque."""
    placed = []
    for _ in range(round(between(1, 4, strength))):
        canvas, one = with_sticker(canvas, between(0.2, 0.5, strength), between(0.7, 1.0, rng.random()), rng)
        placed.append(one)
    return canvas, {"stickers": placed}


def with_sticker(canvas: Canvas, size: float, opacity: float, rng: Generator) -> Change:
    """Add a drawn sticker at a random place; `size` is its side relative to the picture's short side."""
    colors, mask = drawn_sticker(pixels(size * canvas.short_side), rng)
    left, top = _corner(canvas, mask.size, rng)
    parameters = {"size": mask.width, "opacity": opacity, "left": left, "top": top}
    return canvas.covered(colors, _dimmed(mask, opacity), left, top), parameters


def overlay_onto_photo(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Paste the picture at 70 to 10 % of the area onto another photo, which is cut to the same shape.

    The content scale stays, because all of the original is still shown; the rest of the picture does not count.
    """
    width, height = canvas.image.size
    share = between(0.7, 0.1, strength)
    small = canvas.resized(*size_of_area(width, height, share * width * height))
    left, top = _corner(canvas, small.image.size, rng)
    background = _photo(width, height, others, rng)
    return small.pasted_on(background, left, top), {"share": share, "left": left, "top": top}


def paste(canvas: Canvas, strength: float, rng: Generator, others: Others, *, feather: float = 0.0) -> Change:
    """Paste the picture at 60 to 12 % of the area onto another photo of its own size, with an edge that fades.

    `feather` is the width in which the picture fades into the photo, relative to the short side of what is pasted.
    """
    background = others[int(rng.integers(len(others)))] if others else drawn_picture(*canvas.image.size, rng)
    share = between(0.6, 0.12, strength)
    width, height = size_of_area(*canvas.image.size, share * background.width * background.height)
    fits = min(1.0, 0.95 * background.width / width, 0.95 * background.height / height)
    small = canvas.resized(pixels(width * fits), pixels(height * fits))
    left, top = (int(rng.integers(free + 1)) for free in np.subtract(background.size, small.image.size))
    if feather:
        under = background.crop((left, top, left + small.image.width, top + small.image.height))
        small = small.covered(under, _fading(*small.image.size, feather * small.short_side), 0, 0)
    return small.pasted_on(background, left, top), {"share": share, "left": left, "top": top, "feather": feather}


def _fading(width: int, height: int, length: float) -> Image.Image:
    """Return a mask (L) that falls smoothly from 255 at the edges to 0 at a distance from them."""
    x, y = (np.minimum(np.arange(side) + 0.5, side - np.arange(side) - 0.5) for side in (width, height))
    near = np.clip(np.minimum(x[None], y[:, None]) / length, 0, 1)
    return Image.fromarray(np.rint(255 * (1 - near * near * (3 - 2 * near))).astype(np.uint8))


def overlay_of_photo(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Lay another photo over 5 to 50 % of the area; half of the time opaque, else 60 to 90 % opaque."""
    width, height = canvas.image.size
    share = between(0.05, 0.5, strength)
    photo = _photo(*size_of_area(width, height, share * width * height), others, rng)
    opacity = 1.0 if rng.random() < 0.5 else between(0.6, 0.9, rng.random())
    left, top = _corner(canvas, photo.size, rng)
    parameters = {"share": share, "opacity": opacity, "left": left, "top": top}
    return canvas.covered(photo, Image.new("L", photo.size, round(255 * opacity)), left, top), parameters


def collage(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Make the picture one of 2 (mild) to 9 cells of its own shape, with other photos in the rest; the area stays."""
    columns, rows = [(2, 1), (2, 2), (3, 2), (3, 3)][min(3, int(4 * strength))]
    if rng.random() < 0.5:
        columns, rows = rows, columns
    width, height = canvas.image.size
    cell_width, cell_height = size_of_area(width, height, width * height / (columns * rows))
    picture = Image.new("RGB", (columns * cell_width, rows * cell_height))
    corners = [(column * cell_width, row * cell_height) for row in range(rows) for column in range(columns)]
    mine = int(rng.integers(columns * rows))
    for cell, corner in enumerate(corners):
        if cell != mine:
            picture.paste(_photo(cell_width, cell_height, others, rng), corner)
    result = canvas.resized(cell_width, cell_height).pasted_on(picture, *corners[mine])
    return result, {"columns": columns, "rows": rows, "cell": mine}


def screenshot(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Show the picture on 75 to 20 % of a phone's or computer's screen, between bars, text and buttons."""
    width, height = canvas.image.size
    share = between(0.75, 0.2, strength)
    shape = float(rng.choice([9 / 19.5, 3 / 4, 16 / 9]))  # phone, tablet, computer: width over height of the screen
    shape = min(max(shape, share * width / height), width / height / share)  # else the picture would not fit
    screen_width, screen_height = size_of_area(shape, 1.0, width * height)
    shown_width, shown_height = size_of_area(width, height, share * width * height)
    shown_width, shown_height = min(shown_width, screen_width), min(shown_height, screen_height)
    dark = bool(rng.random() < 0.4)
    screen = drawn_screen(screen_width, screen_height, dark, rng)
    small = canvas.resized(shown_width, shown_height)
    shown = small.pasted_on(screen, (screen_width - shown_width) // 2, (screen_height - shown_height) // 2)
    return shown, {"share": share, "screen": [screen_width, screen_height], "dark": dark}


def drawn_screen(width: int, height: int, dark: bool, rng: Generator) -> Image.Image:
    """Draw the empty screen of a program: bars above and below, a round portrait, lines of text, buttons."""
    page, ink, bar = [(level,) * 3 for level in ((18, 225, 40) if dark else (255, 40, 236))]
    screen = Image.new("RGB", (width, height), page)
    draw = ImageDraw.Draw(screen)
    unit = max(min(width, height) / 24, max(width, height) / 200)  # height of a line of text
    accent = random_color(rng)

    def line(x: float, y: float, size: float) -> None:
        mask = text_mask(random_words(int(rng.integers(2, 6)), rng), pixels(size), max(1.0, width - x - unit))
        draw.bitmap((round(x), round(y)), mask, fill=ink)

    draw.rectangle([0, 0, width, 1.5 * unit], fill=bar)
    line(0.5 * unit, 0.3 * unit, 0.8 * unit)
    draw.ellipse([0.5 * unit, 2 * unit, 2.5 * unit, 4 * unit], fill=accent)
    line(3 * unit, 2.4 * unit, unit)
    for row in range(max(0, int((height - 8 * unit) / (2 * unit)))):  # most of them end up under the picture
        line(0.5 * unit, (5 + 2 * row) * unit, unit)
    draw.rectangle([0, height - 2 * unit, width, height], fill=bar)
    for x in (width / 8, 3 * width / 8, 5 * width / 8, 7 * width / 8):  # buttons
        draw.ellipse([x - 0.5 * unit, height - 1.5 * unit, x + 0.5 * unit, height - 0.5 * unit], fill=ink)
    return screen


def _photo(width: int, height: int, others: Others, rng: Generator) -> Image.Image:
    if not others:
        return drawn_picture(width, height, rng)
    return ImageOps.fit(others[int(rng.integers(len(others)))], (width, height), Image.Resampling.BILINEAR)


def _corner(canvas: Canvas, size: tuple[int, int], rng: Generator) -> tuple[int, int]:
    """Return a random corner for something of this size: inside the picture if it fits, else centered over it."""
    left, top = (
        int(rng.integers(free + 1)) if free >= 0 else free // 2
        for free in (canvas.image.width - size[0], canvas.image.height - size[1])
    )
    return left, top


def _dimmed(mask: Image.Image, opacity: float) -> Image.Image:
    return mask if opacity >= 1 else mask.point([round(level * opacity) for level in range(256)])
