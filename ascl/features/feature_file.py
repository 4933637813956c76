"""Join the parts of an extraction to its file, and shards to one file. `ascl.data.stores.hdf5` describes the layout."""

from __future__ import annotations

import math
import os
import platform
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ascl import __version__
from ascl.core.errors import DataError
from ascl.core.files import atomic_path, clear_killed, require_space
from ascl.core.hdf5 import NewHdf5, dataset_of, keys_of, open_hdf5, texts_of, try_in_child
from ascl.core.provenance import code_version
from ascl.core.reading import parse_json, read_arrays, reading
from ascl.data.stores.base import NAMES, check_ids
from ascl.data.stores.hdf5 import Hdf5Features
from ascl.data.stores.writing import create_rows, provenance_of, shapes_of, write_frame

# Arrays of a part or a shard that the joined file holds in another form or not at all.
NOT_STORED = {"image_ids", "skipped_images", "skipped_reasons", "animated_images", "digest", "versions",
              *NAMES.values()}
_OTHER_PART = "delete only this file, then resume"
_SHARDS = "give the shards that ascl wrote"
COPIED_BYTES = 1 << 26  # of a shard, copied at a time
Skipped = dict[str, str]  # {"image": its id, "reason": why the image could not be read}


def join_parts(
    parts: Sequence[Path], out: Path, settings: dict[str, Any], names: dict[str, list[str]], strict: bool
) -> dict[str, Any]:
    """Join the npz parts into `out` and return its provenance."""
    heads = [read_part(part, "image_ids", "skipped_images", "skipped_reasons", "animated_images", "versions")
             for part in parts]
    skipped = [
        {"image": str(image), "reason": str(reason)}
        for head in heads
        for image, reason in zip(head["skipped_images"], head["skipped_reasons"], strict=True)
    ]
    ids = [str(name) for head in heads for name in head["image_ids"]]
    if skipped and strict:
        unread = ", ".join(skip["image"] for skip in skipped)
        raise DataError(f"an earlier call skipped unreadable images ({unread}); resume it with strict = False")
    if not ids and "shard" not in settings:  # other shards may have readable images
        raise DataError(f"{out} is not written: none of the {len(skipped)} images can be read")
    made_with = [parse_json(str(head["versions"]), part, remedy=_OTHER_PART)
                 for part, head in zip(parts, heads, strict=True)]
    animated = [str(image) for head in heads for image in head["animated_images"]]
    about = provenance(settings, skipped, animated, made_with)
    clear_killed(out.parent)  # a join that was killed may hold the room that this one needs
    require_space(out, sum(part.stat().st_size for part in parts))
    write_joined(out, _alike(parts, map(read_part, parts), _OTHER_PART), ids, names, about)
    return about


def read_part(path: Path, *names: str) -> dict[str, np.ndarray]:
    """Return the named arrays of a part, or all; raise DataError if the file is damaged."""
    part = read_arrays(path, _OTHER_PART, names or None)
    if missing := [name for name in names if name not in part]:
        raise DataError(f"{path} has no {', '.join(missing)}: {_OTHER_PART}")
    return part


def provenance(
    settings: dict[str, Any], skipped: list[Skipped], animated: list[str], made_with: list[dict[str, str]]
) -> dict[str, Any]:
    """Return the provenance that the file stores, with each distinct `versions` that made a part."""
    distinct = [made for number, made in enumerate(made_with) if made not in made_with[:number]]
    date = datetime.now(timezone.utc).isoformat(timespec="seconds")
    return {"settings": settings, "skipped": skipped, "animated": animated, "versions": distinct, "date": date}


@cache
def versions() -> dict[str, str]:
    """Return the versions of this program (with its commit), Python, and the libraries that compute the features."""
    libraries = map(sys.modules.get, ("torch", "torchvision", "transformers", "detectron2", "numpy", "PIL", "h5py"))
    found = {library.__name__: str(getattr(library, "__version__", "unknown")) for library in libraries if library}
    return {"ascl": f"{__version__}, {code_version()}", "python": platform.python_version(), **found}


