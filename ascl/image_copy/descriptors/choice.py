"""The choice of what describes images: SSCD's published models, a run, a file, a backbone with GeM, or a hash.

A choice is checked without importing torch, which is slow; `make_describer` loads what it needs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from PIL import Image

from ascl.core.errors import DataError
from ascl.image_copy.descriptors.names import Kind, model_named

if TYPE_CHECKING:
    from ascl.image_copy.descriptors.descriptor import Describer, Resize
    from ascl.images.backbones import Normalize, Precision
    from ascl.images.pooling import Pool

INPUT_SIZE = 288    # pixels, RDCD's; a checkpoint has its own
FIELDS = ("weights", "same_padding", "pool", "ordered_norms", "normalize", "input_size", "resize")
FIELDS_OF: dict[Kind, tuple[str, ...]] = {"checkpoint": FIELDS[5:], "torchscript": (*FIELDS[3:], "trust_code"),
                                          "sscd": FIELDS[5:], "backbone": FIELDS, "phash": ()}


class ImageDescriber(Protocol):
    """What turns images into rows of an index: a `Describer` of `ascl.image_copy.descriptors.descriptor`, or a hash."""

    model: str  # name and checksum
    settings: dict[str, Any]  # everything that determines the rows, as JSON values
    dim: int  # of a row
    orders_norms: bool  # whether norms were trained to say which of two images shows more

    @property
    def prepare(self) -> Callable[[Image.Image], np.ndarray]: ...

    def __call__(self, pixels: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray | None]: ...


@dataclass(frozen=True)
class DescriberChoice:
    """What describes images, and how to open it."""

    kind: Kind  # a copy-detection training run, a file, one of SSCD's by name, a backbone with GeM, or the hash
    source: str = ""  # path of the run or file, or name of SSCD's file or the backbone
    weights: str = "default"  # of a backbone, as the next two
    same_padding: bool = False
    pool: Pool = "gem"
    normalize: Normalize = "imagenet"  # of a backbone or a TorchScript file
    input_size: int | None = None  # pixels of a side; None = the run's own, 288 for others
    resize: Resize | None = None  # how images become squares; None = the run's own, squash for others
    ordered_norms: bool = False  # whether a backbone or file was trained with a norm-ratio loss; a run records it
    trust_code: bool = False  # whether the code of a TorchScript file that is not SSCD's may run; never recorded
    download: bool = field(default=False, compare=False)  # whether weights that are not at hand are; never recorded

    def __post_init__(self) -> None:
        if self.kind not in FIELDS_OF:
            raise DataError(f"a describer of kind {self.kind!r}: choose one of {', '.join(FIELDS_OF)}")
        if self.input_size is not None and self.input_size < 1:
            raise DataError(f"input_size {self.input_size}: give at least 1")

    @classmethod
    def from_options(cls, options: Mapping[str, Any],
                     recorded: DescriberChoice | None = None) -> DescriberChoice | None:
        """Return the choice that options make; None if they choose nothing.

        Args:
            options: `model` (a path or a name, see `model_named`) and the fields of a choice; values of None and False,
                and other keys, are ignored.
            recorded: an earlier choice, which supplies the fields that the options leave open.

        Raises:
            DataError: nothing is at the path of the model, or a field is given without a model, or does not apply to
                the chosen kind.
        """
        given = {name: options.get(name) for name in (*FIELDS, "trust_code")}
        changes = {name: value for name, value in given.items() if value is not None and value is not False}
        if options.get("model"):
            named = model_named(options["model"])
            kept = recorded is not None and recorded.kind == named.kind
            chosen = replace(recorded if recorded and kept else cls(named.kind), source=named.source, download=True)
        elif not changes:
            return None
        elif recorded is None:
            raise DataError(f"{min(changes)} has no effect without a model: choose one")
        else:
            chosen = recorded
        for name in changes:
            if name not in FIELDS_OF[chosen.kind]:
                raise DataError(f"{name} does not apply to a {chosen.kind}; leave it out")
        return replace(chosen, **changes)

    @classmethod
    def from_record(cls, values: Any, where: str) -> DescriberChoice:
        """Return the choice that an index records, at `where`; what it says about trust and downloads does not count.

        Raises:
            DataError: the record is not that of a choice.
        """
        try:
            return replace(cls(**values), trust_code=False, download=False)
        except (TypeError, DataError) as error:
            raise DataError(f"{where} records no model that this version knows ({error}): say which one made it") \
                from error

    def to_record(self) -> dict[str, Any]:
        """Return the choice as JSON values for an index, with absolute paths, so that any folder can use it."""
        record = asdict(self.with_whole_paths())
        del record["trust_code"], record["download"]    # an index may come from anybody
        return record

    def with_whole_paths(self) -> DescriberChoice:
        """Return the choice with absolute paths."""
        source = os.path.abspath(self.source) if self.kind in ("checkpoint", "torchscript") else self.source
        is_path = self.kind == "backbone" and self.weights != "default" and not self.weights.startswith("random:")
        return replace(self, source=source, weights=os.path.abspath(self.weights) if is_path else self.weights)


def make_describer(choice: DescriberChoice, device: str = "cpu", precision: Precision = "float32") -> ImageDescriber:
    """Open what was chosen; `precision` is that of a network, and the perceptual hash ignores it.

    Raises DataError if there is no such run, file or backbone, it is not at hand and `choice.download` is false, or
    imagehash is not installed.
    """
    if choice.kind == "phash":
        from ascl.image_copy.descriptors.perceptual_hash import PerceptualHasher

        return PerceptualHasher()
    return make_network_describer(choice, device, precision)


def make_network_describer(choice: DescriberChoice, device: str, precision: Precision) -> Describer:
    """Open a network that was chosen, as `make_describer`; raise DataError for the perceptual hash."""
    from ascl.image_copy.descriptors.descriptor import load_descriptor
    from ascl.image_copy.descriptors.teachers import load_backbone, load_published, load_script, teacher_describer

    if choice.kind == "phash":
        raise DataError("the perceptual hash is not a network: choose another model")
    if choice.kind == "checkpoint":
        return load_descriptor(choice.source, input_size=choice.input_size, resize=choice.resize, device=device,
                               precision=precision)
    size, resize = choice.input_size or INPUT_SIZE, choice.resize or "squash"
    if choice.kind == "sscd":
        network = load_published(choice.source, image_size=size, download=choice.download)
    elif choice.kind == "torchscript":
        network = load_script(Path(choice.source), normalize=choice.normalize, image_size=size,
                              trust_code=choice.trust_code)
    else:
        network = load_backbone(choice.source, choice.weights, same_padding=choice.same_padding,
                                normalize=choice.normalize, pool=choice.pool, download=choice.download)
    return teacher_describer(network, input_size=size, resize=resize, device=device, precision=precision,
                             orders_norms=choice.ordered_norms)
