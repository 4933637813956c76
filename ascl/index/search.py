"""Find the best rows of an index for each query: exactly, through a compressed index, or by Hamming distance.

FAISS does the search and is imported on first use. Without it, the exact search of `ascl.index.exact` gives the same
result more slowly. All candidates are scored again in float64 from the memory-mapped vectors, and only those scores
count.

The compressed index is IVF with 4-bit product quantization of every two dimensions (`IVFn,PQ{d/2}x4fs`): d / 4 bytes
per image, a sixteenth of float32. With the same lists, 8-bit scalar and 8-bit product quantization missed as many
neighbors after scoring again, because the lists that are not searched decide what is missed. They were 2 to 5 times
slower, the latter also 60 times in training (100,000 clustered vectors of 64 and 256 dimensions). The number of lists
to search is chosen when the index is built, by the recall on its own images.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.core.files import atomic_path
from ascl.core.reading import reading, shown
from ascl.index import Metric
from ascl.index.vectors import VECTOR_TYPES, checksum_of_file

MARGIN = 8                  # candidates beyond k: float32 scores may order neighbors differently from float64
COMPRESSED_CANDIDATES = 4   # times k candidates are scored again, but at least `COMPRESSED_FEWEST`
COMPRESSED_FEWEST = 64
TRAINING_IMAGES = 64        # training images per list
TRAINING_ROUNDS = 10        # iterations of k-means
FEWEST_IMAGES = 256         # fewer images are not worth a compressed index
SAMPLED_IMAGES = 256        # images on whose neighbors the recall is measured
WANTED_RECALL = 0.95        # least recall of the ten nearest neighbors
BLAS_FROM = 20              # queries; FAISS 1.15 multiplies matrices only from 128,000 query values on, 5 times as fast
RESCORED_NUMBERS = 2**22    # vector elements gathered at a time
HAMMING_BLOCK = 2**22       # distances computed at a time
REBUILD = "`compact` rebuilds it; until then every query is compared with every image"


def no_check(rows: np.ndarray | None = None, *, first: int = 0) -> None:
    """Compare nothing."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of an index."""

    vectors: np.ndarray  # (n, d), mapped into memory
    removed: np.ndarray  # numbers of the removed rows, ascending, int64
    metric: Metric
    check: Callable[..., Any] = no_check  # compares rows with their checksums, see `CheckedVectors.check`

    def __len__(self) -> int:
        """Number of rows, including removed ones."""
        return len(self.vectors)

    def is_removed(self, rows: np.ndarray) -> np.ndarray:
        """Return bool in the shape of `rows`: whether each row was removed."""
        if not len(self.removed):
            return np.zeros(rows.shape, dtype=bool)
        at = np.searchsorted(self.removed, rows).clip(max=len(self.removed) - 1)
        return self.removed[at] == rows


def import_faiss() -> Any:
    """Return the module `faiss`, or None if it is not installed."""
    try:
        import faiss
    except ImportError:
        return None
    faiss.cvar.distance_compute_blas_threshold = BLAS_FROM
    return faiss


