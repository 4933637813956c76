"""Retrieval: scores of all pairs, ranks and recalls, and the training objective."""

from ascl.retrieval.ranking import ranks
from ascl.retrieval.report import fold_report, rank_report
from ascl.retrieval.score_files import load_scores
from ascl.retrieval.scoring.all_pairs import rank_all_pairs, score_all_pairs, score_blocks, top_pairs
from ascl.retrieval.scoring.prepared import score_batch

__all__ = ["fold_report", "load_scores", "rank_all_pairs", "rank_report", "ranks", "score_all_pairs", "score_batch",
           "score_blocks", "top_pairs"]
