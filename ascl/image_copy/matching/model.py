"""The model that an index is made with: recorded in the index and required by every later call."""

from __future__ import annotations

import os
import re
from typing import Any

from ascl.core.errors import DataError
from ascl.image_copy.descriptors.at_hand import best_at_hand
from ascl.image_copy.descriptors.choice import DescriberChoice, ImageDescriber, make_describer
from ascl.image_copy.descriptors.published import is_at_hand
from ascl.images.find import IdRule
from ascl.index import Metric
from ascl.index.store import CopyIndex, is_index

DIGEST = "sha256:"
NAMES = ("model", "file", "weights")  # settings that name a file or its digest, which may be renamed
IMAGEHASH = re.compile(r"\(imagehash ([\w.+-]+)\)")


def create_index(folder: str | os.PathLike, choice: DescriberChoice, describer: ImageDescriber, *,
                 ids: IdRule = "path", **options: Any) -> CopyIndex:
    """Create an index bound to the model and to a rule for ids; `options` as for `CopyIndex.create`."""
    model = {"name": describer.model, "settings": describer.settings, "choice": choice.to_record(),
             "orders_norms": describer.orders_norms, "ids": ids}
    metric: Metric = "hamming" if describer.settings.get("kind") == "phash" else "ip"
    return CopyIndex.create(folder, model, metric=metric, dimension=describer.dim, **options)


def open_or_create(folder: str | os.PathLike, choice: DescriberChoice | None = None, device: str = "cpu",
                   **options: Any) -> tuple[CopyIndex, ImageDescriber, str]:
    """Open an index with its model, or create one.

    Args:
        folder: of the index.
        choice: the model of a new index, or where that of an old one is now; None = the recorded one, and for a new
            index the best that is on this machine.
        device: for the model.
        options: of a new index, as for `create_index`.

    Returns:
        The index, its model, and what was chosen and why; "" if there was nothing to choose.

    Raises:
        DataError: as `describer_of`, `best_at_hand` and `CopyIndex`.
    """
    opened, why = CopyIndex(folder) if is_index(folder) else None, ""
    if opened is not None and opened.state.added:
        return opened, describer_of(opened, choice, device), why
    if choice is None and opened is not None:       # an earlier call chose a model and failed before its first image
        choice = recorded_choice(opened)
    if choice is None:
        best = best_at_hand()
        choice, why = best.choice, best.why
    describer = make_describer(choice, device)
    return create_index(folder, choice, describer, **options), describer, why


def recorded_ids(index: CopyIndex) -> IdRule:
    """Return the rule for ids that the index was made with; the first indexes had stems."""
    return index.state.model.get("ids", "stem")


def recorded_choice(index: CopyIndex) -> DescriberChoice:
    """Return the choice that the index was made with."""
    return DescriberChoice.from_record(index.state.model["choice"], str(index.folder))


def recorded_model(index: CopyIndex) -> dict[str, Any]:
    """Return the model that `create_index` has recorded; DataError if something else has made the index."""
    model = index.state.model
    for name, kind in (("name", str), ("settings", dict), ("choice", dict), ("orders_norms", bool)):
        if not isinstance(model.get(name), kind):
            raise DataError(f"{index.folder} is an index of other vectors: it records no {name} of a model of images")
    return model


def _is_same(model: str, other: str) -> bool:
    """Return whether two names are of one model: of weights with the same SHA-256, or else equal."""
    if DIGEST in model and DIGEST in other:
        return model.rpartition(DIGEST)[2] == other.rpartition(DIGEST)[2]
    return model == other


def _another(index: CopyIndex, model: str) -> DataError:
    """Return the error that this is not the model of the index."""
    name = index.state.model["name"]
    hashed = IMAGEHASH.search(name) if IMAGEHASH.search(model) else None
    use = f"Install that version (pip install imagehash=={hashed[1]})" if hashed else "Use that model"
    return DataError(f"{index.folder} was made by {name}, not by {model}: their descriptors cannot be compared. {use}, "
                     "or index the images again with this one")


def describer_of(index: CopyIndex, choice: DescriberChoice | None = None, device: str = "cpu") -> ImageDescriber:
    """Open the model that the index was made with; `choice` says where it is if it has moved.

    Weights that were renamed are the same model. Raises DataError if it cannot be opened, is another model, or prepares
    images differently (each difference is named).
    """
    recorded = recorded_model(index)
    if choice is not None and choice.kind == "sscd" and not is_at_hand(choice.source):
        made = recorded_choice(index)
        if made.kind not in ("sscd", "torchscript") or (made.kind == "sscd" and made.source != choice.source):
            raise _another(index, choice.source)        # before it is downloaded
    try:
        describer = make_describer(choice or recorded_choice(index), device)
    except DataError as error:
        if choice is not None:
            raise
        raise DataError(f"{error}; {index.folder} was made by {index.state.model['name']}: if that has moved, say "
                        "where it is, as when the index was made") from error
    if not _is_same(describer.model, recorded["name"]):
        raise _another(index, describer.model)
    found, wanted = ({key: value for key, value in settings.items() if key not in NAMES}
                     for settings in (describer.settings, recorded["settings"]))
    differing = [f"{key} was {wanted.get(key)!r} and is now {found.get(key)!r}" for key in sorted({*found, *wanted})
                 if found.get(key) != wanted.get(key)]
    if differing:
        raise DataError(f"{index.folder} was made by {recorded['name']} with other settings: {'; '.join(differing)}. "
                        "Use those settings, or index the images again with these")
    return describer
