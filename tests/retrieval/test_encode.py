"""A split is encoded in batches, and equal items come out equal wherever they stand."""

import itertools

import numpy as np
import pytest
import torch

from ascl import AsCL
from ascl.data.captions import CaptionSet
from ascl.data.stores.open import open_features
from ascl.models.text import BertWords
from ascl.retrieval import rank_all_pairs
from ascl.retrieval.encode import encode_images, encode_texts


@pytest.fixture
def model(tiny_bert):
    torch.manual_seed(0)
    return AsCL(region_dim=32, global_dim=32, text=BertWords(str(tiny_bert)), embed_dim=16, num_heads=2,
                student_dim=4).eval()


def test_equal_captions_are_encoded_alike_among_any_others(model):
    texts = ["a dog", *["the man sits on the grass"] * 7, "a small red ball and a big blue hat on the snow", "a dog"]
    encoded = encode_texts(model, texts, batch=3)
    for one, other in itertools.combinations(range(len(texts)), 2):
        same = torch.equal(encoded.words[one], encoded.words[other])
        assert same == torch.equal(encoded.student[one], encoded.student[other]) == (texts[one] == texts[other])
    alone = encode_texts(model, [texts[8]])
    torch.testing.assert_close(encoded.words[8, : alone.words.shape[1]], alone.words[0])
    torch.testing.assert_close(encoded.student[8], alone.student[0])


def test_images_of_equal_features_are_encoded_alike_in_any_batch(model, tmp_path):
    regions = np.random.default_rng(0).standard_normal((9, 3, 32)).astype(np.float32)
    regions[[4, 8]] = regions[1]
    np.save(tmp_path / "test_ims.npy", regions)
    (tmp_path / "test_ids.txt").write_text("".join(f"image{i}\n" for i in range(9)))
    store = open_features([tmp_path / "test_ims.npy"], globals_from="mean-region")
    captions = CaptionSet(store.image_ids, ["a dog"] * 9, np.arange(9), "made here")
    images = encode_images(model, captions, store, batch=4)
    for one, other in itertools.combinations(range(9), 2):
        equal = torch.equal(images.regions[one], images.regions[other])
        assert equal == torch.equal(images.globals[one], images.globals[other])
        assert equal == torch.equal(images.student[one], images.student[other])
        assert equal == ({one, other} <= {1, 4, 8})
    texts = encode_texts(model, captions.captions)
    report = rank_all_pairs(model, images, texts, captions.owner)
    assert report.i2t.r1 == 0                           # nine equal captions: nobody is first
