"""Scores of prepared items by the algebra of `attention.py`: all pairs of a batch, differentiable.

Equation 2 of AsCL needs of a pair only the cosine of each token with its attended vector, and the two global vectors
made of mean attention. `AsCL.pair_scores` is the plain reference.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ascl.losses.contrastive import at_least_float32
from ascl.models import AsCL, EncodedImages, EncodedTexts, RetrievalModel
from ascl.models.baselines.tokens import TokenModel
from ascl.models.fusion import AttentionWeights, attention_weights
from ascl.retrieval.scoring.attention import (
    Attended,
    Keys,
    Queries,
    after_attention,
    attend,
    length,
    pack,
    prepare_keys,
    prepare_queries,
    unpack,
)

CPU_PAIR_NUMBERS = 1 << 21      # numbers of pairs' global vectors at a time: 8 MB of float32 stay in a shared cache
GPU_PAIR_NUMBERS = 1 << 24

Attend = Callable[[Queries, Keys], Attended]


@dataclass
class PreparedImages:
    """What the scores need of each of N images, whatever the text.

    second: (N, D) V_g2 = X_g G. gate: (N, D) the part of the gate's logit that V_g2 decides.
    """

    queries: Queries
    keys: Keys
    second: Tensor
    gate: Tensor

    def to(self, dtype: torch.dtype) -> PreparedImages:
        """With what enters matrix products in `dtype`."""
        return PreparedImages(self.queries.to(dtype), self.keys.to(dtype), self.second, self.gate)


@dataclass
class PreparedTexts:
    """What the scores need of each text, whatever the image."""

    queries: Queries
    keys: Keys

    def to(self, dtype: torch.dtype) -> PreparedTexts:
        """With what enters matrix products in `dtype`."""
        return PreparedTexts(self.queries.to(dtype), self.keys.to(dtype))


@dataclass
class ScoreWeights:
    """What preparation takes from a model, the same for every item.

    of_texts: (D, D) and of_images: (2 D, D) follow the mean attended text and image vector; gate: (D, D) is the half of
    the gate's matrix that V_g2 meets.
    """

    region_to_word: AttentionWeights
    word_to_region: AttentionWeights
    of_texts: Tensor
    of_images: Tensor
    gate: Tensor


def score_weights(model: AsCL) -> ScoreWeights:
    """Products of a model's matrices, once for all items."""
    region_to_word, word_to_region = map(attention_weights, (model.region_to_word, model.word_to_region))
    first_gate, second_gate = model.gate.weight.chunk(2, dim=1)
    to_global = model.attended_image_global.weight
    return ScoreWeights(
        region_to_word, word_to_region,
        of_texts=after_attention(model.text_global.weight, region_to_word),
        of_images=after_attention(torch.cat([to_global, first_gate @ to_global]), word_to_region),
        gate=second_gate,
    )


def prepare_images(model: AsCL, weights: ScoreWeights, images: EncodedImages) -> PreparedImages:
    """Projections, Gram matrices and what follows mean attention, once for each image."""
    second = model.image_global(images.globals)
    return PreparedImages(
        queries=prepare_queries(*pack(images.regions, images.mask), weights.region_to_word),
        keys=prepare_keys(images.regions, images.mask, weights.word_to_region, weights.of_images),
        second=second,
        gate=F.linear(second, weights.gate, model.gate.bias),
    )


def prepare_texts(weights: ScoreWeights, texts: EncodedTexts) -> PreparedTexts:
    """The same for each text."""
    return PreparedTexts(
        queries=prepare_queries(*pack(texts.words, texts.mask), weights.word_to_region),
        keys=prepare_keys(texts.words, texts.mask, weights.region_to_word, weights.of_texts),
    )


def score_prepared(model: AsCL, images: PreparedImages, texts: PreparedTexts, attend: Attend = attend) -> Tensor:
    """(N_images, N_texts) scores of prepared items; differentiable where `attend` is."""
    over_words = attend(images.queries, texts.keys)                             # regions attend to words: (T, ...)
    over_regions = attend(texts.queries, images.keys)                           # words attend to regions: (I, ...)
    local = (_mean_cosine(images.queries, over_words).T + _mean_cosine(texts.queries, over_regions)) / 2
    global_ = _global_cosine(images, over_regions.mean, _vectors(over_words, texts.keys))
    return model.local_weight * local + (1 - model.local_weight) * global_


def _mean_cosine(queries: Queries, attended: Attended) -> Tensor:
    """(T, N) mean over the tokens of each query item of cos(token, its attended vector)."""
    with torch.autocast(attended.dot.device.type, enabled=False):       # a product that is a sum: not in half precision
        cosine = attended.dot / (queries.norm * length(attended.square))
        return cosine @ queries.members / queries.count


