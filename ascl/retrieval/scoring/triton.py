"""Attention of every query token over every key item as one GPU kernel: the attention maps stay in registers.

The algebra is that of `attention.py`, whose maps (items x heads x keys x queries numbers) pass through global memory
between its products. Here one program owns one key item and a tile of whole query items, and leaves nothing behind but
the three results.

Sources: flash-attention (tiles of queries, float32 softmax, products in the inputs' type) and, for the grouped order of
the programs, Triton's tutorial on matrix multiplication. Ours: the pairs of heads of the quadratic form are walked in a
circle (`kernel`), and the attention of all heads goes through the loops packed (`_packed`).
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
except ImportError:             # macOS, CPU builds of torch: `supported` says so
    triton = tl = None

GROUP = 16                      # key items whose programs run side by side: their queries come from the L2 cache
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class CannotFuse(ValueError):
    """The kernel cannot do this; the message says why, and `attention.attend` can."""


def _jit(function: Callable) -> Any:
    """Lengths change from block to block: a kernel specialized to each would be compiled dozens of times."""
    if triton is None:
        return function
    counts = ["columns", "query_items", "key_items", "length", "units", "tiles", "heads"]
    return triton.jit(function, do_not_specialize=[x for x in counts if x in function.__code__.co_varnames])


@_jit
def _tile(base, rows, row_limit, columns, column_limit, stride):
    """(rows, columns) of a matrix with `stride` numbers a row; 0 beyond the limits."""
    inside = (rows < row_limit)[:, None] & (columns < column_limit)[None, :]
    return tl.load(base + rows[:, None] * stride + columns[None, :], mask=inside, other=0.0)


@_jit
def _packed(a, dtype: tl.constexpr):
    """(M, P) numbers of 16 bits -> (M, P / 2) of 32 bits; those of 32 bits stay as they are.

    A value carried through a loop gets a whole register, whatever its size: unpacked, the attention of all heads would
    take twice the registers. Neighboring columns are in one thread and in this order in the tensor core's operand.
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
    """total + a b. "emulated": Triton's interpreter takes the bits of bfloat16 for integers."""
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
    """kept with `new` for head h."""
    result = ()
    for i in tl.static_range(len(kept)):
        result = result + (tl.where(h == i, new, kept[i]),)
    return result


