"""Every reader of arrays, on damaged files: what it returns is sound, or a DataError names the file. Nothing else.

libhdf5 is C, so each kind of file is read in a forked child, whose exit status shows a crash.
"""

from __future__ import annotations

import os
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest

from ascl.core import hdf5
from ascl.core.errors import DataError
from ascl.core.reading import read_array, read_arrays
from ascl.data.stores.open import open_features
from ascl.features.feature_file import read_part
from ascl.image_copy.descriptors.files import read_descriptors, write_descriptors

from .data.stores import foreign_files
from .data.stores.foreign_files import KINDS, make_images, written
from .mutations import mutated

CASES = 40  # of each kind; `python -m tests.test_mutated_arrays KIND CASES SEED` tries more
COUNTS = [3, 2, 4]


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    """These files are small: what takes half a second never ends."""
    monkeypatch.setattr(hdf5, "STUCK", 0.5)


def read_store(path: Path) -> None:
    """Read everything that a store gives; whatever it is, it has to be of one shape and finite."""
    store = open_features([path])
    rows = np.arange(len(store))
    read, details = store.read(rows), store.details(rows)
    assert len(store) == len(set(store.image_ids)) and all(name and "\0" not in name for name in store.image_ids)
    for name, shape in {"regions": (len(rows), store.num_regions, store.region_dim),
                        "globals": (len(rows), store.global_dim)}.items():
        values = getattr(read, name)
        if name in store.kinds:
            assert values.shape == shape and values.dtype == np.float32
            assert np.isfinite(values).all() and np.abs(values).max(initial=0) <= 1e10
    if read.boxes is not None:
        assert read.boxes.shape == (len(rows), store.num_regions, 4) and np.isfinite(read.boxes).all()
        real = read.boxes[read.real_regions()]
        assert (real[:, :2] <= real[:, 2:]).all()
    for values in details.values():
        assert len(values) == len(rows) and np.isfinite(values).all()


def in_a_child(work: Callable[[], None]) -> str | None:
    """Run `work` in a forked process; return what went wrong, None if nothing did."""
    receive, send = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                work()
            status = 0
        except BaseException:
            os.write(send, traceback.format_exc()[-4000:].encode())
        finally:
            os._exit(status)
    os.close(send)
    with os.fdopen(receive) as said:
        text = said.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return text or (f"exit status {status}" if status else None)


def check(target: Path, folder: Path, read: Callable[[], object], cases: int, seed: int = 0) -> None:
    """Damage `target` in many ways, in one child for all, and read each time; other files of `folder` stay sound.

    Raises AssertionError with the seed of the first case that ends in anything but a result or a DataError.
    """
    sound = target.read_bytes()
    note = folder.with_name(f"{folder.name}.case")

    def work() -> None:
        for case in range(cases):
            note.write_text(str(case))
            target.write_bytes(mutated(sound, np.random.default_rng((seed, case))))
            try:
                read()
            except DataError as error:
                text = str(error)
                assert str(folder) in text and "\n" not in text, text
                text.encode("utf-8")

    wrong = in_a_child(work)
    target.write_bytes(sound)
    assert wrong is None, f"{target.name}, case {note.read_text()} of seed {seed}: {wrong}"


def compressed_h5(folder: Path, images: list[foreign_files.Image]) -> Path:
    """Our layout with compressed chunks."""
    path = folder / "ours.h5"
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        file.attrs["format"], file.attrs["version"], file.attrs["provenance"] = "ascl-features", 1, '{"a": 1}'
        file.create_dataset("image_ids", data=[image.image_id for image in images], dtype=h5py.string_dtype())
        regions = rng.normal(size=(3, 4, 6)).astype("f4")
        file.create_dataset("regions", data=regions, chunks=(1, 4, 6), compression="gzip")
        file.create_dataset("globals", data=rng.normal(size=(3, 5)).astype("f2"))
        file.create_dataset("boxes", data=foreign_files.made_boxes(3, 4))
        file.create_dataset("image_sizes", data=np.full((3, 2), 100, np.int32))
        file.create_dataset("scores", data=rng.random((3, 4), dtype=np.float32), fletcher32=True)
        file.create_dataset("region_count", data=np.array(COUNTS, np.int32))
        file.create_dataset("class_names", data=["dog", "cat"], dtype=h5py.string_dtype())
    return path


def plain_npy(folder: Path, images: list[foreign_files.Image]) -> Path:
    np.save(folder / "test_ims.npy", np.random.default_rng(0).normal(size=(3, 4, 6)).astype("f4"))
    return folder / "test_ims.npy"


def vectors_npy(folder: Path, images: list[foreign_files.Image]) -> Path:
    return foreign_files.write_npy(folder / "npy", images)


STORES: dict[str, Callable[[Path, list[foreign_files.Image]], Path]] = {
    **{kind: lambda folder, images, kind=kind: written(kind, folder, images) for kind in KINDS},
    "ours": compressed_h5, "scan": plain_npy, "npy": vectors_npy,
}


def check_store(kind: str, folder: Path, cases: int, seed: int = 0) -> None:
    """Damage each file of a format in turn."""
    folder.mkdir(exist_ok=True)
    path = STORES[kind](folder, make_images(COUNTS))
    targets = [file for file in sorted(folder.rglob("*")) if file.is_file()][:4]
    for number, target in enumerate(targets):
        check(target, folder, lambda: read_store(path), max(1, cases // len(targets)), seed + number)


@pytest.mark.parametrize("kind", STORES)
def test_a_damaged_store_is_read_soundly_or_refused(tmp_path, kind):
    check_store(kind, tmp_path / "s", CASES)


def test_a_damaged_side_index_is_made_again(tmp_path):
    folder = tmp_path / "s"
    folder.mkdir()
    path = written("bottom-up tsv", folder, make_images(COUNTS))
    whole = open_features([path]).read([0, 1, 2])

    def same() -> None:
        read = open_features([path]).read([0, 1, 2])
        assert np.array_equal(read.regions, whole.regions) and np.array_equal(read.boxes, whole.boxes)

    check(folder / ".a.tsv.index.npz", folder, same, CASES)


def test_damaged_arrays_descriptors_parts_and_shards(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "s"
    folder.mkdir()
    np.savez_compressed(folder / "a.npz", scores=rng.random((4, 6)), owner=np.arange(6))
    check(folder / "a.npz", folder, lambda: read_arrays(folder / "a.npz"), CASES)
    np.save(folder / "a.npy", rng.random((4, 6)).astype("f4"))
    check(folder / "a.npy", folder, lambda: read_array(folder / "a.npy"), CASES)
    names = ["image_ids", "skipped_images", "skipped_reasons", "digest", "versions"]
    np.savez(folder / "part.npz", regions=rng.random((2, 3, 4)), **{name: np.array(["a", "b"]) for name in names})
    check(folder / "part.npz", folder, lambda: read_part(folder / "part.npz", *names), CASES)

    write_descriptors(folder / "d.h5", ["a", "b", "c"], rng.normal(size=(3, 8)), norms=np.ones(3), model="x",
                      provenance={"a": 1})

    def described() -> None:
        made = read_descriptors(folder / "d.h5", "query")
        assert len(made.names) == len(made.vectors) and np.isfinite(made.vectors).all()

    check(folder / "d.h5", folder, described, CASES)


if __name__ == "__main__":
    import sys
    import tempfile

    chosen, number, first = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    for one in STORES if chosen == "all" else [chosen]:
        with tempfile.TemporaryDirectory() as place:
            check_store(one, Path(place) / "s", number, first)
        print(f"{one}: {number} cases, nothing but results and errors that name the file", flush=True)
