"""Batches of an epoch for one process, read by workers that stay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from ascl.core.errors import DataError


class EpochSampler(Protocol):
    """Batches of keys of a data set, the order a function of the epoch."""

    def set_epoch(self, epoch: int, position: int, /) -> None:
        """Choose the epoch that the next iteration gives, and the batch it starts at."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence[Any]]: ...


class _KeysOfEpoch:
    keys: Iterator[Sequence[Any]] = iter(())

    def __iter__(self) -> Iterator[Sequence[Any]]:
        return self.keys


class TrainBatches:
    """(epoch, first batch) -> this process's batches from there on: what `fit` asks for.

    Workers start once and stay for all epochs; one epoch is read at a time. An epoch has `steps_per_epoch` batches.
    """

    def __init__(
        self, dataset: Dataset, sampler: EpochSampler, collate: Callable[[list[Any]], Any], *, workers: int,
        process: int = 0, processes: int = 1, shared: bool = False,
    ) -> None:
        """
        Args:
            dataset: gives a sample for each key. collate: samples -> batch.
            sampler: the batches of all processes, the same in each.
            workers: processes that read; 0 = this one. They change nothing but the time.
            process, processes: rank of this process, and their number.
            shared: deal each batch out to the processes in equal parts; False = each takes every `processes`-th batch.

        Raises:
            DataError: fewer batches than processes.
        """
        self._sampler, self._process, self._processes, self._shared = sampler, process, processes, shared
        self.steps_per_epoch = len(sampler) // (1 if shared else processes)
        if self.steps_per_epoch == 0:
            raise DataError(f"an epoch has {len(sampler)} batches, and {processes} processes take one each: lower the "
                            "batch size, or train on more data")
        self._epoch = _KeysOfEpoch()
        self._loader = DataLoader(
            dataset, batch_sampler=self._epoch, collate_fn=collate, num_workers=workers,  # type: ignore[arg-type]
            persistent_workers=workers > 0, pin_memory=torch.cuda.is_available(),
        )

    def __call__(self, epoch: int, first: int) -> Iterator[Any]:
        self._sampler.set_epoch(epoch, first if self._shared else first * self._processes)
        keys = self._parts() if self._shared else islice(self._sampler, self._process, None, self._processes)
        self._epoch.keys = islice(keys, self.steps_per_epoch - first)
        try:
            yield from self._loader
        except DataError as error:  # from a worker it comes wrapped in the worker's traceback
            kind = f"{DataError.__module__}.{DataError.__name__}: "
            raise DataError(str(error).rpartition(kind)[2].strip()) from error

    def _parts(self) -> Iterator[Sequence[Any]]:
        for batch in self._sampler:
            size = len(batch) // self._processes
            yield batch[self._process * size : (self._process + 1) * size]
