"""The two programs as a user runs them."""

import json
import os
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

TOOLS = Path(__file__).resolve().parents[2] / "tools"
SMALL = ["--backbone", "mobilenet_v2", "--weights", "random:0", "--layer", "features.3", "--input-size", "32"]


def photographs(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"{index:04d}.png")
    return folder


def run(monkeypatch, tool: str, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", [tool, *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(TOOLS / tool), run_name="__main__")
    return ended.value.code


def test_regions_and_globals_of_the_same_images(monkeypatch, capsys, tmp_path):
    folder = photographs(tmp_path / "images", 7)
    common = ["--images", folder, *SMALL, "--workers", 0, "--same-padding"]
    assert run(monkeypatch, "extract_regions.py", *common, "--out", tmp_path / "r.h5", "--grid", 2) == 0
    assert "regions 7x4x24" in capsys.readouterr().out
    globals_ = [*common, "--out", tmp_path / "g.h5", "--resize", "squash", "--dtype", "float32"]
    assert run(monkeypatch, "extract_globals.py", *globals_) == 0
    assert "globals 7x24" in capsys.readouterr().out
    with h5py.File(tmp_path / "r.h5") as regions, h5py.File(tmp_path / "g.h5") as vectors:
        assert regions["image_ids"].asstr()[:].tolist() == vectors["image_ids"].asstr()[:].tolist()
        assert regions["boxes"][0].tolist() == [[0, 0, 16, 12], [16, 0, 32, 12], [0, 12, 16, 24], [16, 12, 32, 24]]
        # the four cells of an 8x8 map are of one size: their mean is the whole map's
        assert np.allclose(regions["regions"][:].astype(np.float32).mean(axis=1), vectors["globals"][:], atol=2e-3)


def test_mistakes_are_told_in_one_line(monkeypatch, capsys, tmp_path):
    assert run(monkeypatch, "extract_globals.py", "--images", tmp_path / "no", "--out", tmp_path / "g.h5") == 1
    assert capsys.readouterr().err.strip().endswith("no: no such folder of images")
    folder = photographs(tmp_path / "images", 3)
    (folder / "0001.png").write_bytes(b"")
    arguments = ["--images", folder, "--out", tmp_path / "g.h5", *SMALL, "--workers", 0]
    assert run(monkeypatch, "extract_globals.py", *arguments) == 1
    assert "0001.png: cannot be read as an image" in capsys.readouterr().err
    assert run(monkeypatch, "extract_globals.py", *arguments, "--skip-unreadable") == 0
    assert "skipped 1 unreadable images:\n  0001.png: " in capsys.readouterr().out
    assert run(monkeypatch, "extract_regions.py", *arguments, "--backend", "detector") == 2
    assert run(monkeypatch, "extract_regions.py", *arguments, "--grid", 0) == 2


def test_a_killed_extraction_goes_on_and_ends_in_the_same_file(monkeypatch, capsys, tmp_path):
    folder = photographs(tmp_path / "images", 900)
    arguments = ["--images", folder, *SMALL, "--grid", 2, "--workers", 1, "--batch-size", 8]
    command = [sys.executable, TOOLS / "extract_regions.py", *arguments, "--out", tmp_path / "killed.h5"]
    environment = {**os.environ, "PYTHONPATH": str(TOOLS.parent), "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(list(map(str, command)), env=environment, stderr=subprocess.DEVNULL)
    first_part = tmp_path / "killed.h5.parts" / "00000000.npz"
    deadline = time.monotonic() + 120
    while not first_part.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "killed.h5").exists()
    assert run(monkeypatch, "extract_regions.py", *arguments, "--out", tmp_path / "killed.h5") == 0
    assert "900 images" not in capsys.readouterr().out  # the finished parts were not computed again
    assert run(monkeypatch, "extract_regions.py", *arguments, "--out", tmp_path / "whole.h5") == 0
    with h5py.File(tmp_path / "killed.h5") as killed, h5py.File(tmp_path / "whole.h5") as whole:
        assert set(killed) == set(whole)
        assert all(np.array_equal(killed[name][()], whole[name][()]) for name in whole)
        notes = [json.loads(file.attrs["provenance"]) for file in (killed, whole)]
        assert notes[0]["settings"] == notes[1]["settings"]
