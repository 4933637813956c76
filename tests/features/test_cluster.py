"""Extraction by Ray Data's actors, on a Ray instance of this machine."""

import functools
import json
import sys

import h5py
import numpy as np
import pytest
from PIL import Image

from ascl.core.errors import DataError
from ascl.features.cluster import on_ray
from ascl.features.grid import GridBackend
from ascl.features.writer import extract
from ascl.images.find import find_images

MAKE = functools.partial(GridBackend, "mobilenet_v2", "random:0", "features.3", grid=2, input_size=32)
QUICK = {"batch_size": 3, "workers": 0, "part_size": 4, "progress": False, "resume": True}


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(18):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index:02d}.png")
    return find_images(tmp_path / "images", ids="stem")


def test_actors_compute_what_one_process_computes_and_go_on_where_an_unreadable_image_stopped_them(
    ray, images, tmp_path
):
    backend = MAKE()
    images[13].path.write_bytes(b"")
    extract(backend, images, tmp_path / "local.h5", **QUICK)

    def three_parts(plan, spans, bar):  # one after the other by one actor; the third has the unreadable image
        return on_ray(MAKE, actors=1)(plan, [spans[0], spans[1], spans[3]], bar)

    with pytest.raises(DataError, match=r"13\.png: cannot be read as an image"):
        extract(backend, images, tmp_path / "ray.h5", compute=three_parts, strict=True, **QUICK)
    two_actors = on_ray(MAKE, actors=2)
    done = extract(backend, images, tmp_path / "ray.h5", compute=two_actors, **QUICK)
    assert done.extracted == 10 and 0 < done.waiting <= 1
    assert [skip["image"] for skip in done.skipped] == ["13"]
    with h5py.File(tmp_path / "local.h5") as local, h5py.File(tmp_path / "ray.h5") as far:
        assert set(local) == set(far)
        for name in set(local):
            assert np.array_equal(local[name][()], far[name][()]), name
        notes = [json.loads(file.attrs["provenance"]) for file in (local, far)]
        assert notes[0]["settings"] == notes[1]["settings"] and notes[0]["skipped"] == notes[1]["skipped"]


def test_without_ray_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"extraction with Ray needs Ray Data .*pip install 'ascl\[scale\]'"):
        on_ray(MAKE)
