"""Attention of every query token over every key item, reduced immediately to the three results that a score needs.

The reference (`AsCL.pair_scores`) computes the attended vectors of every pair. This module never does. With head h of
the attention's value projection and the matching slice of its output projection, the attended vector of query i is

    y_i = sum_h sum_j A_h[i, j] U_h[j],        U_h = X Z_h^V Z_h^O   (one matrix per item, not per pair)

and the score needs only three results:

    x_i . y_i    = sum_h sum_j A_h[i, j] M_h[i, j],   M_h[i, j] = (x_i Z_h^O^T) . (X_j Z_h^V)
    |y_i|^2      = a_i^T (U U^T) a_i,                 a_i = the attention of query i over all heads and keys, H * S long
    mean(y) X    = mean(a)^T (U X)

so projections and the Gram matrix U U^T are computed once per item, and a pair only needs products with inner
dimensions D / H and H * S. The formula is the same and the order of summation differs: results differ from the
reference by rounding only.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from ascl.core.tensors import at_least_float32
from ascl.models.fusion import AttentionWeights

EPSILON = 1e-8                  # lower bound of a norm, as in torch's cosine_similarity
GRAM_PARTS = 3                  # a large symmetric matrix is multiplied in this many parts


@dataclass(frozen=True)
class Chunks:
    """Sizes of the chunks of work; they change results by rounding only.

    columns: query tokens. entries: attention weights. pairs: numbers in the global vectors of pairs.
    keys: key items prepared together; with more, the allocator cannot reuse the temporary matrices.
    kept: attention weights that may be kept for the backward pass, each with another number; more are computed again.
    gram: a symmetric matrix with at least this many rows is multiplied in parts.
    """

    columns: int
    entries: int
    pairs: int
    keys: int = 16
    gram: int = 256
    kept: int = 1 << 26


# columns: enough for a product near peak speed. entries and pairs fit, in float32, a core's cache (2 MB) and the shared
# cache (8 MB)
ON_CPU = Chunks(columns=384, entries=1 << 19, pairs=1 << 21)
ON_GPU = Chunks(columns=2048, entries=1 << 24, pairs=1 << 24, kept=1 << 29)


def chunks_for(device: torch.device) -> Chunks:
    """Return the chunk sizes for a device."""
    return ON_GPU if device.type == "cuda" else ON_CPU


@dataclass
class Queries:
    """N items as the queries of one direction: their C real tokens, packed without padding.

    query: (H, d, C) projected and scaled. out: (H, d, C), x Z^O^T. norm: (C,), |x|.
    members: (C, N), 1 if the token belongs to the item, else 0. count: (N,) tokens per item.
    bounds: N + 1 numbers; item n has the tokens bounds[n] to bounds[n + 1].
    """

    query: Tensor
    out: Tensor
    norm: Tensor
    members: Tensor
    count: Tensor
    bounds: list[int]

    def to(self, dtype: torch.dtype) -> Queries:
        """Return a copy whose operands of matrix products are in `dtype`."""
        return replace(self, query=self.query.to(dtype), out=self.out.to(dtype))


@dataclass
class Keys:
    """N items as the keys and values of one direction, S tokens each.

    key, value: (H, N, S, d). gram: (N, H * S, H * S), U U^T, whose symmetry is exploited.
    outputs: (N, H * S, E), U X: mean attention times this gives the pair's global vectors.
    mask: (N, S) bool, True = real; None = all real.
    """

    key: Tensor
    value: Tensor
    gram: Tensor
    outputs: Tensor
    mask: Tensor | None

    def to(self, dtype: torch.dtype) -> Keys:
        """Return a copy whose operands of matrix products are in `dtype`."""
        return replace(self, key=self.key.to(dtype), value=self.value.to(dtype), gram=self.gram.to(dtype),
                       outputs=self.outputs.to(dtype))


class Attended(NamedTuple):
    """The three results of the attention of C query tokens (of N items) over T key items."""

    dot: Tensor         # (T, C) x . y of every token's attended vector y
    square: Tensor      # (T, C) |y|^2
    mean: Tensor        # (T, N, H * S) attention averaged over the tokens of each query item


def pack(tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, list[int]]:
    """Pack (N, R, D) -> the C real tokens (C, D) and each item's count; mask (N, R) bool, True = real, or None."""
    if mask is None:
        return tokens.flatten(0, 1), [tokens.shape[1]] * len(tokens)
    return tokens[mask], mask.sum(dim=1).tolist()


