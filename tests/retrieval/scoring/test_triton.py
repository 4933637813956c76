"""The kernel against sums written out in float64: on the CPU through Triton's interpreter, on a GPU where there is one.

The interpreter knows no tf32: there, those cases are float32. Nor does it round to bfloat16, but cuts digits off.
Compilation for GPUs that this machine lacks is a test of its own, in a process without the interpreter.
"""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

triton = pytest.importorskip("triton", reason="triton is not installed")

from ascl.retrieval.scoring import triton as scoring_triton  # noqa: E402
from ascl.retrieval.scoring.triton import attend, supported  # noqa: E402
from ascl.settings.base import from_dict, read_settings  # noqa: E402
from ascl.settings.retrieval import Config  # noqa: E402

from ...warm_python import REPOSITORY, Program  # noqa: E402

CONFIGS = sorted((REPOSITORY / "configs").glob("*.yaml"))
MODELS = [from_dict(Config, read_settings(Config, path)).model for path in CONFIGS]
INTERPRETED = not isinstance(scoring_triton.kernel, triton.JITFunction)
PRECISIONS = ["float32", "tf32", "bfloat16", "float16"]
NAMES = ("dot", "square", "mean")


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    if (request.param == "cpu") != INTERPRETED:
        pytest.skip("compiled kernels run on GPUs, interpreted ones on the CPU (TRITON_INTERPRET=1)")
    return request.param


@pytest.fixture(autouse=True)
def torch_settings():
    """Memory that nobody wrote is NaN; the precision of float32 is put back."""
    before = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.use_deterministic_algorithms(before[1])


def bounds_of(lengths):
    return [0, *itertools.accumulate(lengths)]


def make(lengths, t, s, heads, d, dtype, masked, seed=0):
    """Random arguments of `attend` on the CPU; logits with a deviation of about 2, gram that of random vectors."""
    generator = torch.Generator().manual_seed(seed)
    c = sum(lengths)
    query, out = (torch.randn(heads, d, c, generator=generator) for _ in range(2))
    key, value = (torch.randn(heads, t, s, d, generator=generator) for _ in range(2))
    vectors = torch.randn(t, heads * s, 24, generator=generator) / 24**0.5
    mask = None
    if masked:
        mask = torch.rand(t, s, generator=generator) < 0.6
        mask[torch.arange(t), torch.randint(s, (t,), generator=generator)] = True
    weight = torch.cat([torch.full((n,), 1 / n) for n in lengths])
    low = [x.to(dtype) for x in (2 * query / d**0.5, out / d**0.5, key, value, vectors @ vectors.mT)]
    return [*low, mask, weight, bounds_of(lengths)]


def oracle(query, out, key, value, gram, mask, bounds):
    """One key item, one query token, one head at a time, in float64."""
    query, out, key, value, gram = (x.double().numpy() for x in (query, out, key, value, gram))
    heads, items, s, _ = key.shape
    dot, square = np.zeros((2, items, bounds[-1]))
    mean = np.zeros((items, len(bounds) - 1, heads * s))
    for t, n in itertools.product(range(items), range(len(bounds) - 1)):
        real = np.arange(s) if mask is None else np.flatnonzero(mask[t].numpy())
        for c in range(bounds[n], bounds[n + 1]):
            attention = np.zeros((heads, s))
            for h in range(heads):
                e = np.exp(key[h, t, real] @ query[h, :, c])
                attention[h, real] = e / e.sum()
                dot[t, c] += attention[h] @ (value[h, t] @ out[h, :, c])
            square[t, c] = attention.ravel() @ gram[t] @ attention.ravel()
            mean[t, n] += attention.ravel() / (bounds[n + 1] - bounds[n])
    return dot, square, mean


def plain(query, out, key, value, gram, mask, bounds):
    """The same with torch's operators, products in the inputs' type: what its rounding costs."""
    low = query.dtype
    logits = torch.einsum("htsx,hxc->tchs", key, query).float()
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None], float("-inf"))
    attention = logits.softmax(dim=-1)
    dot = (torch.einsum("htsx,hxc->tchs", value, out).float() * attention).sum(dim=(2, 3))
    rounded = attention.flatten(2)
    if INTERPRETED and low == torch.bfloat16:                       # the interpreter cuts digits off
        rounded = (rounded.view(torch.int32) & ~0xFFFF).view(torch.float32)
    rounded = rounded.to(low)
    square = ((rounded @ gram).float() * rounded.float()).sum(dim=2)
    mean = torch.stack([rounded[:, a:b].float().mean(dim=1) for a, b in itertools.pairwise(bounds)], dim=1)
    return dot, square, mean