def _vectors(attended: Attended, keys: Keys) -> Tensor:
    """(T, N, E) global vectors of T key items with N query items."""
    return attended.mean.to(keys.outputs.dtype) @ keys.outputs


def _global_cosine(images: PreparedImages, over_regions: Tensor, text_vectors: Tensor) -> Tensor:
    """(I, T) cos(V_g, W_g) of mean attention (I, T, H * K) and of W_g (T, I, D).

    Some images at a time. Backward computes each part again: kept, the vectors of all pairs would be most of the memory
    of a training step.
    """
    limit = GPU_PAIR_NUMBERS if text_vectors.is_cuda else CPU_PAIR_NUMBERS
    size = max(1, limit // (2 * text_vectors[:, 0].numel()))
    parts = zip(*(x.split(size) for x in (over_regions, images.keys.outputs, images.second, images.gate)),
                text_vectors.split(size, dim=1), strict=True)
    if torch.is_grad_enabled():
        return torch.cat([
            checkpoint(_gated_cosine, *part, use_reentrant=False, preserve_rng_state=False) for part in parts
        ])
    return torch.cat([_gated_cosine(*part) for part in parts])


def _gated_cosine(over_regions: Tensor, outputs: Tensor, second: Tensor, gate: Tensor, text_vectors: Tensor) -> Tensor:
    first, first_gate = at_least_float32(over_regions.to(outputs.dtype) @ outputs).chunk(2, dim=-1)     # (I, T, D)
    text_vectors = at_least_float32(text_vectors).transpose(0, 1)
    t = torch.sigmoid(first_gate + gate.unsqueeze(1))
    image_vectors = torch.lerp(second.unsqueeze(1).to(first.dtype), first, t)
    dot, of_images, of_texts = (
        (a * b).sum(dim=-1)
        for a, b in ((image_vectors, text_vectors), (image_vectors, image_vectors), (text_vectors, text_vectors))
    )
    return dot / (length(of_images) * length(of_texts))


def pick(texts: EncodedTexts, index: Tensor) -> EncodedTexts:
    """Some texts, without the columns that are padding in all of them."""
    mask = texts.mask[index]
    used = int(mask.any(dim=0).nonzero().max()) + 1
    return EncodedTexts(texts.words[:, :used][index], mask[:, :used])


def score_batch(
    model: RetrievalModel, images: EncodedImages, text_sets: list[EncodedTexts], block: int = 32
) -> list[Tensor]:
    """Scores of one batch of images with several sets of texts, differentiable: what a training step needs.

    The texts of all sets meet the regions at once, as packed words; the regions meet the texts in blocks of similar
    length, so that little padding is computed. Other models are scored by their own `training_scores`: those whose
    tokens meet (SCAN, IMRAM) in such blocks too, those whose items do not (no fusion, two towers) at once.

    Returns:
        One (N_images, N_texts) for each set, in the order given.
    """
    if isinstance(model, TokenModel):
        return [_in_blocks(model, images, texts, block) for texts in text_sets]
    if not isinstance(model, AsCL) or not model.fusion:
        return [model.training_scores(images, texts) for texts in text_sets]
    weights = score_weights(model)
    prepared = prepare_images(model, weights, images)
    words, counts = _by_length(text_sets)
    queries = prepare_queries(words, [count for count, _ in counts], weights.word_to_region)
    over_regions = attend(queries, prepared.keys)
    region_cosine, text_vectors = [], []
    blocks = [[count for count, _ in counts[start : start + block]] for start in range(0, len(counts), block)]
    for tokens, of_block in zip(words.split([sum(of_block) for of_block in blocks]), blocks, strict=True):
        keys = prepare_keys(*unpack(tokens, of_block), weights.region_to_word, weights.of_texts)
        over_words = attend(prepared.queries, keys)
        region_cosine.append(_mean_cosine(prepared.queries, over_words))
        text_vectors.append(_vectors(over_words, keys))
    local = (torch.cat(region_cosine).T + _mean_cosine(queries, over_regions)) / 2
    global_ = _global_cosine(prepared, over_regions.mean, torch.cat(text_vectors))
    scores = model.local_weight * local + (1 - model.local_weight) * global_
    place = torch.tensor([place for _, place in counts]).argsort().to(scores.device)
    return list(scores[:, place].split([len(texts) for texts in text_sets], dim=1))


def _in_blocks(model: TokenModel, images: EncodedImages, texts: EncodedTexts, block: int) -> Tensor:
    """(N_images, N_texts) of texts in blocks of similar length."""
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