@_jit
def _turned(kept, always):
    """kept[1:] + kept[:1].

    `always` is true and the compiler must not know: it does not pipeline a loop that merely passes on what it carries.
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
    """query, out: (H, C, D). key, value: (H, T, S, D). gram: (T, H * S, H, units * UNIT). places: see `_places`.

    heads: H again, but not as a constant: ptxas would unroll the loops, and spill. P: columns for the tokens of a key
    item, a power of two. 32 + 16 instead of 64 for 36 tokens would save a third of the products; but those left are so
    small and many that they wait for each other, and some versions of the compiler spilled a kilobyte.
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
        # the weight is the same for all tokens of an item: applied to their sum, it is not rounded to the low type
        sums = _product(members, a_low, tl.zeros([ITEMS, P], tl.float32), PRECISION) * share[:, None]
        target = mean + (item * query_items + own[:, None]) * (H * length) + h * length + tokens[None, :]
        tl.store(target, sums, mask=owned[:, None] & (tokens < length)[None, :])
        kept = _placed(kept, _packed(a_low, low), h)

    # square = sum over pairs of heads (i, j) of A_i G_ij A_j^T. With the heads in a circle, head j meets j + 1 to
    # j + H / 2 and each pair counts twice; j itself and, where H is even, the one opposite, met from both sides, once.
    # Turning the circle by one each time makes all rounds the same code: a loop, which Triton can pipeline.
    stride = units * UNIT
    squares = tl.zeros([M], tl.float32)
    for h in tl.range(0, heads, num_stages=STAGES):
        kept = _turned(kept, length > 0)
        j = (h + 1) % H                                         # the head that is kept[0] now
        spread = tl.zeros([M, P], tl.float32)
        for k in tl.static_range(H // 2 + 1):
            # Rows of head j, columns of head j + k: as gram is symmetric, the transpose of the block that is wanted,
            # which is the order in which tensor cores of every type take it. Its columns beyond `length` are zeros.
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
    """How the kernel is cut."""

    rows: int       # most query tokens of a tile
    items: int      # most query items of a tile
    warps: int
    columns: int    # for key tokens, a power of two
    depth: int      # numbers of a head's d that are multiplied at a time
    stages: int


def shapes(heads: int, d: int, s: int, dtype: torch.dtype, precision: str, rows: int,
           capability: int, shared: int) -> Iterator[Shape]:
    """Ways to cut the kernel for `rows` query tokens a tile, best first; none where it cannot be done.

    The limits were found by compiling for compute capability 8.0 and 9.0 and counting spilled registers: a thread has
    255, and what the attention of all heads leaves of them has to do for accumulators and addresses.

    Args:
        capability: 80, 86, 89, 90, ... shared: bytes of shared memory that one program may use.
    """
    size, columns = dtype.itemsize, max(16, _power_of_two(s))
    numbers, blocks = rows * heads * columns, heads // 2 + 1
    asynchronous = capability == 90 and rows >= 64 and (size == 2 or precision == "tf32")        # wgmma
    tile = rows * columns                                   # numbers of an accumulator; each warp takes 1024 at most
    if size == 2:
        fits = heads * columns <= (512 if columns <= 64 else 256) and tile <= 8192
        warps = 4 if rows == 64 and tile <= 4096 and (asynchronous or heads * columns <= 256) else 8
    elif precision == "ieee":                               # no tensor cores: the operands, too, go through registers
        fits = columns <= 64 and numbers <= (16384 if tile <= 2048 else 8192)
        warps = 4 if tile <= 1024 and numbers <= 8192 else 8
    else:
        fits = numbers <= (32768 if asynchronous else 16384) and tile <= 4096
        warps = 4 if numbers <= 16384 and columns <= 64 and (asynchronous or tile <= 2048) else 8
    if not fits:
        return
    crowded = numbers * size > warps * 32 * 4 * 96
    deepest = max(16, min(16 if size == 4 and precision == "ieee" else 32 if crowded else 128, _power_of_two(d)))
    # Two programs at a time, so that one computes while the other waits; eight warps take the registers of two anyway.
    for limit in (shared // 2, shared)[warps // 8:]:
        for stages in (2,) if asynchronous else (3, 2):
            for depth in (128, 64, 32, 16):
                # one buffer is read while the others are filled; wgmma may still be reading the one before
                buffers, inner = (n if asynchronous else n - 1 for n in (stages, 3))
                loads = (inner if depth < d else buffers) * depth * 2 * (rows + columns) + 2 * tile
                # as the left operand the attention passes through shared memory, except in mma of 16 bits
                left = 0 if size == 2 and not asynchronous else (blocks - 1) * tile
                grams = buffers * blocks * columns**2 + left
                if depth <= deepest and max(loads, grams) * size <= limit - 2048:
                    yield Shape(rows, max(16, rows // 4), warps, columns, depth, stages)


def constants(shape: Shape, heads: int, d: int, dtype: torch.dtype, precision: str, masked: bool) -> dict[str, Any]:
    """What the kernel is compiled for."""
    return {
        "H": heads, "D": d, "P": shape.columns, "UNIT": 16 // dtype.itemsize, "M": shape.rows,
        "DEPTH": shape.depth, "ITEMS": shape.items, "GROUP": GROUP, "HAS_MASK": masked, "PRECISION": precision,
        "STAGES": shape.stages,
    }


def _power_of_two(number: int) -> int:
    """The smallest that is not below."""
    return 1 << (number - 1).bit_length()


def _cuts(query: Tensor, key: Tensor, bounds: Sequence[int]) -> list[Shape] | str:
    """Ways to cut the kernel for these inputs, best first; or why there is none, in words."""
    if (reason := _no_kernel(query, key)) is not None:
        return reason
    (heads, _, s, d), dtype = key.shape, key.dtype
    if query.device.type == "cuda":
        properties = torch.cuda.get_device_properties(query.device)
        capability = 10 * properties.major + properties.minor
        shared = getattr(properties, "shared_memory_per_block_optin", 99 << 10)
    else:
        capability, shared = 90, 227 << 10                      # the interpreter: as if on an H100
    longest = max(stop - start for start, stop in pairwise(bounds))
    found = []
    for rows in (64, 128) if dtype.itemsize == 2 else (32, 64):
        ways = list(shapes(heads, d, s, dtype, _precision(dtype), rows, capability, shared)) if rows >= longest else []
        if ways:
            # a tile costs its rows, and its share of the key item's loads: about what 32 more rows would
            found.append(((len(tiles_of(bounds, ways[0])) - 1) * (rows + 32), ways))
    if not found:
        return f"{heads} heads, {s} key tokens and a query item of {longest} do not fit one program of a GPU"
    return min(found, key=lambda cost_and_ways: cost_and_ways[0])[1]


def _precision(dtype: torch.dtype) -> str:
    """How float32 is multiplied: as torch's own products are allowed to."""
    if dtype == torch.bfloat16 and not isinstance(kernel, triton.JITFunction):
        return "emulated"
    if dtype != torch.float32:
        return "ieee"
    try:
        return "ieee" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    except RuntimeError:                                        # set by torch 2.9's `fp32_precision`, which replaces it
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def tiles_of(bounds: Sequence[int], shape: Shape) -> list[int]:
    """First items of tiles of whole items, as many as fit; the last is the number of items."""
    tiles, last = [0], len(bounds) - 1
    while tiles[-1] < last:
        first = tiles[-1]
        tiles.append(min(bisect_right(bounds, bounds[first] + shape.rows) - 1, first + shape.items, last))
    return tiles


def _places(bounds: Sequence[int], tiles: list[int], device: torch.device) -> Tensor:
    """(N + 1 + tiles + 1) int32: bounds, then first items of the tiles; one copy that the host need not wait for."""
    places = torch.tensor([*bounds, *tiles], dtype=torch.int32)
    return places.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else places


def supported(query: Tensor, key: Tensor, bounds: Sequence[int]) -> str | None:
    """Why `attend` cannot do this, in words; None where it can. Arguments as for `attend`."""
    cuts = _cuts(query, key, bounds)
    return cuts if isinstance(cuts, str) else None


def _no_kernel(query: Tensor, key: Tensor) -> str | None:
    """Why there is no kernel for this type or device, whatever the sizes."""
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
        return "the kernel was made for NVIDIA GPUs"
    if compiled and torch.cuda.get_device_capability(query.device) < (8, 0):
        return "the kernel needs a GPU of compute capability 8.0 or higher"
    return None


def attend(query: Tensor, out: Tensor, key: Tensor, value: Tensor, gram: Tensor, mask: Tensor | None, weight: Tensor,
           bounds: Sequence[int]) -> tuple[Tensor, Tensor, Tensor]:
    """Attention of every query token over the tokens of every key item, reduced at once to what the score needs.

    Products in the inputs' type with float32 sums (float32: tf32 where torch's own products may use it); softmax and
    sums in float32; for gram and mean the attention is rounded to the inputs' type. Not differentiable.

    Args:
        query, out: (H, d, C) float32, bfloat16 or float16; C real query tokens of N items, packed without padding.
            `query` is already scaled.
        key, value: (H, T, S, d) of the same type; T key items of at most S tokens.
        gram: (T, H * S, H * S) of the same type, symmetric.
        mask: (T, S) bool, True = real, or None where all are; every key item has at least one real token.
        weight: (C,) float32, 1 / (tokens of the query item that the token belongs to), so the same within an item.
        bounds: N + 1 numbers; item n has the tokens bounds[n] to bounds[n + 1], at least one.

    Returns:
        Of key item t and query token c, whose attention a is H * S long (head by head) and sums to 1 in each head:
        dot (T, C): sum of a times the products of value and out; square (T, C): a^T gram a;
        mean (T, N, H * S): a averaged over the tokens of each query item; all float32.

    Raises:
        CannotFuse: see `supported`; or no cut fits the shared memory, which only the compiler knows.
    """
    cuts = _cuts(query, key, bounds)
    if isinstance(cuts, str):
        raise CannotFuse(cuts)
    (heads, items, s, d), columns, device = key.shape, query.shape[-1], query.device
    dot, square = (torch.empty(items, columns, device=device) for _ in range(2))
    mean = torch.empty(items, len(bounds) - 1, heads * s, device=device)
    if items == 0:
        return dot, square, mean
    # Rows that start at multiples of 16 bytes are copied by the asynchronous engine; a tile of queries, which starts at
    # any token, has them only with the d numbers of a token side by side.
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
        except triton.runtime.errors.OutOfResources:            # this version of Triton takes more memory than reckoned
            continue
    raise CannotFuse(f"{heads} heads of {s} key tokens do not fit the shared memory")
