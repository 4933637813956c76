"""`ascl copy`: what the commands say that the library does not."""

import json

import numpy as np
import pytest
from PIL import Image

from ascl.cli import main

pytest.importorskip("imagehash")


@pytest.fixture
def index(tmp_path):
    """Folder of an index of four pictures by their perceptual hashes."""
    rng = np.random.default_rng(0)
    for number in range(4):
        pixels = np.kron(rng.integers(0, 255, (8, 8, 3)), np.ones((16, 16, 1))).astype(np.uint8)
        (tmp_path / "photos").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / "photos" / f"photo{number}.png")
    assert main(["copy", "index", str(tmp_path / "photos"), "--index", str(tmp_path / "index")]) == 0
    return tmp_path / "index"


def test_verify_names_a_damaged_batch(index, capsys):
    capsys.readouterr()
    assert main(["copy", "info", "--index", str(index), "--verify", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["damaged"] == []
    path, = index.glob("vectors-*.bin")
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    assert main(["copy", "info", "--index", str(index), "--verify", "--json"]) == 1
    said = capsys.readouterr()
    damaged, = json.loads(said.out)["damaged"]
    assert sorted(damaged["ids"]) == [f"photo{number}.png" for number in range(4)] and str(path) in said.err


def test_json_of_every_command_of_an_index(index, tmp_path, capsys):
    def said(*words):
        capsys.readouterr()
        assert main(["copy", *words, "--index", str(index), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    photo = tmp_path / "photos" / "photo2.png"
    assert said("add", str(photo))["already_there"] == 1
    best = said("query", str(photo))["queries"][0]["matches"][0]
    assert (best["id"], best["score"]) == ("photo2.png", 1.0)
    assert said("remove", "photo0.png") == {"removed": 1, "images": 3}
    assert said("compact")["rows_given_back"] == 1
    assert said("info")["images"] == 3
