"""The database of an index: its state, a record per image, the batches of vectors, the arrays of the calibration.

SQLite in WAL mode: a reader sees the state at which it began, writers take turns, and a committed transaction survives
a kill and a power cut. All processes must run on one machine, because WAL shares memory between them. After a fork with
an open index, the child must not open one: SQLite forbids it.

SQLite does not notice a flipped bit in its pages, so the state, each record and each array have a checksum here, and
the tables are compared with `TABLES`. SQLite also forgets a commit whose entry in its log is damaged; the file `change`
has the number of the last commit, by which this is noticed.
"""

from __future__ import annotations

import io
import json
import math
import os
import sqlite3
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.core.files import atomic_path
from ascl.core.reading import reading, reason, require_file
from ascl.index.state import FORMAT, RESTORE, VERSION, Record, State, damaged, read_state, record_checksum

DATABASE, CHANGE = "index.sqlite", "change"
UNREADABLE = -1
TABLES = {
    "state": "CREATE TABLE state (json TEXT NOT NULL, checksum INTEGER NOT NULL)",
    "images": "CREATE TABLE images (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path BLOB, relative BLOB, "
              "sha256 BLOB, size INTEGER, norm REAL, checksum INTEGER)",
    "by_content": "CREATE INDEX by_content ON images (sha256)",
    "removed": "CREATE TABLE removed (row INTEGER NOT NULL)",
    "batches": "CREATE TABLE batches (first INTEGER PRIMARY KEY, rows INTEGER NOT NULL, checksum INTEGER NOT NULL)",
    "arrays": "CREATE TABLE arrays (name TEXT PRIMARY KEY, npy BLOB NOT NULL)",
}
COLUMNS = "id, path, relative, sha256, size, norm"
EMPTY_BYTES = 4096      # a database without tables has at most one page
SURROUNDINGS = ("full", "I/O", "readonly", "unable to open", "access permission")   # errors that no damage causes


