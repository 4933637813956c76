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
    optimizer = build_optimizer(parts, lr=1e-3, weight_decay=0.1, factors={"text.": 0.1})
    assert type(optimizer) is torch.optim.Adam
    rest, own = optimizer.param_groups
    assert {id(p) for p in rest["params"]} == {id(p) for p in parts["image"].parameters()}
    assert {id(p) for p in own["params"]} == {id(p) for p in parts["text"].parameters()}
    assert own["lr_factor"] == 0.1 and rest["lr_factor"] == 1.0
    assert rest["weight_decay"] == own["weight_decay"] == 0.1


def test_adamw_decays_matrices_only_and_apart_from_the_gradient():
    parts = model()
    before = {name: parameter.detach().clone() for name, parameter in parts.named_parameters()}
    optimizer = build_optimizer(parts, lr=0.1, weight_decay=0.5, kind="adamw", factors={"text.": 0.1})
    for parameter in parts.parameters():
        parameter.grad = torch.zeros_like(parameter)
    for group in optimizer.param_groups:
        group["lr"] = 0.1 * group["lr_factor"]                      # as the loop sets it
    optimizer.step()
    left = {"text.weight": 1 - 0.1 * 0.1 * 0.5, "image.weight": 1 - 0.1 * 0.5}
    for name, parameter in parts.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] * left.get(name, 1.0))


def test_a_part_that_is_frozen_has_no_group():
    parts = model()
    parts["text"].requires_grad_(False)
    optimizer = build_optimizer(parts, lr=1.0, weight_decay=0.0, kind="sgd", momentum=0.9, factors={"text.": 0.1})
    assert isinstance(optimizer, torch.optim.SGD) and len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]["momentum"] == 0.9 and optimizer.param_groups[0]["lr"] == 1.0
