"""What the tests of losses over vectors share: scalar arithmetic on lists, and random inputs."""

import math

import torch


def vectors(count, dim, seed=0):
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit_rows(count, dim, seed=0):
    return torch.nn.functional.normalize(vectors(count, dim, seed), dim=1)


def dot(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def cosine(a, b):
    return dot(a, b) / math.sqrt(dot(a, a) * dot(b, b))


def softmax(values):
    total = sum(math.exp(v - max(values)) for v in values)
    return [math.exp(v - max(values)) / total for v in values]
