"""One evaluation of copy detection from descriptors or predictions to a report that says how it was measured.

The protocol decides a published number as much as the model does: which pairs are candidates, how many true pairs there
are, what a tie costs, which background set was used. So all of that is part of the report.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ascl.core.errors import DataError
from ascl.image_copy.descriptors.files import Descriptors, check_comparable, overlap, with_vectors
from ascl.image_copy.evaluation.bootstrap import bootstrap_intervals
from ascl.image_copy.evaluation.copydays import copydays_report
from ascl.image_copy.evaluation.files import Edit, GroundTruth
from ascl.image_copy.evaluation.metrics import (
    CopyMetrics,
    JudgedPairs,
    TopPairs,
    judge,
    metrics_of,
    norm_ratio_keeps,
    ranks_of_pairs,
    top_pairs,
)
from ascl.image_copy.evaluation.report import Report
from ascl.image_copy.evaluation.score_norm import augmented, fit_whitening, subtract_negatives
from ascl.index.exact import Metric, capped_search, nearest_references

DISC_CANDIDATES = 500_000  # the challenge's limit for all queries together
STRENGTHS = ("mild", "medium", "hard")  # as the generated benchmark names them
TIE_RULE = "score descending; among equal scores the wrong pair first"


@dataclass(frozen=True)
class BackgroundScore:
    """Score normalisation: what is subtracted is weight * mean of the start..end largest background scores."""

    name: str
    weight: float
    start: int
    end: int


@dataclass(frozen=True)
class NegativeSubtraction:
    """Negative embedding subtraction, as `subtract_negatives`."""

    beta: float
    neighbours: int
    iterations: int


SSCD = BackgroundScore("sscd", weight=1.0, start=0, end=2)
ISC = BackgroundScore("isc", weight=2.0, start=9, end=9)
RATIOS = (0.8, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.2, 1.5)  # |query| / |reference| of the norm-ratio curve
ISC_WINNER = NegativeSubtraction(beta=0.35, neighbours=10, iterations=1)


@dataclass(frozen=True)
class Protocol:
    """How candidates are found among descriptors.

    Attributes:
        candidates: the rule: "global", the `limit` best pairs over all queries, or "per query", the `limit` best each.
        limit: of the rule.
        normalisation: with the background, or None.
        whiten: dimensions to which the background's principal components whiten, or None.
        device: where blocks are scored, "cpu" or "cuda".
    """

    candidates: Literal["global", "per query"] = "global"
    limit: int = DISC_CANDIDATES
    normalisation: BackgroundScore | NegativeSubtraction | None = None
    whiten: int | None = None
    device: str = "cpu"

    @property
    def metric(self) -> Metric:
        """Normalised scores are inner products; else the challenge's rule, Euclidean distance."""
        return "ip" if isinstance(self.normalisation, BackgroundScore) else "l2"

    def rule(self) -> str:
        if self.candidates == "global":
            return f"the {self.limit:,} best pairs over all queries"
        return f"the {self.limit} best references of each query"


