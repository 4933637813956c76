"""VSE++ (Faghri, Fleet, Kiros and Fidler, "VSE++: Improving Visual-Semantic Embeddings with Hard Negatives", 2018)."""

from __future__ import annotations

from torch import nn

from ascl.models.baselines.layers import xavier_linear
from ascl.models.baselines.two_tower import TwoTower


class Vse(TwoTower):
    """A linear map of the image and one of the text, compared by the cosine (equations 1 to 3 of the paper).

    Its loss makes it VSE++: the hardest negative of the batch (equation 6), `losses.hardest_triplet`, set in
    `configs/baselines/vse.yaml`.

    Two inputs differ from the paper. phi(i) is the whole-image vector there, and here the mean region concatenated
    with that vector. psi(c) is the last state of a GRU over word embeddings there, and here the mean of the text
    encoder's words.
    """

    @staticmethod
    def projection(input_dim: int, embed_dim: int) -> nn.Module:
        """Return W_f of the image or W_g of the text."""
        return xavier_linear(input_dim, embed_dim)
