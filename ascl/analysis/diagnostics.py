"""Metrics in addition to recall: geometry of the vectors, recall by query length, recall by local weight.

Nothing here reads files or draws figures; callers pass models, encoded items and ranks.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ascl.core.errors import DataError
from ascl.core.statistics import wilson_interval
from ascl.losses.spread import pair_distances, uniformity
from ascl.models import AsCL, EncodedImages, EncodedTexts, RetrievalModel
from ascl.models.ascl import masked_mean
from ascl.retrieval import rank_report, score_all_pairs
from ascl.retrieval.ranking import as_owner, check_owner
from ascl.retrieval.report import RetrievalReport
from ascl.retrieval.scoring.tiles import Progress

ITEMS = 1024                            # encoded items moved to the device at a time
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class ItemVectors(NamedTuple):
    """One unit vector per image (N_images, D) and per text (N_texts, D); unit, because scores are cosines.

    decide_score: whether their cosines are the model's scores. If not, they substitute for vectors that the model
    computes only for pairs.
    """

    images: Tensor
    texts: Tensor
    decide_score: bool


@torch.no_grad()
def item_vectors(model: RetrievalModel, images: EncodedImages, texts: EncodedTexts) -> ItemVectors:
    """Return one vector per item, for alignment and uniformity.

    A two-tower model has such vectors: `images.globals` and `model.text_vectors`. AsCL's V_g and W_g belong to a pair.
    Its vectors here come from the same weights, with a plain mean instead of each attention: the fusion of mean region
    and whole image, and X_w of the mean word (`text_vectors`). They are the vectors of its score only without fusion
    and with u1 = 0. For a `TokenModel` they are its mean region and its mean word, which its scores do not use.

    Raises:
        ValueError: there are no images or no texts.
    """
    if not len(images) or not len(texts):
        raise ValueError(f"no images or no texts: got {len(images)} and {len(texts)}, need at least one each")
    device = next(model.parameters()).device

    def image_vectors(part: EncodedImages) -> Tensor:
        if isinstance(model, AsCL):
            return model.fuse_globals(masked_mean(part.regions, part.mask), part.globals)
        return part.globals

    def each(items: Any, vectors: Callable[[Any], Tensor]) -> Tensor:
        parts = (items[start : start + ITEMS].to(device) for start in range(0, len(items), ITEMS))
        return torch.cat([F.normalize(vectors(part).double(), dim=-1).cpu() for part in parts])

    of_images, of_texts = each(images, image_vectors), each(texts, model.text_vectors)
    few = slice(0, 8)
    scores = model.pair_scores(images[few].to(device), texts[few].to(device)).double().cpu()
    same = torch.allclose(of_images[few] @ of_texts[few].T, scores, atol=1e-4, rtol=0)
    return ItemVectors(of_images, of_texts, same)


@dataclass(frozen=True)
class Distances:
    """Mean and standard deviation of the Euclidean distances (0 to 2) of `pairs` unordered pairs of unit vectors."""

    mean: float
    std: float
    pairs: int


@dataclass(frozen=True)
class Geometry:
    """Alignment and uniformity: how close positive pairs are and how evenly other pairs spread.

    Distances as in AsCL's figure 4: `positive_image_text` of each text and its image, `positive_text_text` of texts of
    one image (None if no image has two), `apart_images` of any two images, `apart_texts` of texts of different images.
    By Wang and Isola (2020), over the same pairs, lower is better: `align_*` = mean of distance^2 over positive pairs,
    `uniform_*` = log of the mean of exp(-2 distance^2) over other pairs. `*_dimensions`: see `effective_dimensions`.
    """

    positive_image_text: Distances
    positive_text_text: Distances | None
    apart_images: Distances
    apart_texts: Distances
    align_image_text: float
    align_text_text: float | None
    uniform_images: float
    uniform_texts: float
    image_dimensions: float
    text_dimensions: float


def geometry(image_vectors: Tensor, text_vectors: Tensor, owner: np.ndarray | Sequence[int]) -> Geometry:
    """Return alignment and uniformity of a split.

    Args:
        image_vectors: (N_images, D). text_vectors: (N_texts, D). Both are normalized here.
        owner: (N_texts,) image of each text.

    Raises:
        DataError: texts belong to fewer than two images, owners do not fit, or a vector is zero or not finite.
    """
    owner_vector = as_owner(np.asarray(owner))
    check_owner(owner_vector, len(image_vectors), len(text_vectors))
    order = np.argsort(owner_vector, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(owner_vector[order])) + 1)      # the texts of each image
    if len(groups) < 2:
        raise DataError("the texts belong to one image only: uniformity needs texts of at least two images")
    images, texts = _unit(image_vectors, "image"), _unit(text_vectors, "text")
    belongs = torch.from_numpy(owner_vector)
    image_text, align_image_text = _distances([(images[belongs] - texts).square().sum(dim=1)])
    text_text = [torch.pdist(texts[of_image]).square() for of_image in groups if len(of_image) > 1]
    positive_text_text, align_text_text = _distances(text_text) if text_text else (None, None)
    return Geometry(
        positive_image_text=image_text, positive_text_text=positive_text_text,
        apart_images=_distances(pair_distances(images))[0], apart_texts=_distances(pair_distances(texts, belongs))[0],
        align_image_text=align_image_text, align_text_text=align_text_text,
        uniform_images=uniformity(images), uniform_texts=uniformity(texts, belongs),
        image_dimensions=effective_dimensions(images), text_dimensions=effective_dimensions(texts))


def effective_dimensions(vectors: Tensor) -> float:
    """Return the effective number of dimensions of (N, D) vectors, N >= 2.

    It is exp of the entropy of their covariance's spectrum (Roy and Vetterli 2007): from 1, if all are equal or on a
    line, to min(N - 1, D).
    """
    vectors = vectors.double()
    spectrum = torch.linalg.svdvals(vectors - vectors.mean(dim=0)).square()
    # equal vectors differ by rounding only, which has no meaningful direction
    if spectrum.sum() <= len(vectors) * 1e-24 * vectors.square().sum():
        return 1.0
    return float(torch.exp(torch.special.entr(spectrum / spectrum.sum()).sum()))


def _unit(vectors: Tensor, kind: str) -> Tensor:
    vectors = vectors.detach().double()
    norms = vectors.norm(dim=1)
    wrong = (~norms.isfinite() | (norms == 0)).nonzero()
    if len(wrong):
        raise DataError(f"the vector of {kind} {int(wrong[0])} has norm {float(norms[wrong[0]]):g} and cannot be "
                        "normalized: look for NaN features or diverged training")
    return vectors / norms[:, None]


def _distances(blocks: Iterable[Tensor]) -> tuple[Distances, float]:
    """Return `Distances` and the mean squared distance, from blocks of squared distances."""
    sums = np.sum([(len(squared), float(squared.sqrt().sum()), float(squared.sum())) for squared in blocks], axis=0)
    mean, mean_square = (sums[1:] / sums[0]).tolist()
    return Distances(mean, max(mean_square - mean**2, 0.0) ** 0.5, int(sums[0])), mean_square


@dataclass(frozen=True)
class LengthBin:
    """Text-to-image recall of queries of `shortest` to `longest` words.

    recall, low, high, seed_std: {K: percent}. recall is the mean over `seeds` runs. low and high are Wilson's 95 %
    interval for that share of `queries` queries (not queries x seeds, because the runs answer the same ones). seed_std
    is None for one run.
    """

    shortest: int
    longest: int
    queries: int
    seeds: int
    recall: dict[int, float]
    low: dict[int, float]
    high: dict[int, float]
    seed_std: dict[int, float] | None


def count_words(caption: str) -> int:
    """Return the number of words of a caption; words with an inner hyphen or apostrophe count as one."""
    return len(_WORD.findall(caption))


def recall_by_length(ranks: np.ndarray, lengths: np.ndarray, last_lengths: Sequence[int], *,
                     at: Sequence[int] = (1, 5, 10)) -> list[LengthBin]:
    """Return the recall of text queries by their number of words.

    Args:
        ranks: (S, Q) or (Q,) rank of each query in each of S runs, 0 = best.
        lengths: (Q,) number of words of each query.
        last_lengths: upper limit of each bin but the last, increasing: (6, 8) = up to 6, 7 to 8, 9 or more words.
        at: the K of recall at K.

    Returns:
        The nonempty bins, in order; the first starts at the shortest query, the last ends at the longest.

    Raises:
        DataError: there are no queries, shapes do not fit, or the limits do not increase.
    """
    ranks, lengths = np.atleast_2d(np.asarray(ranks)), np.asarray(lengths)
    if ranks.ndim != 2 or lengths.ndim != 1 or ranks.shape[1] != len(lengths) or not ranks.size:
        raise DataError(f"ranks of shape {ranks.shape} and lengths of shape {lengths.shape} do not fit, or there are "
                        "no queries: give one length per query")
    if list(last_lengths) != sorted(set(last_lengths)):
        raise DataError(f"the last lengths of the bins must increase, got {', '.join(map(str, last_lengths))}")
    bin_of = np.searchsorted(np.asarray(last_lengths), lengths, side="left")
    bins = []
    for number in np.unique(bin_of).tolist():
        chosen = bin_of == number
        queries = int(chosen.sum())
        shares = {k: (ranks[:, chosen] < k).mean(axis=1) for k in at}                       # {K: (S,)}
        intervals = {k: wilson_interval(float(share.mean()), queries) for k, share in shares.items()}
        bins.append(LengthBin(
            shortest=int(lengths[chosen].min()) if number == 0 else last_lengths[number - 1] + 1,
            longest=int(lengths[chosen].max()) if number == len(last_lengths) else last_lengths[number],
            queries=queries, seeds=len(ranks),
            recall={k: 100 * float(share.mean()) for k, share in shares.items()},
            low={k: 100 * interval.low for k, interval in intervals.items()},
            high={k: 100 * interval.high for k, interval in intervals.items()},
            seed_std={k: 100 * float(share.std(ddof=1)) for k, share in shares.items()} if len(ranks) > 1 else None))
    return bins


def local_and_global_scores(model: AsCL, images: EncodedImages, texts: EncodedTexts, *,
                            progress: Progress | None = None) -> tuple[Tensor, Tensor]:
    """Return S_local and S_global of every pair, each (N_images, N_texts): the scores at u1 = 1 and at u1 = 0.

    A student has no part in them.
    """
    local, global_ = copy.copy(model), copy.copy(model)
    local.local_weight, global_.local_weight = 1.0, 0.0
    local.student_weight = global_.student_weight = 0.0
    return (score_all_pairs(local, images, texts, progress=progress),
            score_all_pairs(global_, images, texts, progress=progress))


def recall_by_local_weight(local: Tensor, global_: Tensor, owner: np.ndarray,
                           weights: Sequence[float]) -> list[RetrievalReport]:
    """Return the recalls of u1 * local + (1 - u1) * global at each u1; exact, as scores are linear in u1 (equation 2).

    They show how a model trained at one u1 ranks at another, not how a model trained at that other u1 would rank.
    """
    return [rank_report(weight * local + (1 - weight) * global_, owner) for weight in weights]
