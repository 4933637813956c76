"""From candidates and a ground truth to the report."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ascl.core.errors import DataError
from ascl.image_copy.descriptors.files import Descriptors, check_comparable
from ascl.image_copy.evaluation.bootstrap import bootstrap_intervals
from ascl.image_copy.evaluation.breakdown import breakdown, hard_negatives
from ascl.image_copy.evaluation.candidates import Candidates
from ascl.image_copy.evaluation.copydays import copydays_report
from ascl.image_copy.evaluation.files import GroundTruth, QueryEdit
from ascl.image_copy.evaluation.judged import judge
from ascl.image_copy.evaluation.metrics import CopyMetrics, RankedPairs, metrics_of, norm_ratio_keeps, top_pairs
from ascl.image_copy.evaluation.report import METRICS, Report
from ascl.image_copy.evaluation.verified import CONFIDENCE, Verified, verification_section

RATIOS = (0.8, 0.9, 0.95, 0.98, 1.0, 1.02, 1.05, 1.1, 1.2, 1.5)  # |query| / |reference| of the norm-ratio curve


def evaluate_candidates(candidates: Candidates, truth: GroundTruth, *,
                        norms: tuple[Descriptors, Descriptors] | None = None, edits: dict[str, QueryEdit] | None = None,
                        negatives: list[tuple[str, str]] | None = None, copydays: bool = False,
                        bootstrap_samples: int = 0, seed: int = 0, verified: Verified | None = None) -> Report:
    """Measure candidates against a ground truth.

    Args:
        candidates: from `find_candidates` or `given_candidates`.
        truth: who copied whom. True pairs whose images were not searched count as misses; the report gives their
            number.
        norms: queries and references with norms: also report what the norm-ratio filter keeps.
        edits: how queries were made: also report by role, kind and strength.
        negatives: pairs that are alike but no copies: also report how many are among the top pairs, by the kind of
            `edits`, and what they are called by `verified`.
        copydays: also report Copydays' trapezoid scores.
        bootstrap_samples, seed: draws of the queries for intervals, 0 = none, and their seed.
        verified: what geometry says of the candidates, which are its `candidates`: also report that.

    Raises:
        DataError: the searched images contain no true pair, norms are missing, or as `judge`.
    """
    warnings = list(candidates.warnings)
    counts = candidates.counts | _truth_counts(candidates, truth, warnings)
    judged = judge(candidates.query, candidates.reference, candidates.score, truth.pair_query, truth.pair_reference)
    metrics = metrics_of(judged)
    about = candidates.about | {"ground-truth pairs (denominator of every recall)": len(truth.pair_query),
                                "ties": "by descending score; among equal scores, wrong pairs first"}
    sections: dict[str, Any] = {"metrics": _metrics(metrics), "top_pairs": _top(top_pairs(judged))}
    keep = None
    if norms is not None:
        ratio = _norms_of(candidates, *norms)
        keep = norm_ratio_keeps(*ratio)
        sections["norm_ratio_curve"] = [{"most": most} | _top(top_pairs(judged, norm_ratio_keeps(*ratio, most=most)))
                                        for most in RATIOS]
        sections["top_pairs_norm_filter"] = _top(top_pairs(judged, keep))
        sections["metrics_norm_filter"] = _metrics(metrics_of(judged.only(keep[judged.order])))
        about["norm-ratio filter"] = ("rejects pairs with |query| / |reference| > 1: for the counts at the top, from "
                                      "the top pairs; for the metrics, from all candidates")
    if bootstrap_samples:
        population = len(set(candidates.queries) | set(truth.queries))
        sections["intervals"] = asdict(bootstrap_intervals(judged, population, samples=bootstrap_samples, seed=seed))
        about["intervals"] = f"{bootstrap_samples} draws of the {population} queries with replacement, seed {seed}"
    if edits is not None:
        sections["breakdown"] = breakdown(judged, metrics.threshold_at_p90, edits, keep,
                                          None if verified is None else verified.confirmed)
        unknown = sum(query not in edits for query in judged.query_ids)
        if unknown:
            warnings.append(f"{unknown} queries have no row in the edits, so they are in no row of the breakdown")
        about["breakdown"] = ("each row has only the queries of its group, distractors included; TP and FP at the top "
                              "and recall at P90 use the top pairs and the threshold of the whole list")
    if negatives is not None and edits is not None:
        top = judged.order[: len(truth.pair_query)]
        chosen, kept = ({(candidates.query[row], candidates.reference[row]) for row in rows}
                        for rows in (top, top if keep is None else top[keep[top]]))
        sections["hard_negatives"] = hard_negatives(negatives, edits, chosen, None if keep is None else kept)
    if verified is not None:
        sections["verification"] = verification_section(verified, truth, negatives or [])
        counts["pictures_not_read"] = len(verified.not_read)
        about["geometry as a decision"] = (f"intervals are Clopper-Pearson, {CONFIDENCE:.0%}, as if pairs were "
                                           "independent; cost is processor time, with the reading of the files")
    if copydays:
        sections["copydays"] = copydays_report(judged)
        about["copydays"] = "average precision by trapezoids over the candidates; pooled over all queries of all blocks"
    return Report(protocol=about, counts=counts, sections=sections, warnings=warnings)


def _truth_counts(candidates: Candidates, truth: GroundTruth, warnings: list[str]) -> dict[str, int]:
    """Return counts of the ground truth; count its images that were not searched, and warn about them."""
    with_reference = len(set(truth.pair_query))
    counts = {"ground_truth_pairs": len(truth.pair_query), "ground_truth_queries": len(truth.queries),
              "queries_with_reference": with_reference,
              "distractor_queries": len(set(truth.queries) | set(candidates.queries)) - with_reference,
              "candidates": len(candidates.score)}
    if candidates.references is None:
        return counts
    searched, references, queries = set(candidates.queries), set(candidates.references), set(truth.queries)
    no_query = [query not in searched for query in truth.pair_query]
    no_reference = [reference not in references for reference in truth.pair_reference]
    missed = sum(a or b for a, b in zip(no_query, no_reference, strict=True))
    counts |= {"distractor_references": len(references - set(truth.pair_reference)),
               "ground_truth_queries_not_described": len(queries - searched),
               "ground_truth_references_not_described": len(set(truth.pair_reference) - references),
               "ground_truth_pairs_not_described": missed,
               "described_queries_not_in_ground_truth": len(searched - queries)}
    if missed == len(no_query):
        raise DataError(f"no true pair can be found: of {missed}, {sum(no_query)} have a query and {sum(no_reference)} "
                        f"a reference without descriptor. Ids of the ground truth look like {truth.pair_query[0]!r}, "
                        f"{truth.pair_reference[0]!r}, those of the descriptors like {candidates.queries[0]!r}, "
                        f"{candidates.references[0]!r}; give files with the same ids")
    if missed:
        warnings.append(f"{missed} of {len(no_query)} true pairs count as misses because an image has no descriptor "
                        f"({counts['ground_truth_references_not_described']} references, "
                        f"{len(set(truth.pair_query) - searched)} queries)")
    if counts["described_queries_not_in_ground_truth"]:
        warnings.append(f"{counts['described_queries_not_in_ground_truth']} described queries are not in the ground "
                        "truth: all of their pairs count as false")
    return counts


def _norms_of(candidates: Candidates, queries: Descriptors, references: Descriptors) -> tuple[np.ndarray, np.ndarray]:
    """Return the norms of both sides of every candidate."""
    check_comparable([queries, references])
    columns = []
    for ids, side in ((candidates.query, queries), (candidates.reference, references)):
        if side.norms is None:
            raise DataError(f"{side.source} has no `norms`: the norm-ratio filter needs descriptors of an ASL model")
        norm_of = dict(zip(side.names, side.norms, strict=True))
        try:
            columns.append(np.array([norm_of[one] for one in ids], side.norms.dtype))
        except KeyError as error:
            raise DataError(f"image {error.args[0]!r} of the predictions has no norm in {side.source}; give "
                            "descriptors of all images") from None
    return columns[0], columns[1]


def _metrics(metrics: CopyMetrics) -> dict[str, float | int | None]:
    return {name: getattr(metrics, name) for name in METRICS} | {"pairs": metrics.predictions}


def _top(top: RankedPairs) -> dict[str, float | int | None]:
    return asdict(top) | {"precision": top.precision}
