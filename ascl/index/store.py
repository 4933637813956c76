"""A persistent index of images: add, remove and search one by one or by the million, by several processes at once.

`CopyIndex` is the state it was opened at; every change confirms a new state on the disk and moves on to it. What holds
across kills and processes is said in `ascl.index.files`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.core.files import atomic_path
from ascl.index import search as index_search
from ascl.index.files import (
    LOCK,
    MANIFEST,
    OURS,
    Images,
    Manifest,
    Metric,
    Segment,
    SegmentEntry,
    Snapshot,
    commit,
    open_snapshot,
    read_manifest,
    write_array,
    write_segment,
    writing,
)

EXACT_UP_TO = 100_000           # images; above, FAISS searches a compressed index
MERGED_TOGETHER = 8             # segments of one level; a power of two
UNCOMPRESSED_SHARE = 0.25       # of rows outside the compressed index at which it is built again


@dataclass(frozen=True)
class Added:
    """What `CopyIndex.add` did, in images."""

    added: int = 0
    same: int = 0       # there already, from the same file
    replaced: int = 0   # among `added`

    def __add__(self, other: Added) -> Added:
        return Added(self.added + other.added, self.same + other.same, self.replaced + other.replaced)


class CopyIndex:
    """An index in a folder."""

    def __init__(self, folder: str | os.PathLike) -> None:
        """Open the index that `create` made. `fault` says what is wrong with its compressed index, None = nothing.

        Raises:
            DataError: no index, half of one, a damaged one, or one of a newer version.
        """
        self.folder = Path(folder)
        self._compressed: Any = None
        self._compressed_file: str | None = None
        self.fault: str | None = None
        self._move_to(open_snapshot(self.folder))

    @classmethod
    def create(
        cls, folder: str | os.PathLike, model: dict[str, Any], *, metric: Metric, dimension: int,
        exact_up_to: int = EXACT_UP_TO,
    ) -> CopyIndex:
        """Make an empty index in a new or empty folder, or in the place of an index to which nothing was ever added.

        Args:
            model: what makes the descriptors, fit for JSON.
            metric, dimension, exact_up_to: see `Manifest`.

        Raises:
            DataError: the folder holds something already, an index with images too.
        """
        folder = Path(folder)
        if exact_up_to < 0 or dimension < 1:
            raise DataError(f"exact up to {exact_up_to} images of dimension {dimension}: no such index")
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file, and an index is a folder")
        folder.mkdir(parents=True, exist_ok=True)
        with writing(folder):
            others = [item.name for item in folder.iterdir() if item.name != LOCK and not item.name.startswith(".")]
            change = 0
            if MANIFEST in others:
                there = read_manifest(folder)
                if there.added:
                    raise DataError(f"{folder} is an index already; add to it, or choose another folder")
                others.remove(MANIFEST)
                change = there.change + 1
            elif any(OURS.fullmatch(name) for name in others):
                read_manifest(folder)  # says that it is half an index
            if others:
                raise DataError(f"{folder} holds other files ({', '.join(sorted(others)[:3])}); choose another folder")
            commit(folder, Manifest(model, metric, dimension, exact_up_to, change))
        return cls(folder)

    @property
    def manifest(self) -> Manifest:
        return self.snapshot.manifest

    def __len__(self) -> int:
        """Images."""
        return self.manifest.images

    def reload(self) -> None:
        """Move on to what other processes have confirmed meanwhile.

        Raises:
            DataError: one of them made the index anew, of another model.
        """
        model, there = self.manifest.model, read_manifest(self.folder)
        if there.model != model:
            raise DataError(f"{self.folder} was made anew meanwhile, by {there.model['name']}, not {model['name']}")
        if there.change != self.manifest.change:
            self._move_to(open_snapshot(self.folder))

    # --- changes -----------------------------------------------------------------------------------------------------

    def add(self, images: Images, *, overwrite: bool = False) -> Added:
        """Add images, all or none; those whose file is there already under their id are passed over.

        Args:
            overwrite: an id that is there with another file gets the new one.

        Raises:
            DataError: an id that is there, or twice in `images`, with another file; vectors that are of another
                dimension or type, not finite, or zero.
        """
        self._check(images)
        with writing(self.folder):
            self.reload()
            kept, same = self._conflicts(images, overwrite)
            if not len(kept):
                return Added(same=same)
            chosen = _rows(images, kept)
            old = self.snapshot.find(chosen.ids)
            old = old[old >= 0]
            manifest = self._next()
            entries, parts = list(manifest.segments), [chosen]
            merged: list[Images | Segment] = []
            count = len(kept)
            while (run := last_to_merge(entries, count)) > 0:
                count += sum(entry.rows for entry in entries[-run:])
                merged = [*self.snapshot.segments[len(entries) - run : len(entries)], *merged]
                del entries[-run:]
            entry = write_segment(self.folder, f"{manifest.change:08d}", [*merged, *parts])
            manifest = replace(manifest, segments=(*entries, entry), added=manifest.added + len(kept))
            self._confirm(self._with_removed(manifest, old))
        return Added(len(kept), same, len(old))

    def remove(self, ids: Sequence[str]) -> int:
        """Remove images, all or none; their rows are given back by `compact`.

        Returns:
            How many.

        Raises:
            DataError: ids that are not there (named).
        """
        ids = list(dict.fromkeys(ids))
        with writing(self.folder):
            self.reload()
            positions = self.snapshot.find(ids)
            missing = [image for image, position in zip(ids, positions, strict=True) if position < 0]
            if missing:
                raise DataError(
                    f"{self.folder}: {len(missing)} of {len(ids)} ids are not in the index: "
                    f"{', '.join(map(repr, missing[:10]))}; nothing was removed"
                )
            if len(ids):
                self._confirm(self._with_removed(self._next(), positions))
        return len(ids)

    def compact(self) -> int:
        """Write the images that count as one segment, and build the compressed index again where one is due.

        Returns:
            Rows that were given back.
        """
        with writing(self.folder):
            self.reload()
            gone = self.manifest.removed_rows
            if gone or len(self.manifest.segments) > 1 or self.manifest.compressed:
                manifest = self._next()
                name = f"{manifest.change:08d}"
                parts = [self._live(number) for number in range(len(self.snapshot.segments))]
                live = [part for part in parts if part.ids]
                entries = (write_segment(self.folder, name, live),) if live else ()
                self._confirm(replace(
                    manifest, segments=entries, removed=None, removed_rows=0, compressed=None,
                    layout=manifest.layout + 1,
                ))
        self.compress_if_due()
        return gone

    def compress_if_due(self) -> bool:
        """Build the compressed index where there are too many images for the exact search, or too many new ones.

        Without FAISS nothing is built and every search is exact. The building holds no lock: others may go on adding.
        """
        self.reload()
        manifest = self.manifest
        covered = (manifest.compressed or {}).get("rows", 0)
        few_new = manifest.positions - covered <= UNCOMPRESSED_SHARE * covered and not self.fault
        fewest = max(manifest.exact_up_to, index_search.FEWEST_IMAGES)
        if manifest.metric == "hamming" or manifest.images <= fewest or few_new:
            return False
        if index_search.import_faiss() is None:
            return False
        built, about = index_search.build_compressed(self.snapshot)
        with writing(self.folder):
            self.reload()
            if self.manifest.layout != manifest.layout:
                return False  # compacted meanwhile: positions are others now, and the compacter has built its own
            latest = self._next()
            name = f"{latest.change:08d}-compressed.faiss"
            with atomic_path(self.folder / name) as temporary:
                index_search.write_compressed(built, temporary)
            self._confirm(replace(latest, compressed={**about, "file": name}))
        return True

    def set_calibration(self, calibration: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Store a calibration and its arrays (see `ascl.index.calibration`)."""
        with writing(self.folder):
            self.reload()
            latest = self._next()
            files = {name: f"{latest.change:08d}-{name}.npy" for name in arrays}
            for name, array in arrays.items():
                write_array(self.folder / files[name], [array])
            self._confirm(replace(latest, calibration={**calibration, "files": files}))

    # --- search ------------------------------------------------------------------------------------------------------

    def search(self, vectors: np.ndarray, k: int, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """The k best images of each query: see `index_search.search`.

        Args:
            vectors: (Q, dimension) of the index's type; unit rows for `ip`.
            exact: look at every image although a compressed index is there.

        Raises:
            DataError: k < 1, vectors of another dimension or type.
        """
        if k < 1:
            raise DataError(f"k is {k}; ask for at least 1 match")
        index_search.check_vectors(vectors, self.manifest.metric, self.manifest.dimension, "queries")
        return index_search.search(self.snapshot, vectors, k, None if exact else self._compressed)

    @property
    def searched_by(self) -> str:
        """How `search` looks, for people."""
        if self.manifest.metric == "hamming":
            return "every image, by the bits that differ"
        if self._compressed is None:
            faiss = index_search.import_faiss()
            return "every image, exactly" + ("" if faiss is not None else " (by torch: FAISS is not installed)")
        about = self.manifest.compressed or {}
        rest = self.manifest.positions - about["rows"]
        return f"compressed, {about['factory']}, {about['probes']} lists" + (f"; {rest} new rows exactly" * bool(rest))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _move_to(self, snapshot: Snapshot) -> None:
        """The state and its compressed index, which is only opened where it is another than before.

        A compressed index can be built again from the rows: a damaged one costs speed and is a `fault`, no error.
        """
        while True:
            about, fault = snapshot.manifest.compressed, None
            file = None if about is None else about["file"]
            compressed = self._compressed if file == self._compressed_file else None
            if about is not None and compressed is None:
                try:
                    compressed = index_search.open_compressed(self.folder / about["file"], about)
                except FileNotFoundError as error:
                    latest = open_snapshot(self.folder)
                    if latest.manifest.change != snapshot.manifest.change:
                        snapshot = latest
                        continue
                    fault = f"{error.filename}: the compressed index is missing; `compact` builds it again"
                except DataError as error:
                    fault = str(error)
            self.snapshot, self.fault = snapshot, fault
            self._compressed, self._compressed_file = compressed, file
            return

    def _next(self) -> Manifest:
        return replace(self.manifest, change=self.manifest.change + 1)

    def _confirm(self, manifest: Manifest) -> None:
        commit(self.folder, manifest)
        self._move_to(open_snapshot(self.folder))

    def _with_removed(self, manifest: Manifest, positions: np.ndarray) -> Manifest:
        if not len(positions):
            return manifest
        removed = np.union1d(self.snapshot.removed, positions)
        name = f"{manifest.change:08d}-removed.npy"
        write_array(self.folder / name, [removed])
        return replace(manifest, removed=name, removed_rows=len(removed))

    def _live(self, number: int) -> Images:
        segment, start = self.snapshot.segments[number], int(self.snapshot.starts[number])
        places = np.arange(len(segment.rows))
        places = places[~self.snapshot.is_removed(places + start)]
        named = [segment.name(int(row)) for row in places]
        return Images(
            [image for image, _ in named], [path for _, path in named], segment.rows["digest"][places],
            segment.vectors[places], segment.rows["norm"][places],
        )

    def _check(self, images: Images) -> None:
        index_search.check_vectors(images.vectors, self.manifest.metric, self.manifest.dimension, "new images")
        if self.manifest.metric == "hamming" or not len(images.ids):
            return
        squared = np.einsum("nd,nd->n", images.vectors, images.vectors, dtype=np.float64)
        wrong = np.flatnonzero(~(np.isfinite(squared) & (squared > 0)))
        if len(wrong):
            row = int(wrong[0])
            raise DataError(
                f"image {images.ids[row]!r} ({images.paths[row]}): its descriptor is not finite or zero; "
                "look at the weights and the normalisation. Nothing of this batch was added"
            )

    def _conflicts(self, images: Images, overwrite: bool) -> tuple[np.ndarray, int]:
        """Rows to add, and how many are there already from the same file."""
        there = known_files(self.snapshot, images.ids)
        kept: list[int] = []
        for row, image in enumerate(images.ids):
            digest = images.digests[row].tobytes()
            before = there.get(image)
            if before is not None and before[0] == digest:
                continue
            if before is not None and not (overwrite and before[2]):
                raise conflict(image, before[1], images.paths[row], before[2])
            there[image] = (digest, images.paths[row], False)
            kept.append(row)
        return np.array(kept, np.int64), len(images.ids) - len(kept)


def last_to_merge(entries: Sequence[SegmentEntry], rows: int) -> int:
    """How many of the last segments are to be merged with so many new rows.

    Segments have the level floor(log8(rows)); with seven at or below the new rows' level they become one of the next.
    So a row is written log8(N) times in all, and there are at most seven segments a level.
    """
    run = 0
    while run < len(entries) and level(entries[-1 - run].rows) <= level(rows):
        run += 1
    return run if run >= MERGED_TOGETHER - 1 else 0


def level(rows: int) -> int:
    return (rows.bit_length() - 1) // (MERGED_TOGETHER.bit_length() - 1)


def known_files(snapshot: Snapshot, ids: Sequence[str]) -> dict[str, tuple[bytes, str, bool]]:
    """(digest of the file, path it came from, True) of those ids that are in the index."""
    positions = snapshot.find(ids)
    known = np.flatnonzero(positions >= 0)
    digests = snapshot.digests(positions[known])
    return {
        ids[at]: (digest.tobytes(), snapshot.name(int(positions[at]))[1], True)
        for at, digest in zip(known.tolist(), digests, strict=True)
    }


def conflict(image: str, before: str, now: str, indexed: bool) -> DataError:
    """Two images of one id and different content."""
    if indexed:
        return DataError(f"two images have the id {image!r}: {before}, which is in the index, and {now}, whose content "
                         "is another; rename one, or let the new one take its place with --replace")
    return DataError(f"two images have the id {image!r} and different content: {before} and {now}; rename one")


def _rows(images: Images, rows: np.ndarray) -> Images:
    places = rows.tolist()
    return Images(
        [images.ids[row] for row in places], [images.paths[row] for row in places], images.digests[rows],
        images.vectors[rows], images.norms[rows],
    )
