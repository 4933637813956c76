"""What is damaged in an index, and a new database from what is not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ascl.core.errors import DataError, first_of
from ascl.index.records import Database
from ascl.index.state import Record, State
from ascl.index.vectors import Batch, ranges_of, vectors_file

if TYPE_CHECKING:
    from ascl.index.reader import IndexReader


@dataclass(frozen=True)
class Damage:
    """What is wrong with a file of an index, and the images that a search leaves out therefore."""

    path: Path
    what: str
    rows: int = 0
    ids: tuple[str, ...] = ()  # as far as they can be read

    def __str__(self) -> str:
        return self.what if str(self.path) in self.what else f"{self.path}: {self.what}"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON values."""
        return {"path": str(self.path), "what": self.what, "rows": self.rows, "ids": list(self.ids)}


def of_vectors(index: IndexReader, rows: np.ndarray) -> list[Damage]:
    """Return the damage of these rows of the vectors' file, a range at a time; removed images do not count."""
    found = []
    for first, end in ranges_of(rows):
        ids = tuple(record.id for _, record in sorted(index.records(range(first, end)).items()))
        if ids:
            found.append(Damage(index.folder / vectors_file(index.state),
                                f"the vectors of rows {first} to {end - 1} are damaged; its {len(ids):,} images are "
                                f"left out ({first_of(ids, 3)}): `repair` describes them again", end - first, ids))
    return found


def of_records(path: Path, rows: np.ndarray) -> Damage:
    """Return the damage of records that cannot be read or have a wrong checksum."""
    where = ", ".join(f"{first} to {end - 1}" if end - first > 1 else str(first) for first, end in ranges_of(rows)[:3])
    return Damage(path, f"the records of {len(rows):,} images are damaged, which are left out (rows {where}"
                  f"{', ...' * (len(ranges_of(rows)) > 3)}): repair the index, and index the images again", len(rows))


def one_by_one(database: Database, rows: Sequence[int]) -> list[tuple[int, Record | None]]:
    """Return the records of rows, without those that lie in damaged pages."""
    found = list[tuple[int, Record | None]]()
    for row in rows:
        try:
            found += database.records("row", [row])
        except DataError:
            continue
    return found


def rebuild(database: Database, state: State, records: dict[int, Record], batches: Sequence[Batch],
            arrays: dict[str, np.ndarray] | None) -> None:
    """Replace the content of a database by these parts of it, in one transaction.

    Rows without a record count as removed. Without its arrays, the calibration is dropped.
    """
    removed = np.setdiff1d(np.arange(state.rows), list(records))
    path = database.path.with_name(f".{database.path.name}.repaired.tmp")
    for name in (path, *path.parent.glob(f"{path.name}-*")):
        name.unlink(missing_ok=True)
    made = Database(path, database.lock_seconds, create=True)
    with made.change():
        made.create_tables()
        made.insert(sorted(records.items()))
        state = made.remove(removed.tolist(), replace(state, removed=0, removed_checksum=0))
        made.add_batches(batches)
        made.save(replace(state, change=max(state.change, database.committed + 1),
                          arrays=made.save_arrays(arrays or {}),
                          calibration=None if arrays is None else state.calibration))
    database.replace_by(made)
    made.close()
    for name in (path, *path.parent.glob(f"{path.name}-*")):
        name.unlink(missing_ok=True)
