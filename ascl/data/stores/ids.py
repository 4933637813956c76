"""Translate the image ids of feature files, such as COCO's numbers, into the file-name stems that captions use."""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ascl.core.errors import DataError, first_of
from ascl.data.captions import entries, read_json, stem_in

_COCO = re.compile(r"(?:COCO_[a-z]+\d{4}_)?0*(\d+)(?:\.jpg)?")
FIELDS = ("filename", "cocoid", "imgid")


def stems_of(image_ids: Sequence[str], captions: str | os.PathLike, field: str | None = None) -> list[str]:
    """Return for each id of a feature file the stem of its image's file name, which captions use as the id.

    Args:
        image_ids: ids in the feature file.
        captions: Karpathy's `dataset_*.json`, plain, gzip or in his zip: `images[]` with `filename` and, depending on
            the data set, `cocoid` and `imgid`; or COCO's own, with `file_name` and `id`.
        field: what the ids are: "filename" (with or without suffix, only its number, or COCO's name of another year),
            "cocoid" or "imgid"; None = the field that has every id.

    Raises:
        DataError: the captions do not have an id, an id fits several images, or the ids fit several fields that give
            different images (the message lists them).
    """
    images = entries(read_json(captions), "images", Path(captions))
    if "filename" not in images[0]:  # COCO's own names for the same two fields
        images = [{**image, "filename": image.get("file_name"), "cocoid": image.get("id")} for image in images]
    for number, image in enumerate(images):
        stem_in(image, "filename", f"{captions}, images[{number}]")
    fitting: dict[str, list[str]] = {}
    reasons = []
    for name in FIELDS if field is None else (field,):
        stems = _stems_by(name, images)
        found_as = {image_id: _name_among(stems, name, image_id) for image_id in image_ids}
        unknown = [image_id for image_id in image_ids if found_as[image_id] not in stems]
        several = [image_id for image_id in image_ids if len(stems.get(found_as[image_id], ())) > 1]
        if unknown:
            reasons.append(f"as {name}, {len(unknown)} of {len(image_ids)} are unknown ({first_of(unknown)})")
        elif several:
            reasons.append(f"as {name}, {len(several)} fit more than one image ({first_of(several)})")
        else:
            fitting[name] = [next(iter(stems[found_as[image_id]])) for image_id in image_ids]
    if not fitting:
        raise DataError(f"the image ids do not fit {captions}: {'; '.join(reasons)}")
    first = next(iter(fitting.values()))
    for name, found in fitting.items():
        row = next((row for row, (one, other) in enumerate(zip(first, found, strict=True)) if one != other), None)
        if row is not None:
            raise DataError(f"the image ids fit {captions} as {' and as '.join(fitting)}, which are different images: "
                            f"id {image_ids[row]} is {first[row]} or, as {name}, {found[row]}; choose the field "
                            "(id_field)")
    repeated = [stem for stem, count in Counter(first).items() if count > 1]
    if repeated:
        raise DataError(f"several image ids are the same image of {captions}: {first_of(repeated)}")
    return first


def _name_among(stems: dict[str, set[str]], field: str, image_id: str) -> str:
    """Return the id, or only its number if it is a file name of COCO, whose years name an image differently."""
    coco = _COCO.fullmatch(image_id)
    return coco[1] if field == "filename" and image_id not in stems and coco is not None else image_id


def _stems_by(field: str, images: Sequence[dict[str, Any]]) -> dict[str, set[str]]:
    """Return for each possible id in this field the stems of the images that it fits."""
    stems: dict[str, set[str]] = defaultdict(set)
    for image in images:
        stem = Path(image["filename"]).stem
        names = {str(image[field])} if field in image else set()
        if field == "filename":
            number = stem.rpartition("_")[2]
            names |= {stem, str(int(number)) if number.isascii() and number.isdigit() else stem}
        for name in names:
            stems[name].add(stem)
    return stems
