"""Pairs and batches: no image twice in a batch, as many batches as exist, the same draws for any workers and resume."""

import sys
from collections import Counter
from functools import partial

import h5py
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet
from ascl.data.neighbors import nearest, nearest_images
from ascl.data.pairs import PairDataset, UniqueImageBatchSampler, collate
from ascl.data.stores.open import FeatureStore, open_features
from ascl.samples.positives import Positive, generate_positive

IMAGES, PER_IMAGE = 12, 3


@pytest.fixture
def captions() -> CaptionSet:
    owner = np.arange(IMAGES * PER_IMAGE) % IMAGES  # not three in a row
    texts = [f"picture {o} told in way {j}" for j, o in enumerate(owner)]
    return CaptionSet([f"i{n}" for n in range(IMAGES)], texts, owner, "captions.json")


@pytest.fixture
def regions() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(IMAGES, 4, 5)).astype(np.float32)


@pytest.fixture
def store(tmp_path, regions) -> FeatureStore:
    """Rows in another order than the captions' images: row r holds image IMAGES - 1 - r."""
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.attrs.update({"format": "ascl-features", "version": 1})
        file.create_dataset("image_ids", data=[f"i{n}" for n in range(IMAGES)][::-1], dtype=h5py.string_dtype())
        file["regions"] = regions[::-1]
        file["globals"] = regions.mean(axis=1)[::-1]
        file["region_count"] = np.array([4] * IMAGES)
    return open_features([tmp_path / "f.h5"])


# ---- items


def test_an_item_is_the_image_of_its_caption(captions, store, regions):
    dataset = PairDataset(captions, store)
    assert len(dataset) == IMAGES * PER_IMAGE
    for index in (0, 13, 35):
        item = dataset[index]
        assert item.captions == [captions.captions[index]]
        assert np.array_equal(item.regions[0], regions[captions.owner[index]])
        assert np.array_equal(item.globals[0], regions.mean(axis=1)[captions.owner[index]])
        assert item.region_mask.all() and item.positives is None


def test_positives_depend_on_seed_epoch_and_caption_alone(captions, store):
    positive = partial(generate_positive, "concatenate")
    first, again = (PairDataset(captions, store, positive, seed=3) for _ in range(2))
    keys = [(epoch, index) for epoch in range(3) for index in range(len(first))]
    drawn = {key: first[key].positives for key in keys}
    assert {key: again[key].positives for key in reversed(keys)} == drawn  # whatever was drawn before
    assert first[5].positives == drawn[0, 5]
    by_epoch = [[drawn[epoch, index] for index in range(len(first))] for epoch in range(3)]
    assert by_epoch[0] != by_epoch[1] != by_epoch[2]
    other_seed = PairDataset(captions, store, positive, seed=4)
    assert [other_seed[i].positives for i in range(len(first))] != by_epoch[0]


def test_the_positive_function_gets_the_captions_of_the_image_and_the_place_of_this_one(captions, store):
    seen = []

    def positive(texts, index, rng):
        seen.append((texts, index))
        return Positive("positive", 1)

    item = PairDataset(captions, store, positive)[17]  # caption 17 is the second of image 5
    assert (item.positives, item.positive_order.tolist()) == (["positive"], [1])
    assert seen == [([captions.captions[i] for i in (5, 17, 29)], 1)]


def test_images_without_captions_need_no_features(store):
    some = CaptionSet(["unseen", "i3"], ["a dog"], np.array([1]), "c.json")
    assert PairDataset(some, store)[0].captions == ["a dog"]


