"""Studies, the hash of a run, and tables, from invented results."""

import csv
import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.analysis.ablation.plan import NOT_IN_HASH, PATHS_IN_HASH, Request, digest_of, plan
from ascl.analysis.ablation.results import (
    Comparison,
    Result,
    Row,
    Study,
    best_baseline,
    compare,
    probes_of,
    read_result,
    read_training,
    training_of,
)
from ascl.analysis.ablation.studies import STUDIES, StudyVariant
from ascl.analysis.ablation.table import draw_study, summary_csv, to_csv, to_markdown
from ascl.analysis.query_ranks import QueryRanks
from ascl.analysis.run_files import RECALLS
from ascl.analysis.significance import bootstrap_rsum, holm, paired_t_test, sign_flip_test
from ascl.core.errors import DataError
from ascl.settings.base import leaf_types
from ascl.settings.retrieval import Config, load_config

REPOSITORY = Path(__file__).resolve().parents[3]
CONFIGS = REPOSITORY / "configs"


def request(*settings, studies=("table2",), seeds=(0,), **changes):
    return Request("flickr8k", studies, seeds, settings, Path("out"), **changes)


# Studies and hashes


@pytest.fixture(scope="module")
def everything():
    """Every run of every study, one seed."""
    return plan(request(studies=tuple(STUDIES)))


def test_every_study_is_planned_and_its_variants_say_what_they_are_called(everything):
    by_use = {use: run.config for run in everything for use in run.uses}
    assert set(by_use) == {(study, variant.label) for study, variants in STUDIES.items() for variant in variants}
    for study, variants in STUDIES.items():
        assert len({variant.label for variant in variants}) == len(variants), study
    ours = by_use["table2", "AsCL"]
    assert ours == replace(load_config(["--dataset", "flickr8k"]), out=ours.out)
    both = by_use["table2", "w/o P&N"].samples
    assert (both.positives, both.negatives) == ("none", "none")
    assert by_use["table2", "w/o Pos"].samples.negatives != "none" != by_use["table2", "w/o Neg"].samples.positives
    assert not by_use["table2", "w/o MF"].model.fusion and by_use["table2", "w triplet loss"].loss.kind == "triplet"
    # the paper's figure 3: positives beside a mixture of negatives, negatives beside both positives
    assert {by_use["positives", label].samples.positives for label in ("none", "long", "short", "both")} == {
        "none", "concatenate", "keywords", "both"}
    for study, name in (("positives", "negatives"), ("negatives", "positives")):
        fixed = {getattr(by_use[study, variant.label].samples, name) for variant in STUDIES[study]}
        assert fixed == {"mixture" if name == "negatives" else "both"}
    for weight in (0, 0.2, 0.4, 0.6, 0.8, 1):
        assert by_use["fusion", f"u1 = {weight:g}"].model.local_weight == weight
    others = [by_use["baselines", variant.label] for variant in STUDIES["baselines"]]
    kinds = ["ascl", "two_tower", "vse", "vse_infinity", "scan_t2i", "scan_i2t", "clip", "imram", "dsran", "dime"]
    assert [config.model.kind for config in others] == kinds
    # their own loss and samples come with them: configs/baselines
    assert {(config.samples.positives, config.samples.negatives) for config in others[1:]} == {("none", "none")}
    assert by_use["baselines", "VSE++"].loss.kind == "triplet" != by_use["baselines", "CLIP-style"].loss.kind


def test_studies_share_their_runs(everything):
    uses = {frozenset(run.uses) for run in everything}
    own = {(study, label) for study, label in (
        ("table2", "AsCL"), ("loss", "AsCL"), ("baselines", "AsCL"), ("methods", "AsCL"), ("positives", "both"),
        ("negatives", "mixture"),
        ("fusion", "with fusion"), ("fusion", "u1 = 0.6"), ("loss", "temperature 0.01"))}         # of flickr8k.yaml
    assert frozenset(own) in uses
    assert frozenset({("table2", "w triplet loss"), ("loss", "triplet"), ("methods", "w triplet loss")}) in uses
    assert len({run.folder for run in everything}) == len({run.digest for run in everything}) == len(everything)


def test_every_run_gets_its_folder_by_its_hash_and_seeds_come_in_turn():
    runs = plan(request(seeds=(4, 1)))
    assert [run.config.train.seed for run in runs] == [4] * 6 + [1] * 6
    for run in runs:
        assert run.folder == Path("out/runs") / run.digest[:12] and re.fullmatch("[0-9a-f]{64}", run.digest)
        assert run.config.out == str(run.folder)
        # the command line says exactly these settings
        assert load_config(list(run.arguments)) == run.config


