"""HTML that escapes by itself, tables that scroll in their own box, line charts as inline SVG: one file, no network.

Whatever is put between or into tags is escaped unless it is `Html`, which only the functions here make.
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import MaxNLocator

from ascl.analysis.figures.style import COLOURS

VOID = {"img", "meta", "line", "polyline", "circle"}
NOT_IN_HTML = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
CHART = (360, 210)          # as wide as a phone: text in a chart keeps its size there
MOST_POINTS = 400


class Html(str):
    """Markup: what is in it has been escaped already."""


Content = str | int | float | Html


def escape(content: Content) -> Html:
    """Text as markup; a character that no page may hold becomes U+FFFD."""
    if isinstance(content, Html):
        return content
    return Html(html.escape(NOT_IN_HTML.sub("\ufffd", str(content)), quote=True))


def tag(name: str, /, *content: Content, **attributes: Content) -> Html:
    """`<name attributes>content</name>`; a trailing or inner `_` of an attribute's name stands for nothing or `-`."""
    written = "".join(f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"' for key, value in attributes.items())
    if name in VOID:
        return Html(f"<{name}{written}/>")      # in SVG, which is no HTML, the slash is what ends it
    return Html(f"<{name}{written}>{join(content)}</{name}>")


def join(parts: Iterable[Content], between: str = "") -> Html:
    return Html(escape(between).join(map(escape, parts)))


def table(head: Sequence[Content], rows: Iterable[Sequence[Content]], *, text_columns: int = 1) -> Html:
    """A table in a box of its own that scrolls sideways; the first `text_columns` are text, the others numbers."""
    def row(cells: Sequence[Content], kind: str) -> Html:
        return tag("tr", *(tag(kind, cell, class_="text") if column < text_columns else tag(kind, cell)
                           for column, cell in enumerate(cells)))

    body = join(row(cells, "td") for cells in rows)
    # focusable, so that it can be scrolled without a mouse
    return tag("div", tag("table", tag("thead", row(head, "th")), tag("tbody", body)), class_="scroll", tabindex="0")


def breakable(name: str) -> Html:
    """A path or a dotted name, which a narrow column may break after its separators and nowhere else."""
    return Html(re.sub(r"([._/,-])(?=\w)", r"\1<wbr/>", html.escape(NOT_IN_HTML.sub("\ufffd", name), quote=True)))


def details(summary: Content, *content: Content, opened: bool = False) -> Html:
    """What is read on demand."""
    return tag("details", tag("summary", summary), *content, **({"open": "open"} if opened else {}))


def picture(jpeg: bytes | None, label: str) -> Html:
    """A small photograph in the page itself, or its label where there is none."""
    if jpeg is None:
        return tag("div", label, class_="absent")
    return tag("img", src="data:image/jpeg;base64," + base64.b64encode(jpeg).decode("ascii"), alt=label)


@dataclass(frozen=True)
class Series:
    """One line of a chart. values: None or not finite = a gap. dots: mark each point."""

    name: str
    steps: Sequence[float]
    values: Sequence[float | None]
    dots: bool = False


def line_chart(title: str, across: str, series: Sequence[Series]) -> Html:
    """A line chart as SVG that grows with the page up to a column's width; nothing where there is no value."""
    lines = [thinned(one) for one in series]
    points = [(x, y) for one in lines for stretch in _stretches(one) for x, y in stretch]
    if not points:
        return Html("")
    width, height = CHART
    left, right, top, bottom = 44, width - 18, 8, height - 34
    xs, ys = _ticks([x for x, _ in points]), _ticks([y for _, y in points])
    low, high = min(ys[0], *(y for _, y in points)), max(ys[-1], *(y for _, y in points))
    first, last = min(x for x, _ in points), max(x for x, _ in points)

    def place(x: float, y: float) -> tuple[float, float]:
        return (left + (right - left) * ((x - first) / (last - first) if last > first else 0.5),
                bottom - (bottom - top) * ((y - low) / (high - low) if high > low else 0.5))

    parts = []
    for y in ys:
        _, at = place(first, y)
        parts.append(tag("line", x1=left, x2=right, y1=f"{at:.1f}", y2=f"{at:.1f}", class_="rule"))
        parts.append(tag("text", _short(y), x=left - 4, y=f"{at + 4:.1f}", text_anchor="end"))
    for x in xs:
        if first <= x <= last:
            parts.append(tag("text", _short(x), x=f"{place(x, low)[0]:.1f}", y=bottom + 15, text_anchor="middle"))
    parts.append(tag("text", across, x=(left + right) / 2, y=height - 5, text_anchor="middle"))
    for number, one in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        for stretch in _stretches(one):
            drawn = [place(*point) for point in stretch]
            if len(drawn) > 1:
                parts.append(tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in drawn), stroke=colour))
            if one.dots or len(drawn) == 1:
                parts += [tag("circle", cx=f"{x:.1f}", cy=f"{y:.1f}", r="2.6", fill=colour) for x, y in drawn]
    chart = tag("svg", *parts, viewBox=f"0 0 {width} {height}", role="img", aria_label=title, class_="chart")
    legend = [tag("span", tag("i", style=f"background:{COLOURS[number % len(COLOURS)]}"), one.name, class_="key")
              for number, one in enumerate(lines)] if len(lines) > 1 else []
    return tag("figure", tag("figcaption", title), chart, *legend, class_="plot")


def thinned(series: Series) -> Series:
    """At most `MOST_POINTS` points, each the mean of neighbours, so that a long run's page stays small."""
    values = np.array([np.nan if value is None else value for value in series.values], dtype=np.float64)
    values[~np.isfinite(values)] = np.nan
    group = math.ceil(len(values) / MOST_POINTS)
    if group <= 1:
        return Series(series.name, list(series.steps), values.tolist(), series.dots)
    steps, means = [], []
    for start in range(0, len(values), group):
        part = values[start : start + group]
        steps.append(float(np.mean(series.steps[start : start + group])))
        means.append(float(np.nanmean(part)) if np.isfinite(part).any() else float("nan"))
    return Series(series.name, steps, means, series.dots)


