"""Regions in tab-separated rows with base64 columns, as published with bottom-up attention and with LXMERT."""

from __future__ import annotations

import base64
import binascii
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.data.stores.base import require_file
from ascl.data.stores.lazy_file import LazyFile
from ascl.data.stores.per_image import ImageFeatures, Index, PerImageFeatures, kept_index, stamp_of_file

BOTTOM_UP = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes",
          "features")
_LAYOUTS = {len(columns): columns for columns in (BOTTOM_UP, LXMERT)}
_DETAILS = {
    "class_ids": ("objects_id", "<i8"),
    "scores": ("objects_conf", "<f4"),
    "attribute_ids": ("attrs_id", "<i8"),
    "attribute_scores": ("attrs_conf", "<f4"),
}  # our name -> column and type
_LONGEST_ROW = 1 << 26  # bytes; 100 regions of 2048 take 1.1e6, so that a file without line ends is told early
_BUFFER = 1 << 20


class TsvFeatures(PerImageFeatures):
    """One TSV with the columns `BOTTOM_UP` or `LXMERT`, told by their number; a first line of their names is skipped.

    `boxes` (k, 4) and `features` (k, R) are float32 in base64; of LXMERT's, `objects_id` and `attrs_id` are int64 and
    count from 0 without the background, the confidences are float32. The first opening takes a pass over the file.

    Raises:
        DataError: no such file, compressed, other columns, truncated, or a row whose columns do not fit one another
            (named by its line).
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        require_file(self.path)
        if self.path.suffix == ".gz":
            raise DataError(f"{path} is compressed, and a compressed file cannot be read from the middle: unpack it "
                            f"with gunzip {path}")
        index = kept_index(self.path, stamp_of_file(self.path), lambda: _index(self.path))
        self._lines, self._offsets, self._lengths = index["line"], index["offset"], index["length"]
        self._before_features = index["before_features"]
        self._columns = _LAYOUTS[int(index["columns"])]
        self._detail_names = tuple(_DETAILS) if self._columns == LXMERT else ()
        self._has_boxes = True
        self._file = LazyFile(self.path)
        self._describe(str(path), index["image_ids"].tolist(), int(index["dim"]), index["count"], index["sizes"])

    def place(self, row: int) -> str:
        return f"{self.path}, line {self._lines[row]} (image {self.image_ids[row]})"

    def _image(self, row: int) -> ImageFeatures:
        cells = self._cells(row, int(self._lengths[row]))
        return ImageFeatures(
            regions=self._decoded(row, cells, "features").reshape(-1, self.region_dim or 0),
            boxes=self._decoded(row, cells, "boxes").reshape(-1, 4),
        )

    def _image_details(self, row: int) -> dict[str, np.ndarray]:
        cells = self._cells(row, int(self._before_features[row]))
        found = {}
        for name, (column, dtype) in _DETAILS.items():
            found[name] = self._decoded(row, cells, column, dtype)
            if self._counts is not None and len(found[name]) != self._counts[row]:
                raise DataError(f"{self.place(row)}: `{column}` has {len(found[name])} values for "
                                f"{self._counts[row]} boxes; the file is damaged")
        return found

    def _cells(self, row: int, length: int) -> dict[str, bytes]:
        content = bytes(self._file.read(int(self._offsets[row]), length))
        cells = dict(zip(self._columns, content.split(b"\t", len(self._columns) - 1), strict=True))
        if cells[self._columns[0]].decode("utf-8", "replace") != self.image_ids[row]:
            raise DataError(f"{self.place(row)}: the file was changed since it was opened, start again")
        return cells

    def _decoded(self, row: int, cells: dict[str, bytes], column: str, dtype: str = "<f4") -> np.ndarray:
        try:
            return np.frombuffer(base64.b64decode(cells[column], validate=True), dtype=dtype)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"{self.place(row)}: `{column}` is no base64 of {dtype!r} ({error}); the file is damaged, "
                            "fetch it again") from error


@dataclass(frozen=True, slots=True)
class _Row:
    """What the index keeps of an image, and the dimension of its features."""

    image_id: str
    line: int
    offset: int
    length: int
    before_features: int
    count: int
    size: tuple[int, int]  # width, height
    dim: int


def _index(path: Path) -> Index:
    """A pass over the file: where the rows are, and whether their columns fit, by their lengths alone."""
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"{path} holds no image")
    other = next((row for row in rows if row.dim != rows[0].dim), None)
    if other is not None:
        raise DataError(f"{path}, line {other.line} (image {other.image_id}): features of dimension {other.dim}, those "
                        f"of line {rows[0].line} have {rows[0].dim}; the file is truncated or damaged")
    numbers = ("line", "offset", "length", "before_features", "count")
    return {
        "image_ids": np.array([row.image_id for row in rows]),
        "sizes": np.array([row.size for row in rows], dtype=np.int32),
        "dim": np.array(rows[0].dim),
        "columns": np.array(len(_columns_of(path))),
        **{name: np.array([getattr(row, name) for row in rows], dtype=np.int64) for name in numbers},
    }


def _columns_of(path: Path) -> tuple[str, ...]:
    with open(path, "rb") as file:
        count = file.readline(_LONGEST_ROW).count(b"\t") + 1
    if count not in _LAYOUTS:
        raise DataError(f"{path}, line 1: {count} columns, expected {len(BOTTOM_UP)} ({', '.join(BOTTOM_UP)}) or "
                        f"{len(LXMERT)} ({', '.join(LXMERT)}), separated by tabs")
    return _LAYOUTS[count]


def _rows(path: Path) -> Iterator[_Row]:
    columns = _columns_of(path)
    header = "\t".join(columns).encode()
    offset = 0
    with (
        open(path, "rb", buffering=_BUFFER) as file,
        tqdm(total=path.stat().st_size, unit="B", unit_scale=True, desc=f"index of {path.name}", disable=None) as bar,
    ):
        for line in itertools.count(1):
            row = file.readline(_LONGEST_ROW)
            if not row:
                return
            if len(row) == _LONGEST_ROW:
                raise DataError(f"{path}, line {line}: longer than {_LONGEST_ROW} bytes; this is no TSV of features")
            content = row.rstrip(b"\r\n")
            if content and not (line == 1 and content == header):
                damaged = ("the row is damaged" if row.endswith(b"\n") else
                           "the file is truncated in this row, its last: fetch it again")
                yield _checked_row(path, line, offset, content, columns, damaged)
            offset += len(row)
            bar.update(len(row))


def _checked_row(
    path: Path, line: int, offset: int, content: bytes, columns: tuple[str, ...], damaged: str
) -> _Row:
    split = content.split(b"\t", len(columns) - 1)  # not through the features, the longest by far
    count = len(split) + split[-1].count(b"\t")
    image_id = split[0].decode("utf-8", "replace")
    where = f"{path}, line {line} (image {image_id[:100]})"
    if count != len(columns):
        raise DataError(f"{where}: {count} columns, the first row has {len(columns)}; {damaged}")
    cells = dict(zip(columns, split, strict=True))
    numbers = ("num_boxes", *(column for column in columns if column.endswith(("_w", "_h"))))
    try:
        found = {name.removeprefix("image").removeprefix("img"): int(cells[name]) for name in numbers}
    except ValueError as error:
        raise DataError(f"{where}: {', '.join(numbers)} have to be whole numbers ({error}); {damaged}") from error
    boxes = found["num_boxes"]
    if boxes < 1:
        raise DataError(f"{where}: num_boxes is {boxes}; an image needs at least one, remove the row")
    if _length(cells["boxes"]) != boxes * 4 * 4:
        raise DataError(f"{where}: `boxes` has {_length(cells['boxes'])} bytes, {boxes} boxes of 4 float32 have "
                        f"{boxes * 4 * 4}; {damaged}")
    length = _length(cells["features"])
    if length < 1 or length % (boxes * 4):
        raise DataError(f"{where}: `features` has {length} bytes, which does not divide by {boxes} boxes of float32; "
                        f"{damaged}")
    return _Row(image_id, line, offset, len(content), len(content) - len(split[-1]), boxes, (found["_w"], found["_h"]),
                length // (boxes * 4))


def _length(cell: bytes) -> int:
    """Bytes that a base64 text stands for; -1 for one whose length no text has, because it was cut."""
    return -1 if len(cell) % 4 else len(cell) // 4 * 3 - cell[-2:].count(b"=")
