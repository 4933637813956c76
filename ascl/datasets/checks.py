"""Check the captions, images and features of a data set, without a network and without writing anything."""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from ascl.core.errors import DataError, first_of
from ascl.data.captions import CaptionSet, captions_exist
from ascl.data.split import data_paths, how_to_get_features, split_captions, split_features
from ascl.data.stores.open import FeatureStore, open_features
from ascl.datasets.locate import present_images, splits
from ascl.datasets.published import PUBLISHED
from ascl.images.read import UnreadableImage, load_image, own_pixel_limit
from ascl.settings.retrieval import Config, DataConfig

State = Literal["ok", "note", "MISSING", "WRONG"]
ALL = "all"
SAMPLE = 64  # images of each split whose features are read


@dataclass(frozen=True)
class Check:
    """A row of the table."""

    what: str  # what was checked
    split: str
    found: str  # in a few words
    wanted: str  # in a few words
    state: State  # `note` = differs from what was published, perhaps on purpose
    detail: str = ""  # the full message, unless `ok`

    @property
    def ok(self) -> bool:
        return self.state in ("ok", "note")


def table(checks: list[Check]) -> str:
    """Return the checks as aligned text, followed by the details of those that are not `ok`."""
    head = ("what", "split", "found", "wanted", "state")
    rows = [head, *((check.what, check.split, check.found, check.wanted, check.state) for check in checks)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(head))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    lines.insert(1, "  ".join("-" * width for width in widths))
    details = dict.fromkeys(f"{check.state}: {check.detail}" for check in checks if check.detail)  # each message once
    return "\n".join([*lines, "", *details] if details else lines)


def check_dataset(config: Config, *, verify_images: bool = False, progress: bool = False) -> list[Check]:
    """Check the captions, images and features of each split that the settings name, and return the rows of a table.

    Missing and broken files are reported in the rows. Counts are compared with the published ones if the captions are
    of a published data set; a difference is only a note, because some reconstructions lack an image. Images are checked
    only if the settings name their folder.

    Args:
        config: settings that name the data set.
        verify_images: decode every image; without it, each must only exist and not be empty.
        progress: show progress bars.
    """
    data = config.data
    rows = {split: _captions(config, split) for split in splits(data)}
    captions = {split: found for split, (_, found) in rows.items() if found is not None}
    checks = [check for check, _ in rows.values()] + _separation(captions)
    if data.images is not None:
        checks += _images(Path(data.images), captions, verify_images, progress)
    return [*checks, *_features(data, captions)]


def _captions(config: Config, split: str) -> tuple[Check, CaptionSet | None]:
    """Return the row of a split, and its captions if they can be read."""
    path = data_paths(config.data, split)[0]
    try:
        if not captions_exist(path):
            return Check("captions", split, "nothing", "captions", "MISSING",
                         f"{path} does not exist; to get it: {config.data.prepare}"), None
        captions = split_captions(config.data, split)
    except (DataError, OSError) as error:
        return Check("captions", split, "unusable", "captions", "WRONG", str(error)), None
    in_words = "{:,} images, {:,} captions".format
    count = (len(captions.image_ids), len(captions.captions))
    published = _published_counts(config, captions).get(split)
    found, wanted = in_words(*count), "any" if published is None else in_words(*published)
    if not captions.captions:
        check = Check("captions", split, found, "captions", "WRONG", f"{captions.source}: no caption of {split}")
    elif published in (None, count):
        check = Check("captions", split, found, wanted, "ok")
    else:
        check = Check("captions", split, found, wanted, "note", f"{captions.source}, split {split}, has {found}; "
                      f"{wanted} were published: results are not exactly comparable with published ones")
    return check, captions


def _published_counts(config: Config, captions: CaptionSet) -> dict[str, tuple[int, int]]:
    """Return the counts of the data set in the file's name, if it is Karpathy's, or else of the one in the settings."""
    named = re.fullmatch(r"dataset_(\w+)\.json(?:\.gz)?", Path(captions.source).name)
    published = PUBLISHED.get(named.group(1) if named else config.dataset)
    return {} if published is None else published.counts


