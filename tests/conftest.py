"""Fixtures that every room uses."""

import functools
import gc
import itertools
import json
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from docstring_parser.attrdoc import AttributeDocstrings
from jsonargparse import _core, _subcommands

from ascl.cli import main

from .warm_python import REPOSITORY, Program

gc.disable()                            # until all is imported and collected
if not torch.cuda.is_available():       # read when a kernel is defined: before anything of ours is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")
# each command builds its parser from the source of its settings; here are hundreds of commands in one process
_read = AttributeDocstrings.get_attr_docs
_read_once = functools.cache(lambda kind: _read(AttributeDocstrings(), kind))
AttributeDocstrings.get_attr_docs = lambda self, kind: _read_once(kind)
# and to read one, it looks for each setting among all of them, several times
_find = _subcommands.find_action_and_subcommand


def _find_once(parser, dest, exclude=None):
    found = vars(parser).setdefault("_found_by_tests", {})
    key = len(parser._actions), dest, exclude
    if key not in found:
        found[key] = _find(parser, dest, exclude=exclude)
    return found[key]


_subcommands.find_action_and_subcommand = _core.find_action_and_subcommand = _find_once


def pytest_collection_finish() -> None:
    """Let the garbage collector pass over what stays to the end, and come less often: it took a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000)
    gc.enable()


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder with real photographs, captions and small weights beside the repository; skips where it is absent."""
    folder = REPOSITORY.parent / "shared"
    if not (folder / "data" / "README.md").exists():
        pytest.skip("no folder `shared` with real data beside the repository")
    return folder


WORDS = "a the and with on in dog cat man hat ball red blue small big old runs sits jumps holds sees grass snow street"


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory) -> Path:
    """Folder of a BERT with random weights: hidden size 16, one layer, the words of `WORDS`, texts of at most 16."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder = tmp_path_factory.mktemp("tiny_bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), ".", "##s"]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    BertTokenizerFast(vocab=str(folder / "vocab.txt"), model_max_length=18).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertModel(
            BertConfig(
                vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=32, max_position_embeddings=18, initializer_range=0.5,
            )
        ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory) -> Path:
    """Folder with captions.json (Karpathy), regions.h5 (4 regions of 8 dimensions, some images fewer), globals.h5 (6).

    12 images to train with, 6 to validate, 6 to test; two captions an image, three for the first.
    """
    import h5py

    folder = tmp_path_factory.mktemp("tiny_data")
    rng = np.random.default_rng(0)
    sentences = (" ".join(words) for words in itertools.product(
        ["a red", "the blue", "a small", "the big old"], ["dog", "cat", "man"], ["runs", "sits", "jumps"],
        ["on grass", "in the snow"],
    ))
    splits = ["train"] * 12 + ["val"] * 6 + ["test"] * 6
    images = [
        {"filename": f"photo{i:02d}.jpg", "split": split,
         "sentences": [{"raw": next(sentences), "sentid": 10 * i + j} for j in range(3 if i in (0, 12, 18) else 2)]}
        for i, split in enumerate(splits)
    ]
    (folder / "captions.json").write_text(json.dumps({"dataset": "tiny", "images": images}), encoding="utf-8")
    ids = [Path(image["filename"]).stem for image in images]
    contents = {
        "regions": {"regions": rng.normal(size=(24, 4, 8)), "region_count": rng.integers(2, 5, 24).astype(np.int32)},
        "globals": {"globals": rng.normal(size=(24, 6))},
    }
    for name, arrays in contents.items():
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.attrs["format"], file.attrs["version"], file.attrs["provenance"] = "ascl-features", 1, "{}"
            file.create_dataset("image_ids", data=ids, dtype=h5py.string_dtype())
            for key, array in arrays.items():
                file.create_dataset(key, data=array if key == "region_count" else array.astype(np.float32))
    return folder


@pytest.fixture(scope="session")
def tool() -> Callable[[str], Callable[[list[str]], int]]:
    """Name of a program in tools/ -> (arguments) -> exit status of the command that it stands for, in this process."""
    def load(name: str) -> Callable[[list[str]], int]:
        program = (REPOSITORY / "tools" / f"{name}.py").read_text(encoding="utf-8")
        words = re.findall(r'"(\w+)", ', program.partition("main([")[2])
        return lambda arguments: main([*words, *arguments])

    return load


@pytest.fixture(scope="session")
def train_arguments(tiny_bert) -> Callable[..., list[str]]:
    """(data folder, run folder, *more) -> a command line of tools/train.py: 4 steps, 3 of them an epoch, on the CPU."""
    def arguments(data: Path, out: Path, *more: str) -> list[str]:
        return [
            "--out", str(out), "--data.captions", str(data / "captions.json"),
            "--data.features", f"[{data / 'regions.h5'}, {data / 'globals.h5'}]",
            "--data.prepare", "ascl prepare --dataset tiny", "--text.encoder", str(tiny_bert),
            "--model.embed_dim", "8", "--model.num_heads", "2", "--train.batch_size", "8", "--train.workers", "0",
            "--train.max_steps", "4", "--train.validate_every", "2", "--train.log_every", "1", *more,
        ]

    return arguments


@pytest.fixture(scope="session")
def started_together() -> Callable[..., list[Program]]:
    """(words of a Python command, environment) -> its two processes, as torchrun starts them, when both have ended.

    `tests` can be imported there.
    """
    def run(*arguments: object, **environment: str) -> list[Program]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        started = [
            Program(*arguments, cwd=REPOSITORY, environment={
                **together, "RANK": str(rank), "LOCAL_RANK": str(rank), "OMP_NUM_THREADS": "1", **environment})
            for rank in range(2)
        ]
        try:
            for program in started:
                program.wait(240)
        finally:
            for program in started:
                program.kill()
        return started

    return run


@pytest.fixture(scope="session")
def two_processes(started_together) -> Callable[..., None]:
    """(words of a Python command) -> run it in two processes that train together on the CPU; both must succeed."""
    def run(*arguments: object) -> None:
        ended = started_together(*arguments, ACCELERATE_USE_CPU="true")
        assert [program.status for program in ended] == [0, 0], "\n".join(program.complained() for program in ended)

    return run


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)
