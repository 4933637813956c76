"""VSE-infinity (Chen et al., "Learning the Best Pooling Strategy for Visual Semantic Embedding", 2021).

The generalized pooling operator (section 3) sorts the features of a set, each dimension on its own, and takes a
weighted sum over ranks. A small recurrent network computes the weights from the ranks. Mean, maximum and mean of the k
largest are special cases, so the network learns which pooling is best.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ascl.models.base import TextEncoder
from ascl.models.baselines.layers import TokenBatchNorm, xavier_linear
from ascl.models.baselines.one_vector import OneVector

POSITION_DIM = 32           # dimension of a position encoding, and of the GRU's state in each direction
TEMPERATURE = 0.1           # of the softmax over ranks, as in the released code
DROPPED = 0.2               # probability that size augmentation removes a region or a word


def position_encodings(length: int, dim: int, device: torch.device | None = None) -> Tensor:
    """Return (length, dim): sin(p / 10000^(2i / dim)) at 2i, its cosine at 2i + 1 (Vaswani et al. 2017); even dim."""
    position = torch.arange(length, device=device, dtype=torch.float32).unsqueeze(1)
    angle = position * 10000.0 ** (-torch.arange(0, dim, 2, device=device) / dim)
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)


class GeneralizedPooling(nn.Module):
    """Pooling by sum_k theta_k max_k(features): max_k is the k-th largest value of each dimension, theta is learned.

    theta = softmax(score((forward + backward) / 2)) of the states of a bidirectional GRU that reads the encodings of
    the positions 0, 1, ... So theta depends only on the set's size, and any size works.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(POSITION_DIM, POSITION_DIM, batch_first=True, bidirectional=True)
        self.score = nn.Linear(POSITION_DIM, 1, bias=False)

    def weights(self, lengths: Tensor) -> Tensor:
        """Return theta (U, longest) for set sizes (U,), each at least 1; rows sum to 1 and are 0 beyond the size."""
        longest = int(lengths.max())
        encodings = position_encodings(longest, POSITION_DIM, lengths.device).to(self.score.weight.dtype)
        with torch.autocast(lengths.device.type, enabled=False):
            packed = nn.utils.rnn.pack_padded_sequence(encodings.expand(len(lengths), -1, -1), lengths.cpu(),
                                                       batch_first=True, enforce_sorted=False)
            states, _ = nn.utils.rnn.pad_packed_sequence(self.gru(packed)[0], batch_first=True)
            forward, backward = states.chunk(2, dim=-1)
            scores = self.score((forward + backward) / 2).squeeze(-1)                       # (U, longest)
        beyond = torch.arange(longest, device=lengths.device) >= lengths.unsqueeze(1)
        return (scores / TEMPERATURE).masked_fill(beyond, float("-inf")).softmax(dim=1)

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Pool (N, S, D) -> (N, D); mask (N, S) bool, True = a real feature, None = all real."""
        if mask is None:
            mask = features.new_ones(features.shape[:2], dtype=torch.bool)
        sizes, place = mask.sum(dim=1).unique(return_inverse=True)      # compute theta once per size
        theta = self.weights(sizes)[place]                              # (N, longest)
        ordered = features.masked_fill(~mask.unsqueeze(-1), float("-inf")).sort(dim=1, descending=True).values
        beyond = torch.arange(theta.shape[1], device=mask.device) >= sizes[place].unsqueeze(1)
        return (ordered[:, : theta.shape[1]].masked_fill(beyond.unsqueeze(-1), 0) * theta.unsqueeze(-1)).sum(dim=1)


class VseInfinity(OneVector):
    """Projected regions and projected words, each pooled by its own operator, compared by the cosine.

    As in the paper, an image is represented by its regions only: the released linear map plus a two-layer network. And
    training drops a fifth of regions and words (size augmentation). Words differ in two ways. Those chosen are dropped
    after the text encoder, which may be frozen; in the release half of them are masked before it, a tenth replaced and
    the rest removed. And [CLS] and [SEP], which the release pools too, are left out.
    """

    def __init__(self, region_dim: int, global_dim: int, text: TextEncoder, embed_dim: int = 1024, *,
                 batch_norm: bool = False, standardize: bool = False) -> None:
        """
        Args:
            batch_norm: normalize the two-layer network's hidden units over the regions of the batch, as in the release.
                In training a vector then depends on its batch. False = no normalization.
        """
        super().__init__(region_dim, global_dim, text, standardize=standardize)
        self.image = xavier_linear(region_dim, embed_dim)
        self.image_residual = nn.Sequential(nn.Linear(region_dim, embed_dim // 2), nn.ReLU(),
                                            nn.Linear(embed_dim // 2, embed_dim))
        self.image_norm = TokenBatchNorm(embed_dim // 2) if batch_norm else None
        self.words = nn.Linear(text.dim, embed_dim)
        self.image_pooling = GeneralizedPooling()
        self.text_pooling = GeneralizedPooling()

    def image_vector(self, regions: Tensor, globals_: Tensor, mask: Tensor | None) -> Tensor:
        """Pool the regions -> (N, D)."""
        mask = self.augmented(regions, mask)
        hidden = self.image_residual[0](regions)
        if self.image_norm is not None:
            hidden = self.image_norm(hidden, mask)
        return self.image_pooling(self.image(regions) + self.image_residual[1:](hidden), mask)

    def text_vector(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Pool the words -> (N, D)."""
        return self.text_pooling(self.words(hidden), self.augmented(hidden, mask))

    def augmented(self, tokens: Tensor, mask: Tensor | None) -> Tensor | None:
        """Return the mask, in training without the dropped tokens; an item that would lose all tokens keeps all."""
        if not self.training:
            return mask
        if mask is None:
            mask = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        kept = mask & (torch.rand(mask.shape, device=mask.device) >= DROPPED)
        return torch.where(kept.any(dim=1, keepdim=True), kept, mask)
