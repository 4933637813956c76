"""Tables and figure of a study: CSV with a line per run, CSV and Markdown with means and tests, and a figure."""

from __future__ import annotations

import csv
import io
import os
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from ascl.analysis.ablation.plan import Use
from ascl.analysis.ablation.results import TESTS, Comparison, Result, Row, Study
from ascl.analysis.ablation.trials import Tried
from ascl.analysis.figures.style import COLORS, use_style
from ascl.analysis.run_files import RECALLS
from ascl.core.errors import DataError
from ascl.core.reading import read_text, reading
from ascl.core.statistics import Interval
from ascl.core.tables import markdown_table

HEADINGS = ("I2T R@1", "I2T R@5", "I2T R@10", "T2I R@1", "T2I R@5", "T2I R@10", "Rsum")
ASYMMETRIES = ("I", "II", "III")
UNKNOWN = "–"
_INTERVALS = {      # field of a comparison: (name, vertical offset, color, marker)
    "over_seeds": ("over seeds", -0.13, COLORS[0], "o"), "over_images": ("over test images", 0.13, COLORS[4], "s")}


def to_csv(study: Study) -> str:
    """Return CSV with one line per evaluated run: recalls in percent, probes as shares; unknown values are empty."""
    probes = list(dict.fromkeys(name for row in study.rows for result in row.results for name in result.probes))
    return _csv(["study", "variant", "label", "seed", "run", *RECALLS,
                 *_OF_TRAINING, "chosen", *(f"probe {name}" for name in probes)], (
        [study.name, row.variant, row.label, result.seed, result.run, *(round(result.metrics[n], 6) for n in RECALLS),
         *_training(result), row.chosen, *map(result.probes.get, probes)]
        for row in study.rows for result in row.results))


_OF_TRAINING = ("steps", "pairs", "seconds", "best_step", "validation", "validated", "stopped_early", "commit")


def _training(result: Result) -> list[object]:
    """Return the values of `_OF_TRAINING`; `validated` says what the validation Rsum is of."""
    return [result.steps, result.pairs, result.seconds and round(result.seconds, 1), result.best_step,
            result.validation and round(result.validation, 6), result.validated.strip(), result.stopped_early,
            result.commit]


def trials_csv(trials: Mapping[Use, Sequence[Tried]], chosen: Mapping[Use, Tried]) -> str:
    """Return CSV with one line per tuning trial of each variant; unknown values are empty."""
    return _csv(["study", "label", "trial", "chosen", "state", "reason", "seed", "run", *_OF_TRAINING], (
        [study, label, one.trial.label, one is chosen.get((study, label)), one.state, one.reason,
         one.run.config.train.seed, one.run.folder, *([""] * len(_OF_TRAINING) if one.result is None
                                                      else _training(one.result))]
        for (study, label), of_variant in trials.items() for one in of_variant))


def summary_csv(study: Study, comparisons: Sequence[Comparison]) -> str:
    """Return CSV with one line per variant: means, sample standard deviations, and the differences in Rsum.

    The differences are those to the first variant; then those to the best baseline, which the columns name.
    """
    names = [*RECALLS, *ASYMMETRIES]
    references = list(dict.fromkeys(each.reference for each in comparisons)) or [study.rows[0].label]
    of_row = {(each.reference, each.label): each for each in comparisons if not each.same_runs}
    compared = ["difference in rsum",
                *(f"95 % over {over}, {end}" for over in ("seeds", "images") for end in ("low", "high")),
                *(f"p {test}{corrected}" for test in TESTS for corrected in ("", ", Holm"))]
    lines = []
    for row in study.rows:
        numbers = [number for name in names for number in (_mean(row, name) or (None, None))]
        for reference in references:
            each = of_row.get((reference, row.label))
            numbers += [None] * len(compared) if each is None else [
                each.difference, *(getattr(interval, end, None) for interval in (each.over_seeds, each.over_images)
                                   for end in ("low", "high")), *(p for test in TESTS for p in getattr(each, test))]
        lines.append([study.name, row.variant, row.label, row.chosen, len(row.results), _early(row),
                      *(None if number is None else round(number, 6) for number in numbers)])
    means = [f"{name} {what}" for name in names for what in ("mean", "deviation")]
    to_others = [f"{name}, to {other}" for other in references[1:] for name in compared]
    return _csv(["study", "variant", "label", "chosen", "runs", "stopped early", *means, *compared, *to_others], lines)


