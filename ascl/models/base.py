"""The interface that AsCL and its baselines share: encode each item alone, then score pairs of encoded items."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ascl.models.encoded import EncodedImages, EncodedTexts
from ascl.models.fusion import FusionWeights
from ascl.models.image import Standardize


class TextEncoder(nn.Module, ABC):
    """What a model reads texts with. dim: of a word."""

    dim: int

    @abstractmethod
    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """N texts -> hidden (N, L, dim) and mask (N, L) bool, True = a real word."""


class RetrievalModel(nn.Module, ABC):
    """A model whose items are encoded alone; which of them belong together is never known to it.

    It says itself how many pairs are scored at once. A model with `fusion_weights` leaves that to the algebra of
    `retrieval.scoring`. Every other one prepares images and texts once and scores blocks of them; as it stands here,
    items are prepared already and a block is `pair_scores`.

    tokens_meet: the tokens of an image meet those of a text, so that the work grows with their numbers: texts then
        come in blocks of similar length.
    """

    tokens_meet = False
    text: TextEncoder | None

    def __init__(self, region_dim: int, global_dim: int, *, standardize: bool) -> None:
        """standardize: have `standardize_regions` and `standardize_globals`, to be fitted to training images."""
        super().__init__()
        self.region_dim, self.global_dim = region_dim, global_dim
        self.standardize_regions = Standardize(region_dim) if standardize else None
        self.standardize_globals = Standardize(global_dim) if standardize else None

    def standardized(self, regions: Tensor, globals_: Tensor) -> tuple[Tensor, Tensor]:
        """Features (N, K, region_dim) and (N, global_dim), standardized where the model does so.

        Raises:
            ValueError: dimensions other than the model was built for.
        """
        expected = (self.region_dim, self.global_dim)
        if regions.dim() != 3 or globals_.dim() != 2 or (regions.shape[-1], globals_.shape[-1]) != expected:
            raise ValueError(f"the model takes regions (N, K, {expected[0]}) and globals (N, {expected[1]}), "
                             f"got {tuple(regions.shape)} and {tuple(globals_.shape)}")
        if self.standardize_regions is not None and self.standardize_globals is not None:
            regions, globals_ = self.standardize_regions(regions), self.standardize_globals(globals_)
        return regions, globals_

    @abstractmethod
    def encode_images(self, regions: Tensor, globals_: Tensor, mask: Tensor | None = None) -> EncodedImages:
        """Precomputed features (N, K, region_dim), (N, global_dim), (N, K) bool or None -> N images."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """N captions -> N texts."""

    @abstractmethod
    def text_vectors(self, texts: EncodedTexts) -> Tensor:
        """(N, D) one vector of each text alone, not normalized: its norm is free, since scores are cosines."""

    @abstractmethod
    def pair_scores(self, images: EncodedImages, texts: EncodedTexts) -> Tensor:
        """(N_images, N_texts) scores, differentiable."""

    def training_scores(self, images: EncodedImages, texts: EncodedTexts) -> Tensor:
        """(N_images, N_texts) what a training step's loss takes: `pair_scores`, unless a model learns its temperature.

        A model that does returns its scores times its own scale here, and nowhere else.
        """
        return self.pair_scores(images, texts)

    def fusion_weights(self) -> FusionWeights | None:
        """Return the weights of a score by cross attention; None = the model scores its pairs by the methods below."""
        return None

    def prepare_images(self, images: EncodedImages) -> Any:
        """Return what the scores need of each image, whatever the text."""
        return images

    def prepare_texts(self, texts: EncodedTexts) -> Any:
        """Return what the scores need of each text, whatever the image."""
        return texts

    def score_prepared(self, images: Any, texts: Any) -> Tensor:
        """Return (N_images, N_texts) scores of prepared items."""
        return self.pair_scores(images, texts)

    def prepared_numbers(self, tokens: int, dim: int) -> int:
        """Return how many numbers a prepared item of so many tokens (tokens, dim) takes at most, temporary ones too."""
        return 8 * tokens * dim

    def working_numbers(self, device: torch.device) -> int:
        """Return how many numbers the largest temporary tensor has while a block of pairs is scored."""
        return 0