def unpack(tokens: Tensor, counts: list[int]) -> tuple[Tensor, Tensor | None]:
    """Invert `pack`: (C, ...) -> (N, S, ...), S the largest count, and the mask (N, S), or None if all are real."""
    longest = max(counts)
    if min(counts) == longest:
        return tokens.unflatten(0, (len(counts), longest)), None
    mask = torch.arange(longest) < torch.tensor(counts)[:, None]
    mask = mask.to(tokens.device)
    padded = tokens.new_zeros(*mask.shape, *tokens.shape[1:])
    padded[mask] = tokens
    return padded, mask


def prepare_queries(tokens: Tensor, counts: list[int], weights: AttentionWeights) -> Queries:
    """Prepare packed tokens (C, D), `counts` per item, as queries."""
    columns = tokens.T                                                              # (D, C)
    bounds = list(itertools.accumulate(counts, initial=0))
    count = torch.tensor(counts, device=tokens.device)
    item = torch.repeat_interleave(torch.arange(len(counts), device=tokens.device), count, output_size=bounds[-1])
    wide = at_least_float32(tokens[:0]).dtype
    out = None if weights.out is None else weights.out.T
    return Queries(
        query=(_times(weights.query, columns) * weights.scale).unflatten(0, (weights.heads, -1)).contiguous(),
        out=_times(out, columns).unflatten(0, (weights.heads, -1)).contiguous(),
        norm=length(at_least_float32(tokens).square().sum(dim=-1)), members=F.one_hot(item, len(counts)).to(wide),
        count=count.to(wide), bounds=bounds,
    )


def _times(matrix: Tensor | None, columns: Tensor) -> Tensor:
    return columns if matrix is None else matrix @ columns


def prepare_keys(tokens: Tensor, mask: Tensor | None, weights: AttentionWeights, following: Tensor,
                 chunks: Chunks) -> Keys:
    """Prepare tokens (N, S, D) with mask (N, S) bool or None as keys and values.

    following: (E, D), from `AttentionWeights.then`.
    """
    value = project(tokens, weights.value, weights.heads)
    parts = value.split(chunks.keys, dim=1)
    attended = (by_head(part, output_matrix(tokens, weights)) for part in parts)                    # U
    return Keys(key=project(tokens, weights.key, weights.heads), value=value,
                gram=_joined((u @ u.transpose(1, 2) for u in attended), len(tokens)),
                outputs=_joined((by_head(part, following) for part in parts), len(tokens)),
                mask=None if mask is None or bool(mask.all()) else mask)


def prepare_blocks(tokens: Tensor, blocks: list[list[int]], weights: AttentionWeights,
                   following: Tensor) -> list[Keys]:
    """Prepare packed tokens (C, D) as keys and values in blocks of items, which are padded to their block's longest.

    Matrices are applied to all tokens at once: with many small blocks, adding up each matrix's gradient over them would
    cost more than the products. blocks: each item's count, block by block. following: as for `prepare_keys`.
    """
    sizes = [sum(counts) for counts in blocks]

    def in_blocks(packed: Tensor) -> list[tuple[Tensor, Tensor | None]]:
        return [unpack(part, counts) for part, counts in zip(packed.split(sizes), blocks, strict=True)]

    def applied(matrix: Tensor) -> Tensor:
        """Return each head's values times its columns of `matrix` (E, D) -> (C, H, E)."""
        by_head = matrix.unflatten(1, (weights.heads, -1)).permute(1, 2, 0)                         # (H, d, E)
        return torch.stack([v @ m for v, m in zip(value.unflatten(1, (weights.heads, -1)).unbind(1), by_head,
                                                  strict=True)], dim=1)

    def by_item(padded: Tensor) -> Tensor:
        """Rearrange (N, S, H, E) -> (N, H * S, E)."""
        return padded.transpose(1, 2).flatten(1, 2)

    key, value = (_times_rows(tokens, matrix) for matrix in (weights.key, weights.value))
    attended = [by_item(u) for u, _ in in_blocks(applied(output_matrix(tokens, weights)))]          # U
    outputs = [by_item(x) for x, _ in in_blocks(applied(following))]
    return [
        Keys(key=_heads_first(k, weights.heads), value=_heads_first(v, weights.heads), gram=u @ u.transpose(1, 2),
             outputs=of_pair, mask=mask)
        for (k, mask), (v, _), u, of_pair in zip(in_blocks(key), in_blocks(value), attended, outputs, strict=True)
    ]


def output_matrix(tokens: Tensor, weights: AttentionWeights) -> Tensor:
    """Return the output projection (D, D), the identity if there is none."""
    return weights.out if weights.out is not None else torch.eye(tokens.shape[-1]).to(tokens)


