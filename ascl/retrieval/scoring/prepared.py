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
from torch.autograd.function import once_differentiable

from ascl.core.tensors import at_least_float32
from ascl.models import EncodedImages, EncodedTexts, RetrievalModel
from ascl.models.fusion import FusionWeights, with_student
from ascl.retrieval.scoring import attention
from ascl.retrieval.scoring.attention import Attended, Chunks, Keys, Queries, attend, length, pack, prepare_keys

MOST_PADDING = 1 / 4            # of the words of a block of texts

Attend = Callable[[Queries, Keys, Chunks], Attended]
Prepared = TypeVar("Prepared", bound="PreparedTexts")


@dataclass
class PreparedTexts:
    """The part of the score computation that depends on the N texts only.

    student: (N, P) unit vectors; None = the model has no student.
    """

    queries: Queries
    keys: Keys
    student: Tensor | None

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
        student=images.student, second=second, gate=F.linear(second, weights.gate, weights.gate_bias),
    )


def prepare_texts(weights: FusionWeights, texts: EncodedTexts, chunks: Chunks) -> PreparedTexts:
    """Compute projections, Gram matrices and outputs once per text."""
    return PreparedTexts(attention.prepare_queries(*pack(texts.words, texts.mask), weights.word_to_region),
                         prepare_keys(texts.words, texts.mask, weights.region_to_word, weights.of_texts, chunks),
                         texts.student)


def score_prepared(weights: FusionWeights, images: PreparedImages, texts: PreparedTexts, chunks: Chunks,
                   attend: Attend = attend) -> Tensor:
    """Return the scores (N_images, N_texts) of prepared items; differentiable if `attend` is."""
    over_words = attend(images.queries, texts.keys, chunks)                     # regions attend to words: (T, ...)
    over_regions = attend(texts.queries, images.keys, chunks)                   # words attend to regions: (I, ...)
    local = (_mean_cosine(images.queries, over_words).T + _mean_cosine(texts.queries, over_regions)) / 2
    global_ = _global_cosine(images, over_regions.mean, _vectors(over_words, texts.keys), chunks)
    scores = weights.local_weight * local + (1 - weights.local_weight) * global_
    return with_student(scores, images.student, texts.student, weights.student_weight)


def _mean_cosine(queries: Queries, attended: Attended) -> Tensor:
    """Return the mean of cos(token, its attended vector) over the tokens of each query item, (T, N)."""
    with torch.autocast(attended.dot.device.type, enabled=False):       # the product below is a sum: keep float32
        cosine = attended.dot / (queries.norm * length(attended.square))
        return cosine @ queries.members / queries.count


def _vectors(attended: Attended, keys: Keys) -> Tensor:
    """Return the global vectors (T, N, E) of T key items with N query items."""
    return attended.mean.to(keys.outputs.dtype) @ keys.outputs