BASE = load_config(["--dataset", "flickr8k"])


WORDS = ["model.embed_dim=64", "loss.temperature=0.1", "train.max_steps=3", "samples.negatives=none"]
ORDERED = digest_of(load_config(["--dataset", "flickr8k", *(f"--{word}" for word in WORDS)]))


@settings(max_examples=6, deadline=None)
@given(st.permutations(WORDS))
def test_the_order_of_settings_does_not_matter(words):
    assert digest_of(load_config([*(f"--{word}" for word in words), "--dataset", "flickr8k"])) == ORDERED


@pytest.mark.parametrize("word", [
    "out=elsewhere", "data.images=photos", "data.prepare=ask", "text.cache=words", "train.workers=9",
    "train.log_every=7", "train.checkpoint_every=7", "data.captions=/moved/dataset_flickr8k.json",
    "data.features=[/moved/regions.h5,/moved/globals.h5]",
])
def test_what_moves_data_does_not_enter_the_hash(word):
    assert digest_of(load_config(["--dataset", "flickr8k", f"--{word}"])) == digest_of(BASE)


@pytest.mark.parametrize("word", [
    "train.seed=1", "train.max_steps=9", "train.batch_size=8", "train.validate_every=9", "model.embed_dim=64",
    "samples.negatives=none", "loss.kind=triplet", "text.encoder=other", "data.features=[data/flickr8k/grid.h5]",
    "data.captions=data/flickr8k/other.json", "data.val_images=3", "optimizer.lr=1e-3", "train.mixed_precision=bf16",
])
def test_what_changes_numbers_enters_the_hash(word):
    assert digest_of(load_config(["--dataset", "flickr8k", f"--{word}"])) != digest_of(BASE)


def test_the_names_that_the_hash_treats_apart_exist():
    assert set(NOT_IN_HASH) | set(PATHS_IN_HASH) <= set(leaf_types(Config))


def test_several_processes_are_another_run():
    assert digest_of(BASE, 2) not in (digest_of(BASE), digest_of(BASE, 4)) and digest_of(BASE, 1) == digest_of(BASE)


def test_common_settings_reach_every_run_and_the_variant_wins():
    runs = plan(request("--train.max_steps", "7", "--samples.negatives", "gaussian", "--loss.temperature=0.3"))
    by_label = {label: run.config for run in runs for _, label in run.uses}
    assert {config.train.max_steps for config in by_label.values()} == {7}
    assert {config.loss.temperature for config in by_label.values()} == {0.3}
    assert by_label["AsCL"].samples.negatives == "gaussian" and by_label["w/o Neg"].samples.negatives == "none"


# What a run says of itself


def test_steps_and_seconds_come_from_the_last_record():
    log = [{"kind": "train", "step": 20, "seconds": 10.0}, {"kind": "validation", "step": 25, "seconds": 12}]
    assert training_of(log) == (25, 12.0) and isinstance(training_of(log)[1], float)
    assert training_of([{"kind": "train", "step": 50}]) == (50, None) and training_of([]) == (0, None)


def write_run(folder, *, rsum=300.0, probes=None, batch_size=8):
    folder.mkdir(parents=True)
    recalls = {"r1": 10.0, "r5": 20.0, "r10": 30.0}
    content = {"reports": {"full": {"i2t": recalls, "t2i": {"r1": 1.0, "r5": 2.0, "r10": 3.0}, "rsum": rsum}},
               "probes": probes}
    (folder / "eval-test.json").write_text(json.dumps(content))
    (folder / "settings.yaml").write_text(yaml.safe_dump({"train": {"batch_size": batch_size}}))
    (folder / "environment.json").write_text(json.dumps({"commit": "abc", "torch": "2", "device": "CPU"}))
    (folder / "metrics.jsonl").write_text('{"kind": "train", "step": 5, "seconds": 2.5}\n')
    return folder


