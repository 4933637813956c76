"""Calibrate an index: find a threshold with background images of which it holds no copy, or with its own images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from ascl.core.errors import DataError
from ascl.core.reading import shown
from ascl.image_copy.descriptors.choice import ImageDescriber
from ascl.image_copy.descriptors.perceptual_hash import import_imagehash, looks_the_same
from ascl.image_copy.matching.describe import ReadOptions, described_images
from ascl.image_copy.matching.feature_cache import FeatureCache
from ascl.image_copy.matching.groups import Progress, counting
from ascl.image_copy.matching.query import calibration_of
from ascl.image_copy.matching.verify import NOT_CONFIRMED, NOT_READ, Verifier, picture_of
from ascl.images.find import ImageFile, Skipped
from ascl.images.read import load_image
from ascl.images.rgb import blankness
from ascl.index.calibration import Calibration, Nearest, ScoreNorm, allowed_above, calibrated, growth_warning
from ascl.index.places import Place
from ascl.index.store import CopyIndex

OWN_SAMPLE = 1000           # of its own images that calibrate an index
OWN_NEIGHBORS = 10          # of each of them that are looked at for one that is no copy
BY_ITSELF = 200             # of its own images that calibrate a new index, in about 20 s on one core
FEWEST = 100                # images from which a new index is calibrated by itself
BY_ITSELF_RATE = 0.01       # ... at which rate
UNUSABLE = "unreadable, too small or blank"
REPEATED, NEARLY_BLANK = "repeated", "nearly blank"
ALL_RELATED = "related to all of their neighbors"
SAVED_AGAIN = "in the index, saved again"
HASHED = 20                 # background images below the threshold that are hashed too
NAMED = 3                   # background images with the highest scores, which the result names


class NothingCompared(DataError):
    """No indexed image that the background resembles is where it was, so that copies among it cannot be found."""


def calibrate_index(index: CopyIndex, describer: ImageDescriber, background: Sequence[ImageFile],
                    options: ReadOptions, *, rate: float, confidence: float = 0.95, score_norm: ScoreNorm | None = None,
                    unchecked: bool = False) -> tuple[Calibration, list[Skipped]]:
    """Search the index for images of which it holds no copy, and store the threshold for a rate of false positives.

    Three kinds of background images are left out and counted: those in the index (the same file, or the same descriptor
    bit for bit), repeated ones, and, among the highest scores, those that a perceptual hash takes for the matched image
    saved again. A crop of an indexed image looks different to a hash, so the result also names the background images
    with the highest scores, to be checked by eye. The result warns if it could not look for images saved again,
    because imagehash is not installed or files of indexed images are not where they were.

    Args:
        index, describer: the index, and the model that it was made with.
        background: images.
        options: how to read them.
        rate: wanted rate of false positives, per query, in (0, 1).
        confidence: of the interval around the achieved rate, in (0, 1).
        score_norm: score normalization by the background; None = none.
        unchecked: go on if none of the images to compare is where it was. A copy among the background then raises the
            threshold unnoticed.

    Returns:
        The calibration, which is now stored in the index, and the images that could not be used.

    Raises:
        DataError: the index is empty or damaged; rate or confidence is out of range; no background image is left, or
            too few for the score normalization; score normalization of hashes; or as `described_images`.
        NothingCompared: no image to compare is where it was, without `unchecked`.
    """
    index.reload()
    if not len(index):
        raise DataError(f"{index.folder} holds no images yet; add some before calibrating it")
    if score_norm is not None and index.state.metric == "hamming":
        raise DataError("score normalization is for descriptors; calibrate the perceptual hash without it")
    skipped = list[Skipped]()
    best, vectors, places, names = list[float](), list[np.ndarray](), list[int](), list[str]()
    seen: set[bytes] = set()
    left_out = {"in the index": 0, SAVED_AGAIN: 0, "repeated": 0, UNUSABLE: 0}
    for images in described_images(describer, background, options, skipped):
        positions, scores = index.search(images.vectors, 1)
        if index.damage or not positions.size:
            raise DataError(f"{index.folder} is damaged, so the scores of its images are not known; repair it first")
        overlaps = index.holds_files(images.digests)
        if index.state.metric == "ip":  # equal hashes of different pictures are the false positives to count
            overlaps |= (index.rows.vectors[positions[:, 0]] == images.vectors).all(axis=1)
        for row, digest in enumerate(map(bytes, images.digests)):
            if overlaps[row] or digest in seen:
                left_out["in the index" if overlaps[row] else "repeated"] += 1
                continue
            seen.add(digest)
            best.append(float(scores[row, 0]))
            vectors.append(images.vectors[row])
            places.append(int(positions[row, 0]))
            names.append(images.paths[row])
    left_out[UNUSABLE] = len(skipped)
    values, warnings = np.array(best), tuple[str, ...]()
    order = np.argsort(-values, kind="stable")
    records = index.records(np.unique(places))
    if index.state.metric == "ip":
        looked_at = order[: allowed_above(len(values), rate) + HASHED] if 0 < rate < 1 else order[:0]
        try:
            import_imagehash()
            compared = {row: saved_again(names[row], index.place_of(records[places[row]])) for row in looked_at}
        except DataError as error:
            compared = {}
            warnings = (f"did not look for background images that are indexed images saved again: {error}",)
        again = [row for row, same in compared.items() if same]
        unknown = [records[places[row]].path for row, same in compared.items() if same is None]
        if unknown:
            missing = (f"{len(unknown)} of the {len(compared)} background images with the highest scores could not be "
                       f"compared with the indexed images that they resemble, whose files have moved or changed, such "
                       f"as {shown(unknown[0])}")
            if len(unknown) == len(compared) and not unchecked:
                raise NothingCompared(f"{missing}. A copy of an indexed image among them would raise the threshold: "
                                      "index the images again where they are now, which updates their paths, or go on "
                                      "unchecked")
            warnings = (f"{missing}: if one of them is a copy, the threshold is too high",)
        left_out[SAVED_AGAIN] = len(again)
        order = order[~np.isin(order, again)]
    kept = np.sort(order)
    nearest = tuple(Nearest(names[row], records[places[row]].id, best[row]) for row in order[:NAMED])
    values = values[kept]
    arrays: dict[str, np.ndarray] = {}
    if score_norm is not None and len(values):
        arrays["background"] = np.stack([vectors[row] for row in kept])
        values = values - score_norm.weight * own_background_score(arrays["background"], score_norm)
    made = calibrated(values, rate, confidence=confidence, images=len(index), added=index.state.added,
                      left_out=left_out, score_norm=score_norm, nearest=nearest)
    made = replace(made, warnings=(*made.warnings, *warnings))
    index.set_calibration(made.to_dict(), {"scores": np.sort(values), **arrays})
    return made, skipped


def calibrate_by_itself(index: CopyIndex, *, rate: float, sample: int = OWN_SAMPLE, seed: int = 0,
                        confidence: float = 0.95, threads: int = 2,
                        progress: Progress = lambda doing, done, total: None) -> Calibration:
    """Search the index for its own images, and store the threshold for a rate of false positives.

    The score of an image is that of the best other one to which geometry does not relate it. So its copies in the index
    do not count. Left out and counted are images whose nearest are all related to them, further images of one file,
    nearly blank ones, of which a query does not say yes or no, and those of which a file cannot be read.

    Two errors remain, and the result says so. Copies that geometry does not recognize count as strangers and raise the
    threshold. Pictures of one scene that geometry relates do not count and lower it.

    Args:
        index: with its pictures where they were. What geometry finds is kept in its folder.
        rate: wanted rate of false positives, per query, in (0, 1).
        sample: images that are searched, drawn without replacement, >= 1.
        seed: of the draw.
        confidence: of the interval around the achieved rate, in (0, 1).
        threads: that read and compare pictures, >= 1.
        progress: is told what is being done.

    Raises:
        DataError: the index is empty or damaged, no image is left, OpenCV is not installed, or an argument is out of
            range.
    """
    index.reload()
    index.require_intact()
    if not len(index):
        raise DataError(f"{index.folder} holds no images yet; add some before calibrating it")
    if sample < 1:
        raise DataError(f"a sample of {sample} images: give at least 1")
    verifier = Verifier(FeatureCache(index.folder))
    live = np.setdiff1d(np.arange(index.state.rows), index.rows.removed)
    rows = np.sort(np.random.default_rng(seed).choice(live, min(sample, len(live)), replace=False))
    found, scores = index.search(np.array(index.rows.vectors[rows]), OWN_NEIGHBORS + 1)
    if index.damage:
        raise DataError(f"{index.folder} is damaged, so the scores of its images are not known; repair it first")
    records = index.records(np.union1d(rows, found.ravel()))
    pictures = {row: picture_of(index, record) for row, record in records.items()}
    left_out = {REPEATED: 0, NEARLY_BLANK: 0, NOT_READ: 0, ALL_RELATED: 0}
    near: dict[int, list[tuple[int, float]]] = {}
    seen: set[bytes] = set()
    for row, others, values in zip(rows.tolist(), found.tolist(), scores.tolist(), strict=True):
        digest = records[row].sha256
        left_out[REPEATED] += digest in seen
        if digest not in seen:
            near[row] = [(other, value) for other, value in zip(others, values, strict=True)
                         if records[other].sha256 != digest][:OWN_NEIGHBORS]
        seen.add(digest)
    used = [pictures[row] for row in near]
    verifier.keep(used, threads, counting(progress, "reading pictures", len(used)))
    for row in list(near):
        features = verifier.features(pictures[row])
        if features is None or blankness(Image.fromarray(features.pixels)):
            left_out[NOT_READ if features is None else NEARLY_BLANK] += 1
            del near[row]
    best: dict[int, tuple[int, float]] = {}
    for place in range(OWN_NEIGHBORS):
        todo = {row: others[place][0] for row, others in near.items() if row not in best and place < len(others)}
        verifier.keep([pictures[other] for other in todo.values()], threads)
        related = verifier.related([(pictures[row], pictures[other]) for row, other in todo.items()], threads,
                                   counting(progress, f"comparing with neighbor {place + 1}", len(todo)))
        for row, (kind, _) in zip(todo, related, strict=True):
            if kind == NOT_READ:
                left_out[NOT_READ] += 1
                del near[row]
            elif kind == NOT_CONFIRMED:
                best[row] = near[row][place]
    left_out[ALL_RELATED] = len(near) - len(best)
    values = np.array([score for _, score in best.values()])
    order = sorted(best, key=lambda row: -best[row][1])[:NAMED]
    nearest = tuple(Nearest(shown(pictures[row].path), records[best[row][0]].id, best[row][1]) for row in order)
    made = calibrated(values, rate, confidence=confidence, images=len(index), added=index.state.added,
                      left_out=left_out, score_norm=None, nearest=nearest, source="index")
    index.set_calibration(made.to_dict(), {"scores": np.sort(values)})
    return made


def is_due(index: CopyIndex) -> bool:
    """Return whether an index should be calibrated by itself: it never was, or it was and has grown since."""
    made = calibration_of(index)
    return len(index) >= FEWEST and (made is None or (made.source == "index"
                                                      and growth_warning(made, index.state.added) is not None))


def saved_again(background: str, indexed: Place) -> bool | None:
    """Return whether two files hold one picture, up to size, compression or slight changes; None if one is gone."""
    if indexed.status != "there":
        return None
    try:
        return looks_the_same(load_image(background).image, load_image(indexed.path).image)
    except DataError:
        return None


def own_background_score(background: np.ndarray, norm: ScoreNorm) -> np.ndarray:
    """Return the background score of each background image among the others."""
    from ascl.index.exact import nearest_references

    if not 0 <= norm.start <= norm.end:
        raise DataError(f"score normalization from place {norm.start} to {norm.end}: give 0 <= start <= end")
    if len(background) < norm.end + 2:
        raise DataError(f"{len(background)} background images are too few for score normalization with place {norm.end}"
                        f" (from 0): give at least {norm.end + 2}")
    found, scores = nearest_references(background, background, norm.end + 2, metric="ip")
    own = found == np.arange(len(background))[:, None]
    own[~own.any(axis=1), -1] = True  # equal images took its place, and the last of them is as good
    others = scores[~own].reshape(len(background), norm.end + 1)
    return others[:, norm.start :].mean(axis=1)
