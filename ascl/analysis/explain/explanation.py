"""Explain a pair's score: AsCL's score as an exact sum over words and regions, and the attention behind it.

The local score is a mean of cosines: of each region with the words it attends to, and of each word with the regions it
attends to. So each region and word has its own term. An attended vector is a weighted sum of projected tokens, and a
cosine is linear in this vector for a given norm, so each term splits exactly among the attended tokens. Nothing here is
an approximation; the weights are the model's attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ascl.core.errors import DataError
from ascl.models import AsCL, EncodedImages, EncodedTexts, RetrievalModel
from ascl.models.base import TextEncoder
from ascl.models.fusion import UnprojectedAttention, attention_weights
from ascl.models.text import BertWords, CachedWords

SMALLEST_NORM = 1e-8    # as in torch.nn.functional.cosine_similarity


@dataclass(frozen=True, eq=False)
class PairExplanation:
    """The decomposed score of one image with one text, over their K real regions and L real words.

    words: (L,) labels. regions: (K,) int64, the number of each region in the feature file. region_to_word: (H, K, L)
    attention per head, rows sum to 1; word_to_region: (H, L, K), likewise. Without fusion there is one head with
    uniform attention. region_cosines: (K,) cos(v_i, w*_i). word_cosines: (L,) cos(w_j, v*_j). Both in [-1, 1].
    region_pairs: (L, K) contribution of word j to the term of region i; word_pairs: (L, K) contribution of region i to
    the term of word j. All contributions sum to `local`. attended_part, whole_part: contributions of the attended image
    vector and the whole-image feature, which sum to the global score. local, global_: the two scores, in [-1, 1].
    local_weight: u1. student: the student's cosine, which has no parts; None = the model has no student.
    student_weight: its weight in the score, 0 without a student. score: the score of the pair.
    """

    words: list[str]
    regions: np.ndarray
    region_to_word: np.ndarray
    word_to_region: np.ndarray
    region_cosines: np.ndarray
    word_cosines: np.ndarray
    region_pairs: np.ndarray
    word_pairs: np.ndarray
    attended_part: float
    whole_part: float
    local: float
    global_: float
    local_weight: float
    student: float | None
    student_weight: float
    score: float

    @property
    def local_share(self) -> float:
        """The weight of the local score in the score of the pair."""
        return (1 - self.student_weight) * self.local_weight

    @property
    def global_share(self) -> float:
        """The weight of the global score in the score of the pair."""
        return (1 - self.student_weight) * (1 - self.local_weight)

    @property
    def region_terms(self) -> np.ndarray:
        """(K,) the regions' own terms; with the words' own terms they sum to the local score."""
        return self.region_cosines / (2 * len(self.regions))

    @property
    def word_terms(self) -> np.ndarray:
        """(L,) the words' own terms; with the regions' own terms they sum to the local score."""
        return self.word_cosines / (2 * len(self.words))

    @property
    def pairs(self) -> np.ndarray:
        """(L, K) the contribution of each pair of word j and region i; sums to the local score."""
        return self.region_pairs + self.word_pairs

    @property
    def word_totals(self) -> np.ndarray:
        """(L,) each word's own term plus its contribution to the regions' terms; sums to the local score."""
        return self.word_terms + self.region_pairs.sum(axis=1)

    @property
    def region_totals(self) -> np.ndarray:
        """(K,) each region's own term plus its contribution to the words' terms; sums to the local score."""
        return self.region_terms + self.word_pairs.sum(axis=0)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        of_words = {"cosine": self.word_cosines, "own_term": self.word_terms,
                    "in_regions_terms": self.region_pairs.sum(axis=1), "total": self.word_totals}
        of_regions = {"cosine": self.region_cosines, "own_term": self.region_terms,
                      "in_words_terms": self.word_pairs.sum(axis=0), "total": self.region_totals}
        return {
            "score": self.score, "local_weight": self.local_weight,
            "local": {"score": self.local, "in_the_score": self.local_share * self.local,
                      "words_own_terms": float(self.word_terms.sum()),
                      "regions_own_terms": float(self.region_terms.sum())},
            "global": {"score": self.global_, "in_the_score": self.global_share * self.global_,
                       "attended_regions": self.attended_part, "whole_image": self.whole_part},
            "student": None if self.student is None else {
                "score": self.student, "weight": self.student_weight,
                "in_the_score": self.student_weight * self.student},
            "words": [{"word": word} | {name: float(values[j]) for name, values in of_words.items()}
                      for j, word in enumerate(self.words)],
            "regions": [{"region": int(number)} | {name: float(values[i]) for name, values in of_regions.items()}
                        for i, number in enumerate(self.regions)],
            "pairs": self.pairs.tolist(),
            "attention": {name: getattr(self, name).tolist() for name in ("region_to_word", "word_to_region")}}


@torch.no_grad()
def explain_pair(model: RetrievalModel, image: EncodedImages, text: EncodedTexts,
                 words: Sequence[str] | None = None) -> PairExplanation:
    """Decompose the score of one image with one text.

    Args:
        model: AsCL, with or without fusion.
        image, text: one encoded item each, on the model's device.
        words: labels of the text's real words; None = their numbers.

    Returns:
        A `PairExplanation` in float64, computed in the model's precision: sums are exact up to its rounding.

    Raises:
        DataError: the model's score is not a sum over words and regions.
        ValueError: more than one item, or the labels do not fit the words.
    """
    if not isinstance(model, AsCL):
        raise DataError(f"the score of {type(model).__name__} is not a sum over words and regions: only the score of "
                        "AsCL (model.kind ascl) can be explained; give a run of AsCL")
    if len(image) != 1 or len(text) != 1:
        raise ValueError(f"explain one image and one text at a time, got {len(image)} and {len(text)}")
    real = torch.ones_like(image.regions[0, :, 0], dtype=torch.bool) if image.mask is None else image.mask[0]
    v, w = image.regions[0, real], text.words[0, text.mask[0]]                                  # (K, D), (L, D)
    labels = [str(number) for number in range(len(w))] if words is None else list(words)
    if len(labels) != len(w):
        raise ValueError(f"{len(labels)} labels for {len(w)} words: give one label per real word")
    of_regions = _attend(v, w, model.region_to_word if model.fusion else None)
    of_words = _attend(w, v, model.word_to_region if model.fusion else None)
    local = float(of_regions.cosines.mean() + of_words.cosines.mean()) / 2

    attended, whole = model.attended_image_global(of_words.attended.mean(dim=0)), model.image_global(image.globals[0])
    gate = torch.sigmoid(model.gate(torch.cat([attended, whole])))
    text_vector = model.text_global(of_regions.attended.mean(dim=0))
    image_vector = gate * attended + (1 - gate) * whole
    norms = image_vector.norm().clamp_min(SMALLEST_NORM) * text_vector.norm().clamp_min(SMALLEST_NORM)
    attended_part, whole_part = (float(part @ text_vector / norms) for part in (gate * attended, (1 - gate) * whole))
    global_ = float(F.cosine_similarity(image_vector, text_vector, dim=0))
    score, student, weight = model.local_weight * local + (1 - model.local_weight) * global_, None, 0.0
    if image.student is not None and text.student is not None:
        student, weight = float(image.student[0] @ text.student[0]), model.student_weight
        score = (1 - weight) * score + weight * student
    return PairExplanation(
        words=labels, regions=real.nonzero()[:, 0].cpu().numpy(),
        region_to_word=_numbers(of_regions.weights), word_to_region=_numbers(of_words.weights),
        region_cosines=_numbers(of_regions.cosines), word_cosines=_numbers(of_words.cosines),
        region_pairs=_numbers(of_regions.shares).T / (2 * len(v)), word_pairs=_numbers(of_words.shares) / (2 * len(w)),
        attended_part=attended_part, whole_part=whole_part, local=local, global_=global_,
        local_weight=model.local_weight, student=student, student_weight=weight, score=score)


def word_labels(encoder: TextEncoder | None, text: str, count: int) -> list[str]:
    """Return the first `count` word pieces of a text, without special tokens; `##ing` continues a word."""
    encoder = encoder.encoder if isinstance(encoder, CachedWords) else encoder
    if not isinstance(encoder, BertWords):
        return [str(number) for number in range(count)]
    tokenizer = encoder.tokenizer
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])[:count]


class _Attended(NamedTuple):
    """The attention of Q queries to K keys. cosines: of query and attended vector. shares: of each key in a cosine."""

    attended: Tensor        # (Q, D)
    weights: Tensor         # (H, Q, K)
    cosines: Tensor         # (Q,)
    shares: Tensor          # (Q, K)


def _attend(query: Tensor, key: Tensor, attention: nn.Module | None) -> _Attended:
    """Attend from (Q, D) to (K, D) with one of the model's attentions; None = uniform attention ("w/o MF")."""
    if attention is None:
        weights = key.new_full((1, len(query), len(key)), 1 / len(key))
        attended = key.mean(dim=0).expand(len(query), -1)
        values, out, heads = key, None, 1
    else:
        matrices = attention_weights(attention)
        values = key if matrices.value is None else key @ matrices.value.T
        out, heads = matrices.out, matrices.heads
        # torch averages weights over heads by default
        separate = {} if isinstance(attention, UnprojectedAttention) else {"average_attn_weights": False}
        attended, weights = (part[0] for part in attention(query[None], key[None], key[None], need_weights=True,
                                                           **separate))
    direction = query / query.norm(dim=1, keepdim=True).clamp_min(SMALLEST_NORM)
    # <q, out concat_h(sum_k a_hk v_hk)> = sum_hk a_hk <(out^T q)_h, v_hk>
    pulled = direction if out is None else direction @ out
    products = torch.einsum("hqk,qhd,khd->qk", weights, pulled.unflatten(1, (heads, -1)),
                            values.unflatten(1, (heads, -1)))
    norms = attended.norm(dim=1, keepdim=True).clamp_min(SMALLEST_NORM)
    return _Attended(attended, weights, F.cosine_similarity(query, attended, dim=1), products / norms)


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.double().cpu().numpy()
