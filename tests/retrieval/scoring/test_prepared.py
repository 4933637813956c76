"""Scores of a batch against the formulas written out in numpy, one pair and one head at a time; their gradients."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ascl.retrieval import score_batch
from ascl.retrieval.scoring.attention import ON_CPU, Keys, Queries
from ascl.retrieval.scoring.attention import attend as attend_fast
from ascl.retrieval.scoring.prepared import MOST_PADDING, alike


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def cosine(a, b):
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def attend(attention, queries, keys):
    """Equation 1, head by head: one attended vector of the keys for each query."""
    heads = attention.num_heads
    dim = queries.shape[1]
    d = dim // heads
    if isinstance(attention, torch.nn.MultiheadAttention):
        zq, zk, zv = (w.detach().numpy() for w in attention.in_proj_weight.chunk(3))
        zo, scale = attention.out_proj.weight.detach().numpy(), d**-0.5
    else:
        zq = zk = zv = zo = np.eye(dim)
        scale = attention.scale
    result = []
    for x in queries:
        concatenated = []
        for h in range(heads):
            rows = slice(h * d, (h + 1) * d)
            weights = softmax(np.array([(zq[rows] @ x) @ (zk[rows] @ y) * scale for y in keys]))
            concatenated.append(sum(w * (zv[rows] @ y) for w, y in zip(weights, keys, strict=True)))
        result.append(zo @ np.concatenate(concatenated))
    return np.array(result)


def score_oracle(model, regions, whole, words):
    """AsCL, section 2.3 and equation 2, for one image and one text without padding."""
    def matrix(linear):
        return linear.weight.detach().numpy()

    if model.fusion:
        text_of_region = attend(model.region_to_word, regions, words)
        image_of_word = attend(model.word_to_region, words, regions)
    else:
        text_of_region = np.repeat(words.mean(0)[None], len(regions), 0)
        image_of_word = np.repeat(regions.mean(0)[None], len(words), 0)
    local = np.mean([cosine(v, w) for v, w in zip(regions, text_of_region, strict=True)]) / 2
    local += np.mean([cosine(w, v) for w, v in zip(words, image_of_word, strict=True)]) / 2
    first = matrix(model.attended_image_global) @ image_of_word.mean(0)
    second = matrix(model.image_global) @ whole
    t = 1 / (1 + np.exp(-(matrix(model.gate) @ np.concatenate([first, second]) + model.gate.bias.detach().numpy())))
    text_vector = matrix(model.text_global) @ text_of_region.mean(0)
    global_ = cosine(t * first + (1 - t) * second, text_vector)
    return model.local_weight * local + (1 - model.local_weight) * global_


VARIANTS = [{}, {"projections": False}, {"tied_key_value": True}, {"fusion": False}, {"heads": 1}, {"masked": False},
            {"k": 1}, {"longest": 1}, {"images": 1, "texts": 1}]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_reference_is_the_papers_formula(example, variant):
    model, images, texts = example(**variant)
    scores = model.pair_scores(images, texts)
    for i in range(len(images)):
        for j in range(len(texts)):
            kept = slice(None) if images.mask is None else images.mask[i]
            expected = score_oracle(model, images.regions[i][kept].numpy(), images.globals[i].numpy(),
                                    texts.words[j][texts.mask[j]].numpy())
            assert scores[i, j].item() == pytest.approx(expected, abs=1e-10)


@pytest.fixture(params=[ON_CPU, replace(ON_CPU, gram=2, keys=2, pairs=1, kept=0)], ids=["whole", "in small parts"])
def chunks(request):
    """What is done in parts for large items only, done so for small ones."""
    return request.param


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("block", [1, 2, 64])
def test_algebra_equals_the_reference(example, variant, block, chunks):
    model, images, texts = example(**variant)
    scores = score_batch(model, images, [texts], block=block, chunks=chunks)[0]
    torch.testing.assert_close(scores, model.pair_scores(images, texts), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("entries", "columns"), [(1, 1), (200, 9), (1 << 20, 1000)])
@pytest.mark.parametrize("variant", [{}, {"projections": False}, {"tied_key_value": True}], ids=str)
def test_gradients_equal_the_references(example, variant, entries, columns, chunks):
    chunks = replace(chunks, entries=entries, columns=columns)
    model, images, texts = example(**variant)
    inputs = [images.regions, images.globals, texts.words]
    for tensor in inputs:
        tensor.requires_grad_()
    weight = torch.randn(len(images), len(texts), dtype=torch.float64)
    wanted = inputs + list(model.parameters())

    def gradients(scores):
        return torch.autograd.grad((scores * weight).sum(), wanted, allow_unused=True)

    expected = gradients(model.pair_scores(images, texts))
    actual = gradients(score_batch(model, images, [texts], block=2, chunks=chunks)[0])
    used = 0
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            used += 1
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert used >= 8


def test_gradcheck_of_the_attention(chunks):
    chunks = replace(chunks, columns=3)                             # several chunks of columns
    heads, d, columns, items, s = 2, 3, 4, 2, 3
    shapes = [(heads, d, columns), (heads, d, columns), (heads, items, s, d), (heads, items, s, d)]
    query, out, key, value = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    half = torch.randn(items, heads * s, heads * s, dtype=torch.float64, requires_grad=True)
    members = torch.tensor([[1, 0], [1, 0], [1, 0], [0, 1]], dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])

    def run(query, out, key, value, half):
        gram = half + half.transpose(1, 2)                          # a Gram matrix is symmetric
        queries = Queries(query, out, torch.ones(columns), members, members.sum(0), [0, 3, 4])
        attended = attend_fast(queries, Keys(key, value, gram, half, mask), chunks)
        return attended.dot, attended.square, attended.mean

    assert torch.autograd.gradcheck(run, (query, out, key, value, half))


@given(st.lists(st.integers(1, 60), min_size=1, max_size=40).map(sorted), st.integers(1, 32))
def test_blocks_of_texts_keep_their_order_and_have_little_padding(counts, most):
    blocks = alike(counts, most)
    assert [count for of_block in blocks for count in of_block] == counts
    for of_block in blocks:
        padding = sum(max(of_block) - count for count in of_block)
        assert len(of_block) <= most and padding <= MOST_PADDING * sum(of_block)


def test_several_sets_of_texts_come_back_in_their_order(example):
    model, images, texts = example(texts=7)
    first, second = score_batch(model, images, [texts, texts[:3]], block=2)
    torch.testing.assert_close(first[:, :3], second)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_removed_word_has_cosine_zero_and_gradients_of_ordinary_size(example, dtype):
    model, images, texts = example(images=4, texts=4, longest=3, dtype=torch.float32)
    texts.words[1, 0] = 0                                       # what token cutoff leaves
    texts.mask[1] = torch.tensor([True, True, False])
    with torch.autocast("cpu", dtype):
        scores, = score_batch(model, images, [texts])
    (1e4 * scores.float()).sum().backward()                     # a loss scaled as for float16
    exact = model.pair_scores(images, texts)
    torch.testing.assert_close(scores.float(), exact, rtol=0, atol=0.03)
    assert scores.dtype == torch.float32
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) >= 6 and all(gradient.isfinite().all() for gradient in gradients)


def test_a_shuffled_caption_scores_exactly_as_the_caption(example):
    """The paper's shuffle moves rows of W; attention and means over words do not see their order."""
    model, images, texts = example(masked=False)
    texts.mask[:] = True
    order = torch.randperm(texts.words.shape[1])
    shuffled = replace(texts, words=texts.words[:, order])
    torch.testing.assert_close(model.pair_scores(images, shuffled), model.pair_scores(images, texts))
