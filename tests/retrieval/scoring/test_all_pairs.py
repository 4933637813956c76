"""Streams over all pairs: the same numbers whatever backend, block or memory; ranks and best lists without a matrix."""

import itertools
from dataclasses import replace

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.core.errors import DataError
from ascl.models import EncodedImages, EncodedTexts
from ascl.retrieval import fold_report, rank_all_pairs, rank_report, score_all_pairs, score_blocks, top_pairs
from ascl.retrieval.scoring.all_pairs import rank_folds
from ascl.retrieval.scoring.attention import ON_CPU
from ascl.retrieval.scoring.tiles import Limits, free_memory, make_tiles

VARIANTS = [{}, {"projections": False}, {"tied_key_value": True}, {"fusion": False}, {"heads": 1}, {"masked": False},
            {"k": 1}, {"longest": 1}, {"images": 1, "texts": 1}, {"student_dim": 5, "student_weight": 0.3}]
HALF = [torch.bfloat16] if not torch.cuda.is_available() else [torch.bfloat16, torch.float16]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


@pytest.mark.parametrize("backend", ["auto", "reference", "algebra"])
@pytest.mark.parametrize("block", [None, 1, 2, 64])
@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_every_backend_and_block_gives_the_references_scores(example, variant, block, backend):
    model, images, texts = example(**variant)
    scores = score_all_pairs(model, images, texts, backend=backend, block=block)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, model.pair_scores(images, texts).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("variant", [{}, {"projections": False}, {"masked": False, "longest": 1}, {"student_dim": 5}],
                         ids=str)
def test_the_fused_kernel_gives_the_references_scores(example, variant, device):
    """On a GPU, or through Triton's interpreter; `test_scoring_triton.py` looks at the kernel itself."""
    pytest.importorskip("triton")
    if device == "cpu" and torch.cuda.is_available():
        pytest.skip("the interpreter is for machines without a GPU")
    model, images, texts = example(images=4, texts=7, dim=16, heads=2, dtype=torch.float32, **variant)
    expected = model.pair_scores(images, texts).detach()
    scores = score_all_pairs(model.to(device), images, texts, backend="triton", block=3)
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_texts_that_the_fused_kernel_cannot_take_are_left_to_the_algebra(example, monkeypatch):
    pytest.importorskip("triton")
    from ascl.retrieval.scoring import triton as kernel

    asked = []
    fused = kernel.attend

    def attend(query, out, key, *rest):
        asked.append(key.shape[2])
        if max(key.shape[2], max(np.diff(rest[-1]))) > 2:
            raise kernel.CannotFuse("too long")
        return fused(query, out, key, *rest)

    model, images, texts = example(images=2, texts=9, k=2, dim=16, heads=2, dtype=torch.float32, masked=False)
    expected = model.pair_scores(images, texts).detach()
    monkeypatch.setattr(kernel, "attend", attend)
    if torch.cuda.is_available():
        model = model.cuda()
    torch.testing.assert_close(score_all_pairs(model, images, texts, backend="triton", block=1), expected,
                               rtol=0, atol=1e-5)
    assert min(asked) <= 2 < max(asked)


