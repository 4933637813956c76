"""The hash against imagehash's own, and its index against a loop over bits."""

import sys

import numpy as np
import pytest
from PIL import Image

from ascl.core.errors import DataError
from ascl.image_copy.descriptors.perceptual_hash import PerceptualHasher, PreparedHash, looks_the_same
from ascl.image_copy.edits.stickers import drawn_picture
from ascl.index import search as index_search
from ascl.index.store import CopyIndex, Images


def picture(seed: int, side: int = 64) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC)


def test_bits_are_those_of_imagehash_and_distances_too():
    imagehash = pytest.importorskip("imagehash")
    one, other = picture(0), picture(1)
    bits = [PreparedHash()(image) for image in (one, other)]
    theirs = [imagehash.phash(image) for image in (one, other)]
    assert [np.unpackbits(b).tolist() for b in bits] == [h.hash.ravel().astype(int).tolist() for h in theirs]
    assert index_search.count_bits(bits[0] ^ bits[1]).sum() == theirs[0] - theirs[1]
    assert np.array_equal(PreparedHash()(picture(0, 200)), PreparedHash()(picture(0, 200)))


def test_hashes_of_one_photo_are_near_and_of_others_far():
    pytest.importorskip("imagehash")
    one = drawn_picture(200, 150, np.random.default_rng(0))
    changed = one.resize((77, 60)).point(lambda level: level * 0.9 + 8)
    other = drawn_picture(200, 150, np.random.default_rng(1))
    bits = [np.unpackbits(PreparedHash()(image)) for image in (one, changed, other)]
    assert (bits[0] != bits[1]).sum() <= 6 < 15 < (bits[0] != bits[2]).sum()
    assert looks_the_same(one, changed) and not looks_the_same(one, other)


def test_it_describes_as_networks_do():
    pytest.importorskip("imagehash")
    hasher = PerceptualHasher()
    vectors, norms = hasher([hasher.prepare(picture(seed)) for seed in range(3)])
    assert vectors.shape == (3, hasher.dim) and vectors.dtype == np.uint8 and norms is None
    assert hasher.model.startswith("phash-64bit") and not hasher.orders_norms


def test_without_imagehash_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(DataError, match="needs imagehash: pip install"):
        PerceptualHasher()


@pytest.mark.parametrize("size", [8, 3])
@pytest.mark.parametrize("popcount", [True, False])
def test_the_nearest_hashes_by_a_loop_over_bits(tmp_path, monkeypatch, size, popcount):
    if not popcount:  # as before numpy 2
        monkeypatch.delattr(np, "bitwise_count", raising=False)
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 4, (60, size), dtype=np.uint8)  # many ties
    index = CopyIndex.create(tmp_path / "index", {}, metric="hamming", dimension=size)
    digests = rng.integers(0, 256, (60, 32), dtype=np.uint8)
    for part in (slice(0, 40), slice(40, 60)):
        names = [f"i{n}" for n in range(60)[part]]
        index.add(Images(names, names, digests[part], np.ones(len(names), int), rows[part],
                         np.full(len(names), np.nan, np.float32)))
    index.remove(["i5", "i41"])
    queries = rng.integers(0, 4, (7, size), dtype=np.uint8)
    positions, scores = index.search(queries, 10)
    in_blocks = index_search.nearest_bits(index.rows, queries, 10, block_distances=130)     # of two queries
    assert np.array_equal(positions, in_blocks[0]) and np.array_equal(scores, in_blocks[1])
    for query, found, given in zip(queries, positions, scores, strict=True):
        distances = {row: sum(bin(int(a) ^ int(b)).count("1") for a, b in zip(query, rows[row], strict=True))
                     for row in range(60) if row not in (5, 41)}
        wanted = sorted(distances, key=lambda row: (distances[row], row))[:10]
        assert found.tolist() == wanted
        assert given.tolist() == [1 - distances[row] / (8 * size) for row in wanted]
    assert index.searched_by == "every image, by the bits that differ"
    assert not index.compress_if_due()


def test_bits_are_counted_alike_with_and_without_numpys_own(monkeypatch):
    words = np.random.default_rng(0).integers(0, 2**64, (5, 7), dtype=np.uint64)
    wanted = [[bin(int(word)).count("1") for word in row] for row in words]
    assert index_search.count_bits(words).tolist() == wanted
    monkeypatch.delattr(np, "bitwise_count", raising=False)
    assert index_search.count_bits(words).tolist() == wanted
