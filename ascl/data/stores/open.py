"""Open image features of any known format behind one interface: `open_features`."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from ascl.core import hdf5
from ascl.core.errors import DataError
from ascl.data.stores.base import Features, FeatureStore, require_features
from ascl.data.stores.folder import NpyFolder, NpzFolder, files_of
from ascl.data.stores.hdf5 import Hdf5Features, open_hdf5
from ascl.data.stores.hdf5_per_image import Hdf5PerImage, looks_per_image
from ascl.data.stores.merged import FirstRegions, MeanRegionGlobals, MergedFeatures, SoundImages
from ascl.data.stores.scan import ScanFeatures
from ascl.data.stores.tsv import TsvFeatures

__all__ = ["Features", "FeatureStore", "open_features"]
_HDF5 = (".h5", ".hdf5")
_TSV = re.compile(r"\.tsv(\.\d+)?(\.gz)?$")


def open_features(paths: Sequence[str | os.PathLike], *, captions: int | None = None,
                  globals_from: Literal["files", "mean-region"] = "files",
                  max_regions: int | None = None, scan_captions_per_image: int | None = None,
                  skip_broken: bool = False) -> FeatureStore:
    """Open feature files as one store.

    Args:
        paths: several are merged by image id. Each is one of these, recognized by name and content:
            our `.h5` (regions, globals, or both);
            SCAN's `.npy` with the regions of all images;
            `.tsv` of bottom-up attention or LXMERT, also its shards `.tsv.0`, `.tsv.1`;
            a folder of `.npz` or `.npy` files, one per image;
            HDF5 with one entry per image, as a file or a folder of shards.
        captions: number of captions of the whole split, from which the number of rows per image in a `.npy` is
            inferred; None = from the caption and ids files beside it.
        globals_from: "files" = the globals of the files, if any (a `.npy` has none); "mean-region" = the mean of the
            image's regions, for files without globals.
        max_regions: keep the first regions of each image, in the order of the file; None = all.
        scan_captions_per_image: of a `.npy` without ids file; None = from the numbers of its rows and captions.
        skip_broken: leave out images that are damaged or given twice, and list them in `skipped`; takes a pass over all
            values.

    Raises:
        DataError: a file is missing or damaged, of another format, or does not fit the others; the message names it
            and the remedy.
    """
    if isinstance(paths, (str, os.PathLike)) or not paths:
        raise DataError(f"feature files must be a list of at least one path, got {paths!r}")
    stores = [_open(Path(path), captions, scan_captions_per_image, skip_broken) for path in paths]
    stores = [SoundImages(store) for store in stores] if skip_broken else stores
    store = stores[0] if len(stores) == 1 else MergedFeatures(stores)
    store = store if max_regions is None else FirstRegions(store, max_regions)
    return MeanRegionGlobals(store) if globals_from == "mean-region" else store


def _open(path: Path, captions: int | None, captions_per_image: int | None, skip_broken: bool) -> FeatureStore:
    if path.is_dir():
        return _open_folder(path, skip_broken)
    if path.suffix == ".npy":
        return ScanFeatures(path, captions=captions, captions_per_image=captions_per_image)
    if _TSV.search(path.name):
        return TsvFeatures(path, skip_broken=skip_broken)
    if path.suffix in (".npz", ".zip", ".gz", ".tar", ".lmdb"):
        what = "give the folder with the files of all images" if path.suffix == ".npz" else "unpack it first"
        raise DataError(f"{path} is not a feature file: {what}")
    require_features(path)
    opened = partial(_open_hdf5, path, skip_broken)
    hdf5.try_in_child("features", [path], opened)
    return opened()


def _open_hdf5(path: Path, skip_broken: bool) -> FeatureStore:
    with open_hdf5(path) as file:
        foreign = looks_per_image(file)
    return Hdf5PerImage([path], skip_broken=skip_broken) if foreign else Hdf5Features(path)


def _open_folder(folder: Path, skip_broken: bool) -> FeatureStore:
    files = {ending: paths for ending in (".npz", ".npy", *_HDF5) if (paths := files_of(folder, ending))}
    if len(files) != 1:
        found = ", ".join(f"{len(paths)} {ending}" for ending, paths in files.items()) or "none of them"
        raise DataError(f"{folder}: a folder of features must hold only .npz, only .npy or only .h5 files, one per "
                        f"image or shard; found: {found}. Give the file or the folder that holds the features")
    if ".npz" in files or ".npy" in files:
        return (NpzFolder if ".npz" in files else NpyFolder)(folder, skip_broken=skip_broken)
    (shards,) = files.values()
    shards_of = partial(Hdf5PerImage, shards, skip_broken=skip_broken)
    hdf5.try_in_child("features", shards, shards_of)
    return shards_of()
