"""The persistent index: rows against a dictionary, kills at any moment, two processes, compressed against exact."""

import errno
import json
import multiprocessing
import os
import signal
import sqlite3
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from ascl.core.errors import DataError
from ascl.index import search as index_search
from ascl.index.records import Database
from ascl.index.store import CopyIndex, Images

MODEL = {"name": "test model", "settings": {}, "choice": {}, "orders_norms": True}
DIM = 8
DATABASE = {"index.sqlite", "index.sqlite-wal", "index.sqlite-shm"}


def images(names, *, seed=0, dim=DIM, content="") -> Images:
    """Unit rows, norms, sizes and file digests that depend on name, seed and content alone."""
    rows = []
    for name in names:
        rng = np.random.default_rng([seed, *name.encode(), *content.encode()])
        rows.append((rng.standard_normal(dim), rng.uniform(1, 9), rng.integers(0, 256, 32, dtype=np.uint8)))
    vectors = np.array([row[0] for row in rows], np.float32).reshape(-1, dim)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    digests = np.array([row[2] for row in rows], np.uint8)
    return Images(list(names), [f"/folder/{name}.jpg" for name in names], digests, 1 + digests[:, 0].astype(int),
                  vectors, np.array([row[1] for row in rows], np.float32))


def numbered(*numbers: int) -> list[str]:
    return [f"image_{number:03d}" for number in numbers]


@pytest.fixture
def index(tmp_path) -> CopyIndex:
    return CopyIndex.create(tmp_path / "index", MODEL, metric="ip", dimension=DIM)


def contents(index: CopyIndex) -> dict[str, tuple]:
    """Everything that counts, read row by row."""
    index.reload()
    return {record.id: (record.path, index.rows.vectors[row].tolist(), record.norm, record.sha256, record.size)
            for row, record in index.records(range(index.state.rows)).items()}


def as_dict(*parts: Images) -> dict[str, tuple]:
    return {name: (part.paths[row], part.vectors[row].tolist(), float(part.norms[row]), part.digests[row].tobytes(),
                   int(part.sizes[row])) for part in parts for row, name in enumerate(part.ids)}


def ids_of(index: CopyIndex, positions: np.ndarray) -> list[str]:
    records = index.records(positions)
    return [records[int(position)].id for position in positions]


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
            found = ids_of(index, positions[0])
            assert found == best_by_loop(model, query[0], 5)
            assert np.allclose(scores[0], [np.dot(query[0].astype(float), model[name][1]) for name in found])
    assert set(os.listdir(index.folder)) == DATABASE | {path.name for path in index.files()}
    index.close()
    with sqlite3.connect(index.folder / "index.sqlite") as database:
        assert database.execute("SELECT count(*) FROM images").fetchone() == (len(model),)


def test_images_added_one_by_one_and_together_are_the_same(index):
    for number in range(30):
        index.add(images(numbered(number)))
    index.add(images(numbered(*range(30, 200))))
    assert contents(index) == as_dict(images(numbered(*range(200)))) and index.verify() == []
    vectors = images(numbered(*range(200))).vectors
    assert np.array_equal(index.search(vectors, 1)[0][:, 0], np.arange(200))


def test_a_new_image_costs_the_same_however_many_were_added_before(index, monkeypatch):
    """The list of batches is as long as there were additions, and a new image has nothing to do with them."""
    index.add(images(numbered(0)))
    read = []
    batches = Database.batches
    monkeypatch.setattr(Database, "batches", lambda self: read.append(self) or batches(self))
    for number in range(1, 5):
        index.add(images(numbered(number)))
    assert read == []
    assert index.add(images(numbered(2))).same == 1 and read   # one that is there may be damaged


def test_the_same_file_is_passed_over_and_other_content_needs_a_word(index):
    index.add(images(numbered(1, 2)))
    before = contents(index)
    done = index.add(images(numbered(2, 3)))
    assert (done.added, done.same) == (1, 1)
    new = images(numbered(2, 4), content="other")
    with pytest.raises(DataError, match=r"two images have the id 'image_002': /folder/image_002\.jpg, which is in the "
                       r"index, and /folder/image_002\.jpg.*; rename one, or replace the indexed one$"):
        index.add(new)
    assert contents(index) == before | as_dict(images(numbered(3)))  # nothing of the refused batch
    done = index.add(new, overwrite=True)
    assert (done.added, done.replaced) == (2, 1)
    assert contents(index) == before | as_dict(images(numbered(3)), new)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ENOENT])
