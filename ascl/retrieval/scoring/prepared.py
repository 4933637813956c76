"""Scores of prepared items by the algebra of `attention.py`: all pairs of a batch, differentiable.

Equation 2 of AsCL needs of a pair only the cosine of each token with its attended vector, and the two global vectors
made of mean attention. `AsCL.pair_scores` is the plain reference.
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
    """What the scores need of each text, whatever the image."""

    queries: Queries
    keys: Keys

    def to(self: Prepared, dtype: torch.dtype) -> Prepared:
        """With what enters matrix products in `dtype`."""
        return replace(self, queries=self.queries.to(dtype), keys=self.keys.to(dtype))


@dataclass
class PreparedImages(PreparedTexts):
    """What the scores need of each of N images, whatever the text.

    second: (N, D) V_g2 = X_g G. gate: (N, D) the part of the gate's logit that V_g2 decides.
    """

    second: Tensor
    gate: Tensor


def prepare_images(weights: FusionWeights, images: EncodedImages, chunks: Chunks) -> PreparedImages:
    """Make projections, Gram matrices and what follows mean attention, once for each image."""
    second = F.linear(images.globals, weights.image_global)
    return PreparedImages(
        queries=attention.prepare_queries(*pack(images.regions, images.mask), weights.region_to_word),
        keys=prepare_keys(images.regions, images.mask, weights.word_to_region, weights.of_images, chunks),
        second=second, gate=F.linear(second, weights.gate, weights.gate_bias),
    )


def prepare_texts(weights: FusionWeights, texts: EncodedTexts, chunks: Chunks) -> PreparedTexts:
    """Make the same for each text."""
    return PreparedTexts(attention.prepare_queries(*pack(texts.words, texts.mask), weights.word_to_region),
                         prepare_keys(texts.words, texts.mask, weights.region_to_word, weights.of_texts, chunks))


def score_prepared(weights: FusionWeights, images: PreparedImages, texts: PreparedTexts, chunks: Chunks,
                   attend: Attend = attend) -> Tensor:
    """Return (N_images, N_texts) scores of prepared items; differentiable where `attend` is."""
    over_words = attend(images.queries, texts.keys, chunks)                     # regions attend to words: (T, ...)
    over_regions = attend(texts.queries, images.keys, chunks)                   # words attend to regions: (I, ...)
    local = (_mean_cosine(images.queries, over_words).T + _mean_cosine(texts.queries, over_regions)) / 2
    global_ = _global_cosine(images, over_regions.mean, _vectors(over_words, texts.keys), chunks)
    return weights.local_weight * local + (1 - weights.local_weight) * global_


def _mean_cosine(queries: Queries, attended: Attended) -> Tensor:
    """(T, N) mean over the tokens of each query item of cos(token, its attended vector)."""
    with torch.autocast(attended.dot.device.type, enabled=False):       # a product that is a sum: not in half precision
        cosine = attended.dot / (queries.norm * length(attended.square))
        return cosine @ queries.members / queries.count


def _vectors(attended: Attended, keys: Keys) -> Tensor:
    """(T, N, E) global vectors of T key items with N query items."""
    return attended.mean.to(keys.outputs.dtype) @ keys.outputs


def _global_cosine(images: PreparedImages, over_regions: Tensor, text_vectors: Tensor, chunks: Chunks) -> Tensor:
    """(I, T) cos(V_g, W_g) of mean attention (I, T, H * K) and of W_g (T, I, D).

    Some images at a time. Backward computes each part again: kept, the vectors of all pairs would be most of the memory
    of a training step.
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
    """Return some texts, without the columns that are padding in all of them."""
    mask = texts.mask[index]
    used = int(mask.any(dim=0).nonzero().max()) + 1
    return EncodedTexts(texts.words[:, :used][index], mask[:, :used])


def score_batch(model: RetrievalModel, images: EncodedImages, text_sets: list[EncodedTexts], block: int = 32,
                chunks: Chunks | None = None) -> list[Tensor]:
    """Return the scores of one batch of images with several sets of texts, differentiable: what a training step needs.

    The texts of all sets meet the regions at once, as packed words; the regions meet the texts in blocks of similar
    length, so that little padding is computed. Other models are scored by their own `training_scores`: those whose
    tokens meet (SCAN, IMRAM) in such blocks too, those whose items do not (no fusion, two towers) at once.

    block: texts whose words the regions meet at a time. chunks: None = by the device. Returned is one
    (N_images, N_texts) for each set, in the order given.
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
    """(N_images, N_texts) of texts in blocks of similar length."""
    if block >= len(texts):
        return model.training_scores(images, texts)
    order = texts.mask.sum(dim=1).argsort()
    columns = [model.training_scores(images, pick(texts, part)) for part in order.split(block)]
    return torch.cat(columns, dim=1)[:, order.argsort()]


def _by_length(text_sets: list[EncodedTexts]) -> tuple[Tensor, list[tuple[int, int]]]:
    """Packed words (C, D) of all texts, shortest text first; each text's number of words, and its place before."""
    packed, counts_of_sets = zip(*(pack(texts.words, texts.mask) for texts in text_sets), strict=True)
    counts = list(itertools.chain.from_iterable(counts_of_sets))
    starts = list(itertools.accumulate(counts, initial=0))
    order = sorted(range(len(counts)), key=counts.__getitem__)
    index = torch.cat([torch.arange(starts[place], starts[place + 1]) for place in order])
    return torch.cat(packed)[index.to(packed[0].device)], [(counts[place], place) for place in order]
