"""Every reader of text on damaged files: each is read, or refused in one line with its name; nothing else happens."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import yaml

from ascl.analysis.ablation.results import probes_of, training_of
from ascl.analysis.ablation.table import read_table
from ascl.analysis.query_ranks import read_ranks
from ascl.analysis.run_files import RECALLS, read_evaluation, recalls_of, run_settings
from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet, load_captions, load_coco, load_karpathy, load_scan
from ascl.data.stores.ids import stems_of
from ascl.data.stores.open import open_features
from ascl.datasets.archives import unpack
from ascl.image_copy.evaluation.files import read_edits, read_ground_truth, read_hard_negatives, read_predictions
from ascl.retrieval.score_files import read_owner, read_scores
from ascl.scenes.captions import scene_captions
from ascl.scenes.render import load_scene_records, truth_matrix
from ascl.scenes.world import make_scene
from ascl.settings.base import from_dict, read_yaml, to_dict
from ascl.settings.retrieval import Config
from ascl.training.log import read_metrics

from .mutations import mutated, mutated_json

CASES = 100  # of a reader
SENTENCES = ["a dog runs", "Two dogs, in snow.", "Ein Hündchen"]


def captions_are_right(captions: CaptionSet) -> None:
    assert len(set(captions.image_ids)) == len(captions.image_ids)
    assert all(text and text == " ".join(text.split()) and text.encode() for text in captions.captions)
    assert all(0 <= owner < len(captions.image_ids) for owner in captions.owner)
    assert all(name.encode() and "\0" not in name for name in captions.image_ids)


def settings_are_right(path: Path) -> None:
    config = from_dict(Config, read_yaml(path), str(path))
    assert isinstance(config.train.epochs, int) and isinstance(config.data.features, list)


def evaluation_is_right(path: Path) -> None:
    content = read_evaluation(path, whole=True)
    assert recalls_of(content["reports"]["full"]).keys() == set(RECALLS)
    assert all(isinstance(share, float) for share in probes_of(content.get("probes")).values())


def ranks_are_right(path: Path) -> None:
    found = read_ranks(path)
    assert found.t2i.max() < found.images and all(found.image_id(int(image)) is not None for image in found.owner)


def scores_are_right(path: Path) -> None:
    given = read_scores(path)
    assert given.scores.shape[1] == len(given.owner) and given.owner.max() < len(given.scores)


def metrics_are_right(path: Path) -> None:
    steps, seconds = training_of(read_metrics(path))
    assert isinstance(steps, int) and (seconds is None or isinstance(seconds, float))


def scenes_are_right(path: Path) -> None:
    scenes = load_scene_records(path, "val")
    assert truth_matrix(["a red circle"], scenes).shape == (len(scenes), 1)


def unpacked(path: Path) -> None:
    done = unpack(path, path.parent / "unpacked", progress=False)
    assert done.written <= done.files


def karpathy() -> dict[str, Any]:
    return {"images": [{"filename": f"COCO_val2014_{i:012d}.jpg", "split": "val", "cocoid": i, "imgid": 100 + i,
                        "sentences": [{"raw": text, "sentid": 10 * i + k} for k, text in enumerate(SENTENCES)]}
                       for i in range(4)], "dataset": "x"}


def coco() -> dict[str, Any]:
    return {"images": [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(4)],
            "annotations": [{"id": 10 * i, "image_id": i, "caption": text} for i in range(4) for text in SENTENCES]}


def scenes() -> dict[str, Any]:
    made = [make_scene(0, index, split="val", side=64) for index in range(3)]
    return {"images": [{"filename": f"{scene.image_id}.png", "split": "val", **scene.record(), "sentences": [
        {"raw": text} for text in scene_captions(scene, 0, 0, split="val")]} for scene in made]}


def evaluation() -> dict[str, Any]:
    recalls = {"r1": 1.0, "r5": 5.0, "r10": 10.0, "median_rank": 3.0, "mean_rank": 4.0, "queries": 5}
    group = {"right": 0.5, "pairs": 7, "asymmetry": "I", "low": 0.4, "high": 0.6, "ties": None}
    return {"runs": ["runs/a"], "reports": {"full": {"i2t": recalls, "t2i": recalls, "rsum": 32.0, "images": 5,
                                                     "texts": 9}},
            "probes": {"kinds": {"noun": group}, "by_asymmetry": {"I": group}, "how": "so"}}


def npz(**arrays: Any) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy(array: Any) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


def zipped(**members: str) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as file:
        for name, text in members.items():
            file.writestr(f"folder/{name}.json", text)
    return stream.getvalue()


def tar(mode: str) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as file:
        for name in ("a.txt", "folder/b.txt"):
            info = tarfile.TarInfo(name)
            info.size = 300
            file.addfile(info, io.BytesIO(b"abc" * 100))
    return stream.getvalue()


class Reader(NamedTuple):
    """A reader: the name of its file, the file's content as bytes, or as JSON, and a call that reads and checks it."""

    name: str
    content: Any
    read: Callable[[Path], object]
    cases: int = CASES


