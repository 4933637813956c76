"""Scored pairs of queries and references: searched among descriptors, or predicted elsewhere."""

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


@dataclass(frozen=True, eq=False)
class Candidates:
    """Scored pairs by id, and where they come from.

    Attributes:
        query, reference: (N,) ids.
        score: (N,) float64.
        queries: ids of all queries that were searched or, from a file, that occur; with those of the ground truth they
            are the population.
        about: lines of the protocol: rule, metric, codec, normalization, inputs.
        counts: figures of the report: queries, references, background.
        warnings: what a reader has to know.
        references: ids of the references that were searched, None where only predictions are known.
        compared: queries and references with the vectors that were compared, whitened or less their negatives; None
            where only predictions are known, or where a normalization added a dimension.
    """

    query: np.ndarray
    reference: np.ndarray
    score: np.ndarray
    queries: Sequence[str]
    about: dict[str, Any]
    counts: dict[str, int]
    warnings: list[str] = field(default_factory=list)
    references: Sequence[str] | None = None
    compared: tuple[Descriptors, Descriptors] | None = None


def find_candidates(
    queries: Descriptors, references: Descriptors, background: Descriptors | None, protocol: Protocol
) -> Candidates:
    """Search queries among references as `protocol` says.

    Raises:
        DataError: descriptors of different models or dimensions, or a normalization or whitening without background.
    """
    check_comparable([queries, references] + ([background] if background else []))
    counts = {"queries": len(queries.names), "references": len(references.names), "dimension": queries.vectors.shape[1]}
    warnings = []
    if background is not None:
        counts["background"] = len(background.names)
        for name, side in (("reference", references), ("query", queries)):
            by_id, by_vector = overlap(background, side)
            counts[f"background_{name}_same_id"], counts[f"background_{name}_same_vector"] = by_id, by_vector
            if by_id or by_vector:
                warnings.append(f"the background overlaps the {'references' if name == 'reference' else 'queries'}: "
                                f"{by_id} images by id, {by_vector} by identical descriptor; their own copies are then "
                                "taken for background")
    elif protocol.normalization is not None or protocol.whiten is not None:
        raise DataError("score normalization and whitening need a background set: give one")
    codec = "Flat"
    if protocol.whiten is not None and background is not None:
        whitening = fit_whitening(background.vectors, protocol.whiten)
        queries, references, background = (replace(one, vectors=whitening.apply(one.vectors))
                                           for one in (queries, references, background))
        codec = f"PCAW{protocol.whiten},L2norm,Flat"
    left, right = queries.vectors, references.vectors
    normalization = protocol.normalization
    if isinstance(normalization, BackgroundScore) and background is not None:
        left, right = augmented(left, right, background.vectors, weight=normalization.weight, start=normalization.start,
                                end=normalization.end, device=protocol.device)
    elif isinstance(normalization, NegativeSubtraction) and background is not None:
        left, right = (subtract_negatives(side, background.vectors, **asdict(normalization), device=protocol.device)
                       for side in (left, right))
    if protocol.candidates == "global":
        at_query, at_reference, score = capped_search(left, right, protocol.limit, metric=protocol.metric,
                                                      device=protocol.device)
    else:
        nearest, scores = nearest_references(left, right, protocol.limit, metric=protocol.metric,
                                             device=protocol.device)
        at_query = np.repeat(np.arange(len(left)), nearest.shape[1])
        at_reference, score = nearest.ravel(), scores.ravel()
    about = {"candidates": protocol.rule(),
             "score": "inner product" if protocol.metric == "ip" else "-squared Euclidean distance", "codec": codec,
             "normalization": str(normalization or "none"), "model": queries.model or references.model
             or "not named in the files", "query descriptors": queries.source,
             "reference descriptors": references.source,
             "background descriptors": background.source if background else "none"}
    return Candidates(
        query=np.array(queries.names, dtype=object)[at_query],
        reference=np.array(references.names, dtype=object)[at_reference],
        score=score,
        queries=queries.names,
        references=references.names,
        about=about,
        counts=counts,
        warnings=warnings,
        compared=None if isinstance(normalization, BackgroundScore) else (
            replace(queries, vectors=left), replace(references, vectors=right)
        ),
    )


def given_candidates(query: Sequence[str], reference: Sequence[str], score: np.ndarray, source: str) -> Candidates:
    """Return predictions made elsewhere, as they are."""
    queries = list(dict.fromkeys(query))
    return Candidates(
        query=np.array(query, dtype=object), reference=np.array(reference, dtype=object), score=score, queries=queries,
        about={"candidates": f"the {len(score):,} pairs of {source}", "score": "as given", "codec": "unknown",
               "normalization": "unknown"}, counts={"queries_with_predictions": len(queries)},
    )
