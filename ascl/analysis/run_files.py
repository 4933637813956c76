"""Read the settings and the evaluations of a run."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from ascl.core.errors import DataError

RECALLS = ("i2t_r1", "i2t_r5", "i2t_r10", "t2i_r1", "t2i_r5", "t2i_r10", "rsum")


def run_settings(folder: Path) -> dict[str, Any] | None:
    """Return the content of a run's settings.yaml, or None if there is none.

    Raises:
        DataError: the file holds no settings, or those of a copy detection run, whose folder looks like a retrieval
            run's.
    """
    path = folder / "settings.yaml"
    if not path.is_file():
        return None
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise DataError(f"{path} is not valid YAML ({error}); repair it, or give the folder of another run") from error
    if not isinstance(values, dict):
        raise DataError(f"{path} holds no settings by name: give the folder of a run of `ascl train`")
    if "objective" in values:
        raise DataError(f"{folder} is a run of copy detection (`ascl copy train`, objective {values['objective']}), "
                        "which has no captions: use `ascl copy eval` to evaluate its descriptors")
    return values


def read_evaluation(path: Path) -> dict[str, Any]:
    """Read an eval-*.json; the recalls of the full set are under `reports`, `full`.

    Raises:
        FileNotFoundError: the file does not exist.
        DataError: it is not JSON, or lacks these recalls.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        recalls_of(content["reports"]["full"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not an evaluation ({error!r}): remove it and evaluate again") from error
    return content


def recalls_of(report: Mapping[str, Any]) -> dict[str, float]:
    """Return the six recalls of a JSON report and their sum, in percent, under the names in `RECALLS`."""
    recalls = {f"{way}_r{k}": float(report[way][f"r{k}"]) for way in ("i2t", "t2i") for k in (1, 5, 10)}
    return recalls | {"rsum": float(report["rsum"])}


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested values under dotted names."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return found