def test_a_finished_run_is_read(tmp_path):
    probes = {"kinds": {"noun swapped": {"right": 0.75}, "untried": {"right": None}},
              "by_asymmetry": {"I": {"right": 0.5, "pairs": 3}}, "how": "text"}
    folder = write_run(tmp_path / "run", probes=probes)
    result = read_result(folder, folder / "eval-test.json", 3, processes=2)
    assert result.metrics == dict(zip(RECALLS, (10, 20, 30, 1, 2, 3, 300), strict=True))
    assert (result.seed, result.steps, result.pairs, result.seconds) == (3, 5, 80, 2.5)
    assert result.probes == {"I": 0.5, "noun swapped": 0.75} and result.ranks is None
    assert result.made_with == "commit abc, torch 2, CPU"
    assert probes_of(None) == {}


@pytest.mark.parametrize(("patience", "early"), [(None, False), (2, True), (3, False)])
def test_a_run_says_when_it_was_best_and_whether_it_stopped_early(tmp_path, patience, early):
    folder = write_run(tmp_path / "run")
    (folder / "settings.yaml").write_text(yaml.safe_dump({"train": {"batch_size": 8, "patience": patience}}))
    records = [{"kind": "validation", "step": 10 * number, "rsum_of_5_folds": value, "seconds": 1.5 * number}
               for number, value in enumerate((7.0, 9.0, None, 9.0), start=1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    result = read_training(folder, 3)
    assert (result.validation, result.validated, result.best_step) == (9.0, " of 5 folds", 20)
    assert (result.stopped_early, result.steps, result.seconds, result.commit) == (early, 40, 6.0, "abc")
    assert result.metrics == {}
    row = Row("x", "", (replace(result, metrics=dict.fromkeys(RECALLS, 1.0)),))
    text = to_markdown(study_of([row]), [])
    assert "Best validation Rsum of 5 folds" in text
    assert cells(text, "x")[1] == ["x", "9.0", "20", f"{int(early)} of 1", "6"]
    # a log that lost lines since the run was stamped says nothing of its end
    assert read_training(folder, 3, steps=50).best_step is None


@pytest.mark.parametrize("content", ["no json", "[]", "{}", '{"reports": {"full": {"i2t": {}}}}'])
def test_an_evaluation_that_is_none_is_refused_by_name(tmp_path, content):
    folder = write_run(tmp_path / "run")
    (folder / "eval-test.json").write_text(content)
    with pytest.raises(DataError, match=r"eval-test\.json:? .* evaluate again"):
        read_result(folder, folder / "eval-test.json", 0)


# Comparisons and tables


def made_result(seed, quality, *, run=None, probes=None, images=30, steps=10, pairs=80):
    """An invented run: random ranks, the better the larger `quality`, and the recalls that belong to them."""
    generator = np.random.default_rng([seed or 0, int(1000 * quality)])
    owner = np.repeat(np.arange(images), 2)
    i2t, t2i = (np.floor(generator.exponential(8 / quality, n)).astype(int) for n in (images, 2 * images))
    metrics = {f"{way}_r{k}": 100 * float(np.mean(found < k)) for way, found in (("i2t", i2t), ("t2i", t2i))
               for k in (1, 5, 10)}
    ranks = QueryRanks(i2t, t2i, np.arange(images), np.arange(2 * images), owner)
    run, metrics = run or f"runs/{quality}-{seed}", metrics | {"rsum": sum(metrics.values())}
    return Result(run, seed, metrics, steps, pairs, 3.14159, probes or {}, ranks, "commit c, torch t, CPU")


def made_row(label, quality, seeds=(0, 1, 2), **changes):
    results = tuple(made_result(seed, quality, **changes) for seed in seeds)
    return Row(label, f"model.x={quality}", results, "python train")


@pytest.fixture
def rows():
    untrained = replace(made_result(None, 3.0), steps=None, pairs=None, seconds=None)
    theirs = Row("theirs", "outside model", (untrained,), outside=True)
    again = replace(made_row("again", 1.0), variant="")
    return (made_row("first", 1.0, probes={"I": 0.5, "noun swapped": 0.25}), made_row("better", 2.0, (2, 0, 7)), again,
            made_row("none yet", 1.0, ()), theirs)


def study_of(rows, **changes):
    return Study("table2", "tiny", "test", (0, 1, 2), tuple(rows), **changes)


def test_rows_are_compared_by_common_seeds(rows):
    better, again, theirs = compare(rows, rows[0], draws=200)
    first, other = ({result.seed: result for result in row.results} for row in rows[:2])
    # seeds 1 and 7 have no partner
    differences = [other[seed].metrics["rsum"] - first[seed].metrics["rsum"] for seed in (2, 0)]
    assert (better.label, better.seeds) == ("better", 2) and better.difference == pytest.approx(np.mean(differences))
    images = bootstrap_rsum([first[s].ranks for s in (2, 0)], [other[s].ranks for s in (2, 0)], draws=200)
    against_all = bootstrap_rsum([first[s].ranks for s in (0, 1, 2)], [rows[4].results[0].ranks] * 3, draws=200)
    assert better.over_images == images.interval and theirs.over_images == against_all.interval
    assert [better.bootstrap, theirs.bootstrap] == list(zip(
        [images.p, against_all.p], holm([images.p, against_all.p]), strict=True))
    assert better.t_test == (pytest.approx(paired_t_test(differences)),) * 2                # the only row so tested
    assert better.sign_flip == (sign_flip_test(differences),) * 2
    assert again == Comparison("first", "again", 0.0, 3, same_runs=True)
    assert theirs.seeds == 0 and theirs.t_test == theirs.sign_flip == (None, None) and theirs.over_seeds is None
    mean = np.mean([result.metrics["rsum"] for result in rows[0].results])
    assert theirs.difference == pytest.approx(rows[4].results[0].metrics["rsum"] - mean)


def test_every_row_is_compared_with_the_best_baseline_too(rows):
    weak, strong = (replace(made_row(name, quality), baseline=True) for name, quality in (("weak", 1.5), ("strong", 3)))
    every = (*rows[:2], weak, strong)
    assert best_baseline(every) is strong and best_baseline(rows) is None
    compared = compare(every, rows[0], draws=50) + compare(every, best_baseline(every), draws=50)
    assert [(each.reference, each.label) for each in compared] == [
        *(("first", label) for label in ("better", "weak", "strong")),
        *(("strong", label) for label in ("first", "better", "weak"))]
    # the difference over the common seeds 0 and 2, the other way round
    theirs, ours = ({result.seed: result for result in row.results} for row in (strong, rows[1]))
    expected = bootstrap_rsum([theirs[s].ranks for s in (2, 0)], [ours[s].ranks for s in (2, 0)], draws=50)
    assert compared[4].over_images == expected.interval and compared[4].seeds == 2
    text = to_markdown(study_of(every), compared)
    assert "## Difference in Rsum from 'first'\n" in text
    assert "## Difference in Rsum from 'strong', the baseline with the best mean\n" in text
    assert text.count("**Over seeds**") == 1 and "for the rows of its table (3 and 3)" in text
    lines = {line["label"]: line for line in csv.DictReader(io.StringIO(summary_csv(study_of(every), compared)))}
    assert float(lines["first"]["difference in rsum, to strong"]) == pytest.approx(-float(
        lines["strong"]["difference in rsum"]))
    assert lines["first"]["difference in rsum"] == lines["strong"]["difference in rsum, to strong"] == ""


def test_missing_or_foreign_ranks_leave_a_remark_and_the_other_tests(rows):
    lost = replace(rows[1], results=(replace(rows[1].results[0], ranks=None), *rows[1].results[1:]))
    foreign = made_row("foreign", 2.0, images=20)
    compared = compare([rows[0], lost, foreign], rows[0], draws=50)
    assert [each.remark for each in compared] == [
        "no bootstrap: an evaluation has no ranks; evaluate its run again",
        "no bootstrap: these runs ranked different queries: evaluate all of them on the same split of the same data"]
    assert all(each.bootstrap == (None, None) and each.t_test[0] is not None for each in compared)
    text = to_markdown(study_of([rows[0], lost, foreign]), compared)
    assert "- foreign: no bootstrap: these runs ranked different queries" in text


def test_without_a_run_of_the_first_there_is_no_comparison(rows):
    assert compare(rows, rows[3]) == [] == compare(rows, None)


def test_the_csv_has_a_line_for_each_run(rows):
    lines = list(csv.DictReader(io.StringIO(to_csv(study_of(rows)))))
    assert len(lines) == 10 and list(lines[0]) == [
        "study", "variant", "label", "seed", "run", *RECALLS, "steps", "pairs", "seconds", "best_step", "validation",
        "validated", "stopped_early", "commit", "chosen", "probe I", "probe noun swapped"]
    assert lines[3] == {**lines[3], "label": "better", "seed": "2", "run": "runs/2.0-2", "variant": "model.x=2.0",
                        "steps": "10", "pairs": "80", "seconds": "3.1", "probe I": ""}
    assert float(lines[3]["rsum"]) == pytest.approx(rows[1].results[0].metrics["rsum"], abs=1e-6)
    assert lines[0]["probe noun swapped"] == "0.25"
    assert lines[-1]["seed"] == lines[-1]["steps"] == lines[-1]["seconds"] == ""


def cells(text, label):
    """The cells of every row of the tables that begins with a label."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in text.splitlines()
            if line.startswith(f"| {label} |")]


def test_the_markdown_says_mean_spread_tests_and_their_limits(rows):
    study = study_of(rows, unfinished=("none yet, seed 0 (abc): missing",))
    text = to_markdown(study, compare(rows, rows[0], draws=200))
    sums = [result.metrics["rsum"] for result in rows[1].results]
    table, differences, probes = cells(text, "better")
    deviation = math.sqrt(sum((s - sum(sums) / 3) ** 2 for s in sums) / 2)
    assert table[2] == "3" and table[9] == f"{sum(sums) / 3:.1f} ± {deviation:.1f}" and table[10:] == ["10", "80"]
    assert differences[1] == "2" and differences[5] == "0.500 (0.500)"                 # 2 / 2**2
    assert cells(text, "again")[1][1] == "the same runs" and probes[1] == "–"
    assert cells(text, "first")[1][1:] == ["50.0 ± 0.0", "–", "–"]                     # probes
    assert cells(text, "none yet")[0][2:] == ["0", *["–"] * 9]
    assert cells(text, "theirs")[0][2] == "outside" and "±" not in cells(text, "theirs")[0][9]
    assert "with 3 seeds its p is never below 0.25, so that it cannot confirm anything at 0.05" in text
    assert "says nothing about other seeds" in text and "for the rows of its table (2)" in text
    assert "# first\npython train" in text and "- none yet, seed 0 (abc): missing" in text
    assert "Made with commit c, torch t, CPU." in text
    # every row of a table has as many cells as its heading
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        assert len({line.count("|") for line in block.splitlines()}) == 1


def test_unequal_budgets_and_versions_are_said(rows):
    longer = made_row("longer", 2.0, steps=20, pairs=160)
    other = replace(longer, results=(replace(longer.results[0], made_with="commit d"), *longer.results[1:]))
    text = to_markdown(study_of([rows[0], other]), [])
    assert "**Unequal budget**" in text and "**Not all alike.**" in text
    assert "**Unequal budget**" not in to_markdown(study_of(rows[:2]), [])


def test_a_study_without_any_run_is_still_a_page_and_a_picture(rows):
    study = study_of([rows[3]], unfinished=("none yet, seed 0 (abc): missing | odd\nline",))
    assert "No run is finished yet." in to_markdown(study, []) and "missing | odd line" in to_markdown(study, [])
    assert draw_study(study, []).axes
    assert to_csv(study).count("\n") == 1


def test_one_seed_is_no_test_over_seeds(rows):
    ones = [replace(row, results=row.results[:1]) for row in (rows[0], made_row("other", 2.0))]
    compared = compare(ones, ones[0], draws=50)
    assert compared[0].t_test == (None, None) and compared[0].over_seeds is None
    assert "With one seed nothing can be said" in to_markdown(study_of(ones), compared)
    assert "±" not in "".join(cells(to_markdown(study_of(ones), compared), "other")[0])


def test_the_picture_is_a_picture_of_these_numbers(rows):
    """What is drawn is asked of the axes: bars at the means, error bars of the deviations, intervals of the tests."""
    compared = compare(rows, rows[0], draws=100)
    figure = draw_study(study_of(rows), compared)
    bars, gaps = figure.axes
    shown = [row for row in rows if row.results]
    assert [text.get_text() for text in bars.get_yticklabels()] == [row.label for row in shown]
    means = [np.mean([result.metrics["rsum"] for result in row.results]) for row in shown]
    assert [patch.get_width() for patch in bars.patches] == pytest.approx(means)
    ends = [tuple(line.get_xdata()) for line in gaps.lines]
    for each in compared:
        for interval in (each.over_seeds, each.over_images):
            assert interval is None or each.same_runs or (interval.low, interval.high) in ends
    assert "Rsum" in bars.get_xlabel() and "points" in gaps.get_xlabel()
    assert "seeds 0, 1, 2" in figure.get_suptitle()


def test_a_variant_prints_its_settings_in_one_order():
    assert str(StudyVariant("x", {"b.c": "2", "a": "1"})) == "a=1 b.c=2" and str(StudyVariant("x")) == ""


