"""Read regions from tab-separated rows with base64 columns, as published with bottom-up attention and LXMERT."""

from __future__ import annotations

import base64
import binascii
import itertools
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.core.reading import reading, shown
from ascl.data.stores.base import LARGEST, require_features
from ascl.data.stores.float_type import float_type
from ascl.data.stores.lazy_file import LazyFile
from ascl.data.stores.per_image import Entry, ImageFeatures, PerImageFeatures, Wrong, kept_index, stamp_of_file

BOTTOM_UP = ("image_id", "image_w", "image_h", "num_boxes", "boxes", "features")
LXMERT = ("img_id", "img_h", "img_w", "objects_id", "objects_conf", "attrs_id", "attrs_conf", "num_boxes", "boxes",
          "features")
_LAYOUTS = {"bottom-up": BOTTOM_UP, "lxmert": LXMERT}
# our name -> (column, kind of its numbers)
_DETAILS = {"class_ids": ("objects_id", "i"), "scores": ("objects_conf", "f"),
            "attribute_ids": ("attrs_id", "i"), "attribute_scores": ("attrs_conf", "f")}
_SIZES = {"f": (4, 8, 2), "i": (8, 4)}  # bytes of a number
_SAMPLE = 16  # images from which the type of the features is inferred
_SAMPLE_BYTES = 1 << 14  # of each, at least one region
_BOM = b"\xef\xbb\xbf"
_LONGEST_ROW = 1 << 26  # bytes; 100 regions of 2048 take 1.1e6, so a file without line ends is found early
_BUFFER = 1 << 20