def test_a_commit_whose_number_cannot_be_noted_is_a_commit(index, monkeypatch, number):
    (index.folder / "change").unlink()

    def refuse(source, target):
        raise OSError(number, os.strerror(number), source)

    with monkeypatch.context() as patched:
        patched.setattr("os.replace", refuse)
        assert index.add(images(numbered(1))).added == 1
    assert not (index.folder / "change").exists() and index.verify() == []
    index.add(images(numbered(2)))
    assert (index.folder / "change").exists() and len(CopyIndex(index.folder)) == 2


def test_one_id_twice_in_a_batch(index):
    def both(first: Images, second: Images) -> Images:
        joined = [np.concatenate(pair)
                  for pair in ((first.digests, second.digests), (first.sizes, second.sizes),
                               (first.vectors, second.vectors), (first.norms, second.norms))]
        return Images(["a", "a"], ["x/a.jpg", "y/a.jpg"], *joined)

    one, other = images(["a"]), images(["a"], content="other")
    with pytest.raises(DataError, match=r"'a' and different content: x/a\.jpg and y/a\.jpg"):
        index.add(both(one, other), overwrite=True)
    done = index.add(both(one, one))
    assert (done.added, done.same, len(index)) == (1, 1, 1)


def test_images_are_found_by_id_and_by_the_content_of_their_file(index):
    part, later = images(["a", "b", "cc", "é", "x" * 500]), images(["b2", "f"])
    index.add(part)
    index.add(later)
    found = index.find(["f", "a", "none", "a", "\udcff"])
    assert {image: row for image, (row, _) in found.items()} == {"f": 6, "a": 0}
    assert found["f"][1].path == "/folder/f.jpg" and found["f"][1].size == later.sizes[1]
    index.remove(["b", "b2"])
    assert set(index.find(["b", "a", "b2"])) == {"a"}
    digests = np.concatenate([later.digests, part.digests])
    assert index.holds_files(digests).tolist() == [False, True, True, False, True, True, True]
    index.compact()
    assert set(contents(index)) == {"a", "cc", "é", "x" * 500, "f"} and index.find(["f"])["f"][0] == 4


def test_names_that_are_not_utf8_and_rows_without_a_norm(index):
    odd = Images(["a"], [os.fsdecode(b"/folder/\xff\xfe.jpg")], *(getattr(images(["a"]), name) for name in (
        "digests", "sizes", "vectors"
    )), np.array([np.nan], np.float32))
    index.add(odd)
    record = index.find(["a"])["a"][1]
    assert os.fsencode(record.path) == b"/folder/\xff\xfe.jpg" and np.isnan(record.norm)


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
    near = Images(numbered(*range(50)), ["p"] * 50, images(numbered(*range(50))).digests, np.ones(50, int),
                  np.repeat(query.vectors, 50, axis=0), np.ones(50, np.float32))
    index.add(near)
    index.add(images(numbered(*range(50, 60))))
    index.remove(numbered(*range(50)))
    positions, scores = index.search(query.vectors, 4)
    assert positions.min() >= 50 and np.isfinite(scores).all()
    held = as_dict(images(numbered(*range(50, 60))))
    assert ids_of(index, positions[0]) == best_by_loop(held, query.vectors[0], 4)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_descriptors_that_no_search_can_use_are_refused_by_name(index, bad):
    new = images(numbered(1, 2))
    new.vectors[1] = bad
    with pytest.raises(DataError, match=r"'image_002' \(/folder/image_002\.jpg\): its descriptor is not finite"):
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
    with pytest.raises(DataError, match="nothing: no index there; make one first"):
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
    with pytest.raises(DataError, match="of metric 'l2': choose one of ip, hamming"):
        CopyIndex.create(tmp_path / "new", MODEL, metric="l2", dimension=DIM)


