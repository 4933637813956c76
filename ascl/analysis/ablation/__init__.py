"""Ablations: the runs that a study needs, their state, the processes that train and evaluate them, and the tables."""
