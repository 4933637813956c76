"""Measure feature backends and descriptors: images per second, cost of decoding, bytes on disk, memory over time.

  python benchmarks/bench_extraction.py                 every backend; prints a table, adds to benchmarks/results.csv
  python benchmarks/bench_extraction.py --memory        one small backend over 10,000 images: is memory constant?
  python benchmarks/bench_extraction.py --quick         small networks, few images, to test the program

Networks have random weights, which do not affect their speed (the number of regions is fixed). Real photographs are
scaled to COCO's size (short side 480) in a separate folder. Each extraction is compared with the network alone on
prepared images in memory, in the same process: the ratio shows the cost of the rest.
"""

from __future__ import annotations

import argparse
import importlib.util
import multiprocessing
import os
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import measuring
import numpy as np
import psutil
import results
import torch
import torchvision
from measuring import MIB, number
from PIL import Image

from ascl.core.errors import DataError
from ascl.features import BATCH_SIZE, make_backend
from ascl.features.writer import Backend, extract
from ascl.image_copy.descriptors.descriptor import Describer, Descriptor, DescriptorSettings
from ascl.images.find import ImageFile, find_images
from ascl.images.loader import Decoder, batches_of_one_shape

PHOTOGRAPHS = results.REPOSITORY.parent / "shared" / "data" / "flickr8k"
COCO_SHORT_SIDE = 480
MANY = 10_000
DESCRIPTOR = "descriptor"
ENCODER, RESNET152 = "encoder", "resnet152.pth"


@dataclass(frozen=True)
class Case:
    """One backend: its name in rows, and arguments of the extraction programs or settings of a descriptor."""

    name: str
    kind: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class Rates:
    """The rates of one case, in images per second."""

    images: int
    extraction: float
    network: float
    decoding: float
    waiting: float  # for decoding, share of the extraction's time
    image_bytes: float


def cases(quick: bool, scratch: Path) -> list[Case]:
    untrained = {"weights": "random:0"}
    if quick:
        small = untrained | {"backbone": "mobilenet_v2", "layer": "features.3", "input_size": 32}
        return [Case("grid, small", "grid", small), Case("globals, small", "classifier", small),
                Case("descriptor, small", DESCRIPTOR, untrained | {"backbone": "mobilenet_v2", "input_size": 32})]
    half = {"precision": "float16"} if torch.cuda.is_available() else {}
    resnet152 = {"backbone": "resnet152", "weights": str(scratch / RESNET152)}
    kinds = [
        Case("globals, resnet152 at 224", "classifier", resnet152),
        Case("grid 6x6, resnet152 at 224", "grid", resnet152),
        Case("grid 6x6, mobilenet_v2 at 224", "grid", untrained | {"backbone": "mobilenet_v2"}),
        Case("patches 6x6, CLIP ViT-B/16 at 224", "patches", {"model": str(scratch / ENCODER)}),
        Case("bottom-up attention, resnet101-C4 at 600", "bottom-up", untrained),
        Case("torchvision fasterrcnn_resnet50_fpn_v2 at 800", "torchvision", untrained),
    ]
    described = {"descriptor of 64 numbers, efficientnet_b0 at 288": {"backbone": "efficientnet_b0"},
                 "descriptor of 64 numbers, mobilenet_v2 at 160": {"backbone": "mobilenet_v2", "input_size": 160},
                 "descriptor of 512 numbers, resnet50 at 288": {"backbone": "resnet50", "dim": 512}}
    kinds += [Case(name, DESCRIPTOR, untrained | settings) for name, settings in described.items()]
    if importlib.util.find_spec("detectron2"):
        zoo = {"config": "COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml"}
        kinds.append(Case("detectron2 faster_rcnn_R_50_FPN_3x at 800", "detectron2", untrained | zoo))
    return kinds + [Case(f"{case.name}, float16", case.kind, case.arguments | half) for case in kinds if half]


def backend_of(case: Case, device: str) -> Backend:
    """Return the backend of a case."""
    if case.kind != DESCRIPTOR:
        return make_backend(case.kind, case.arguments, device)
    arguments = dict(case.arguments)
    precision = arguments.pop("precision", "float32")
    settings = DescriptorSettings(**arguments)
    return Describer(
        Descriptor(settings), asdict(settings), model=case.name, input_size=settings.input_size, resize=settings.resize,
        device=device, precision=precision,
    )