def test_dataset_errors(captions, store, tmp_path):
    missing = CaptionSet(["i1", "nowhere"], ["a", "b"], np.array([0, 1]), "c.json")
    with pytest.raises(DataError, match=r"no features of 1 image in .*f\.h5: nowhere\..*Extract regions"):
        PairDataset(missing, store)
    with pytest.raises(IndexError, match=r"caption 36 of 36 \(captions\.json\)"):
        PairDataset(captions, store)[36]
    with h5py.File(tmp_path / "globals.h5", "w") as file:
        file.attrs.update({"format": "ascl-features", "version": 1})
        file.create_dataset("image_ids", data=captions.image_ids, dtype=h5py.string_dtype())
        file["globals"] = np.zeros((IMAGES, 3), dtype=np.float32)
    with pytest.raises(DataError, match=r"globals\.h5 has no regions, only globals: extract regions of the images too"):
        PairDataset(captions, open_features([tmp_path / "globals.h5"]))


# ---- batches


def test_a_batch_is_read_at_once_and_moves_to_a_device(captions, store, regions):
    dataset = PairDataset(captions, store, partial(generate_positive, "prefix"))
    batch = dataset.__getitems__([4, 0, 9])
    assert len(batch) == 3
    assert torch.equal(batch.regions, torch.from_numpy(regions[[4, 0, 9]])) and batch.regions.dtype == torch.float32
    assert batch.globals.shape == (3, 5) and batch.region_mask.shape == (3, 4) and batch.region_mask.dtype == torch.bool
    assert batch.captions == [captions.captions[i] for i in (4, 0, 9)]
    assert batch.positives == ["picture 4 told", "picture 0 told", "picture 9 told"]
    assert batch.positive_order.tolist() == [-1, -1, -1] and batch.positive_order.dtype == torch.int64
    moved = batch.to("meta")
    assert {moved.regions.device.type, moved.globals.device.type, moved.region_mask.device.type} == {"meta"}
    assert moved.positive_order.device.type == "meta"
    assert moved.captions == batch.captions and batch.regions.device.type == "cpu"


def test_a_batch_without_globals_masks_and_positives(captions, tmp_path):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file.attrs.update({"format": "ascl-features", "version": 1})
        file.create_dataset("image_ids", data=captions.image_ids, dtype=h5py.string_dtype())
        file["regions"] = np.ones((IMAGES, 2, 3), dtype=np.float32)
    batch = PairDataset(captions, open_features([tmp_path / "f.h5"])).__getitems__([1, 2])
    assert (batch.globals, batch.region_mask, batch.positives, batch.positive_order) == (None,) * 4
    assert batch.regions.shape == (2, 2, 3) and batch.to("cpu").globals is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="page-locked memory needs a GPU")
def test_batches_are_pinned(captions, store):
    loader = DataLoader(PairDataset(captions, store), batch_size=4, collate_fn=collate, pin_memory=True)
    batch = next(iter(loader))
    assert batch.regions.is_pinned() and batch.to("cuda", non_blocking=True).regions.is_cuda


def everything(loader: DataLoader) -> list[tuple]:
    return [(batch.captions, batch.positives, batch.regions.numpy().tobytes()) for batch in loader]


def loader_of(captions: CaptionSet, store: FeatureStore, sampler: UniqueImageBatchSampler, workers: int) -> DataLoader:
    dataset = PairDataset(captions, store, partial(generate_positive, "both"), seed=1)
    return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, num_workers=workers,
                      persistent_workers=workers > 0)


def test_workers_that_outlive_an_epoch_change_nothing(captions, store):
    alone, with_workers = (UniqueImageBatchSampler(captions.owner, 4, seed=1) for _ in range(2))
    one, many = loader_of(captions, store, alone, 0), loader_of(captions, store, with_workers, 2)
    epochs = []
    for epoch in range(2):
        alone.set_epoch(epoch)
        with_workers.set_epoch(epoch)
        epochs.append(everything(one))
        assert everything(many) == epochs[-1]
    assert epochs[0] != epochs[1]


