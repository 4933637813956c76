"""The two programs as a user runs them."""

import json
import signal
import time
from pathlib import Path

import h5py
import numpy as np
import psutil
import pytest
from PIL import Image

from ..warm_python import REPOSITORY, Program

TOOLS = REPOSITORY / "tools"
SMALL = ["--backbone", "mobilenet_v2", "--weights", "random:0", "--layer", "features.3", "--input-size", "32"]


def photographs(folder: Path, count: int) -> Path:
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)).save(folder / f"{index:04d}.png")
    return folder


@pytest.fixture
def run(tool):
    """Name of a program in tools/, its arguments -> exit status."""
    return lambda name, *arguments: tool(name)(list(map(str, arguments)))


def test_regions_and_globals_of_the_same_images(run, capsys, tmp_path):
    folder = photographs(tmp_path / "images", 7)
    common = ["--images", folder, *SMALL, "--workers", 0, "--same-padding"]
    assert run("extract_regions", *common, "--out", tmp_path / "r.h5", "--grid", 2) == 0
    assert "regions 7x4x24" in capsys.readouterr().out
    globals_ = [*common, "--out", tmp_path / "g.h5", "--resize", "squash", "--dtype", "float32"]
    assert run("extract_globals", *globals_) == 0
    assert "globals 7x24" in capsys.readouterr().out
    with h5py.File(tmp_path / "r.h5") as regions, h5py.File(tmp_path / "g.h5") as vectors:
        assert regions["image_ids"].asstr()[:].tolist() == vectors["image_ids"].asstr()[:].tolist()
        assert regions["boxes"][0].tolist() == [[0, 0, 16, 12], [16, 0, 32, 12], [0, 12, 16, 24], [16, 12, 32, 24]]
        # the four cells of an 8x8 map are of one size: their mean is the whole map's
        assert np.allclose(regions["regions"][:].astype(np.float32).mean(axis=1), vectors["globals"][:], atol=2e-3)


def test_mistakes_are_reported_in_one_line(run, capsys, tmp_path):
    assert run("extract_globals", "--images", tmp_path / "no", "--out", tmp_path / "g.h5") == 1
    assert capsys.readouterr().err.strip().endswith("no: no such image or folder of images")
    folder = photographs(tmp_path / "images", 3)
    (folder / "0001.png").write_bytes(b"")
    arguments = ["--images", folder, "--out", tmp_path / "g.h5", *SMALL, "--workers", 0]
    assert run("extract_globals", *arguments, "--strict") == 1
    assert "0001.png: cannot be read as an image" in capsys.readouterr().err
    assert run("extract_globals", *arguments, "--resume") == 3
    assert "skipped 1 unreadable images:\n  0001: " in capsys.readouterr().out
    assert run("extract_regions", *arguments, "--backend", "detector") == 2
    assert run("extract_regions", *arguments, "--grid", 0) == 2
    assert run("extract_regions", *arguments, "--shard", "3/2") == 2
    assert "--shard 3/2: expected I/N" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (["--backend", "bottom-up"], "--backend bottom-up needs --weights"),
        (["--backend", "patches"], "--backend patches needs --model"),
        (["--backend", "bottom-up", "--weights", "w.pth", "--grid", "6"], "--grid is not an option of --backend bott"),
        (["--backend", "grid", "--resize", "processor"], "--resize processor: --backend grid takes squash, crop"),
        (["--backend", "patches", "--model", "m", "--layer", "x"], "--layer x: expected a whole number"),
        (["--backend", "bottom-up", "--weights", "none.pth"], "none.pth"),
        (["--backend", "bottom-up", "--weights", "none.pth", "--selection", "best"], "takes fixed, adaptive, raise"),
        (["--engine", "ray", "--weights", "none.pth"], "none.pth"),
        (["--actors", "2"], "--actors and --gpus_per_actor need --engine ray"),
    ],
)
def test_options_that_do_not_fit_the_backend_are_named(run, capsys, tmp_path, given, problem):
    folder = photographs(tmp_path / "images", 1)
    status = 1 if problem == "none.pth" else 2  # a file that is not there is no mistake in the options
    assert run("extract_regions", "--images", folder, "--out", tmp_path / "r.h5", *given) == status
    assert problem in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["images"]


