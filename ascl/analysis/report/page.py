"""A run as one page that needs nothing else: what it was, how it learned, what it finds and what it takes for what."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ascl.analysis.query_ranks import Direction, QueryRanks
from ascl.analysis.report.html import (
    Content,
    Html,
    Series,
    breakable,
    details,
    join,
    line_chart,
    page,
    picture,
    table,
    tag,
)
from ascl.analysis.report.retrieved import Hubs, Query, best_and_worst, first_is_right, hubs
from ascl.retrieval.scoring.all_pairs import TopPairs

SHOWN = 6               # queries of each kind
FOUND = 5               # retrieved candidates shown with each
HUBS = 8
DISAGREES = 0.005       # of R@1: more than rounding and another backend can cause

DIRECTIONS: dict[Direction, str] = {"i2t": "image to text", "t2i": "text to image"}
PROTOCOLS = {
    "all pairs": "Every image was scored with every caption, and no score knew which of them belong together: that "
    "enters only where ranks are counted.",
    "ranking of given scores": "The scores were made elsewhere and are ranked as they came: whether each pair was "
    "scored without its answer, this program cannot tell.",
}
COUNTED = (
    "A rank is one more than the number of wrong candidates whose score reaches that of the best right one: 1 is best, "
    "ties count as lost. R@K is the share of queries of rank K or better, in percent; Rsum is the sum of the six. "
    "Right is what the data set says belongs to the query, and nothing else, even where it fits."
)
MADE_OF = ("runs", "scores", "split", "captions", "features", "scoring")
MADE = ("commit", "python", "torch", "device")
SECTIONS = {"reports", "probes", "scoring"}      # that are shown in their own way
TITLES = {"multi_positive": "Every true pair counts", "eccv": "ECCV Caption", "cxc": "CxC"}

Photos = Callable[[str], bytes | None]


@dataclass(frozen=True, eq=False)
class RunRecord:
    """All that a page is made of.

    Attributes:
        name, dataset, model: of the run.
        changed: (setting, value, default) of those that differ from the defaults. settings: (setting, value) of all.
        metrics: lines of metrics.jsonl. environment: of the training.
        evaluations: name of an eval-*.json without `eval-` and its ending -> content.
        split: whose queries are shown. evaluate: the command that evaluates it.
        ranks, top: of that split; None = not at hand, and `missing` says why.
        seconds: that scoring all pairs for `top` took; None = the scores were given.
        photos: image id -> small JPEG, None where there is none.
        batch_size: pairs of a training step. validated_on: what the validation curve is over.
        missing: "metrics", "ranks", "top" or "photos" -> why it is not there.
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
    """The page as HTML."""
    sections = [
        ("recall", "Recall", _recall(run)),
        ("training", "Training", _training(run)),
        ("probes", "Probes of asymmetry", _probes(run)),
        ("queries", "Best and worst queries", _queries(run)),
        ("confusions", "Confusions", _confusions(run)),
        ("settings", "Settings", _settings(run)),
        ("timings", "Timings", _timings(run)),
        ("environment", "Environment", _environment(run)),
    ]
    links = tag("nav", *(tag("a", title, href=f"#{name}") for name, title, _ in sections), aria_label="sections")
    return page(
        f"{run.name}: {run.dataset or 'a run'}",
        tag("h1", f"Run {run.name}"),
        tag("p", f"Model {run.model}, data set {run.dataset or 'without a name'}.", class_="quiet"),
        _headline(run), links,
        *(tag("section", tag("h2", title), *content, id=name) for name, title, content in sections),
    )


# The parts


def _main(run: RunRecord) -> Mapping[str, Any] | None:
    """The full report of the split that is shown."""
    return run.evaluations.get(run.split, {}).get("reports", {}).get("full")


def _headline(run: RunRecord) -> Html:
    report = _main(run)
    if report is None:
        return _note("Split ", tag("b", run.split), " has not been evaluated: ", tag("code", run.evaluate))
    figures = [
        (f"Rsum on {run.split}", f"{report['rsum']:.1f}"),
        ("R@1 image to text", f"{report['i2t']['r1']:.1f} %"),
        ("R@1 text to image", f"{report['t2i']['r1']:.1f} %"),
        ("images", f"{report['images']:,}"),
        ("captions", f"{report['texts']:,}"),
    ]
    return tag("div", *(tag("div", tag("b", value), tag("span", label)) for label, value in figures), class_="figures")


