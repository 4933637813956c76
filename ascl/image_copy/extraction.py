"""Descriptors of many images into one HDF5 file, in parts that survive a kill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from ascl.errors import DataError
from ascl.features.feature_file import Skipped, provenance_of
from ascl.features.writer import PART_SIZE, extract
from ascl.image_copy.descriptor import Describer
from ascl.image_copy.descriptor_files import write_descriptors


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
    out = Path(out)
    if out.exists():
        raise DataError(f"{out} exists; choose another file or delete it")
    work = out.with_name(f"{out.name}.features.h5")
    done = extract(
        describer, images, work, batch_size=batch_size, workers=workers, dtype="float32",
        skip_unreadable=skip_unreadable, resume=resume, part_size=part_size, progress=progress,
    )
    with h5py.File(work, "r") as file:
        names = file["image_ids"].asstr()[:].tolist()
        vectors = file["globals"][:]
        norms = file["norms"][:].astype(np.float32) if "norms" in file else None
    write_descriptors(
        out, names, vectors, norms=norms, model=describer.model, provenance=provenance_of(work)
    )
    work.unlink()
    return ExtractedDescriptors(
        out, describer.model, len(names), vectors.shape[1], norms is not None, done.skipped, done.extracted,
        done.seconds,
    )