def by_head(value: Tensor, matrix: Tensor) -> Tensor:
    """Multiply each head's values (H, n, S, d) by that head's columns of `matrix` (E, D) -> (n, H * S, E)."""
    by_head = matrix.unflatten(1, (len(value), -1)).permute(1, 2, 0)                # (H, d, E)
    return torch.stack([v @ m for v, m in zip(value, by_head, strict=True)], dim=1).flatten(1, 2)


def _joined(parts: Iterator[Tensor], items: int) -> Tensor:
    """Concatenate parts. Without gradients each one is copied when it is computed, so only one exists at a time."""
    if torch.is_grad_enabled():
        return torch.cat(list(parts))
    first = next(parts)
    whole = first.new_empty(items, *first.shape[1:])
    whole[: len(first)] = first
    start = len(first)
    for part in parts:
        whole[start : start + len(part)] = part
        start += len(part)
    return whole


def project(tokens: Tensor, matrix: Tensor | None, heads: int) -> Tensor:
    """Project (N, S, D) -> (H, N, S, d); matrix None = identity."""
    return _heads_first(_times_rows(tokens, matrix), heads)


def _times_rows(tokens: Tensor, matrix: Tensor | None) -> Tensor:
    return tokens if matrix is None else F.linear(tokens, matrix)


def _heads_first(tokens: Tensor, heads: int) -> Tensor:
    """Rearrange (N, S, D) -> (H, N, S, d)."""
    return tokens.unflatten(-1, (heads, -1)).permute(2, 0, 1, 3).contiguous()


def attend(queries: Queries, keys: Keys, chunks: Chunks) -> Attended:
    """Compute one direction of the attention for every pair of items; differentiable.

    Matrix products, including the sum that gives mean attention, run in autocast's dtype if it is enabled, else in that
    of the keys. Softmax, dot and square are at least float32.
    """
    return attend_blocks(queries, [keys], chunks)[0]


def attend_blocks(queries: Queries, blocks: list[Keys], chunks: Chunks) -> list[Attended]:
    """Return `attend` for each block of keys."""
    device = queries.query.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else blocks[0].key.dtype
    queries, blocks = queries.to(low), [keys.to(low) for keys in blocks]
    with torch.autocast(device, enabled=False):
        tensors = itertools.chain.from_iterable((keys.key, keys.value, keys.gram) for keys in blocks)
        dot, square, *means = _Attend.apply(queries.query, queries.out, queries.members, queries.count, queries.bounds,
                                            chunks, [keys.mask for keys in blocks], *tensors)
    sizes = [keys.key.shape[1] for keys in blocks]
    return [Attended(*of_block) for of_block in zip(dot.split(sizes), square.split(sizes), means, strict=True)]


class _Part(NamedTuple):
    """Some key items of one block: their numbers in the block and among the items of all blocks, and their tensors."""

    block: int
    own: slice
    rows: slice
    key: Tensor         # (H, c, S, d)
    value: Tensor       # (H, c, S, d)
    gram: Tensor        # (c, H * S, H * S)
    mask: Tensor | None  # (c, S)