def _csv(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="\n").writerows([head, *rows])
    return stream.getvalue()


def read_table(path: Path) -> list[dict[str, str]]:
    """Read a table that `to_csv` wrote, without outside models, which have no seed and no run.

    Raises:
        FileNotFoundError: the file does not exist; the message has the command that writes it.
        DataError: it is another table, or a line is incomplete.
    """
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{path} does not exist; create it with ascl ablate --dataset NAME --study {path.stem}")
    again = "write the table again with `ascl ablate`"
    text = read_text(path, "a table (CSV)", again)
    with reading(path, "a table (CSV)", again):
        reader = csv.DictReader(io.StringIO(text, newline=""))
        rows = list(reader)
    missing = [name for name in ("study", "variant", "label", "seed", "run", *RECALLS)
               if name not in (reader.fieldnames or ())]
    if missing:
        raise DataError(f"{path} has no column {missing[0]!r}: give a table that `ascl ablate` wrote")
    for number, row in enumerate(rows, start=2):
        if None in row.values() or None in row:
            amount = "many" if None in row else "few"
            raise DataError(f"{path}, line {number} has too {amount} columns; {again}")
    return [row for row in rows if row["seed"]]


def to_markdown(study: Study, comparisons: Sequence[Comparison]) -> str:
    """Return Markdown with means, differences from the first variant, what the tests can show, probes, commands."""
    parts = [
        f"# {_title(study)}",
        "Recalls in percent, Rsum is the sum of the six; mean ± sample standard deviation over the finished seeds. "
        "Every pair of the split is scored.",
        markdown_table(["Variant", "Settings", "Seeds", *HEADINGS, "Steps", "Pairs seen"], [
            [row.label, _settings(row), "outside" if row.outside else len(row.results),
             *(_spread(row, name) for name in RECALLS), _count(row, "steps"), _count(row, "pairs")]
            for row in study.rows
        ], text_columns=2),
        _budget(study),
        *_trainings(study),
        *_differences(study, comparisons),
        *_probes(study)]
    if commands := [f"# {row.label}\n{row.command}" for row in study.rows if row.command]:
        parts += ["## Commands", f"Of seed {study.seeds[0]}; the other seeds differ in `--train.seed` and `--out`.",
                  "```\n" + "\n".join(commands) + "\n```"]
    if study.unfinished:
        parts += ["## Not finished", "\n".join(f"- {' '.join(line.split())}" for line in study.unfinished)]
    return "\n\n".join(parts) + "\n"


def _title(study: Study) -> str:
    seeds = ", ".join(map(str, study.seeds))
    return f"Ablation {study.name}: {study.dataset}, {study.split} split, seeds {seeds}"


def _settings(row: Row) -> str:
    if row.outside:
        return "scores of an outside model"
    return f"`{row.variant}`" if row.variant else "those of the data set"


def _mean(row: Row, name: str) -> tuple[float, float | None] | None:
    """Return mean and deviation of a recall or a probe."""
    return row.mean(lambda result: result.metrics.get(name, result.probes.get(name)))


def _spread(row: Row, name: str, scale: float = 1.0) -> str:
    found = _mean(row, name)
    if found is None:
        return UNKNOWN
    mean, deviation = found
    return f"{scale * mean:.1f}" + ("" if deviation is None else f" ± {scale * deviation:.1f}")


def _count(row: Row, name: str) -> str:
    """Return the steps or pairs of the row's runs: one number if all agree, else the range."""
    values = sorted({value for result in row.results if (value := getattr(result, name)) is not None})
    return " to ".join(f"{value:,}" for value in dict.fromkeys(values[:1] + values[-1:])) or UNKNOWN


def _early(row: Row) -> int | None:
    """Return how many of the row's runs stopped early, None if no run says."""
    known = [result.stopped_early for result in row.results if result.stopped_early is not None]
    return sum(known) if known else None


