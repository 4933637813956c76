"""tools/extract_descriptors.py: what it writes, how it stops and goes on, and what it refuses."""

import json
from dataclasses import asdict

import h5py
import numpy as np
import pytest
import torch
from torch import nn

from ascl.core import checkpoint
from ascl.features.writer import extract
from ascl.image_copy import read_descriptors
from ascl.image_copy.descriptors.descriptor import Descriptor, load_descriptor
from ascl.image_copy.descriptors.extract import extract_descriptors
from ascl.images.find import find_images
from ascl.images.pooling import PooledBackbone

from ..training_cases import BACKBONE, SIDE, calibrated, described_alone, save_photos, tiny


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("extract") / "photos", 11)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(5)
    model = calibrated(Descriptor(tiny(norm_of="feature")))
    state = {f"student.{name}": value for name, value in model.state_dict().items()}
    checkpoint.save(folder / "best.pt", {"model": state, "extra": {"descriptor": asdict(model.settings)}})
    return folder


def test_the_file_holds_what_the_checkpoint_describes(tmp_path, photos, run, tool, capsys):
    out = tmp_path / "d.h5"
    arguments = ["--model", str(run), "--images", str(photos), "--out", str(out), "--batch-size", "4"]
    assert tool("extract_descriptors")(arguments) == 0
    assert "vectors 11x8, norms" in capsys.readouterr().out
    describer = load_descriptor(run)
    names, vectors, norms = described_alone(describer, find_images(photos).paths)
    made = read_descriptors(out, "query")
    assert made.names == names and made.model == describer.model
    assert np.allclose(made.vectors, vectors, atol=1e-6) and np.allclose(made.norms, norms, rtol=1e-5)
    assert np.abs(vectors @ vectors.T - 1).max() > 0.05  # the images differ
    assert made.provenance["settings"]["input_size"] == SIDE and made.provenance["skipped"] == []
    with h5py.File(out) as file:
        assert file["vectors"].dtype == np.float32 and file["image_names"].dtype.kind == "S"
    assert [path.name for path in tmp_path.iterdir()] == ["d.h5"]


