"""Every pair's score against the formulas written out in numpy, one pair and one head at a time."""

import numpy as np
import pytest
import torch

from ascl.models import AsCL, EncodedImages, EncodedTexts
from ascl.retrieval import rank_report, scoring
from ascl.retrieval.scoring import score_all_pairs, score_batch, score_blocks


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


def example(images=3, texts=5, k=4, longest=6, dim=24, heads=4, masked=True, dtype=torch.float64, seed=0, **variant):
    torch.manual_seed(seed)
    model = AsCL(8, 6, None, dim, heads, 0.7, **variant).to(dtype)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    mask = None
    if masked:
        mask = torch.rand(images, k) > 0.4
        mask[:, 0] = True
    encoded = model.encode_images(torch.randn(images, k, 8, dtype=dtype), torch.randn(images, 6, dtype=dtype), mask)
    lengths = torch.randint(1, longest + 1, (texts,))
    lengths[0] = 1
    words = EncodedTexts(2 * torch.randn(texts, longest, dim, dtype=dtype), torch.arange(longest) < lengths[:, None])
    return model, EncodedImages(encoded.regions.detach(), encoded.globals.detach(), mask), words


VARIANTS = [{}, {"projections": False}, {"fusion": False}, {"heads": 1}, {"masked": False}, {"k": 1}, {"longest": 1},
            {"images": 1, "texts": 1}]


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_reference_is_the_papers_formula(variant):
    model, images, texts = example(**variant)
    scores = model.pair_scores(images, texts)
    for i in range(len(images)):
        for j in range(len(texts)):
            kept = slice(None) if images.mask is None else images.mask[i]
            expected = score_oracle(
                model, images.regions[i][kept].numpy(), images.globals[i].numpy(), texts.words[j][texts.mask[j]].numpy()
            )
            assert scores[i, j].item() == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("block", [1, 2, 64])
def test_algebra_equals_the_reference(variant, block):
    model, images, texts = example(**variant)
    expected = model.pair_scores(images, texts)
    torch.testing.assert_close(score_batch(model, images, [texts], block=block)[0], expected, rtol=0, atol=1e-12)
    blocks = score_all_pairs(model, images, texts, image_block=block, text_block=block)
    assert blocks.dtype == torch.float32
    torch.testing.assert_close(blocks, expected.float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("chunk", [1, 200, 1 << 20])
@pytest.mark.parametrize("variant", [{}, {"projections": False}], ids=str)
def test_gradients_equal_the_references(variant, chunk, monkeypatch):
    monkeypatch.setattr(scoring, "CPU_CHUNK", chunk)
    model, images, texts = example(**variant)
    inputs = [images.regions, images.globals, texts.words]
    for tensor in inputs:
        tensor.requires_grad_()
    weight = torch.randn(len(images), len(texts), dtype=torch.float64)
    wanted = inputs + list(model.parameters())

    def gradients(scores):
        return torch.autograd.grad((scores * weight).sum(), wanted, allow_unused=True)

    expected = gradients(model.pair_scores(images, texts))
    actual = gradients(score_batch(model, images, [texts], block=2)[0])
    used = 0
    for a, b in zip(actual, expected, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            used += 1
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)
    assert used >= 8


def test_gradcheck_of_the_attention_that_recomputes():
    heads, d, columns, items, s = 2, 3, 4, 2, 3
    shapes = [(heads, d, columns), (heads, d, columns), (heads, items, s, d), (heads, items, s, d)]
    query, out, key, value = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    half = torch.randn(items, heads * s, heads * s, dtype=torch.float64, requires_grad=True)
    weight = torch.full((2, 2), 0.5, dtype=torch.float64)
    mask = torch.tensor([[True, True, False], [True, True, True]])

    def run(query, out, key, value, half):
        gram = half + half.transpose(1, 2)                          # a Gram matrix is symmetric
        return scoring._Attend.apply(query, out, weight, key, value, gram, mask)

    assert torch.autograd.gradcheck(run, (query, out, key, value, half))


def test_several_sets_of_texts_come_back_in_their_order():
    model, images, texts = example(texts=7)
    first, second = score_batch(model, images, [texts, texts[:3]], block=2)
    torch.testing.assert_close(first[:, :3], second)


def test_padding_changes_nothing():
    model, images, texts = example()
    padded = EncodedTexts(torch.nn.functional.pad(texts.words, (0, 0, 0, 5), value=3.0),
                          torch.nn.functional.pad(texts.mask, (0, 5)))
    torch.testing.assert_close(score_all_pairs(model, images, padded), score_all_pairs(model, images, texts))


def test_float32_is_as_exact_as_the_reference_in_float32():
    model, images, texts = example(images=6, texts=9, dim=64, heads=4)
    exact = model.pair_scores(images, texts)
    single = model.float()
    images, texts = images.to(torch.float32), texts.to(torch.float32)
    own_error = (single.pair_scores(images, texts) - exact).abs().max()
    error = (score_all_pairs(single, images, texts) - exact).abs().max()
    assert error < 10 * own_error + 1e-7


def test_rows_come_in_blocks():
    model, images, texts = example(images=5)
    rows = list(score_blocks(model, images, texts, image_block=2))
    assert [len(block) for block in rows] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(rows), score_all_pairs(model, images, texts))