@pytest.mark.parametrize("device", DEVICES)
def test_items_may_lie_on_the_cpu_while_the_model_does_not(example, device):
    model, images, texts = example(images=5, texts=9, dtype=torch.float32)
    expected = model.pair_scores(images, texts)
    torch.testing.assert_close(score_all_pairs(model.to(device), images, texts), expected, rtol=0, atol=1e-4)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_any_shape_any_memory(example, data):
    """Ragged lengths, masked regions, owners in any order, images without texts; blocks of any size."""
    def draw(low, high):
        return data.draw(st.integers(low, high))

    count, number = draw(1, 9), draw(1, 20)
    model, images, texts = example(images=count, texts=number, k=draw(1, 5), longest=draw(1, 7), dim=8, heads=2,
                                   masked=data.draw(st.booleans()), seed=draw(0, 1000))
    owner = np.array([draw(0, count - 1) for _ in range(number)])
    block, k = draw(1, 8), draw(1, min(count, number))
    expected = model.pair_scores(images, texts).detach()
    limits = Limits(kept_bytes=data.draw(st.sampled_from([0, 20_000, 2 << 30])),
                    kept_images=data.draw(st.sampled_from([1, 4, 512])),
                    texts_bytes=data.draw(st.sampled_from([0, 20_000, 2 << 30])),
                    chunks=replace(ON_CPU, gram=data.draw(st.sampled_from([1, 256])), keys=draw(1, 4)))
    torch.testing.assert_close(score_all_pairs(model, images, texts, block=block, limits=limits), expected.float(),
                               rtol=0, atol=1e-6)
    assert rank_all_pairs(model, images, texts, owner, block=block, limits=limits) == rank_report(expected, owner)
    best = top_pairs(model, images, texts, k, block=block, limits=limits)
    assert torch.equal(best.texts_of_image, expected.topk(k, dim=1).indices)
    assert torch.equal(best.images_of_text, expected.T.topk(k, dim=1).indices)
    torch.testing.assert_close(best.image_scores, expected.topk(k, dim=1).values.float(), rtol=0, atol=1e-6)
    torch.testing.assert_close(best.text_scores, expected.T.topk(k, dim=1).values.float(), rtol=0, atol=1e-6)


def test_ranking_scores_each_pair_once(example):
    model, images, texts = example(images=7, texts=15)
    done = []
    rank_all_pairs(model, images, texts, np.arange(15) % 7, block=2, progress=done.append, limits=Limits(kept_bytes=0))
    assert sum(done) == 7 * 15
    assert max(done) <= 2 * 2


