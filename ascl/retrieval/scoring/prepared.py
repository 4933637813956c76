"""Scores of prepared items, by the algebra of `attention.py`: all pairs of a batch, differentiable.

For a pair, equation 2 of AsCL needs only the cosine of each token with its attended vector, and the two global vectors
from mean attention. `AsCL.pair_scores` is the plain reference.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ascl.core.tensors import at_least_float32
from ascl.models import EncodedImages, EncodedTexts, RetrievalModel
from ascl.models.fusion import FusionWeights
from ascl.retrieval.scoring import attention
from ascl.retrieval.scoring.attention import Attended, Chunks, Keys, Queries, attend, length, pack, prepare_keys

Attend = Callable[[Queries, Keys, Chunks], Attended]
Prepared = TypeVar("Prepared", bound="PreparedTexts")


@dataclass
class PreparedTexts:
    """The part of the score computation that depends on the texts only."""

    queries: Queries
    keys: Keys

    def to(self: Prepared, dtype: torch.dtype) -> Prepared:
        """Return a copy whose operands of matrix products are in `dtype`."""
        return replace(self, queries=self.queries.to(dtype), keys=self.keys.to(dtype))


@dataclass
class PreparedImages(PreparedTexts):
    """The part of the score computation that depends on the N images only.

    second: (N, D), V_g2 = X_g G. gate: (N, D), the term of the gate's logit that depends on V_g2.
    """

    second: Tensor
    gate: Tensor


def prepare_images(weights: FusionWeights, images: EncodedImages, chunks: Chunks) -> PreparedImages:
    """Compute projections, Gram matrices and outputs once per image."""
    second = F.linear(images.globals, weights.image_global)
    return PreparedImages(
        queries=attention.prepare_queries(*pack(images.regions, images.mask), weights.region_to_word),
        keys=prepare_keys(images.regions, images.mask, weights.word_to_region, weights.of_images, chunks),
        second=second, gate=F.linear(second, weights.gate, weights.gate_bias),
    )


def prepare_texts(weights: FusionWeights, texts: EncodedTexts, chunks: Chunks) -> PreparedTexts:
    """Compute projections, Gram matrices and outputs once per text."""
    return PreparedTexts(attention.prepare_queries(*pack(texts.words, texts.mask), weights.word_to_region),
                         prepare_keys(texts.words, texts.mask, weights.region_to_word, weights.of_texts, chunks))


def score_prepared(weights: FusionWeights, images: PreparedImages, texts: PreparedTexts, chunks: Chunks,
                   attend: Attend = attend) -> Tensor:
    """Return the scores (N_images, N_texts) of prepared items; differentiable if `attend` is."""
    over_words = attend(images.queries, texts.keys, chunks)                     # regions attend to words: (T, ...)
    over_regions = attend(texts.queries, images.keys, chunks)                   # words attend to regions: (I, ...)
    local = (_mean_cosine(images.queries, over_words).T + _mean_cosine(texts.queries, over_regions)) / 2
    global_ = _global_cosine(images, over_regions.mean, _vectors(over_words, texts.keys), chunks)
    return weights.local_weight * local + (1 - weights.local_weight) * global_


def _mean_cosine(queries: Queries, attended: Attended) -> Tensor:
    """Return the mean of cos(token, its attended vector) over the tokens of each query item, (T, N)."""
    with torch.autocast(attended.dot.device.type, enabled=False):       # the product below is a sum: keep float32
        cosine = attended.dot / (queries.norm * length(attended.square))
        return cosine @ queries.members / queries.count


def _vectors(attended: Attended, keys: Keys) -> Tensor:
    """Return the global vectors (T, N, E) of T key items with N query items."""
    return attended.mean.to(keys.outputs.dtype) @ keys.outputs


def _global_cosine(images: PreparedImages, over_regions: Tensor, text_vectors: Tensor, chunks: Chunks) -> Tensor:
    """Return cos(V_g, W_g), (I, T), from mean attention (I, T, H * K) and W_g (T, I, D).

    It works on some images at a time, and the backward pass recomputes each part: the vectors of all pairs would take
    most of a training step's memory.
    """
    size = max(1, chunks.pairs // (2 * text_vectors[:, 0].numel()))
    parts = zip(*(x.split(size) for x in (over_regions, images.keys.outputs, images.second, images.gate)),
                text_vectors.split(size, dim=1), strict=True)
    if not torch.is_grad_enabled():
        return torch.cat([_gated_cosine(*part) for part in parts])
    return torch.cat([checkpoint(_gated_cosine, *part, use_reentrant=False, preserve_rng_state=False)
                      for part in parts])


def _gated_cosine(over_regions: Tensor, outputs: Tensor, second: Tensor, gate: Tensor, text_vectors: Tensor) -> Tensor:
    first, first_gate = at_least_float32(over_regions.to(outputs.dtype) @ outputs).chunk(2, dim=-1)     # (I, T, D)
    text_vectors = at_least_float32(text_vectors).transpose(0, 1)
    t = torch.sigmoid(first_gate + gate.unsqueeze(1))
    image_vectors = torch.lerp(second.unsqueeze(1).to(first.dtype), first, t)
    dot, of_images, of_texts = ((a * b).sum(dim=-1) for a, b in (
        (image_vectors, text_vectors), (image_vectors, image_vectors), (text_vectors, text_vectors)))
    return dot / (length(of_images) * length(of_texts))


def pick(texts: EncodedTexts, index: Tensor) -> EncodedTexts:
    """Return the texts at `index`, without columns that are padding in all of them."""
    mask = texts.mask[index]
    used = int(mask.any(dim=0).nonzero().max()) + 1
    return EncodedTexts(texts.words[:, :used][index], mask[:, :used])


def score_batch(model: RetrievalModel, images: EncodedImages, text_sets: list[EncodedTexts], block: int = 32,
                chunks: Chunks | None = None) -> list[Tensor]:
    """Return the scores of a batch of images with several sets of texts, differentiable, for a training step.

    Words attend to regions all at once, packed over all sets. Regions attend to words in blocks of texts of similar
    length, to save padding. Models without `fusion_weights` are scored by their own `pair_scores`: in such blocks
    too if their tokens meet (SCAN, IMRAM), else at once (no fusion, two towers).

    Args:
        text_sets: such as captions, generated positives and generated negatives.
        block: number of texts that regions attend to at a time. chunks: sizes of the work; None = chosen by device.

    Returns:
        One tensor (N_images, N_texts) per set, in the given order.

    Example:
        >>> from ascl.models import AsCL
        >>> model = AsCL(embed_dim=8, num_heads=2)
        >>> images = EncodedImages(torch.randn(3, 5, 8), torch.randn(3, 8))
        >>> texts = EncodedTexts(torch.randn(4, 6, 8), torch.ones(4, 6, dtype=torch.bool))
        >>> [tuple(scores.shape) for scores in score_batch(model, images, [texts, texts[:2]])]
        [(3, 4), (3, 2)]
    """
    weights = model.fusion_weights()
    if weights is None:
        return [_in_blocks(model, images, texts, block if model.tokens_meet else len(texts)) for texts in text_sets]
    chunks = chunks or attention.chunks_for(images.regions.device)
    prepared = prepare_images(weights, images, chunks)
    words, counts = _by_length(text_sets)
    queries = attention.prepare_queries(words, [count for count, _ in counts], weights.word_to_region)
    over_regions = attend(queries, prepared.keys, chunks)
    region_cosine, text_vectors = [], []
    blocks = [[count for count, _ in counts[start : start + block]] for start in range(0, len(counts), block)]
    for tokens, of_block in zip(words.split([sum(of_block) for of_block in blocks]), blocks, strict=True):
        keys = prepare_keys(*attention.unpack(tokens, of_block), weights.region_to_word, weights.of_texts, chunks)
        over_words = attend(prepared.queries, keys, chunks)
        region_cosine.append(_mean_cosine(prepared.queries, over_words))
        text_vectors.append(_vectors(over_words, keys))
    local = (torch.cat(region_cosine).T + _mean_cosine(queries, over_regions)) / 2
    global_ = _global_cosine(prepared, over_regions.mean, torch.cat(text_vectors), chunks)
    scores = weights.local_weight * local + (1 - weights.local_weight) * global_
    place = torch.tensor([place for _, place in counts]).argsort().to(scores.device)
    return list(scores[:, place].split([len(texts) for texts in text_sets], dim=1))


def _in_blocks(model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, block: int) -> Tensor:
    """Return the scores (N_images, N_texts), computed in blocks of texts of similar length."""
    if block >= len(texts):
        return model.pair_scores(images, texts)
    order = texts.mask.sum(dim=1).argsort()
    columns = [model.pair_scores(images, pick(texts, part)) for part in order.split(block)]
    return torch.cat(columns, dim=1)[:, order.argsort()]


def _by_length(text_sets: list[EncodedTexts]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Pack the words of all texts (C, D), shortest text first; also return each text's word count and old place."""
    packed, counts_of_sets = zip(*(pack(texts.words, texts.mask) for texts in text_sets), strict=True)
    counts = list(itertools.chain.from_iterable(counts_of_sets))
    starts = list(itertools.accumulate(counts, initial=0))
    order = sorted(range(len(counts)), key=counts.__getitem__)
    index = torch.cat([torch.arange(starts[place], starts[place + 1]) for place in order])
    return torch.cat(packed)[index.to(packed[0].device)], [(counts[place], place) for place in order]
