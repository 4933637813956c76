"""Described images, as they are added to an index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ascl.core.errors import DataError
from ascl.core.reading import shown
from ascl.index.places import relative_to
from ascl.index.state import Record


@dataclass(frozen=True, eq=False)
class Images:
    """Described images to add to an index."""

    ids: Sequence[str]  # (N,) names, each once
    paths: Sequence[str]  # (N,) their files; absolute, or relative to the working directory
    digests: np.ndarray  # (N, 32) uint8, SHA-256 of the files
    sizes: np.ndarray  # (N,) sizes of the files in bytes, -1 = unknown
    vectors: np.ndarray  # (N, d) of the index's type
    norms: np.ndarray  # (N,) float32 content norms, NaN if the method has none

    def record(self, row: int, folder: Path) -> Record:
        """Return the record of a row for the index in `folder`."""
        path = os.path.abspath(self.paths[row])
        return Record(self.ids[row], path, relative_to(folder, path), self.digests[row].tobytes(),
                      int(self.sizes[row]), float(self.norms[row]))

    def check_usable(self) -> None:
        """Raise a DataError for a descriptor that is not finite or zero, or an id that is no storable text."""
        for image, path in zip(self.ids, self.paths, strict=True):
            if not image or "\0" in image or image.encode("utf-8", "replace").decode() != image:
                raise DataError(f"{shown(path)}: its id {image!r} is empty, has a NUL or is not UTF-8; rename the file")
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
    moved: int = 0      # those of `same` that got a new path or id, because their file has moved

    def __add__(self, other: Added) -> Added:
        return Added(self.added + other.added, self.same + other.same, self.replaced + other.replaced,
                     self.moved + other.moved)


class Conflict(DataError):
    """An image to add has the id of an indexed one and other content; the message ends with how to replace that."""


def conflict(image: str, before: str, now: str, *, indexed: bool, gone: bool = False, by_path: bool = False
             ) -> DataError:
    """Return the error for two images with the same id and different content.

    Args:
        image, before, now: the id, and the two files.
        indexed: the first is in the index.
        gone: there is no file of the first any more.
        by_path: ids are paths relative to the folder that was given, so that those below a common folder differ.
    """
    folder = _common_folder(image, before, now) if by_path and not gone else ""
    before, now = shown(before), shown(now)
    if not indexed:
        return DataError(f"two images have the id {image!r} and different content: {before} and {now}; rename one")
    above = f"add the folder above both, {shown(folder)}, so that their ids differ, " * bool(folder)
    return Conflict(f"two images have the id {image!r}: {before}, which is in the index"
                    f"{' and no longer on the disk' * gone}, and {now}, whose content differs; {above}rename one, or "
                    "replace the indexed one")


def _common_folder(image: str, before: str, now: str) -> str:
    """Return the folder above both files, by which the second gets another id; "" = only the root does, or none."""
    before, now = os.path.abspath(before), os.path.abspath(now)
    try:
        folder = os.path.commonpath([os.path.dirname(before), os.path.dirname(now)])
    except ValueError:      # on two drives of Windows
        return ""
    differs = shown(Path(os.path.relpath(now, folder)).as_posix()) != image
    return folder if differs and folder != os.path.dirname(folder) else ""
