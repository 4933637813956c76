"""The names of models: what a text means, a file, a training run, or a name that is looked up nowhere but in lists.

A text that begins with `torchvision:` or `timm:` is a name. Any other with a path separator or a suffix is a path, and
what is there decides. All the rest are names, even where a file or folder is called so: `./NAME` is its path.
"""

from __future__ import annotations

import difflib
import os
import zipfile
from pathlib import Path
from typing import Literal, NamedTuple

from ascl.core.errors import DataError
from ascl.core.reading import irregular, shown
from ascl.image_copy.descriptors.published import SSCD
from ascl.images.weights import TIMM

Kind = Literal["checkpoint", "torchscript", "sscd", "backbone", "phash"]
TORCHVISION, PHASH = "torchvision:", "phash"
RUN_FILES = ("best.pt", "last.pt")
_CHECKPOINT, _FORMAT_WITHIN = b"ascl-checkpoint", 1024   # the format that our checkpoints name first in their data


class Named(NamedTuple):
    """What a text means: a kind of model, and its path or name."""

    kind: Kind
    source: str = ""


def model_named(text: str) -> Named:
    """Return what a text means; nothing is loaded or downloaded.

    Raises:
        DataError: no file or folder is at this path, or a published file of SSCD's is meant that does not exist. Names
            of backbones are not checked, because the libraries that know them load slowly: see `refuse_unknown`.
    """
    if text.startswith((TORCHVISION, TIMM)):
        return Named("backbone", text.removeprefix(TORCHVISION))
    if is_path(text):
        path = Path(text)
        if path.is_dir() or path.name in RUN_FILES:
            return Named("checkpoint", text)
        if not os.path.lexists(path):
            raise DataError(f"no model {shown(text)}: no such file or run, and with a path separator or a suffix it is "
                            "no name; check the path")
        return Named("checkpoint" if _is_checkpoint(path) else "torchscript", text)
    if text == PHASH:
        return Named("phash")
    if text in SSCD:
        return Named("sscd", text)
    if text.startswith("sscd"):
        refuse_unknown(text, ())
    return Named("backbone", text)


def is_path(text: str) -> bool:
    """Return whether a text is a path by its form: it has a path separator or a suffix."""
    return os.sep in text or "/" in text or bool(Path(text).suffix) or text in (".", "..")


def as_model(path: str | os.PathLike) -> str:
    """Return the text that names the model at a path."""
    text = os.fspath(path)
    return text if is_path(text) else f"./{text}"


def refuse_unknown(text: str, backbones: tuple[str, ...]) -> None:
    """Raise a DataError that says where a name was looked for, unless it is among these of torchvision's backbones."""
    if text in backbones:
        return
    near = difflib.get_close_matches(text, [*SSCD, *backbones, PHASH], n=3, cutoff=0.4)
    there = f"; ./{shown(text)} is the path of what is called so here" if os.path.lexists(text) else ""
    raise DataError(f"no model is named {shown(text)!r}: neither {PHASH}, nor a published file of SSCD, nor a backbone "
                    f"of torchvision; the nearest are {', '.join(near) or 'none'} (`ascl models` lists them all)"
                    f"{there}")


def _is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint of ours; False for what cannot be read, which its reader then says."""
    if irregular(path) is not None:
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
            with archive.open(name) as data:
                return _CHECKPOINT in data.read(_FORMAT_WITHIN)
    except Exception:   # zipfile raises a dozen types for damaged files
        return False