@settings(max_examples=40, deadline=None, derandomize=True)
@given(data=st.data())
def test_equal_items_have_equal_scores_in_every_block(example, data):
    """In float32, where products in blocks of other sizes round differently; copies may belong to any image."""
    def draw(low, high):
        return data.draw(st.integers(low, high))

    model, images, texts = example(images=draw(1, 5), texts=draw(1, 6), dim=16, heads=2, dtype=torch.float32,
                                   fusion=data.draw(st.booleans()), seed=draw(0, 1000))
    image_of, text_of = ([draw(0, count - 1) for _ in range(draw(1, 25))] for count in (len(images), len(texts)))
    owner = np.array([draw(0, len(image_of) - 1) for _ in text_of])
    images, texts = images[torch.tensor(image_of)], texts[torch.tensor(text_of)]
    block, limits = draw(1, 8), Limits(kept_bytes=0, kept_images=data.draw(st.sampled_from([1, 4, 512])))
    done = []
    scores = score_all_pairs(model, images, texts, block=block, limits=limits, progress=done.append)
    assert sum(done) == scores.numel()
    torch.testing.assert_close(scores, model.pair_scores(images, texts), rtol=0, atol=1e-5)
    for one, other in itertools.combinations(range(len(image_of)), 2):
        assert image_of[one] != image_of[other] or torch.equal(scores[one], scores[other])
    for one, other in itertools.combinations(range(len(text_of)), 2):
        assert text_of[one] != text_of[other] or torch.equal(scores[:, one], scores[:, other])
    # an oracle that knows which items are equal
    exact = model.double().pair_scores(images.to(torch.float64), texts.to(torch.float64)).detach()
    exact = exact[[image_of.index(of) for of in image_of]][:, [text_of.index(of) for of in text_of]]
    expected = rank_report(exact, owner)
    model.float()
    assert rank_all_pairs(model, images, texts, owner, block=block, limits=limits) == expected
    assert rank_report(score_blocks(model, images, texts, block=block, limits=limits), owner) == expected
    best = top_pairs(model, images, texts, 1, block=block, limits=limits)
    torch.testing.assert_close(best.image_scores, exact.amax(dim=1, keepdim=True).float(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("same", ["texts", "images"])
def test_a_collapsed_model_finds_nothing(example, same):
    """Fifty equal captions, or images, in blocks of different sizes: every query ties with its wrong candidates."""
    model, images, texts = example(images=50, texts=50, masked=False, dtype=torch.float32, dim=32)
    if same == "texts":
        texts = texts[torch.zeros(50, dtype=torch.int64)]
    else:
        images = images[torch.zeros(50, dtype=torch.int64)]
    for block in (None, 3, 7):
        report = rank_all_pairs(model, images, texts, np.arange(50), block=block)
        assert (report.i2t if same == "texts" else report.t2i).r1 == 0
        assert report == rank_report(score_all_pairs(model, images, texts, block=block), np.arange(50))


def test_padding_changes_nothing(example):
    model, images, texts = example()
    padded = EncodedTexts(torch.nn.functional.pad(texts.words, (0, 0, 0, 5), value=3.0),
                          torch.nn.functional.pad(texts.mask, (0, 5)))
    torch.testing.assert_close(score_all_pairs(model, images, padded), score_all_pairs(model, images, texts))


def test_float32_is_as_exact_as_the_reference_in_float32(example):
    model, images, texts = example(images=6, texts=9, dim=64, heads=4)
    exact = model.pair_scores(images, texts)
    single = model.float()
    images, texts = images.to(torch.float32), texts.to(torch.float32)
    own_error = (single.pair_scores(images, texts) - exact).abs().max()
    error = (score_all_pairs(single, images, texts) - exact).abs().max()
    assert error < 10 * own_error + 1e-7


@pytest.mark.parametrize("backend", ["algebra", "reference"])
@pytest.mark.parametrize("dtype", HALF)
def test_half_precision_is_as_exact_as_the_reference_in_it(example, dtype, backend):
    model, images, texts = example(images=8, texts=20, dim=64, heads=4)
    exact = model.pair_scores(images, texts)
    single = model.float()
    images, texts = images.to(torch.float32), texts.to(torch.float32)
    with torch.autocast("cpu", dtype):
        own_error = (single.pair_scores(images, texts).float() - exact).abs().max()
    error = (score_all_pairs(single, images, texts, dtype=dtype, backend=backend) - exact).abs().max()
    assert 1e-5 < error < 2 * own_error, f"{dtype}: error {error:.1e}, the reference's {own_error:.1e}"


def test_rows_come_in_blocks_and_can_be_read_again(example):
    model, images, texts = example(images=5, texts=10)
    blocks = score_blocks(model, images, texts, block=2, limits=Limits(kept_bytes=0))
    assert [len(block) for block in blocks] == [2, 2, 1]
    torch.testing.assert_close(torch.cat(list(blocks)), score_all_pairs(model, images, texts))
    truth = torch.eye(5, dtype=torch.bool).repeat(1, 2)
    assert rank_report(blocks, np.arange(10) % 5, truth=truth) == rank_all_pairs(model, images, texts,
                                                                                 np.arange(10) % 5)


def test_without_fusion_blocks_give_the_same(example):
    model, images, texts = example(images=5, texts=7, fusion=False)
    scores = score_all_pairs(model, images, texts, limits=Limits(cheap_block=(2, 3)))
    torch.testing.assert_close(scores, model.pair_scores(images, texts).float(), rtol=0, atol=1e-6)


# Memory


def test_blocks_shrink_with_the_free_memory(example):
    model, images, texts = example(images=40, texts=60)
    expected = score_all_pairs(model, images, texts)
    roomy = make_tiles(model, images, texts)
    assert (roomy.image_block, roomy.text_block) == (40, 60)
    for free in (2 * roomy.way.working + 100_000, roomy.way.working, 0):
        tight = make_tiles(model, images, texts, limits=Limits(free=free))
        assert 8 <= tight.image_block < 40 and 8 <= tight.text_block < 60
    assert tight.kept == 1 < roomy.kept * roomy.image_block
    torch.testing.assert_close(score_all_pairs(model, images, texts, limits=Limits(free=0)), expected)


def test_a_block_that_cannot_fit_is_refused(example):
    model, images, texts = example(images=40, texts=60)
    limits = Limits(free=make_tiles(model, images, texts).way.working + 500_000)
    with pytest.raises(ValueError, match="block of 32 images and 32 texts needs about .* GiB and 0.08 are free"):
        score_all_pairs(model, images, texts, block=32, limits=limits)
    assert make_tiles(model, images, texts, block=4, limits=limits).image_block == 4


def test_free_memory_is_within_the_machines_and_the_containers(tmp_path):
    cpu = torch.device("cpu")
    assert 0 < free_memory(cpu) <= psutil.virtual_memory().total
    for name, text in (("max", "1000000"), ("current", "900000"), ("stat", "inactive_file 300\nactive_file 20")):
        (tmp_path / f"memory.{name}").write_text(text + "\n")
    assert free_memory(cpu, tmp_path) == 100_320
    (tmp_path / "memory.max").write_text("max\n")
    assert free_memory(cpu, tmp_path) > 1_000_000


def test_groups_hold_a_bounded_number_of_images(example):
    model, images, texts = example(images=1200, texts=2, k=1, dim=8, heads=2)
    groups = make_tiles(model, images, texts).groups()
    assert sum(len(group) for group in groups) == -(-1200 // 64)
    assert max(group[-1].stop - group[0].start for group in groups) == 512


def test_the_estimate_of_a_prepared_item_is_what_it_takes(example):
    """What stays prepared decides how much memory an evaluation takes, so its estimate has to hold."""
    def size(held):
        if isinstance(held, torch.Tensor):
            return held.untyped_storage().nbytes()
        return sum(map(size, vars(held).values())) if hasattr(held, "__dataclass_fields__") else 0

    model, images, texts = example(images=1, texts=1, k=9, longest=1, dim=256, heads=4, dtype=torch.float32,
                                   masked=False)
    way = make_tiles(model, images, texts).way
    assert size(way.images(images)) == pytest.approx(way.image, rel=0.02)
    assert size(way.texts(texts)) == pytest.approx(way.text(1), rel=0.2)


# What is refused


@pytest.mark.parametrize("run", [
    score_all_pairs, score_blocks, lambda *items: rank_all_pairs(*items, [0] * 5), lambda *items: top_pairs(*items, 1),
], ids=["score_all_pairs", "score_blocks", "rank_all_pairs", "top_pairs"])
@pytest.mark.parametrize("what", ["no images", "no texts", "nan region", "infinite global", "infinite word", "no words",
                                  "no regions", "types", "nan student"])
def test_what_has_no_score_is_refused_before_any_work(example, what, run):
    model, images, texts = example(student_dim=3)
    if what == "no images":
        images, match = images[:0], "0 images"
    elif what == "no texts":
        texts, match = texts[:0], "0 texts"
    elif what == "nan region":
        images.regions[1, 0, 0], match = float("nan"), "region embeddings of item 1"
    elif what == "infinite global":
        images.globals[2, 0], match = float("-inf"), "image global embeddings of item 2"
    elif what == "infinite word":
        texts.words[2, 0, 0], match = float("inf"), "word embeddings of item 2"
    elif what == "nan student":
        texts.student[4, 0], match = float("nan"), "text's student embeddings of item 4"
    elif what == "no words":
        texts.mask[3], match = False, "text 3 has no real token"
    elif what == "no regions":
        images.mask[2], match = False, "image 2 has no real token"
    else:
        texts, match = texts.to(torch.float32), "word torch.float32"
    model.fusion_weights = lambda: pytest.fail("work had begun")
    with pytest.raises(ValueError, match=match):
        run(model, images, texts)


@pytest.mark.parametrize("what", ["dimension", "globals", "image mask", "text mask", "no student", "neither's student",
                                  "student's dimension", "student's items"])
def test_parts_that_do_not_belong_together_are_refused(example, what):
    model, images, texts = example(student_dim=3)
    if what == "no student":
        texts.student = None
    elif what == "neither's student":
        images.student = texts.student = None
    elif what == "student's dimension":
        texts.student = texts.student[:, :2]
    elif what == "student's items":
        images.student = images.student[:2]
    elif what == "dimension":
        texts = EncodedTexts(texts.words[..., :8], texts.mask)
    elif what == "globals":
        images = EncodedImages(images.regions, images.globals[:2], images.mask)
    elif what == "image mask":
        images = EncodedImages(images.regions, images.globals, images.mask[:, :2])
    else:
        texts = EncodedTexts(texts.words, texts.mask[:2])
    with pytest.raises(ValueError, match=r"one D, got|do not fit the items: region \(3, 4, 24\)|have no vectors of it"):
        score_all_pairs(model, images, texts)


def test_items_on_several_devices_are_refused(example):
    model, images, texts = example()
    with pytest.raises(ValueError, match="images are on several devices: region cpu, image global meta"):
        score_all_pairs(model, EncodedImages(images.regions, images.globals.to("meta")), texts)


@pytest.mark.parametrize("options, match", [
    ({"backend": "fast"}, "backend 'fast': expected one of auto, reference"),
    ({"block": 0}, "block must be at least 1, got 0"),
    ({"dtype": torch.float32}, "a model in torch.float64 on cpu can be scored in torch.float64"),
    ({"dtype": torch.int8}, "can be scored in"),
])
def test_impossible_settings_are_refused(example, options, match):
    with pytest.raises(ValueError, match=match):
        score_all_pairs(*example(), **options)


def test_float16_on_a_processor_is_refused_with_what_to_take(example):
    with pytest.raises(ValueError, match="torch.float32, torch.bfloat16"):
        score_all_pairs(*example(dtype=torch.float32), dtype=torch.float16)


@pytest.mark.parametrize("folds", [1, 2, 3, 6])
def test_folds_are_ranked_as_their_part_of_the_matrix_and_no_other_pair_is_scored(example, folds):
    model, images, texts = example(images=6, texts=20)
    owner = np.arange(20) % 6                                                       # not in a row
    scored = []
    report = rank_folds(model, images, texts, owner, folds, progress=scored.append)
    assert report == fold_report(model.pair_scores(images, texts).detach(), owner, folds)
    per_fold = [sum(owner // (6 // folds) == fold) for fold in range(folds)]
    assert sum(scored) >= sum(6 // folds * texts for texts in per_fold) and (folds == 1 or sum(scored) < 6 * 20)


def test_folds_that_do_not_divide_the_images_are_refused(example):
    with pytest.raises(DataError, match="6 images cannot be split into 4 equal folds; choose a divisor of 6"):
        rank_folds(*example(images=6, texts=6), np.arange(6), 4)
    with pytest.raises(DataError, match="no text belongs to images 3 to 5"):
        rank_folds(*example(images=6, texts=6), [0, 1, 2, 0, 1, 2], 2)


@pytest.mark.parametrize("k", [0, 4])
def test_more_best_pairs_than_candidates_are_refused(example, k):
    with pytest.raises(ValueError, match="k must be from 1 to 3"):
        top_pairs(*example(images=3, texts=5), k)


@pytest.mark.parametrize("owner, match", [([0, 1], "5 columns and owner has 2"), ([0, 1, 2, 3, 0], r"owner\[3\] is 3")])
def test_owners_that_do_not_fit_are_refused(example, owner, match):
    with pytest.raises(DataError, match=match):
        rank_all_pairs(*example(), owner)


@pytest.mark.parametrize("run", [lambda *items: rank_all_pairs(*items, [0, 1, 2, 0, 1]),
                                 lambda *items: top_pairs(*items, 2)], ids=["rank", "top"])
def test_a_score_that_is_not_finite_is_refused_by_name(example, run):
    model, images, texts = example()
    with torch.no_grad():
        model.text_global.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match="score of image 0 with text [0-4] is nan"):
        run(model, images, texts)
