"""Image-caption pairs for training, in batches without two captions of the same image.

Random draws depend only on (seed, epoch) or (seed, epoch, caption), not on a running stream. So any number of workers
gives the same batches, and a run resumed at (epoch, batch) continues as if it had not been stopped.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet, number_within
from ascl.data.stores.open import FeatureStore
from ascl.samples.positives import Positive

PositiveFunction = Callable[[Sequence[str], int, np.random.Generator], Positive]
_BATCH_STREAM, _POSITIVE_STREAM = 1, 2  # first word of the seed, so that the two kinds of draws never share a state


@dataclass
class Batch:
    """B pairs of different images. Image i belongs to caption i; nothing else says which belong together.

    Attributes:
        regions: (B, K, R) float32.
        globals: (B, G) float32, or None if the store has none.
        region_mask: (B, K) bool, True = a real region; None = all are real.
        captions: B strings.
        positives: B strings, the generated positive of each caption; None = no positives.
        positive_order: (B,) int64, 1 = the positive says more than its caption, -1 = less, 0 = neither; None = no
            positives.
    """

    regions: Tensor
    globals: Tensor | None
    region_mask: Tensor | None
    captions: list[str]
    positives: list[str] | None
    positive_order: Tensor | None = None

    def __len__(self) -> int:
        return len(self.captions)

    def _with_tensors(self, change: Callable[[Tensor], Tensor]) -> Batch:
        tensors: dict[str, Any] = {name: change(value) for name, value in vars(self).items() if torch.is_tensor(value)}
        return replace(self, **tensors)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """Return the batch with its tensors on `device`."""
        return self._with_tensors(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory; `DataLoader(pin_memory=True)` calls this."""
        return self._with_tensors(Tensor.pin_memory)


class PairDataset(Dataset):
    """All pairs of a caption set, by caption index, or by the (epoch, caption index) of a `UniqueImageBatchSampler`.

    An item is a `Batch` of one pair; several items form one `Batch`. The epoch comes with the index and not from a
    method, because workers that live longer than an epoch would not see it change.

    Args:
        captions: the pairs.
        store: features of every image that has captions.
        positive: (captions of the image, index of this caption among them, generator) -> generated positive, such as
            `functools.partial(generate_positive, "both")`; picklable if workers are spawned. None = no positives.
        seed: >= 0.

    Raises:
        DataError: an image has no features, or the store has no regions.
    """

    def __init__(self, captions: CaptionSet, store: FeatureStore, positive: PositiveFunction | None = None, *,
                 seed: int = 0) -> None:
        if store.region_dim is None:
            raise DataError(f"{store.source} has no regions, only globals: extract regions of the images too")
        self.captions, self.store = captions, store
        self._positive, self._seed = positive, seed
        self._row_of_image = np.full(len(captions.image_ids), -1, dtype=np.int64)
        with_captions = np.unique(captions.owner)
        self._row_of_image[with_captions] = store.rows([captions.image_ids[i] for i in with_captions])

    def __len__(self) -> int:
        return len(self.captions.captions)

    def __getitem__(self, key: int | tuple[int, int]) -> Batch:
        return self.__getitems__([key])

    def __getitems__(self, keys: Sequence[int | tuple[int, int]]) -> Batch:
        """Return the pairs of a batch with a single read of the store; DataLoader calls this."""
        drawn = [key if isinstance(key, tuple) else (0, key) for key in keys]
        outside = [index for _, index in drawn if not 0 <= index < len(self)]
        if outside:
            raise IndexError(f"caption {outside[0]} of {len(self)} ({self.captions.source})")
        read = self.store.read(self._row_of_image[self.captions.owner[[index for _, index in drawn]]])
        regions, globals_, mask = (None if values is None else torch.from_numpy(np.ascontiguousarray(values))
                                   for values in (read.regions, read.globals, read.mask))
        assert regions is not None  # the constructor requires regions
        batch = Batch(regions, globals_, mask, [self.captions.captions[index] for _, index in drawn], None)
        if self._positive is not None:
            positives = [self._positive_of(self._positive, epoch, index) for epoch, index in drawn]
            batch.positives = [positive.text for positive in positives]
            batch.positive_order = torch.tensor([positive.order for positive in positives])
        return batch

    def _positive_of(self, positive: PositiveFunction, epoch: int, index: int) -> Positive:
        siblings = self.captions.captions_of(int(self.captions.owner[index]))
        rng = np.random.default_rng([_POSITIVE_STREAM, self._seed, epoch, index])
        return positive([self.captions.captions[i] for i in siblings], siblings.index(index), rng)


def collate(batch: Any) -> Batch:
    """Return the batch of `PairDataset.__getitems__` unchanged; without this, DataLoader would stack items itself."""
    return batch


class UniqueImageBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of (epoch, caption index) without repeated images, because a caption of the same image is no negative.

    Each caption occurs at most once per epoch. Every batch is full, and there are as many batches as the captions
    allow. The remaining captions are dropped, different ones in each epoch. The order depends only on (seed, epoch) and
    the neighbors.

    Args:
        owner: (N_captions,) image of each caption.
        batch_size: captions per batch, at most the number of images with captions.
        seed: >= 0.
        epoch: the first epoch.
        neighbors: (N, K) for the N images that have captions, in the order of their numbers: those of them that are
            most like each, the most alike first (`nearest`). A batch is then made of groups of neighbors, other ones in
            each epoch; None = of random images.
        group_size: images in a group, at most `batch_size`. A group is smaller where an image's K neighbors are taken.

    Attributes:
        batch_size, drop_last: read by loaders that shard whole batches over processes.

    Raises:
        DataError: the batch size is out of range.
    """

    drop_last = True

    def __init__(self, owner: np.ndarray | Sequence[int], batch_size: int, *, seed: int = 0, epoch: int = 0,
                 neighbors: np.ndarray | None = None, group_size: int = 1) -> None:
        # images without captions do not count
        _, self._owner, self._captions_per_image = np.unique(np.asarray(owner, dtype=np.int64), return_inverse=True,
                                                             return_counts=True)
        self.batch_size, self._seed = batch_size, seed
        self._neighbors, self._group_size = neighbors, group_size
        self._epoch, self._position = epoch, 0
        if not 1 <= batch_size <= len(self._captions_per_image):
            raise DataError(f"batch size {batch_size} must be from 1 to {len(self._captions_per_image)}, the number of "
                            "images with captions: lower it")
        if neighbors is not None and not 1 <= group_size <= batch_size:
            raise DataError(f"groups of {group_size} neighbors must have from 1 to {batch_size} images, the batch size")
        self._batches = _most_batches(self._captions_per_image, batch_size)

    def __len__(self) -> int:
        """Number of batches in a whole epoch, the same for every epoch and start."""
        return self._batches

    def set_epoch(self, epoch: int, position: int | None = None) -> None:
        """Choose the epoch of the next iteration, and the batch at which it starts.

        The loader prefetches, so the loop itself counts used batches: a resume needs only (epoch, used batches).

        Args:
            epoch: >= 0.
            position: number of batches to skip at the start; None = 0 for another epoch, unchanged for the current
                epoch, because some loaders set the epoch again before they iterate.
        """
        if position is None:
            position = self._position if epoch == self._epoch else 0
        if epoch < 0 or not 0 <= position <= self._batches:
            raise ValueError(f"no batch {position} in epoch {epoch}: epochs start at 0, with {self._batches} batches")
        self._epoch, self._position = epoch, position

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self._epoch
        for batch in self._plan(epoch)[self._position :]:
            yield [(epoch, caption) for caption in batch]

    def _plan(self, epoch: int) -> list[list[int]]:
        """Return all batches of an epoch.

        Captions are taken in random order, or group by group; one whose image is already in the batch waits for the
        next batch. Near the end, an image could have more captions left than there are batches. So from the moment that
        an image has as many captions left as there are batches, it goes first. With exactly `batches * batch_size`
        captions, at most `batches` per image, every batch is full.
        """
        rng = np.random.default_rng([_BATCH_STREAM, self._seed, epoch])
        order = self._kept(self._order(rng))
        owner = self._owner.tolist()
        left = np.bincount(self._owner[order], minlength=len(self._captions_per_image))
        most = int(left.max())
        waiting_of: dict[int, list[int]] = {}  # image -> its captions, the next one last; filled only when needed
        stream: deque[int] = deque(order.tolist())
        used = np.zeros(len(owner), dtype=bool)
        plan = []
        for remaining in range(self._batches, 0, -1):
            batch: dict[int, int] = {}  # image -> caption
            if remaining <= most:
                if not waiting_of:
                    for caption in reversed(stream):
                        waiting_of.setdefault(owner[caption], []).append(caption)
                for image in np.flatnonzero(left == remaining).tolist():
                    batch[image] = next(c for c in reversed(waiting_of[image]) if not used[c])
                used[list(batch.values())] = True
            skipped = []
            while len(batch) < self.batch_size:
                caption = stream.popleft()
                if used[caption]:
                    continue
                if owner[caption] in batch:
                    skipped.append(caption)
                else:
                    batch[owner[caption]] = caption
                    used[caption] = True
            stream.extendleft(reversed(skipped))
            left[list(batch)] -= 1
            plan.append(list(batch.values()))
        return plan

    def _order(self, rng: np.random.Generator) -> np.ndarray:
        """Return all captions in random order; with neighbors, first one caption of each image, group by group, then
        another of each, in other groups."""
        order = rng.permutation(len(self._owner))
        if self._neighbors is None:
            return order
        number = number_within(self._owner[order])
        ordered: list[int] = []
        for turn in range(int(number.max()) + 1):
            captions = order[number == turn]
            left = dict(zip(self._owner[captions].tolist(), captions.tolist(), strict=True))    # image -> caption
            groups = []
            for first in list(left):
                if first not in left:
                    continue
                near = (image for image in self._neighbors[first].tolist() if image in left and image != first)
                groups.append([left.pop(image) for image in [first, *islice(near, self._group_size - 1)]])
            for group in rng.permutation(len(groups)).tolist():
                ordered += groups[group]
        return np.array(ordered)

    def _kept(self, order: np.ndarray) -> np.ndarray:
        """Return the first `batches * batch_size` captions of a random order, with at most `batches` per image."""
        kept = order[number_within(self._owner[order]) < self._batches]
        return kept[: self._batches * self.batch_size]


def _most_batches(captions_per_image: np.ndarray, batch_size: int) -> int:
    """Return the largest m with sum_i min(captions_i, m) >= m * batch_size: exactly then m full batches exist."""
    def too_many(m: int) -> bool:  # the sum is concave in m, so the m that fit are 0 up to the answer
        return bool(np.minimum(captions_per_image, m).sum() < m * batch_size)

    return bisect.bisect(range(1, int(captions_per_image.sum()) // batch_size + 1), False, key=too_many)
