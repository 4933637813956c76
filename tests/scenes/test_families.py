"""Families of scenes: the same but for what belongs to what."""

from collections import Counter

import numpy as np
import pytest

from ascl.core.errors import DataError
from ascl.scenes.render import caption_is_true, load_scene_records, scene_settings, write_scenes
from ascl.scenes.world import MAX_FAMILY, Scene, make_scene

ATTRIBUTES = ("shape", "color", "size", "texture")


def what_is_there(scene: Scene) -> tuple:
    return scene.background, [Counter(getattr(o, name) for o in scene.objects) for name in ATTRIBUTES]


def described(scene: Scene) -> tuple:
    return scene.background, [tuple(getattr(o, name) for name in ATTRIBUTES) for o in scene.objects]


def places(scene: Scene) -> np.ndarray:
    return np.array([o.center for o in scene.objects])


@pytest.mark.parametrize("size", [2, 7, 20])
def test_a_family_differs_only_in_what_belongs_to_what(size):
    nested = 0
    for number in range(12):
        scenes = [make_scene(5, number * size + k, family=size) for k in range(size)]
        assert all(what_is_there(scene) == what_is_there(scenes[0]) for scene in scenes)
        for scene in scenes:
            assert places(scene) == pytest.approx(places(scenes[0]), abs=0.011)        # boxes have two decimals
        assert len({str(described(scene)) for scene in scenes}) == size
        nested += len({tuple(place) for place in places(scenes[0]).round(0)}) < len(scenes[0].objects)
    assert nested > 0


def test_binding_is_what_captions_of_a_family_tell_apart():
    number = next(n for n in range(100) if len(make_scene(0, 20 * n, family=20).objects) == 3)
    scenes = [make_scene(0, 20 * number + k, family=20) for k in range(20)]
    for caption in (f"a {a.color} {a.shape}, and a {b.color} {b.shape}" for scene in scenes
                    for a, b in zip(scene.objects, scene.objects[1:], strict=False)):
        true = [caption_is_true(caption, scene) for scene in scenes]
        assert any(true)
        words = caption.replace("a ", "").replace("and", "").replace(",", "").split()
        assert all(word in str(described(scene)) for word in words for scene in scenes)    # a bag of words fits all
    assert not all(caption_is_true(f"a {scenes[0].objects[0].color} {scenes[0].objects[0].shape}", scene)
                   for scene in scenes)


def test_a_scene_depends_on_nothing_but_its_place():
    forwards = [make_scene(1, index, split="val", family=6) for index in range(40)]
    assert [make_scene(1, index, split="val", family=6) for index in reversed(range(40))] == forwards[::-1]
    assert [scene.image_id for scene in forwards] == [f"scene_val_{index:06d}" for index in range(40)]
    assert make_scene(2, 0, split="val", family=6) != forwards[0]
    assert described(make_scene(1, 0, split="test", family=6)) != described(forwards[0])
    assert described(make_scene(1, 0, split="val", family=5)) == described(forwards[0])    # as longer ones begin


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_share_is_that_of_families(share):
    kin = [what_is_there(make_scene(0, 2 * n, family=2, family_share=share)) ==
           what_is_there(make_scene(0, 2 * n + 1, family=2, family_share=share)) for n in range(300)]
    assert np.mean(kin) == pytest.approx(share, abs=0.08 * (0 < share < 1))


@pytest.mark.parametrize(("family", "share"), [(0, 1.0), (MAX_FAMILY + 1, 1.0), (2, -0.1), (2, 1.1), (2, np.nan)])
def test_impossible_families_are_named(family, share):
    with pytest.raises(DataError, match=f"got family {family}, family_share {share}"):
        make_scene(0, 0, family=family, family_share=share)


def test_the_largest_family_is_found():
    scenes = [make_scene(0, k, family=MAX_FAMILY) for k in range(MAX_FAMILY)]
    assert len({str(described(scene)) for scene in scenes}) == MAX_FAMILY


SMALL = {"train": 5, "val": 2, "test": 4, "seed": 7, "side": 64, "family": 3, "family_share": 0.5}


def test_a_data_set_without_images_is_the_same_and_gets_them_later(tmp_path):
    drawn, bare = write_scenes(tmp_path / "a", **SMALL), write_scenes(tmp_path / "b", **SMALL, images=False)
    assert drawn.read_bytes() == bare.read_bytes()
    assert [path.name for path in (tmp_path / "b").iterdir()] == [bare.name]
    assert scene_settings(bare) == SMALL | {"version": 1}
    expected = [make_scene(7, i, split="test", side=64, family=3, family_share=0.5) for i in range(4)]
    assert load_scene_records(bare, "test") == expected
    written = bare.stat().st_mtime_ns
    write_scenes(tmp_path / "b", **SMALL, images=False)
    write_scenes(tmp_path / "b", **SMALL)
    assert bare.stat().st_mtime_ns == written
    pictures = {path.name: path.read_bytes() for path in (tmp_path / "a" / "images").iterdir()}
    assert {path.name: path.read_bytes() for path in (tmp_path / "b" / "images").iterdir()} == pictures
    assert len(pictures) == 11


def test_other_families_in_the_same_folder_are_refused(tmp_path):
    write_scenes(tmp_path, **SMALL, images=False)
    with pytest.raises(DataError, match="'family': 3.*asked for is .*'family': None"):
        write_scenes(tmp_path, **{**SMALL, "family": None}, images=False)


def test_a_file_of_before_families_is_kept(tmp_path):
    plain = {name: value for name, value in SMALL.items() if not name.startswith("family")}
    dataset = write_scenes(tmp_path, **plain, images=False)
    text = dataset.read_text()
    old = text.replace('"family":null,"family_share":1.0,', "")
    assert old != text
    dataset.write_text(old)
    assert write_scenes(tmp_path, **plain, images=False) == dataset
    assert dataset.read_text() == old
