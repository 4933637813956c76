"""Settings: who overrides whom, and what is refused by name."""

import dataclasses
import typing
from pathlib import Path

import pytest
import yaml
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from ascl.core.errors import SettingsError
from ascl.settings.base import Parser, from_dict, leaf_types, read_settings, to_dict
from ascl.settings.image_copy import CopyConfig
from ascl.settings.retrieval import Config, load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


@pytest.fixture
def configs(tmp_path, monkeypatch) -> Path:
    """`configs/` of the working directory, with the settings of a data set of one's own, `pets`."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "pets.yaml").write_text("dataset: pets\nmodel: {embed_dim: 64, num_heads: 2}\noptimizer: {lr: 5e-4}\n")
    return folder


def test_defaults_then_data_set_then_files_then_command_line(configs, tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("model: {num_heads: 4, local_weight: 0.5}\nloss: {temperature: 0.5}\n")
    second.write_text("model:\n  local_weight: 0.25\n  fusion: false\n")
    config = load_config(
        ["--config", str(first), "--model.fusion=true", "--dataset", "pets", f"--config={second}", "--train.seed", "7"],
    )
    assert config.model.sharpness == Config().model.sharpness                           # default
    assert (config.dataset, config.model.embed_dim, config.optimizer.lr) == ("pets", 64, 5e-4)      # the data set's
    assert (config.model.num_heads, config.loss.temperature) == (4, 0.5)                # first file over data set
    assert config.model.local_weight == 0.25                                            # second file over first
    assert config.model.fusion is True and config.train.seed == 7                       # command line over all
    assert load_config([]) == Config()


def test_shipped_settings_are_found_from_anywhere(configs, tmp_path):
    """By their path in a checkout; a file of one's own with that path comes first."""
    arguments = ["--config", "configs/baselines/published/vse.yaml"]
    assert load_config(arguments).optimizer.lr == 2e-4 and load_config(arguments).model.kind == "vse"
    own = configs / "baselines" / "published" / "vse.yaml"
    own.parent.mkdir(parents=True)
    own.write_text("optimizer: {lr: 0.5}\n")
    assert load_config(arguments).optimizer.lr == 0.5
    with pytest.raises(SettingsError, match="no file of settings configs/baselines/published/vsee.yaml"):
        load_config(["--config", "configs/baselines/published/vsee.yaml"])


def test_hyphens_and_short_names_mean_the_same(configs):
    config = load_config(["--model.embed-dim", "8", "--seed", "3", "--batch-size=5", "--workers", "0"])
    assert (config.model.embed_dim, config.train.seed, config.train.batch_size, config.train.workers) == (8, 3, 5, 0)


def test_a_name_that_is_near_none_gets_no_guess(configs):
    with pytest.raises(SettingsError) as caught:
        load_config(["--quux", "1"])
    assert str(caught.value) == "unknown option --quux"


@pytest.mark.parametrize("kind", [Config, CopyConfig])
def test_every_setting_says_what_it_means(kind):
    parser = Parser()
    parser.add_settings(kind)
    assert [name for name in leaf_types(kind) if not (parser.actions[name].help or "").strip()] == []


def test_settings_of_a_resumed_run_replace_the_defaults(configs):
    saved = to_dict(load_config(["--dataset", "pets", "--train.max_steps", "2"]))
    path = configs / "settings.yaml"
    path.write_text(yaml.safe_dump(saved))
    resumed = load_config(["--train.max_steps", "4"], path)
    assert to_dict(resumed) == {**saved, "train": {**saved["train"], "max_steps": 4}}


