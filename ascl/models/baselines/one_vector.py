"""Shared code of two-tower baselines: one vector per item, and the cosine of two vectors."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from ascl.core.tensors import products, unit
from ascl.models.base import RetrievalModel, TextEncoder
from ascl.models.encoded import EncodedImages, EncodedTexts


class OneVector(RetrievalModel):
    """A two-tower model: one vector per image, one per text, scored by their cosine.

    Encoded images have one region and encoded texts one word: the vector itself.
    """

    text: TextEncoder

    def __init__(self, region_dim: int, global_dim: int, text: TextEncoder, *, standardize: bool) -> None:
        super().__init__(region_dim, global_dim, standardize=standardize)
        self.text = text

    @abstractmethod
    def image_vector(self, regions: Tensor, globals_: Tensor, mask: Tensor | None) -> Tensor:
        """Encode standardized features (N, K, region_dim), (N, global_dim); mask (N, K) bool or None -> (N, D)."""

    @abstractmethod
    def text_vector(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Encode the text encoder's words (N, L, text.dim); mask (N, L) bool, True = a real word -> (N, D)."""

    def encode_images(self, regions: Tensor, globals_: Tensor, mask: Tensor | None = None) -> EncodedImages:
        """Encode (N, K, region_dim), (N, global_dim), mask (N, K) bool or None as N vectors."""
        vectors = self.image_vector(*self.standardized(regions, globals_), mask)
        return EncodedImages(vectors.unsqueeze(1), vectors)

    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode N texts as N vectors."""
        vectors = self.text_vector(*self.encoded_words(texts)).unsqueeze(1)
        return EncodedTexts(vectors, torch.ones(vectors.shape[:2], dtype=torch.bool, device=vectors.device))

    def text_vectors(self, texts: EncodedTexts) -> Tensor:
        """Return the text vectors (N, D) whose cosines the scores are."""
        return texts.words[:, 0]

    def pair_scores(self, images: EncodedImages, texts: EncodedTexts) -> Tensor:
        """Return the cosines (N_images, N_texts), at least float32: losses divide them by small temperatures."""
        return products(unit(images.globals), unit(self.text_vectors(texts)))
