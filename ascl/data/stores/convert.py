"""Convert features of any known format to our HDF5, in blocks of bounded memory, and check them by reading back."""

from __future__ import annotations

import hashlib
import os
import platform
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Literal

import h5py
import numpy as np
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.core.files import atomic_path, clear_killed, require_space
from ascl.core.hdf5 import NewHdf5
from ascl.core.reading import reading
from ascl.data.stores.base import Features, FeatureStore, first_absurd
from ascl.data.stores.hdf5 import Hdf5Features
from ascl.data.stores.ids import stems_of
from ascl.data.stores.open import open_features
from ascl.data.stores.writing import create_rows, provenance_of, shapes_of, write_frame

BLOCK_BYTES = 1 << 25  # bytes of float32 features in memory at a time; larger blocks are no faster
SAMPLE = 256  # images that are read back, always including the first and the last
_END_BYTES = 1 << 20


@dataclass(frozen=True)
class Conversion:
    """The result of `convert`."""

    path: Path
    shapes: dict[str, tuple[int, ...]]
    images: int  # images written by this call, 0 if an equal earlier call had made the file
    checked: int  # images of these that were read back and compared
    seconds: float
    dtype: str  # of the features in the file
    skipped: Sequence[str] = ()  # why images were left out

    def summary(self) -> str:
        """Return the lines that a tool prints."""
        shapes = ", ".join(f"{name} {'x'.join(map(str, shape))}" for name, shape in self.shapes.items())
        if not self.images:
            return f"{self.path}: {shapes}\nan earlier call with the same settings made this file; nothing to do"
        rate = f"{self.images} images in {self.seconds:.1f} s: {self.images / self.seconds:.1f} images/s"
        left_out = [f"left out {len(self.skipped)} images:", *(f"  {reason}" for reason in self.skipped)]
        checked = f"{self.checked} images read back, equal bit for bit as {self.dtype}"
        return "\n".join([f"{self.path}: {shapes}", f"{rate}; {checked}", *(left_out if self.skipped else ())])


def convert(paths: Sequence[str | os.PathLike], out: str | os.PathLike, *,
            dtype: Literal["float32", "float16"] = "float32", kind: Literal["auto", "regions", "globals"] = "auto",
            max_regions: int | None = None, ids_from: str | os.PathLike | None = None, id_field: str | None = None,
            scan_captions_per_image: int | None = None, skip_broken: bool = False, progress: bool = True,
            block_bytes: int = BLOCK_BYTES) -> Conversion:
    """Write what `open_features(paths)` reads to one HDF5 file of ours, and read a sample back.

    The file gets its name only after the check, so `out` is either absent or complete. A second call with the same
    settings and sources does nothing.

    Args:
        paths: see `open_features`.
        out: file to write; its folder is made.
        dtype: type of the features; boxes and scores stay float32.
        kind: which features to take; "auto" = all that the files have.
        max_regions: keep the first regions of each image; None = all.
        ids_from, id_field: captions whose file names replace image ids, see `stems_of`; None = keep the ids.
        scan_captions_per_image: see `open_features`.
        skip_broken: leave out images that are damaged or given twice, and list them; takes a pass over all values.
        progress: show a progress bar.
        block_bytes: bytes of float32 features in memory at a time.

    Raises:
        DataError: a reader refuses a file; ids do not fit `ids_from`; features are not finite in `dtype`; `out` is
            another file or was made with other settings; the disk is full; or the sample differs from the source
            (`out` is not made).
    """
    started = time.perf_counter()
    out = Path(out)
    if out.resolve() in [Path(path).resolve() for path in paths]:
        raise DataError(f"{out} is both source and target: choose another output file")
    # refuses a file that is not ours before any long pass
    made = provenance_of(out).get("settings", {}) if out.exists() else None
    store = open_features(paths, max_regions=max_regions, scan_captions_per_image=scan_captions_per_image,
                          skip_broken=skip_broken)
    kinds = store.kinds if kind == "auto" else frozenset({kind})
    if kinds - store.kinds:
        raise DataError(f"{store.source} has no {kind}, only {', '.join(sorted(store.kinds))}")
    image_ids = _renamed(store, ids_from, id_field)
    settings = {"converted_from": [_digest(Path(path)) for path in paths], "dtype": dtype, "kind": kind,
                "max_regions": max_regions, "ids_from": None if ids_from is None else Path(ids_from).name,
                "id_field": id_field, **({"skip_broken": True} if skip_broken else {})}
    if made is not None:
        _refuse_other(out, made, settings, image_ids)
        return Conversion(out, shapes_of(out), 0, 0, time.perf_counter() - started, dtype)
    if busy := clear_killed(out.parent).get(out.name):
        raise DataError(f"another conversion is writing {out} ({busy}): wait for it, or stop it")
    require_space(out, _size_of(store, kinds, dtype, image_ids))
    with atomic_path(out) as temporary:
        with NewHdf5(temporary) as file:
            write_frame(file, image_ids, store.names, _provenance(settings, store, paths))
            write(store, file, kinds, dtype, progress=progress, block_bytes=block_bytes)
        checked = verify(store, temporary, kinds, dtype, image_ids, block_bytes=block_bytes)
    return Conversion(out, shapes_of(out), len(store), checked, time.perf_counter() - started, dtype,
                      store.skipped)


