"""Measure how time and memory of ranking grow with the number of images and texts, and plot the rows."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import measuring
import results
from measuring import MIB, number
from scoring_job import Job

from ascl.core.errors import DataError
from ascl.core.files import atomic_path

SIZES = (500, 1000, 2000, 3000, 4000, 5000)     # images, and as many texts
FIGURE = results.REPOSITORY / "docs" / "figures" / "scoring_growth.png"
NAME = re.compile(r"ranks of (?P<size>[\d,]+) x [\d,]+, (?P<what>.*): (?P<figure>time|peak memory above the items)")
BLUE, GRAY = "#1f5f99", "#888888"


@dataclass(frozen=True)
class Points:
    """The points of the plot. size: N images and N texts, ascending. seconds, memory (MiB): of each size."""

    size: list[int]
    seconds: list[float]
    memory: list[float]


def measure(
    jobs: list[Job], repeats: int, seconds: float, ran: tuple[str, str, str, str, str], warning: str
) -> list[results.Row]:
    """Return two rows per job; jobs run one after the other, each in its own process, to leave it all the memory."""
    rows = []
    for job in jobs:
        found, = measuring.in_turn([job], repeats, seconds)
        head = f"ranks of {job.images:,} x {job.texts:,}, D {job.embed_dim}, H {job.heads}, {job.label}"
        note = f"{warning}rank_all_pairs, {job.images} images of {job.regions} regions x {job.texts} texts, one of " \
               f"each image; {found.started.lengths}; {found.spread()}"
        memory = max(found.finished.memory, 4096) / MIB         # at least a page, for tiny sizes
        rows += [results.Row(f"{head}: time", number(found.seconds), "s", *ran, note),
                 results.Row(f"{head}: peak memory above the items", number(memory), "MiB", *ran, note)]
    return rows


def points(rows: list[results.Row]) -> Points:
    """Return the points of the last run among the rows.

    Raises:
        DataError: there is no run, or the last one has fewer than two sizes.
    """
    known = [(match, row) for row in rows if (match := NAME.fullmatch(row.figure))]
    if not known:
        raise DataError("no rows of --growth to draw: measure without --plot-only first")

    def run(match: re.Match[str], row: results.Row) -> tuple[str, ...]:
        return match["what"], row.command, row.hardware, row.commit, row.versions, row.date

    last = run(*known[-1])
    values: dict[tuple[int, str], float] = {
        (int(match["size"].replace(",", "")), match["figure"].split()[0]): float(row.value)
        for match, row in known if run(match, row) == last
    }
    size = sorted({size for size, _ in values})
    if len(size) < 2:
        raise DataError("a plot of growth needs two sizes: measure at least two")
    return Points(size, [values[n, "time"] for n in size], [values[n, "peak"] for n in size])


def table(rows: list[results.Row]) -> str:
    """Return a Markdown table."""
    found = points(rows)
    lines = ["| images, and as many texts | pairs | time (s) | pairs/s | peak memory above the items (MiB) |",
             "|--:|--:|--:|--:|--:|"]
    lines += [f"| {n:,} | {n * n:,} | {number(seconds)} | {number(n * n / seconds)} | {number(memory)} |"
              for n, seconds, memory in zip(found.size, found.seconds, found.memory, strict=True)]
    return "\n".join(lines)


def draw(found: Points, path: Path) -> None:
    """Write a PNG with time against pairs and memory against items."""
    from matplotlib.figure import Figure  # imported here, so that measuring processes do not load it

    millions = [n * n / 1e6 for n in found.size]
    figure = Figure(figsize=(9, 3.4), layout="constrained", dpi=160)
    time, memory = figure.subplots(1, 2)
    rate = found.seconds[-1] / millions[-1]
    time.plot([0, millions[-1]], [0, rate * millions[-1]], color=GRAY, linestyle="--", label="proportional to pairs")
    time.plot(millions, found.seconds, color=BLUE, marker="o", label="measured")
    time.set_xlabel("pairs (millions)")
    time.set_ylabel("time to rank all pairs (s)")
    time.legend(frameon=False)
    memory.plot(found.size, found.memory, color=BLUE, marker="o")
    memory.set_xlabel("images, and as many texts")
    memory.set_ylabel("peak memory above\nthe encoded items (MiB)")
    for axes in (time, memory):
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0, top=1.1 * axes.dataLim.y1)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as unfinished:
        figure.savefig(unfinished, format="png")
