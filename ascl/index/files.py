"""The files of an index of images: immutable segments, and one manifest that says which of them count.

A folder holds `index.json` (the manifest), `lock`, and files whose names begin with the number of the change that made
them. A change writes its files whole, then replaces the manifest: only that confirms it. So a process killed at any
moment leaves the last confirmed state, what it had begun is cleared by the next change, and a reader sees one state or
the next. Writers take turns by the lock, which the system lets go of when its holder dies; readers take none.

A row, once confirmed, keeps its position until `compact`: removals are a list of positions, and merged segments are
concatenations. What is built over positions, such as a compressed index, therefore stays right.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from ascl.core.errors import DataError
from ascl.core.files import atomic_path, write_text

FORMAT, VERSION = "ascl-copy-index", 1
MANIFEST, LOCK = "index.json", "lock"
LOCK_SECONDS = 600      # another process may be writing a compressed index of millions
DIGEST_BYTES = 32       # of SHA-256
BLOCK_BYTES = 2**24     # copied at a time
OURS = re.compile(r"\d{8}-[a-z]+(\.npy|\.bin|\.faiss)|\..*\.tmp")
ROW = np.dtype([("norm", "<f4"), ("digest", "u1", (DIGEST_BYTES,)), ("end", "<i8")])

Metric = Literal["ip", "hamming"]
VECTOR_TYPES: dict[Metric, type] = {"ip": np.float32, "hamming": np.uint8}


@dataclass(frozen=True)
class SegmentEntry:
    """Rows of one change, or of several that were merged."""

    name: str
    rows: int


@dataclass(frozen=True)
class Manifest:
    """The confirmed state.

    Attributes:
        model: what made the descriptors; see `ascl.image_copy.matching.query`.
        metric: `ip`, unit rows of float32 compared by inner product; `hamming`, bits in uint8 compared by how many
            agree.
        dimension: floats, or bytes, of a row.
        exact_up_to: images up to which the search is exact.
        change: number of this state; names the files of the change that made it.
        layout: number of compactions, each of which gives the rows new positions.
        added: rows ever added.
        segments: in the order of positions.
        removed: file of the positions that no longer count, ascending; `removed_rows` of them.
        compressed: how the compressed index was built, its `file` and the `rows` that it covers, from position 0.
        calibration: see `ascl.index.calibration`.
    """

    model: dict[str, Any]
    metric: Metric
    dimension: int
    exact_up_to: int
    change: int = 0
    layout: int = 0
    added: int = 0
    segments: tuple[SegmentEntry, ...] = ()
    removed: str | None = None
    removed_rows: int = 0
    compressed: dict[str, Any] | None = None
    calibration: dict[str, Any] | None = None

    @property
    def positions(self) -> int:
        return sum(segment.rows for segment in self.segments)

    @property
    def images(self) -> int:
        return self.positions - self.removed_rows

    def files(self) -> set[str]:
        """Every file that this state needs."""
        names = {f"{segment.name}-{part}" for segment in self.segments for part in PARTS}
        calibration = (self.calibration or {}).get("files", {})
        others = [self.removed, (self.compressed or {}).get("file"), *calibration.values()]
        return names | {name for name in others if name}


PARTS = ("vectors.npy", "rows.npy", "names.bin", "keys.npy")


@dataclass(frozen=True, eq=False)
class Images:
    """Described images, on their way into an index.

    Attributes:
        ids: (N,) each once.
        paths: (N,) where each came from, for messages and answers.
        digests: (N, 32) uint8, SHA-256 of the files.
        vectors: (N, d) of the index's type.
        norms: (N,) float32, NaN where the method has none.
    """

    ids: Sequence[str]
    paths: Sequence[str]
    digests: np.ndarray
    vectors: np.ndarray
    norms: np.ndarray


@dataclass(frozen=True, eq=False)
class Segment:
    """Memory maps of a segment's files.

    Attributes:
        vectors: (n, d). rows: (n,) of `ROW`; `end` is where the row's name ends.
        names: bytes of a JSON pair (id, path) for each row, one after the other.
        keys: (2, n) uint64, `key_of` each id, ascending, and its row: an id is found without reading them all.
    """

    vectors: np.ndarray
    rows: np.ndarray
    names: np.ndarray
    keys: np.ndarray

    def name(self, row: int) -> tuple[str, str]:
        """(id, path) of a row."""
        start = int(self.rows["end"][row - 1]) if row else 0
        image, path = json.loads(self.names[start : int(self.rows["end"][row])].tobytes())
        return image, path


class Snapshot:
    """One confirmed state, opened for reading; later changes by any process do not touch it."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        """Raises FileNotFoundError where a later change has cleared a file, DataError where one is damaged."""
        self.folder, self.manifest = folder, manifest
        self.segments = [_open_segment(folder, entry, manifest) for entry in manifest.segments]
        self.starts = np.cumsum([0, *(entry.rows for entry in manifest.segments)])
        removed = np.empty(0, np.int64) if manifest.removed is None else _load(folder / manifest.removed, False)
        if removed.shape != (manifest.removed_rows,):
            raise _damaged(folder / str(manifest.removed), f"{removed.shape} positions, not {manifest.removed_rows}")
        self.removed = removed
        # Opened here and not when first asked for: a later change may clear the files.
        named = (manifest.calibration or {}).get("files", {})
        self.calibration = {name: _load(folder / file, False) for name, file in named.items()}

    def __len__(self) -> int:
        """Positions, removed ones too."""
        return self.manifest.positions

    def is_removed(self, positions: np.ndarray) -> np.ndarray:
        """Bool, of the shape of `positions`."""
        if not len(self.removed):
            return np.zeros(positions.shape, dtype=bool)
        at = np.searchsorted(self.removed, positions).clip(max=len(self.removed) - 1)
        return self.removed[at] == positions

    def vectors(self, positions: np.ndarray) -> np.ndarray:
        """(n,) positions -> (n, d)."""
        found: np.ndarray = np.empty((len(positions), self.manifest.dimension), VECTOR_TYPES[self.manifest.metric])
        for rows, segment, inside in self._by_segment(positions):
            found[rows] = segment.vectors[inside]
        return found

    def norms(self, positions: np.ndarray) -> np.ndarray:
        """(n,) positions -> (n,) float32."""
        found = np.empty(len(positions), np.float32)
        for rows, segment, inside in self._by_segment(positions):
            found[rows] = segment.rows["norm"][inside]
        return found

    def digests(self, positions: np.ndarray) -> np.ndarray:
        """(n,) positions -> (n, 32) uint8."""
        found = np.empty((len(positions), DIGEST_BYTES), np.uint8)
        for rows, segment, inside in self._by_segment(positions):
            found[rows] = segment.rows["digest"][inside]
        return found

    def name(self, position: int) -> tuple[str, str]:
        """(id, path the image came from)."""
        number = int(np.searchsorted(self.starts, position, side="right")) - 1
        return self.segments[number].name(position - int(self.starts[number]))

    def find(self, ids: Sequence[str]) -> np.ndarray:
        """Position of each id's image, -1 where there is none."""
        found = dict.fromkeys(ids, -1)
        keys = np.array([key_of(image) for image in found], np.uint64)
        for start, segment in zip(self.starts[:-1], self.segments, strict=True):
            first, end = (np.searchsorted(segment.keys[0], keys, side=side) for side in ("left", "right"))
            hits = np.flatnonzero(end > first)
            places = [place for hit in hits for place in range(first[hit], end[hit])]
            inside = segment.keys[1, places].astype(np.int64)
            for row in inside[~self.is_removed(inside + start)]:
                image, _ = segment.name(int(row))
                if image in found:  # keys of 64 bits can collide
                    found[image] = int(start + row)
        return np.array([found[image] for image in ids], np.int64)

    def holds_digests(self, digests: np.ndarray) -> np.ndarray:
        """(n, 32) -> (n,) bool: an image of the same file is there."""
        wanted: dict[bytes, list[int]] = {}
        for at, digest in enumerate(digests):
            wanted.setdefault(digest.tobytes(), []).append(at)
        held = np.zeros(len(digests), dtype=bool)
        for start, segment in zip(self.starts[:-1], self.segments, strict=True):
            heads = np.ascontiguousarray(segment.rows["digest"][:, :8]).view(np.uint64)[:, 0]
            inside = np.flatnonzero(np.isin(heads, np.ascontiguousarray(digests[:, :8]).view(np.uint64)[:, 0]))
            for row in inside[~self.is_removed(inside + start)]:
                held[wanted.get(segment.rows["digest"][row].tobytes(), [])] = True
        return held

    def _by_segment(self, positions: np.ndarray) -> Iterator[tuple[np.ndarray, Segment, np.ndarray]]:
        """Rows of `positions` that lie in a segment, the segment, and their places in it."""
        numbers = np.searchsorted(self.starts, positions, side="right") - 1
        for number in np.unique(numbers):
            rows = np.flatnonzero(numbers == number)
            yield rows, self.segments[number], positions[rows] - self.starts[number]


