"""Local features of a picture: points that are found again in an edited copy of it."""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from ascl.core.errors import DataError

SIDE = 384              # pixels of the longer side at which points are sought
POINTS = 500            # the strongest are kept
CONTRAST = 0.01         # of the weakest point; OpenCV's 0.04 leaves too few in a blurred copy
JPEG_QUALITY = 90       # of the picture that is kept with the points
HEAD = struct.Struct("<HHI")    # width, height and number of points, before the arrays in `to_bytes`


def opencv() -> Any:
    """Import OpenCV; DataError with the remedy if it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise DataError("geometric verification needs OpenCV: pip install 'ascl[search]'") from error
    return cv2


@dataclass(frozen=True, eq=False)
class LocalFeatures:
    """A picture reduced to `SIDE` pixels, with its points: about 110 KB.

    Attributes:
        size: width and height in pixels.
        points: (N, 2) float32, x and y in these pixels.
        sift: (N, 128) uint8, SIFT descriptors as OpenCV rounds them.
        jpeg: the reduced picture.
        flipped: whether these are the features of the mirror image of `jpeg`.
    """

    size: tuple[int, int]
    points: np.ndarray
    sift: np.ndarray
    jpeg: bytes
    flipped: bool = False

    @cached_property
    def descriptors(self) -> np.ndarray:
        """(N, 128) float32 of length 1: RootSIFT (Arandjelovic and Zisserman, "Three things everyone should know to
        improve object retrieval", 2012). Their inner product is at most 1."""
        sift = self.sift.astype(np.float32)
        return np.sqrt(sift / np.maximum(sift.sum(axis=1, keepdims=True), 1.0))

    @cached_property
    def pixels(self) -> np.ndarray:
        """(H, W, 3) uint8 RGB."""
        pixels = np.asarray(Image.open(io.BytesIO(self.jpeg)))
        return np.ascontiguousarray(pixels[:, ::-1]) if self.flipped else pixels

    @cached_property
    def gray(self) -> np.ndarray:
        """(H, W) float32."""
        return opencv().cvtColor(self.pixels, opencv().COLOR_RGB2GRAY).astype(np.float32)

    @cached_property
    def lab(self) -> np.ndarray:
        """(H, W, 3) float32, colors in L*a*b* as OpenCV scales them to 0 to 255, slightly blurred."""
        cv2 = opencv()
        return cv2.GaussianBlur(cv2.cvtColor(self.pixels, cv2.COLOR_RGB2LAB).astype(np.float32), (0, 0), 0.8)

    @cached_property
    def mirrored(self) -> LocalFeatures:
        """The features of the mirror image: SIFT matches no point with its own mirror image.

        Mirrored along the orientation of a point, the rows of its 4 x 4 histograms change places, and so do their
        8 directions but for the first.
        """
        points = self.points.copy()
        points[:, 0] = self.size[0] - 0.5 - points[:, 0]    # OpenCV's points lie a quarter of a pixel to the left
        histograms = self.sift.reshape(-1, 4, 4, 8)[:, ::-1, :, [0, 7, 6, 5, 4, 3, 2, 1]]
        return replace(self, points=points, sift=histograms.reshape(-1, 128), flipped=not self.flipped)

    def to_bytes(self) -> bytes:
        """Return the features as bytes, for `from_bytes`; not of a mirror image."""
        return b"".join([HEAD.pack(*self.size, len(self.points)), self.points.astype("<f4").tobytes(),
                         self.sift.tobytes(), self.jpeg])

    @classmethod
    def from_bytes(cls, data: bytes) -> LocalFeatures:
        """Return the features that `to_bytes` wrote."""
        width, height, count = HEAD.unpack_from(data)
        points = np.frombuffer(data, "<f4", 2 * count, HEAD.size).reshape(count, 2)
        sift = np.frombuffer(data, np.uint8, 128 * count, HEAD.size + points.nbytes).reshape(count, 128)
        return cls((width, height), points, sift, data[HEAD.size + points.nbytes + sift.nbytes :])


def local_features(image: Image.Image) -> LocalFeatures:
    """Return the features of an upright RGB picture.

    Raises:
        DataError: OpenCV is not installed.
    """
    cv2 = opencv()
    scale = SIDE / max(image.size)
    size = max(8, round(image.width * scale)), max(8, round(image.height * scale))
    method = Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR
    reduced, jpeg = image.resize(size, method), io.BytesIO()
    reduced.save(jpeg, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    found, sift = cv2.SIFT_create(nfeatures=POINTS, contrastThreshold=CONTRAST).detectAndCompute(
        cv2.cvtColor(np.asarray(reduced), cv2.COLOR_RGB2GRAY), None)
    points = np.array([one.pt for one in found[:POINTS]], np.float32).reshape(-1, 2)
    descriptors = np.zeros((0, 128), np.uint8) if sift is None else sift[:POINTS].astype(np.uint8)
    return LocalFeatures(size, points, descriptors, jpeg.getvalue())
