"""The detector of `scenes`: trained for a minute on generated scenes of its own, then frozen. Its boxes are regions.

Like the detector behind bottom-up attention, it learns boxes, classes (shapes) and attributes (colors, textures)
together, and a region is what it says of a box. Boxes come from a map whose cells say, for
each size, whether an object of that size is centered there.

Sources: X. Zhou et al., Objects as Points, 2019 (centers and their loss); P. Anderson et al., Bottom-Up and Top-Down
Attention, CVPR 2018 (classes and attributes of regions).
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torchvision.ops import nms, roi_align
from tqdm import tqdm

from ascl.core import checkpoint
from ascl.core.hashing import sha256_of
from ascl.features.detectors.selection import in_originals, padded_rows
from ascl.scenes.render import render
from ascl.scenes.world import BACKGROUNDS, COLORS, SHAPES, SIZES, TEXTURES, Scene, make_scene

SIDE = 224                  # pixels of the square that goes in
FINE = 4                    # pixels of a cell of the map that regions are read from
STRIDE = 8                  # pixels of a cell of the map that finds them
CELLS = SIDE // STRIDE
POOLED = 7                  # cells on a side of a region
HEADS: dict[str, tuple[str, ...]] = {"shape": SHAPES, "color": tuple(COLORS), "texture": TEXTURES,
                                     "background": tuple(BACKGROUNDS)}
TYPICAL = (34.0, 60.0)      # sides in pixels of a small and a large object, against which boxes are learned
SPREAD = 1.0                # standard deviation in cells of the heat around a center
NEAR = 0.3                  # heat from which a cell learns the box
FOUND = 0.3                 # heat from which a cell reports an object
OVERLAP = 0.5               # intersection over union of two reports of one object
JITTER = 2.0                # standard deviation in pixels of the edges that regions are trained on
MOST = 8                    # regions of an image: the whole and up to seven objects
BATCH = 16
RATE = 4e-3


class Targets(NamedTuple):
    """What a detector should see in B scenes of SIDE pixels with N objects; M cells lie near a center."""

    centers: Tensor         # (B, sizes, CELLS, CELLS) bool
    heat: Tensor            # (B, sizes, CELLS, CELLS) in [0, 1]
    near: tuple[Tensor, ...]  # 4 x (M,): image, size, row, column
    owner: Tensor           # (M,) the object there
    image: Tensor           # (N,) of each object
    boxes: Tensor           # (N, 4) x1 y1 x2 y2 in pixels
    heads: dict[str, Tensor]  # (N,) of each object, `background` (B,)


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


class SceneDetector(nn.Module):
    """Finds objects in (B, 3, SIDE, SIDE) in [0, 1], and classifies regions of them."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.width = width
        self.stem = nn.Sequential(convolution(3, width // 2, 2), convolution(width // 2, width // 2),
                                  convolution(width // 2, width, 2), convolution(width, width))
        last = nn.Conv2d(2 * width, 5 * len(SIZES), 1)
        assert last.bias is not None
        nn.init.constant_(last.bias[::5], -4.0)                         # few cells are centers
        self.finder = nn.Sequential(convolution(width, 2 * width, 2), convolution(2 * width, 2 * width),
                                    convolution(2 * width, 2 * width), last)
        self.reader = nn.Sequential(nn.Linear(width * POOLED**2, 4 * width), nn.ReLU(),
                                    nn.Linear(4 * width, 2 * width), nn.ReLU())
        self.heads = nn.ModuleDict({name: nn.Linear(2 * width, len(values)) for name, values in HEADS.items()})

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the fine map (B, C, SIDE / FINE, SIDE / FINE), and heat and box (B, sizes, 5, CELLS, CELLS)."""
        fine = self.stem(images - 0.5)
        return fine, self.finder(fine).unflatten(1, (len(SIZES), 5))

    def read(self, fine: Tensor, image: Tensor, boxes: Tensor) -> Tensor:
        """Return features (N, dim) for the heads, of (N, 4) boxes in pixels, each in the map of its image (N,)."""
        rows = torch.cat([image[:, None].to(boxes.dtype), boxes], dim=1)
        pooled = roi_align(fine, rows, POOLED, spatial_scale=1 / FINE, sampling_ratio=2, aligned=True)
        return self.reader(pooled.flatten(1))


def targets_of(scenes: Sequence[Scene]) -> Targets:
    """Return what a detector should see in scenes of SIDE pixels."""
    items = [(image, item) for image, scene in enumerate(scenes) for item in scene.objects]
    image = torch.tensor([image for image, _ in items])
    size = torch.tensor([SIZES.index(item.size) for _, item in items])
    boxes = torch.tensor([item.box for _, item in items])
    heads = {name: torch.tensor([values.index(getattr(item, name)) for _, item in items])
             for name, values in HEADS.items() if name != "background"}
    heads["background"] = torch.tensor([HEADS["background"].index(scene.background) for scene in scenes])
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE - 0.5                           # x, y in cells
    column, row = middle.round().long().clamp(0, CELLS - 1).unbind(dim=1)
    centers = torch.zeros(len(scenes), len(SIZES), CELLS, CELLS, dtype=torch.bool)
    centers[image, size, row, column] = True
    cells = torch.arange(CELLS)
    squared = (cells - middle[:, :1]).square()[:, None, :] + (cells - middle[:, 1:]).square()[:, :, None]
    heat, owner = torch.zeros(centers.shape), torch.zeros(centers.shape, dtype=torch.long)
    for index, around in enumerate(torch.exp(-squared / (2 * SPREAD**2))):              # (CELLS, CELLS) of each object
        at = (image[index], size[index])
        owner[at] = torch.where(around > heat[at], index, owner[at])
        heat[at] = torch.maximum(heat[at], around)
    near = torch.nonzero(heat > NEAR, as_tuple=True)
    return Targets(centers, heat, near, owner[near], image, boxes, heads)


def detection_loss(model: SceneDetector, images: Tensor, targets: Targets, generator: torch.Generator) -> Tensor:
    """Return the sum of the losses of heat (Objects as Points, eq. 1), boxes, classes and attributes."""
    fine, cells = model(images)
    score = cells[:, :, 0]
    missed = (1 - score.sigmoid()).square() * F.softplus(-score)
    raised = (1 - targets.heat) ** 4 * score.sigmoid().square() * F.softplus(score)
    loss = torch.where(targets.centers, missed, raised).sum() / targets.centers.sum()
    image, size, row, column = targets.near
    shifts = shifts_of(targets.boxes[targets.owner], size, row, column)
    loss = loss + F.l1_loss(cells[image, size, 1:, row, column], shifts)
    shaken = targets.boxes + JITTER * torch.randn(targets.boxes.shape, generator=generator)
    objects = model.read(fine, targets.image, shaken)
    whole = model.read(fine, torch.arange(len(images)), whole_images(len(images)))
    for name, wanted in targets.heads.items():
        loss = loss + F.cross_entropy(model.heads[name](whole if name == "background" else objects), wanted)
    return loss


def whole_images(number: int) -> Tensor:
    """Return (number, 4) boxes that cover an image each."""
    return torch.tensor([0.0, 0.0, SIDE, SIDE]).expand(number, 4)


def shifts_of(boxes: Tensor, size: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return (M, 4): the center against its cell's in cells, and four times the log sides against the typical one."""
    cell = (torch.stack([column, row], dim=1) + 0.5) * STRIDE
    typical = boxes.new_tensor(TYPICAL)[size, None]
    middle, sides = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    return torch.cat([(middle - cell) / STRIDE, 4 * (sides / typical).log()], dim=1)


def boxes_of(shifts: Tensor, size: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """Return (M, 4) boxes, the inverse of `shifts_of`, cut off at the image's edge."""
    cell = (torch.stack([column, row], dim=1) + 0.5) * STRIDE
    typical = shifts.new_tensor(TYPICAL)[size, None]
    middle, half = cell + STRIDE * shifts[:, :2], typical * (shifts[:, 2:] / 4).clamp(-2, 2).exp() / 2
    return torch.cat([middle - half, middle + half], dim=1).clamp(0, SIDE)


def found_in(cells: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return boxes (n, 4), heat (n,) and size (n,) of at most MOST - 1 objects, surest first.

    `cells`: (sizes, 5, CELLS, CELLS) of one image.
    """
    heat = cells[:, 0].sigmoid()
    peak = (heat == F.max_pool2d(heat[None], 3, 1, 1)[0]) & (heat > FOUND)
    size, row, column = torch.nonzero(peak, as_tuple=True)
    boxes, scores = boxes_of(cells[size, 1:, row, column], size, row, column), heat[size, row, column]
    kept = nms(boxes, scores, OVERLAP)[: MOST - 1]
    return boxes[kept], scores[kept], size[kept]


def generated(seed: int) -> Iterator[tuple[Tensor, list[Scene]]]:
    """Yield batches of scenes that no data set of a nearby seed has, drawn ahead by another thread."""
    def draw(batch: int) -> tuple[Tensor, list[Scene]]:
        # every fourth: four scenes in a row share their colors
        scenes = [make_scene(2**32 + seed, 4 * (BATCH * batch + number), side=SIDE) for number in range(BATCH)]
        pixels = np.stack([np.asarray(render(scene)) for scene in scenes])
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255, scenes

    with ThreadPoolExecutor(1) as pool:
        ahead = deque(pool.submit(draw, batch) for batch in range(2))
        for batch in count(2):
            ahead.append(pool.submit(draw, batch))
            yield ahead.popleft().result()


def train_detector(seed: int, steps: int, *, progress: bool = True) -> SceneDetector:
    """Return a detector trained on `steps` batches of BATCH generated scenes, on the CPU."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = SceneDetector().to(memory_format=torch.channels_last)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1)
    with tqdm(total=steps, unit=" steps", desc="detector", disable=not progress) as bar:
        for pixels, scenes in islice(generated(seed), steps):
            loss = detection_loss(model, pixels, targets_of(scenes), generator)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimizer.step()
            schedule.step()
            bar.update()
            if bar.n % 20 == 0:
                bar.set_postfix(loss=f"{loss.item():.2f}")
    return model.eval()


def save_detector(path: Path, model: SceneDetector, made: dict[str, int]) -> None:
    """Write a trained detector; `made`: the seed and the steps of its training."""
    checkpoint.save(path, {"width": model.width, "made": made, "model": model.state_dict()})


class SceneDetectorBackend:
    """A `Backend`: the whole image and up to seven objects, surest first; regions and global vector in one pass.

    A region's vector has R = 27 numbers: the network's certainty of each shape, color, texture, background and size (of
    an object no background, of the whole image nothing else); the center and the sides of its box as shares of the
    image. The global vector is that of the whole image. With the 64 numbers before the classifier beside them, recall
    after the same time of training was lower.
    """

    def __init__(self, weights: str | os.PathLike, *, device: str = "cpu") -> None:
        """Load what `save_detector` wrote; errors of `checkpoint.load`."""
        state = checkpoint.load(weights)
        self.device = torch.device(device)
        with checkpoint.content_of(weights):
            self.model = SceneDetector(state["width"])
            self.model.load_state_dict(state["model"])
        self.model.to(self.device).eval()
        self.names = {"class_names": ["image", *SHAPES], "attribute_names": [*COLORS, *BACKGROUNDS]}
        self.settings: dict[str, Any] = {"backend": "scenes", "weights_sha256": sha256_of(weights), "regions": MOST}

    @staticmethod
    def prepare(image: Image.Image) -> np.ndarray:
        """Return an upright RGB image as (SIDE, SIDE, 3) uint8."""
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR))

    @torch.inference_mode()
    def extract(self, pixels: list[np.ndarray], sizes: np.ndarray) -> dict[str, np.ndarray]:
        """Return `regions` (B, MOST, R), `globals` (B, R) and what was found; see `Backend.extract`."""
        batch = torch.from_numpy(np.stack(pixels)).to(self.device).permute(0, 3, 1, 2).float() / 255
        fine, cells = self.model(batch)
        found = [found_in(of_image) for of_image in cells]
        boxes = [torch.cat([whole_images(1).to(boxes), boxes]) for boxes, _, _ in found]
        image = torch.arange(len(boxes), device=self.device).repeat_interleave(torch.tensor([*map(len, boxes)]))
        features = self.model.read(fine, image, torch.cat(boxes)).split([*map(len, boxes)])
        images = [self._described(*one) for one in zip(features, boxes, found, strict=True)]
        rows = padded_rows(images, MOST)
        boxes_there = in_originals(rows["boxes"], SIDE, SIDE, sizes)
        return rows | {"boxes": boxes_there, "globals": rows["regions"][:, 0].copy()}

    def _described(self, features: Tensor, boxes: Tensor, found: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
        """The regions of one image, the whole first; names and certainty as the file keeps them."""
        _, scores, size = found
        certain = {name: head(features).softmax(dim=1) for name, head in self.model.heads.items()}
        certain["size"] = F.pad(F.one_hot(size, len(SIZES)).float(), (0, 0, 1, 0))
        for name, values in certain.items():        # an object has no background, the whole image nothing else
            values[1:] *= name != "background"
            values[:1] *= name == "background"
        place = torch.cat([boxes[:, :2] + boxes[:, 2:], 2 * (boxes[:, 2:] - boxes[:, :2])], dim=1) / (2 * SIDE)
        color = torch.cat([certain["color"], certain["background"]], dim=1)
        return {
            "regions": torch.cat([*certain.values(), place], dim=1), "boxes": boxes,
            "scores": F.pad(scores, (1, 0), value=1.0),
            "class_ids": F.pad(1 + certain["shape"][1:].argmax(dim=1), (1, 0)),
            "attribute_ids": color.argmax(dim=1), "attribute_scores": color.amax(dim=1),
        }
