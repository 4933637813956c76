"""Losses: pure functions from tensors of scores, embeddings or logits to a scalar.

They know no model, no settings and no processes. The norm-ratio loss is in `ascl.asymmetry`.
"""

from ascl.losses.classification import smoothed_cross_entropy
from ascl.losses.contrastive import ascl_loss, asymmetry_loss, info_nce, info_nce_queue, sscd_loss
from ascl.losses.distillation import feature_distillation_loss, relational_distillation_loss
from ascl.losses.spread import hard_negative_loss
from ascl.losses.triplet import hardest_triplet, norm_triplet_loss, soft_triplet_loss

__all__ = [
    "ascl_loss",
    "asymmetry_loss",
    "feature_distillation_loss",
    "hard_negative_loss",
    "hardest_triplet",
    "info_nce",
    "info_nce_queue",
    "norm_triplet_loss",
    "relational_distillation_loss",
    "smoothed_cross_entropy",
    "soft_triplet_loss",
    "sscd_loss",
]
