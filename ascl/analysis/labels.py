"""Evaluate COCO's test split with labels that include more true pairs than its own: ECCV Caption and CxC.

COCO assigns each caption to one image, which covers about a fifth of the pairs that people judge true. CxC (Parekh et
al. 2021) and ECCV Caption (Chun et al. 2022) add missing pairs. Labels and metrics come from the authors' package
`eccv_caption`. This module computes its inputs: the best candidates of every image and caption, by COCO's numbers. The
package does not offer mAP@R and R-Precision of CxC by name; its own code computes them here from its CxC labels.
"""

from __future__ import annotations

import contextlib
import io
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ascl.core.errors import DataError
from ascl.core.tables import markdown_table
from ascl.data.captions import CaptionSet
from ascl.retrieval.ranking import BLOCK_ELEMENTS, Matrix

INSTALL = "pip install eccv_caption (or the extra: pip install -e '.[labels]')"
_WHOLE = ("The labels are for Karpathy's whole test split, five captions per image: evaluate all 5,000 images and "
          "25,000 captions (data.captions_per_image 5, no data.val_images)")
_SCAN_TEST = re.compile(r"testall_caps\.txt(\.gz)?$")
_NAMES = {"eccv_map_at_r": "map_at_r", "eccv_rprecision": "r_precision", "eccv_r1": "r1", "cxc_r1": "r1",
          "cxc_r5": "r5", "cxc_r10": "r10"}
_TITLES = {"r1": "R@1", "r5": "R@5", "r10": "R@10", "map_at_r": "mAP@R", "r_precision": "R-Precision"}


@dataclass(frozen=True)
class LabelReport:
    """The metrics of one set of labels, in percent: {"r1": {"i2t": 61.2, "t2i": 44.0}, "map_at_r": ...}."""

    metrics: dict[str, dict[str, float]]

    def to_dict(self) -> dict[str, Any]:
        """Return {"i2t": {"r1": ...}, "t2i": ...}, like the recalls of COCO's own labels."""
        return {direction: {name: of[direction] for name, of in self.metrics.items()} for direction in ("i2t", "t2i")}

    def to_markdown(self) -> str:
        """Return a table with one row per direction."""
        names = [name for name in _TITLES if name in self.metrics]
        rows = [[words, *(f"{self.metrics[name][direction]:.1f}" for name in names)]
                for words, direction in (("image to text", "i2t"), ("text to image", "t2i"))]
        return markdown_table(["direction", *map(_TITLES.__getitem__, names)], rows) + "\n"


def may_be_coco_test(captions: CaptionSet) -> bool:
    """Return whether these may be the captions of COCO's 5K test split, judging by their number and ids."""
    if len(captions.image_ids) != 5000 or len(captions.captions) < 25000:
        return False
    by_file = captions.caption_ids is not None and all(re.search(r"\d{6,}$", name) for name in captions.image_ids[:9])
    return by_file or _SCAN_TEST.search(captions.source) is not None


def coco_ids(captions: CaptionSet, *, labels: Any = None) -> tuple[list[int], list[int]]:
    """Return COCO's numbers of the images (N,) and of the captions (M,).

    They come from the caption file if it has them (Karpathy's JSON, COCO's own). SCAN's text files have none. The
    captions of their `testall` split are in the order of the package's list of ids, which is used instead (checked for
    the 2,965 captions whose number is known from COCO's files of 2017).

    Args:
        labels: the authors' package; None = `published_labels()`.

    Raises:
        DataError: neither source applies, a caption belongs to another image in the labels, or the package is missing.
    """
    package = labels or published_labels()
    owner_of = package.coco_gts["t2i"]
    if captions.caption_ids is not None:
        image_ids = []
        for name in captions.image_ids:
            number = re.search(r"(\d+)$", name)
            if number is None:
                raise DataError(f"{captions.source}: image {name!r} has no COCO number at the end of its name, which "
                                "the labels need: give captions with names like COCO_val2014_000000391895")
            image_ids.append(int(number.group()))
        for caption, image in zip(captions.caption_ids, captions.owner.tolist(), strict=True):
            known = owner_of.get(caption)
            if known is not None and known[0] != image_ids[image]:
                raise DataError(f"{captions.source}: caption {caption} belongs to image {image_ids[image]}, but in the "
                                f"labels to {known[0]}: its sentids are not COCO's; give dataset_coco.json as captions")
        return image_ids, captions.caption_ids
    ordered = _SCAN_TEST.search(captions.source) is not None and len(captions.captions) == 25000
    if not ordered or (captions.owner != np.repeat(np.arange(5000), 5)).any():
        raise DataError(f"{captions.source} does not say which captions of COCO these are, but ECCV Caption and CxC "
                        "need COCO's caption numbers: give dataset_coco.json as captions (ascl prepare "
                        "--dataset coco --only captions)")
    ids = package.coco_ids.tolist()
    return [owner_of[number][0] for number in ids[::5]], ids


