"""Descriptors of many images into one HDF5 file, in parts that survive a kill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ascl.core.errors import DataError
from ascl.features.feature_file import Skipped, provenance_of
from ascl.features.writer import PART_SIZE, Extraction, extract
from ascl.image_copy.descriptors.descriptor import Describer
from ascl.image_copy.descriptors.files import (
    SUBMISSION_DIMENSIONS,
    Descriptors,
    write_descriptors,
    write_submission,
)


@dataclass(frozen=True)
class ExtractedDescriptors:
    """What `extract_descriptors` did.

    Attributes:
        count, dim: of the descriptors in `path`. extracted: images that this call went through.
    """

    path: Path
    model: str
    count: int
    dim: int
    norms: bool
    skipped: list[Skipped]
    extracted: int
    seconds: float

    def summary(self) -> str:
        """The lines that a tool prints."""
        rate = f"{self.extracted / self.seconds:.1f} images/s" if self.extracted else "nothing was left to do"
        lines = [
            f"{self.path}: vectors {self.count}x{self.dim}{', norms' if self.norms else ', no norms'}, by {self.model}",
            f"{self.extracted} images in {self.seconds:.1f} s: {rate}",
        ]
        if self.skipped:
            lines.append(f"skipped {len(self.skipped)} unreadable images:")
            lines += [f"  {skip['image']}: {skip['reason']}" for skip in self.skipped]
        return "\n".join(lines)


def extract_descriptors(
    describer: Describer,
    images: Sequence[Path],
    out: str | os.PathLike,
    *,
    batch_size: int = 64,
    workers: int = 2,
    skip_unreadable: bool = False,
    resume: bool = False,
    part_size: int = PART_SIZE,
    progress: bool = True,
) -> ExtractedDescriptors:
    """Describe `images` and write `out` as `read_descriptors` reads it; after a kill, `resume` goes on.

    The work goes through `ascl.features.writer`: its parts and the file it joins lie beside `out` as
    `OUT.features.h5.parts/` and `OUT.features.h5` until `out` is written.

    Args:
        images: files of different stems, which become the names, in this order.
        skip_unreadable: leave unreadable images out, and list them in the result and the provenance.
        resume: use what an earlier call left; without it that is refused.

    Raises:
        DataError: `out` exists, an unreadable image (named), descriptors that are not finite, parts made of other
            images or by another model, another process at work on the same file.
    """
    out = _not_there(out)
    work = out.with_name(f"{out.name}.features.h5")
    made, done = _described(
        describer, images, work, batch_size=batch_size, workers=workers, skip_unreadable=skip_unreadable, resume=resume,
        part_size=part_size, progress=progress,
    )
    write_descriptors(
        out, made.names, made.vectors, norms=made.norms, model=made.model, provenance=made.provenance
    )
    work.unlink()
    return _summed_up(out, made, done)


def extract_submission(
    describer: Describer, queries: Sequence[Path], references: Sequence[Path], out: str | os.PathLike, **how: Any
) -> list[ExtractedDescriptors]:
    """Describe both sides and write `out` as DISC2021's descriptor track takes it (`write_submission`).

    The sides lie beside `out` as `OUT.queries.features.h5` and `OUT.references.features.h5` until `out` is written.

    Args:
        describer: of at most 256 dimensions.
        how: keywords of `extract_descriptors`.

    Returns:
        What was done, of the queries and of the references.

    Raises:
        DataError: more than 256 dimensions, or as `extract_descriptors`.
    """
    out = _not_there(out)
    if describer.dim > SUBMISSION_DIMENSIONS:
        raise DataError(
            f"{describer.model} gives {describer.dim} dimensions; a submission may have at most "
            f"{SUBMISSION_DIMENSIONS}: describe both sides apart and whiten them "
            "(tools/eval_copy.py --whiten 256 --save-submission)"
        )
    work = {side: out.with_name(f"{out.name}.{side}.features.h5") for side in ("queries", "references")}
    sides = [_described(describer, images, path, **how)
             for path, images in zip(work.values(), (queries, references), strict=True)]
    write_submission(out, sides[0][0], sides[1][0])
    for path in work.values():
        path.unlink()
    return [_summed_up(path, *side) for path, side in zip(work.values(), sides, strict=True)]


def _not_there(out: str | os.PathLike) -> Path:
    out = Path(out)
    if out.exists():
        raise DataError(f"{out} exists; choose another file or delete it")
    return out


def _described(
    describer: Describer, images: Sequence[Path], work: Path, **how: Any
) -> tuple[Descriptors, Extraction]:
    """What the writer wrote to `work`, now or before, as descriptors."""
    done = extract(describer, images, work, dtype="float32", **how)
    with h5py.File(work, "r") as file:
        names = file["image_ids"].asstr()[:].tolist()
        vectors = file["globals"][:]
        norms = file["norms"][:].astype(np.float32) if "norms" in file else None
    return Descriptors(names, vectors, norms, describer.model, provenance_of(work), str(work)), done


def _summed_up(path: Path, made: Descriptors, done: Extraction) -> ExtractedDescriptors:
    return ExtractedDescriptors(
        path, made.model or "", len(made.names), made.vectors.shape[1], made.norms is not None, done.skipped,
        done.extracted, done.seconds,
    )
