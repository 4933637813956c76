"""Read score matrices written by other programs, in the layouts that they have."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ascl.core.errors import DataError
from ascl.core.limits import ARRAY_BYTES
from ascl.core.reading import read_arrays, reading, shown
from ascl.data.text_files import read_text
from ascl.retrieval.ranking import Vector, as_owner, check_matrix, check_owner

BESIDE = ("owner", "image_ids", "caption_ids")  # arrays of a score file that are no scores
_NOISE = 1e-3  # of a row's standard deviation: two encodings of one image differ by less, two images by far more
_SAMPLED = 64  # images whose repeated rows are compared


@dataclass(frozen=True, eq=False)
class GivenScores:
    """Scores of another program.

    scores: (N_images, N_texts) float. owner: (N_texts,) int64. notes: how the file was read, where that is not plain.
    image_ids, caption_ids: the arrays of these names, None if the file has none.
    """

    scores: np.ndarray
    owner: np.ndarray
    notes: tuple[str, ...] = ()
    image_ids: np.ndarray | None = None
    caption_ids: np.ndarray | None = None


def load_scores(path: str | os.PathLike, owner: Vector | None = None, *,
                captions_per_image: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Return the scores (N_images, N_texts) and owners (N_texts,) of a file; see `read_scores`."""
    given = read_scores(path, owner, captions_per_image=captions_per_image)
    return given.scores, given.owner


def read_scores(path: str | os.PathLike, owner: Vector | None = None, *,
                captions_per_image: int | None = None) -> GivenScores:
    """Read a score matrix and its owners.

    The matrix may be (images, texts); (texts, images), which is transposed; or (texts, texts) with the row, or column,
    of an image repeated for each of its texts, as VSE++ writes it: then the first one of each image is taken.

    Args:
        path: `.npz` file written by `numpy.savez(path, scores=scores, owner=owner)`, or `.npy` file of the matrix.
        owner: image of each text; required if the file has none and there is no fixed number of captions per image.
        captions_per_image: the texts of image i are this many, from i * captions_per_image on. Neither is ever guessed.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: the file is truncated or of another kind, an array is missing, shapes and owners do not fit, or there
            are two different matrices, one for each direction.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no score file at {shown(path)}: give an .npz or .npy file")
    arrays = _read_arrays(path)
    try:
        name, scores = _only_matrix({name: values for name, values in arrays.items() if name not in BESIDE})
        ways = {"an array `owner` in the file": arrays.get("owner"), "owner": owner,
                "captions_per_image": captions_per_image}
        chosen = [way for way, value in ways.items() if value is not None]
        if len(chosen) > 1:
            raise DataError(f"{' and '.join(chosen)} both say which image a text belongs to: leave one of them out")
        if not chosen:
            raise DataError(f"no array `owner` says which image each text of the matrix {scores.shape} belongs to: "
                            f"give captions_per_image{_guess(*scores.shape)}, or owner, the image of each text, as in "
                            "numpy.savez(path, scores=scores, owner=numpy.repeat(range(images), 5))")
        if captions_per_image is None:
            vector = as_owner(arrays["owner"] if owner is None else owner)
        else:
            vector = _regular_owner(scores.shape, captions_per_image)
        given = _upright(GivenScores(scores, vector, () if name == "scores" else (f"scores are its array {name}",),
                                     arrays.get("image_ids"), arrays.get("caption_ids")))
        check_owner(given.owner, *given.scores.shape)
    except DataError as error:
        raise DataError(f"{shown(path)}: {error}") from None
    return given


def read_owner(path: str | os.PathLike) -> np.ndarray:
    """Read the image of each text, (N_texts,) int64, from a `.npy` file or a text file with one number a line.

    Raises:
        DataError: the file does not exist, is damaged, or holds anything but whole numbers.
    """
    if Path(path).suffix == ".npy":
        with reading(path, "a .npy file"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        try:
            return as_owner(array)
        except DataError as error:
            raise DataError(f"{shown(path)}: {error}") from None
    numbers = []
    for row, line in enumerate(read_text(Path(path)).rstrip().split("\n"), start=1):
        text = line.strip()
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            raise DataError(f"{shown(path)}, row {row}: expected the number of an image, counted from 0, found "
                            f"{line[:60]!r}")
        numbers.append(int(text))
    return np.array(numbers, dtype=np.int64)


def _read_arrays(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Return the arrays of an .npz file, or the one of an .npy file, mapped, as `scores`."""
    with reading(path, "a score file (.npz or .npy of numbers)"):
        opened = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(opened, np.ndarray):
            ARRAY_BYTES.check(opened.nbytes, shown(path))
            return {"scores": opened}
        opened.close()
    return read_arrays(path)