def _recall(run: RunRecord) -> list[Html]:
    if not run.evaluations:
        return [_note("No evaluation is in the run's folder. To make one: ", tag("code", run.evaluate))]
    parts: list[Html] = []
    for name, evaluation in run.evaluations.items():
        parts += [tag("h3", f"eval-{name}"), _recall_table(evaluation.get("reports", {})), _protocol(evaluation)]
        parts += [_other(key, value) for key, value in evaluation.items()
                  if key not in SECTIONS and isinstance(value, Mapping)]
        parts += [_note(str(note)) for note in evaluation.get("notes", [])]
    return [*parts, tag("p", COUNTED, class_="quiet")]


def _recall_table(reports: Mapping[str, Any]) -> Html:
    rows = []
    for kind, report in reports.items():
        for direction, label in DIRECTIONS.items():
            figures = report[direction]
            rows.append([
                kind, label, *(f"{figures[key]:.1f}" for key in ("r1", "r5", "r10", "median_rank", "mean_rank")),
                f"{figures['queries']:,}", f"{report['rsum']:.1f}" if direction == "i2t" else "",
            ])
    return table(["ranked", "direction", "R@1", "R@5", "R@10", "median rank", "mean rank", "queries", "Rsum"], rows,
                 text_columns=2)


def _protocol(evaluation: Mapping[str, Any]) -> Html:
    protocol = str(evaluation.get("protocol", "not noted"))
    made = [f"{key}: {_value(evaluation[key])}" for key in MADE_OF if key in evaluation]
    return tag("p", tag("b", f"Protocol: {protocol}. "), PROTOCOLS.get(protocol, ""), " ", "; ".join(made), ".",
               class_="quiet")


def _other(name: str, values: Mapping[str, Any]) -> Html:
    """Any further figures of an evaluation, as it names them; those of the two directions side by side."""
    title = TITLES.get(name, name.replace("_", " ").capitalize())
    if values and values.keys() <= DIRECTIONS.keys():
        columns = list(dict.fromkeys(key for figures in values.values() for key in figures))
        by_direction = [[label, *(_figure(values[direction].get(key, "")) for key in columns)]
                        for direction, label in DIRECTIONS.items() if direction in values]
        return join([tag("h3", title), table(["direction", *(key.replace("_", " ") for key in columns)], by_direction)])
    rows = [[breakable(key), _value(value)] for key, value in flat(values)]
    return join([tag("h3", title), table(["figure", "value"], rows, text_columns=2)])