def test_a_resume_at_a_batch_goes_on_exactly(captions, store):
    sampler = UniqueImageBatchSampler(captions.owner, 4, seed=1)
    loader = loader_of(captions, store, sampler, 0)
    whole = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        whole += everything(loader)
    used = 4 + len(sampler)  # stopped after 4 batches of epoch 1

    resumed = UniqueImageBatchSampler(captions.owner, 4, seed=1, epoch=0)
    resumed.set_epoch(used // len(sampler), position=used % len(sampler))
    loader = loader_of(captions, store, resumed, 0)
    resumed.set_epoch(1)  # as loaders do once more by themselves
    rest = everything(loader)
    resumed.set_epoch(2)
    assert rest + everything(loader) == whole[used:]


# ---- the sampler


@settings(max_examples=200, deadline=None)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=12), batch_size=st.integers(1, 6),
       seed=st.integers(0, 1000), epoch=st.integers(0, 3), group=st.none() | st.integers(1, 6))
def test_every_plan_is_valid_and_none_has_more_batches(counts, batch_size, seed, epoch, group):
    """Of random images, and of groups of neighbors."""
    rng = np.random.default_rng(seed)
    owner = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    images = sum(c > 0 for c in counts)
    assume(images >= batch_size >= (group or 1))
    near = None if group is None else rng.permuted(np.tile(np.arange(images), (images, 1)), axis=1)[:, :2 * group]
    sampler = UniqueImageBatchSampler(owner, batch_size, seed=seed, epoch=epoch, neighbors=near, group_size=group or 1)
    batches = list(sampler)
    assert len(batches) == len(sampler)
    assert all(e == epoch for batch in batches for e, _ in batch)
    assert all(len({owner[c] for _, c in batch}) == batch_size == len(batch) for batch in batches)
    assert max(Counter(c for batch in batches for _, c in batch).values()) == 1
    # m batches take at most min(captions, m) of each image, so no plan has more than the largest m that this allows
    most = max(m for m in range(sum(counts) + 1) if sum(min(c, m) for c in counts) >= m * batch_size)
    assert len(batches) == most


def test_epochs_and_seeds_differ_and_repeat():
    owner = np.repeat(np.arange(40), 5)
    sampler = UniqueImageBatchSampler(owner, 8, seed=2)
    zero = [[c for _, c in batch] for batch in sampler]
    assert [[c for _, c in batch] for batch in sampler] == zero
    sampler.set_epoch(1)
    assert [[c for _, c in batch] for batch in sampler] != zero
    sampler.set_epoch(0)
    assert [[c for _, c in batch] for batch in sampler] == zero
    assert [[c for _, c in batch] for batch in UniqueImageBatchSampler(owner, 8, seed=3)] != zero


def test_all_captions_come_up_over_epochs_although_rests_are_dropped():
    owner = np.repeat(np.arange(7), 3)  # 21 captions, batches of 4: one is left over in each epoch
    sampler = UniqueImageBatchSampler(owner, 4)
    seen: Counter[int] = Counter()
    for epoch in range(40):
        sampler.set_epoch(epoch)
        seen.update(c for batch in sampler for _, c in batch)
    assert set(seen) == set(range(21)) and min(seen.values()) >= 30


def test_partners_in_a_batch_are_random():
    """Two captions of an image are as good as never in the company of the same images."""
    owner = np.repeat(np.arange(1000), 5)
    company: dict[int, list[set[int]]] = {}
    for batch in UniqueImageBatchSampler(owner, 50):
        images = {int(owner[c]) for _, c in batch}
        for image in images:
            company.setdefault(image, []).append(images - {image})
    shared = [len(a & b) / 49 for groups in company.values() for a, b in zip(groups, groups[1:], strict=False)]
    assert abs(np.mean(shared) - 0.05) < 0.01  # 49 of 999