@dataclass(frozen=True, eq=False)
class Candidates:
    """Scored pairs by id, and where they come from.

    Attributes:
        query, reference: (N,) ids.
        score: (N,) float64.
        queries: ids of all queries that were searched or, from a file, that occur; with those of the ground truth they
            are the population.
        about: lines of the protocol: rule, metric, codec, normalisation, inputs.
        counts: figures of the report: queries, references, background.
        warnings: what a reader has to know.
        references: ids of the references that were searched, None where only predictions are known.
        compared: queries and references with the vectors that were compared, whitened or less their negatives; None
            where only predictions are known, or where a normalisation added a dimension.
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
        DataError: descriptors of different models or dimensions, or a normalisation or whitening without background.
    """
    check_comparable([queries, references] + ([background] if background else []))
    counts = {
        "queries": len(queries.names),
        "references": len(references.names),
        "dimension": queries.vectors.shape[1],
    }
    warnings = []
    if background is not None:
        counts["background"] = len(background.names)
        for name, side in (("reference", references), ("query", queries)):
            by_id, by_vector = overlap(background, side)
            counts[f"background_{name}_same_id"], counts[f"background_{name}_same_vector"] = by_id, by_vector
            if by_id or by_vector:
                warnings.append(
                    f"the background overlaps the {'references' if name == 'reference' else 'queries'}: {by_id} images "
                    f"by id, {by_vector} by identical descriptor; their own copies are then taken for background"
                )
    elif protocol.normalisation is not None or protocol.whiten is not None:
        raise DataError("score normalisation and whitening need a background set: give one")
    codec = "Flat"
    if protocol.whiten is not None and background is not None:
        whitening = fit_whitening(background.vectors, protocol.whiten)
        queries, references, background = (
            with_vectors(one, whitening.apply(one.vectors)) for one in (queries, references, background)
        )
        codec = f"PCAW{protocol.whiten},L2norm,Flat"
    left, right = queries.vectors, references.vectors
    normalisation = protocol.normalisation
    if isinstance(normalisation, BackgroundScore) and background is not None:
        left, right = augmented(
            left, right, background.vectors, weight=normalisation.weight, start=normalisation.start,
            end=normalisation.end, device=protocol.device,
        )
    elif isinstance(normalisation, NegativeSubtraction) and background is not None:
        left, right = (
            subtract_negatives(side, background.vectors, **asdict(normalisation), device=protocol.device)
            for side in (left, right)
        )
    at_query, at_reference, score = _search(left, right, protocol)
    about = {
        "candidates": protocol.rule(),
        "score": "inner product" if protocol.metric == "ip" else "-squared Euclidean distance",
        "codec": codec,
        "normalisation": _described(normalisation),
        "model": queries.model or references.model or "not named in the files",
        "query descriptors": queries.source,
        "reference descriptors": references.source,
        "background descriptors": background.source if background else "none",
    }
    return Candidates(
        query=np.array(queries.names, dtype=object)[at_query],
        reference=np.array(references.names, dtype=object)[at_reference],
        score=score,
        queries=queries.names,
        references=references.names,
        about=about,
        counts=counts,
        warnings=warnings,
        compared=None if isinstance(normalisation, BackgroundScore) else (
            with_vectors(queries, left), with_vectors(references, right)
        ),
    )


def given_candidates(query: Sequence[str], reference: Sequence[str], score: np.ndarray, source: str) -> Candidates:
    """Predictions made elsewhere, as they are."""
    queries = list(dict.fromkeys(query))
    return Candidates(
        query=np.array(query, dtype=object),
        reference=np.array(reference, dtype=object),
        score=score,
        queries=queries,
        about={"candidates": f"the {len(score):,} pairs of {source}", "score": "as given", "codec": "unknown",
               "normalisation": "unknown"},
        counts={"queries_with_predictions": len(queries)},
    )


def evaluate_candidates(
    candidates: Candidates,
    truth: GroundTruth,
    *,
    norms: tuple[Descriptors, Descriptors] | None = None,
    edits: dict[str, Edit] | None = None,
    copydays: bool = False,
    bootstrap_samples: int = 0,
    seed: int = 0,
) -> Report:
    """Metrics of candidates against a ground truth.

    Args:
        candidates: from `find_candidates` or `given_candidates`.
        truth: who copied whom. True pairs whose images were not searched count as misses, and are counted.
        norms: queries and references with norms: also report what the norm-ratio filter leaves.
        edits: how queries were made: also report by kind and strength.
        copydays: also report Copydays' trapezoid scores.
        bootstrap_samples: draws of the queries for intervals; 0 for none.
        seed: of the draws.

    Raises:
        DataError: no true pair among the images that were searched, norms missing, or as `judge`.
    """
    warnings = list(candidates.warnings)
    counts = candidates.counts | _truth_counts(candidates, truth, warnings)
    judged = judge(candidates.query, candidates.reference, candidates.score, truth.pair_query, truth.pair_reference)
    metrics = metrics_of(judged)
    about = candidates.about | {
        "ground-truth pairs (denominator of every recall)": len(truth.pair_query),
        "ties": TIE_RULE,
    }
    sections: dict[str, Any] = {"metrics": _metrics(metrics), "top_pairs": _top(top_pairs(judged))}
    keep = None
    if norms is not None:
        ratio = _norms_of(candidates, *norms)
        keep = norm_ratio_keeps(*ratio)
        filtered = metrics_of(judged.only(keep[judged.order]))
        sections["norm_ratio_curve"] = [
            {"most": most} | _top(top_pairs(judged, norm_ratio_keeps(*ratio, most=most))) for most in RATIOS
        ]
        sections["top_pairs_norm_filter"] = _top(top_pairs(judged, keep))
        sections["metrics_norm_filter"] = _metrics(filtered)
        about["norm-ratio filter"] = (
            "pairs with |query| / |reference| > 1 are rejected; for the counts at the top pairs after these were "
            "taken by score, for the metrics from all candidates"
        )
    if bootstrap_samples:
        population = len(set(candidates.queries) | set(truth.queries))
        sections["intervals"] = asdict(bootstrap_intervals(judged, population, samples=bootstrap_samples, seed=seed))
        about["intervals"] = f"{bootstrap_samples} draws of the {population} queries with replacement, seed {seed}"
    if edits is not None:
        sections["breakdown"] = _breakdown(judged, metrics, edits, keep, warnings)
        about["breakdown"] = (
            "each row holds only the queries of its kind, distractors of the kind included; true and false at the top "
            "and recall at P90 take the top pairs and the threshold of the whole list"
        )
    if copydays:
        sections["copydays"] = copydays_report(judged)
        about["copydays"] = "average precision by trapezoids over the candidates; pooled over all queries of all blocks"
    return Report(protocol=about, counts=counts, sections=sections, warnings=warnings)


