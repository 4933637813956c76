"""The collapse monitor against naive computations, and each of its warnings on a planted collapse."""

import math

import numpy as np
import pytest
import torch

from ascl.core.errors import DataError
from ascl.image_copy.training.monitor import health, spectrum


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_spectrum_is_that_of_numpys_covariance():
    vectors = randn(40, 6) * torch.tensor([3.0, 2, 1, 0.5, 0.1, 0.01], dtype=torch.float64)
    expected = np.sort(np.linalg.eigvalsh(np.cov(vectors.numpy().T)))[::-1]
    seen = spectrum(vectors, tolerance=0.02)
    assert np.allclose(seen.singular_values.numpy(), expected, rtol=1e-9)
    assert seen.rank == int((expected > 0.02 * expected[0]).sum()) and seen.rpr == seen.rank / 6
    assert 0 < spectrum(vectors, tolerance=0.5).rank < seen.rank < spectrum(vectors, tolerance=1e-9).rank == 6


def test_rank_of_vectors_that_lie_in_a_plane():
    assert spectrum(randn(50, 2) @ randn(2, 8, seed=1)).rank == 2
    assert spectrum((randn(50, 2) @ randn(2, 8, seed=1)).float()).rank == 2
    assert spectrum(torch.ones(10, 4)).rank == 0
    assert spectrum(randn(4, 8)).rank == 3  # four points span three dimensions


def test_a_sound_descriptor_gets_no_warning():
    references = randn(200, 8)
    seen = health(references + 0.1 * randn(200, 8, seed=1), references, 5 + randn(200, seed=2))
    assert seen.warnings == [] and seen.metrics["rpr"] == 1 and seen.metrics["rpr_tolerance"] == 0.01
    assert seen.metrics["gap"] == pytest.approx(
        seen.metrics["positive_cosine"] - seen.metrics["hardest_negative_cosine"]
    )


def test_the_gap_is_that_of_the_nearest_stranger():
    references, queries = randn(9, 3), randn(9, 3, seed=1)
    cosine = [[float(torch.cosine_similarity(q, r, dim=0)) for r in references] for q in queries]
    gaps = [row[i] - max(value for j, value in enumerate(row) if j != i) for i, row in enumerate(cosine)]
    assert health(queries, references).metrics["gap"] == pytest.approx(sum(gaps) / 9)


def test_each_collapse_has_its_warning():
    flat = randn(100, 3) @ randn(3, 8, seed=1)
    seen = health(flat, flat)
    assert len(seen.warnings) == 1 and "3 of 8 dimensions" in seen.warnings[0] and "0.01" in seen.warnings[0]
    references = randn(100, 8)
    seen = health(randn(100, 8, seed=1), references)
    assert len(seen.warnings) == 1 and "no nearer than other images" in seen.warnings[0] and seen.metrics["gap"] < 0
    seen = health(references, references, torch.full((100,), 3.0))
    assert len(seen.warnings) == 1 and "norms have collapsed" in seen.warnings[0]
    assert len(health(torch.ones(20, 4), torch.ones(20, 4), torch.zeros(20)).warnings) == 3
    few = health(references[:6], references[:6])
    assert few.metrics["rpr"] == 5 / 8 and few.warnings == []
    assert health(references[:4], references[:4]).warnings == []  # four images show three dimensions, no collapse
    two = randn(4, 1) @ randn(1, 8, seed=1)
    assert "1 of 3 dimensions that 4 images can show" in health(two, two + randn(4, 8, seed=2) * 1e-3).warnings[0]


def test_what_has_no_spectrum():
    for vectors in (torch.zeros(1, 4), torch.tensor([[0.0, math.nan], [1, 1]]), torch.zeros(4)):
        with pytest.raises(DataError, match="at least two finite"):
            spectrum(vectors)
    with pytest.raises(DataError, match="tolerance"):
        spectrum(torch.ones(3, 2), tolerance=0)
