"""Configs and weights for detectron2: what fits is loaded completely, everything else is refused with a reason.

Skipped where detectron2 is not installed: it is on no package registry.
"""

import io
import pickle
import sys
import urllib.error

import pytest
import torch

from ascl.core.errors import DataError
from ascl.features.detectors.detectron2_backend import Detectron2Backend
from ascl.features.detectors.detectron2_network import read_config, refuse_other_detectors, zoo_names

ZOO = "COCO-Detection/faster_rcnn_R_50_{}_3x.yaml"


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return states[0].keys() == states[1].keys() and all(
        torch.equal(states[0][key], states[1][key]) for key in states[0]
    )


# --- weights ---------------------------------------------------------------------------------------------------------


MISSING, LEFT_OVER, MISSHAPEN = (
    "proposal_generator.rpn_head.conv.bias", "roi_heads.mask_head.extra.weight",
    "roi_heads.box_predictor.cls_score.bias",
)


@pytest.mark.parametrize(
    "wrong", [{MISSING}, {LEFT_OVER}, {MISSHAPEN}, {MISSING, LEFT_OVER, MISSHAPEN}], ids=lambda keys: str(len(keys))
)
def test_weights_that_do_not_fit_list_every_wrong_key(detectron2_checkpoint, wrong, narrow):
    def spoil(state):
        if MISSING in wrong:
            del state[MISSING]
        if LEFT_OVER in wrong:
            state[LEFT_OVER] = torch.zeros(1)
        if MISSHAPEN in wrong:
            state[MISSHAPEN] = torch.zeros(81)

    path = detectron2_checkpoint("FPN", change=spoil)
    with pytest.raises(DataError) as caught:
        Detectron2Backend(ZOO.format("FPN"), path, options=narrow)
    assert str(caught.value) == (
        f"{path} does not fit COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml: "
        f"missing {f'1 ({MISSING})' if MISSING in wrong else 'none'}; "
        f"left over {f'1 ({LEFT_OVER})' if LEFT_OVER in wrong else 'none'}; of another shape "
        f"{f'1 ({MISSHAPEN} (81,) where (6,) is wanted)' if MISSHAPEN in wrong else 'none'}"
    )


def test_statistics_of_batch_norm_that_detectron2_would_fill_in_silently_are_missed(detectron2_checkpoint, narrow):
    path = detectron2_checkpoint("FPN")
    state = dict(torch.load(path)["model"])  # a plain dict: without the version by which detectron2 tells old files
    absent = "backbone.bottom_up.stem.conv1.norm.running_mean"
    del state[absent]
    torch.save({"model": state}, path)
    with pytest.raises(DataError, match=f"missing 1 \\({absent}\\); left over none"):
        Detectron2Backend(ZOO.format("FPN"), path, options=narrow)


def test_keys_that_detectron2_holds_to_be_harmless_are_no_error(detectron2_checkpoint, narrow):
    def add(state):
        state["pixel_mean"], state["pixel_std"] = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
        state["proposal_generator.anchor_generator.cell_anchors.0"] = torch.zeros(3, 4)

    plain, more = detectron2_checkpoint("FPN"), detectron2_checkpoint("FPN", change=add)
    models = [Detectron2Backend(ZOO.format("FPN"), path, options=narrow).model for path in (plain, more)]
    assert same_weights(*models)
    assert models[1].pixel_mean.flatten().tolist() == pytest.approx([103.53, 116.28, 123.675])  # the config's


def test_a_pickle_of_the_zoos_form_loads_and_default_takes_the_zoos_address(
    detectron2_checkpoint, tmp_path, monkeypatch, narrow
):
    from detectron2.utils.file_io import PathManager

    weights = detectron2_checkpoint("FPN")
    state = {key: value.numpy() for key, value in torch.load(weights)["model"].items()}
    path = str(tmp_path / "model_final.pkl")
    with open(path, "wb") as file:
        pickle.dump({"model": state, "__author__": "the zoo"}, file)
    asked = []
    own = PathManager.get_local_path
    monkeypatch.setattr(
        PathManager, "get_local_path", lambda url: asked.append(url) or path if "://" in url else own(url)
    )
    by_path = Detectron2Backend(ZOO.format("FPN"), path, options=narrow)
    by_default = Detectron2Backend(ZOO.format("FPN"), options=narrow)
    assert len(asked) == 1 and asked[0].startswith("https://") and asked[0].endswith(".pkl")
    assert by_path.settings == by_default.settings and by_path.settings["weights"] == "model_final.pkl"
    assert same_weights(by_path.model, by_default.model)
    state = by_path.model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in torch.load(weights)["model"].items())


def test_without_a_network_default_weights_say_what_to_fetch(detectron2, monkeypatch):
    from detectron2.utils.file_io import PathManager

    def unreachable(url):
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(PathManager, "get_local_path", unreachable)
    with pytest.raises(DataError, match=r"could not be downloaded from https://.*\.pkl .*no route.*give its path"):
        Detectron2Backend(ZOO.format("FPN"))
    with pytest.raises(DataError, match="zoo has no weights for PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml"):
        Detectron2Backend("PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml")


