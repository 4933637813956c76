"""Decoding ahead in a fixed order, and batches of one shape."""

import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ascl.core.errors import DataError
from ascl.images.loader import Decoded, Decoder, batches_of_one_shape


def image(index: int, side: int) -> Decoded:
    return Decoded(index, (side, side), np.zeros((side, side, 3), np.uint8))


@given(sides=st.lists(st.sampled_from([2, 3, 5]), max_size=40), batch_size=st.integers(1, 7))
def test_every_image_goes_out_once_in_full_batches_of_one_shape(sides, batch_size):
    images = [image(index, side) for index, side in enumerate(sides)]
    batches = list(batches_of_one_shape(iter(images), batch_size))
    assert sorted(item.index for batch in batches for item in batch) == list(range(len(sides)))
    for batch in batches:
        assert len({item.size for item in batch}) == 1 and len(batch) <= batch_size
        assert [item.index for item in batch] == sorted(item.index for item in batch)
    assert len(batches) == sum(-(-sides.count(side) // batch_size) for side in set(sides))


@given(sides=st.lists(st.integers(1, 9), max_size=40), limit=st.integers(1, 500))
def test_what_waits_is_bounded(sides, limit):
    out, held, highest = [], {}, 0

    def counted():
        nonlocal highest
        for index, side in enumerate(sides):
            highest = max(highest, sum(held.values()))
            held[index] = 3 * side * side
            yield image(index, side)

    for batch in batches_of_one_shape(counted(), 1000, waiting_bytes=limit):
        for item in batch:
            out.append(item.index)
            del held[item.index]
    assert sorted(out) == list(range(len(sides)))
    assert highest <= limit


def folder_of_images(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{index}.png" for index in range(count)]
    for index, path in enumerate(paths):
        Image.new("RGB", (4 + index, 5), (index, 0, 0)).save(path)
    return paths


def slow_on_even(picture: Image.Image) -> np.ndarray:
    time.sleep(0.02 * (picture.width % 2 == 0))
    return np.asarray(picture)


def die(picture: Image.Image) -> np.ndarray:
    os.kill(os.getpid(), signal.SIGKILL)
    return np.asarray(picture)


@pytest.mark.parametrize("workers", [0, 2])
def test_images_come_in_the_order_asked_for_whoever_is_first(tmp_path, workers):
    paths = folder_of_images(tmp_path, 11)
    paths[3].write_bytes(b"broken")
    order = [9, 1, 3, 0, 2, 10, 4, 5, 7, 6, 8]
    decoder = Decoder(paths, order, slow_on_even, workers)
    taken = [decoder.take() for _ in order]
    assert [item.index for item in taken] == order
    assert [item.pixels is None for item in taken] == [index == 3 for index in order]
    assert all(item.pixels is None or item.pixels.shape == (5, 4 + item.index, 3) for item in taken)
    assert 0 < decoder.waited < 10


@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_is_told_as_what_it_mostly_is(tmp_path):
    decoder = Decoder(folder_of_images(tmp_path, 3), range(3), die, workers=1)
    with pytest.raises(DataError, match="decodes images was killed .* too little memory: use fewer workers"):
        decoder.take()
