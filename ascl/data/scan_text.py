"""SCAN's text files: `{split}_caps.txt`, a caption a line, and `{split}_ids.txt`, a line for each image or caption."""

from __future__ import annotations

import os
from pathlib import Path

from ascl.core.errors import DataError
from ascl.data.text_files import GET_DATA, locate, read_lines

# rows say which image a caption belongs to, so a row must not be removed
_FILL_IN = "write one into this row, but do not remove the row: that would shift all later ones"


def read_scan_captions(folder: str | os.PathLike, split: str) -> tuple[Path, list[str]]:
    """Return the path of `{split}_caps.txt` (or `.gz`) and its captions, one a line.

    Raises:
        DataError: there is no such file (the message lists the splits there are), or a line is blank or not UTF-8.
    """
    path = locate(Path(folder) / f"{split}_caps.txt")
    if path is None:
        raise DataError(f"no {split}_caps.txt (or .gz) in {folder}; splits there: {scan_splits(folder)}. {GET_DATA}")
    return path, read_lines(path, "the caption", _FILL_IN)


def read_scan_ids(folder: str | os.PathLike, split: str) -> list[str] | None:
    """Return the lines of `{split}_ids.txt` (or `.gz`), one per image or caption; None if there is no such file."""
    path = locate(Path(folder) / f"{split}_ids.txt")
    return None if path is None else read_lines(path, "the id", _FILL_IN)


def count_scan_captions(folder: str | os.PathLike, split: str) -> int | None:
    """Return the number of captions in `{split}_caps.txt` (or `.gz`); None if there is no such file."""
    exists = locate(Path(folder) / f"{split}_caps.txt") is not None
    return len(read_scan_captions(folder, split)[1]) if exists else None


def scan_splits(folder: str | os.PathLike) -> str:
    """Return the splits whose captions are in a folder, for messages."""
    return ", ".join(sorted({path.name.split("_caps.txt")[0] for path in Path(folder).glob("*_caps.txt*")})) or "none"


def images_of_captions(path: str | os.PathLike, captions: int, per_image: int) -> int:
    """Return the number of images of SCAN's text without an ids file, which `path` names in the message."""
    if per_image < 1 or captions % per_image:
        raise DataError(f"{path} has {captions} captions, which is not a multiple of {per_image} captions per image: "
                        "the file is incomplete, or else set scan_captions_per_image, or give an ids file")
    return captions // per_image
