"""An index of version 2, without checksums of records and with paths as they were given, is converted when opened."""

import json
import os
import sqlite3

import numpy as np
import pytest

from ascl.core.errors import DataError
from ascl.index.store import CopyIndex, Images

MODEL = {"name": "an old model", "settings": {"size": 3}, "choice": {}, "orders_norms": False}


def write_version2(folder) -> dict[str, tuple]:
    """Five images, two of them removed, and a calibration, in the tables of version 2."""
    rng = np.random.default_rng(0)
    part = Images([f"é{n}" for n in range(5)], [f"photos/é{n}.jpg" for n in range(5)],
                  rng.integers(0, 256, (5, 32), dtype=np.uint8), np.arange(5), rng.random((5, 3), np.float32),
                  np.array([1, 2, np.nan, 4, 5], np.float32))
    index = CopyIndex.create(folder, MODEL, metric="ip", dimension=3)
    index.add(part)
    index.remove(["é3", "é1"])
    index.set_calibration({"threshold": 0.75}, {"scores": np.array([0.25, 0.5])})
    index.close()
    (folder / "change").unlink()
    with sqlite3.connect(folder / "index.sqlite") as database:
        ((text,),) = database.execute("SELECT json FROM state").fetchall()
        state = {key: value for key, value in json.loads(text).items() if key not in ("removed_checksum", "arrays")}
        database.executescript("""
            DROP TABLE state; CREATE TABLE state (json TEXT NOT NULL);
            ALTER TABLE images RENAME TO new; DROP INDEX by_content;
            CREATE TABLE images (row INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, path BLOB, sha256 BLOB,
                                 size INTEGER, norm REAL);
            INSERT INTO images SELECT row, id, CAST('photos/' || id || '.jpg' AS BLOB), sha256, size, norm FROM new;
            DROP TABLE new;""")
        database.execute("INSERT INTO state VALUES (?)", [json.dumps(state | {"version": 2})])
    database.close()
    return {part.ids[row]: (row, part.digests[row].tobytes(), part.vectors[row].tolist()) for row in (0, 2, 4)}


def test_it_is_converted_once_and_keeps_everything(tmp_path):
    folder = tmp_path / "index"
    held = write_version2(folder)
    for _ in range(2):
        index = CopyIndex(folder)
        assert {one.id: (row, one.sha256, index.rows.vectors[row].tolist())
                for row, one in index.each_record()} == held
        assert {one.path for _, one in index.each_record()} == {f"photos/{name}.jpg" for name in held}
        assert index.calibration_arrays()["scores"].tolist() == [0.25, 0.5]
        assert index.state.calibration == {"threshold": 0.75} and index.verify() == []
        index.close()
    assert (folder / "change").exists()


def test_one_that_cannot_be_written_or_is_damaged_is_refused(tmp_path, monkeypatch):
    folder = tmp_path / "index"
    write_version2(folder)
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(DataError, match="of version 2, which is converted when it is opened, and the folder"):
            CopyIndex(folder)
    with sqlite3.connect(folder / "index.sqlite") as database:
        database.execute("DELETE FROM images WHERE row = 0")
    database.close()
    with pytest.raises(DataError, match="damaged \\(2 of 3 images have a record\\)"):
        CopyIndex(folder)
