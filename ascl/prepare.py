"""Getting a data set ready: generate `scenes`, or check what has to be fetched by hand and say how."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ascl.build import data_paths
from ascl.config import Config
from ascl.data.captions import load_captions
from ascl.data.feature_store import open_features
from ascl.data.scenes import write_scenes
from ascl.errors import DataError
from ascl.features.backbones import pick_device
from ascl.features.globals import GlobalBackend
from ascl.features.grid import GridBackend
from ascl.features.images import find_images
from ascl.features.writer import Backend, extract
from ascl.models.small_bert import write_small_bert

HOW_TO_GET = {
    "coco": "images: https://cocodataset.org (train2014, val2014); captions: dataset_coco.json of Karpathy's "
            "caption_datasets.zip; then extract features, see data/README.md",
    "flickr30k": "images: ask for them at https://shannon.cs.illinois.edu/DenotationGraph/ ; captions: "
                 "dataset_flickr30k.json of Karpathy's caption_datasets.zip; then extract features, see data/README.md",
    "flickr8k": "images: ask for them with the form linked from data/README.md; captions: dataset_flickr8k.json of "
                "Karpathy's caption_datasets.zip; then extract features, see data/README.md",
}


def prepare_scenes(
    folder: str | os.PathLike, *, train: int, val: int, test: int, seed: int, backbone: str, layer: str | None
) -> None:
    """Images, captions, features and a small text encoder of the data set `scenes`; what is there already stays.

    No pretrained weights are used: the backbone's are random from the seed, and the text encoder starts untrained. A
    call that was interrupted is completed by the next one.
    """
    folder = Path(folder)
    captions_file = write_scenes(folder, train=train, val=val, test=test, seed=seed)
    images = find_images(folder / "images")
    weights, device = f"random:{seed}", pick_device("auto")
    backends: list[tuple[str, Backend]] = [
        ("regions", GridBackend(backbone, weights, layer, device=device)),
        ("globals", GlobalBackend(backbone, weights, layer, resize="squash", device=device)),
    ]
    for name, backend in backends:
        print(extract(backend, images, folder / f"{name}.h5", batch_size=64, workers=1).summary())
    encoder = folder / "text_encoder"
    if not encoder.exists():
        write_small_bert(encoder, load_captions(captions_file, "train").captions, seed=seed)


@dataclass(frozen=True)
class Check:
    """One thing that a data set needs. `ok` False: `found` says what is wrong."""

    what: str
    found: str
    ok: bool


def check_dataset(config: Config) -> list[Check]:
    """Captions of each split, and features for every image of them; never raises for what is missing."""
    data = config.data
    checks = []
    for split in (data.train, data.val, data.test):
        captions_path, *feature_paths = data_paths(data, split)
        try:
            captions = load_captions(captions_path, split)
            checks.append(Check(f"captions, {split}", f"{len(captions.image_ids)} images, "
                                f"{len(captions.captions)} captions in {captions_path}", True))
        except (DataError, FileNotFoundError) as error:
            checks.append(Check(f"captions, {split}", str(error), False))
            continue
        try:
            store = open_features(
                feature_paths, captions=len(captions.captions), globals_from=data.global_source
            )
            store.rows(captions.image_ids)
            complete = store.region_dim is not None and store.global_dim is not None
            checks.append(Check(f"features, {split}", f"regions {store.num_regions} x {store.region_dim}, globals "
                                f"{store.global_dim}, every image present", complete))
        except (DataError, FileNotFoundError) as error:
            checks.append(Check(f"features, {split}", str(error), False))
    return checks
