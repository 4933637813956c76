"""Getting published data sets: fetched from a server on this machine or brought by hand, unpacked, and the program."""

import hashlib
import io
import json
import shutil
import tarfile
import threading
import zipfile
from collections import namedtuple
from dataclasses import dataclass, replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ascl.core.errors import DataError
from ascl.core.files import readable
from ascl.datasets import Check, check_dataset, fetch_dataset, how_to_get
from ascl.datasets.download import Patience, RemoteFile
from ascl.datasets.published import PUBLISHED, ByHand, ImageArchive, Published
from ascl.settings.retrieval import Config, DataConfig, load_config

REPOSITORY = Path(__file__).resolve().parents[2]
HASTY = Patience(timeout=5.0, attempts=2, backoff=0.0)
IMAGES = {"train2014": ["COCO_train2014_1", "COCO_train2014_2"], "val2014": ["COCO_val2014_3", "COCO_val2014_4"]}
SPLITS = {"COCO_train2014_1": "train", "COCO_train2014_2": "train", "COCO_val2014_3": "val", "COCO_val2014_4": "test"}


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg")
    return buffer.getvalue()


def split_file(splits: dict[str, str]) -> dict:
    return {"images": [{"filename": f"{name}.jpg", "split": split, "sentences": [{"raw": f"about {name}"}]}
                       for name, split in splits.items()]}


def write_zip(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return path


def published_file(path: Path, site: str = "http://publisher.invalid") -> RemoteFile:
    content = path.read_bytes()
    return RemoteFile(f"{site}/{path.name}", len(content), hashlib.sha256(content).hexdigest())


@dataclass
class Site:
    """A publisher on this machine: `requests` are the names that were asked for."""

    folder: Path
    url: str
    requests: list[str]
    published: Published


@pytest.fixture
def site(tmp_path):
    """A small COCO: two archives of two images, Karpathy's zip with two split files, the publisher's annotations."""
    folder = tmp_path / "site"
    folder.mkdir()
    photos = {name: photo(i) for i, name in enumerate(SPLITS)}
    for split, ids in IMAGES.items():
        write_zip(folder / f"{split}.zip", {f"{split}/{name}.jpg": photos[name] for name in ids})
    captions = {"dataset_coco.json": split_file(SPLITS), "dataset_flickr8k.json": split_file({"other": "train"})}
    write_zip(folder / "caption_datasets.zip", {name: json.dumps(text).encode() for name, text in captions.items()})
    write_zip(folder / "annotations_trainval2014.zip",
              {f"annotations/{name}.json": b"{}" for name in ("captions_val2014", "instances_val2014")})
    requests: list[str] = []

    class Handler(SimpleHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path.removeprefix("/"))
            super().do_GET()

        def log_message(self, *arguments):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    published = Published(
        published_file(folder / "caption_datasets.zip"), "dataset_coco.json",
        counts={split: (1, 1) for split in ("train", "val", "test")},
        images=tuple(ImageArchive(published_file(folder / f"{split}.zip"), f"COCO_{split}_") for split in IMAGES),
        annotations=published_file(folder / "annotations_trainval2014.zip"),
    )
    yield Site(folder, f"http://127.0.0.1:{server.server_port}", requests, published)
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path) -> Path:
    return tmp_path / "data" / "coco"


def coco(home: Path, **data) -> Config:
    settings = {"captions": str(home / "dataset_coco.json"), "images": str(home / "images")} | data
    return Config(dataset="coco", data=DataConfig(**settings, features=[str(home / "regions.h5")]))


def bring(site: Site, config: Config, **more) -> list[str]:
    said: list[str] = []
    more = {"published": site.published, "mirror": site.url} | more
    fetch_dataset(config, patience=HASTY, progress=False, say=said.append, **more)
    return said


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def states(checks: list[Check]) -> dict[tuple[str, str], str]:
    return {(check.what, check.split): check.state for check in checks}


# ---- fetching


def test_from_nothing_to_whole_and_a_second_time_nothing(site, home):
    said = bring(site, coco(home))
    assert said[:3] == [f"to download: {site.url}/{name} ({readable((site.folder / name).stat().st_size)}) to "
                        f"{home / name}" for name in ("caption_datasets.zip", "train2014.zip", "val2014.zip")]
    assert set(tree(home)) == {"caption_datasets.zip", "dataset_coco.json", "train2014.zip", "val2014.zip",
                               *(f"images/{split}/{name}.jpg" for split, ids in IMAGES.items() for name in ids)}
    assert states(check_dataset(coco(home)))["images", "train"] == "ok"

    site.requests.clear()
    for archive in ("train2014.zip", "val2014.zip", "caption_datasets.zip"):
        (home / archive).unlink()  # as the program says that one may
    assert bring(site, coco(home)) == [] and site.requests == []


