"""An exponential moving average of the trained weights, which often generalizes better than the weights themselves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ascl.core.errors import DataError


class WeightAverage:
    """The average of a model's trained weights over the steps of its training (Polyak and Juditsky, 1992).

    After step n each average keeps the share min(decay, (n + 1) / (n + 10)) of itself, so that the first weights are
    soon forgotten. The buffers of numbers, such as the statistics of batch normalization, are averaged too.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """
        Args:
            model: on its device; its parameters that require gradients are averaged. decay: in [0, 1).

        Raises:
            DataError: decay is out of range.
        """
        if not 0 <= decay < 1:
            raise DataError(f"average_decay is {decay}: it must be at least 0 and below 1, or null for no average")
        self.decay, self.steps = decay, 0
        self._trained: list[Tensor] = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._trained += [buffer for buffer in model.buffers() if buffer.is_floating_point()]
        self._averages = [parameter.detach().clone() for parameter in self._trained]

    @torch.no_grad()
    def update(self) -> None:
        """Include the weights after one more step."""
        self.steps += 1
        kept = min(self.decay, (self.steps + 1) / (self.steps + 10))
        torch._foreach_lerp_(self._averages, self._trained, 1 - kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Give the model its averages for the length of the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for parameter, average in zip(self._trained, self._averages, strict=True):
            own = parameter.clone()
            parameter.copy_(average)
            average.copy_(own)

    def state(self) -> dict[str, int | Sequence[Tensor]]:
        """Return what a checkpoint stores for `load`."""
        return {"steps": self.steps, "averages": self._averages}

    def load(self, state: dict) -> None:
        """Continue from a state that `state` returned.

        Raises:
            ValueError: it is of another model.
        """
        shapes = [[tuple(tensor.shape) for tensor in tensors] for tensors in (self._averages, state["averages"])]
        if shapes[0] != shapes[1]:
            raise ValueError("the averages of its weights are of another model")
        self.steps = int(state["steps"])
        for average, saved in zip(self._averages, state["averages"], strict=True):
            average.copy_(saved)
