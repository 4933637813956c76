"""Which models can be named, which of them are on this machine, and which is the best of those.

Nothing here asks the network. The order of `best_at_hand` is that of what is measured (docs/results/copy-detection.md)
and published: SSCD's files, trained for copies on a million images; then the newest run of `sscd` or `rdcd` that is
here, which found 62 % where its backbone found 56; then such a backbone; then the perceptual hash, which found 49. Runs
of `asl` are left out: their descriptors found less than the backbone that they started from.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from ascl.core.errors import DataError, SettingsError
from ascl.image_copy.descriptors import published
from ascl.image_copy.descriptors.choice import DescriberChoice
from ascl.image_copy.descriptors.names import PHASH, RUN_FILES, TORCHVISION, as_model
from ascl.images import weights
from ascl.settings.base import read_yaml

RUNS = "runs"                   # folder in which a user's runs are looked for
DEFAULT_RUNS = ("sscd", "rdcd")     # methods of training whose runs may be chosen by default
# mobilenet_v2 is the measured one; the others are what most caches hold, none of them measured here
BACKBONES = ("mobilenet_v2", "resnet50", "efficientnet_b0", "resnet18", "resnet152")


@dataclass(frozen=True)
class Model:
    """A model that can be named.

    Attributes:
        name: what names it.
        about: what it is, in words.
        source: address from which it would be downloaded, or path; "" = neither.
        at_hand: whether it can be used without a network.
        bytes: of the download or file, about; None = unknown.
    """

    name: str
    about: str
    source: str
    at_hand: bool
    bytes: int | None = None


class Best(NamedTuple):
    """The best model at hand: what names it, the choice of it, and a clause that says what it is and why."""

    name: str
    choice: DescriberChoice
    why: str


def models(runs: str | Path = RUNS) -> list[Model]:
    """Return every model that can be named, the best first; of timm's, which are a thousand, only those at hand.

    Args:
        runs: folder in which training runs are looked for.
    """
    sscd = [Model(name, file.about, published.address_of(name), published.is_at_hand(name), file.size)
            for name, file in published.SSCD.items()]
    own = [Model(path, f"your run of {method}", path, True) for path, method in runs_in(runs)]
    names = sorted(weights.torchvision_names(), key=lambda name: (_rank(name), name))
    backbones = [Model(f"{TORCHVISION}{name}", "ImageNet, untrained for copies", weights.address_of(name),
                       weights.is_at_hand(name), weights.size_of(name)) for name in names]
    timm = [Model(name, "untrained for copies", "", True) for name in weights.timm_at_hand()]
    phash = Model(PHASH, "64 bits, a baseline; crops and overlays defeat it", "", find_spec("imagehash") is not None)
    return [*sscd, *own, *backbones, *timm, phash]


def runs_in(folder: str | Path) -> list[tuple[str, str]]:
    """Return (path, method) of each run of copy-detection training in a folder that has weights, the newest first."""
    found = []
    for settings in Path(folder).glob("*/settings.yaml"):
        file = next((settings.parent / name for name in RUN_FILES if (settings.parent / name).is_file()), None)
        if file is not None and (method := _method(settings)) is not None:
            found.append((file.stat().st_mtime, as_model(settings.parent), method))
    return [(path, method) for _, path, method in sorted(found, reverse=True)]


def best_at_hand(runs: str | Path = RUNS) -> Best:
    """Return the best model that is on this machine; `runs` as for `models`.

    Raises:
        DataError: there is none, not even the perceptual hash.
    """
    for name, file in published.SSCD.items():
        if published.is_at_hand(name):
            return Best(name, DescriberChoice("sscd", name), f"{name}, the best file of SSCD's here ({file.about})")
    for path, method in runs_in(runs):
        if method in DEFAULT_RUNS:
            return Best(path, DescriberChoice("checkpoint", path), f"{path}, your newest run of {method}")
    better = f"A better one is downloaded if it is named: {_better()}"
    for name in BACKBONES:
        if weights.is_at_hand(name):
            return Best(f"{TORCHVISION}{name}", DescriberChoice("backbone", name),
                        f"{TORCHVISION}{name}, whose weights are here; it was not trained for copies. {better}")
    if find_spec("imagehash") is not None:
        return Best(PHASH, DescriberChoice("phash"), f"{PHASH}, because nothing better is here; crops and overlays "
                    f"defeat it. {better}, or {TORCHVISION}{BACKBONES[0]}")
    raise DataError(f"no model is on this machine: name one, and it is downloaded, such as {_better()}; or "
                    "pip install imagehash")


def _better() -> str:
    size = published.SSCD[published.DEFAULT].size
    return f"{published.DEFAULT} ({size / 1e6:.0f} MB)"


def _rank(name: str) -> int:
    return BACKBONES.index(name) if name in BACKBONES else len(BACKBONES)


def _method(settings: Path) -> str | None:
    """Return the method of copy-detection training that a run's settings name; None for other runs."""
    try:
        values = read_yaml(settings)
    except (DataError, SettingsError):
        return None
    return values.get("objective") if "views" in values else None
