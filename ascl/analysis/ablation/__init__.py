"""Ablations: which runs a study needs, the processes that make them, the tables. See `tools/ablate.py`."""
