"""The table of checks: what it says of whole data, and of every way in which data can be broken."""

import gzip
import io
import json
import shutil
import urllib.request
import zipfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from ascl.datasets import Check, check_dataset, table
from ascl.settings.retrieval import Config, DataConfig


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg")
    return buffer.getvalue()


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def states(checks: list[Check]) -> dict[tuple[str, str], str]:
    return {(check.what, check.split): check.state for check in checks}


@pytest.fixture
def data(tiny_data, tmp_path) -> Path:
    """A copy of the small data set with an image for each caption's."""
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_data, folder)
    (folder / "images" / "deep").mkdir(parents=True)
    for i in range(24):
        (folder / "images" / "deep" / f"photo{i:02d}.jpg").write_bytes(photo(i))
    return folder


def tiny(data: Path, **more) -> Config:
    settings = {"captions": str(data / "captions.json"), "images": str(data / "images"),
                "features": [str(data / "regions.h5"), str(data / "globals.h5")]} | more
    return Config(data=DataConfig(**settings))


@pytest.fixture
def check(data, tool, monkeypatch, capsys):
    """Runs `prepare_data.py --check` on the data: (exit code, what it printed). Neither network nor disk is touched."""
    def no_network(*arguments, **more):
        raise AssertionError("a check went to the network")

    def run(*more: str) -> tuple[int, str]:
        before = tree(data)
        status = tool("prepare_data")([
            "--dataset", "flickr8k", "--check", "--data.captions", str(data / "captions.json"),
            "--data.images", str(data / "images"), "--data.features", f"{data / 'regions.h5'},{data / 'globals.h5'}",
            *more,
        ])
        assert tree(data) == before
        printed = capsys.readouterr()
        assert "Traceback" not in printed.err
        return status, printed.out + printed.err

    monkeypatch.setattr(urllib.request, "urlopen", no_network)
    return run


def test_whole_data_is_ok(data, check):
    checks = check_dataset(tiny(data), verify_images=True)
    assert all(entry.state == "ok" for entry in checks)
    assert states(checks).keys() == {
        *((what, split) for split in ("train", "val", "test")
          for what in ("captions", "images", "features", "sampled features", "regions an image")),
        ("images in two splits", "all"), ("feature rows", "all"),
    }
    found = {(entry.what, entry.split): entry.found for entry in checks}
    assert found["captions", "train"] == "12 images, 25 captions" and found["images", "val"] == "6 good files"
    assert found["features", "test"] == "regions 4 x 8, globals 6"
    assert found["regions an image", "train"] == "2 to 4" and found["feature rows", "all"] == "24, 0 without captions"
    status, printed = check()
    assert status == 0 and printed.count("note") == 6  # three rows and three stories: flickr8k has other counts
    assert "12 images, 25 captions" in printed and "6,000 images, 30,000 captions" in printed


def test_without_an_images_folder_its_rows_are_left_out(data):
    checks = check_dataset(tiny(data, images=None))
    assert all(entry.ok and entry.what != "images" for entry in checks)


def test_the_table_is_aligned_and_tells_each_story_once():
    rows = [
        Check("captions", "train", "1", "1", "ok"), Check("images in two splits", "all", "", "none", "WRONG", "why"),
        Check("images", "val", "1", "22", "MISSING", "why not"), Check("x", "test", "", "none", "WRONG", "why"),
    ]
    assert table(rows).split("\n") == [
        "what                  split  found  wanted  state",
        "--------------------  -----  -----  ------  -------",
        "captions              train  1      1       ok",
        "images in two splits  all           none    WRONG",
        "images                val    1      22      MISSING",
        "x                     test          none    WRONG",
        "",
        "WRONG: why",
        "MISSING: why not",
    ]
    assert table(rows[:1]).split("\n")[2:] == ["captions  train  1      1       ok"]


def edit_features(path: Path, change) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def keep_rows(file: h5py.File, kept: slice) -> None:
    for name in list(file):
        values = file[name][kept]
        del file[name]
        file[name] = values


def nan(file: h5py.File) -> None:
    file["globals"][3, 2] = np.nan


def zeros(file: h5py.File) -> None:
    file["globals"][3] = 0


def false_count(file: h5py.File) -> None:
    file["region_count"][3] = 5


def rewrite(path: Path, change) -> None:
    path.write_text(change(path.read_text()))


def move_image(data: Path, name: str, split: str) -> None:
    """The image also in another split."""
    content = json.loads((data / "captions.json").read_text())
    content["images"].append({**next(i for i in content["images"] if i["filename"] == name), "split": split})
    (data / "captions.json").write_text(json.dumps(content))


