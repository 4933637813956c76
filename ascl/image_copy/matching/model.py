"""The model that an index is made with: chosen once, recorded in the index, and the same at every later call."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from PIL import Image

from ascl.core.errors import DataError
from ascl.image_copy.descriptors.descriptor import Resize, load_descriptor
from ascl.image_copy.descriptors.perceptual_hash import PerceptualHasher
from ascl.image_copy.descriptors.teachers import load_backbone, load_torchscript, teacher_describer
from ascl.images.backbones import Normalize
from ascl.images.pooling import Pool
from ascl.index.files import Metric
from ascl.index.store import CopyIndex

Kind = Literal["checkpoint", "torchscript", "backbone", "phash"]
INPUT_SIZE = 288    # pixels, RDCD's; a checkpoint has its own


class ImageDescriber(Protocol):
    """What turns images into rows of an index: a `Describer` of `ascl.image_copy.descriptors.descriptor`, or a hash.

    Attributes:
        model: name and checksum. settings: all that decides the numbers, fit for JSON. dim: of a row.
        orders_norms: whether norms were trained to say which of two images shows more.
    """

    model: str
    settings: dict[str, Any]
    dim: int
    orders_norms: bool

    @property
    def prepare(self) -> Callable[[Image.Image], np.ndarray]: ...

    def __call__(self, pixels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]: ...


@dataclass(frozen=True)
class ModelChoice:
    """How to open a model.

    Attributes:
        kind: a run of tools/train_copy.py, a TorchScript file, a backbone with GeM, or the perceptual hash.
        source: path of the run or file, or the backbone's name.
        weights, same_padding, pool: of a backbone. normalize: of a backbone or a TorchScript file.
        input_size, resize: how images become squares; None = the run's own, 288 and squash for others.
        ordered_norms: of a backbone or a TorchScript file that was trained with a norm-ratio loss; a run knows it.
    """

    kind: Kind
    source: str = ""
    weights: str = "default"
    same_padding: bool = False
    pool: Pool = "gem"
    normalize: Normalize = "imagenet"
    input_size: int | None = None
    resize: Resize | None = None
    ordered_norms: bool = False

    @classmethod
    def from_options(cls, options: Mapping[str, Any], recorded: ModelChoice | None = None) -> ModelChoice | None:
        """What a command line chose; None = nothing, so the model of the index.

        Args:
            options: of them count `checkpoint`, `model`, `backbone`, `method` and the fields of a choice, where they
                are neither None nor False.
            recorded: the index's model, whose fields stand where nothing is said.

        Raises:
            DataError: options of a backbone without one.
        """
        sources: dict[str, Kind] = {"checkpoint": "checkpoint", "model": "torchscript", "backbone": "backbone"}
        fields = ("weights", "same_padding", "pool", "ordered_norms", "normalize", "input_size", "resize")
        changes = {name: options[name] for name in fields if options.get(name)}
        for name, kind in sources.items():
            if options.get(name):
                base = recorded if recorded is not None and recorded.kind == kind else cls(kind)
                chosen = replace(base, source=options[name], **changes)
                break
        else:
            if options.get("method"):
                chosen = replace(cls("phash"), **changes)
            elif changes and recorded is not None:
                chosen = replace(recorded, **changes)
            elif changes:
                raise DataError(f"--{min(changes).replace('_', '-')} says nothing without a model: give --checkpoint, "
                                "--model or --backbone")
            else:
                return None
        allowed = {"checkpoint": fields[5:], "torchscript": fields[3:], "backbone": fields, "phash": ()}[chosen.kind]
        for name in changes:
            if name not in allowed:
                raise DataError(f"--{name.replace('_', '-')} says nothing of a {chosen.kind}; leave it out")
        return chosen

    def with_whole_paths(self) -> ModelChoice:
        """Paths from the root, so that an index can be used from any folder."""
        source = self.source if self.kind in ("backbone", "phash") else os.path.abspath(self.source)
        is_path = self.kind == "backbone" and self.weights != "default" and not self.weights.startswith("random:")
        return replace(self, source=source, weights=os.path.abspath(self.weights) if is_path else self.weights)


def make_describer(choice: ModelChoice, device: str = "cpu") -> ImageDescriber:
    """Open the model.

    Raises:
        DataError: no such run, file or backbone, or imagehash is not installed.
    """
    if choice.kind == "phash":
        return PerceptualHasher()
    if choice.kind == "checkpoint":
        return load_descriptor(choice.source, input_size=choice.input_size, resize=choice.resize, device=device)
    size, resize = choice.input_size or INPUT_SIZE, choice.resize or "squash"
    if choice.kind == "torchscript":
        network = load_torchscript(Path(choice.source), normalize=choice.normalize, image_size=size)
    else:
        network = load_backbone(
            choice.source, choice.weights, same_padding=choice.same_padding, normalize=choice.normalize,
            pool=choice.pool,
        )
    return teacher_describer(
        network, input_size=size, resize=resize, device=device, orders_norms=choice.ordered_norms
    )


def metric_of(describer: ImageDescriber) -> Metric:
    return "hamming" if isinstance(describer, PerceptualHasher) else "ip"


def create_index(
    folder: str | os.PathLike, choice: ModelChoice, describer: ImageDescriber, **options: Any
) -> CopyIndex:
    """A new index bound to the model; `options` as `CopyIndex.create`."""
    model = {"name": describer.model, "settings": describer.settings, "choice": asdict(choice.with_whole_paths()),
             "orders_norms": describer.orders_norms}
    return CopyIndex.create(folder, model, metric=metric_of(describer), dimension=describer.dim, **options)


def describer_of(index: CopyIndex, choice: ModelChoice | None = None, device: str = "cpu") -> ImageDescriber:
    """The model that the index was made with.

    Args:
        choice: where it is now; None = where it was.

    Raises:
        DataError: it cannot be opened, or it is another model, or prepares images otherwise (named).
    """
    recorded = ModelChoice(**index.manifest.model["choice"])
    try:
        describer = make_describer(choice or recorded, device)
    except DataError as error:
        if choice is not None:
            raise
        raise DataError(f"{error}\n{index.folder} was made by {index.manifest.model['name']}; if that has moved, say "
                        "where it is, as when the index was made (--checkpoint, --model, --weights)") from error
    check_model(index, describer)
    return describer


def check_model(index: CopyIndex, describer: ImageDescriber) -> None:
    """Refuse a model that the index was not made with."""
    recorded = index.manifest.model
    if describer.model != recorded["name"]:
        raise DataError(
            f"{index.folder} was made by {recorded['name']}, and not by {describer.model}: their descriptors cannot be "
            "compared. Use that model, or index the images again with this one"
        )
    found, wanted = describer.settings, recorded["settings"]
    differing = [
        f"{key} was {wanted.get(key)!r} and is now {found.get(key)!r}"
        for key in sorted({*found, *wanted})
        if found.get(key) != wanted.get(key)
    ]
    if differing:
        raise DataError(f"{index.folder} was made by {recorded['name']} with other settings: {'; '.join(differing)}")
