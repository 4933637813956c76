"""Find which images of a data set are on the disk."""

from __future__ import annotations

import itertools
from pathlib import Path

from ascl.core.errors import DataError, first_of
from ascl.data.captions import captions_exist
from ascl.data.split import data_paths, split_captions
from ascl.images.find import ImageFile, find_images
from ascl.settings.retrieval import DataConfig, load_config


def present_images(folder: Path) -> dict[str, Path]:
    """Return id -> file of every image below a folder; a DataError for two images with the same id."""
    if not folder.is_dir():
        return {}
    return {image.id: image.path for image in find_images(folder, ids="stem", empty=True)}


def missing_images(data: DataConfig) -> set[str] | None:
    """Return the ids of images that the captions name and that are missing or empty; None if there are no captions.

    Raises:
        DataError: the captions cannot be read, or two images have the same id.
    """
    if not all(captions_exist(data_paths(data, split)[0]) for split in splits(data)):
        return None
    present = {} if data.images is None else present_images(Path(data.images))
    return {name for name in _wanted(data) if name not in present or not present[name].stat().st_size}


def _wanted(data: DataConfig) -> list[str]:
    """Return the ids of all images that the captions name, split by split, each once."""
    each = (split_captions(data, split).image_ids for split in splits(data))
    return list(dict.fromkeys(itertools.chain.from_iterable(each)))


def splits(data: DataConfig) -> list[str]:
    """Return the names of the splits, each once."""
    return list(dict.fromkeys((data.train, data.val, data.test)))


def data_set_images(dataset: str) -> list[ImageFile]:
    """Return every image that the captions of a data set name, split by split.

    Args:
        dataset: name of a file in `configs/`.

    Raises:
        DataError: the data set is unknown, its settings name no folder of images, its captions are missing, or images
            are not in the folder (the message names them).
    """
    data = load_config(["--dataset", dataset]).data
    if data.images is None:
        raise DataError(f"the settings of {dataset} name no folder of images: set data.images")
    path_of, wanted = present_images(Path(data.images)), _wanted(data)
    missing = [image_id for image_id in wanted if image_id not in path_of]
    if missing:
        raise DataError(f"{data.images} lacks {len(missing)} of the {len(wanted)} images that {data.captions} names, "
                        f"such as {first_of(missing)}; to get them: {data.prepare}")
    return [ImageFile(path_of[image_id], image_id) for image_id in wanted]
