"""Training images: split off the validation images, cache them reduced, and edit them in the workers."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import Dataset

from ascl.core.errors import DataError
from ascl.image_copy.edits.augment import CopyAugmentation, IdentityAugmentation
from ascl.image_copy.edits.edits import SEED_END, sample_rng
from ascl.image_copy.training.batch import IdentityBatch, ViewBatch
from ascl.images.find import stem_of
from ascl.images.loader import Decoder
from ascl.images.read import UnreadableImage, load_image

MIXED_IN = 3  # other photos that an image of an identity can mix in
OTHERS_DRAW = SEED_END - 1  # draw of `sample_rng` that selects them, counted down; views count up from 0


def held_out(paths: Sequence[Path], share: float, most: int) -> tuple[list[Path], list[Path]]:
    """Return the training images and the images held out for validation, which are those whose ids hash lowest.

    Only an image's name and the number of images decide. If images are added to the folder and the number held out
    stays the same, no training image becomes a validation image, but some validation images become training images.

    Args:
        share: of the images to hold out, in (0, 1).
        most: largest number to hold out.

    Raises:
        DataError: a side would have fewer than two images.
    """
    if not 0 < share < 1:
        raise DataError(f"data.validation_share is {share}: must be between 0 and 1")
    count = min(most, round(share * len(paths)))
    if count < 2 or len(paths) - count < 2:
        raise DataError(
            f"{len(paths)} images with a validation share of {share:g} (at most {most}) leave {count} to validate and "
            f"{len(paths) - count} to train with; at least two of each are needed"
        )
    kept_out = set(sorted(paths, key=lambda path: hashlib.sha256(stem_of(path).encode()).digest())[:count])
    return [path for path in paths if path not in kept_out], [path for path in paths if path in kept_out]


@dataclass(frozen=True)
class ShortSide:
    """Reduction of an image to a short side of `side` pixels; smaller images stay as they are. Picklable."""

    side: int

    def __call__(self, image: Image.Image) -> np.ndarray:
        scale = self.side / min(image.size)
        if scale < 1:
            size = (max(self.side, round(image.width * scale)), max(self.side, round(image.height * scale)))
            image = image.resize(size, Image.Resampling.BILINEAR, reducing_gap=2.0)
        return np.asarray(image)


class Photos:
    """Images in the order of their `paths`, decoded at every access."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = list(paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Image.Image:
        return load_image(self.paths[index]).image


class SmallImages(Photos):
    """Images that are decoded once, reduced, and kept in memory as one array of bytes, which forked workers share.

    `skipped` lists (path, reason) of the unreadable images, which `paths` does not contain.
    """

    def __init__(self, paths: Sequence[Path], side: int, *, workers: int, skip_unreadable: bool) -> None:
        """Decode in `workers` processes to a short side of `side` pixels.

        Raises DataError if an image is unreadable and `skip_unreadable` is False, or if none can be read.
        """
        self.skipped: list[tuple[Path, str]] = []
        decoder = Decoder(paths, range(len(paths)), ShortSide(side), workers)
        images: dict[Path, np.ndarray] = {}
        for path in paths:
            decoded = decoder.take()
            if decoded.pixels is not None:
                images[path] = decoded.pixels
            elif skip_unreadable:
                self.skipped.append((path, decoded.reason))
            else:
                raise UnreadableImage(path, f"{decoded.reason}; data.skip_unreadable true skips such images")
        if not images:
            raise DataError(f"none of the {len(paths)} images can be read")
        super().__init__(list(images))
        self._shapes = [image.shape for image in images.values()]
        self._starts = np.cumsum([0, *(image.size for image in images.values())])
        self._bytes = np.empty(self._starts[-1], dtype=np.uint8)
        for path, start, end in zip(self.paths, self._starts, self._starts[1:], strict=False):
            self._bytes[start:end] = images.pop(path).ravel()  # popped one by one: memory never holds two full copies

    @property
    def nbytes(self) -> int:
        return self._bytes.nbytes

    def __getitem__(self, index: int) -> Image.Image:
        data = self._bytes[self._starts[index] : self._starts[index + 1]]
        return Image.fromarray(data.reshape(self._shapes[index]))


def readable(paths: Sequence[Path], *, workers: int) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Return the images that can be decoded, and the others with their reasons; read each file once."""
    decoder = Decoder(paths, range(len(paths)), ShortSide(1), workers)
    decoded = [(path, decoder.take()) for path in paths]
    return ([path for path, one in decoded if one.pixels is not None],
            [(path, one.reason) for path, one in decoded if one.pixels is None])


class Others(Sequence[Image.Image]):
    """Random photos of a folder, except one of them, decoded on access because most edits use none."""

    def __init__(self, images: Photos, item: int, rng: np.random.Generator) -> None:
        count = len(images)
        steps = rng.integers(1, count, MIXED_IN).tolist() if count > 1 else []
        self._images, self._items = images, [(item + step) % count for step in steps]

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: Any) -> Any:
        return self._images[self._items[index]]


class Views(Dataset):
    """Two edited views of an image for each key (epoch, item, view) of the sampler, the same in any worker."""

    def __init__(self, images: Photos, augmentation: CopyAugmentation, seed: int) -> None:
        self.images, self.augmentation, self.seed = images, augmentation, seed
        self.ids = [stem_of(path) for path in images.paths]

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[torch.Tensor, int]:
        epoch, item, _ = key
        views = self.augmentation.views(self.images[item], seed=self.seed, index=item, epoch=epoch)
        return torch.stack([view.pixels for view in views]), item

    def collate(self, samples: list[tuple[torch.Tensor, int]]) -> ViewBatch:
        pixels, items = zip(*samples, strict=True)
        return ViewBatch(torch.stack(pixels, dim=1), torch.tensor(items), [self.ids[item] for item in items])


class Identities(Dataset):
    """One image of an identity for each key (epoch, item, view) of the sampler, the same in any worker."""

    def __init__(self, images: Photos, augmentation: IdentityAugmentation, seed: int) -> None:
        self.images, self.augmentation, self.seed = images, augmentation, seed

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[torch.Tensor, float, int, int]:
        epoch, item, view = key
        rng = sample_rng(self.seed, item, OTHERS_DRAW - (epoch * len(self.augmentation.kinds) + view))
        others = Others(self.images, item, rng)
        made = self.augmentation(self.images[item], view, seed=self.seed, index=item, epoch=epoch, others=others)
        return made.pixels, made.content_scale, int(made.kind), item

    def collate(self, samples: list[tuple[torch.Tensor, float, int, int]]) -> IdentityBatch:
        pixels, scales, kinds, items = zip(*samples, strict=True)
        count = len(self.augmentation.kinds)
        by_identity = torch.tensor(scales, dtype=torch.float64).view(-1, count)
        return IdentityBatch(
            torch.stack(pixels), torch.tensor(items[::count]), by_identity, torch.tensor(kinds).view(-1, count)
        )
