"""What tools/eval.py says beside the recalls: probes, labels that know more, and the ranks it leaves for others."""

import json
import os

import h5py
import numpy as np
import pytest
import torch

from ascl.analysis.binding import binding_report
from ascl.analysis.evaluation import (
    RunSplit,
    add_corrected_labels,
    evaluate_scores,
    evaluation_markdown,
    known_coco_ids,
    known_scenes,
    save_evaluation,
    save_given,
    score_split,
)
from ascl.analysis.probes.probes import group_truth, probe_report, probe_texts
from ascl.analysis.probes.scene_variants import scene_variants
from ascl.data.captions import load_captions
from ascl.data.stores.open import open_features
from ascl.models.base import TextEncoder
from ascl.models.baselines.one_vector import OneVector
from ascl.retrieval import build, ranks
from ascl.retrieval.multi_positive import multi_positive_report
from ascl.scenes.render import load_scene_records, truth_matrix, write_scenes
from ascl.settings.retrieval import Config, DataConfig


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "ACCELERATE_USE_CPU", "true")
        yield


@pytest.fixture(scope="module")
def runs(tiny_runs):
    """Two runs on captions as people write them."""
    return [tiny_runs / "a0", tiny_runs / "a1"]


@pytest.fixture(scope="module")
def scenes_run(tmp_path_factory, tool, train_arguments):
    """A run on twenty generated scenes with random features: (run, folder of the data)."""
    folder = tmp_path_factory.mktemp("scenes")
    write_scenes(folder, train=10, val=4, test=20, seed=2, side=32)
    ids = [image["filename"].removesuffix(".png")
           for image in json.loads((folder / "dataset_scenes.json").read_text())["images"]]
    rng = np.random.default_rng(0)
    for name, shape in (("regions", (34, 4, 8)), ("globals", (34, 6))):
        with h5py.File(folder / f"{name}.h5", "w") as file:
            file.attrs["format"], file.attrs["version"], file.attrs["provenance"] = "ascl-features", 1, "{}"
            file.create_dataset("image_ids", data=ids, dtype=h5py.string_dtype())
            file.create_dataset(name, data=rng.normal(size=shape).astype(np.float32))
    run = folder / "run"
    arguments = train_arguments(folder, run, "--data.captions", str(folder / "dataset_scenes.json"),
                                "--train.max_steps", "1", "--text.finetune", "false", "--dataset", "scenes")
    assert tool("train")(arguments) == 0
    return run, folder


def evaluated(tool, folder, name, *arguments):
    """What an evaluation wrote: its JSON, its Markdown and its ranks."""
    assert tool("eval")([*map(str, arguments), "--out", str(folder)]) == 0
    with np.load(folder / f"ranks-{name}.npz", allow_pickle=False) as archive:
        return (json.loads((folder / f"eval-{name}.json").read_text()), (folder / f"eval-{name}.md").read_text(),
                dict(archive))


def test_ranks_are_left_for_each_query(runs, tiny_data, tool, tmp_path):
    scores = tmp_path / "scores.npz"
    saved, _, found = evaluated(tool, tmp_path, "test", "--checkpoint", runs[0], "--save-scores", scores)
    matrix = np.load(scores)
    expected = ranks(matrix["scores"], matrix["owner"])
    for name in ("i2t", "t2i", "image_queries", "text_queries"):
        assert found[name].dtype == np.int64 and (found[name] == getattr(expected, name)).all()
    captions = load_captions(tiny_data / "captions.json", "test")
    assert found["captions"].tolist() == captions.captions and found["image_ids"].tolist() == captions.image_ids
    assert (found["owner"] == captions.owner).all() and "probes" not in saved and "multi_positive" not in saved
    given, _, ranked = evaluated(tool, tmp_path, "scores", "--scores", scores)
    assert set(ranked) == {"i2t", "t2i", "image_queries", "text_queries", "owner"}
    assert (ranked["t2i"] == found["t2i"]).all() and given["reports"] == saved["reports"]
    assert "image_ids" not in matrix.files                                      # these captions are not COCO's


