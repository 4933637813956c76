"""A persistent index of images: add, remove and search, one image or a million, from several processes at once.

A folder holds `index.sqlite` (`ascl.index.records`), `vectors-N.bin` (`ascl.index.vectors`) and, for many images, a
compressed FAISS index. A change writes its vectors, then commits the transaction that makes them count. A process
killed at any moment leaves the last committed state, and the next change removes what was left over. A committed row
keeps its position until `compact` frees the rows of removed images, so that structures over positions, such as the
compressed index, stay valid.

The first change of an open index checks the whole database, and is refused if it is damaged. `repair` keeps what is
intact.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.index import Metric, damage
from ascl.index import search as index_search
from ascl.index.images import Added, Images, conflict
from ascl.index.reader import LOCK_SECONDS, OURS, IndexReader, is_index
from ascl.index.records import DATABASE, Database
from ascl.index.state import Record, State
from ascl.index.vectors import VECTOR_TYPES, append_vectors, sync_folder

EXACT_UP_TO = 100_000           # images; for more, FAISS searches a compressed index
UNCOMPRESSED_SHARE = 0.25       # rebuild the compressed index if more new rows than this share of its own are outside
REWRITTEN_ROWS = 2**14          # rows per batch that `compact` writes


class CopyIndex(IndexReader):
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
        Added(added=2, same=0, replaced=0, moved=0)
        >>> positions, scores = index.search(np.array([[0.6, 0.8]], np.float32), k=2)      # both (1, 2), best first
        >>> [index.records(positions[0])[position].id for position in positions[0]], scores.round(2).tolist()
        (['dog', 'cat'], [[0.8, 0.6]])
        >>> index.close(); folder.cleanup()
    """

    def __init__(self, folder: str | os.PathLike, *, lock_seconds: float = LOCK_SECONDS) -> None:
        """Open an index, as `IndexReader`; the files of an index of version 1 are removed."""
        is_old = not (Path(folder) / DATABASE).exists()
        super().__init__(folder, lock_seconds=lock_seconds)
        if is_old:
            with self._change():
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
            if not database.is_empty():
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

    def repair(self) -> list[Record]:
        """Make the database anew from what is intact in it, and return the images whose vectors are damaged.

        Those stay in the index, left out of every search, until they are removed or described again. Images whose
        record is damaged are forgotten. Nobody else may change the index meanwhile.
        """
        found = self.verify()
        lost = list(self.records(self._vectors().left_out).values())
        if found and (self._damage or not self._vectors().tiled):
            damage.rebuild(self._database, self.state, dict(self.each_record()), self._vectors().batches(),
                           self.calibration_arrays())
            self._opened, self._damage = None, {}
            self.reload()
        if self.fault is not None:
            with self._change():
                self._database.save(self.state.after(compressed=None))
        return lost

    def add(self, images: Images, *, overwrite: bool | Collection[str] = False) -> Added:
        """Add images, all or none; skip those that are in the index with the same id and file, and not damaged.

        Args:
            images: described images.
            overwrite: replace an indexed image by a different one with the same id: True for any, or the ids of those.

        Raises:
            DataError: an id is in the index (without `overwrite`), or twice in `images`, with a different file; an id
                is no text that can be stored; vectors have another dimension or type, or are not finite, or zero; or
                the disk is full.
        """
        index_search.check_vectors(images.vectors, self.state.metric, self.state.dimension, "new images")
        images.check_usable()
        with self._change():
            kept, replaced = self._new(images, overwrite)
            if kept:
                state = self.state
                state = self._database.remove(replaced, state)
                self._database.insert((row, images.record(one, self.folder))
                                      for row, one in enumerate(kept, state.rows))
                self._database.add_batches(append_vectors(self.folder, state, [images.vectors[kept]]))
                self._database.save(replace(state, rows=state.rows + len(kept), added=state.added + len(kept),
                                            change=self.state.change + 1))
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
                self._database.save(self._database.remove([row for row, _ in there.values()], self.state))
        return len(ids)

    def rename(self, records: Sequence[tuple[int, Record]]) -> int:
        """Give images, by their positions, new ids and paths, all or none, and return how many.

        Raises:
            DataError: another image has one of the ids.
        """
        with self._change():
            rows = {row for row, _ in records}
            taken = [image for image, (row, _) in self.find([one.id for _, one in records]).items() if row not in rows]
            if taken:
                raise DataError(f"{self.folder}: another process has added an image of the id {taken[0]!r} meanwhile; "
                                "run the same again")
            if records:
                self._database.update(records)
                self._database.save(self.state.after())
        return len(records)

    def compact(self) -> int:
        """Free the rows of removed images, return how many, and rebuild the compressed index if one is due.

        Raises:
            DataError: a batch is damaged, and would look intact after rewriting; nothing is changed.
        """
        with self._change():
            gone = self.state.removed
            if gone:
                found = self.verify()
                if found:
                    raise DataError(f"{found[0]}; `repair` mends it")
                live = np.flatnonzero(~self.rows.is_removed(np.arange(self.state.rows)))
                state = replace(self.state, rows=0, removed=0, removed_checksum=0, layout=self.state.layout + 1)
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
            self._database.save(self.state.after(calibration=calibration, arrays=self._database.save_arrays(arrays)))
        self._damage.pop("calibration", None)

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
            checksum = index_search.write_compressed(built, self.folder / name)
            sync_folder(self.folder)
            self._database.save(self.state.after(compressed={**about, "file": name, "checksum": checksum}))
        return True

    @contextmanager
    def _change(self) -> Iterator[None]:
        """Lock the index for one change, from its latest state; commit it at the end, or undo it after an error."""
        try:
            with self._database.change():
                self._move_to(self._database.state())
                self.require_intact()
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

    def _new(self, images: Images, overwrite: bool | Collection[str]) -> tuple[list[int], list[int]]:
        """Return the rows of `images` to add, and the positions of the images that they replace."""
        there = self.find(images.ids)
        lost = set[int]()
        if there:       # the checksums of all batches: as many as there were additions
            checked = self._vectors()
            checked.check(np.array([row for row, _ in there.values()], np.int64))
            lost = set(checked.left_out.tolist())
        chosen: dict[str, int] = {}
        for row, image in enumerate(images.ids):
            digest = images.digests[row].tobytes()
            if image in chosen:
                if images.digests[chosen[image]].tobytes() != digest:
                    raise conflict(image, images.paths[chosen[image]], images.paths[row], indexed=False)
            elif image not in there or there[image][0] in lost:
                chosen[image] = row
            elif there[image][1].sha256 != digest:
                if not (image in overwrite if isinstance(overwrite, Collection) else overwrite):
                    raise conflict(image, there[image][1].path, images.paths[row], indexed=True)
                chosen[image] = row
        return list(chosen.values()), [there[image][0] for image in chosen if image in there]