def _trainings(study: Study) -> list[str]:
    """Return the section on how long each variant trained, and on its trials."""
    rows = [row for row in study.rows if any(result.validation is not None for result in row.results)]
    if not rows:
        return []
    of = " or ".join(dict.fromkeys(result.validated for row in rows for result in row.results))
    head = ["Variant", *(["Chosen settings"] if study.trials else []), f"Best validation Rsum{of}", "At step",
            "Stopped early", "Seconds"]
    lines = []
    for row in rows:
        early = _early(row)
        validation, seconds = (UNKNOWN if mean is None else f"{mean[0]:.{digits}f}" for mean, digits in (
            (row.mean(lambda result: result.validation), 1), (row.mean(lambda result: result.seconds), 0)))
        lines.append([row.label, *([f"`{row.chosen}`"] if study.trials else []), validation, _count(row, "best_step"),
                      UNKNOWN if early is None else f"{early} of {len(row.results)}", seconds])
    text = ("Best validation Rsum and seconds of training (without validations) are means over seeds. A run stops "
            "early if `train.patience` validations in a row were no better; the others ended at their limit of steps.")
    if study.trials:
        text += (f" Every variant was tried with the same {study.trials} settings, its defaults among them, and the "
                 f"seed {study.trial_seed}, which no run of the table has. The best Rsum on the validation split chose "
                 f"its settings; no trial was evaluated on the {study.split} split. `{study.name}_trials.csv` has "
                 "every trial.")
    return ["## Training", text, markdown_table(head, lines, text_columns=2 if study.trials else 1)]


def _budget(study: Study) -> str:
    trained = [result for row in study.rows for result in row.results if result.pairs is not None]
    if not trained:
        return "No run is finished yet."
    each = {(result.steps or 0, result.pairs or 0) for result in trained}
    text = "**Unequal budget**: the runs saw different numbers of pairs of a caption and its image (last column)."
    if len(each) == 1:
        steps, pairs = each.pop()
        text = f"Equal budget: every run took {steps:,} steps and saw {pairs:,} pairs of a caption and its image."
    made_with = sorted({result.made_with for result in trained})
    return (f"{text} Generated captions are not counted.\n\n"
            f"Made with {'; '.join(made_with)}." + " **Not all alike.**" * (len(made_with) > 1))


def _differences(study: Study, comparisons: Sequence[Comparison]) -> list[str]:
    """Return a section for each reference, and what the tests say."""
    references = dict.fromkeys(each.reference for each in comparisons)
    parts = [part for reference in references
             for part in _differences_from(study, [each for each in comparisons if each.reference == reference])]
    return [*parts, _what_the_tests_say(study, comparisons)] if parts else []


def _differences_from(study: Study, comparisons: Sequence[Comparison]) -> list[str]:
    reference = comparisons[0].reference
    rows = []
    for each in comparisons:
        row = ["the same runs", *[UNKNOWN] * 6] if each.same_runs else [
            str(each.seeds) if each.seeds else "outside", f"{each.difference:+.1f}", _interval(each.over_seeds),
            _p(*each.t_test), _p(*each.sign_flip), _interval(each.over_images), _p(*each.bootstrap)]
        rows.append([each.label, *row])
    head = ["Variant", "Pairs of runs", "Difference", "95 % over seeds", "p, t-test (Holm)", "p, sign flips (Holm)",
            "95 % over test images", "p, bootstrap (Holm)"]
    remarks = "\n".join(f"- {each.label}: {each.remark}." for each in comparisons if each.remark)
    which = "" if reference == study.rows[0].label else ", the baseline with the best mean"
    return [f"## Difference in Rsum from {reference!r}{which}", markdown_table(head, rows),
            *([remarks] if remarks else [])]


def _interval(interval: Interval | None) -> str:
    return UNKNOWN if interval is None else f"{interval.low:+.1f} to {interval.high:+.1f}"


def _p(*raw_and_corrected: float | None) -> str:
    if None in raw_and_corrected:
        return UNKNOWN
    raw, corrected = ("< 0.001" if p < 0.001 else f"{p:.3f}" for p in raw_and_corrected if p is not None)
    return f"{raw} ({corrected})"


