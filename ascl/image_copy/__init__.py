"""Image copy detection: descriptors, edits, evaluation, search (SSCD, RDCD, ASL)."""

from ascl.image_copy.descriptors.files import Descriptors, read_descriptors, write_descriptors, write_submission
from ascl.image_copy.evaluation.bootstrap import Bootstrap, bootstrap_intervals
from ascl.image_copy.evaluation.copydays import copydays_ground_truth, copydays_report
from ascl.image_copy.evaluation.metrics import (
    CopyMetrics,
    TopPairs,
    judge,
    micro_average_precision,
    norm_ratio_keeps,
    top_pairs,
    trapezoid_average_precision,
)
from ascl.image_copy.evaluation.score_norm import (
    Whitening,
    augmented,
    fit_whitening,
    score_normalise,
    subtract_negatives,
)
from ascl.index.exact import capped_search, nearest_references

__all__ = [
    "Bootstrap",
    "CopyMetrics",
    "Descriptors",
    "TopPairs",
    "Whitening",
    "augmented",
    "bootstrap_intervals",
    "capped_search",
    "copydays_ground_truth",
    "copydays_report",
    "fit_whitening",
    "judge",
    "micro_average_precision",
    "nearest_references",
    "norm_ratio_keeps",
    "read_descriptors",
    "score_normalise",
    "subtract_negatives",
    "top_pairs",
    "trapezoid_average_precision",
    "write_descriptors",
    "write_submission",
]
