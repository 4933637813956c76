"""Mend a damaged index."""

from __future__ import annotations

from dataclasses import dataclass

from ascl.image_copy.descriptors.choice import ImageDescriber
from ascl.image_copy.matching.describe import ReadOptions, described_images, digest_of
from ascl.images.find import ImageFile
from ascl.index.damage import Damage
from ascl.index.state import Record
from ascl.index.store import CopyIndex


@dataclass(frozen=True)
class Repaired:
    """What `repair_index` has found and done."""

    found: list[Damage]
    described: list[str]  # ids of images that were described again
    forgotten: list[Record]  # images whose vectors were damaged and whose files are gone or have changed
    lost: int  # images whose records were damaged too


def repair_index(index: CopyIndex, describer: ImageDescriber, options: ReadOptions) -> Repaired:
    """Mend an index: keep what is intact, describe images again whose vectors are damaged, and forget the rest.

    Nobody else may change the index meanwhile. After a kill, the same call continues.

    Raises:
        DataError: the state itself cannot be read, or as `described_images`.
    """
    found, before = index.verify(), len(index)
    if not found:
        return Repaired([], [], [], 0)
    damaged = index.repair()
    lost = before - len(index)
    ids = {index.place_of(record).path: record.id for record in damaged if _is_as_indexed(index, record)}
    described = set[str]()
    if ids:
        for images in described_images(describer, [ImageFile(path, name) for path, name in ids.items()], options, []):
            index.add(images)
            described |= set(images.ids)
    forgotten = [record for record in damaged if record.id not in described]
    index.remove([record.id for record in forgotten])
    index.compact()
    return Repaired(found, sorted(described), forgotten, lost)


def _is_as_indexed(index: CopyIndex, record: Record) -> bool:
    place = index.place_of(record)
    return place.status == "there" and digest_of(place.path).tobytes() == record.sha256
