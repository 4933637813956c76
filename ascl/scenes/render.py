"""The generated data set `scenes`: images of a few objects, five true captions each, everything from one seed.

    write_scenes("data/scenes", train=1000, val=100, test=500, seed=0)
    scenes = load_scene_records("data/scenes", "test")
    true = truth_matrix(captions, scenes)              # which captions fit which images, not only their own

What a scene is: world.py. What can be said of it: language.py; what is: captions.py; what is true: truth.py.
Here: drawing, writing, loading.
"""

from __future__ import annotations

import json
import math
import os
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ascl.core.errors import DataError
from ascl.core.files import atomic_path, make_folder, write_text
from ascl.core.reading import read_json
from ascl.data.captions import entries, stem_in
from ascl.scenes.captions import CAPTIONS_PER_SCENE, scene_captions
from ascl.scenes.truth import caption_is_true, truth_matrix
from ascl.scenes.world import SPLITS, Scene, SceneObject, make_scene, outline, scene_id

__all__ = ["CAPTIONS_PER_SCENE", "SPLITS", "Scene", "SceneObject", "SceneSettings", "caption_is_true",
           "load_scene_records", "make_scene", "render", "scene_captions", "truth_matrix", "write_scenes"]

DATASET_FILE = "dataset_scenes.json"
VERSION = 1  # of what a seed means: raised whenever the same settings would draw or say something else
_OVERSAMPLING = 3


@dataclass(frozen=True)
class SceneSettings:
    """The settings that determine the data set, stored in its JSON file."""

    train: int
    val: int
    test: int
    seed: int
    side: int = 224
    family: int | None = None
    family_share: float = 1.0
    version: int = VERSION


def render(scene: Scene) -> Image.Image:
    """Return the scene as an RGB image of side x side pixels; the same scene gives the same pixels."""
    shade = np.linspace(1.02, 0.96, scene.side)[:, None, None]  # light from above
    image = np.broadcast_to(shade * scene.background_rgb, (scene.side, scene.side, 3)).astype(np.float32)
    for item in scene.objects:
        _paint(image, item)
    return Image.fromarray(image.round().clip(0, 255).astype(np.uint8))


def _paint(image: np.ndarray, item: SceneObject) -> None:
    """Draw one object into image (side, side, 3) float32, with smooth edges and a dark rim."""
    left, top = (max(0, int(c) - 2) for c in item.box[:2])
    right, bottom = (min(image.shape[0], int(c) + 4) for c in item.box[2:])
    size = ((right - left) * _OVERSAMPLING, (bottom - top) * _OVERSAMPLING)
    extent = max(item.box[2] - item.box[0], item.box[3] - item.box[1])
    points = (outline(item.shape, item.angle) * extent + np.array(item.box[:2]) - (left, top)) * _OVERSAMPLING
    corners = [tuple(p) for p in points.tolist()]
    mask, rim = Image.new("1", size), Image.new("1", size)
    ImageDraw.Draw(mask).polygon(corners, fill=1)
    thickness = max(1.2, 0.035 * extent) * _OVERSAMPLING  # half of the line falls outside the mask
    ImageDraw.Draw(rim).line([*corners, *corners[:2]], fill=1, width=round(2 * thickness), joint="curve")
    shape = np.asarray(mask)
    edge = shape & np.asarray(rim)
    middle = points.mean(axis=0)
    x, y = ((np.arange(n, dtype=np.float32) - m) / _OVERSAMPLING for n, m in zip(size, middle.tolist(), strict=True))
    pattern = shape & ~edge & _pattern(item.texture, x[None], y[:, None], item.angle, period=max(6.5, extent / 5))
    main = np.array(item.rgb, dtype=np.float32)
    bright = main @ (0.299, 0.587, 0.114) > 170
    second = 0.25 * main + (0 if bright else 0.75 * 250)  # dark on yellow, nearly white on the others
    paints = ((shape & ~edge & ~pattern, main), (pattern, second), (edge, 0.4 * main))
    patch = image[top:bottom, left:right]
    patch *= 1 - _coverage(shape)
    for where, color in paints:
        patch += _coverage(where) * color


def _coverage(mask: np.ndarray) -> np.ndarray:
    """Return (H, W, 1), the share of each pixel that a mask, _OVERSAMPLING times finer, covers."""
    pixels = Image.fromarray(mask.astype(np.uint8) * 255).reduce(_OVERSAMPLING)
    return np.asarray(pixels, dtype=np.float32)[..., None] / 255


def _pattern(texture: str, x: np.ndarray, y: np.ndarray, angle: float, *, period: float) -> np.ndarray:
    """Return (H, W) bool: where the second color goes, for x (1, W), y (H, 1) in pixels from the middle."""
    if texture == "solid":
        return np.zeros((y.shape[0], x.shape[1]), dtype=bool)
    turn = math.radians(angle + 45 if texture == "striped" else angle)
    u = math.cos(turn) / period * x + math.sin(turn) / period * y
    if texture == "striped":
        return u - np.floor(u) < 0.45
    v = math.cos(turn) / period * y - math.sin(turn) / period * x
    if texture == "checkered":
        return (np.floor(1.4 * u) + np.floor(1.4 * v)) % 2 == 0
    return (u - np.floor(u) - 0.5) ** 2 + (v - np.floor(v) - 0.5) ** 2 < 0.085  # dotted


