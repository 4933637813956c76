"""Ranks against naive loops: ties, permutations, unequal owners, streaming, folds, and scores that cannot be ranked."""

import io
import json
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.core.errors import DataError
from ascl.retrieval import fold_report, load_scores, rank_report, ranks
from ascl.retrieval.score_files import read_owner, read_scores


def ranks_oracle(scores, right):
    """(ranks of images, ranks of texts) by plain loops; `right` is a list of lists of bool. No right one: no entry."""
    images, texts = len(scores), len(scores[0])
    of_images, of_texts = [], []
    for i in range(images):
        best = max((scores[i][j] for j in range(texts) if right[i][j]), default=None)
        if best is not None:
            of_images.append(sum(1 for j in range(texts) if not right[i][j] and scores[i][j] >= best))
    for j in range(texts):
        best = max(scores[i][j] for i in range(images) if right[i][j])
        of_texts.append(sum(1 for i in range(images) if not right[i][j] and scores[i][j] >= best))
    return of_images, of_texts


def own(owner, images):
    return [[int(o) == i for o in owner] for i in range(images)]


def recall_oracle(zero_based, k):
    hits = 0
    for rank in zero_based:
        if rank < k:
            hits += 1
    return 100.0 * hits / len(zero_based)


@st.composite
def problems(draw):
    """Scores with many ties, owners in any order and number (some images may have no text), and the whole truth."""
    images, texts = draw(st.integers(1, 9)), draw(st.integers(1, 17))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    scores = rng.integers(0, draw(st.sampled_from([1, 2, 5, 1000])), (images, texts)) / 4 - 1
    owner = rng.integers(0, images, texts)
    truth = rng.random((images, texts)) < 0.3
    truth[owner, np.arange(texts)] = True
    return scores, owner, truth, draw(st.integers(1, images))


@given(problems(), st.sampled_from(["float16", "float32", "float64"]), st.booleans())
@settings(max_examples=150, deadline=None)
def test_ranks_match_the_oracle_for_any_owner_and_block(problem, dtype, as_tensor):
    scores, owner, truth, chunk = problem
    matrix = scores.astype(dtype)
    blocks = [matrix[first : first + chunk] for first in range(0, len(matrix), chunk)]
    if as_tensor:
        blocks = [torch.from_numpy(block) for block in blocks]
    for right, known in ((own(owner, len(scores)), None), (truth.tolist(), truth)):
        counted = ranks(blocks, owner, truth=known)
        assert (counted.i2t.tolist(), counted.t2i.tolist()) == ranks_oracle(scores.tolist(), right)
        assert counted.image_queries.tolist() == [i for i, row in enumerate(right) if any(row)]


@given(problems(), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_a_permutation_of_images_and_texts_permutes_the_ranks_and_nothing_else(problem, random):
    scores, owner, truth, _ = problem
    rows, columns = list(range(len(scores))), list(range(len(owner)))
    random.shuffle(rows)
    random.shuffle(columns)
    before = ranks(scores, owner, truth=truth)
    new_owner = np.argsort(rows)[owner][columns]
    after = ranks(scores[rows][:, columns], new_owner, truth=truth[rows][:, columns])
    assert after.t2i.tolist() == before.t2i[columns].tolist()
    by_image = dict(zip(before.image_queries.tolist(), before.i2t.tolist(), strict=True))
    assert after.i2t.tolist() == [by_image[row] for row in rows if row in by_image]
    assert rank_report(scores, owner) == rank_report(scores[rows][:, columns], new_owner)


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])  # 7 leaves a ragged last block, 64 is larger than the matrix
def test_streamed_ranks_match_the_oracle_with_ties(chunk):
    scores = torch.randint(0, 5, (13, 39), generator=torch.Generator().manual_seed(0)).float()
    owner = torch.arange(39) % 13  # not in a row
    counted = ranks(scores.split(chunk), owner)
    assert (counted.i2t.tolist(), counted.t2i.tolist()) == ranks_oracle(scores.tolist(), own(owner, 13))


