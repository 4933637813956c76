"""Baselines: every operator against a scalar computation of its own, from the papers, with loops over entries."""

import importlib.util
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ascl.data.pairs import Batch
from ascl.models import EncodedImages, EncodedTexts
from ascl.models.baselines import Clip, Imram, Scan, TwoTower, Vse, VseInfinity
from ascl.models.baselines.vse_infinity import GeneralizedPooling, position_encodings
from ascl.retrieval import score_batch
from ascl.retrieval.objective import RetrievalObjective

REGION_DIM, GLOBAL_DIM, TEXT_DIM, D = 5, 3, 4, 6
ONE_VECTOR = [TwoTower, Vse, VseInfinity, Clip]
TOKENS = {
    "scan t2i mean": (Scan, {"direction": "t2i"}),
    "scan i2t mean": (Scan, {"direction": "i2t"}),
    "scan t2i logsumexp": (Scan, {"direction": "t2i", "pooling": "logsumexp"}),
    "scan i2t logsumexp": (
        Scan, {"direction": "i2t", "pooling": "logsumexp", "lambda_lse": 3.0, "lambda_softmax": 7.0}),
    "imram, 1 step": (Imram, {"steps": 1}),
    "imram, 2 steps": (Imram, {"steps": 2}),
    "imram, 3 steps": (Imram, {"steps": 3, "lambda_softmax": 5.0}),
}


class Words(torch.nn.Module):
    """Stands where a text encoder would: text i has the given words, padded with numbers that must play no part."""

    dim = TEXT_DIM

    def __init__(self, lengths, longest=None, seed=0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.lengths, self.longest = lengths, longest or max(lengths)
        self.words = [torch.randn(n, TEXT_DIM, generator=generator, dtype=torch.float64) for n in lengths]

    def forward(self, texts):
        chosen = [int(text) for text in texts]
        hidden = torch.full((len(chosen), self.longest, TEXT_DIM), 1e3, dtype=torch.float64)
        for row, i in enumerate(chosen):
            hidden[row, : self.lengths[i]] = self.words[i]
        mask = torch.arange(self.longest) < torch.tensor([self.lengths[i] for i in chosen])[:, None]
        return hidden, mask


LENGTHS, COUNTS = [4, 1, 3], [3, 1]             # words of three texts, real regions of two images


def build(kind, settings=None):
    """A model in float64 and evaluation mode with random weights, biases included."""
    torch.manual_seed(0)
    model = kind(REGION_DIM, GLOBAL_DIM, Words(LENGTHS), D, **settings or {}).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "log_scale":
                parameter += 0.3 * torch.randn_like(parameter)
    return model


def features(padding=1e3):
    """Regions (2, 3, REGION_DIM), of which the second image has one real one, globals, and the mask."""
    generator = torch.Generator().manual_seed(1)
    regions = torch.randn(2, 3, REGION_DIM, generator=generator, dtype=torch.float64)
    mask = torch.arange(3) < torch.tensor(COUNTS)[:, None]
    regions[~mask] = padding
    return regions, torch.randn(2, GLOBAL_DIM, generator=generator, dtype=torch.float64), mask


def items(model):
    """Two images and three texts, encoded."""
    with torch.no_grad():
        return model.encode_images(*features()), model.encode_texts(["0", "1", "2"])


def scores_of(model):
    with torch.no_grad():
        return model.pair_scores(*items(model)).tolist()


# --- scalar arithmetic ---


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b):
    return dot(a, b) / (math.sqrt(dot(a, a)) * math.sqrt(dot(b, b)))


def affine(linear, x):
    bias = [0.0] * len(linear.weight) if linear.bias is None else linear.bias.tolist()
    return [dot(row, x) + b for row, b in zip(linear.weight.tolist(), bias, strict=True)]


def mean(vectors):
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def real_regions(i):
    return features()[0][i, : COUNTS[i]].tolist()


def real_words(j):
    return Words(LENGTHS).words[j].tolist()


# --- one vector an item ---


def two_layers(network, x):
    first, _, last = network
    return affine(last, [max(0.0, value) for value in affine(first, x)])


