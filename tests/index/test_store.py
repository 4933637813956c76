"""The persistent index: rows against a dictionary, kills at any moment, two processes, compressed against exact."""

import dataclasses
import json
import multiprocessing
import os
import signal
import sys

import numpy as np
import pytest

from ascl.core.errors import DataError
from ascl.index import files as index_files
from ascl.index import search as index_search
from ascl.index import store as index_module
from ascl.index.files import Images, open_snapshot, read_manifest
from ascl.index.store import CopyIndex

MODEL = {"name": "test model", "settings": {}, "choice": {}, "orders_norms": True}
DIM = 8


def images(names, *, seed=0, dim=DIM, content="") -> Images:
    """Unit rows, norms and file digests that depend on name, seed and content alone."""
    rows = []
    for name in names:
        rng = np.random.default_rng([seed, *name.encode(), *content.encode()])
        rows.append((rng.standard_normal(dim), rng.uniform(1, 9), rng.integers(0, 256, 32, dtype=np.uint8)))
    vectors = np.array([row[0] for row in rows], np.float32).reshape(-1, dim)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return Images(
        list(names), [f"folder/{name}.jpg" for name in names], np.array([row[2] for row in rows], np.uint8),
        vectors, np.array([row[1] for row in rows], np.float32),
    )


def numbered(*numbers: int) -> list[str]:
    return [f"image_{number:03d}" for number in numbers]


@pytest.fixture
def index(tmp_path) -> CopyIndex:
    return CopyIndex.create(tmp_path / "index", MODEL, metric="ip", dimension=DIM)


def contents(index: CopyIndex) -> dict[str, tuple]:
    """Everything that counts, read row by row."""
    snapshot = open_snapshot(index.folder)
    positions = [position for position in range(len(snapshot)) if position not in snapshot.removed.tolist()]
    return {
        snapshot.name(position)[0]: (
            snapshot.name(position)[1], snapshot.vectors(np.array([position]))[0].tolist(),
            float(snapshot.norms(np.array([position]))[0]), snapshot.digests(np.array([position]))[0].tobytes(),
        )
        for position in positions
    }


def as_dict(*parts: Images) -> dict[str, tuple]:
    return {
        name: (part.paths[row], part.vectors[row].tolist(), float(part.norms[row]), part.digests[row].tobytes())
        for part in parts
        for row, name in enumerate(part.ids)
    }


def best_by_loop(held: dict[str, tuple], query: np.ndarray, k: int) -> list[str]:
    scores = {name: sum(float(a) * float(b) for a, b in zip(row[1], query, strict=True)) for name, row in held.items()}
    return sorted(scores, key=lambda name: -scores[name])[:k]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_any_sequence_of_changes_leaves_what_a_dictionary_would_hold(index):
    rng = np.random.default_rng(0)
    model: dict[str, tuple] = {}
    for step in range(60):
        action = rng.choice(["add", "add", "add", "remove", "replace", "compact"], p=[0.2, 0.2, 0.2, 0.2, 0.15, 0.05])
        if action == "add" or not model:
            new = images([f"é\n{step}_{i}" for i in range(rng.integers(1, 6))], seed=step)
            assert index.add(new).added == len(new.ids)
            model |= as_dict(new)
        elif action == "compact":
            index.compact()
        else:
            names = list(rng.choice(list(model), size=min(len(model), 2), replace=False))
            if action == "remove":
                assert index.remove(names) == len(names)
                for name in names:
                    del model[name]
            else:
                new = images(names, seed=step, content="other")
                assert index.add(new, overwrite=True).replaced == len(names)
                model |= as_dict(new)
        assert len(index) == len(model)
        if step % 10 == 9:
            assert contents(index) == contents(CopyIndex(index.folder)) == model
            query = images(["query"], seed=step).vectors
            positions, scores = index.search(query, 5)
            found = [index.snapshot.name(int(position))[0] for position in positions[0]]
            assert found == best_by_loop(model, query[0], 5)
            assert np.allclose(scores[0], [np.dot(query[0].astype(float), model[name][1]) for name in found])
    assert set(os.listdir(index.folder)) == {"index.json", "lock", *index.manifest.files()}


def test_images_added_one_by_one_lie_in_few_segments(index):
    for number in range(100):
        index.add(images(numbered(number)))
    assert [entry.rows for entry in index.manifest.segments] == [64, 8, 8, 8, 8, 1, 1, 1, 1]
    assert contents(index) == as_dict(images(numbered(*range(100))))
    index.add(images(numbered(*range(100, 200))))  # of a higher level than what lies before: all of that is merged
    assert [entry.rows for entry in index.manifest.segments] == [200]
    assert contents(index) == as_dict(images(numbered(*range(200))))


