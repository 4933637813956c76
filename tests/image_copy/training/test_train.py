"""tools/train_copy.py from its command line to a checkpoint that describes images; the data that it trains on."""

import contextlib
import functools
import io
import json
import shutil
import signal

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ascl.core.errors import DataError
from ascl.image_copy.descriptors.descriptor import load_descriptor
from ascl.image_copy.edits.augment import CopyAugmentation, IdentityAugmentation
from ascl.image_copy.training.asl import AslObjective
from ascl.image_copy.training.data import Identities, Photos, SmallImages, Views, held_out
from ascl.image_copy.training.rdcd import RdcdObjective
from ascl.image_copy.training.sscd import SscdObjective
from ascl.image_copy.training.train import (
    build_batches,
    build_data,
    build_objective,
    build_schedule,
    build_teacher,
    center,
    descriptor_settings,
)
from ascl.image_copy.training.validation import make_validation_set
from ascl.images.find import find_images
from ascl.images.read import SquarePixels
from ascl.settings.base import leaf_types
from ascl.settings.image_copy import SHORT, CopyConfig, load_copy_config
from ascl.training.log import read_metrics
from ascl.training.run import loop_settings
from ascl.training.schedule import cosine

from ...same_bits import same_bits
from ..training_cases import BACKBONE, SIDE, save_photos, train_arguments

