"""Every image-text pair scored exactly, without running the attention's projections once per pair.

The reference (`AsCL.pair_scores`) builds W* and V* of every pair. Here they are never built. With head h of the
attention's value projection and the matching slice of its output projection, the attended vector of query i is

    y_i = sum_h sum_j A_h[i, j] U_h[j],        U_h = X Z_h^V Z_h^O   (one matrix per item, not per pair)

and the score needs three things of it only:

    x_i . y_i    = sum_h sum_j A_h[i, j] M_h[i, j],   M_h[i, j] = (x_i Z_h^O^T) . (X_j Z_h^V)
    |y_i|^2      = a_i^T (U U^T) a_i,                 a_i = the attention of query i over all heads and keys, H * S long
    mean(y) X    = mean(a)^T (U X)

so that projections and the Gram matrix U U^T are computed once per item, and what is left for a pair are products with
inner size D / H and H * S. Same formula, other order of summation: results differ from the reference by rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascl.losses.contrastive import at_least_float32
from ascl.models import AsCL, EncodedImages, EncodedTexts, RetrievalModel
from ascl.models.fusion import AttentionWeights, attention_weights

EPSILON = 1e-8                  # lower bound of a norm, as in torch's cosine_similarity
CPU_CHUNK = 1 << 19             # attention entries at a time: about what stays in a core's cache, 2 MB of float32
GPU_CHUNK = 1 << 27
CHEAP_BLOCK = 1024              # images, and texts, at a time where pairs do not meet before their score
PREPARED_BUDGET = 2 << 30       # bytes of prepared texts kept for all image blocks; beyond that they are prepared again


@dataclass
class Queries:
    """N items as queries of one direction; R tokens each, flattened to N * R columns."""

    query: Tensor       # (H, d, N * R) projected and scaled
    out: Tensor         # (H, d, N * R) x Z^O^T
    norm: Tensor        # (N * R,) |x|
    weight: Tensor      # (N, R) 1 / (number of real tokens), 0 at padding


@dataclass
class Keys:
    """N items as keys and values of one direction; S tokens each."""

    key: Tensor         # (H, N, S, d)
    value: Tensor       # (H, N, S, d)
    gram: Tensor        # (N, H * S, H * S)
    outputs: Tensor     # (N, H * S, E) U X: what mean attention is multiplied with to give the pair's global vectors
    mask: Tensor | None     # (N, S) bool, True = real


@dataclass
class PreparedImages:
    queries: Queries
    keys: Keys
    second: Tensor      # (N, D) V_g2 = X_g G
    gate: Tensor        # (N, D) the part of the gate's logit that V_g2 decides


@dataclass
class PreparedTexts:
    queries: Queries
    keys: Keys


def _project(tokens: Tensor, matrix: Tensor | None, heads: int) -> Tensor:
    """(N, S, D) -> (H, N, S, d); None = identity."""
    projected = tokens if matrix is None else F.linear(tokens, matrix)
    return projected.unflatten(-1, (heads, -1)).permute(2, 0, 1, 3)


def _prepare_queries(tokens: Tensor, mask: Tensor | None, weights: AttentionWeights) -> Queries:
    n, r, _ = tokens.shape
    out = None if weights.out is None else weights.out.T
    if mask is None:
        weight = tokens.new_full((n, r), 1 / r)
    else:
        weight = mask.to(tokens.dtype) / mask.sum(dim=1, keepdim=True)
    return Queries(
        query=(_project(tokens, weights.query, weights.heads) * weights.scale).flatten(1, 2).transpose(1, 2),
        out=_project(tokens, out, weights.heads).flatten(1, 2).transpose(1, 2),
        norm=_length(tokens.square().sum(dim=-1)).flatten(),
        weight=weight,
    )


def _prepare_keys(tokens: Tensor, mask: Tensor | None, weights: AttentionWeights, output: Tensor) -> Keys:
    """`output` (E, D): the matrices that follow the mean attended vector, stacked."""
    heads = weights.heads
    value = _project(tokens, weights.value, heads)                                      # (H, N, S, d)
    out = weights.out if weights.out is not None else torch.eye(tokens.shape[-1]).to(tokens)
    by_head = out.unflatten(1, (heads, -1))                                             # (D, H, d)
    attended = torch.einsum("hnsd,Dhd->nhsD", value, by_head).flatten(1, 2)             # U: (N, H * S, D)
    following = (output @ out).unflatten(1, (heads, -1))                                # (E, H, d)
    return Keys(
        key=_project(tokens, weights.key, heads).contiguous(),
        value=value.contiguous(),
        gram=attended @ attended.transpose(1, 2),
        outputs=torch.einsum("hnsd,Ehd->nhsE", value, following).flatten(1, 2),
        mask=mask,
    )


def prepare_images(model: AsCL, images: EncodedImages) -> PreparedImages:
    """What the scores need of each image, whatever the text: computed once."""
    first_gate, second_gate = model.gate.weight.chunk(2, dim=1)
    to_global = model.attended_image_global.weight
    second = model.image_global(images.globals)
    return PreparedImages(
        queries=_prepare_queries(images.regions, images.mask, attention_weights(model.region_to_word)),
        keys=_prepare_keys(images.regions, images.mask, attention_weights(model.word_to_region),
                           torch.cat([to_global, first_gate @ to_global])),
        second=second,
        gate=F.linear(second, second_gate, model.gate.bias),
    )


def prepare_texts(model: AsCL, texts: EncodedTexts) -> PreparedTexts:
    """What the scores need of each text, whatever the image: computed once."""
    return PreparedTexts(
        queries=_prepare_queries(texts.words, texts.mask, attention_weights(model.word_to_region)),
        keys=_prepare_keys(texts.words, texts.mask, attention_weights(model.region_to_word), model.text_global.weight),
    )


class _Attend(torch.autograd.Function):
    """Attention of every query token over every key item, reduced at once to what the score needs of it.

    Works through the key items in chunks that stay in the processor's cache; nothing of the size (items x heads x keys
    x queries) is kept: the backward pass computes the attention again. Matrix products run in the type of the inputs;
    softmax and sums in float32 at least.
    """

    @staticmethod
    def forward(ctx, query, out, weight, key, value, gram, mask):
        heads, items, s, _ = key.shape
        columns = query.shape[-1]
        dot, square = (weight.new_empty(items, columns) for _ in range(2))
        mean = weight.new_empty(items, heads * s, len(weight))
        for part in _chunks(items, heads * s * columns, query.device):
            attention = _attention(query, key[:, part], None if mask is None else mask[part], weight.dtype)
            match = _match(out, value[:, part], weight.dtype)                                     # (c, H * S, N * R)
            torch.sum(match.mul_(attention), dim=1, out=dot[part])
            torch.sum((gram[part] @ attention.to(gram.dtype)) * attention, dim=1, out=square[part])
            mean[part] = _mean_over_tokens(attention, weight)
        ctx.save_for_backward(query, out, weight, key, value, gram, mask)
        return dot, square, mean

    @staticmethod
    @once_differentiable
    def backward(ctx, dot_grad, square_grad, mean_grad):
        query, out, weight, key, value, gram, mask = ctx.saved_tensors
        heads, items, s, d = key.shape
        low, wide = query.dtype, weight.dtype
        query_grad, out_grad = torch.zeros_like(query, dtype=wide), torch.zeros_like(out, dtype=wide)
        key_grad, value_grad, gram_grad = torch.empty_like(key), torch.empty_like(value), torch.empty_like(gram)
        for part in _chunks(items, heads * s * query.shape[-1], query.device):
            attention = _attention(query, key[:, part], None if mask is None else mask[part], wide)
            match = _match(out, value[:, part], wide)
            scaled = (attention * square_grad[part].unsqueeze(1)).to(low)               # A diag(g)
            gram_grad[part] = scaled @ attention.to(low).transpose(1, 2)
            # d loss / d attention, from the three results in turn
            gradient = match.mul_(dot_grad[part].unsqueeze(1)).add_(gram[part] @ scaled, alpha=2)
            by_item = gradient.unflatten(2, weight.shape)                               # (c, H * S, N, R)
            by_item.addcmul_(mean_grad[part].unsqueeze(-1), weight)
            match_grad = (attention * dot_grad[part].unsqueeze(1)).to(low)
            # through the softmax, over the S keys of each head
            rows, weights = gradient.unflatten(1, (heads, s)), attention.unflatten(1, (heads, s))
            inner = (rows * weights).sum(dim=2, keepdim=True)
            rows.sub_(inner).mul_(weights)
            logits_rows = _heads_first(gradient.to(low), heads, s)                      # (H, c * S, N * R)
            match_rows = _heads_first(match_grad, heads, s)
            key_part, value_part = key[:, part].flatten(1, 2), value[:, part].flatten(1, 2)
            query_grad += key_part.transpose(1, 2) @ logits_rows
            out_grad += value_part.transpose(1, 2) @ match_rows
            key_grad[:, part] = (logits_rows @ query.transpose(1, 2)).unflatten(1, (len(attention), s))
            value_grad[:, part] = (match_rows @ out.transpose(1, 2)).unflatten(1, (len(attention), s))
        return query_grad.to(low), out_grad.to(low), None, key_grad, value_grad, gram_grad, None


def _chunks(items: int, entries_per_item: int, device: torch.device) -> Iterator[slice]:
    limit = GPU_CHUNK if device.type == "cuda" else CPU_CHUNK
    size = max(1, limit // entries_per_item)
    return (slice(start, min(start + size, items)) for start in range(0, items, size))


def _items_first(rows: Tensor, count: int) -> Tensor:
    """(H, c * S, columns) -> (c, H, S, columns)."""
    return rows.unflatten(1, (count, -1)).transpose(0, 1)


def _heads_first(rows: Tensor, heads: int, s: int) -> Tensor:
    """(c, H * S, columns) -> (H, c * S, columns)."""
    return rows.unflatten(1, (heads, s)).transpose(0, 1).flatten(1, 2)


def _attention(query: Tensor, key: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """Softmax over each item's own keys -> (c, H * S, columns)."""
    logits = _items_first(key.flatten(1, 2) @ query, key.shape[1]).to(dtype)        # (c, H, S, columns)
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, :, None], float("-inf"))
    return logits.softmax(dim=2).flatten(1, 2)