def _only_matrix(arrays: dict[str, np.ndarray]) -> tuple[str, np.ndarray]:
    """Return the name and the values of the only matrix, which may be there twice, also transposed."""
    matrices = {name: values for name, values in arrays.items() if values.ndim == 2}
    if "scores" in arrays:
        matrices = {"scores": arrays["scores"], **matrices}
    if not matrices:
        raise DataError(f"no array `scores` (arrays: {', '.join(arrays) or 'none'}): write it with "
                        "numpy.savez(path, scores=..., owner=...)")
    name, scores = next(iter(matrices.items()))
    for each, values in matrices.items():
        check_matrix(values, f"`{each}`")
        if each != name and not any(np.array_equal(values, known, equal_nan=True) for known in (scores, scores.T)):
            raise DataError(f"two different matrices, `{name}` {scores.shape} and `{each}` {values.shape}: one matrix "
                            "is ranked in both directions. Write each into a file of its own as `scores`, and take "
                            "image to text from one evaluation, text to image from the other")
    return name, scores


def _guess(rows: int, columns: int) -> str:
    """Return what fits the shape, for the message."""
    few, many = sorted((rows, columns))
    return f" ({many // few} fits {few} images)" if 0 < few < many and many % few == 0 else ""


def _regular_owner(shape: tuple[int, ...], per_image: int) -> np.ndarray:
    rows, columns = shape
    texts = max(shape)
    if per_image < 1 or texts % per_image or min(shape) not in (texts // per_image, texts):
        raise DataError(f"a matrix of {rows} x {columns} does not fit {per_image} captions per image"
                        f"{_guess(rows, columns)}: correct captions_per_image, or give owner")
    return np.arange(texts) // per_image


def _upright(given: GivenScores) -> GivenScores:
    """Return scores as (images, texts), one row an image."""
    scores, owner = given.scores, given.owner
    rows, columns = scores.shape
    texts, images = len(owner), int(owner.max()) + 1
    if texts not in (rows, columns):
        raise DataError(f"the scores have {rows} rows and {columns} columns, but owner has {texts} entries, one for "
                        "each text: rows or columns must be the texts")
    if owner.min() == 1 and images == min(rows, columns) + 1:
        raise DataError("owner counts images from 1: subtract 1, images are counted from 0")
    if columns != texts or (rows == texts > images and _repeats(scores.T, owner) and not _repeats(scores, owner)):
        scores = scores.T
        given = replace(given, scores=scores, notes=(*given.notes, f"read as texts x images ({rows} x {columns}) and "
                                                     "transposed"))
    if len(scores) == texts > images and _repeats(scores, owner):
        _, first = np.unique(owner, return_index=True)
        if len(first) < images:
            raise DataError(f"the matrix repeats images for their texts, but owner names {len(first)} of {images} "
                            "images: number the images that have texts without gaps")
        ids = given.image_ids
        given = replace(given, scores=scores[first], image_ids=ids[first] if ids is not None and len(ids) == texts
                        else ids, notes=(*given.notes, f"each image is given once for each of its texts ({texts} x "
                                         f"{texts}); the first of each was taken, which leaves {images} images"))
    return given


def _repeats(scores: np.ndarray, owner: np.ndarray) -> bool:
    """Return whether row t is the image of text t: rows of the same owner are equal but for noise, in a sample.

    Only an image with several texts can show it.
    """
    images, counts = np.unique(owner, return_counts=True)
    images = images[counts > 1]
    for image in images[np.linspace(0, len(images) - 1, _SAMPLED).astype(int)] if len(images) else ():
        first, *others = np.flatnonzero(owner == image)
        row = np.asarray(scores[first], dtype=np.float64)
        if not all(np.abs(scores[other] - row).max() <= _NOISE * row.std() for other in others):
            return False
    return len(images) > 0