def test_probes_come_beside_recall(runs, tool, tmp_path, capsys):
    saved, table, _ = evaluated(tool, tmp_path, "test", "--checkpoint", runs[0], "--probes")
    probes = saved["probes"]
    assert {"noun swapped", "false detail added", "concatenated", "truncated (prefix)"} <= set(probes["kinds"])
    assert set(probes["by_asymmetry"]) == {"I", "II", "III"} and probes["group"] == 6
    for figures in probes["kinds"].values():
        assert 0 <= figures["low"] <= figures["right"] <= figures["high"] <= 1 and figures["pairs"] >= 1
    assert probes["kinds"]["concatenated"]["pairs"] == 13 and "### probes of asymmetry" in table
    assert probes["how"] in table and probes["how"] in capsys.readouterr().out
    plain, _, _ = evaluated(tool, tmp_path, "test", "--checkpoint", runs[0])
    assert plain["reports"] == saved["reports"]


def test_probes_of_some_captions_and_of_an_ensemble(runs, tool, tmp_path):
    saved, _, _ = evaluated(tool, tmp_path, "test-ensemble", "--checkpoint", *runs, "--probe-captions", 3)
    assert saved["probes"]["kinds"]["concatenated"]["pairs"] == 3
    one, _, _ = evaluated(tool, tmp_path, "test", "--checkpoint", runs[0], "--probe-captions", 3)
    twice, _, _ = evaluated(tool, tmp_path, "test-ensemble", "--checkpoint", runs[0], runs[0], "--probe-captions", 3)
    assert twice["probes"] == one["probes"]


def test_scenes_know_every_true_pair(scenes_run, tool, tmp_path):
    run, folder = scenes_run
    saved, table, _ = evaluated(tool, tmp_path, "test", "--checkpoint", run, "--probes", "--save-scores",
                                tmp_path / "scores.npz")
    captions = load_captions(folder / "dataset_scenes.json", "test")
    truth = truth_matrix(captions.captions, load_scene_records(folder, "test"))
    scores = np.load(tmp_path / "scores.npz")["scores"]
    assert saved["multi_positive"] == multi_positive_report(scores, truth).to_dict()
    assert "### every true pair counts: mAP@R" in table and "generated scenes" in saved["probes"]["how"]
    assert saved["probes"]["by_asymmetry"]["II"]["left_out"] > 0 and saved["probes"]["group"] == 16
    assert {"relation swapped", "roles swapped", "background swapped"} <= set(saved["probes"]["kinds"])
    binding = binding_report(scores, captions, load_scene_records(folder, "test"), truth)
    assert saved["binding"] == binding.to_dict() and "### binding: scenes that hold the same things" in table


def test_truth_is_known_wherever_the_captions_are_of_scenes(scenes_run, tiny_data):
    _, folder = scenes_run
    captions = load_captions(folder / "dataset_scenes.json", "test")
    mine = Config(dataset="mine", data=DataConfig(captions=str(folder / "dataset_scenes.json")))
    assert known_scenes(mine, "test", captions) == load_scene_records(folder, "test")
    other = Config(dataset="scenes", data=DataConfig(captions=str(tiny_data / "captions.json")))
    assert known_scenes(other, "test", load_captions(tiny_data / "captions.json", "test")) is None


class Truth(TextEncoder):
    """A text is one word: of which of the scenes it is true."""

    def __init__(self, scenes):
        super().__init__()
        self.scenes, self.dim = scenes, len(scenes)
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, texts):
        of_scenes = torch.from_numpy(truth_matrix(list(texts), self.scenes).T.astype("f4"))
        return of_scenes[:, None] * self.one, torch.ones(len(texts), 1, dtype=torch.bool)


class Knower(OneVector):
    """A model whose score is above 0 exactly where the text is true, and the higher, the fewer scenes it is true of."""

    def image_vector(self, regions, globals_, mask):
        return globals_

    def text_vector(self, hidden, mask):
        return hidden[:, 0]


def test_probes_follow_the_model_that_knows_the_truth(scenes_run, tmp_path):
    """The whole way, with a score that follows the truth: nothing gets lost between variants, groups and counting."""
    run, folder = scenes_run
    captions, scenes = load_captions(folder / "dataset_scenes.json", "test"), load_scene_records(folder, "test")
    assert [scene.image_id for scene in scenes] == captions.image_ids
    with h5py.File(tmp_path / "numbered.h5", "w") as file:
        file.attrs["format"], file.attrs["version"], file.attrs["provenance"] = "ascl-features", 1, "{}"
        file.create_dataset("image_ids", data=captions.image_ids, dtype=h5py.string_dtype())
        file["regions"], file["globals"] = np.zeros((20, 1, 1), "f4"), np.eye(20, dtype="f4")
    model = Knower(1, 20, Truth(scenes), standardize=False)
    loaded = RunSplit(model, build.load_run(run)[1], "test", captions, open_features([tmp_path / "numbered.h5"]))
    probes = probe_texts(captions, scene_variants(captions, scenes))
    _, scores = score_split(loaded, {}, probes)
    report = probe_report(probes, scores, group_truth(probes, scenes))
    assert set(report.by_asymmetry) == {"I", "II", "III"}
    assert all(metrics.right == 1 for metrics in report.kinds.values())


