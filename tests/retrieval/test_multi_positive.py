"""mAP@R and R-Precision against scalar loops over sorted lists in which wrong candidates come first among equals."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.core.errors import DataError
from ascl.retrieval.multi_positive import multi_positive_report


def naive(scores, truth):
    """(mAP@R, R-Precision, mean R, queries) of rows, in percent."""
    precisions, averages, counts = [], [], []
    for row, right in zip(np.asarray(scores).tolist(), np.asarray(truth).tolist(), strict=True):
        r = sum(right)
        if r == 0:
            continue
        order = sorted(range(len(row)), key=lambda i: (-row[i], right[i]))
        hits, total = 0, 0.0
        for rank, candidate in enumerate(order[:r], start=1):
            if right[candidate]:
                hits += 1
                total += hits / rank
        precisions.append(hits / r)
        averages.append(total / r)
        counts.append(r)
    of = len(counts)
    return 100 * sum(averages) / of, 100 * sum(precisions) / of, sum(counts) / of, of


def check(scores, truth):
    report = multi_positive_report(scores, truth)
    for found, expected in ((report.i2t, naive(scores, truth)), (report.t2i, naive(scores.T, truth.T))):
        assert (found.map_at_r, found.r_precision, found.mean_right, found.queries) == pytest.approx(expected)


@given(st.integers(0, 10**6), st.integers(1, 12), st.integers(1, 20), st.integers(2, 6), st.floats(0.05, 0.95))
@settings(max_examples=60, deadline=None)
def test_counted_equals_sorted_with_many_ties(seed, images, texts, levels, share):
    rng = np.random.default_rng(seed)
    truth = rng.random((images, texts)) < share
    truth[rng.integers(images), rng.integers(texts)] = True
    check(rng.integers(0, levels, (images, texts)).astype(np.float32), truth)


@pytest.mark.parametrize("size", [1, 7, 40, 1000])
@pytest.mark.parametrize("kind", ["tensor", "array", "half", "integers", "memmap"])
def test_blocks_and_kinds_of_numbers_change_nothing(tmp_path, size, kind):
    scores = torch.randint(-9, 9, (9, 14), generator=torch.Generator().manual_seed(0))
    truth = torch.rand(9, 14, generator=torch.Generator().manual_seed(1)) < 0.3
    expected = multi_positive_report(scores.float(), truth)
    given = {"tensor": scores.float(), "array": scores.numpy().astype(">f4"), "half": scores.half(), "integers": scores,
             "memmap": np.memmap(tmp_path / "scores", dtype="f4", mode="w+", shape=(9, 14))}[kind]
    if kind == "memmap":
        given[:] = scores.numpy()
    assert multi_positive_report(given, truth if kind == "tensor" else truth.numpy(), block_elements=size) == expected
    check(scores.float().numpy(), truth.numpy())


def test_the_ends_of_the_scale():
    truth = torch.tensor([[True, True, False, False], [False, False, True, False]])
    best = multi_positive_report(truth.float(), truth)
    assert best.i2t.map_at_r == best.i2t.r_precision == best.t2i.map_at_r == 100
    assert (best.i2t.mean_right, best.i2t.queries, best.t2i.queries) == (1.5, 2, 3)      # the last text has no image
    constant = multi_positive_report(torch.zeros(2, 4), truth)
    assert constant.i2t.map_at_r == constant.i2t.r_precision == constant.t2i.r_precision == 0
    # of three right ones at ranks 1, 3 and 4: R-Precision 2/3, AP@R (1 + 0 + 2/3) / 3
    one = multi_positive_report(torch.tensor([[5.0, 4, 3, 2, 1]]), torch.tensor([[True, False, True, True, False]]))
    assert one.i2t.r_precision == pytest.approx(200 / 3) and one.i2t.map_at_r == pytest.approx(100 * (1 + 2 / 3) / 3)


def test_the_report_is_printed_and_plain():
    report = multi_positive_report(torch.eye(3), torch.eye(3, dtype=torch.bool))
    assert report.to_dict()["t2i"] == {"map_at_r": 100, "r_precision": 100, "mean_right": 1, "queries": 3}
    assert "| image to text | 100.0 | 100.0 | 1.0 | 3 |" in report.to_markdown()


@pytest.mark.parametrize("scores, truth, match", [
    (torch.zeros(2, 3), torch.ones(3, 2, dtype=torch.bool), r"\(2, 3\), truth has \(3, 2\)"),
    (torch.zeros(2, 3), torch.ones(2, 3), "must be bool"),
    (torch.zeros(2, 3), torch.zeros(2, 3, dtype=torch.bool), "no right pair"),
    (torch.tensor([[0, torch.nan]]), torch.ones(1, 2, dtype=torch.bool), r"nan \(query 0, candidate 1\)"),
])
def test_what_has_no_answer_is_refused(scores, truth, match):
    with pytest.raises(DataError, match=match):
        multi_positive_report(scores, truth)
