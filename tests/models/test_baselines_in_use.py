"""Rivals in the harness: their settings, a run of each, scoring of all pairs in blocks with bounded memory."""

import functools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch.utils._python_dispatch import TorchDispatchMode

from ascl import load_model
from ascl.core.errors import SettingsError
from ascl.models import EncodedImages, EncodedTexts
from ascl.models.baselines import Clip, Dime, Dsran, Imram, Scan, TwoTower, Vse, VseInfinity
from ascl.retrieval import rank_all_pairs, rank_report, score_all_pairs, score_batch, top_pairs
from ascl.retrieval.build import build_model
from ascl.retrieval.scoring.tiles import Limits
from ascl.settings.base import read_settings
from ascl.settings.retrieval import Config, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
PUBLISHED = sorted((CONFIGS / "baselines" / "published").glob("*.yaml"))
KINDS = {"two_tower": TwoTower, "vse": Vse, "vse_infinity": VseInfinity, "scan_t2i": Scan, "scan_i2t": Scan,
         "clip": Clip, "imram": Imram, "dsran": Dsran, "dime": Dime}
TRIPLET = set(KINDS) - {"two_tower", "clip"}


# --- settings ---


def test_every_kind_but_ascl_has_settings_of_its_own():
    assert {path.stem for path in (CONFIGS / "baselines").glob("*.yaml")} == set(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_kind_brings_its_settings(kind):
    """By name on the command line, or by the file itself: the same."""
    config = load_config(["--model.kind", kind, "--dataset", "flickr8k_small"])
    path = CONFIGS / "baselines" / f"{kind}.yaml"
    assert load_config(["--config", str(path), "--dataset", "flickr8k_small"]) == config
    assert config.model.kind == kind and (config.samples.negatives, config.samples.positives) == ("none", "none")
    assert config.loss.kind == ("triplet" if kind in TRIPLET else "contrastive")
    assert config.optimizer.lr == 1e-3 and config.model.embed_dim == 256                    # the data set's
    assert (config.loss.temperature == 0.07) == (kind == "clip")
    assert "loss.triplet_warmup_steps" not in read_settings(Config, path)                   # depends on the data set


def test_ascl_is_what_it_was():
    for more in ([], ["--model.kind", "ascl"]):
        assert load_config(["--dataset", "flickr8k_small", *more]).samples == Config().samples


def test_who_overrides_a_kinds_settings(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("model: {kind: scan_t2i}\nloss: {margin: 0.3}\n")
    config = load_config(["--config", str(file), "--dataset", "flickr8k_small"])
    assert (config.model.kind, config.loss.kind, config.loss.margin) == ("scan_t2i", "triplet", 0.3)
    more = ["--loss.margin", "0.1", "--loss.kind", "contrastive", "--samples.negatives", "gaussian"]
    more += ["--config", str(file), "--model.kind", "imram", "--model.matching_steps", "2"]
    config = load_config(more)
    assert (config.model.kind, config.loss.kind, config.loss.margin) == ("imram", "contrastive", 0.1)
    assert (config.model.matching_steps, config.samples.negatives, config.samples.positives) == (2, "gaussian", "none")


def test_an_unknown_kind_is_refused():
    with pytest.raises(SettingsError, match="scan"):
        load_config(["--model.kind", "scan"])


def test_imrams_margin_is_the_papers():
    """0.2 on the sum of 2 K cosines, and the score is their mean."""
    config = load_config(["--model.kind", "imram"])
    assert config.loss.margin * 2 * config.model.matching_steps == pytest.approx(0.2, rel=1e-2)


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_published_settings_load_and_make_a_model_that_learns(path, tiny_bert):
    """In small. Releases clip the gradient of the sum over batch and steps, at 2; here both are averaged."""
    small = ["--model.embed_dim", "8", "--model.num_heads", "2", "--text.encoder", str(tiny_bert)]
    config = load_config(["--dataset", "flickr30k", "--config", str(path), *small])
    assert (config.samples.negatives, config.samples.positives, config.loss.kind) == ("none", "none", "triplet")
    assert config.optimizer.schedule == "step" and path.stem.startswith(config.model.kind)
    terms = 1
    if config.model.kind == "imram":
        terms = config.model.matching_steps * (2 if config.model.direction == "both" else 1)
    assert config.loss.margin * terms == pytest.approx(0.2, rel=1e-4)
    if config.model.kind == "dsran":            # each parameter alone is clipped there
        assert config.optimizer.clip_norm is None
    else:
        assert config.optimizer.clip_norm * config.train.batch_size * terms == pytest.approx(2, rel=1e-3)
    model = build_model(config, 9, 5)
    assert type(model) is KINDS[config.model.kind]
    images = model.encode_images(torch.randn(3, 4, 9), torch.randn(3, 5))
    scores, = score_batch(model, images, [model.encode_texts(["a red dog", "a cat on grass", "snow"])])
    (scores * torch.randn(3, 3)).sum().backward()
    assert scores.isfinite().all() and any(p.grad is not None and p.grad.any() for p in model.parameters())


def test_every_published_baseline_has_its_settings():
    names = {path.stem for path in PUBLISHED}
    scan = {f"scan_{way}_{pooling}" for way in ("t2i", "i2t") for pooling in ("avg", "lse")}
    imram = {f"imram_{variant}" for variant in ("full", "text", "image")}
    of_both = scan | imram | {"vse_infinity", "dsran"}
    alike = {"vse", "dime_i2t", "dime_t2i"}
    assert names == alike | {f"{name}_{data}" for name in of_both for data in ("f30k", "coco")}


# --- a run of each ---


@pytest.fixture(scope="module")
def trained(tiny_data, tmp_path_factory, tool, train_arguments):
    """Kind and more words -> the folder of a whole run; each is trained once."""
    @functools.cache
    def run(kind: str) -> Path:
        folder = tmp_path_factory.mktemp("trained") / "run"
        assert tool("train")(train_arguments(tiny_data, folder, "--model.kind", *kind.split())) == 0
        return folder

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_from_training_to_evaluation(kind, trained, tool):
    run = trained(kind)
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    trained = [line for line in lines if line["kind"] == "train"]
    assert len(trained) == 4 and all(np.isfinite(line["loss"]) and line["gradient_norm"] > 0 for line in trained)
    assert yaml.safe_load((run / "settings.yaml").read_text())["samples"]["negatives"] == "none"
    model = load_model(run)
    assert type(model) is KINDS[kind] and not model.training
    assert tool("eval")(["--checkpoint", str(run)]) == 0
    report = json.loads((run / "eval-test.json").read_text())["reports"]["full"]
    assert report["images"] == 6 and report["rsum"] > 0


@pytest.mark.parametrize("more", [
    "scan_i2t --model.pooling logsumexp --model.lambda_lse 3",
    "scan_t2i --model.lambda_softmax 5 --loss.kind contrastive",
    "scan_t2i --model.pooling max --model.feature_norm softmax", "vse_infinity --model.batch_norm true",
    "imram --model.direction i2t --model.matching_states inner", "dsran --model.joint_graphs 1",
    "dime --model.direction both --model.matching_steps 2 --model.standardize true --train.chunk_size 3",
    "imram --model.matching_steps 1 --train.chunk_size 3", "clip --loss.kind triplet", "vse --model.standardize true",
    "imram --samples.negatives mixture --samples.positives both",
    "vse_infinity --samples.positives keywords --loss.norm_ratio_weight 0.5",
])
def test_variants_take_a_step_and_are_read_back(more, tiny_data, tmp_path, tool, train_arguments):
    run = tmp_path / "run"
    more = ["--model.kind", *more.split(), "--train.max_steps", "1"]
    assert tool("train")(train_arguments(tiny_data, run, *more)) == 0
    model, state = load_model(run), torch.load(run / "last.pt", weights_only=True)["model"]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in state.items())


@pytest.mark.parametrize("kind", ["vse_infinity --model.batch_norm true", "clip", "dsran"])
def test_resume_is_exact(kind, trained, tiny_data, tmp_path, tool, train_arguments):
    """Two steps, resume, two steps are four steps: size augmentation, dropout, running statistics, learned scale."""
    whole, parts, kind = trained(kind), tmp_path / "parts", ["--model.kind", *kind.split()]
    assert tool("train")(train_arguments(tiny_data, parts, *kind, "--train.max_steps", "2")) == 0
    assert tool("train")(["--resume", str(parts), "--train.max_steps", "4"]) == 0
    states = [torch.load(run / "last.pt", weights_only=True)["model"] for run in (whole, parts)]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize(("more", "message"), [
    ("scan_t2i --model.lambda_softmax 0", "lambda_softmax must be positive"),
    ("imram --model.matching_steps 0", "at least 1 step"),
    ("clip --loss.temperature 0.001", "learned temperature"),
    ("vse_infinity --model.batch_norm true --train.chunk_size 4", "set train.chunk_size to null"),
    ("dsran --train.chunk_size 4", "the batch normalization of model.kind dsran"),
    ("dime --model.num_heads 3", "must divide embed_dim"),
    ("ascl --model.tied_key_value true --model.projections false", "set tied_key_value to false"),
])
def test_settings_that_make_no_model_stop_with_a_message(more, message, tiny_data, tmp_path, tool, train_arguments,
                                                         capsys):
    run = tmp_path / "run"
    assert tool("train")(train_arguments(tiny_data, run, "--model.kind", *more.split())) == 1
    assert message in capsys.readouterr().err and not run.exists()


# --- all pairs, in blocks ---


class NoText(torch.nn.Module):
    dim = 7


CROSS = {
    "scan_t2i": lambda: Scan(9, 5, NoText(), 16, direction="t2i"),
    "scan_i2t": lambda: Scan(9, 5, NoText(), 16, direction="i2t", pooling="logsumexp"),
    "imram": lambda: Imram(9, 5, NoText(), 16, steps=3),
    "imram, words alone": lambda: Imram(9, 5, NoText(), 16, steps=3, direction="t2i", states="inner"),
    "dime": lambda: Dime(9, 5, NoText(), 16, num_heads=2),
}


def encoded(images=66, texts=70, regions=4, longest=6, dim=16):
    """More of either than one block of tiles takes."""
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(images, regions, generator=generator) > 0.3
    mask[:, 0] = True
    lengths = torch.randint(1, longest + 1, (texts,), generator=generator)
    return (
        EncodedImages(torch.randn(images, regions, dim, generator=generator), torch.zeros(images, dim), mask),
        EncodedTexts(torch.randn(texts, longest, dim, generator=generator), torch.arange(longest) < lengths[:, None]),
    )


@pytest.mark.parametrize("kind", CROSS)
@pytest.mark.parametrize(("block", "sizes"), [(None, {}), (1, {"images": 3, "texts": 5}),
                                              (7, {"images": 8, "texts": 15})], ids=["None", "1", "7"])
def test_scores_of_all_pairs_are_those_of_pair_scores(kind, block, sizes):
    model, (images, texts) = CROSS[kind]().eval(), encoded(**sizes)
    owner = np.arange(len(texts)) % len(images)
    with torch.no_grad():
        expected = model.pair_scores(images, texts)
    torch.testing.assert_close(score_all_pairs(model, images, texts, block=block), expected, rtol=0, atol=1e-6)
    report = rank_all_pairs(model, images, texts, owner, block=block)
    assert report.to_dict() == rank_report(expected, owner).to_dict()
    best = top_pairs(model, images, texts, 3, block=block)
    torch.testing.assert_close(best.image_scores, expected.topk(3, dim=1).values, rtol=0, atol=1e-6)


class LargestTensor(TorchDispatchMode):
    """Numbers of the largest tensor that any operation returns."""

    numbers = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else [result]:
            if isinstance(part, torch.Tensor):
                self.numbers = max(self.numbers, part.numel())
        return result


@pytest.mark.parametrize("kind", CROSS)
def test_memory_of_scoring_is_bounded_whatever_the_number_of_pairs(kind):
    model, (images, texts) = CROSS[kind]().eval(), encoded()
    limit = 200 * model.pair_numbers(4, 6)
    prepared = 64 * max(model.prepared_numbers(6, 16), model.prepared_numbers(4, 16))          # a block of tiles
    bound = max(limit, prepared, len(images) * len(texts), texts.words.numel())

    def largest():
        with LargestTensor() as seen, torch.no_grad():
            score_all_pairs(model, images, texts, limits=Limits(free=1 << 60))
        return seen.numbers

    model.block_numbers = limit
    assert largest() <= bound
    model.block_numbers = 1 << 40          # the fault: all pairs of a tile at once
    assert largest() > 2 * bound


@pytest.mark.parametrize("kind", CROSS)
def test_prepared_items_are_not_larger_than_said(kind):
    model, (images, texts) = CROSS[kind](), encoded()
    for prepared, count in ((model.prepare_images(images), 4), (model.prepare_texts(texts), 6)):
        held = [prepared.unit, prepared.gram, prepared.as_query, prepared.as_context, prepared.vector]
        assert sum(part[0].numel() for part in held if part is not None) <= model.prepared_numbers(count, 16)