def _match(out: Tensor, value: Tensor, dtype: torch.dtype) -> Tensor:
    """(x_i Z_h^O^T) . (X_j Z_h^V) -> (c, H * S, columns)."""
    return _items_first(value.flatten(1, 2) @ out, value.shape[1]).to(dtype).flatten(1, 2)


def _mean_over_tokens(attention: Tensor, weight: Tensor) -> Tensor:
    """(c, H * S, N * R) and (N, R) -> (c, H * S, N)."""
    return (attention.unflatten(2, weight.shape) * weight).sum(dim=-1)


def _length(square: Tensor) -> Tensor:
    """Root of a squared length; 1 where it is zero (rounding can push a square below it).

    A zero vector, such as a word that cutoff removed, has a dot product of 0 and so a cosine of 0 with anything. A
    tiny length in its place would give the same cosine and a gradient too large for half precision.
    """
    return torch.where(square > EPSILON**2, square, torch.ones_like(square)).sqrt()


def _attend(queries: Queries, keys: Keys) -> tuple[Tensor, Tensor]:
    """One direction for every pair.

    Returns:
        (N_keys, N_queries) mean over the query's tokens of cos(token, its attended vector), and
        (N_keys, N_queries, E) the global vectors made of the mean attended vector.
    """
    device = queries.query.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else queries.query.dtype
    with torch.autocast(device, enabled=False):
        dot, square, mean = _Attend.apply(
            queries.query.to(low), queries.out.to(low), at_least_float32(queries.weight),
            keys.key.to(low), keys.value.to(low), keys.gram.to(low), keys.mask,
        )
    cosine = (dot / (queries.norm * _length(square))).unflatten(1, queries.weight.shape)
    return (cosine * queries.weight).sum(dim=-1), mean.transpose(1, 2) @ keys.outputs


