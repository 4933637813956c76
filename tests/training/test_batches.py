"""Batches: dealt out to processes, read by workers that stay, begun anywhere in an epoch."""

import os

import numpy as np
import pytest
import torch

from ascl.core.errors import DataError
from ascl.training.batches import TrainBatches


class Keys(torch.utils.data.Dataset):
    """Each sample is its key and the process that read it."""

    def __getitem__(self, key):
        if key < 0:
            raise DataError(f"row {key} is missing")
        return key, os.getpid()


class Shuffled:
    """Ten batches of four keys of forty."""

    def set_epoch(self, epoch, position=None):
        self.epoch, self.position = epoch, position or 0

    def __len__(self):
        return 10

    def __iter__(self):
        order = np.random.default_rng(self.epoch).permutation(40).reshape(10, 4)
        yield from order[self.position :].tolist()


def made(workers=0, sampler=None, **dealt):
    return TrainBatches(Keys(), sampler or Shuffled(), list, workers=workers, **dealt)


def keys(batches):
    return [[key for key, _ in batch] for batch in batches]


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_share_an_epoch_and_a_resume_finds_its_place(shared, processes):
    dealt = [made(process=process, processes=processes, shared=shared) for process in range(processes)]
    steps = 10 if shared else 10 // processes
    assert {batches.steps_per_epoch for batches in dealt} == {steps}
    whole = np.random.default_rng(3).permutation(40).reshape(10, 4).tolist()
    drawn = [keys(batches(3, 0)) for batches in dealt]
    for step, of_all in enumerate(zip(*drawn, strict=True)):
        together = [key for batch in of_all for key in batch]
        expected = whole[step] if shared else sum(whole[step * processes : (step + 1) * processes], [])
        assert together == expected
    assert len(drawn[0]) == steps
    for first in range(steps + 1):
        assert keys(dealt[-1](3, first)) == drawn[-1][first:]


def test_workers_stay_for_all_epochs_and_change_nothing():
    alone, several = made(), made(workers=2)
    left = several(7, 0)
    next(left)
    left.close()                                    # in its middle, as a look at the first batches does
    pids = set()
    for epoch, first in ((0, 0), (1, 4), (1, 0)):
        batches = list(several(epoch, first))
        assert keys(batches) == keys(alone(epoch, first))
        pids |= {pid for batch in batches for _, pid in batch}
    assert len(pids) == 2 and os.getpid() not in pids


class Missing(Shuffled):
    def __iter__(self):
        yield [-5]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_the_data_refuse_comes_without_the_workers_traceback(workers):
    with pytest.raises(DataError, match=r"^row -5 is missing$"):
        list(made(workers, Missing())(0, 0))


def test_fewer_batches_than_processes_are_refused():
    with pytest.raises(DataError, match="an epoch has 10 batches, too few for 11 processes"):
        made(process=0, processes=11)
