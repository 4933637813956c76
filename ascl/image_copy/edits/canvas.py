"""A picture that is being edited, and how much of the original it still shows.

Sample points measure the content scale. They are spread evenly over the original and move with every step; they are
lost when they leave the picture, and dimmed when something covers them. Each represents the same share of the original,
so a resize or a perspective needs no Jacobian, the cost does not depend on the size of the picture, and steps compose.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

POINTS = 4096  # measures the share of any rectangle to about 0.001
Color = tuple[int, int, int]


@functools.cache
def _spread() -> np.ndarray:
    """Return (2, POINTS) in (0, 1): a golden-ratio lattice, which is far more even than random points."""
    index = np.arange(POINTS)
    points = np.stack([(index + 0.5) / POINTS, (index * (math.sqrt(5) - 1) / 2 + 0.5) % 1.0]).astype(np.float32)
    points.flags.writeable = False
    return points


def _column(x: float, y: float) -> np.ndarray:
    return np.array([[x], [y]], dtype=np.float32)


@dataclass(frozen=True)
class Canvas:
    """An RGB picture with the sample points of the original that it still shows. Every method returns a new one."""

    image: Image.Image
    points: np.ndarray  # (2, n) float32, x and y in pixels of `image`, each inside it; n <= POINTS
    seen: np.ndarray  # (n,) float32 in [0, 1], how much of each point is visible through what covers it

    @classmethod
    def of(cls, image: Image.Image) -> Canvas:
        """Return a canvas of a whole upright RGB image; raise ValueError for another mode, or no pixels."""
        if image.mode != "RGB":
            raise ValueError(f"edits take RGB images, not {image.mode}; ascl.images.read.load_image gives RGB")
        if image.width < 1 or image.height < 1:
            raise ValueError(f"an image of {image.width} x {image.height} pixels cannot be edited")
        return cls(image, _spread() * _column(image.width, image.height), np.ones(POINTS, np.float32))

    @property
    def content_scale(self) -> float:
        """Return the share of the original's area that is still visible, in [0, 1]; error about 0.001 per step."""
        return float(self.seen.sum(dtype=np.float64)) / POINTS

    @property
    def short_side(self) -> int:
        return min(self.image.size)

    def recolored(self, image: Image.Image) -> Canvas:
        """Return the same content at the same places in other colors; `image` must have the same size."""
        assert image.size == self.image.size and image.mode == "RGB"
        return Canvas(image, self.points, self.seen)

    def cropped(self, left: int, top: int, width: int, height: int) -> Canvas:
        """Cut out a rectangle inside the picture."""
        box = (left, top, left + width, top + height)
        return self._moved(self.image.crop(box), self.points - _column(left, top))

    def resized(self, width: int, height: int, *, box: tuple[float, float, float, float] | None = None) -> Canvas:
        """Scale the picture, or a box of it, to at least one pixel per side, bilinear with antialiasing."""
        x1, y1, x2, y2 = box or (0.0, 0.0, *self.image.size)
        image = self.image.resize((width, height), Image.Resampling.BILINEAR, box=(x1, y1, x2, y2))
        scale = _column(width / (x2 - x1), height / (y2 - y1))
        return self._moved(image, (self.points - _column(x1, y1)) * scale)

    def flipped(self, *, horizontal: bool) -> Canvas:
        """Mirror left to right, or top to bottom."""
        x, y = self.points
        if horizontal:
            return self._transposed(Image.Transpose.FLIP_LEFT_RIGHT, self.image.width - x, y)
        return self._transposed(Image.Transpose.FLIP_TOP_BOTTOM, x, self.image.height - y)

    def turned(self, quarter_turns: int) -> Canvas:
        """Turn by 90 degrees, one to three times, counter-clockwise."""
        (x, y), (width, height) = self.points, self.image.size
        return self._transposed(*{
            1: (Image.Transpose.ROTATE_90, y, width - x), 2: (Image.Transpose.ROTATE_180, width - x, height - y),
            3: (Image.Transpose.ROTATE_270, height - y, x),
        }[quarter_turns])

    def warped(self, matrix: np.ndarray, width: int, height: int, fill: Color) -> Canvas:
        """Move every point by a homography into a picture of the given size.

        Args:
            matrix: (3, 3), invertible, from homogeneous pixels of this picture to those of the new one.
            fill: color where the new picture shows nothing of this one.
        """
        inverse = np.linalg.inv(matrix)
        inverse = inverse / inverse[2, 2]
        affine = np.allclose(inverse[2, :2], 0.0, atol=1e-12)
        method = Image.Transform.AFFINE if affine else Image.Transform.PERSPECTIVE
        coefficients = inverse.ravel()[: 6 if affine else 8].tolist()
        image = self.image.transform((width, height), method, coefficients, Image.Resampling.BILINEAR, fillcolor=fill)
        moved = matrix[:, :2] @ self.points + matrix[:, 2:]
        return self._moved(image, (moved[:2] / moved[2:]).astype(np.float32))

    def pasted_on(self, background: Image.Image, left: int, top: int) -> Canvas:
        """Paste onto a copy of another picture; what extends over its edge is lost."""
        image = background.copy()
        image.paste(self.image, (left, top))
        return self._moved(image, self.points + _column(left, top))

    def covered(self, overlay: Image.Image | Color, mask: Image.Image, left: int, top: int) -> Canvas:
        """Lay an RGB picture of the mask's size, or one color, over this one.

        `mask` is its opacity (mode L, 0 to 255), with its corner at (left, top); it may extend over the edges.
        """
        image = self.image.copy()
        image.paste(overlay, (left, top), mask)
        x, y = np.floor(self.points - _column(left, top)).astype(np.int64)
        inside = (x >= 0) & (y >= 0) & (x < mask.width) & (y < mask.height)
        seen = self.seen.copy()
        seen[inside] *= 1.0 - np.asarray(mask, dtype=np.float32)[y[inside], x[inside]] / np.float32(255)
        return Canvas(image, self.points, seen)

    def _transposed(self, transpose: Image.Transpose, x: np.ndarray, y: np.ndarray) -> Canvas:
        return Canvas(self.image.transpose(transpose), np.stack([x, y]), self.seen)

    def _moved(self, image: Image.Image, points: np.ndarray) -> Canvas:
        """Return a canvas without the points that left the picture: later padding does not bring them back."""
        x, y = points
        inside = (x >= 0) & (x < image.width) & (y >= 0) & (y < image.height)
        return Canvas(image, points[:, inside], self.seen[inside])


def between(mild: float, hard: float, strength: float) -> float:
    """Return the value at a strength in [0, 1], linear from mild to hard."""
    return mild + (hard - mild) * strength


def pixels(length: float) -> int:
    """Return a length as whole pixels, at least one."""
    return max(1, round(length))


def size_of_area(width: float, height: float, area: float) -> tuple[int, int]:
    """Return width and height of the same shape and about the given area, at least one pixel each."""
    scale = math.sqrt(area / (width * height))
    return pixels(width * scale), pixels(height * scale)


def random_color(rng: np.random.Generator) -> Color:
    red, green, blue = rng.integers(0, 256, 3).tolist()
    return red, green, blue


def random_fill(rng: np.random.Generator) -> Color:
    """Draw a color for the area outside a picture: black, white or random, with equal probability."""
    kind = rng.integers(3)
    return ((0, 0, 0), (255, 255, 255), random_color(rng))[kind]
