"""tools/eval_copy.py from files to report: the protocol it prints, every option, and what it refuses."""

import json

import h5py
import numpy as np
import pytest

from ascl.image_copy import micro_average_precision, score_normalise, write_descriptors, write_submission
from ascl.image_copy.descriptors.files import read_descriptors
from ascl.image_copy.evaluation.files import read_predictions

QUERIES, REFERENCES, PAIRS, DIMENSION = 40, 60, 15, 8


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture
def data(tmp_path):
    """Folder with q.h5, r.h5, b.h5, gt.csv and edits.csv: 15 noisy copies, 25 distractors of which 5 show more."""
    rng = np.random.default_rng(0)
    reference = unit(rng.normal(size=(REFERENCES, DIMENSION)))
    query = unit(rng.normal(size=(QUERIES, DIMENSION)))
    noise = np.where(np.arange(PAIRS) < 4, 0.002, 0.4)[:, None]                      # four are found beyond doubt
    query[:PAIRS] = unit(reference[:PAIRS] + noise * rng.normal(size=(PAIRS, DIMENSION)))
    query[PAIRS : PAIRS + 5] = unit(reference[30:35] + 0.05 * rng.normal(size=(5, DIMENSION)))  # reverse crops
    norms = np.full(QUERIES, 0.8)
    norms[PAIRS : PAIRS + 5] = 1.5
    names = [f"Q{i:02d}" for i in range(QUERIES)]
    write_descriptors(tmp_path / "q.h5", names, query, norms=norms, model="net 1a")
    write_descriptors(tmp_path / "r.h5", [f"R{i:02d}" for i in range(REFERENCES)], reference,
                      norms=np.ones(REFERENCES), model="net 1a")
    write_descriptors(tmp_path / "b.h5", [f"B{i:02d}" for i in range(50)], unit(rng.normal(size=(50, DIMENSION))))
    rows = [f"{name},{f'R{i:02d}' if i < PAIRS else ''}" for i, name in enumerate(names)]
    (tmp_path / "gt.csv").write_text("query_id,reference_id\n" + "\n".join(rows) + "\n")
    kinds = ["crop" if i % 2 else "blur" for i in range(PAIRS)] + ["reverse"] * 5 + ["crop"] * (QUERIES - PAIRS - 5)
    (tmp_path / "edits.csv").write_text("query_id,kind,strength,content_scale\n" + "".join(
        f"{name},{kind},{'hard' if i % 3 else 'mild'},0.5\n"
        for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
    ))
    return tmp_path


@pytest.fixture
def run(tool, data, capsys):
    """Options -> (exit code, report or None, printed, errors), on the files of `data`."""
    def call(*options, files=("queries", "references", "ground-truth")):
        names = {"queries": "q.h5", "references": "r.h5", "ground-truth": "gt.csv"}
        out = data / "report.json"
        out.unlink(missing_ok=True)
        arguments = [part for name in files for part in (f"--{name}", str(data / names[name]))]
        code = tool("eval_copy")([*arguments, "--out", str(out), "--device", "cpu", *map(str, options)])
        printed = capsys.readouterr()
        return code, json.loads(out.read_text()) if out.exists() else None, printed.out, printed.err

    return call


def test_the_report_holds_the_metrics_and_the_protocol(run, data):
    code, report, printed, _ = run("--save-predictions", data / "p.csv")
    query, reference = (read_descriptors(data / f"{side}.h5", side) for side in "qr")
    scores = -((query.vectors[:, None].astype(float) - reference.vectors[None]) ** 2).sum(axis=2)
    expected = micro_average_precision(np.repeat(query.names, REFERENCES), np.tile(reference.names, QUERIES),
                                       scores.ravel(), query.names[:PAIRS], reference.names[:PAIRS])
    assert code == 0
    for name in ("muap", "recall_at_p90", "threshold_at_p90", "recall_rank1", "recall_rank10"):
        assert report["metrics"][name] == pytest.approx(getattr(expected, name), abs=1e-12)
    counts = report["counts"]
    assert (counts["queries"], counts["references"], counts["distractor_references"]) == (40, 60, 45)
    assert (counts["ground_truth_pairs"], counts["distractor_queries"], counts["candidates"]) == (15, 25, 2400)
    for text in ("500,000 best pairs over all queries", "wrong pairs first", "net 1a", "codec: Flat", "muAP", "15"):
        assert text in printed
    assert (data / "report.md").read_text() in printed
    np.testing.assert_allclose(read_predictions(data / "p.csv")[2], expected.thresholds, atol=1e-12)


