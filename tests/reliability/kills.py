"""Kill commands at random moments, give them again, and compare what they leave with that of an undisturbed run."""

from __future__ import annotations

import json
import os
import random
import shutil
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from ascl.cli import main as ascl
from ascl.core import checkpoint
from ascl.data.stores.open import open_features
from ascl.models.small_bert import write_small_bert
from ascl.retrieval import train  # noqa: F401  imported here, so that no forked process has to

from ..data.stores import foreign_files
from .damage import forked
from .kinds import digest, photos, picture, quietly, read_index, read_store, scan_features, written

OUTCOMES = ("same", "other result", "refused to go on", "left files")


@dataclass(frozen=True)
class Work:
    """A command that may be killed.

    prepare: makes its input in a folder. run: the words of the command, or of the one that goes on, given the folder.
    result: a digest of what it leaves. once: whether a second call of the finished command is refused.
    """

    name: str
    prepare: Callable[[Path], None]
    run: Callable[[Path], list[str]]
    result: Callable[[Path], str]
    once: bool = False


def index_words(folder: Path) -> list[str]:
    return ["copy", "index", str(folder / "photos"), "--index", str(folder / "idx"), "--model", "phash",
            "--workers", "0"]


def with_index(folder: Path) -> None:
    photos(folder, 12)
    quietly(*index_words(folder))


def unrelated(folder: Path) -> None:
    with_index(folder)
    (folder / "unrelated").mkdir()
    for i in range(40):
        picture(100 + i).save(folder / "unrelated" / f"{i}.png")


def read_globals(folder: Path) -> str:
    store = open_features([folder / "o.h5"])
    return digest(store.image_ids, store.read(np.arange(len(store))).globals)


def train_words(folder: Path) -> list[str]:
    run = folder / "run"
    if (run / "last.pt").exists():
        return ["train", "--resume", str(run)]
    if run.exists():
        shutil.rmtree(run)          # killed before the first checkpoint: nothing to go on with
    return [*json.loads((folder / "words.json").read_text()), "--out", str(run)]


def trained(folder: Path) -> str:
    state = checkpoint.load(folder / "run" / "last.pt")
    return digest(state["progress"]["step"], {name: value.tolist() for name, value in state["model"].items()})


def training(folder: Path) -> None:
    images = [{"filename": f"{i:02}.jpg", "split": ("train", "train", "val")[i % 3],
               "sentences": [{"raw": f"a {'red' if i % 2 else 'blue'} dog {k}", "sentid": 2 * i + k} for k in range(2)]}
              for i in range(24)]
    written(folder / "captions.json", json.dumps({"images": images}))
    write_small_bert(folder / "bert", ["a red blue dog 0 1"], dim=16, layers=1, heads=2)
    np.save(folder / "all_ims.npy", foreign_files.made(24, 3, 8))
    written(folder / "all_ids.txt", "".join(f"{i:02}\n" for i in range(24)))
    words = ["train", "--data.captions", str(folder / "captions.json"), "--data.features",
             f"[{folder / 'all_ims.npy'}]", "--data.global_source", "mean-region",
             "--text.encoder", str(folder / "bert"), "--model.embed_dim", "8", "--model.num_heads", "2",
             "--train.batch_size", "4", "--train.workers", "0", "--train.max_steps", "12",
             "--train.validate_every", "4", "--train.checkpoint_every", "2"]
    written(folder / "words.json", json.dumps(words))


WORKS = [
    Work("copy index", lambda folder: photos(folder, 40), index_words, read_index),
    Work("copy remove", with_index, lambda f: ["copy", "remove", "3.png", "5.png", "--index", str(f / "idx")],
         read_index, once=True),
    Work("copy calibrate", unrelated, lambda f: ["copy", "calibrate", str(f / "unrelated"), "--index", str(f / "idx"),
                                                 "--false_positive_rate", "0.1", "--workers", "0"], read_index),
    Work("convert", scan_features, lambda f: ["convert", str(f / "test_ims.npy"), "--out", str(f / "o.h5")],
         read_store("o.h5")),
    Work("extract globals", lambda folder: photos(folder, 12), lambda f: [
        "extract", "globals", "--images", str(f / "photos"), "--out", str(f / "o.h5"), "--backbone",
        "shufflenet_v2_x0_5", "--weights", "random:0", "--input_size", "64", "--workers", "0", "--dtype", "float32",
        *(["--resume"] if (f / "o.h5.parts").exists() or (f / "o.h5").exists() else [])], read_globals),
    Work("train", training, train_words, trained),
]


def command(words: list[str]) -> Callable[[], None]:
    """Return a function that runs a command with its output in `said`, and ends the process with its status."""
    def run() -> None:
        with open("said", "a", buffering=1) as said, redirect_stdout(said), redirect_stderr(said):
            os._exit(ascl(words))

    return run


def try_kills(scratch: Path, works: list[Work], seed: int, until: float,
              kills: int) -> Iterator[tuple[str, int, str, str]]:
    """Kill commands at random moments; yield the work's name, the number of kills, the outcome and what was said."""
    made: dict[str, tuple[str, float]] = {}
    done = number = 0
    while done < kills and time.time() < until:
        rng, work = random.Random(seed * 1_000_003 + number), works[number % len(works)]
        folder = Path(tempfile.mkdtemp(dir=scratch))
        os.chdir(folder)
        pristine = scratch / f"work{WORKS.index(work)}"
        if work.name not in made:
            (pristine / "case").mkdir(parents=True)
            forked(partial(work.prepare, pristine / "case"), seconds=300)
            shutil.copytree(pristine / "case", folder / "case")
            started = time.time()
            if not forked(command(work.run(folder / "case")), seconds=300):
                raise RuntimeError(f"{work.name} fails by itself: {Path('said').read_text()}")
            made[work.name] = work.result(folder / "case"), time.time() - started
            shutil.rmtree(folder / "case")
        expected, usual = made[work.name]
        case = folder / "case"
        shutil.copytree(pristine / "case", case)
        times = rng.randint(1, 3)                                   # killed again while it goes on
        for _ in range(times):
            forked(command(work.run(case)), seconds=rng.random() * usual * 1.1)
        fine = forked(command(work.run(case)), seconds=300)
        try:
            found = work.result(case) if fine or work.once else ""
            fine = fine or work.once
        except Exception:
            fine, found = False, ""
            with open("said", "a") as said:
                said.write(traceback.format_exc())
        left = [path.name for path in case.rglob("*") if path.name.endswith(".tmp")]
        result = ("refused to go on" if not fine else "other result" if found != expected else
                  "left files" if left else "same")
        yield work.name, times, result, "" if result == "same" else f"{left} {Path('said').read_text()[-1500:]}"
        os.chdir(scratch)
        shutil.rmtree(folder)
        done, number = done + times, number + 1