def key_of(image: str) -> int:
    """64 bits by which an id is looked for."""
    return int.from_bytes(hashlib.blake2b(image.encode("utf-8"), digest_size=8).digest(), "little")


# --- reading ---------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> Manifest:
    """The confirmed state of the index in `folder`.

    Raises:
        DataError: no index, half of one, one of a newer version, or a manifest that is damaged.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        if folder.is_dir() and any(OURS.fullmatch(item.name) for item in folder.iterdir()):
            raise DataError(
                f"{folder} is half an index: {MANIFEST} is missing. Restore it, or delete the folder and index again"
            ) from None
        raise DataError(f"{folder}: no index there; make one with `index FOLDER --index {folder}`") from None
    try:
        fields = json.loads(text)
        form, version = fields.pop("format"), fields.pop("version")
        if form == FORMAT and version > VERSION:
            raise DataError(f"{folder} is an index of version {version}; this program reads up to {VERSION}: update it")
        if form != FORMAT:
            raise DataError(f"{path} is of {form!r} and no index of images")
        entries = tuple(SegmentEntry(**entry) for entry in fields.pop("segments"))
        return Manifest(**fields, segments=entries)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise _damaged(path, repr(error)) from error


def is_index(folder: str | os.PathLike) -> bool:
    """Whether there is an index, whole or damaged."""
    return (Path(folder) / MANIFEST).exists()


def open_snapshot(folder: Path) -> Snapshot:
    """The confirmed state, while other processes may be changing it.

    Raises:
        DataError: as `read_manifest`, or a file that is missing or damaged (named).
    """
    manifest = read_manifest(folder)
    while True:
        try:
            return Snapshot(folder, manifest)
        except FileNotFoundError as error:
            latest = read_manifest(folder)
            if latest.change == manifest.change:
                raise _damaged(Path(error.filename), "the file is missing") from error
            manifest = latest


def _open_segment(folder: Path, entry: SegmentEntry, manifest: Manifest) -> Segment:
    vectors, rows = (_load(folder / f"{entry.name}-{part}") for part in PARTS[:2])
    wanted = ((entry.rows, manifest.dimension), VECTOR_TYPES[manifest.metric])
    if (vectors.shape, vectors.dtype) != wanted:
        raise _damaged(folder / f"{entry.name}-{PARTS[0]}", f"{vectors.dtype} {vectors.shape}")
    path = folder / f"{entry.name}-{PARTS[2]}"
    try:
        names: np.ndarray = np.memmap(path, dtype=np.uint8, mode="r")
    except ValueError as error:
        raise _damaged(path, str(error)) from error
    if rows.shape != (entry.rows,) or rows.dtype != ROW or int(rows["end"][-1]) != len(names):
        raise _damaged(path, f"{len(names)} bytes of names for {rows.shape} rows")
    keys = _load(folder / f"{entry.name}-{PARTS[3]}")
    if keys.shape != (2, entry.rows) or keys.dtype != np.uint64:
        raise _damaged(folder / f"{entry.name}-{PARTS[3]}", f"{keys.dtype} {keys.shape}")
    return Segment(vectors, rows, names, keys)


def _load(path: Path, mapped: bool = True) -> np.ndarray:
    try:
        return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(f"{path}: a file of the index is damaged ({reason}). Restore it, or index the images again")


# --- writing ---------------------------------------------------------------------------------------------------------


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Be the only one who changes the index; waits for another.

    Raises:
        DataError: another process did not finish in `LOCK_SECONDS`.
    """
    try:
        with FileLock(folder / LOCK, timeout=LOCK_SECONDS):
            yield
    except Timeout:
        raise DataError(f"{folder}: another process has been changing this index for {LOCK_SECONDS} s; try again "
                        "when it has ended") from None