def write_resnet152(path: Path) -> None:
    """Write random weights whose activations do not grow from block to block, which would overflow float16."""
    torch.manual_seed(0)
    model = torchvision.models.resnet152(weights=None)
    for name, parameter in model.named_parameters():
        if name.endswith("bn3.weight"):
            torch.nn.init.constant_(parameter, 0.1)
    torch.save(model.state_dict(), path)


def write_encoder(folder: Path) -> None:
    """Write CLIP's ViT-B/16 with random weights, as a folder for `--model`."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    torch.manual_seed(0)
    CLIPVisionModel(CLIPVisionConfig(patch_size=16)).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def coco_sized(photographs: list[Path], folder: Path, count: int) -> list[Path]:
    """Write `count` photographs (repeated if too few) with short side 480, JPEG quality 90; return the paths."""
    paths = []
    for index in range(count):
        paths.append(folder / f"{index:06d}.jpg")
        with Image.open(photographs[index % len(photographs)]) as image:
            scale = COCO_SHORT_SIDE / min(image.size)
            size = (round(image.width * scale), round(image.height * scale))
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def measure(case: Case, images: Sequence[ImageFile], device: str, workers: int, seconds: float, folder: Path) -> Rates:
    """Measure the network alone, the extraction as users run it, and decoding alone, on the images that time allows."""
    multiprocessing.set_start_method("fork", force=True)  # as in the programs; a fork server started this process
    backend = backend_of(case, device)
    batch_size = BATCH_SIZE.get(case.kind, 32)
    paths = [image.path for image in images]
    decoder = Decoder(paths, range(min(len(images), 2 * batch_size)), backend.prepare, workers)
    decoded = (decoder.take() for _ in range(min(len(images), 2 * batch_size)))
    batch = max(batches_of_one_shape(decoded, batch_size), key=len)
    pixels = [image.pixels for image in batch if image.pixels is not None]
    sizes = np.array([image.size for image in batch], dtype=np.int32)
    backend.extract(pixels, sizes)  # the first pass selects algorithms and allocates memory
    started, passes = time.perf_counter(), 0
    while passes < 2 or time.perf_counter() - started < seconds / 4:
        backend.extract(pixels, sizes)
        passes += 1
    network = passes * len(pixels) / (time.perf_counter() - started)
    images = images[: max(batch_size, int(network * seconds))]
    out = folder / "features.h5"
    done = extract(backend, images, out, batch_size=batch_size, workers=workers, progress=False)
    image_bytes = out.stat().st_size / len(images)
    out.unlink()
    decoder = Decoder(paths, range(len(images)), backend.prepare, workers)
    started = time.perf_counter()
    for _ in images:
        decoder.take()
    decoding = len(images) / (time.perf_counter() - started)
    extraction = len(images) / done.seconds
    return Rates(len(images), extraction, network, decoding, done.waiting, image_bytes)


def own_bytes(process: psutil.Process) -> int:
    """Return a process's own memory; shared pages are divided among their processes (fork shares nearly all).

    Pages of files and libraries do not count, because the system can reclaim them.
    """
    rollup = Path(f"/proc/{process.pid}/smaps_rollup")
    try:
        if rollup.exists():
            lines = dict(line.split(":", 1) for line in rollup.read_text().splitlines()[1:])
            return int(lines["Pss_Anon"].split()[0]) * 1024
        return process.memory_info().rss
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError, KeyError):
        return 0


def memory_over(
    images: Sequence[ImageFile], case: Case, device: str, workers: int, folder: Path
) -> list[tuple[int, int]]:
    """Return (finished parts, bytes of this process and its workers), sampled ten times per second in an extraction."""
    multiprocessing.set_start_method("fork", force=True)
    backend = backend_of(case, device)
    out, samples, ended = folder / "many.h5", [], threading.Event()
    parts = Path(f"{out}.parts")

    def sample() -> None:
        me = psutil.Process()
        while not ended.wait(0.1):
            finished = len(list(parts.glob("[0-9]*.npz"))) if parts.exists() else 0
            samples.append((finished, sum(map(own_bytes, [me, *me.children(recursive=True)]))))

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        extract(backend, images, out, batch_size=32, workers=workers, progress=False)
    finally:
        ended.set()
        thread.join()
    return samples


def memory_rows(samples: list[tuple[int, int]], count: int) -> list[tuple[str, float, str, str]]:
    """Return the peak memory during the first tenth of the images and during the last."""
    last = max(finished for finished, _ in samples)
    early = max(size for finished, size in samples if finished <= max(1, last // 10))
    late = max(size for finished, size in samples if finished >= last - max(1, last // 10))
    note = "anonymous memory (shared pages counted once) of the process and its decoding workers, sampled ten times " \
           "per second; the end includes joining the parts"
    what = f"extraction of {count:,} images, largest memory"
    return [
        (f"{what}, first tenth", early / MIB, "MiB", note),
        (f"{what}, last tenth", late / MIB, "MiB", note),
        (f"{what}, last tenth against first", late / early, "times", note),
    ]


def rate_rows(case: Case, rates: Rates, workers: int) -> list[tuple[str, float, str, str]]:
    note = f"{rates.images} real photographs at 480 pixels (short side), {workers} decoding processes; the network " \
           f"alone, from memory: {number(rates.network)} images/s; decoding alone: {number(rates.decoding)} images/s"
    return [
        (f"extraction, {case.name}", rates.extraction, "images/s", note),
        (f"extraction, {case.name}, against the network alone", rates.extraction / rates.network, "ratio", note),
        (f"extraction, {case.name}, time waiting for decoding", 100 * rates.waiting, "%", note),
        (f"extraction, {case.name}, store in float16", rates.image_bytes / 1024, "KiB an image", note),
    ]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--images", metavar="FOLDER", help="photographs (default: those of the folder `shared`)")
    result.add_argument("--case", action="append", metavar="TEXT", help="only cases whose name has this; repeatable")
    result.add_argument("--seconds", type=float, default=40, help="approximate time per extraction (%(default)s)")
    result.add_argument("--workers", type=int, default=min(8, os.cpu_count() or 1), help="decoding processes")
    result.add_argument("--memory", action="store_true", help=f"measure memory over {MANY:,} images instead")
    result.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    result.add_argument("--quick", action="store_true", help="tiny sizes; writes only to a given --results")
    result.add_argument("--results", metavar="FILE", help="CSV to add to (default: benchmarks/results.csv)")
    return result


def photographs_of(options: argparse.Namespace) -> list[Path]:
    folder = options.images or PHOTOGRAPHS / ("images" if options.memory else "full1000")
    return find_images(folder).paths


def run(options: argparse.Namespace, device: str, scratch: Path) -> list[tuple[str, float, str, str]]:
    """Return name, value, unit and note of each row."""
    photographs = photographs_of(options)
    wanted = [
        case
        for case in cases(options.quick, scratch)
        if not options.case or any(text in case.name for text in options.case)
    ]
    if not wanted:
        raise DataError(f"--case {' '.join(options.case)}: no case has this in its name")
    if options.memory:
        count = 600 if options.quick else MANY
        folder = scratch / "many"
        folder.mkdir()
        for index in range(count):
            os.symlink(photographs[index % len(photographs)].resolve(), folder / f"{index:06d}.jpg")
        light = Case("grid", "grid", {"backbone": "mobilenet_v2", "weights": "random:0", "layer": "features.3",
                                      "input_size": 96})
        samples = measuring.in_own_process(memory_over, find_images(folder), light, device, options.workers, scratch)
        return memory_rows(samples, count)
    if any(case.kind == "patches" for case in wanted):
        write_encoder(scratch / ENCODER)
    if any(case.arguments.get("backbone") == "resnet152" for case in wanted):
        write_resnet152(scratch / RESNET152)
    (scratch / "images").mkdir()
    coco_sized(photographs, scratch / "images", 16 if options.quick else len(photographs))
    images = find_images(scratch / "images")
    figures = []
    for case in wanted:
        print(f"measuring: {case.name}", file=sys.stderr)
        seconds = 0.1 if options.quick else options.seconds
        rates = measuring.in_own_process(measure, case, images, device, options.workers, seconds, scratch)
        figures += rate_rows(case, rates, options.workers)
    return figures


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        measuring.check_results(options)
        device = measuring.device_of(options)
        ran = measuring.what_ran(__file__, arguments, device)
        with tempfile.TemporaryDirectory() as scratch:
            figures = run(options, device, Path(scratch))
        print("| | | |\n|---|--:|---|")
        print("\n".join(f"| {name} | {number(value)} | {unit} |" for name, value, unit, _ in figures), "",
              *(f"- {note}" for note in dict.fromkeys(note for *_, note in figures)), sep="\n")
        measuring.keep(options, ran, [(name, number(value), unit, note) for name, value, unit, note in figures])
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
