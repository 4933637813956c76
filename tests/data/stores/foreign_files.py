"""What the tests of stores share: feature files of other projects, written from plain arrays, and a dataset of rows."""

import base64
from dataclasses import dataclass, field
from pathlib import Path

import h5py
import numpy as np
import pytest

from ascl.core.errors import DataError
from ascl.data.stores.open import FeatureStore

DIM = 6


def refused(message: str, call, *arguments, **more) -> None:
    with pytest.raises(DataError, match=message):
        call(*arguments, **more)


class RowsOf:
    """A dataset that reads one row, to put a store into workers."""

    def __init__(self, store: FeatureStore) -> None:
        self.store = store

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, row: int) -> np.ndarray:
        return self.store.read([row]).regions[0]


def made(*shape: int, seed: int = 0, dtype: type = np.float32) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


@dataclass
class Image:
    """What is known of one image; all of it that a format can hold is written."""

    image_id: str
    regions: np.ndarray  # (k, DIM) float32
    boxes: np.ndarray  # (k, 4) float32
    width: int
    height: int
    details: dict[str, np.ndarray] = field(default_factory=dict)  # LXMERT's columns, (k,)


def made_boxes(*shape: int, seed: int = 0, side: float = 100) -> np.ndarray:
    """Boxes (*shape, 4) float32 within a square."""
    corners = np.random.default_rng(seed).random((2, *shape, 2)) * side
    return np.concatenate([corners.min(axis=0), corners.max(axis=0)], axis=-1).astype(np.float32)


def make_images(counts: list[int], *, seed: int = 0, prefix: str = "pic") -> list[Image]:
    rng = np.random.default_rng(seed)
    images = []
    for i, count in enumerate(counts):
        details = {"objects_id": rng.integers(0, 1600, count), "objects_conf": rng.random(count, dtype=np.float32),
                   "attrs_id": rng.integers(0, 400, count), "attrs_conf": rng.random(count, dtype=np.float32)}
        images.append(Image(f"{prefix}{i}", rng.normal(size=(count, DIM)).astype(np.float32),
                            made_boxes(count, seed=i + 100 * seed), 640 + i, 480 + i, details))
    return images


def text(values: np.ndarray) -> bytes:
    return base64.b64encode(np.ascontiguousarray(values).tobytes())


def tsv_row(image: Image, kind: str) -> bytes:
    if kind == "bottom-up":
        cells = [image.image_id.encode(), b"%d" % image.width, b"%d" % image.height]
    else:
        cells = [image.image_id.encode(), b"%d" % image.height, b"%d" % image.width,
                 *(text(image.details[name]) for name in ("objects_id", "objects_conf", "attrs_id", "attrs_conf"))]
    return b"\t".join([*cells, b"%d" % len(image.regions), text(image.boxes), text(image.regions)])


def write_tsv(path: Path, images: list[Image], kind: str = "bottom-up", *, end: bytes = b"\r\n") -> Path:
    path.write_bytes(b"".join(tsv_row(image, kind) + end for image in images))
    return path


def write_npz(folder: Path, images: list[Image], *, transposed: bool = False) -> Path:
    folder.mkdir()
    for image in images:
        info = {"image_id": image.image_id, **image.details}  # numpy pickles it, as bottom-up-attention.pytorch does
        np.savez_compressed(folder / f"{image.image_id}.npz", x=image.regions.T if transposed else image.regions,
                            bbox=image.boxes, num_bbox=len(image.boxes), image_h=image.height, image_w=image.width,
                            info=info)
    return folder


def write_cocobu(folder: Path, images: list[Image]) -> Path:
    """self-critical.pytorch: `NAME_att/*.npz`, `NAME_box/*.npy` and, from the mean, `NAME_fc/*.npy`."""
    for name in ("att", "box", "fc"):
        folder.with_name(f"{folder.name}_{name}").mkdir()
    for image in images:
        np.savez_compressed(folder.with_name(f"{folder.name}_att") / f"{image.image_id}.npz", feat=image.regions)
        np.save(folder.with_name(f"{folder.name}_box") / f"{image.image_id}.npy", image.boxes)
        np.save(folder.with_name(f"{folder.name}_fc") / f"{image.image_id}.npy", image.regions.mean(axis=0))
    return folder.with_name(f"{folder.name}_att")


def write_npy(folder: Path, images: list[Image]) -> Path:
    folder.mkdir()
    for image in images:
        np.save(folder / f"{image.image_id}.npy", image.regions)
    return folder


def write_arrays_h5(folder: Path, images: list[Image], *, shards: int = 2, boxes: bool = True) -> Path:
    """`feat000.h5` ... with a data set for each image, and the boxes of all in `region_bbox.h5`."""
    folder.mkdir()
    for shard in range(shards):
        with h5py.File(folder / f"feat{shard:03d}.h5", "w") as file:
            for image in images[shard::shards]:
                file[image.image_id] = image.regions
    if boxes:
        with h5py.File(folder / "region_bbox.h5", "w") as file:
            for image in images:
                file[image.image_id] = image.boxes
    return folder


def write_groups_h5(path: Path, images: list[Image]) -> Path:
    with h5py.File(path, "w") as file:
        for image in images:
            group = file.create_group(image.image_id)
            group["features"], group["boxes"] = image.regions, image.boxes
            for name, values in image.details.items():
                group[name] = values
    return path


def write_detections_h5(path: Path, images: list[Image], probabilities: list[np.ndarray] | None = None) -> Path:
    with h5py.File(path, "w") as file:
        for i, image in enumerate(images):
            file[f"{image.image_id}_features"], file[f"{image.image_id}_boxes"] = image.regions, image.boxes
            if probabilities is not None:
                file[f"{image.image_id}_cls_prob"] = probabilities[i]
    return path


def written(kind: str, folder: Path, images: list[Image]) -> Path:
    """The images in a format with boxes."""
    writers = {"bottom-up tsv": lambda: write_tsv(folder / "a.tsv", images),
               "lxmert tsv": lambda: write_tsv(folder / "a.tsv", images, "lxmert", end=b"\n"),
               "npz": lambda: write_npz(folder / "npz", images),
               "npz transposed": lambda: write_npz(folder / "npz", images, transposed=True),
               "cocobu": lambda: write_cocobu(folder / "cocobu", images),
               "h5 arrays": lambda: write_arrays_h5(folder / "shards", images),
               "h5 groups": lambda: write_groups_h5(folder / "a.h5", images),
               "h5 detections": lambda: write_detections_h5(folder / "a.hdf5", images)}
    return writers[kind]()


KINDS = ["bottom-up tsv", "lxmert tsv", "npz", "npz transposed", "cocobu", "h5 arrays", "h5 groups", "h5 detections"]
