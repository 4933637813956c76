"""Read the settings and the evaluations of a run."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ascl.core.errors import DataError, SettingsError
from ascl.core.reading import json_kind, read_json, shown
from ascl.settings.base import read_yaml

RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")


def run_settings(folder: Path) -> dict[str, Any] | None:
    """Return the content of a run's settings.yaml, or None if there is none.

    Raises:
        DataError: the file holds no settings, or those of a copy detection run, whose folder looks like a retrieval
            run's.
    """
    path = folder / "settings.yaml"
    if not os.path.lexists(path):
        return None
    try:
        values = read_yaml(path)
    except SettingsError as error:
        raise DataError(f"{error}; repair it, or give the folder of another run") from error
    if "objective" in values:
        raise DataError(f"{shown(folder)} is a run of copy detection (`ascl copy train`, objective "
                        f"{values['objective']}), which has no captions: use `ascl copy eval` to evaluate its "
                        "descriptors")
    return values


def read_evaluation(path: Path, *, whole: bool = False) -> dict[str, Any]:
    """Read an eval-*.json; the recalls of the full set are under `reports`, `full`.

    Args:
        whole: require everything that `ascl eval` writes about recalls and probes, which a report prints.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: it is not JSON, lacks these recalls, or has something else where a number belongs.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"no evaluation {path}: create it with `ascl eval`")
    again = "remove it and evaluate again"
    content = read_json(path, dict, again)
    try:
        recalls_of(group_at(content, "reports", "full"))
        for name in group_at(content, "reports"):
            recalls_of(group_at(content, "reports", name))
            for way, key in itertools.product(("i2t", "t2i"), ("median_rank", "mean_rank", "queries") if whole else ()):
                number_at(content, "reports", name, way, key)
        for key in ("images", "texts") if whole else ():
            number_at(content, "reports", "full", key)
        if not isinstance(content.get("runs", []), list):
            raise DataError(f"expected `runs` as a list, found {json_kind(content['runs'])}")
        for part in ("kinds", "by_asymmetry") if content.get("probes") is not None else ():
            for name in group_at(content, "probes", part):
                group = group_at(content, "probes", part, name)
                required = {"right", "pairs", *(group.keys() & {"low", "high"})} if whole else set()
                for key in required | group.keys() - {"asymmetry"}:
                    if key in required or group[key] is not None:
                        number_at(content, "probes", part, name, key)
    except DataError as error:
        raise DataError(f"{path} is not an evaluation: {error}; {again}") from error
    return content


def recalls_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the six recalls of a JSON report and their sum, in percent, under the names in `RECALLS`.

    Raises:
        DataError: a recall is missing or not a number.
    """
    recalls = {f"{way}_r{k}": number_at(report, way, f"r{k}") for way in ("i2t", "t2i") for k in (1, 5, 10)}
    return recalls | {"rsum": number_at(report, "rsum")}


def validations_of(records: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """Return the validations in a log of metrics, and what they are of, such as " of 5 folds".

    Returns:
        The records, with metrics by their plain names, such as `rsum`; and what all of these names add, "" for the
        whole split. Records whose names add something else than those of the last one are left out.
    """
    found: list[dict[str, Any]] = []
    added = ""
    for record in records:
        name = next((name for name in record if name.partition("_of_")[0] == "rsum"), None)
        if record["kind"] != "validation" or name is None:
            continue
        if name != f"rsum{added}":
            found, added = [], name.removeprefix("rsum")
        found.append({key.removesuffix(added): value for key, value in record.items()})
    return found, added.replace("_", " ")


def number_at(content: Any, *keys: str) -> float:
    """Return the finite number under nested keys of a JSON object; DataError says which keys hold something else."""
    value = _at(content, keys)
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not abs(value) < 1e300:
        raise DataError(f"expected `{'.'.join(keys)}` as a number, found {json_kind(value)}")
    return float(value)


def group_at(content: Any, *keys: str) -> Mapping[str, Any]:
    """Return the object under nested keys of a JSON object; DataError says which keys hold something else."""
    value = _at(content, keys)
    if not isinstance(value, Mapping):
        raise DataError(f"expected `{'.'.join(keys)}` as an object, found {json_kind(value)}")
    return value


def _at(content: Any, keys: Sequence[str]) -> Any:
    """Return the value under nested keys, None if there is none."""
    for key in keys:
        content = content.get(key) if isinstance(content, Mapping) else None
    return content


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
