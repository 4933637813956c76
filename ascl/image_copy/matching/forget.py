"""Remove images from an index: those that are named, those whose files are gone, and those that are damaged."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ascl.core.errors import DataError, first_of
from ascl.core.reading import read_text, shown
from ascl.image_copy.descriptors.choice import ImageDescriber
from ascl.image_copy.matching.describe import ReadOptions, described_images, digest_of
from ascl.index.damage import Damage
from ascl.index.state import Record
from ascl.index.store import CopyIndex


def named_ids(index: CopyIndex, names: Sequence[str]) -> list[str]:
    """Return the ids of images that are named by their ids, by the paths of their files, or by lists of both.

    A list is a .txt file with one id or path per line; its paths are relative to its own folder. Empty lines and lines
    that begin with `#` are skipped.

    Raises:
        DataError: a name is neither an id nor a path of the index; the message names up to five. Or a list cannot be
            read.
    """
    wanted: dict[str, str] = {}     # name -> absolute path
    for name in names:
        if name.lower().endswith(".txt") and os.path.isfile(name) and not index.find([name]):
            lines = [line.strip() for line in read_text(name, "a list of images").split("\n")]
            folder = os.path.dirname(os.path.abspath(name))
            wanted |= {line: os.path.normpath(os.path.join(folder, line)) for line in lines
                       if line and not line.startswith("#")}
        else:
            wanted[name] = os.path.abspath(name)
    by_id = index.find(wanted)
    by_path = index.find_paths([path for name, path in wanted.items() if name not in by_id])
    missing = [shown(name) for name, path in wanted.items() if name not in by_id and path not in by_path]
    if missing:
        raise DataError(f"{index.folder}: {len(missing)} of {len(wanted)} names are neither ids nor paths of images in "
                        f"the index: {first_of(missing)}; nothing was removed")
    return [name if name in by_id else by_path[path][1].id for name, path in wanted.items()]


@dataclass(frozen=True)
class Pruned:
    """What `prune_index` has removed from an index, and what is not as it was indexed."""

    removed: list[Record]  # their files are gone
    changed: list[Record]  # other files are in their places


def prune_index(index: CopyIndex) -> Pruned:
    """Remove the images whose files are gone; those that have changed stay until they are indexed again.

    Raises DataError if no file is there: a disk that is not mounted looks the same. Or as `CopyIndex.remove`.
    """
    index.reload()
    found: dict[str, list[Record]] = {"there": [], "changed": [], "gone": []}
    for _, record in index.each_record():
        found[index.place_of(record).status].append(record)
    gone = found["gone"]
    if gone and len(gone) == len(index):
        raise DataError(f"{index.folder}: none of its {len(gone):,} files is there, such as {shown(gone[0].path)}. Mount "
                        "their disk, or index the images again where they are now; nothing was removed")
    if gone:
        index.remove([record.id for record in gone])
    return Pruned(gone, found["changed"])


@dataclass(frozen=True)
class Repaired:
    """What `repair_index` has found and done."""

    found: list[Damage]
    described: list[str]  # ids of images that were described again
    forgotten: list[Record]  # images whose vectors were damaged and whose files are gone or have changed
    lost: int  # images whose records were damaged too


def repair_index(index: CopyIndex, describer: ImageDescriber, options: ReadOptions) -> Repaired:
    """Mend an index: keep what is intact, describe images again whose vectors are damaged, and forget the rest.

    Nobody else may change the index meanwhile. After a kill, the same call continues.

    Raises:
        DataError: the state itself cannot be read, or as `described_images`.
    """
    found, before = index.verify(), len(index)
    if not found:
        return Repaired([], [], [], 0)
    damaged = index.repair()
    lost = before - len(index)
    ids = {index.place_of(record).path: record.id for record in damaged if _is_as_indexed(index, record)}
    described = set[str]()
    if ids:
        for images in described_images(describer, list(ids), options, []):
            images = replace(images, ids=[ids[Path(path)] for path in images.paths])
            index.add(images)
            described |= set(images.ids)
    forgotten = [record for record in damaged if record.id not in described]
    index.remove([record.id for record in forgotten])
    index.compact()
    return Repaired(found, sorted(described), forgotten, lost)


def _is_as_indexed(index: CopyIndex, record: Record) -> bool:
    place = index.place_of(record)
    return place.status == "there" and digest_of(place.path).tobytes() == record.sha256
