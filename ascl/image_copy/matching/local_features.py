"""Local features of a picture: points that are found again in an edited copy of it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from ascl.core.errors import DataError

SIDE = 384              # pixels of the longer side at which points are sought
POINTS = 500            # the strongest are kept
CONTRAST = 0.01         # of the weakest point; OpenCV's 0.04 leaves too few in a blurred copy


def opencv() -> Any:
    """Import OpenCV; DataError with the remedy if it is not installed."""
    try:
        import cv2
    except ImportError as error:
        raise DataError("geometric verification needs OpenCV: pip install 'ascl[search]'") from error
    return cv2


@dataclass(frozen=True)
class LocalFeatures:
    """A picture reduced to `SIDE` pixels, with its points.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        points: (N, 2) float32, x and y in these pixels.
        descriptors: (N, 128) float32 of length 1: RootSIFT (Arandjelovic and Zisserman, "Three things everyone should
            know to improve object retrieval", 2012). Their inner product is at most 1.
    """

    pixels: np.ndarray
    points: np.ndarray
    descriptors: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.pixels.shape[1], self.pixels.shape[0]

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
        """The features of the mirror image: SIFT does not find a point again in it."""
        return _described(np.ascontiguousarray(self.pixels[:, ::-1]))


def local_features(image: Image.Image) -> LocalFeatures:
    """Return the features of an upright RGB picture.

    Raises:
        DataError: OpenCV is not installed.
    """
    scale = SIDE / max(image.size)
    size = max(8, round(image.width * scale)), max(8, round(image.height * scale))
    method = Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR
    return _described(np.asarray(image.resize(size, method)))


def _described(pixels: np.ndarray) -> LocalFeatures:
    cv2 = opencv()
    found, sift = cv2.SIFT_create(nfeatures=POINTS, contrastThreshold=CONTRAST).detectAndCompute(
        cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), None)
    if sift is None:
        return LocalFeatures(pixels, np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32))
    points = np.array([one.pt for one in found[:POINTS]], dtype=np.float32)
    descriptors = np.sqrt(sift[:POINTS] / np.maximum(sift[:POINTS].sum(axis=1, keepdims=True), 1e-9))
    return LocalFeatures(pixels, points, descriptors.astype(np.float32))
