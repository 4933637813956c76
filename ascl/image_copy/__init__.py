"""Image copy detection: descriptors, edits, training, benchmark, evaluation and matching (SSCD, RDCD, ASL).

The public names are imported on first use, so that a query of an index does not load the bootstrap. The index itself is
in `ascl.index`.
"""

# ruff: noqa: F401 (these imports are for type checkers; `MODULES` tells Python the same)
from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ascl.image_copy.descriptors.files import Descriptors, read_descriptors, write_descriptors, write_submission
    from ascl.image_copy.evaluation.bootstrap import Bootstrap, bootstrap_intervals
    from ascl.image_copy.evaluation.copydays import copydays_ground_truth, copydays_report
    from ascl.image_copy.evaluation.judged import judge
    from ascl.image_copy.evaluation.metrics import (
        CopyMetrics,
        RankedPairs,
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

MODULES = {
    "ascl.image_copy.descriptors.files": ("Descriptors", "read_descriptors", "write_descriptors", "write_submission"),
    "ascl.image_copy.evaluation.bootstrap": ("Bootstrap", "bootstrap_intervals"),
    "ascl.image_copy.evaluation.copydays": ("copydays_ground_truth", "copydays_report"),
    "ascl.image_copy.evaluation.judged": ("judge",),
    "ascl.image_copy.evaluation.metrics": (
        "CopyMetrics", "RankedPairs", "micro_average_precision", "norm_ratio_keeps", "top_pairs",
        "trapezoid_average_precision",
    ),
    "ascl.image_copy.evaluation.score_norm": (
        "Whitening", "augmented", "fit_whitening", "score_normalise", "subtract_negatives",
    ),
    "ascl.index.exact": ("capped_search", "nearest_references"),
}
MODULE_OF = {name: module for module, names in MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(MODULE_OF[name]), name)
