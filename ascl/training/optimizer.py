"""Optimizers over the trained parameters."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def build_optimizer(
    model: nn.Module, *, lr: float, weight_decay: float, momentum: float | None = None,
    own_rates: dict[str, float] | None = None,
) -> torch.optim.Optimizer:
    """Return an optimizer over all trained parameters: Adam, or SGD if a momentum is given.

    Args:
        model: all its parameters that require gradients are trained. weight_decay: >= 0. momentum: of SGD; None = Adam.
        lr: learning rate, > 0; the loop sets it at each step.
        own_rates: prefix of parameter names -> their learning rate; the schedule scales all rates alike.
    """
    rates = own_rates or {}
    parts: dict[str, list[nn.Parameter]] = {prefix: [] for prefix in ("", *rates)}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parts[next((prefix for prefix in rates if name.startswith(prefix)), "")].append(parameter)
    groups: list[dict[str, Any]] = [{"params": parts[""]}]
    groups += [{"params": parts[prefix], "lr_factor": rate / lr} for prefix, rate in rates.items() if parts[prefix]]
    if momentum is None:
        return torch.optim.Adam(groups, lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
