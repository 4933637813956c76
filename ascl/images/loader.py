"""Decode images in worker processes, in a fixed order, and group them by shape for the network."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from ascl.core.errors import DataError
from ascl.images.read import UnreadableImage, load_image
from ascl.images.rgb import Blankness, blankness

DECODED_AHEAD = 4  # images per worker: few, because an original of 24 megapixels takes 72 MB
WAITING_BYTES = 1 << 30  # most bytes of decoded images that wait for others of their shape


@dataclass(frozen=True)
class Decoded:
    """One image, as its worker returns it."""

    index: int
    size: tuple[int, int]  # width and height of the upright image on disk
    pixels: np.ndarray | None  # None if unreadable
    reason: str = ""  # why it is unreadable
    failure: str = ""  # why the disk could not deliver the file
    blank: Blankness = ""  # how little it shows
    animated: bool = False  # it is the first of several frames or pages


class DecodedImages(Dataset):
    """A data set that decodes and prepares images; unreadable ones are returned as such, for the main process."""

    def __init__(self, images: Sequence[Path], prepare: Callable[[Image.Image], np.ndarray]) -> None:
        self.images, self.prepare = images, prepare

    def __getitem__(self, index: int) -> Decoded:
        try:
            loaded = load_image(self.images[index])
        except UnreadableImage as error:
            return Decoded(index, (0, 0), None, error.reason)
        except DataError as error:
            return Decoded(index, (0, 0), None, failure=str(error))
        return Decoded(index, loaded.size, self.prepare(loaded.image), blank=blankness(loaded.image),
                       animated=loaded.animated)


class Decoder:
    """Images of the given indices in order, decoded ahead in `workers` processes (0 = in this one).

    Attributes:
        waited: seconds spent waiting for images so far; with workers, the time that decoding adds to the network's.
    """

    def __init__(
        self, images: Sequence[Path], indices: Sequence[int], prepare: Callable[[Image.Image], np.ndarray],
        workers: int,
    ) -> None:
        loader = DataLoader(
            # A dataclass is not turned into tensors: its arrays go through the pipe, because /dev/shm is often small.
            DecodedImages(images, prepare), sampler=indices, batch_size=None, num_workers=workers,
            prefetch_factor=DECODED_AHEAD if workers else None, worker_init_fn=depend_on_parent,
        )
        self._images = iter(loader)
        self.waited = 0.0

    def take(self) -> Decoded:
        """Return the next image.

        Raises:
            DataError: the disk could not deliver a file, which is not the image's fault and never skipped; or a worker
                was killed, as the system does when memory is short.
        """
        started = time.perf_counter()
        with killed_workers_named("decodes images"):
            image = next(self._images)
        self.waited += time.perf_counter() - started
        if image.failure:
            raise DataError(image.failure)
        return image


@contextmanager
def killed_workers_named(work: str) -> Iterator[None]:
    """Turn torch's error about a killed `DataLoader` worker into a DataError; `work` says what the worker does."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        remedy = "the usual cause is too little memory: use fewer workers"
        raise DataError(f"a process that {work} was killed ({error}); {remedy}") from error


def depend_on_parent(worker: int) -> None:
    """Ignore interrupts, and end when the parent ends: a worker that waits at a full pipe would outlive its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def batches_of_one_shape(
    images: Iterator[Decoded], batch_size: int, *, waiting_bytes: int = WAITING_BYTES
) -> Iterator[list[Decoded]]:
    """Yield readable images in batches of one shape, for a network that takes images of any size without padding.

    A batch is yielded when it is full. When more than `waiting_bytes` wait, the largest batch is yielded as it is; the
    rest follow at the end. Only the images decide this, so the same images always form the same batches.
    """
    waiting: dict[tuple[int, ...], list[Decoded]] = defaultdict(list)
    held = 0
    for image in images:
        assert image.pixels is not None  # the caller has removed unreadable images
        shape = image.pixels.shape
        waiting[shape].append(image)
        held += math.prod(shape)  # uint8: one byte each
        if held > waiting_bytes:
            shape = max(waiting, key=lambda kind: math.prod(kind) * len(waiting[kind]))
        elif len(waiting[shape]) < batch_size:
            continue
        batch = waiting.pop(shape)
        held -= math.prod(shape) * len(batch)
        yield batch
    yield from waiting.values()
