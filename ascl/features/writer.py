"""Features of many images into one HDF5 file, in parts, so that a kill at any moment costs one part at most.

While it runs, `OUT.parts/` holds `settings.json` and one npz for each 256 images; at the end they become `OUT`, and
the folder goes. Everything is written under another name and renamed, so `OUT` is either absent or whole.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import platform
import shutil
import signal
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal, Protocol

import h5py
import numpy as np
import PIL
import torch
import torchvision
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ascl.errors import DataError
from ascl.features.images import UnreadableImage, image_ids, load_image
from ascl.files import atomic_path, write_text

FORMAT, VERSION = "ascl-features", 1
FEATURES = ("regions", "globals")  # stored in the wished precision; boxes stay float32
CHUNK_BYTES = 65536


class Backend(Protocol):
    """Whatever turns images into features: a grid, a global vector, a detector."""

    settings: dict[str, Any]  # all that decides the numbers, fit for JSON

    @property
    def prepare(self) -> Callable[[Image.Image], np.ndarray]:
        """What the workers do with an RGB image; picklable."""

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """B prepared images and their (B, 2) width and height -> named arrays with B rows."""


@dataclass(frozen=True)
class Extraction:
    """What `extract` did."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    skipped: list[dict[str, str]]  # {"image", "reason"} of each unreadable image
    extracted: int  # images that this call went through, without those that an earlier call had done
    seconds: float

    def summary(self) -> str:
        """The lines that a tool prints."""
        shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in self.shapes.items())
        rate = f"{self.extracted / self.seconds:.1f} images/s" if self.extracted else "nothing was left to do"
        lines = [f"{self.path}: {shapes}", f"{self.extracted} images in {self.seconds:.1f} s: {rate}"]
        if self.skipped:
            lines.append(f"skipped {len(self.skipped)} unreadable images:")
            lines += [f"  {skip['image']}: {skip['reason']}" for skip in self.skipped]
        return "\n".join(lines)


def extract(
    backend: Backend,
    images: Sequence[Path],
    out: str | os.PathLike,
    *,
    batch_size: int = 32,
    workers: int = 2,
    dtype: Literal["float16", "float32"] = "float16",
    skip_unreadable: bool = False,
    part_size: int = 256,
    progress: bool = True,
) -> Extraction:
    """Run `backend` over `images` and write `out`; called again after a kill it goes on where it stopped.

    Args:
        backend: see `Backend`.
        images: files with different stems, which become the image ids, in this order (`find_images` gives them).
        out: the HDF5 file; layout in DESIGN's version 1: root attributes `format`, `version`, `provenance` (JSON),
            datasets `image_ids`, `image_sizes` (N, 2) width and height of the upright image, and those of the backend.
        batch_size: images a forward pass.
        workers: processes that decode; 0 decodes in this one.
        dtype: of the features on disk.
        skip_unreadable: leave unreadable images out, and say so in the result and the provenance, instead of stopping.
        part_size: images a part; what a kill can cost.
        progress: show a bar.

    Raises:
        DataError: an unreadable image (named); features that are not finite in `dtype`; `out` or its parts made of
            other images or with other settings (each difference is named).
    """
    started = time.perf_counter()
    out, parts = Path(out), Path(f"{out}.parts")
    settings = json.loads(json.dumps({**backend.settings, "dtype": dtype, "part_size": part_size, **digest(images)}))
    if out.exists():
        refuse_other_settings(out, settings_of(out), settings)
        shutil.rmtree(parts, ignore_errors=True)  # a kill between the last rename and the clearing leaves them
        return Extraction(out, shapes_of(out), provenance_of(out)["skipped"], 0, time.perf_counter() - started)
    claim(parts, settings)
    spans = [range(start, min(start + part_size, len(images))) for start in range(0, len(images), part_size)]
    todo = [span for span in spans if not part_path(parts, span).exists()]
    count = sum(map(len, todo))
    with tqdm(total=len(images), initial=len(images) - count, unit=" images", disable=not progress) as bar:
        for span, rows in run(backend, images, todo, batch_size, workers, skip_unreadable, bar):
            save_part(part_path(parts, span), rows, dtype)
    skipped = merge([part_path(parts, span) for span in spans], out, settings, skip_unreadable)
    shutil.rmtree(parts)
    return Extraction(out, shapes_of(out), skipped, count, time.perf_counter() - started)


