"""ascl copy eval --verify: geometry inside the evaluation, as it is inside a query."""

import json
import shutil

import numpy as np
import pytest

from ascl.cli import main
from ascl.image_copy import write_descriptors
from ascl.image_copy.evaluation.candidates import given_candidates
from ascl.image_copy.evaluation.files import read_predictions, write_predictions
from ascl.image_copy.evaluation.verified import best_of_each, verify_candidates
from ascl.image_copy.matching.geometry import SURE
from ascl.image_copy.matching.verify import evidence

from ..matching.drawn import scene

pytest.importorskip("cv2")
QUERIES, REFERENCES = ["crop", "again", "whole", "stranger"], ["r0", "r1", "part", "r3"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Folder with pictures, descriptors, ground truth, hard negatives and edits. The descriptors are wrong for `crop`
    and for `whole`, which shows more than the reference `part`."""
    folder = tmp_path_factory.mktemp("verified")
    (folder / "queries" / "sub").mkdir(parents=True)
    (folder / "references").mkdir()
    scenes = [scene(seed) for seed in range(5)]
    for name, image in {"r0": scenes[0], "r1": scenes[1], "part": scenes[3].crop((60, 40, 300, 230)),
                        "r3": scenes[2]}.items():
        image.save(folder / "references" / f"{name}.png")
    for name, image in {"crop.png": scenes[0].crop((60, 40, 320, 240)), "whole.png": scenes[3],
                        "stranger.png": scenes[4]}.items():
        image.save(folder / "queries" / name)
    scenes[1].save(folder / "queries" / "sub" / "again.jpg", quality=70)
    similarity = np.array([[0.3, 0.5, 0.1, 0.2], [0.1, 0.8, 0.2, 0.1], [0.2, 0.1, 0.9, 0.1], [0.1, 0.2, 0.1, 0.4]])
    rest = np.sqrt(1 - (similarity**2).sum(axis=1))
    write_descriptors(folder / "r.h5", REFERENCES, np.eye(5, dtype=np.float32)[:4])
    write_descriptors(folder / "q.h5", QUERIES, np.column_stack([similarity, rest]).astype(np.float32))
    (folder / "gt.csv").write_text("query_id,reference_id\ncrop,r0\nagain,r1\nwhole,\nstranger,\n")
    (folder / "hn.csv").write_text("query_id,reference_id,reference_content_scale\nwhole,part,0.6\n")
    (folder / "edits.csv").write_text("query_id,kind,strength,role\ncrop,crop,mild,copy\nagain,jpeg,mild,copy\n"
                                      "whole,reverse_crop,mild,reverse_crop\nstranger,crop,mild,distractor\n")
    return folder


def evaluated(folder, *words, predictions=None) -> tuple[int, dict]:
    sides = ["--predictions", str(predictions)] if predictions else ["--queries", str(folder / "q.h5"), "--references",
                                                                    str(folder / "r.h5"), "--device", "cpu"]
    out = folder / "report.json"
    out.unlink(missing_ok=True)
    status = main(["copy", "eval", *sides, "--ground_truth", str(folder / "gt.csv"), "--out", str(out), *words])
    return status, json.loads(out.read_text()) if out.exists() else {}


def looking(folder, best: int = 4) -> list[str]:
    return ["--verify", str(best), "--query_images", str(folder / "queries"), "--reference_images",
            str(folder / "references")]


def test_geometry_corrects_what_descriptors_rank_wrongly(made, capsys, tmp_path):
    _, plain = evaluated(made)
    assert plain["metrics"]["recall_rank1"] == 0.5 and "verification" not in plain
    saved = tmp_path / "p.csv"
    status, report = evaluated(made, *looking(made), "--hard_negatives", str(made / "hn.csv"), "--edits",
                               str(made / "edits.csv"), "--bootstrap", "20", "--save_predictions", str(saved))
    printed = capsys.readouterr().out
    assert status == 0 and report["metrics"]["muap"] == report["metrics"]["recall_rank1"] == 1
    section = report["verification"]
    assert section["pairs"] == 16 and section["not_read"] == []
    assert section["kinds"] == {"true": {"same": 1, "within": 1}, "hard_negative": {"shows more": 1},
                                "other": {"not confirmed": 13}}
    confirmed = section["confirmed"]
    assert (confirmed["true"], confirmed["false"]) == (2, 0)
    assert confirmed["precision"] == {"rate": 1.0, "low": pytest.approx(0.025**0.5), "high": 1.0, "count": 2, "of": 2}
    assert confirmed["recall"]["rate"] == 1 and confirmed["hard_negatives"]["count"] == 0
    assert (confirmed["queries_without_reference"]["count"], confirmed["queries_without_reference"]["of"]) == (0, 2)
    assert [one["true"] for one in section["points"]][:4] == [2, 2, 2, 2]
    cost = section["cost"]
    assert cost["pictures"] == 8 and cost["pairs"] == 16
    assert cost["ms_per_query"] == pytest.approx(cost["ms_per_picture"] + 4 * cost["ms_per_pair"])
    kinds = {row["name"]: row for row in report["breakdown"]["kind"]}
    assert [kinds[name]["confirmed_true"] for name in ("crop", "jpeg", "reverse_crop")] == [1, 1, 0]
    assert "4 best candidates of each query were related by geometry" in report["protocol"]["verification"]
    for text in ("hard negatives (1)", "shows more", "Processor time", "TP confirmed", "15 points"):
        assert text in printed

    scores = dict(zip(zip(*read_predictions(saved)[:2], strict=True), read_predictions(saved)[2], strict=True))
    assert scores["whole", "part"] == pytest.approx(0.9 - 2) and scores["stranger", "r3"] == pytest.approx(0.4)
    assert 0.3 + 1 + 15 / (15 + SURE) < scores["crop", "r0"] < 0.3 + 2
    _, again = evaluated(made, predictions=saved)       # what was saved is what was measured
    assert again["metrics"]["muap"] == 1


def test_only_the_best_of_each_query_are_related_and_a_cache_makes_the_next_time_quick(made, tmp_path):
    cache = tmp_path / "kept" / "features"
    words = [*looking(made, 1), "--verify_cache", str(cache)]
    _, report = evaluated(made, *words)
    section = report["verification"]
    assert section["pairs"] == 4 and section["confirmed"]["true"] == 1      # r0 is not the best candidate of `crop`
    assert section["confirmed"]["recall"]["of"] == 2 and section["confirmed"]["recall_of_related"]["of"] == 1
    assert report["counts"]["candidates"] == 16
    _, again = evaluated(made, *words, "--k", "2")
    cost = again["verification"].pop("cost")
    assert (cost["pictures"], cost["pairs"], cost["ms_per_query"]) == (0, 0, None)
    assert again["verification"]["kinds"] == section["kinds"] and again["counts"]["candidates"] == 8


def test_predictions_are_verified_without_descriptors(made, tmp_path):
    pairs = [("crop", "r0", 0.2), ("crop", "r1", 0.5), ("again", "r1", 0.4), ("stranger", "r3", 0.9)]
    write_predictions(tmp_path / "p.csv", *map(list, zip(*[pair[:2] for pair in pairs], strict=True)),
                      np.array([pair[2] for pair in pairs]))
    status, report = evaluated(made, *looking(made), predictions=tmp_path / "p.csv")
    assert status == 0 and report["metrics"]["muap"] == 1 and report["verification"]["pairs"] == 4
    assert report["protocol"]["score"] == "as given, and the evidence of geometry" and not report["warnings"]
    write_predictions(tmp_path / "p.csv", ["crop"], ["r0"], np.array([7.0]))
    assert "not between -1 and 1" in evaluated(made, *looking(made), predictions=tmp_path / "p.csv")[1]["warnings"][0]


def test_the_scores_are_those_of_a_query(made):
    """An inner product and its squared distance of unit vectors give one evidence."""
    query, reference = ["crop", "whole"], ["r0", "part"]
    given = given_candidates(query, reference, np.array([0.3, 0.9]), "p.csv")
    found = verify_candidates(given, made / "queries", made / "references", 5)
    expected = [evidence(score, relation) for score, relation in zip([0.3, 0.9], found.relations, strict=True)]
    assert found.candidates.score.tolist() == expected and found.confirmed.tolist() == [True, False]
    assert given.score.tolist() == [0.3, 0.9]


def test_pictures_that_cannot_be_read_are_counted_and_listed(made, tmp_path, capsys):
    folder = tmp_path / "broken"
    shutil.copytree(made, folder)
    (folder / "references" / "r3.png").write_bytes(b"no picture")
    status, report = evaluated(folder, *looking(folder))
    assert status == 3 and report["counts"]["pictures_not_read"] == 1
    assert report["verification"]["kinds"]["other"]["not read"] == 4
    (one,) = report["verification"]["not_read"]
    assert one["path"].endswith("r3.png") and one["reason"]
    assert "skipped 1 images" in capsys.readouterr().err
    (folder / "references" / "r3.png").unlink()
    (folder / "queries" / "crop.png").rename(folder / "queries" / "other.png")
    status, report = evaluated(folder, *looking(folder))
    assert status == 1 and not report
    assert "query 'crop' has no picture in" in capsys.readouterr().err


@pytest.mark.parametrize(("words", "problem"), [
    (["--verify", "3"], "give --query_images and --reference_images too"),
    (["--verify", "3", "--query_images", "x"], "give --reference_images too"),
    (["--reference_images", "x"], "--reference_images has no effect without --verify"),
    (["--hard_negatives", "x.csv"], "give --edits or --verify too"),
    (["--verify", "0"], "at least 1, got 0"),
])
def test_what_is_refused(made, capsys, words, problem):
    assert evaluated(made, *words)[0] == 2
    assert problem in capsys.readouterr().err


def test_what_is_not_there(made, tmp_path, capsys):
    (tmp_path / "hn.csv").write_text("query_id\nq\n")
    assert evaluated(made, *looking(made), "--hard_negatives", str(tmp_path / "hn.csv"))[0] == 1
    assert "no column reference_id" in capsys.readouterr().err
    assert evaluated(made, "--verify", "1", "--query_images", str(tmp_path / "no"), "--reference_images", "x")[0] == 1
    assert "no such folder of images" in capsys.readouterr().err
    assert evaluated(made, *looking(made), "--verify_cache", str(made / "gt.csv"))[0] == 1
    assert "folder for local features cannot be made" in capsys.readouterr().err


def test_the_best_of_each_query_by_hand():
    query = np.array(["a", "b", "a", "a", "b", "c"], dtype=object)
    score = np.array([0.1, 0.5, 0.3, 0.3, 0.6, 0.0])
    assert best_of_each(query, score, 2).tolist() == [2, 3, 4, 1, 5]
    assert best_of_each(query, score, 1).tolist() == [2, 4, 5]
