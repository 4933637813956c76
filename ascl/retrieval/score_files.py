"""Read score matrices written by other programs."""

from __future__ import annotations

import os
import zipfile
import zlib
from pathlib import Path

import numpy as np

from ascl.core.errors import DataError
from ascl.retrieval.ranking import Vector, as_owner, check_matrix, check_owner


def load_scores(path: str | os.PathLike, owner: Vector | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Read a score matrix and its owners from an `.npz` file with the arrays `scores` and `owner`.

    Args:
        path: file written by `numpy.savez(path, scores=scores, owner=owner)`.
        owner: required if the file has none; owners are never guessed from the shape.

    Returns:
        scores (N_images, N_texts) float, owner (N_texts,) int64.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is truncated or not an npz file, an array is missing, or shapes and owners do not fit.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"no score file at {path}: give an .npz file")
    arrays = {}
    try:
        opened = np.load(path, allow_pickle=False)
        if not isinstance(opened, np.ndarray):
            with opened as archive:
                arrays = {name: archive[name] for name in archive.files if name in ("scores", "owner")}
    except (OSError, EOFError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} cannot be read as an .npz file of numbers, or is truncated: {error}") from error
    if isinstance(opened, np.ndarray):
        raise DataError(f"{path} holds a single array: write numpy.savez(path, scores=scores, owner=owner) instead")
    if "scores" not in arrays:
        raise DataError(f"{path} has no array `scores`: write it with numpy.savez(path, scores=...)")
    if "owner" in arrays and owner is not None:
        raise DataError(f"{path} holds an array `owner` and another one was given: leave one of them out")
    if "owner" not in arrays and owner is None:
        raise DataError(f"{path} has no array `owner`: add one integer per column (text) of `scores`, the row (image) "
                        "of that text, for example numpy.savez(path, scores=scores, owner=numpy.repeat(range(n), 5))")
    scores = arrays["scores"]
    try:
        check_matrix(scores, "`scores`")
        owner_vector = as_owner(arrays["owner"] if owner is None else owner)
        check_owner(owner_vector, *scores.shape)
    except DataError as error:
        raise DataError(f"{path}: {error}") from None
    return scores, owner_vector