@pytest.mark.parametrize(("name", "text", "value"), [
    ("optimizer.lr", "5e-4", 5e-4), ("optimizer.lr", "1", 1.0), ("optimizer.final_lr", "-1", -1.0),
    ("optimizer.clip_norm", "null", None), ("optimizer.clip_norm", "1e1", 10.0),
    ("train.max_steps", "3", 3), ("train.max_steps", "~", None),
    ("model.fusion", "false", False), ("text.finetune", "True", True),
    ("text.cache", "null", None), ("text.cache", "cache/no", "cache/no"), ("text.cache", "5", "5"),
    ("samples.positives", "none", "none"), ("train.mixed_precision", "no", "no"),       # YAML reads no as false
    ("out", "2024", "2024"), ("out", "1e5", "1e5"), ("out", "2024-01-01", "2024-01-01"), ("out", "a: [b", "a: [b"),
    ("out", "null", "null"), ("data.captions", "yes", "yes"), ("data.captions", "", ""),
    ("data.features", "[a.h5, b c.h5]", ["a.h5", "b c.h5"]), ("data.features", "[]", []),
    ("data.features", "a.h5", ["a.h5"]), ("data.features", "['a/{split}.h5',b/{split}]", ["a/{split}.h5", "b/{split}"]),
    ("samples.mixture_kinds", "[shuffle]", ["shuffle"]),
])
@pytest.mark.parametrize("equals", [True, False])
def test_values_of_the_command_line(configs, name, text, value, equals):
    arguments = [f"--{name}={text}"] if equals else [f"--{name}", text]
    read = load_config(arguments)
    for part in name.split("."):
        read = getattr(read, part)
    assert read == value and type(read) is type(value)


def test_values_of_a_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        "train: {mixed_precision: no, max_steps: null}\noptimizer: {lr: 5e-4, decay_epochs: 7}\n"
        "data: {features: [a.h5]}\n"
    )
    config = load_config(["--config", str(path)])
    assert (config.train.mixed_precision, config.train.max_steps) == ("no", None)
    assert (config.optimizer.lr, config.optimizer.decay_epochs, config.data.features) == (5e-4, 7.0, ["a.h5"])
    assert read_settings(Config, path)["train.mixed_precision"] == "no"


@pytest.mark.parametrize(("wrong", "right"), [
    ("model.embed_dims", "model.embed_dim"), ("modle.num_heads", "model.num_heads"), ("lr", "optimizer.lr"),
    ("batchsize", "batch_size"), ("model.word_drop", "model.word_dropout"), ("text.fine_tune", "text.finetune"),
])
def test_an_unknown_setting_names_the_nearest(configs, tmp_path, wrong, right):
    with pytest.raises(SettingsError, match=f"unknown option --{wrong}; did you mean '{right}'"):
        load_config([f"--{wrong}", "1"])
    path = tmp_path / "run.yaml"
    group, _, leaf = wrong.rpartition(".")
    path.write_text(yaml.safe_dump({group: {leaf: 1}} if group else {leaf: 1}))
    with pytest.raises(SettingsError, match=f"run.yaml: unknown setting '{wrong}'.*{right}'"):
        load_config(["--config", str(path)])
    with pytest.raises(SettingsError, match=f"here: unknown setting '{wrong}'"):
        from_dict(Config, {group: {leaf: 1}} if group else {leaf: 1}, "here")


@pytest.mark.parametrize(("arguments", "message"), [
    (["--model.embed_dim", "wide"], "model.embed_dim.*wide"),
    (["--model.embed_dim", "2.5"], "model.embed_dim.*2.5"),
    (["--model.embed_dim", "null"], "model.embed_dim.*null|None"),
    (["--model.fusion", "2"], "model.fusion.*2"),
    (["--train.epochs", "true"], "train.epochs.*True"),
    (["--optimizer.lr", "fast"], "optimizer.lr.*fast"),
    (["--data.features", "[a.h5"], "--data.features .a.h5: a bracket is missing"),
    (["--train.seed", "[1"], "train.seed.*int.*.1"),
    (["--train.seed", "{a: 1}"], "train.seed.*int.*'a': 1"),
    (["--samples.positives", "some"], "samples.positives.*some"),
    (["--train.seed"], "--train.seed: expected one argument"),
    (["--train.seed", "--train.epochs"], "--train.seed: expected one argument"),
    (["train.seed", "3"], "unrecognized arguments: train.seed 3"),
    (["--dataset", "pet"], "no settings for data set 'pet'.*pet.yaml.*known: .*coco.* pets"),
    (["--config", "nowhere.yaml"], "no file of settings nowhere.yaml"),
])
def test_what_is_wrong_on_the_command_line_is_named(configs, arguments, message):
    with pytest.raises(SettingsError) as caught:
        load_config(arguments)
    caught.match(f"(?s){message}")


