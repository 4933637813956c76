"""DSRAN (Wen, Gu and Cheng, "Learning Dual Semantic Relations with Graph Attention for Image-Text Matching", 2020), the
version with BERT: one vector per image and one per text, from graphs whose nodes attend to each other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ascl.models.ascl import masked_mean
from ascl.models.base import TextEncoder
from ascl.models.baselines.layers import TokenBatchNorm
from ascl.models.baselines.one_vector import OneVector

INPUT_DROPOUT, GRAPH_DROPOUT = 0.1, 0.2             # of the projected features and in the graphs, as released


class GraphAttention(nn.Module):
    """A fully connected graph: x' = norm(x + attention(x)), then norm(x' + network(x')), with batch normalization."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(dim, heads, dropout=GRAPH_DROPOUT, batch_first=True)
        self.attention_norm, self.network_norm = TokenBatchNorm(dim), TokenBatchNorm(dim)
        self.network = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.Linear(dim, dim))
        self.dropout = nn.Dropout(GRAPH_DROPOUT)

    def forward(self, nodes: Tensor, mask: Tensor | None) -> Tensor:
        """Map (N, S, D) -> (N, S, D), padding to 0; mask (N, S) bool, True = a real node, None = all."""
        padding = None if mask is None else ~mask
        attended, _ = self.attention(nodes, nodes, nodes, key_padding_mask=padding, need_weights=False)
        nodes = self.attention_norm(nodes + self.dropout(attended), mask)
        return self.network_norm(nodes + self.dropout(self.network(nodes)), mask)


class GatedFusion(nn.Module):
    """The gated sum t * a + (1 - t) * b of a = W_a x and b = W_b y, with t = sigmoid(W_t [a, b])."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.first, self.second, self.gate = nn.Linear(dim, dim), nn.Linear(dim, dim), nn.Linear(2 * dim, dim)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Fuse two (N, D) -> (N, D)."""
        a, b = self.first(x), self.second(y)
        return torch.lerp(b, a, torch.sigmoid(self.gate(torch.cat([a, b], dim=-1))))


class Dsran(OneVector):
    """Separate and joint semantic relations, by graph attention, compared by the cosine.

    The separate module has a graph of the regions and one of the words; a text's vector is the mean of its words. The
    joint module puts regions and whole image into several graphs at once. An image's vector is the gated fusion of
    their means, in pairs. Its loss is VSE++'s, `losses.hardest_triplet`.

    The whole image differs from the paper: it is a 7 x 7 grid of a ResNet-152 there, with a separate graph of its own,
    and a vector here, a single node, which joins the joint graphs directly. Regions have neither boxes nor class
    scores, which are added to their features there. [CLS], [SEP] and padding take no part here, in the attention,
    in means and in the statistics of the batch.
    """

    def __init__(self, region_dim: int, global_dim: int, text: TextEncoder, embed_dim: int = 1024, *,
                 num_heads: int = 8, joint_graphs: int = 2, standardize: bool = False) -> None:
        """
        Args:
            num_heads: heads of the graph attention; must divide embed_dim.
            joint_graphs: 1, 2 or 4; K of the release, which has 2 for Flickr30K and 4 for COCO.

        Raises:
            ValueError: num_heads does not divide embed_dim, or joint_graphs is another number.
        """
        super().__init__(region_dim, global_dim, text, standardize=standardize)
        if num_heads < 1 or embed_dim % num_heads:
            raise ValueError(f"num_heads ({num_heads}) must divide embed_dim ({embed_dim})")
        if joint_graphs not in (1, 2, 4):
            raise ValueError(f"joint_graphs must be 1, 2 or 4, got {joint_graphs}")
        self.regions = nn.Sequential(nn.Linear(region_dim, region_dim), nn.ReLU(),
                                     self.projection(region_dim, embed_dim))
        self.whole = self.projection(global_dim, embed_dim)
        self.words = self.projection(text.dim, embed_dim)
        self.region_graph, self.word_graph = GraphAttention(embed_dim, num_heads), GraphAttention(embed_dim, num_heads)
        self.joint_graphs = nn.ModuleList(GraphAttention(embed_dim, num_heads) for _ in range(joint_graphs))
        self.fusions = nn.ModuleList(GatedFusion(embed_dim) for _ in range(joint_graphs - 1))

    @staticmethod
    def projection(input_dim: int, embed_dim: int) -> nn.Sequential:
        """Return the module that maps features to nodes."""
        return nn.Sequential(nn.Linear(input_dim, embed_dim), nn.ReLU(), nn.Dropout(INPUT_DROPOUT))

    def image_vector(self, regions: Tensor, globals_: Tensor, mask: Tensor | None) -> Tensor:
        """Relate the regions, then regions and whole image -> (N, D)."""
        nodes = torch.cat([self.whole(globals_).unsqueeze(1), self.region_graph(self.regions(regions), mask)], dim=1)
        if mask is not None:
            mask = torch.cat([mask.new_ones(len(mask), 1), mask], dim=1)
        vectors = [masked_mean(graph(nodes, mask), mask) for graph in self.joint_graphs]
        for fusion in self.fusions:                     # a tree: the first two to the end, until one is left
            vectors = [*vectors[2:], fusion(vectors[0], vectors[1])]
        return vectors[0]

    def text_vector(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Relate the words -> (N, D)."""
        return masked_mean(self.word_graph(self.words(hidden), mask), mask)
