"""Projection of image features, and their statistics."""

import numpy as np
import torch

from ascl.data.split import build_split
from ascl.models import AsCL
from ascl.models.image import Standardize
from ascl.retrieval import build
from ascl.settings.retrieval import load_config


def test_standardize_brings_its_sample_to_mean_0_and_variance_1():
    sample = torch.randn(500, 6) * torch.tensor([1.0, 5.0, 0.1, 2.0, 3.0, 1.0]) + torch.arange(6.0)
    standardize = Standardize(6)
    standardize.fit(sample)
    expected = (sample.numpy() - sample.numpy().mean(0)) / sample.numpy().std(0, ddof=1)
    np.testing.assert_allclose(standardize(sample).numpy(), expected, rtol=1e-4, atol=1e-5)


def test_a_constant_feature_is_only_centred():
    sample = torch.tensor([[3.0, 1.0], [3.0, 2.0]])
    standardize = Standardize(2)
    standardize.fit(sample)
    assert standardize(sample)[:, 0].tolist() == [0.0, 0.0]
    assert standardize(torch.tensor([[4.0, 1.5]])).tolist() == [[1.0, 0.0]]


def test_statistics_are_saved_with_the_model_and_not_trained():
    model = AsCL(3, 3, None, 4, 2, standardize=True)
    assert "standardize_regions.mean" in model.state_dict()
    assert not [name for name, _ in model.named_parameters() if "standardize" in name]
    assert "standardize_regions.mean" not in AsCL(3, 3, None, 4, 2).state_dict()


def test_statistics_come_from_the_training_images(tiny_data, tmp_path):
    arguments = ["--data.captions", str(tiny_data / "captions.json"),
                 "--data.features", f"[{tiny_data / 'regions.h5'}, {tiny_data / 'globals.h5'}]"]
    config = load_config(arguments)
    captions, store = build_split(config, "train")
    model = AsCL(store.region_dim, store.global_dim, None, 8, 2, standardize=True)
    build.fit_standardization(model, captions, store)
    features = store.read(store.rows(captions.image_ids))
    regions = features.regions[features.mask]
    np.testing.assert_allclose(model.standardize_regions.mean.numpy(), regions.mean(0), rtol=1e-4, atol=1e-5)
    globals_ = model.standardize_globals.mean.numpy()
    np.testing.assert_allclose(globals_, features.globals.mean(0), rtol=1e-4, atol=1e-5)
