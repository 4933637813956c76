"""Fixtures of extraction: Ray; detectron2 where it is installed, and small networks for it."""

import pytest
import torch

from ascl.features.detectors.detectron2_backend import Detectron2Backend

NARROW = (
    "MODEL.RESNETS.RES2_OUT_CHANNELS 16 MODEL.RESNETS.WIDTH_PER_GROUP 8 MODEL.RESNETS.STEM_OUT_CHANNELS 8 "
    "MODEL.FPN.OUT_CHANNELS 16 MODEL.ROI_BOX_HEAD.FC_DIM 24 MODEL.ROI_HEADS.NUM_CLASSES 5 "
    "MODEL.RPN.POST_NMS_TOPK_TEST 60 INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 160"
).split()


@pytest.fixture(scope="session")
def ray():
    """One Ray instance on this machine for all tests."""
    ray = pytest.importorskip("ray", reason="Ray is not installed (extra `scale`)")
    ray.init(num_cpus=2, include_dashboard=False, logging_level="error", log_to_driver=False)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def detectron2():
    """The package, or a skip."""
    pytest.importorskip("detectron2", reason="detectron2 is not installed (it is on no package registry)")
    import detectron2

    return detectron2


@pytest.fixture(scope="session")
def narrow() -> list[str]:
    """Options that make any network of the zoo small: few channels, 5 classes, images of 96 pixels."""
    return NARROW


@pytest.fixture(scope="session")
def detectron2_checkpoint(detectron2, tmp_path_factory):
    """(architecture, *more options) -> the file of a narrow network whose scores differ and whose boxes move."""

    def make(architecture: str, *more: str, change=lambda state: None) -> str:
        network = Detectron2Backend(
            f"COCO-Detection/faster_rcnn_R_50_{architecture}_3x.yaml", "random:1", options=[*NARROW, *more]
        ).model
        state = network.state_dict()
        factor = 30 if architecture == "DC5" else 8
        state["roi_heads.box_predictor.cls_score.weight"] *= factor
        state["roi_heads.box_predictor.bbox_pred.weight"] *= 5 * factor
        change(state)
        path = tmp_path_factory.mktemp("weights") / "network.pth"
        torch.save({"model": state}, path)
        return str(path)

    return make
