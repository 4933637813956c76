"""Draw the explanation of a pair: the contributions of regions and words, and the attention in both directions."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.patches import Rectangle
from matplotlib.text import Text
from PIL import Image

from ascl.analysis.explain.explanation import PairExplanation
from ascl.analysis.figures.style import COLORS, DPI, QUIET, use_style

SIGNED = matplotlib.colormaps["RdBu_r"]     # red raises the score, blue lowers it
ATTENTION = matplotlib.colormaps["Greys"]
WIDTH = 12.0            # inches of one pair's column
MAPS_A_ROW = 6
MAPS = 36               # most words with a small photograph; the strongest ones if there are more
MOST_PIXELS = 30_000    # of a side; the renderer's limit is 65,535
LABELLED = 49           # up to this many regions, all are labeled; of more, only the strongest
STRONGEST = 12
LONG_SIDE = 700         # pixels of the photograph in the plot


@dataclass(frozen=True, eq=False)
class Picture:
    """The photograph and the boxes of the regions.

    photo: upright RGB, or None if not available. boxes: (K, 4), x1 y1 x2 y2 of every region of the feature file, or
    None if unknown. size: width and height of the image to which the boxes refer, in pixels.
    """

    photo: Image.Image | None
    boxes: np.ndarray | None
    size: tuple[int, int]


def save_explanations(pairs: Sequence[tuple[str, PairExplanation]], picture: Picture, title: str,
                      path: str | os.PathLike) -> None:
    """Write the figure of `draw_explanations` as PNG."""
    with matplotlib.rc_context():
        use_style()
        draw_explanations(pairs, picture, title).savefig(path, format="png", dpi="figure")


def draw_explanations(pairs: Sequence[tuple[str, PairExplanation]], picture: Picture, title: str) -> Figure:
    """Draw one column per (caption, explanation) of the same image, with shared scales, in the current style.

    Returns:
        A figure without a window, not registered with pyplot.
    """
    explanations = [explanation for _, explanation in pairs]
    longest = max(len(explanation.words) for explanation in explanations)
    map_rows = -(-min(longest, MAPS) // MAPS_A_ROW)
    slope = min(1.4, picture.size[1] / picture.size[0]) * WIDTH
    # inches: header, photographs, bars and pairs, attentions, one small photograph per word
    heights = [1.0, slope * 0.44 + 0.7, 0.22 * longest + 1.1, 0.22 * longest + 1.1,
               map_rows * (slope / MAPS_A_ROW + 0.3) + 0.5]
    shown = range(5) if picture.boxes is not None else (0, 2, 3)
    size = WIDTH * len(pairs), sum(heights[place] for place in shown) + 0.4
    figure = Figure(figsize=size, dpi=min(DPI, MOST_PIXELS / max(size)))
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    bars = np.concatenate([np.concatenate(_bars(explanation)) for explanation in explanations])
    low, high = min(0.0, bars.min()), max(0.0, bars.max())
    room = 0.05 * (high - low) or 1.0
    scales = _Scales(region=max(_peak(explanation.region_totals) for explanation in explanations),
                     pair=max(_peak(explanation.pairs) for explanation in explanations),
                     words=(low - room * (low < 0), high + room))
    for column, (caption, explanation) in zip(figure.subfigures(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        rows = column.subfigures(len(shown), 1, squeeze=False, height_ratios=[heights[place] for place in shown])
        row = dict(zip(shown, rows[:, 0], strict=True))
        _header(row[0], caption, explanation)
        if picture.boxes is not None:
            boxes = picture.boxes[explanation.regions]
            _photographs(row[1], explanation, picture, boxes, scales)
            _word_maps(row[4], explanation, picture, boxes, map_rows)
        _bars_and_pairs(row[2], explanation, scales)
        _attentions(row[3], explanation)
    for text in figure.findobj(Text):
        text.set_parse_math(False)          # type: ignore[attr-defined]  # a caption with two $ is not a formula
    return figure


class _Scales(NamedTuple):
    """Scales of all pairs: the largest absolute value of a region and of a word-region pair, and the bars' limits."""

    region: float
    pair: float
    words: tuple[float, float]


