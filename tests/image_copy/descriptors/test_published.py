"""SSCD's files by name, from a server on this machine that breaks off, lies and goes away."""

import hashlib
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ascl.cli import main
from ascl.core.errors import DataError
from ascl.image_copy.descriptors import published
from ascl.image_copy.descriptors.choice import DescriberChoice, make_describer
from ascl.image_copy.descriptors.published import PublishedFile
from ascl.image_copy.descriptors.teachers import load_teacher

from ...faulty_server import Server
from ..sscd_files import TorchvisionModel, randomized, write_traced

NAME = "sscd_disc_blur"     # its checksum is not known; that of sscd_disc_mixup is


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> bytes:
    path = tmp_path_factory.mktemp("sscd") / "file.pt"
    write_traced(randomized(TorchvisionModel(deep=True)), path)
    return path.read_bytes()


@pytest.fixture
def server(content, monkeypatch, tmp_path):
    """A server of the files, in place of the publisher's, and an empty cache."""
    server = Server(content)
    monkeypatch.setattr(published, "ADDRESS", f"{server.url}/")
    monkeypatch.setattr(published, "HASTY", replace(published.HASTY, timeout=5.0, backoff=0.0))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()


def known(monkeypatch, content: bytes) -> None:
    """Make the checksum of NAME a known one."""
    file = PublishedFile("about", len(content), hashlib.sha256(content).hexdigest())
    monkeypatch.setitem(published.SSCD, NAME, file)


def load(download: bool = True):
    return make_describer(DescriberChoice("sscd", NAME, download=download, input_size=32))


def kept() -> list[str]:
    folder = published.models_folder()
    return sorted(os.listdir(folder)) if folder.exists() else []


def test_a_named_file_is_downloaded_once_and_describes_as_the_file_itself(server, content, tmp_path, capsys):
    describer = load()
    assert kept() == [f"{NAME}.torchscript.pt", f"{NAME}.torchscript.pt.sha256"]
    digest = hashlib.sha256(content).hexdigest()
    assert (published.models_folder() / kept()[1]).read_text() == f"{digest}  {kept()[0]}\n"     # as sha256sum -c reads
    assert f"downloading {server.url}/{NAME}.torchscript.pt" in capsys.readouterr().err
    again = load()
    assert len(server.requests) == 1 and again.model == describer.model == f"{NAME}.torchscript.pt sha256:{digest}"
    path = tmp_path / f"{NAME}.torchscript.pt"
    path.write_bytes(content)
    of_file = make_describer(DescriberChoice("torchscript", str(path), input_size=32))
    assert of_file.settings == describer.settings               # so that either opens an index of the other
    pixels = [np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)]
    assert np.array_equal(of_file(pixels)[0], describer(pixels)[0])


def test_no_code_of_the_file_is_compared_or_run(server, tmp_path):
    """A file that is known by its name is SSCD's, whichever version of torch has traced it."""
    write_traced(randomized(TorchvisionModel(deep=True, p=4.0)), tmp_path / "other.pt")
    server.content = (tmp_path / "other.pt").read_bytes()
    with pytest.raises(DataError, match="TorchScript of another network"):
        load_teacher(str(tmp_path / "other.pt"))
    assert load().dim == 8


def test_nothing_is_downloaded_unless_it_is_named(server):
    with pytest.raises(DataError, match=f"{NAME} is not on this machine: name it as the model"):
        load(download=False)
    assert server.requests == [] and kept() == []


def test_a_download_that_stops_in_the_middle_goes_on(server, content):
    server.faults = [("cut", 10_000)] + [("status", 503, {})] * 3
    with pytest.raises(DataError, match=rf"503.*3 times in a row; 10000 of {len(content)} bytes are in .*the same "
                                        "command continues from there; or download it where there is a network, and "
                                        "give the path of the file"):
        load()
    assert not published.is_at_hand(NAME)
    server.requests, server.sent = [], 0
    load()
    assert server.requests[0]["Range"] == "bytes=10000-" and server.sent == len(content) - 10_000


def test_a_wrong_checksum_is_refused_before_it_gets_its_name(server, content, monkeypatch):
    known(monkeypatch, content)
    server.content = content[:-1] + b"!"
    with pytest.raises(DataError, match="has the sha256 .*the published file has .*downloads it again.*or put a "
                                        "correct copy at") as refusal:
        load()
    assert "mirror" not in str(refusal.value) and kept() == []


