"""An index of version 1, as that version wrote it, is converted when it is opened."""

import json
import os

import numpy as np
import pytest

from ascl.core.errors import DataError
from ascl.index.store import CopyIndex, Images

MODEL = {"name": "an old model", "settings": {"size": 3}, "choice": {}, "orders_norms": False}
ROW = np.dtype([("norm", "<f4"), ("digest", "u1", (32,)), ("end", "<i8")])


def write_version1(folder) -> dict[str, tuple]:
    """Two segments of five images of which two were removed, one of them added again with other content."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    held, segments, row = {}, [], 0
    for change, names in (("00000001", ["a", "b", "c", "d"]), ("00000003", ["é", "b"])):
        vectors = rng.standard_normal((len(names), 3)).astype(np.float32)
        rows = np.zeros(len(names), ROW)
        rows["norm"], rows["digest"] = rng.random(len(names)), rng.integers(0, 256, (len(names), 32))
        lines = [json.dumps([name, f"photos/{name}.jpg"]).encode() for name in names]
        rows["end"] = np.cumsum([len(line) for line in lines])
        np.save(folder / f"{change}-vectors.npy", vectors)
        np.save(folder / f"{change}-rows.npy", rows)
        np.save(folder / f"{change}-keys.npy", np.zeros((2, len(names)), np.uint64))
        (folder / f"{change}-names.bin").write_bytes(b"".join(lines))
        segments.append({"name": change, "rows": len(names)})
        for place, name in enumerate(names):
            held[name] = (row, f"photos/{name}.jpg", float(rows["norm"][place]), rows["digest"][place].tobytes(),
                          vectors[place].tolist())
            row += 1
    del held["c"]
    np.save(folder / "00000004-removed.npy", np.array([1, 2]))
    np.save(folder / "00000005-scores.npy", np.array([0.25, 0.5]))
    manifest = {"format": "ascl-copy-index", "version": 1, "model": MODEL, "metric": "ip", "dimension": 3,
                "exact_up_to": 77, "change": 5, "layout": 2, "added": 9, "segments": segments,
                "removed": "00000004-removed.npy", "removed_rows": 2, "compressed": None,
                "calibration": {"threshold": 0.75, "files": {"scores": "00000005-scores.npy"}}}
    (folder / "index.json").write_text(json.dumps(manifest))
    (folder / "lock").touch()
    return held


def test_it_is_converted_once_and_keeps_everything(tmp_path):
    folder = tmp_path / "index"
    held = write_version1(folder)
    for _ in range(2):
        index = CopyIndex(folder)
        records = index.records(range(9))
        assert {one.id: (row, one.path, one.norm, one.sha256, index.rows.vectors[row].tolist())
                for row, one in records.items()} == held
        assert {one.size for one in records.values()} == {-1}
        assert (index.state.model, index.state.exact_up_to, index.state.added) == (MODEL, 77, 9)
        assert index.state.calibration["threshold"] == 0.75
        assert index.calibration_arrays()["scores"].tolist() == [0.25, 0.5]
        assert index.verify() == []
        assert {name for name in os.listdir(folder) if not name.startswith("index.sqlite")} == {
            "change", "vectors-0000.bin"}
    new = Images(["new"], ["p"], np.zeros((1, 32), np.uint8), np.ones(1, int), np.ones((1, 3), np.float32),
                 np.ones(1, np.float32))
    index.add(new)
    assert index.compact() == 2 and set(index.find([*held, "new", "c"])) == {*held, "new"}


def test_what_is_damaged_is_named_and_nothing_is_removed(tmp_path):
    folder = tmp_path / "index"
    write_version1(folder)
    kept = (folder / "00000003-vectors.npy").read_bytes()
    (folder / "00000003-vectors.npy").write_bytes(kept[:60])
    names = set(os.listdir(folder))
    with pytest.raises(DataError, match=r"00000003-vectors\.npy .* is truncated, damaged or not an array of an index"):
        CopyIndex(folder)
    (folder / "00000003-vectors.npy").write_bytes(kept)
    assert set(os.listdir(folder)) >= names
    assert len(CopyIndex(folder)) == 4