def test_the_same_file_is_passed_over_and_other_content_needs_a_word(index):
    index.add(images(numbered(1, 2)))
    before = contents(index)
    done = index.add(images(numbered(2, 3)))
    assert (done.added, done.same) == (1, 1)
    new = images(numbered(2, 4), content="other")
    with pytest.raises(DataError, match=r"two images have the id 'image_002': folder/image_002\.jpg, which is in the "
                       r"index, and folder/image_002\.jpg.*--replace"):
        index.add(new)
    assert contents(index) == before | as_dict(images(numbered(3)))  # nothing of the refused batch
    done = index.add(new, overwrite=True)
    assert (done.added, done.replaced) == (2, 1)
    assert contents(index) == before | as_dict(images(numbered(3)), new)


def test_one_id_twice_in_a_batch(index):
    one, other = images(["a"]), images(["a"], content="other")
    both = Images(["a", "a"], ["x/a.jpg", "y/a.jpg"], np.vstack([one.digests, other.digests]),
                  np.vstack([one.vectors, other.vectors]), np.concatenate([one.norms, other.norms]))
    with pytest.raises(DataError, match=r"'a' and different content: x/a\.jpg and y/a\.jpg"):
        index.add(both, overwrite=True)
    same = Images(["a", "a"], ["x/a.jpg", "y/a.jpg"], np.vstack([one.digests] * 2), np.vstack([one.vectors] * 2),
                  np.concatenate([one.norms] * 2))
    done = index.add(same)
    assert (done.added, done.same, len(index)) == (1, 1, 1)


def test_ids_whose_keys_collide_are_told_apart(index, monkeypatch):
    monkeypatch.setattr(index_files, "key_of", lambda image: len(image) % 2)
    part = images(["a", "b", "cc", "dd", "é"])
    index.add(part)
    index.add(images(["b2", "f"]))
    assert index.snapshot.find(["f", "a", "dd", "none", "a", "no"]).tolist() == [6, 0, 3, -1, 0, -1]
    index.remove(["b", "b2"])
    assert index.snapshot.find(["b", "a", "b2"]).tolist() == [-1, 0, -1]
    index.compact()
    assert contents(index) == {name: row for name, row in as_dict(part, images(["f"])).items() if name != "b"}


def test_removing_what_is_not_there_removes_nothing(index):
    index.add(images(numbered(1, 2)))
    with pytest.raises(DataError, match=r"2 of 3 ids are not in the index: 'x', 'y'; nothing was removed"):
        index.remove(["image_001", "x", "y"])
    assert len(index) == 2
    assert index.remove(["image_001", "image_001"]) == 1
    with pytest.raises(DataError, match="not in the index"):
        index.remove(["image_001"])


def test_an_index_can_be_emptied_and_filled_again(index):
    index.add(images(numbered(1, 2)))
    index.remove(numbered(1, 2))
    assert index.search(images(["q"]).vectors, 3)[0].shape == (1, 0)
    assert index.compact() == 2 and len(index) == 0
    index.add(images(numbered(1)))
    assert contents(index) == as_dict(images(numbered(1)))


