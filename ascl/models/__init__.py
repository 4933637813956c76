"""Models: image and text encoders, their cross-modal fusion, and the plain reference of the score."""

from ascl.models.ascl import AsCL
from ascl.models.base import RetrievalModel
from ascl.models.encoded import EncodedImages, EncodedTexts

__all__ = ["AsCL", "EncodedImages", "EncodedTexts", "RetrievalModel"]