def test_an_untrained_backbone_and_a_torchscript_file(tmp_path, photos, tool):
    out = tmp_path / "b.h5"
    arguments = ["--images", str(photos), "--input-size", str(SIDE), "--workers", "0", "--out"]
    assert tool("extract_descriptors")(["--model", BACKBONE, "--weights", "random:2", *arguments, str(out)]) == 0
    made = read_descriptors(out, "query")
    assert made.vectors.shape == (11, 1024) and made.model.startswith(f"{BACKBONE}-imagenet-gem sha256:")
    network = PooledBackbone(BACKBONE, "random:2")
    assert np.allclose(np.linalg.norm(made.vectors, axis=1), 1, atol=1e-5) and network.dim == 1024

    class Unit(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return nn.functional.normalize(images[:, :, ::8, ::8].flatten(1), dim=1)

    torch.jit.script(Unit()).save(str(tmp_path / "unit.torchscript.pt"))
    script = ["--model", str(tmp_path / "unit.torchscript.pt"), "--trust_code", *arguments, str(tmp_path / "s.h5")]
    assert tool("extract_descriptors")(script) == 0
    made = read_descriptors(tmp_path / "s.h5", "query")
    assert made.vectors.shape == (11, 48) and made.norms is None and "unit.torchscript.pt" in made.model


class Killed(BaseException):
    """As a kill: no `except Exception` sees it."""


class Killing:
    """A describer that is killed at its third batch."""

    def __init__(self, describer):
        self.settings, self.names, self.prepare = describer.settings, describer.names, describer.prepare
        self.model, self.dim, self.describer, self.batches = describer.model, describer.dim, describer, 0

    def extract(self, pixels, sizes):
        self.batches += 1
        if self.batches > 2:
            raise Killed
        return self.describer.extract(pixels, sizes)


def test_a_killed_extraction_goes_on_where_it_stopped(tmp_path, photos, run):
    describer, paths, out = load_descriptor(run), find_images(photos, ids="stem"), tmp_path / "d.h5"
    how = {"part_size": 3, "workers": 0, "progress": False}
    with pytest.raises(Killed):
        extract_descriptors(Killing(describer), paths, out, **how)
    assert not out.exists()
    with pytest.raises(ValueError, match="continue with resume"):
        extract_descriptors(describer, paths, out, **how)
    done = extract_descriptors(describer, paths, out, resume=True, **how)
    assert done.extracted == 5 and done.shapes["vectors"] == (11, 8)
    whole = extract_descriptors(describer, paths, tmp_path / "w.h5", **how)
    a, b = (read_descriptors(path, "query") for path in (done.path, whole.path))
    assert a.names == b.names and np.array_equal(a.vectors, b.vectors) and np.array_equal(a.norms, b.norms)


def test_a_kill_between_joining_and_writing_costs_nothing(tmp_path, photos, run):
    describer, paths, out = load_descriptor(run), find_images(photos, ids="stem"), tmp_path / "d.h5"
    extract(describer, paths, tmp_path / "d.h5.features.h5", dtype="float32", workers=0, progress=False)
    done = extract_descriptors(describer, paths, out, workers=0, progress=False, resume=True)
    assert done.extracted == 0 and "nothing was left to do" in done.summary()
    assert [path.name for path in tmp_path.iterdir()] == ["d.h5"]


def test_queries_and_references_become_one_submission(tmp_path, photos, run, tool, capsys):
    """Both sides sorted; after a kill between the sides, --resume describes only what is missing."""
    others = save_photos(tmp_path / "queries", 4)
    out = tmp_path / "s.h5"
    describer = load_descriptor(run)
    work = tmp_path / "s.h5.queries.features.h5"
    extract(describer, find_images(others, ids="stem"), work, dtype="float32", workers=0, progress=False)
    arguments = ["--model", str(run), "--images", str(photos), "--queries", str(others), "--workers", "0",
                 "--out", str(out)]
    assert tool("extract_descriptors")([*arguments, "--resume"]) == 0
    printed = capsys.readouterr().out
    assert "nothing was left to do" in printed and "4 queries and 11 references" in printed
    for role, folder in (("query", others), ("reference", photos)):
        names, vectors, _ = described_alone(describer, find_images(folder).paths)
        made = read_descriptors(out, role)
        assert made.names == sorted(names) and made.model == describer.model
        rows = [names.index(name) for name in made.names]
        assert np.allclose(made.vectors, vectors[rows], atol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["queries", "s.h5"]


def test_a_submission_has_at_most_256_numbers(tmp_path, photos, tool, capsys):
    arguments = ["--model", BACKBONE, "--weights", "random:2", "--images", str(photos), "--queries", str(photos),
                 "--input-size", str(SIDE), "--out", str(tmp_path / "s.h5")]
    assert tool("extract_descriptors")(arguments) == 1
    assert "1024 dimensions; a submission may have at most 256" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_unreadable_images_stop_or_are_listed(tmp_path, run, tool, capsys):
    folder = save_photos(tmp_path / "photos", 3)
    (folder / "broken.png").write_bytes(b"no picture")
    arguments = ["--model", str(run), "--images", str(folder), "--out", str(tmp_path / "d.h5"), "--workers", "0"]
    assert tool("extract_descriptors")([*arguments, "--strict"]) == 1
    assert "broken.png" in capsys.readouterr().err and not (tmp_path / "d.h5").exists()
    assert tool("extract_descriptors")([*arguments, "--resume"]) == 3
    assert "skipped 1 unreadable images:\n  broken: " in capsys.readouterr().out
    made = read_descriptors(tmp_path / "d.h5", "query")
    assert made.names == ["photo000", "photo001", "photo002"]
    assert [skip["image"] for skip in made.provenance["skipped"]] == ["broken"]
    with h5py.File(tmp_path / "d.h5") as file:
        assert json.loads(file.attrs["provenance"])["settings"]["resize"] == "squash"


@pytest.mark.parametrize(("more", "code", "message"), [
    (["--weights", "default"], 1, "weights does not apply to a checkpoint"),
    (["--normalize", "half"], 1, "normalize does not apply to a checkpoint"),
    (["--input-size", "0"], 2, "input_size: expected a whole number of at least 1, got 0"),
    (["--images", "no/such/folder"], 1, "no such image or folder"),
    (["--device", "cuda:77"], 1, "finds no GPU"),
])
def test_refusals(tmp_path, photos, run, tool, capsys, more, code, message):
    if "cuda:77" in more and torch.cuda.is_available():
        pytest.skip("a machine with a GPU")
    arguments = ["--model", str(run), "--images", str(photos), "--out", str(tmp_path / "d.h5"), *more]
    assert tool("extract_descriptors")(arguments) == code
    assert message in capsys.readouterr().err


def test_what_exists_is_not_overwritten(tmp_path, photos, run, tool, capsys):
    (tmp_path / "d.h5").write_bytes(b"mine")
    arguments = ["--model", str(run), "--images", str(photos), "--out", str(tmp_path / "d.h5")]
    assert tool("extract_descriptors")(arguments) == 1
    assert "exists" in capsys.readouterr().err and (tmp_path / "d.h5").read_bytes() == b"mine"
    arguments[1] = str(tmp_path)
    assert tool("extract_descriptors")([*arguments[:-1], str(tmp_path / "e.h5")]) == 1
    assert "no checkpoint in" in capsys.readouterr().err