class _Attend(torch.autograd.Function):
    """The attention in chunks that fit the CPU's cache. The backward pass takes attention and matches of the forward
    pass if these are few enough to be kept (`Chunks.kept`); else it computes them again."""

    @staticmethod
    def forward(ctx, query, out, members, count, bounds, chunks, masks, *tensors):
        heads, _, columns_of_all = query.shape
        blocks = list(zip(tensors[::3], tensors[1::3], tensors[2::3], masks, strict=True))
        items = sum(key.shape[1] for key, *_ in blocks)
        groups, parts = _parts(blocks, bounds, chunks)
        dot, square = (members.new_empty(items, columns_of_all) for _ in range(2))
        means = [members.new_empty(len(gram), len(count), gram.shape[1]) for _, _, gram, _ in blocks]
        some_queries = [
            (own, columns, query[..., columns].contiguous(), out[..., columns].contiguous(),
             members[columns, own].to(query.dtype)) for own, columns in groups
        ]
        keep = any(ctx.needs_input_grad) and chunks.kept >= columns_of_all * sum(g.shape[0] * g.shape[1] for g in
                                                                                 tensors[2::3])
        # reuse memory for all chunks: getting new pages from the system can cost more than the work on them
        entries = max(part.gram.shape[0] * part.gram.shape[1] for part in parts) * max(_width(c) for _, c in groups)
        product_memory, items_memory = (query.new_empty(entries) for _ in range(2))
        attention_memory, sum_memory = (members.new_empty(entries) for _ in range(2))
        kept = []
        for block, own_items, rows_of_all, key, value, gram, mask in parts:
            c, s = key.shape[1:3]
            rows = heads * s
            some_keys, some_values = (x.flatten(1, 2).contiguous() for x in (key, value))           # (H, c * S, d)
            for own, columns, some_query, some_out, some_members in some_queries:
                w = _width(columns)
                if keep:
                    kept += members.new_empty(heads, c, s, w), query.new_empty(heads, c * s, w)
                product, by_item, by_head, summand = (
                    memory[: c * rows * w] for memory in (product_memory, items_memory, attention_memory, sum_memory)
                )
                by_head = kept[-2] if keep else by_head.view(heads, c, s, w)
                torch.bmm(some_keys, some_query, out=product.view(heads, c * s, w))
                _attention(product.view(heads, c, s, w), mask, by_head)
                attention = by_head.transpose(0, 1)
                of_items = by_item.view(c, heads, s, w).copy_(attention).view(c, rows, w)
                match = kept[-1] if keep else product.view(heads, c * s, w)
                torch.bmm(some_values, some_out, out=match)
                torch.mul(match.view(heads, c, s, w).transpose(0, 1), attention, out=summand.view(c, heads, s, w))
                dot[rows_of_all, columns] = summand.view(c, rows, w).sum(dim=1)
                _halved_square(gram, of_items, product, summand.view(c, rows, w), chunks.gram)
                square[rows_of_all, columns] = 2 * summand.view(c, rows, w).sum(dim=1)
                summed = of_items.flatten(0, 1) @ some_members                                      # (c * H * S, n)
                means[block][own_items, own] = summed.view(c, rows, -1).transpose(1, 2) / count[own, None]
        ctx.save_for_backward(query, out, members, count, *tensors, *kept)
        ctx.bounds, ctx.chunks, ctx.masks = bounds, chunks, masks
        return dot, square, *means

    @staticmethod
    @once_differentiable
    def backward(ctx, dot_grad, square_grad, *mean_grads):
        query, out, members, count, *rest = ctx.saved_tensors
        tensors, kept = rest[: 3 * len(ctx.masks)], iter(rest[3 * len(ctx.masks) :])
        recompute = len(rest) == len(tensors)
        heads, low, wide = len(query), query.dtype, members.dtype
        groups, parts = _parts(list(zip(tensors[::3], tensors[1::3], tensors[2::3], ctx.masks, strict=True)),
                               ctx.bounds, ctx.chunks)
        some_queries = [[x[..., columns].contiguous() for x in (query, out)] for _, columns in groups]
        turned_queries = [[x.transpose(1, 2).contiguous() for x in some] for some in some_queries]  # (H, w, d)
        query_grads, out_grads = ([torch.zeros_like(some[0], dtype=wide) for some in some_queries] for _ in range(2))
        gradients = [torch.empty_like(x) for x in tensors]
        for block, own_items, rows_of_all, key, value, gram, mask in parts:
            c, s = key.shape[1:3]
            some_keys, some_values = (x.flatten(1, 2) for x in (key, value))                        # (H, c * S, d)
            turned_keys, turned_values = (x.transpose(1, 2).contiguous() for x in (some_keys, some_values))
            keys_grad, values_grad = (torch.zeros_like(some_keys, dtype=wide) for _ in range(2))
            gram_grad = torch.zeros_like(gram, dtype=wide)
            for group, (own, columns) in enumerate(groups):
                some_query, some_out = some_queries[group]
                if recompute:
                    logits = (some_keys @ some_query).unflatten(1, (c, s))
                    by_head = _attention(logits, mask, torch.empty_like(logits, dtype=wide))
                    match = some_values @ some_out
                else:
                    by_head, match = next(kept), next(kept)
                attention = by_head.transpose(0, 1).flatten(1, 2)                                   # (c, H * S, w)
                scaled = (attention * square_grad[rows_of_all, None, columns]).to(low)
                _add_product(gram_grad, scaled, attention.to(low).transpose(1, 2))
                # d loss / d attention, from each of the three results
                dot_part = dot_grad[rows_of_all, None, columns]
                gradient = match.unflatten(1, (c, s)).transpose(0, 1).flatten(1, 2) * dot_part
                _add_product(gradient, gram, scaled, 2)
                of_mean = (mean_grads[block][own_items, own] / count[own, None]).to(low)            # (c, n, H * S)
                _add_product(gradient, of_mean.transpose(1, 2), members[columns, own].T.to(low).expand(c, -1, -1))
                # through the softmax, over the S keys of each head
                product = gradient.unflatten(1, (heads, s)).transpose(0, 1) * by_head               # (H, c, S, w)
                product.addcmul_(product.sum(dim=2, keepdim=True), by_head, value=-1)
                logits_rows, match_rows = (x.to(low).flatten(1, 2) for x in (product, by_head * dot_part))
                turned_query, turned_out = turned_queries[group]
                _add_product(query_grads[group], turned_keys, logits_rows)
                _add_product(out_grads[group], turned_values, match_rows)
                _add_product(keys_grad, logits_rows, turned_query)
                _add_product(values_grad, match_rows, turned_out)
            for gradient, of_part in zip(gradients[3 * block :][:2], (keys_grad, values_grad), strict=True):
                gradient[:, own_items] = of_part.unflatten(1, (c, s))
            gradients[3 * block + 2][own_items] = gram_grad
        query_grad, out_grad = (torch.cat(grads, dim=2).to(low) for grads in (query_grads, out_grads))
        return query_grad, out_grad, None, None, None, None, None, *gradients


