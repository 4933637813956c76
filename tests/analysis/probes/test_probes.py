"""Probes of asymmetry: scores of groups against the whole matrix, shares against scalar loops, and scorers whose answer
is known: one that knows the truth is always right, one that knows nothing never is."""

import numpy as np
import pytest
import torch

from ascl.analysis.probes.probes import TIE, group_scores, group_truth, probe_report, probe_texts
from ascl.analysis.probes.scene_variants import scene_variants
from ascl.analysis.probes.variants import KINDS, CaptionVariant
from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet
from ascl.models import AsCL
from ascl.models.base import TextEncoder
from ascl.models.baselines.two_tower import TwoTower
from ascl.retrieval.encode import encode_texts
from ascl.scenes.render import caption_is_true, make_scene, scene_captions

SCENES = [make_scene(5, index, split="test") for index in range(21)]        # no multiple of the group
CAPTIONS = CaptionSet(
    [scene.image_id for scene in SCENES],
    [caption for index, scene in enumerate(SCENES) for caption in scene_captions(scene, 5, index, split="test")],
    np.repeat(np.arange(21), 5), "scenes",
)


class Words(TextEncoder):
    """Each word has fixed random numbers; a word's place has no influence."""

    dim = 12

    def __init__(self):
        super().__init__()
        self.known: dict[str, torch.Tensor] = {}

    def forward(self, texts):
        words = [text.replace(".", " ").replace(",", " ").split() for text in texts]
        for word in sorted({word for text in words for word in text}):
            seed = sum(ord(letter) * 131**place for place, letter in enumerate(word)) % 2**31
            self.known.setdefault(word, torch.randn(self.dim, generator=torch.Generator().manual_seed(seed)))
        hidden = torch.zeros(len(texts), max(map(len, words)), self.dim)
        for row, text in enumerate(words):
            hidden[row, : len(text)] = torch.stack([self.known[word] for word in text])
        lengths = torch.tensor([len(text) for text in words])
        return hidden, torch.arange(hidden.shape[1]) < lengths[:, None]


@pytest.fixture(scope="module")
def probes():
    return probe_texts(CAPTIONS, scene_variants(CAPTIONS, SCENES))


@pytest.fixture(scope="module")
def truth(probes):
    return group_truth(probes, SCENES, group=8)


def model_of(kind):
    torch.manual_seed(0)
    if kind == "two towers":
        return TwoTower(10, 6, Words(), 16).eval()
    return AsCL(10, 6, Words(), embed_dim=16, num_heads=2, fusion=kind != "no fusion").eval()


def images_of(model, count=21):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return model.encode_images(torch.randn(count, 5, 10, generator=generator),
                                   torch.randn(count, 6, generator=generator))


def groups_by_hand(count, size):
    """Image -> its own number, then the others of its group."""
    table = {}
    for image in range(count):
        first = image // size * size
        rows = list(range(first, first + size)) if first + size <= count else list(range(max(0, count - size), count))
        table[image] = [image] + [row for row in rows if row != image]
    return table


@pytest.mark.parametrize("kind", ["two towers", "fusion", "no fusion"])
@pytest.mark.parametrize("group", [2, 8, 100])
def test_group_scores_are_those_of_the_whole_matrix(probes, kind, group):
    model = model_of(kind)
    images = images_of(model)
    seen = []
    found = group_scores(model, images, probes, group=group, progress=seen.append)
    with torch.no_grad():
        whole = model.pair_scores(images, encode_texts(model, probes.texts)).numpy()
    rows = np.array([groups_by_hand(21, group)[owner] for owner in probes.owner])
    np.testing.assert_allclose(found, whole[rows, np.arange(len(rows))[:, None]], atol=2e-6)
    assert found.shape == (len(probes.texts), min(group, 21)) and sum(seen) == len(probes.texts)


def test_truth_of_groups_is_the_plain_definition(probes, truth):
    table = groups_by_hand(21, 8)
    for text in range(0, len(probes.texts), 7):
        images = table[int(probes.owner[text])]
        assert truth[text].tolist() == [caption_is_true(probes.texts[text], SCENES[image]) for image in images]


def test_who_scores_by_truth_is_always_right(probes, truth):
    report = probe_report(probes, truth.astype(np.float32), truth)
    assert set(report.by_asymmetry) == {"I", "II", "III"} and report.exact
    for figures in [*report.kinds.values(), *report.by_asymmetry.values()]:
        assert figures.right == 1 and figures.ties == 0 and figures.low < 0.999 < figures.high
        assert figures.first_original == 1
        assert figures.asymmetry == "I" or (figures.first_variant == 1 and figures.higher == 0)
        assert figures.above_false in (None, 1)
    two, three = report.by_asymmetry["II"], report.by_asymmetry["III"]
    assert two.left_out > 0 and three.pairs > 40 and report.by_asymmetry["I"].left_out == 0


def test_who_scores_by_length_is_not_taken_for_one_who_understands(probes, truth):
    """The raw score follows the length of the text, the evidence for the own image does not."""
    scores = np.repeat([[len(text)] for text in probes.texts], 8, axis=1).astype(np.float32)
    report = probe_report(probes, scores, truth)
    for name in ("II", "III"):
        assert report.by_asymmetry[name].right == 0 and report.by_asymmetry[name].ties == 1
    assert report.kinds["concatenated"].higher == 1 and report.kinds["truncated (prefix)"].higher == 0


def test_who_gives_one_score_to_all_is_never_right(probes):
    report = probe_report(probes, np.full((len(probes.texts), 8), 0.3, dtype=np.float32))
    assert all(f.right == 0 and f.ties == 1 and f.higher == 0 and f.first_original == 0 for f in report.kinds.values())


