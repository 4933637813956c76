"""A persistent index of images: add, remove and search, one image or a million, from several processes at once.

A folder holds `index.sqlite` (`ascl.index.records`), `vectors-N.bin` (`ascl.index.vectors`) and, for many images, a
compressed FAISS index. A change writes its vectors, then commits the transaction that makes them count. A process
killed at any moment leaves the last committed state, and the next change removes what was left over. A committed row
keeps its position until `compact` frees the rows of removed images, so that structures over positions, such as the
compressed index, stay valid.

A flipped bit never changes an answer unnoticed. A search compares each batch of vectors that it reads with its checksum,
once per process, and the record of each image that it finds. What is damaged is left out and named by `damage`. The
first change of a process checks the whole database, and is refused if it is damaged. `repair` keeps what is intact.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.index import Metric, damage, version1, version2
from ascl.index import search as index_search
from ascl.index.damage import Damage
from ascl.index.images import Added, Images, conflict
from ascl.index.places import Place, place_of, relative_to
from ascl.index.records import CHANGE, DATABASE, UNREADABLE, Database, checksum_of_numbers
from ascl.index.state import VERSION, Record, State, damaged
from ascl.index.vectors import (
    VECTOR_TYPES,
    Batch,
    CheckedVectors,
    append_vectors,
    map_vectors,
    sync_folder,
    vectors_file,
)

EXACT_UP_TO = 100_000           # images; for more, FAISS searches a compressed index
UNCOMPRESSED_SHARE = 0.25       # rebuild the compressed index if more new rows than this share of its own are outside
LOCK_SECONDS = 600              # long, because another process may be writing a compressed index of millions
REWRITTEN_ROWS = 2**14          # rows per batch that `compact` writes
OURS = re.compile(rf"vectors-\d{{4,}}\.bin|\d{{8,}}-compressed\.faiss|{CHANGE}|\..*\.tmp(-\w+)?|{version1.OLD_FILE.pattern}")


class CopyIndex:
    """A persistent index of descriptors in a folder: `create` makes one, `CopyIndex(folder)` opens it.

    An open index shows the state at which it was opened, or to which `reload` or its last change moved it. A process
    that keeps one open for long should call `reload` now and then, because SQLite cannot shorten its log until then.

    Attributes:
        state: the committed state.
        rows: its vectors, and which of them were removed.
        fault: what is wrong with the compressed index; None = nothing.

    Example:
        >>> import tempfile
        >>> images = Images(ids=["cat", "dog"], paths=["cat.jpg", "dog.jpg"], digests=np.eye(2, 32, dtype=np.uint8),
        ...                 sizes=np.array([-1, -1]), vectors=np.eye(2, dtype=np.float32), norms=np.ones(2, np.float32))
        >>> folder = tempfile.TemporaryDirectory()
        >>> index = CopyIndex.create(folder.name, {"name": "toy model"}, metric="ip", dimension=2)
        >>> index.add(images)
        Added(added=2, same=0, replaced=0, moved=0)
        >>> positions, scores = index.search(np.array([[0.6, 0.8]], np.float32), k=2)      # both (1, 2), best first
        >>> [index.records(positions[0])[position].id for position in positions[0]], scores.round(2).tolist()
        (['dog', 'cat'], [[0.8, 0.6]])
        >>> index.close(); folder.cleanup()
    """

    state: State
    rows: index_search.Rows
    fault: str | None

    def __init__(self, folder: str | os.PathLike, *, lock_seconds: float = LOCK_SECONDS) -> None:
        """Open an index; one of version 1 or 2 is converted first.

        Args:
            folder: the folder that `create` made.
            lock_seconds: how long a change waits for another process to finish its own.

        Raises:
            DataError: there is no index, it is incomplete or damaged, or its version is newer.
        """
        self.folder = Path(folder)
        if not is_index(self.folder):
            if self.folder.is_dir() and any(OURS.fullmatch(item.name) for item in self.folder.iterdir()):
                raise DataError(f"{folder} is an incomplete index: {DATABASE} is missing. Restore it, or delete the "
                                "folder and index the images again")
            raise DataError(f"{folder}: no index there; make one first")
        old = not (self.folder / DATABASE).exists()
        if old:
            version1.convert(self.folder, lock_seconds)
        self.fault = None
        self._compressed: Any = None
        self._opened: State | None = None
        self._removed = np.empty(0, np.int64)   # in the order of removal
        self._is_checked = False                # the database, before the first change
        self._damage = dict[str, Damage]()      # of the database, by kind
        self._database = Database(self.folder / DATABASE, lock_seconds)
        if self._database.stored()[1] < VERSION:
            version2.convert(self._database)
        self.reload()
        if old:
            with self._change():    # removes the old files
                pass

    @classmethod
    def create(cls, folder: str | os.PathLike, model: dict[str, Any], *, metric: Metric, dimension: int,
               exact_up_to: int = EXACT_UP_TO, lock_seconds: float = LOCK_SECONDS) -> CopyIndex:
        """Make an empty index in a new or empty folder, or replace an index to which nothing was ever added.

        Args:
            folder: folder to make.
            model: the model that makes the vectors, fit for JSON, with a `name`.
            metric: `ip` for float32 unit rows, compared by inner product; `hamming` for bits in uint8 rows.
            dimension: floats (`ip`) or bytes (`hamming`) per row, >= 1.
            exact_up_to: up to this number of images the search is exact.
            lock_seconds: how long a change waits for another process to finish its own.

        Raises:
            DataError: the folder holds an index with images or other files, or an argument is out of range.
        """
        folder = Path(folder)
        if metric not in VECTOR_TYPES:
            raise DataError(f"an index of metric {metric!r}: choose one of {', '.join(VECTOR_TYPES)}")
        if exact_up_to < 0 or dimension < 1:
            raise DataError(f"exact_up_to is {exact_up_to} and dimension {dimension}: they must be at least 0 and 1")
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file, and an index is a folder; choose another name")
        folder.mkdir(parents=True, exist_ok=True)
        if is_index(folder):
            cls(folder, lock_seconds=lock_seconds).close()  # raises if it is damaged
        else:
            names = sorted(item.name for item in folder.iterdir() if not item.name.startswith((".", DATABASE)))
            if any(OURS.fullmatch(name) for name in names):
                cls(folder)  # says that it is half an index
            if names:
                raise DataError(f"{folder} holds other files ({', '.join(names[:3])}): choose another folder")
        database = Database(folder / DATABASE, lock_seconds, create=True)
        with database.change():
            change = 0
            if not database.is_empty():
                there = database.state()
                if there.added:
                    raise DataError(f"{folder} is an index already: add to it, or choose another folder")
                change = there.change + 1
            else:
                database.create_tables()
            database.save(State(model, metric, dimension, exact_up_to, change))
        database.close()
        sync_folder(folder)
        return cls(folder, lock_seconds=lock_seconds)

    def close(self) -> None:
        """Close the database; SQLite requires this before a fork whose child opens the index."""
        self._database.close()

    def __len__(self) -> int:
        """Number of images."""
        return self.state.images

    def reload(self) -> None:
        """Move to the state that other processes have committed meanwhile.

        Raises:
            DataError: another process has made the index anew for another model, or a file is missing or damaged (the
                message names it).
        """
        before = -1
        while True:
            self._database.begin()
            state = self._database.state()
            try:
                return self._move_to(state)
            except DataError:
                if state.change == before:
                    raise
                before = state.change   # another process may have removed a file of this state since

    def files(self) -> list[Path]:
        """Return the paths of this state's files."""
        compressed = [self.state.compressed["file"]] if self.state.compressed else []
        names = [DATABASE, f"{DATABASE}-wal", CHANGE, vectors_file(self.state), *compressed]
        return [path for path in map(self.folder.joinpath, names) if path.exists()]

    def records(self, positions: Iterable[int]) -> dict[int, Record]:
        """Return position -> record of its image; positions of removed images and damaged records are left out."""
        return {row: record for row, record in self._read(list(map(int, positions))) if record is not None}

    def each_record(self) -> Iterator[tuple[int, Record]]:
        """Yield (position, record) of every image; damaged records are left out."""
        for first in range(0, self.state.rows, REWRITTEN_ROWS):
            yield from sorted(self.records(range(first, min(first + REWRITTEN_ROWS, self.state.rows))).items())

    def find(self, ids: Iterable[str]) -> dict[str, tuple[int, Record]]:
        """Return id -> (position, record) for the ids that are in the index; DataError if a record is damaged."""
        return {record.id: (row, record) for row, record in self._intact("id", ids)}

    def find_paths(self, paths: Iterable[str]) -> dict[str, tuple[int, Record]]:
        """Return absolute path -> (position, record) of the images that were added from there, or are there now.

        This reads every record. An image is also found in its place relative to the index. DataError if a record is
        damaged.
        """
        wanted = {path: relative_to(self.folder, path) for path in paths}
        found = dict[str, tuple[int, Record]]()
        for column, names in (("relative", wanted.values()), ("path", wanted)):
            encoded = {os.fsencode(name).hex().upper() for name in names if name}
            held = {getattr(record, column): (row, record) for row, record in self._intact(f"hex({column})", encoded)}
            found |= {path: held[name] for path, name in zip(wanted, names, strict=True) if name in held}
        return found

    def find_content(self, digests: Iterable[bytes]) -> dict[bytes, list[tuple[int, Record]]]:
        """Return SHA-256 -> (position, record) of each image of such a file; DataError if a record is damaged."""
        found = dict[bytes, list[tuple[int, Record]]]()
        for row, record in self._intact("row", self._database.rows_of_content(digests)):
            found.setdefault(record.sha256, []).append((row, record))
        return found

    def holds_files(self, digests: np.ndarray) -> np.ndarray:
        """Return (n,) bool for (n, 32) uint8 SHA-256: whether an image of the same file is in the index.

        DataError if the database is damaged.
        """
        self.require_intact()
        wanted = [digest.tobytes() for digest in digests]
        held = self.find_content(wanted)
        return np.array([digest in held for digest in wanted], dtype=bool)

    def file_sizes(self) -> set[int]:
        """Return the sizes in bytes of the files of all images; -1 is among them if one is not known."""
        return {size for (size,) in self._database.run("SELECT DISTINCT size FROM images")}

    def place_of(self, record: Record) -> Place:
        """Return where the file of an image is now."""
        return place_of(record, self.folder)

    def calibration_arrays(self) -> dict[str, np.ndarray] | None:
        """Return the arrays that `set_calibration` stored; None if they are damaged, which `damage` then says."""
        try:
            return self._database.arrays(self.state.arrays or {})
        except DataError:
            self._damage["calibration"] = Damage(self._database.path, "the scores of the calibration are damaged, so no "
                                                 "match is judged a copy: calibrate again")
            return None

    @property
    def damage(self) -> list[Damage]:
        """What was found to be damaged so far, and which images a search leaves out therefore."""
        fault = [] if self.fault is None else [Damage(self.folder, self.fault)]
        return [*fault, *self._damage.values(), *damage.of_vectors(self, self._vectors().left_out)]

    def verify(self) -> list[Damage]:
        """Read every vector and the whole database, and return what is damaged; all else can still be used."""
        problem = self._database.check(self.state)
        if problem is not None:
            self._damage["database"] = Damage(self._database.path, f"damaged ({problem})")
        self._leave_out_records(np.setdiff1d(np.arange(self.state.rows), self.rows.removed))
        self._vectors().check()
        self.calibration_arrays()
        return self.damage

    def require_intact(self) -> None:
        """Check the database, once per open index; every change calls this first.

        Raises:
            DataError: it is damaged, so that an image might be added twice or a removed one come back.
        """
        if not self._is_checked:
            problem = self._database.check(self.state)
            if problem is not None:
                self._damage["database"] = Damage(self._database.path, f"damaged ({problem})")
            found = [one for kind, one in self._damage.items() if kind not in ("calibration", "last change")]
            if found:
                raise DataError(f"{found[0]}; `repair` keeps what is intact, and then images can be added and removed")
            self._is_checked = True

    def repair(self) -> list[Record]:
        """Make the database anew from what is intact in it, and return the images whose vectors are damaged.

        Those stay in the index, left out of every search, until they are removed or described again. Images whose
        record is damaged are forgotten. Nobody else may change the index meanwhile.
        """
        found = self.verify()
        lost = list(self.records(self._vectors().left_out).values())
        if found and (self._damage or not self._vectors().tiled):
            damage.rebuild(self._database, self.state, dict(self.each_record()), self._vectors().batches(),
                           self.calibration_arrays())
            self._opened, self._damage = None, {}
            self.reload()
        if self.fault is not None:
            with self._change():
                self._database.save(self.state.after(compressed=None))
        return lost

    def add(self, images: Images, *, overwrite: bool | Collection[str] = False) -> Added:
        """Add images, all or none; skip those that are in the index with the same id and file, and not damaged.

        Args:
            images: described images.
            overwrite: replace an indexed image by a different one with the same id: True for any, or the ids of those.

        Raises:
            DataError: an id is in the index (without `overwrite`), or twice in `images`, with a different file; an id
                is no text that can be stored; vectors have another dimension or type, or are not finite, or zero; or
                the disk is full.
        """
        index_search.check_vectors(images.vectors, self.state.metric, self.state.dimension, "new images")
        images.check_usable()
        with self._change():
            kept, replaced = self._new(images, overwrite)
            if kept:
                state = self.state
                state = self._database.remove(replaced, state)
                self._database.insert((row, images.record(one, self.folder))
                                      for row, one in enumerate(kept, state.rows))
                self._database.add_batches(append_vectors(self.folder, state, [images.vectors[kept]]))
                self._database.save(replace(state, rows=state.rows + len(kept), added=state.added + len(kept),
                                            change=self.state.change + 1))
        return Added(len(kept), len(images.ids) - len(kept), len(replaced))

    def remove(self, ids: Sequence[str]) -> int:
        """Remove images, all or none, and return how many; `compact` frees their rows.

        Raises:
            DataError: an id is not in the index; the message names up to ten.
        """
        ids = list(dict.fromkeys(ids))
        with self._change():
            there = self.find(ids)
            missing = [image for image in ids if image not in there]
            if missing:
                raise DataError(f"{self.folder}: {len(missing)} of {len(ids)} ids are not in the index: "
                                f"{', '.join(map(repr, missing[:10]))}; nothing was removed")
            if ids:
                self._database.save(self._database.remove([row for row, _ in there.values()], self.state))
        return len(ids)

    def rename(self, records: Sequence[tuple[int, Record]]) -> int:
        """Give images, by their positions, new ids and paths, all or none, and return how many.

        Raises:
            DataError: another image has one of the ids.
        """
        with self._change():
            rows = {row for row, _ in records}
            taken = [image for image, (row, _) in self.find([one.id for _, one in records]).items() if row not in rows]
            if taken:
                raise DataError(f"{self.folder}: another process has added an image of the id {taken[0]!r} meanwhile; "
                                "run the same again")
            if records:
                self._database.update(records)
                self._database.save(self.state.after())
        return len(records)

    def compact(self) -> int:
        """Free the rows of removed images, return how many, and rebuild the compressed index if one is due.

        Raises:
            DataError: a batch is damaged, and would look intact after rewriting; nothing is changed.
        """
        with self._change():
            gone = self.state.removed
            if gone:
                found = self.verify()
                if found:
                    raise DataError(f"{found[0]}; `repair` mends it")
                live = np.flatnonzero(~self.rows.is_removed(np.arange(self.state.rows)))
                state = replace(self.state, rows=0, removed=0, removed_checksum=0, layout=self.state.layout + 1)
                parts = (live[first : first + REWRITTEN_ROWS] for first in range(0, len(live), REWRITTEN_ROWS))
                batches = append_vectors(self.folder, state, (self.rows.vectors[part] for part in parts))
                self._database.renumber()
                self._database.add_batches(batches)
                self._database.save(state.after(rows=len(live), compressed=None))
            elif self.state.compressed:
                self._database.save(self.state.after(compressed=None))
        with self._change():    # removes the files of the previous state
            pass
        self.compress_if_due()
        return gone

    def set_calibration(self, calibration: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Store a calibration and its arrays (see `ascl.index.calibration`)."""
        with self._change():
            self._database.save(self.state.after(calibration=calibration, arrays=self._database.save_arrays(arrays)))
        self._damage.pop("calibration", None)

    def compress_if_due(self) -> bool:
        """Build the compressed index if there are too many images for exact search, or too many new ones.

        Without FAISS nothing is built, and every search is exact. Building holds no lock: others may add meanwhile.

        Returns:
            Whether one was built and stored.
        """
        built = self.build_compressed()
        return built is not None and self.set_compressed(*built)

    def build_compressed(self) -> tuple[Any, dict[str, Any], int] | None:
        """Return a FAISS index of the latest state, how it was built, and the layout of its rows; store nothing.

        None if no compressed index is due.
        """
        self.reload()
        state = self.state
        covered = (state.compressed or {}).get("rows", 0)
        few_new = state.rows - covered <= UNCOMPRESSED_SHARE * covered and not self.fault
        fewest = max(state.exact_up_to, index_search.FEWEST_IMAGES)
        if state.metric == "hamming" or state.images <= fewest or few_new or index_search.import_faiss() is None:
            return None
        return *index_search.build_compressed(self.rows), state.layout

    def set_compressed(self, built: Any, about: dict[str, Any], layout: int) -> bool:
        """Store a compressed index, and return whether it still fits.

        It does not if `compact` has moved the rows meanwhile; then that process has built another.
        """
        with self._change():
            if self.state.layout != layout:
                return False
            name = f"{self.state.change + 1:08d}-compressed.faiss"
            checksum = index_search.write_compressed(built, self.folder / name)
            sync_folder(self.folder)
            self._database.save(self.state.after(compressed={**about, "file": name, "checksum": checksum}))
        return True

    def search(self, vectors: np.ndarray, k: int, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best images for each query.

        Args:
            vectors: (Q, dimension) of the index's type; unit rows for `ip`.
            k: at least 1.
            exact: compare with every image even if there is a compressed index.

        Returns:
            positions (Q, min(k, images)) int64 and scores (Q, min(k, images)) float64, best first, equal scores by
            position; `records` turns positions into ids. The score is the inner product (`ip`), or the share of bits
            that agree (`hamming`). Images that are damaged are left out, and `damage` names them.

        Raises:
            DataError: k < 1, or vectors have another dimension or type or are not finite.
        """
        if k < 1:
            raise DataError(f"k is {k}: ask for at least 1 match")
        index_search.check_vectors(vectors, self.state.metric, self.state.dimension, "queries")
        checked = self._vectors()
        while True:
            left_out = len(checked.left_out)
            without = np.union1d(np.union1d(self.rows.removed, checked.left_out), self._lost_records)
            rows = replace(self.rows, removed=without, check=checked.check)
            positions, scores = index_search.search(rows, vectors, k, None if exact else self._compressed)
            if not self._leave_out_records(np.unique(positions)) and len(checked.left_out) == left_out:
                return positions, scores

    @property
    def searched_by(self) -> str:
        """How `search` works, in words."""
        if self.state.metric == "hamming":
            return "every image, by the bits that differ"
        if self._compressed is None:
            faiss = index_search.import_faiss()
            return "every image, exactly" + ("" if faiss is not None else " (by torch: FAISS is not installed)")
        about = self.state.compressed or {}
        rest = self.state.rows - about["rows"]
        return f"compressed, {about['factory']}, {about['probes']} lists" + (f"; {rest} new rows exactly" * bool(rest))

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Lock the index for one change, from its latest state; commit it at the end, or undo it after an error."""
        try:
            with self._database.change():
                self._move_to(self._database.state())
                self.require_intact()
                self._clear()
                yield
        finally:
            self.reload()

    def _clear(self) -> None:
        """Remove files that the state does not need; under the lock, nobody else can be writing them."""
        needed = {path.name for path in self.files()}
        for path in self.folder.iterdir():
            if OURS.fullmatch(path.name) and path.name not in needed:
                path.unlink()

    def _move_to(self, state: State) -> None:
        """Open the files of the state that the connection sees, if they are not open already.

        A compressed index can be rebuilt from the rows, so a damaged one costs only speed: it is a `fault`, not an
        error.
        """
        before = self._opened
        if before is not None and state.model != before.model:
            raise DataError(f"{self.folder} was made anew meanwhile, by {state.model['name']} instead of "
                            f"{before.model['name']}: open it again")
        if before is not None and state.change == before.change:
            return
        same = before is not None and state.layout == before.layout
        self._note_lost_changes(state)
        removed = self._removed_rows(state) if not same or state.removed != len(self._removed) else self.rows.removed
        vectors = self.rows.vectors if same and len(self.rows) == state.rows else map_vectors(self.folder, state)
        if before is None or state.compressed != before.compressed:
            self._compressed, self.fault = None, None
            if state.compressed:
                try:
                    file = self.folder / state.compressed["file"]
                    self._compressed = index_search.open_compressed(file, state.compressed)
                except DataError as error:
                    self.fault = str(error)
        if not same:
            self._verdicts = dict[Batch, bool]()
            self._record_seen, self._lost_records = np.zeros(0, bool), np.empty(0, np.int64)
        self._record_seen = np.append(self._record_seen, np.zeros(state.rows - len(self._record_seen), bool))
        self.state = self._opened = state
        self.rows = index_search.Rows(vectors, removed, state.metric)
        self._checked: CheckedVectors | None = None

    def _note_lost_changes(self, state: State) -> None:
        file, last = self.folder / CHANGE, self._database.committed
        if last > state.change:
            self._damage["changes"] = Damage(
                self._database.path, f"the changes {state.change + 1} to {last} are lost, because its log "
                f"{DATABASE}-wal is missing or damaged: restore it, or repair the index and index the images again")
        elif last == UNREADABLE:
            self._damage["last change"] = Damage(file, "damaged, so a change that was lost would not be noticed; the "
                                                 "next change writes it anew")
        else:
            self._damage.pop("last change", None)

    def _removed_rows(self, state: State) -> np.ndarray:
        """Return the removed rows, ascending. If their list is damaged, they are those without a record."""
        before = self._opened
        known = self._removed if before is not None and state.layout == before.layout else self._removed[:0]
        try:
            order = np.append(known, self._database.removed(len(known)))
        except DataError:
            order = known
        if len(order) == state.removed and checksum_of_numbers(order) == state.removed_checksum:
            self._removed = order
            return np.sort(order)
        self._damage["removed"] = Damage(self._database.path, "the list of removed images is damaged; images without a "
                                         "record count as removed")
        self._removed = self._removed[:0]
        return np.setdiff1d(np.arange(state.rows), self._database.rows())

    def _vectors(self) -> CheckedVectors:
        if self._checked is None:
            try:
                batches = self._database.batches()
            except DataError:
                batches = []    # then no vector can be compared with its checksum, and none is used
            self._checked = CheckedVectors(self.rows.vectors, batches, self._verdicts)
        return self._checked

    def _read(self, rows: list[int]) -> list[tuple[int, Record | None]]:
        try:
            return self._database.records("row", rows)
        except DataError:   # a damaged page: read the others
            return damage.one_by_one(self._database, rows)

    def _intact(self, column: str, values: Iterable[Any]) -> Iterator[tuple[int, Record]]:
        for row, record in self._database.records(column, values):
            if record is None:
                raise damaged(self._database.path, f"the record of row {row}")
            yield row, record

    def _leave_out_records(self, rows: np.ndarray) -> bool:
        """Compare records that were not seen yet with their checksums, and return whether any must be left out."""
        unseen = rows[~self._record_seen[rows]]
        self._record_seen[list(self.records(unseen))] = True
        lost = unseen[~self._record_seen[unseen]]
        if len(lost):
            self._lost_records = np.union1d(self._lost_records, lost)
            self._damage["records"] = damage.of_records(self._database.path, self._lost_records)
        return bool(len(lost))

    def _new(self, images: Images, overwrite: bool | Collection[str]) -> tuple[list[int], list[int]]:
        """Return the rows of `images` to add, and the positions of the images that they replace."""
        there = self.find(images.ids)
        checked = self._vectors()
        checked.check(np.array([row for row, _ in there.values()], np.int64))
        lost = set(checked.left_out.tolist())
        chosen: dict[str, int] = {}
        for row, image in enumerate(images.ids):
            digest = images.digests[row].tobytes()
            if image in chosen:
                if images.digests[chosen[image]].tobytes() != digest:
                    raise conflict(image, images.paths[chosen[image]], images.paths[row], indexed=False)
            elif image not in there or there[image][0] in lost:
                chosen[image] = row
            elif there[image][1].sha256 != digest:
                if not (image in overwrite if isinstance(overwrite, Collection) else overwrite):
                    raise conflict(image, there[image][1].path, images.paths[row], indexed=True)
                chosen[image] = row
        return list(chosen.values()), [there[image][0] for image in chosen if image in there]


def is_index(folder: str | os.PathLike) -> bool:
    """Return whether a folder holds an index, intact or damaged, and not only what a kill left of making one."""
    path = Path(folder) / DATABASE
    if not os.path.lexists(path):
        return (Path(folder) / version1.MANIFEST).exists()
    try:
        database = Database(path, LOCK_SECONDS)
    except DataError:
        return True
    try:
        return not database.is_empty()
    except DataError:
        return True
    finally:
        database.close()
