"""Attention of every query token over every key item as one GPU kernel that keeps the attention maps in registers.

The algebra is that of `attention.py`, whose maps (items x heads x keys x queries) pass through global memory between
its products. Here one program handles one key item and a tile of whole query items, and writes only the three results.

Sources: flash-attention (tiles of queries, float32 softmax, products in the inputs' dtype) and Triton's tutorial on
matrix multiplication (grouped order of the programs). New here: the quadratic form visits pairs of heads in a circle
(`kernel`), and the loops carry the attention of all heads packed (`_packed`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:             # macOS, CPU builds of torch; reported by `supported`
    triton = tl = None

GROUP = 16                      # key items whose programs run concurrently, so that their queries stay in the L2 cache
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class CannotFuse(ValueError):
    """The kernel does not support the inputs; the message says why. Use `attention.attend` instead."""


def _jit(function: Callable) -> Any:
    """Compile with Triton, not specialized to lengths: they vary by block and would cause dozens of compilations."""
    if triton is None:
        return function
    counts = ["columns", "query_items", "key_items", "length", "units", "tiles", "heads"]
    return triton.jit(function, do_not_specialize=[x for x in counts if x in function.__code__.co_varnames])


@_jit
def _tile(base, rows, row_limit, columns, column_limit, stride):
    """Load (rows, columns) of a matrix with `stride` numbers per row; 0 beyond the limits."""
    inside = (rows < row_limit)[:, None] & (columns < column_limit)[None, :]
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@_jit
def _packed(a, dtype: tl.constexpr):
    """Pack (M, P) 16-bit numbers into (M, P / 2) 32-bit numbers; return 32-bit numbers unchanged.

    A value carried through a loop takes a whole register, whatever its size: unpacked, the attention of all heads would
    need twice the registers. In the tensor core's operand, neighboring columns are in one thread and in this order.
    """
    if dtype.primitive_bitwidth == 32:
        return a
    else:
        even, odd = tl.split(tl.reshape(a.to(tl.int16, bitcast=True), [a.shape[0], a.shape[1] // 2, 2]))
        return (odd.to(tl.int32) << 16) | (even.to(tl.int32) & 0xFFFF)


@_jit
def _unpacked(a, dtype: tl.constexpr):
    if dtype.primitive_bitwidth == 32:
        return a
    else:
        pairs = tl.join((a & 0xFFFF).to(tl.int16), (a >> 16).to(tl.int16))
        return tl.reshape(pairs, [a.shape[0], a.shape[1] * 2]).to(dtype, bitcast=True)


@_jit
def _product(a, b, total, PRECISION: tl.constexpr):
    """Return total + a b. "emulated" is for Triton's interpreter, which treats the bits of bfloat16 as integers."""
    if PRECISION == "emulated":
        return tl.dot(a.to(tl.float32), b.to(tl.float32), total, input_precision="ieee")
    else:
        return tl.dot(a, b, total, input_precision=PRECISION)


@_jit
def _repeated(member, times):
    result = ()
    for _ in tl.static_range(times):
        result = result + (member,)
    return result


@_jit
def _placed(kept, new, h):
    """Return `kept` with `new` for head h."""
    result = ()
    for i in tl.static_range(len(kept)):
        result = result + (tl.where(h == i, new, kept[i]),)
    return result


@_jit
def _turned(kept, always):
    """Return kept[1:] + kept[:1].

    `always` is true, but not known to the compiler, which does not pipeline a loop that only permutes what it carries.
    """
    result = ()
    for i in tl.static_range(len(kept)):
        result = result + (tl.where(always, kept[(i + 1) % len(kept)], kept[i]),)
    return result


