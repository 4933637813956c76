"""The CSV files of copy detection: ground truth, predictions and edits, as DISC2021 and NDEC publish them.

Descriptors are in `descriptors.files`. Every reader also reads gzip, which it recognizes by content; every writer
compresses if the name ends in `.gz`.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.core.files import atomic_path
from ascl.data.text_files import read_text

PAIR_HEADERS = (["query_id", "reference_id"], ["query_image_id", "db_image_id"])


@dataclass(frozen=True)
class GroundTruth:
    """Who copied whom."""

    queries: list[str]  # every query once, in the order of the file; those without a pair are distractors
    pair_query: list[str]  # queries of the true pairs
    pair_reference: list[str]  # their references


@dataclass(frozen=True)
class QueryEdit:
    """How a query was made."""

    kind: str  # of edit
    strength: str  # as the maker named it
    content_scale: float | None  # share of the original that it still shows
    role: str = ""  # a copy, a distractor, a hard negative; empty if the file does not say


def read_ground_truth(path: str | os.PathLike) -> GroundTruth:
    """Return the rows `query_id,reference_id` of a file; a blank reference means a distractor.

    A query may have several rows, one per reference. Raises DataError with the row: no such file, no row, no pair, a
    row without two columns or without a query, a pair or a distractor listed twice, a query listed both with and
    without a reference.
    """
    rows: dict[tuple[str, str], int] = {}
    has_reference: dict[str, bool] = {}
    for row, (query, reference) in _rows(path, 2, "query_id,reference_id"):
        if not query:
            raise DataError(f"{path}, row {row}: no query id")
        before = rows.setdefault((query, reference), row)
        if before != row:
            raise DataError(f"{path}, row {row}: the same as row {before} ({query},{reference}); keep one of them")
        if has_reference.setdefault(query, bool(reference)) != bool(reference):
            raise DataError(f"{path}, row {row}: query {query!r} is listed both with a reference and without one; keep "
                            "one kind")
    pairs = [pair for pair in rows if pair[1]]
    if not pairs:
        raise DataError(f"{path} names no query with a reference, so nothing can be measured")
    return GroundTruth(list(has_reference), *map(list, zip(*pairs, strict=True)))


def write_ground_truth(path: str | os.PathLike, truth: GroundTruth) -> None:
    """Write the CSV that `read_ground_truth` reads, with a header, queries in their order."""
    references: dict[str, list[str]] = {query: [] for query in truth.queries}
    for query, reference in zip(truth.pair_query, truth.pair_reference, strict=True):
        references.setdefault(query, []).append(reference)
    rows = ((query, reference) for query, found in references.items() for reference in found or [""])
    write_csv(path, ["query_id", "reference_id"], rows)


def read_predictions(path: str | os.PathLike) -> tuple[list[str], list[str], np.ndarray]:
    """Return the rows `query_id,reference_id,score` of a file as query ids, reference ids and scores (N,) float64.

    Raises DataError with the row: no such file, a row without three columns, an empty id, a score that is not a number.
    """
    queries, references, scores = [], [], []
    for row, (query, reference, score) in _rows(path, 3, "query_id,reference_id,score"):
        if not query or not reference:
            raise DataError(f"{path}, row {row}: no {'query' if not query else 'reference'} id")
        queries.append(query)
        references.append(reference)
        try:
            scores.append(float(score))
        except ValueError:
            raise DataError(f"{path}, row {row}: score {score!r} is not a number") from None
    values = np.array(scores, dtype=np.float64)
    if np.isnan(values).any():
        raise DataError(f"{path}, prediction {int(np.isnan(values).argmax()) + 1}: the score is not a number (NaN); "
                        "remove the row")
    return queries, references, values


def write_predictions(path: str | os.PathLike, query: Iterable[str], reference: Iterable[str],
                      score: np.ndarray) -> None:
    """Write the CSV that `read_predictions` reads, with the fewest digits per score that read back the same number.

    Fewer digits, such as the six decimals of the published tools, would turn different scores into ties, which count as
    lost.
    """
    digits = np.asarray(score).astype(str).tolist()  # numpy's shortest decimal that reads back the same in its dtype
    write_csv(path, ["query_id", "reference_id", "score"], zip(query, reference, digits, strict=True))


def read_edits(path: str | os.PathLike) -> dict[str, QueryEdit]:
    """Return the columns `query_id,kind[,strength,content_scale,role]` of a file with a header, by query.

    Other columns are ignored. Raises DataError with the row: no such file, a missing column, a query twice, a content
    scale that is not a number in [0, 1].
    """
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    missing = {"query_id", "kind"} - set(reader.fieldnames or [])
    if missing:
        raise DataError(f"{path}: no column {', '.join(sorted(missing))} in its header {reader.fieldnames}; add it")
    edits: dict[str, QueryEdit] = {}
    for cells in _parsed(path, reader):
        query, kind, scale = cells["query_id"], cells["kind"], cells.get("content_scale") or None
        where = f"{path}, row {reader.line_num}"
        if not query:
            raise DataError(f"{where}: no query id")
        if None in cells:
            raise DataError(f"{where}: more cells than the header")
        if query in edits:
            raise DataError(f"{where}: query {query!r} has a row before; keep one of them")
        if kind is None:
            raise DataError(f"{where}: fewer cells than the header")
        try:
            value = None if scale is None else float(scale)
        except ValueError:
            value = math.nan
        if value is not None and not 0 <= value <= 1:
            raise DataError(f"{where}: content_scale {scale!r} is not a number from 0 to 1")
        edits[query] = QueryEdit(kind, cells.get("strength") or "", value, cells.get("role") or "")
    return edits


def read_hard_negatives(path: str | os.PathLike) -> list[tuple[str, str]]:
    """Return the pairs `query_id,reference_id` of a file with a header; other columns are ignored.

    Raises DataError: no such file, a missing column, with the row an empty id or a pair that was listed before.
    """
    reader = csv.DictReader(io.StringIO(_text(path), newline=""))
    missing = {"query_id", "reference_id"} - set(reader.fieldnames or [])
    if missing:
        raise DataError(f"{path}: no column {', '.join(sorted(missing))} in its header {reader.fieldnames}; add it")
    pairs: dict[tuple[str, str], int] = {}
    for cells in _parsed(path, reader):
        pair, row = (cells["query_id"] or "", cells["reference_id"] or ""), reader.line_num
        if not all(pair):
            raise DataError(f"{path}, row {row}: no {'reference' if pair[0] else 'query'} id")
        if pairs.setdefault(pair, row) != row:
            raise DataError(f"{path}, row {row}: the same as row {pairs[pair]} ({','.join(pair)}); keep one of them")
    return list(pairs)


def _text(path: str | os.PathLike) -> str:
    if not os.path.lexists(path):
        raise DataError(f"{path}: no such file")
    text = read_text(Path(path))
    if (place := text.find("\0")) >= 0:
        row = text.count("\n", 0, place) + 1
        raise DataError(f"{path}, row {row}: holds a NUL character; if the file is UTF-16, convert it to UTF-8")
    return text


def _rows(path: str | os.PathLike, columns: int, layout: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (row from 1, stripped cells) of every row except the header and empty ones."""
    reader = csv.reader(io.StringIO(_text(path), newline=""))
    header = True
    for cells in _parsed(path, reader):
        if not cells:
            continue
        row, stripped = reader.line_num, [cell.strip() for cell in cells]
        if len(cells) != columns:
            raise DataError(f"{path}, row {row}: {len(cells)} columns ({','.join(cells)[:80]!r}), expected {layout}")
        if not header or stripped[:2] not in PAIR_HEADERS:
            yield row, stripped
        header = False
    if header:
        raise DataError(f"{path} is empty; expected rows {layout}")


def _parsed(path: str | os.PathLike, reader: Iterable[Any]) -> Iterator[Any]:
    """Yield the rows of a CSV reader; raise its errors (a quote that never closes) as DataError."""
    try:
        yield from reader
    except csv.Error as error:
        raise DataError(f"{path} is not a CSV file: {error}") from error


def write_csv(path: str | os.PathLike, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Write rows below a header; compress with gzip if the name ends in `.gz`."""
    opened = gzip.open if str(path).endswith(".gz") else open
    with atomic_path(path) as temporary:
        with opened(temporary, "wt", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
