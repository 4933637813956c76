"""DSRAN and DIME against the papers' formulas written out in numpy, one item or pair and one token at a time."""

import numpy as np
import pytest
import torch

from ascl.models.baselines import Dime, Dsran

REGION_DIM, GLOBAL_DIM, TEXT_DIM, D, HEADS = 5, 3, 4, 8, 2
REGIONS, WORDS = [3, 1, 4], [4, 1, 2, 3]         # real regions of the images, words of the texts


class Words(torch.nn.Module):
    """Stands where a text encoder would: text i has fixed random words."""

    dim = TEXT_DIM

    def forward(self, texts):
        hidden = torch.randn(len(WORDS), max(WORDS), TEXT_DIM, generator=torch.Generator().manual_seed(7)).double()
        return hidden[[int(text) for text in texts]], torch.arange(max(WORDS)) < torch.tensor(WORDS)[:, None]


def build(kind, **settings):
    """A model in float64 and evaluation mode with random weights and running statistics."""
    torch.manual_seed(0)
    model = kind(REGION_DIM, GLOBAL_DIM, Words(), D, num_heads=HEADS, **settings).double().eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                tensor += 0.3 * torch.rand_like(tensor)
    return model


def features():
    generator = torch.Generator().manual_seed(3)
    regions = torch.randn(len(REGIONS), max(REGIONS), REGION_DIM, generator=generator).double()
    return (regions, torch.randn(len(REGIONS), GLOBAL_DIM, generator=generator).double(),
            torch.arange(max(REGIONS)) < torch.tensor(REGIONS)[:, None])


def scores_of(model):
    with torch.no_grad():
        texts = model.encode_texts([str(i) for i in range(len(WORDS))])
        return model.pair_scores(model.encode_images(*features()), texts).numpy()


def expected(of_pair):
    """Return the matrix of of_pair(regions (K, dim), whole image (dim,), words (L, dim)) over real tokens."""
    regions, globals_, _ = (part.numpy() for part in features())
    words = Words()([str(i) for i in range(len(WORDS))])[0].numpy()
    return [[of_pair(regions[i, :k], globals_[i], words[j, :length]) for j, length in enumerate(WORDS)]
            for i, k in enumerate(REGIONS)]


def linear(module, x):
    return module.weight.detach().numpy() @ x + module.bias.detach().numpy()


def relu(x):
    return np.maximum(x, 0)


def unit(x):
    return x / np.linalg.norm(x)


def softmax(x):
    e = np.exp(x - np.max(x))
    return e / e.sum()


def two_layers(network, x):
    return linear(network[2], relu(linear(network[0], x)))


def self_attention(query_key_value, tokens):
    """Concatenated heads of each token, from the packed matrix and bias of query, key and value."""
    matrix, bias = (x.detach().numpy() for x in query_key_value)
    query, key, value = ([part @ token + b for token in tokens] for part, b in
                         zip(np.split(matrix, 3), np.split(bias, 3), strict=True))
    size = D // HEADS
    results = []
    for q in query:
        heads = []
        for h in range(HEADS):
            part = slice(h * size, (h + 1) * size)
            weights = softmax(np.array([q[part] @ k[part] / np.sqrt(size) for k in key]))
            heads.append(sum(w * v[part] for w, v in zip(weights, value, strict=True)))
        results.append(np.concatenate(heads))
    return results


# --- DSRAN ---


def running(norm, x):
    mean, variance, weight, bias = (part.detach().numpy() for part in (
        norm.running_mean, norm.running_var, norm.weight, norm.bias))
    return (x - mean) / np.sqrt(variance + norm.eps) * weight + bias


def graph(layer, nodes):
    attention = layer.attention
    heads = self_attention((attention.in_proj_weight, attention.in_proj_bias), nodes)
    nodes = [running(layer.attention_norm, x + linear(attention.out_proj, y))
             for x, y in zip(nodes, heads, strict=True)]
    return [running(layer.network_norm, x + two_layers(layer.network, x)) for x in nodes]


def fused(fusion, x, y):
    a, b = linear(fusion.first, x), linear(fusion.second, y)
    t = 1 / (1 + np.exp(-linear(fusion.gate, np.concatenate([a, b]))))
    return t * a + (1 - t) * b


@pytest.mark.parametrize("graphs", [1, 2, 4])
def test_dsran_relates_regions_then_regions_and_whole_image(graphs):
    model = build(Dsran, joint_graphs=graphs)

    def of_pair(regions, whole, words):
        nodes = [relu(linear(model.regions[2][0], relu(linear(model.regions[0], region)))) for region in regions]
        nodes = [relu(linear(model.whole[0], whole)), *graph(model.region_graph, nodes)]
        images = [np.mean(graph(joint, nodes), axis=0) for joint in model.joint_graphs]
        if graphs == 4:
            images = [fused(model.fusions[0], *images[:2]), fused(model.fusions[1], *images[2:])]
        image = images[0] if graphs == 1 else fused(model.fusions[-1], *images)
        text = np.mean(graph(model.word_graph, [relu(linear(model.words[0], word)) for word in words]), axis=0)
        return unit(image) @ unit(text)

    np.testing.assert_allclose(scores_of(model), expected(of_pair), atol=1e-12)


