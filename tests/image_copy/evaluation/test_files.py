"""Files of copy detection: what is written is read back, what is wrong is refused with its place."""

import gzip

import h5py
import numpy as np
import pytest

from ascl.core.errors import DataError
from ascl.image_copy import (
    Descriptors,
    copydays_ground_truth,
    micro_average_precision,
    read_descriptors,
    write_descriptors,
    write_submission,
)
from ascl.image_copy.descriptors.files import overlap
from ascl.image_copy.evaluation.files import (
    GroundTruth,
    QueryEdit,
    read_edits,
    read_ground_truth,
    read_predictions,
    write_ground_truth,
    write_predictions,
)


def described(names, vectors, model=None):
    return Descriptors(list(names), np.asarray(vectors, dtype=np.float32), None, model, None, "made here")


@pytest.mark.parametrize("name", ["gt.csv", "gt.csv.gz"])
def test_ground_truth_comes_back(tmp_path, name):
    truth = GroundTruth(["Q0", "Q,1", "Q2"], ["Q,1", "Q,1"], ["R5", "R7"])
    write_ground_truth(tmp_path / name, truth)
    assert read_ground_truth(tmp_path / name) == truth
    assert (tmp_path / name).read_bytes().startswith(b"\x1f\x8b") == name.endswith(".gz")


@pytest.mark.parametrize("header", ["", "query_id,reference_id\n", "\ufeffquery_id,reference_id\r\n"])
def test_the_header_is_optional(tmp_path, header):
    (tmp_path / "gt.csv").write_text(header + "Q0,\nQ1,R1\n\n", encoding="utf-8", newline="")
    assert read_ground_truth(tmp_path / "gt.csv") == GroundTruth(["Q0", "Q1"], ["Q1"], ["R1"])


def test_the_published_ground_truth(shared):
    truth = read_ground_truth(shared / "data" / "disc21" / "public_ground_truth.csv.gz")
    assert (len(truth.queries), len(set(truth.pair_query)), len(truth.pair_query)) == (25_000, 4_991, 4_991)
    listed = gzip.open(shared / "data" / "disc21" / "dev_queries_25k.gz", "rt").read().split()
    assert truth.queries == listed