def score_prepared(model: AsCL, images: PreparedImages, texts: PreparedTexts) -> Tensor:
    """(N_images, N_texts) scores of prepared items; differentiable."""
    region_cosine, text_vector = _attend(images.queries, texts.keys)            # (T, I), (T, I, D)
    word_cosine, image_parts = _attend(texts.queries, images.keys)              # (I, T), (I, T, 2 D)
    first, first_gate = image_parts.chunk(2, dim=-1)
    t = torch.sigmoid(first_gate + images.gate.unsqueeze(1))
    image_vector = torch.lerp(images.second.unsqueeze(1).expand_as(first), first, t)
    global_ = F.cosine_similarity(image_vector, text_vector.transpose(0, 1), dim=-1)
    local = (region_cosine.T + word_cosine) / 2
    return model.local_weight * local + (1 - model.local_weight) * global_


def length_blocks(mask: Tensor, size: int) -> list[Tensor]:
    """Indices of (N, L) masked texts in blocks of similar length, so that little padding is computed."""
    return list(torch.argsort(mask.sum(dim=1), stable=True).split(size))


def trim(texts: EncodedTexts) -> EncodedTexts:
    """Without the columns that are padding in every text."""
    used = int(texts.mask.any(dim=0).nonzero().max()) + 1
    return EncodedTexts(texts.words[:, :used], texts.mask[:, :used])


def score_batch(
    model: RetrievalModel, images: EncodedImages, text_sets: list[EncodedTexts], block: int = 16
) -> list[Tensor]:
    """Scores of one batch of images with several sets of texts, differentiable: what a training step needs.

    The images are prepared once for all sets. A model whose pairs do not meet before the score (no fusion, two
    towers) is scored by its own `pair_scores`, which is already cheap.

    Returns:
        One (N_images, N_texts) for each set, in the order given.
    """
    if not isinstance(model, AsCL) or not model.fusion:
        return [model.pair_scores(images, texts) for texts in text_sets]
    prepared = prepare_images(model, images)
    results = []
    for texts in text_sets:
        blocks = length_blocks(texts.mask, block)
        columns = [score_prepared(model, prepared, prepare_texts(model, trim(texts[index]))) for index in blocks]
        results.append(torch.cat(columns, dim=1)[:, torch.cat(blocks).argsort()])
    return results


