"""Evaluate descriptors on a copy detection benchmark; print a Markdown table, add rows to benchmarks/results.csv.

  python tools/make_copy_benchmark.py --images photos/ --out data/bench
  python benchmarks/copy_table.py --benchmark data/bench "pHash=phash" \
      "untrained=--model mobilenet_v2 --weights w.pth" "RDCD 64=--model runs/rdcd"

After a label come options of tools/extract_descriptors.py, or `phash`. Each descriptor is computed for queries and
references and evaluated by tools/eval_copy.py on the 10 best references of each query, with and without the norm-ratio
filter. RPR is the rank of the references' covariance over the dimension, counting singular values above 0.01 of the
largest.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import shlex
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import measuring
import results
import torch
import yaml

from ascl.cli import program
from ascl.core.errors import DataError
from ascl.image_copy.benchmark.plan import REVERSE_CROP
from ascl.image_copy.descriptors.files import read_descriptors
from ascl.image_copy.descriptors.names import model_named
from ascl.image_copy.training.monitor import TOLERANCE, spectrum

BEST = 10  # references per query, for all descriptors; a perceptual hash returns no more


@dataclass(frozen=True)
class Line:
    """The metrics of one descriptor.

    filtered: metrics of the top pairs that the norm-ratio filter keeps; None without norms.
    reverse_crops: number of false pairs whose query shows more than its reference, among the top pairs and, with
        norms, among those that the filter keeps.
    """

    label: str
    dimension: str
    report: dict[str, Any]
    rpr: float | None
    about: str

    @property
    def filtered(self) -> dict[str, Any] | None:
        return self.report.get("top_pairs_norm_filter")

    @property
    def reverse_crops(self) -> list[int]:
        kinds = [kind for kind in self.report["breakdown"]["kind"] if kind["name"] == REVERSE_CROP]
        return [kind[name] for kind in kinds for name in ("top_false", "filtered_false") if name in kind]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    result.add_argument("labels", nargs="+", metavar="LABEL=OPTIONS")
    result.add_argument("--benchmark", required=True, type=Path, help="folder of tools/make_copy_benchmark.py")
    result.add_argument("--bootstrap", type=int, default=1000, help="draws of the intervals (default: %(default)s)")
    result.add_argument("--results", metavar="FILE", default=results.RESULTS,
                        help="CSV to add to (default: benchmarks/results.csv)")
    return result


def ascl(name: str, *arguments: object) -> Any:
    """Run a command in this process, suppress its output, and return its result."""
    options = program.parser_of(name).read([str(argument) for argument in arguments])
    with contextlib.redirect_stdout(io.StringIO()):
        return program.run(name)(options).content


def measure(label: str, source: str, benchmark: Path, bootstrap: int, scratch: Path) -> Line:
    """Compute descriptors, search and evaluate."""
    judged = ["--ground-truth", benchmark / "ground_truth.csv", "--edits", benchmark / "edits.csv", "--bootstrap",
              bootstrap]
    if source == "phash":
        index = scratch / "index"
        ascl("copy index", benchmark / "references", "--index", index, "--model", "phash")
        ascl("copy query", benchmark / "queries", "--index", index, "--k", BEST, "--predictions",
             scratch / "predictions.csv")
        report = ascl("copy eval", "--predictions", scratch / "predictions.csv", *judged)
        return Line(label, "64 bits", report, None, "perceptual hash")
    files = {role: scratch / f"{role}.h5" for role in ("queries", "references")}
    for role, path in files.items():
        ascl("extract descriptors", *shlex.split(source), "--images", benchmark / role, "--out", path)
    references = read_descriptors(files["references"], "reference")
    norms = [] if references.norms is None else ["--norm-filter"]
    described = ["--queries", files["queries"], "--references", files["references"]]
    report = ascl("copy eval", *described, "--k", BEST, *norms, *judged)
    seen = spectrum(torch.from_numpy(references.vectors))
    return Line(label, str(references.vectors.shape[1]), report, seen.rpr, training_of(source))


def training_of(source: str) -> str:
    """Return how a run was trained, from its folder: method, steps, seed, commit."""
    words = shlex.split(source)
    named = model_named(words[words.index("--model") + 1])
    if named.kind != "checkpoint":
        return "not trained here"
    checkpoint = Path(named.source)
    folder = checkpoint if checkpoint.is_dir() else checkpoint.parent
    settings = yaml.safe_load((folder / "settings.yaml").read_text(encoding="utf-8"))
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    train = settings["train"]
    length = f"at most {train['max_steps']} steps" if train["max_steps"] else f"{train['epochs']} epochs"
    return (f"{settings['method']}, {length} of {train['batch_size']} originals, seed {train['seed']}, trained at "
            f"commit {environment['commit']} on {environment['device']}")


def percent(share: float | None) -> str:
    return "never" if share is None else f"{100 * share:.1f}"


def table(lines: list[Line]) -> str:
    """Return a Markdown table with a row per label."""
    text = ["| | dimension | muAP (95 %) | R@1 | recall at P90 | RPR | top \\|GT\\|: TP / FP | precision | "
            "with norm filter: TP / FP | precision | FP of reverse crops, filtered |",
            "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    for line in lines:
        metrics, top, interval = line.report["metrics"], line.report["top_pairs"], line.report["intervals"]["muap"]
        kept = "|  |  |" if line.filtered is None else (
            f"| {line.filtered['true_positives']} / {line.filtered['false_positives']} | "
            f"{percent(line.filtered['precision'])} |"
        )
        kept += f" {', '.join(map(str, line.reverse_crops))} |"
        rpr = "" if line.rpr is None else f"{line.rpr:.2f}"
        text.append(
            f"| {line.label} | {line.dimension} | {percent(metrics['muap'])} ({percent(interval['low'])} to "
            f"{percent(interval['high'])}) | {percent(metrics['recall_rank1'])} | "
            f"{percent(metrics['recall_at_p90'])} | {rpr} | {top['true_positives']} / {top['false_positives']} | "
            f"{percent(top['precision'])} {kept}"
        )
    return "\n".join(text)


def rows(line: Line, benchmark: str, ran: tuple[str, str, str, str, str]) -> list[results.Row]:
    """Return rows with muAP, R@1, recall at precision 90, RPR, and TP and FP at the top, with and without filter."""
    metrics, top = line.report["metrics"], line.report["top_pairs"]
    figures = [
        ("muAP", percent(metrics["muap"]), "percent"),
        ("R@1", percent(metrics["recall_rank1"]), "percent"),
        ("recall at precision 90", percent(metrics["recall_at_p90"]), "percent"),
        ("TP / FP / precision at the top |GT| pairs",
         f"{top['true_positives']} / {top['false_positives']} / {percent(top['precision'])}", "pairs, pairs, percent"),
    ]
    if line.rpr is not None:
        figures.append((f"RPR (tolerance {TOLERANCE:g})", f"{line.rpr:.3f}", "rank / dimension"))
    if line.filtered is not None:
        kept = line.filtered
        figures.append(("TP / FP / precision at the top |GT| pairs, norm-ratio filter",
                        f"{kept['true_positives']} / {kept['false_positives']} / {percent(kept['precision'])}",
                        "pairs, pairs, percent"))
    if line.reverse_crops:
        figures.append(("FP of reverse crops at the top |GT| pairs, and with the norm-ratio filter",
                        " / ".join(map(str, line.reverse_crops)), "pairs"))
    interval = line.report["intervals"]["muap"]
    note = f"{line.dimension}; {line.about}; {BEST} best references of each query; muAP interval " \
           f"{percent(interval['low'])} to {percent(interval['high'])}"
    return [results.Row(f"{benchmark}, {line.label}, {name}", value, unit, *ran, note) for name, value, unit in figures]


def main(arguments: list[str]) -> int:
    options = parser().parse_args(arguments)
    try:
        results.read(options.results)
        counts = json.loads((options.benchmark / "benchmark.json").read_text(encoding="utf-8"))["counts"]
        name = f"copy benchmark of {counts['references']} references, {counts['queries']} queries"
        ran = measuring.what_ran(__file__, arguments, "cpu")
        lines = []
        for argument in options.labels:
            label, _, source = argument.partition("=")
            if not label or not source:
                raise DataError(f"{argument!r}: expected LABEL=OPTIONS or LABEL=phash")
            print(f"measuring: {label}", file=sys.stderr)
            with tempfile.TemporaryDirectory() as scratch:
                lines.append(measure(label, source, options.benchmark, options.bootstrap, Path(scratch)))
        print(f"{name}\n\n{table(lines)}\n")
        results.append(options.results, [row for line in lines for row in rows(line, name, ran)])
    except (DataError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"added to {options.results}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