@pytest.mark.parametrize(("kind", "projected"), [(Vse, affine), (TwoTower, two_layers), (Clip, two_layers)])
def test_vse_and_the_towers_project_means(kind, projected):
    """By two linear maps, and by two layers."""
    model = build(kind)
    globals_ = features()[1].tolist()
    expected = [[cosine(projected(model.image, mean(real_regions(i)) + globals_[i]),
                        projected(model.words, mean(real_words(j)))) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(scores_of(model), expected, atol=1e-12)
    images, texts = items(model)
    assert images.regions.shape == (2, 1, D) and texts.mask.all()


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def gru(pooling, suffix, inputs):
    """States of one direction by the equations of a GRU: r, z, n, h = (1 - z) n + z h."""
    weight_ih, weight_hh, bias_ih, bias_hh = (
        getattr(pooling.gru, f"{name}_l0{suffix}").tolist() for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
    )
    size = len(weight_hh) // 3
    h, states = [0.0] * size, []
    for x in inputs:
        of_x = [dot(row, x) + b for row, b in zip(weight_ih, bias_ih, strict=True)]
        of_h = [dot(row, h) + b for row, b in zip(weight_hh, bias_hh, strict=True)]
        r = [sigmoid(of_x[k] + of_h[k]) for k in range(size)]
        z = [sigmoid(of_x[size + k] + of_h[size + k]) for k in range(size)]
        n = [math.tanh(of_x[2 * size + k] + r[k] * of_h[2 * size + k]) for k in range(size)]
        h = [(1 - z[k]) * n[k] + z[k] * h[k] for k in range(size)]
        states.append(h)
    return states


def pooling_weights(pooling, count):
    """theta of a set of so many features."""
    positions = [[(math.cos if k % 2 else math.sin)(p / 10000 ** (2 * (k // 2) / 32)) for k in range(32)]
                 for p in range(count)]
    forward = gru(pooling, "", positions)
    backward = gru(pooling, "_reverse", positions[::-1])[::-1]
    score = pooling.score.weight[0].tolist()
    logits = [dot(score, [(a + b) / 2 for a, b in zip(f, g, strict=True)]) / 0.1
              for f, g in zip(forward, backward, strict=True)]
    total = sum(math.exp(x - max(logits)) for x in logits)
    return [math.exp(x - max(logits)) / total for x in logits]


def pooled(pooling, vectors):
    theta = pooling_weights(pooling, len(vectors))
    return [dot(theta, sorted(column, reverse=True)) for column in zip(*vectors, strict=True)]


def test_vse_infinity_sorts_and_weighs_by_place():
    model = build(VseInfinity)

    def image(i):
        projected = []
        for region in real_regions(i):
            linear, residual = affine(model.image, region), two_layers(model.image_residual, region)
            projected.append([a + b for a, b in zip(linear, residual, strict=True)])
        return pooled(model.image_pooling, projected)

    def text(j):
        return pooled(model.text_pooling, [affine(model.words, word) for word in real_words(j)])

    expected = [[cosine(image(i), text(j)) for j in range(3)] for i in range(2)]
    np.testing.assert_allclose(scores_of(model), expected, atol=1e-6)       # position encodings are float32


def test_positions_are_those_of_the_transformer():
    encodings = position_encodings(7, 6)
    for p in range(7):
        for k in range(6):
            angle = p / 10000 ** (2 * (k // 2) / 6)
            assert encodings[p, k].item() == pytest.approx(math.cos(angle) if k % 2 else math.sin(angle), abs=1e-6)


def test_pooling_can_be_mean_or_maximum():
    """What the paper builds on: with the right weights the operator is either; here the weights are put in its way."""
    pooling = GeneralizedPooling().double()
    vectors = torch.randn(1, 5, D, dtype=torch.float64)
    torch.nn.init.zeros_(pooling.score.weight)                              # all places alike
    torch.testing.assert_close(pooling(vectors, None), vectors.mean(dim=1))
    pooling.weights = lambda lengths: torch.tensor([[1.0, 0, 0, 0, 0]], dtype=torch.float64)
    torch.testing.assert_close(pooling(vectors, None), vectors.amax(dim=1))


def test_pooling_weights_depend_on_the_number_of_features_alone():
    """Sizes mixed in one batch give each item what it gets alone; padding may hold anything, NaN included."""
    pooling = GeneralizedPooling().double()
    vectors = torch.randn(4, 6, D, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [0, 1, 0, 0, 0, 0], [1, 0, 1, 0, 1, 0], [1, 1, 1, 0, 0, 0]]).bool()
    vectors[~mask] = float("nan")
    together = pooling(vectors, mask)
    for row, (vector, real) in enumerate(zip(vectors, mask, strict=True)):
        torch.testing.assert_close(together[row], pooling(vector[real][None], None)[0])


def test_size_augmentation_drops_a_fifth_while_training_and_never_everything():
    model = build(VseInfinity)
    dropped = model.train().augmented(torch.zeros(400, 50, 1), None)
    assert abs((~dropped).float().mean() - 0.2) < 0.02
    single = model.augmented(torch.zeros(400, 3, 1), torch.tensor([[True, False, False]]).expand(400, 3))
    assert single.any(dim=1).all() and not single[:, 1:].any()
    mask = torch.ones(4, 3, dtype=torch.bool)
    assert model.eval().augmented(torch.zeros(4, 3, 1), mask) is mask and model.augmented(mask, None) is None


# --- stacked attention ---


def stacked(queries, contexts, sharpness, similarity=None):
    """Attended vector of each query; `similarity` of queries that are not the ones to be compared."""
    s = similarity or [[cosine(q, c) for c in contexts] for q in queries]
    clipped = [[max(x, 0.1 * x) for x in row] for row in s]
    attended = []
    for i in range(len(queries)):
        logits = [sharpness * clipped[i][j] / math.sqrt(sum(clipped[other][j] ** 2 for other in range(len(queries))))
                  for j in range(len(contexts))]
        total = sum(math.exp(x) for x in logits)
        units = [[x / math.sqrt(dot(c, c)) for x in c] for c in contexts]
        attended.append([sum(math.exp(logits[j]) / total * units[j][d] for j in range(len(contexts)))
                         for d in range(len(contexts[0]))])
    return attended


def scan_scalar(regions, words, direction, pooling="mean", lambda_softmax=None, lambda_lse=None):
    queries, contexts = (words, regions) if direction == "t2i" else (regions, words)
    sharpness = lambda_softmax or {"t2i": 9, "i2t": 4}[direction]
    relevance = [cosine(q, a) for q, a in zip(queries, stacked(queries, contexts, sharpness), strict=True)]
    if pooling == "mean":
        return sum(relevance) / len(relevance)
    base = lambda_lse or {"t2i": 6, "i2t": 5}[direction]
    return math.log(sum(math.exp(base * r) for r in relevance)) / base


def unit(vector):
    return [x / math.sqrt(dot(vector, vector)) for x in vector]


def imram_direction(queries, contexts, memory, steps, sharpness):
    """Sum over steps of the mean cosine of the original queries with what their states attend to."""
    originals = [unit(q) for q in queries]
    contexts = [unit(c) for c in contexts]
    states, total = originals, 0.0
    for step in range(steps):
        attended = stacked(states, contexts, sharpness)
        total += sum(cosine(q, a) for q, a in zip(originals, attended, strict=True)) / len(originals)
        if step + 1 < steps:
            updated = []
            for state, a in zip(states, attended, strict=True):
                both = affine(memory.gate_and_new, state + a)           # rows of the gate above those of the new state
                updated.append([sigmoid(g) * x + (1 - sigmoid(g)) * math.tanh(o)
                                for g, o, x in zip(both[:D], both[D:], state, strict=True)])
            states = updated
    return total


def imram_scalar(regions, words, model, steps, lambda_softmax=None):
    of_words = imram_direction(words, regions, model.word_memory, steps, lambda_softmax or 9)
    of_regions = imram_direction(regions, words, model.region_memory, steps, lambda_softmax or 4)
    return (of_words + of_regions) / (2 * steps)


@pytest.mark.parametrize("name", TOKENS)
def test_models_with_cross_attention_are_the_papers(name):
    kind, settings = TOKENS[name]
    model = build(kind, settings)
    expected = []
    for i in range(2):
        regions = [affine(model.regions, region) for region in real_regions(i)]
        row = []
        for j in range(3):
            words = [affine(model.words, word) for word in real_words(j)]
            row.append(scan_scalar(regions, words, **settings) if kind is Scan
                       else imram_scalar(regions, words, model, **settings))
        expected.append(row)
    np.testing.assert_allclose(scores_of(model), expected, atol=1e-10)


@pytest.mark.parametrize("direction", ["t2i", "i2t"])
def test_scan_is_the_one_of_the_benchmarks(direction):
    """The independent SCAN that the speed of scoring is compared with, written in the order of published code."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "scan.py"
    spec = importlib.util.spec_from_file_location("benchmark_scan", path)
    other = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(other)
    model = build(Scan, {"direction": direction})
    images, texts = items(model)
    images = EncodedImages(images.regions, images.globals)                      # it knows no padded regions
    scores = other.score_all(other.text_to_image if direction == "t2i" else other.image_to_text,
                             F.normalize(images.regions, dim=-1), F.normalize(texts.words, dim=-1), LENGTHS,
                             torch.device("cpu"))
    with torch.no_grad():
        np.testing.assert_allclose(model.pair_scores(images, texts), scores, atol=1e-6)     # kept in float32


@pytest.mark.parametrize(("fault", "name"), [
    ("norm over contexts", "scan t2i mean"), ("no slope", "scan i2t mean"),
    ("padding counts", "imram, 2 steps"),       # to SCAN it is nothing: it shortens the attended vector alone
])
def test_the_oracle_notices_a_fault(fault, name, monkeypatch):
    def wrong(similarity, context_mask, sharpness):
        clipped = F.leaky_relu(similarity, 0.0 if fault == "no slope" else 0.1)
        over = 1 if fault == "norm over contexts" else 3
        logits = sharpness * clipped / (clipped.norm(dim=over, keepdim=True) + 1e-8)
        if fault != "padding counts" and context_mask is not None:
            logits = logits.masked_fill(~context_mask[:, :, None, None], -torch.inf)
        return logits.softmax(dim=1)

    monkeypatch.setattr("ascl.models.baselines.tokens.stacked_attention", wrong)
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        test_models_with_cross_attention_are_the_papers(name)


def test_imram_notices_padded_states_that_count():
    """A state of padding is not zero after the first memory; it must not enter the norm over the queries."""
    model = build(Imram, {"steps": 3})
    images, texts = items(model)
    longer = EncodedTexts(F.pad(texts.words, (0, 0, 0, 5), value=7.0), F.pad(texts.mask, (0, 5)))
    with torch.no_grad():
        torch.testing.assert_close(model.pair_scores(images, longer), model.pair_scores(images, texts))


# --- what all have in common ---


ALL = {kind.__name__: (kind, {}) for kind in ONE_VECTOR} | TOKENS


@pytest.mark.parametrize("name", ALL)
def test_padding_and_order_of_tokens_play_no_part(name):
    model = build(*ALL[name])
    expected = scores_of(model)
    for padding in (0.0, -5e4):
        regions, globals_, mask = features(padding)
        order = torch.tensor([2, 0, 1])
        wider = F.pad(regions[:, order], (0, 0, 0, 2), value=padding), globals_, F.pad(mask[:, order], (0, 2))
        model.text = Words(LENGTHS, longest=9)
        with torch.no_grad():
            scores = model.pair_scores(model.encode_images(*wider), model.encode_texts(["0", "1", "2"]))
        np.testing.assert_allclose(scores.tolist(), expected, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
def test_a_mask_of_real_regions_alone_is_no_mask(name):
    model = build(*ALL[name])
    regions, globals_, mask = features()
    with torch.no_grad():
        texts = model.encode_texts(["0", "2"])
        one, other = (model.pair_scores(model.encode_images(regions[:1], globals_[:1], m), texts)
                      for m in (None, mask[:1]))
    torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ALL)
def test_every_parameter_learns(name):
    model = build(*ALL[name])
    regions, globals_, mask = features()
    batch = Batch(regions, globals_, mask, ["0", "1"], None)
    RetrievalObjective(0.07, None)(model, batch, 0, torch.Generator())["loss"].backward()
    assert not [n for n, parameter in model.named_parameters() if parameter.grad is None or not parameter.grad.any()]


@pytest.mark.parametrize("name", TOKENS)
@pytest.mark.parametrize("kept", [0, 1 << 30])
def test_blocks_and_computing_again_change_nothing(name, kept):
    """Scores and gradients of pairs in blocks of one or two, kept or computed again, against all at once."""
    model = build(*TOKENS[name])
    weights = torch.randn(2, 3, dtype=torch.float64)

    def result(texts_together):
        model.zero_grad()
        images, texts = model.encode_images(*features()), model.encode_texts(["0", "1", "2"])
        scores = score_batch(model, images, [texts], block=texts_together)[0]
        (scores * weights).sum().backward()
        return [scores.detach(), *(parameter.grad.clone() for parameter in model.parameters())]

    expected = result(3)
    model.kept_numbers = kept
    for limit in (1, 2 * model.pair_numbers(3, 4)):
        model.block_numbers = limit
        for together in (3, 2):
            for one, other in zip(result(together), expected, strict=True):
                torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TOKENS)
def test_words_that_are_zero_give_numbers(name):
    """Cutoff and dropout can take all of a word: it has no direction, and neither score nor gradient may notice."""
    model = build(*TOKENS[name])
    images, texts = model.encode_images(*features()), model.encode_texts(["0", "1", "2"])
    words = texts.words.clone()
    words[0, 1] = words[1] = 0                                                  # one of a text's words, and all
    scores = model.pair_scores(images, EncodedTexts(words, texts.mask))
    scores.sum().backward()
    assert scores.isfinite().all()
    assert all(parameter.grad is None or parameter.grad.isfinite().all() for parameter in model.parameters())


@pytest.mark.parametrize("name", ALL)
def test_half_precision_is_near(name):
    kind, settings = ALL[name]
    torch.manual_seed(0)
    model = kind(REGION_DIM, GLOBAL_DIM, Words(LENGTHS), 32, **settings).eval()
    model.text.words = [words.float() for words in model.text.words]
    regions, globals_, mask = features(padding=1.0)
    encode_text = model.text.forward
    model.text.forward = lambda texts: (encode_text(texts)[0].float(), encode_text(texts)[1])

    def scores():
        images = model.encode_images(regions.float(), globals_.float(), mask)
        return score_batch(model, images, [model.encode_texts(["0", "1", "2"])])[0]

    exact = scores()
    with torch.autocast("cpu", torch.bfloat16):
        low = scores()
    assert low.dtype == torch.float32 and (low - exact).abs().max() < 0.05


@pytest.mark.parametrize(("kind", "settings", "message"), [
    (Scan, {"direction": "t2i", "lambda_softmax": 0.0}, "lambda_softmax must be positive and finite, got 0.0"),
    (Scan, {"direction": "i2t", "lambda_lse": -1.0}, "lambda_lse must be positive"),
    (Imram, {"steps": 0}, "at least 1 step, got 0"),
    (Imram, {"lambda_softmax": float("nan")}, "lambda_softmax"),
    (Clip, {"temperature": 0.001}, "0.01 or above, got 0.001"),
])
def test_settings_that_make_no_model_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(REGION_DIM, GLOBAL_DIM, Words(LENGTHS), D, **settings)


# --- CLIP's temperature ---


def clip_loss_scalar(cosines, scale):
    """Both cross-entropies of the n pairs, summed, as a loss of two directions is here; entry by entry."""
    n, total = len(cosines), 0.0
    for i in range(n):
        row = sum(math.exp(scale * cosines[i][j]) for j in range(n))
        column = sum(math.exp(scale * cosines[j][i]) for j in range(n))
        true = math.exp(scale * cosines[i][i])
        total -= (math.log(true / row) + math.log(true / column)) / n
    return total


def clip_step(model):
    """Metrics of one training step, and the cosines of its batch."""
    regions, globals_, mask = features()
    batch = Batch(regions, globals_, mask, ["0", "2"], None)
    metrics = RetrievalObjective(0.07, None)(model, batch, 0, torch.Generator())
    metrics["loss"].backward()
    return metrics, model.pair_scores(model.encode_images(regions, globals_, mask), model.encode_texts(["0", "2"]))


@pytest.mark.parametrize("scale", [1 / 0.07, 30.0])
def test_clip_learns_the_temperature_of_its_loss(scale):
    model = build(Clip)
    with torch.no_grad():
        model.log_scale.fill_(math.log(scale))
    metrics, cosines = clip_step(model)
    assert metrics["loss"].item() == pytest.approx(clip_loss_scalar(cosines.tolist(), scale), rel=1e-9)
    assert metrics["temperature"].item() == pytest.approx(1 / scale)
    above, below = (clip_loss_scalar(cosines.tolist(), scale * math.exp(step)) for step in (1e-6, -1e-6))
    assert model.log_scale.grad.item() == pytest.approx((above - below) / 2e-6, rel=1e-5)


def test_clip_scores_are_cosines_wherever_the_temperature_is():
    model = build(Clip)
    before = scores_of(model)
    with torch.no_grad():
        model.log_scale.fill_(3.0)
    assert scores_of(model) == before and scores_of(model.train()) == before
    assert np.abs(before).max() <= 1


def test_clip_starts_at_the_temperature_that_it_gets():
    assert clip_step(build(Clip, {"temperature": 0.2}))[0]["temperature"].item() == pytest.approx(0.2)


def test_clips_scale_comes_back_to_100_and_can_leave_it():
    model = build(Clip)
    with torch.no_grad():
        model.log_scale.fill_(math.log(250.0))
    metrics, cosines = clip_step(model)
    assert metrics["loss"].item() == pytest.approx(clip_loss_scalar(cosines.tolist(), 100), rel=1e-9)
    assert model.log_scale.item() == pytest.approx(math.log(100)) and model.log_scale.grad != 0
