"""A persistent index of images: add, remove and search, one image or a million, from several processes at once.

A folder holds `index.sqlite` (`ascl.index.records`), `vectors-N.bin` (`ascl.index.vectors`) and, for many images, a
compressed FAISS index. A change writes its vectors, then commits the transaction that makes them count. A process
killed at any moment leaves the last committed state, and the next change removes what was left over. A committed row
keeps its position until `compact` frees the rows of removed images, so that structures over positions, such as the
compressed index, stay valid.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.core.files import atomic_path
from ascl.index import Metric, version1
from ascl.index import search as index_search
from ascl.index.records import DATABASE, Database, Record, State, damaged
from ascl.index.vectors import VECTOR_TYPES, append_vectors, checksum_of, map_vectors, sync_folder, vectors_file

EXACT_UP_TO = 100_000           # images; for more, FAISS searches a compressed index
UNCOMPRESSED_SHARE = 0.25       # rebuild the compressed index if more new rows than this share of its own are outside
LOCK_SECONDS = 600              # long, because another process may be writing a compressed index of millions
REWRITTEN_ROWS = 2**14          # rows per batch that `compact` writes
OURS = re.compile(rf"vectors-\d{{4}}\.bin|\d{{8}}-compressed\.faiss|\..*\.tmp(-\w+)?|{version1.OLD_FILE.pattern}")


@dataclass(frozen=True, eq=False)
class Images:
    """Described images to add to an index."""

    ids: Sequence[str]  # (N,) names, each once
    paths: Sequence[str]  # (N,) sources, for messages and answers
    digests: np.ndarray  # (N, 32) uint8, SHA-256 of the files
    sizes: np.ndarray  # (N,) sizes of the files in bytes, -1 = unknown
    vectors: np.ndarray  # (N, d) of the index's type
    norms: np.ndarray  # (N,) float32 content norms, NaN if the method has none

    def record(self, row: int) -> Record:
        return Record(self.ids[row], self.paths[row], self.digests[row].tobytes(), int(self.sizes[row]),
                      float(self.norms[row]))

    def check_usable(self) -> None:
        """Raise a DataError for a descriptor that is not finite or zero; bits are always usable."""
        if self.vectors.dtype.kind == "f":
            squared = np.einsum("nd,nd->n", self.vectors, self.vectors, dtype=np.float64)
            wrong = np.flatnonzero(~(np.isfinite(squared) & (squared > 0)))
            if len(wrong):
                raise DataError(f"image {self.ids[wrong[0]]!r} ({self.paths[wrong[0]]}): its descriptor is not finite "
                                f"or zero, as are {len(wrong) - 1} more; check the model's weights and normalization")


@dataclass(frozen=True)
class Added:
    """How many images `CopyIndex.add` added or found."""

    added: int = 0
    same: int = 0       # already there, from the same file
    replaced: int = 0   # those of `added` that replaced another image

    def __add__(self, other: Added) -> Added:
        return Added(self.added + other.added, self.same + other.same, self.replaced + other.replaced)


@dataclass(frozen=True)
class DamagedBatch:
    """Rows of the file `path` whose bytes have changed since they were written, and the ids of their images."""

    path: Path
    first: int
    rows: int
    ids: tuple[str, ...]

    def __str__(self) -> str:
        return (f"{self.path}: the batch of rows {self.first} to {self.first + self.rows - 1} is damaged. Remove its "
                f"{len(self.ids)} images ({', '.join(map(repr, self.ids[:3]))} ...) and add them again")


class CopyIndex:
    """A persistent index of descriptors in a folder: `create` makes one, `CopyIndex(folder)` opens it.

    An open index shows the state at which it was opened, or to which `reload` or its last change moved it. A process
    that keeps one open for long should call `reload` now and then, because SQLite cannot shorten its log until then.

    Attributes:
        state: the committed state.
        rows: its vectors, and which of them were removed.
        fault: what is wrong with the compressed index; None = nothing.

    Example:
        >>> import tempfile
        >>> images = Images(ids=["cat", "dog"], paths=["cat.jpg", "dog.jpg"], digests=np.eye(2, 32, dtype=np.uint8),
        ...                 sizes=np.array([-1, -1]), vectors=np.eye(2, dtype=np.float32), norms=np.ones(2, np.float32))
        >>> folder = tempfile.TemporaryDirectory()
        >>> index = CopyIndex.create(folder.name, {"name": "toy model"}, metric="ip", dimension=2)
        >>> index.add(images)
        Added(added=2, same=0, replaced=0)
        >>> positions, scores = index.search(np.array([[0.6, 0.8]], np.float32), k=2)      # both (1, 2), best first
        >>> [index.records(positions[0])[position].id for position in positions[0]], scores.round(2).tolist()
        (['dog', 'cat'], [[0.8, 0.6]])
        >>> index.close(); folder.cleanup()
    """

    state: State
    rows: index_search.Rows
    fault: str | None

    def __init__(self, folder: str | os.PathLike, *, lock_seconds: float = LOCK_SECONDS) -> None:
        """Open an index; one of version 1 is converted first.

        Args:
            folder: the folder that `create` made.
            lock_seconds: how long a change waits for another process to finish its own.

        Raises:
            DataError: there is no index, it is incomplete or damaged, or its version is newer.
        """
        self.folder = Path(folder)
        if not is_index(self.folder):
            if self.folder.is_dir() and any(OURS.fullmatch(item.name) for item in self.folder.iterdir()):
                raise DataError(f"{folder} is an incomplete index: {DATABASE} is missing. Restore it, or delete the "
                                "folder and index the images again")
            raise DataError(f"{folder}: no index there; make one first")
        old = not (self.folder / DATABASE).exists()
        if old:
            version1.convert(self.folder, lock_seconds)
        self.fault = None
        self._compressed: Any = None
        self._opened: State | None = None
        self._database = Database(self.folder / DATABASE, lock_seconds)
        self.reload()
        if old:
            with self._change():    # removes the old files
                pass

    @classmethod
    def create(cls, folder: str | os.PathLike, model: dict[str, Any], *, metric: Metric, dimension: int,
               exact_up_to: int = EXACT_UP_TO, lock_seconds: float = LOCK_SECONDS) -> CopyIndex:
        """Make an empty index in a new or empty folder, or replace an index to which nothing was ever added.

        Args:
            folder: folder to make.
            model: the model that makes the vectors, fit for JSON, with a `name`.
            metric: `ip` for float32 unit rows, compared by inner product; `hamming` for bits in uint8 rows.
            dimension: floats (`ip`) or bytes (`hamming`) per row, >= 1.
            exact_up_to: up to this number of images the search is exact.
            lock_seconds: how long a change waits for another process to finish its own.

        Raises:
            DataError: the folder holds an index with images or other files, or an argument is out of range.
        """
        folder = Path(folder)
        if metric not in VECTOR_TYPES:
            raise DataError(f"an index of metric {metric!r}: choose one of {', '.join(VECTOR_TYPES)}")
        if exact_up_to < 0 or dimension < 1:
            raise DataError(f"exact_up_to is {exact_up_to} and dimension {dimension}: they must be at least 0 and 1")
        if folder.exists() and not folder.is_dir():
            raise DataError(f"{folder} is a file, and an index is a folder; choose another name")
        folder.mkdir(parents=True, exist_ok=True)
        if is_index(folder):
            cls(folder, lock_seconds=lock_seconds).close()  # raises if it is damaged
        else:
            names = sorted(item.name for item in folder.iterdir() if not item.name.startswith((".", DATABASE)))
            if any(OURS.fullmatch(name) for name in names):
                cls(folder)  # says that it is half an index
            if names:
                raise DataError(f"{folder} holds other files ({', '.join(names[:3])}): choose another folder")
        database = Database(folder / DATABASE, lock_seconds, create=True)
        with database.change():
            change = 0
            if database.run("SELECT 1 FROM sqlite_master"):
                there = database.state()
                if there.added:
                    raise DataError(f"{folder} is an index already: add to it, or choose another folder")
                change = there.change + 1
            else:
                database.create_tables()
            database.save(State(model, metric, dimension, exact_up_to, change))
        database.close()
        sync_folder(folder)
        return cls(folder, lock_seconds=lock_seconds)

    def close(self) -> None:
        """Close the database; SQLite requires this before a fork whose child opens the index."""
        self._database.close()

    def __len__(self) -> int:
        """Number of images."""
        return self.state.images

    def reload(self) -> None:
        """Move to the state that other processes have committed meanwhile.

        Raises:
            DataError: another process has made the index anew for another model, or a file is missing or damaged (the
                message names it).
        """
        before = -1
        while True:
            self._database.begin()
            state = self._database.state()
            try:
                return self._move_to(state)
            except DataError:
                if state.change == before:
                    raise
                before = state.change   # another process may have removed a file of this state since

    def files(self) -> list[Path]:
        """Return the paths of this state's files."""
        compressed = [self.state.compressed["file"]] if self.state.compressed else []
        names = [DATABASE, f"{DATABASE}-wal", vectors_file(self.state), *compressed]
        return [path for path in map(self.folder.joinpath, names) if path.exists()]

    def records(self, positions: Iterable[int]) -> dict[int, Record]:
        """Return position -> record of its image; positions of removed images are left out."""
        return dict(self._database.records("row", map(int, positions)))

    def find(self, ids: Iterable[str]) -> dict[str, tuple[int, Record]]:
        """Return id -> (position, record) for the ids that are in the index."""
        return {record.id: (row, record) for row, record in self._database.records("id", ids)}

    def holds_files(self, digests: np.ndarray) -> np.ndarray:
        """Return (n,) bool for (n, 32) uint8 SHA-256: whether an image of the same file is in the index.

        This reads every record.
        """
        wanted = [digest.tobytes() for digest in digests]
        found = self._database.records("hex(sha256)", [digest.hex().upper() for digest in wanted])
        held = {record.sha256 for _, record in found}
        return np.array([digest in held for digest in wanted], dtype=bool)

    def calibration_arrays(self) -> dict[str, np.ndarray]:
        """Return the arrays that `set_calibration` stored."""
        return self._database.arrays()

    def verify(self) -> list[DamagedBatch]:
        """Read every vector and the whole database, and return the batches with a wrong checksum.

        Images of other batches can still be used.

        Raises:
            DataError: the database is damaged.
        """
        for (problem,) in self._database.run("PRAGMA integrity_check(1)"):
            if problem != "ok":
                raise damaged(self.folder / DATABASE, problem)
        path = self.folder / vectors_file(self.state)
        return [
            DamagedBatch(path, first, rows, tuple(one.id for one in self.records(range(first, first + rows)).values()))
            for first, rows, checksum in self._database.run("SELECT first, rows, checksum FROM batches ORDER BY first")
            if checksum_of(self.rows.vectors[first : first + rows]) != checksum
        ]

    def add(self, images: Images, *, overwrite: bool = False) -> Added:
        """Add images, all or none; skip those that are in the index with the same id and file.

        Args:
            images: described images.
            overwrite: replace an indexed image by a different one with the same id.

        Raises:
            DataError: an id is in the index (without `overwrite`), or twice in `images`, with a different file; or
                vectors have another dimension or type, or are not finite, or zero.
        """
        index_search.check_vectors(images.vectors, self.state.metric, self.state.dimension, "new images")
        images.check_usable()
        with self._change():
            kept, replaced = self._new(images, overwrite)
            if kept:
                state = self.state
                self._database.remove(replaced)
                self._database.insert((row, images.record(one)) for row, one in enumerate(kept, state.rows))
                self._database.add_batches(append_vectors(self.folder, state, [images.vectors[kept]]))
                self._database.save(state.after(rows=state.rows + len(kept), added=state.added + len(kept),
                                                removed=state.removed + len(replaced)))
        return Added(len(kept), len(images.ids) - len(kept), len(replaced))

    def remove(self, ids: Sequence[str]) -> int:
        """Remove images, all or none, and return how many; `compact` frees their rows.

        Raises:
            DataError: an id is not in the index; the message names up to ten.
        """
        ids = list(dict.fromkeys(ids))
        with self._change():
            there = self.find(ids)
            missing = [image for image in ids if image not in there]
            if missing:
                raise DataError(f"{self.folder}: {len(missing)} of {len(ids)} ids are not in the index: "
                                f"{', '.join(map(repr, missing[:10]))}; nothing was removed")
            if ids:
                self._database.remove([row for row, _ in there.values()])
                self._database.save(self.state.after(removed=self.state.removed + len(ids)))
        return len(ids)

    def compact(self) -> int:
        """Free the rows of removed images, return how many, and rebuild the compressed index if one is due.

        Raises:
            DataError: a batch is damaged, and would look intact after rewriting; nothing is changed.
        """
        with self._change():
            gone = self.state.removed
            if gone:
                for damage in self.verify():
                    if damage.ids:
                        raise DataError(str(damage))
                live = np.flatnonzero(~self.rows.is_removed(np.arange(self.state.rows)))
                state = replace(self.state, rows=0, removed=0, layout=self.state.layout + 1)
                parts = (live[first : first + REWRITTEN_ROWS] for first in range(0, len(live), REWRITTEN_ROWS))
                batches = append_vectors(self.folder, state, (self.rows.vectors[part] for part in parts))
                self._database.renumber()
                self._database.add_batches(batches)
                self._database.save(state.after(rows=len(live), compressed=None))
            elif self.state.compressed:
                self._database.save(self.state.after(compressed=None))
        with self._change():    # removes the files of the previous state
            pass
        self.compress_if_due()
        return gone

    def set_calibration(self, calibration: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
        """Store a calibration and its arrays (see `ascl.index.calibration`)."""
        with self._change():
            self._database.save_arrays(arrays)
            self._database.save(self.state.after(calibration=calibration))

    def compress_if_due(self) -> bool:
        """Build the compressed index if there are too many images for exact search, or too many new ones.

        Without FAISS nothing is built, and every search is exact. Building holds no lock: others may add meanwhile.

        Returns:
            Whether one was built and stored.
        """
        built = self.build_compressed()
        return built is not None and self.set_compressed(*built)

    def build_compressed(self) -> tuple[Any, dict[str, Any], int] | None:
        """Return a FAISS index of the latest state, how it was built, and the layout of its rows; store nothing.

        None if no compressed index is due.
        """
        self.reload()
        state = self.state
        covered = (state.compressed or {}).get("rows", 0)
        few_new = state.rows - covered <= UNCOMPRESSED_SHARE * covered and not self.fault
        fewest = max(state.exact_up_to, index_search.FEWEST_IMAGES)
        if state.metric == "hamming" or state.images <= fewest or few_new or index_search.import_faiss() is None:
            return None
        return *index_search.build_compressed(self.rows), state.layout

    def set_compressed(self, built: Any, about: dict[str, Any], layout: int) -> bool:
        """Store a compressed index, and return whether it still fits.

        It does not if `compact` has moved the rows meanwhile; then that process has built another.
        """
        with self._change():
            if self.state.layout != layout:
                return False
            name = f"{self.state.change + 1:08d}-compressed.faiss"
            with atomic_path(self.folder / name) as temporary:
                index_search.write_compressed(built, temporary)
            sync_folder(self.folder)
            self._database.save(self.state.after(compressed={**about, "file": name}))
        return True

    def search(self, vectors: np.ndarray, k: int, *, exact: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """Return the k best images for each query.

        Args:
            vectors: (Q, dimension) of the index's type; unit rows for `ip`.
            k: at least 1.
            exact: compare with every image even if there is a compressed index.

        Returns:
            positions (Q, min(k, images)) int64 and scores (Q, min(k, images)) float64, best first, equal scores by
            position; `records` turns positions into ids. The score is the inner product (`ip`), or the share of bits
            that agree (`hamming`).

        Raises:
            DataError: k < 1, or vectors have another dimension or type or are not finite.
        """
        if k < 1:
            raise DataError(f"k is {k}: ask for at least 1 match")
        index_search.check_vectors(vectors, self.state.metric, self.state.dimension, "queries")
        return index_search.search(self.rows, vectors, k, None if exact else self._compressed)

    @property
    def searched_by(self) -> str:
        """How `search` works, in words."""
        if self.state.metric == "hamming":
            return "every image, by the bits that differ"
        if self._compressed is None:
            faiss = index_search.import_faiss()
            return "every image, exactly" + ("" if faiss is not None else " (by torch: FAISS is not installed)")
        about = self.state.compressed or {}
        rest = self.state.rows - about["rows"]
        return f"compressed, {about['factory']}, {about['probes']} lists" + (f"; {rest} new rows exactly" * bool(rest))

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Lock the index for one change, from its latest state; commit it at the end, or undo it after an error."""
        try:
            with self._database.change():
                self._move_to(self._database.state())
                self._clear()
                yield
        finally:
            self.reload()

    def _clear(self) -> None:
        """Remove files that the state does not need; under the lock, nobody else can be writing them."""
        needed = {path.name for path in self.files()}
        for path in self.folder.iterdir():
            if OURS.fullmatch(path.name) and path.name not in needed:
                path.unlink()

    def _move_to(self, state: State) -> None:
        """Open the files of the state that the connection sees, if they are not open already.

        A compressed index can be rebuilt from the rows, so a damaged one costs only speed: it is a `fault`, not an
        error.
        """
        before = self._opened
        if before is not None and state.model != before.model:
            raise DataError(f"{self.folder} was made anew meanwhile, by {state.model['name']} instead of "
                            f"{before.model['name']}: open it again")
        if before is not None and state.change == before.change:
            return
        same = before is not None and state.layout == before.layout
        removed = self.rows.removed if same else np.empty(0, np.int64)
        if len(removed) != state.removed:
            new = self._database.run("SELECT row FROM removed WHERE rowid > ?", [len(removed)])
            removed = np.sort(np.append(removed, np.array(new, np.int64)))
        vectors = self.rows.vectors if same and len(self.rows) == state.rows else map_vectors(self.folder, state)
        if before is None or state.compressed != before.compressed:
            self._compressed, self.fault = None, None
            if state.compressed:
                try:
                    file = self.folder / state.compressed["file"]
                    self._compressed = index_search.open_compressed(file, state.compressed)
                except DataError as error:
                    self.fault = str(error)
        self.state = self._opened = state
        self.rows = index_search.Rows(vectors, removed, state.metric)

    def _new(self, images: Images, overwrite: bool) -> tuple[list[int], list[int]]:
        """Return the rows of `images` to add, and the positions of the images that they replace."""
        there = self.find(images.ids)
        chosen: dict[str, int] = {}
        for row, image in enumerate(images.ids):
            digest = images.digests[row].tobytes()
            if image in chosen:
                if images.digests[chosen[image]].tobytes() != digest:
                    raise conflict(image, images.paths[chosen[image]], images.paths[row], indexed=False)
            elif image not in there or there[image][1].sha256 != digest:
                if image in there and not overwrite:
                    raise conflict(image, there[image][1].path, images.paths[row], indexed=True)
                chosen[image] = row
        return list(chosen.values()), [there[image][0] for image in chosen if image in there]


def is_index(folder: str | os.PathLike) -> bool:
    """Return whether a folder holds an index, intact or damaged."""
    database = Path(folder) / DATABASE
    return bool(database.exists() and database.stat().st_size) or (Path(folder) / version1.MANIFEST).exists()


def conflict(image: str, before: str, now: str, *, indexed: bool) -> DataError:
    """Return the error for two images with the same id and different content."""
    if indexed:
        return DataError(f"two images have the id {image!r}: {before}, which is in the index, and {now}, whose content "
                         "differs; rename one, or replace the indexed one (overwrite)")
    return DataError(f"two images have the id {image!r} and different content: {before} and {now}; rename one")
