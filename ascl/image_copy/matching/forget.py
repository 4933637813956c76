"""Remove images from an index: those that are named, and those whose files are gone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from ascl.core.errors import DataError, first_of
from ascl.core.reading import read_text, shown
from ascl.index.places import Status, paths_of
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
    unreachable: list[Record]  # the system does not say whether their files are there
    unmounted: list[Record]  # their files are gone, and perhaps only because a disk is not mounted


def prune_index(index: CopyIndex) -> Pruned:
    """Remove the images whose files are gone; those that have changed stay until they are indexed again.

    A disk that is not mounted looks as if its files were gone. So an image is removed only if the nearest folder above
    it that is there, other than the root, holds another indexed file on the same disk, and no link to it leads nowhere.

    Raises DataError if no file is there. Or as `CopyIndex.remove`.
    """
    index.reload()
    found: dict[Status, list[Record]] = {"there": [], "changed": [], "unreachable": [], "gone": []}
    holding = set[str]()    # folders that hold files that are there
    for _, record in index.each_record():
        place = index.place_of(record)
        found[place.status].append(record)
        if place.status in ("there", "changed"):
            holding.add(os.path.dirname(place.path))
    gone = found["gone"]
    if gone and len(gone) == len(index):
        raise DataError(f"{index.folder}: none of its {len(gone):,} files is there, such as {shown(gone[0].path)}. "
                        "Mount their disk, or index the images again where they are now; nothing was removed")
    mounted = _on_their_disks(holding) if gone else set()
    removed, unmounted = list[Record](), list[Record]()
    for record in gone:
        paths = paths_of(record, index.folder)
        (removed if any(_nearest_folder(path) in mounted for path in paths) else unmounted).append(record)
    if removed:
        index.remove([record.id for record in removed])
    return Pruned(removed, found["changed"], found["unreachable"], unmounted)


def _on_their_disks(folders: set[str]) -> set[str]:
    """Return these folders and all above them on the same disk, without the root."""
    result = set[str]()
    for folder in folders:
        with suppress(OSError):     # it has gone meanwhile
            disk = os.stat(folder).st_dev
            while folder not in result and folder != os.path.dirname(folder) and os.stat(folder).st_dev == disk:
                result.add(folder)
                folder = os.path.dirname(folder)
    return result


def _nearest_folder(path: str) -> str | None:
    """Return the nearest folder above a missing file that is there; None if a link on the way leads nowhere."""
    while not os.path.isdir(path):
        if os.path.islink(path) or path == os.path.dirname(path):
            return None
        path = os.path.dirname(path)
    return path
