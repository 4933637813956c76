"""Scored pairs of queries and references: found by a search among descriptors, or predicted elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.image_copy.descriptors.files import Descriptors, check_comparable, overlap
from ascl.image_copy.evaluation.protocol import BackgroundScore, NegativeSubtraction, Protocol
from ascl.image_copy.evaluation.score_norm import augmented, fit_whitening, subtract_negatives
from ascl.index.exact import capped_search, nearest_references

SQUARED = "-squared Euclidean distance"


@dataclass(frozen=True, eq=False)
class Candidates:
    """Scored pairs of ids, and their provenance."""

    query: np.ndarray  # (N,) ids
    reference: np.ndarray  # (N,) ids
    score: np.ndarray  # (N,) float64
    queries: Sequence[str]  # ids that were searched or, from a file, that occur; with the ground truth's: all queries
    about: dict[str, Any]  # lines of the protocol: rule, metric, codec, normalization, inputs
    counts: dict[str, int]  # counts of the report: queries, references, background
    warnings: list[str] = field(default_factory=list)  # what a reader must know
    references: Sequence[str] | None = None  # ids that were searched; None if only predictions are known
    # queries and references with the vectors that were compared (whitened, or with negatives subtracted); None if only
    # predictions are known, or if a normalization added a dimension
    compared: tuple[Descriptors, Descriptors] | None = None


def find_candidates(queries: Descriptors, references: Descriptors, background: Descriptors | None,
                    protocol: Protocol) -> Candidates:
    """Search queries among references as `protocol` says.

    Raises DataError for descriptors of different models or dimensions, or a normalization or whitening without a
    background.
    """
    check_comparable([queries, references] + ([background] if background else []))
    counts = {"queries": len(queries.names), "references": len(references.names), "dimension": queries.vectors.shape[1]}
    warnings = []
    if background is not None:
        counts["background"] = len(background.names)
        for name, side in (("reference", references), ("query", queries)):
            same_id, same_vector = overlap(background, side)
            counts |= {f"background_{name}_same_id": same_id, f"background_{name}_same_vector": same_vector}
            if same_id or same_vector:
                sides = "references" if name == "reference" else "queries"
                warnings.append(f"the background overlaps the {sides}: {same_id} images by id, {same_vector} by "
                                "identical descriptor; their own copies then count as background")
    elif protocol.normalization is not None or protocol.whiten is not None:
        raise DataError("score normalization and whitening need a background set; give one")
    codec, norm, metric, device = "Flat", protocol.normalization, protocol.metric, protocol.device
    if protocol.whiten is not None and background is not None:
        whitening = fit_whitening(background.vectors, protocol.whiten)
        queries, references, background = (replace(one, vectors=whitening.apply(one.vectors))
                                           for one in (queries, references, background))
        codec = f"PCAW{protocol.whiten},L2norm,Flat"
    left, right = queries.vectors, references.vectors
    if isinstance(norm, BackgroundScore) and background is not None:
        left, right = augmented(left, right, background.vectors, weight=norm.weight, start=norm.start, end=norm.end,
                                device=device)
    elif isinstance(norm, NegativeSubtraction) and background is not None:
        left, right = (subtract_negatives(side, background.vectors, **asdict(norm), device=device)
                       for side in (left, right))
    if protocol.candidates == "global":
        at_query, at_reference, score = capped_search(left, right, protocol.limit, metric=metric, device=device)
    else:
        at_reference, score = nearest_references(left, right, protocol.limit, metric=metric, device=device)
        at_query = np.repeat(np.arange(len(left)), score.shape[1])
    about = {"candidates": protocol.rule(),
             "score": "inner product" if metric == "ip" else SQUARED, "codec": codec,
             "normalization": str(norm or "none"),
             "model": queries.model or references.model or "not named in the files",
             "query descriptors": queries.source, "reference descriptors": references.source,
             "background descriptors": background.source if background else "none"}
    compared = (replace(queries, vectors=left), replace(references, vectors=right))
    return Candidates(np.array(queries.names, dtype=object)[at_query],
                      np.array(references.names, dtype=object)[at_reference.ravel()], score.ravel(), queries.names,
                      about, counts, warnings, references.names,
                      None if isinstance(norm, BackgroundScore) else compared)


def given_candidates(query: Sequence[str], reference: Sequence[str], score: np.ndarray, source: str) -> Candidates:
    """Return predictions made elsewhere as candidates, unchanged."""
    queries = list(dict.fromkeys(query))
    about = {"candidates": f"the {len(score):,} pairs of {source}", "score": "as given", "codec": "unknown",
             "normalization": "unknown"}
    return Candidates(np.array(query, dtype=object), np.array(reference, dtype=object), score, queries, about,
                      {"queries_with_predictions": len(queries)})
