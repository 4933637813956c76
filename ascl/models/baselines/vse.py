"""VSE++ (Faghri, Fleet, Kiros and Fidler, "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ascl.models.ascl import masked_mean
from ascl.models.base import TextEncoder
from ascl.models.baselines.one_vector import OneVector


class Vse(OneVector):
    """A linear map of the image and one of the text, compared by the cosine (equations 1 to 3 of the paper).

    What makes it VSE++ is its loss, the hardest negative of the batch (equation 6): `losses.hardest_triplet`, which
    `configs/baselines/vse.yaml` chooses.

    Where inputs differ from the paper's: phi(i), there one vector of a convolutional network for the whole image, is
    here the mean region beside that vector; psi(c), there the last state of a GRU over word embeddings, is the mean
    of the text encoder's words.
    """

    def __init__(
        self, region_dim: int, global_dim: int, text: TextEncoder, embed_dim: int = 1024, *, standardize: bool = False
    ) -> None:
        super().__init__(region_dim, global_dim, text, standardize=standardize)
        self.image = nn.Linear(region_dim + global_dim, embed_dim)
        self.words = nn.Linear(text.dim, embed_dim)

    def image_vector(self, regions: Tensor, globals_: Tensor, mask: Tensor | None) -> Tensor:
        """W_f^T phi(i), (N, D)."""
        return self.image(torch.cat([masked_mean(regions, mask), globals_], dim=-1))

    def text_vector(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """W_g^T psi(c), (N, D)."""
        return self.words(masked_mean(hidden, mask))
