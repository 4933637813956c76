"""Read regions from tab-separated rows with base64 columns, as published with bottom-up attention and LXMERT."""

from __future__ import annotations

import base64
import binascii
import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.data.stores.base import require_file
from ascl.data.stores.lazy_file import LazyFile
from ascl.data.stores.per_image import Entry, ImageFeatures, PerImageFeatures, kept_index, stamp_of_file

BOTTOM_UP = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes",
          "features")
_LAYOUTS = {"bottom-up": BOTTOM_UP, "lxmert": LXMERT}
# our name -> (column, type)
_DETAILS = {"class_ids": ("objects_id", "<i8"), "scores": ("objects_conf", "<f4"),
            "attribute_ids": ("attrs_id", "<i8"), "attribute_scores": ("attrs_conf", "<f4")}
_LONGEST_ROW = 1 << 26  # bytes; 100 regions of 2048 take 1.1e6, so a file without line ends is found early
_BUFFER = 1 << 20


class TsvFeatures(PerImageFeatures):
    """A TSV with the columns `BOTTOM_UP` or `LXMERT`, recognized by their number; a header line is skipped.

    `boxes` (k, 4) and `features` (k, R) are float32 in base64. LXMERT's `objects_id` and `attrs_id` are int64 and count
    from 0 without the background; its confidences are float32. The first opening takes a pass over the file.

    Raises:
        DataError: the file does not exist, is compressed or truncated, or has other columns; or the columns of a row do
            not fit one another (the message names its line).
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = Path(path)
        require_file(self.path)
        if self.path.suffix == ".gz":
            raise DataError(f"{path} is compressed: unpack it with gunzip {path}")
        index = kept_index(self.path, stamp_of_file(self.path), lambda: _entries(self.path))
        self._columns = _LAYOUTS[str(index.layout)]
        self._file = LazyFile(self.path)
        self._describe(str(path), index, tuple(_DETAILS))

    def place(self, row: int) -> str:
        return f"{self.path}, line {self._places[row, 0]} (image {self.image_ids[row]})"

    def _image(self, row: int) -> ImageFeatures:
        cells = self._cells(row, with_features=True)
        return ImageFeatures(regions=self._decoded(row, cells, "features").reshape(-1, self.region_dim or 0),
                             boxes=self._decoded(row, cells, "boxes").reshape(-1, 4))

    def _image_details(self, row: int) -> dict[str, np.ndarray]:
        cells = self._cells(row, with_features=False)
        return {name: self._decoded(row, cells, column, dtype) for name, (column, dtype) in _DETAILS.items()}

    def _cells(self, row: int, *, with_features: bool) -> dict[str, bytes]:
        _, offset, length, before_features = self._places[row].tolist()
        content = self._file.read(offset, length if with_features else before_features)
        cells = dict(zip(self._columns, content.split(b"\t", len(self._columns) - 1), strict=True))
        if cells[self._columns[0]].decode("utf-8", "replace") != self.image_ids[row]:
            raise DataError(f"{self.place(row)}: the file was changed since it was opened; run the program again")
        return cells

    def _decoded(self, row: int, cells: dict[str, bytes], column: str, dtype: str = "<f4") -> np.ndarray:
        try:
            return np.frombuffer(base64.b64decode(cells[column], validate=True), dtype=dtype)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"{self.place(row)}: `{column}` is not base64 ({error}): download it again") from error


def _entries(path: Path) -> Iterator[Entry]:
    """Yield an entry per row, in one pass over the file; check by lengths alone that the columns fit."""
    with open(path, "rb") as first:
        count = first.readline(_LONGEST_ROW).count(b"\t") + 1
    layout = next((name for name, columns in _LAYOUTS.items() if len(columns) == count), None)
    if layout is None:
        wanted = " or ".join(f"{len(columns)} ({', '.join(columns)})" for columns in _LAYOUTS.values())
        raise DataError(f"{path}, line 1: {count} columns, expected {wanted}, separated by tabs")
    header = "\t".join(_LAYOUTS[layout]).encode()
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
                raise DataError(f"{path}, line {line}: longer than {_LONGEST_ROW:,} bytes: not a TSV of features")
            content = row.rstrip(b"\r\n")
            if content and not (line == 1 and content == header):
                damaged = ("the row is damaged: download the file again" if row.endswith(b"\n") else
                           "the file is truncated in this row, its last: download it again")
                yield _checked_row(path, line, offset, content, layout, damaged)
            offset += len(row)
            bar.update(len(row))


def _checked_row(path: Path, line: int, offset: int, content: bytes, layout: str, damaged: str) -> Entry:
    columns = _LAYOUTS[layout]
    split = content.split(b"\t", len(columns) - 1)  # leaves the features, by far the longest, in one piece
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
        raise DataError(f"{where}: {', '.join(numbers)} must be whole numbers ({error}); {damaged}") from error
    boxes, box_bytes, length = found["num_boxes"], _length(cells["boxes"]), _length(cells["features"])
    if boxes < 1:
        raise DataError(f"{where}: num_boxes is {boxes}; an image needs at least one: remove the row")
    if box_bytes != boxes * 16:
        raise DataError(f"{where}: `boxes` has {box_bytes} bytes, {boxes} boxes have {boxes * 16}; {damaged}")
    if length < 1 or length % (boxes * 4):
        raise DataError(f"{where}: `features` has {length} bytes, which {boxes} boxes do not divide; {damaged}")
    return Entry(image_id, where, boxes, length // (boxes * 4), boxes=True, details=layout == "lxmert", layout=layout,
                 size=(found["_w"], found["_h"]), place=(line, offset, len(content), len(content) - len(split[-1])))


def _length(cell: bytes) -> int:
    """Return how many bytes a base64 text encodes; -1 if its length is impossible, because it was truncated."""
    return -1 if len(cell) % 4 else len(cell) // 4 * 3 - cell[-2:].count(b"=")
