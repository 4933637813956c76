"""Images into an index, and answers out of it: who copies whom, and whether that is a copy at all."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ascl.asymmetry import Direction, direction
from ascl.core.errors import DataError
from ascl.core.hashing import sha256_of
from ascl.image_copy.benchmark.near_duplicates import HASH_DISTANCE, perceptual_hash
from ascl.image_copy.evaluation.files import write_predictions
from ascl.image_copy.evaluation.score_norm import background_score
from ascl.image_copy.matching.model import ImageDescriber
from ascl.images.loader import Decoder
from ascl.images.read import load_image
from ascl.index import calibration as calibrate
from ascl.index.calibration import Calibration, Nearest, Rate, ScoreNorm
from ascl.index.exact import nearest_references
from ascl.index.files import Images
from ascl.index.store import Added, CopyIndex, conflict, known_files

CONFIRMED_TOGETHER = 1024   # images: what a kill can cost
SMALLEST_SIDE = 16          # pixels of the shorter side: less shows too little to be told from others
MARGIN = 0.02               # of the norms, relative
SAVED_AGAIN = "in the index, saved again"
HASHED = 20                 # background images beyond those above the threshold that a hash looks at
NAMED = 3                   # background images of the highest scores that are told
DIRECTIONS = {
    Direction.A_COPIES_B: "query copies reference",
    Direction.B_COPIES_A: "reference copies query",
    Direction.UNCLEAR: "unclear",
}


@dataclass(frozen=True)
class Skipped:
    """An image that could not be used."""

    path: str
    reason: str


@dataclass(frozen=True)
class Reading:
    """How images are read and described.

    Attributes:
        batch_size: images in a forward pass.
        workers: processes that decode; 0 = none apart.
        skip_unreadable: leave images out that cannot be read or are too small, instead of stopping.
        progress: told how many images have been gone through.
    """

    batch_size: int = 32
    workers: int = 0
    skip_unreadable: bool = False
    progress: Callable[[int], Any] = lambda count: None


@dataclass(frozen=True)
class Match:
    """An image of the index that resembles a query.

    Attributes:
        id, path: of the image, and where it came from.
        score: inner product of the descriptors, or share of the hashes' bits that agree; 1 = the same.
        normalised: the score after normalisation by the background, None without.
        direction: `query copies reference`, `reference copies query` or `unclear`; always the last of a model whose
            norms were not trained to order.
        norm_ratio: query's norm over reference's, None where the model has none.
        copy: the yes or no of the calibration, None without.
        false_positives: how often an unrelated query reaches such a score, None without a calibration.
    """

    id: str
    path: str
    score: float
    normalised: float | None
    direction: str
    norm_ratio: float | None
    copy: bool | None
    false_positives: Rate | None

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        rate = None if self.false_positives is None else self.false_positives.to_dict()
        return {**vars(self), "false_positives": rate}


@dataclass(frozen=True)
class Answer:
    """One query's matches, best first."""

    id: str
    path: str
    matches: list[Match]

    def to_dict(self) -> dict[str, Any]:
        """Fit for JSON."""
        return {"query": self.path, "id": self.id, "matches": [match.to_dict() for match in self.matches]}


def described(
    describer: ImageDescriber, paths: Sequence[Path], reading: Reading, skipped: list[Skipped], together: int
) -> Iterator[Images]:
    """Describe images, `together` at a time, in their order; those that cannot be used go to `skipped`.

    Raises:
        DataError: an image that cannot be used and is not to be skipped, a descriptor that is not finite.
    """
    decoder = Decoder(paths, range(len(paths)), describer.prepare, reading.workers)
    for first in range(0, len(paths), together):
        end = min(first + together, len(paths))
        used: list[tuple[Path, np.ndarray]] = []
        vectors: list[np.ndarray] = []
        norms: list[np.ndarray] = []
        for start in range(first, end, reading.batch_size):
            usable = list(_usable(decoder, min(reading.batch_size, end - start), paths, reading, skipped))
            if usable:
                unit, lengths = describer([pixels for _, _, pixels in usable])
                vectors.append(unit)
                norms.append(np.full(len(unit), np.nan, np.float32) if lengths is None else lengths)
                used += [(path, digest) for path, digest, _ in usable]
        if used:
            made = Images(
                [path.stem for path, _ in used], [str(path) for path, _ in used],
                np.stack([digest for _, digest in used]), np.concatenate(vectors), np.concatenate(norms),
            )
            check_finite(made)
            yield made