def digest(images: Sequence[Path]) -> dict[str, Any]:
    """Number of images and a digest of their ids and sizes in bytes: parts are only good for the same images."""
    names = "\n".join(f"{name} {path.stat().st_size}" for name, path in zip(image_ids(images), images, strict=True))
    return {"images": len(images), "images_sha256": hashlib.sha256(names.encode()).hexdigest()}


def refuse_other_settings(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = [
        f"{key} was {found.get(key)!r} and is now {wanted.get(key)!r}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    ]
    if differing:
        raise DataError(
            f"{path} was made with other settings: {'; '.join(differing)}. "
            "Use those settings again, choose another output file, or delete this one"
        )


def claim(parts: Path, settings: dict[str, Any]) -> None:
    """Note the settings in the folder of parts, or check them against those of the parts that are there."""
    note = parts / "settings.json"
    if not note.exists():
        write_text(note, json.dumps(settings, indent=1))
    refuse_other_settings(parts, json.loads(note.read_text(encoding="utf-8")), settings)


def part_path(parts: Path, span: range) -> Path:
    return parts / f"{span.start:08d}.npz"


@dataclass(frozen=True)
class Decoded:
    index: int
    size: tuple[int, int]  # width and height of the upright image
    pixels: np.ndarray | None  # None where unreadable
    reason: str = ""


class ImageFiles(Dataset):
    """Decodes and prepares one image; an unreadable one comes back as such, for the main process to judge."""

    def __init__(self, images: Sequence[Path], prepare: Callable[[Image.Image], np.ndarray]) -> None:
        self.images, self.prepare = images, prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Decoded:
        try:
            image = load_image(self.images[index])
        except UnreadableImage as error:
            return Decoded(index, (0, 0), None, error.reason)
        return Decoded(index, image.size, self.prepare(image))


def leave_interrupts_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def run(
    backend: Backend,
    images: Sequence[Path],
    todo: Sequence[range],
    batch_size: int,
    workers: int,
    skip_unreadable: bool,
    bar: tqdm,
) -> Iterator[tuple[range, dict[str, np.ndarray]]]:
    """The rows of each part in turn. No batch reaches over the end of a part, so a resume computes the same batches."""
    batches = [list(span[i : i + batch_size]) for span in todo for i in range(0, len(span), batch_size)]
    loader = DataLoader(
        ImageFiles(images, backend.prepare),
        batch_sampler=batches,
        num_workers=workers,
        collate_fn=list,  # arrays through the pipe: /dev/shm is small in many containers
        worker_init_fn=leave_interrupts_to_the_parent,
    )
    decoded = iter(loader)
    for span in todo:
        rows: list[dict[str, np.ndarray]] = []
        for _ in range(0, len(span), batch_size):
            batch = next(decoded)
            rows.append(rows_of(backend, images, batch, skip_unreadable))
            bar.update(len(batch))
        keys = {key for row in rows for key in row}
        yield span, {key: np.concatenate([row[key] for row in rows if key in row]) for key in keys}


def rows_of(
    backend: Backend, images: Sequence[Path], batch: list[Decoded], skip_unreadable: bool
) -> dict[str, np.ndarray]:
    """Everything that is stored of one batch; without the backend's arrays where none of its images can be read."""
    bad = [item for item in batch if item.pixels is None]
    if bad and not skip_unreadable:
        raise DataError(
            f"{UnreadableImage(images[bad[0].index], bad[0].reason)}; repair or remove it, "
            "or leave such images out with --skip-unreadable (the work so far is kept)"
        )
    good = [item for item in batch if item.pixels is not None]
    sizes = np.array([item.size for item in good], dtype=np.int32).reshape(-1, 2)
    rows = {
        "image_ids": np.array([images[item.index].stem for item in good], dtype=np.str_),
        "image_sizes": sizes,
        "skipped_images": np.array([images[item.index].name for item in bad], dtype=np.str_),
        "skipped_reasons": np.array([item.reason for item in bad], dtype=np.str_),
    }
    if good:
        rows |= backend.extract([item.pixels for item in good if item.pixels is not None], sizes)
    return rows


def save_part(path: Path, rows: dict[str, Any], dtype: str) -> None:
    for name in FEATURES:
        if name in rows:
            rows[name] = in_precision(rows[name], dtype, rows["image_ids"])
    with atomic_path(path) as temporary, open(temporary, "wb") as file:  # by name, savez would add a suffix
        np.savez(file, **rows)


def in_precision(features: np.ndarray, dtype: str, ids: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # looked for in the next line
        cast = features.astype(dtype)
    wrong = np.flatnonzero(~np.isfinite(cast).reshape(len(cast), -1).all(axis=1))
    if len(wrong):
        remedy = "try --dtype float32" if np.isfinite(features).all() else "look at the weights and --normalize"
        raise DataError(f"image {ids[wrong[0]]}: its features are not finite in {dtype}; {remedy}")
    return cast


def merge(parts: Sequence[Path], out: Path, settings: dict[str, Any], skip_unreadable: bool) -> list[dict[str, str]]:
    """Join the parts into `out` and return the skipped images."""
    heads = [read_part(part, "image_ids", "skipped_images", "skipped_reasons") for part in parts]
    skipped = [
        {"image": str(image), "reason": str(reason)}
        for head in heads
        for image, reason in zip(head["skipped_images"], head["skipped_reasons"], strict=True)
    ]
    total = sum(len(head["image_ids"]) for head in heads)
    if skipped and not skip_unreadable:
        names = ", ".join(skip["image"] for skip in skipped)
        raise DataError(f"an earlier call passed over unreadable images ({names}); give --skip-unreadable again")
    if not total:
        raise DataError(f"{out} is not written: none of the {len(skipped)} images can be read")
    # Written inside the folder of parts, where a kill leaves nothing that the next call does not clear.
    with atomic_path(parts[0].with_name("merged.h5")) as temporary, h5py.File(temporary, "w") as file:
        file.attrs["format"], file.attrs["version"] = FORMAT, VERSION
        file.attrs["provenance"] = json.dumps(provenance(settings, skipped))
        ids = [str(name) for head in heads for name in head["image_ids"]]
        file.create_dataset("image_ids", data=ids, dtype=h5py.string_dtype("utf-8"))
        start = 0
        for part in parts:
            rows = read_part(part)
            stop = start + len(rows["image_ids"])
            for name in sorted(set(rows) - {"image_ids", "skipped_images", "skipped_reasons"}):
                if stop > start:
                    dataset = file[name] if name in file else create(file, name, rows[name], total)
                    dataset[start:stop] = rows[name]
            start = stop
    os.replace(parts[0].with_name("merged.h5"), out)
    return skipped


def create(file: h5py.File, name: str, like: np.ndarray, total: int) -> h5py.Dataset:
    """A dataset of `total` rows; chunks of about 64 KiB, at least one image, so that a random read fetches little."""
    row = like.shape[1:]
    rows = min(total, max(1, CHUNK_BYTES // (like.itemsize * math.prod(row))))
    return file.create_dataset(name, (total, *row), like.dtype, chunks=(rows, *row))


def read_part(path: Path, *names: str) -> dict[str, np.ndarray]:
    """The named arrays of a part, or all."""
    try:
        with np.load(path, allow_pickle=False) as part:
            return {name: part[name] for name in names or part.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, KeyError) as error:
        raise DataError(f"{path} is damaged ({error}); delete this one file and run the same command again") from error


def provenance(settings: dict[str, Any], skipped: list[dict[str, str]]) -> dict[str, Any]:
    modules = {"torch": torch, "torchvision": torchvision, "numpy": np, "pillow": PIL, "h5py": h5py}
    return {
        "settings": settings,
        "skipped": skipped,
        "versions": {"python": platform.python_version()} | {name: m.__version__ for name, m in modules.items()},
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def provenance_of(path: Path) -> dict[str, Any]:
    """The provenance of a finished file; a DataError where it is none of ours."""
    try:
        with h5py.File(path, "r") as file:
            if file.attrs.get("format") == FORMAT:
                return json.loads(file.attrs["provenance"])
    except (OSError, KeyError, json.JSONDecodeError):
        pass
    raise DataError(f"{path} exists and is no features file of this program; choose another output file or delete it")


def settings_of(path: Path) -> dict[str, Any]:
    return provenance_of(path).get("settings", {})


def shapes_of(path: Path) -> dict[str, tuple[int, ...]]:
    with h5py.File(path, "r") as file:
        return {name: file[name].shape for name in file}