@pytest.mark.parametrize(("text", "message"), [
    ("model: {embed_dim: wide}", "model.embed_dim.*wide"),
    ("out: null", "out cannot be null"),
    ("data: {features: a.h5}", "data.features.*a.h5"),
    ("samples: {mixture_kinds: [1]}", "samples.mixture_kinds"),
    ("model: {fusion", "run.yaml: not valid YAML"),
    ("- model", "run.yaml: expected settings by name, found list"),
    ("model: 3", "unknown setting 'model'"),
    ("out: {a: b}", "unknown setting 'out.a'"),
])
def test_what_is_wrong_in_a_file_is_named(configs, tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_config(["--config", str(path)])
    caught.match(f"(?s){message}")


def reads_as_null(text):
    """In a setting that may be null such a text means null: "null", "~", white space, a comment."""
    try:
        return yaml.safe_load(text) is None
    except yaml.YAMLError:
        return False


def leaf_values(kind):
    """Values that a setting of this type may have."""
    plain = {
        bool: st.booleans(), int: st.integers(-(2**40), 2**40), float: st.floats(allow_nan=False, allow_infinity=False),
        str: st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs")), max_size=12)
        | st.sampled_from(["no", "null", "1e5", "5", "true", "[a]", "a: b", "{split}.h5", "~", "#x", "@x", "${y}"]),
        list[str]: st.lists(st.text(max_size=5), max_size=3), list[int]: st.lists(st.integers(0, 99), max_size=3),
    }
    if kind in plain:
        return plain[kind]
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    (some,) = set(typing.get_args(kind)) - {type(None)}
    return st.none() | leaf_values(some).filter(lambda value: not reads_as_null(str(value)))


def configs_of(kind):
    hints = typing.get_type_hints(kind)
    return st.builds(kind, **{
        entry.name: configs_of(hints[entry.name]) if dataclasses.is_dataclass(hints[entry.name])
        else leaf_values(hints[entry.name])
        for entry in dataclasses.fields(kind)
    })


@settings(max_examples=20, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])     # shrinking is slow
@given(configs_of(Config))
def test_settings_survive_being_saved(config):
    assert from_dict(Config, to_dict(config)) == config
    written = yaml.safe_dump(to_dict(config), sort_keys=False)
    assert from_dict(Config, yaml.safe_load(written)) == config


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Config().model.embed_dim = 3


@pytest.mark.parametrize("path", sorted({*CONFIGS.glob("*.yaml")} - {CONFIGS / "ascl_paper.yaml"}),
                         ids=lambda path: path.stem)
def test_every_file_of_configs_loads(path):
    config = load_config(["--dataset", path.stem])
    assert config.dataset == path.stem and config.data.captions and config.data.features
    assert len(set(leaf_types(Config))) == len(leaf_types(Config))


def test_the_papers_settings():
    """AsCL, section 3.1."""
    coco, flickr = (load_config(["--dataset", name]) for name in ("coco", "flickr30k"))
    for config in (coco, flickr):
        assert (config.model.embed_dim, config.model.num_heads, config.train.batch_size) == (1024, 8, 64)
        assert (config.optimizer.schedule, config.optimizer.decay_epochs) == ("step", 10)
    assert (coco.model.local_weight, coco.loss.temperature, coco.optimizer.lr) == (0.8, 0.05, 5e-4)
    assert (flickr.model.local_weight, flickr.loss.temperature, flickr.optimizer.lr) == (0.6, 0.01, 2e-4)
