"""The kinds of input that are damaged: how a small valid one is made, and how it is read."""

from __future__ import annotations

import gc
import gzip
import hashlib
import io
import json
import os
import pickle
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

from ascl.analysis.run_files import read_evaluation, run_settings
from ascl.cli import main as ascl
from ascl.core import checkpoint
from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet, load_captions, load_karpathy, load_scan
from ascl.data.stores.open import open_features
from ascl.datasets.archives import unpack
from ascl.features.detectors.weights import read_checkpoint
from ascl.image_copy.descriptors.files import read_descriptors, write_descriptors
from ascl.image_copy.descriptors.teachers import load_teacher
from ascl.image_copy.evaluation.files import read_ground_truth, read_predictions
from ascl.images.read import load_image
from ascl.retrieval.score_files import load_scores
from ascl.settings.base import read_yaml
from ascl.training.log import read_metrics

from ..data.stores import foreign_files
from ..image_copy.sscd_files import TorchvisionModel, randomized, write_traced


class Insane(Exception):
    """An answer breaks a promise of its reader."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    name: for the table. make: writes it to a folder, and returns the files to damage. read: reads it as a program would
    and returns a digest of the answer. exact: whether any other answer than the original's is a fault, because the
    format has checksums. json: whether values inside the file are damaged as well as its bytes. every: 1 = as often as
    any other kind; 5, 10 = a fifth, a tenth as often, because it takes a tenth of a second, half a second.
    """

    name: str
    make: Callable[[Path], list[Path]]
    read: Callable[[Path], str]
    exact: bool = False
    json: bool = False
    every: int = 1


def digest(*values: Any) -> str:
    """Return a digest of arrays, tensors and plain values."""
    found = hashlib.sha256()
    for value in values:
        found.update(value.tobytes() if isinstance(value, np.ndarray) else repr(value).encode("utf-8", "replace"))
    return found.hexdigest()


# Texts


def karpathy(folder: Path) -> list[Path]:
    images = [{"filename": f"{i}.jpg", "split": ("train", "test")[i % 2], "imgid": i, "sentids": [2 * i, 2 * i + 1],
               "sentences": [{"raw": f"a dog {i} runs {k}", "sentid": 2 * i + k} for k in range(2)]} for i in range(6)]
    return [written(folder / "captions.json", json.dumps({"images": images}))]


def coco(folder: Path) -> list[Path]:
    content = {"images": [{"id": i, "file_name": f"{i}.jpg"} for i in range(5)],
               "annotations": [{"id": i, "image_id": i % 5, "caption": f"a dog {i}"} for i in range(12)]}
    return [written(folder / "captions_test2014.json", json.dumps(content))]


def scan(folder: Path) -> list[Path]:
    return [written(folder / "test_caps.txt", "".join(f"a dog {i}\n" for i in range(20))),
            written(folder / "test_ids.txt", "".join(f"image{i}\n" for i in range(4)))]


def gzipped(folder: Path) -> list[Path]:
    (folder / "captions.json.gz").write_bytes(gzip.compress(karpathy(folder)[0].read_bytes()))
    (folder / "captions.json").unlink()
    return [folder / "captions.json.gz"]


def in_a_zip(folder: Path) -> list[Path]:
    with zipfile.ZipFile(folder / "caption_datasets.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.write(karpathy(folder)[0], "dataset_coco.json")
    (folder / "captions.json").unlink()
    return [folder / "caption_datasets.zip"]


def read_captions(load: Callable[[Path], CaptionSet]) -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        found = load(folder)
        if not all(isinstance(text, str) and text.strip() for text in [*found.captions, *found.image_ids]):
            raise Insane("a caption or id is no text")
        if len(found.owner) and not 0 <= found.owner.min() <= found.owner.max() < len(found.image_ids):
            raise Insane("an owner is no image")
        "".join(found.captions).encode("utf-8")
        return digest(found.image_ids, found.captions, found.owner)

    return read


def settings_file(folder: Path) -> list[Path]:
    content = {"data": {"captions": "a.json", "features": ["a.h5"]}, "train": {"batch_size": 8, "epochs": 2},
               "loss": {"temperature": 0.05}}
    return [written(folder / "settings.yaml", yaml.safe_dump(content))]


def read_settings(folder: Path) -> str:
    run_settings(folder)
    return digest(read_yaml(folder / "settings.yaml"))


def evaluation(folder: Path) -> list[Path]:
    recalls = {"r1": 10.0, "r5": 20.0, "r10": 30.0, "median_rank": 3.0}
    full = {"i2t": recalls, "t2i": recalls, "images": 10, "texts": 50, "rsum": 120.0}
    content = {"runs": ["runs/a"], "split": "test", "protocol": "all pairs", "reports": {"full": full}}
    return [written(folder / "eval-test.json", json.dumps(content))]


def metrics(folder: Path) -> list[Path]:
    lines = [{"kind": "train", "step": i, "epoch": 0, "loss": 1.0 / (i + 1)} for i in range(5)]
    return [written(folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in lines))]


