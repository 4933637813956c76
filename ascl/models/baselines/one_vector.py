"""What baselines without any meeting of image and text share: one vector an item, and the cosine of two vectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ascl.core.tensors import products, unit
from ascl.models.base import RetrievalModel, TextEncoder
from ascl.models.encoded import EncodedImages, EncodedTexts


class OneVector(RetrievalModel):
    """An image is one vector, a text is another, and their score is the cosine.

    Encoded images have one region and encoded texts one word: the vector itself.
    """

    text: TextEncoder

    def __init__(self, region_dim: int, global_dim: int, text: TextEncoder, *, standardize: bool) -> None:
        super().__init__(region_dim, global_dim, standardize=standardize)
        self.text = text

    @abstractmethod
    def image_vector(self, regions: Tensor, globals_: Tensor, mask: Tensor | None) -> Tensor:
        """Standardized features (N, K, region_dim), (N, global_dim), (N, K) bool or None -> (N, D)."""

    @abstractmethod
    def text_vector(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The encoder's words (N, L, text.dim) and (N, L) bool, True = a real word -> (N, D)."""

    def encode_images(self, regions: Tensor, globals_: Tensor, mask: Tensor | None = None) -> EncodedImages:
        """(N, K, region_dim), (N, global_dim), (N, K) bool or None -> N vectors."""
        vectors = self.image_vector(*self.standardized(regions, globals_), mask)
        return EncodedImages(vectors.unsqueeze(1), vectors)

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """N texts -> N vectors."""
        vectors = self.text_vector(*self.text(list(texts))).unsqueeze(1)
        return EncodedTexts(vectors, torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device))

    def text_vectors(self, texts: EncodedTexts) -> Tensor:
        """(N, D) the vectors whose directions the score compares."""
        return texts.words[:, 0]

    def pair_scores(self, images: EncodedImages, texts: EncodedTexts) -> Tensor:
        """Cosines (N_images, N_texts); in float32 at least, because losses divide them by small temperatures."""
        return products(unit(images.globals), unit(self.text_vectors(texts)))