def _separation(captions: dict[str, CaptionSet]) -> list[Check]:
    """Check that no image is in two splits, or a model is tested on its training images; readers check each split."""
    if len(captions) < 2:
        return []
    # ids that are only row numbers, as of SCAN's text without an ids file
    if any(texts.numbered for texts in captions.values()):
        return [Check("images in two splits", ALL, "unknown", "none", "note",
                      "the captions name no images (no {split}_ids.txt), so splits cannot be compared")]
    shared = [f"{name} ({one} and {other})" for one, other in itertools.combinations(captions, 2)
              for name in sorted({*captions[one].image_ids} & {*captions[other].image_ids})]
    if not shared:
        return [Check("images in two splits", ALL, "none", "none", "ok")]
    return [Check("images in two splits", ALL, f"{len(shared):,}", "none", "WRONG",
                  f"images that are in two splits: {first_of(shared, 3)}; download the captions again, results would "
                  "mean nothing")]


def _images(folder: Path, captions: dict[str, CaptionSet], verify: bool, progress: bool) -> Iterator[Check]:
    try:
        present = present_images(folder)
    except (DataError, OSError) as error:
        yield Check("images", ALL, "unusable", "one file per image", "WRONG", str(error))
        return
    if not captions:
        yield Check("images", ALL, f"{len(present):,} files", "those of the captions", "note" if present else "MISSING",
                    f"{folder}: {'without captions it is unknown which images are needed' if present else 'no image'}")
    for split, texts in captions.items():
        ids = texts.image_ids
        missing = [name for name in ids if name not in present]
        there = [present[name] for name in ids if name in present]
        bad = {path: "is empty" for path in there if not path.stat().st_size}
        if verify:
            bad |= _unreadable([path for path in there if path not in bad], split, progress)
        found, wanted = f"{len(there) - len(bad):,} good files", f"{len(ids):,}"
        if missing:
            yield Check("images", split, found, wanted, "MISSING", f"{len(missing):,} of {len(ids):,} images of "
                        f"{split} are not in {folder}: {first_of(missing, 3)}")
        if bad:
            examples = first_of([f"{path} {reason}" for path, reason in bad.items()], 3)
            yield Check("images", split, found, wanted, "WRONG",
                        f"{len(bad):,} images of {split} are broken: {examples}; delete them and download them again")
        if not missing and not bad:
            yield Check("images", split, found, wanted, "ok")


def _unreadable(paths: list[Path], split: str, progress: bool) -> dict[Path, str]:
    def reason(path: Path) -> str | None:
        try:
            load_image(path)
        except UnreadableImage as error:
            return f"({error.reason})"
        return None

    # Pillow decodes without the interpreter's lock; its pixel limit is shared by all threads, so it is set only once
    with own_pixel_limit(), ThreadPoolExecutor(os.cpu_count()) as pool:
        bar = tqdm(pool.map(reason, paths, chunksize=16), total=len(paths), unit=" images", desc=f"decoding {split}",
                   disable=not progress, leave=False)
        return {path: found for path, found in zip(paths, bar, strict=True) if found is not None}


