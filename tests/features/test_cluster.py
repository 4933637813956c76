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
from ascl.images.read import find_images

MAKE = functools.partial(GridBackend, "mobilenet_v2", "random:0", "features.3", grid=2, input_size=32)
QUICK = {"batch_size": 3, "workers": 0, "part_size": 4, "progress": False, "resume": True}


@pytest.fixture(scope="module")
def ray():
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra `scale`)")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture
def images(tmp_path):
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(18):
        pixels = rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index:02d}.png")
    return find_images(tmp_path / "images")


def test_actors_compute_what_one_process_computes(ray, images, tmp_path):
    backend = MAKE()
    extract(backend, images, tmp_path / "local.h5", **QUICK)
    interrupt_after = iter(range(3))

    def only_some(plan, spans, bar):  # a cluster that was stopped after two of the five parts
        on_ray(MAKE, actors=2)(plan, spans[:2], bar)
        raise KeyboardInterrupt(next(interrupt_after))

    with pytest.raises(KeyboardInterrupt):
        extract(backend, images, tmp_path / "ray.h5", compute=only_some, **QUICK)
    done = extract(backend, images, tmp_path / "ray.h5", compute=on_ray(MAKE, actors=2), **QUICK)
    assert done.extracted == 10 and 0 < done.waiting <= 1
    with h5py.File(tmp_path / "local.h5") as local, h5py.File(tmp_path / "ray.h5") as far:
        assert set(local) == set(far)
        for name in set(local):
            assert np.array_equal(local[name][()], far[name][()]), name
        notes = [json.loads(file.attrs["provenance"])["settings"] for file in (local, far)]
        assert notes[0] == notes[1]


def test_an_unreadable_image_stops_the_cluster_by_name(ray, images, tmp_path):
    images[5].write_bytes(b"")
    with pytest.raises(DataError, match=r"05\.png: cannot be read as an image"):
        extract(MAKE(), images, tmp_path / "ray.h5", compute=on_ray(MAKE, actors=1), **QUICK)
    done = extract(
        MAKE(), images, tmp_path / "ray.h5", compute=on_ray(MAKE, actors=1), **QUICK | {"skip_unreadable": True}
    )
    assert [skip["image"] for skip in done.skipped] == ["05.png"]


def test_without_ray_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"an extraction by Ray needs Ray Data .*pip install 'ascl\[scale\]'"):
        on_ray(MAKE)
