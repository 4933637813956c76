"""Write the features of many images to one HDF5 file, in parts, so that a kill costs at most one part.

While it runs, `OUT.parts/` holds `settings.json` and one npz per 256 images. At the end they are joined to `OUT`, and
the folder is deleted. Every file is written under another name and then renamed, so `OUT` is either absent or complete.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from filelock import FileLock, Timeout
from PIL import Image
from tqdm import tqdm

from ascl.core.errors import DataError, first_of
from ascl.core.files import atomic_path, make_folder, saving, write_text
from ascl.core.hashing import sha256_of_text
from ascl.core.reading import read_json
from ascl.data.stores.writing import provenance_of, shapes_of
from ascl.features.feature_file import Skipped, join_parts, read_part, versions
from ascl.images.find import ImageFile
from ascl.images.loader import Decoded, Decoder, batches_of_one_shape
from ascl.images.read import UnreadableImage
from ascl.images.rgb import TRANSPARENCY

FEATURES = {"regions", "globals"}  # stored in the requested precision; boxes and scores stay as they are
PART_SIZE = 256  # images per part: the work that a kill can cost


class Backend(Protocol):
    """What turns images into features: a grid, a global vector, a detector.

    Attributes:
        settings: everything that determines the features, as JSON values.
        names: what the ids mean, `class_names` and `attribute_names`; empty without names.
    """

    settings: dict[str, Any]
    names: dict[str, list[str]]

    @property
    def prepare(self) -> Callable[[Image.Image], np.ndarray]:
        """Return the picklable function that makes (h, w, 3) uint8 of an upright RGB image; the workers call it."""

    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return the features of a batch.

        Args:
            pixels: B arrays from `prepare`, all of one shape.
            sizes: (B, 2) width and height in pixels of the upright originals.

        Returns:
            Arrays of B rows: `regions` (B, K, R) or `globals` (B, G) float32; with regions also `boxes` (B, K, 4)
            float32, x1 y1 x2 y2 in pixels of the original. A detector puts the best region first and adds `scores`
            (B, K) float32 in [0, 1], `class_ids` (B, K) int32, perhaps `attribute_ids` and `attribute_scores` of the
            same types, and `region_count` (B,) int32, at least 1. Beyond an image's count, rows are 0 and ids -1.
        """


