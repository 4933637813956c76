"""Probes of asymmetry: do scores order a caption and its variants as their content does?

AsCL (section 2.2) names three asymmetries between an image and a text, but its tables measure recall only. Here every
caption is compared with variants of a known direction (`variants.py`):

I. The text says something false. Training pushes such a negative below the caption (equation 3), so the right order is
   score(image, caption) > score(image, variant).
II. The text says more, all true. III. It says less, all true. Both are positives: they belong to the image before all
   other images (equation 4). No order of their scores and the caption's is expected, because the score of a matching
   text should not depend on its length. But more true detail separates an image better from others, since the text is
   true of fewer images. This is measured as evidence(text) = score(own image, text) - mean score(other images, text)
   over the other images of a fixed group of `GROUP`; it is right if the text that says more has more evidence. It uses
   the mean because noise alone raises a maximum over the other images, and because with the mean a scorer that knows
   the truth is right whenever the detail is decisive. If truth is known (`scenes`), only pairs with a decisive detail
   count: it excludes at least one image of the group.

Further metrics for II and III: how often the variant scores above its caption (does a model reward length?) and above
the caption with a false detail (figure 1: positive before negative), and how often the own image ranks first in the
group, with the caption and with the variant (the variant should remain a positive).

Differences up to `TIE` are ties, and ties are not right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from ascl.analysis.probes.variants import KINDS, CaptionVariant
from ascl.core.errors import DataError
from ascl.core.statistics import wilson_interval
from ascl.core.tables import markdown_table
from ascl.data.captions import CaptionSet
from ascl.models import EncodedImages, RetrievalModel
from ascl.retrieval import score_all_pairs
from ascl.retrieval.encode import encode_texts
from ascl.scenes.render import Scene, truth_matrix

GROUP = 16      # images that a text is compared with, its own included: neighbors in the order of the split
TIE = 1e-6      # rounding error of scores (cosines) in float32


@dataclass(frozen=True, eq=False)
class ProbeTexts:
    """The texts to score: C captions, then P variants of them.

    texts: (C + P). owner: (C + P,) image of each text. kinds: (P) kinds of the variants. original: (P,) place of each
    variant's caption in `texts`. false_detail: (P,) place of the same caption with a false detail, -1 if there is none.
    """

    texts: list[str]
    owner: np.ndarray
    kinds: list[str]
    original: np.ndarray
    false_detail: np.ndarray


@dataclass(frozen=True)
class ProbeMetrics:
    """The metrics of one kind of variant, or of all kinds of one asymmetry: shares of `pairs`, in [0, 1].

    right, ties: see the module. low, high: 95 % interval of `right` (Wilson), assuming independent pairs. higher: the
    variant scores above its caption. above_false: it scores above the caption with a false detail, among the
    `above_false_pairs` pairs whose caption has one; None for Asymmetry-I. first_original, first_variant: the own image
    ranks first in its group. left_out: pairs not counted because their detail is not decisive in the group.
    """

    asymmetry: str
    pairs: int
    right: float
    ties: float
    low: float
    high: float
    higher: float
    above_false: float | None
    above_false_pairs: int
    first_original: float
    first_variant: float
    left_out: int


@dataclass(frozen=True)
class ProbeReport:
    """The result of the probes.

    kinds: metrics of each kind. by_asymmetry: metrics of "I", "II" and "III", over all their kinds. group: number of
    images in a group. exact: whether the truth of the texts is known.
    """

    kinds: dict[str, ProbeMetrics]
    by_asymmetry: dict[str, ProbeMetrics]
    group: int
    exact: bool

    @property
    def how(self) -> str:
        """The definitions, as text for a table."""
        cases = (" Only pairs with a decisive detail count: it excludes at least one image of the group, by the truth "
                 "of the generated scenes." if self.exact else
                 " Whether a variant is true or false follows from the image's captions, not from its pixels.")
        return (
            "I (says something false): right if score(own image, caption) > score(own image, variant). II (says more, "
            "all true) and III (says less, all true): right if the text that says more has more evidence for its "
            f"image, score(own image) - mean score of {self.group - 1} other images.{cases} Differences up to "
            f"{TIE:g} are ties, and ties are not right. higher: share of variants that score above their caption (no "
            "order is expected for II and III). above false: share that score above the caption with a false detail. "
            f"own first: the own image has the best score of the {self.group}, with the caption -> with the variant"
            + ("; other images of which the text is true are ignored." if self.exact else "."))

    def to_dict(self) -> dict[str, Any]:
        """Return plain numbers for JSON."""
        numbers = asdict(self)
        del numbers["exact"]
        return numbers | {"how": self.how}

    def to_markdown(self) -> str:
        """Return a table with a row per kind and per asymmetry, in percent, and the definitions."""
        head = ["variant", "asymmetry", "pairs", "right", "95 %", "ties", "higher", "above false", "own first"]
        rows = [_row(kind, metrics) for kind, metrics in self.kinds.items()]
        rows += [_row(f"**all of {name}**", metrics) for name, metrics in self.by_asymmetry.items()]
        return f"{markdown_table(head, rows, text_columns=2)}\n\n{self.how}\n"


def probe_texts(captions: CaptionSet, variants: Sequence[CaptionVariant], *, limit: int | None = None) -> ProbeTexts:
    """Return the texts to score for these variants, or for those of `limit` captions, evenly spread over the set."""
    if limit is not None and limit < 1:
        raise DataError(f"the number of captions to probe is {limit}: it must be at least 1")
    with_variants = sorted({variant.caption for variant in variants})
    if limit is not None and limit < len(with_variants):
        with_variants = [with_variants[i] for i in np.linspace(0, len(with_variants) - 1, limit).astype(int)]
    place = {caption: i for i, caption in enumerate(with_variants)}
    chosen = [variant for variant in variants if variant.caption in place]
    false_detail = {variant.caption: len(place) + i for i, variant in enumerate(chosen)
                    if variant.kind == "false detail added"}
    owner = np.array([*with_variants, *(variant.caption for variant in chosen)], dtype=np.int64)
    return ProbeTexts([captions.captions[i] for i in with_variants] + [variant.text for variant in chosen],
                      captions.owner[owner], [variant.kind for variant in chosen],
                      np.array([place[variant.caption] for variant in chosen], dtype=np.int64),
                      np.array([false_detail.get(variant.caption, -1) for variant in chosen], dtype=np.int64))


@torch.no_grad()
def group_scores(model: RetrievalModel, images: EncodedImages, probes: ProbeTexts, *, group: int = GROUP,
                 progress: Callable[[int], object] | None = None) -> np.ndarray:
    """Return the scores of each text with its own image and the others of its group, in the model's precision.

    The texts of `group` neighboring images are scored with these images only: G / N of the work of all pairs, with the
    same code. Texts are encoded group by group, so that memory does not grow with their number.

    Args:
        images: N images, at least two, on any device.
        progress: called with the number of newly scored texts.

    Returns:
        (M, G) float32, G = min(group, N); column 0 is the own image, the others follow in their order.

    Raises:
        DataError: there are fewer than two images, or a score is not finite.
    """
    def score(rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        texts = encode_texts(model, [probes.texts[i] for i in chosen])
        scores = score_all_pairs(model, images[torch.from_numpy(rows)], texts).numpy()
        if not np.isfinite(scores).all():
            text = chosen[int(np.argwhere(~np.isfinite(scores))[0][1])]
            raise DataError(f"the score of {probes.texts[text]!r} is not finite: look for an overflow in the weights")
        if progress is not None:
            progress(len(chosen))
        return scores

    return _by_group(len(images), probes, group, score, np.float32)


def group_truth(probes: ProbeTexts, scenes: Sequence[Scene], *, group: int = GROUP) -> np.ndarray:
    """Return (M, G) bool, in the layout of `group_scores`: whether each text is true of each scene of its group."""
    def truth(rows: np.ndarray, chosen: np.ndarray) -> np.ndarray:
        return truth_matrix([probes.texts[i] for i in chosen], [scenes[i] for i in rows])

    return _by_group(len(scenes), probes, group, truth, np.bool_)


def _by_group(images: int, probes: ProbeTexts, group: int, compute: Callable[[np.ndarray, np.ndarray], np.ndarray],
              dtype: type) -> np.ndarray:
    """Return (M, G) of the values (n, m) that `compute` returns for images (n,) and texts (m,)."""
    if images < 2 or group < 2:
        raise DataError(f"probes compare images: {images} of them in groups of {group} are too few; give at least two")
    table: np.ndarray = np.empty((len(probes.texts), min(group, images)), dtype=dtype)
    for first in range(0, images, group):
        last = min(first + group, images)
        rows = np.arange(max(0, last - group), last)            # the last group is filled up with images before it
        chosen = np.flatnonzero((probes.owner >= first) & (probes.owner < last))
        if not len(chosen):
            continue
        own = probes.owner[chosen] - rows[0]
        others = np.array([np.delete(np.arange(len(rows)), mine) for mine in own])
        order = np.concatenate([own[:, None], others], axis=1)
        table[chosen] = compute(rows, chosen)[order, np.arange(len(chosen))[:, None]]
    return table


def probe_report(probes: ProbeTexts, scores: np.ndarray, truth: np.ndarray | None = None) -> ProbeReport:
    """Return the shares of variants in the right order, with further metrics.

    Args:
        scores: (M, G) of `group_scores`, or their mean over several models.
        truth: (M, G) of `group_truth`, if known.

    Raises:
        DataError: a variant is true or false where its asymmetry requires the opposite.
    """
    captions = len(probes.texts) - len(probes.kinds)
    original, variant = probes.original, np.arange(captions, len(probes.texts))
    scores = scores.astype(np.float64)
    own, evidence = scores[:, 0], scores[:, 0] - scores[:, 1:].mean(axis=1)
    competitors = scores[:, 1:] if truth is None else np.where(truth[:, 1:], -np.inf, scores[:, 1:])
    first = own > competitors.max(axis=1) + TIE
    asymmetry = np.array([KINDS[kind] for kind in probes.kinds])
    difference = np.where(asymmetry == "I", own[original] - own[variant], evidence[variant] - evidence[original])
    difference[asymmetry == "III"] *= -1
    counted = np.ones(len(variant), dtype=bool)
    if truth is not None:
        wrong = np.flatnonzero(truth[:, 0] != np.concatenate([np.ones(captions, dtype=bool), asymmetry != "I"]))
        if len(wrong):
            found = "true" if truth[wrong[0], 0] else "false"
            raise DataError(f"{probes.texts[wrong[0]]!r} is {found} of its own image and should not be ({len(wrong)} "
                            "such texts): do captions and scenes belong together?")
        more = np.where(asymmetry == "II", variant, original)
        less = np.where(asymmetry == "II", original, variant)
        counted = (asymmetry == "I") | (truth[less, 1:] & ~truth[more, 1:]).any(axis=1)
    has_false = (probes.false_detail >= 0) & (asymmetry != "I")
    above_false = own[variant] > own[probes.false_detail] + TIE
    higher = own[variant] > own[original] + TIE

    def metrics(which: np.ndarray, name: str) -> ProbeMetrics:
        chosen, compared = which & counted, which & counted & has_false
        pairs = int(chosen.sum())
        right = float((difference[chosen] > TIE).mean())
        interval = wilson_interval(right, pairs)
        return ProbeMetrics(
            asymmetry=name, pairs=pairs, right=right, ties=float((np.abs(difference[chosen]) <= TIE).mean()),
            low=interval.low, high=interval.high, higher=float(higher[chosen].mean()),
            above_false=float(above_false[compared].mean()) if compared.any() else None,
            above_false_pairs=int(compared.sum()), first_original=float(first[original[chosen]].mean()),
            first_variant=float(first[variant[chosen]].mean()), left_out=int((which & ~counted).sum()))

    kinds = np.array(probes.kinds)
    return ProbeReport(
        kinds={kind: metrics(kinds == kind, name) for kind, name in KINDS.items() if (counted & (kinds == kind)).any()},
        by_asymmetry={name: metrics(asymmetry == name, name) for name in sorted(set(asymmetry[counted].tolist()))},
        group=scores.shape[1], exact=truth is not None)


def _row(name: str, metrics: ProbeMetrics) -> list[str]:
    def percent(share: float | None) -> str:
        return "" if share is None else f"{100 * share:.1f}"

    every = f" of {metrics.pairs + metrics.left_out}" if metrics.left_out else ""
    own = f"{percent(metrics.first_original)} -> {percent(metrics.first_variant)}" if metrics.asymmetry != "I" else ""
    return [name, metrics.asymmetry, f"{metrics.pairs}{every}", percent(metrics.right),
            f"{percent(metrics.low)} - {percent(metrics.high)}", percent(metrics.ties), percent(metrics.higher),
            percent(metrics.above_false), own]
