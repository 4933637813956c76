"""Variants of scene captions against the plain definition of truth, on their own scene and on many others."""

import numpy as np
import pytest

from ascl.analysis.probes.scene_variants import entails, scene_variants
from ascl.analysis.probes.variants import KINDS
from ascl.core.errors import DataError
from ascl.data.captions import CaptionSet
from ascl.scenes.render import caption_is_true, make_scene, scene_captions, truth_matrix

SCENES = [make_scene(3, index, split="test") for index in range(24)]
CAPTIONS = CaptionSet(
    [scene.image_id for scene in SCENES],
    [caption for index, scene in enumerate(SCENES) for caption in scene_captions(scene, 3, index, split="test")],
    np.repeat(np.arange(24), 5), "scenes",
)


@pytest.fixture(scope="module")
def variants():
    return scene_variants(CAPTIONS, SCENES)


def test_each_variant_is_true_or_false_as_its_asymmetry_says(variants):
    for index, kind, text in variants:
        scene = SCENES[CAPTIONS.owner[index]]
        assert caption_is_true(text, scene) == (KINDS[kind] != "I"), (kind, CAPTIONS.captions[index], text)
        assert text != CAPTIONS.captions[index]


def test_every_kind_is_made_and_at_most_once_of_a_caption(variants):
    assert {variant.kind for variant in variants} == set(KINDS)
    assert len({(variant.caption, variant.kind) for variant in variants}) == len(variants)
    with_false_detail = {v.caption for v in variants if v.kind == "false detail added"}
    assert with_false_detail == {v.caption for v in variants if v.kind == "true detail added"}


def test_less_detail_is_true_wherever_the_caption_is_and_more_detail_nowhere_else(variants):
    """Over scenes that have nothing to do with the captions but their language."""
    others = [make_scene(7, index) for index in range(400)]
    chosen = [variant for variant in variants if KINDS[variant.kind] != "I"][::3]
    texts = truth_matrix([variant.text for variant in chosen], others)
    captions = truth_matrix([CAPTIONS.captions[variant.caption] for variant in chosen], others)
    stricter = 0
    for column, variant in enumerate(chosen):
        more, less = texts[:, column], captions[:, column]
        if KINDS[variant.kind] == "III":
            more, less = less, more
        assert not (more & ~less).any(), variant
        stricter += bool((less & ~more).any())
    assert stricter > 0.4 * len(chosen)     # in these scenes: long captions are true of none of them


def test_no_false_detail_contradicts_its_caption(variants):
    for index, kind, text in variants:
        detail = text.split(". ")[-1].split()
        if kind == "false detail added" and detail[:3] == ["there", "is", "no"]:
            assert detail[3] not in CAPTIONS.captions[index]
        if kind == "false detail added" and detail[:2] == ["only", "one"] and len(detail) == 3:
            assert CAPTIONS.captions[index].count(f" {detail[2]}") <= 1


def test_a_false_detail_differs_from_the_true_one_in_little(variants):
    by_kind = {kind: {v.caption: v.text for v in variants if v.kind == kind} for kind in KINDS}
    for caption, text in by_kind["false detail added"].items():
        true, false = (t.split(". ")[-1].split() for t in (by_kind["true detail added"][caption], text))
        assert true[0] == false[0] or {true[0], false[0]} == {"exactly", "only"}
        assert len(true) == len(false) and sum(a != b for a, b in zip(true, false, strict=True)) <= 3


def test_a_variant_depends_on_its_image_alone(variants):
    again = scene_variants(CAPTIONS.subset([20, 2]), [SCENES[20], SCENES[2]])
    expected = [(100 + caption if caption < 5 else 10 + caption - 5, kind, text) for caption, kind, text in again]
    assert expected[0][0] == 100
    wanted = [tuple(variant) for variant in variants if variant.caption // 5 in (20, 2)]
    assert sorted(expected) == sorted(wanted)
    assert scene_variants(CAPTIONS, SCENES, seed=1) != variants


@pytest.mark.parametrize("first, second, expected", [
    ("a small red circle", "a red circle", True),
    ("a red circle", "a small red circle", False),
    ("a red circle is above a star", "a star and a circle", True),
    ("a red circle is above a star", "a star is above a circle", False),
    ("a red circle and a star", "a star is above a circle", False),
    ("at the top left is a star", "at the top left is an object", True),
    ("exactly two stars. a circle", "a circle", True),
    ("exactly two stars", "exactly two small stars", False),
    ("every star is red and two stars", "every star is red", True),
    ("a star on white", "a star on gray", False),
])
def test_entailment(first, second, expected):
    assert entails(first, second) is expected


def test_what_is_not_of_the_language_is_refused():
    foreign = CaptionSet([SCENES[0].image_id], ["a dog runs on the beach"], np.array([0]), "captions.json")
    with pytest.raises(DataError, match="'a dog runs on the beach'.*scenes"):
        scene_variants(foreign, SCENES[:1])
    with pytest.raises(DataError, match="2 scenes for the 24 images"):
        scene_variants(CAPTIONS, SCENES[:2])
