"""Decoding images in worker processes, in a fixed order, and grouping them by shape for the network."""

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

DECODED_AHEAD = 4  # images of each worker: few, because an original of 24 megapixels is 72 MB
WAITING_BYTES = 1 << 30  # of decoded images that wait for others of their shape


@dataclass(frozen=True)
class Decoded:
    """One image as its worker hands it on."""

    index: int
    size: tuple[int, int]  # width and height of the upright image on disk
    pixels: np.ndarray | None  # None where unreadable
    reason: str = ""
    failure: str = ""  # what the disk did instead of giving the file


class DecodedImages(Dataset):
    """Decodes and prepares one image; an unreadable one comes back as such, for the main process to judge."""

    def __init__(self, images: Sequence[Path], prepare: Callable[[Image.Image], np.ndarray]) -> None:
        self.images, self.prepare = images, prepare

    def __getitem__(self, index: int) -> Decoded:
        try:
            loaded = load_image(self.images[index])
        except UnreadableImage as error:
            return Decoded(index, (0, 0), None, error.reason)
        except DataError as error:
            return Decoded(index, (0, 0), None, failure=str(error))
        return Decoded(index, loaded.size, self.prepare(loaded.image))


class Decoder:
    """Images of the given indices one after the other, decoded ahead in `workers` processes (0 = in this one).

    `waited` is the seconds spent waiting for an image so far; with workers, what decoding costs beyond the network.
    """

    def __init__(
        self, images: Sequence[Path], indices: Sequence[int], prepare: Callable[[Image.Image], np.ndarray],
        workers: int,
    ) -> None:
        loader = DataLoader(
            # A dataclass is not turned into tensors: its arrays go through the pipe, for /dev/shm is often small.
            DecodedImages(images, prepare), sampler=indices, batch_size=None, num_workers=workers,
            prefetch_factor=DECODED_AHEAD if workers else None, worker_init_fn=depend_on_parent,
        )
        self._images = iter(loader)
        self.waited = 0.0

    def take(self) -> Decoded:
        """Return the next image.

        A DataError where the disk did not give a file, which is no fault of the image and never passed over, or where
        a worker process was killed, as the system does where memory is short.
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
    """Turn torch's error about a killed worker of a `DataLoader` into a DataError; `work` is what the worker does."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        remedy = "that is mostly too little memory: use fewer workers"
        raise DataError(f"a process that {work} was killed ({error}); {remedy}") from error


def depend_on_parent(worker: int) -> None:
    """Leave interrupts to the parent, and end with it: a worker that waits at a full pipe would outlive its kill."""
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
    """Yield readable images in batches whose arrays have one shape, for a network that takes any size unpadded.

    A shape's batch goes out when it is full; when more than `waiting_bytes` wait, the largest goes out as it is; the
    rest at the end. That depends on the images alone, so the same images always come in the same batches.
    """
    waiting: dict[tuple[int, ...], list[Decoded]] = defaultdict(list)
    held = 0
    for image in images:
        assert image.pixels is not None  # the caller has taken the unreadable ones out
        shape = image.pixels.shape
        waiting[shape].append(image)
        held += math.prod(shape)  # of uint8
        if held > waiting_bytes:
            shape = max(waiting, key=lambda kind: math.prod(kind) * len(waiting[kind]))
        elif len(waiting[shape]) < batch_size:
            continue
        batch = waiting.pop(shape)
        held -= math.prod(shape) * len(batch)
        yield batch
    yield from waiting.values()
