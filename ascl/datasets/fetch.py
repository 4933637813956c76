"""Bringing a published data set to its place: fetch what may be fetched, unpack what was brought by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from ascl.core.errors import DataError
from ascl.data.captions import captions_exist
from ascl.data.split import data_paths
from ascl.datasets import download
from ascl.datasets.archives import unpack
from ascl.datasets.download import USUAL_PATIENCE, Patience, RemoteFile, at_mirror, readable
from ascl.datasets.locate import missing_images, present_images
from ascl.datasets.published import ImageArchive, Published
from ascl.settings.retrieval import Config, DataConfig

Kind = Literal["captions", "images", "annotations"]


@dataclass(frozen=True)
class Places:
    """captions: as the settings name it. home: folder of the archives. images: of the unpacked images, or None."""

    captions: Path
    home: Path
    images: Path | None


def fetch_dataset(config: Config, published: Published, *, only: Kind | None = None, mirror: str | None = None,
                  patience: Patience = USUAL_PATIENCE, progress: bool = True,
                  say: Callable[[str], None] = print) -> None:
    """Fetch and unpack what the settings ask for and what is not there; after a kill the next call goes on.

    Captions come first, for they tell which images are wanted: an archive whose images are all there is not fetched,
    so it may be deleted once it is unpacked. Captions that are there already are never touched.

    Args:
        config: `data.captions` and `data.images` say where things go.
        published: what the publisher has (`PUBLISHED[name]`).
        only: fetch this kind alone. `annotations`, the publisher's own caption files, are fetched only so.
        mirror: folder of a web server that has the same files under the same names; checksums stay the publisher's.
        patience, progress, say: how long to wait and how often to try; show bars; prints a line.

    Raises:
        DataError: whatever `fetch` and `unpack` refuse; no room on the disk for all of it; `only` names what the data
            set does not have, or the settings give it no place.
    """
    where = places(config.data, published)
    _refuse_unknown(only, published, where)
    missing = missing_images(config.data)
    files = _wanted_files(published, where, only)
    archives = _wanted_archives(published, where, only, missing)
    _announce(where, [at_mirror(file, mirror) for file in [*files, *(archive.file for archive in archives)]],
              sum(archive.file.size for archive in archives), say)

    def bring(file: RemoteFile) -> Path:
        return download.fetch(at_mirror(file, mirror), where.home, patience=patience, progress=progress)

    for file in files:
        archive = bring(file)
        if file is published.annotations:
            unpack(archive, where.home, wanted=lambda member: member.name.startswith("captions_"), progress=progress)
            say(f"{where.home / 'annotations'}: the publisher's caption files")
        elif where.captions == where.home / published.caption_file:  # else the settings look for it in the zip
            unpack(archive, where.home, wanted=lambda member: str(member) == published.caption_file, progress=progress)
    if missing is None:  # the captions that have just come tell more
        missing = missing_images(config.data)
        archives = _wanted_archives(published, where, only, missing)
    for images in archives:
        _unpack_images(bring(images.file), where, progress, say)
    if only in (None, "images") and published.by_hand is not None and where.images is not None and missing != set():
        candidates = (folder / name for folder in (where.home, where.images) for name in published.by_hand.archives)
        if (brought := next(filter(Path.is_file, candidates), None)) is not None:
            say(f"{brought}: no checksum is published for it; only those inside the archive are checked")
            _unpack_images(brought, where, progress, say)


def how_to_get(published: Published, data: DataConfig) -> list[str]:
    """What has to be done by hand for the images, as lines to print; empty where everything can be fetched."""
    by_hand = published.by_hand
    if by_hand is None or data.images is None:
        return []
    return ["The images are given to those who ask for them, for research and education only:",
            f"  1. read {by_hand.page} and fill in the form {by_hand.form}; a link comes by mail",
            f"  2. fetch {by_hand.archives[0]} with it and put it into {places(data, published).home}/",
            f"  3. run {data.prepare}: it unpacks the archive and checks everything",
            f"Where it is unpacked already: its folder {by_hand.unpacked} belongs into {data.images}/ (or a link)."]


def places(data: DataConfig, published: Published) -> Places:
    """Home is the folder in which the captions are looked for, or the folder of the zip that they are looked for in."""
    captions = data_paths(data, data.train)[0]
    archive = _archive_in(captions, published)
    return Places(captions, (archive or captions).parent, None if data.images is None else Path(data.images))


def _archive_in(captions: Path, published: Published) -> Path | None:
    """The publisher's zip, where a path of captions leads to it or into it."""
    return next((path for path in (captions, *captions.parents) if path.name == published.captions.name), None)


def _refuse_unknown(only: Kind | None, published: Published, where: Places) -> None:
    if only == "annotations" and published.annotations is None:
        raise DataError("annotations: this data set has none beside its captions")
    if only == "images" and where.images is None:
        raise DataError("data.images is not set; it is the folder that the images go to")
    known = where.captions.name == published.caption_file or _archive_in(where.captions, published) is not None
    if not known and not captions_exist(where.captions):
        raise DataError(f"data.captions is {where.captions}, which does not exist; {published.captions.name} holds "
                        f"{published.caption_file}: give a path that ends so, or that of your own file")


def _wanted_files(published: Published, where: Places, only: Kind | None) -> list[RemoteFile]:
    if only in (None, "captions") and not captions_exist(where.captions):
        return [published.captions]
    return [published.annotations] if only == "annotations" and published.annotations is not None else []


def _wanted_archives(published: Published, where: Places, only: Kind | None,
                     missing: set[str] | None) -> list[ImageArchive]:
    """Archives that have a missing image; all of them while nobody knows what is missing."""
    if only not in (None, "images") or where.images is None:
        return []
    return [archive for archive in published.images
            if missing is None or any(name.startswith(archive.id_prefix) for name in missing)]


def _announce(where: Places, files: list[RemoteFile], to_unpack: int, say: Callable[[str], None]) -> None:
    """Say what comes, of which size, before anything is fetched; refuse what does not fit on the disk."""
    left = 0
    for file in files:
        rest = max(file.size - download.fetched(file, where.home), 0)
        there = f", {readable(file.size - rest)} of it is there" if rest < file.size else ""
        say(f"to fetch: {file.url} ({readable(file.size)}{there}) to {where.home / file.name}")
        left += rest
    # photographs are packed as they are: unpacked they take what their archive takes
    unpacked = 0 if where.images is None else sum(path.stat().st_size for path in present_images(where.images).values())
    download.require_space(where.home, left + max(to_unpack - unpacked, 0), "fetching and unpacking")


def _unpack_images(archive: Path, where: Places, progress: bool, say: Callable[[str], None]) -> None:
    assert where.images is not None  # no image archive is wanted otherwise
    folder = where.images
    present = {name: path for name, path in present_images(folder).items() if path.stat().st_size}

    def is_no_second_copy(member: PurePosixPath) -> bool:  # of an image that lies in a folder of other make
        return present.get(member.stem, folder / member) == folder / member

    done = unpack(archive, folder, wanted=is_no_second_copy, progress=progress)
    say(f"{folder}: {done.files:,} files of {archive.name}, {done.written:,} of them new; {archive} may be deleted now")
