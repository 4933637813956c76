"""Damage as disks, networks and hands do it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Return bytes with one kind of damage at a random place: flipped bits, cuts, moved, repeated or zeroed blocks."""
    if not data:
        return bytes(rng.integers(0, 256, 8, dtype=np.uint8))
    kind = int(rng.integers(8))
    start, other = (int(place) for place in rng.integers(0, len(data), 2))
    length = 1 + int(rng.integers(max(1, min(64, len(data)))))
    block = data[start : start + length]
    if kind == 0:                                                   # one flipped bit
        return data[:start] + bytes([data[start] ^ (1 << int(rng.integers(8)))]) + data[start + 1 :]
    if kind == 1:                                                   # the end is missing
        return data[:start]
    if kind == 2:                                                   # a hole
        return data[:start] + data[start + length :]
    if kind == 3:                                                   # a block twice
        return data[:start] + block + data[start:]
    if kind == 4:                                                   # a block at another's place
        return data[:other] + block + data[other + len(block) :]
    if kind == 5:                                                   # an empty sector
        return data[:start] + bytes(len(block)) + data[start + length :]
    if kind == 6:                                                   # noise
        return data[:start] + rng.integers(0, 256, len(block), dtype=np.uint8).tobytes() + data[start + length :]
    near = int(rng.integers(0, min(128, len(data))))                # a byte of the header
    return data[:near] + bytes([int(rng.integers(256))]) + data[near + 1 :]


OTHER_VALUES: list[Any] = [None, True, 0, -1, 3, 2.5, float("nan"), float("inf"), 10**30, "", " ", "x", "12", "\ud83d",
                           "a\0b", "../x", "val", [], [1], ["a"], {}, {"a": 1}, [[[[]]]]]


def mutated_json(value: Any, rng: np.random.Generator) -> Any:
    """Return a JSON value with one random place changed: another type, a key or an entry less, or a copy of another."""
    changed = copy.deepcopy(value)
    places: list[tuple[Any, Any]] = []  # container, key
    waiting = [changed]
    while waiting:
        container = waiting.pop()
        for key in container if isinstance(container, dict) else range(len(container)):
            places.append((container, key))
            if isinstance(container[key], (dict, list)):
                waiting.append(container[key])
    container, key = places[int(rng.integers(len(places)))]
    kind = int(rng.integers(6))
    if kind == 0:
        del container[key]
    elif kind == 1:
        other, at = places[int(rng.integers(len(places)))]
        container[key] = copy.deepcopy(other[at])
    else:
        container[key] = copy.deepcopy(OTHER_VALUES[int(rng.integers(len(OTHER_VALUES)))])
    return changed
