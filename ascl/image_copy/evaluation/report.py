"""The report of an evaluation of copy detection, as JSON for programs and as Markdown for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ascl.core.tables import markdown_table

METRICS = {"muap": "muAP", "recall_at_p90": "Recall at P90", "threshold_at_p90": "Threshold at P90",
           "recall_rank1": "Recall@1", "recall_rank10": "Recall@10"}

CLASSES = {"true": "true pairs", "hard_negative": "hard negatives", "other": "other pairs"}
DECISIONS = {"precision": "precision: true among the confirmed", "recall": "recall: confirmed among all true pairs",
             "recall_of_related": "... among the true pairs that were related",
             "hard_negatives": "hard negatives that are confirmed, and should not be",
             "queries_without_reference": "queries without a reference that get a confirmed copy"}


@dataclass(frozen=True)
class Report:
    """What was measured and how."""

    protocol: dict[str, Any]  # what determines the numbers, label -> value
    counts: dict[str, int]  # sizes of all sets, and of what is missing or overlaps
    # `metrics`, `top_pairs`, and on request `metrics_norm_filter`, `top_pairs_norm_filter`, `norm_ratio_curve`,
    # `intervals`, `breakdown`, `hard_negatives`, `verification`, `copydays`; fractions in [0, 1]
    sections: dict[str, Any]
    warnings: list[str]  # what a reader must know

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON values."""
        return {"protocol": self.protocol, "counts": self.counts, **self.sections, "warnings": self.warnings}

    def to_markdown(self) -> str:
        """Return tables of the metrics, with fractions in percent, then protocol, counts and warnings."""
        tops = [("all", self.sections["top_pairs"])]
        if "top_pairs_norm_filter" in self.sections:
            tops.append(("norm-ratio filter", self.sections["top_pairs_norm_filter"]))
        parts = [self._metrics(), _of_top(f"top {tops[0][1]['taken']:,} pairs", tops)]
        if "norm_ratio_curve" in self.sections:
            curve = [(f"{point['most']:g}", point) for point in self.sections["norm_ratio_curve"]]
            parts.append(_of_top("top pairs, norm ratio at most", curve))
        if "verification" in self.sections:
            parts += _verification(self.sections["verification"])
        if "copydays" in self.sections:
            section = self.sections["copydays"]
            means = {**section["map_by_block"], "all queries, mAP": section["map"],
                     "all queries, pooled uAP": section["pooled_uap"]}
            rows = [[block or "(no block)", _percent(value)] for block, value in means.items()]
            parts.append(markdown_table(["Copydays block", "mAP"], rows))
        for name, groups in self.sections.get("breakdown", {}).items():
            parts.append(_breakdown(name.replace("_", " and "), groups))
        if negatives := self.sections.get("hard_negatives"):
            filtered = ["with norm-ratio filter"] if "filtered" in negatives[0] else []
            header = ["hard negatives", "pairs", f"among the top {tops[0][1]['taken']:,} pairs", *filtered]
            parts.append(markdown_table(header, [[row["name"], *(f"{count:,}" for count in list(row.values())[1:])]
                                                 for row in negatives]))
        parts.append("Protocol\n\n" + "\n".join(f"- {label}: {value}" for label, value in self.protocol.items()))
        parts.append("Counts\n\n" + "\n".join(f"- {name.replace('_', ' ')}: {n:,}" for name, n in self.counts.items()))
        if self.warnings:
            parts.append("Warnings\n\n" + "\n".join(f"- {warning}" for warning in self.warnings))
        return "\n\n".join(parts) + "\n"

    def _metrics(self) -> str:
        plain, filtered = self.sections["metrics"], self.sections.get("metrics_norm_filter")
        intervals = self.sections.get("intervals")
        columns = {"": METRICS.values(), "all candidates": [_value(name, plain[name]) for name in METRICS]}
        if intervals:
            columns[f"{100 * intervals['confidence']:g} % interval"] = [
                " to ".join(_value(name, one) for one in (intervals.get(name) or {}).values()) for name in METRICS
            ]
        if filtered:
            columns["with norm-ratio filter"] = [_value(name, filtered[name]) for name in METRICS]
        return markdown_table(list(columns), list(zip(*columns.values(), strict=True)))


def _of_top(title: str, tops: list[tuple[str, Any]]) -> str:
    """Return the table of true and false positives among the top pairs, one row per filter."""
    return markdown_table([title, "TP", "FP", "precision", "rejected true", "rejected false"], [
        [label, f"{top['true_positives']:,}", f"{top['false_positives']:,}", _percent(top["precision"]),
         f"{top['rejected_true']:,}", f"{top['rejected_false']:,}"] for label, top in tops
    ])


def _verification(section: dict[str, Any]) -> list[str]:
    """Return what geometry says of pairs as tables, and what it costs as a line."""
    of = {name: sum(counts.values()) for name, counts in section["kinds"].items()}
    kinds = sorted({kind for counts in section["kinds"].values() for kind in counts})
    called = markdown_table(["geometry calls", *(f"{CLASSES[name]} ({total:,})" for name, total in of.items())], [
        [kind, *(f"{counts.get(kind, 0):,}" for counts in section["kinds"].values())] for kind in kinds])
    decided = markdown_table(["confirmed copies", "of", "", f"{section['confidence']:.0%} interval"], [
        [label, *_shares(section["confirmed"][name])] for name, label in DECISIONS.items()
        if name in section["confirmed"]])
    points = markdown_table(["confirmed by at least", "TP", "FP", "precision", "interval", "recall", "interval"], [
        [f"{one['points']} points", f"{one['true']:,}", f"{one['false']:,}", *_shares(one["precision"])[1:],
         *_shares(one["recall"])[1:]] for one in section["points"]])
    cost = section["cost"]
    times = ["everything was in the cache" if value is None else f"{value:,.1f} ms a {what}" for value, what in (
        (cost["ms_per_picture"], "picture"), (cost["ms_per_pair"], "pair"))]
    query = "" if cost["ms_per_query"] is None else f"; {cost['ms_per_query']:,.0f} ms a query, with its own picture"
    return [called, decided, points, f"Processor time: {times[0]} (of {cost['pictures']:,}), {times[1]} (of "
            f"{cost['pairs']:,}){query}"]


def _shares(rate: dict[str, Any] | None) -> list[str]:
    """Return a share's count, its value and its interval."""
    if rate is None:
        return ["0 of 0", "", ""]
    return [f"{rate['count']:,} of {rate['of']:,}", _percent(rate["rate"]),
            f"{_percent(rate['low'])} to {_percent(rate['high'])}"]


def _breakdown(name: str, rows: list[dict[str, Any]]) -> str:
    counts = {"top_true": "TP at top", "top_false": "FP at top", "filtered_true": "TP filtered",
              "filtered_false": "FP filtered", "confirmed_true": "TP confirmed", "confirmed_false": "FP confirmed"}
    counts = {key: label for key, label in counts.items() if key in rows[0]}
    header = [name, "queries", "pairs", "content scale", "muAP", "Recall@1", "recall at P90", *counts.values()]
    return markdown_table(header,
                          [[row["name"], f"{row['queries']:,}", f"{row['pairs']:,}",
                            "" if row["content_scale"] is None else f"{row['content_scale']:.2f}",
                            _percent(row["muap"]), _percent(row["recall_rank1"]), _percent(row["recall_at_p90"]),
                            *(f"{row[count]:,}" for count in counts)] for row in rows])


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "never"
    return f"{value:.6g}" if name == "threshold_at_p90" else _percent(value)


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f}"
