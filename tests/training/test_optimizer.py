"""Which parameters an optimizer has, at which rates."""

import torch
from torch import nn

from ascl.training.optimizer import build_optimizer


def model():
    parts = nn.ModuleDict({"text": nn.Linear(2, 3), "image": nn.Linear(3, 1), "frozen": nn.Linear(4, 4)})
    parts["frozen"].requires_grad_(False)
    return parts


def test_adam_gives_a_part_its_own_rate():
    parts = model()
    optimizer = build_optimizer(parts, lr=1e-3, weight_decay=0.1, own_rates={"text.": 1e-4})
    assert isinstance(optimizer, torch.optim.Adam)
    rest, own = optimizer.param_groups
    assert {id(p) for p in rest["params"]} == {id(p) for p in parts["image"].parameters()}
    assert {id(p) for p in own["params"]} == {id(p) for p in parts["text"].parameters()}
    assert abs(own["lr_factor"] - 0.1) < 1e-12 and rest.get("lr_factor", 1.0) == 1.0
    assert rest["weight_decay"] == own["weight_decay"] == 0.1


def test_a_part_that_is_frozen_has_no_group_and_a_momentum_means_sgd():
    parts = model()
    parts["text"].requires_grad_(False)
    optimizer = build_optimizer(parts, lr=1.0, weight_decay=0.0, momentum=0.9, own_rates={"text.": 0.1})
    assert isinstance(optimizer, torch.optim.SGD) and len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["momentum"] == 0.9 and optimizer.param_groups[0]["lr"] == 1.0