def test_a_known_checksum_is_compared_at_every_use(server, content, monkeypatch):
    known(monkeypatch, content)
    load()
    path = published.place_of(NAME)
    path.write_bytes(content[:-1] + b"!")
    with pytest.raises(DataError, match=f"the published file has .*remove it, and the next use of {NAME}"):
        load()
    path.unlink()
    load()


def test_the_first_checksum_is_trusted_and_compared_from_then_on(server, content, tmp_path):
    load()
    path = published.place_of(NAME)
    write_traced(randomized(TorchvisionModel(deep=True), seed=1), tmp_path / "other.pt")
    server.content = (tmp_path / "other.pt").read_bytes()
    path.unlink()                               # the publisher's file has changed, or is altered on the way
    with pytest.raises(DataError, match=r"changed since its first download.*remove .*\.sha256 if you trust it"):
        load()
    Path(f"{path}.sha256").unlink()
    load()


@pytest.mark.parametrize("page", [b"<html>Please log in</html>", b""])
def test_an_error_page_is_no_file_and_is_not_trusted(server, content, page):
    server.content = page
    with pytest.raises(DataError, match="perhaps an error page that came instead: remove it"):
        load()
    assert kept() == [f"{NAME}.torchscript.pt"]         # without a checksum that later ones would be compared with
    os.remove(published.place_of(NAME))
    server.content = content
    load()


@pytest.mark.parametrize("code", [403, 404])
def test_a_file_that_is_gone(server, code):
    server.faults = [("status", code, {})]
    with pytest.raises(DataError, match=f"answers {code} .*; download it where there is a network, and give the path"):
        load()


def test_a_size_that_nobody_says(server):
    server.faults = [("chunked",)]
    with pytest.raises(DataError, match="does not say how large the file is"):
        load()


def test_without_a_network_one_line_says_what_to_do(server, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(published, "ADDRESS", "http://127.0.0.1:9/")
    Image.new("RGB", (8, 8), "red").save(tmp_path / "a.png")
    command = ["copy", "index", str(tmp_path / "a.png"), "--index", str(tmp_path / "idx"), "--model", NAME]
    assert main(command) == 1
    *notes, error = capsys.readouterr().err.strip().split("\n")
    assert len(notes) == 1 and notes[0].startswith("downloading http://127.0.0.1:9/")
    assert error.startswith("error: ") and "give the path of the file" in error
    assert not (tmp_path / "idx").exists()


def test_a_relative_cache_is_ignored_as_the_standard_says(monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", "/somebody")
    assert published.models_folder() == Path("/somebody/.cache/ascl/models")


def test_an_index_records_the_name_and_takes_no_other_model(server, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    more = ["--index", str(tmp_path / "idx"), "--workers", "0"]
    assert main(["copy", "index", str(tmp_path / "a.png"), *more, "--model", NAME, "--input_size", "32"]) == 0
    assert main(["copy", "query", str(tmp_path / "a.png"), *more]) == 0
    server.requests = []
    for other in ("sscd_disc_large", "phash"):
        capsys.readouterr()
        assert main(["copy", "add", str(tmp_path / "b.png"), *more, "--model", other]) == 1
        said = capsys.readouterr().err
        assert "their descriptors cannot be compared. Use that model" in said and said.count("\n") == 1
    assert server.requests == []                        # it is refused before it is downloaded
    published.place_of(NAME).unlink()
    assert main(["copy", "query", str(tmp_path / "a.png"), *more]) == 1
    assert f"{NAME} is not on this machine: name it as the model" in capsys.readouterr().err
    assert server.requests == []                        # an index may come from anybody
    assert main(["copy", "query", str(tmp_path / "a.png"), *more, "--model", NAME]) == 0
    assert len(server.requests) == 1


def test_a_teacher_can_be_named(server):
    teacher = load_teacher(NAME)
    assert teacher.dim == 8 and torch.is_tensor(teacher.embed(torch.zeros(1, 3, 32, 32), ()))


def test_addresses_are_those_of_the_publisher():
    assert published.address_of("sscd_disc_mixup") == \
        "https://dl.fbaipublicfiles.com/sscd-copy-detection/sscd_disc_mixup.torchscript.pt"
    assert len(published.SSCD) == 7