@pytest.mark.parametrize("exact", [True, False])
def test_shares_are_those_of_scalar_loops(probes, truth, exact):
    scores = np.random.default_rng(0).integers(0, 4, truth.shape) / 4
    report = probe_report(probes, scores.astype(np.float32), truth if exact else None)
    captions = len(probes.texts) - len(probes.kinds)
    false_of = {probes.original[i]: captions + i for i, k in enumerate(probes.kinds) if k == "false detail added"}

    def first(text):
        rivals = [s for s, t in zip(scores[text][1:], truth[text][1:], strict=True) if not (exact and t)]
        return all(scores[text][0] > rival for rival in rivals)

    def evidence(text):
        return scores[text][0] - sum(scores[text][1:]) / 7

    for kind, figures in report.kinds.items():
        right, ties, higher, above, ahead, left_out = [], [], [], [], [], 0
        for i, k in enumerate(probes.kinds):
            if k != kind:
                continue
            old, new = int(probes.original[i]), captions + i
            more, less = (new, old) if KINDS[kind] == "II" else (old, new)
            decides = any(truth[less][j] and not truth[more][j] for j in range(1, 8))
            if exact and KINDS[kind] != "I" and not decides:
                left_out += 1
                continue
            difference = scores[old][0] - scores[new][0] if KINDS[kind] == "I" else evidence(more) - evidence(less)
            right.append(difference > TIE)
            ties.append(abs(difference) <= TIE)
            higher.append(scores[new][0] > scores[old][0])
            ahead.append((first(old), first(new)))
            if KINDS[kind] != "I" and old in false_of:
                above.append(scores[new][0] > scores[false_of[old]][0])
        assert figures.pairs == len(right) and figures.left_out == left_out
        assert figures.right == pytest.approx(np.mean(right)) and figures.ties == pytest.approx(np.mean(ties))
        assert figures.higher == pytest.approx(np.mean(higher)) and figures.low <= figures.right <= figures.high
        assert (figures.first_original, figures.first_variant) == pytest.approx(tuple(np.mean(ahead, axis=0)))
        assert figures.above_false_pairs == len(above)
        assert figures.above_false == (pytest.approx(np.mean(above)) if above else None)
    for name, figures in report.by_asymmetry.items():
        parts = [f for f in report.kinds.values() if f.asymmetry == name]
        assert figures.pairs == sum(f.pairs for f in parts)
        assert figures.right == pytest.approx(sum(f.right * f.pairs for f in parts) / figures.pairs)


def test_a_model_without_an_order_of_words_ties_where_roles_change(probes):
    """Rounding alone must not make a right answer of it, whichever way it falls."""
    model = model_of("two towers")
    found = probe_report(probes, group_scores(model, images_of(model), probes)).kinds["roles swapped"]
    assert found.ties == 1 and found.right == 0


def test_scores_of_several_models_average(probes):
    one, two = (np.random.default_rng(seed).random((len(probes.texts), 8)).astype(np.float32) for seed in (0, 1))
    mean = probe_report(probes, (one + two) / 2)
    assert mean.kinds != probe_report(probes, one).kinds and mean.kinds["noun swapped"].pairs > 0


def test_some_captions_only():
    variants = scene_variants(CAPTIONS, SCENES)
    few = probe_texts(CAPTIONS, variants, limit=4)
    captions = few.texts[: len(few.texts) - len(few.kinds)]
    assert captions == [CAPTIONS.captions[i] for i in (0, 34, 69, 104)]
    assert len(few.kinds) == sum(variant.caption in (0, 34, 69, 104) for variant in variants)
    with pytest.raises(DataError, match="at least 1"):
        probe_texts(CAPTIONS, variants, limit=0)


def test_the_table_says_what_was_counted(probes, truth):
    report = probe_report(probes, truth.astype(np.float32), truth)
    table = report.to_markdown()
    assert "| concatenated | II |" in table and "| **all of III** | III |" in table and report.how in table
    assert "7 other images" in report.how and "generated scenes" in report.how
    plain = report.to_dict()
    assert plain["kinds"]["noun swapped"]["asymmetry"] == "I" and plain["by_asymmetry"]["II"]["right"] == 1
    assert {"pairs", "right", "ties", "low", "high"} <= set(plain["kinds"]["concatenated"])
    assert "captions, not from its pixels" in probe_report(probes, truth.astype(np.float32)).how


def test_variants_of_the_wrong_truth_are_found(probes, truth):
    wrong = truth.copy()
    wrong[-1, 0] = not wrong[-1, 0]
    with pytest.raises(DataError, match="of its own image and should not be \\(1 such"):
        probe_report(probes, wrong.astype(np.float32), wrong)


def test_what_cannot_be_compared_is_refused():
    alone = CaptionSet(["a"], ["a red star"], np.array([0]), "x")
    one = probe_texts(alone, [CaptionVariant(0, "noun swapped", "a red circle")])
    model = model_of("two towers")
    with pytest.raises(DataError, match="1 of them in groups of 16 are too few"):
        group_scores(model, images_of(model, 1), one)
    with torch.no_grad():
        next(model.parameters()).fill_(torch.nan)
    two = CaptionSet(["a", "b"], ["a red star", "a box"], np.array([0, 1]), "x")
    with pytest.raises((DataError, ValueError), match="not finite"):
        group_scores(model, images_of(model, 2), probe_texts(two, [CaptionVariant(0, "noun swapped", "a red circle")]))