def test_a_whole_matrix_is_read_in_blocks_without_a_change():
    scores = torch.randn(13, 39)
    owner = torch.arange(39) // 3
    whole = rank_report(scores, owner)
    assert rank_report(scores, owner, block_elements=80) == whole  # two rows at a time
    folds = fold_report(scores[:12, :36], owner[:36], 3, block_elements=80).folds
    assert folds[1] == rank_report(scores[4:8, 12:24], owner[12:24] - 4)


def test_report_holds_recalls_in_percent_and_ranks_from_one():
    scores = np.random.default_rng(0).normal(size=(30, 70))
    owner = np.random.default_rng(1).integers(0, 30, 70)
    of_images, of_texts = ranks_oracle(scores.tolist(), own(owner, 30))
    report = rank_report(scores, owner)
    for direction, expected in ((report.i2t, of_images), (report.t2i, of_texts)):
        assert [direction.r1, direction.r5, direction.r10] == [recall_oracle(expected, k) for k in (1, 5, 10)]
        middle = sorted(expected)
        half = len(middle) // 2
        median = middle[half] if len(middle) % 2 else (middle[half - 1] + middle[half]) / 2
        assert direction.median_rank == median + 1
        assert direction.mean_rank == pytest.approx(sum(expected) / len(expected) + 1)
        assert direction.queries == len(expected)
    six = [report.i2t.r1, report.i2t.r5, report.i2t.r10, report.t2i.r1, report.t2i.r5, report.t2i.r10]
    assert report.rsum == pytest.approx(sum(six))
    assert json.loads(json.dumps(report.to_dict()))["i2t"]["r5"] == report.i2t.r5
    assert f"| text to image | {report.t2i.r1:.1f} | {report.t2i.r5:.1f} |" in report.to_markdown()
    assert f"Rsum {report.rsum:.1f} over 30 images and 70 texts" in report.to_markdown()


