"""What describes images is chosen and refused without torch; each kind is opened by the programs' tests."""

import subprocess
import sys

import pytest

from ascl.core.errors import DataError
from ascl.image_copy.descriptors.choice import DescriberChoice, make_network_describer

RECORDED = DescriberChoice("backbone", "resnet18", weights="random:0", input_size=64)


@pytest.mark.parametrize(("options", "recorded", "wanted"), [
    ({}, None, None),
    ({"weights": None, "same_padding": False}, RECORDED, None),
    ({"model": "/", "input_size": 32}, None, DescriberChoice("checkpoint", "/", input_size=32)),
    ({"model": "sscd_disc_mixup"}, RECORDED, DescriberChoice("sscd", "sscd_disc_mixup")),
    ({"model": "resnet50"}, RECORDED, DescriberChoice("backbone", "resnet50", weights="random:0", input_size=64)),
    ({"model": "phash"}, RECORDED, DescriberChoice("phash")),
    ({"weights": "w.pth"}, RECORDED, DescriberChoice("backbone", "resnet18", weights="w.pth", input_size=64)),
])
def test_what_is_given_and_what_was_recorded(options, recorded, wanted):
    assert DescriberChoice.from_options(options, recorded) == wanted


@pytest.mark.parametrize(("options", "problem"), [
    ({"weights": "w.pth"}, "weights has no effect without a model"),
    ({"model": "/", "normalize": "half"}, "normalize does not apply to a checkpoint; leave it out"),
    ({"model": "sscd_disc_mixup", "pool": "gem"}, "pool does not apply to a sscd"),
    ({"model": "phash", "weights": "w.pth"}, "weights does not apply to a phash"),
    ({"model": "a.pt"}, "no model a.pt: no such file or run"),
    ({"model": "phash", "resize": "crop"}, "resize does not apply to a phash"),
    ({"model": "/", "input_size": 0}, "input_size 0: give at least 1"),
])
def test_what_is_refused(options, problem):
    with pytest.raises(DataError, match=problem):
        DescriberChoice.from_options(options)


def test_a_hash_is_not_a_network_and_other_kinds_are_named():
    with pytest.raises(DataError, match="not a network"):
        make_network_describer(DescriberChoice("phash"), "cpu", "float32")
    with pytest.raises(DataError, match="kind 'sift': choose one of checkpoint, torchscript, sscd, backbone, phash"):
        DescriberChoice("sift")


def test_only_who_names_a_model_asks_for_its_download():
    named = DescriberChoice.from_options({"model": "resnet18"})
    assert named.download and not RECORDED.download
    assert not DescriberChoice.from_options({"input_size": 32}, RECORDED).download
    record = named.to_record()
    assert "download" not in record
    assert not DescriberChoice.from_record({**record, "download": True}, "idx").download


def test_choosing_imports_no_torch():
    code = "import sys; from ascl.image_copy.descriptors.choice import DescriberChoice as Choice\n" \
           "Choice.from_options({'model': 'resnet50'}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