def search(rows: Rows, queries: np.ndarray, k: int, compressed: Any = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the k best rows for each query, without removed rows.

    Args:
        rows: the rows to search.
        queries: (Q, dimension) of the index's type.
        k: at least 1.
        compressed: a FAISS index over the first rows (`open_compressed`); the other rows are searched exactly, and so
            are all rows for queries for which it finds too few. None = search all rows exactly.

    Returns:
        positions (Q, min(k, images)) int64 and scores (Q, min(k, images)) float64, best first, equal scores by
        position. The score is the inner product (`ip`), or the share of bits that agree (`hamming`).
    """
    keep = min(k, len(rows) - len(rows.removed))
    if not keep or not len(queries):
        return np.empty((len(queries), keep), np.int64), np.empty((len(queries), keep))
    rows.check(first=0 if compressed is None else compressed.ntotal)
    if rows.metric == "hamming":
        return nearest_bits(rows, queries, keep)
    wanted = keep + MARGIN
    if compressed is not None:
        wanted = max(wanted, COMPRESSED_CANDIDATES * keep, COMPRESSED_FEWEST)
    positions, scores = np.empty((len(queries), keep), np.int64), np.empty((len(queries), keep))
    left = np.arange(len(queries))
    while len(left):
        found = _candidates(rows, queries[left], wanted, compressed)
        live = (found >= 0) & ~rows.is_removed(found)
        rows.check(found[live])
        enough = live.sum(axis=1) >= keep
        done = left[enough]
        positions[done], scores[done] = _best(rows, queries[done], np.where(live, found, -1)[enough], keep)
        left = left[~enough]
        wanted *= 4  # the nearest rows are removed ones
        if (found[~enough] < 0).any():  # or the searched lists hold too few rows
            compressed = None
            rows.check()
    return positions, scores


def _candidates(rows: Rows, queries: np.ndarray, wanted: int, compressed: Any) -> np.ndarray:
    """Return (Q, C) positions that include the best ones, each once; -1 = none."""
    found, first = [], 0
    if compressed is not None:
        first = compressed.ntotal
        found.append(compressed.search(queries, min(wanted, first))[1])
    rest = rows.vectors[first:]
    count = min(wanted, len(rest))
    faiss = import_faiss()
    if count and faiss is not None:
        found.append(first + faiss.knn(queries, rest, count, metric=faiss.METRIC_INNER_PRODUCT)[1])
    elif count:
        from ascl.index.exact import nearest_references  # imports torch, which is slow and not needed with FAISS

        found.append(first + nearest_references(queries, rest, count, metric="ip")[0])
    return np.concatenate(found, axis=1)


def _best(rows: Rows, queries: np.ndarray, found: np.ndarray, keep: int) -> tuple[np.ndarray, np.ndarray]:
    """Score the candidates in float64 and keep the best."""
    positions = np.full((len(queries), keep), -1, np.int64)
    scores = np.full((len(queries), keep), -np.inf)
    step = max(1, RESCORED_NUMBERS // (found.shape[1] * queries.shape[1]))
    for first in range(0, len(queries), step):
        block = found[first : first + step]
        there = block >= 0
        vectors = np.zeros((*block.shape, queries.shape[1]))
        with np.errstate(invalid="ignore"):     # a damaged row, which the caller leaves out, may hold anything
            vectors[there] = rows.vectors[block[there]]
        exact = np.einsum("qd,qcd->qc", queries[first : first + step].astype(np.float64), vectors)
        exact[~there] = -np.inf
        order = np.lexsort((block, -exact), axis=1)[:, :keep]
        positions[first : first + step] = np.take_along_axis(block, order, axis=1)
        scores[first : first + step] = np.take_along_axis(exact, order, axis=1)
    return positions, scores


def build_compressed(rows: Rows) -> tuple[Any, dict[str, Any]]:
    """Build a compressed index over all rows.

    Returns:
        The FAISS index, and how it was built: `factory`, `rows`, `probes` (lists that are searched), `sampled` (images
        on which recall was measured), `recall_at_1` and `recall_at_10` (share of the exact nearest other images that it
        finds) and `faiss` (version).

    Raises:
        DataError: FAISS is not installed.
    """
    faiss = import_faiss()
    if faiss is None:
        raise DataError("a compressed index needs FAISS: pip install 'ascl[search]', or pip install faiss-cpu")
    count, dimension = rows.vectors.shape
    lists = 2 ** max(2, round(math.log2(2 * math.sqrt(max(1, count)))))
    factory = f"IVF{lists},PQ{dimension if dimension % 2 else dimension // 2}x4fs"
    built = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    drawn = np.random.default_rng(0).permutation(count)
    training = drawn[: max(TRAINING_IMAGES * built.nlist, 2**12)]
    built.cp.niter, built.cp.seed = TRAINING_ROUNDS, 0
    built.cp.min_points_per_centroid, built.cp.max_points_per_centroid = 1, TRAINING_IMAGES
    built.train(rows.vectors[np.sort(training)])
    built.add(rows.vectors)
    sample = drawn[~rows.is_removed(drawn)][:SAMPLED_IMAGES]
    queries = rows.vectors[sample]
    wanted = _without(search(rows, queries, 11)[0], sample)
    probes, recall = 4, (0.0, 0.0)
    while recall[1] < WANTED_RECALL and probes < built.nlist:
        probes *= 2
        built.nprobe = probes = min(probes, built.nlist)
        recall = recall_of(_without(search(rows, queries, 11, built)[0], sample), wanted)
    about = {"factory": factory, "rows": count, "probes": probes, "recall_at_1": recall[0], "recall_at_10": recall[1],
             "sampled": len(sample), "faiss": faiss.__version__}
    return built, about


def recall_of(found: np.ndarray, exact: np.ndarray) -> tuple[float, float]:
    """Return recall at 1 and at 10: how often the exact best is found first, and what share of the exact ten is found.

    Args:
        found, exact: (Q, k) positions, best first, -1 = none.
    """
    first = found[:, :1] == exact[:, :1]
    ten = (found[:, None, :10] == exact[:, :10, None]).any(axis=2)
    return float(first.mean()), float(ten[exact[:, :10] >= 0].mean())


def _without(positions: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return `positions` with each query's own position replaced by -1 and moved to the end."""
    moved = np.where(positions == own[:, None], -1, positions)
    return np.take_along_axis(moved, np.argsort(moved == -1, axis=1, kind="stable"), axis=1)


def write_compressed(built: Any, path: Path) -> int:
    """Write a compressed index, and return the CRC-32 of its file; DataError if the disk is full.

    FAISS's own writer does not notice a disk that is full at the very end.
    """
    data = import_faiss().serialize_index(built).data
    try:
        with atomic_path(path) as temporary:
            temporary.write_bytes(data)
    except OSError as error:
        raise DataError(f"{shown(path)}: cannot be written ({error.strerror}); without it every query is compared with "
                        "every image. Free space on the disk, then run `compact`") from error
    return zlib.crc32(data)


def open_compressed(path: Path, about: dict[str, Any]) -> Any:
    """Return the compressed index, or None without FAISS; DataError if the file is missing or damaged."""
    faiss = import_faiss()
    if faiss is None:
        return None
    if not path.exists():
        raise DataError(f"{shown(path)}: the compressed index is missing; {REBUILD}")
    with reading(path, "a compressed index", REBUILD):
        if checksum_of_file(path) != about["checksum"]:
            raise ValueError("wrong checksum")
        opened = faiss.read_index(str(path))
        opened.nprobe = about["probes"]
        if opened.ntotal != about["rows"]:
            raise ValueError(f"{opened.ntotal} rows, expected {about['rows']}")
    return opened


def count_bits(words: np.ndarray) -> np.ndarray:
    """Return the number of set bits of each unsigned number, uint8."""
    if hasattr(np, "bitwise_count"):  # since numpy 2
        return np.bitwise_count(words)
    table = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(axis=1, dtype=np.uint8)
    parts = np.ascontiguousarray(words)[..., None].view(np.uint8)
    return table[parts].sum(axis=-1, dtype=np.uint8)


def nearest_bits(rows: Rows, queries: np.ndarray, keep: int, *,
                 block_distances: int = HAMMING_BLOCK) -> tuple[np.ndarray, np.ndarray]:
    """Return the `keep` rows with the fewest different bits, as `search` does, by brute force in blocks."""
    count, size = rows.vectors.shape
    word = np.uint64 if size % 8 == 0 else np.uint8
    positions = np.empty((len(queries), keep), np.int64)
    scores = np.empty((len(queries), keep))
    step = max(1, block_distances // count)
    for first in range(0, len(queries), step):
        block = np.ascontiguousarray(queries[first : first + step])
        different = count_bits(np.bitwise_xor(block.view(word)[:, None, :], rows.vectors.view(word)[None]))
        rank = different.sum(axis=2, dtype=np.int64) * count + np.arange(count)  # ties by position
        rank[:, rows.removed] = np.iinfo(np.int64).max
        best = np.sort(np.partition(rank, keep - 1, axis=1)[:, :keep], axis=1)
        positions[first : first + step] = best % count
        scores[first : first + step] = 1 - (best // count) / (8 * size)
    return positions, scores


def check_vectors(vectors: np.ndarray, metric: Metric, dimension: int, name: str) -> None:
    """Raise a DataError for vectors of another dimension or type than the index holds, and for queries not finite."""
    wanted = VECTOR_TYPES[metric]
    if vectors.ndim != 2 or vectors.shape[1] != dimension or vectors.dtype != wanted:
        raise DataError(f"{name}: descriptors are {vectors.dtype} {vectors.shape}, and the index holds "
                        f"{np.dtype(wanted)} of dimension {dimension}: another model made them; use the index's model")
    if name == "queries" and not np.isfinite(vectors).all():
        row = int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])
        raise DataError(f"{name}, row {row} (from 0): the descriptor is not finite; check the image and the model")
