"""Stores made of other stores: several merged by image id, the first regions only, globals from the regions' mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ascl.core.errors import DataError
from ascl.data.stores.base import DETAILS, NAMES, Features, FeatureStore, missing_images


class MergedFeatures(FeatureStore):
    """Several stores as one, by image id: regions from one file and globals from another, or images spread over files.

    Each image takes its regions from the one store that has them, and its globals likewise; rows follow the stores in
    order. K is the most that a store has; images of the others are filled up with regions that are not real.

    Raises:
        DataError: stores of different dimensions, two stores with the same kind of features for one image, or ids that
            stand for different names.
    """

    def __init__(self, stores: Sequence[FeatureStore]) -> None:
        self._stores = list(stores)
        self.source = " + ".join(store.source for store in stores)
        self.provenance = {name: made for store in stores for name, made in store.provenance.items()}
        self.image_ids = list(dict.fromkeys(image_id for store in stores for image_id in store.image_ids))
        self.region_dim = self._common("region_dim")
        self.num_regions = max((n for n in (store.num_regions for store in stores) if n is not None), default=None)
        self.global_dim = self._common("global_dim")
        self.numbered = any(store.numbered for store in stores)
        self._places = {kind: self._places_of(kind) for kind in self.kinds}
        self._described = self._having("regions" if "regions" in self.kinds else "globals")
        self.names = self._common_names()

    def _common(self, name: str) -> int | None:
        values = {store.source: getattr(store, name) for store in self._stores if getattr(store, name) is not None}
        if len(set(values.values())) > 1:
            differing = ", ".join(f"{source}: {value}" for source, value in values.items())
            raise DataError(f"feature files with different {name} cannot be merged ({differing})")
        return next(iter(values.values()), None)

    def _having(self, kind: str) -> list[FeatureStore]:
        return [store for store in self._stores if kind in store.kinds]

    def _common_names(self) -> dict[str, list[str]]:
        """Names that all stores with the ids agree on; none where some store does not say what its ids stand for."""
        names = {}
        for name in NAMES.values():
            lists = {store.source: store.names[name] for store in self._described if name in store.names}
            first = next(iter(lists), None)
            other = next((source for source, texts in lists.items() if texts != lists[first or ""]), None)
            if other is not None:
                raise DataError(f"{first} and {other} cannot be merged: their {name} differ, so equal ids would stand "
                                "for different things; they come from different detectors")
            if first is not None and len(lists) == len(self._described):
                names[name] = lists[first]
        return names

    def _places_of(self, kind: str) -> np.ndarray:
        """(N, 2) int64: the store and its row that hold this kind for each image, -1 where none does."""
        row_of = {image_id: row for row, image_id in enumerate(self.image_ids)}
        places = np.full((len(self.image_ids), 2), -1, dtype=np.int64)
        for number, store in enumerate(self._stores):
            if kind not in store.kinds:
                continue
            rows = np.array([row_of[image_id] for image_id in store.image_ids], dtype=np.int64)
            taken = rows[places[rows, 0] >= 0]
            if len(taken):
                other = self._stores[places[taken[0], 0]].source
                raise DataError(f"image {self.image_ids[taken[0]]} has {kind} in both {other} and {store.source} "
                                f"({len(taken)} such images): give only one of the files")
            places[rows] = np.stack([np.full(len(rows), number), np.arange(len(rows))], axis=1)
        return places

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        """As in `FeatureStore`; an image that only one of its kinds has is missing too."""
        for kind in sorted(self.kinds):
            placed = self._places[kind][:, 0] >= 0
            missing = [name for name in image_ids if name not in self._row_of or not placed[self._row_of[name]]]
            if missing:
                having = self._having(kind)
                source = " + ".join(store.source for store in having)
                raise missing_images(missing, source, having[0].image_ids, having[0].remedy(frozenset({kind})))
        return super().rows(image_ids)

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        merged = Features(None, None)
        if "regions" in kinds:
            selections, parts = self._parts("regions", rows)
            merged.regions = _assemble(len(rows), selections, [self._filled(part.regions) for part in parts])
            merged.boxes = _assemble(len(rows), selections, [self._filled(part.boxes) for part in parts])
            fewer = any(store.num_regions != self.num_regions for store in self._having("regions"))
            if fewer or any(part.mask is not None for part in parts):
                real = [self._filled(part.real_regions(), False) for part in parts]
                merged.mask = _assemble(len(rows), selections, real)
        if "globals" in kinds:
            selections, parts = self._parts("globals", rows)
            merged.globals = _assemble(len(rows), selections, [part.globals for part in parts])
        return merged

    def _details(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        selections, places = self._selections("regions" if "regions" in self.kinds else "globals", rows)
        parts = [store.details(places[selected, 1])
                 for store, selected in zip(self._described, selections, strict=True)]
        merged = {}
        for name, (_, padding) in DETAILS.items():
            values = [part[name] if name == "image_sizes" else self._filled(part[name], padding)
                      for part in parts if name in part]
            if len(values) == len(parts):
                merged[name] = _assemble(len(rows), selections, values)
        return {name: values for name, values in merged.items() if values is not None}

    def _filled(self, values: np.ndarray | None, padding: float = 0) -> np.ndarray | None:
        """(n, k, ...) with regions that are not real up to K."""
        if values is None or self.num_regions is None or values.shape[1] == self.num_regions:
            return values
        filled = np.full((len(values), self.num_regions, *values.shape[2:]), padding, dtype=values.dtype)
        filled[:, : values.shape[1]] = values
        return filled

    def _selections(self, kind: str, rows: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
        """For each store with this kind, the positions in `rows` that it serves; and the place of each row."""
        places = self._places[kind][rows]
        without = rows[places[:, 0] < 0]
        if len(without):
            raise DataError(f"image {self.image_ids[without[0]]} has no {kind} in {self.source}")
        having = [number for number, store in enumerate(self._stores) if kind in store.kinds]
        return [np.flatnonzero(places[:, 0] == number) for number in having], places

    def _parts(self, kind: str, rows: np.ndarray) -> tuple[list[np.ndarray], list[Features]]:
        """What each store that has this kind gives: positions in `rows`, and the features for them."""
        selections, places = self._selections(kind, rows)
        parts = [store.read_kinds(places[selected, 1], frozenset({kind}))
                 for store, selected in zip(self._having(kind), selections, strict=True)]
        return selections, parts


class _Derived(FeatureStore):
    """What another store gives, changed; ids, names and details are its own."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self.source, self.provenance, self.image_ids = store.source, store.provenance, store.image_ids
        self.region_dim, self.num_regions, self.global_dim = store.region_dim, store.num_regions, store.global_dim
        self.names, self.numbered = store.names, store.numbered

    def rows(self, image_ids: Sequence[str]) -> np.ndarray:
        return self._store.rows(image_ids)

    def remedy(self, kinds: frozenset[str]) -> str:
        return self._store.remedy(kinds)

    def _details(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return self._store.details(rows)


class FirstRegions(_Derived):
    """The first `most` regions of each image, in the order of the store.

    Raises:
        DataError: a store without regions, or `most` below 1.
    """

    def __init__(self, store: FeatureStore, most: int) -> None:
        super().__init__(store)
        if most < 1:
            raise DataError(f"an image has to keep at least 1 region, {most} were asked for")
        if store.num_regions is None:
            raise DataError(f"{store.source} has no regions of which the first {most} could be kept")
        self.num_regions = min(most, store.num_regions)

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        return self._store.read_kinds(rows, kinds).taken(slice(None), slice(self.num_regions))

    def _details(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values if name == "image_sizes" else values[:, : self.num_regions]
                for name, values in super()._details(rows).items()}


class MeanRegionGlobals(_Derived):
    """A store without globals, with the mean of each image's real regions in their place; asked for, never silent."""

    def __init__(self, store: FeatureStore) -> None:
        super().__init__(store)
        if store.kinds != {"regions"}:
            raise DataError(f"{store.source} gives {', '.join(sorted(store.kinds))}: globals from regions need regions "
                            "alone")
        self.global_dim = store.region_dim

    def read_kinds(self, rows: np.ndarray, kinds: frozenset[str]) -> Features:
        features = self._store.read_kinds(rows, frozenset({"regions"}))
        if "globals" in kinds:
            assert features.regions is not None  # the constructor asked for a store with regions
            real = features.regions.shape[1] if features.mask is None else features.mask.sum(axis=1, keepdims=True)
            features.globals = features.regions.sum(axis=1) / np.float32(real)  # rows that are not real are 0
        return features if "regions" in kinds else Features(None, features.globals)


def _assemble(n: int, selections: Sequence[np.ndarray], parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """One array of n rows from parts and their positions; None where a part is missing."""
    present = [part for part in parts if part is not None]
    if len(present) < len(parts):
        return None
    whole = np.empty((n, *present[0].shape[1:]), dtype=present[0].dtype)
    for selected, part in zip(selections, present, strict=True):
        whole[selected] = part
    return whole