def edit_state(folder, **changes) -> None:
    with sqlite3.connect(folder / "index.sqlite") as database:
        ((text,),) = database.execute("SELECT json FROM state").fetchall()
        text = json.dumps(json.loads(text) | changes)
        database.execute("UPDATE state SET json = ?, checksum = ?", [text, zlib.crc32(text.encode())])
    database.close()


def test_half_an_index_and_damaged_files_are_named(index):
    index.add(images(numbered(1, 2, 3)))
    index.remove(["image_002"])
    index.close()
    path = index.folder / "index.sqlite"
    kept = path.read_bytes()
    path.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(DataError, match="index.sqlite: a file of the index is damaged"):
        CopyIndex(index.folder)
    path.write_bytes(kept)
    (index.folder / "vectors-0000.bin").rename(index.folder / "kept")
    with pytest.raises(DataError, match=r"vectors-0000\.bin: a file of the index is damaged \(the file is missing\)"):
        CopyIndex(index.folder)
    (index.folder / "kept").rename(index.folder / "vectors-0000.bin")
    whole = (index.folder / "index.sqlite").read_bytes()
    (index.folder / "index.sqlite").write_bytes(b"no database at all" * 1000)
    with pytest.raises(DataError, match=r"index\.sqlite: a file of the index is damaged \(file is not a database\)"):
        CopyIndex(index.folder)
    (index.folder / "index.sqlite").write_bytes(whole)
    edit_state(index.folder, version=4)
    with pytest.raises(DataError, match="is an index of version 4; this program reads up to 3: update ascl"):
        CopyIndex(index.folder)
    edit_state(index.folder, format="other", version=3)
    with pytest.raises(DataError, match="not an index of images"):
        CopyIndex(index.folder)
    (index.folder / "index.sqlite").unlink()
    with pytest.raises(DataError, match=r"an incomplete index: index\.sqlite is missing"):
        CopyIndex(index.folder)
    with pytest.raises(DataError, match=r"an incomplete index: index\.sqlite is missing"):
        CopyIndex.create(index.folder, MODEL, metric="ip", dimension=DIM)


def test_a_batch_with_a_flipped_bit_is_named_and_the_rest_can_be_used(index):
    for first in (0, 5, 10):
        index.add(images(numbered(*range(first, first + 5))))
    path = index.folder / "vectors-0000.bin"
    data = bytearray(path.read_bytes())
    data[7 * DIM * 4 + 2] ^= 4
    path.write_bytes(data)
    opened = CopyIndex(index.folder)
    (damage,) = opened.verify()
    assert (damage.path, damage.rows, list(damage.ids)) == (path, 5, numbered(*range(5, 10)))
    assert "vectors-0000.bin: the vectors of rows 5 to 9 are damaged; its 5 images are left out" in str(damage)
    query = images(numbered(12)).vectors
    assert ids_of(opened, opened.search(query, 1)[0][0]) == numbered(12)
    opened.remove(numbered(0))
    with pytest.raises(DataError, match="rows 5 to 9 are damaged"):
        opened.compact()                # a checksum of what is there now would hide it
    assert len(CopyIndex(index.folder)) == 14
    opened.remove(damage.ids)
    opened.add(images(damage.ids))
    assert opened.compact() == 6 and opened.verify() == []
    assert contents(opened) == as_dict(images(numbered(*range(1, 15))))


