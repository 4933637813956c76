"""Losses: pure functions that take score tensors and return a scalar."""

from ascl.losses.contrastive import ascl_loss, asymmetry_loss, info_nce
from ascl.losses.triplet import hardest_triplet

__all__ = ["ascl_loss", "asymmetry_loss", "hardest_triplet", "info_nce"]