def test_groups_of_neighbors_stay_together_and_are_others_in_each_epoch():
    """100 families of 12 images, batches of 4 groups of 6: two groups of a family, rarely in one batch."""
    owner = np.repeat(np.arange(1200), 3)
    family = np.arange(1200) // 12
    vectors = torch.randn(100, 8, generator=torch.Generator().manual_seed(0)).repeat_interleave(12, 0)
    near = nearest(vectors + torch.randn(1200, 8, generator=torch.Generator().manual_seed(1)) / 1000, 12)
    assert (family[near] == family[:, None]).all()
    sampler = UniqueImageBatchSampler(owner, 24, neighbors=near, group_size=6)
    companies = []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        together: dict[int, set[int]] = {}
        for batch in sampler:
            images = owner[[caption for _, caption in batch]]
            assert len(images) == 24
            counted = Counter(family[images].tolist())
            assert set(counted.values()) <= {6, 12}
            for image in images.tolist():
                together.setdefault(image, set()).update(images[family[images] == family[image]].tolist())
        companies.append(together)
    assert companies[0] != companies[1]
    random = [np.unique(family[owner[[c for _, c in batch]]]).size for batch in UniqueImageBatchSampler(owner, 24)]
    assert np.mean(random) > 20


def test_the_nearest_are_those_of_every_pair_of_standardized_vectors():
    vectors = torch.randn(2100, 5, generator=torch.Generator().manual_seed(3)) * torch.tensor([1, 9, 1, 1, 0]) + 100.1
    scaled = (vectors.double() - vectors.double().mean(0))[:, :4]
    scaled /= scaled.std(0)
    scaled /= scaled.norm(dim=1, keepdim=True)
    found = nearest(vectors, 7)
    assert found.dtype == np.int32 and found.shape == (2100, 7) and (found[:, 0] == np.arange(2100)).all()
    expected = (scaled @ scaled.T).sort(descending=True).values[:, :7]
    cosines = (scaled[:, None] * scaled[found]).sum(2)
    torch.testing.assert_close(cosines, expected, rtol=0, atol=1e-4)     # float32 features of about 100


def test_neighbors_are_found_by_id_whatever_the_stores_order(store, captions):
    ids = [captions.image_ids[number] for number in (7, 2, 5, 9)]
    found = nearest_images(store, ids, 3)
    read = store.read(store.rows(ids)).globals
    assert np.array_equal(found, nearest(torch.from_numpy(read), 3)) and found.shape == (4, 3)
    assert nearest_images(store, ids, 64).shape == (4, 4)       # all there are


def test_sampler_errors():
    with pytest.raises(DataError, match="groups of 3 neighbors must have from 1 to 2 images, the batch size"):
        UniqueImageBatchSampler([0, 0, 1, 5], 2, neighbors=np.zeros((3, 3), dtype=np.int32), group_size=3)
    with pytest.raises(DataError, match="batch size 4 must be from 1 to 3, the number of images with captions"):
        UniqueImageBatchSampler([0, 0, 1, 5], 4)
    sampler = UniqueImageBatchSampler([0, 0, 1, 1], 2)
    with pytest.raises(ValueError, match="no batch 3 in epoch 0: epochs start at 0, with 2 batches"):
        sampler.set_epoch(0, position=3)
    with pytest.raises(ValueError, match="epochs start at 0"):
        sampler.set_epoch(-1)


def test_a_large_epoch_is_planned_in_one_pass():
    """A plan that went through what waits again for each batch would make millions of calls."""
    calls = [0]

    def count(frame, event, what) -> None:
        calls[0] += event == "c_call"

    owner = np.repeat(np.arange(20_000), 5)
    sampler = UniqueImageBatchSampler(owner, 64)
    sys.setprofile(count)
    try:
        batches = list(sampler)
    finally:
        sys.setprofile(None)
    plan = np.array([[caption for _, caption in batch] for batch in batches])
    assert plan.shape == (100_000 // 64, 64) and plan.size == len(np.unique(plan))
    assert plan.size <= calls[0] < 2.2 * plan.size                  # one look and one keep for each caption
    assert (np.diff(np.sort(owner[plan], axis=1), axis=1) > 0).all()