def _features(data: DataConfig, captions: dict[str, CaptionSet]) -> Iterator[Check]:
    """Yield the rows of the feature files; files that several splits share are opened once."""
    if not data.features:
        yield Check("features", ALL, "nothing", "feature files", "MISSING", "data.features names no file")
        return
    if not captions:
        files = {path for split in splits(data) for path in data_paths(data, split)[1:]}
        absent = sorted(str(path) for path in files if not path.exists())
        detail = _absent_features(data, absent) if absent else "without captions it is unknown which rows are needed"
        yield Check("features", ALL, f"{len(files) - len(absent)} of {len(files)} files", f"{len(files)} files",
                    "MISSING" if absent else "note", detail)
    groups: dict[tuple[Path, ...], list[str]] = {}
    for split in captions:
        groups.setdefault(tuple(data_paths(data, split)[1:]), []).append(split)
    dims: dict[str, tuple[int | None, int | None]] = {}
    for paths, of_splits in groups.items():
        named = of_splits[0] if len(of_splits) == 1 else ALL
        absent = [str(path) for path in paths if not path.exists()]
        try:
            store = (split_features(data, of_splits[0], captions[of_splits[0]]) if len(of_splits) == 1 else
                     open_features(paths, globals_from=data.global_source))
        except (DataError, OSError) as error:
            state: State = "MISSING" if absent else "WRONG"
            found = f"{len(paths) - len(absent)} of {len(paths)} files" if absent else "unusable"
            yield Check("features", named, found, f"{len(paths)} files", state,
                        _absent_features(data, absent) if absent else str(error))
            continue
        for split in of_splits:
            dims[split] = (store.region_dim, store.global_dim)
            yield from _features_of_split(store, split, captions[split])
        wanted = {name for split in of_splits for name in captions[split].image_ids}
        extra = len(set(store.image_ids) - wanted)
        yield Check("feature rows", named, f"{len(store):,}, {extra:,} without captions", f"{len(wanted):,} or more",
                    "ok" if len(store) >= len(wanted) else "MISSING")
    if len(set(dims.values())) > 1:
        by_split = ", ".join(f"{split}: regions {of[0]}, globals {of[1]}" for split, of in dims.items())
        yield Check("dimensions", ALL, "differ", "one", "WRONG",
                    f"feature files of different dimensions ({by_split}): extract all of them with one backend")


def _absent_features(data: DataConfig, absent: list[str]) -> str:
    return f"feature files {', '.join(absent)} do not exist; to get them: {how_to_get_features(data)}"


def _features_of_split(store: FeatureStore, split: str, captions: CaptionSet) -> Iterator[Check]:
    lacking = [kind for kind in ("regions", "globals") if kind not in store.kinds]
    held = {"regions": f"regions {store.num_regions} x {store.region_dim}", "globals": f"globals {store.global_dim}"}
    found = ", ".join(text for kind, text in held.items() if kind in store.kinds)
    if lacking:
        instead = ", or set data.global_source to mean-region" if lacking == ["globals"] else ""
        yield Check("features", split, found, "regions and globals", "MISSING", f"{store.source} has no "
                    f"{' and no '.join(lacking)}: extract {' and '.join(lacking)} of the images{instead}")
    try:
        rows = store.rows(captions.image_ids)
    except DataError as error:
        count, whole = len({*captions.image_ids} & {*store.image_ids}), len(captions.image_ids)
        yield Check("features", split, f"{count:,} images" if count < whole else "not of every image",
                    f"{whole:,} images", "MISSING", str(error))
        return
    if not lacking:
        yield Check("features", split, found, "regions and globals", "ok")
    yield from _sample(store, split, rows)


def _sample(store: FeatureStore, split: str, rows: np.ndarray) -> Iterator[Check]:
    """Check the features of a few images of the split, drawn with a fixed seed."""
    chosen = np.sort(np.random.default_rng(0).choice(rows, min(SAMPLE, len(rows)), replace=False))
    wanted = "finite, not all zero"
    try:
        features = store.read(chosen)
    except (DataError, OSError) as error:
        yield Check("sampled features", split, "broken", wanted, "WRONG", str(error))
        return
    for kind in sorted(store.kinds, reverse=True):
        values = getattr(features, kind)
        empty = np.flatnonzero(~values.reshape(len(values), -1).any(axis=1))
        if len(empty):
            names = [store.image_ids[chosen[i]] for i in empty]
            yield Check("sampled features", split, f"{len(empty)} of zeros", wanted, "WRONG",
                        f"{store.source}: {kind} of {first_of(names, 3)} are all zero; extract them again")
            return
    yield Check("sampled features", split, f"{len(chosen)} images good", wanted, "ok")
    if store.num_regions is not None:
        counts = np.full(len(chosen), store.num_regions) if features.mask is None else features.mask.sum(axis=1)
        span = f"{counts.min()}" if counts.min() == counts.max() else f"{counts.min()} to {counts.max()}"
        yield Check("regions an image", split, span, f"1 to {store.num_regions}", "ok" if counts.min() else "WRONG")
