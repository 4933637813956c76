"""Decoding images in worker processes, in a fixed order, and grouping them by shape for the network."""

from __future__ import annotations

import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ascl.errors import DataError
from ascl.features.images import UnreadableImage, load_image

IMAGES_A_MESSAGE = 4  # between processes: few, because originals of 12 megapixels are 36 MB each
WAITING_BYTES = 1 << 30  # of decoded images that wait for others of their shape


@dataclass(frozen=True)
class Decoded:
    """One image as its worker hands it on."""

    index: int
    size: tuple[int, int]  # width and height of the upright image on disk
    pixels: np.ndarray | None  # None where unreadable
    reason: str = ""


class ImageFiles(Dataset):
    """Decodes and prepares one image; an unreadable one comes back as such, for the main process to judge."""

    def __init__(self, images: Sequence[Path], prepare: Callable[[Image.Image], np.ndarray]) -> None:
        self.images, self.prepare = images, prepare

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Decoded:
        try:
            loaded = load_image(self.images[index])
        except UnreadableImage as error:
            return Decoded(index, (0, 0), None, error.reason)
        return Decoded(index, loaded.size, self.prepare(loaded.image))


class Decoder:
    """Images of the given indices one after the other, decoded ahead in `workers` processes (0 = in this one).

    Attributes:
        waited: seconds spent waiting for an image so far; with workers, what decoding costs beyond the network's time.
    """

    def __init__(
        self,
        images: Sequence[Path],
        indices: Sequence[int],
        prepare: Callable[[Image.Image], np.ndarray],
        workers: int,
    ) -> None:
        messages = [list(indices[i : i + IMAGES_A_MESSAGE]) for i in range(0, len(indices), IMAGES_A_MESSAGE)]
        loader = DataLoader(
            ImageFiles(images, prepare),
            batch_sampler=messages,
            num_workers=workers,
            collate_fn=list,  # arrays through the pipe: /dev/shm is small in many containers
            worker_init_fn=_leave_interrupts_to_the_parent,
        )
        self._messages = iter(loader)
        self._pending: list[Decoded] = []
        self.waited = 0.0

    def take(self) -> Decoded:
        """The next image.

        Raises:
            DataError: a worker process was killed, as the system does where memory is short.
        """
        if not self._pending:
            started = time.perf_counter()
            try:
                self._pending = next(self._messages)[::-1]
            except RuntimeError as error:
                if "DataLoader worker" not in str(error):
                    raise
                raise DataError(
                    f"a process that decodes images was killed ({error}); that is mostly too little memory: "
                    "go on with --resume and fewer --workers"
                ) from error
            self.waited += time.perf_counter() - started
        return self._pending.pop()


def _leave_interrupts_to_the_parent(worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def batches_of_one_shape(images: Iterator[Decoded], batch_size: int) -> Iterator[list[Decoded]]:
    """Readable images in batches whose arrays have one shape, for a network that takes images of any size unpadded.

    A shape's batch goes out when it is full; when more than `WAITING_BYTES` wait, the largest goes out as it is; the
    rest at the end. That depends on the images alone, so the same images always come in the same batches.
    """
    waiting: dict[tuple[int, ...], list[Decoded]] = defaultdict(list)
    held = 0
    for image in images:
        assert image.pixels is not None  # the caller has taken the unreadable ones out
        shape = image.pixels.shape
        waiting[shape].append(image)
        held += image.pixels.nbytes
        if held > WAITING_BYTES:
            shape = max(waiting, key=lambda kind: sum(_bytes(item) for item in waiting[kind]))
        elif len(waiting[shape]) < batch_size:
            continue
        batch = waiting.pop(shape)
        held -= sum(map(_bytes, batch))
        yield batch
    yield from waiting.values()


def _bytes(image: Decoded) -> int:
    return 0 if image.pixels is None else image.pixels.nbytes
