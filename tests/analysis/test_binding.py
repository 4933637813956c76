"""Binding against a loop over captions and scenes, and on scores whose binding is known."""

import numpy as np
import pytest
import torch

from ascl.analysis.binding import binding_report
from ascl.data.captions import load_captions
from ascl.scenes.ceilings import bag_scores, bags, binding_scores
from ascl.scenes.render import caption_is_true, load_scene_records, truth_matrix, write_scenes

ATTRIBUTES = ("shape", "color", "size", "texture")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    dataset = write_scenes(tmp_path_factory.mktemp("lab"), train=0, val=0, test=24, seed=1, family=6, images=False)
    captions, scenes = load_captions(dataset, "test"), load_scene_records(dataset, "test")
    return captions, scenes, truth_matrix(captions.captions, scenes)


def things(scene):
    return [scene.background, *(sorted(getattr(o, name) for o in scene.objects) for name in ATTRIBUTES)]


def test_it_is_a_count_over_pairs_of_scenes(lab):
    captions, scenes, truth = lab
    scores = np.random.default_rng(0).integers(0, 9, truth.shape).astype(np.float32)
    shares, first = [], []
    for text, (caption, owner) in enumerate(zip(captions.captions, captions.owner, strict=True)):
        points = [1.0 if scores[owner, text] > scores[other, text] else
                  0.5 if scores[owner, text] == scores[other, text] else 0.0
                  for other, scene in enumerate(scenes)
                  if things(scene) == things(scenes[owner]) and not caption_is_true(caption, scene)]
        if points:
            shares.append(sum(points) / len(points))
            first.append(all(point == 1 for point in points))
    report = binding_report(torch.from_numpy(scores), captions, scenes, truth)
    found = report.by_objects["all"]
    assert found.captions == len(shares) < len(captions.captions)
    assert found.right == pytest.approx(100 * np.mean(shares)) and found.first == pytest.approx(100 * np.mean(first))
    rows = [metrics for name, metrics in report.by_objects.items() if name != "all"]
    assert sum(row.captions for row in rows) == found.captions
    assert sum(row.captions * row.right for row in rows) == pytest.approx(found.captions * found.right)
    assert report.to_dict()["all"] == {"right": found.right, "first": found.first, "captions": found.captions}
    assert f"| all | {found.captions} | {found.right:.1f} |" in report.to_markdown()


def test_captions_are_sorted_by_the_objects_that_they_mention(lab):
    captions, scenes, truth = lab
    report = binding_report(truth.astype(float), captions, scenes, truth)
    expected = dict.fromkeys(report.by_objects, 0)
    for text, owner in enumerate(captions.owner):
        number = [1, 2, 0, len(scenes[owner].objects), len(scenes[owner].objects)][text % 5]    # by the level of detail
        kin = [other for other, scene in enumerate(scenes) if things(scene) == things(scenes[owner])]
        if not truth[kin, text].all():
            expected["all"] += 1
            expected["3 or more" if number > 2 else str(number)] += 1
    assert list(expected) == ["all", "0", "1", "2", "3 or more"]
    assert {name: metrics.captions for name, metrics in report.by_objects.items()} == expected


def test_truth_has_all_pairs_right_and_bags_half_of_them(lab):
    captions, scenes, truth = lab
    for metrics in binding_report(binding_scores(truth), captions, scenes, truth).by_objects.values():
        assert metrics.right == metrics.first == 100
    for metrics in binding_report(bag_scores(truth, bags(scenes)), captions, scenes, truth).by_objects.values():
        assert metrics.right == 50 and metrics.first == 0


def test_without_scenes_of_one_bag_there_is_nothing_to_tell_apart(lab):
    captions, scenes, truth = lab
    rows = [0, 6, 12, 18]
    texts = np.flatnonzero(np.isin(captions.owner, rows))
    chosen = type(captions)([captions.image_ids[row] for row in rows], [captions.captions[text] for text in texts],
                            captions.owner[texts] // 6, captions.source)
    assert binding_report(np.zeros((4, 20)), chosen, [scenes[row] for row in rows],
                          truth[np.ix_(rows, texts)]) is None
