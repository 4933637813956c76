"""Damaged files of an index: the same answers as before, or the damage is said; never another answer or a traceback."""

import os
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from ascl.core.errors import DataError
from ascl.index.store import CopyIndex, Images, is_index

MODEL = {"name": "test model", "settings": {}, "choice": {}, "orders_norms": True}
DIM, QUERIES = 16, 12
CASES = {"index.sqlite": 100, "vectors-0000.bin": 30, "index.sqlite-wal": 40}  # of one file; 10 of others


def images(first: int, count: int, content: int = 0) -> Images:
    rng = np.random.default_rng([first, content])
    vectors = rng.standard_normal((count, DIM)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    names = [f"album/photo_{number}.jpg" for number in range(first, first + count)]
    return Images(names, [f"/photos/{name}" for name in names], rng.integers(0, 256, (count, 32), dtype=np.uint8),
                  rng.integers(1, 10**6, count), vectors, rng.uniform(1, 9, count).astype(np.float32))


PARTS = [images(0, 20), images(20, 15), images(35, 5), images(3, 2, content=1)]


def make(folder: Path) -> CopyIndex:
    index = CopyIndex.create(folder, MODEL, metric="ip", dimension=DIM, exact_up_to=0)
    for part in PARTS:
        index.add(part, overwrite=True)
    index.remove(["album/photo_7.jpg", "album/photo_21.jpg"])
    index.set_calibration({"threshold": 0.5}, {"scores": np.linspace(0, 1, 50)})
    return index


def answers(index: CopyIndex) -> list:
    """Everything that a query or a calibration gets from an index."""
    queries = images(1000, QUERIES).vectors
    queries[0] = PARTS[0].vectors[7]    # the best match of a removed image
    positions, scores = index.search(queries, 6)
    records = index.records(np.unique(positions))
    found = [[(*records[row], score) for row, score in zip(own.tolist(), its.tolist(), strict=True)]
             for own, its in zip(positions, scores, strict=True)]
    arrays = index.calibration_arrays()
    held = index.holds_files(np.concatenate([part.digests for part in PARTS])).tolist()
    return [found, None if arrays is None else {name: array.tolist() for name, array in arrays.items()},
            index.state.calibration, index.state.model, len(index), held]


@pytest.fixture(scope="module")
def scratch() -> Iterator[Path]:
    """A folder in memory, where there is one: hundreds of indexes are flushed to their disk."""
    memory = "/dev/shm"
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def whole(scratch) -> tuple[Path, list]:
    """A folder of an index, and its answers."""
    folder = scratch / "whole"
    index = make(folder)
    told = answers(index)
    index.close()
    return folder, told


@pytest.fixture(scope="module")
def with_log(scratch) -> tuple[Path, list]:
    """The same as a killed process leaves it: all changes are in SQLite's log."""
    index = make(scratch / "open")
    told = answers(index)
    shutil.copytree(index.folder, scratch / "with_log")
    index.close()
    assert (scratch / "with_log" / "index.sqlite-wal").stat().st_size
    return scratch / "with_log", told


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip a bit, overwrite some bytes, cut the end, or cut something out."""
    changed, at = bytearray(data), int(rng.integers(len(data)))
    match rng.integers(6):
        case 0 | 1 | 2:
            changed[at] ^= 1 << int(rng.integers(8))
        case 3:
            size = int(rng.integers(1, 200))
            changed[at : at + size] = rng.bytes(len(changed[at : at + size]))
        case 4:
            del changed[at:]
        case 5:
            del changed[at : at + int(rng.integers(1, 200))]
    return bytes(changed)


def check_mutated(folder: Path, told: list, mended: bool = True) -> str:
    """Return what became of a damaged index: `same`, `said` or `refused`. Repair it, unless that is refused."""
    if not is_index(folder):
        return "refused"
    try:
        index = CopyIndex(folder)
    except DataError:
        return "refused"
    try:
        outcome = "same"
        try:
            if answers(index) != told:
                assert index.damage, "another answer, and nothing is said"
                outcome = "said"
        except DataError:
            outcome = "refused"
        before = len(index)
        try:    # nothing is added twice, and nothing comes back
            done = index.add(PARTS[1])
            assert done.same + done.replaced >= 14 and len(index) - before <= 1
            index.remove(PARTS[1].ids[1:2])
        except DataError:
            pass
        if mended:
            lost = index.repair()
            index.remove([record.id for record in lost])
            index.compact()
            assert index.verify() == []
            added = {part.record(row, folder) for part in PARTS for row in range(len(part.ids))}
            assert {record for _, record in index.each_record()} <= added
        return outcome
    finally:
        index.close()


@pytest.mark.parametrize("state", ["whole", "with_log"])
@pytest.mark.parametrize("name", ["index.sqlite", "vectors-0000.bin", "change", "index.sqlite-wal", "index.sqlite-shm"])
def test_a_damaged_file_changes_no_answer_in_silence(request, scratch, state, name):
    folder, told = request.getfixturevalue(state)
    if not (folder / name).exists():
        pytest.skip("a closed index has no log")
    rng = np.random.default_rng(zlib.crc32(f"{state} {name}".encode()))
    cases, outcomes = CASES.get(name, 10), []
    for case in range(cases):
        copied = scratch / str(case)
        shutil.copytree(folder, copied)
        (copied / name).write_bytes(mutated((copied / name).read_bytes(), rng))
        try:
            outcomes.append(check_mutated(copied, told, mended=case % 5 == 0))
        except DataError:   # of the repair
            outcomes.append("refused")
        shutil.rmtree(copied)
    assert len(outcomes) == cases
    if name == "vectors-0000.bin" and state == "whole":
        assert outcomes.count("said") > cases / 4
