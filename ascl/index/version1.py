"""Convert an index of version 1: segments of .npy files and an index.json become the database and one file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
from filelock import FileLock

from ascl.core.files import atomic_path
from ascl.index.records import DATABASE, Database, Record, State, damaged
from ascl.index.vectors import append_vectors, sync_folder

MANIFEST, LOCK = "index.json", "lock"
KEPT = {"model", "metric", "dimension", "exact_up_to", "change", "added", "compressed", "calibration"}
OLD_FILE = re.compile(r"index\.json|\d{8}-(vectors|rows|keys|removed|scores|background)\.npy|\d{8}-names\.bin")


def convert(folder: Path, lock_seconds: float) -> None:
    """Write the index in the new format beside its old files, which the next change removes.

    First wait for any process that is changing the old one.
    """
    with FileLock(folder / LOCK, timeout=lock_seconds):
        try:
            if not (folder / DATABASE).exists():
                _write(folder, json.loads((folder / MANIFEST).read_text(encoding="utf-8")))
        except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
            raise damaged(folder / MANIFEST, f"version 1, {error!r}") from error
        (folder / LOCK).unlink()    # a process that waits for it then finds the database


def _write(folder: Path, old: dict) -> None:
    state = State(**{name: value for name, value in old.items() if name in KEPT})
    removed = set() if old["removed"] is None else set(np.load(folder / old["removed"]).tolist())
    segments = [segment["name"] for segment in old["segments"]]
    batches = append_vectors(folder, state, (np.load(folder / f"{name}-vectors.npy", "r") for name in segments))
    arrays = {name: np.load(folder / file) for name, file in (old["calibration"] or {}).get("files", {}).items()}
    with atomic_path(folder / DATABASE) as temporary:
        database = Database(temporary, lock_seconds=0, create=True)
        with database.change():
            database.create_tables()
            database.insert(pair for pair in _records(folder, segments) if pair[0] not in removed)
            database.remove(sorted(removed))
            database.add_batches(batches)
            database.save_arrays(arrays)
            database.save(state.after(rows=sum(rows for _, rows, _ in batches), removed=len(removed)))
        database.close()
    sync_folder(folder)


def _records(folder: Path, segments: list[str]) -> Iterator[tuple[int, Record]]:
    first = 0
    for segment in segments:
        rows, names = np.load(folder / f"{segment}-rows.npy"), (folder / f"{segment}-names.bin").read_bytes()
        for place, (start, end) in enumerate(pairwise([0, *rows["end"].tolist()])):
            image, path = json.loads(names[start:end])
            yield first + place, Record(image, path, rows["digest"][place].tobytes(), -1, float(rows["norm"][place]))
        first += len(rows)