def _bars(pair: PairExplanation) -> tuple[np.ndarray, np.ndarray]:
    """Return each word's own term and its contribution to the regions' terms, (L,) each."""
    return pair.word_terms, pair.region_pairs.sum(axis=1)


def _peak(values: np.ndarray) -> float:
    return float(np.abs(values).max()) or 1.0


def _header(place: SubFigure, caption: str, pair: PairExplanation) -> None:
    place.text(0.01, 0.95, textwrap.shorten(caption, 220), fontsize=12, fontweight="bold", va="top")
    terms = [("local", pair.local, pair.local_share), ("global", pair.global_, pair.global_share)]
    if pair.student is not None:
        terms.append(("student", pair.student, pair.student_weight))
    summed = " + ".join(f"{name} {score:+.4f} x {weight:g} ({weight * score:+.4f})" for name, score, weight in terms)
    place.text(
        0.01, 0.5, f"score {pair.score:+.4f} = {summed}\n"
        f"local = own terms of words {pair.word_terms.sum():+.4f} + of regions {pair.region_terms.sum():+.4f};   "
        f"global = attended regions {pair.attended_part:+.4f} + whole image {pair.whole_part:+.4f}",
        va="top", color=QUIET)


def _photographs(place: SubFigure, pair: PairExplanation, picture: Picture, boxes: np.ndarray, scales: _Scales) -> None:
    """Draw the contribution of each region (left) and the word that it attends to most (right)."""
    left, right = place.subplots(1, 2)
    left.set_title(f"Contribution of each region (sum {pair.region_totals.sum():+.4f} = local)")
    right.set_title(f"Region to word: strongest attention (uniform {1 / len(pair.words):.2f})")
    for axes in (left, right):
        _show(axes, picture, gray=True)
    shares = pair.region_totals / scales.region
    attention = pair.region_to_word.mean(axis=0)                                    # (K, L)
    order = np.argsort(-np.abs(pair.region_totals), kind="stable")
    labelled = set((order if len(order) <= LABELLED else order[:STRONGEST]).tolist())
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i in np.argsort(-areas, kind="stable").tolist():        # the largest first, so that no box hides a smaller one
        j = int(attention[i].argmax())
        _box(left, boxes[i], SIGNED(0.5 + 0.5 * shares[i]), 0.6 * abs(shares[i]))
        _box(right, boxes[i], COLORS[j % len(COLORS)], 0.55 * float(attention[i, j]))
        if i in labelled:
            _label(left, boxes[i], str(pair.regions[i]))
            _label(right, boxes[i], f"{pair.words[j]}\n{attention[i, j]:.2f}")
    scale = matplotlib.cm.ScalarMappable(Normalize(-scales.region, scales.region), SIGNED)
    place.colorbar(scale, ax=left, shrink=0.8, pad=0.02)


def _bars_and_pairs(place: SubFigure, pair: PairExplanation, scales: _Scales) -> None:
    """Draw the contribution of each word, to its own and to the regions' terms (left), and of each pair (right)."""
    bars, heat = place.subplots(1, 2, width_ratios=[1, 1.6])
    rows = np.arange(len(pair.words))
    for shift, values, color, label in zip((-0.2, 0.2), _bars(pair), COLORS[:2], ("own term", "in the regions' terms"),
                                           strict=True):
        bars.barh(rows + shift, values, 0.38, color=color, label=label)
    bars.axvline(0, color=QUIET, linewidth=0.8)
    bars.set_yticks(rows, [f"{word}  {total:+.3f}" for word, total in zip(pair.words, pair.word_totals, strict=True)])
    bars.set_ylim(len(rows) - 0.5, -0.5)
    bars.set_xlim(*scales.words)
    bars.grid(axis="y", visible=False)
    bars.set_title(f"Contribution of each word (sum {pair.word_totals.sum():+.4f} = local)")
    bars.legend(loc="upper left", bbox_to_anchor=(0, -0.06 - 0.5 / len(rows)), ncols=2)
    image = heat.imshow(pair.pairs, aspect="auto", cmap=SIGNED, vmin=-scales.pair, vmax=scales.pair)
    _region_axis(heat, pair)
    heat.set_title(f"Contribution of word-region pairs (sum {pair.pairs.sum():+.4f})")
    place.colorbar(image, ax=heat, pad=0.02)