def test_removed_rows_never_hide_those_that_count(index):
    query = images(["q"])
    near = Images(numbered(*range(50)), ["p"] * 50, images(numbered(*range(50))).digests,
                  np.repeat(query.vectors, 50, axis=0), np.ones(50, np.float32))
    index.add(near)
    index.add(images(numbered(*range(50, 60))))
    index.remove(numbered(*range(50)))
    positions, scores = index.search(query.vectors, 4)
    assert positions.min() >= 50 and np.isfinite(scores).all()
    held = as_dict(images(numbered(*range(50, 60))))
    assert [index.snapshot.name(int(p))[0] for p in positions[0]] == best_by_loop(held, query.vectors[0], 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_descriptors_that_no_search_can_use_are_refused_by_name(index, bad):
    new = images(numbered(1, 2))
    new.vectors[1] = bad
    with pytest.raises(DataError, match=r"'image_002' \(folder/image_002\.jpg\): its descriptor is not finite or zero"):
        index.add(new)
    assert len(index) == 0


def test_other_dimensions_and_k_are_refused(index):
    with pytest.raises(DataError, match="index holds float32 of dimension 8: another model"):
        index.add(images(["a"], dim=9))
    with pytest.raises(DataError, match="ask for at least 1"):
        index.search(images(["a"]).vectors, 0)
    query = images(["a", "b"]).vectors
    query[1, 2] = np.nan
    index.add(images(["a"]))
    with pytest.raises(DataError, match=r"queries, row 1 \(from 0\): the descriptor is not finite"):
        index.search(query, 1)
    with pytest.raises(DataError, match="float64"):
        index.search(images(["a"]).vectors.astype(np.float64), 1)


# --- what is no index ------------------------------------------------------------------------------------------------


def test_what_is_no_index_is_named(index, tmp_path):
    with pytest.raises(DataError, match=r"nothing: no index there; make one with"):
        CopyIndex(tmp_path / "nothing")
    index.add(images(["a"]))
    with pytest.raises(DataError, match="is an index already"):
        CopyIndex.create(index.folder, MODEL, metric="ip", dimension=DIM)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"holds other files \(cat\.jpg\)"):
        CopyIndex.create(tmp_path / "photos", MODEL, metric="ip", dimension=DIM)
    with pytest.raises(DataError, match="is a file"):
        CopyIndex.create(tmp_path / "photos" / "cat.jpg", MODEL, metric="ip", dimension=DIM)


