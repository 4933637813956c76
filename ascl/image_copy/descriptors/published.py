"""SSCD's published files, by name: where they are downloaded from, where they are kept, and which bytes they have.

Nothing is downloaded unless somebody asks for a file by its name. Source of names and addresses: the README of
facebookresearch/sscd-copy-detection (Pizzi et al. 2022).
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ascl.core.errors import DataError
from ascl.core.files import readable, require_space, write_text
from ascl.core.hashing import sha256_of
from ascl.core.reading import read_text, require_file
from ascl.datasets.download import Patience, RemoteFile, fetch

ADDRESS = "https://dl.fbaipublicfiles.com/sscd-copy-detection/"
HASTY = Patience(timeout=30.0, attempts=3)  # somebody waits for an answer; the same command continues anyway
INSTEAD = "download it where there is a network, and give the path of the file"
SUFFIX = ".torchscript.pt"


@dataclass(frozen=True)
class PublishedFile:
    """A file of SSCD's: what it was trained for, and its bytes as far as they are known."""

    about: str  # training images, network, edits; dimension of the descriptor
    size: int  # bytes; approximate if there is no `sha256`
    sha256: str | None = None  # None = not known: that of the first download is kept and compared from then on


# the best first: the authors recommend mixup as the default, large for accuracy, and their table has this order
SSCD = {
    "sscd_disc_large": PublishedFile("DISC, ResNeXt-101, advanced edits and mixup, 1024 numbers", 177_000_000),
    # as a dozen public projects have it that pin this file
    "sscd_disc_mixup": PublishedFile("DISC, ResNet-50, advanced edits and mixup, 512 numbers", 98_791_638,
                                     "9f26bd4c848cc19b73d2ae92eea6e04886f61a7b764ceb7a13aeee62e6a6db56"),
    "sscd_disc_advanced": PublishedFile("DISC, ResNet-50, advanced edits, 512 numbers", 98_800_000),
    "sscd_disc_blur": PublishedFile("DISC, ResNet-50, strong blur, 512 numbers", 98_800_000),
    "sscd_imagenet_mixup": PublishedFile("ImageNet, ResNet-50, advanced edits and mixup, 512 numbers", 98_800_000),
    "sscd_imagenet_advanced": PublishedFile("ImageNet, ResNet-50, advanced edits, 512 numbers", 98_800_000),
    "sscd_imagenet_blur": PublishedFile("ImageNet, ResNet-50, strong blur, 512 numbers", 98_800_000),
}
DEFAULT = "sscd_disc_mixup"


def address_of(name: str) -> str:
    return f"{ADDRESS}{name}{SUFFIX}"


def models_folder() -> Path:
    """Return the folder of downloaded files: `ascl/models` in `XDG_CACHE_HOME`, or else in `~/.cache`."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return Path(cache if os.path.isabs(cache) else os.path.expanduser("~/.cache")) / "ascl" / "models"


def place_of(name: str) -> Path:
    """Return where a file is, or would be, kept."""
    return models_folder() / f"{name}{SUFFIX}"


def is_at_hand(name: str) -> bool:
    return place_of(name).is_file()


def bring(name: str, *, download: bool) -> Path:
    """Return the path of a file of SSCD's, which `verified` should then check.

    Args:
        download: download it if it is not there, and say so; what stopped in the middle goes on.

    Raises:
        DataError: it is not there and may not be downloaded, or as `ascl.datasets.download.fetch`.
    """
    file, path = SSCD[name], place_of(name)
    if path.is_file():
        return path
    if not download:
        raise DataError(f"{name} is not on this machine: name it as the model, and it is downloaded to {path}")
    if not path.exists():
        require_space(path, file.size, name)
    print(f"downloading {address_of(name)} (about {readable(file.size)}) to {path}", file=sys.stderr)
    size = None if file.sha256 is None else file.size
    return fetch(RemoteFile(address_of(name), size, file.sha256, INSTEAD), path.parent, patience=HASTY,
                 progress=sys.stderr.isatty())


def verified(name: str, path: Path) -> str:
    """Return the SHA-256 of a file of SSCD's; a DataError unless it is the published or, if none is, the kept one."""
    file, kept = SSCD[name], _beside(path)
    require_file(path)
    digest = sha256_of(path)
    if file.sha256 not in (None, digest):
        raise DataError(f"{path} has the sha256 {digest}, the published file has {file.sha256}: remove it, and the "
                        f"next use of {name} downloads it again")
    first = read_text(kept).partition(" ")[0].strip() if file.sha256 is None and kept.exists() else digest
    if first != digest:
        raise DataError(f"{path} has the sha256 {digest}, and {kept.name} beside it says {first}: it has changed since "
                        f"its first download. Remove it, and the next use of {name} downloads it again; if that ends "
                        f"like this too, the published file has changed: remove {kept.name} if you trust it")
    return digest


def keep(path: Path, digest: str) -> None:
    """Write the SHA-256 of a file, which could be read, beside it, as `sha256sum` does."""
    if not _beside(path).exists():
        with suppress(DataError):   # a cache that cannot be written is no reason not to use what is there
            write_text(_beside(path), f"{digest}  {path.name}\n")


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")