def _search(left: np.ndarray, right: np.ndarray, protocol: Protocol) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if protocol.candidates == "global":
        return capped_search(left, right, protocol.limit, metric=protocol.metric, device=protocol.device)
    nearest, score = nearest_references(left, right, protocol.limit, metric=protocol.metric, device=protocol.device)
    return np.repeat(np.arange(len(left)), nearest.shape[1]), nearest.ravel(), score.ravel()


def _described(normalisation: BackgroundScore | NegativeSubtraction | None) -> str:
    if normalisation is None:
        return "none"
    if isinstance(normalisation, BackgroundScore):
        return (
            f"{normalisation.name}: score - beta * mean of the query's background scores at places "
            f"{normalisation.start} to {normalisation.end} (from 0), beta {normalisation.weight:g}"
        )
    return (
        f"negative embedding subtraction of queries and references: beta {normalisation.beta:g}, k "
        f"{normalisation.neighbours}, {normalisation.iterations} iteration(s)"
    )


def _truth_counts(candidates: Candidates, truth: GroundTruth, warnings: list[str]) -> dict[str, int]:
    """Figures of the ground truth; images of it that were not searched are counted and warned of."""
    with_reference = len(set(truth.pair_query))
    counts = {
        "ground_truth_pairs": len(truth.pair_query),
        "ground_truth_queries": len(truth.queries),
        "queries_with_reference": with_reference,
        "distractor_queries": len(set(truth.queries) | set(candidates.queries)) - with_reference,
        "candidates": len(candidates.score),
    }
    if candidates.references is None:
        return counts
    searched, references = set(candidates.queries), set(candidates.references)
    absent = [
        (query not in searched, reference not in references)
        for query, reference in zip(truth.pair_query, truth.pair_reference, strict=True)
    ]
    counts |= {
        "distractor_references": len(references - set(truth.pair_reference)),
        "ground_truth_queries_not_described": len(set(truth.queries) - searched),
        "ground_truth_references_not_described": len(set(truth.pair_reference) - references),
        "ground_truth_pairs_not_described": sum(any(pair) for pair in absent),
        "described_queries_not_in_ground_truth": len(searched - set(truth.queries)),
    }
    if all(any(pair) for pair in absent):
        raise DataError(
            f"no true pair can be found: of {len(absent)}, {sum(query for query, _ in absent)} have a query and "
            f"{sum(reference for _, reference in absent)} a reference without descriptor. Ids of the ground truth look "
            f"like {truth.pair_query[0]!r}, {truth.pair_reference[0]!r}, those of the descriptors like "
            f"{candidates.queries[0]!r}, {candidates.references[0]!r}"
        )
    if counts["ground_truth_pairs_not_described"]:
        warnings.append(
            f"{counts['ground_truth_pairs_not_described']} of {len(absent)} true pairs count as misses because an "
            f"image has no descriptor ({counts['ground_truth_references_not_described']} references, "
            f"{len(set(truth.pair_query) - searched)} queries)"
        )
    if counts["described_queries_not_in_ground_truth"]:
        warnings.append(
            f"{counts['described_queries_not_in_ground_truth']} described queries are not in the ground truth: every "
            "pair of theirs counts as false"
        )
    return counts