def _add_product(into: Tensor, first: Tensor, second: Tensor, factor: float = 1) -> None:
    """Add `factor` times the batched product of two matrices to `into`, which may have a wider type."""
    if into.dtype == first.dtype:
        into.baddbmm_(first, second, alpha=factor)
    else:
        into.add_(first @ second, alpha=factor)


def _parts(
    blocks: list[tuple[Tensor, Tensor, Tensor, Tensor | None]], bounds: list[int], chunks: Chunks
) -> tuple[list[tuple[slice, slice]], list[_Part]]:
    """Return groups of query items with their columns, and parts of the blocks of keys; each holds at least one item.

    blocks: key, value, gram and mask of each.
    """
    # few keys leave room for more queries
    most = max(chunks.columns, chunks.entries // max(gram.shape[0] * gram.shape[1] for _, _, gram, _ in blocks))
    groups, first = [], 0
    for last in range(1, len(bounds)):
        if last == len(bounds) - 1 or bounds[last + 1] - bounds[first] > most:
            groups.append((slice(first, last), slice(bounds[first], bounds[last])))
            first = last
    widest, before, parts = max(_width(columns) for _, columns in groups), 0, []
    for block, (key, value, gram, mask) in enumerate(blocks):
        size = max(1, chunks.entries // (gram.shape[1] * widest))
        for start in range(0, len(gram), size):
            own = slice(start, min(start + size, len(gram)))
            parts.append(_Part(block, own, slice(before + own.start, before + own.stop), key[:, own], value[:, own],
                               gram[own], None if mask is None else mask[own]))
        before += len(gram)
    return groups, parts


def _width(columns: slice) -> int:
    return columns.stop - columns.start


def _halved_square(gram: Tensor, attention: Tensor, product: Tensor, into: Tensor, large: int) -> None:
    """Write to `into` (c, H * S, w) numbers whose sum over rows is half of a^T gram a; `product` is scratch memory.

    gram is symmetric, so only one side of the off-diagonal blocks is multiplied. This pays only for large float32
    matrices; others are multiplied in one part.
    """
    count, rows, columns = attention.shape
    parts = GRAM_PARTS if rows >= large and gram.dtype.itemsize >= 4 else 1
    edges = [rows * i // parts for i in range(parts + 1)]
    for first, last in itertools.pairwise(edges):
        part = product[: count * (last - first) * columns].view(count, last - first, columns)
        own = attention[:, first:last]
        torch.bmm(gram[:, first:last, first:last], own, out=part).mul_(0.5)
        if last < rows:
            part.baddbmm_(gram[:, first:last, last:], attention[:, last:])
        torch.mul(part, own, out=into[:, first:last])


def _attention(logits: Tensor, mask: Tensor | None, into: Tensor) -> Tensor:
    """Apply softmax over each item's keys to logits (H, c, S, w), which are changed in place; mask (c, S)."""
    if mask is not None:
        logits.masked_fill_(~mask[None, :, :, None], float("-inf"))
    return torch.softmax(logits, dim=2, dtype=into.dtype, out=into)


def length(square: Tensor) -> Tensor:
    """Return the root of a squared length, or 1 if that is zero or, by rounding, negative.

    A zero vector, such as a word that cutoff removed, has a dot product of 0, so its cosine is 0. A tiny length instead
    of 1 would give the same cosine, but a gradient too large for half precision.
    """
    return torch.where(square > EPSILON**2, square, torch.ones_like(square)).sqrt()
