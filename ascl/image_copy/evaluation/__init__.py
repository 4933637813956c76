"""Evaluation of copy detection: candidates, judged pairs, metrics, normalization, geometry, intervals, files, reports.

`evaluate` puts them together. The search itself is in `ascl.index`, the descriptors in `ascl.image_copy.descriptors`.
"""
