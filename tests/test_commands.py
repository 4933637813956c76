"""Every command and every Python example of README, CONTRIBUTING and docs/, run in small and in this process.

A page's examples run in their order in a folder that holds what the pages name: data sets, runs and photographs, in
small. A command that cannot run here is parsed by its own parser, and `NOT_RUN` says why it is not run.
"""

from __future__ import annotations

import base64
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ascl.cli import main
from ascl.cli.program import command_of, parser_of
from ascl.core.hashing import sha256_of
from ascl.image_copy.descriptors import published
from ascl.image_copy.descriptors.published import PublishedFile
from ascl.settings.base import configs

from .image_copy.sscd_files import TorchvisionModel, randomized, write_traced

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").rglob("*.md"))]
PROGRAMS = ("ascl", "python", "make", "pip", "accelerate")  # a line of a block without language is a command of these
DOWNLOADS, OWN_WEIGHTS = "downloads gigabytes", "needs weights that their publisher has to be asked for"
NOT_RUN = {  # pattern of a command -> why it is not run
    r"make( |$)": "makes an environment of its own; `make test` runs this file",
    r"pip install ": "needs a package registry",
    r"accelerate launch ": "starts processes of its own",
    r"\.venv/bin/python -m pytest ": "runs the test suite",
    r"python -m tests\.reliability": "takes an hour; tests/test_reliability.py runs a short round",
    r"ascl --print_completion ": "writes into the home folder; tests/cli/test_program.py prints it",
    r"ascl prepare --dataset (coco|flickr30k|flickr8k)(?!.* --check)": DOWNLOADS,
    r"ascl extract regions .*--backend (bottom-up|detectron2|torchvision|patches)": OWN_WEIGHTS,
    r"ascl extract .* --images \.\./shared/": "needs the photographs of Flickr8k",
    r"ascl .*runs/ascl-0": "needs the features of Flickr8k",
    r"ascl .*--study all": "hundreds of runs",
    r"ascl figures (samples|length|alignment|temperature|leak|trained-weight) ": "needs a finished study",
    r"ascl .*runs/lab/": "as a study printed it",
}
SMALL = {  # command -> options that make it small; the last one given wins
    "prepare": ["--train", "12", "--val", "5", "--test", "5", "--detector_steps", "2"],
    "extract regions": ["--backbone", "squeezenet1_1", "--weights", "random:0", "--input_size", "64", "--grid", "2"],
    "extract globals": ["--backbone", "squeezenet1_1", "--weights", "random:0", "--input_size", "64"],
    "copy index": ["--model", "squeezenet1_1", "--weights", "random:0", "--input_size", "32"],
    "copy calibrate": ["--false_positive_rate", "0.2"],
    "copy benchmark": ["--references", "6", "--queries", "6", "--distractors", "2", "--reverse_crops", "2",
                       "--background", "4"],
    "ablate": ["--dry_run"],
}
TINY = {
    "model": {"embed_dim": 8, "num_heads": 2},
    "train": {"max_steps": 2, "batch_size": 8, "validate_every": 1, "log_every": 1, "workers": 0},
}
TINY_COPY: dict[str, Any] = {
    "data": {"workers": 0, "validation_share": 0.3, "cache_side": None}, "views": {"size": 32},
    "model": {"backbone": "shufflenet_v2_x0_5", "weights": "random:0", "input_size": 32},
    "train": {"max_steps": 2, "batch_size": 4, "validate_every": 2, "mixed_precision": "no"},
}
TINY_METHODS = {
    "sscd": {}, "sscd_small": {}, "rdcd": {"rdcd": {"queue_size": 16}},
    "asl": {"model": {"last_stride": 2, "projector_hidden": 8, "projector_dim": 8}},
}


class Block(NamedTuple):
    """A fenced block of a page: where its text begins, its language, and the text."""

    line: int
    language: str
    text: str


