"""Groups of copies as JSON values, and the files groups.json and groups.csv."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from ascl.core.files import atomic_path
from ascl.core.reading import shown
from ascl.image_copy.matching.groups import CopyGroups
from ascl.image_copy.matching.keeping import Member

COLUMNS = ("group", "role", "id", "path", "file", "reason", "score", "inliers", "differences", "width", "height",
           "bytes", "time", "tightness")


def group_values(found: CopyGroups, members: Sequence[Sequence[Member]]) -> dict[str, Any]:
    """Return groups as JSON values; `members`: of each group, the one to keep first."""
    return {"images": found.images, "not_read": found.not_read,
            "groups": [{"tightness": group.tightness, "pairs": [pair.to_dict() for pair in group.pairs],
                        "images": [_values(one, not place) for place, one in enumerate(of)]}
                       for group, of in zip(found.groups, members, strict=True)],
            "open": [pair.to_dict() for pair in found.open]}


def _values(member: Member, first: bool) -> dict[str, Any]:
    pair = member.pair
    return {"role": "keep" if first else "superfluous" if member.superfluous else "copy", "id": member.record.id,
            "path": shown(member.path), "file": member.status, "reason": None if pair is None else pair.reason,
            "score": None if pair is None else pair.score,
            "inliers": None if pair is None or pair.relation is None else pair.relation.inliers,
            "differences": list(member.differences), "width": member.size[0] if member.size else None,
            "height": member.size[1] if member.size else None, "bytes": member.record.size,
            "time": None if member.time is None else datetime.fromtimestamp(member.time).isoformat(sep=" ",
                                                                                                  timespec="seconds"),
            "time_by": "camera" if member.by_camera else "file"}


def write_group_files(folder: Path, values: dict[str, Any]) -> None:
    """Write groups.json, with all pairs, and groups.csv, with a row for each image."""
    with atomic_path(folder / "groups.json") as temporary:
        temporary.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
    with atomic_path(folder / "groups.csv") as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        for number, group in enumerate(values["groups"], 1):
            for image in group["images"]:
                writer.writerow(image | {"group": number, "tightness": round(group["tightness"], 3),
                                         "differences": "; ".join(image["differences"])})