def _stretches(series: Series) -> list[list[tuple[float, float]]]:
    """Points without a gap between them."""
    found: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(series.steps, series.values, strict=True):
        if y is None or not math.isfinite(y):
            found.append([])
        else:
            found[-1].append((float(x), float(y)))
    return [stretch for stretch in found if stretch]


def _ticks(values: Sequence[float]) -> list[float]:
    low, high = min(values), max(values)
    if low == high:
        return [low]
    return [float(tick) for tick in MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)]


def _short(value: float) -> str:
    """`12k`, `0.05`, `1e-05`: what fits beside an axis."""
    if value and abs(value) >= 10_000 and value % 100 == 0:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def page(title: str, *content: Content) -> str:
    """A whole HTML document, which loads nothing."""
    # default-src 'none': a browser refuses whatever might slip in; the page has neither scripts nor links elsewhere
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    head = tag(
        "head", tag("meta", charset="utf-8"), tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"), tag("title", title),
        tag("style", Html(STYLE)),
    )
    return "<!DOCTYPE html>\n" + tag("html", head, tag("body", tag("main", *content)), lang="en") + "\n"


STYLE = """
:root { color-scheme: light dark; --text: #1b1b1b; --quiet: #5a5a5a; --line: #d8d8d8; --paper: #ffffff;
  --raised: #f5f5f3; --right: #1a7f4b; --alert: #b3261e; --bar: #b9cdf5; }
@media (prefers-color-scheme: dark) { :root { --text: #ececec; --quiet: #a9a9a9; --line: #444; --paper: #161616;
  --raised: #222; --right: #5fd39a; --alert: #ff8a80; --bar: #2b4685; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--text); line-height: 1.5;
  font-family: system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; overflow-wrap: anywhere; }
main { max-width: 1080px; margin: 0 auto; padding: 16px; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 8px 0; }
h2 { font-size: 1.2rem; margin: 40px 0 8px; padding-top: 8px; border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 24px 0 8px; }
p, ul, ol { margin: 8px 0; }
a { color: inherit; }
code { font-family: ui-monospace, "DejaVu Sans Mono", monospace; font-size: .92em; background: var(--raised);
  padding: 1px 4px; border-radius: 4px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 16px; margin: 12px 0; }
nav a { padding: 6px 0; }
.quiet { color: var(--quiet); font-size: .92rem; }
.note { border-left: 4px solid var(--alert); padding: 6px 12px; background: var(--raised); }
.figures { display: grid; grid-template-columns: repeat(auto-fill, minmax(130px, 1fr)); gap: 8px; margin: 16px 0; }
.figures div { background: var(--raised); border-radius: 8px; padding: 10px 12px; }
.figures b { display: block; font-size: 1.4rem; line-height: 1.3; font-variant-numeric: tabular-nums; }
.figures span { color: var(--quiet); font-size: .85rem; }
.scroll { overflow-x: auto; max-width: 100%; margin: 8px 0; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 4px 12px 4px 0; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top;
  white-space: nowrap; }
th.text, td.text { text-align: left; }
td.text { white-space: normal; min-width: 5.5rem; }
th { font-weight: 600; }
.share { display: inline-block; min-width: 6.5rem; text-align: left; padding: 0 4px; }
summary { cursor: pointer; padding: 6px 0; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 320px), 1fr)); gap: 16px; }
.plot { margin: 0; }
figcaption { font-weight: 600; font-size: .92rem; }
.chart { width: 100%; height: auto; display: block; }
.chart text { font-size: 11px; fill: var(--quiet); }
.chart .rule { stroke: var(--line); stroke-width: 1; }
.chart polyline { fill: none; stroke-width: 1.6; stroke-linejoin: round; }
@media (prefers-color-scheme: dark) { .chart { background: #e9e9e9; border-radius: 6px; } .chart text { fill: #333; }
  .chart .rule { stroke: #c4c4c4; } }
.key { font-size: .85rem; color: var(--quiet); margin-right: 14px; }
.key i { display: inline-block; width: 12px; height: 4px; margin-right: 5px; vertical-align: middle; }
.query { border: 1px solid var(--line); border-radius: 8px; padding: 10px 12px; margin: 12px 0; }
.query p { margin: 4px 0; }
.strip { display: grid; grid-template-columns: repeat(auto-fill, minmax(88px, 1fr)); gap: 10px; align-items: start;
  margin-top: 10px; }
@media (min-width: 700px) { .strip { grid-template-columns: repeat(auto-fill, minmax(140px, 1fr)); } }
.side { display: grid; grid-template-columns: minmax(96px, 176px) 1fr; gap: 12px; align-items: start; }
@media (max-width: 480px) { .side { grid-template-columns: 1fr; } .side > .shot { max-width: 176px; } }
.shot { margin: 0; font-size: .8rem; }
.shot img { display: block; width: 100%; height: auto; border-radius: 4px; }
.absent { background: var(--raised); color: var(--quiet); border: 1px dashed var(--line); border-radius: 4px;
  padding: 12px 6px; font-size: .75rem; text-align: center; }
.right { color: var(--right); font-weight: 600; }
.shot.own img, .shot.own .absent { outline: 3px solid var(--right); }
ol.found { padding-left: 1.4rem; margin: 4px 0; }
.score { color: var(--quiet); font-variant-numeric: tabular-nums; }
@media print { nav { display: none; } .query { break-inside: avoid; } }
"""
