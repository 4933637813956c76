"""Models: encoders of images and texts, their cross-modal fusion, and the plain reference of their score."""

from ascl.models.ascl import AsCL
from ascl.models.base import RetrievalModel
from ascl.models.encoded import EncodedImages, EncodedTexts

__all__ = ["AsCL", "EncodedImages", "EncodedTexts", "RetrievalModel"]
