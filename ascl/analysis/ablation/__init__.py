"""Ablations: which runs a study needs, how far each has come, the processes that make them, the tables."""
