"""Make a benchmark of image copy detection from any folder of photos, in the layout of DISC2021."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
from filelock import FileLock, Timeout

from ascl.core.errors import DataError
from ascl.core.files import make_folder, saving, write_text
from ascl.core.reading import shown
from ascl.image_copy.benchmark import plan
from ascl.image_copy.benchmark.pairs import PAIRS
from ascl.image_copy.benchmark.plan import QUERY_ROLES, UNREADABLE, BenchmarkSettings, UsablePhotos, count_reasons
from ascl.image_copy.benchmark.queries import QueryMaker, make_queries
from ascl.image_copy.descriptors.perceptual_hash import HASH_DISTANCE
from ascl.image_copy.edits.edits import sample_rng
from ascl.image_copy.evaluation.files import GroundTruth, write_csv, write_ground_truth
from ascl.images.find import find_images

FORMAT = 1
MARK = ".copy-benchmark-in-progress"
HARD = """
  This is the hard benchmark: {reverse_crops} hard negatives are such, whose query was edited, or whose reference got a
  caption. {templates} are two unrelated photos in one template; their strength is that of the template. {bursts} are
  bursts, SIMULATED by two windows of one photo, each with an angle, exposure, sharpness and noise of its own, and with
  a share (`alone` in `steps`) that the other does not show; the strength moves them apart. Nothing moves in them, and
  nothing has depth."""


@dataclass(frozen=True)
class Benchmark:
    """A benchmark that was made: its folder, its counts and the skipped photos."""

    folder: Path
    counts: dict[str, int]
    skipped: list[tuple[Path, str]]

    @property
    def complete(self) -> bool:
        """Whether every photo could be read."""
        return not any(reason.startswith(UNREADABLE) for _, reason in self.skipped)

    def summary(self) -> str:
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in self.counts.items())
        left_out = "".join(f"\nleft out: {count} {reason}" for reason, count in count_reasons(self.skipped).items())
        return f"{self.folder}: {counts}{left_out}" + (f"\nlisted in {self.folder / 'skipped.csv'}" if left_out else "")


def make_benchmark(images: str | Path, out: str | Path, settings: BenchmarkSettings, *, workers: int = 0,
                   exclude: Sequence[str] = (), strict: bool = False) -> Benchmark:
    """Make a benchmark; the same folder, settings and versions of Pillow and numpy give the same files, byte for byte.

    Everything is written to `OUT.tmp`, which is renamed at the end, so a folder `out` is always complete. The next run
    removes what a killed run left there.

    Args:
        images: folder of photos, searched at any depth.
        out: folder to create; the README.md in it describes its files.
        settings: sizes and seed.
        workers: processes that decode and edit; 0 = this process. The result does not depend on them.
        exclude: patterns of photos to leave out, as for `find_images`.
        strict: stop at the first photo that cannot be read, instead of listing it.

    Raises:
        DataError: the folder is empty; with `strict`, a photo cannot be read; there are too few photos (with the
            numbers); `out` exists or is inside the folder of photos; another process is making it.
    """
    images, out = Path(images), Path(out)
    _refuse_existing(out)
    if out.resolve().is_relative_to(images.resolve()):
        raise DataError(f"{out} is in the folder of photos, {images}: the next benchmark would contain this one; "
                        "choose a folder outside")
    found = find_images(images, exclude=exclude, strict=strict)
    with _folder_in_progress(out) as temporary:
        photos = plan.usable_photos(found.paths, settings, workers, strict=strict)
        photos.skipped.extend((Path(fault.path), f"{UNREADABLE}: {fault.reason}") for fault in found.faults)
        settings = settings.for_photos(len(photos.paths))
        roles = plan.assign_roles(photos, settings, len(found))
        counts = _write(images, temporary, photos, settings, roles, workers)
    return Benchmark(out, counts, photos.skipped)


def _refuse_existing(out: Path) -> None:
    if out.exists() or out.is_symlink():
        raise DataError(f"{out} exists already; choose another folder, or remove it")


@contextmanager
def _folder_in_progress(out: Path) -> Iterator[Path]:
    """Yield `OUT.tmp`, empty except for its mark; rename it to `out` at the end, remove it on any error."""
    make_folder(out.parent)
    temporary = out.with_name(f"{out.name}.tmp")
    lock = FileLock(out.with_name(f".{out.name}.lock"), timeout=0)  # the system releases it when the process dies
    try:
        with saving(out):
            lock.acquire()
    except Timeout:
        raise DataError(f"another process is making {out}; wait for it, or choose another folder") from None
    try:
        _refuse_existing(out)  # again, because another process may have finished it meanwhile
        with saving(out):
            _make_empty(temporary)
        try:
            with saving(out):
                yield temporary
                (temporary / MARK).unlink()
                os.sync()  # the pictures must be on disk before the name that says they are complete
                temporary.rename(out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    finally:
        with suppress(OSError):  # some systems do not delete the file of a held lock
            Path(lock.lock_file).unlink()
        lock.release()


def _make_empty(temporary: Path) -> None:
    """Create the folder with our mark; replace what a killed run left under this name, and refuse anything else."""
    if temporary.exists():
        if not temporary.is_dir() or (any(temporary.iterdir()) and not (temporary / MARK).exists()):
            raise DataError(f"{temporary} is not an unfinished benchmark; move it away, because this name is needed")
        shutil.rmtree(temporary)
    temporary.mkdir()
    (temporary / MARK).touch()


def _write(
    images: Path, folder: Path, photos: UsablePhotos, settings: BenchmarkSettings, roles: dict[str, list[Path]],
    workers: int,
) -> dict[str, int]:
    """Write all files of a benchmark and return its counts."""
    for name in ("references", "queries", "background"):
        (folder / name).mkdir()
    of_references = plan.reference_photos(roles)
    with_reference = [path for paths in of_references.values() for path in paths]
    places = sample_rng(settings.seed, 0, 3).permutation(len(with_reference)).tolist()
    width = max(5, len(str(len(with_reference) - 1)))
    ids = {path: f"R{place:0{width}}" for path, place in zip(with_reference, places, strict=True)}
    ids |= {path: f"B{place:0{width}}" for place, path in enumerate(roles["background"])}
    for name in ("references", "background"):
        for path in roles[name]:
            shutil.copyfile(path, folder / name / f"{ids[path]}{path.suffix.lower()}")
    plans = plan.plan_queries(roles, ids, settings)
    made = make_queries(QueryMaker(folder, plans, roles["mix_ins"] or roles["distractors"], settings), workers)

    def source(path: Path) -> str:
        return shown(path.relative_to(images) if path.is_relative_to(images) else path)

    copies = [one for one in plans if one.role == "copy"]
    write_ground_truth(folder / "ground_truth.csv", GroundTruth(
        [one.query_id for one in plans], [one.query_id for one in copies], [one.reference_id for one in copies]
    ))
    write_csv(
        folder / "edits.csv",
        ["query_id", "kind", "strength", "content_scale", "source_image", "role", "strength_value", "steps"],
        ([one.query_id, one.kind, one.level, f"{done.content_scale:.4f}", source(one.source), one.role,
          f"{done.strength_value:.4f}", json.dumps([asdict(step) for step in done.steps])]
         for one, done in zip(plans, made, strict=True)),
    )
    write_csv(
        folder / "hard_negatives.csv", ["query_id", "reference_id", "reference_content_scale"],
        ([one.query_id, one.reference_id, f"{done.reference_content_scale:.4f}"]
         for one, done in zip(plans, made, strict=True) if one.role in PAIRS),
    )
    in_files = {**of_references, "background": roles["background"]}
    sources = [[ids[path], {**QUERY_ROLES, "references": "reference"}.get(name, name), source(path)]
               for name, paths in in_files.items() for path in paths]
    write_csv(folder / "sources.csv", ["image_id", "role", "source_image"], sorted(sources))
    skipped = ([source(path), reason] for path, reason in photos.skipped)
    write_csv(folder / "skipped.csv", ["source_image", "reason"], skipped)
    counts = {
        "references": len(with_reference), "queries": len(plans), "copies": len(copies),
        **{name: getattr(settings, name) for name in settings.shares if name != "references"},
        "mix_ins": len(roles["mix_ins"]),
        "images_looked_at": photos.looked_at, "images_left_out": len(photos.skipped),
    }
    description = {
        "format": FORMAT, "images": shown(images), "settings": asdict(settings), "counts": counts,
        "left_out": count_reasons(photos.skipped),
        "kinds": list(settings.kinds["copy"]), "strengths": plan.LEVELS, "near_duplicate_bits": HASH_DISTANCE,
        "mixed_in": "left-over photos" if roles["mix_ins"] else
                    "photos of distractor queries" if roles["distractors"] else "drawn pictures",
        "versions": {"pillow": PIL.__version__, "numpy": np.__version__},
    }
    write_text(folder / "benchmark.json", json.dumps(description, indent=2) + "\n")
    write_text(folder / "README.md", readme(description))
    return counts


def readme(description: dict[str, Any]) -> str:
    """Return the README of the folder, in Markdown."""
    counts, settings = description["counts"], description["settings"]
    negatives = sum(counts.get(name, 0) for name in ("reverse_crops", "templates", "bursts"))
    best, side = settings["jpeg_quality"], settings["max_side"]
    made, quality, more = "crops", best, ""
    if "templates" in settings:
        made, quality = "made", f"{min(plan.LEAST_QUALITY, best)} to {best}"
        more = HARD.format_map(counts)
    size = "as they\n  are" if side is None else f"scaled to at most\n  {side} pixels a side"
    levels = ", ".join(f"{name} {low} to {high}" for name, (low, high) in plan.LEVELS.items())
    return f"""# A generated benchmark of image copy detection