def test_saved_predictions_give_the_same_report(run, data):
    _, report, _, _ = run("--candidates", 300, "--save-predictions", data / "p.csv")
    code, again, _, _ = run("--predictions", data / "p.csv", files=["ground-truth"])
    assert code == 0 and again["metrics"] == report["metrics"] and again["top_pairs"] == report["top_pairs"]
    assert report["counts"]["candidates"] == 300


def test_the_norm_filter_rejects_what_shows_more(run):
    _, report, printed, _ = run("--norm-filter")
    plain, filtered = report["top_pairs"], report["top_pairs_norm_filter"]
    assert plain["taken"] == filtered["taken"] == PAIRS
    assert filtered["rejected_true"] == 0 and filtered["rejected_false"] >= 5
    assert filtered["precision"] > plain["precision"]
    assert report["metrics_norm_filter"]["muap"] > report["metrics"]["muap"]
    assert "with norm-ratio filter" in printed


def test_the_curve_of_norm_ratios_and_what_the_filter_leaves_of_each_kind(run, data):
    """Counted again by a loop over the saved predictions."""
    _, report, printed, _ = run("--norm-filter", "--save-predictions", data / "p.csv", "--edits", data / "edits.csv")
    rows = list(zip(*read_predictions(data / "p.csv"), strict=True))
    truth = {(f"Q{i:02d}", f"R{i:02d}") for i in range(PAIRS)}
    rows.sort(key=lambda row: (-row[2], (row[0], row[1]) in truth))
    sides = [read_descriptors(data / f"{side}.h5", "query") for side in "qr"]
    norm = [dict(zip(side.names, side.norms, strict=True)) for side in sides]
    for point in report["norm_ratio_curve"]:
        kept = [row for row in rows[:PAIRS] if norm[0][row[0]] <= np.float32(point["most"]) * norm[1][row[1]]]
        true = sum((row[0], row[1]) in truth for row in kept)
        assert (point["true_positives"], point["false_positives"]) == (true, len(kept) - true)
    at_one = next(point for point in report["norm_ratio_curve"] if point["most"] == 1)
    assert at_one == {"most": 1.0, **report["top_pairs_norm_filter"]}
    assert len({point["false_positives"] for point in report["norm_ratio_curve"]}) > 1
    for grouping in report["breakdown"].values():
        assert sum(row["filtered_true"] for row in grouping) == at_one["true_positives"]
        assert sum(row["filtered_false"] for row in grouping) == at_one["false_positives"]
    kinds = {row["name"]: row for row in report["breakdown"]["kind"]}
    assert kinds["reverse"]["top_false"] > 0 and kinds["reverse"]["filtered_false"] == 0
    assert "top pairs, norm ratio at most" in printed and "TP filtered" in printed


def test_three_candidates_of_each_query(run, data):
    """The filter's norms belong to the right pairs also where the candidates are not in the order of their scores."""
    _, report, _, _ = run("--norm-filter", "--k", 3, "--save-predictions", data / "p.csv")
    assert report["counts"]["candidates"] == 120 and "3 best references of each query" in str(report["protocol"])
    query, reference, score = read_predictions(data / "p.csv")
    assert query == [f"Q{i:02d}" for i in range(QUERIES) for _ in range(3)]
    more = {f"Q{i:02d}" for i in range(PAIRS, PAIRS + 5)}
    kept = [row for row in zip(query, reference, score, strict=True) if row[0] not in more]
    names = [f"{i:02d}" for i in range(PAIRS)]
    expected = micro_average_precision(*map(list, zip(*kept, strict=True)), [f"Q{name}" for name in names],
                                       [f"R{name}" for name in names])
    assert report["metrics_norm_filter"]["muap"] == pytest.approx(expected.muap, abs=1e-12)


