"""Draw plots from numbers: each returns a matplotlib figure and the table of its content, with spread over seeds.

Small differences of large values are drawn as points instead of bars, because bars must start at 0.
"""

from __future__ import annotations

import csv
import io
import math
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ascl.analysis.diagnostics import Distances, Geometry, LengthBin
from ascl.analysis.figures.style import COLORS, DPI, QUIET, series_style, use_style
from ascl.core.files import atomic_path, write_text

Row = dict[str, Any]


class Drawing(NamedTuple):
    """A figure and its numbers; each row is a line of its CSV."""

    figure: Figure
    rows: list[Row]


@dataclass(frozen=True)
class Values:
    """A metric of one variant, with one value per seed."""

    label: str
    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """Sample standard deviation (n - 1); None for a single value."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None

    def row(self, metric: str) -> Row:
        """Return one line of the CSV."""
        return {"label": self.label, "figure": metric, "mean": self.mean, "std": self.std, "seeds": len(self.values),
                "values": " ".join(f"{value:.10g}" for value in self.values)}


def save(drawing: Drawing, folder: str | os.PathLike, name: str) -> list[Path]:
    """Write `name`.csv and `name`.png atomically and return their paths."""
    folder = Path(folder)
    stream = io.StringIO()
    columns = list(dict.fromkeys(column for row in drawing.rows for column in row))
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(drawing.rows)
    write_text(folder / f"{name}.csv", stream.getvalue())
    with atomic_path(folder / f"{name}.png") as unfinished:
        drawing.figure.savefig(unfinished, format="png", dpi=DPI)
    return [folder / f"{name}.png", folder / f"{name}.csv"]


def draw_samples(panels: Mapping[str, Sequence[Values]], about: str) -> Drawing:
    """Draw Rsum of each way to generate samples (AsCL, figure 3).

    Args:
        panels: title -> variants with their Rsum.
        about: data set, split and seeds, for the title.
    """
    figure = _figure(10, 1.9 + 0.36 * max(map(len, panels.values())), f"Rsum by generated samples\n{about}")
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, color, (title, variants) in zip(every, COLORS, panels.items(), strict=False):
        _points(axes, variants, color, "o", digits=1)
        axes.set_title(title)
        axes.set_xlabel("Rsum (sum of six recalls in percent, at most 600)")
    _widen(every, digits=1)
    counts = [len(variant.values) for variants in panels.values() for variant in variants]
    figure.supxlabel(_points_text(counts), fontsize=9, color=QUIET)
    return Drawing(figure, [{"panel": title, **variant.row("rsum")}
                            for title, variants in panels.items() for variant in variants])


class VariantGeometry(NamedTuple):
    """The geometry of one variant for each seed. stands_in: its scores do not use these vectors."""

    label: str
    runs: tuple[str, ...]
    seeds: tuple[Geometry, ...]
    stands_in: bool


_GEOMETRY_PANELS = (
    ("(a) Positives: lower is nearer", "mean Euclidean distance (0 to 2)",
     {"image and its text": "positive_image_text", "texts of one image": "positive_text_text"}),
    ("(b) Not of one image: higher is wider", "mean Euclidean distance (0 to 2)",
     {"two images": "apart_images", "texts of two images": "apart_texts"}),
    ("(c) Wang and Isola's alignment: lower is better", "mean of distance² (0 to 4)",
     {"image and its text": "align_image_text", "texts of one image": "align_text_text"}),
    ("(d) Wang and Isola's uniformity: lower is better", "log of mean of exp(−2 distance²) (−8 to 0)",
     {"two images": "uniform_images", "texts of two images": "uniform_texts"}))
_UPRIGHT = "upright lines: standard deviation over seeds"
_KINDS = ("image and its text", "texts of one image", "two images", "texts of two images")


def draw_geometry(variants: Sequence[VariantGeometry], about: str) -> Drawing:
    """Draw alignment and uniformity of unit vectors, as defined by AsCL (figure 4) and by Wang and Isola (2020)."""
    figure = _figure(11, 3.4 + 0.84 * len(variants), f"Alignment and uniformity of unit vectors\n{about}")
    every = figure.subplots(2, 2, sharey=True).flat
    for axes, (title, unit, kinds) in zip(every, _GEOMETRY_PANELS, strict=True):
        for number, (kind, attribute) in enumerate(kinds.items()):
            known = []
            for variant in variants:
                found = [getattr(seed, attribute) for seed in variant.seeds]
                values = [value.mean if isinstance(value, Distances) else value for value in found if value is not None]
                known.append(Values(variant.label + " *" * variant.stands_in, tuple(values)))
            style = series_style(_KINDS.index(kind))
            _points(axes, known, style["color"], style["marker"], digits=3, label=kind, offset=0.4 * (number - 0.5))
        _widen([axes], digits=3)
        axes.set_title(title)
        axes.set_xlabel(unit)
    handles = [handle for axes in (every[0], every[1]) for handle in axes.get_legend_handles_labels()[0]]
    note = ("\n* the score uses vectors of pairs; these are vectors of single items, with plain means instead of "
            "attention") if any(variant.stands_in for variant in variants) else ""
    _legend(figure, handles, 4, _points_text([len(variant.seeds) for variant in variants]) + note)
    return Drawing(figure, [row for variant in variants for row in _geometry_rows(variant)])


def _geometry_rows(variant: VariantGeometry) -> list[Row]:
    rows = []
    for run, seed in zip(variant.runs, variant.seeds, strict=True):
        row: Row = {"label": variant.label, "run": run, "vectors_decide_the_score": not variant.stands_in}
        for name, value in vars(seed).items():
            parts = vars(value).items() if isinstance(value, Distances) else ()
            row |= {f"{name}_{part}": number for part, number in parts} or {name: value}
        rows.append(row)
    return rows


def draw_lengths(variants: Mapping[str, Sequence[LengthBin]], about: str) -> Drawing:
    """Draw text-to-image recall by query length in words (AsCL, figure 5), at each K, with 95 % intervals.

    Args:
        variants: label -> bins; all variants have the same bins.
    """
    bins = next(iter(variants.values()))
    at = list(bins[0].recall)
    height = 1.6 + 2.2 * len(at) + 0.2 * math.ceil(len(variants) / 3)
    figure = _figure(10, height, f"Text-to-image recall by length of the query\n{about}")
    every = figure.subplots(len(at), 1, sharex=True, squeeze=False)[:, 0]
    for axes, k in zip(every, at, strict=True):
        for number, (label, found) in enumerate(variants.items()):
            recall, low, high = (np.array([getattr(entry, part)[k] for entry in found])
                                 for part in ("recall", "low", "high"))
            # rounding may put an interval's end slightly inside for a recall of 0 or 100 %
            errors = np.maximum([recall - low, high - recall], 0)
            shift = min(0.12, 0.6 / len(variants)) * (number - (len(variants) - 1) / 2)
            axes.errorbar(np.arange(len(found)) + shift, recall, yerr=errors, capsize=2.5, elinewidth=1,
                          label=f"{label} ({_mean_of(found[0].seeds)})", **series_style(number))
        axes.set_ylabel(f"R@{k} (%)")
        axes.set_ylim(0, min(103, 1.12 * max(e.high[k] for found in variants.values() for e in found)))
    spans = [f"{e.shortest}" if e.shortest == e.longest else f"{e.shortest}–{e.longest}" for e in bins]
    every[-1].set_xticks(range(len(bins)), [f"{span}\nn = {e.queries:,}" for span, e in zip(spans, bins, strict=True)])
    every[-1].set_xlabel("words of the query (n = queries)\nlines: Wilson's 95 % interval for n queries")
    _legend(figure, every[0].get_legend_handles_labels()[0], min(3, len(variants)))
    figure.align_ylabels(list(every))
    endings = {"": "recall", "_low": "low", "_high": "high", "_seed_std": "seed_std"}
    return Drawing(figure, [
        {"label": label, **{name: getattr(e, name) for name in ("shortest", "longest", "queries", "seeds")}}
        | {f"r{k}{end}": (getattr(e, name) or {}).get(k) for k in at for end, name in endings.items()}
        for label, found in variants.items() for e in found])


class RunCurve(NamedTuple):
    """The log of one run: (step, loss) and (step, validation Rsum)."""

    label: str
    run: str
    loss: tuple[tuple[int, float], ...]
    rsum: tuple[tuple[int, float], ...]


def draw_curves(runs: Sequence[RunCurve], about: str, of: str = "") -> Drawing:
    """Draw loss and validation Rsum over steps; runs of one label share a color, and their mean is bold.

    Args:
        of: what the validations are of, as `run_files.validations_of` returns it.
    """
    labels = list(dict.fromkeys(run.label for run in runs))
    figure = _figure(10, 4.2 + 0.2 * math.ceil(len(labels) / 3), f"Training\n{about}")
    rows: list[Row] = []
    every = figure.subplots(1, 2, sharex=True)
    for axes, metric in zip(every, ("loss", "rsum"), strict=True):
        for number, label in enumerate(labels):
            style = series_style(number) | ({"marker": ""} if metric == "loss" else {})
            curves = {run.run: dict(getattr(run, metric)) for run in runs if run.label == label}
            common = sorted(set.intersection(*map(set, curves.values())))
            mean = {step: float(np.mean([curve[step] for curve in curves.values()])) for step in common}
            count = _mean_of(len(curves))
            if len(curves) > 1:
                for curve in curves.values():
                    axes.plot(list(curve), list(curve.values()), color=style["color"], linewidth=0.7, alpha=0.45)
                curves["mean"] = mean
            axes.plot(common, list(mean.values()), label=f"{label} ({count})", **style)
            rows += [{"figure": metric, "label": label, "run": run, "step": step, "value": value}
                     for run, curve in curves.items() for step, value in curve.items()]
        axes.set_xlabel("step (batches)")
        axes.set_xlim(left=0)
    every[0].set_ylabel("training loss (nats for contrastive losses)")
    every[1].set_ylabel(f"validation Rsum{of} (at most 600)")
    _legend(figure, every[1].get_legend_handles_labels()[0], min(3, len(labels)))
    return Drawing(figure, rows)


class TimeCurve(NamedTuple):
    """The validations of one run: (seconds of training until then, Rsum), in order."""

    label: str
    run: str
    validations: tuple[tuple[float, float], ...]

    def best_at(self, seconds: float) -> float:
        """Return the best Rsum after this time of training in seconds, NaN before the first validation."""
        return max((rsum for at, rsum in self.validations if at <= seconds), default=math.nan)


def draw_times(runs: Sequence[TimeCurve], about: str, of: str = "") -> Drawing:
    """Draw the best validation Rsum so far against the seconds of training.

    Runs of one label share a color; their mean is bold, from when each of them has a value until the last one ends. A
    run that ended keeps its best value.

    Args:
        of: what the validations are of, as `run_files.validations_of` returns it.
    """
    labels = list(dict.fromkeys(run.label for run in runs))
    title = f"Best validation so far, by time of training\n{about}"
    figure = _figure(10, 4.8 + 0.2 * math.ceil(len(labels) / 3), title)
    axes = figure.subplots()
    rows: list[Row] = []
    for number, label in enumerate(labels):
        style = series_style(number) | {"drawstyle": "steps-post"}
        own = [run for run in runs if run.label == label]
        curves = {run.run: [(at, run.best_at(at)) for at, _ in run.validations] for run in own}
        every = sorted({at for curve in curves.values() for at, _ in curve})
        mean = [(at, float(np.mean([run.best_at(at) for run in own]))) for at in every]
        mean = [(at, best) for at, best in mean if not math.isnan(best)]
        if len(own) > 1:
            for curve in curves.values():
                axes.plot(*zip(*curve, strict=True), color=style["color"], linewidth=0.7, alpha=0.45,
                          drawstyle="steps-post")
            curves["mean"] = mean
        axes.plot(*zip(*mean, strict=True), label=f"{label} ({_mean_of(len(own))})", **style)
        rows += [{"label": label, "run": run, "seconds": at, "best": best}
                 for run, curve in curves.items() for at, best in curve]
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("seconds of training, without validations and checkpoints (logarithmic)")
    axes.set_ylabel(f"best validation Rsum{of} so far (at most 600)")
    _legend(figure, axes.get_legend_handles_labels()[0], min(3, len(labels)))
    return Drawing(figure, rows)


def _mean_of(count: int) -> str:
    return f"mean of {count} seeds" if count > 1 else "1 seed"


class RecallCurve(NamedTuple):
    """Recalls (rsum, i2t_r1, t2i_r1) of each seed, by the value of a setting. mark: the value to highlight."""

    label: str
    points: Mapping[float, Sequence[Mapping[str, float]]]
    mark: float | None = None


def draw_against(curves: Sequence[RecallCurve], *, title: str, x_label: str, mark_label: str = "",
                 log: bool = False) -> Drawing:
    """Draw Rsum (left) and R@1 in both directions (right) against a setting: mean and standard deviation over seeds."""
    figure = _figure(10, 4.4 + 0.2 * math.ceil(len(curves) / 3), title)
    left, right = figure.subplots(1, 2)
    rows: list[Row] = []
    for number, curve in enumerate(curves):
        places = sorted(curve.points)
        drawn = {name: [Values(curve.label, tuple(seed[name] for seed in curve.points[place])) for place in places]
                 for name in ("rsum", "i2t_r1", "t2i_r1")}
        count = _seed_count([len(curve.points[place]) for place in places])
        style = series_style(number) | {"linestyle": "-"}
        dashed = {"linestyle": "--", "markerfacecolor": "white"}
        for axes, kind, values, line in zip((left, right, right), (f" ({count})", ": image to text", ": text to image"),
                                            drawn.values(), (style, style, style | dashed), strict=True):
            axes.errorbar(places, [value.mean for value in values], yerr=_spreads(values),
                          capsize=2.5, elinewidth=1, label=curve.label + kind, **line)
            if curve.mark is not None and curve.mark in curve.points:
                axes.plot([curve.mark], [values[places.index(curve.mark)].mean], linestyle="", marker="o",
                          markersize=13, markerfacecolor="none", markeredgecolor=style["color"], label="_marked")
        rows += [{"at": place, "marked": place == curve.mark, **values[number].row(name)}
                 for number, place in enumerate(places) for name, values in drawn.items()]
    left.set_ylabel("Rsum (at most 600)")
    right.set_ylabel("R@1 (%)")
    right.set_title("line: image to text, dashed: text to image")
    for axes in (left, right):
        axes.set_xlabel(x_label)
        axes.margins(y=0.1)
        if log:
            ticks = sorted({place for curve in curves for place in curve.points})
            axes.set_xscale("log")
            axes.set_xticks(ticks, [f"{place:g}" for place in ticks])
            axes.minorticks_off()
    notes = [f"ring: {mark_label}"] if mark_label and any(curve.mark is not None for curve in curves) else []
    if any(len(seeds) > 1 for curve in curves for seeds in curve.points.values()):
        notes.append(_UPRIGHT)
    _legend(figure, left.get_legend_handles_labels()[0], min(3, len(curves)), "; ".join(notes))
    return Drawing(figure, rows)


class ProtocolRecalls(NamedTuple):
    """Recalls of one variant under one protocol: for each seed a dict of i2t_r1 to t2i_r10."""

    protocol: str
    sees_the_answer: bool
    seeds: tuple[Mapping[str, float], ...]


def draw_leak(variants: Mapping[str, Sequence[ProtocolRecalls]], about: str) -> Drawing:
    """Draw the honest evaluation next to the one that sees the answer; one row of axes per variant."""
    figure = _figure(10, 1.6 + 3.0 * len(variants),
                     f"NOT A RESULT: recall of an evaluation that sees the answer\n{about}", color=COLORS[4])
    rows: list[Row] = []
    grid = figure.subplots(len(variants), 2, squeeze=False, sharey=True)
    for pair, (label, protocols) in zip(grid, variants.items(), strict=True):
        width = 0.8 / len(protocols)
        for axes, way, direction in zip(pair, ("i2t", "t2i"), ("image to text", "text to image"), strict=True):
            for number, found in enumerate(protocols):
                values = {name: Values(label, tuple(seed[name] for seed in found.seeds))
                          for name in (f"{way}_r1", f"{way}_r5", f"{way}_r10")}
                hatch = ("..", "//")[number % 2] if found.sees_the_answer else None
                bars = axes.bar(
                    np.arange(3) + width * (number - (len(protocols) - 1) / 2), [each.mean for each in values.values()],
                    width=0.92 * width, color=COLORS[number], hatch=hatch, edgecolor="white", capsize=2.5,
                    yerr=_spreads(list(values.values())), label=f"{found.protocol}: {_seed_count([len(found.seeds)])}")
                axes.bar_label(bars, fmt="%.1f", fontsize=9, padding=2)
                rows += [{"label": label, "protocol": found.protocol, "is_a_result": not found.sees_the_answer,
                          **value.row(name)} for name, value in values.items()]
            axes.set_xticks(range(3), ["R@1", "R@5", "R@10"])
            axes.set_xlabel("recall among the first K candidates")
            axes.grid(visible=False, axis="x")
            axes.set_title(f"{label}: {direction}")
            axes.set_ylim(0, 109)
        pair[0].set_ylabel("recall (%)")
    spread = any(len(found.seeds) > 1 for protocols in variants.values() for found in protocols)
    _legend(figure, grid[0, 0].get_legend_handles_labels()[0], 1, _UPRIGHT if spread else "")
    return Drawing(figure, rows)


def _figure(width: float, height: float, title: str, color: str = "black") -> Figure:
    use_style()
    figure = Figure(figsize=(width, height))
    figure.suptitle("\n".join(textwrap.fill(line, 100) for line in title.splitlines()), color=color)
    return figure


def _legend(figure: Figure, handles: Sequence[Any], columns: int, note: str = "") -> None:
    """Add a legend below all axes, under a note."""
    legend = figure.legend(handles=handles, loc="outside lower center", ncols=columns, title=note or None,
                           title_fontsize=9)
    legend.get_title().set(color=QUIET, multialignment="center")


def _points(axes: Axes, variants: Sequence[Values], color: str, marker: str, *, digits: int, offset: float = 0.0,
            label: str | None = None) -> None:
    """Draw one line per variant: seeds as ticks, mean and standard deviation, and these as numbers at the right."""
    known = [(place, variant) for place, variant in enumerate(variants) if variant.values]
    for place, variant in known:
        y, std = place + offset, variant.std
        axes.errorbar([variant.mean], [y], xerr=None if std is None else [std], color=color, marker=marker,
                      markersize=7, elinewidth=2.5, linestyle="", label=label if place == known[0][0] else None)
        if std is not None:
            axes.plot(variant.values, [y] * len(variant.values), linestyle="", marker="|", markersize=9, color=QUIET,
                      label="_seeds")
        text = f"{variant.mean:.{digits}f}".replace("-", "−") + ("" if std is None else f" ± {std:.{digits}f}")
        axes.annotate(text, (1, y), xytext=(4, 0), xycoords=("axes fraction", "data"), textcoords="offset points",
                      va="center", fontsize=9, annotation_clip=False)
    axes.set_yticks(range(len(variants)), [variant.label for variant in variants])
    axes.set_ylim(len(variants) - 0.5, -0.5)                    # the first variant on top
    axes.grid(visible=False, axis="y")


def _widen(every: Sequence[Axes], *, digits: int) -> None:
    """Set one range for all axes, not so narrow that it shows differences below the printed digits."""
    low, high = (end([axes.dataLim.intervalx[side] for axes in every]) for side, end in ((0, min), (1, max)))
    room = max(0.08 * (high - low), 10 * 10.0**-digits)
    for axes in every:
        axes.set_xlim(low - room, high + room)
        axes.xaxis.set_major_locator(MaxNLocator(5))


def _points_text(counts: Sequence[int]) -> str:
    spread = "mean ± standard deviation, ticks: single seeds; " if max(counts) > 1 else ""
    return f"{spread}{_seed_count(counts)} each"


def _seed_count(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return "1 seed" if most == 1 else f"{most} seeds" if least == most else f"{least} to {most} seeds"


def _spreads(values: Sequence[Values]) -> list[float] | None:
    """Return the standard deviations as matplotlib takes them, or None if there are none."""
    spreads = [math.nan if value.std is None else value.std for value in values]
    return None if all(map(math.isnan, spreads)) else spreads