def _usable(
    decoder: Decoder, count: int, paths: Sequence[Path], reading: Reading, skipped: list[Skipped]
) -> Iterator[tuple[Path, np.ndarray, np.ndarray]]:
    """(path, digest of the file, pixels) of those of the next `count` images that can be used."""
    for _ in range(count):
        decoded = decoder.take()
        path, reason = paths[decoded.index], decoded.reason
        reading.progress(1)
        if decoded.pixels is not None and min(decoded.size) < SMALLEST_SIDE:
            width, height = decoded.size
            reason = f"too small, {width} x {height} pixels; at least {SMALLEST_SIDE} are needed on each side"
        elif decoded.pixels is not None:
            yield path, digest_of(path), decoded.pixels
            continue
        if not reading.skip_unreadable:
            raise DataError(f"{path}: cannot be used ({reason}); repair or remove it, or leave such images out with "
                            "--skip-unreadable")
        skipped.append(Skipped(str(path), reason))


def check_finite(images: Images) -> None:
    """Refuse descriptors that no comparison can use."""
    if images.vectors.dtype.kind != "f":
        return
    finite = np.isfinite(images.vectors).all(axis=1) & images.vectors.any(axis=1)
    wrong = np.flatnonzero(~finite)
    if len(wrong):
        raise DataError(f"{images.paths[int(wrong[0])]}: its descriptor is not finite or zero, and {len(wrong) - 1} "
                        "more are; look at the model's weights and normalisation")


def digest_of(path: Path) -> np.ndarray:
    """(32,) uint8, SHA-256 of a file."""
    return np.frombuffer(bytes.fromhex(sha256_of(path)), np.uint8)


# --- adding ----------------------------------------------------------------------------------------------------------


def add_images(
    index: CopyIndex, describer: ImageDescriber, paths: Sequence[Path], reading: Reading, *, overwrite: bool = False
) -> tuple[Added, list[Skipped]]:
    """Describe images and add them, confirmed in parts: what was confirmed stays whatever happens.

    Raises:
        DataError: as `described`; two images of one id and different content, found before anything is described.
    """
    new, same = not_yet_there(index, paths, overwrite)
    reading.progress(len(paths) - len(new))
    done, skipped = Added(same=same), list[Skipped]()
    if new:
        for images in described(describer, new, reading, skipped, CONFIRMED_TOGETHER):
            done += index.add(images, overwrite=overwrite)
    return done, skipped


def not_yet_there(index: CopyIndex, paths: Sequence[Path], overwrite: bool) -> tuple[list[Path], int]:
    """Images to describe, and how many are in the index, or twice among `paths`, from the same file content."""
    index.reload()
    there = known_files(index.snapshot, [path.stem for path in paths])
    chosen: dict[str, Path] = {}
    same = 0
    for path in paths:
        indexed, twice = there.get(path.stem), chosen.get(path.stem)
        if indexed is None and twice is None:
            chosen[path.stem] = path
            continue
        try:
            digest = digest_of(path).tobytes()
        except OSError:
            chosen[path.stem] = path  # told as unreadable later
            continue
        if twice is not None:
            if digest_of(twice).tobytes() != digest:
                raise conflict(path.stem, str(twice), str(path), False)
            same += 1
        elif indexed is not None and indexed[0] == digest:
            same += 1
        elif indexed is not None and not overwrite:
            raise conflict(path.stem, indexed[1], str(path), True)
        else:
            chosen[path.stem] = path
    return list(chosen.values()), same


# --- asking ----------------------------------------------------------------------------------------------------------