def assert_as_torch(arguments, device, record=None):
    """Largest error of each result, in units of the largest number, is at most 2.5 times that of `plain` + 1e-6."""
    *tensors, bounds = arguments
    moved = [None if x is None else x.to(device) for x in tensors]
    results = [x.cpu() for x in attend(*moved, bounds)]
    *inputs, weight = moved
    expected = oracle(*tensors[:-1], bounds)
    by_torch = [x.cpu() for x in plain(*inputs, bounds)]
    for name, result, other, want in zip(NAMES, results, by_torch, expected, strict=True):
        assert result.dtype == torch.float32 and result.shape == want.shape
        scale = np.abs(want).max()
        error, allowed = (np.abs(x.double().numpy() - want).max() / scale for x in (result, other))
        if record is not None:
            record(name, f"{error:.1e} (plain torch {allowed:.1e})")
        assert error <= 2.5 * allowed + 1e-6, f"{name}: error {error:.2e}, that of plain torch {allowed:.2e}"


def dtype_of(precision):
    if precision == "tf32":
        torch.set_float32_matmul_precision("high")
        return torch.float32
    torch.set_float32_matmul_precision("highest")
    return getattr(torch, precision)


SHAPES = {      # lengths of the query items, key items, tokens of each, some of these not real
    "ragged words, images": ([3, 11, 1, 20, 12, 2], 2, 36, False),
    "ragged words, images with fewer regions": ([3, 11, 1, 20, 12, 2], 2, 36, True),
    "regions, texts": ([31, 1, 26], 2, 13, True),
    "one word, one region": ([1], 1, 1, False),
    "one word": ([1], 3, 5, True),
    "one region": ([5, 2], 2, 1, False),
    "one item": ([29], 2, 16, False),
    "more items than a tile takes": ([1] * 37, 1, 7, True),
    "more key items than a group takes": ([4, 1], scoring_triton.GROUP + 1, 3, False),
}


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("case", SHAPES)
def test_equals_the_oracle(case, precision, device, record_property):
    lengths, t, s, masked = SHAPES[case]
    assert_as_torch(make(lengths, t, s, 3, 20, dtype_of(precision), masked), device, record_property)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim, heads", sorted({(model.embed_dim, model.num_heads) for model in MODELS}))
def test_equals_the_oracle_with_the_heads_of_every_config(dim, heads, precision, device, record_property):
    assert_as_torch(make([9, 1, 17], 2, 36, heads, dim // heads, dtype_of(precision), True), device, record_property)


@pytest.mark.parametrize("heads", [1, 2, 3, 4, 5])             # odd circles have no head opposite
@pytest.mark.parametrize("d", [8, 16, 200])                     # less than a product takes, as much, and several times
def test_equals_the_oracle_with_any_heads(heads, d, device):
    for dtype in (torch.float32, torch.bfloat16):
        assert_as_torch(make([3, 6], 1, 9, heads, d, dtype, True), device)


@pytest.mark.parametrize("precision", ["tf32", "bfloat16", "float16"])
def test_long_texts(precision, device, record_property):
    assert_as_torch(make([7, 5], 2, 72, 2, 20, dtype_of(precision), True), device, record_property)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("lengths", [[36] * 4, [100, 28, 1], [64, 65]])
def test_items_longer_than_the_small_tile(lengths, dtype, device):
    assert_as_torch(make(lengths, 1, 10, 2, 16, dtype, True), device)


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=6), t=st.integers(1, 2), s=st.integers(1, 40),
       heads=st.integers(1, 3), masked=st.booleans(), seed=st.integers(0, 99))
@settings(max_examples=8, deadline=None, derandomize=True)
def test_any_shape(lengths, t, s, heads, masked, seed):
    device = "cpu" if INTERPRETED else "cuda"
    assert_as_torch(make(lengths, t, s, heads, 8, torch.bfloat16, masked, seed), device)


