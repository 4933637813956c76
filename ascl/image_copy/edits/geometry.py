"""Edits that move pixels: crop, flip, turns, rotation, padding, aspect ratio, perspective.

Every edit of this room is a function (canvas, strength, rng, others) -> (canvas, parameters); `others` are photos to
mix in, which most edits do not need. `ascl.image_copy.edits.edits` makes the edits public.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import numpy as np
from numpy.random import Generator
from PIL import Image

from ascl.image_copy.edits.canvas import Canvas, Color, between, pixels, random_fill

Parameters = dict[str, Any]
Others = Sequence[Image.Image]
Change = tuple[Canvas, Parameters]  # the edited picture, and the parameters that were drawn
Frame = Literal["expand", "same", "inscribed"]


def crop(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Cut out a rectangle of 90 to 10 % of the area, up to 1.2 (mild) to 1.8 times wider or taller in shape."""
    share = between(0.9, 0.1, strength)
    stretch = math.exp(rng.uniform(-1, 1) * math.log(between(1.2, 1.8, strength)))
    return crop_share(canvas, share, stretch, rng)


def crop_share(canvas: Canvas, share: float, stretch: float, rng: Generator) -> Change:
    """Cut out a rectangle with a share of the area, in (0, 1], at a random place.

    `stretch` is its width over height relative to that of the picture, moved toward 1 until it fits.
    """
    (all_width, all_height), stretch = canvas.image.size, min(max(stretch, share), 1 / share)
    width = min(all_width, pixels(all_width * math.sqrt(share * stretch)))
    height = min(all_height, pixels(all_height * math.sqrt(share / stretch)))
    left, top = int(rng.integers(all_width - width + 1)), int(rng.integers(all_height - height + 1))
    box = {"left": left, "top": top, "width": width, "height": height}
    return canvas.cropped(**box), box


def flip(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Mirror left to right, or top to bottom from strength 1/2 on."""
    horizontal = strength < 0.5
    return canvas.flipped(horizontal=horizontal), {"axis": "horizontal" if horizontal else "vertical"}


def quarter_turn(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Turn by 90, 180 or 270 degrees, equally likely at any strength."""
    turns = int(rng.integers(1, 4))
    return canvas.turned(turns), {"degrees": 90 * turns}


def rotation(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Rotate by 5 to 60 degrees to either side, in one of the three frames of `rotated`."""
    degrees = between(5, 60, strength) * (1 if rng.random() < 0.5 else -1)
    frame, fill = get_args(Frame)[int(rng.integers(3))], random_fill(rng)
    parameters = {"degrees": degrees, "frame": frame} | ({} if frame == "inscribed" else {"fill": list(fill)})
    return rotated(canvas, degrees, frame, fill), parameters


def tilt(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Rotate by 1 to 10 degrees to either side and lose nothing: the corners that appear have one color."""
    degrees, fill = between(1, 10, strength) * (1 if rng.random() < 0.5 else -1), random_fill(rng)
    return rotated(canvas, degrees, "expand", fill), {"degrees": degrees, "fill": list(fill)}


def rotated(canvas: Canvas, degrees: float, frame: Frame, fill: Color) -> Canvas:
    """Rotate counter-clockwise about the center.

    The frame "expand" enlarges the picture so that nothing is lost, "same" keeps its size, and "inscribed" keeps the
    largest upright rectangle without empty corners. An expanded picture is scaled down to at most twice the area: a
    strip of 10,000 x 1 pixels rotated by 45 degrees would otherwise have 50 million pixels.
    """
    width, height = canvas.image.size
    new_width, new_height = float(width), float(height)
    angle = math.radians(degrees)
    sine, cosine = math.sin(angle), math.cos(angle)
    scale = 1.0
    if frame == "expand":
        new_width, new_height = abs(width * cosine) + abs(height * sine), abs(width * sine) + abs(height * cosine)
        scale = min(1.0, math.sqrt(2 * width * height / (new_width * new_height)))
    elif frame == "inscribed":
        new_width, new_height = inscribed(width, height, angle)
    if scale < 1:  # averaged here, because the warp only samples pixels
        canvas = canvas.resized(pixels(width * scale), pixels(height * scale))
        new_width, new_height = new_width * scale, new_height * scale
    out_width, out_height = pixels(new_width), pixels(new_height)
    turn = np.array([[cosine, sine, 0.0], [-sine, cosine, 0.0], [0.0, 0.0, 1.0]])  # y points down
    matrix = shift(out_width / 2, out_height / 2) @ turn @ shift(-canvas.image.width / 2, -canvas.image.height / 2)
    return canvas.warped(matrix, out_width, out_height, fill)


def inscribed(width: float, height: float, angle: float) -> tuple[float, float]:
    """Return the size of the largest upright rectangle inside a width x height one rotated by an angle in radians."""
    sine, cosine = abs(math.sin(angle)), abs(math.cos(angle))
    half, long = min(width, height) / 2, max(width, height)
    if half <= sine * cosine * long or abs(sine - cosine) < 1e-10:  # only two corners touch, one on each long side
        return (half / sine, half / cosine) if width >= height else (half / cosine, half / sine)
    double = cosine * cosine - sine * sine
    return (width * cosine - height * sine) / double, (height * cosine - width * sine) / double


def shift(x: float, y: float) -> np.ndarray:
    return np.array([[1.0, 0.0, x], [0.0, 1.0, y], [0.0, 0.0, 1.0]])


def padding(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Add a border of one color: 10 to 80 % of width and height in total, split at random between the sides."""
    width, height = canvas.image.size
    shares = rng.dirichlet([3, 3, 3, 3]) * 2 * between(0.1, 0.8, strength) * (width, width, height, height)
    left, right, top, bottom = map(round, shares.tolist())
    fill = random_fill(rng)
    background = Image.new("RGB", (width + left + right, height + top + bottom), fill)
    parameters = {"left": left, "right": right, "top": top, "bottom": bottom, "fill": list(fill)}
    return canvas.pasted_on(background, left, top), parameters


def aspect(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Stretch to an aspect ratio 1.1 to 2.5 times larger or smaller, with the same area."""
    larger = between(1.1, 2.5, strength)
    stretch = 1 / larger if rng.random() < 0.5 else larger
    width, height = canvas.image.size
    return canvas.resized(pixels(width * math.sqrt(stretch)), pixels(height / math.sqrt(stretch))), {"stretch": stretch}


def perspective(canvas: Canvas, strength: float, rng: Generator, others: Others) -> Change:
    """Show the picture at an angle: each corner moves by up to 5 to 35 % of the sides.

    Half of the time the corners move inwards and leave an empty margin, so that nothing is lost. Otherwise the inner
    quadrilateral is stretched to the whole frame, as if photographed from close up, and the rest is lost.
    """
    width, height = canvas.image.size
    moves = rng.uniform(0.3, 1.0, (4, 2)) * between(0.05, 0.35, strength)
    inwards, fill = bool(rng.random() < 0.5), random_fill(rng)
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=float)
    quad = corners + moves * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) * (width, height)
    matrix = homography(corners, quad) if inwards else homography(quad, corners)
    parameters = {"corners": quad.round(2).tolist(), "inwards": inwards} | ({"fill": list(fill)} if inwards else {})
    return canvas.warped(matrix, width, height, fill), parameters


def homography(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the (3, 3) homography from four points (4, 2) to four others; no three of either may be on one line."""
    rows = []
    for (x, y), (u, v) in zip(source, target, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
    return np.append(np.linalg.solve(np.array(rows), target.ravel()), 1.0).reshape(3, 3)
