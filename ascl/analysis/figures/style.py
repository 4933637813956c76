"""The style of every plot: colors for color-blind readers and gray printers, no text smaller than 9 points."""

from __future__ import annotations

from typing import Any

import matplotlib
from cycler import cycler

# All pairs differ by at least 9 units of CIE lightness, so that all seven differ in gray, and by at least 25 units of
# CIE Lab for normal vision and each kind of color blindness; neighbors in the list differ by 11 units of lightness.
COLORS: list[str] = ["#1547C2", "#F19700", "#241C0C", "#44987C", "#C92B2B", "#59D4FF", "#632459"]
MARKERS: list[str] = ["o", "s", "^", "D", "v", "P", "X"]
LINES: list[str] = ["-", "--", "-.", ":"]
QUIET = "#5A5A5A"       # for secondary elements: reference lines, counts, single seeds
DPI = 150


def use_style() -> None:
    """Set the style of all figures created after this call; call it before `Figure()`."""
    matplotlib.rcParams.update({
        "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],    # ships with matplotlib
        "font.size": 10, "xtick.labelsize": 9, "ytick.labelsize": 9, "legend.fontsize": 9, "figure.titlesize": 12,
        "axes.titlesize": 11, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.labelsize": 10,
        "axes.prop_cycle": cycler(color=COLORS), "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": "#DDDDDD", "grid.linewidth": 0.6,
        "lines.linewidth": 1.6, "lines.markersize": 5, "legend.frameon": False,
        "figure.dpi": DPI, "savefig.dpi": DPI, "figure.constrained_layout.use": True})


def series_style(number: int) -> dict[str, Any]:
    """Return color, marker and line style of the `number`-th series, from 0; the line style changes every seven."""
    return {"color": COLORS[number % len(COLORS)], "marker": MARKERS[number % len(MARKERS)],
            "linestyle": LINES[number // len(COLORS) % len(LINES)]}
