"""Evaluation of copy detection: metrics, protocols, score normalization, files, intervals."""
