"""Draw the pictures of README and docs, each for a light and a dark background.

  make demo && python docs/make_pictures.py          writes docs/pictures/{retrieval,copies,results}-{light,dark}.png

All images are generated scenes. The copies are edits of them, found by the perceptual hash; the results are rows of
benchmarks/results.csv.
"""

from __future__ import annotations

import argparse
import csv
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from ascl.analysis.evaluation import load_split
from ascl.analysis.explain.explanation import explain_pair, word_labels
from ascl.analysis.figures.style import COLORS, QUIET, use_style
from ascl.cli.program import parser_of, run
from ascl.data.captions import CaptionSet
from ascl.data.split import build_split
from ascl.image_copy.edits.edits import edit_chain, sample_rng
from ascl.retrieval.encode import encode_images
from ascl.retrieval.scoring.all_pairs import top_pairs

REPOSITORY = Path(__file__).resolve().parents[1]
PICTURES = REPOSITORY / "docs" / "pictures"
INKS = {"light": "#1F2328", "dark": "#E6EDF3"}
HIT, MISS = "#2DA44E", "#CF222E"
BEST = 3
# kind, strength of each edited copy
COPIES = (("crop", 0.2), ("grey", 0.5), ("text", 0.5), ("jpeg", 1.0), ("blur", 0.5))
# what is drawn: label, figure of results.csv (its first row)
RSUM = "flickr8k_small test, 1,000 images x 5,000 captions, "
RETRIEVAL = (("AsCL", "AsCL, Rsum"), ("without fusion", "AsCL w/o MF, Rsum"), ("two-tower", "two-tower floor, Rsum"),
             ("VSE++", "VSE++, D 256, 700 steps of 64, Rsum"))
MUAP = "copy benchmark of 600 references, 1240 queries, "
DESCRIPTORS = (("RDCD, 64 numbers", "RDCD 64, muAP"), ("SSCD-style, 64", "SSCD 64, muAP"),
               ("backbone, 1,280", "backbone with GeM, untrained, muAP"), ("perceptual hash", "pHash, muAP"))


@contextmanager
def ink(theme: str) -> Iterator[str]:
    """The color to write with, as matplotlib's default for everything."""
    with matplotlib.rc_context():
        use_style()
        color = INKS[theme]
        matplotlib.rcParams.update(dict.fromkeys(
            ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), color))
        yield color


def show(axes: Axes, image: Image.Image, border: str | None) -> None:
    axes.imshow(image)
    axes.grid(False)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set(visible=border is not None, color=border, linewidth=3)


def retrieval(run_folder: Path, query: str, theme: str) -> Figure:
    """A text query, its best images, and the regions and words that decided for the first."""
    loaded = load_split(str(run_folder), "test", {})
    images, _ = loaded.encode()
    text = loaded.model.encode_texts([query])
    top = top_pairs(loaded.model, images, text, 1)
    scores = loaded.model.pair_scores(images, text)[:, 0] if len(images) <= 1000 else None
    assert scores is not None and int(top.images_of_text[0, 0]) == int(scores.argmax())
    order = scores.argsort(descending=True)[:BEST].tolist()
    ids = loaded.captions.image_ids
    _, store = build_split(loaded.config, "test")
    first = encode_images(loaded.model, CaptionSet([ids[order[0]]], [], np.zeros(0, dtype=np.int64), ""), store)
    explained = explain_pair(loaded.model, first, text, word_labels(loaded.model.text, query, int(text.mask.sum())))
    boxes = store.read(store.rows([ids[order[0]]])).boxes[0]
    folder = Path(loaded.config.data.images)
    with ink(theme) as color:
        figure = Figure(figsize=(9, 4.1))
        rows = figure.subfigures(2, 1, height_ratios=[1, 3.2])
        words = rows[0].add_subplot()
        words.axis("off")
        words.text(0, 0.86, "query, and what each word adds to the score of the first image", fontsize=10,
                   transform=words.transAxes)
        totals = explained.word_totals
        widths = np.array([len(word) + 1.6 for word in explained.words])
        for place, word, total in zip(np.cumsum(widths) - widths, explained.words, totals, strict=True):
            share = max(0.0, float(total / totals.max()))
            words.text(place / max(62, widths.sum()), 0.25, word, fontsize=13, family="DejaVu Sans Mono",
                       transform=words.transAxes,
                       bbox={"facecolor": HIT, "alpha": 0.65 * share, "edgecolor": "none", "pad": 2.5})
        panels = rows[1].subplots(1, BEST)
        for place, (axes, row) in enumerate(zip(panels, order, strict=True)):
            show(axes, Image.open(folder / f"{ids[row]}.png"), HIT if place == 0 else None)
            axes.set_title(f"{place + 1}.  score {float(scores[row]):.3f}", color=color)
        strength = explained.region_totals / explained.region_totals.max()
        for number, share in zip(explained.regions, strength, strict=True):
            x1, y1, x2, y2 = boxes[number]
            panels[0].add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=HIT,
                                          linewidth=0.6 + 3 * max(0.0, float(share)) ** 2))
        return figure