Made from `{description['images']}` with seed {settings['seed']}; all settings and counts are in `benchmark.json`.
The photos keep their license: check it before you pass this folder on.

- `references/`: {counts['references']} images. {negatives} of them are {made} (see hard negatives),
  the others are originals, copied as they were.
- `queries/`: {counts['queries']} images, JPEG of quality {quality}, made from photos {size}: \
{counts['copies']} edited copies of references,
  {counts['distractors']} distractors (edited copies of photos that are not references),
  {negatives} hard negatives.
- `background/`: {counts['background']} photos that are used nowhere else, for score normalization, whitening and
  calibration.
- `ground_truth.csv`: `query_id,reference_id` as in DISC2021; blank for distractors and hard negatives.
- `edits.csv`: kind and strength of the edit, the share of the source photo that the query still shows
  (`content_scale`), the source, the role, the strength as a number, and every step with its parameters.
- `hard_negatives.csv`: queries that show MORE than their reference, which is a crop of the same photo and shows
  `reference_content_scale` of it. They are not copies. Their strength is that of the crop; a mild crop is the easiest
  to mistake for an original.{more}
- `sources.csv`: which photo each reference and background image is. `skipped.csv`: photos left out, and why.

Strengths: {levels}. Kinds: {', '.join(description['kinds'])}.
Photos mixed into queries: {description['mixed_in']}.
Of near-duplicates (perceptual hashes that differ in at most {HASH_DISTANCE} of 64 bits) one was kept, so that no photo
has two roles. This does not find mirrored or cropped duplicates.
"""