@pytest.mark.parametrize("constant", [0.0, -3.5, 1.0])
def test_a_collapsed_model_scores_nothing(constant):
    report = rank_report(np.full((40, 200), constant), np.arange(200) // 5)
    assert report.rsum == 0
    assert report.i2t.median_rank == 196 and report.t2i.median_rank == 40  # last place among the wrong ones


def test_a_perfect_model_scores_six_hundred_and_noise_is_at_chance():
    owner = np.arange(1000) // 5
    perfect = (owner == np.arange(200)[:, None]).astype(np.float32)
    assert rank_report(perfect, owner).rsum == 600
    assert rank_report(perfect, owner).i2t.median_rank == 1
    noise = rank_report(np.random.default_rng(0).normal(size=(200, 1000)), owner)
    assert noise.t2i.r10 == pytest.approx(5, abs=2.5)  # 10 of 200
    assert noise.i2t.r1 == pytest.approx(0.5, abs=1.5)


def test_an_image_without_texts_is_a_distractor_and_no_query():
    scores = np.array([[0.9, 0.1], [0.95, 0.2], [0.0, 0.5]])
    counted = ranks(scores, [0, 2])
    assert counted.image_queries.tolist() == [0, 2]
    assert counted.i2t.tolist() == [0, 0]
    assert counted.t2i.tolist() == [1, 0]  # image 1 stands above image 0
    assert rank_report(scores, [0, 2]).i2t.queries == 2


def test_truth_turns_a_second_fitting_caption_into_a_hit():
    scores = np.array([[0.1, 0.8, 0.9], [0.9, 0.7, 0.2]])
    assert ranks(scores, [0, 1, 0]).t2i.tolist() == [1, 1, 0]
    truth = np.array([[True, False, True], [True, True, False]])  # text 0 fits image 1 as well
    assert ranks(scores, [0, 1, 0], truth=truth).t2i.tolist() == [0, 1, 0]
    assert ranks(scores, [0, 1, 0], truth=truth).i2t.tolist() == [0, 0]
    assert ranks(scores, [0, 1, 0], truth=torch.from_numpy(truth)).i2t.tolist() == [0, 0]


def test_memmap_float16_and_foreign_byte_order_give_the_same_ranks(tmp_path):
    scores = np.random.default_rng(0).normal(size=(20, 50)).astype(np.float16)
    owner = np.random.default_rng(1).integers(0, 20, 50)
    np.save(tmp_path / "scores.npy", scores)
    expected = rank_report(scores.astype(np.float64), owner)
    assert rank_report(np.load(tmp_path / "scores.npy", mmap_mode="r"), owner) == expected
    assert rank_report(scores.astype(">f4"), owner) == expected
    assert rank_report(torch.from_numpy(scores), torch.from_numpy(owner)) == expected
    mixed = [scores[:7], scores[7:].astype(np.float64)]
    assert rank_report(mixed, owner) == expected


def test_folds_are_consecutive_images_with_their_own_texts():
    rng = np.random.default_rng(0)
    scores, owner = rng.normal(size=(20, 66)), np.concatenate([np.arange(20), rng.integers(0, 20, 46)])
    report = fold_report(scores, owner, folds=5)
    each = []
    for fold in range(5):
        columns = [j for j in range(66) if 4 * fold <= owner[j] < 4 * fold + 4]
        part = [[scores[i][j] for j in columns] for i in range(4 * fold, 4 * fold + 4)]
        right = [[owner[j] == i for j in columns] for i in range(4 * fold, 4 * fold + 4)]
        each.append(ranks_oracle(part, right))
    assert report.i2t.r1 == pytest.approx(np.mean([recall_oracle(i2t, 1) for i2t, _ in each]))
    assert report.t2i.r5 == pytest.approx(np.mean([recall_oracle(t2i, 5) for _, t2i in each]))
    assert report.t2i.mean_rank == pytest.approx(np.mean([np.mean(t2i) + 1 for _, t2i in each]))
    assert report.rsum == pytest.approx(np.mean([fold.rsum for fold in report.folds]))
    assert report.t2i.queries == 66
    assert len(json.loads(json.dumps(report.to_dict()))["folds"]) == 5
    assert "Mean of 5 folds" in report.to_markdown()
    truth = owner == np.arange(20)[:, None]
    assert fold_report(scores, owner, folds=5, truth=truth) == report


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_a_score_that_is_not_finite_is_refused_with_its_row_and_column(value, dtype):
    scores = np.zeros((12, 24), dtype)
    scores[7, 11] = value
    blocks = [scores[:5], scores[5:10], scores[10:]]
    for given_scores in (scores, blocks, torch.from_numpy(scores)):
        with pytest.raises(DataError, match=r"scores\[7, 11\] is -?(nan|inf).*image 7, text 11"):
            rank_report(given_scores, np.arange(24) // 2)


def test_a_score_that_turns_nan_at_the_second_reading_is_refused():
    class Rotting:
        reads = 0

        def __iter__(self):
            self.reads += 1
            yield np.full((4, 4), 0.5 if self.reads == 1 else np.nan)

    with pytest.raises(DataError, match=r"scores\[0, 0\] is nan"):
        ranks(Rotting(), np.arange(4))


@pytest.mark.parametrize(("scores", "owner", "message"), [
    (np.zeros((3, 6)), np.arange(5), "6 columns and owner has 5"),
    (np.zeros((3, 6)), [0, 1, 2, 3, 1, 2], r"owner\[3\] is 3, but the scores have 3 rows"),
    (np.zeros((3, 6)), [0, 1, 2, -1, 1, 2], r"owner\[3\] is -1"),
    (np.zeros((3, 6)), np.arange(6) / 2, "vector of integers"),
    (np.zeros((3, 6)), np.zeros((2, 3), int), "vector of integers"),
    (np.zeros((3, 0)), [], "vector of integers"),
    (np.zeros((0, 2)), [0, 0], "no scores"),
    (np.zeros(6), np.zeros(6, int), r"not \(6,\)"),
    (np.zeros((3, 6), complex), np.zeros(6, int), "holds complex128"),
    (torch.zeros(3, 6, dtype=torch.bool), np.zeros(6, int), "holds torch.bool"),
    ([[0.0, 1.0]], [0, 0], "not list"),
    ((block for block in [np.zeros((1, 2))]), [0, 0], "a generator can be read only once"),
])
def test_what_does_not_fit_is_refused(scores, owner, message):
    with pytest.raises(DataError, match=message):
        rank_report(scores, owner)


@pytest.mark.parametrize(("truth", "message"), [
    (np.eye(3, dtype=bool)[:, [0, 1, 1]], r"truth\[2, 2\] is False, but text 2 belongs to image 2"),
    (np.eye(3, dtype=bool)[:2], "must be bool and have the shape"),
    (np.eye(4, dtype=bool)[:, :3], r"truth has shape \(4, 3\)"),
    (np.eye(3), "must be bool"),
])
def test_a_truth_that_does_not_fit_is_refused(truth, message):
    with pytest.raises(DataError, match=message):
        rank_report(np.zeros((3, 3)), np.arange(3), truth=truth)


def test_folds_that_do_not_fit_are_refused():
    with pytest.raises(DataError, match="7 images cannot be split into 5 equal folds"):
        fold_report(np.zeros((7, 7)), np.arange(7), 5)
    with pytest.raises(DataError, match="no text belongs to images 2 to 3"):
        fold_report(np.zeros((4, 2)), [0, 1], 2)
    with pytest.raises(DataError, match=r"owner\[1\] is 9"):
        fold_report(np.zeros((4, 2)), [0, 9], 2)


def test_score_files_are_read_with_their_owner(tmp_path):
    path = tmp_path / "scores.npz"
    scores, owner = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32), np.arange(8) // 2
    np.savez(path, scores=scores, owner=owner)
    found, of = load_scores(path)
    assert np.array_equal(found, scores) and of.tolist() == owner.tolist()
    with pytest.raises(DataError, match="an array `owner` in the file and owner both say"):
        load_scores(path, owner=owner)
    np.savez(path, scores=scores)
    assert load_scores(path, owner=owner)[1].tolist() == owner.tolist()


@pytest.mark.parametrize(("arrays", "message"), [
    ({}, r"no array `owner` says which image .*give captions_per_image \(2 fits 4 images\)"),
    ({"scores": None, "owner": np.arange(8) // 2}, r"no array `scores` \(arrays: none\)"),
    ({"t2i": np.ones((8, 4)), "owner": np.arange(8) // 2}, "two different matrices, `scores` .* and `t2i`"),
    ({"owner": np.arange(7) // 2}, r"scores\.npz: the scores have 4 rows and 8 columns, but owner has 7 entries"),
    ({"owner": np.arange(8)}, r"owner\[4\] is 4, but the scores have 4 rows"),
    ({"owner": np.arange(8) // 2 + 1}, "owner counts images from 1"),
    ({"scores": np.array([["a"]], dtype=object), "owner": [0]}, r"damaged or not an archive of arrays"),
])
def test_score_files_that_do_not_fit_are_refused(tmp_path, arrays, message):
    arrays = {"scores": np.zeros((4, 8))} | arrays
    np.savez(tmp_path / "scores.npz", **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(DataError, match=message):
        load_scores(tmp_path / "scores.npz")


def test_score_files_that_cannot_be_read_say_why(tmp_path):
    path = tmp_path / "scores.npz"
    with pytest.raises(FileNotFoundError, match="no score file"):
        load_scores(path)
    scores = np.random.default_rng(0).normal(size=(4, 8))
    np.savez(path, scores=scores, owner=np.arange(8) // 2)
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("scores.npy").header_offset
    whole = path.read_bytes()
    damaged = whole[: start + 200] + bytes([whole[start + 200] ^ 0xFF]) + whole[start + 201 :]
    bare = io.BytesIO()
    np.save(bare, scores)
    for content, message in ((whole[:200], "truncated"), (b"", "truncated"), (damaged, "damaged or not"),
                             (b"0.1 0.2", "not a score file"), (bare.getvalue(), "give captions_per_image")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_scores(path)


OWNER = np.array([2, 0, 1, 1, 0, 2, 2, 0])  # of 8 texts of 3 images, in no order
TRUE = np.random.default_rng(1).normal(size=(3, 8)).astype(np.float32)
NOISE = 1 + 1e-6 * np.random.default_rng(2).normal(size=(8, 8)).astype(np.float32)
REPEATED = TRUE[OWNER] * NOISE


@pytest.mark.parametrize(("matrix", "said"), [
    (TRUE, []), (TRUE.T, ["transposed"]), (REPEATED, ["each image is given once for each"]),
    (REPEATED.T, ["transposed", "each image is given once for each"]),
    (np.vstack([TRUE, TRUE[:2]]), []),
], ids=["plain", "transposed", "repeated", "repeated columns", "distractors"])
def test_layouts_of_other_programs_are_recognized_and_named(tmp_path, matrix, said):
    np.savez(tmp_path / "scores.npz", sims=matrix, owner=OWNER)
    given = read_scores(tmp_path / "scores.npz")
    assert np.allclose(given.scores[:3], TRUE, rtol=1e-4) and given.owner.tolist() == OWNER.tolist()
    assert given.notes[0] == "scores are its array sims" and len(given.notes) == 1 + len(said)
    assert all(word in note for word, note in zip(said, given.notes[1:], strict=True))
    np.save(tmp_path / "bare.npy", matrix)
    (tmp_path / "owner.txt").write_text("".join(f"{image}\n" for image in OWNER))
    np.save(tmp_path / "owner.npy", OWNER)
    for name in ("owner.txt", "owner.npy"):
        assert np.array_equal(read_scores(tmp_path / "bare.npy", read_owner(tmp_path / name)).scores, given.scores)


@pytest.mark.parametrize("shape", [(4, 12), (12, 4), (12, 12)])
def test_a_bare_matrix_is_read_with_the_number_of_captions_per_image(tmp_path, shape):
    true = np.random.default_rng(3).normal(size=(4, 12))
    matrix = {(4, 12): true, (12, 4): true.T, (12, 12): np.repeat(true, 3, axis=0)}[shape]
    np.save(tmp_path / "sims.npy", matrix)
    scores, owner = load_scores(tmp_path / "sims.npy", captions_per_image=3)
    assert np.array_equal(scores, true) and owner.tolist() == (np.arange(12) // 3).tolist()
    with pytest.raises(DataError, match=r"does not fit 5 captions per image"):
        load_scores(tmp_path / "sims.npy", captions_per_image=5)


def test_a_file_of_owners_is_refused_with_its_row(tmp_path):
    (tmp_path / "owner.txt").write_text("0\n1.5\n")
    with pytest.raises(DataError, match=r"owner\.txt, row 2: expected the number of an image, .* found '1.5'"):
        read_owner(tmp_path / "owner.txt")
    np.save(tmp_path / "owner.npy", [0.5])
    with pytest.raises(DataError, match=r"owner\.npy: owner must be a vector of integers"):
        read_owner(tmp_path / "owner.npy")


def test_a_square_matrix_is_not_taken_for_repeated_images(tmp_path):
    """As many texts as images, few of which have several texts: nothing but their rows can show a repeat."""
    owner = np.array([*range(98), 2, 5])
    scores = np.random.default_rng(0).random((100, 100))
    np.savez(tmp_path / "scores.npz", scores=scores, owner=owner)
    given = read_scores(tmp_path / "scores.npz")
    assert np.array_equal(given.scores, scores) and given.notes == ()