def commit(folder: Path, manifest: Manifest) -> None:
    """Confirm a state whose files are all there, then clear what it does not need. Only while `writing`."""
    _sync(folder)  # names of new files reach the disk before the manifest that relies on them
    text = json.dumps({"format": FORMAT, "version": VERSION, **asdict(manifest)}, indent=1)
    write_text(folder / MANIFEST, text)
    _sync(folder)
    needed = manifest.files()
    for path in folder.iterdir():
        if OURS.fullmatch(path.name) and path.name not in needed:
            path.unlink()


def write_segment(folder: Path, name: str, parts: Sequence[Images | Segment]) -> SegmentEntry:
    """Write the rows of all parts, one after the other, as one segment; nothing counts before `commit`."""
    rows, blobs, keys, end = [], [], [], 0
    for part in parts:
        if isinstance(part, Images):
            lines = [json.dumps(pair).encode() for pair in zip(part.ids, part.paths, strict=True)]
            made = np.zeros(len(lines), ROW)
            made["norm"], made["digest"] = part.norms, part.digests
            keys.append(np.array([key_of(image) for image in part.ids], np.uint64))
            made["end"] = np.cumsum([len(line) for line in lines])
            blob = np.frombuffer(b"".join(lines), np.uint8)
        else:
            made, blob = np.array(part.rows), part.names
            in_order = np.empty(len(made), np.uint64)
            in_order[part.keys[1]] = part.keys[0]
            keys.append(in_order)
        made["end"] += end
        end += len(blob)
        rows.append(made)
        blobs.append(blob)
    write_array(folder / f"{name}-{PARTS[0]}", [part.vectors for part in parts])
    write_array(folder / f"{name}-{PARTS[1]}", rows)
    with atomic_path(folder / f"{name}-{PARTS[2]}") as temporary, open(temporary, "wb") as file:
        for blob in blobs:
            file.write(np.ascontiguousarray(blob).data)
    every = np.concatenate(keys)
    order = np.argsort(every, kind="stable")
    write_array(folder / f"{name}-{PARTS[3]}", [np.stack([every[order], order.astype(np.uint64)])])
    return SegmentEntry(name, sum(map(len, rows)))


def write_array(path: Path, parts: Sequence[np.ndarray]) -> None:
    """The parts below one another as .npy, copied block by block."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        shape = (sum(map(len, parts)), *parts[0].shape[1:])
        header = {"descr": np.lib.format.dtype_to_descr(parts[0].dtype), "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for part in parts:
            step = max(1, BLOCK_BYTES * len(part) // max(1, part.nbytes))
            for first in range(0, len(part), step):
                file.write(np.ascontiguousarray(part[first : first + step]).data)


def _sync(folder: Path) -> None:
    """Flush the names in a folder to the disk; systems that cannot open a folder have no such thing."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
