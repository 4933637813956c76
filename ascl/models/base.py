"""The interface of AsCL and its baselines: encode each item on its own, then score pairs of encoded items."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ascl.models.dropout import InputDropout
from ascl.models.encoded import EncodedImages, EncodedTexts
from ascl.models.fusion import FusionWeights
from ascl.models.image import Standardize

SMALLEST_TEMPERATURE = 0.01         # of a learned one; below, training became unstable (CLIP, section 2.5)


class TextEncoder(nn.Module, ABC):
    """The text encoder of a model. dim: dimension of a word vector."""

    dim: int

    @abstractmethod
    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode N texts -> hidden (N, L, dim) and mask (N, L) bool, True = a real word."""


class RetrievalModel(nn.Module, ABC):
    """A retrieval model that encodes each item on its own and never learns which items belong together.

    A model with `fusion_weights` is scored by `retrieval.scoring`. Any other model prepares images and texts once and
    scores blocks of them; by default preparing does nothing and a block is scored by `pair_scores`.

    tokens_meet: whether image tokens interact with text tokens, so that the cost grows with their numbers; texts are
        then grouped into blocks of similar length.
    dropout: of the inputs in training; none unless it is replaced.
    """

    tokens_meet = False
    text: TextEncoder | None
    log_scale: nn.Parameter | None

    def __init__(self, region_dim: int, global_dim: int, *, standardize: bool) -> None:
        """
        Args:
            standardize: create `standardize_regions` and `standardize_globals`, to be fitted on training images.
        """
        super().__init__()
        self.region_dim, self.global_dim = region_dim, global_dim
        self.standardize_regions = Standardize(region_dim) if standardize else None
        self.standardize_globals = Standardize(global_dim) if standardize else None
        self.dropout = InputDropout()
        self.register_parameter("log_scale", None)

    def learn_temperature(self, initial: float) -> None:
        """Make the temperature of the loss a trained parameter (CLIP, Radford et al. 2021, section 2.3).

        Args:
            initial: at least 0.01, which is also the smallest value it can learn.

        Raises:
            ValueError: it is smaller, or not finite.
        """
        if not SMALLEST_TEMPERATURE <= initial < math.inf:
            raise ValueError(f"the learned temperature must start at {SMALLEST_TEMPERATURE} or above, got {initial}")
        self.log_scale = nn.Parameter(torch.tensor(-math.log(initial)))

    def logit_scale(self) -> Tensor | None:
        """Return 1 / temperature, (), if the model learns it, else None.

        It is clamped in place before use, as if after each step: a clamp inside the graph would give a value beyond
        the limit no gradient, and it would never come back.
        """
        if self.log_scale is None:
            return None
        with torch.no_grad():
            self.log_scale.clamp_(max=-math.log(SMALLEST_TEMPERATURE))
        return self.log_scale.exp()

    def encoded_words(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Encode N texts -> the text encoder's words (N, L, text.dim) and mask (N, L), with dropout in training.

        Raises:
            ValueError: the model has no text encoder, or the list is empty.
        """
        if self.text is None:
            raise ValueError("this model has no text encoder (text=None): pass EncodedTexts instead of strings")
        if len(texts) == 0:
            raise ValueError("no texts to encode: pass at least one")
        return self.dropout.of_words(*self.text(list(texts)))

    def standardized(self, regions: Tensor, globals_: Tensor) -> tuple[Tensor, Tensor]:
        """Return features (N, K, region_dim) and (N, global_dim), standardized if the model was built to do so.

        In training, dropout sets some of them to zero.

        Raises:
            ValueError: the feature dimensions differ from the model's.
        """
        expected = (self.region_dim, self.global_dim)
        if regions.dim() != 3 or globals_.dim() != 2 or (regions.shape[-1], globals_.shape[-1]) != expected:
            raise ValueError(f"the model takes regions (N, K, {expected[0]}) and globals (N, {expected[1]}), "
                             f"got {tuple(regions.shape)} and {tuple(globals_.shape)}")
        if self.standardize_regions is not None and self.standardize_globals is not None:
            regions, globals_ = self.standardize_regions(regions), self.standardize_globals(globals_)
        return self.dropout.of_features(regions), self.dropout.of_features(globals_)

    @abstractmethod
    def encode_images(self, regions: Tensor, globals_: Tensor, mask: Tensor | None = None) -> EncodedImages:
        """Encode precomputed features (N, K, region_dim), (N, global_dim); mask (N, K) bool or None."""

    @abstractmethod
    def encode_texts(self, texts: Sequence[str]) -> EncodedTexts:
        """Encode N captions."""

    @abstractmethod
    def text_vectors(self, texts: EncodedTexts) -> Tensor:
        """Return one vector per text, (N, D), not normalized: scores are cosines, so its norm is free."""

    @abstractmethod
    def pair_scores(self, images: EncodedImages, texts: EncodedTexts) -> Tensor:
        """Return the scores (N_images, N_texts), differentiable."""

    def fusion_weights(self) -> FusionWeights | None:
        """Return the weights of a cross-attention score; None = the model scores pairs with the methods below."""
        return None

    def prepare_images(self, images: EncodedImages) -> Any:
        """Return the part of the score computation that depends on the images only."""
        return images

    def prepare_texts(self, texts: EncodedTexts) -> Any:
        """Return the part of the score computation that depends on the texts only."""
        return texts

    def score_prepared(self, images: Any, texts: Any) -> Tensor:
        """Return the scores (N_images, N_texts) of prepared items."""
        return self.pair_scores(images, texts)

    def prepared_numbers(self, tokens: int, dim: int) -> int:
        """Return an upper bound of the numbers that a prepared item (tokens, dim) takes, temporary ones included."""
        return 8 * tokens * dim

    def working_numbers(self, device: torch.device) -> int:
        """Return the size (in numbers) of the largest temporary tensor when a block of pairs is scored."""
        return 0
