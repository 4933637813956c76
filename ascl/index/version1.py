"""Convert an index of version 1: segments of .npy files and an index.json become the database and one file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from filelock import FileLock

from ascl.core.files import atomic_path
from ascl.core.reading import read_json, reading, require_file
from ascl.index.places import relative_to
from ascl.index.records import DATABASE, Database
from ascl.index.state import FORMAT, RESTORE, VERSION, Record, read_state
from ascl.index.vectors import append_vectors, sync_folder
from ascl.index.version2 import with_checksum

MANIFEST, LOCK = "index.json", "lock"
KEPT = {"model", "metric", "dimension", "exact_up_to", "change", "added", "compressed", "calibration"}
OLD_FILE = re.compile(r"index\.json|\d{8}-(vectors|rows|keys|removed|scores|background)\.npy|\d{8}-names\.bin")


def convert(folder: Path, lock_seconds: float) -> None:
    """Write the index in the new format beside its old files, which the next change removes.

    First wait for any process that is changing the old one.
    """
    with FileLock(folder / LOCK, timeout=lock_seconds):
        if not (folder / DATABASE).exists():
            old = read_json(folder / MANIFEST, remedy=RESTORE)
            with reading(folder / MANIFEST, "an index of version 1", RESTORE):
                _write(folder, old)
        (folder / LOCK).unlink()    # a process that waits for it then finds the database


def _write(folder: Path, old: dict) -> None:
    kept = {name: value for name, value in old.items() if name in KEPT}
    state, _ = read_state(json.dumps({"format": FORMAT, "version": VERSION, **kept}), folder / MANIFEST)
    removed = set() if old["removed"] is None else set(_load(folder, old["removed"]).tolist())
    segments = [segment["name"] for segment in old["segments"]]
    batches = append_vectors(folder, state, (_load(folder, f"{name}-vectors.npy") for name in segments))
    arrays = {name: _load(folder, file) for name, file in (old["calibration"] or {}).get("files", {}).items()}
    with atomic_path(folder / DATABASE) as temporary:
        database = Database(temporary, lock_seconds=0, create=True)
        with database.change():
            database.create_tables()
            database.insert(pair for pair in _records(folder, segments) if pair[0] not in removed)
            state = database.remove(sorted(removed), state)
            database.add_batches(batches)
            database.save(replace(state, rows=sum(rows for _, rows, _ in batches), arrays=database.save_arrays(arrays),
                                  compressed=with_checksum(state.compressed, folder)))
        database.close()
    sync_folder(folder)


def _records(folder: Path, segments: list[str]) -> Iterator[tuple[int, Record]]:
    first = 0
    for segment in segments:
        rows, names = _load(folder, f"{segment}-rows.npy"), _part(folder, f"{segment}-names.bin").read_bytes()
        for place, (start, end) in enumerate(pairwise([0, *rows["end"].tolist()])):
            image, path = json.loads(names[start:end])
            yield first + place, Record(image, path, relative_to(folder, path), rows["digest"][place].tobytes(), -1,
                                        float(rows["norm"][place]))
        first += len(rows)


def _part(folder: Path, name: str) -> Path:
    """Return the path of a file of the index that its manifest names; a manifest never leads out of the folder."""
    if not OLD_FILE.fullmatch(name):
        raise ValueError(f"{name!r} is no name of its files")
    require_file(folder / name)
    return folder / name


def _load(folder: Path, name: str) -> np.ndarray:
    path = _part(folder, name)
    with reading(path, "an array of an index", RESTORE):
        return np.load(path, "r", allow_pickle=False)