def test_shards_of_a_list_merge_to_the_file_of_one_call(run, capsys, tmp_path):
    folder = photographs(tmp_path / "images", 7)
    listed = tmp_path / "wanted.txt"
    listed.write_text("".join(f"images/{index:04d}.png\n" for index in (5, 1, 3, 0, 6)), encoding="utf-8")
    common = ["--images", listed, *SMALL, "--workers", 0, "--grid", 2]
    for number in (1, 2):
        out = tmp_path / "r.h5"
        assert run("extract_regions", *common, "--out", out, "--shard", f"{number}/2") == 0
    assert run("merge_features", tmp_path / "r.h5") == 0
    assert "r.h5: boxes 5x4x4, image_ids 5" in capsys.readouterr().out
    assert run("merge_features", tmp_path / "r.h5") == 1
    assert "r.h5 exists" in capsys.readouterr().err
    assert run("extract_regions", *common, "--out", tmp_path / "whole.h5") == 0
    with h5py.File(tmp_path / "r.h5") as merged, h5py.File(tmp_path / "whole.h5") as whole:
        assert merged["image_ids"].asstr()[:].tolist() == ["0005", "0001", "0003", "0000", "0006"]
        # three images and two in a pass instead of five: sums of products round differently
        assert np.allclose(merged["regions"][:], whole["regions"][:], atol=1e-3)
    assert folder.exists()


def test_a_killed_extraction_goes_on_and_ends_in_the_same_file(run, capsys, tmp_path):
    folder = photographs(tmp_path / "images", 600)
    arguments = ["--images", folder, *SMALL, "--grid", 2, "--workers", 1, "--batch-size", 8]
    program = Program(TOOLS / "extract_regions.py", *arguments, "--out", tmp_path / "killed.h5")
    first_part = tmp_path / "killed.h5.parts" / "00000000.npz"
    deadline = time.monotonic() + 120
    while not first_part.exists():
        assert program.status is None and time.monotonic() < deadline
        time.sleep(0.005)
    workers = psutil.Process(program.pid).children(recursive=True)
    program.kill()
    assert program.status == -signal.SIGKILL
    assert workers and psutil.wait_procs(workers, timeout=20)[1] == []  # they end with their parent
    assert not (tmp_path / "killed.h5").exists()
    assert run("extract_regions", *arguments, "--out", tmp_path / "killed.h5") == 1
    assert "continue with resume" in capsys.readouterr().err
    assert run("extract_regions", *arguments, "--out", tmp_path / "killed.h5", "--resume") == 0
    assert "600 images" not in capsys.readouterr().out  # the finished parts were not computed again
    assert run("extract_regions", *arguments, "--out", tmp_path / "whole.h5") == 0
    with h5py.File(tmp_path / "killed.h5") as killed, h5py.File(tmp_path / "whole.h5") as whole:
        assert set(killed) == set(whole)
        assert all(np.array_equal(killed[name][()], whole[name][()]) for name in whole)
        notes = [json.loads(file.attrs["provenance"]) for file in (killed, whole)]
        assert notes[0]["settings"] == notes[1]["settings"]


def test_a_data_set_by_name_means_the_images_of_its_captions(run, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)  # paths of configs/ start from where the program is called
    (tmp_path / "data" / "flickr8k").mkdir(parents=True)
    photographs(tmp_path / "data" / "flickr8k" / "images", 5)
    entries = [
        {"filename": f"{index:04d}.png", "split": split, "sentences": [{"raw": "a dog"}]}
        for index, split in [(3, "val"), (0, "train"), (4, "test"), (1, "train")]
    ]
    captions = tmp_path / "data" / "flickr8k" / "dataset_flickr8k.json"
    captions.write_text(json.dumps({"images": entries}), encoding="utf-8")
    arguments = ["--dataset", "flickr8k", "--out", "r.h5", *SMALL, "--workers", 0, "--grid", 2]
    assert run("extract_regions", *arguments) == 0
    with h5py.File("r.h5") as file:
        assert file["image_ids"].asstr()[:].tolist() == ["0000", "0001", "0003", "0004"]
    (tmp_path / "data" / "flickr8k" / "images" / "0003.png").unlink()
    assert run("extract_regions", *arguments) == 1
    assert "lacks 1 of the 4 images" in capsys.readouterr().err
    assert run("extract_regions", "--dataset", "flickr8", *arguments[2:]) == 2
    assert "no settings for data set 'flickr8'" in capsys.readouterr().err