BROKEN = {
    "no image": (lambda d: (d / "images/deep/photo03.jpg").unlink(), "images", "train", "MISSING", "photo03"),
    "no images": (lambda d: shutil.rmtree(d / "images"), "images", "test", "MISSING", "6 of 6 images of test"),
    "empty image": (lambda d: (d / "images/deep/photo13.jpg").write_bytes(b""), "images", "val", "WRONG", "is empty"),
    "image twice": (lambda d: (d / "images/photo01.png").write_bytes(photo(1)), "images", "all", "WRONG", "'photo01'"),
    "no captions": (lambda d: (d / "captions.json").unlink(), "captions", "val", "MISSING", "ascl prepare"),
    "half a json": (lambda d: rewrite(d / "captions.json", lambda text: text[:99]),
                    "captions", "val", "WRONG", "not JSON"),
    "no such split": (lambda d: rewrite(d / "captions.json", lambda text: text.replace('"val"', '"dev"')),
                      "captions", "val", "WRONG", "dev"),
    "image in two splits": (lambda d: move_image(d, "photo02.jpg", "test"), "images in two splits", "all", "WRONG",
                            "photo02 (train and test)"),
    "no features": (lambda d: (d / "globals.h5").unlink(), "features", "all", "MISSING", "globals.h5"),
    "features cut off": (lambda d: (d / "globals.h5").write_bytes((d / "globals.h5").read_bytes()[:3000]),
                         "features", "all", "WRONG", "globals.h5"),
    "no feature row": (lambda d: edit_features(d / "globals.h5", lambda f: keep_rows(f, slice(0, 23))),
                       "features", "test", "MISSING", "photo23"),
    "NaN row": (lambda d: edit_features(d / "globals.h5", nan), "sampled features", "train", "WRONG", "photo03"),
    "row of zeros": (lambda d: edit_features(d / "globals.h5", zeros), "sampled features", "train", "WRONG", "photo03"),
    "false mask": (lambda d: edit_features(d / "regions.h5", false_count), "features", "all", "WRONG", "photo03"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_data_is_named_in_the_table_and_in_the_exit_code(data, check, case):
    breaks, what, split, state, told = BROKEN[case]
    breaks(data)
    status, printed = check()
    assert status == 1
    checks = check_dataset(tiny(data, prepare="ascl prepare --dataset tiny"))
    wrong = [entry for entry in checks if not entry.ok]
    assert (what, split, state) in [(entry.what, entry.split, entry.state) for entry in wrong]
    assert any(told in entry.detail for entry in wrong) and told.split(" ")[0] in printed
    rows = [line for line in printed.split("\n") if line.split("  ")[0] == what and line.endswith(state)]
    assert any(f"  {split}  " in row for row in rows)


def test_an_image_that_cannot_be_decoded_is_found_when_asked_for(data, check):
    whole = (data / "images/deep/photo20.jpg").read_bytes()
    (data / "images/deep/photo20.jpg").write_bytes(whole[: len(whole) // 2])
    assert check()[0] == 0
    status, printed = check("--verify-images")
    assert status == 1 and "1 images of test are broken" in printed and "photo20.jpg" in printed


def test_rows_without_captions_and_files_of_each_split(data):
    content = json.loads((data / "captions.json").read_text())
    content["images"] = content["images"][:-2]
    (data / "captions.json").write_text(json.dumps(content))
    checks = check_dataset(tiny(data))
    assert all(entry.state == "ok" for entry in checks)
    assert [entry.found for entry in checks if entry.what == "feature rows"] == ["24, 2 without captions"]

    for kind in ("regions", "globals"):
        for split, rows in (("train", slice(0, 12)), ("val", slice(12, 18)), ("test", slice(18, 24))):
            shutil.copy(data / f"{kind}.h5", data / f"{split}_{kind}.h5")
            edit_features(data / f"{split}_{kind}.h5", lambda file, rows=rows: keep_rows(file, rows))
    each = [str(data / "{split}_regions.h5"), str(data / "{split}_globals.h5")]
    checks = check_dataset(tiny(data, features=each))
    assert all(entry.state == "ok" for entry in checks)
    assert states(checks).keys() >= {("feature rows", split) for split in ("train", "val", "test")}

    def narrow(file: h5py.File) -> None:
        values = file["globals"][:, :5]
        del file["globals"]
        file["globals"] = values

    edit_features(data / "val_globals.h5", narrow)
    checks = check_dataset(tiny(data, features=each))
    assert states(checks)["dimensions", "all"] == "WRONG" and "globals 5" in checks[-1].detail


def test_regions_without_globals_say_so(data):
    checks = check_dataset(tiny(data, features=[str(data / "regions.h5")]))
    assert states(checks)["features", "val"] == "MISSING" and "mean-region" in table(checks)
    checks = check_dataset(tiny(data, features=[str(data / "regions.h5")], global_source="mean-region"))
    assert all(entry.ok for entry in checks)
    assert states(check_dataset(tiny(data, features=[])))["features", "all"] == "MISSING"


def test_splits_without_image_ids_are_no_reason_to_worry(data):
    for split, letters in (("train", "abcdefghij"), ("val", "klmno"), ("test", "pqrst")):
        (data / f"{split}_caps.txt").write_text("\n".join(letters))
    checks = check_dataset(tiny(data, captions=str(data / "{split}_caps.txt"), images=None, features=["none.npy"]))
    assert states(checks)["images in two splits", "all"] == "note"
    assert states(checks)["captions", "val"] == "ok"


def test_the_real_flickr30k_in_a_zip_has_the_published_counts(shared, tmp_path):
    content = json.loads(gzip.decompress((shared / "data/captions/dataset_flickr30k.json.gz").read_bytes()))
    for image in content["images"]:
        image["sentences"] = [{"raw": sentence["raw"]} for sentence in image["sentences"]]  # a third of the file
    with zipfile.ZipFile(tmp_path / "caption_datasets.zip", "w") as file:
        file.writestr("dataset_flickr30k.json", json.dumps(content))
    config = Config(data=DataConfig(captions=str(tmp_path / "dataset_flickr30k.json"), features=["none.h5"]))
    checks = check_dataset(config)
    assert [entry.state for entry in checks] == ["ok", "ok", "ok", "ok", "MISSING"]
    assert checks[0].found == checks[0].wanted == "29,000 images, 145,000 captions"