def check_encoded(images: EncodedImages, texts: EncodedTexts) -> None:
    """ValueError for what no score is defined for: empty sets, items without tokens, numbers that are not finite."""
    if len(images) == 0 or len(texts) == 0:
        raise ValueError(f"nothing to score: {len(images)} images, {len(texts)} texts")
    for name, tensor in (("region", images.regions), ("image global", images.globals), ("word", texts.words)):
        bad = ~tensor.flatten(1).isfinite().all(dim=1)
        if bad.any():
            raise ValueError(f"{name} embeddings of item {int(bad.nonzero()[0])} are not finite "
                             f"({int(bad.sum())} items in all)")
    for name, mask in (("image", images.mask), ("text", texts.mask)):
        if mask is not None and not mask.any(dim=1).all():
            raise ValueError(f"{name} {int((~mask.any(dim=1)).nonzero()[0])} has no real token: its mask is all false")


@dataclass(frozen=True)
class ScoreBlocks:
    """Rows of a score matrix that is never held whole; computed anew each time it is iterated."""

    model: RetrievalModel
    images: EncodedImages
    texts: EncodedTexts
    image_block: int
    text_block: int

    def __iter__(self) -> Iterator[Tensor]:
        return _score_blocks(self.model, self.images, self.texts, self.image_block, self.text_block)


def score_blocks(
    model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, *, image_block: int = 64, text_block: int = 64
) -> ScoreBlocks:
    """Rows of the score matrix, some images at a time against all texts: (n, N_texts) float32 on the CPU.

    Memory beyond the encoded items stays bounded, whatever their number. `rank_report` takes the result; it reads the
    blocks twice, so every score is then computed twice.

    Raises:
        ValueError: see `check_encoded`; before any work is done.
    """
    check_encoded(images, texts)
    return ScoreBlocks(model, images, texts, image_block, text_block)


@torch.no_grad()
def _score_blocks(
    model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, image_block: int, text_block: int
) -> Iterator[Tensor]:
    device = next(model.parameters()).device
    starts = range(0, len(images), image_block)
    if not isinstance(model, AsCL) or not model.fusion:
        for start in range(0, len(images), CHEAP_BLOCK):
            some = images[start : start + CHEAP_BLOCK].to(device)
            text_parts = (texts[first : first + CHEAP_BLOCK].to(device) for first in range(0, len(texts), CHEAP_BLOCK))
            yield torch.cat([model.pair_scores(some, part).float().cpu() for part in text_parts], dim=1)
        return
    blocks = length_blocks(texts.mask, text_block)
    order = torch.cat(blocks).argsort().cpu()
    per_text = 4 * _prepared_floats(model, texts)
    keep = len(texts) * per_text <= PREPARED_BUDGET
    prepared: dict[int, PreparedTexts] = {}
    for start in starts:
        image_part = prepare_images(model, images[start : start + image_block].to(device))
        columns = []
        for number, index in enumerate(blocks):
            text_part = prepared.get(number)
            if text_part is None:
                text_part = prepare_texts(model, trim(texts[index]).to(device))
                if keep:
                    prepared[number] = text_part
            columns.append(score_prepared(model, image_part, text_part).float().cpu())
        yield torch.cat(columns, dim=1)[:, order]


def _prepared_floats(model: AsCL, texts: EncodedTexts) -> int:
    """Numbers that one prepared text of mean length takes."""
    rows = model.num_heads * max(1, int(texts.mask.sum()) // len(texts) + 1)
    return rows * rows + rows * model.embed_dim + 4 * rows * model.embed_dim // model.num_heads


def score_all_pairs(
    model: RetrievalModel, images: EncodedImages, texts: EncodedTexts, *, image_block: int = 64, text_block: int = 64
) -> Tensor:
    """Score of every image with every text, for data sets of any size; the same numbers as `pair_scores`.

    Nothing here knows which text belongs to which image.

    Returns:
        (N_images, N_texts) float32 on the CPU, in [-1, 1].

    Raises:
        ValueError: empty sets, an item whose mask is all false, embeddings that are not finite.
    """
    scores = torch.empty(len(images), len(texts))
    start = 0
    for rows in score_blocks(model, images, texts, image_block=image_block, text_block=text_block):
        scores[start : start + len(rows)] = rows
        start += len(rows)
    return scores