def corrected_labels(
    scores: Matrix, image_ids: list[int], caption_ids: list[int], *, labels: Any = None
) -> dict[str, LabelReport]:
    """Return the metrics with the labels of ECCV Caption ("eccv") and of CxC ("cxc").

    Args:
        scores: (N, M), every image with every caption of COCO's 5K test split, higher = more similar; read in blocks.
        image_ids, caption_ids: COCO's numbers of rows and columns.
        labels: the authors' package, whose `eccv_gts` are replaced; None = `published_labels()`.

    Raises:
        DataError: the package is missing, images or captions of its labels are missing, or a score is not finite.
    """
    if tuple(scores.shape) != (len(image_ids), len(caption_ids)):
        raise DataError(f"scores have shape {tuple(scores.shape)} for {len(image_ids)} image ids and "
                        f"{len(caption_ids)} caption ids: give one id per row and column")
    package = labels or published_labels()
    every = (package.coco_gts, package.cxc_gts, package.eccv_gts)
    for what, ids, way in (("images", image_ids, "i2t"), ("captions", caption_ids, "t2i")):
        missing = sorted({number for known in every for number in known[way]} - set(ids))
        if missing:
            raise DataError(f"{len(ids)} {what} were scored; {len(missing)} {what} of the labels are not among them "
                            f"(first: {missing[0]}). {_WHOLE}")
        if len(set(ids)) != len(ids):
            raise DataError(f"of {len(ids)} {what}, {len(ids) - len(set(ids))} are there twice. {_WHOLE}, each once")

    def ranked(known: dict[str, dict[int, list[int]]]) -> dict[str, dict[int, list[int]]]:
        return {"i2t": dict(best_candidates(scores, image_ids, caption_ids, known["i2t"])),
                "t2i": dict(best_candidates(scores.T, caption_ids, image_ids, known["t2i"]))}

    with contextlib.redirect_stderr(io.StringIO()):     # progress bars that cannot be turned off
        eccv = package.eccv_metrics(ranked(package.eccv_gts), "all")
        found = ranked(package.cxc_gts)
        recalls = {f"cxc_r{k}": package.cxc_recalls(found, "all", K=k) for k in (1, 5, 10)}
        package.eccv_gts = package.cxc_gts
        cxc = package.eccv_metrics(found, "all") | recalls
    return {name: LabelReport({_NAMES[metric]: {way: 100 * float(share) for way, share in of.items()}
                               for metric, of in shares.items()}) for name, shares in (("eccv", eccv), ("cxc", cxc))}


def best_candidates(scores: Matrix, queries: list[int], candidates: list[int],
                    labels: dict[int, list[int]]) -> Iterator[tuple[int, list[int]]]:
    """Yield (query, its best candidates, best first) for each row, as many as the metrics need; ties count as lost."""
    depth = min(len(candidates), max(10, *map(len, labels.values())))
    column = {number: place for place, number in enumerate(candidates)}
    step = max(1, BLOCK_ELEMENTS // len(candidates))
    for first in range(0, len(queries), step):
        part, of_part = scores[first : first + step], queries[first : first + step]
        block = (part.detach().cpu() if isinstance(part, torch.Tensor) else torch.from_numpy(np.array(part))).double()
        if not block.isfinite().all():
            row, place = (~block.isfinite()).nonzero()[0].tolist()
            raise DataError(f"the score of {of_part[row]} with {candidates[place]} is not finite: look for NaN "
                            "features or an overflow in the model")
        # float64 has values between scores of lower precision: lower each right score below equal wrong ones
        right = [(row, column[number]) for row, query in enumerate(of_part)
                 for number in labels.get(query, ()) if number in column]
        if right:
            at = tuple(torch.tensor(right).T)
            block[at] = torch.nextafter(block[at], torch.tensor(-torch.inf, dtype=torch.float64))
        for query, best in zip(of_part, block.topk(depth, dim=1).indices.tolist(), strict=True):
            yield query, [candidates[place] for place in best]


def published_labels() -> Any:
    """Return the labels and metrics of the authors' package `eccv_caption`; raise DataError if it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")             # about a faster JSON reader that is not installed
            from eccv_caption import Metrics
    except ImportError as error:
        raise DataError(f"ECCV Caption and CxC need their authors' package: {INSTALL}") from error
    return Metrics()