class Database:
    """A connection to the database of an index.

    It sees the state at its last `begin`, or the latest state within `change`. Every method raises a DataError if the
    file is damaged.

    Attributes:
        committed: number of the last change that was committed before the last `begin` or `change`; 0 = unknown,
            `UNREADABLE` = the file that has it is damaged.
    """

    def __init__(self, path: Path, lock_seconds: float, *, create: bool = False) -> None:
        """Connect; `lock_seconds` is how long a change waits for another process to finish its own."""
        self.path, self.lock_seconds, self.committed = path, lock_seconds, 0
        self._saved: int | None = None
        for suffix in ("", "-wal", "-shm", "-journal"):     # SQLite would wait for what a pipe never brings
            file = path.with_name(path.name + suffix)
            if os.path.lexists(file):
                require_file(file, "database of an index")
        mode = "rwc" if create else "rw"
        if not os.access(path.parent, os.W_OK):  # read only; without a log beside it, nobody is changing the database
            mode = "ro" if path.with_name(path.name + "-wal").exists() else "ro&immutable=1"
        try:
            self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", lock_seconds, uri=True,
                                               isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._failure(error) from error
        self._connection.create_function("record_checksum", 7, record_checksum, deterministic=True)
        if not mode.startswith("ro"):
            self.run("PRAGMA journal_mode = WAL")
            self.run("PRAGMA synchronous = FULL")

    def close(self) -> None:
        self._connection.close()

    def run(self, statement: str, values: Iterable[Any] = (), *, each: bool = False) -> list[tuple]:
        """Run a statement with the values, or with `each` of the values in turn, and return its rows."""
        run = self._connection.executemany if each else self._connection.execute
        try:
            return run(statement, values).fetchall()    # type: ignore[arg-type]
        except sqlite3.Error as error:
            raise self._failure(error) from error

    def _failure(self, error: sqlite3.Error) -> DataError:
        if "locked" in str(error):
            return DataError(f"{self.path.parent}: another process has been changing this index for "
                             f"{self.lock_seconds:g} s; try again when it has finished")
        if any(word in str(error) for word in SURROUNDINGS):
            return DataError(f"{self.path}: {error}; the index is as it was before this change. Check the disk's free "
                             "space and permissions, then run the same again")
        return damaged(self.path, reason(error))

    def begin(self) -> None:
        """See the state that is the latest at the next read; later changes of other processes stay invisible."""
        self._end()
        self.committed = self._last_commit()    # before the snapshot: another process may commit in between
        self.run("BEGIN")

    @contextmanager
    def change(self) -> Iterator[None]:
        """Change the index exclusively, from its latest state; an error undoes everything.

        Raises:
            DataError: another process did not finish its change within `lock_seconds`.
        """
        self._end()
        self.run("BEGIN IMMEDIATE")
        self.committed, self._saved = self._last_commit(), None
        try:
            yield
            self.run("COMMIT")
            if self._saved is not None:
                self._note_commit(self._saved)
        finally:
            self._end()

    def _end(self) -> None:
        if self._connection.in_transaction:
            self._connection.rollback()

    def _last_commit(self) -> int:
        file = self.path.with_name(CHANGE)
        if not os.path.lexists(file):
            return 0
        require_file(file, "number of the last change")
        with suppress(OSError, ValueError):
            number, checksum = file.read_bytes().split(b" ")
            if int(checksum) == zlib.crc32(number):
                return int(number)
        return UNREADABLE

    def _note_commit(self, change: int) -> None:
        """Write the number of a commit, in place and with one call, so that a kill leaves the old or the new one.

        It is not flushed to the disk, and a failure is no error: an older number only notices less.
        """
        number, file = b"%020d" % change, self.path.with_name(CHANGE)
        line = b"%s %010d\n" % (number, zlib.crc32(number))
        with suppress(OSError, DataError):  # such as a full disk, or another process that clears temporary files
            if self.committed > 0:
                with open(file, "r+b") as there:
                    there.write(line)
            else:
                with atomic_path(file, flush=False) as temporary:
                    temporary.write_bytes(line)

    def create_tables(self) -> None:
        """Make the tables of a new index; within `change`."""
        for statement in TABLES.values():
            self.run(statement)

    def is_empty(self) -> bool:
        """Return whether a kill left this database before its tables were committed."""
        return (self.path.stat().st_size <= EMPTY_BYTES and not self._last_commit()
                and not self.run("SELECT 1 FROM sqlite_master"))

    def stored(self) -> tuple[State, int]:
        """Return the state and its version, which may be older than this program's.

        Raises:
            DataError: the format is another, the version newer, or the tables are not those of the version.
        """
        held = self.run("SELECT * FROM state")
        if len(held) != 1 or not isinstance(held[0][0], str):
            raise damaged(self.path, "its state is missing")
        text, *checksum = held[0]
        state, version = read_state(text, self.path)
        if version == VERSION:
            tables = dict(self.run("SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL"))
            if tables != TABLES:
                names = sorted(str(name) for name, _ in tables.items() ^ TABLES.items())
                raise damaged(self.path, f"its table {names[0]!r} is not as it was made")
            if checksum != [zlib.crc32(text.encode())]:
                raise damaged(self.path, "its state has a wrong checksum")
        elif checksum:
            raise damaged(self.path, f"its version is {version}, and its tables are those of version {VERSION}")
        return state, version

    def state(self) -> State:
        """Return the state, of the current version; DataError as `stored`."""
        return self.stored()[0]

    def check(self, state: State) -> str | None:
        """Return what is wrong with the tables of images and their lookup; None = nothing."""
        try:
            ((found,),) = self.run("PRAGMA integrity_check(1)")
            if found != "ok":
                return found.splitlines()[-1]
            ((held,),) = self.run("SELECT count(*) FROM images")
        except DataError as error:
            return reason(error.__cause__ or error)
        return None if held == state.images else f"{held:,} of {state.images:,} images have a record"

    def save(self, state: State) -> None:
        text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(state)})
        self.run("DELETE FROM state")
        self.run("INSERT INTO state VALUES (?, ?)", [text, zlib.crc32(text.encode())])
        self._saved = state.change

    def records(self, column: str, values: Iterable[Any]) -> list[tuple[int, Record | None]]:
        """Return (row, record) of every image for which a column, or an SQL expression, has one of the values.

        None stands for a damaged record, which has a wrong checksum.
        """
        found = self.run(f"SELECT row, {COLUMNS}, checksum FROM images WHERE {column} IN "
                         "(SELECT value FROM json_each(?))", [json.dumps(list(values))])
        return [(row, None if checksum is None or record_checksum(row, *columns) != checksum else _record(columns))
                for row, *columns, checksum in found]

    def rows_of_content(self, digests: Iterable[bytes]) -> list[int]:
        """Return the rows of the images that have one of these SHA-256, ascending."""
        return sorted(row for digest in set(digests)
                      for (row,) in self.run("SELECT row FROM images WHERE sha256 = ?", [digest]))

    def insert(self, records: Iterable[tuple[int, Record]]) -> None:
        """Write the records of new rows; SQLite stores NaN as NULL."""
        columns = "?1, ?2, ?3, ?4, ?5, ?6, ?7"
        self.run(f"INSERT INTO images VALUES ({columns}, record_checksum({columns}))", (
            (row, one.id, os.fsencode(one.path), os.fsencode(one.relative), one.sha256, one.size, one.norm)
            for row, one in records
        ), each=True)

    def update(self, records: Sequence[tuple[int, Record]]) -> None:
        """Replace the records of rows."""
        self.run("DELETE FROM images WHERE row = ?", ((row,) for row, _ in records), each=True)
        self.insert(records)

    def remove(self, rows: Sequence[int], state: State) -> State:
        """Remove images, and return the state, which the caller saves, with their number and checksum."""
        self.run("DELETE FROM images WHERE row = ?", ((row,) for row in rows), each=True)
        self.run("INSERT INTO removed VALUES (?)", ((row,) for row in rows), each=True)
        return state.after(removed=state.removed + len(rows),
                           removed_checksum=checksum_of_numbers(rows, state.removed_checksum))

    def removed(self, after: int = 0) -> np.ndarray:
        """Return the removed rows in the order of removal, without the first `after`, int64."""
        rows = [row for (row,) in self.run("SELECT row FROM removed WHERE rowid > ? ORDER BY rowid", [after])
                if isinstance(row, int)]
        return np.array(rows, np.int64)

    def rows(self) -> np.ndarray:
        """Return the rows of all images, ascending, int64."""
        return np.array([row for (row,) in self.run("SELECT row FROM images ORDER BY row")], np.int64)

    def renumber(self) -> None:
        """Number the images 0, 1, 2 ... in their order, and forget removed rows and batches."""
        self.run("ALTER TABLE images RENAME TO before")
        self.run("DROP INDEX by_content")
        self.run(TABLES["images"])
        self.run(TABLES["by_content"])
        self.run(f"INSERT INTO images SELECT number, {COLUMNS}, record_checksum(number, {COLUMNS}) FROM "
                 f"(SELECT row_number() OVER (ORDER BY row) - 1 AS number, {COLUMNS} FROM before ORDER BY row)")
        for statement in ("DROP TABLE before", "DELETE FROM removed", "DELETE FROM batches"):
            self.run(statement)

    def batches(self) -> list[tuple[int, int, int]]:
        """Return (first row, rows, checksum) of each batch of vectors, by first row."""
        return [batch for batch in self.run("SELECT first, rows, checksum FROM batches ORDER BY first")
                if all(isinstance(number, int) for number in batch)]

    def add_batches(self, batches: Iterable[tuple[int, int, int]]) -> None:
        """Write (first row, rows, checksum) of batches of vectors."""
        self.run("INSERT INTO batches VALUES (?, ?, ?)", batches, each=True)

    def save_arrays(self, arrays: dict[str, np.ndarray]) -> dict[str, int]:
        """Replace all stored arrays by these, and return name -> checksum."""
        self.run("DELETE FROM arrays")
        checksums = {}
        for name, array in arrays.items():
            npy = io.BytesIO()
            np.save(npy, array, allow_pickle=False)
            self.run("INSERT INTO arrays VALUES (?, ?)", [name, npy.getvalue()])
            checksums[name] = zlib.crc32(npy.getvalue())
        return checksums

    def arrays(self, checksums: dict[str, int] | None) -> dict[str, np.ndarray]:
        """Return the stored arrays; DataError if one is missing or damaged. `checksums`: None = not known."""
        found = dict(self.run("SELECT name, npy FROM arrays"))
        wanted = {name: zlib.crc32(npy) for name, npy in found.items()} if checksums is None else checksums
        for name in wanted.keys() | found.keys():
            if not isinstance(found.get(name), bytes) or zlib.crc32(found[name]) != wanted.get(name):
                raise damaged(self.path, f"the array {name!r} of the calibration")
        with reading(self.path, "an index with its calibration", RESTORE):
            return {name: np.load(io.BytesIO(npy), allow_pickle=False) for name, npy in found.items()}

    def replace_by(self, other: Database) -> None:
        """Replace the whole content by that of another database, in one transaction; nobody else may change it."""
        self._end()
        try:
            other._connection.backup(self._connection)
        except sqlite3.Error as error:
            raise self._failure(error) from error


def _record(columns: Sequence[Any]) -> Record:
    image, path, relative, sha256, size, norm = columns
    return Record(image, os.fsdecode(path), os.fsdecode(relative), sha256, size, math.nan if norm is None else norm)


def checksum_of_numbers(rows: Sequence[int] | np.ndarray, before: int = 0) -> int:
    """Return the CRC-32 of row numbers, which continues that of the numbers `before` them."""
    return zlib.crc32(np.asarray(rows, "<i8").tobytes(), before)
