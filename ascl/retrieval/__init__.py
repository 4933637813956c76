"""Retrieval: scores of every pair, ranks, and what a training step makes of them."""

from ascl.retrieval.ranking import fold_report, load_scores, rank_report, ranks
from ascl.retrieval.scoring import score_all_pairs, score_batch, score_blocks

__all__ = ["fold_report", "load_scores", "rank_report", "ranks", "score_all_pairs", "score_batch", "score_blocks"]