def test_a_damaged_page_of_the_database_is_noticed(index):
    index.add(images(numbered(*range(500))))
    index.close()
    path = index.folder / "index.sqlite"
    data = bytearray(path.read_bytes())
    for page in range(3, len(data) // 4096, 2):
        data[page * 4096 : page * 4096 + 100] = b"\xff" * 100
    path.write_bytes(data)
    opened = CopyIndex(index.folder)
    assert any(damage.path == path for damage in opened.verify())
    with pytest.raises(DataError, match=r"index\.sqlite: .*`repair` keeps what is intact"):
        opened.add(images(numbered(1000)))


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


def forked(target, *arguments) -> multiprocessing.Process:
    """A child that was started; no index may be open here, which SQLite forbids."""
    child = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    child.start()
    return child


def die_at(number: int, folder) -> None:
    """Run in a child: be killed before the line of `ascl.index` that is the `number`-th to run."""
    seen = iter(range(10**9))

    def each_line(frame, event, argument):
        if event == "line" and next(seen) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return each_line

    index = CopyIndex(folder)
    sys.settrace(lambda frame, event, argument: each_line if "/ascl/index/" in frame.f_code.co_filename else None)
    work(index)


def lines_of_work(folder) -> int:
    lines = []

    def each_line(frame, event, argument):
        lines.append(event)
        return each_line

    index = CopyIndex.create(folder, MODEL, metric="ip", dimension=DIM)
    before = sys.gettrace()
    sys.settrace(lambda frame, event, argument: each_line if "/ascl/index/" in frame.f_code.co_filename else None)
    try:
        work(index)
    finally:
        sys.settrace(before)
    assert contents(index) == states()[-1]
    index.close()
    return lines.count("line")


def test_a_kill_at_any_line_keeps_what_was_confirmed(tmp_path):
    total = lines_of_work(tmp_path / "counted")
    assert total > 200
    reached = set()
    rng = np.random.default_rng(0)
    step = total // 32
    for number in [int(rng.integers(first, first + step)) for first in range(0, total - step, step)]:
        folder = tmp_path / str(number)
        CopyIndex.create(folder, MODEL, metric="ip", dimension=DIM).close()
        child = forked(die_at, number, folder)
        child.join()
        assert child.exitcode == -signal.SIGKILL
        opened = CopyIndex(folder)
        change = opened.state.change
        reached.add(change)
        assert contents(opened) == states()[change] and opened.verify() == []
        opened.add(images(["later"]))  # the lock was let go, and droppings are cleared
        assert contents(opened) == states()[change] | as_dict(images(["later"]))
        assert set(os.listdir(folder)) == DATABASE | {path.name for path in opened.files()}
        opened.close()
    assert reached == set(range(7))  # a kill in the middle of each change was among them


def add_and_tell(folder, told) -> None:
    """Run in a child: add, remove and compact for ever; tell each number when its image is confirmed."""
    index = CopyIndex(folder)
    for number in range(10**6):
        index.add(images(numbered(number)))
        if number % 3 == 2:
            index.remove(numbered(number - 1))
        if number % 7 == 6:
            index.compact()
        os.write(told, number.to_bytes(4, "little"))


def test_a_kill_at_a_random_moment_loses_nothing_that_was_confirmed(tmp_path):
    rng = np.random.default_rng()
    for round_ in range(12):
        folder = tmp_path / str(round_)
        CopyIndex.create(folder, MODEL, metric="ip", dimension=DIM).close()
        read, write = os.pipe()
        child = forked(add_and_tell, folder, write)
        os.close(write)
        os.read(read, 4)                    # it is at work
        time.sleep(rng.uniform(0, 0.06))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        said = 1 + len(os.read(read, 2**16)) // 4
        os.close(read)
        opened = CopyIndex(folder)
        assert opened.state.added in (said, said + 1) and opened.verify() == []
        removed = {number - 1 for number in range(2, said, 3)}
        wanted = as_dict(images(numbered(*(number for number in range(said) if number not in removed))))
        next_ = as_dict(images(numbered(said)))
        without = {name: row for name, row in {**wanted, **next_}.items() if name not in numbered(said - 1)}
        assert contents(opened) in (wanted, wanted | next_, without)
        opened.close()


def test_images_whose_vectors_are_cut_off_are_left_out_and_named(index):
    index.add(images(FIRST))
    index.add(images(SECOND))
    index.close()
    os.truncate(index.folder / "vectors-0000.bin", len(FIRST) * DIM * 4)
    opened = CopyIndex(index.folder)
    positions, _ = opened.search(images(["q"]).vectors, 9)
    assert sorted(ids_of(opened, positions[0])) == FIRST
    (damage,) = opened.damage
    assert list(damage.ids) == SECOND and "the vectors of rows 5 to 8 are damaged" in str(damage)
    assert [record.id for record in opened.repair()] == SECOND


# --- several processes -----------------------------------------------------------------------------------------------


def add_one_by_one(folder, first: int, ready) -> None:
    index = CopyIndex(folder)
    ready.wait()
    for number in range(first, first + 25):
        index.add(images(numbered(number)))
        if number % 5 == 4:
            index.remove(numbered(number))
        if number % 10 == 9:
            index.compact()


def test_two_processes_that_add_at_the_same_time_while_a_third_reads(index):
    index.close()
    ready = multiprocessing.get_context("fork").Barrier(3)
    children = [forked(add_one_by_one, index.folder, first, ready) for first in (0, 100)]
    ready.wait()
    sizes = [0]
    while any(child.is_alive() for child in children):
        read = CopyIndex(index.folder)  # every state that is seen is whole
        assert len(contents(read)) == len(read)
        sizes.append(read.state.added)
        read.close()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert sizes == sorted(sizes) and len(set(sizes)) > 2
    numbers = [n for first in (0, 100) for n in range(first, first + 25) if n % 5 != 4]
    assert contents(CopyIndex(index.folder)) == as_dict(images(numbered(*numbers)))


def create_one(folder, ready) -> None:
    ready.wait()
    CopyIndex.create(folder, MODEL, metric="ip", dimension=DIM).add(images(numbered(os.getpid())))


def test_processes_that_make_the_same_index_at_the_same_time(tmp_path):
    """One that comes too late is refused; whoever was not has its image in the index."""
    ready = multiprocessing.get_context("fork").Barrier(4)
    children = [forked(create_one, tmp_path / "index", ready) for _ in range(4)]
    for child in children:
        child.join()
    done = {numbered(child.pid)[0] for child in children if child.exitcode == 0}
    assert done and set(contents(CopyIndex(tmp_path / "index"))) == done


def test_a_writer_waits_for_another_and_then_says_so(index):
    index.add(images(numbered(1)))
    other = sqlite3.connect(index.folder / "index.sqlite", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    impatient = CopyIndex(index.folder, lock_seconds=0.05)
    with pytest.raises(DataError, match=r"another process has been changing this index for 0\.05 s; try again"):
        impatient.add(images(numbered(2)))
    assert ids_of(impatient, impatient.search(images(numbered(1)).vectors, 1)[0][0]) == numbered(1)     # reads go on
    waiting = threading.Thread(target=index.add, args=[images(numbered(3))])
    waiting.start()
    other.execute("ROLLBACK")
    waiting.join()
    assert set(contents(impatient)) == set(numbered(1, 3))


def test_a_reader_keeps_its_state_while_another_changes_it(index):
    index.add(images(numbered(*range(10))))
    reader = CopyIndex(index.folder)
    before = reader.search(images(["q"]).vectors, 3)
    index.remove(numbered(*range(9)))
    index.compact()
    after = reader.search(images(["q"]).vectors, 3)
    assert np.array_equal(after[0], before[0]) and np.array_equal(after[1], before[1])
    assert len(reader.records(range(10))) == 10 and len(reader.find(numbered(*range(10)))) == 10
    reader.reload()
    assert len(reader) == 1 and ids_of(reader, reader.search(images(["q"]).vectors, 1)[0][0]) == numbered(9)


# --- compressed ------------------------------------------------------------------------------------------------------


def clustered(count: int, dim: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(7).standard_normal((60, dim))
    vectors = (centres[rng.integers(0, 60, count)] + 0.6 * rng.standard_normal((count, dim))).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def many(count: int, dim: int, seed: int = 0, prefix: str = "i") -> Images:
    digests = np.random.default_rng(seed).integers(0, 256, (count, 32), dtype=np.uint8)
    return Images([f"{prefix}{n}" for n in range(count)], ["p"] * count, digests, np.ones(count, int),
                  clustered(count, dim, seed), np.ones(count, np.float32))


@pytest.fixture
def compressed(tmp_path) -> CopyIndex:
    pytest.importorskip("faiss")
    made = CopyIndex.create(tmp_path / "compressed", MODEL, metric="ip", dimension=32, exact_up_to=1000)
    made.add(many(3000, 32))
    assert made.compress_if_due()
    return made


def test_the_compressed_index_finds_what_the_exact_one_finds(compressed):
    assert compressed.state.compressed["factory"] == "IVF128,PQ16x4fs"
    assert compressed.searched_by.startswith("compressed, IVF128,PQ16x4fs")
    queries = clustered(200, 32, seed=5)
    exact, scores = compressed.search(queries, 10, exact=True)
    assert np.array_equal(exact, np.argsort(-(queries @ many(3000, 32).vectors.T), axis=1)[:, :10])
    found, found_scores = compressed.search(queries, 10)
    at_1, at_10 = index_search.recall_of(found, exact)
    assert at_1 > 0.9 and at_10 > 0.9
    assert abs(at_10 - compressed.state.compressed["recall_at_10"]) < 0.1
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
    assert compressed.compress_if_due() and compressed.state.compressed["rows"] == 4000
    assert compressed.compact() == 2 and compressed.state.compressed["rows"] == 3998


def test_a_damaged_compressed_index_costs_speed_and_is_told(compressed):
    file = compressed.folder / compressed.state.compressed["file"]
    queries = clustered(3, 32, seed=5)
    wanted = compressed.search(queries, 5, exact=True)[0]
    for break_it in (lambda: file.write_bytes(file.read_bytes()[:1000]), file.unlink):
        break_it()
        opened = CopyIndex(compressed.folder)
        assert "`compact` rebuilds it" in opened.fault and opened.searched_by.startswith("every image")
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
        index_search.build_compressed(opened.rows)


def test_recall_counts_by_loop():
    exact = np.array([[1, 2, 3], [4, 5, 6]])
    found = np.array([[1, 3, 9], [5, 8, 7]])
    assert index_search.recall_of(found, exact) == (0.5, 3 / 6)


def test_positions_of_older_layouts_are_not_used(compressed):
    """Another process compacts while the compressed index is being built: what was built is thrown away."""
    compressed.add(many(1000, 32, seed=3, prefix="x"))
    built = compressed.build_compressed()
    other = CopyIndex(compressed.folder)
    other.remove(["i0"])
    other.compact()
    assert not compressed.set_compressed(*built)
    assert compressed.state.compressed["rows"] == 3999 and compressed.searched_by.startswith("compressed")
    own = many(3000, 32).vectors[1:50]
    assert np.array_equal(compressed.search(own, 1)[0][:, 0], np.arange(49))


def test_a_folder_that_may_not_be_written_can_be_searched():
    if not hasattr(os, "setuid"):
        pytest.skip("no users here")
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "index"
        index = CopyIndex.create(folder, MODEL, metric="ip", dimension=DIM)
        index.add(images(numbered(1, 2, 3)))
        index.close()
        os.chmod(place, 0o755)
        os.chmod(folder, 0o555)
        child = forked(search_as_a_guest, folder)
        child.join()
        os.chmod(folder, 0o755)
        assert child.exitcode == 0


def search_as_a_guest(folder) -> None:
    if os.getuid() == 0:
        os.setuid(65534)
    index = CopyIndex(folder)
    assert contents(index) == as_dict(images(numbered(1, 2, 3)))
    with pytest.raises(DataError, match="readonly"):
        index.add(images(numbered(4)))


def test_the_exact_search_over_many_blocks_of_rows_with_ties(tmp_path):
    pytest.importorskip("faiss")
    part = many(20_000, 32)
    same = [3, 5, 8191, 8192, *range(9001, 9099, 2), 16_385]
    part.vectors[same] = part.vectors[3]     # equal scores in several blocks
    index = CopyIndex.create(tmp_path / "index", MODEL, metric="ip", dimension=32)
    index.add(part)
    queries = np.concatenate([clustered(20, 32, seed=5), part.vectors[3:4]])
    positions, scores = index.search(queries, 10)
    exact = queries.astype(np.float64) @ part.vectors.astype(np.float64).T
    assert np.array_equal(positions, np.argsort(-exact, axis=1, kind="stable")[:, :10])
    assert positions[-1].tolist() == same[:10] and len(set(scores[-1])) == 1
    index.remove([part.ids[row] for row in range(0, 20_000, 2)])
    exact[:, ::2] = -np.inf
    assert np.array_equal(index.search(queries, 10)[0], np.argsort(-exact, axis=1, kind="stable")[:, :10])
