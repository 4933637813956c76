"""Evaluation of copy detection: candidates, judged pairs, metrics, score normalization, intervals, files, the report.

`evaluate` puts them together. The search itself lies in `index`, descriptors in `image_copy.descriptors`.
"""