class Example(NamedTuple):
    """A command as a page has it, in one line."""

    place: str
    text: str

    @property
    def why_not(self) -> str | None:
        return next((why for pattern, why in NOT_RUN.items() if re.match(pattern, self.as_ascl)), None)

    @property
    def as_ascl(self) -> str:
        """With `ascl` for `python -m ascl` and for a program of tools/."""
        tool = re.match(r"python (?:-m ascl|tools/(\w+)\.py)(?= |$)", self.text)
        if tool is None:
            return self.text
        return "ascl" + "".join(f" {word}" for word in words_of_tool(tool[1])) + self.text[tool.end():]

    def words(self) -> list[str]:
        """Arguments of `ascl`; a pattern of files becomes those that are there."""
        return [found for word in shlex.split(self.as_ascl)[1:]
                for found in (sorted(map(str, Path().glob(word))) if "*" in word else [word])]


def words_of_tool(name: str | None) -> list[str]:
    if name is None:
        return []
    program = (REPOSITORY / "tools" / f"{name}.py").read_text(encoding="utf-8")
    return re.findall(r'"(\w+)", ', program.partition("main([")[2])


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", text, flags=re.MULTILINE | re.DOTALL):
        yield Block(text[: found.start()].count("\n") + 2, found[2], found[3])


def examples(page: Path, block: Block) -> list[Example]:
    """The commands of a block; where it has no language, a line is one that begins with a known program."""
    if block.language not in ("", "bash", "console", "sh", "shell"):
        return []
    found = []
    joined = block.text.replace("\\\n", "\0")
    for number, line in enumerate(joined.split("\n")):
        text = " ".join(line.replace("\0", " ").strip().removeprefix("$ ").split())
        text = re.sub(r"^(\w+=\S+ )+", "", re.sub(r" +#.*", "", text))
        if text and not text.startswith("#") and (block.language or text.startswith(PROGRAMS)):
            lines_before = joined.split("\n")[:number]
            at = block.line + number + sum(before.count("\0") for before in lines_before)
            found.append(Example(f"{page.relative_to(REPOSITORY)}, line {at}", text))
    return found


EXAMPLES = [example for page in PAGES for block in blocks(page) for example in examples(page, block)]