def _attentions(place: SubFigure, pair: PairExplanation) -> None:
    left, right = place.subplots(1, 2)
    for axes, matrix, title in ((left, pair.region_to_word.mean(axis=0).T, "Region to word (each column sums to 1)"),
                                (right, pair.word_to_region.mean(axis=0), "Word to region (each row sums to 1)")):
        image = axes.imshow(matrix, aspect="auto", cmap=ATTENTION, vmin=0)
        _region_axis(axes, pair)
        axes.set_title(title)
        place.colorbar(image, ax=axes, pad=0.02)


def _word_maps(place: SubFigure, pair: PairExplanation, picture: Picture, boxes: np.ndarray, rows: int) -> None:
    """Draw a small photograph for each word, bright where it attends."""
    attention = pair.word_to_region.mean(axis=0)                                    # (L, K)
    place.suptitle(f"Word to region: where each word attends, and its strongest attention (uniform "
                   f"{1 / len(pair.regions):.3f})", x=0.01, ha="left", fontsize=11, fontweight="bold")
    strongest = sorted(np.argsort(-np.abs(pair.word_totals), kind="stable")[:MAPS].tolist())
    places = place.subplots(rows, MAPS_A_ROW, squeeze=False).ravel()
    for axes in places[len(strongest) :]:
        axes.axis("off")
    for j, axes in zip(strongest, places, strict=False):
        _show(axes, picture)
        axes.imshow(_shade(attention[j], boxes, picture.size), extent=(0, picture.size[0], picture.size[1], 0))
        axes.set_title(f"{pair.words[j]}  {attention[j].max():.3f}", fontweight="normal", fontsize=10)


def _shade(weights: np.ndarray, boxes: np.ndarray, size: tuple[int, int], cells: int = 240) -> np.ndarray:
    """Return a black overlay (h, w, 4), more transparent where attention is higher; its longer side is `cells`."""
    scale = cells / max(size)
    width, height = (max(1, round(side * scale)) for side in size)
    lit = np.zeros((height, width))
    for box, weight in zip(boxes, weights / weights.max(), strict=True):
        x1, y1, x2, y2 = np.round(box * scale).astype(int)
        part = lit[max(0, y1) : max(y1 + 1, y2), max(0, x1) : max(x1 + 1, x2)]
        np.maximum(part, weight, out=part)
    shade = np.zeros((height, width, 4))
    shade[..., 3] = 0.85 * (1 - lit)
    return shade


def _show(axes: Axes, picture: Picture, *, gray: bool = False) -> None:
    """Show the photograph, or a gray plane instead, in coordinates of the original. gray: for colors on top."""
    width, height = picture.size
    photo = Image.new("RGB", (width, height), "#BBBBBB") if picture.photo is None else picture.photo.copy()
    photo.thumbnail((LONG_SIDE, LONG_SIDE))
    axes.imshow(np.asarray(photo.convert("L").convert("RGB") if gray else photo), extent=(0, width, height, 0))
    axes.axis("off")


def _box(axes: Axes, box: np.ndarray, color: object, alpha: float) -> None:
    x1, y1, x2, y2 = box
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, facecolor=color, alpha=min(1.0, alpha), linewidth=0))
    axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor="white", linewidth=0.4))


def _label(axes: Axes, box: np.ndarray, label: str) -> None:
    axes.text((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, label, ha="center", va="center", fontsize=9, clip_on=True,
              bbox={"facecolor": "white", "alpha": 0.6, "linewidth": 0, "boxstyle": "square,pad=0.1"})


def _region_axis(axes: Axes, pair: PairExplanation) -> None:
    step = -(-len(pair.regions) // 18)
    axes.set_xticks(range(0, len(pair.regions), step), [str(number) for number in pair.regions[::step]])
    axes.set_yticks(range(len(pair.words)), pair.words)
    axes.set_xlabel("region")
    axes.grid(visible=False)
