"""Optimizers over the trained parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def build_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, kind: str = "adam", momentum: float = 0.9,
    factors: dict[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Return an optimizer over all trained parameters.

    Args:
        model: all its parameters that require gradients are trained.
        lr: learning rate, > 0; the loop sets it at each step.
        weight_decay: >= 0; an L2 penalty for adam and sgd. adamw decouples it from the gradient (Loshchilov and Hutter,
            2019) and applies it to matrices only, because biases and scales have no reason to be small.
        kind: "adam", "adamw" or "sgd". momentum: of sgd.
        factors: prefix of parameter names -> factor of their learning rate.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {(1.0, weight_decay): []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = next((own for prefix, own in (factors or {}).items() if name.startswith(prefix)), 1.0)
            decay = 0.0 if kind == "adamw" and parameter.dim() < 2 else weight_decay
            groups.setdefault((factor, decay), []).append(parameter)
    listed: list[dict[str, Any]] = [{"params": of, "lr_factor": factor, "weight_decay": decay}
                                    for (factor, decay), of in groups.items()]
    if kind == "sgd":
        return torch.optim.SGD(listed, lr=lr, momentum=momentum)
    return {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[kind](listed, lr=lr)