def test_score_normalization_is_the_function(run, data):
    _, report, _, _ = run("--background", data / "b.h5", "--score-norm", "sscd", "--weight", 0.7, "--end", 4)
    query, reference, background = (read_descriptors(data / f"{side}.h5", "query") for side in "qrb")
    scores = score_normalise(query.vectors, reference.vectors, background.vectors, weight=0.7, start=0, end=4)
    expected = micro_average_precision(np.repeat(query.names, REFERENCES), np.tile(reference.names, QUERIES),
                                       scores.ravel(), query.names[:PAIRS], reference.names[:PAIRS])
    assert report["metrics"]["muap"] == pytest.approx(expected.muap, abs=1e-9)
    assert "beta 0.7" in report["protocol"]["normalization"] and report["counts"]["background"] == 50


@pytest.mark.parametrize(("options", "expected"), [
    (["--score-norm", "isc"], "beta 2"),
    (["--score-norm", "negatives", "--neighbours", 5], "k 5"),
    (["--whiten", 6], "none PCAW6,L2norm,Flat"),
    (["--whiten", 6, "--score-norm", "sscd"], "places 0 to 2 (from 0), beta 1 PCAW6"),
])
def test_every_normalization_runs_and_is_named(run, data, options, expected):
    code, report, _, _ = run("--background", data / "b.h5", *options)
    named = f"{report['protocol']['normalization']} {report['protocol']['codec']}"
    assert code == 0 and report["metrics"]["muap"] > 0.1
    assert expected in named


def test_breakdown_and_intervals(run, data):
    _, report, printed, _ = run("--edits", data / "edits.csv", "--bootstrap", 50, "--seed", 3)
    kinds = {row["name"]: row for row in report["breakdown"]["kind"]}
    assert list(kinds) == ["blur", "crop", "reverse"]
    assert kinds["reverse"]["pairs"] == 0 and kinds["reverse"]["muap"] is None and kinds["reverse"]["top_false"] > 0
    assert sum(row["queries"] for row in kinds.values()) == QUERIES
    for grouping in report["breakdown"].values():
        assert sum(row["pairs"] for row in grouping) == PAIRS
        assert sum(row["top_true"] for row in grouping) == report["top_pairs"]["true_positives"]
        assert sum(row["top_false"] for row in grouping) == report["top_pairs"]["false_positives"]
        first = sum(row["recall_rank1"] * row["pairs"] for row in grouping if row["pairs"])
        assert first == pytest.approx(report["metrics"]["recall_rank1"] * PAIRS)
        above = sum(row["recall_at_p90"] * row["pairs"] for row in grouping if row["pairs"])
        assert above == pytest.approx(report["metrics"]["recall_at_p90"] * PAIRS)
    interval = report["intervals"]["muap"]
    assert interval["low"] < report["metrics"]["muap"] < interval["high"]
    assert "50 draws of the 40 queries" in report["protocol"]["intervals"] and "95 % interval" in printed


def test_hard_negatives_among_the_top_pairs_by_kind(run, data):
    """Reverse crops are near their references; the other pairs are of queries that resemble nothing."""
    negatives = [(f"Q{i:02d}", f"R{15 + i:02d}") for i in range(PAIRS, PAIRS + 5)] + [("Q30", "R00"), ("Q31", "R01")]
    lines = "".join(f"{query},{reference},0.5\n" for query, reference in negatives)
    (data / "n.csv").write_text("query_id,reference_id,reference_content_scale\n" + lines)
    options = ["--edits", data / "edits.csv", "--hard-negatives", data / "n.csv"]
    _, report, printed, _ = run(*options, "--norm-filter", "--save-predictions", data / "p.csv")
    scored = sorted(zip(*read_predictions(data / "p.csv"), strict=True), key=lambda row: -row[2])
    top = {row[:2] for row in scored[:PAIRS]}
    expected = len(top & set(negatives[:5]))
    assert report["hard_negatives"] == [{"name": "crop", "pairs": 2, "top": 0, "filtered": 0},
                                        {"name": "reverse", "pairs": 5, "top": expected, "filtered": 0}] and expected
    assert f"| reverse | 5 | {expected} | 0 |" in printed and "among the top 15 pairs" in printed
    _, report, printed, _ = run(*options)
    assert report["hard_negatives"][1] == {"name": "reverse", "pairs": 5, "top": expected}
    code, _, _, errors = run("--hard-negatives", data / "n.csv")
    assert code != 0 and "give --edits or --verify too" in errors


