"""Open an index and read it: its records, searches, and what in it is damaged.

A flipped bit never changes an answer unnoticed. A search compares each batch of vectors that it reads with its
checksum, once per open index, and the record of each image that it finds. What is damaged is left out and named by
`damage`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.index import damage, version1, version2
from ascl.index import search as index_search
from ascl.index.damage import Damage
from ascl.index.places import Place, place_of, relative_to
from ascl.index.records import CHANGE, DATABASE, UNREADABLE, Database, checksum_of_numbers
from ascl.index.state import COMPRESSED_FILE, VERSION, Record, State, damaged
from ascl.index.vectors import Batch, CheckedVectors, map_vectors, vectors_file

LOCK_SECONDS = 600      # long, because another process may be writing a compressed index of millions
RECORDS_TOGETHER = 2**14
OURS = re.compile(rf"vectors-\d{{4,}}\.bin|{COMPRESSED_FILE.pattern}|{CHANGE}|\..*\.tmp(-\w+)?|"
                  rf"{version1.OLD_FILE.pattern}")


class IndexReader:
    """An index as it is read; `CopyIndex` also changes it.

    Attributes:
        state: the committed state.
        rows: its vectors, and which of them were removed.
        fault: what is wrong with the compressed index; None = nothing.
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
        if not (self.folder / DATABASE).exists():
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
        for first in range(0, self.state.rows, RECORDS_TOGETHER):
            yield from sorted(self.records(range(first, min(first + RECORDS_TOGETHER, self.state.rows))).items())

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
            self._damage["calibration"] = Damage(self._database.path, "the scores of the calibration are damaged, so "
                                                 "no match is judged a copy: calibrate again")
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

    def _move_to(self, state: State) -> None:
        """Open the files of the state that the connection sees, if they are not open already.

        A compressed index can be rebuilt from the rows, so a damaged one costs only speed: it is a `fault`, not an
        error.
        """
        before = self._opened
        if before is not None and state.model != before.model:
            raise DataError(f"{self.folder} was made anew meanwhile, by {state.model.get('name')} instead of "
                            f"{before.model.get('name')}: open it again")
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
            self._damage.pop("records", None)
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
            return
        self._damage.pop("changes", None)
        if last == UNREADABLE:
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
            self._damage.pop("removed", None)
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
