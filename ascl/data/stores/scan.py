"""Read SCAN's `{split}_ims.npy`, with one row per image or one per caption."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import numpy as np

from ascl.core.errors import DataError
from ascl.core.reading import ArrayHeader, array_header, reading
from ascl.data.scan_text import count_scan_captions, images_of_captions, read_scan_ids
from ascl.data.stores.base import Features, FeatureStore, check_ids, require_features, runs_of_neighbors
from ascl.data.stores.lazy_file import LazyFile

_MOST_REPEATS = 64  # rows that are compared with the first one; no data set has so many captions an image
_SAMPLED_IMAGES = 64  # enough to find a wrong repeat, and cheap on 33 GB


class ScanFeatures(FeatureStore):
    """A store that reads SCAN's `{split}_ims.npy`, floats (rows, K, R), row by row; it has no boxes and no globals.

    Some copies repeat an image's row for each of its captions. The repeat is inferred from the ids file beside it, else
    from the number of captions, and checked on a sample: rows of one image are equal, those of neighboring images
    differ.

    Args:
        path: the `.npy` file.
        captions: number of captions of the whole split; None = count them in `{split}_caps.txt` beside the `.npy`, or
            if that does not exist, take each row as an image. Ignored if there is an ids file.
        captions_per_image: None = from the numbers of rows and captions; where these are equal, from rows that repeat.

    Raises:
        DataError: the file does not exist or is truncated, its array is not (rows, K, R) in C order, or no repeat fits.
    """

    def __init__(self, path: str | os.PathLike, *, captions: int | None = None,
                 captions_per_image: int | None = None) -> None:
        self.path = Path(path)
        self.source = str(path)
        self.provenance = {}
        array = self._header()
        if len(array.shape) != 3 or array.dtype.kind != "f" or 0 in array.shape:
            raise DataError(f"{path} has shape {array.shape}, type {array.dtype}, expected floats (rows, regions, dim)")
        if array.fortran_order:
            raise DataError(f"{path} is in Fortran order: save it again with numpy.ascontiguousarray")
        total, self.num_regions, self.region_dim = array.shape
        self._file, self._start, self._type = LazyFile(self.path), array.offset, array.dtype
        split = self.path.name.removesuffix(".npy").removesuffix("_ims")
        ids = read_scan_ids(self.path.parent, split)
        if ids is not None:
            # one line per image or per caption; lines of an image follow one another
            self.image_ids = [name for name, _ in itertools.groupby(ids)]
            check_ids(self.image_ids, f"{split}_ids.txt beside {path}")
            if total % len(self.image_ids):
                raise DataError(f"{path} has {total} rows for the {len(self.image_ids)} images of its ids file: one of "
                                "the two belongs to another split")
            self.repeat = total // len(self.image_ids)
        else:
            captions = count_scan_captions(self.path.parent, split) if captions is None else captions
            self.repeat = self._repeat_from_captions(total, captions, captions_per_image)
            self.image_ids = [str(i) for i in range(total // self.repeat)]
            self.numbered = True
        self._check_repeat()

    def _repeat_from_captions(self, total: int, captions: int | None, per_image: int | None) -> int:
        """Return how many rows an image has: one, or one for each of its captions."""
        if captions is None:
            return 1
        if per_image is not None:
            images = images_of_captions(self.path, captions, per_image)
            if total not in (images, captions):
                raise DataError(f"{self.path} has {total} rows, but {captions} captions are {images} images with "
                                f"{per_image} captions each (scan_captions_per_image): give features and captions of "
                                "the same split, or correct that number")
            return total // images
        if captions < total or captions % total:
            raise DataError(f"{self.path} has {total} rows for {captions} captions, which does not fit: an image has "
                            "one row, or one for each of its captions. Give features and captions of the same split, "
                            "with its ids.txt if the number of captions differs between images")
        return self._repeat_of_rows(total) if captions == total else 1

    def _repeat_of_rows(self, total: int) -> int:
        """Return by how many equal rows each image is given; 1 if there is one caption an image."""
        equal = 1
        while equal < min(total, _MOST_REPEATS) and self._equal_rows(0, equal):
            equal += 1
        # the first two images may be one photograph, so a part of the first equal rows may be the right number
        fitting = (n for n in range(equal, 0, -1) if equal % n == 0 and total % n == 0)
        return next(n for n in fitting if self._differing_row(n, total) is None)

    def _differing_row(self, repeat: int, total: int) -> tuple[int, int] | None:
        """Return two rows of a sample that belong to one image with `repeat` rows each and yet differ."""
        for first in self._sample(total // repeat) * repeat:
            for other in range(first + 1, first + repeat):
                if not self._equal_rows(first, other):
                    return first, other
        return None

    @staticmethod
    def _sample(images: int) -> np.ndarray:
        return np.unique(np.linspace(0, images - 1, _SAMPLED_IMAGES).astype(np.int64))

    def _check_repeat(self) -> None:
        if (differing := self._differing_row(self.repeat, len(self) * self.repeat)) is not None:
            raise DataError(f"{self.path}: rows {differing[0]} and {differing[1]} should be one image, by the "
                            f"ids, the captions or scan_captions_per_image ({self.repeat} rows per image), but differ: "
                            "correct those")
        first = self._sample(len(self)) * self.repeat
        same = [self._equal_rows(row - self.repeat, row) for row in first[1:]]
        if sum(same) > len(same) / 2:  # with a repeat of five, four in five neighbors are equal; real images rarely
            raise DataError(f"{self.path}: neighboring images have equal features, so an image has more than "
                            f"{self.repeat} rows; put the split's caps.txt or ids.txt beside the features, or set "
                            "scan_captions_per_image")

    def _equal_rows(self, row: int, other: int) -> bool:
        first, second = self._read_rows(np.array([row, other]))
        return np.array_equal(first, second)

    def _header(self) -> ArrayHeader:
        """Return the header of the array, after checking that the file is complete."""
        require_features(self.path)
        with reading(self.path, "an array (.npy)"), open(self.path, "rb") as file:
            archive = file.read(2) == b"PK"
            file.seek(0)
            header = None if archive else array_header(file, self.path.stat().st_size)
        if header is None:
            raise DataError(f"{self.path} is an archive of arrays (.npz) with the suffix of a single one: rename it")
        return header

    def _read_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return rows of the file, (n, K, R) in its own type; runs of consecutive rows are read at once."""
        values = np.empty((len(rows), self.num_regions or 0, self.region_dim or 0), dtype=self._type)
        for start, stop in runs_of_neighbors(rows):
            self._file.read_array(values[start:stop], self._start + int(rows[start]) * values[0].nbytes)
        return values

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        if "regions" not in kinds:
            return Features(None, None)
        with np.errstate(over="ignore"):  # what float32 cannot hold is found as not finite
            regions = self._read_rows(rows * self.repeat).astype(np.float32, copy=False)
        self._check_values("regions", regions, rows, repeat=self.repeat)
        return Features(regions, None)

    def _remedy_of_values(self, name: str, row: int) -> str:
        return "Download the file again"
