"""Baselines behind the interface of `RetrievalModel`, each with the score of its paper."""