def name_of(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


WITH_COMMANDS = [page for page in PAGES if any(examples(page, block) for block in blocks(page))]
WITH_EXAMPLES = [page for page in PAGES if any(
    block.language == "python" or any(one.why_not is None for one in examples(page, block)) for block in blocks(page)
)]


@pytest.mark.parametrize("page", WITH_COMMANDS, ids=name_of)
def test_every_command_has_right_options(page, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    for example in (example for block in blocks(page) for example in examples(page, block)):
        text = example.as_ascl
        if text.startswith("accelerate launch tools/"):
            text = Example(example.place, "python" + text.removeprefix("accelerate launch")).as_ascl
        if text.startswith("ascl ") and not text.startswith("ascl --print_completion"):
            name, words = command_of(Example(example.place, text).words())
            assert name, f"{example.place}: no such command: {example.text}"
            if "--help" not in words and "--print_config" not in words:
                parser_of(name).read(words)
        else:
            assert example.why_not, f"{example.place}: say in NOT_RUN why it is not run: {example.text}"


def test_every_reason_is_needed():
    unused = [pattern for pattern in NOT_RUN if not any(re.match(pattern, one.as_ascl) for one in EXAMPLES)]
    assert unused == []


@pytest.mark.parametrize("page", WITH_EXAMPLES, ids=name_of)
def test_examples_run(page, workplace, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "work"
    shutil.copytree(workplace, folder, symlinks=True)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    use_small_sscd(monkeypatch, workplace)
    names: dict[str, Any] = readers_own() if page.name == "README.md" else {}
    for block in blocks(page):
        if block.language == "python":
            exec(compile(block.text, f"{page.name}, line {block.line}", "exec"), names)
        for example in examples(page, block):
            if example.why_not is None:
                status = main(small(example.words()))
                assert status == 0, f"{example.place}: {example.text}\n{capsys.readouterr().err}"


def readers_own() -> dict[str, Any]:
    """What the Python examples of README leave to the reader: features, pictures, an index."""
    words = ["copy", "index", "photos", "--index", "idx", "--model", "runs/rdcd", "--workers", "0"]
    assert main(words) == 0
    return {"regions": torch.randn(3, 4, 8), "globals_": torch.randn(3, 6),
            "pictures": [Image.open("upload.jpg").convert("RGB")]}


def small(words: list[str]) -> list[str]:
    """The same command, small; what it would make is removed first."""
    name, rest = command_of(words)
    assert name is not None
    if "--help" in rest or "--print_config" in rest or "--check" in rest:
        return words
    more = SMALL.get(name, []) if name != "copy index" or any("resnet" in word for word in rest) else []
    actions = parser_of(name).actions
    more = more + (["--workers", "0"] if "workers" in actions else [])
    made = "index" if name == "copy index" else "out"
    for option, value in zip(rest, rest[1:], strict=False):
        if option == f"--{made}" and "--shard" not in rest:
            remove(Path(value))
    return [*words, *more]


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def workplace(tmp_path_factory, tiny_data, tiny_bert) -> Path:
    """Folder with what the pages name, in small."""
    folder = tmp_path_factory.mktemp("workplace")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("ACCELERATE_USE_CPU", "true")
        for name in ("coco", "flickr30k", "flickr8k", "mine"):
            make_data_set(Path("data") / name, tiny_data)
            write_settings(name, {"data": files_of(Path("data") / name), "text": {"encoder": str(tiny_bert)}, **TINY})
        make_other_split(Path("data") / "flickr30k")
        precomp = yaml.safe_load((configs() / "coco_precomp.yaml").read_text(encoding="utf-8"))
        write_settings("coco_precomp", {**precomp, "text": {"encoder": str(tiny_bert)}, **TINY})
        make_precomp(Path("data") / "coco_precomp")
        for name in ("scenes", "scenes_lab"):
            scenes = yaml.safe_load((configs() / f"{name}.yaml").read_text(encoding="utf-8"))
            write_settings(name, merged(scenes, TINY))
        published = yaml.safe_load((configs() / "baselines" / "published" / "vse.yaml").read_text(encoding="utf-8"))
        write_settings("baselines/published/vse", merged(published, TINY))
        for method, more in TINY_METHODS.items():
            preset = yaml.safe_load((configs() / "image_copy" / f"{method}.yaml").read_text(encoding="utf-8"))
            write_settings(f"image_copy/{method}", merged(merged(preset, TINY_COPY), more))
        make_photographs(Path("photos"), 24, seed=0)
        make_photographs(Path("unrelated"), 12, seed=1)
        shutil.copy("photos/photo03.jpg", "photos/cat.jpg")
        Path("photos/photo03.jpg").unlink()
        Image.open("photos/cat.jpg").crop((4, 4, 60, 44)).save("upload.jpg")
        use_small_sscd(patch, folder)
        assert main(["train", "--dataset", "flickr30k", "--out", "runs/f30k"]) == 0
        Path("trials.yaml").write_text("grid: {optimizer.lr: [1.0e-3, 2.0e-3]}", encoding="utf-8")
        np.save("sims.npy", np.random.default_rng(0).normal(size=(10, 50)))
        for name in ("coco", "a", "b", "demo"):
            shutil.copytree("runs/f30k", f"runs/{name}")
        words = ["extract", "regions", "--images", "photos", "--out", "data/photos/regions.h5"]
        assert main(small(words)) == 0
        for method in ("rdcd", "asl"):
            words = ["copy", "train", "--method", method, "--images", "photos", "--out", f"runs/{method}"]
            assert main([*words, *(["--teacher", "sscd_disc_mixup"] if method == "rdcd" else [])]) == 0
    return folder


def merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    both = {key: merged(first[key], value) if isinstance(first.get(key), dict) and isinstance(value, dict) else value
            for key, value in second.items()}
    return {**first, **both}


def write_settings(name: str, values: dict[str, Any]) -> None:
    path = Path("configs") / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump({"dataset": name, **values} if "/" not in name else values), encoding="utf-8")


def files_of(folder: Path) -> dict[str, Any]:
    return {"captions": f"{folder}/dataset_{folder.name}.json", "images": f"{folder}/images",
            "features": [f"{folder}/regions.h5", f"{folder}/globals.h5"], "prepare": "see docs/data.md"}


def make_data_set(folder: Path, tiny_data: Path) -> None:
    """`tiny_data` with 10 images to train with, 4 to validate, 10 to test; photographs; one id that a page names."""
    (folder / "images").mkdir(parents=True)
    new = {"photo23": "1000092795"}
    content = json.loads((tiny_data / "captions.json").read_text(encoding="utf-8"))
    for number, image in enumerate(content["images"]):
        stem = Path(image["filename"]).stem
        split = "train" if number < 10 else "val" if number < 14 else "test"
        image |= {"filename": f"{new.get(stem, stem)}.jpg", "split": split, "cocoid": number + 1}
        picture(number, seed=2).save(folder / "images" / image["filename"])
    (folder / f"dataset_{folder.name}.json").write_text(json.dumps(content), encoding="utf-8")
    for name in ("regions.h5", "globals.h5"):
        shutil.copy(tiny_data / name, folder / name)
        with h5py.File(folder / name, "r+") as file:
            ids = [new.get(one, one) for one in file["image_ids"].asstr()[:]]
            del file["image_ids"]
            file.create_dataset("image_ids", data=ids, dtype=h5py.string_dtype())
    make_tsv(Path("trainval_36") / "part.tsv", images=24)


def make_other_split(folder: Path) -> None:
    """The same photographs in three lists, and their captions as Flickr30K's publisher has them."""
    images = json.loads((folder / f"dataset_{folder.name}.json").read_text(encoding="utf-8"))["images"]
    for split, of in (("train", images[::2]), ("val", images[1::4]), ("test", images[3::4])):
        (folder / f"{split}.txt").write_text("".join(f"{Path(image['filename']).stem}\n" for image in of))
    (folder / "results_20130124.token").write_text("".join(
        f"{image['filename']}#{number}\t{sentence['raw']}\n"
        for image in images for number, sentence in enumerate(image["sentences"])), encoding="utf-8")


def make_precomp(folder: Path) -> None:
    """SCAN's folder: 10 images a split, each with five captions and its row; five rows an image in `testall`."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "dev", "test", "testall"):
        regions = rng.normal(size=(10, 4, 8)).astype(np.float32)
        np.save(folder / f"{split}_ims.npy", regions.repeat(5, axis=0) if split == "testall" else regions)
        (folder / f"{split}_caps.txt").write_text("".join(f"a dog runs {n}\n" for n in range(50)), encoding="utf-8")


def make_tsv(path: Path, images: int) -> None:
    """Features as bottom-up attention writes them, named by COCO's numbers."""
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    rows = []
    for number in range(1, images + 1):
        boxes, features = np.sort(rng.random((4, 4), np.float32)), rng.random((4, 8), np.float32)
        arrays = [base64.b64encode(array.tobytes()).decode() for array in (boxes, features)]
        rows.append("\t".join([str(number), "64", "48", "4", *arrays]))
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")


def make_photographs(folder: Path, count: int, seed: int) -> None:
    folder.mkdir()
    for number in range(count):
        picture(number, seed).save(folder / f"photo{number:02d}.jpg", quality=95)


def picture(number: int, seed: int) -> Image.Image:
    """64 x 48 pixels of smooth colors, each picture its own."""
    rng = np.random.default_rng([seed, number])
    return Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((64, 48), Image.Resampling.BICUBIC)


def use_small_sscd(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Put a small network among the downloaded files, in place of the published one."""
    patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
    path = published.place_of(published.DEFAULT)
    if not path.exists():
        path.parent.mkdir(parents=True)
        write_traced(randomized(TorchvisionModel(deep=True)), path)
    patch.setitem(published.SSCD, published.DEFAULT, PublishedFile("small", path.stat().st_size, sha256_of(path)))