def shards_beside(out: str | os.PathLike) -> list[Path]:
    """Return the shards of `out` in its folder: `regions.shard-1-of-8.h5` ... for `regions.h5`."""
    out = Path(out)
    pattern = re.compile(re.escape(out.stem) + r"\.shard-\d+-of-\d+" + re.escape(out.suffix))
    return sorted(path for path in out.parent.glob("*") if pattern.fullmatch(path.name))


def merge_shards(shards: Sequence[Path], out: str | os.PathLike) -> dict[str, tuple[int, ...]]:
    """Join the shards of an extraction to the file that `extract` writes without `shard`; keep the shards.

    Args:
        shards: all shards of the extraction, in any order.
        out: the HDF5 file to write; its folder is created.

    Returns:
        The shape of each data set of `out`.

    Raises:
        DataError: a file is not a shard or is damaged; shards are missing or given twice (named); shards differ in
            settings, images, names, or the names, types and row shapes of their data sets; none of the images can be
            read; `out` exists.
    """
    out = Path(out)
    if out.exists():
        raise DataError(f"{out} exists; delete it or choose another file")
    ordered, settings = checked_shards(shards)
    try_in_child("rows", ordered, lambda: _checked_rows(ordered), _SHARDS)
    ids, names = _checked_rows(ordered)
    made = [provenance_of(shard, _SHARDS) for shard in ordered]
    skipped, animated, made_with = ([one for of_shard in made for one in of_shard.get(key, [])]
                                    for key in ("skipped", "animated", "versions"))
    if not ids:
        raise DataError(f"{out} is not written: none of the {len(skipped)} images can be read")
    clear_killed(out.parent)
    require_space(out, sum(shard.stat().st_size for shard in ordered))
    about = provenance(settings, skipped, animated, made_with)
    write_joined(out, _alike(ordered, opened(ordered), _SHARDS), ids, names, about)
    return shapes_of(out)


def opened(files: Sequence[Path]) -> Iterator[dict[str, h5py.Dataset]]:
    """Yield the data sets of each shard, open until the next one is taken."""
    for path in files:
        with open_hdf5(path, _SHARDS) as file:
            found = {name: dataset_of(file, name, _SHARDS) for name in keys_of(file, _SHARDS)}
            yield {name: data for name, data in found.items() if data is not None}


def _checked_rows(shards: Sequence[Path]) -> tuple[list[str], dict[str, list[str]]]:
    """Return the image ids of all shards and the names of their ids, after checking that the shards fit together."""
    ids: list[str] = []
    names: list[dict[str, list[str]]] = []
    for shard, rows in zip(shards, _alike(shards, opened(shards), _SHARDS), strict=True):
        ids += (own := texts_of(rows["image_ids"], _SHARDS))
        if own:
            Hdf5Features(shard)  # it refuses what no reader would take
        names.append({name: texts_of(rows[name], _SHARDS) for name in NAMES.values() if name in rows})
        if names[-1] != names[0]:
            raise DataError(f"{shard} has other class or attribute names than {shards[0]}: {_SHARDS}")
    if ids:
        check_ids(ids, "the shards together")
    return ids, names[0]