def test_half_an_index_and_damaged_files_are_named(index):
    index.add(images(numbered(1, 2, 3)))
    index.remove(["image_002"])
    manifest = index.folder / "index.json"
    whole = manifest.read_text()
    for name in sorted(index.manifest.files()):
        kept = (index.folder / name).read_bytes()
        (index.folder / name).write_bytes(kept[: len(kept) // 2])
        with pytest.raises(DataError, match=f"{name}: a file of the index is damaged"):
            CopyIndex(index.folder)
        (index.folder / name).unlink()
        with pytest.raises(DataError, match=rf"{name}: a file of the index is damaged \(the file is missing\)"):
            CopyIndex(index.folder)
        (index.folder / name).write_bytes(kept)
    manifest.write_text(whole[:50])
    with pytest.raises(DataError, match=r"index\.json: a file of the index is damaged"):
        CopyIndex(index.folder)
    manifest.write_text(json.dumps(json.loads(whole) | {"version": 2}))
    with pytest.raises(DataError, match="is an index of version 2; this program reads up to 1: update it"):
        CopyIndex(index.folder)
    manifest.write_text(json.dumps(json.loads(whole) | {"format": "other"}))
    with pytest.raises(DataError, match="no index of images"):
        CopyIndex(index.folder)
    manifest.unlink()
    with pytest.raises(DataError, match=r"half an index: index\.json is missing"):
        CopyIndex(index.folder)
    with pytest.raises(DataError, match=r"half an index: index\.json is missing"):
        CopyIndex.create(index.folder, MODEL, metric="ip", dimension=DIM)


# --- a kill at any moment --------------------------------------------------------------------------------------------

FIRST, SECOND = numbered(*range(5)), numbered(*range(5, 9))


def work(index: CopyIndex) -> None:
    """Changes of every kind; `states` has what is confirmed after each."""
    index.add(images(FIRST))
    index.add(images(SECOND))
    index.remove(FIRST[:2])
    index.add(images(SECOND[:1], content="other"), overwrite=True)
    index.set_calibration({}, {"scores": np.ones(3)})
    index.compact()


def states() -> list[dict[str, tuple]]:
    one = as_dict(images(FIRST))
    two = one | as_dict(images(SECOND))
    three = {name: row for name, row in two.items() if name not in FIRST[:2]}
    four = three | as_dict(images(SECOND[:1], content="other"))
    return [{}, one, two, three, four, four, four]


def die_at(number: int, call: str, folder) -> None:
    """Run in a child: be killed right before the call of this number."""
    real, seen = getattr(os, call), iter(range(10**6))

    def fatal(*arguments):
        if next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*arguments)

    setattr(os, call, fatal)
    work(CopyIndex(folder))


def calls_of_work(tmp_path, monkeypatch, call: str) -> int:
    count = []
    real = getattr(os, call)
    made = CopyIndex.create(tmp_path / "counted", MODEL, metric="ip", dimension=DIM)

    def counted(*arguments):
        count.append(1)
        return real(*arguments)

    monkeypatch.setattr(os, call, counted)
    work(made)
    monkeypatch.undo()
    assert contents(made) == states()[-1]
    return len(count)


@pytest.mark.parametrize("call", ["replace", "fsync"])
def test_a_kill_at_any_moment_keeps_what_was_confirmed(tmp_path, monkeypatch, call):
    total = calls_of_work(tmp_path, monkeypatch, call)
    assert total > 15
    reached = set()
    for number in range(total):  # flushes of the folder lie right before and right after the manifest's rename
        folder = tmp_path / f"{call}_{number}"
        CopyIndex.create(folder, MODEL, metric="ip", dimension=DIM)
        child = multiprocessing.get_context("fork").Process(target=die_at, args=(number, call, folder))
        child.start()
        child.join()
        assert child.exitcode == -signal.SIGKILL
        opened = CopyIndex(folder)
        change = opened.manifest.change
        reached.add(change)
        assert contents(opened) == states()[change]
        opened.add(images(["later"]))  # the lock was let go, and droppings are cleared
        assert contents(opened) == states()[change] | as_dict(images(["later"]))
        assert set(os.listdir(folder)) == {"index.json", "lock", *opened.manifest.files()}
    assert reached >= set(range(6))  # a kill in the middle of each change was among them


def test_the_gate_fails_where_the_manifest_goes_first(tmp_path, monkeypatch):
    """A planted fault: confirming before the segment is written must not pass for crash-safe."""
    index = CopyIndex.create(tmp_path / "index", MODEL, metric="ip", dimension=DIM)
    real = index_module.write_segment

    def confirmed_too_early(folder, name, parts):
        entry = dataclasses.replace(index.manifest, change=1, segments=(index_module_entry(name, 5),))
        index_module.commit(folder, entry)
        return real(folder, name, parts)

    def index_module_entry(name, rows):
        from ascl.index.files import SegmentEntry

        return SegmentEntry(name, rows)

    monkeypatch.setattr(index_module, "write_segment", confirmed_too_early)
    child = multiprocessing.get_context("fork").Process(target=die_at, args=(1, "replace", index.folder))
    child.start()
    child.join()
    with pytest.raises(DataError, match="the file is missing"):
        CopyIndex(index.folder)


# --- several processes -----------------------------------------------------------------------------------------------


def add_one_by_one(folder, first: int, ready) -> None:
    index = CopyIndex(folder)
    ready.wait()
    for number in range(first, first + 25):
        index.add(images(numbered(number)))
        if number % 5 == 4:
            index.remove(numbered(number))


def test_two_processes_that_add_at_the_same_time_while_a_third_reads(index):
    context = multiprocessing.get_context("fork")
    ready = context.Barrier(3)
    children = [context.Process(target=add_one_by_one, args=(index.folder, first, ready)) for first in (0, 100)]
    for child in children:
        child.start()
    ready.wait()
    sizes = [0]
    while any(child.is_alive() for child in children):
        read = CopyIndex(index.folder)  # every state that is seen is whole
        assert len(contents(read)) >= 0
        sizes.append(read.manifest.added)
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert sizes == sorted(sizes) and len(set(sizes)) > 2
    numbers = [n for first in (0, 100) for n in range(first, first + 25) if n % 5 != 4]
    assert contents(index) == as_dict(images(numbered(*numbers)))


def test_a_reader_keeps_its_state_while_another_changes_it(index):
    index.add(images(numbered(*range(10))))
    reader = CopyIndex(index.folder)
    before = reader.search(images(["q"]).vectors, 3)
    index.remove(numbered(*range(9)))
    index.compact()
    assert np.array_equal(reader.search(images(["q"]).vectors, 3)[1], before[1])
    reader.reload()
    assert len(reader) == 1


# --- compressed ------------------------------------------------------------------------------------------------------


def clustered(count: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((60, dim))
    vectors = (centres[rng.integers(0, 60, count)] + 0.6 * rng.standard_normal((count, dim))).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def many(count: int, dim: int, seed: int = 0, prefix: str = "i") -> Images:
    digests = np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)
    return Images([f"{prefix}{n}" for n in range(count)], ["p"] * count, digests, clustered(count, dim, seed),
                  np.ones(count, np.float32))


@pytest.fixture
def compressed(tmp_path) -> CopyIndex:
    pytest.importorskip("faiss")
    made = CopyIndex.create(tmp_path / "compressed", MODEL, metric="ip", dimension=32, exact_up_to=1000)
    made.add(many(3000, 32))
    assert made.compress_if_due()
    return made


def test_the_compressed_index_finds_what_the_exact_one_finds(compressed):
    assert compressed.manifest.compressed["factory"] == "IVF128,PQ16x4fs"
    assert compressed.searched_by.startswith("compressed, IVF128,PQ16x4fs")
    queries = clustered(200, 32, seed=5)
    exact, scores = compressed.search(queries, 10, exact=True)
    assert np.array_equal(exact, np.argsort(-(queries @ many(3000, 32).vectors.T), axis=1)[:, :10])
    found, found_scores = compressed.search(queries, 10)
    at_1, at_10 = index_search.recall_of(found, exact)
    assert at_1 > 0.9 and at_10 > 0.9
    assert abs(at_10 - compressed.manifest.compressed["recall_at_10"]) < 0.1
    hit = found[:, 0] == exact[:, 0]
    assert np.array_equal(found_scores[hit, 0], scores[hit, 0])  # scored again, exactly
    own = many(3000, 32).vectors[::30]
    assert np.array_equal(compressed.search(own, 1)[0][:, 0], np.arange(0, 3000, 30))  # every copy is found


def test_changes_after_the_compressed_index_count_at_once(compressed):
    new = many(100, 32, seed=9, prefix="new")
    compressed.add(new)
    assert not compressed.compress_if_due()  # a few new rows are searched exactly
    assert "100 new rows exactly" in compressed.searched_by
    assert np.array_equal(compressed.search(new.vectors, 1)[0][:, 0], np.arange(3000, 3100))
    compressed.remove(["i7", "new3"])
    found = compressed.search(np.vstack([many(3000, 32).vectors[7:8], new.vectors[3:4]]), 3)[0]
    assert not np.isin([7, 3003], found).any() and (found >= 0).all()
    compressed.add(many(900, 32, seed=11, prefix="more"))
    assert compressed.compress_if_due() and compressed.manifest.compressed["rows"] == 4000
    assert compressed.compact() == 2 and compressed.manifest.compressed["rows"] == 3998


def test_a_damaged_compressed_index_costs_speed_and_is_told(compressed):
    file = compressed.folder / compressed.manifest.compressed["file"]
    queries = clustered(3, 32, seed=5)
    wanted = compressed.search(queries, 5, exact=True)[0]
    for break_it in (lambda: file.write_bytes(file.read_bytes()[:1000]), file.unlink):
        break_it()
        opened = CopyIndex(compressed.folder)
        assert "`compact` builds it again" in opened.fault and opened.searched_by.startswith("every image")
        assert np.array_equal(opened.search(queries, 5)[0], wanted)
    opened.compact()
    assert opened.fault is None and opened.searched_by.startswith("compressed")


def test_without_faiss_the_search_is_exact_and_the_same(compressed, index, monkeypatch):
    index.add(images(numbered(*range(40))))
    queries, small = clustered(20, 32, seed=5), images(numbered(*range(100, 110))).vectors
    wanted, wanted_small = compressed.search(queries, 7, exact=True), index.search(small, 7)
    monkeypatch.setitem(sys.modules, "faiss", None)
    opened = CopyIndex(compressed.folder)
    assert "FAISS is not installed" in opened.searched_by and opened.fault is None
    for found, exact in ((opened.search(queries, 7), wanted), (CopyIndex(index.folder).search(small, 7), wanted_small)):
        assert np.array_equal(found[0], exact[0]) and np.allclose(found[1], exact[1], atol=1e-12)
    assert not opened.compress_if_due()
    with pytest.raises(DataError, match="needs FAISS: pip install"):
        index_search.build_compressed(opened.snapshot)


def test_recall_counts_by_loop():
    exact = np.array([[1, 2, 3], [4, 5, 6]])
    found = np.array([[1, 3, 9], [5, 8, 7]])
    assert index_search.recall_of(found, exact) == (0.5, 3 / 6)


def test_positions_of_older_layouts_are_not_used(compressed, monkeypatch):
    """Another process compacts while the compressed index is being built: what was built is thrown away."""
    compressed.add(many(1000, 32, seed=3, prefix="x"))
    real = index_search.build_compressed

    def meanwhile(snapshot):
        monkeypatch.setattr(index_search, "build_compressed", real)
        other = CopyIndex(compressed.folder)
        other.remove(["i0"])
        other.compact()
        return real(snapshot)

    monkeypatch.setattr(index_search, "build_compressed", meanwhile)
    assert not compressed.compress_if_due()
    assert compressed.manifest.compressed["rows"] == 3999
    assert read_manifest(compressed.folder).layout == 1