LINES = "\n".join(f"a dog runs {i}" for i in range(20)).encode()
RANKS = {"i2t": np.array([0, 1]), "t2i": np.array([0, 1, 1, 0]), "image_queries": np.arange(2),
         "text_queries": np.arange(4), "owner": np.array([0, 0, 1, 1]), "image_ids": np.array(["a", "b"]),
         "captions": np.array(["a dog", "b", "c", "d"])}
OWNER = np.arange(12) // 3
METRICS_FILE = "".join(json.dumps({"kind": kind, "step": 10 * i, "epoch": 1, "loss": 0.5, "seconds": 2.0 * i,
                                   "time": 1e9}) + "\n" for i, kind in enumerate(["train", "validation", "train"], 1))
TABLE = f"study,variant,label,seed,run,{','.join(RECALLS)}\n" + "".join(
    f"loss,a=1,a,{i},runs/{i},1,2,3,4,5,6,21\n" for i in range(4))
PAIRS = "query_id,reference_id\n" + "".join(f"Q{i},R{i}\n" for i in range(9)) + "Q9,\n"
READERS = {
    "karpathy": Reader("dataset_x.json", karpathy(), lambda path: captions_are_right(load_karpathy(path, "val"))),
    "coco": Reader("captions_val2014.json", coco(), lambda path: captions_are_right(load_coco(path))),
    "gzip": Reader("dataset_x.json.gz", gzip.compress(json.dumps(karpathy()).encode()),
                   lambda path: captions_are_right(load_captions(path, "val"))),
    "zip": Reader("caption_datasets.zip", zipped(dataset_x=json.dumps(karpathy())),
                  lambda path: captions_are_right(load_captions(path, "val"))),
    "scan": Reader("val_caps.txt", LINES, lambda path: captions_are_right(load_scan(path.parent, "val"))),
    "scan gzip": Reader("val_caps.txt.gz", gzip.compress(LINES),
                        lambda path: captions_are_right(load_captions(path, "val"))),
    "scan features": Reader("val_ims.npy", npy(np.random.default_rng(0).normal(size=(8, 2, 3)).astype(np.float32)),
                            lambda path: open_features([path]).read([0])),
    "ids": Reader("dataset_x.json", karpathy(), lambda path: stems_of(["0", "1", "2", "3"], path)),
    "settings": Reader("settings.yaml", yaml.safe_dump(to_dict(Config(dataset="x"))).encode(), settings_are_right, 60),
    "values of settings": Reader("settings.yaml", to_dict(Config(dataset="x")), settings_are_right, 30),
    "run": Reader("settings.yaml", to_dict(Config(dataset="x")), lambda path: run_settings(path.parent), 60),
    "evaluation": Reader("eval-test.json", evaluation(), evaluation_is_right),
    "ranks": Reader("ranks-test.npz", npz(**RANKS), ranks_are_right),
    "scores": Reader("scores.npz", npz(scores=np.eye(4).repeat(3, 1), owner=OWNER), scores_are_right),
    "bare scores": Reader("sims.npy", npy(np.eye(4).repeat(3, 1)), lambda path: read_scores(path, OWNER)),
    "owner": Reader("owner.txt", "\n".join(map(str, OWNER)).encode(), read_owner),
    "metrics": Reader("metrics.jsonl", METRICS_FILE.encode(), metrics_are_right),
    "table": Reader("loss.csv", TABLE.encode(), read_table),
    "ground truth": Reader("truth.csv", PAIRS.encode(), read_ground_truth),
    "predictions": Reader("predictions.csv.gz", gzip.compress("".join(f"Q{i},R{i},0.{i}\n" for i in range(9)).encode()),
                          read_predictions),
    "hard negatives": Reader("negatives.csv", b"query_id,reference_id\nQ1,R1\nQ2,R2\n", read_hard_negatives),
    "edits": Reader("edits.csv", b"query_id,kind,strength,content_scale\nQ1,crop,1,0.5\nQ2,blur,2,1\n", read_edits),
    "scenes": Reader("dataset_scenes.json", scenes(), scenes_are_right),
    "archive zip": Reader("x.zip", zipped(a="a" * 300, b="b" * 300), unpacked),
    "archive tar": Reader("x.tar", tar("w"), unpacked),
    "archive tgz": Reader("x.tar.gz", tar("w:gz"), unpacked),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS.keys())
def test_a_damaged_file_is_read_or_refused_with_its_name(reader, tmp_path):
    path, rng = tmp_path / reader.name, np.random.default_rng(0)
    whole = reader.content if isinstance(reader.content, bytes) else json.dumps(reader.content).encode()
    path.write_bytes(whole)
    reader.read(path)
    refused = 0
    for case in range(reader.cases):
        if isinstance(reader.content, bytes) or case % 3 == 0:
            content = mutated(whole, rng)
        else:
            content = json.dumps(mutated_json(reader.content, rng)).encode()
        path.write_bytes(content)
        try:
            reader.read(path)
        except DataError as error:
            refused += 1
            assert reader.name in str(error) and "\n" not in str(error) and str(error).encode(), (case, str(error))
    assert refused  # so the mutations do damage