def test_only_the_archive_of_a_missing_image_is_fetched_again(site, home):
    bring(site, coco(home))
    (home / "train2014.zip").unlink()
    (home / "val2014.zip").unlink()
    (home / "images/val2014/COCO_val2014_4.jpg").unlink()
    site.requests.clear()
    said = bring(site, coco(home))
    assert site.requests == ["val2014.zip"] and "1 of them new" in said[-1]
    (home / "images/train2014/COCO_train2014_1.jpg").write_bytes(b"")  # as after a power cut
    bring(site, coco(home))
    assert site.requests == ["val2014.zip", "train2014.zip"]
    assert (home / "images/train2014/COCO_train2014_1.jpg").read_bytes() == photo(0)


def test_a_false_archive_is_refused_and_nothing_is_unpacked(site, home):
    write_zip(site.folder / "val2014.zip", {"val2014/COCO_val2014_3.jpg": photo(7), "val2014/COCO_val2014_4.jpg": b""})
    with pytest.raises(DataError, match=r"val2014\.zip"):
        bring(site, coco(home))
    assert sorted(path.name for path in (home / "images").iterdir()) == ["train2014"]
    assert not (home / "val2014.zip").exists()


def test_a_publisher_that_has_gone_is_named(site, home):
    (site.folder / "caption_datasets.zip").unlink()
    with pytest.raises(DataError, match="404.*give a mirror"):
        bring(site, coco(home))


@pytest.mark.parametrize(("only", "asked"), [
    ("captions", ["caption_datasets.zip"]),
    ("images", ["train2014.zip", "val2014.zip"]),
    ("annotations", ["annotations_trainval2014.zip"]),
])
def test_only_a_part(site, home, only, asked):
    bring(site, coco(home), only=only)
    assert site.requests == asked
    if only == "annotations":
        assert set(tree(home)) == {"annotations_trainval2014.zip", "annotations/captions_val2014.json"}


def test_parts_that_the_data_set_or_the_settings_do_not_have(site, home):
    with pytest.raises(DataError, match="has none besides its captions"):
        bring(site, coco(home), published=replace(site.published, annotations=None), only="annotations")
    with pytest.raises(DataError, match="data.images is not set"):
        bring(site, coco(home, images=None), only="images")
    bring(site, coco(home, images=None))
    assert site.requests == ["caption_datasets.zip"]
    with pytest.raises(DataError, match="data.captions is .*mine.json, which does not exist"):
        bring(site, coco(home, captions=str(home / "mine.json")))


def test_captions_are_read_in_the_zip_where_the_settings_say_so(site, home):
    config = coco(home, captions=str(home / "caption_datasets.zip" / "dataset_coco.json"))
    bring(site, config)
    assert not (home / "dataset_coco.json").exists()
    assert states(check_dataset(config))["captions", "test"] == "note"  # 1 of 5,000


def test_captions_that_are_there_are_never_touched(site, home):
    home.mkdir(parents=True)
    (home / "dataset_coco.json").write_text(json.dumps(split_file({
        "COCO_train2014_1": "train", "COCO_train2014_2": "val", "x": "test"})))
    before = (home / "dataset_coco.json").read_bytes()
    bring(site, coco(home))
    assert site.requests == ["train2014.zip"]  # no image of these captions is in the other
    assert (home / "dataset_coco.json").read_bytes() == before


def test_images_in_a_flat_folder_do_not_get_second_copies(site, home):
    bring(site, coco(home), only="captions")
    (home / "images").mkdir()
    for i, name in enumerate(list(SPLITS)[:3]):
        (home / "images" / f"{name}.jpg").write_bytes(photo(i))
    bring(site, coco(home))
    assert set(tree(home / "images")) == {*(f"{name}.jpg" for name in list(SPLITS)[:3]), "val2014/COCO_val2014_4.jpg"}


def test_the_disk_is_looked_at_before_the_first_byte(site, home, monkeypatch):
    usage = namedtuple("usage", "total used free")
    sizes = {name: (site.folder / name).stat().st_size for name in
             ("caption_datasets.zip", "train2014.zip", "val2014.zip")}
    needed = sum(sizes.values()) + sizes["train2014.zip"] + sizes["val2014.zip"]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed - 1))
    with pytest.raises(DataError, match="downloading and unpacking needs"):
        bring(site, coco(home))
    assert site.requests == []
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0, needed))
    bring(site, coco(home))


# ---- brought by hand


FLICKR = {"1000": "train", "2000": "val", "3000": "test"}


@pytest.fixture
def by_hand(site) -> Published:
    """A small Flickr: only captions can be fetched."""
    archive = write_zip(site.folder / "caption_datasets.zip", {
        "dataset_flickr30k.json": json.dumps(split_file(FLICKR)).encode()})
    form = ByHand("http://page.invalid", "http://form.invalid", ("flickr.tar.gz", "flickr.zip"), "flickr-images")
    return Published(published_file(archive), "dataset_flickr30k.json", counts={}, by_hand=form)


