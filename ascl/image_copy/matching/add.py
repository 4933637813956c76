"""Add images to an index; only new ones are described."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ascl.image_copy.descriptors.choice import ImageDescriber
from ascl.image_copy.matching.describe import ReadOptions, Skipped, described_images, digest_of
from ascl.index.store import Added, CopyIndex, conflict


def add_images(index: CopyIndex, describer: ImageDescriber, paths: Sequence[Path], options: ReadOptions, *,
               overwrite: bool = False) -> tuple[Added, list[Skipped]]:
    """Describe new images and add them, one confirmed part at a time; a kill does not undo confirmed parts.

    Returns what was added, and the images that could not be used. Raises DataError as `described_images`, and, before
    anything is described, if two images have one id but different content.
    """
    new, same = not_yet_there(index, paths, overwrite)
    options.progress(len(paths) - len(new))
    done, skipped = Added(same=same), list[Skipped]()
    if new:
        for images in described_images(describer, new, options, skipped):
            done += index.add(images, overwrite=overwrite)
    return done, skipped


def not_yet_there(index: CopyIndex, paths: Sequence[Path], overwrite: bool) -> tuple[list[Path], int]:
    """Return the images to describe, and the number of those whose content the index or `paths` already hold."""
    index.reload()
    there = index.find([path.stem for path in paths])
    chosen: dict[str, Path] = {}
    same = 0
    for path in paths:
        twice, indexed = chosen.get(path.stem), there[path.stem][1] if path.stem in there else None
        try:
            if twice is not None and digest_of(twice).tobytes() != digest_of(path).tobytes():
                raise conflict(path.stem, str(twice), str(path), indexed=False)
            if twice is not None or (indexed and indexed.size in (-1, path.stat().st_size)    # else no need to read it
                                     and indexed.sha256 == digest_of(path).tobytes()):
                same += 1
                continue
        except OSError:
            indexed = None      # `described_images` reports it as unreadable
        if indexed is not None and not overwrite:
            raise conflict(path.stem, indexed.path, str(path), indexed=True)
        chosen[path.stem] = path
    return list(chosen.values()), same