def copies(scenes: Path, theme: str) -> Figure:
    """Edited copies above what the index finds for them, framed by whether that is their original."""
    originals = sorted(scenes.glob("scene_test_*.png"))[:200]
    with tempfile.TemporaryDirectory() as scratch:
        folder, index = Path(scratch), Path(scratch, "index")
        (folder / "edited").mkdir()
        copied = originals[3 : 17 * len(COPIES) : 17]
        for number, (kind, strength) in enumerate(COPIES):
            image = Image.open(copied[number]).convert("RGB")
            edited = edit_chain(image, [kind], strength, sample_rng(0, number))
            edited.image.save(folder / "edited" / f"{number}.png")
        command("copy index", str(scenes), "--index", str(index), "--model", "phash")
        answers = command("copy query", str(folder / "edited"), "--index", str(index), "--k", "1")
        with ink(theme):
            figure = Figure(figsize=(9, 4.0))
            panels = figure.subplots(2, len(COPIES))
            for (above, below), answer, (kind, _), original in zip(panels.T, answers["queries"], COPIES, copied,
                                                                   strict=True):
                best = answer["matches"][0]
                right = best["id"] == original.stem
                show(above, Image.open(answer["query"]), None)
                show(below, Image.open(best["path"]), HIT if right else MISS)
                above.set_title(f"upload: {kind}")
                below.set_title(f"{'found' if right else 'wrong'}, {best['score']:.2f}")
            return figure


def command(name: str, *words: str) -> Any:
    return run(name)(parser_of(name).read(list(words))).content


def results(theme: str) -> Figure:
    """Rsum on Flickr8k over seeds, and muAP of copy descriptors with intervals: the tables of README."""
    with (REPOSITORY / "benchmarks" / "results.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))

    def first(figure: str) -> dict[str, str]:
        return next(row for row in rows if row["figure"] == figure)

    with ink(theme) as color:
        figure = Figure(figsize=(9, 2.5))
        left, right = figure.subplots(1, 2)
        for axes, head, shown, title in ((left, RSUM, RETRIEVAL, "Flickr8k: Rsum, mean and deviation over seeds"),
                                         (right, MUAP, DESCRIPTORS, "Copies: muAP, 95 % interval")):
            for place, (label, name) in enumerate(reversed(shown)):
                row = first(head + name)
                value = float(row["value"])
                spread = re.search(r"sample standard deviation ([\d.]+)|interval ([\d.]+) to ([\d.]+)", row["note"])
                assert spread is not None, row["note"]
                deviation, low, high = spread.groups()
                ends = [float(deviation)] * 2 if deviation else [value - float(low), float(high) - value]
                axes.barh(place, value, height=0.62, color=COLORS[3] if place == len(shown) - 1 else QUIET)
                axes.errorbar(value, place, xerr=np.array(ends)[:, None], color=color, capsize=3)
                axes.text(2, place, f"{label}  {value:.1f}", va="center", color="white", fontsize=10)
            axes.set(yticks=[], xlim=(0, None))
            axes.set_title(title, fontsize=10)
            axes.grid(False)
        return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, default=Path("runs/demo"))
    parser.add_argument("--scenes", type=Path, default=Path("data/scenes/images"))
    parser.add_argument("--query", default="a blue disc, a yellow square, an orange heart and a green disc on black")
    options = parser.parse_args()
    PICTURES.mkdir(parents=True, exist_ok=True)
    for theme in INKS:
        for name, figure in (("retrieval", retrieval(options.run, options.query, theme)),
                             ("copies", copies(options.scenes, theme)), ("results", results(theme))):
            figure.savefig(PICTURES / f"{name}-{theme}.png", transparent=True, dpi=110)
            print("saved:", PICTURES / f"{name}-{theme}.png")


if __name__ == "__main__":
    main()