def _norms_of(
    candidates: Candidates, queries: Descriptors, references: Descriptors
) -> tuple[np.ndarray, np.ndarray]:
    """Norms of both sides of every candidate."""
    columns = []
    check_comparable([queries, references])
    for ids, side in ((candidates.query, queries), (candidates.reference, references)):
        if side.norms is None:
            raise DataError(f"{side.source} has no `norms`: the norm-ratio filter needs descriptors of an ASL model")
        row_of = {name: row for row, name in enumerate(side.names)}
        try:
            columns.append(side.norms[[row_of[one] for one in ids]])
        except KeyError as error:
            raise DataError(f"image {error.args[0]!r} of the predictions has no norm in {side.source}") from None
    return columns[0], columns[1]


def _metrics(metrics: CopyMetrics) -> dict[str, float | int | None]:
    names = ("muap", "recall_at_p90", "threshold_at_p90", "recall_rank1", "recall_rank10")
    return {name: getattr(metrics, name) for name in names} | {"pairs": metrics.predictions}


def _top(top: TopPairs) -> dict[str, float | int | None]:
    return asdict(top) | {"precision": top.precision}


def _breakdown(
    judged: JudgedPairs, metrics: CopyMetrics, edits: dict[str, Edit], keep: np.ndarray | None, warnings: list[str]
) -> dict[str, list[dict[str, Any]]]:
    """Figures for the queries of each role, kind and strength, and of kind and strength together.

    keep: what the norm-ratio filter keeps of the predictions as they were given, None without the filter.
    """
    unknown = sum(1 for query in judged.query_ids if query not in edits)
    if unknown:
        warnings.append(f"{unknown} queries have no row among the edits and are in no row of the breakdown")
    groupings: dict[str, Callable[[Edit], tuple[str, ...]]] = {
        "role": lambda edit: (edit.role,),
        "kind": lambda edit: (edit.kind,),
        "strength": lambda edit: (edit.strength,),
        "kind_strength": lambda edit: (edit.kind, edit.strength),
    }
    result: dict[str, list[dict[str, Any]]] = {}
    for name, key in groupings.items():
        labels = [key(edits[query]) if query in edits else None for query in judged.query_ids]
        groups: dict[tuple[str, ...], list[Edit]] = {}
        for edit in edits.values():
            groups.setdefault(key(edit), []).append(edit)
        if len(groups) < 2:
            continue
        result[name] = [
            {"name": " ".join(group)} | _group_figures(
                judged, np.array([label == group for label in labels], dtype=bool), metrics.threshold_at_p90, members,
                keep,
            )
            for group, members in sorted(groups.items(), key=lambda item: [_order(label) for label in item[0]])
        ]
    return result


def _order(label: str) -> tuple[int, str]:
    """Strengths from weak to strong, everything else by the alphabet."""
    return (STRENGTHS.index(label), "") if label in STRENGTHS else (len(STRENGTHS), label)


def _group_figures(
    judged: JudgedPairs, chosen: np.ndarray, threshold: float | None, members: list[Edit], keep: np.ndarray | None
) -> dict[str, Any]:
    group = judged.of_queries(chosen)
    pairs = len(group.gt_query)
    top = slice(0, len(judged.gt_query))
    of_group = chosen[judged.query[top]]
    scales = [edit.content_scale for edit in members if edit.content_scale is not None]
    figures: dict[str, Any] = {
        "queries": len(members),
        "pairs": pairs,
        "content_scale": float(np.mean(scales)) if scales else None,
        "top_true": int((judged.correct[top] & of_group).sum()),
        "top_false": int((~judged.correct[top] & of_group).sum()),
        "muap": None, "recall_rank1": None, "recall_at_p90": None,
    }
    if keep is not None:
        kept = of_group & keep[judged.order[top]]
        figures["filtered_true"] = int((judged.correct[top] & kept).sum())
        figures["filtered_false"] = int((~judged.correct[top] & kept).sum())
    if pairs:
        above = int((group.correct & (group.score >= threshold)).sum()) if threshold is not None else None
        figures["muap"] = metrics_of(group).muap
        figures["recall_rank1"] = float(np.mean(ranks_of_pairs(group) == 0))
        figures["recall_at_p90"] = None if above is None else above / pairs
    return figures
