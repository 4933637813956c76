"""Whether two checkpoints hold the same numbers, whatever their nesting, but for the seconds that they took."""

import torch


def same_bits(a, b, where="state"):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a.keys() - {"seconds"}:
            same_bits(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (left, right) in enumerate(zip(a, b, strict=True)):
            same_bits(left, right, f"{where}.{index}")
    else:
        assert a == b, where
