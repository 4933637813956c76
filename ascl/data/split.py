"""Load a split of a data set, captions and features, as the settings describe it."""

from __future__ import annotations

from pathlib import Path

from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet, captions_exist, load_captions, scan_captions_without_ids
from ascl.data.stores.base import FeatureStore
from ascl.data.stores.open import open_features
from ascl.settings.retrieval import Config, DataConfig


def data_paths(data: DataConfig, split: str) -> list[Path]:
    """Return the caption file and the feature files of a split, with `{split}` in their names replaced."""
    return [Path(path.replace("{split}", split)) for path in [data.captions, *data.features]]


def how_to_get_features(data: DataConfig) -> str:
    """Return the command that messages suggest for a missing feature file."""
    return data.prepare_features or data.prepare


def split_captions(data: DataConfig, split: str) -> CaptionSet:
    """Return the captions of a split.

    SCAN's text without an ids file does not say how many captions an image has: the setting does, or else the features.

    Raises:
        DataError: as `load_captions`; or the features have a number of images that does not fit.
    """
    path, *features = data_paths(data, split)
    per_image = data.scan_captions_per_image
    if per_image is None and all(file.exists() for file in features):
        captions = scan_captions_without_ids(path, split)
        if captions is not None and features:
            store = open_features(features, captions=captions)
            if len(store) > captions or captions % len(store):
                raise DataError(f"{path} has {captions} captions of split {split} for the {len(store)} images of "
                                f"{store.source}, which does not fit: give features of the same split, or an ids file")
            per_image = captions // len(store)
    return load_captions(path, split, scan_captions_per_image=per_image)


def split_features(data: DataConfig, split: str, captions: CaptionSet) -> FeatureStore:
    """Return the features of a split, whose captions are given whole.

    Raises:
        DataError: as `open_features`; or captions and features name their images by number, and the numbers differ.
    """
    store = open_features(data_paths(data, split)[1:], captions=len(captions.captions),
                          globals_from=data.global_source, scan_captions_per_image=data.scan_captions_per_image)
    if captions.numbered and len(store) != len(captions.image_ids):
        raise DataError(f"{store.source} has {len(store)} images, but {captions.source} has captions of "
                        f"{len(captions.image_ids)}, and neither names them: give features and captions of the same "
                        "split, or correct data.scan_captions_per_image")
    return store


def build_split(config: Config, split: str, *, captions_per_image: int | None = None,
                images: int | None = None) -> tuple[CaptionSet, FeatureStore]:
    """Return captions and features of a split.

    Args:
        config: settings of the run.
        split: name of the split.
        captions_per_image: keep the first captions of each image; None = all.
        images: keep the first images; None = all.

    Raises:
        DataError: a file is missing or does not fit; the message says where it was expected and which command gets it.
    """
    for name, most in (("val_images", images), ("captions_per_image", captions_per_image)):
        if most is not None and most < 1:
            raise DataError(f"data.{name} is {most}: it must be at least 1, or null for all")
    if not config.data.captions or not config.data.features:
        raise DataError("no data set: choose one of configs/ (dataset), or set data.captions and data.features")
    captions_path, *paths = data_paths(config.data, split)
    missing = [path for path in paths if not path.exists()]
    for path in missing if captions_exist(captions_path) else [captions_path, *missing]:
        command = config.data.prepare if path == captions_path else how_to_get_features(config.data)
        raise DataError(f"{path.resolve()} does not exist; to get it: {command}")
    captions = split_captions(config.data, split)
    store = split_features(config.data, split, captions)
    if captions_per_image is not None:
        captions = captions.limit_captions(captions_per_image)
    if images is not None:
        captions = captions.subset(range(min(images, len(captions.image_ids))))
    for kind in ("regions", "globals"):
        if kind not in store.kinds:
            instead = ", or set data.global_source to mean-region" if kind == "globals" else ""
            raise DataError(f"{store.source} has no {kind}: extract {kind} of the images{instead}")
    return captions, store
