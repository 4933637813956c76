"""The database of an index: its state, a record per image, the batches of vectors, the arrays of the calibration.

SQLite in WAL mode: a reader sees the state at which it began, writers take turns, and a committed transaction survives
a kill and a power cut. All processes must run on one machine, because WAL shares memory between them. After a fork with
an open index, the child must not open one: SQLite forbids it.
"""

from __future__ import annotations

import io
import json
import math
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ascl.core.errors import DataError
from ascl.index import Metric

FORMAT, VERSION = "ascl-index", 2
DATABASE = "index.sqlite"
TABLES = {
    "state": "CREATE TABLE state (json TEXT NOT NULL)",
    "images": "CREATE TABLE images (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path BLOB, sha256 BLOB, "
              "size INTEGER, norm REAL)",
    "removed": "CREATE TABLE removed (row INTEGER NOT NULL)",
    "batches": "CREATE TABLE batches (first INTEGER PRIMARY KEY, rows INTEGER NOT NULL, checksum INTEGER NOT NULL)",
    "arrays": "CREATE TABLE arrays (name TEXT PRIMARY KEY, npy BLOB NOT NULL)",
}


@dataclass(frozen=True)
class State:
    """The committed state of an index."""

    model: dict[str, Any]  # the model that made the vectors, fit for JSON, with a `name`
    metric: Metric  # `ip`: float32 unit rows, by inner product; `hamming`: bits in uint8, by the share that agrees
    dimension: int  # floats (`ip`) or bytes (`hamming`) per row
    exact_up_to: int  # up to this number of images the search is exact
    change: int = 0  # number of this state
    layout: int = 0  # number of compactions that moved rows; part of the name of the vectors' file
    added: int = 0  # rows ever added
    rows: int = 0  # rows of the vectors' file, including removed ones
    removed: int = 0  # removed rows among them
    compressed: dict[str, Any] | None = None  # how it was built, its `file`, and the number of `rows` it covers
    calibration: dict[str, Any] | None = None  # see `ascl.index.calibration`

    @property
    def images(self) -> int:
        """Number of images."""
        return self.rows - self.removed

    def after(self, **changes: Any) -> State:
        """Return the next state, with these changes."""
        return replace(self, change=self.change + 1, **changes)


class Record(NamedTuple):
    """What the index knows about an image besides its vector."""

    id: str
    path: str  # source of the image, for messages and answers
    sha256: bytes  # digest of the file
    size: int  # size of the file in bytes, -1 = unknown
    norm: float  # content norm, NaN if the method has none


class Database:
    """A connection to the database of an index.

    It sees the state at its last `begin`, or the latest state within `change`. Every method raises a DataError if the
    file is damaged.
    """

    def __init__(self, path: Path, lock_seconds: float, *, create: bool = False) -> None:
        """Connect; `lock_seconds` is how long a change waits for another process to finish its own."""
        self.path, self.lock_seconds = path, lock_seconds
        mode = "rwc" if create else "rw"
        if not os.access(path.parent, os.W_OK):  # read only; without a log beside it, nobody is changing the database
            mode = "ro" if path.with_name(path.name + "-wal").exists() else "ro&immutable=1"
        try:
            self._connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", lock_seconds, uri=True,
                                               isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise self._failure(error) from error
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
        if isinstance(error, sqlite3.OperationalError):     # a full disk, a missing permission
            return DataError(f"{self.path}: {error}")
        return damaged(self.path, str(error))

    def begin(self) -> None:
        """See the state that is the latest at the next read; later changes of other processes stay invisible."""
        self._end()
        self.run("BEGIN")

    @contextmanager
    def change(self) -> Iterator[None]:
        """Change the index exclusively, from its latest state; an error undoes everything.

        Raises:
            DataError: another process did not finish its change within `lock_seconds`.
        """
        self._end()
        self.run("BEGIN IMMEDIATE")
        try:
            yield
            self.run("COMMIT")
        finally:
            self._end()

    def _end(self) -> None:
        if self._connection.in_transaction:
            self._connection.rollback()

    def create_tables(self) -> None:
        """Make the tables of a new index; within `change`."""
        for statement in TABLES.values():
            self.run(statement)

    def state(self) -> State:
        """Return the state; DataError if its format is another or its version newer."""
        ((text,),) = self.run("SELECT json FROM state")
        fields = json.loads(text)
        form, version = fields.pop("format"), fields.pop("version")
        if form != FORMAT:
            raise DataError(f"{self.path} is not an index of images: its format is {form!r}, not {FORMAT!r}")
        if version > VERSION:
            raise DataError(f"{self.path.parent} is an index of version {version}; this program reads up to {VERSION}: "
                            "update ascl")
        return State(**fields)

    def save(self, state: State) -> None:
        self.run("DELETE FROM state")
        self.run("INSERT INTO state VALUES (?)", [json.dumps({"format": FORMAT, "version": VERSION, **asdict(state)})])

    def records(self, column: str, values: Iterable[Any]) -> list[tuple[int, Record]]:
        """Return (row, record) of every image for which a column, or an SQL expression, has one of the values."""
        found = self.run(f"SELECT row, id, path, sha256, size, norm FROM images WHERE {column} IN "
                         "(SELECT value FROM json_each(?))", [json.dumps(list(values))])
        return [(row, Record(image, os.fsdecode(path), sha256, size, math.nan if norm is None else norm))
                for row, image, path, sha256, size, norm in found]

    def insert(self, records: Iterable[tuple[int, Record]]) -> None:
        """Write the records of rows; SQLite stores NaN as NULL."""
        self.run("INSERT INTO images VALUES (?, ?, ?, ?, ?, ?)", (
            (row, one.id, os.fsencode(one.path), one.sha256, one.size, one.norm) for row, one in records
        ), each=True)

    def remove(self, rows: Sequence[int]) -> None:
        self.run("DELETE FROM images WHERE row = ?", ((row,) for row in rows), each=True)
        self.run("INSERT INTO removed VALUES (?)", ((row,) for row in rows), each=True)

    def renumber(self) -> None:
        """Number the images 0, 1, 2 ... in their order, and forget removed rows and batches."""
        self.run("ALTER TABLE images RENAME TO before")
        self.run(TABLES["images"])
        self.run("INSERT INTO images SELECT row_number() OVER (ORDER BY row) - 1, id, path, sha256, size, norm "
                 "FROM before ORDER BY row")
        for statement in ("DROP TABLE before", "DELETE FROM removed", "DELETE FROM batches"):
            self.run(statement)

    def add_batches(self, batches: Iterable[tuple[int, int, int]]) -> None:
        """Write (first row, rows, checksum) of batches of vectors."""
        self.run("INSERT INTO batches VALUES (?, ?, ?)", batches, each=True)

    def save_arrays(self, arrays: dict[str, np.ndarray]) -> None:
        """Replace all stored arrays by these."""
        self.run("DELETE FROM arrays")
        for name, array in arrays.items():
            npy = io.BytesIO()
            np.save(npy, array, allow_pickle=False)
            self.run("INSERT INTO arrays VALUES (?, ?)", [name, npy.getvalue()])

    def arrays(self) -> dict[str, np.ndarray]:
        return {name: np.load(io.BytesIO(npy), allow_pickle=False)
                for name, npy in self.run("SELECT name, npy FROM arrays")}


def damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: a file of the index is damaged ({reason}). Restore it, or index the images again")