def ground_truth(folder: Path) -> list[Path]:
    return [written(folder / "truth.csv", "query_id,reference_id\nQ1,R1\nQ2,\nQ3,R7\n")]


def predictions(folder: Path) -> list[Path]:
    text = "query_id,reference_id,score\n" + "".join(f"Q{i},R{i},{i / 7}\n" for i in range(8))
    (folder / "predictions.csv.gz").write_bytes(gzip.compress(text.encode()))
    return [folder / "predictions.csv.gz"]


def zip_archive(folder: Path) -> list[Path]:
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(3):
            archive.writestr(f"images/{i}.txt", f"content {i}" * 20)
    return [folder / "images.zip"]


def tar_archive(folder: Path) -> list[Path]:
    with tarfile.open(folder / "images.tar.gz", "w:gz") as archive:
        for i in range(3):
            info = tarfile.TarInfo(f"images/{i}.txt")
            content = f"content {i}".encode() * 20
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return [folder / "images.tar.gz"]


def read_archive(folder: Path) -> str:
    archive = next(folder.glob("images.*"))
    unpack(archive, folder / "unpacked", progress=False)
    outside = [path for path in folder.parent.iterdir() if path != folder]
    if outside:
        raise Insane(f"wrote outside its folder: {outside}")
    return digest(sorted((str(path.relative_to(folder)), path.read_bytes())
                         for path in (folder / "unpacked").rglob("*") if path.is_file()))


def written(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# Arrays


def scan_features(folder: Path) -> list[Path]:
    scan(folder)
    np.save(folder / "test_ims.npy", foreign_files.made(4, 3, 6))
    return [folder / "test_ims.npy"]


def our_features(folder: Path) -> list[Path]:
    scan_features(folder)
    quietly("convert", str(folder / "test_ims.npy"), "--out", str(folder / "ours.h5"))
    (folder / "test_ims.npy").unlink()
    return [folder / "ours.h5"]


def foreign(kind: str) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        path = foreign_files.written(kind, folder, foreign_files.make_images([3, 3, 3, 3]))
        written(folder / "name", path.name)
        return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]

    return make


def read_store(name: str = "") -> Callable[[Path], str]:
    def read(folder: Path) -> str:
        store = open_features([folder / (name or (folder / "name").read_text())])
        found = store.read(np.arange(len(store)))
        for values in (found.regions, found.boxes):
            if values is not None and not (values.dtype == np.float32 and np.isfinite(values).all()
                                           and np.abs(values).max(initial=0) < 1e15):
                raise Insane("values are not finite float32 of a sane size")
        if found.regions is None or len(found.regions) != len(store.image_ids):
            raise Insane("rows and ids differ in number")
        return digest(store.image_ids, found.regions, found.boxes)

    return read