@_jit
def kernel(query, out, key, value, gram, mask, weight, places, dot, square, mean, columns, query_items, key_items,
           length, units, tiles, heads, H: tl.constexpr, D: tl.constexpr, P: tl.constexpr, UNIT: tl.constexpr,
           M: tl.constexpr, DEPTH: tl.constexpr, ITEMS: tl.constexpr, GROUP: tl.constexpr, HAS_MASK: tl.constexpr,
           PRECISION: tl.constexpr, STAGES: tl.constexpr):
    """Compute the results of `attend` for one key item and one tile of queries.

    query, out: (H, C, D). key, value: (H, T, S, D). gram: (T, H * S, H, units * UNIT). places: see `_places`.

    heads: H again, but not as a constant: ptxas would unroll the loops and spill registers. P: columns for the tokens
    of a key item, a power of two. With 32 + 16 columns instead of 64 for 36 tokens, a third of the products would be
    saved; but the many small ones wait for each other, and some compiler versions spilled a kilobyte.
    """
    low = query.dtype.element_ty
    program = tl.program_id(0)
    group = program // (GROUP * tiles)
    size = tl.minimum(key_items - group * GROUP, GROUP)
    within = program - group * GROUP * tiles
    item = (group * GROUP + within % size).to(tl.int64)
    tile = within // size

    first_item = tl.load(places + query_items + 1 + tile)
    last_item = tl.load(places + query_items + 2 + tile)
    first = tl.load(places + first_item)
    count = tl.load(places + last_item) - first
    rows = tl.arange(0, M)
    own = first_item + tl.arange(0, ITEMS)
    owned = own < last_item
    start = tl.load(places + own, mask=owned, other=0) - first
    stop = tl.load(places + own + 1, mask=owned, other=0) - first
    members = tl.where((rows[None, :] >= start[:, None]) & (rows[None, :] < stop[:, None]), 1.0, 0.0).to(low)
    share = tl.load(weight + first + start, mask=owned, other=0.0)

    tokens = tl.arange(0, P)
    real = tokens < length
    if HAS_MASK:
        real = real & (tl.load(mask + item * length + tokens, mask=real, other=0) != 0)

    kept = _repeated(_packed(tl.zeros([M, P], low), low), H)
    dots = tl.zeros([M], tl.float32)
    for h in tl.range(0, heads, num_stages=STAGES):
        query_start = (h * columns.to(tl.int64) + first) * D
        key_start = (h * key_items.to(tl.int64) + item) * length * D
        logits = tl.zeros([M, P], tl.float32)
        match = tl.zeros([M, P], tl.float32)
        for x in tl.range(0, D, DEPTH, num_stages=3):
            depth = x + tl.arange(0, DEPTH)
            q = _tile(query + query_start, rows, count, depth, D, D)
            k = _tile(key + key_start, tokens, length, depth, D, D)
            logits = _product(q, tl.trans(k), logits, PRECISION)
            o = _tile(out + query_start, rows, count, depth, D, D)
            v = _tile(value + key_start, tokens, length, depth, D, D)
            match = _product(o, tl.trans(v), match, PRECISION)
        logits = tl.where(real[None, :], logits, float("-inf"))
        a = tl.exp(logits - tl.max(logits, 1)[:, None])
        a = a * (1 / tl.sum(a, 1))[:, None]
        dots += tl.sum(a * match, 1)
        a_low = a.to(low)
        # all tokens of an item have the same weight: applied to their sum, it is not rounded to the low dtype
        sums = _product(members, a_low, tl.zeros([ITEMS, P], tl.float32), PRECISION) * share[:, None]
        target = mean + (item * query_items + own[:, None]) * (H * length) + h * length + tokens[None, :]
        tl.store(target, sums, mask=owned[:, None] & (tokens < length)[None, :])
        kept = _placed(kept, _packed(a_low, low), h)

    # square = sum over pairs of heads (i, j) of A_i G_ij A_j^T. With the heads in a circle, head j is paired with j + 1
    # to j + H / 2, and each pair counts twice. Two cases count once: j with itself and, if H is even, j with the
    # opposite head, because that pair is visited from both sides. Rotating the circle by one per round makes all rounds
    # the same code: a loop, which Triton can pipeline.
    stride = units * UNIT
    squares = tl.zeros([M], tl.float32)
    for h in tl.range(0, heads, num_stages=STAGES):
        kept = _turned(kept, length > 0)
        j = (h + 1) % H                                         # the head in kept[0]
        spread = tl.zeros([M, P], tl.float32)
        for k in tl.static_range(H // 2 + 1):
            # Rows of head j, columns of head j + k: since gram is symmetric, this is the transpose of the wanted block,
            # in the order that tensor cores take for every dtype. Its columns beyond `length` are zeros.
            block = gram + ((item * H + j) * length * H + (j + k) % H) * stride
            g = _tile(block, tokens, length, tokens, stride, H * stride)
            a_low = _unpacked(kept[k], low)
            if 2 * k % H == 0:
                a_low = (a_low.to(tl.float32) * 0.5).to(low)
            spread = _product(a_low, tl.trans(g), spread, PRECISION)
        squares += tl.sum(spread * _unpacked(kept[0], low).to(tl.float32), 1)

    target = item * columns + first + rows
    tl.store(dot + target, dots, mask=rows < count)
    tl.store(square + target, 2 * squares, mask=rows < count)


class Shape(NamedTuple):
    """The tile sizes of the kernel."""

    rows: int       # maximum number of query tokens per tile
    items: int      # maximum number of query items per tile
    warps: int
    columns: int    # for key tokens, a power of two
    depth: int      # part of a head's dimension d that is multiplied at a time
    stages: int


def shapes(heads: int, d: int, s: int, dtype: torch.dtype, precision: str, rows: int,
           capability: int, shared: int) -> Iterator[Shape]:
    """Yield tile sizes for `rows` query tokens per tile, best first; none if the kernel does not support the inputs.

    The limits were found by compiling for compute capability 8.0 and 9.0 and counting spilled registers: a thread has
    255, and the attention of all heads must leave enough for accumulators and addresses.

    Args:
        capability: 80, 86, 89, 90, ... shared: bytes of shared memory that one program may use.
    """
    size, columns = dtype.itemsize, max(16, _power_of_two(s))
    numbers, blocks = rows * heads * columns, heads // 2 + 1
    asynchronous = capability == 90 and rows >= 64 and (size == 2 or precision == "tf32")        # wgmma
    tile = rows * columns                                   # size of an accumulator; each warp takes at most 1024
    if size == 2:
        fits = heads * columns <= (512 if columns <= 64 else 256) and tile <= 8192
        warps = 4 if rows == 64 and tile <= 4096 and (asynchronous or heads * columns <= 256) else 8
    elif precision == "ieee":                               # no tensor cores: operands go through registers too
        fits = columns <= 64 and numbers <= (16384 if tile <= 2048 else 8192)
        warps = 4 if tile <= 1024 and numbers <= 8192 else 8
    else:
        fits = numbers <= (32768 if asynchronous else 16384) and tile <= 4096
        warps = 4 if numbers <= 16384 and columns <= 64 and (asynchronous or tile <= 2048) else 8
    if not fits:
        return
    crowded = numbers * size > warps * 32 * 4 * 96
    deepest = max(16, min(16 if size == 4 and precision == "ieee" else 32 if crowded else 128, _power_of_two(d)))
    # Two programs at a time, so that one computes while the other waits; eight warps take the registers of both.
    for limit in (shared // 2, shared)[warps // 8:]:
        for stages in (2,) if asynchronous else (3, 2):
            for depth in (128, 64, 32, 16):
                # one buffer is read while the others are filled; wgmma may still be reading the previous one
                buffers, inner = (n if asynchronous else n - 1 for n in (stages, 3))
                loads = (inner if depth < d else buffers) * depth * 2 * (rows + columns) + 2 * tile
                # as left operand the attention passes through shared memory, except in 16-bit mma
                left = 0 if size == 2 and not asynchronous else (blocks - 1) * tile
                grams = buffers * blocks * columns**2 + left
                if depth <= deepest and max(loads, grams) * size <= limit - 2048:
                    yield Shape(rows, max(16, rows // 4), warps, columns, depth, stages)


def constants(shape: Shape, heads: int, d: int, dtype: torch.dtype, precision: str, masked: bool) -> dict[str, Any]:
    """Return the constants that the kernel is compiled for."""
    return {
        "H": heads, "D": d, "P": shape.columns, "UNIT": 16 // dtype.itemsize, "M": shape.rows,
        "DEPTH": shape.depth, "ITEMS": shape.items, "GROUP": GROUP, "HAS_MASK": masked, "PRECISION": precision,
        "STAGES": shape.stages,
    }


def _power_of_two(number: int) -> int:
    """Return the smallest power of two that is at least `number`."""
    return 1 << (number - 1).bit_length()


def _cuts(query: Tensor, key: Tensor, bounds: Sequence[int]) -> list[Shape] | str:
    """Return the tile sizes for these inputs, best first, or the reason why there are none."""
    if (reason := _no_kernel(query, key)) is not None:
        return reason
    (heads, _, s, d), dtype = key.shape, key.dtype
    if query.device.type == "cuda":
        properties = torch.cuda.get_device_properties(query.device)
        capability = 10 * properties.major + properties.minor
        shared = getattr(properties, "shared_memory_per_block_optin", 99 << 10)
    else:
        capability, shared = 90, 227 << 10                      # the interpreter acts as an H100
    longest = max(stop - start for start, stop in pairwise(bounds))
    found = []
    for rows in (64, 128) if dtype.itemsize == 2 else (32, 64):
        ways = list(shapes(heads, d, s, dtype, _precision(dtype), rows, capability, shared)) if rows >= longest else []
        if ways:
            # a tile costs its rows, and its share of the key item's loads, which costs about as much as 32 rows
            found.append(((len(tiles_of(bounds, ways[0])) - 1) * (rows + 32), ways))
    if not found:
        return f"{heads} heads, {s} key tokens and a query item of {longest} tokens do not fit one program on the GPU"
    return min(found, key=lambda cost_and_ways: cost_and_ways[0])[1]


def _precision(dtype: torch.dtype) -> str:
    """Return how products are computed; for float32, as torch's settings allow."""
    if dtype == torch.bfloat16 and not isinstance(kernel, triton.JITFunction):
        return "emulated"
    if dtype != torch.float32:
        return "ieee"
    try:
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    except RuntimeError:                                        # torch 2.9: set through its successor `fp32_precision`
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def tiles_of(bounds: Sequence[int], shape: Shape) -> list[int]:
    """Return the first item of each tile, then the number of items; tiles hold as many whole items as fit."""
    tiles, last = [0], len(bounds) - 1
    while tiles[-1] < last:
        first = tiles[-1]
        tiles.append(min(bisect_right(bounds, bounds[first] + shape.rows) - 1, first + shape.items, last))
    return tiles


def _places(bounds: Sequence[int], tiles: list[int], device: torch.device) -> Tensor:
    """Return (N + 1 + tiles + 1) int32: bounds, then first items of the tiles, in one asynchronous copy."""
    places = torch.tensor([*bounds, *tiles], dtype=torch.int32)
    return places.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else places


def supported(query: Tensor, key: Tensor, bounds: Sequence[int]) -> str | None:
    """Return the reason why `attend` does not support the inputs, or None if it does. Arguments as for `attend`."""
    cuts = _cuts(query, key, bounds)
    return cuts if isinstance(cuts, str) else None


def _no_kernel(query: Tensor, key: Tensor) -> str | None:
    """Return the reason why there is no kernel for this dtype or device, or None, whatever the sizes."""
    if triton is None:
        return "triton is not installed"
    if tuple(map(int, triton.__version__.split(".")[:2])) < (3, 4):     # tuples of tensors in loops and calls
        return f"triton {triton.__version__}: the kernel needs 3.4 or newer"
    if key.dtype not in DTYPES:
        return f"no kernel for {key.dtype}"
    compiled = isinstance(kernel, triton.JITFunction)
    if compiled and query.device.type != "cuda":
        return f"tensors on {query.device.type}: the kernel needs a GPU, or TRITON_INTERPRET=1 before the first import"
    if compiled and torch.version.hip:
        return "the kernel supports NVIDIA GPUs only"
    if compiled and torch.cuda.get_device_capability(query.device) < (8, 0):
        return "the kernel needs a GPU of compute capability 8.0 or higher"
    return None


def attend(query: Tensor, out: Tensor, key: Tensor, value: Tensor, gram: Tensor, mask: Tensor | None, weight: Tensor,
           bounds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Attend from every query token to the tokens of every key item, and return the results that the score needs.

    Products are in the inputs' dtype with float32 sums (float32: tf32 if torch may use it for its own products).
    Softmax and sums are in float32. For gram and mean, attention is rounded to the inputs' dtype. Not differentiable.

    Args:
        query, out: (H, d, C) float32, bfloat16 or float16; C real query tokens of N items, packed without padding.
            `query` is already scaled.
        key, value: (H, T, S, d) of the same dtype; T key items of at most S tokens.
        gram: (T, H * S, H * S) of the same dtype, symmetric.
        mask: (T, S) bool, True = real; None = all real. Every key item has at least one real token.
        weight: (C,) float32, 1 / (number of tokens of the token's query item).
        bounds: N + 1 numbers; item n has the tokens bounds[n] to bounds[n + 1], at least one.

    Returns:
        dot, square, mean, all float32. For key item t and query token c, a is the attention, of length H * S (head by
        head), which sums to 1 in each head. dot (T, C): sum of a times the products of value and out.
        square (T, C): a^T gram a. mean (T, N, H * S): a averaged over the tokens of each query item.

    Raises:
        CannotFuse: see `supported`; or no tile size fits the shared memory, which only the compiler knows.
    """
    cuts = _cuts(query, key, bounds)
    if isinstance(cuts, str):
        raise CannotFuse(cuts)
    (heads, items, s, d), columns, device = key.shape, query.shape[-1], query.device
    dot, square = (torch.empty(items, columns, device=device) for _ in range(2))
    mean = torch.empty(items, len(bounds) - 1, heads * s, device=device)
    if items == 0:
        return dot, square, mean
    # The asynchronous copy engine needs rows that start at multiples of 16 bytes. A tile of queries starts at any
    # token, so the d numbers of a token must be contiguous.
    query, out = (x.transpose(1, 2).contiguous() for x in (query, out))
    unit = 16 // key.element_size()
    units = -(-s // unit)
    if s % unit:
        gram = torch.nn.functional.pad(gram.unflatten(2, (heads, s)), (0, units * unit - s))
    key, value, gram, weight = (x.contiguous() for x in (key, value, gram, weight))
    for shape in cuts:
        tiles = tiles_of(bounds, shape)
        places = _places(bounds, tiles, device)
        try:
            with torch.cuda.device_of(query):
                kernel[((len(tiles) - 1) * items,)](
                    query, out, key, value, gram, places if mask is None else mask.contiguous().view(torch.uint8),
                    weight, places, dot, square, mean, columns, len(bounds) - 1, items, s, units, len(tiles) - 1, heads,
                    **constants(shape, heads, d, key.dtype, _precision(key.dtype), mask is not None),
                    num_warps=shape.warps,
                )
            return dot, square, mean
        except triton.runtime.errors.OutOfResources:            # this Triton version uses more memory than estimated
            continue
    raise CannotFuse(f"{heads} heads of {s} key tokens do not fit the shared memory")
