"""Ceilings of matchers against every order that they could choose, counted one by one."""

from itertools import combinations, permutations

import numpy as np
import pytest

from ascl.retrieval import rank_report
from ascl.scenes.ceilings import DEPTHS, bag_bounds, bag_scores, bags, binding_scores, ceilings, expected_recalls
from ascl.scenes.render import make_scene, scene_captions, truth_matrix
from ascl.scenes.world import Scene


def lab(count: int, family: int | None) -> tuple[list[Scene], list[str], np.ndarray, np.ndarray]:
    scenes = [make_scene(0, index, split="test", family=family) for index in range(count)]
    captions = [c for index, scene in enumerate(scenes) for c in scene_captions(scene, 0, index, split="test")]
    return scenes, captions, np.repeat(np.arange(count), 5), truth_matrix(captions, scenes)


def hit_of(order, right, depth: int) -> bool:
    return any(right[candidate] for candidate in order[:depth])


def test_expected_recalls_are_the_mean_over_all_orders_of_equal_scores():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 3, (6, 6)).astype(float)
    right = rng.random((6, 6)) < 0.2
    right[np.arange(6), np.arange(6)] = True
    orders = list(permutations(range(6)))
    for direction, (table, good) in enumerate([(scores, right), (scores.T, right.T)]):
        for number, depth in enumerate(DEPTHS):
            hits = [np.mean([hit_of(sorted(order, key=lambda c, row=row: -row[c]), of_row, depth)
                             for order in orders]) for row, of_row in zip(table, good, strict=True)]
            found = expected_recalls(scores, right)[direction][number]
            assert found == pytest.approx(100 * np.mean(hits))


def test_bags_are_equal_where_the_same_things_are_there():
    scenes = [make_scene(0, index, family=4) for index in range(40)]
    numbers = bags(scenes)

    def bag(scene):
        return scene.background, *(sorted(getattr(o, a) for o in scene.objects)
                                   for a in ("shape", "color", "size", "texture"))

    for i, a in enumerate(scenes):
        for j, b in enumerate(scenes):
            assert (numbers[i] == numbers[j]) == (bag(a) == bag(b))
    assert len(set(numbers.tolist())) == 10


def best_over_bag_orders(right_of_text: np.ndarray, bag: np.ndarray, depth: int) -> float:
    """The best expected hit of one text, over all orders of the bags; within a bag over all orders."""
    members = [np.flatnonzero(bag == number).tolist() for number in range(bag.max() + 1)]

    def orders_within(bags_in_order):
        if not bags_in_order:
            yield []
            return
        for head in permutations(members[bags_in_order[0]]):
            for rest in orders_within(bags_in_order[1:]):
                yield [*head, *rest]

    return max(np.mean([hit_of(order, right_of_text, depth) for order in orders_within(list(order_of_bags))])
               for order_of_bags in permutations(range(len(members))))


BAG = np.array([0, 1, 0, 1, 1, 2])      # six scenes of three bags


def test_bounds_of_text_to_image_are_the_best_order_of_the_bags():
    rng = np.random.default_rng(1)
    owner = np.array([0, 1, 2, 3, 4, 5, 0, 1])
    own = owner == np.arange(6)[:, None]
    for density in (0.0, 0.2, 0.5):
        truth = own | (rng.random(own.shape) < density)
        found = bag_bounds(BAG, owner, truth).t2i
        for number, depth in enumerate(DEPTHS):
            best = [best_over_bag_orders(column, BAG, depth) for column in truth.T]
            assert found[number] == pytest.approx(100 * np.mean(best)), depth
    for number, depth in enumerate(DEPTHS):
        best = [best_over_bag_orders(column, BAG, depth) for column in own.T]
        assert bag_bounds(BAG, owner).t2i[number] == pytest.approx(100 * np.mean(best))


def test_bounds_of_image_to_text_are_the_best_captions_for_a_whole_bag():
    rng = np.random.default_rng(2)
    owner = rng.permutation(np.repeat(np.arange(6), 2))
    own = owner == np.arange(6)[:, None]
    truth = own | (rng.random(own.shape) < 0.15)
    for right, given in ((own, None), (truth, truth)):
        for number, depth in enumerate(DEPTHS):
            hits = sum(max(right[np.ix_(BAG == name, chosen)].any(axis=1).sum()
                           for chosen in combinations(range(len(owner)), depth)) for name in range(3))
            found = bag_bounds(BAG, owner, given).i2t[number]
            if given is None or depth == 1:
                assert found == pytest.approx(100 * hits / 6)
            else:
                assert 100 * hits / 6 - 1e-9 <= found <= 100


def test_no_scores_of_bags_beat_the_bounds():
    scenes, _, owner, truth = lab(60, 5)
    bag = bags(scenes)
    own = owner == np.arange(60)[:, None]
    rng = np.random.default_rng(3)
    for scores in (bag_scores(truth, bag), bag_scores(own, bag), rng.random((bag.max() + 1, 300))[bag]):
        for right, given in ((own, None), (truth, truth)):
            for found, bound in zip(expected_recalls(scores, right), bag_bounds(bag, owner, given), strict=True):
                assert all(a <= b + 1e-9 for a, b in zip(found, bound, strict=True))
    # a matcher that knows who wrote what, but not whom of a bag it sees, reaches them from text to image
    informed = (bag[:, None] == bag[owner]).astype(float)
    assert expected_recalls(informed, own).t2i == pytest.approx(bag_bounds(bag, owner).t2i)


def test_binding_decides_on_families_and_truth_is_all_that_it_takes():
    scenes, _, owner, truth = lab(200, 20)
    found = {(labels, matcher): recalls for labels, matcher, recalls in ceilings(scenes, owner, truth)}
    assert found["every true pair", "binding"] == ((100, 100, 100), (100, 100, 100))
    for direction in found["own scene", "bag, bound"]:
        assert direction == pytest.approx((5, 25, 50))
    assert found["own scene", "binding"].i2t[0] > 90
    assert found["every true pair", "bag, bound"].t2i[0] < 60
    assert found["every true pair", "bag, likelihood ratio"].i2t[0] < 60
    for labels in ("own scene", "every true pair"):
        bound, matcher = found[labels, "bag, bound"], found[labels, "bag, likelihood ratio"]
        assert all(a <= b + 1e-9 for a, b in zip([*matcher.i2t, *matcher.t2i], [*bound.i2t, *bound.t2i], strict=True))


def test_without_ties_the_recalls_are_those_of_ranking():
    _, _, owner, truth = lab(40, 4)
    scores = binding_scores(truth) + 1e-6 * np.random.default_rng(0).random(truth.shape)
    report = rank_report(scores, owner, truth=truth)
    own = owner == np.arange(40)[:, None]
    assert expected_recalls(scores, truth).t2i == pytest.approx([report.t2i.r1, report.t2i.r5, report.t2i.r10])
    report = rank_report(scores, owner)
    assert expected_recalls(scores, own).i2t == pytest.approx([report.i2t.r1, report.i2t.r5, report.i2t.r10])
