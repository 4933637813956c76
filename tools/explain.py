"""Why a pair has its score: what every word and every region brings to it, and where the attention goes. Examples:

python tools/explain.py --checkpoint runs/f30k --image 1000092795 --caption "Two young men are outside."
python tools/explain.py --checkpoint runs/f30k --image photos/1000092795.jpg --caption "a man" "a woman"  # side by side

Writes a picture, and the numbers as JSON beside it. The words' and regions' own terms add up to the local score; this
and the global score, weighed, are the score of the pair. For AsCL only: other models have no such sum.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ascl.core.errors import DataError


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder or checkpoint file")
    result.add_argument("--image", required=True, metavar="X",
                        help="an image id of the run's data set, or a photograph whose name without ending is one")
    result.add_argument("--caption", required=True, nargs="+", metavar="TEXT", help="one, or two side by side")
    result.add_argument("--images", metavar="FOLDER", help="photographs, at any depth (default: the run's data.images)")
    result.add_argument("--features", nargs="+", metavar="FILE",
                        help="feature files, where the run's are no longer in place")
    result.add_argument("--grid", action="store_true",
                        help="the feature file has no boxes: its regions are the cells of a square grid, row by row")
    result.add_argument("--out", type=Path, metavar="FILE.png", help="default: IMAGE-ID.explained.png")
    return result


def table(explained) -> str:
    """Words and regions as text, those that bring most first."""
    lines = []
    for content in explained.content["explanations"]:
        local, rest = content["local"], content["global"]
        lines += [
            f'"{content["caption"]}"',
            f"score {content['score']:+.4f} = local {local['score']:+.4f} x {content['local_weight']:g} + global "
            f"{rest['score']:+.4f} x {1 - content['local_weight']:g}   "
            f"(model.pair_scores: {content['pair_scores']:+.4f})",
            f"local = words' own terms {local['words_own_terms']:+.4f} + regions' {local['regions_own_terms']:+.4f}",
            f"{'':>12}  own term  in the others'  total",
        ]
        for kind, others in (("word", "in_regions_terms"), ("region", "in_words_terms")):
            for entry in sorted(content[f"{kind}s"], key=lambda entry: -entry["total"]):
                label = entry.get("label")
                lines.append(f"{kind if kind == 'region' else ''} {entry[kind]}".rjust(12)
                             + f"  {entry['own_term']:+8.4f}  {entry[others]:+13.4f}  {entry['total']:+.4f}"
                             + (f"  {label}" if label else ""))
        lines.append("")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        if options.out is not None and options.out.suffix.lower() != ".png":
            raise DataError(f"--out {options.out}: the picture is a PNG; give a name that ends in .png")
        from ascl.analysis.explain.run import explain  # torch and matplotlib are slow to import

        explained = explain(
            options.checkpoint, options.image, options.caption, images=options.images, grid=options.grid,
            overrides={"features": options.features} if options.features else {}, out=options.out,
        )
    except (DataError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table(explained))
    for note in explained.notes:
        print(f"note: {note}")
    print("saved:", *explained.files)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
