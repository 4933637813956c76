"""Oracle regions of scenes: the objects' own attributes and places with noise, computed without an image.

They are what a detector without faults would say, so that a comparison of models measures what these make of the
regions and not what the detector missed. A region says what its object is, and nothing of what was said about it.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from ascl.core.errors import DataError
from ascl.data.stores.writing import provenance_of
from ascl.features.feature_file import provenance, versions, write_joined
from ascl.features.writer import refuse_other_settings
from ascl.scenes.language import VALUES
from ascl.scenes.render import load_scene_records, scene_settings
from ascl.scenes.world import BACKGROUNDS, COLORS, MAX_OBJECTS, SHAPES, SPLITS, Scene, generator

# Columns of a region before its two of the place: attribute and value
COLUMNS = tuple((name, value) for name, values in (*VALUES.items(), ("background", tuple(BACKGROUNDS)))
                for value in values)
REGION_DIM = len(COLUMNS) + 2
MOST = 1 + MAX_OBJECTS      # regions of an image: the background and its objects
_CELLS = 3                  # of the world's grid along a side: neighbors are about 1 apart in the columns of the place
_COLUMN = {column: number for number, column in enumerate(COLUMNS)}


def oracle_regions(scene: Scene) -> np.ndarray:
    """Return (1 + n, REGION_DIM) float32 of a scene with n objects, without noise.

    The first row is the background: 1 in the column of its color. The others are the objects in their order: 1 in the
    column of each of their four attributes, and the center's offset from the image's, x and y in thirds of the side.
    All other values are 0. A place is a center and no box, so that scenes of a family have exactly the same mean row:
    relations follow from centers, and what is inside what from centers and sizes.
    """
    rows = np.zeros((1 + len(scene.objects), REGION_DIM), dtype=np.float32)
    rows[0, _COLUMN["background", scene.background]] = 1
    for row, item in zip(rows[1:], scene.objects, strict=True):
        for name in VALUES:
            row[_COLUMN[name, getattr(item, name)]] = 1
        row[len(COLUMNS):] = (np.array(item.center) / scene.side - 0.5) * _CELLS
    return rows


def noisy_regions(scene: Scene, seed: int, index: int, *, split: str, noise: float) -> np.ndarray:
    """Return the regions of scene number `index` of a split with noise, the same whatever the size of the data set.

    Args:
        scene: of the data set of this seed.
        noise: standard deviation of independent normal noise on each number of `oracle_regions`, at least 0.
    """
    rows = oracle_regions(scene)
    return rows + noise * generator(seed, split, 7, index).standard_normal(rows.shape, dtype=np.float32)


def write_oracle(dataset: Path, out: str | os.PathLike, *, noise: float) -> None:
    """Write the oracle regions of all scenes of `dataset_scenes.json` as a feature file; keep a finished one.

    The file has no whole-image features: `data.global_source` mean-region makes them of the regions, and they then say
    nothing that the mean of the regions does not.

    Args:
        dataset: the file that `write_scenes` wrote.
        out: the HDF5 file.
        noise: see `noisy_regions`.

    Raises:
        DataError: the noise is negative, or `out` exists and was made with other settings.
    """
    if not 0 <= noise < np.inf:
        raise DataError(f"the noise of oracle regions is {noise}: it must be at least 0 and finite")
    out = Path(out)
    made = scene_settings(dataset)
    settings = {"backend": "scenes oracle", "noise": float(noise), "scenes": made}
    if out.exists():
        refuse_other_settings(out, provenance_of(out)["settings"], settings)
        return
    images = [_image(scene, noisy_regions(scene, made["seed"], index, split=split, noise=noise))
              for split in SPLITS if made[split]
              for index, scene in enumerate(load_scene_records(dataset, split))]
    rows = {name: np.stack([image[name] for image in images]) for name in images[0]}
    names = {"class_names": ["background", *SHAPES], "attribute_names": [*COLORS, *BACKGROUNDS]}
    write_joined(out, [rows], rows["image_ids"].tolist(), names, provenance(settings, [], [], [versions()]))


def _image(scene: Scene, regions: np.ndarray) -> dict[str, np.ndarray]:
    """Return what the feature file holds of one image; rows beyond its regions are 0, ids -1."""
    count = len(regions)
    beyond = MOST - count
    shapes = [0, *(1 + SHAPES.index(item.shape) for item in scene.objects)]
    colors = [len(COLORS) + list(BACKGROUNDS).index(scene.background),
              *(list(COLORS).index(item.color) for item in scene.objects)]
    boxes = [(0.0, 0.0, scene.side, scene.side), *(item.box for item in scene.objects)]
    return {
        "image_ids": np.array(scene.image_id), "image_sizes": np.full(2, scene.side, dtype=np.int32),
        "region_count": np.array(count, dtype=np.int32), "regions": np.pad(regions, ((0, beyond), (0, 0))),
        "boxes": np.pad(np.array(boxes, dtype=np.float32), ((0, beyond), (0, 0))),
        "class_ids": np.pad(np.array(shapes, dtype=np.int32), (0, beyond), constant_values=-1),
        "attribute_ids": np.pad(np.array(colors, dtype=np.int32), (0, beyond), constant_values=-1),
    }
