"""Evaluation of copy detection: candidates, judged pairs, metrics, score normalization, intervals, files, the report.

`evaluate` puts them together. The search itself is in `ascl.index`, the descriptors in `ascl.image_copy.descriptors`.
"""
