"""Descriptors in HDF5: the publishers' layout with our additions, and the submission file of DISC2021's track 2.

A descriptor file holds `vectors` (N, d) float32 and `image_names` (N,). Ours also hold `norms` (N,) float32, which the
asymmetrical similarity compares, and the root attributes `model` (name and sha256) and `provenance` (JSON). A
submission holds `query`, `query_ids`, `reference` and `reference_ids`, sorted by id, with at most 256 dimensions.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np

from ascl.core import hdf5
from ascl.core.errors import DataError
from ascl.core.files import atomic_path
from ascl.core.reading import parse_json, require_file

SUBMISSION_DIMENSIONS = 256
_REMEDY = "describe the images again, or take a sound copy of the file"

Role = Literal["query", "reference"]


@dataclass(frozen=True, eq=False)
class Descriptors:
    """Descriptors of a set of images."""

    names: list[str]  # (N,) ids, each once
    vectors: np.ndarray  # (N, d) float32, finite
    norms: np.ndarray | None  # (N,) float32; None if the file has none
    model: str | None  # name and checksum of the model that made them; None if the file does not say
    provenance: dict[str, Any] | None  # how they were made; None if the file does not say
    source: str  # the file or files, for messages


def read_descriptors(paths: str | os.PathLike | Sequence[str | os.PathLike], role: Role, *,
                     folder_ids: bool = False) -> Descriptors:
    """Return the descriptors of one file, or of several files that together hold one set.

    Args:
        paths: descriptor files; of a submission file, the half that `role` names is read.
        role: what the descriptors are for.
        folder_ids: put the file's name before ids without a folder, `strong/200001` for 200001 in strong.h5, because
            Copydays has the same picture names in every folder.

    Returns:
        The descriptors in the order of the files. `norms` are None unless every file has them; `provenance` is that of
        the first file.

    Raises:
        DataError: no such file; not HDF5; a data set is missing or has a wrong shape; a value is not finite (image
            named); an id occurs twice; the files are of different models or dimensions.
    """
    files = [Path(path) for path in ([paths] if isinstance(paths, str | os.PathLike) else paths)]
    parts = [_read(path, role) for path in files]
    if not parts:
        raise DataError(f"no descriptor file of the {role} images was given; give at least one")
    check_comparable(parts)
    if folder_ids:
        parts = [replace(part, names=[name if "/" in name else f"{path.stem}/{name}" for name in part.names])
                 for path, part in zip(files, parts, strict=True)]
    _check_once(parts)
    if len(parts) == 1:
        return parts[0]
    norms = [part.norms for part in parts if part.norms is not None]
    return Descriptors([name for part in parts for name in part.names],
                       np.concatenate([part.vectors for part in parts]),
                       np.concatenate(norms) if len(norms) == len(parts) else None,
                       next((part.model for part in parts if part.model is not None), None), parts[0].provenance,
                       ", ".join(part.source for part in parts))


def write_descriptors(path: str | os.PathLike, names: Sequence[str], vectors: np.ndarray, *,
                      norms: np.ndarray | None = None, model: str | None = None,
                      provenance: dict[str, Any] | None = None) -> None:
    """Write the HDF5 file that `read_descriptors` reads; an error or a kill leaves no incomplete file at `path`.

    Args:
        path: the file.
        names: (N,) ids, each once.
        vectors: (N, d), written as float32.
        norms: (N,) content norms, >= 0, written as float32; None = none.
        model: name and checksum of the model.
        provenance: how the descriptors were made, as JSON values.

    Raises:
        DataError: lengths differ, an id occurs twice, or a value is not finite.
    """
    made = Descriptors(list(names), np.asarray(vectors, dtype=np.float32),
                       None if norms is None else np.asarray(norms, dtype=np.float32), model, provenance, str(path))
    _check(made)
    _check_once([made])
    with atomic_path(path) as temporary, hdf5.NewHdf5(temporary) as file:
        file.create_dataset("vectors", data=made.vectors)
        file.create_dataset("image_names", data=_as_bytes(made.names))
        if made.norms is not None:
            file.create_dataset("norms", data=made.norms)
        if model is not None:
            file.attrs["model"] = model
        if provenance is not None:
            file.attrs["provenance"] = json.dumps(provenance)


def write_submission(path: str | os.PathLike, query: Descriptors, reference: Descriptors) -> None:
    """Write the submission file of DISC2021's track 2: both sides as float32, sorted by id.

    Raises:
        DataError: more than 256 dimensions, or sides of different dimensions or models.
    """
    check_comparable([query, reference])
    dimension = query.vectors.shape[1]
    if dimension > SUBMISSION_DIMENSIONS:
        raise DataError(f"{dimension} dimensions; a submission has at most {SUBMISSION_DIMENSIONS}: whiten to fewer")
    with atomic_path(path) as temporary, hdf5.NewHdf5(temporary) as file:
        for role, side in (("query", query), ("reference", reference)):
            names = _as_bytes(side.names)
            order = np.argsort(names)
            file.create_dataset(role, data=side.vectors[order])
            file.create_dataset(f"{role}_ids", data=names[order])
        if query.model is not None:
            file.attrs["model"] = query.model


def check_comparable(descriptors: Sequence[Descriptors]) -> None:
    """Raise DataError for descriptors of different dimensions, or of different models if the files name them."""
    first = descriptors[0]
    named = next((one for one in descriptors if one.model is not None), None)
    for other in descriptors:
        if other.vectors.shape[1] != first.vectors.shape[1]:
            raise DataError(f"{first.source} has {first.vectors.shape[1]} dimensions and {other.source} "
                            f"{other.vectors.shape[1]}: they are not from one model; describe one of them again")
        if named is not None and other.model not in (None, named.model):
            raise DataError(f"{named.source} was described by {named.model} and {other.source} by {other.model}: "
                            "distances between different models mean nothing; describe one of them again")


def _check_once(parts: Sequence[Descriptors]) -> None:
    seen: dict[str, str] = {}
    for part in parts:
        for name in part.names:
            if name in seen:
                raise DataError(f"{part.source}: image {name!r} is described twice (also in {seen[name]}); keep one")
            seen[name] = part.source


def overlap(first: Descriptors, second: Descriptors) -> tuple[int, int]:
    """Return how many images of `first` are also in `second`: by id, and by an identical vector."""
    by_id = len(set(first.names) & set(second.names))
    # a 64-bit hash per row saves memory; adding 0 makes -0.0 equal to 0.0
    keys, others = ([hash((row + np.float32(0)).tobytes()) for row in one.vectors] for one in (first, second))
    present = set(others)
    return by_id, sum(key in present for key in keys)


def _read(path: Path, role: Role) -> Descriptors:
    require_file(path, "file of descriptors")
    hdf5.try_in_child(f"descriptors {role}", [path], partial(_read_unchecked, path, role), _REMEDY)
    made = _read_unchecked(path, role)
    _check(made)
    return made


def _read_unchecked(path: Path, role: Role) -> Descriptors:
    with hdf5.open_hdf5(path, _REMEDY) as file:
        keys = hdf5.keys_of(file, _REMEDY)
        vectors_name, names_name = ("vectors", "image_names") if "vectors" in keys else (role, f"{role}_ids")
        found = {name: hdf5.dataset_of(file, name, _REMEDY) for name in (vectors_name, names_name)}
        raw_vectors, raw_names = found[vectors_name], found[names_name]
        if raw_vectors is None or raw_names is None:
            raise DataError(f"{path} holds {', '.join(keys[:20]) or 'nothing'}; descriptors are `vectors` and "
                            f"`image_names`, in a submission `{role}` and `{role}_ids`")
        if raw_vectors.dtype.kind not in "fiu" or raw_vectors.ndim != 2 or raw_names.ndim != 1:
            raise DataError(f"{path}: `{vectors_name}` is {raw_vectors.dtype} {raw_vectors.shape} and "
                            f"`{names_name}` {raw_names.shape}, expected float32 (N, d) and text (N,)")
        norms = hdf5.dataset_of(file, "norms", _REMEDY) if vectors_name == "vectors" else None
        made = Descriptors(hdf5.texts_of(raw_names, _REMEDY), _float32(raw_vectors),
                           None if norms is None else _float32(norms), _text_attribute(file, "model"),
                           parse_json(_text_attribute(file, "provenance") or "{}", f"{path}, attribute `provenance`",
                                      remedy=_REMEDY) or None, str(path))
    return made


def _float32(data: h5py.Dataset) -> np.ndarray:
    if data.dtype.kind not in "fiu":
        raise DataError(f"{data.file.filename}: `{data.name}` is {data.dtype}, expected numbers")
    with np.errstate(over="ignore"):  # what float32 cannot hold is found as not finite
        return hdf5.values_of(data, _REMEDY).astype(np.float32, copy=False)


def _text_attribute(file: h5py.File, name: str) -> str | None:
    value = hdf5.attribute_of(file, name, _REMEDY)
    if value is not None and not isinstance(value, str):
        raise DataError(f"{file.filename}: attribute `{name}` is {value!r}, expected a text: {_REMEDY}")
    return value


def _as_bytes(names: Sequence[str]) -> np.ndarray:
    """Return names as fixed-length bytes, which every HDF5 reader of the challenge expects."""
    return np.array([name.encode("utf-8") for name in names], dtype=np.bytes_)


def _check(made: Descriptors) -> None:
    if made.vectors.ndim != 2 or len(made.vectors) != len(made.names):
        raise DataError(f"{made.source}: {len(made.names)} image names and vectors of shape {made.vectors.shape}")
    if not made.names or not made.vectors.shape[1]:
        raise DataError(f"{made.source} holds no descriptors")
    if unfit := [name for name in made.names if not name or "\0" in name]:
        raise DataError(f"{made.source}: the image name {unfit[0]!r} is empty or holds a NUL character; name the image "
                        "otherwise")
    wrong = np.flatnonzero(~np.isfinite(made.vectors.sum(axis=1, dtype=np.float64)))  # a full mask would cost memory
    if len(wrong):
        raise DataError(f"{made.source}, row {wrong[0]} (from 0): the descriptor of image {made.names[wrong[0]]!r} is "
                        "not finite; describe the images again")
    if made.norms is not None:
        if made.norms.shape != (len(made.names),):
            raise DataError(f"{made.source}: `norms` has shape {made.norms.shape} for {len(made.names)} images")
        wrong = np.flatnonzero(~(np.isfinite(made.norms) & (made.norms >= 0)))
        if len(wrong):
            raise DataError(f"{made.source}: the norm of image {made.names[wrong[0]]!r} is {made.norms[wrong[0]]}; "
                            "describe the images again")