def calibration_of(index: CopyIndex) -> Calibration | None:
    stored = index.manifest.calibration
    return None if stored is None else Calibration.from_dict(stored)


def query_images(
    index: CopyIndex, describer: ImageDescriber, paths: Sequence[Path], reading: Reading, *, k: int,
    margin: float = MARGIN, exact: bool = False,
) -> tuple[list[Answer], list[Skipped]]:
    """The best k matches of each image.

    Args:
        margin: of the norms, see `ascl.asymmetry.direction`.
        exact: look at every image although a compressed index is there.

    Raises:
        DataError: an empty index, k < 1, a negative margin, or as `described`.
    """
    if not len(index):
        raise DataError(f"{index.folder} holds no image yet: add some first")
    if not 0 <= margin < math.inf:
        raise DataError(f"a margin of {margin:g}: give 0 or more")
    answers, skipped = list[Answer](), list[Skipped]()
    calibration = calibration_of(index)
    for images in described(describer, paths, reading, skipped, CONFIRMED_TOGETHER):
        positions, scores = index.search(images.vectors, k, exact=exact)
        shift = np.zeros(len(scores))
        if calibration is not None and calibration.score_norm is not None:
            norm, background = calibration.score_norm, index.snapshot.calibration["background"]
            shift = norm.weight * background_score(images.vectors, background, start=norm.start, end=norm.end)
        for row, (image, path) in enumerate(zip(images.ids, images.paths, strict=True)):
            norms = index.snapshot.norms(positions[row])
            ways = direction(images.norms[row : row + 1], norms, margin=margin) * index.manifest.model["orders_norms"]
            answers.append(Answer(image, path, [
                _match(index, calibration, int(positions[row, place]), float(scores[row, place]), float(shift[row]),
                       float(images.norms[row] / norms[place]) if norms[place] else math.nan, int(ways[place]))
                for place in range(len(norms))
            ]))
    return answers, skipped


def _match(
    index: CopyIndex, calibration: Calibration | None, position: int, score: float, shift: float, ratio: float, way: int
) -> Match:
    image, path = index.snapshot.name(position)
    copy, rate, normalised = None, None, None
    if calibration is not None:
        judged = score - shift
        if calibration.score_norm is not None:
            normalised = judged
        if calibrate.still_holds(calibration, index.manifest.added):
            copy = judged >= calibration.threshold
            rate = calibrate.rate_at(judged, index.snapshot.calibration["scores"], calibration.confidence)
    known = None if math.isnan(ratio) else ratio
    return Match(image, path, score, normalised, DIRECTIONS[Direction(way)], known, copy, rate)


def write_answers(path: str | os.PathLike, answers: Sequence[Answer]) -> int:
    """Every match as a row of a predictions CSV, as tools/eval_copy.py reads it; returns the number of rows.

    Raises:
        DataError: two queries of one id.
    """
    seen: dict[str, str] = {}
    for answer in answers:
        if answer.id in seen:
            raise DataError(f"two queries have the id {answer.id!r}: {seen[answer.id]} and {answer.path}; rename one")
        seen[answer.id] = answer.path
    rows = [(answer.id, match) for answer in answers for match in answer.matches]
    scores = np.array([match.score if match.normalised is None else match.normalised for _, match in rows])
    write_predictions(path, [image for image, _ in rows], [match.id for _, match in rows], scores)
    return len(rows)


# --- calibrating -----------------------------------------------------------------------------------------------------


