"""Generate the data sets `scenes` and `scenes_lab`: captions, features and a small text encoder, all from a seed."""

from __future__ import annotations

import os
from pathlib import Path

from ascl.core import checkpoint
from ascl.core.errors import DataError
from ascl.data.captions import load_captions
from ascl.features.writer import extract
from ascl.images.backbones import pick_device
from ascl.images.find import find_images
from ascl.models.small_bert import write_small_bert
from ascl.scenes.detector import SceneDetectorBackend, save_detector, train_detector
from ascl.scenes.oracle import write_oracle
from ascl.scenes.render import write_scenes


def prepare_scenes(folder: str | os.PathLike, *, train: int, val: int, test: int, seed: int,
                   detector_steps: int) -> None:
    """Write images, captions, features and a small text encoder of the data set `scenes`; keep what exists.

    Needs no pretrained weights: the detector learns on generated scenes of its own, and the text encoder starts
    untrained. A call that was interrupted is completed by the next one.
    """
    folder = Path(folder)
    captions_file = write_scenes(folder, train=train, val=val, test=test, seed=seed)
    weights = folder / "detector.pt"
    made = {"seed": int(seed), "steps": int(detector_steps)}    # a parser's own kinds of int are no plain ones
    if not weights.exists():
        save_detector(weights, train_detector(seed, detector_steps), made)
    elif (found := checkpoint.load(weights).get("made")) != made:
        raise DataError(f"{weights} was trained with {found}, requested are {made}: delete it and "
                        f"{folder / 'features.h5'}, or use those settings")
    backend = SceneDetectorBackend(weights, device=pick_device("auto"))
    images = find_images(folder / "images", ids="stem", strict=True)
    done = extract(backend, images, folder / "features.h5", batch_size=64, workers=1, resume=True, strict=True)
    print(done.summary())
    _text_encoder(folder, captions_file, seed)


def prepare_lab(folder: str | os.PathLike, *, train: int, val: int, test: int, seed: int, family: int,
                family_share: float, noise: float, images: bool = False) -> None:
    """Write captions, oracle regions and a small text encoder of the data set `scenes_lab`; keep what exists.

    The regions are computed from the scenes (`oracle.py`), so that nothing but matching is measured, and most of the
    time of a detector and of drawing is saved. A call that was interrupted is completed by the next one.

    Args:
        family, family_share: see `world.make_scene`.
        noise: see `oracle.noisy_regions`.
        images: draw the images too, to look at.
    """
    folder = Path(folder)
    captions_file = write_scenes(folder, train=train, val=val, test=test, seed=seed, family=family,
                                 family_share=family_share, images=images)
    write_oracle(captions_file, folder / "features.h5", noise=noise)
    _text_encoder(folder, captions_file, seed)


def _text_encoder(folder: Path, captions_file: Path, seed: int) -> None:
    """Write an untrained text encoder with the words of the training captions, unless there is one."""
    encoder = folder / "text_encoder"
    if not encoder.exists():
        write_small_bert(encoder, load_captions(captions_file, "train").captions, seed=seed)