def write(store: FeatureStore, file: NewHdf5, kinds: frozenset[str], dtype: str, *, progress: bool = False,
          block_bytes: int = BLOCK_BYTES) -> None:
    """Write all rows of the store as data sets of an open file."""
    counts = np.zeros(len(store), dtype=np.int32)
    with tqdm(total=len(store), unit=" images", disable=not progress) as bar:
        for rows in _blocks(store, kinds, np.arange(len(store)), block_bytes):
            read = store.read_kinds(rows, kinds)
            for name, values in _stored(store, read, store.details(rows), rows, dtype).items():
                data = file[name] if name in file else create_rows(file, name, values, len(store))
                data[rows[0] : rows[-1] + 1] = values
            file.check()
            if read.regions is not None:
                counts[rows] = read.regions.shape[1] if read.mask is None else read.mask.sum(axis=1)
            bar.update(len(rows))
    if "regions" in kinds and store.num_regions is not None and (counts < store.num_regions).any():
        file.create_dataset("region_count", data=counts)


def verify(store: FeatureStore, path: Path, kinds: frozenset[str], dtype: str, image_ids: list[str], *,
           sample: int = SAMPLE, block_bytes: int = BLOCK_BYTES) -> int:
    """Compare a random sample of a converted file, bit for bit, with the source in `dtype`; return its size.

    Raises:
        DataError: values differ (the message names the image), ids, names or kinds differ, or the file is unreadable.
    """
    made = Hdf5Features(path)
    if made.image_ids != image_ids or made.kinds != kinds or made.names != store.names:
        raise DataError(f"{path}: image ids, names or kinds of features differ from those of {store.source}; the file "
                        "was not kept. Is the disk full or failing?")
    drawn = np.random.default_rng().choice(len(store), min(sample, len(store)), replace=False)
    chosen = np.union1d(drawn, [0, len(store) - 1])
    for rows in _blocks(store, kinds, chosen, block_bytes):
        wanted, found = store.read_kinds(rows, kinds), made.read_kinds(rows, kinds)
        expected = _stored(store, wanted, store.details(rows), rows, dtype)
        for name in expected.keys() & kinds:
            expected[name] = expected[name].astype(np.float32, copy=False)
        present = {**_arrays(found), **made.details(rows), "mask": found.real_regions()}
        for name, values in {**expected, "mask": wanted.real_regions()}.items():
            other = present.get(name)
            for i, row in enumerate(rows):
                if values is not None and (other is None or values[i].tobytes() != other[i].tobytes()):
                    raise DataError(f"{path}: `{name}` of image {image_ids[row]} (row {row}) differs from "
                                    f"{store.source}. Was the source changed, or is the disk failing?")
    return len(chosen)


