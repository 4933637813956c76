"""The content of an index and its answers, as text for people and as JSON values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ascl.image_copy.matching.describe import BLANK
from ascl.image_copy.matching.model import recorded_model
from ascl.image_copy.matching.query import Answer, Match, calibration_of
from ascl.index import calibration as calibrations
from ascl.index.calibration import IMAGES, Calibration, Rate
from ascl.index.search import import_faiss
from ascl.index.store import CopyIndex

REMOVED_SHARE = 0.25    # of the rows, above which the report suggests `compact`
UNORDERED = "always unclear: only a model trained like ASL gives what shows more a larger norm"
NUMBERS = {"ip": "numbers in float32, inner product", "hamming": "bytes, share of bits that agree"}
FILES = {"there": "", "changed": " (another file now)", "unreachable": " (unreachable)", "gone": " (gone)"}
NAMED = {True: "yes", False: "no", None: "-"}


def index_report(index: CopyIndex) -> dict[str, Any]:
    """Return everything about an index, as JSON values."""
    state, calibration, model = index.state, calibration_of(index), recorded_model(index)
    compressed = {key: value for key, value in (state.compressed or {}).items() if key not in ("file", "checksum")}
    return {"folder": str(index.folder), "images": state.images, "removed_rows": state.removed, "changes": state.change,
            "bytes": sum(path.stat().st_size for path in index.files()), "model": model["name"],
            "settings": model["settings"], "metric": state.metric, "dimension": state.dimension,
            "orders_norms": model["orders_norms"], "exact_up_to": state.exact_up_to, "search": index.searched_by,
            "compressed": compressed or None, "calibration": None if calibration is None else calibration.to_dict(),
            "warnings": warnings_of(index)}


def warnings_of(index: CopyIndex) -> list[str]:
    """Return what a user should act on."""
    state, calibration = index.state, calibration_of(index)
    warnings = [str(damage) for damage in index.damage]
    if calibration is not None:
        grown = calibrations.growth_warning(calibration, state.added)
        warnings += [*calibration.warnings, *([grown] if grown else [])]
    if state.removed > REMOVED_SHARE * state.rows:
        warnings.append(f"{state.removed:,} of {state.rows:,} rows belong to removed images: run `compact`")
    if state.metric == "ip" and state.images > state.exact_up_to and import_faiss() is None:
        warnings.append("without FAISS every query is compared with every image: pip install 'ascl[search]'")
    return warnings


def info_text(index: CopyIndex) -> str:
    """Return `index_report` as text for people, without the warnings."""
    report = index_report(index)
    lines = [f"{report['folder']}: {report['images']:,} images, {report['bytes'] / 2**20:.1f} MiB",
             f"model: {report['model']}",
             f"settings: {', '.join(f'{key} {value}' for key, value in report['settings'].items() if key != 'model')}",
             f"descriptors: {report['dimension']} {NUMBERS[report['metric']]}",
             f"direction: {'by the norms' if report['orders_norms'] else UNORDERED}",
             f"rows of removed images: {report['removed_rows']:,}; changes: {report['changes']}",
             f"search: {report['search']}"]
    about = report["compressed"]
    if about:
        lines.append(f"recall against exact search, for {about['sampled']} of its own images: @1 "
                     f"{about['recall_at_1']:.3f}, @10 {about['recall_at_10']:.3f}; built over {about['rows']:,} rows")
    calibration = calibration_of(index)
    lines += calibration_lines(calibration) if calibration else ["calibration: none, so no match is judged a copy"]
    return "\n".join(lines)


def calibration_lines(made: Calibration) -> list[str]:
    """Return a calibration as lines for people, without the warnings."""
    normalised = " after score normalization" if made.score_norm else ""
    lines = [f"calibration: a copy has a score of at least {made.threshold:.6f}{normalised}",
             f"false positives: {made.achieved.count} of {made.achieved.total:,} {IMAGES[made.source]}, wanted at most "
             f"{made.wanted:g}: {rate_text(made.achieved)}, {made.confidence:.0%} interval",
             f"searched among {made.images:,} images; the rate is per query, by its best match"]
    if made.nearest:
        which = ("background images nearest to the index" if made.source == "background" else
                 "images of the index that are most alike and not related by geometry")
        lines.append(f"{which}; check that none is a copy: "
                     + "; ".join(f"{one.path} as {one.match}, {one.score:.4f}" for one in made.nearest))
    left_out = calibrations.listed(made.left_out)
    return lines + ([f"{IMAGES[made.source]} left out: {left_out}"] if left_out != "none" else [])


def rate_text(rate: Rate | None) -> str:
    """Return the rate and its interval as text: `0.001 [2.5e-05, 0.0056]`."""
    return "-" if rate is None else f"{rate.value:.2g} [{rate.low:.2g}, {rate.high:.2g}]"


def answers_table(answers: Sequence[Answer]) -> str:
    """Return the matches of all queries as text, one block per query."""
    blocks = []
    for answer in answers:
        if answer.blank == "blank":
            blocks.append(f"{answer.path}:\n  {BLANK}")
            continue
        if not answer.matches:
            blocks.append(f"{answer.path}:\n  no match")
            continue
        rows = [("id", "score", "copy", "false-positive rate", "direction", "geometry", "from"),
                *map(_cells, answer.matches)]
        if not any(match.geometry for match in answer.matches):
            rows = [(*row[:5], row[6]) for row in rows]
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
        lines = ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
                 for row in rows]
        note = " (nearly blank: no yes or no)" * bool(answer.blank)
        blocks.append("\n".join([f"{answer.path}:{note}", *(f"  {line}" for line in lines)]))
    return "\n\n".join(blocks)


def _cells(match: Match) -> tuple[str, ...]:
    score = match.score if match.normalised is None else match.normalised
    ratio = "" if match.norm_ratio is None else f" ({match.norm_ratio:.3f})"
    points = "" if match.relation is None else f", {match.relation.inliers} points"
    mirrored = ", mirrored" * (match.relation is not None and match.relation.mirrored)
    return (match.id, f"{score:.4f}", NAMED[match.copy], rate_text(match.false_positives), match.direction + ratio,
            match.geometry + points + mirrored, match.path + FILES[match.file])
