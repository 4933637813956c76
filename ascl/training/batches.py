"""One process's batches of an epoch, read by persistent workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from ascl.core.errors import DataError


class EpochSampler(Protocol):
    """A sampler of batches of data set keys, whose order is a function of the epoch."""

    def set_epoch(self, epoch: int, position: int, /) -> None:
        """Set the epoch of the next iteration, and the batch that it starts at."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Sequence[Any]]: ...


class _KeysOfEpoch:
    keys: Iterator[Sequence[Any]] = iter(())

    def __iter__(self) -> Iterator[Sequence[Any]]:
        return self.keys


class TrainBatches:
    """The training batches of one process, as `fit` requests them: (epoch, first batch) -> iterator of batches.

    Workers start once and persist over epochs; one epoch is read at a time. An epoch has `steps_per_epoch` batches.
    """

    def __init__(
        self, dataset: Dataset, sampler: EpochSampler, collate: Callable[[list[Any]], Any], *, workers: int,
        process: int = 0, processes: int = 1, shared: bool = False,
    ) -> None:
        """
        Args:
            dataset: key -> sample. collate: samples -> batch.
            sampler: the batches of all processes; the same in each process.
            workers: number of reading processes; 0 = read in this process. Their number does not change the batches.
            process, processes: rank of this process and number of processes.
            shared: split each batch evenly over the processes; False = each process takes every `processes`-th batch.

        Raises:
            DataError: fewer batches than processes.
        """
        self._sampler, self._process, self._processes, self._shared = sampler, process, processes, shared
        self.steps_per_epoch = len(sampler) // (1 if shared else processes)
        if self.steps_per_epoch == 0:
            raise DataError(f"an epoch has {len(sampler)} batches, too few for {processes} processes: reduce the batch "
                            "size, or train on more data")
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
        except DataError as error:  # the loader puts a worker's traceback into the message
            kind = f"{DataError.__module__}.{DataError.__name__}: "
            raise DataError(str(error).rpartition(kind)[2].strip()) from error

    def _parts(self) -> Iterator[Sequence[Any]]:
        for batch in self._sampler:
            size = len(batch) // self._processes
            yield batch[self._process * size : (self._process + 1) * size]
