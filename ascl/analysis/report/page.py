"""Render the report of a run as one self-contained page: the values and texts of the template page.html."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from markupsafe import Markup

from ascl.analysis.query_ranks import Direction, QueryRanks
from ascl.analysis.report.charts import Series, inline_svg, line_chart
from ascl.analysis.report.retrieved import best_and_worst, first_is_right, hubs
from ascl.analysis.run_files import flat, validations_of
from ascl.core.html import printable, templates_of
from ascl.retrieval.scoring.all_pairs import TopPairs

SHOWN = 6               # queries of each kind
FOUND = 5               # retrieved candidates shown per query
HUBS = 8
DISAGREES = 0.005       # difference in R@1 that exceeds rounding and the choice of backend

DIRECTIONS: dict[Direction, str] = {"i2t": "image to text", "t2i": "text to image"}
PROTOCOLS = {
    "all pairs": "Every image was scored with every caption. Scores do not use which of them belong together; only the "
    "counting of ranks does.",
    "ranking of given scores": "The scores come from another program and were ranked as given: this program cannot "
    "tell whether each pair was scored without its answer."}
MADE_OF = ("runs", "scores", "split", "captions", "features", "scoring")
MADE = ("commit", "python", "torch", "device")
SECTIONS = {"reports", "probes", "scoring"}      # shown separately
TITLES = {"multi_positive": "Every true pair counts", "eccv": "ECCV Caption", "cxc": "CxC"}

Photos = Callable[[str], bytes | None]


@dataclass(frozen=True, eq=False)
class RunRecord:
    """The content of a page.

    name, dataset, model: of the run. changed: (setting, value, default) of settings that differ from the defaults.
    settings: (setting, value) of all settings. metrics: records of metrics.jsonl. environment: of the training.
    evaluations: NAME of eval-NAME.json -> its content. split: the split whose queries are shown. evaluate: the command
    that evaluates it. ranks, top: of that split; None = not available, with the reason in `missing`. seconds: time to
    score all pairs for `top`; None = the scores were given. photos: image id -> small JPEG, or None. batch_size: pairs
    per training step. validated_on: the validation data. missing: "metrics", "ranks", "top" or "photos" -> why it is
    missing.
    """

    name: str
    dataset: str
    model: str
    changed: Sequence[tuple[str, str, str]]
    settings: Sequence[tuple[str, str]]
    metrics: Sequence[Mapping[str, Any]]
    environment: Mapping[str, str]
    evaluations: Mapping[str, Mapping[str, Any]]
    split: str
    evaluate: str
    ranks: QueryRanks | None
    top: TopPairs | None
    seconds: float | None
    photos: Photos
    batch_size: int
    validated_on: str
    missing: Mapping[str, str] = field(default_factory=dict)


def render(run: RunRecord) -> str:
    """Return the page as HTML; the template escapes all values from files."""
    validations = [line for line in validations_of(run.metrics)[0] if line["rsum"] is not None]
    made_by = {"training": run.environment} | {f"eval-{name}": made for name, made in run.evaluations.items()}

    def photo(image_id: str) -> str | None:
        jpeg = run.photos(image_id)
        return None if jpeg is None else base64.b64encode(jpeg).decode("ascii")

    return templates_of("ascl.analysis.report").get_template("page.html").render(
        run=run, shown=FOUND, photo=photo, headline=_headline(run), recall_rows=_recall_rows, protocol_of=_protocol,
        other_metrics=_other_metrics, charts=_charts(run), probe_rows=_probe_rows,
        breakable_rows=lambda rows: [[_breakable(cell) for cell in row] for row in rows],
        best=max(validations, key=lambda line: line["rsum"], default=None), disagreements=_disagreements(run),
        queries=_queries(run), hubs=_hubs(run), timings=_timings(run), made=list(MADE),
        environment_rows=[[name, *(made.get(key, "not recorded") for key in MADE)] for name, made in made_by.items()],
        named_captions=lambda first: [[run.ranks.caption(text), times] for text, times in first] if run.ranks else [])


def _breakable(name: str) -> Markup:
    """Return a path or a dotted name that a narrow column may break only after separators."""
    return Markup(re.sub(r"([._/,-])(?=\w)", r"\1<wbr/>", str(Markup.escape(printable(name)))))


def _headline(run: RunRecord) -> list[tuple[str, str]]:
    report = run.evaluations.get(run.split, {}).get("reports", {}).get("full")
    return [] if report is None else [
        (f"Rsum on {run.split}", f"{report['rsum']:.1f}"), ("R@1 image to text", f"{report['i2t']['r1']:.1f} %"),
        ("R@1 text to image", f"{report['t2i']['r1']:.1f} %"), ("images", f"{report['images']:,}"),
        ("captions", f"{report['texts']:,}")]


def _recall_rows(evaluation: Mapping[str, Any]) -> list[list[str]]:
    return [
        [kind, label, *(f"{report[way][key]:.1f}" for key in ("r1", "r5", "r10", "median_rank", "mean_rank")),
         f"{report[way]['queries']:,}", f"{report['rsum']:.1f}" if way == "i2t" else ""]
        for kind, report in evaluation.get("reports", {}).items() for way, label in DIRECTIONS.items()]


def _protocol(evaluation: Mapping[str, Any]) -> str:
    made = [f"{key}: {_value(evaluation[key])}" for key in MADE_OF if key in evaluation]
    return f"{PROTOCOLS.get(str(evaluation.get('protocol')), '')} {'; '.join(made)}."


def _other_metrics(evaluation: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return tables of all further metrics of an evaluation; those of both directions become two rows."""
    tables = []
    for name, values in evaluation.items():
        if name in SECTIONS or not isinstance(values, Mapping):
            continue
        head: list[str] = ["metric", "value"]
        rows: list[list[Any]] = [[_breakable(key), _value(value)] for key, value in flat(values).items()]
        directed = (bool(values) and values.keys() <= DIRECTIONS.keys()
                    and all(isinstance(metrics, Mapping) for metrics in values.values()))
        if directed:
            columns = list(dict.fromkeys(key for metrics in values.values() for key in metrics))
            head = ["direction", *(key.replace("_", " ") for key in columns)]
            rows = [[label, *(_value(values[way].get(key, ""), ".1f") for key in columns)]
                    for way, label in DIRECTIONS.items() if way in values]
        tables.append({"title": TITLES.get(name, name.replace("_", " ").capitalize()), "head": head, "rows": rows,
                       "text_columns": 1 if directed else 2})
    return tables