def test_ranks_need_no_whole_matrix():
    model, images, texts = example(images=5, texts=10)
    owner = torch.arange(10) % 5
    streamed = rank_report(score_blocks(model, images, texts, image_block=2), owner)
    assert streamed == rank_report(score_all_pairs(model, images, texts), owner)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_removed_word_has_cosine_zero_and_gradients_of_ordinary_size(dtype):
    model, images, texts = example(images=4, texts=4, longest=3, dtype=torch.float32)
    texts.words[1, 0] = 0                                       # what token cutoff leaves
    texts.mask[1] = torch.tensor([True, True, False])
    with torch.autocast("cpu", dtype):
        scores, = score_batch(model, images, [texts])
    (1e4 * scores.float()).sum().backward()                     # a loss scaled as for float16
    exact = model.pair_scores(images, texts)
    torch.testing.assert_close(scores.float(), exact, rtol=0, atol=0.03)
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(gradients) >= 6 and all(gradient.isfinite().all() for gradient in gradients)


def test_without_fusion_blocks_give_the_same(monkeypatch):
    model, images, texts = example(images=5, texts=7, fusion=False)
    monkeypatch.setattr(scoring, "CHEAP_BLOCK", 2)
    torch.testing.assert_close(
        score_all_pairs(model, images, texts), model.pair_scores(images, texts).float(), rtol=0, atol=1e-6
    )


def test_texts_prepared_again_for_each_block_give_the_same(monkeypatch):
    model, images, texts = example(images=5)
    expected = score_all_pairs(model, images, texts)
    monkeypatch.setattr(scoring, "PREPARED_BUDGET", 0)
    torch.testing.assert_close(score_all_pairs(model, images, texts, image_block=2, text_block=2), expected)


def test_a_shuffled_caption_scores_exactly_as_the_caption():
    """The paper's shuffle moves rows of W; attention and means over words do not see their order."""
    model, images, texts = example(masked=False)
    texts.mask[:] = True
    order = torch.randperm(texts.words.shape[1])
    shuffled = EncodedTexts(texts.words[:, order], texts.mask)
    torch.testing.assert_close(model.pair_scores(images, shuffled), model.pair_scores(images, texts))


@pytest.mark.parametrize("what", ["no images", "no texts", "nan region", "infinite word", "no words", "no regions"])
def test_what_has_no_score_is_refused_before_any_work(what):
    model, images, texts = example()
    if what == "no images":
        images, match = images[:0], "0 images"
    elif what == "no texts":
        texts, match = texts[:0], "0 texts"
    elif what == "nan region":
        images.regions[1, 0, 0], match = float("nan"), "region embeddings of item 1"
    elif what == "infinite word":
        texts.words[2, 0, 0], match = float("inf"), "word embeddings of item 2"
    elif what == "no words":
        texts.mask[3], match = False, "text 3 has no real token"
    else:
        images.mask[2], match = False, "image 2 has no real token"
    with pytest.raises(ValueError, match=match):
        score_blocks(model, images, texts)