def test_dsran_normalizes_over_its_batch_while_training_and_not_after():
    model = build(Dsran)
    regions, globals_, mask = features()
    with torch.no_grad():
        alone, together = (model.encode_images(regions[:n], globals_[:n], mask[:n]).globals[0] for n in (1, 3))
        torch.testing.assert_close(alone, together)
        for part in model.train().modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
            elif isinstance(part, torch.nn.MultiheadAttention):
                part.dropout = 0.0
        alone, together = (model.encode_images(regions[:n], globals_[:n], mask[:n]).globals[0] for n in (1, 3))
    assert (alone - together).abs().max() > 1e-2


# --- DIME ---


def gates(router, tokens):
    return relu(np.tanh(two_layers(router.network, np.mean(tokens, axis=0))))


def reasoning(cell, tokens):
    heads = self_attention((cell.query_key_value.weight, cell.query_key_value.bias), tokens)
    tokens = [x + y for x, y in zip(tokens, heads, strict=True)]
    return [x + two_layers(cell.network, x) for x in tokens]


def refinement(cell, tokens, contexts):
    similar = np.array([[x @ y for y in contexts] for x in tokens])
    similar = np.maximum(similar, 0.1 * similar)
    similar = similar / np.sqrt((similar**2).sum(axis=0, keepdims=True))            # over the tokens that attend
    refined = []
    for x, row in zip(tokens, similar, strict=True):
        attended = sum(w * y for w, y in zip(softmax(cell.sharpness * row), contexts, strict=True))
        refined.append(x + two_layers(cell.network, x * np.tanh(linear(cell.scale, attended))
                                      + linear(cell.shift, attended)))
    return refined


def guidance(cell, tokens, vector):
    guided = np.array([linear(cell.local, x) * vector for x in tokens])
    guided = guided / np.linalg.norm(guided, axis=0)                                # of a dimension, over the tokens
    return [(1 + g) * x for g, x in zip(guided, tokens, strict=True)]


def interaction(module, tokens, contexts, vector):
    """Refine unit tokens by layers of cells, and return the cosine of their pooled result with the vector."""
    inputs = [tokens] * 4
    for number, layer in enumerate(module.layers):
        of_cells = [gates(router, x) for router, x in zip(layer.routers, inputs, strict=True)]      # 4 x paths
        results = [[relu(x) for x in inputs[0]], guidance(layer.guidance, inputs[1], vector),
                   reasoning(layer.reasoning, inputs[2]), refinement(layer.refinement, inputs[3], contexts)]
        outputs = []
        for path in range(len(of_cells[0])):
            shares = [gate[path] for gate in of_cells]
            if number + 1 < len(module.layers):
                skip = float(sum(shares) < 1e-4)
                weights = [share / (sum(shares) + 1e-8) for share in shares]
                outputs.append([sum(w * y[i] for w, y in zip(weights, results, strict=True)) + skip * results[0][i]
                                for i in range(len(tokens))])
            else:
                closed = [float(share < 1e-4 / 4) for share in shares]
                outputs.append([
                    sum(share * y[i] + skip * x[i] for share, skip, y, x in
                        zip(shares, closed, results, inputs, strict=True)) / (sum(shares) + sum(closed))
                    for i in range(len(tokens))])
        inputs = outputs
    weight, bias = (part.detach().numpy() for part in (module.norm.weight, module.norm.bias))
    normed = [(x - x.mean()) / np.sqrt(x.var() + module.norm.eps) * weight + bias for x in inputs[0]]
    return unit(np.mean(normed, axis=0) + np.max(normed, axis=0)) @ vector


def convolved(model, words):
    """Words through convolutions over one, two and three of them, with zeros before the first and after the last."""
    padded = [np.zeros(TEXT_DIM), *words, np.zeros(TEXT_DIM)]
    results = []
    for place, word in enumerate(words, start=1):
        windows = [padded[place : place + 1], padded[place : place + 2], padded[place - 1 : place + 2]]
        around = [relu(np.einsum("dek,ke->d", convolution.weight.detach().numpy(), np.array(window))
                       + convolution.bias.detach().numpy())
                  for convolution, window in zip(model.convolutions, windows, strict=True)]
        results.append(linear(model.mapping, np.concatenate(around)) + linear(model.words, word))
    return results


@pytest.mark.parametrize("opened", [True, False], ids=["open", "closed"])
@pytest.mark.parametrize("settings", [
    {"direction": "i2t"}, {"direction": "t2i"}, {"layers": 1}, {"layers": 2, "lambda_softmax": 5.0},
], ids=str)
def test_dime_routes_tokens_through_its_cells(settings, opened):
    model = build(Dime, **settings)
    if not opened:                                       # some gates shut: those of one cell, and all of one path
        for part in (model.of_regions, model.of_words):
            for layer in [] if part is None else part.layers:
                with torch.no_grad():
                    layer.routers[2].network[2].bias.fill_(-50.0)
                    for router in layer.routers:
                        router.network[2].bias[0] = -50.0

    def of_pair(regions, _, words):
        regions, words = [linear(model.regions, region) for region in regions], convolved(model, words)
        image, text = unit(np.mean(regions, axis=0)), unit(np.mean(words, axis=0))
        regions, words = [unit(x) for x in regions], [unit(x) for x in words]
        scores = []
        if model.of_regions is not None:
            scores.append(interaction(model.of_regions, regions, words, text))
        if model.of_words is not None:
            scores.append(interaction(model.of_words, words, regions, image))
        return np.mean(scores)

    np.testing.assert_allclose(scores_of(model), expected(of_pair), atol=1e-10)