def test_files_that_are_no_weights_are_refused(detectron2_checkpoint, tmp_path, narrow):
    whole = open(detectron2_checkpoint("FPN"), "rb").read()
    buffer = io.BytesIO()
    torch.save([1, 2], buffer)
    contents = {
        "cut.pth": whole[: len(whole) // 2], "text.pth": b"none", "empty.pkl": b"", "list.pth": buffer.getvalue()
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"{name}.*damaged or not weights that detectron2 can read"):
            Detectron2Backend(ZOO.format("FPN"), str(tmp_path / name), options=narrow)
    with pytest.raises(DataError, match="absent.pth: no such file of weights"):
        Detectron2Backend(ZOO.format("FPN"), str(tmp_path / "absent.pth"))
    with pytest.raises(DataError, match="write random:SEED"):
        Detectron2Backend(ZOO.format("FPN"), "random:one")


# --- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "part"),
    [
        ("COCO-Detection/retinanet_R_50_FPN_1x.yaml", "its meta architecture is RetinaNet"),
        ("COCO-PanopticSegmentation/panoptic_fpn_R_50_1x.yaml", "its meta architecture is PanopticFPN"),
        ("COCO-Detection/rpn_R_50_FPN_1x.yaml", "its meta architecture is ProposalNetwork"),
        ("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", "its proposal generator is PrecomputedProposals"),
        ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", "its RoI head is CascadeROIHeads"),
        ("Misc/semantic_R_50_FPN_1x.yaml", "its meta architecture is SemanticSegmentor"),
    ],
)
def test_other_detectors_are_refused_by_name(detectron2, config, part):
    with pytest.raises(DataError, match=f"{config} is not a Faster R-CNN .*{part}"):
        Detectron2Backend(config, "random:0")


def test_every_faster_rcnn_of_the_zoo_is_taken(detectron2):

    names = [name for name in zoo_names() if "/faster_rcnn_" in name]
    assert len(names) == 13
    for name in names:
        refuse_other_detectors(read_config(name, []), name)


def test_a_config_by_its_path_is_the_zoos(detectron2_checkpoint, tmp_path, narrow):
    from detectron2 import model_zoo

    path = tmp_path / "own.yaml"
    path.write_text(model_zoo.get_config(ZOO.format("FPN")).dump())
    weights = detectron2_checkpoint("FPN")
    own, zoo = (Detectron2Backend(config, weights, options=narrow) for config in (str(path), ZOO.format("FPN")))
    assert own.settings == zoo.settings | {"config": "own.yaml", "config_sha256": own.settings["config_sha256"]}
    assert same_weights(own.model, zoo.model)
    with pytest.raises(DataError, match="own.yaml is not a name in detectron2's model zoo; give the path"):
        Detectron2Backend(str(path))


def test_configs_that_cannot_be_read_say_why(detectron2, tmp_path):
    marker = tmp_path / "ran"
    contents = {
        "broken.yaml": "MODEL: [", "unknown.yaml": "MODEL: {NO_SUCH_KEY: 1}",
        "mistyped.yaml": "MODEL: {MASK_ON: 'perhaps'}",
        "code.yaml": f"MODEL: {{WEIGHTS: !!python/object/apply:os.mkdir ['{marker}']}}",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(DataError, match=f"{name}: detectron2 cannot read this config"):
            Detectron2Backend(str(tmp_path / name), "random:0")
    assert not marker.exists()
    with pytest.raises(DataError, match="no such file, and no such name .* names: .*faster_rcnn_R_50_FPN_3x.yaml"):
        Detectron2Backend("faster_rcnn_R50_FPN_3x.yaml", "random:0")
    with pytest.raises(DataError, match="give a yaml, by its name"):
        Detectron2Backend("COCO-Detection/retinanet_R_50_FPN_1x.py", "random:0")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["MODEL.NO_SUCH_KEY", "1"], "options MODEL.NO_SUCH_KEY 1: .*values in turn"),
        (["MODEL.MASK_ON"], "options MODEL.MASK_ON: .*values in turn"),
        (["MODEL.MASK_ON", "perhaps"], "options MODEL.MASK_ON perhaps: "),
        (["MODEL.BACKBONE.NAME", "none"], "cannot build the network of .*none"),
        (["INPUT.FORMAT", "L"], "its input format is L, not BGR or RGB"),
    ],
)
def test_impossible_options_are_refused(detectron2, options, message):
    with pytest.raises(DataError, match=message):
        Detectron2Backend(ZOO.format("FPN"), "random:0", options=options)


def test_a_setuptools_without_pkg_resources_is_named(detectron2, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("detectron2.model_zoo")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pkg_resources", None)
    with pytest.raises(DataError, match="cannot be imported .*pkg_resources.*setuptools<82"):
        Detectron2Backend(ZOO.format("FPN"), "random:0")


def test_classes_have_names_where_detectron2_knows_them(detectron2, narrow):
    classes = [*narrow, "MODEL.ROI_HEADS.NUM_CLASSES"]
    coco = Detectron2Backend(ZOO.format("FPN"), "random:0", options=[*classes, "80"])
    assert len(coco.names["class_names"]) == 80 and coco.names["class_names"][0] == "person"
    voc = Detectron2Backend("PascalVOC-Detection/faster_rcnn_R_50_FPN.yaml", "random:0", options=[*classes, "20"])
    assert len(voc.names["class_names"]) == 20 and voc.names["class_names"][-1] == "tvmonitor"
    assert Detectron2Backend(ZOO.format("FPN"), "random:0", options=narrow).names == {}
    own = ["DATASETS.TEST", "('nobody_knows',)", "DATASETS.TRAIN", "()"]
    assert Detectron2Backend(ZOO.format("FPN"), "random:0", options=[*classes, "80", *own]).names == {}
