"""The report of an evaluation of copy detection: as JSON for programs, as Markdown for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

METRICS = {"muap": "muAP", "recall_at_p90": "Recall at P90", "threshold_at_p90": "Threshold at P90",
           "recall_rank1": "Recall@1", "recall_rank10": "Recall@10"}
FRACTIONS = {"muap", "recall_at_p90", "recall_rank1", "recall_rank10"}


@dataclass(frozen=True)
class Report:
    """What was measured and how.

    Attributes:
        protocol: what decides the numbers, label -> value.
        counts: sizes of everything, and of what is missing or overlaps.
        sections: `metrics`, `top_pairs`, and where asked for `metrics_norm_filter`, `top_pairs_norm_filter`,
            `norm_ratio_curve`, `intervals`, `breakdown`, `copydays`. Fractions in [0, 1].
        warnings: what a reader has to know.
    """

    protocol: dict[str, Any]
    counts: dict[str, int]
    sections: dict[str, Any]
    warnings: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"protocol": self.protocol, "counts": self.counts, **self.sections, "warnings": self.warnings}

    def to_markdown(self) -> str:
        """Return tables of the metrics, fractions in percent, and the protocol under them."""
        parts = [self._metrics(), self._top_pairs()]
        if "norm_ratio_curve" in self.sections:
            parts.append(_curve(self.sections["norm_ratio_curve"]))
        if "copydays" in self.sections:
            parts.append(_copydays(self.sections["copydays"]))
        for name, rows in self.sections.get("breakdown", {}).items():
            parts.append(_breakdown(name.replace("_", " and "), rows))
        parts.append("Protocol\n\n" + "\n".join(f"- {label}: {value}" for label, value in self.protocol.items()))
        parts.append("Counts\n\n" + "\n".join(f"- {name.replace('_', ' ')}: {n:,}" for name, n in self.counts.items()))
        if self.warnings:
            parts.append("Warnings\n\n" + "\n".join(f"- {warning}" for warning in self.warnings))
        return "\n\n".join(parts) + "\n"

    def _metrics(self) -> str:
        plain, filtered = self.sections["metrics"], self.sections.get("metrics_norm_filter")
        intervals = self.sections.get("intervals", {})
        header = ["", "all candidates"]
        if intervals:
            header.append(f"{100 * intervals['confidence']:g} % interval")
        if filtered:
            header.append("with norm-ratio filter")
        rows = []
        for name, label in METRICS.items():
            row = [label, _value(name, plain[name])]
            if intervals:
                between = intervals.get(name)
                row.append(f"{_value(name, between['low'])} to {_value(name, between['high'])}" if between else "")
            if filtered:
                row.append(_value(name, filtered[name]))
            rows.append(row)
        return _table(header, rows)

    def _top_pairs(self) -> str:
        variants = {"all": "top_pairs", "norm-ratio filter": "top_pairs_norm_filter"}
        found = ((label, self.sections.get(key)) for label, key in variants.items())
        return _of_top(f"top {self.sections['top_pairs']['taken']:,} pairs", [pair for pair in found if pair[1]])


def _of_top(title: str, tops: list[tuple[str, Any]]) -> str:
    """What is true and false among the top pairs, a row for each way of filtering them."""
    rows = [[label, *(f"{top[key]:,}" for key in ("true_positives", "false_positives")), _percent(top["precision"]),
             *(f"{top[key]:,}" for key in ("rejected_true", "rejected_false"))] for label, top in tops]
    return _table([title, "TP", "FP", "precision", "rejected true", "rejected false"], rows)


def _curve(points: list[dict[str, Any]]) -> str:
    return _of_top("top pairs, norm ratio at most", [(f"{point['most']:g}", point) for point in points])


def _copydays(section: dict[str, Any]) -> str:
    rows = [[block or "(no block)", _percent(value)] for block, value in section["map_by_block"].items()]
    rows.append(["all queries, mAP", _percent(section["map"])])
    rows.append(["all queries, pooled uAP", _percent(section["pooled_uap"])])
    return _table(["Copydays block", "mAP"], rows)


def _breakdown(name: str, rows: list[dict[str, Any]]) -> str:
    header = [name, "queries", "pairs", "content scale", "muAP", "Recall@1", "recall at P90", "TP at top", "FP at top"]
    counts = ["top_true", "top_false"]
    if rows and "filtered_true" in rows[0]:
        header += ["TP filtered", "FP filtered"]
        counts += ["filtered_true", "filtered_false"]
    return _table(header,
                  [[row["name"], f"{row['queries']:,}", f"{row['pairs']:,}",
                    "" if row["content_scale"] is None else f"{row['content_scale']:.2f}", _percent(row["muap"]),
                    _percent(row["recall_rank1"]), _percent(row["recall_at_p90"]),
                    *(f"{row[count]:,}" for count in counts)] for row in rows])


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "never"
    return _percent(value) if name in FRACTIONS else f"{value:.6g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