def _value(value: Any, digits: str = ".6g") -> str:
    """Return a metric or setting as text: floats rounded, lists with commas, None as `null`."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return format(value, digits)
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(part)}" for key, part in value.items())
    return ", ".join(map(_value, value)) if isinstance(value, list | tuple) else str(value)


def _charts(run: RunRecord) -> list[tuple[str, Markup]]:
    validations, of = validations_of(run.metrics)
    charts = {
        "Loss": ("train", {"loss": "loss"}), f"Validation Rsum{of}": ("validation", {"rsum": "Rsum"}),
        f"Validation R@1{of} (percent)": ("validation", {"i2t_r1": "image to text", "t2i_r1": "text to image"}),
        "Mean score in a training batch": ("train", {"score_true": "true pairs", "score_other": "other pairs scored"}),
        "Learning rate": ("train", {"learning_rate": "learning rate"})}
    drawn: list[tuple[str, Markup]] = []
    for title, (kind, names) in charts.items():
        series = []
        for key, name in names.items():
            lines = [line for line in (validations if kind == "validation" else run.metrics)
                     if line["kind"] == kind and key in line]
            series.append(Series(name, [line["step"] for line in lines], [line[key] for line in lines],
                                 dots=kind == "validation"))
        if figure := line_chart("step", series):
            drawn.append((title, inline_svg(figure, f"chart{len(drawn)}", title)))
    return drawn


def _probe_rows(probes: Mapping[str, Any]) -> list[list[Any]]:
    every = {**probes.get("kinds", {}), **{f"all of {kind}": {"asymmetry": kind, **metrics}
                                           for kind, metrics in probes.get("by_asymmetry", {}).items()}}
    return [[kind, metrics.get("asymmetry", ""), *_probe(metrics)] for kind, metrics in every.items()]


def _probe(metrics: Mapping[str, Any]) -> list[str]:
    right = f"{100 * metrics['right']:.1f}"
    bar = Markup(f'<span class="share" style="background:linear-gradient(to right,var(--bar) {right}%,'
                 f'transparent {right}%)">{right} %</span>')
    interval = f"{100 * metrics['low']:.1f} to {100 * metrics['high']:.1f}" if "low" in metrics else ""
    # a false variant should not rank its own image first, so these numbers would mislead
    firsts = () if metrics.get("asymmetry") == "I" else ("first_original", "first_variant")
    own = [_percent(metrics.get(key)) for key in firsts]
    return [bar, interval, _percent(metrics.get("ties")), f"{metrics['pairs']:,}", _percent(metrics.get("higher")),
            _percent(metrics.get("above_false")), " \u2192 ".join(own) if all(own) else ""]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _queries(run: RunRecord) -> list[dict[str, Any]]:
    return [] if run.ranks is None else [
        {"title": f"{label.capitalize()}: {kind}", "best": kind == "best", "direction": direction, "queries": queries,
         "candidates": len(run.ranks.owner) if direction == "i2t" else run.ranks.images}
        for direction, label in DIRECTIONS.items() for kind, queries in
        zip(("best", "worst"), best_and_worst(run.ranks, run.top, direction, SHOWN), strict=True)]


def _disagreements(run: RunRecord) -> list[str]:
    """Return notes where the saved ranks differ from the lists shown, as for another checkpoint or an ensemble."""
    if run.ranks is None or run.top is None:
        return []
    notes = []
    for direction, label in DIRECTIONS.items():
        saved = float((run.ranks.of(direction)[1] == 0).mean())
        now = first_is_right(run.ranks, run.top, direction)
        if abs(saved - now) > DISAGREES:
            notes.append(f"The saved ranks come from other scores than the lists below: R@1 {label} is "
                         f"{100 * saved:.1f} % in ranks-{run.split}.npz and {100 * now:.1f} % here. Evaluate again:")
    return notes


def _hubs(run: RunRecord) -> list[tuple[Direction, str, Any]]:
    if run.ranks is None or run.top is None:
        return []
    return [(direction, "captions" if direction == "i2t" else "images", hubs(run.ranks, run.top, direction, HUBS))
            for direction in DIRECTIONS]


def _timings(run: RunRecord) -> list[list[str]]:
    rows = []
    train = [line for line in run.metrics if line["kind"] == "train" and line.get("steps_per_second")]
    timed = [line["time"] for line in run.metrics if "time" in line]
    if train:
        speeds = np.array([line["steps_per_second"] for line in train], dtype=np.float64)
        steps, median = np.diff([0, *(line["step"] for line in train)]), np.median(speeds)
        rows += [["steps", f"{train[-1]['step']:,}"],
                 ["time in training steps, from their logged speed", duration(float((steps / speeds).sum()))],
                 ["median speed", f"{median:.3g} steps/s, {median * run.batch_size:.3g} pairs/s per process"]]
    if len(timed) > 1:
        rows.append(["from the first log record to the last, stops and validations included",
                     duration(max(timed) - min(timed))])
    if run.seconds is not None and run.ranks is not None:
        pairs = run.ranks.images * len(run.ranks.owner)
        rows.append(["encoding and scoring all pairs for this page",
                     f"{duration(run.seconds)}, {pairs / run.seconds:,.0f} pairs/s"])
    return rows


def duration(seconds: float) -> str:
    """Return a duration as text: `2 h 05 min`, `3 min 20 s`, `4.1 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