METHODS = ["sscd", "rdcd", "asl"]


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """Bit for bit holds on a CPU; a machine with a GPU would train there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        yield


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return save_photos(tmp_path_factory.mktemp("copy") / "photos", 25)


@pytest.fixture(scope="module")
def trained(photos, tool, tmp_path_factory):
    """Method -> the folder of a run that was never stopped, and what it printed; each is trained once."""
    @functools.cache
    def run(method):
        folder, printed = tmp_path_factory.mktemp(method) / "whole", io.StringIO()
        with contextlib.redirect_stdout(printed):
            assert tool("train_copy")(train_arguments(method, photos, folder)) == 0
        return folder, printed.getvalue()

    return run


@pytest.fixture(scope="module")
def configs(request):
    return request.config.rootpath / "configs" / "image_copy"


def state_of(path):
    return torch.load(path, weights_only=True)


def lines_of(run, kind):
    return [line for line in read_metrics(run / "metrics.jsonl") if line["kind"] == kind]


# Runs


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_what_it_needs_and_is_a_function_of_its_settings(tmp_path, photos, tool, trained, method):
    (whole, out), again = trained(method), tmp_path / "again"
    assert "20 images to train with, 5 held out" in out and "ascl extract descriptors --model" in out

    saved = state_of(whole / "last.pt")
    assert not any(name.startswith(("teacher.", "objective.")) for name in saved["model"])
    assert saved["extra"]["descriptor"]["backbone"] == BACKBONE
    settings = yaml.safe_load((whole / "settings.yaml").read_text())
    assert settings["method"] == method and settings == saved["extra"]["settings"]
    about = json.loads((whole / "environment.json").read_text())
    if method == "rdcd":
        assert about["teacher"]["kind"] == "backbone" and "sha256:" in saved["extra"]["teacher"]
        assert int(saved["model"]["key_queue.written"]) == int(saved["model"]["teacher_queue.written"]) == 30
    else:
        assert about["teacher"] is None and saved["extra"]["teacher"] is None
    assert [line["step"] for line in lines_of(whole, "train")] == [1, 2, 3, 4, 5, 6]
    assert all(np.isfinite(line["loss"]) for line in lines_of(whole, "train"))
    validations = lines_of(whole, "validation")
    assert [line["step"] for line in validations] == [3, 6]
    assert {"muap", "recall_at_1", "rpr", "rpr_tolerance", "uniformity", "gap", "content_norm"} <= set(validations[0])
    assert state_of(whole / "best.pt")["progress"]["best"] == max(line["muap"] for line in validations)
    assert tool("train_copy")(train_arguments(method, photos, again, "--data.workers", "2")) == 0
    same_bits(saved["model"], state_of(again / "last.pt")["model"])  # whatever the number of workers


@pytest.mark.parametrize("method", METHODS)
def test_a_stopped_run_goes_on_as_if_it_had_not_been_stopped(tmp_path, photos, tool, trained, method, monkeypatch):
    kind = {"sscd": SscdObjective, "rdcd": RdcdObjective, "asl": AslObjective}[method]
    main, usual = tool("train_copy"), kind.__call__
    uninterrupted, _ = trained(method)

    def stopping(self, model, batch, step, generator):
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return usual(self, model, batch, step, generator)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "__call__", stopping)
        assert main(train_arguments(method, photos, tmp_path / "parts")) == 130
    assert state_of(tmp_path / "parts" / "last.pt")["progress"]["step"] == 4
    torch.manual_seed(99)  # a new process starts with other generators
    assert main(["--resume", str(tmp_path / "parts")]) == 0
    for name in ("last.pt", "best.pt"):
        whole, parts = state_of(uninterrupted / name), state_of(tmp_path / "parts" / name)
        for state in (whole, parts):
            del state["extra"]["settings"]["out"]
        same_bits(whole, parts)


def test_a_run_does_not_resume_with_other_images(tmp_path, photos, tool, capsys):
    """The number of steps per epoch stays the same, so that nothing else would notice."""
    folder, out = tmp_path / "photos", tmp_path / "run"
    shutil.copytree(photos, folder)
    assert tool("train_copy")(train_arguments("asl", folder, out, "--train.max_steps", "1")) == 0
    before = (out / "last.pt").read_bytes()
    chosen = sorted(folder.iterdir())[0]
    chosen.rename(folder / "zz_new.png")
    message = refused(tool, capsys, ["--resume", str(out), "--train.max_steps", "12"])
    assert "1 were added, 1 removed" in message and "start a new run" in message
    assert (out / "last.pt").read_bytes() == before
    (folder / "zz_new.png").rename(chosen)
    (out / "images.txt").unlink()
    assert "images.txt is gone" in refused(tool, capsys, ["--resume", str(out), "--train.max_steps", "12"])


def test_validation_queries_mix_in_no_reference(photos):
    """Or a query would show two references, and one of the two true answers would count as false."""
    class Asked(Photos):
        asked = 0

        def __getitem__(self, index):
            type(self).asked += 1
            return super().__getitem__(index)

    class AskedOnce(Photos):
        def __getitem__(self, index):
            assert index not in seen, "a reference was mixed into another query"
            seen.add(index)
            return super().__getitem__(index)

    seen: set[int] = set()
    paths = find_images(photos).paths
    references, mixed_in = AskedOnce(paths[:15]), Asked(paths[15:])
    made = make_validation_set(references, mixed_in, SquarePixels(SIDE, "squash"), seed=3, workers=0)
    assert len(made.references) == 15 and seen == set(range(15)) and Asked.asked > 0


@pytest.mark.parametrize("method", ["sscd", "rdcd"])
def test_a_centred_student_begins_without_a_common_direction(photos, method):
    """The mean of its embeddings is 0 on the first views; the momentum encoder begins as the student."""
    arguments = train_arguments(method, photos, photos, "--model.centred", "true")
    config = load_copy_config(arguments)
    data = build_data(config)
    teacher = build_teacher(config, data.train)
    torch.manual_seed(0)
    model, _ = build_objective(config, descriptor_settings(config, teacher), teacher, 20)
    batches = build_batches(config, data.train, 0, 1)
    center(model, batches, config.train.batch_size)
    views = torch.cat([batch.pixels.flatten(0, 1) for batch in batches(0, 0)])[:256]
    with torch.no_grad():
        out = model.student.eval()(views)
    assert model.student.head.bias.requires_grad
    for vectors in (out.features, out.embeddings):
        assert float(vectors.mean(dim=0).norm()) < 1e-3 * float(vectors.norm(dim=1).mean())
    if method == "rdcd":
        for name, value in model.key.state_dict().items():
            assert torch.equal(value, model.student.state_dict()[name])


def test_a_run_describes_images(photos, trained):
    describer = load_descriptor(trained("rdcd")[0])
    assert describer.dim == 8 and describer.settings["descriptor"]["feature_dim"] == 1000  # the teacher's
    vectors, norms = describer([describer.prepare(Image.open(next(photos.iterdir())))])
    assert vectors.shape == (1, 8) and norms.shape == (1,)


def test_a_collapsed_descriptor_is_warned_of(tmp_path, photos, tool, capsys):
    arguments = train_arguments("sscd", photos, tmp_path / "run", "--train.max_steps", "1", "--dim", "16",
                                "--train.rank_tolerance", "0.9")
    assert tool("train_copy")(arguments) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if line.startswith("WARNING: ")]
    assert any("dimensional collapse" in line and "RPR" in line for line in warned)
    line = lines_of(tmp_path / "run", "validation")[0]
    assert line["warnings"] == len(warned) and line["rpr_tolerance"] == 0.9


def test_a_run_on_a_cached_teacher_says_that_it_sees_the_unedited_images(tmp_path, photos, tool, capsys):
    from ascl.image_copy.descriptors.files import write_descriptors

    names = [path.stem for path in find_images(photos).paths]
    write_descriptors(tmp_path / "t.h5", names, np.random.default_rng(0).normal(size=(25, 16)))
    arguments = train_arguments("rdcd", photos, tmp_path / "run", "--teacher", str(tmp_path / "t.h5"),
                                "--train.max_steps", "2", "--data.cache_side", "40")
    assert tool("train_copy")(arguments) == 0
    out = capsys.readouterr().out
    assert "it sees the images unedited" in out and "in memory with short sides of 40 pixels" in out
    assert "feature 16, descriptor 8" in out


# Settings and refusals


def refused(tool, capsys, arguments, status=1):
    """Return the message of a refusal; the status is 2 for unknown settings, 1 for those that do not fit."""
    assert tool("train_copy")(arguments) == status
    return capsys.readouterr().err


@pytest.mark.parametrize(("more", "message", "status"), [
    (["--rdcd.tempurature", "0.1"], "rdcd.temperature", 2), (["--model.dim", "many"], "model.dim", 2),
    (["--method", "moco"], "known: asl", 2), (["--data.validation_share", "0"], "data.validation_share", 1),
    (["--data.workers", "-1"], "data.workers is -1", 1),
    (["--train.batch_size", "21"], "20 identities give no batch of 21", 1),
    (["--rdcd.temperature", "0"], "temperature must be positive", 1), (["--rdcd.momentum", "1.5"], "momentum 1.5", 1),
    (["--rdcd.hard_negative_weight", "-1"], "hard_negative_weight must be at least 0, got -1", 1),
    (["--teacher", "resnet_50"], "nearest are", 1), (["--teacher", "null"], "set teacher.source", 1),
    (["--model.feature_dim", "16"], "1000 dimensions and the student's feature 16", 1),
    (["--images", "no/such/folder"], "no such image or folder", 1),
])
def test_a_setting_that_cannot_be_is_refused_before_the_first_step(
    tmp_path, photos, tool, capsys, more, message, status
):
    out = tmp_path / "run"
    assert message in refused(tool, capsys, train_arguments("rdcd", photos, out, *more), status)
    assert not (out / "last.pt").exists()


def test_no_method_no_run_and_a_teacher_for_nobody(tmp_path, photos, tool, capsys):
    assert "no method was chosen" in refused(tool, capsys, ["--images", str(photos)], 2)
    assert "does not exist" in refused(tool, capsys, ["--resume", str(tmp_path)])
    arguments = train_arguments("sscd", photos, tmp_path / "run", "--teacher", BACKBONE)
    assert "has no distillation" in refused(tool, capsys, arguments)


@pytest.mark.parametrize("name", ["sscd", "rdcd", "asl", "sscd_small", "rdcd_small", "asl_small"])
def test_each_method_has_its_settings(name):
    config = load_copy_config(["--method", name, "--images", "photos", "--dim", "128"])
    assert config.method == name and config.objective == name.removesuffix("_small")
    assert config.model.dim == 128 and config.data.images == "photos"
    assert set(SHORT.values()) <= set(leaf_types(CopyConfig))


def test_published_numbers():
    rdcd = load_copy_config(["--method", "rdcd"])
    assert (rdcd.rdcd.contrastive_weight, rdcd.rdcd.distillation_weight, rdcd.rdcd.hard_negative_weight) == (1, 10, 5)
    assert (rdcd.rdcd.queue_size, rdcd.rdcd.momentum, rdcd.rdcd.temperature) == (65536, 0.99, 0.07)
    assert descriptor_settings(rdcd, None).feature_dim == 512 and rdcd.model.backbone == "efficientnet_b0"
    asl = load_copy_config(["--method", "asl"])
    settings = descriptor_settings(asl, None)
    assert (settings.projector_hidden, settings.projector_dim, settings.norm_of) == (4096, 8192, "projector")
    assert settings.feature_dim is None and settings.dim is None and settings.last_stride == 1
    assert (asl.optimizer.kind, asl.optimizer.lr, asl.asl.classification_weight) == ("adam", 3.5e-4, 10)


def test_the_rate_scales_with_the_batch_of_all_processes():
    config = load_copy_config(["--method", "rdcd", "--train.batch_size", "64", "--train.epochs", "10"])
    rate, plain = build_schedule(config, loop_settings(config, 8), 2), cosine(1.0, final=0.0, total_steps=80)
    assert rate(79) == 0 and rate(39) == pytest.approx(0.5 * 40 / 40 * plain(39))
    assert rate(0) == pytest.approx(0.5 * plain(0) / 40)


# Data


def test_held_out_images_are_chosen_by_their_ids(photos):
    paths = find_images(photos).paths
    train, validation = held_out(paths, 0.2, 100)
    assert len(validation) == 5 and sorted(train + validation) == paths
    assert held_out(paths[::-1], 0.2, 100)[1] == validation[::-1]
    fewer = held_out([path for path in paths if path != train[0]], 0.2, 100)
    assert set(fewer[1]) == set(validation)
    assert len(held_out(paths, 0.9, 3)[1]) == 3
    for wrong in ([paths[:3], 0.1, 9], [paths, 0.99, 99]):
        with pytest.raises(DataError, match="at least two of each"):
            held_out(*wrong)


def test_images_in_memory_are_those_on_disk_made_small(photos, tmp_path):
    paths = find_images(photos).paths
    for workers in (0, 2):
        small = SmallImages(paths, 24, workers=workers, skip_unreadable=False)
        for image, path in zip((small[i] for i in range(25)), paths, strict=True):
            whole = Image.open(path)
            assert min(image.size) == 24 and image.mode == "RGB"
            assert image.width / image.height == pytest.approx(whole.width / whole.height, rel=0.03)
    assert small.nbytes == sum(np.asarray(small[i]).size for i in range(25))
    assert SmallImages(paths, 200, workers=0, skip_unreadable=False)[3].tobytes() == Image.open(paths[3]).tobytes()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match="broken.png.*skip_unreadable"):
        SmallImages([paths[0], tmp_path / "broken.png"], 24, workers=0, skip_unreadable=False)
    kept = SmallImages([tmp_path / "broken.png", paths[1]], 24, workers=0, skip_unreadable=True)
    assert len(kept) == 1 and kept.paths == [paths[1]] and [path.name for path, _ in kept.skipped] == ["broken.png"]


@pytest.mark.parametrize("cached", ["null", "40"])
def test_unreadable_images_stop_a_run_or_are_left_out_by_name(tmp_path, tool, capsys, cached):
    folder = save_photos(tmp_path / "photos", 25)
    (folder / "broken.png").write_bytes(b"no picture")
    arguments = train_arguments("sscd", folder, tmp_path / "run", "--train.max_steps", "1", "--data.cache_side", cached)
    if cached != "null":
        assert "broken.png" in refused(tool, capsys, arguments)
    assert tool("train_copy")([*arguments, "--data.skip_unreadable", "true"]) == 0
    assert "skipped 1 unreadable images" in capsys.readouterr().out
    assert json.loads((tmp_path / "run" / "environment.json").read_text())["unreadable"][0][0] == "broken.png"


@pytest.mark.parametrize("method", ["sscd", "asl"])
def test_batches_do_not_depend_on_the_workers_and_a_resume_finds_its_place(photos, method):
    def batches(workers, epoch, first):
        config = load_copy_config([
            "--method", method, "--images", str(photos), "--views.size", str(SIDE), "--train.batch_size", "5",
            "--data.workers", str(workers), "--data.validation_share", "0.2",
        ])
        return list(build_batches(config, build_data(config).train, 0, 1)(epoch, first))

    whole, parallel, rest = batches(0, 1, 0), batches(2, 1, 0), batches(1, 1, 2)
    assert len(whole) == len(parallel) == 4 and len(rest) == 2
    for batch, other in [*zip(whole, parallel, strict=True), *zip(whole[2:], rest, strict=True)]:
        assert torch.equal(batch.pixels, other.pixels) and torch.equal(batch.items, other.items)
    items = torch.cat([batch.items for batch in whole]).tolist()
    assert sorted(items) == list(range(20))  # each image once an epoch
    assert not torch.equal(whole[0].pixels, batches(0, 2, 0)[0].pixels)


def test_views_are_those_of_the_augmentation(photos):
    images = Photos(find_images(photos).paths)
    augmentation = CopyAugmentation(SIDE)
    views = Views(images, augmentation, seed=3)
    pixels, item = views[(2, 7, 0)]
    expected = augmentation.views(images[7], seed=3, index=7, epoch=2)
    assert item == 7 and pixels.shape == (2, 3, SIDE, SIDE)
    assert all(torch.equal(view, made.pixels) for view, made in zip(pixels, expected, strict=True))
    batch = views.collate([views[(0, 4, 0)], views[(0, 1, 0)]])
    assert batch.pixels.shape == (2, 2, 3, SIDE, SIDE) and batch.ids == ["photo004", "photo001"]


def test_identities_keep_their_images_together(photos):
    images, augmentation = Photos(find_images(photos).paths), IdentityAugmentation(SIDE)
    identities = Identities(images, augmentation, seed=3)
    batch = identities.collate([identities[(0, item, view)] for item in (6, 2) for view in range(4)])
    assert batch.pixels.shape == (8, 3, SIDE, SIDE) and batch.items.tolist() == [6, 2]
    assert batch.kinds.tolist() == [[int(kind) for kind in augmentation.kinds]] * 2
    for row, item in enumerate((6, 2)):
        for view in (0, 1, 3):  # the positive may have other photos mixed in
            made = augmentation(images[item], view, seed=3, index=item)
            assert torch.equal(batch.pixels[4 * row + view], made.pixels)
            assert batch.scales[row, view].item() == made.content_scale


def test_settings_are_frozen():
    with pytest.raises(AttributeError):
        CopyConfig().out = "elsewhere"