def write_scenes(folder: str | os.PathLike, *, train: int, val: int, test: int, seed: int, side: int = 224,
                 family: int | None = None, family_share: float = 1.0, images: bool = True) -> Path:
    """Write the data set; leave a complete one as it is.

    The folder gets `images/scene_{split}_{index:06d}.png` and, once all images are there, `dataset_scenes.json` in
    Karpathy's layout: images[] with split, filename, imgid, sentids, sentences[] (raw, tokens, imgid, sentid), and of
    our own background, objects (boxes and attributes) and side. Sentence k of an image has level of detail k. A run
    that was killed is completed by running it again.

    Args:
        train, val, test: number of scenes of each split.
        seed, side, family, family_share: see `make_scene`.
        images: draw the images; features that are computed from the scenes do not need them. A later call can.

    Returns:
        Path of dataset_scenes.json.

    Raises:
        DataError: where the folder holds scenes of other settings, which are left as they are.
    """
    settings = SceneSettings(train=train, val=val, test=test, seed=seed, side=side, family=family,
                             family_share=family_share)
    if min(train, val, test) < 0 or train + val + test == 0:
        raise DataError(f"scenes need an image and no negative size: got train {train}, val {val}, test {test}")
    dataset = Path(folder) / DATASET_FILE
    pictures = Path(folder) / "images"
    finished = dataset.exists()
    if finished and (found := scene_settings(dataset)) != asdict(settings):
        raise DataError(f"{dataset} was made with {found}, asked for is {asdict(settings)}: name another folder")
    make_folder(pictures if images else Path(folder))
    present = {entry.name for entry in os.scandir(pictures)} if finished and images else set()  # else another seed's?
    jobs = [(split, index) for split in SPLITS for index in range(getattr(settings, split))]

    def draw(imgid: int) -> dict:
        split, index = jobs[imgid]
        scene = make_scene(seed, index, split=split, side=side, family=family, family_share=family_share)
        if images:
            with atomic_path(pictures / f"{scene.image_id}.png") as temporary:
                render(scene).save(temporary, format="PNG", compress_level=1)
        return _entry(scene, scene_captions(scene, seed, index, split=split), split, imgid)

    missing = [] if finished and not images else [
        i for i, (split, index) in enumerate(jobs) if f"{scene_id(split, index)}.png" not in present]
    with ThreadPoolExecutor(4) as pool:  # most of the time of drawing is spent waiting for the disk
        entries = list((pool.map if images else map)(draw, missing))
    if not finished:
        content = {"dataset": "scenes", "settings": asdict(settings), "images": entries}
        write_text(dataset, json.dumps(content, separators=(",", ":")))
    return dataset


def scene_settings(dataset: Path) -> dict:
    """Return the settings that a dataset_scenes.json was made with; files of before families have none."""
    found = _read(dataset).get("settings")
    return {"family": None, "family_share": 1.0} | found if isinstance(found, dict) else {}


def _entry(scene: Scene, captions: list[str], split: str, imgid: int) -> dict:
    sentids = [imgid * CAPTIONS_PER_SCENE + k for k in range(len(captions))]
    sentences = [{"raw": caption, "tokens": re.sub("[,;:.]", "", caption).split(), "imgid": imgid, "sentid": sentid}
                 for caption, sentid in zip(captions, sentids, strict=True)]
    return {"split": split, "filename": f"{scene.image_id}.png", "imgid": imgid, "sentids": sentids,
            "sentences": sentences, **scene.record()}


def _read(dataset: Path) -> dict:
    if not os.path.lexists(dataset):
        raise FileNotFoundError(f"no {dataset}: write_scenes makes it")
    return read_json(dataset, dict, "delete it and run write_scenes again")


def load_scene_records(path: str | os.PathLike, split: str) -> list[Scene]:
    """Return the scenes of a split, in the order of the file; `.image_id` is the stem of the image's file.

    Args:
        path: the folder that write_scenes was given, or its dataset_scenes.json.
        split: one of SPLITS.

    Raises:
        FileNotFoundError: no such file. DataError: not our JSON, or no image of this split.
    """
    dataset = Path(path)
    dataset = dataset / DATASET_FILE if dataset.is_dir() else dataset
    scenes = []
    for row, image in enumerate(entries(_read(dataset), "images", dataset)):
        if image.get("split") != split:
            continue
        where = f"{dataset}, images[{row}]"
        image_id = stem_in(image, "filename", where)
        try:
            scenes.append(Scene.from_record(image_id, image))
        except DataError as error:
            raise DataError(f"{where}: {error}; write_scenes did not make this file") from error
    if not scenes:
        raise DataError(f"{dataset} has no image of split {split!r}: splits are {', '.join(SPLITS)}")
    return scenes
