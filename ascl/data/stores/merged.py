"""Stores made from other stores: merged by image id, cut to the first regions, or with mean regions as globals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from ascl.core.errors import DataError
from ascl.data.stores.base import DETAILS, NAMES, Features, FeatureStore, missing_images


class MergedFeatures(FeatureStore):
    """Several stores as one, joined by image id: regions and globals in different files, or images in several files.

    Each image has its regions in one store and its globals in one store. Rows follow the order of the stores. K is the
    largest of any store; images with fewer regions are padded.

    Raises:
        DataError: dimensions differ, two stores have the same kind of features for an image, or their names of classes
            or attributes differ.
    """

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        self._stores = list(stores)
        self.source = " + ".join(store.source for store in stores)
        self.provenance = {name: made for store in stores for name, made in store.provenance.items()}
        self.image_ids = list(dict.fromkeys(image_id for store in stores for image_id in store.image_ids))
        self.region_dim = self._common("region_dim")
        self.num_regions = max((store.num_regions or 0 for store in stores), default=0) or None
        self.global_dim = self._common("global_dim")
        self.numbered = any(store.numbered for store in stores)
        self._places = {kind: self._places_of(kind) for kind in self.kinds}
        self.names = self._common_names()
        self.skipped = [reason for store in stores for reason in store.skipped]

    def _common(self, name: str) -> int | None:
        values = {store.source: getattr(store, name) for store in self._stores if getattr(store, name) is not None}
        if len(set(values.values())) > 1:
            differing = ", ".join(f"{source}: {value}" for source, value in values.items())
            raise DataError(f"feature files with different {name} cannot be merged ({differing}): extract all with one "
                            "model")
        return next(iter(values.values()), None)

    def _having(self, kind: str) -> list[FeatureStore]:
        return [store for store in self._stores if kind in store.kinds]

    def _common_names(self) -> dict[str, list[str]]:
        """Return the names on which all stores agree; none if a store does not name its ids."""
        names = {}
        described = self._having("regions" if "regions" in self.kinds else "globals")
        for name in NAMES.values():
            having = [store for store in described if name in store.names]
            for other in having[1:]:
                if other.names[name] != having[0].names[name]:
                    raise DataError(f"{having[0].source} and {other.source} cannot be merged: their {name} differ; "
                                    "they come from different detectors")
            if having and having == described:
                names[name] = having[0].names[name]
        return names

    def _places_of(self, kind: str) -> np.ndarray:
        """Return (N, 2) int64: for each image, the store that holds this kind and its row there; -1 if none does."""
        places = np.full((len(self.image_ids), 2), -1, dtype=np.int64)
        for number, store in enumerate(self._stores):
            if kind not in store.kinds:
                continue
            rows = np.array([self._row_of[image_id] for image_id in store.image_ids], dtype=np.int64)
            taken = rows[places[rows, 0] >= 0]
            if len(taken):
                other = self._stores[places[taken[0], 0]].source
                raise DataError(f"image {self.image_ids[taken[0]]} has {kind} in both {other} and {store.source} "
                                f"({len(taken)} such images): give only one of the files")
            places[rows] = np.stack([np.full(len(rows), number), np.arange(len(rows))], axis=1)
        return places

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """Return rows as `FeatureStore` does; an image that lacks one of the kinds counts as missing."""
        for kind in sorted(self.kinds):
            placed = self._places[kind][:, 0] >= 0
            missing = [name for name in image_ids if name not in self._row_of or not placed[self._row_of[name]]]
            if missing:
                having = self._having(kind)
                source = " + ".join(store.source for store in having)
                raise missing_images(missing, source, having[0].image_ids, having[0].remedy(frozenset({kind})))
        return super().rows(image_ids)

    def _served(self, kind: str, rows: np.ndarray) -> Iterator[tuple[FeatureStore, np.ndarray, np.ndarray]]:
        """Yield each store with this kind, the positions in `rows` that it serves, and its own rows for them."""
        places = self._places[kind][rows]
        without = rows[places[:, 0] < 0]
        if len(without):
            raise DataError(f"image {self.image_ids[without[0]]} has no {kind} in {self.source}")
        for number, store in enumerate(self._stores):
            if kind in store.kinds:
                selected = np.flatnonzero(places[:, 0] == number)
                yield store, selected, places[selected, 1]

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        merged = Features(None, None)
        for kind in sorted(kinds):
            parts = [(at, store.read_kinds(own, frozenset({kind}))) for store, at, own in self._served(kind, rows)]
            for name in ("regions", "boxes") if kind == "regions" else ("globals",):
                if all(getattr(part, name) is not None for _, part in parts):
                    setattr(merged, name, _assembled(len(rows), [(at, getattr(part, name)) for at, part in parts]))
            fewer = any(store.num_regions != self.num_regions for store in self._having(kind))
            if kind == "regions" and (fewer or any(part.mask is not None for _, part in parts)):
                merged.mask = _assembled(len(rows), [(at, part.real_regions()) for at, part in parts], False)
        return merged

    def _details(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        kind = "regions" if "regions" in self.kinds else "globals"
        parts = [(at, store.details(own)) for store, at, own in self._served(kind, rows)]
        return {name: _assembled(len(rows), [(at, part[name]) for at, part in parts], padding)
                for name, (_, padding) in DETAILS.items() if all(name in part for _, part in parts)}


class _Derived(FeatureStore):
    """A store that changes the features of another and keeps its ids, names and details."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self.source, self.provenance, self.image_ids = store.source, store.provenance, store.image_ids
        self.region_dim, self.num_regions, self.global_dim = store.region_dim, store.num_regions, store.global_dim
        self.names, self.numbered, self.skipped = store.names, store.numbered, store.skipped

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        return self._store.rows(image_ids)

    def remedy(self, kinds: frozenset[str]) -> str:
        return self._store.remedy(kinds)

    def _details(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self._store.details(rows)


class SoundImages(_Derived):
    """A store without the images whose values are broken; a pass over all values finds them.

    Raises:
        DataError: all images are broken.
    """

    def __init__(self, store: FeatureStore) -> None:
        super().__init__(store)
        kept, broken = [], []
        for row in tqdm(range(len(store)), unit=" images", desc="looking for broken images", disable=None):
            try:
                store.read([row])
                store.details([row])
                kept.append(row)
            except DataError as error:
                broken.append(str(error))
        if not kept:
            raise DataError(f"{store.source}: all {len(store)} images are broken, the first so: {broken[0]}")
        self._kept = np.array(kept, dtype=np.int64)
        self.image_ids = [store.image_ids[row] for row in kept]
        self.skipped = [*store.skipped, *broken]

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        return FeatureStore.rows(self, image_ids)

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        return self._store.read_kinds(self._kept[rows], kinds)

    def _details(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self._store.details(self._kept[rows])


class FirstRegions(_Derived):
    """A store with the first `most` regions of each image, in the order of another store.

    Raises:
        DataError: the store has no regions, or `most` is below 1.
    """

    def __init__(self, store: FeatureStore, most: int) -> None:
        super().__init__(store)
        if most < 1:
            raise DataError(f"max_regions is {most}: keep at least 1 region per image")
        if store.num_regions is None:
            raise DataError(f"{store.source} has no regions: leave max_regions out")
        self.num_regions = min(most, store.num_regions)

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        return self._store.read_kinds(rows, kinds).taken(slice(None), slice(self.num_regions))

    def _details(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values if name == "image_sizes" else values[:, : self.num_regions]
                for name, values in super()._details(rows).items()}


class MeanRegionGlobals(_Derived):
    """A store with regions and no globals, plus globals that are the mean of each image's real regions.

    It is used only on request, never silently.
    """

    def __init__(self, store: FeatureStore) -> None:
        super().__init__(store)
        if store.kinds != {"regions"}:
            raise DataError(f"{store.source} has {', '.join(sorted(store.kinds))}: globals from mean regions need "
                            "files with only regions")
        self.global_dim = store.region_dim

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        features = self._store.read_kinds(rows, frozenset({"regions"}))
        if "globals" in kinds:
            assert features.regions is not None  # the constructor requires regions
            real = features.regions.shape[1] if features.mask is None else features.mask.sum(axis=1, keepdims=True)
            features.globals = features.regions.sum(axis=1) / np.float32(real)  # padding is 0
        return features if "regions" in kinds else Features(None, features.globals)


def _assembled(n: int, parts: list[tuple[np.ndarray, Any]], padding: float = 0) -> np.ndarray:
    """Return one array of n rows from parts and their positions; regions are padded to the widest part."""
    if len(parts) == 1:
        return parts[0][1]
    width = max(values.shape[1] for _, values in parts)
    whole = np.full((n, width, *parts[0][1].shape[2:]), padding, dtype=parts[0][1].dtype)
    for selected, values in parts:
        whole[selected, : values.shape[1]] = values
    return whole
