"""Add images to an index; only new ones are described."""

from __future__ import annotations

from collections.abc import Sequence

from ascl.image_copy.descriptors.choice import ImageDescriber
from ascl.image_copy.matching.describe import ReadOptions, described_images, digest_of
from ascl.images.find import ImageFile, Skipped
from ascl.index.store import Added, CopyIndex, conflict


def add_images(index: CopyIndex, describer: ImageDescriber, images: Sequence[ImageFile], options: ReadOptions, *,
               overwrite: bool = False) -> tuple[Added, list[Skipped]]:
    """Describe new images and add them, one confirmed part at a time; a kill does not undo confirmed parts.

    Returns what was added, and the images that could not be used. Raises DataError as `described_images`, and, before
    anything is described, if two images have one id but different content.
    """
    new, same = not_yet_there(index, images, overwrite)
    options.progress(len(images) - len(new))
    done, skipped = Added(same=same), list[Skipped]()
    if new:
        for described in described_images(describer, new, options, skipped):
            done += index.add(described, overwrite=overwrite)
    return done, skipped


def not_yet_there(index: CopyIndex, images: Sequence[ImageFile], overwrite: bool) -> tuple[list[ImageFile], int]:
    """Return the images to describe, and the number of those whose content the index or `images` already hold."""
    index.reload()
    there = index.find([image.id for image in images])
    chosen: dict[str, ImageFile] = {}
    same = 0
    for image in images:
        name, path = image.id, image.path
        twice, indexed = chosen.get(name), there[name][1] if name in there else None
        try:
            if twice is not None and digest_of(twice.path).tobytes() != digest_of(path).tobytes():
                raise conflict(name, str(twice.path), str(path), indexed=False)
            if twice is not None or (indexed and indexed.size in (-1, path.stat().st_size)    # else no need to read it
                                     and indexed.sha256 == digest_of(path).tobytes()):
                same += 1
                continue
        except OSError:
            indexed = None      # `described_images` reports it as unreadable
        if indexed is not None and not overwrite:
            raise conflict(name, indexed.path, str(path), indexed=True)
        chosen[name] = image
    return list(chosen.values()), same