def _what_the_tests_say(study: Study, comparisons: Sequence[Comparison]) -> str:
    most = max(each.seeds for each in comparisons)
    counts = Counter(each.reference for each in comparisons if not each.same_runs).values()
    compared = " and ".join(map(str, counts)) or "0"
    lines = ["**Over seeds**: would the order persist if both were retrained? With one seed nothing can be said."]
    if most > 1:
        lines = [
            "**Over seeds** (runs with the same seed are paired): would the order persist if both were retrained? "
            "The t-test assumes that differences between runs are normally distributed, which "
            f"{most} seeds cannot confirm; its interval is wide because the spread is estimated from few runs. The "
            "sign-flip test assumes only that a difference is as likely as its negative, and is exact; with "
            f"{most} seeds its p is never below {2 / 2**most:.3g}"
            + (", so that it cannot confirm anything at 0.05: this needs at least six." if most < 6 else ".")]
    lines += [
        "**Over test images** (10,000 resamples of the images, each with all of its captions, the same for both "
        "sides, averaged over the paired runs): would these trained networks keep their order on other test images of "
        "the same kind? This says nothing about other seeds; the candidates of each query stay those of the full test "
        "set. Trust a difference that both kinds of test find.",
        f"**Holm** corrects each test for the rows of its table ({compared}). A large p does not prove equality: "
        "the interval shows how large a difference is still possible."]
    if any(row.outside for row in study.rows):
        lines.append("An outside model has one score matrix and no seed: it is compared with the mean of all runs of "
                     "the other row, over images only, assuming that its images and captions are in the same order as "
                     "here.")
    return "\n".join(f"- {line}" for line in lines)


def _probes(study: Study) -> list[str]:
    if not any(name in result.probes for row in study.rows for result in row.results for name in ASYMMETRIES):
        return []
    rows = ([row.label, *(_spread(row, name, 100) for name in ASYMMETRIES)] for row in study.rows)
    return [
        "## Probes of asymmetry",
        "Share of cases in the right order, in percent; chance is 50. I: the caption scores higher than its variant "
        "with a false detail. II and III: of the caption and a variant that says more or less, the text that says more "
        "separates its own image further from others. The CSV has each kind of variant; the definitions are in "
        "`eval-*.md` of each run.",
        markdown_table(["Variant", *ASYMMETRIES], rows)]


def draw_study(study: Study, comparisons: Sequence[Comparison]) -> Figure:
    """Draw Rsum of each variant with its single runs, and the differences from the first with their intervals."""
    use_style()
    rows = [row for row in study.rows if row.results]
    first = study.rows[0].label
    by_label = {each.label: each for each in comparisons if each.reference == first and not each.same_runs}
    figure = Figure(figsize=(10.5, 2.2 + 0.42 * max(len(rows), 1)), layout="constrained")
    bars, gaps = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    largest = 1.0
    for place, row in enumerate(rows):
        sums = [result.metrics["rsum"] for result in row.results]
        mean, deviation = _mean(row, "rsum") or (0.0, None)
        largest = max(largest, *sums)
        bars.barh(place, mean, height=0.62, color=COLORS[1 if row.outside else 0], alpha=0.75)
        if deviation is not None:
            bars.errorbar(mean, place - 0.1, xerr=deviation, color="black", capsize=4)
            bars.plot(sums, [place + 0.18] * len(sums), linestyle="none", marker="o", markersize=4, color="black",
                      markeredgecolor="white", markeredgewidth=0.5)
        end = max(*sums, mean + (deviation or 0.0), 0.0)
        bars.annotate(_spread(row, "rsum"), (end, place), (6, 0), textcoords="offset points", va="center", fontsize=9)
        for attribute, (_, shift, color, marker) in _INTERVALS.items():
            interval = getattr(by_label.get(row.label), attribute, None)
            if interval is not None:
                gaps.plot([interval.low, interval.high], [place + shift] * 2, color=color)
                gaps.plot(by_label[row.label].difference, place + shift, color=color, marker=marker)
    bars.set_xlim(0, 1.3 * largest)
    bars.set_yticks(range(len(rows)), [row.label for row in rows])
    bars.set_ylim(len(rows) - 0.4, -0.6)                # shared by both axes; the first variant is on top
    bars.set_xlabel("Rsum: sum of six recalls in percent, at most 600\n"
                    "(bar: mean; line: sample standard deviation; dots: runs)")
    gaps.tick_params(left=False)
    gaps.axvline(0, color="black", linewidth=0.8)
    gaps.set_xlabel(f"difference in Rsum from {first!r}, points")
    for text, _, color, marker in _INTERVALS.values():
        gaps.plot([], [], color=color, marker=marker, label=f"95 % {text}")
    if by_label:
        gaps.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    figure.suptitle(textwrap.fill(_title(study), 100))
    return figure