class TsvFeatures(PerImageFeatures):
    """A TSV with the columns `BOTTOM_UP` or `LXMERT`, recognized by their number; a header line is skipped.

    `boxes` (k, 4) and `features` (k, R) are floats in base64; LXMERT's `objects_id` and `attrs_id` are whole numbers
    and count from 0 without the background; its confidences are floats. The publishers write float32 and int64. Other
    sizes are recognized: by the length of a cell, and for features, whose R is not known, by a sample of the values.
    The first opening takes a pass over the file.

    Raises:
        DataError: the file does not exist, is compressed or truncated, or has other columns; the columns of a row do
            not fit one another, or an id is given twice (the message names the line); or the features are of no known
            type.
    """

    def __init__(self, path: str | os.PathLike, *, skip_broken: bool = False) -> None:
        self.path = Path(path)
        require_features(self.path)
        if self.path.suffix == ".gz":
            raise DataError(f"{path} is compressed: unpack it with gunzip {path}")
        index = kept_index(self.path, stamp_of_file(self.path), lambda wrong: _entries(self.path, wrong),
                           skip_broken=skip_broken)
        self._columns = _LAYOUTS[str(index.layout)]
        self._file = LazyFile(self.path)
        self._describe(str(path), index, tuple(_DETAILS))
        self._type = self._type_of_features(int(index.dim))
        self.region_dim = int(index.dim) // self._type.itemsize

    def _type_of_features(self, length: int) -> np.dtype:
        """Return the type of the features, given the bytes of a region."""
        rows = np.unique(np.linspace(0, len(self) - 1, _SAMPLE).astype(np.int64)).tolist()
        most = max(1, _SAMPLE_BYTES // length) * length
        sample = []
        for row in rows:
            with suppress(DataError):  # a broken row is refused when it is read
                values = self._bytes_of(row, self._cells(row, with_features=True), "features")[:most]
                sample.append(values[: len(values) // length * length])
        found = float_type(sample, length) if sample else np.dtype("<f4")
        if found is None:
            raise DataError(f"{self.place(rows[0])}, and others: the {length} bytes of a region are neither float32 "
                            f"nor float64 nor float16, as each they are not finite, above {LARGEST:g} or ambiguous; "
                            "write them as float32")
        return found

    def place(self, row: int) -> str:
        return f"{self.path}, line {self._places[row, 0]} (image {self.image_ids[row]})"

    def _image(self, row: int) -> ImageFeatures:
        cells = self._cells(row, with_features=True)
        features = np.frombuffer(self._bytes_of(row, cells, "features"), self._type)
        if features.size % (self.region_dim or 1):
            raise DataError(f"{self.place(row)}: the file was changed since it was opened; run the program again")
        with np.errstate(over="ignore"):  # what float32 cannot hold is found as not finite
            return ImageFeatures(regions=features.astype(np.float32, copy=False).reshape(-1, self.region_dim or 0),
                                 boxes=self._numbers(row, cells, "boxes", "f", 4).reshape(-1, 4).astype(np.float32))

    def _image_details(self, row: int) -> dict[str, np.ndarray]:
        cells = self._cells(row, with_features=False)
        return {name: self._numbers(row, cells, column, kind) for name, (column, kind) in _DETAILS.items()}

    def _cells(self, row: int, *, with_features: bool) -> dict[str, bytes]:
        _, offset, length, before_features = self._places[row].tolist()
        content = self._file.read(offset, length if with_features else before_features)
        cells = dict(zip(self._columns, content.split(b"\t", len(self._columns) - 1), strict=True))
        if cells[self._columns[0]].decode("utf-8", "surrogateescape") != self.image_ids[row]:
            raise DataError(f"{self.place(row)}: the file was changed since it was opened; run the program again")
        return cells

    def _bytes_of(self, row: int, cells: dict[str, bytes], column: str) -> bytes:
        try:
            return base64.b64decode(cells[column], validate=True)
        except (binascii.Error, ValueError) as error:
            raise DataError(f"{self.place(row)}: `{column}` is not base64 ({error}): download it again") from error

    def _numbers(self, row: int, cells: dict[str, bytes], column: str, kind: str, each: int = 1) -> np.ndarray:
        """Return the numbers of a column that has `each` for every region; the length of the cell tells their size."""
        content, count = self._bytes_of(row, cells, column), int(self._counts[row]) * each
        size = len(content) // count
        if len(content) % count or size not in _SIZES[kind]:
            raise DataError(f"{self.place(row)}: `{column}` has {len(content)} bytes, which are not {count} numbers: "
                            "download it again")
        return np.frombuffer(content, f"<{kind}{size}")


def _entries(path: Path, wrong: Wrong) -> Iterator[Entry]:
    """Yield an entry per row, in one pass over the file; check by lengths alone that the columns fit."""
    with reading(path, "a TSV of features"), open(path, "rb") as first:
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
            with reading(path, "a TSV of features"):
                row = file.readline(_LONGEST_ROW)
            if not row:
                return
            if len(row) == _LONGEST_ROW:
                raise DataError(f"{path}, line {line}: longer than {_LONGEST_ROW:,} bytes: not a TSV of features")
            mark = len(_BOM) if line == 1 and row.startswith(_BOM) else 0
            content = row[mark:].rstrip(b"\r\n")
            if content and not (line == 1 and content == header):
                damaged = ("the row is damaged: download the file again" if row.endswith(b"\n") else
                           "the file is truncated in this row, its last: download it again")
                try:
                    entry = _checked_row(path, line, offset + mark, content, layout, damaged)
                except DataError as error:
                    wrong(error)
                else:
                    yield entry
            offset += len(row)
            bar.update(len(row))


def _checked_row(path: Path, line: int, offset: int, content: bytes, layout: str, damaged: str) -> Entry:
    columns = _LAYOUTS[layout]
    split = content.split(b"\t", len(columns) - 1)  # leaves the features, by far the longest, in one piece
    count = len(split) + split[-1].count(b"\t")
    image_id = split[0].decode("utf-8", "surrogateescape")  # the index refuses what is not UTF-8
    where = f"{path}, line {line} (image {shown(image_id[:100])})"
    if count != len(columns):
        raise DataError(f"{where}: {count} columns, the first row has {len(columns)}; {damaged}")
    cells = dict(zip(columns, split, strict=True))
    numbers = ("num_boxes", *(column for column in columns if column.endswith(("_w", "_h"))))
    try:
        found = {name.removeprefix("image").removeprefix("img"): int(cells[name]) for name in numbers}
    except ValueError as error:
        raise DataError(f"{where}: {', '.join(numbers)} must be whole numbers ({error}); {damaged}") from error
    boxes = found["num_boxes"]
    if boxes < 1:
        raise DataError(f"{where}: num_boxes is {boxes}; an image needs at least one: remove the row, or convert with "
                        "skip_broken, which leaves such rows out")
    bytes_of = {}
    for name in ("boxes", "features"):
        if len(cells[name]) % 4:
            raise DataError(f"{where}: `{name}` has {len(cells[name])} characters, which is not base64; {damaged}")
        bytes_of[name] = len(cells[name]) // 4 * 3 - cells[name][-2:].count(b"=")
    if bytes_of["boxes"] not in [boxes * 4 * size for size in _SIZES["f"]]:
        raise DataError(f"{where}: `boxes` has {bytes_of['boxes']} bytes, {boxes} boxes have {boxes * 16}; {damaged}")
    length, rest = divmod(bytes_of["features"], boxes)
    if length < 1 or rest or length % 2:
        raise DataError(f"{where}: `features` has {bytes_of['features']} bytes, which {boxes} boxes do not divide; "
                        f"{damaged}")
    return Entry(image_id, where, boxes, length, boxes=True, details=layout == "lxmert", layout=layout, in_bytes=True,
                 if_odd=damaged, size=(found["_w"], found["_h"]),
                 place=(line, offset, len(content), len(content) - len(split[-1])))