def _global_cosine(images: PreparedImages, over_regions: Tensor, text_vectors: Tensor, chunks: Chunks) -> Tensor:
    """Return cos(V_g, W_g), (I, T), from mean attention (I, T, H * K) and W_g (T, I, D)."""
    size = max(1, chunks.pairs // (2 * text_vectors[:, 0].numel()))
    device, outputs = over_regions.device.type, images.keys.outputs
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else outputs.dtype
    wide = (at_least_float32(x) for x in (images.second, images.gate, text_vectors.transpose(0, 1)))
    with torch.autocast(device, enabled=False):
        return _GatedCosine.apply(over_regions.to(low), outputs.to(low), *wide, size)


class _GatedCosine(torch.autograd.Function):
    """cos(V_g, W_g) of all pairs, some images at a time; the backward pass computes the vectors of the pairs again.

    The vectors of all pairs would take most of a training step's memory, and the many small operations of a plain
    formula a quarter of its time.
    """

    @staticmethod
    def forward(ctx, attention, outputs, second, gate, text_vectors, size):
        cosine = text_vectors.new_empty(attention.shape[:2])
        for part in _slices(len(attention), size):
            _, _, image_vectors = _gated(attention[part], outputs[part], second[part], gate[part])
            dot = (image_vectors * text_vectors[part]).sum(dim=-1)
            of_images, of_texts = (_norm(x)[0] for x in (image_vectors, text_vectors[part]))
            cosine[part] = dot / (of_images * of_texts)
        ctx.save_for_backward(attention, outputs, second, gate, text_vectors, cosine)
        ctx.size = size
        return cosine

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        inputs = ctx.saved_tensors
        gradients = [torch.empty_like(x) for x in inputs[:-1]]
        for part in _slices(len(gradient), ctx.size):
            attention, outputs, second, gate, text_vectors, cosine = (x[part] for x in inputs)
            t, step, image_vectors = _gated(attention, outputs, second, gate)
            (of_images, image_counts), (of_texts, text_counts) = map(_norm, (image_vectors, text_vectors))
            both = (gradient[part] / (of_images * of_texts)).unsqueeze(-1)
            own = gradient[part] * cosine
            by_image = (image_counts * own / of_images.square()).unsqueeze(-1)
            by_text = (text_counts * own / of_texts.square()).unsqueeze(-1)
            of_image = torch.mul(text_vectors, both).addcmul_(image_vectors, by_image, value=-1)    # d / d V_g
            gradients[4][part] = image_vectors.mul_(both).addcmul_(text_vectors, by_text, value=-1)
            products = t.new_empty(*t.shape[:2], 2 * t.shape[2])
            first, logit = products.chunk(2, dim=-1)
            torch.mul(of_image, t, out=first)
            torch.ops.aten.sigmoid_backward.grad_input(step.mul_(of_image), t, grad_input=logit)
            gradients[2][part] = of_image.sum(dim=1) - first.sum(dim=1)
            gradients[3][part] = logit.sum(dim=1)
            products = products.to(outputs.dtype)
            gradients[0][part] = products @ outputs.transpose(1, 2)
            gradients[1][part] = attention.transpose(1, 2) @ products
        return *gradients, None


def _gated(attention: Tensor, outputs: Tensor, second: Tensor, gate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return t, V_g1 - V_g2 and V_g, each (I, T, D)."""
    step, logit = at_least_float32(attention @ outputs).chunk(2, dim=-1)
    t = logit.add(gate.unsqueeze(1)).sigmoid_()
    step = step - second.unsqueeze(1)
    return t, step, torch.addcmul(second.unsqueeze(1), step, t)


def _norm(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Return the norms (I, T) of vectors (I, T, D), 1 for zero vectors as `length` does, and which are not zero."""
    norm = torch.linalg.vector_norm(vectors, dim=-1)
    counts = norm > attention.EPSILON
    return torch.where(counts, norm, 1), counts


def _slices(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def pick(texts: EncodedTexts, index: Tensor) -> EncodedTexts:
    """Return the texts at `index`, without columns that are padding in all of them."""
    mask = texts.mask[index]
    used = int(mask.any(dim=0).nonzero().max()) + 1
    return EncodedTexts(texts.words[:, :used][index], mask[:, :used],
                        None if texts.student is None else texts.student[index])


def score_batch(model: RetrievalModel, images: EncodedImages, text_sets: list[EncodedTexts], block: int = 32,
                chunks: Chunks | None = None) -> list[Tensor]:
    """Return the scores of a batch of images with several sets of texts, differentiable, for a training step.

    These are scores of equation 2: a student's cosines are no part of them, because it has a loss of its own.
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
    blocks = attention.prepare_blocks(words, alike([count for count, _ in counts], block), weights.region_to_word,
                                      weights.of_texts)
    over_words = attention.attend_blocks(prepared.queries, blocks, chunks)
    region_cosine = torch.cat([_mean_cosine(prepared.queries, attended) for attended in over_words])
    text_vectors = torch.cat([_vectors(attended, keys) for attended, keys in zip(over_words, blocks, strict=True)])
    local = (region_cosine.T + _mean_cosine(queries, over_regions)) / 2
    global_ = _global_cosine(prepared, over_regions.mean, text_vectors, chunks)
    scores = weights.local_weight * local + (1 - weights.local_weight) * global_
    place = torch.tensor([place for _, place in counts]).argsort().to(scores.device)
    return list(scores[:, place].split([len(texts) for texts in text_sets], dim=1))


def alike(counts: list[int], most: int) -> list[list[int]]:
    """Split the word counts of texts, shortest first, into blocks of at most `most` texts with little padding."""
    blocks: list[list[int]] = []
    words = padding = 0
    for count in reversed(counts):          # the first of a block is its longest
        if blocks and len(blocks[0]) < most and padding + blocks[0][-1] - count <= MOST_PADDING * (words + count):
            padding += blocks[0][-1] - count
            words += count
            blocks[0].insert(0, count)
        else:
            blocks.insert(0, [count])
            words, padding = count, 0
    return blocks


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