def _figure(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else _value(value)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested figures under dotted names."""
    found: list[tuple[str, Any]] = []
    for key, value in values.items():
        found += flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return found


def _value(value: Any) -> str:
    """A figure or setting as text: floats to six digits, lists with commas, None as `null`."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(part)}" for key, part in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return str(value)


def _training(run: RunRecord) -> list[Html]:
    if "metrics" in run.missing:
        return [_note(run.missing["metrics"])]
    train = [line for line in run.metrics if line["kind"] == "train"]
    validation = [line for line in run.metrics if line["kind"] == "validation"]

    def series(name: str, lines: Sequence[Mapping[str, Any]], key: str, *, dots: bool = False) -> Series:
        kept = [line for line in lines if key in line]
        return Series(name, [line["step"] for line in kept], [line[key] for line in kept], dots)

    charts = [
        line_chart("Loss", "step", [series("loss", train, "loss")]),
        line_chart("Validation Rsum", "step", [series("Rsum", validation, "rsum", dots=True)]),
        line_chart("Validation R@1 (percent)", "step", [series("image to text", validation, "i2t_r1", dots=True),
                                                        series("text to image", validation, "t2i_r1", dots=True)]),
        line_chart("Mean score in a training batch", "step", [series("true pairs", train, "score_true"),
                                                              series("other pairs", train, "score_other")]),
        line_chart("Learning rate", "step", [series("learning rate", train, "learning_rate")]),
    ]
    rated = [line for line in validation if line.get("rsum") is not None]
    best = max(rated, key=lambda line: line["rsum"], default=None)
    said = "No validation was logged." if best is None else (
        f"Best validation Rsum {best['rsum']:.1f} at step {best['step']:,}, over {run.validated_on}. The fewer the "
        "candidates, the higher the recalls: these do not compare with those of another split."
    )
    return [tag("p", said), tag("div", *charts, class_="plots")]


def _probes(run: RunRecord) -> list[Html]:
    found = {name: evaluation["probes"] for name, evaluation in run.evaluations.items() if evaluation.get("probes")}
    if not found:
        command = tag("code", f"{run.evaluate} --probes")
        return [_note("No probes are in the run's evaluations. To make them: ", command)]
    parts: list[Html] = []
    for name, probes in found.items():
        rows = [
            [kind, figures.get("asymmetry", ""), *_probe(figures)]
            for kind, figures in [*probes.get("kinds", {}).items(),
                                  *((f"all of {kind}", {"asymmetry": kind, **figures})
                                    for kind, figures in probes.get("by_asymmetry", {}).items())]
        ]
        head = ["variant", "asymmetry", "right", "95 % interval", "ties", "pairs", "higher", "above false", "own first"]
        parts += [tag("h3", f"eval-{name}"), table(head, rows, text_columns=2),
                  tag("p", str(probes.get("how", "")), class_="quiet")]
    return parts


def _probe(figures: Mapping[str, Any]) -> list[Content]:
    right = 100 * figures["right"]
    bar = tag("span", f"{right:.1f} %", class_="share",
              style=f"background:linear-gradient(to right,var(--bar) {right:.1f}%,transparent {right:.1f}%)")
    interval = f"{100 * figures['low']:.1f} to {100 * figures['high']:.1f}" if "low" in figures else ""
    # of a false variant the own image should not come first: the two numbers would read as a loss
    firsts = () if figures.get("asymmetry") == "I" else ("first_original", "first_variant")
    own = [_percent(figures.get(key)) for key in firsts]
    return [bar, interval, _percent(figures.get("ties")), f"{figures['pairs']:,}", _percent(figures.get("higher")),
            _percent(figures.get("above_false")), " \u2192 ".join(own) if all(own) else ""]


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _queries(run: RunRecord) -> list[Html]:
    if run.ranks is None:
        return [_note(run.missing["ranks"])]
    parts = [_note(run.missing[key]) for key in ("top", "photos") if key in run.missing]
    parts += _disagreements(run)
    parts.append(tag("p", "Best: the right candidate comes first, by the largest distance to the best wrong one. "
                     "Worst: the rank of the best right candidate is the largest. One caption of each image is shown. "
                     "Framed in green: the query's own. Small numbers are scores.", class_="quiet"))
    for direction, label in DIRECTIONS.items():
        best, worst = best_and_worst(run.ranks, run.top, direction, SHOWN)
        for title, queries in (("best", best), ("worst", worst)):
            parts.append(tag("h3", f"{label.capitalize()}: {title}"))
            parts += [_query(run, run.ranks, direction, query) for query in queries]
            if not queries:
                parts.append(tag("p", "None: " + ("no query finds its own first." if title == "best" else
                                                  "every query finds its own first.")))
    return parts


def _disagreements(run: RunRecord) -> list[Html]:
    """Where the ranks of the evaluation are not those of the lists shown: another checkpoint, or an ensemble."""
    if run.ranks is None or run.top is None:
        return []
    notes = []
    for direction, label in DIRECTIONS.items():
        saved = float((run.ranks.of(direction)[1] == 0).mean())
        now = first_is_right(run.ranks, run.top, direction)
        if abs(saved - now) > DISAGREES:
            notes.append(_note(
                f"The saved ranks are of other scores than the lists below: R@1 {label} is {100 * saved:.1f} % in "
                f"ranks-{run.split}.npz and {100 * now:.1f} % here. Evaluate again: ", tag("code", run.evaluate),
            ))
    return notes


def _query(run: RunRecord, ranks: QueryRanks, direction: Direction, query: Query) -> Html:
    candidates = len(ranks.owner) if direction == "i2t" else ranks.images
    rank = tag("p", tag("b", f"rank {query.rank + 1:,}"), f" of {candidates:,}",
               "" if query.margin is None else f", margin {query.margin:+.3f}", class_="quiet")
    found = query.found[:FOUND]
    if direction == "t2i":
        shots = [_shot(run, ranks.image_id(query.right[0]), "its own", own=True)]
        shots += [_shot(run, ranks.image_id(one.candidate), f"{place}: {one.score:.3f}", own=one.right)
                  for place, one in enumerate(found, start=1)]
        return tag("article", tag("p", tag("b", ranks.caption(query.number))), rank,
                   tag("div", *shots, class_="strip"), class_="query")
    listed = [tag("li", tag("span", ranks.caption(one.candidate), class_="right" if one.right else ""), " ",
                  tag("span", f"{one.score:.3f}{', its own' if one.right else ''}", class_="score")) for one in found]
    own = [tag("li", ranks.caption(text)) for text in query.right]
    text = tag("div", rank, *([tag("p", "Retrieved:"), tag("ol", *listed, class_="found")] if listed else []),
               details(f"Its own captions ({len(own)})", tag("ul", *own), opened=query.rank > 0))
    shot = _shot(run, ranks.image_id(query.number), "", own=False)
    return tag("article", tag("div", shot, text, class_="side"), class_="query")


def _shot(run: RunRecord, image_id: str, label: str, *, own: bool) -> Html:
    under = [tag("span", label, class_="right" if own else "score")] if label else []
    return tag("figure", picture(run.photos(image_id), image_id), *under, class_="shot own" if own else "shot")


def _confusions(run: RunRecord) -> list[Html]:
    if run.ranks is None or run.top is None:
        return [_note(run.missing.get("ranks") or run.missing["top"])]
    parts: list[Html] = []
    for direction in DIRECTIONS:
        found = hubs(run.ranks, run.top, direction, HUBS)
        what = "captions" if direction == "i2t" else "images"
        parts += [tag("h3", f"{what.capitalize()} that come first where they do not belong"), _hub_text(found, what)]
        if direction == "i2t":
            rows: list[list[Content]] = [[run.ranks.caption(candidate), times] for candidate, times in found.first]
            parts.append(table(["caption", "images"], rows) if rows else Html(""))
        else:
            parts.append(tag("div", *(_shot(run, run.ranks.image_id(candidate), f"{times:,} captions", own=False)
                                      for candidate, times in found.first), class_="strip"))
    return parts


def _hub_text(found: Hubs, what: str) -> Html:
    share = sum(times for _, times in found.first) / found.wrong if found.wrong else 0.0
    return tag(
        "p", f"{found.wrong:,} of {found.queries:,} queries retrieve a wrong one first; the {len(found.first)} {what} "
        f"below account for {100 * share:.1f} % of these. {found.never:,} of {found.candidates:,} {what} are in "
        f"nobody's first {found.k}; the skewness of how often one is there is {found.skewness:.2f} (0 = all alike).",
    )


def _settings(run: RunRecord) -> list[Html]:
    changed, every = ([[breakable(cell) for cell in row] for row in rows] for rows in (run.changed, run.settings))
    return [
        tag("h3", "Other than the defaults"),
        table(["setting", "this run", "default"], changed, text_columns=3) if changed else
        tag("p", "Every setting is at its default."),
        details(f"All {len(every)} settings", table(["setting", "this run"], every, text_columns=2)),
    ]


def _timings(run: RunRecord) -> list[Html]:
    rows: list[list[Content]] = []
    train = [line for line in run.metrics if line["kind"] == "train" and line.get("steps_per_second")]
    timed = [line["time"] for line in run.metrics if "time" in line]
    if train:
        speeds = np.array([line["steps_per_second"] for line in train], dtype=np.float64)
        steps = np.diff([0, *(line["step"] for line in train)])
        rows += [
            ["steps taken", f"{train[-1]['step']:,}"],
            ["in training steps, by their logged speed", duration(float((steps / speeds).sum()))],
            ["median speed", f"{np.median(speeds):.3g} steps/s, {np.median(speeds) * run.batch_size:.3g} pairs/s of "
             "each process"],
        ]
    if len(timed) > 1:
        rows.append(["from the first line of the log to the last, stops and validations included",
                     duration(max(timed) - min(timed))])
    if run.seconds is not None and run.ranks is not None:
        pairs = run.ranks.images * len(run.ranks.owner)
        rows.append(["encoding and scoring all pairs for this page",
                     f"{duration(run.seconds)}, {pairs / run.seconds:,.0f} pairs/s"])
    return [table(["what", "time"], rows, text_columns=2)] if rows else [tag("p", "Nothing was logged.")]


def duration(seconds: float) -> str:
    """`2 h 05 min`, `3 min 20 s`, `4.1 s`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def _environment(run: RunRecord) -> list[Html]:
    made_by = {"training": run.environment} | {f"eval-{name}": made for name, made in run.evaluations.items()}
    rows = [[name, *(made.get(key, "not noted") for key in MADE)] for name, made in made_by.items()]
    return [table(["made by", *MADE], rows, text_columns=1 + len(MADE))]


def _note(*content: Content) -> Html:
    return tag("p", *content, class_="note")
