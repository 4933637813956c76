"""A split of a data set as its settings describe it: captions and features together."""

from __future__ import annotations

from pathlib import Path

from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet, captions_exist, load_captions
from ascl.data.stores.base import FeatureStore
from ascl.data.stores.open import open_features
from ascl.settings.retrieval import Config, DataConfig


def data_paths(data: DataConfig, split: str) -> list[Path]:
    """Caption file and feature files of a split, `{split}` in their names filled in."""
    return [Path(path.replace("{split}", split)) for path in [data.captions, *data.features]]


def build_split(config: Config, split: str, *, captions_per_image: int | None = None,
                images: int | None = None) -> tuple[CaptionSet, FeatureStore]:
    """Captions and features of one split, or of its first `images` images and first captions of each.

    Raises:
        DataError, FileNotFoundError: what is missing, where it was looked for, and the command that gets it.
    """
    for name, most in (("val_images", images), ("captions_per_image", captions_per_image)):
        if most is not None and most < 1:
            raise DataError(f"data.{name} is {most}: has to be at least 1, or null for all")
    if not config.data.captions or not config.data.features:
        raise DataError("no data set: name one of configs/, or set data.captions and data.features")
    captions_path, *paths = data_paths(config.data, split)
    missing = [path for path in paths if not path.exists()]
    for path in missing if captions_exist(captions_path) else [captions_path, *missing]:
        raise DataError(f"{path.resolve()} does not exist; to get it: {config.data.prepare}")
    captions = load_captions(captions_path, split)
    whole = len(captions.captions)
    if captions_per_image is not None:
        captions = captions.limit_captions(captions_per_image)
    if images is not None:
        captions = captions.subset(range(min(images, len(captions.image_ids))))
    store = open_features(paths, captions=whole, globals_from=config.data.global_source)
    for kind in ("regions", "globals"):
        if kind not in store.kinds:
            instead = ", or set data.global_source to mean-region" if kind == "globals" else ""
            raise DataError(f"{store.source}: no {kind}; extract {kind} of the images{instead}")
    return captions, store
