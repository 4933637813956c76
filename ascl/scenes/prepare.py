"""Generating the data set `scenes`: images, captions, features and a small text encoder, all from a seed."""

from __future__ import annotations

import os
from pathlib import Path

from ascl.data.captions import load_captions
from ascl.features.globals import GlobalBackend
from ascl.features.grid import GridBackend
from ascl.features.writer import Backend, extract
from ascl.images.backbones import pick_device
from ascl.images.read import find_images
from ascl.models.small_bert import write_small_bert
from ascl.scenes.render import write_scenes


def prepare_scenes(folder: str | os.PathLike, *, train: int, val: int, test: int, seed: int, backbone: str,
                   layer: str | None) -> None:
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
        print(extract(backend, images, folder / f"{name}.h5", batch_size=64, workers=1, resume=True).summary())
    encoder = folder / "text_encoder"
    if not encoder.exists():
        write_small_bert(encoder, load_captions(captions_file, "train").captions, seed=seed)
