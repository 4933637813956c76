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
    gram: a symmetric matrix with at least this many rows is multiplied in parts.
    """

    columns: int
    entries: int
    pairs: int
    keys: int = 16
    gram: int = 256


# columns: enough for a product near peak speed. entries and pairs fit, in float32, a core's cache (2 MB) and the shared
# cache (8 MB)
ON_CPU = Chunks(columns=384, entries=1 << 19, pairs=1 << 21)
ON_GPU = Chunks(columns=2048, entries=1 << 24, pairs=1 << 24)


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
    """Invert `pack`: (C, D) -> (N, S, D), S the largest count, and the mask (N, S), or None if all are real."""
    longest = max(counts)
    if min(counts) == longest:
        return tokens.unflatten(0, (len(counts), longest)), None
    mask = torch.arange(longest) < torch.tensor(counts)[:, None]
    mask = mask.to(tokens.device)
    padded = tokens.new_zeros(*mask.shape, tokens.shape[-1])
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
    value = _project(tokens, weights.value, weights.heads)
    out = weights.out if weights.out is not None else torch.eye(tokens.shape[-1]).to(tokens)
    parts = value.split(chunks.keys, dim=1)
    attended = (_by_head(part, out) for part in parts)                              # U
    return Keys(key=_project(tokens, weights.key, weights.heads), value=value,
                gram=_joined((u @ u.transpose(1, 2) for u in attended), len(tokens)),
                outputs=_joined((_by_head(part, following) for part in parts), len(tokens)),
                mask=None if mask is None or bool(mask.all()) else mask)


def _by_head(value: Tensor, matrix: Tensor) -> Tensor:
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


def _project(tokens: Tensor, matrix: Tensor | None, heads: int) -> Tensor:
    """Project (N, S, D) -> (H, N, S, d); matrix None = identity."""
    projected = tokens if matrix is None else F.linear(tokens, matrix)
    return projected.unflatten(-1, (heads, -1)).permute(2, 0, 1, 3).contiguous()


def attend(queries: Queries, keys: Keys, chunks: Chunks) -> Attended:
    """Compute one direction of the attention for every pair of items; differentiable.

    Matrix products, including the sum that gives mean attention, run in autocast's dtype if it is enabled, else in that
    of the keys. Softmax, dot and square are at least float32.
    """
    device = queries.query.device.type
    low = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else keys.key.dtype
    queries, keys = queries.to(low), keys.to(low)
    with torch.autocast(device, enabled=False):
        return Attended(*_Attend.apply(queries.query, queries.out, keys.key, keys.value, keys.gram, keys.mask,
                                       queries.members, queries.count, queries.bounds, chunks))


class _Attend(torch.autograd.Function):
    """The attention in chunks that fit the CPU's cache. Nothing of size (items x heads x keys x queries) is kept; the
    backward pass recomputes it."""

    @staticmethod
    def forward(ctx, query, out, key, value, gram, mask, members, count, bounds, chunks):
        heads, items, s, _ = key.shape
        low, rows = query.dtype, heads * s
        dot, square = (members.new_empty(items, query.shape[-1]) for _ in range(2))
        mean = members.new_empty(items, len(count), rows)
        groups, parts = _parts(items, rows, bounds, chunks)
        some_queries = [
            (own, columns, query[..., columns].contiguous(), out[..., columns].contiguous(),
             members[columns, own].to(low)) for own, columns in groups
        ]
        # reuse memory for all chunks: getting new pages from the system can cost more than the work on them
        entries = rows * max(part.stop - part.start for part in parts) * max(_width(columns) for _, columns in groups)
        product_memory, items_memory = (query.new_empty(entries) for _ in range(2))
        attention_memory, sum_memory = (members.new_empty(entries) for _ in range(2))
        for part in parts:
            c = part.stop - part.start
            some_keys, some_values = (x[:, part].flatten(1, 2).contiguous() for x in (key, value))  # (H, c * S, d)
            for own, columns, some_query, some_out, some_members in some_queries:
                w = _width(columns)
                product, by_item, by_head, summand = (
                    memory[: c * rows * w] for memory in (product_memory, items_memory, attention_memory, sum_memory)
                )
                torch.bmm(some_keys, some_query, out=product.view(heads, c * s, w))
                _attention(product.view(heads, c, s, w), None if mask is None else mask[part],
                           by_head.view(heads, c, s, w))
                attention = by_head.view(heads, c, s, w).transpose(0, 1)
                of_items = by_item.view(c, heads, s, w).copy_(attention).view(c, rows, w)
                torch.bmm(some_values, some_out, out=product.view(heads, c * s, w))
                match = product.view(heads, c, s, w).transpose(0, 1)
                torch.mul(match, attention, out=summand.view(c, heads, s, w))
                dot[part, columns] = summand.view(c, rows, w).sum(dim=1)
                _halved_square(gram[part], of_items, product, summand.view(c, rows, w), chunks.gram)
                square[part, columns] = 2 * summand.view(c, rows, w).sum(dim=1)
                summed = of_items.flatten(0, 1) @ some_members                                      # (c * H * S, n)
                mean[part, own] = summed.view(c, rows, -1).transpose(1, 2) / count[own, None]
        ctx.save_for_backward(query, out, key, value, gram, mask, members, count)
        ctx.bounds, ctx.chunks = bounds, chunks
        return dot, square, mean

    @staticmethod
    @once_differentiable
    def backward(ctx, dot_grad, square_grad, mean_grad):
        query, out, key, value, gram, mask, members, count = ctx.saved_tensors
        heads, items, s, _ = key.shape
        low, wide = query.dtype, members.dtype
        query_grad, out_grad, key_grad, value_grad, gram_grad = (
            torch.zeros_like(x, dtype=wide) for x in (query, out, key, value, gram)
        )
        groups, parts = _parts(items, heads * s, ctx.bounds, ctx.chunks)
        for part, (own, columns) in itertools.product(parts, groups):
            some_query, some_out = query[..., columns], out[..., columns]
            some_keys, some_values = (x[:, part].flatten(1, 2) for x in (key, value))       # (H, c * S, d)
            logits = (some_keys @ some_query).unflatten(1, (-1, s))
            by_head = _attention(logits, None if mask is None else mask[part], torch.empty_like(logits, dtype=wide))
            attention = by_head.transpose(0, 1).flatten(1, 2)                               # (c, H * S, w)
            match = (some_values @ some_out).unflatten(1, (-1, s)).transpose(0, 1).flatten(1, 2)
            dot_part, square_part = dot_grad[part, None, columns], square_grad[part, None, columns]
            scaled = (attention * square_part).to(low)
            gram_grad[part] += scaled @ attention.to(low).transpose(1, 2)
            # d loss / d attention, from each of the three results
            gradient = match * dot_part
            gradient += 2 * (gram[part] @ scaled)
            of_mean = (mean_grad[part, own] / count[own, None]).to(low).transpose(1, 2)     # (c, H * S, n)
            gradient += of_mean @ members[columns, own].T.to(low)
            # through the softmax, over the S keys of each head
            rows = _heads_first(gradient, heads)                                            # (H, c, S, w)
            inner = (rows * by_head).sum(dim=2, keepdim=True)
            logits_rows = ((rows - inner) * by_head).to(low).flatten(1, 2)                  # (H, c * S, w)
            match_rows = _heads_first((attention * dot_part).to(low), heads).flatten(1, 2)
            query_grad[..., columns] += some_keys.transpose(1, 2) @ logits_rows
            out_grad[..., columns] += some_values.transpose(1, 2) @ match_rows
            key_grad[:, part] += (logits_rows @ some_query.transpose(1, 2)).unflatten(1, (-1, s))
            value_grad[:, part] += (match_rows @ some_out.transpose(1, 2)).unflatten(1, (-1, s))
        gradients = (query_grad, out_grad, key_grad, value_grad, gram_grad)
        return *(x.to(low) for x in gradients), None, None, None, None, None


def _parts(items: int, rows: int, bounds: list[int], chunks: Chunks) -> tuple[list[tuple[slice, slice]], list[slice]]:
    """Return groups of query items with their columns, and parts of key items; each holds at least one item."""
    groups, first = [], 0
    for last in range(1, len(bounds)):
        if last == len(bounds) - 1 or bounds[last + 1] - bounds[first] > chunks.columns:
            groups.append((slice(first, last), slice(bounds[first], bounds[last])))
            first = last
    size = max(1, chunks.entries // (rows * max(_width(columns) for _, columns in groups)))
    return groups, [slice(start, min(start + size, items)) for start in range(0, items, size)]


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


def _heads_first(by_item: Tensor, heads: int) -> Tensor:
    """Rearrange (c, H * S, w) -> (H, c, S, w)."""
    return by_item.unflatten(1, (heads, -1)).transpose(0, 1)


def length(square: Tensor) -> Tensor:
    """Return the root of a squared length, or 1 if that is zero or, by rounding, negative.

    A zero vector, such as a word that cutoff removed, has a dot product of 0, so its cosine is 0. A tiny length instead
    of 1 would give the same cosine, but a gradient too large for half precision.
    """
    return torch.where(square > EPSILON**2, square, torch.ones_like(square)).sqrt()