@pytest.mark.parametrize("arguments, match", [
    (["--scores", "SCORES", "--probes"], "--probes: for computing scores"),
    (["--checkpoint", "RUN", "--protocol", "paired", "--probes"], "without folds, probes or"),
    (["--checkpoint", "RUN", "--probe-captions", "0"], "probe_captions: expected a whole number of at least 1, got 0"),
])
def test_what_cannot_be_probed(runs, tool, tmp_path, capsys, arguments, match):
    np.savez(tmp_path / "s.npz", scores=np.eye(2, dtype=np.float32), owner=[0, 1])
    named = {"RUN": str(runs[0]), "SCORES": str(tmp_path / "s.npz")}
    assert tool("eval")([named.get(argument, argument) for argument in arguments]) == 2
    assert match in capsys.readouterr().err


def test_a_label_that_cannot_be_computed_is_a_note_and_no_failure(tiny_data, tool, tmp_path, capsys):
    pytest.importorskip("eccv_caption", reason="needs the package eccv_caption (the extra `labels`)")
    captions = load_captions(tiny_data / "captions.json", "test")
    scores = torch.randn(6, 13)
    evaluation = evaluate_scores(scores, captions.owner, {}, folds=None, captions=captions)
    assert known_coco_ids(captions, evaluation.notes) is None
    add_corrected_labels(evaluation, scores, (list(range(6)), list(range(13))))
    note, other = evaluation.notes
    assert "not computed" in note and "its sentids are not COCO's" in note and note in evaluation_markdown(evaluation)
    assert "6 images were scored; 5000 images of the labels are not among them" in other
    path = save_evaluation(evaluation, tmp_path, "test")[0]
    saved = json.loads(path.read_text())
    assert saved["notes"] == [note, other] and "eccv" not in saved and saved["reports"]["full"]["images"] == 6
    # ids that are known go along with the scores, and are looked at where these are ranked
    save_given(tmp_path / "s.npz", scores, captions.owner, (list(range(6)), list(range(13))))
    assert np.load(tmp_path / "s.npz")["caption_ids"].tolist() == list(range(13))
    assert tool("eval")(["--scores", str(tmp_path / "s.npz"), "--out", str(tmp_path)]) == 1
    assert "error: 6 images were scored; 5000" in capsys.readouterr().err
    save_given(tmp_path / "s.npz", scores, captions.owner)
    assert "image_ids" not in np.load(tmp_path / "s.npz").files


def test_given_scores_with_ids_that_are_none(tool, tmp_path, capsys):
    np.savez(tmp_path / "s.npz", scores=np.eye(2, dtype=np.float32), owner=[0, 1], image_ids=["a", "b"],
             caption_ids=[1, 2])
    assert tool("eval")(["--scores", str(tmp_path / "s.npz")]) == 1
    assert "must be COCO's numbers" in capsys.readouterr().err


def test_given_scores_say_how_they_were_read(tool, tmp_path, capsys):
    true = np.random.default_rng(0).normal(size=(4, 6))
    np.save(tmp_path / "sims.npy", true.repeat([2, 2, 2, 0], axis=0))
    words = ["--scores", str(tmp_path / "sims.npy"), "--captions_per_image", "2", "--out", str(tmp_path / "out")]
    assert tool("eval")(words) == 0
    content = json.loads((tmp_path / "out" / "eval-sims.json").read_text())
    assert "each image is given once for each of its texts (6 x 6)" in content["notes"][0] in capsys.readouterr().out
    np.savez(tmp_path / "s.npz", scores=true, owner=[0, 0, 1, 1, 2, 2])
    assert tool("eval")(["--scores", str(tmp_path / "s.npz")]) == 0
    assert "1 of 4 images have no text" in capsys.readouterr().out
    assert tool("eval")(["--checkpoint", "runs/x", "--captions_per_image", "5"]) == 2
    assert "--captions_per_image: for given scores (--scores)" in capsys.readouterr().err