@pytest.mark.parametrize(
    ("content", "message"),
    [("Q0\n", "row 1: 1 columns"), ("Q0,R0\nQ1,R1,x\n", "row 2: 3 columns"), (",R0\n", "row 1: no query id"),
     ("Q0,R0\nQ1,R1\nQ0,R0\n", "row 3: the same as row 1"), ("Q0,\nQ1,R1\nQ0,\n", "row 3: the same as row 1"),
     ("Q0,R0\nQ0,\n", "row 2: query 'Q0' is listed both"), ("Q0,\nQ1,\n", "no query with a reference"),
     ('Q0,"' + "x" * 200_000, "is not a CSV file"), ("", "is empty")]
)
def test_ground_truth_that_is_refused(tmp_path, content, message):
    (tmp_path / "gt.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_ground_truth(tmp_path / "gt.csv")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_predictions_keep_every_digit(tmp_path, dtype):
    rng = np.random.default_rng(0)
    score = np.concatenate([rng.normal(size=500), [1e-30, -1e30, 0.1, 1 / 3, np.inf]]).astype(dtype)
    score = np.concatenate([score, np.nextafter(score[:400], dtype(9))])            # would be ties with six decimals
    query, reference = [f"Q{i}" for i in range(len(score))], [f"R{i % 7}" for i in range(len(score))]
    write_predictions(tmp_path / "p.csv", query, reference, score)
    found = read_predictions(tmp_path / "p.csv")
    assert found[:2] == (query, reference)
    assert found[2].astype(dtype).tolist() == score.tolist()
    assert np.argsort(found[2], kind="stable").tolist() == np.argsort(score, kind="stable").tolist()


def test_six_decimals_would_cost():
    """Why all digits are written: the same ranking with rounded scores loses to its own ties."""
    score = 0.5 + np.arange(10)[::-1] * 1e-8
    pairs = (np.zeros(10, int), np.arange(10))
    assert micro_average_precision(*pairs, score, [0], [0]).muap == 1.0
    assert micro_average_precision(*pairs, score.round(6), [0], [0]).muap == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("content", "message"),
    [("Q0,R0\n", "row 1: 2 columns"), ("query_id,reference_id,score\nQ0,R0,high\n", "row 2: score 'high'"),
     ("Q0,,0.5\n", "row 1: no reference id"), ("Q0,R0,0.5\nQ1,R0,nan\n", "prediction 2: .*NaN")],
)
def test_predictions_that_are_refused(tmp_path, content, message):
    (tmp_path / "p.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        read_predictions(tmp_path / "p.csv")


def test_edits(tmp_path):
    (tmp_path / "e.csv").write_text("query_id,kind,strength,content_scale,role\nQ0,crop,hard,0.25,copy\nQ1,blur,,,\n")
    expected = {"Q0": QueryEdit("crop", "hard", 0.25, "copy"), "Q1": QueryEdit("blur", "", None)}
    assert read_edits(tmp_path / "e.csv") == expected
    for content, message in (("id,kind\n", "no column query_id"), ("query_id,kind\nQ0,a\nQ0,b\n", "row 3: .*before"),
                             ("query_id,kind,content_scale\nQ0,a,1.5\n", "row 2: content_scale '1.5'")):
        (tmp_path / "e.csv").write_text(content)
        with pytest.raises(DataError, match=message):
            read_edits(tmp_path / "e.csv")
    with pytest.raises(DataError, match="no such file"):
        read_edits(tmp_path / "absent.csv")


def test_descriptors_come_back(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    write_descriptors(tmp_path / "d.h5", ["a", "ä", "c"], vectors, norms=np.arange(3), model="net 12ab",
                      provenance={"size": 288})
    found = read_descriptors(tmp_path / "d.h5", "query")
    assert (found.names, found.model, found.provenance) == (["a", "ä", "c"], "net 12ab", {"size": 288})
    assert found.vectors.tolist() == vectors.tolist() and found.norms.tolist() == [0, 1, 2]
    with h5py.File(tmp_path / "d.h5") as file:
        assert file["vectors"].dtype == np.float32 and file["image_names"].dtype.kind == "S"


def test_the_publishers_layout_and_sets_in_parts(tmp_path):
    for part, names in enumerate((["R0", "R1"], ["R2"])):
        with h5py.File(tmp_path / f"{part}.h5", "w") as file:
            file["vectors"] = np.full((len(names), 2), part, dtype=np.float64 if part else np.float32)
            file.create_dataset("image_names", data=names, dtype=h5py.string_dtype())
    found = read_descriptors([tmp_path / "0.h5", tmp_path / "1.h5"], "reference")
    assert found.names == ["R0", "R1", "R2"] and found.vectors.tolist() == [[0, 0], [0, 0], [1, 1]]
    assert (found.norms, found.model, found.vectors.dtype) == (None, None, np.float32)
    with pytest.raises(DataError, match="'R0' is described twice"):
        read_descriptors([tmp_path / "0.h5", tmp_path / "0.h5"], "reference")
    in_folders = read_descriptors([tmp_path / "0.h5", tmp_path / "1.h5"], "query", folder_ids=True)
    assert in_folders.names == ["0/R0", "0/R1", "1/R2"]


def test_a_submission_is_sorted_and_comes_back(tmp_path):
    rng = np.random.default_rng(0)
    query = described(["Q2", "Q0", "Q1"], rng.normal(size=(3, 256)))
    reference = described(["R9", "R1"], rng.normal(size=(2, 256)))
    write_submission(tmp_path / "s.h5", query, reference)
    for role, side in (("query", query), ("reference", reference)):
        found = read_descriptors(tmp_path / "s.h5", role)
        assert found.names == sorted(side.names)
        assert dict(zip(found.names, found.vectors.tolist(),
                        strict=True)) == dict(zip(side.names, side.vectors.tolist(), strict=True))
    with pytest.raises(DataError, match="257 dimensions; .*at most 256"):
        write_submission(tmp_path / "t.h5", described(["a"], np.ones((1, 257))), described(["b"], np.ones((1, 257))))
    assert not (tmp_path / "t.h5").exists()


@pytest.mark.parametrize(("arrays", "message"), [
    ({"vectors": np.ones((2, 3)), "image_names": [b"a"]}, "1 image names and vectors of shape"),
    ({"vectors": np.ones(3), "image_names": [b"a"]}, "expected float32"),
    ({"vectors": np.ones((1, 3)), "image_names": [[b"a"]]}, r"`image_names` \(1, 1\)"),
    ({"vectors": np.ones((1, 3)), "image_names": [b"a"], "norms": 1.0}, "`norms` has shape"),
    ({"vectors": np.zeros((0, 3)), "image_names": np.zeros(0, "S1")}, "no descriptor"),
    ({"features": np.ones((2, 3))}, "holds features; descriptors are"),
    ({"vectors": np.array([[1, 2], [np.nan, 0]]), "image_names": [b"a", b"b"]}, "row 1 .*'b' is not finite"),
    ({"vectors": np.ones((2, 3)), "image_names": [b"a", b"a"]}, "'a' is described twice"),
    ({"vectors": np.ones((1, 3)), "image_names": [b"\xff"]}, "not UTF-8"),
    ({"vectors": np.ones((2, 3)), "image_names": [b"a", b"b"], "norms": np.ones(3)}, "`norms` has shape"),
    ({"vectors": np.ones((2, 3)), "image_names": [b"a", b"b"], "norms": np.array([1, np.inf])}, "norm of image 'b'"),
])
def test_descriptors_that_are_refused(tmp_path, arrays, message):
    with h5py.File(tmp_path / "d.h5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    with pytest.raises(DataError, match=message):
        read_descriptors(tmp_path / "d.h5", "query")


def test_files_without_descriptors_are_refused(tmp_path):
    (tmp_path / "d.h5").write_text("no HDF5")
    with pytest.raises(DataError, match="not an HDF5 file"):
        read_descriptors(tmp_path / "d.h5", "query")
    with pytest.raises(DataError, match="no file of descriptors"):
        read_descriptors(tmp_path / "absent.h5", "query")
    with pytest.raises(DataError, match="described twice"):
        write_descriptors(tmp_path / "e.h5", ["a", "a"], np.ones((2, 2)))
    assert not (tmp_path / "e.h5").exists()


def test_overlap_counts_ids_and_identical_vectors():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(5, 8)).astype(np.float32)
    copies = vectors[[4, 2, 2]] + 0
    copies[0, 0] = np.nextafter(copies[0, 0], np.float32(9))
    assert overlap(described("abc", copies), described("vwxya", vectors)) == (1, 2)
    assert overlap(described("ab", [[0.0, 1.0], [1.0, 0.0]]), described("c", [[-0.0, 1.0]])) == (0, 1)


def test_copydays_numbers():
    truth = copydays_ground_truth(["original/200000", "strong/200001", "crops/10/215600", "strong/200101"],
                                  ["200000", "215600.jpg", "yfcc7"])
    assert truth.pair_reference == ["200000", "200000", "215600.jpg", "200100"]      # 200100 is missing: a miss
    with pytest.raises(DataError, match="no Copydays number"):
        copydays_ground_truth(["strong/cat"], ["200000"])
    with pytest.raises(DataError, match="both the original"):
        copydays_ground_truth(["strong/200001"], ["200000", "a/200000"])
    with pytest.raises(DataError, match="no reference has the number"):
        copydays_ground_truth(["strong/200001"], ["200001"])