def _alike(files: Sequence[Path], blocks: Iterable[Mapping[str, Any]], remedy: str) -> Iterator[Mapping[str, Any]]:
    """Yield the blocks of parts or shards; DataError at one that does not have the same rows as the first.

    A block may lack `region_count`, and everything but `image_ids` if it has no image.
    """
    first: tuple[Path, dict[str, str]] | None = None
    for path, block in zip(files, blocks, strict=True):
        if "image_ids" not in block or block["image_ids"].ndim != 1:
            raise DataError(f"{path} has no list `image_ids`: {remedy}")
        count = len(block["image_ids"])
        rows = {}
        for name in sorted(set(block) - NOT_STORED) if count else ():
            data = block[name]
            if data.shape[:1] != (count,) or data.dtype.kind not in "fiu":
                raise DataError(f"{path}: `{name}` is {data.dtype} {data.shape}, expected numbers in {count} rows, one "
                                f"for each image: {remedy}")
            rows[name] = f"{data.dtype} (N, {', '.join(map(str, data.shape[1:]))})"
        if "region_count" in rows and "regions" not in rows:
            raise DataError(f"{path} has `region_count` without `regions`: {remedy}")
        rows.pop("region_count", None)  # only where some image has fewer regions
        if count:
            first = first or (path, rows)
            for name in sorted({*rows, *first[1]}):
                if (own := rows.get(name, "missing")) != (other := first[1].get(name, "missing")):
                    raise DataError(f"`{name}` is {own} in {path} and {other} in {first[0]}: {remedy}")
        yield block


def write_joined(
    path: Path, blocks: Iterable[Mapping[str, Any]], ids: list[str], names: dict[str, list[str]], about: dict[str, Any]
) -> None:
    """Write a feature file that stacks the rows of all blocks (name -> rows, `image_ids` included)."""
    with atomic_path(path) as temporary, NewHdf5(temporary) as file:
        write_frame(file, ids, names, about)
        start = 0
        for block in blocks:
            count = len(block["image_ids"])
            for name in sorted(set(block) - NOT_STORED) if count else ():
                dataset = file[name] if name in file else create_rows(file, name, block[name], len(ids))
                copy_rows(block[name], dataset, start)
                file.check()
            start += count
        if "region_count" in file:
            counts, most = file["region_count"][:], file["regions"].shape[1]
            counts[counts == 0] = most  # from blocks without counts, where all regions are real
            file["region_count"][:] = counts
            if (counts == most).all():
                del file["region_count"]  # without it, readers need no mask


def checked_shards(shards: Sequence[Path]) -> tuple[list[Path], dict[str, Any]]:
    """Return the shards in order, and the settings that they share."""
    if not shards:
        raise DataError("no shards to merge; extract the shards (1/4, 2/4, ...) first")
    found: dict[int, Path] = {}
    first: dict[str, Any] = {}
    for shard in shards:
        settings = provenance_of(shard, _SHARDS)["settings"]
        number, _, settings["shards"] = str(settings.pop("shard", "")).partition("/")
        if not number.isdigit() or not settings["shards"].isdigit():
            raise DataError(f"{shard} is a complete file, not a shard")
        first = first or settings
        if int(number) in found:
            problem = f"{found[int(number)]} and {shard} are both shard {number} of {settings['shards']}"
            raise DataError(f"{problem}; give each shard once")
        differing = [key for key in sorted({*settings, *first}) if settings.get(key) != first.get(key)]
        if differing:
            problem = f"{shard} and {shards[0]} differ in {', '.join(differing)}"
            raise DataError(f"{problem}: they are not shards of one file")
        found[int(number)] = shard
    count = int(first.pop("shards"))
    missing = [f"{number}/{count}" for number in range(1, count + 1) if number not in found]
    if missing:
        raise DataError(f"shards {', '.join(missing)} are missing; extract them first")
    return [found[number] for number in sorted(found)], first


def copy_rows(source: np.ndarray | h5py.Dataset, target: h5py.Dataset, start: int) -> None:
    """Copy the rows of `source` to `target` from row `start` on, at most `COPIED_BYTES` at a time."""
    step = max(1, COPIED_BYTES // max(1, source.dtype.itemsize * math.prod(source.shape[1:])))
    for row in range(0, len(source), step):
        if isinstance(source, h5py.Dataset):
            with reading(source.file.filename, "a shard", _SHARDS):
                block = source[row : row + step]
        else:
            block = source[row : row + step]
        target[start + row : start + row + len(block)] = block
