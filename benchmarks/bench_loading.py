"""Measure the cost of loading in training: steps fed by the loader, compared with the same batches in memory.

  python benchmarks/bench_loading.py                   prints a table and adds its rows to benchmarks/results.csv
  python benchmarks/bench_loading.py --cold            every round reads from disk instead of the page cache
  python benchmarks/bench_loading.py --quick           tiny sizes, to test the program; not a measurement

Features are generated in this project's layout, in --scratch, which needs about 600 MB and is cleaned up at the end. A
step is AsCL's whole step: encoding, generated positives and negatives, scores, loss, backward pass and Adam. Word
vectors come from a table in memory. See benchmarks/README.md.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import h5py
import measuring
import numpy as np
import scoring_job
import torch
from bench_convert import drop_from_cache
from measuring import number
from torch import Tensor

from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet
from ascl.data.pairs import Batch, PairDataset
from ascl.data.stores.open import open_features
from ascl.data.stores.writing import create_rows, write_frame
from ascl.models import AsCL
from ascl.models.base import TextEncoder
from ascl.retrieval import build
from ascl.settings.retrieval import Config, TrainConfig

WORKERS = (0, 1, 2, 4)
BATCH, STEPS, IMAGES, PER_IMAGE = 64, 20, 2048, 5
WARM = 3                        # batches before each measurement, plus one per worker, because these come at once
WORD_DIM = 384
VOCABULARY = ("a the and with on in of two at is dog cat man woman hat ball child street snow grass water table red "
              "blue small big young old black white running sitting holding jumping playing wearing looks").split()


@dataclass(frozen=True)
class Features:
    """The image features of a data set, and the size of the model that is trained on them."""

    regions: int
    dim: int
    dtype: str
    embed_dim: int
    heads: int

    @property
    def text(self) -> str:
        return f"{self.regions} x {self.dim:,} in {self.dtype}, D {self.embed_dim}, H {self.heads}"


CASES = {
    "flickr8k_small": Features(36, 1280, "float16", 256, 2),        # as in configs/flickr8k_small.yaml
    "coco": Features(36, 2048, "float32", 1024, 8),                 # bottom-up attention; the defaults of a model
}
QUICK = {name: Features(3, 16, case.dtype, 16, 2) for name, case in CASES.items()}


@dataclass(frozen=True)
class Round:
    """The times of one round."""

    loaded: float       # seconds of a step with the loader
    memory: float       # seconds of a step from memory
    waited: float       # share of the step with the loader spent waiting for the batch
    alone: float        # seconds of a batch of the loader alone
    first: float        # seconds until the loader's first batch


class WordsInMemory(TextEncoder):
    """A substitute for a text encoder: each word has a fixed random vector."""

    def __init__(self) -> None:
        super().__init__()
        self.dim = WORD_DIM
        self.table = torch.nn.Embedding(len(VOCABULARY) + 1, WORD_DIM).requires_grad_(False)
        self.row_of = {word: row for row, word in enumerate(VOCABULARY)}

    def forward(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        rows = [[self.row_of.get(word.strip("."), len(VOCABULARY)) for word in text.split()] for text in texts]
        longest = max(map(len, rows))
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.arange(longest) < torch.tensor(list(map(len, rows))).unsqueeze(1)
        device = self.table.weight.device
        return self.table(padded.to(device)), mask.to(device)


class Step:
    """One training step of a model, as in `training.fit`."""

    def __init__(self, case: Features, device: str, dtype: str) -> None:
        torch.manual_seed(0)
        self.device, self.autocast = torch.device(device), dtype == "bfloat16"
        self.model = AsCL(case.dim, case.dim, WordsInMemory(), case.embed_dim, case.heads).to(self.device)
        self.objective = build.build_objective(Config())
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.Adam(trained, lr=1e-5)

    def __call__(self, batch: Batch) -> None:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
            loss = self.objective(self.model, batch, 0, torch.Generator(self.device).manual_seed(0))["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--case", action="append", choices=list(CASES), help="may be repeated (default: all)")
    result.add_argument("--workers", action="append", type=int, help=f"may be repeated (default: {WORKERS})")
    result.add_argument("--shape", metavar="D,H", help="embed_dim and heads of every case's model (default: its own)")
    result.add_argument("--batch", type=int, help=f"pairs per step (default: {BATCH})")
    result.add_argument("--steps", type=int, help=f"per repeat (default: {STEPS})")
    result.add_argument("--images", type=int, help=f"in the generated file (default: {IMAGES})")
    result.add_argument("--repeats", type=int, default=3, help="report the median of these (default: %(default)s)")
    result.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32",
                        help="bfloat16 is autocast (default: %(default)s)")
    result.add_argument("--cold", action="store_true", help="drop the file from the page cache before each round")
    result.add_argument("--scratch", metavar="FOLDER", help="folder for the file (default: a temporary folder)")
    result.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    result.add_argument("--quick", action="store_true", help="tiny sizes; writes only to a given --results")
    result.add_argument("--results", metavar="FILE", help="CSV to add to (default: benchmarks/results.csv)")
    return result


def generate(path: Path, case: Features, images: int) -> None:
    """Write a feature file of `images` images."""
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        write_frame(file, [f"image{row}" for row in range(images)], {}, {})
        for name, shape in (("regions", (case.regions, case.dim)), ("globals", (case.dim,))):
            some = rng.random((min(64, images), *shape), dtype=np.float32).astype(case.dtype)
            rows = create_rows(file, name, some, images)
            for start in range(0, images, len(some)):
                rows[start : start + len(some)] = some[: images - start]


def make_pairs(config: Config, path: Path, images: int) -> PairDataset:
    """Return the file's images with five generated captions each, with COCO's lengths."""
    lengths, _, _ = scoring_job.text_lengths(None, "test", images * PER_IMAGE)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(VOCABULARY, length)) + "." for length in lengths]
    names = [f"image{row}" for row in range(images)]
    captions = CaptionSet(names, texts, np.repeat(np.arange(images), PER_IMAGE), "generated")
    return build.build_pairs(config, captions, open_features([path]))


def run(step: Step, batches: Iterable[Batch]) -> tuple[float, float]:
    """Return the seconds of a step, one per batch, and those of them spent waiting for the batch."""
    waited, count, started = 0.0, 0, time.perf_counter()
    iterator = iter(batches)
    while True:
        asked = time.perf_counter()
        batch = next(iterator, None)
        waited += time.perf_counter() - asked
        if batch is None:
            break
        step(batch)
        count += 1
    if step.device.type == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - started) / count, waited / count


def measure(
    step: Step, pairs: PairDataset, workers: int, path: Path, options: argparse.Namespace
) -> list[Round]:
    """Measure loader and memory in turn, so that a temporary slowdown affects both."""
    batch, steps, warm = options.batch, options.steps, WARM + workers
    config = Config(train=TrainConfig(batch_size=batch, workers=workers))
    loader = build.build_batches(config, pairs, process=0, processes=1)
    if loader.steps_per_epoch < warm + steps:
        raise DataError(f"--images {len(pairs) // PER_IMAGE} give {loader.steps_per_epoch} batches of {batch}, but "
                        f"{warm + steps} are needed: give more --images or fewer --steps")
    rounds = []
    for epoch in range(options.repeats):
        if options.cold:
            drop_from_cache(path)
        with closing(loader(2 * epoch, 0)) as loaded:
            started = time.perf_counter()
            one = next(loaded)
            first = time.perf_counter() - started
            run(step, itertools.chain([one], itertools.islice(loaded, warm - 1)))
            seconds, waited = run(step, itertools.islice(loaded, steps))
        if options.cold:
            drop_from_cache(path)
        with closing(loader(2 * epoch + 1, 0)) as loaded:
            list(itertools.islice(loaded, warm))
            started = time.perf_counter()
            in_memory = list(itertools.islice(loaded, steps))
            alone = (time.perf_counter() - started) / steps
        rounds.append(Round(seconds, run(step, in_memory)[0], waited / seconds, alone, first))
        print(f"workers {workers}, round {epoch + 1}: {seconds:.3g} s per step, {rounds[-1].memory:.3g} s from memory",
              file=sys.stderr)
    return rounds


def figures(what: str, workers: int, rounds: list[Round], note: str) -> list[tuple[str, str, str, str]]:
    """Return name, value, unit and note of each row."""
    def spread(values: list[float], scale: float = 1) -> str:
        return f"{number(min(values) * scale)} to {number(max(values) * scale)}"

    ratios = [one.loaded / one.memory for one in rounds]
    loaded, memory, alone = ([getattr(one, name) for one in rounds] for name in ("loaded", "memory", "alone"))
    waited, first = (median(getattr(one, name) for one in rounds) for name in ("waited", "first"))
    text = (f"median of {len(rounds)} ({spread(ratios)} times); a step {number(median(loaded))} s, from memory "
            f"{number(median(memory))} s; {100 * waited:.1f} % of the time waiting for batches; first batch after "
            f"{number(first)} s; {note}")
    where = f"{what}, {workers} workers"
    return [
        (f"loading, {where}: step time against the same batches in memory", number(median(ratios)), "times", text),
        (f"loading, {where}: a batch of the loader alone", number(median(alone) * 1000), "ms",
         f"median of {len(rounds)} ({spread(alone, 1000)} ms), nothing else running; {note}"),
    ]


def table(measured: list[tuple[str, int, list[Round]]]) -> str:
    """Return a Markdown table."""
    lines = ["| | workers | step (s) | from memory (s) | times | waiting (%) | loader alone (ms a batch) | first batch "
             "(s) |", "|---|--:|--:|--:|--:|--:|--:|--:|"]
    for what, workers, rounds in measured:
        of = {name: median(getattr(one, name) for one in rounds) for name in Round.__dataclass_fields__}
        ratio = median(one.loaded / one.memory for one in rounds)
        lines.append(f"| {what} | {workers} | {number(of['loaded'])} | {number(of['memory'])} | {number(ratio)} | "
                     f"{100 * of['waited']:.1f} | {number(1000 * of['alone'])} | {number(of['first'])} |")
    return "\n".join(lines)


def check_options(options: argparse.Namespace) -> None:
    """Fill in defaults and check the options.

    Raises:
        DataError: a number is out of range, or the results file cannot be read.
    """
    defaults = {"batch": 4, "steps": 2, "images": 16, "workers": [0, 1]} if options.quick else {
        "batch": BATCH, "steps": STEPS, "images": IMAGES, "workers": list(WORKERS)}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    for name in ("batch", "steps", "images", "repeats"):
        if getattr(options, name) < 1:
            raise DataError(f"--{name} {getattr(options, name)}: must be at least 1")
    measuring.check_results(options)


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    lines: list[tuple[str, str, str, str]] = []
    measured: list[tuple[str, int, list[Round]]] = []
    try:
        check_options(options)
        shape = None if options.shape is None else measuring.shape_of(options.shape)
        device = measuring.device_of(options)
        ran = measuring.what_ran(__file__, arguments, device)
        note = f"{options.images:,} images of 5 captions, {options.steps} steps after warm-up, " + (
            "the file dropped from the page cache before" if options.cold else "the file in the page cache")
        for name in options.case or CASES:
            case = (QUICK if options.quick else CASES)[name]
            if shape is not None:
                case = Features(case.regions, case.dim, case.dtype, *shape)
            step = Step(case, device, options.dtype)
            what = f"{name}: {options.batch} images of {case.text}, {options.dtype}" + (", cold" * options.cold)
            with tempfile.TemporaryDirectory(dir=options.scratch, prefix="bench_loading") as folder:
                path = Path(folder) / "features.h5"
                print(f"generating {path}: {options.images:,} images", file=sys.stderr)
                generate(path, case, options.images)
                pairs = make_pairs(Config(), path, options.images)
                for workers in options.workers:
                    measured.append((what, workers, measure(step, pairs, workers, path, options)))
                    lines += figures(*measured[-1], note)
        print(table(measured), "", *(f"- {what}: {text}" for what, _, _, text in lines), sep="\n")
        measuring.keep(options, ran, lines)
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
