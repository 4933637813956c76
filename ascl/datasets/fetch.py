"""Put a published data set in its place: download what is public, unpack what was downloaded by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from ascl.core.errors import DataError
from ascl.core.files import readable, require_space
from ascl.data.captions import captions_exist
from ascl.data.split import data_paths
from ascl.datasets import download
from ascl.datasets.archives import unpack
from ascl.datasets.download import USUAL_PATIENCE, Patience, RemoteFile, at_mirror
from ascl.datasets.locate import missing_images, present_images
from ascl.datasets.published import ImageArchive, Published
from ascl.settings.retrieval import Config, DataConfig

Kind = Literal["captions", "images", "annotations"]


@dataclass(frozen=True)
class Places:
    """Where the files of a data set go."""

    captions: Path  # path in the settings
    home: Path  # folder of the archives
    images: Path | None  # folder of the unpacked images, None if the settings name none


def fetch_dataset(config: Config, published: Published, *, only: Kind | None = None, mirror: str | None = None,
                  patience: Patience = USUAL_PATIENCE, progress: bool = True,
                  say: Callable[[str], None] = print) -> None:
    """Download and unpack the files that the settings name and that are missing; after a kill, the next call continues.

    Captions come first, because they say which images are needed. An archive whose images are all there is not
    downloaded, so it may be deleted once it is unpacked. Existing captions are never changed.

    Args:
        config: `data.captions` and `data.images` say where the files go.
        published: the published files (`PUBLISHED[name]`).
        only: download only this kind. `annotations`, the publisher's own caption files, are downloaded only this way.
        mirror: address of a web folder with the same file names; checksums stay the publisher's.
        patience: how long to wait, and how often to try.
        progress: show progress bars.
        say: prints a line.

    Raises:
        DataError: `download.fetch` or `unpack` raises, the disk has too little space for everything, the data set does
            not have `only`, or the settings do not say where it goes.
    """
    where = places(config.data, published)
    _refuse_unknown(only, published, where)
    missing = missing_images(config.data)
    files = _wanted_files(published, where, only)
    archives = _wanted_archives(published, where, only, missing)
    _announce(where, [at_mirror(file, mirror) for file in [*files, *(archive.file for archive in archives)]],
              sum(archive.file.size or 0 for archive in archives), say)

    def bring(file: RemoteFile) -> Path:
        return download.fetch(at_mirror(file, mirror), where.home, patience=patience, progress=progress)

    for file in files:
        archive = bring(file)
        if file is published.annotations:
            unpack(archive, where.home, wanted=lambda member: member.name.startswith("captions_"), progress=progress)
            say(f"{where.home / 'annotations'}: the publisher's caption files")
        elif where.captions == where.home / published.caption_file:  # else the settings look for it in the zip
            unpack(archive, where.home, wanted=lambda member: str(member) == published.caption_file, progress=progress)
    if missing is None:  # the new captions say which images are needed
        missing = missing_images(config.data)
        archives = _wanted_archives(published, where, only, missing)
    for images in archives:
        _unpack_images(bring(images.file), where, progress, say)
    if only in (None, "images") and published.by_hand is not None and where.images is not None and missing != set():
        candidates = (folder / name for folder in (where.home, where.images) for name in published.by_hand.archives)
        if (brought := next(filter(Path.is_file, candidates), None)) is not None:
            say(f"{brought}: no checksum of it is published; only the checksums inside the archive are checked")
            _unpack_images(brought, where, progress, say)


def how_to_get(published: Published, data: DataConfig) -> list[str]:
    """Return instructions for getting the images by hand, as lines to print; empty if all can be downloaded."""
    by_hand = published.by_hand
    if by_hand is None or data.images is None:
        return []
    return ["The publisher gives the images on request, for research and education only:",
            f"  1. read {by_hand.page} and fill in the form {by_hand.form}; you receive a link by mail",
            f"  2. download {by_hand.archives[0]} from it to {places(data, published).home}/",
            f"  3. run {data.prepare}: it unpacks the archive and checks everything",
            f"If you have it unpacked already, put its folder {by_hand.unpacked}, or a link to it, in {data.images}/."]


def places(data: DataConfig, published: Published) -> Places:
    """Return where files go; `home` is the folder of the captions, or of the zip in the path of the captions."""
    captions = data_paths(data, data.train)[0]
    archive = _archive_in(captions, published)
    return Places(captions, (archive or captions).parent, None if data.images is None else Path(data.images))


def _archive_in(captions: Path, published: Published) -> Path | None:
    """Return the publisher's zip if a path of captions leads to it or into it, else None."""
    return next((path for path in (captions, *captions.parents) if path.name == published.captions.name), None)


def _refuse_unknown(only: Kind | None, published: Published, where: Places) -> None:
    if only == "annotations" and published.annotations is None:
        raise DataError("annotations: this data set has none besides its captions; leave this out")
    if only == "images" and where.images is None:
        raise DataError("data.images is not set: set it to the folder for the images")
    known = where.captions.name == published.caption_file or _archive_in(where.captions, published) is not None
    if not known and not captions_exist(where.captions):
        raise DataError(f"data.captions is {where.captions}, which does not exist: give a path that ends in "
                        f"{published.caption_file}, which is downloaded in {published.captions.name}, or the path of "
                        "your own file")


def _wanted_files(published: Published, where: Places, only: Kind | None) -> list[RemoteFile]:
    if only in (None, "captions") and not captions_exist(where.captions):
        return [published.captions]
    return [published.annotations] if only == "annotations" and published.annotations is not None else []


def _wanted_archives(published: Published, where: Places, only: Kind | None,
                     missing: set[str] | None) -> list[ImageArchive]:
    """Return the archives with missing images; all archives while it is unknown which are missing."""
    if only not in (None, "images") or where.images is None:
        return []
    return [archive for archive in published.images
            if missing is None or any(name.startswith(archive.id_prefix) for name in missing)]


def _announce(where: Places, files: list[RemoteFile], to_unpack: int, say: Callable[[str], None]) -> None:
    """Say what will be downloaded and its size, before it begins; raise a DataError if the disk is too small."""
    left = 0
    for file in files:
        size = file.size or 0       # of a data set it is known
        rest = max(size - download.fetched(file, where.home), 0)
        there = f", of which {readable(size - rest)} are there" if rest < size else ""
        say(f"to download: {file.url} ({readable(size)}{there}) to {where.home / file.name}")
        left += rest
    # photos are not compressed in an archive: unpacked, they take as much space
    unpacked = 0 if where.images is None else sum(path.stat().st_size for path in present_images(where.images).values())
    require_space(where.home, left + max(to_unpack - unpacked, 0), "downloading and unpacking")


def _unpack_images(archive: Path, where: Places, progress: bool, say: Callable[[str], None]) -> None:
    assert where.images is not None  # no image archive is wanted otherwise
    folder = where.images
    present = {name: path for name, path in present_images(folder).items() if path.stat().st_size}

    def is_no_second_copy(member: PurePosixPath) -> bool:  # the image may be there in another arrangement of folders
        return present.get(member.stem, folder / member) == folder / member

    done = unpack(archive, folder, wanted=is_no_second_copy, progress=progress)
    say(f"{folder}: {done.files:,} files of {archive.name}, {done.written:,} of them new; {archive} may be deleted now")