@given(lengths=st.lists(st.integers(1, 64), min_size=1, max_size=200), rows=st.sampled_from([64, 128]))
@settings(max_examples=50, deadline=None, derandomize=True)
def test_tiles_are_whole_items_and_as_full_as_can_be(lengths, rows):
    shape = scoring_triton.Shape(rows, rows // 4, 4, 16, 16, 2)
    bounds = bounds_of(lengths)
    tiles = scoring_triton.tiles_of(bounds, shape)
    assert tiles[0] == 0 and tiles[-1] == len(lengths)
    for first, last in itertools.pairwise(tiles):
        assert 0 < last - first <= shape.items and sum(lengths[first:last]) <= rows
        assert last == len(lengths) or last - first == shape.items or sum(lengths[first:last + 1]) > rows


def test_views_and_no_key_items(device):
    arguments = make([3, 5], 4, 6, 2, 8, torch.float32, True)
    query, out, key, value, gram, mask, weight, bounds = (x.to(device) if torch.is_tensor(x) else x for x in arguments)
    whole = attend(query, out, key, value, gram, mask, weight, bounds)
    part = attend(query, out, key[:, 1:3], value[:, 1:3], gram[1:3], mask[1:3], weight, bounds)
    for a, b in zip(whole, part, strict=True):
        assert torch.equal(a[1:3], b)
    none = attend(query, out, key[:, :0], value[:, :0], gram[:0], mask[:0], weight, bounds)
    assert [x.shape for x in none] == [(0, 8), (0, 8), (0, 2, 12)]


@pytest.mark.parametrize("change, reason", [
    ({"dtype": torch.float64}, "torch.float64"),
    ({"lengths": [3, 129]}, "query item of 129"),
    ({"heads": 16, "s": 36}, "16 heads, 36 key tokens"),
    ({"heads": 8, "s": 65}, "8 heads, 65 key tokens"),
])
def test_says_what_it_cannot_do(change, reason, device):
    shape = {"lengths": [3, 5], "t": 1, "s": 4, "heads": 2, "d": 8, "dtype": torch.bfloat16, "masked": False}
    arguments = [x.to(device) if torch.is_tensor(x) else x for x in make(**shape | change)]
    assert reason in supported(arguments[0], arguments[2], arguments[-1])
    with pytest.raises(ValueError, match=reason):
        attend(*arguments)
    good = make(**shape)
    assert supported(good[0].to(device), good[2].to(device), good[-1]) is None


IN_ITS_OWN_PROCESS = """
import json, os, re, subprocess, sys, tempfile
os.environ.pop("TRITON_INTERPRET", None)
from pathlib import Path
import torch, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from ascl.retrieval.scoring import triton as module

heads, d, results = 8, 128, []
for capability, dtype, precision, s, rows, shared in json.loads(sys.argv[1]):
    dtype = getattr(torch, dtype)
    shape = next(module.shapes(heads, d, s, dtype, precision, rows, capability, shared))
    fixed = module.constants(shape, heads, d, dtype, precision, True)
    names = module.kernel.arg_names
    low = "*fp32" if dtype == torch.float32 else "*bf16"
    types = dict.fromkeys(("query", "out", "key", "value", "gram"), low)
    types |= dict.fromkeys(("weight", "dot", "square", "mean"), "*fp32") | {"mask": "*u8", "places": "*i32"}
    signature = {name: "constexpr" if name in fixed else types.get(name, "i32") for name in names}
    source = ASTSource(
        module.kernel, signature, {(names.index(name),): value for name, value in fixed.items()},
        {(i,): [["tt.divisibility", 16]] for i, name in enumerate(names) if name in types},
    )
    built = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": shape.warps})
    code = built.asm["ptx"]
    architecture = re.search(r"[.]target (sm_[0-9a-z]+)", code)[1]
    log = ""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "kernel.ptx").write_text(code)
        # the newer of the two reads all PTX that this version of Triton writes; the option is what Triton gives it
        for name, options in (("ptxas-blackwell", ["--regAllocOptLevel=2"]), ("ptxas", [])):
            tool = Path(triton.__file__).parent / "backends/nvidia/bin" / name
            if tool.exists() and "Used" not in log:
                command = [tool, "-v", *options, "--gpu-name", architecture, "kernel.ptx", "-o", "kernel.cubin"]
                log = subprocess.run(command, cwd=folder, capture_output=True, text=True).stderr
    results.append({
        "inputs": f"{dtype} {precision}, {s} key tokens", "shape": str(shape), "shared": built.metadata.shared,
        "asynchronous": "cp.async" in code, "registers": int(re.search(r"Used (\\d+) registers", log)[1]),
        "spilled": int(re.search(r"(\\d+) bytes spill stores", log)[1]),
    })
print(json.dumps(results))
"""
BFLOAT16, TF32 = ("bfloat16", "ieee"), ("float32", "tf32")


GPUS = {        # capability -> KiB of shared memory that a program may use; type, precision, key tokens, rows of a tile
    80: (163, [(*BFLOAT16, 36, 64), (*TF32, 36, 32)]),              # A100
    89: (99, [(*BFLOAT16, 36, 64)]),                                # RTX 40
    90: (227, [(*BFLOAT16, 36, 64), (*BFLOAT16, 16, 64), (*TF32, 36, 32), (*TF32, 16, 64)]),        # H100
}


def test_compiles_for_gpus_that_are_not_here(record_property):
    """D 1024, H 8."""
    if not (Path(triton.__file__).parent / "backends/nvidia/bin/ptxas").exists():
        pytest.skip("this Triton brings no ptxas")
    asked = [[capability, *kernel, kib << 10] for capability, (kib, kernels) in GPUS.items() for kernel in kernels]
    compiler = Program("-c", IN_ITS_OWN_PROCESS, json.dumps(asked))
    assert compiler.wait(600) == 0, compiler.complained()[-2000:]
    for (*_, room), built in zip(asked, json.loads(compiler.said()), strict=True):
        record_property(f"{built['inputs']}, {room >> 10} KiB", str(built))
        assert built["shared"] <= room, built
        assert built["spilled"] <= 512, built                       # bytes a thread; its registers hold 1020
        assert built["asynchronous"], built                         # loads overlap with products