def calibrate_index(
    index: CopyIndex, describer: ImageDescriber, paths: Sequence[Path], reading: Reading, *, rate: float,
    confidence: float = 0.95, score_norm: ScoreNorm | None = None,
) -> tuple[Calibration, list[Skipped]]:
    """Search the index for images of which it holds no copy, and store the threshold for a rate of false positives.

    Background images that are in the index (the same file, or the same descriptor bit for bit), those that come twice,
    and, among the highest scores, those that a perceptual hash takes for the image they match, saved again, are left
    out and counted. A crop of an indexed image looks different to a hash: the result names the background images of
    the highest scores, to be looked at.

    Raises:
        DataError: an empty index, a rate or confidence out of range, no background image left, too few of them for the
            score normalisation, score normalisation of hashes, or as `described`.
    """
    index.reload()
    if not len(index):
        raise DataError(f"{index.folder} holds no image yet: add some before it is calibrated")
    if score_norm is not None and index.manifest.metric == "hamming":
        raise DataError("score normalisation is for descriptors; calibrate the perceptual hash without it")
    skipped = list[Skipped]()
    best, vectors, places, names = list[float](), list[np.ndarray](), list[int](), list[str]()
    seen: set[bytes] = set()
    left_out = {"in the index": 0, SAVED_AGAIN: 0, "repeated": 0, "unreadable or too small": 0}
    for images in described(describer, paths, reading, skipped, CONFIRMED_TOGETHER):
        positions, scores = index.search(images.vectors, 1)
        overlaps = index.snapshot.holds_digests(images.digests)
        if index.manifest.metric == "ip":  # equal hashes of different pictures are what is to be counted
            overlaps |= (index.snapshot.vectors(positions[:, 0]) == images.vectors).all(axis=1)
        for row in range(len(images.ids)):
            digest = images.digests[row].tobytes()
            reason = "in the index" if overlaps[row] else "repeated" if digest in seen else None
            if reason is not None:
                left_out[reason] += 1
                continue
            seen.add(digest)
            best.append(float(scores[row, 0]))
            vectors.append(images.vectors[row])
            places.append(int(positions[row, 0]))
            names.append(images.paths[row])
    left_out["unreadable or too small"] = len(skipped)
    values = np.array(best)
    order = np.argsort(-values, kind="stable")
    if index.manifest.metric == "ip":
        looked_at = order[: calibrate.allowed_above(len(values), rate) + HASHED] if 0 < rate < 1 else order[:0]
        again = [row for row in looked_at if saved_again(names[row], index.snapshot.name(places[row])[1])]
        left_out[SAVED_AGAIN] = len(again)
        order = order[~np.isin(order, again)]
    kept = np.sort(order)
    nearest = tuple(Nearest(names[row], index.snapshot.name(places[row])[0], best[row]) for row in order[:NAMED])
    values = values[kept]
    arrays: dict[str, np.ndarray] = {}
    if score_norm is not None and len(values):
        arrays["background"] = np.stack([vectors[row] for row in kept])
        values = values - score_norm.weight * own_background_score(arrays["background"], score_norm)
    made = calibrate.calibrated(
        values, rate, confidence=confidence, images=len(index), added=index.manifest.added, left_out=left_out,
        score_norm=score_norm, nearest=nearest,
    )
    index.set_calibration(made.to_dict(), {"scores": np.sort(values), **arrays})
    return made, skipped


def saved_again(first: str, second: str) -> bool:
    """Whether two files hold the same picture but for size, compression or a little light; no, where one is gone."""
    try:
        bits = [np.unpackbits(perceptual_hash(load_image(path).image)) for path in (first, second)]
    except (DataError, OSError):
        return False
    return int((bits[0] != bits[1]).sum()) <= HASH_DISTANCE


def own_background_score(background: np.ndarray, norm: ScoreNorm) -> np.ndarray:
    """What each background image scores on the others."""
    if not 0 <= norm.start <= norm.end:
        raise DataError(f"score normalisation from place {norm.start} to {norm.end}: give 0 <= start <= end")
    if len(background) < norm.end + 2:
        raise DataError(f"{len(background)} background images are too few for a score normalisation by place {norm.end}"
                        f" (from 0): it takes {norm.end + 2}")
    found, scores = nearest_references(background, background, norm.end + 2, metric="ip")
    own = found == np.arange(len(background))[:, None]
    own[~own.any(axis=1), -1] = True  # as many equal ones before it: the last is as good
    others = scores[~own].reshape(len(background), norm.end + 1)
    return others[:, norm.start :].mean(axis=1)