@pytest.mark.parametrize(("text", "expected"), [
    ("query,reference\nQ15,R30\n", "no column query_id, reference_id"),
    ("query_id,reference_id\nQ15,R30\nQ15,\n", "row 3: no reference id"),
    ("query_id,reference_id\n,R30\n", "row 2: no query id"),
    ("query_id,reference_id\nQ15,R30\nQ15,R30\n", "row 3: the same as row 2"),
])
def test_damaged_hard_negatives_are_refused(run, data, text, expected):
    (data / "n.csv").write_text(text)
    code, report, _, errors = run("--edits", data / "edits.csv", "--hard-negatives", data / "n.csv")
    assert code != 0 and report is None and expected in errors


def test_images_without_descriptor_are_counted_not_dropped(run, data):
    with open(data / "gt.csv", "a") as file:
        file.write("Q98,R01\nQ00,R99\nQ97,\n")
    code, report, printed, _ = run()
    counts = report["counts"]
    assert code == 0 and counts["ground_truth_pairs"] == PAIRS + 2 and counts["ground_truth_pairs_not_described"] == 2
    assert (counts["ground_truth_queries_not_described"], counts["ground_truth_references_not_described"]) == (2, 1)
    assert "2 of 17 true pairs count as misses" in printed
    (data / "gt.csv").write_text("Q00,R00\nQ01,\n")
    _, report, printed, _ = run()
    assert report["counts"]["described_queries_not_in_ground_truth"] == 38 and "all of their pairs" in printed
    (data / "gt.csv").write_text("Q00.jpg,R00\n")
    code, report, _, error = run()
    assert code == 1 and report is None and "look like 'Q00.jpg', 'R00'" in error and "like 'Q00', 'R00'" in error


def test_an_overlapping_background_is_warned_of(run, data):
    vectors = read_descriptors(data / "r.h5", "reference").vectors
    write_descriptors(data / "b.h5", ["R03", "x", "y"], np.concatenate([vectors[5:7], -vectors[:1]]))
    _, report, printed, _ = run("--background", data / "b.h5", "--score-norm", "sscd")
    assert "overlaps the references: 1 images by id, 2 by identical descriptor" in printed
    assert report["counts"]["background_reference_same_vector"] == 2


def test_a_submission_gives_both_sides(tool, data, capsys):
    write_submission(data / "s.h5", *(read_descriptors(data / f"{side}.h5", "query") for side in "qr"))
    both = ["--queries", str(data / "s.h5"), "--references", str(data / "s.h5")]
    assert tool("eval_copy")([*both, "--ground-truth", str(data / "gt.csv"), "--device", "cpu"]) == 0
    assert "queries: 40" in capsys.readouterr().out


def test_the_compared_vectors_are_saved_as_a_submission(run, tool, data, capsys):
    """Evaluated again without any whitening, the saved vectors give the same report."""
    background = unit(np.random.default_rng(7).normal(size=(30, 8)))
    write_descriptors(data / "b.h5", [f"b{i}" for i in range(30)], background)
    _, whitened, _, _ = run("--background", data / "b.h5", "--whiten", "4", "--save-submission", data / "s.h5")
    both = ["--queries", str(data / "s.h5"), "--references", str(data / "s.h5")]
    again = ["--ground-truth", str(data / "gt.csv"), "--device", "cpu", "--out", str(data / "t.json")]
    assert tool("eval_copy")([*both, *again]) == 0
    repeated = json.loads((data / "t.json").read_text())
    assert repeated["counts"]["dimension"] == 4
    assert repeated["metrics"] == pytest.approx(whitened["metrics"])
    with h5py.File(data / "s.h5") as file:
        for side in ("query_ids", "reference_ids"):
            assert file[side][:].tolist() == sorted(file[side][:].tolist())


