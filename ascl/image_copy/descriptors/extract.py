"""Write the descriptors of many images to one HDF5 file, in parts that survive a kill."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core import hdf5
from ascl.core.errors import DataError
from ascl.data.stores.writing import provenance_of
from ascl.features.writer import PART_SIZE, Extraction, extract
from ascl.image_copy.descriptors import files
from ascl.image_copy.descriptors.descriptor import Describer
from ascl.images.find import ImageFile

_REMEDY = "delete it, and describe the images again"


def extract_descriptors(describer: Describer, images: Sequence[ImageFile], out: str | os.PathLike, *,
                        batch_size: int = 64, workers: int = 2, strict: bool = False, resume: bool = False,
                        part_size: int = PART_SIZE, progress: bool = True) -> Extraction:
    """Describe `images` and write `out`, which `read_descriptors` reads; after a kill, `resume` continues.

    The work goes through `ascl.features.writer`: until `out` is written, its parts and the joined file are beside `out`
    as `OUT.features.h5.parts/` and `OUT.features.h5`.

    Args:
        images: of distinct ids, which become the names, in this order.
        batch_size: most images per forward pass.
        workers: decoding processes; 0 = decode in this process.
        strict: stop at the first unreadable image, instead of listing it in the result and the provenance.
        resume: use the finished parts of an earlier call, which are an error otherwise.
        part_size: images per part, which a kill can cost.
        progress: show a bar.

    Raises:
        DataError: `out` exists; with `strict`, an image is unreadable (named); descriptors are not finite; the
            parts are of other images or another model; another process is writing the same file.
    """
    out = _refuse_existing(out)
    work = out.with_name(f"{out.name}.features.h5")
    made, done = _described(describer, images, work, batch_size=batch_size, workers=workers,
                            strict=strict, resume=resume, part_size=part_size, progress=progress)
    files.write_descriptors(out, made.names, made.vectors, norms=made.norms, model=made.model,
                            provenance=made.provenance)
    work.unlink()
    return replace(done, path=out)


def extract_submission(describer: Describer, queries: Sequence[ImageFile], references: Sequence[ImageFile],
                       out: str | os.PathLike, **how: Any) -> list[Extraction]:
    """Describe both sides and write `out` in the format of DISC2021's descriptor track (`write_submission`).

    Until `out` is written, the sides are beside it as `OUT.queries.features.h5` and `OUT.references.features.h5`.

    Args:
        queries, references: images of the two sides.
        how: keywords of `extract_descriptors`.

    Returns:
        The results of the queries and of the references.

    Raises:
        DataError: more than 256 dimensions, or as `extract_descriptors`.
    """
    out = _refuse_existing(out)
    if describer.dim > files.SUBMISSION_DIMENSIONS:
        raise DataError(f"{describer.model} gives {describer.dim} dimensions; a submission may have at most "
                        f"{files.SUBMISSION_DIMENSIONS}: describe each side to a file, and whiten both when the "
                        "evaluation saves a submission")
    work = [out.with_name(f"{out.name}.{side}.features.h5") for side in ("queries", "references")]
    sides = [_described(describer, images, path, **how)
             for path, images in zip(work, (queries, references), strict=True)]
    files.write_submission(out, *(made for made, _ in sides))
    for path in work:
        path.unlink()
    return [done for _, done in sides]


def _refuse_existing(out: str | os.PathLike) -> Path:
    out = Path(out)
    if out.exists():
        raise DataError(f"{out} exists; choose another file or delete it")
    return out


def _described(describer: Describer, images: Sequence[ImageFile], work: Path,
               **how: Any) -> tuple[files.Descriptors, Extraction]:
    """Return the descriptors that the writer has written to `work`, now or earlier, and its result."""
    done = extract(describer, images, work, dtype="float32", **how)
    with hdf5.open_hdf5(work, _REMEDY) as file:
        found = {name: hdf5.dataset_of(file, name, _REMEDY) for name in ("image_ids", "globals", "norms")}
        if found["image_ids"] is None or found["globals"] is None:
            raise DataError(f"{work} holds no descriptors: {_REMEDY}")
        names, vectors = hdf5.texts_of(found["image_ids"], _REMEDY), hdf5.values_of(found["globals"], _REMEDY)
        norms = None if found["norms"] is None else hdf5.values_of(found["norms"], _REMEDY).astype(np.float32)
    shapes = {"vectors": vectors.shape} | ({} if norms is None else {"norms": norms.shape})
    made = files.Descriptors(names, vectors, norms, describer.model, provenance_of(work), str(work))
    return made, replace(done, shapes=shapes)
