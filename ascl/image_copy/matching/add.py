"""Add images to an index. Known ones are recognized by their place and content, and only new ones are described."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ascl.image_copy.descriptors.choice import ImageDescriber
from ascl.image_copy.matching.describe import ReadOptions, described_images, digest_of
from ascl.image_copy.matching.model import recorded_ids
from ascl.images.find import ImageFile, Skipped
from ascl.index.images import Added, conflict
from ascl.index.places import relative_to
from ascl.index.state import Record
from ascl.index.store import CopyIndex


def add_images(index: CopyIndex, describer: ImageDescriber, images: Sequence[ImageFile], options: ReadOptions, *,
               overwrite: bool = False) -> tuple[Added, list[Skipped]]:
    """Describe new images and add them, one confirmed part at a time; a kill does not undo confirmed parts.

    An image whose file has moved keeps its vector and gets its new path and id. A file that has changed in its place is
    described again.

    Args:
        index, describer: the index, and the model that it was made with.
        images, options: the images, and how to read them.
        overwrite: replace an indexed image by another one with the same id.

    Returns:
        What was added, and the images that could not be used.

    Raises:
        DataError: as `described_images`, and, before anything is described, if two images have one id but different
            content, or the index is damaged.
    """
    index.reload()
    index.require_intact()
    found = _compared(index, images, overwrite)
    options.progress(len(images) - len(found.new))
    done, skipped = Added(same=found.same, moved=index.rename(found.moved) if found.moved else 0), list[Skipped]()
    for described in described_images(describer, found.new, options, skipped) if found.new else ():
        done += index.add(described, overwrite=overwrite or found.changed)
    return done, skipped


@dataclass
class _Compared:
    """What the images to add are to an index."""

    new: list[ImageFile] = field(default_factory=list)  # to be described
    changed: set[str] = field(default_factory=set)  # ids of those that replace what was in the same file before
    moved: list[tuple[int, Record]] = field(default_factory=list)  # position and new record
    same: int = 0  # already there, moved ones too, or twice among the images


def _compared(index: CopyIndex, images: Sequence[ImageFile], overwrite: bool) -> _Compared:
    """Compare images with the index: by path, then by id, then by content, which is read only where it can decide."""
    result, there = _Compared(), index.find([image.id for image in images])
    placed = {place: (row, record) for place, (row, record)     # not beside the index while the old file is there
              in index.find_paths([os.path.abspath(image.path) for image in images]).items()
              if place == record.path or place == str(index.place_of(record).path)}
    sizes, chosen, unknown = index.file_sizes(), dict[str, Path](), dict[ImageFile, bytes]()
    used = {row for row, _ in placed.values()}
    for image in images:
        name, path, place = image.id, image.path, os.path.abspath(image.path)
        row, record = placed.get(place) or there.get(name) or (-1, None)
        try:
            twice = chosen.get(name)
            if twice is not None:
                if digest_of(twice).tobytes() != digest_of(path).tobytes():
                    raise conflict(name, str(twice), str(path), indexed=False)
                result.same += 1
            elif record is not None and _has_content(record, path):
                result.same += 1
                used.add(row)
                if (place in placed or not os.path.isabs(record.path)
                        or index.place_of(record).status in ("changed", "gone")):
                    _move(result, index, row, record, record.id if place in placed else name, place)
            elif place in placed and record is not None:
                result.changed.add(record.id)
                result.new.append(ImageFile(path, record.id))
            elif record is not None and not overwrite:
                raise conflict(name, record.path, str(path), indexed=True,
                               gone=index.place_of(record).status == "gone", by_path=recorded_ids(index) == "path")
            else:
                chosen[name] = path
                if record is None and sizes & {-1, path.stat().st_size}:
                    unknown[image] = digest_of(path).tobytes()
                else:
                    result.new.append(image)
        except OSError:     # `described_images` reports it as unreadable
            result.new.append(image)
    held = index.find_content(unknown.values()) if unknown else {}
    for image, digest in unknown.items():
        for row, record in held.get(digest, []):
            if row not in used and index.place_of(record).status == "gone":
                used.add(row)
                result.same += 1
                _move(result, index, row, record, image.id, os.path.abspath(image.path))
                break
        else:
            result.new.append(image)
    order = {image.path: number for number, image in enumerate(images)}
    result.new.sort(key=lambda image: order[image.path])
    return result


def _has_content(record: Record, path: Path) -> bool:
    """Return whether a file has the content of an indexed one; it is read only if the size is the same."""
    return record.size in (-1, path.stat().st_size) and record.sha256 == digest_of(path).tobytes()


def _move(result: _Compared, index: CopyIndex, row: int, record: Record, name: str, place: str) -> None:
    moved = record._replace(id=name, path=place, relative=relative_to(index.folder, place))
    if moved != record:
        result.moved.append((row, moved))