@pytest.mark.parametrize("name", ["flickr.tar.gz", "flickr.zip"])
@pytest.mark.parametrize("place", [".", "images"])
def test_an_archive_brought_by_hand_is_unpacked(site, home, by_hand, name, place):
    config = coco(home, captions=str(home / "dataset_flickr30k.json"))
    assert [line for line in bring(site, config, published=by_hand) if "unpack" in line] == []
    assert states(check_dataset(config))["images", "test"] == "MISSING"
    told = "\n".join(how_to_get(by_hand, config.data))
    for part in ("http://page.invalid", "http://form.invalid", f"to {home}/", "flickr-images"):
        assert part in told

    (home / place).mkdir(exist_ok=True)
    photos = {f"flickr-images/{image}.jpg": photo(int(image)) for image in FLICKR}
    if name.endswith(".zip"):
        write_zip(home / place / name, photos)
    else:
        with tarfile.open(home / place / name, "w:gz") as file:
            for path, content in photos.items():
                info = tarfile.TarInfo(path)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    said = bring(site, config, published=by_hand)
    assert "no checksum of it is published" in said[0] and "3 of them new" in said[1]
    assert states(check_dataset(config, verify_images=True))["images", "test"] == "ok"
    assert bring(site, config, published=by_hand) == []
    assert site.requests == ["caption_datasets.zip"]


def test_a_check_says_how_to_get_images_whatever_the_captions_are_called(tool, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert tool("prepare_data")(["--dataset", "flickr30k", "--check", "--data.captions", "mine.json"]) == 1
    printed = capsys.readouterr().out
    assert "mine.json does not exist" in printed and PUBLISHED["flickr30k"].by_hand.form in printed


def test_nothing_is_asked_for_where_everything_can_be_fetched(site, home):
    assert how_to_get(site.published, coco(home).data) == []


# ---- what is published


def test_the_published_data_sets_fit_their_settings():
    """The sources of the facts are cited in the code; here they are held against each other and the settings."""
    for name, published in PUBLISHED.items():
        config = load_config(["--dataset", name])
        assert config.data.captions == f"data/{name}/{published.caption_file}"
        assert config.data.images == f"data/{name}/images"
        assert set(published.counts) == {config.data.train, config.data.val, config.data.test}
        assert bool(published.images) != bool(published.by_hand)
        for file in (published.captions, published.annotations, *(archive.file for archive in published.images)):
            assert file is None or (len(bytes.fromhex(file.sha256)) == 32 and file.sha256.islower() and file.size > 1e7)
    coco_images = sum(images for images, _ in PUBLISHED["coco"].counts.values())
    assert coco_images == 82_783 + 40_504  # COCO's own train2014 and val2014
    assert sum(captions for _, captions in PUBLISHED["coco"].counts.values()) == 414_113 + 202_654


# ---- the program


@pytest.mark.parametrize(("arguments", "told"), [
    (["--dataset", "nonsense"], "no settings for data set 'nonsense'"),
    (["--dataset", "coco", "--check", "--data.caption", "x"], "data.captions"),
    (["--dataset", "coco", "--check", "--mirror", "http://a"], "--check downloads nothing"),
    (["--dataset", "scenes", "--only", "images"], "scenes downloads nothing"),
    (["--dataset", "flickr8k", "--only", "annotations"], "has none besides its captions"),
    (["--dataset", "flickr8k", "--data.captions", "mine.json"], "data.captions is mine.json, which does not exist"),
    (["--dataset", "flickr8k", "--only", "captions", "--mirror", "file:///etc", "--data.captions",
      "nowhere/dataset_flickr8k.json"], "is not the address of a file"),
])
def test_settings_that_cannot_work(tool, capsys, tmp_path, monkeypatch, arguments, told):
    monkeypatch.chdir(tmp_path)
    assert tool("prepare_data")(arguments) in (1, 2)  # refused, or usage
    assert told in capsys.readouterr().err
    assert tree(tmp_path) == {}


def test_the_program_from_a_mirror_to_the_table(site, home, tool, capsys, monkeypatch):
    monkeypatch.setitem(PUBLISHED, "coco", site.published)
    arguments = ["--dataset", "coco", "--data.captions", str(home / "dataset_coco.json"), "--data.images",
                 str(home / "images"), "--data.features", str(home / "regions.h5")]
    assert tool("prepare_data")([*arguments, "--mirror", site.url]) == 1  # no features yet
    printed = capsys.readouterr().out
    assert "4 files" not in printed and printed.count("2 of them new") == 2
    assert "images                train  2 good files" in printed and "regions.h5" in printed

    def interrupted(*arguments, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr("ascl.datasets.fetch_dataset", interrupted)
    assert tool("prepare_data")(arguments) == 130
    assert "continues from here" in capsys.readouterr().err