@dataclass(frozen=True)
class Extraction:
    """The result of `extract`."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    skipped: list[Skipped]  # the unreadable images
    extracted: int  # images that this call processed, without those of earlier calls
    seconds: float  # of this call
    animated: list[str]  # ids of the images of whose frames or pages only the first counts
    waiting: float = 0.0  # share of the working time spent waiting for decoded images

    def summary(self) -> str:
        """Return the result as text for people."""
        shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in self.shapes.items())
        rate = "nothing was left to do"
        if self.extracted:
            speed = self.extracted / self.seconds
            rate = f"{speed:.3g} images/s, {self.waiting:.0%} of the time waiting for decoded images"
        lines = [f"{self.path}: {shapes}", f"{self.extracted} images in {self.seconds:.1f} s: {rate}"]
        if self.skipped:
            lines.append(f"skipped {len(self.skipped)} unreadable images:")
            lines += [f"  {skip['image']}: {skip['reason']}" for skip in self.skipped]
        if self.animated:
            lines.append(f"of {len(self.animated)} images with several frames or pages only the first counts: "
                         f"{first_of(self.animated, 3)}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Shard:
    """Shard `number` of `count`, from 1, of consecutive images: all shards in order are the whole."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise DataError(f"shard {self.number}/{self.count}: the first number must be between 1 and the second")

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"

    def of(self, images: Sequence[ImageFile]) -> Sequence[ImageFile]:
        """Return the images of this shard; the sizes of shards differ by at most one."""
        return images[len(images) * (self.number - 1) // self.count : len(images) * self.number // self.count]

    def path(self, out: Path) -> Path:
        """Return the path of this shard's file: `regions.shard-2-of-8.h5` for `regions.h5`."""
        return out.with_name(f"{out.stem}.shard-{self.number}-of-{self.count}{out.suffix}")


@dataclass(frozen=True)
class Plan:
    """What to extract and how; enough for any process to compute any part."""

    images: Sequence[ImageFile]
    out: Path
    settings: dict[str, Any]  # of the backend, the images and the file; existing parts and files must have the same
    names: dict[str, list[str]]
    spans: Sequence[range]  # rows of `images` in each part
    batch_size: int
    workers: int
    dtype: Literal["float16", "float32"]
    strict: bool

    @property
    def parts(self) -> Path:
        return Path(f"{self.out}.parts")

    def part(self, span: range) -> Path:
        return self.parts / f"{span.start:08d}.npz"

    def todo(self) -> list[range]:
        """Return the spans whose part is missing or was made from other files; a repaired image costs one part."""
        return [span for span in self.spans if not self.finished(span)]

    def finished(self, span: range) -> bool:
        part = self.part(span)
        return part.exists() and str(read_part(part, "digest")["digest"]) == digest(self.images[span.start : span.stop])


class Worked(NamedTuple):
    """Seconds that processes worked on parts, and how many of these they waited for decoded images."""

    busy: float
    waited: float


def extract(
    backend: Backend, images: Sequence[ImageFile], out: str | os.PathLike, *, batch_size: int = 32, workers: int = 2,
    dtype: Literal["float16", "float32"] = "float16", strict: bool = False, resume: bool = False,
    shard: Shard | None = None, part_size: int = PART_SIZE, progress: bool = True,
    compute: Callable[[Plan, Sequence[range], tqdm], Worked] | None = None,
) -> Extraction:
    """Run `backend` over `images` and write `out`; after a kill, `resume` continues where it stopped.

    Args:
        backend: see `Backend`.
        images: of distinct ids, in this order (`images_of` gives them).
        out: the HDF5 file; layout in `ascl.data.stores.hdf5`. With a shard, `shard.path(out)` is written.
        batch_size: most images per forward pass, all of one shape.
        workers: decoding processes; 0 = decode in this process.
        dtype: of the features on disk.
        strict: stop at the first unreadable image, instead of skipping it and listing it in the result and the
            provenance.
        resume: use the finished parts of an earlier call, which are an error otherwise. A finished file is kept.
        shard: extract only its images; `merge_shards` joins the shards to the file of a call without `shard`.
        part_size: images per part, which a kill can cost.
        progress: show a bar with images per second and the time left.
        compute: computes the missing parts; None = this process does (`ascl.features.cluster` offers Ray).

    Raises:
        DataError: with `strict`, an image is unreadable (named); two images have one id; features are not finite in
            `dtype`; `out` or its parts were made from other images or with other settings (each difference is named);
            another process is writing the same file.
    """
    started = time.perf_counter()
    out = Path(out)
    images = [replace(image, path=image.path.absolute()) for image in images]  # actors may work in another directory
    ids = [image.id for image in images]
    if len(set(ids)) < len(ids):
        twice = Counter(ids).most_common(1)[0][0]
        raise DataError(f"two images have the id {twice!r}; use paths as ids, or rename one")
    settings = {
        **backend.settings, "dtype": dtype, "part_size": part_size, "images": len(images), "transparency": TRANSPARENCY,
        "image_ids_sha256": sha256_of_text("\n".join(ids)), "images_sha256": digest(images),
    }
    if backend.names:  # ids mean nothing without their names
        settings["names_sha256"] = sha256_of_text(json.dumps(backend.names, sort_keys=True))
    if shard is not None:
        settings, images, out = settings | {"shard": str(shard)}, shard.of(images), shard.path(out)
        if not images:
            raise DataError(f"shard {shard} has no images: there are fewer images than shards; make fewer shards")
    spans = [range(len(images))[start : start + part_size] for start in range(0, len(images), part_size)]
    plan = Plan(
        images, out.absolute(), json.loads(json.dumps(settings)), backend.names, spans, batch_size, workers, dtype,
        strict,
    )
    if out.exists():
        refuse_other_settings(out, provenance_of(out).get("settings", {}), plan.settings)
        shutil.rmtree(plan.parts, ignore_errors=True)  # left by a kill after the last rename
        made = provenance_of(out)
        return Extraction(out, shapes_of(out), made["skipped"], 0, time.perf_counter() - started, made["animated"])
    with claimed(plan, resume) as todo:
        count = sum(map(len, todo))
        with tqdm(total=len(images), initial=len(images) - count, unit=" images", disable=not progress) as bar:
            worked = compute(plan, todo, bar) if compute else compute_parts(backend, plan, todo, bar)
        made = join_parts([*map(plan.part, plan.spans)], plan.out, plan.settings, plan.names, strict)
        shutil.rmtree(plan.parts)
    waiting = worked.waited / worked.busy if worked.busy else 0.0
    return Extraction(out, shapes_of(plan.out), made["skipped"], count, time.perf_counter() - started, made["animated"],
                      waiting)


def digest(images: Sequence[ImageFile]) -> str:
    """Return a digest of the images' ids and file sizes, which shows whether a part is of the same files."""
    return sha256_of_text("\n".join(f"{image.id} {image.path.stat().st_size}" for image in images))


def refuse_other_settings(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> None:
    differing = "; ".join(
        f"{key} was {found.get(key)!r} and is now {wanted.get(key)!r}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    )
    if differing:
        remedy = "Use those settings again, choose another output file, or delete this one"
        raise DataError(f"{path} was made with other settings: {differing}. {remedy}")


@contextmanager
def claimed(plan: Plan, resume: bool) -> Iterator[list[range]]:
    """Lock the folder of parts for this process, create it or check it against the plan, and yield the spans to do."""
    make_folder(plan.parts)
    lock = FileLock(plan.parts / "lock", timeout=0)  # the system releases it when the process dies
    try:
        with saving(plan.parts, "finished parts are kept"):
            lock.acquire()
    except Timeout:
        raise DataError(f"another process is writing {plan.out}; wait for it, or choose another file") from None
    try:
        note = plan.parts / "settings.json"
        # Each part has its own digest of the files' sizes.
        settings = {key: value for key, value in plan.settings.items() if key != "images_sha256"}
        if not note.exists():
            write_text(note, json.dumps(settings, indent=1))
        refuse_other_settings(plan.parts, read_json(note, remedy="delete that folder to start over"), settings)
        todo = plan.todo()
        done = len(plan.spans) - len(todo)
        if done and not resume:
            found = f"{plan.parts} holds {done} of {len(plan.spans)} finished parts of an earlier run"
            raise DataError(f"{found}: continue with resume, or delete that folder to start over")
        yield todo
    finally:
        lock.release()


def compute_parts(backend: Backend, plan: Plan, spans: Sequence[range], bar: tqdm) -> Worked:
    """Compute and save these parts one after the other."""
    started = time.perf_counter()
    decoder = Decoder([image.path for image in plan.images], list(chain(*spans)), backend.prepare, plan.workers)
    for span in spans:  # no batch spans two parts, so a part is the same whenever and wherever it is computed
        save_part(plan.part(span), rows_of(backend, plan, span, decoder, bar), plan.dtype)
    return Worked(time.perf_counter() - started, decoder.waited)


def rows_of(backend: Backend, plan: Plan, span: range, decoder: Decoder, bar: tqdm) -> dict[str, np.ndarray]:
    """Return everything that one part stores; without the backend's arrays if none of its images can be read."""
    bad: list[Decoded] = []
    animated: list[str] = []

    def readable() -> Iterator[Decoded]:
        for _ in span:
            image = decoder.take()
            if image.animated:
                animated.append(plan.images[image.index].id)
            if image.pixels is not None:
                yield image
            elif plan.strict:
                remedy = "repair it, or skip such images (strict = False), and continue with resume"
                raise DataError(f"{UnreadableImage(plan.images[image.index].path, image.reason)}; {remedy}")
            else:
                bad.append(image)
                bar.update(1)

    good: list[tuple[int, tuple[int, int]]] = []  # index and size, in the order of the network
    arrays: list[dict[str, np.ndarray]] = []
    for batch in batches_of_one_shape(readable(), plan.batch_size):
        pixels = [image.pixels for image in batch if image.pixels is not None]
        arrays.append(backend.extract(pixels, np.array([image.size for image in batch], dtype=np.int32)))
        good += [(image.index, image.size) for image in batch]
        bar.update(len(batch))
    order = sorted(range(len(good)), key=good.__getitem__)
    good.sort()
    rows = {
        "image_ids": np.array([plan.images[index].id for index, _ in good], dtype=np.str_),
        "image_sizes": np.array([size for _, size in good], dtype=np.int32).reshape(-1, 2),
        "skipped_images": np.array([plan.images[image.index].id for image in bad], dtype=np.str_),
        "skipped_reasons": np.array([image.reason for image in bad], dtype=np.str_),
        "animated_images": np.array(animated, dtype=np.str_),
        "digest": np.array(digest(plan.images[span.start : span.stop])), "versions": np.array(json.dumps(versions())),
    }
    if good:
        rows |= {name: np.concatenate([array[name] for array in arrays])[order] for name in arrays[0]}
    return rows


def save_part(path: Path, rows: dict[str, np.ndarray], dtype: str) -> None:
    """Save a part with its features in `dtype`; raise DataError if one is not finite there."""
    for name in FEATURES & rows.keys():
        with np.errstate(over="ignore"):  # the next line finds it
            cast = rows[name].astype(dtype)
        wrong = np.flatnonzero(~np.isfinite(cast).reshape(len(cast), -1).all(axis=1))
        if len(wrong):
            overflow = np.isfinite(rows[name]).all()
            remedy = "try dtype float32" if overflow else "check the weights and their normalization"
            raise DataError(f"image {rows['image_ids'][wrong[0]]}: its features are not finite in {dtype}; {remedy}")
        rows[name] = cast
    with atomic_path(path) as temporary, open(temporary, "wb") as file:  # given a path, savez would add a suffix
        np.savez(file, **rows)  # type: ignore[arg-type]  # no array is called `allow_pickle`
