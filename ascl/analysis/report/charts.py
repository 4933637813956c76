"""Line charts of a report, drawn by matplotlib and embedded in the page as SVG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ascl.analysis.figures.style import COLORS, use_style

SIZE = (5.0, 2.9)       # inches: 360 by 210 points, the width of a phone, so that text keeps its size there
MOST_POINTS = 400


@dataclass(frozen=True)
class Series:
    """One line of a chart. values: None or not finite = a gap. dots: mark each point with a dot."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]
    dots: bool = False


def line_chart(across: str, series: Sequence[Series]) -> Figure | None:
    """Return a line chart, or None if no series has a value; points without neighbors are marked with a dot."""
    with matplotlib.rc_context():
        use_style()
        matplotlib.rcParams.update({"xtick.labelsize": 11, "ytick.labelsize": 11, "legend.fontsize": 11})
        figure = Figure(figsize=SIZE)
        axes = figure.add_subplot()
        for number, one in enumerate(map(thinned, series)):
            values = np.array(one.values, dtype=np.float64)
            known = np.isfinite(values)
            alone = known & ~np.r_[False, known[:-1]] & ~np.r_[known[1:], False]
            axes.plot(one.steps, values, color=COLORS[number % len(COLORS)], label=one.name, marker="o",
                      markersize=4, markevery=np.flatnonzero(known if one.dots else alone).tolist())
        if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
            return None
        axes.set_xlabel(across)
        axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
        if len(series) > 1:
            figure.legend(loc="outside lower center", ncols=len(series))
        return figure


def thinned(series: Series, most: int = MOST_POINTS) -> Series:
    """Return the series with at most `most` points, each the mean of neighboring points; a gap is NaN."""
    values = np.array(series.values, dtype=np.float64)          # None becomes NaN
    values[~np.isfinite(values)] = np.nan
    group = max(1, math.ceil(len(values) / most))
    steps, means = [], []
    for start in range(0, len(values), group):
        part = values[start : start + group]
        steps.append(float(np.mean(series.steps[start : start + group])))
        means.append(math.nan if np.isnan(part).all() else float(np.nanmean(part)))
    return Series(series.name, steps, means, series.dots)


def inline_svg(figure: Figure, name: str, title: str) -> Markup:
    """Return a figure as an SVG element without external links; its ids start with `name`, unique within the page."""
    stream = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none"}):
        figure.savefig(stream, format="svg", transparent=True,
                       metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    svg = stream.getvalue()
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg[svg.index("<svg") :])
    svg = re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", svg)
    return Markup(svg.replace("<svg ", f'<svg class="chart" role="img" aria-label="{Markup.escape(title)}" ', 1))