def _blocks(store: FeatureStore, kinds: frozenset[str], rows: np.ndarray, block_bytes: int) -> Iterator[np.ndarray]:
    """Yield the rows in blocks whose features take about `block_bytes`."""
    numbers = (store.num_regions or 0) * ((store.region_dim or 0) + 4) if "regions" in kinds else 0
    numbers += (store.global_dim or 0) if "globals" in kinds else 0
    step = max(1, block_bytes // (4 * max(1, numbers)))
    for start in range(0, len(rows), step):
        yield rows[start : start + step]


def _size_of(store: FeatureStore, kinds: frozenset[str], dtype: str, image_ids: list[str]) -> int:
    """Return about how many bytes the file will have, rather too few than too many."""
    regions = (store.num_regions or 0) * (store.region_dim or 0) if "regions" in kinds else 0
    numbers = regions + ((store.global_dim or 0) if "globals" in kinds else 0)
    return len(store) * numbers * np.dtype(dtype).itemsize + sum(map(len, image_ids))


def _arrays(features: Features) -> dict[str, np.ndarray]:
    return {name: array for name, array in vars(features).items() if name != "mask" and array is not None}


def _stored(store: FeatureStore, features: Features, details: dict[str, np.ndarray], rows: np.ndarray,
            dtype: str) -> dict[str, np.ndarray]:
    """Return the arrays of a block that go to the file, in the types of the file."""
    arrays = _arrays(features)
    for name in ("regions", "globals"):
        if name in arrays:
            with np.errstate(over="ignore"):  # the next line finds overflows
                arrays[name] = arrays[name].astype(dtype, copy=False)
            wrong = first_absurd(arrays[name])
            if wrong is not None:
                raise DataError(f"{store.source}: `{name}` of image {store.image_ids[rows[wrong]]} (row {rows[wrong]}) "
                                f"are not finite in {dtype}; use float32")
    if "regions" not in arrays:  # scores and classes belong to regions
        details = {name: values for name, values in details.items() if name == "image_sizes"}
    return {**arrays, **details}


def _renamed(store: FeatureStore, ids_from: str | os.PathLike | None, id_field: str | None) -> list[str]:
    if ids_from is None:
        if id_field is not None:
            raise DataError("id_field names a field of the captions ids_from: give both")
        return store.image_ids
    if store.numbered:
        raise DataError(f"{store.source} does not name its images, its ids are row numbers: put the `ids.txt` of the "
                        "split beside it, or keep it with its own captions")
    return stems_of(store.image_ids, ids_from, id_field)


def _digest(path: Path) -> dict[str, Any]:
    """Identify a source by size and SHA-256: of a folder's names and sizes, or of a file's first and last MiB."""
    digest = hashlib.sha256()
    if path.is_dir():
        with os.scandir(path) as entries:
            files = sorted((entry.name, entry.stat().st_size) for entry in entries if entry.is_file())
        digest.update("\n".join(f"{name} {size}" for name, size in files).encode())
        return {"name": path.name, "files": len(files), "bytes": sum(size for _, size in files),
                "sha256_of_names_and_sizes": digest.hexdigest()}
    size = path.stat().st_size
    with reading(path, "a file of features"), open(path, "rb") as file:
        digest.update(file.read(_END_BYTES))
        file.seek(max(0, size - _END_BYTES))
        digest.update(file.read(_END_BYTES))
    return {"name": path.name, "bytes": size, "sha256_of_first_and_last_mib": digest.hexdigest()}


def _provenance(settings: dict[str, Any], store: FeatureStore, paths: Sequence[str | os.PathLike]) -> dict[str, Any]:
    """Return provenance as the extractors write it, with that of the sources."""
    modified = [datetime.fromtimestamp(os.stat(path).st_mtime, timezone.utc) for path in paths]
    return {"settings": settings, "skipped": list(store.skipped), "sources": list(store.provenance.values()),
            "sources_modified": [when.isoformat(timespec="seconds") for when in modified],
            "versions": {"python": platform.python_version(), "numpy": np.__version__, "h5py": h5py.__version__},
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds")}


def _refuse_other(out: Path, made: dict[str, Any], settings: dict[str, Any], image_ids: list[str]) -> None:
    differing = [key for key in sorted({*made, *settings}) if made.get(key) != settings.get(key)]
    if not differing and Hdf5Features(out).image_ids != image_ids:
        differing = ["image_ids"]  # the captions or the files beside the source have changed
    if differing:
        raise DataError(f"{out} exists and was made with other settings ({', '.join(differing)} differ): choose "
                        "another output file or delete it")