def scores(folder: Path) -> list[Path]:
    np.savez(folder / "scores.npz", scores=foreign_files.made(4, 12), owner=np.arange(12) // 3)
    return [folder / "scores.npz"]


def read_scores(folder: Path) -> str:
    found, owner = load_scores(folder / "scores.npz")[:2]
    if len(owner) != np.asarray(found).shape[1]:
        raise Insane("an owner for each column is missing")
    return digest(np.asarray(found), owner)


def descriptors(folder: Path) -> list[Path]:
    write_descriptors(folder / "d.h5", list("abcd"), foreign_files.made(4, 8), model="m")
    return [folder / "d.h5"]


def read_made_descriptors(folder: Path) -> str:
    made = read_descriptors(folder / "d.h5", "query")
    if not np.isfinite(made.vectors).all() or len(made.names) != len(made.vectors):
        raise Insane("vectors are not finite, or have no names")
    return digest(made.names, made.vectors)


# Weights


def our_checkpoint(folder: Path) -> list[Path]:
    checkpoint.save(folder / "last.pt", {"model": {"w": torch.arange(40.0)}, "progress": {"step": 3}, "extra": {}})
    return [folder / "last.pt"]


def read_our_checkpoint(folder: Path) -> str:
    state = checkpoint.load(folder / "last.pt")
    return digest({name: value.tolist() if isinstance(value, torch.Tensor) else value
                   for name, value in flattened(state).items()})


def flattened(values: dict, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def pickled_weights(folder: Path) -> list[Path]:
    content = {"model": {"res5.w": foreign_files.made(4, 5)}, "matching_heuristics": True}
    (folder / "weights.pkl").write_bytes(pickle.dumps(content, protocol=2))
    return [folder / "weights.pkl"]


def torch_weights(folder: Path) -> list[Path]:
    torch.save({"res5.w": torch.arange(20.0)}, folder / "weights.pth")
    return [folder / "weights.pth"]


def legacy_weights(folder: Path) -> list[Path]:
    torch.save({"res5.w": torch.arange(20.0)}, folder / "weights.pth", _use_new_zipfile_serialization=False)
    return [folder / "weights.pth"]


def read_weights(folder: Path) -> str:
    found = read_checkpoint(next(folder.glob("weights.*")))
    return digest({name: value.numpy().tobytes() for name, value in found.tensors.items()})


def torchscript(folder: Path) -> list[Path]:
    write_traced(randomized(TorchvisionModel(deep=True)), folder / "sscd.torchscript.pt")
    return [folder / "sscd.torchscript.pt"]


def read_torchscript(folder: Path) -> str:
    teacher = load_teacher(str(folder / "sscd.torchscript.pt"))
    return digest({name: value.numpy().tobytes() for name, value in teacher.state_dict().items()})


# Images and indexes


def picture(seed: int, width: int = 48, height: int = 40) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def image(suffix: str, **options: Any) -> Callable[[Path], list[Path]]:
    def make(folder: Path) -> list[Path]:
        picture(0).save(folder / f"photo.{suffix}", **options)
        return [folder / f"photo.{suffix}"]

    return make


def read_image(folder: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = load_image(next(folder.glob("photo.*")))
    if loaded.image.mode != "RGB" or 0 in loaded.image.size:
        raise Insane("not an RGB image")
    return digest(loaded.image.tobytes())


def photos(folder: Path, count: int = 4) -> None:
    (folder / "photos").mkdir()
    for i in range(count):
        picture(i).save(folder / "photos" / f"{i}.png")


def index(folder: Path) -> list[Path]:
    photos(folder)
    quietly("copy", "index", str(folder / "photos"), "--index", str(folder / "idx"), "--model", "phash",
            "--workers", "0")
    return sorted(path for path in (folder / "idx").rglob("*") if path.is_file() and not path.name.startswith(".")
                  and path.suffix != ".lock" and path.stat().st_size)


def read_index(folder: Path) -> str:
    """Query the index as a user does; a warning of damage counts as a refusal, and only silence is compared."""
    said, answer = io.StringIO(), io.StringIO()
    with redirect_stderr(said), redirect_stdout(answer):
        status = ascl(["copy", "query", str(folder / "photos" / "0.png"), str(folder / "photos" / "2.png"), "--index",
                       str(folder / "idx"), "--workers", "0", "--json"])
    if "Traceback" in said.getvalue():
        raise RuntimeError(said.getvalue()[-500:])
    if status in (1, 2):
        raise DataError(said.getvalue().strip())
    found = json.loads(answer.getvalue())
    if spoken := [line for line in said.getvalue().splitlines() if "damage" in line]:
        raise DataError(f"{folder / 'idx'}: " + " ".join(spoken))
    return digest([(one["id"], [(match["id"], match["copy"], round(match["score"], 6)) for match in one["matches"]])
                   for one in found["queries"]])


def quietly(*words: str) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        status = ascl(list(words))
    gc.collect()                    # closes what the command left to it, such as an index's database
    assert status in (0, 3), (words, status)


KINDS = [
    Kind("Karpathy's JSON", karpathy, read_captions(lambda f: load_karpathy(f / "captions.json", "test")), json=True),
    Kind("COCO's caption JSON", coco, read_captions(lambda f: load_captions(f / "captions_test2014.json", "test")),
         json=True),
    Kind("SCAN's caption texts", scan, read_captions(lambda f: load_scan(f, "test"))),
    Kind("captions in gzip", gzipped, read_captions(lambda f: load_karpathy(f / "captions.json.gz", "test"))),
    Kind("captions in a zip", in_a_zip,
         read_captions(lambda f: load_karpathy(f / "caption_datasets.zip/dataset_coco.json", "test"))),
    Kind("settings, YAML", settings_file, read_settings),
    Kind("evaluation, JSON", evaluation, lambda f: digest(read_evaluation(f / "eval-test.json")), json=True),
    Kind("metrics, JSON lines", metrics, lambda f: digest(read_metrics(f / "metrics.jsonl"))),
    Kind("ground truth, CSV", ground_truth, lambda f: digest(read_ground_truth(f / "truth.csv"))),
    Kind("predictions, gzipped CSV", predictions, lambda f: digest(read_predictions(f / "predictions.csv.gz"))),
    Kind("archive, zip", zip_archive, read_archive), Kind("archive, tar.gz", tar_archive, read_archive),
    Kind("SCAN's .npy", scan_features, read_store("test_ims.npy")),
    Kind("our HDF5", our_features, read_store("ours.h5"), every=5),
    *(Kind(f"features, {kind}", foreign(kind), read_store(), every=5 if "h5" in kind else 1)
      for kind in foreign_files.KINDS),
    Kind("score matrix, .npz", scores, read_scores),
    Kind("descriptors, HDF5", descriptors, read_made_descriptors, every=5),
    Kind("checkpoint", our_checkpoint, read_our_checkpoint, exact=True),
    Kind("weights, pickle", pickled_weights, read_weights),
    Kind("weights, torch", torch_weights, read_weights, exact=True),
    Kind("weights, old torch", legacy_weights, read_weights),
    Kind("TorchScript", torchscript, read_torchscript, exact=True, every=10),
    *(Kind(f"image, {suffix}", image(suffix, **options), read_image) for suffix, options in (
        ("jpg", {}), ("png", {}), ("gif", {}), ("webp", {}), ("tiff", {}), ("bmp", {}), ("ppm", {}),
        ("jp2", {}), ("avif", {}))),
    Kind("copy index", index, read_index, exact=True),
]
