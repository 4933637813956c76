"""`ascl explain` and `ascl report`: explain the score of a pair, and write a run as one HTML page."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import Namespace

from ascl.cli.options import Answer, add_run_data, ending, run_data
from ascl.core.errors import SettingsError
from ascl.settings.base import Parser


def explain_parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog, description="Explain the score of an image-caption pair: what every word and every region "
        "contributes, and where the attention goes. Writes a picture, and the numbers as JSON beside it. The terms of "
        "words and regions add up to the local score; the weighted sum of local and global score is the score of the "
        "pair. Only for AsCL: other models have no such sum.",
    )
    parser.add_argument("--checkpoint", required=True, metavar="RUN", help="run folder or checkpoint file")
    parser.add_argument("--image", required=True, metavar="X",
                        help="image id of the run's data set, or an image file whose name without the suffix is one")
    parser.add_argument("--caption", required=True, nargs="+", metavar="TEXT",
                        help="one caption, or two to compare side by side; any text, in quotation marks")
    add_images(parser)
    add_run_data(parser, captions=False)
    parser.add_argument("--grid", action="store_true",
                        help="for a feature file without boxes: its regions are cells of a square grid, row by row")
    parser.add_argument("--out", metavar="FILE.png", help="picture to write; null = IMAGE-ID.explained.png")
    return parser


def explain(options: Namespace) -> Answer:
    out = None if options.out is None else Path(options.out)
    if out is not None and out.suffix.lower() != ".png":
        raise SettingsError(f"--out {out}: the picture is a PNG file; give a name that ends in .png")
    from ascl.analysis.explain.run import explain as explain_pair

    with ending("stopped; no unfinished file was left"):
        explained = explain_pair(
            options.checkpoint, options.image, options.caption, images=options.images, grid=options.grid,
            overrides=run_data(options), out=out,
        )
    print(table(explained.content))
    for note in explained.notes:
        print(f"note: {note}")
    print("saved:", *explained.files)
    return Answer({**explained.content, "notes": explained.notes, "files": explained.files})


def report_parser(prog: str) -> Parser:
    parser = Parser(
        prog=prog, description="Write a run as one HTML page: settings, curves, recalls, probes, best and worst "
        "queries, confusions. If something is missing (an evaluation, the photos, the features), the page names the "
        "command that makes it.",
    )
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("--split", help="split whose queries are shown; null = the run's test split")
    add_images(parser)
    add_run_data(parser)
    parser.add_argument("--scores", metavar="FILE.npz", help="scores of this run and split that ascl eval "
                        "--save_scores wrote; null = compute them")
    parser.add_argument("--out", metavar="FILE.html", help="page to write; null = RUN/report.html")
    return parser


def report(options: Namespace) -> Answer:
    from ascl.analysis.report.run import report as write_report

    with ending("stopped; no unfinished file was left"):
        made = write_report(
            options.run, split=options.split, images=options.images, scores=options.scores,
            out=None if options.out is None else Path(options.out), overrides=run_data(options),
        )
    for example in made.examples:
        print(f'"{example["query"]}"')
        for place, best in enumerate(example["best"], start=1):
            print(f"  {place}. {best['image']}  {best['score']:+.3f}" + "  <- the image it describes" * best["own"])
        if not any(best["own"] for best in example["best"]):
            print(f"  the image it describes is at rank {example['own_image_at']}")
    for reason in made.missing.values():
        print(f"missing: {reason}")
    print(f"saved: {made.file} ({made.file.stat().st_size / 1e6:.1f} MB)")
    return Answer(made._asdict())


def add_images(parser: Parser) -> None:
    parser.add_argument("--images", metavar="FOLDER", help="folder of the images, searched at any depth; null = the "
                        "run's data.images")


def table(content: dict) -> str:
    """Return words and regions as text, the largest contributions first."""
    lines = []
    for pair in content["explanations"]:
        local, rest, student = pair["local"], pair["global"], pair["student"]
        of_student = "" if student is None else f" + student {student['score']:+.4f} ({student['in_the_score']:+.4f})"
        lines += [
            f'"{pair["caption"]}"',
            f"score {pair['score']:+.4f} = local {local['score']:+.4f} ({local['in_the_score']:+.4f}) + global "
            f"{rest['score']:+.4f} ({rest['in_the_score']:+.4f}){of_student}   "
            f"(model.pair_scores: {pair['pair_scores']:+.4f})",
            f"local = words' own terms {local['words_own_terms']:+.4f} + regions' {local['regions_own_terms']:+.4f}",
            f"{'':>12}  own term  in the others'  total",
        ]
        for kind, others in (("word", "in_regions_terms"), ("region", "in_words_terms")):
            for entry in sorted(pair[f"{kind}s"], key=lambda entry: -entry["total"]):
                label = entry.get("label")
                lines.append(f"{kind if kind == 'region' else ''} {entry[kind]}".rjust(12)
                             + f"  {entry['own_term']:+8.4f}  {entry[others]:+13.4f}  {entry['total']:+.4f}"
                             + (f"  {label}" if label else ""))
        lines.append("")
    return "\n".join(lines)