@pytest.mark.parametrize("options", [["--score-norm", "sscd", "--background", "b.h5"], ["--score-norm", "isc"]])
def test_a_submission_refuses_an_added_dimension(tool, data, capsys, options):
    files = ["--queries", str(data / "q.h5"), "--references", str(data / "r.h5")]
    truth = ["--ground-truth", str(data / "gt.csv")]
    assert tool("eval_copy")([*files, *truth, *options, "--save-submission", str(data / "s.h5")]) == 2
    assert "by inner products with one more dimension" in capsys.readouterr().err
    assert not (data / "s.h5").exists()


def test_copydays(tool, data, capsys):
    """Two blocks in two files with the same picture names; a loop over the definition gives the same scores."""
    rng = np.random.default_rng(1)
    original = unit(rng.normal(size=(6, 8)))
    names = [f"200{i}00" for i in range(6)]
    strong = unit(original[[0, 0, 3, 5]] + 0.5 * rng.normal(size=(4, 8)))
    write_descriptors(data / "original.h5", names, original)
    write_descriptors(data / "strong.h5", ["200001", "200002", "200301", "200501"], strong)
    write_descriptors(data / "crops-10.h5", names, unit(original + 0.3 * rng.normal(size=(6, 8))))
    write_descriptors(data / "distractors.h5", ["d0", "d1"], unit(rng.normal(size=(2, 8))))
    files = [str(data / f"{name}.h5") for name in ("original", "strong", "crops-10")]
    code = tool("eval_copy")(["--queries", *files, "--references", files[0], str(data / "distractors.h5"),
                              "--ground-truth", "copydays", "--out", str(data / "c.json"), "--device", "cpu"])
    report = json.loads((data / "c.json").read_text())
    assert code == 0 and report["counts"]["ground_truth_pairs"] == 16
    assert "100 best references of each query" in capsys.readouterr().out
    everything = np.concatenate([original, read_descriptors(data / "distractors.h5", "query").vectors])
    average = []
    for vector, owner in zip(strong, [0, 0, 3, 5], strict=True):
        distance = ((everything.astype(float) - vector) ** 2).sum(axis=1)
        rank = int((distance < distance[owner]).sum())
        average.append(((0 if rank else 1) + 1 / (rank + 1)) / 2)
    assert report["copydays"]["map_by_block"]["strong"] == pytest.approx(np.mean(average))
    assert report["copydays"]["map_by_block"]["original"] == 1.0
    assert 0 < report["copydays"]["pooled_uap"] < 1


@pytest.mark.parametrize(("options", "code", "message"), [
    (["--candidates", 10, "--k", 3], 2, "two ways"),
    (["--k", 0], 2, "k: expected a whole number of at least 1, got 0"),
    (["--score-norm", "sscd"], 1, "need a background"),
    (["--whiten", 4], 1, "need a background"),
    (["--weight", 2], 2, "--weight has no effect without --score_norm"),
    (["--score-norm", "negatives", "--start", 1], 2, "--start has no effect with --score_norm negatives"),
    (["--score-norm", "sscd", "--beta", 1], 2, "--beta has no effect"),
    (["--bootstrap", -1], 2, "bootstrap: expected a whole number of at least 0, got -1"),
    (["--edits", "absent.csv"], 1, "no such file"),
])
def test_options_that_are_refused(run, options, code, message):
    found, report, _, error = run(*options)
    assert found == code and report is None and message in error and "Traceback" not in error


def test_files_that_do_not_belong_together_are_refused(run, data):
    vectors = read_descriptors(data / "r.h5", "reference").vectors
    names = [f"R{i:02d}" for i in range(REFERENCES)]
    write_descriptors(data / "r.h5", names, vectors, model="net 2b")
    assert "described by net 1a and" in run()[3] and "by net 2b" in run()[3]
    write_descriptors(data / "r.h5", names, vectors[:, :4])
    assert "8 dimensions and" in run()[3]
    write_descriptors(data / "r.h5", names, vectors)
    assert "no `norms`" in run("--norm-filter")[3]
    assert "belong together" in run(files=["queries", "ground-truth"])[3]
    assert "or --predictions" in run(files=["ground-truth"])[3]
    (data / "p.csv").write_text("Q00,R00,0.5\nQ00,R00,0.4\n")
    assert "query Q00 with reference R00" in run("--predictions", data / "p.csv", files=["ground-truth"])[3]
    assert "--k" in run("--predictions", data / "p.csv", "--k", 3, files=["ground-truth"])[3]
