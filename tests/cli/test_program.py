"""The program as a whole: which command, what it prints, how it fails, how quickly it answers a question."""

import json
import os
import subprocess
import sys

import pytest

import ascl
from ascl.cli import main
from ascl.cli.program import COMMANDS, GROUPS, parser_of

HEAVY = ("torch", "transformers", "torchvision", "accelerate", "scipy", "matplotlib", "h5py", "faiss", "PIL", "ray")
SAME = {        # what has one name in every command, and the words that no command may use for it
    "out": ("output", "save_to", "dest"), "index": ("index_dir",), "images": ("image_folder", "photos", "folder"),
    "device": ("gpu", "cuda"), "workers": ("num_workers", "jobs"), "batch_size": ("batch", "bs"),
    "seed": ("random_seed",), "json": ("as_json",), "checkpoint": ("run_folder", "weights_file"),
}


def python(*arguments, **options):
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, **options
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_says_what_every_option_is_for(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(f"usage: ascl {name}")
    assert [option for option, action in parser_of(name).actions.items() if not action.help] == []


def test_help_of_every_command_loads_nothing_heavy():
    program = (
        "import sys; from ascl.cli import main; from ascl.cli.program import COMMANDS\n"
        "for name in COMMANDS: main([*name.split(), '--help'])\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    assert python("-c", program).stderr.strip() == "[]"


def test_one_thing_has_one_name():
    for name in COMMANDS:
        options = parser_of(name).actions.keys()
        for others in SAME.values():
            assert not options & set(others), name


@pytest.mark.parametrize("name", COMMANDS)
def test_an_option_of_several_values_may_be_repeated(name):
    """Argparse keeps the values of the last one, without a word."""
    for option, action in parser_of(name).actions.items():
        if action.option_strings and action.nargs in ("+", "*"):
            assert type(action).__name__ == "_ExtendAction", option


def test_values_of_a_repeated_option_are_those_of_one():
    once, twice = (parser_of("eval").read(words.split()).as_dict() | {"given": None} for words in (
        "--checkpoint a b --features x.h5 y.h5", "--checkpoint a --features x.h5 --checkpoint b --features y.h5"))
    assert once == twice and twice["checkpoint"] == ["a", "b"]


def test_overviews(capsys):
    assert main([]) == 0 and main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(name.split()[0] in said for name in COMMANDS)
    for group in GROUPS:
        assert main([group]) == 0
        said = capsys.readouterr().out
        assert all(name.split()[1] in said for name in COMMANDS if name.startswith(f"{group} "))
    assert main(["--version"]) == 0 and capsys.readouterr().out == f"{ascl.__version__}\n"


@pytest.mark.parametrize(("words", "message"), [
    (["trian"], "'trian'"),
    (["copy", "ask"], "'ask'"),
    (["train", "--lr", "1"], "unknown option --lr; did you mean 'optimizer.lr'?"),
    (["train", "--train.max_step", "3"], "unknown option --train.max_step; did you mean 'train.max_steps'?"),
    (["train", "--model.embed_dim", "wide"], "model.embed_dim"),
    (["eval"], "--checkpoint"),
    (["eval", "--checkpoint", "run", "--folds", "0"], "folds"),
    (["convert", "a.h5"], "required: out"),
    (["copy", "query", "--index", "i"], "images"),
    (["extract", "regions", "--images", "docs/figures", "--out", "x.h5", "--config", "zoo.yaml"],
     "--config is not an option of --backend"),
])
def test_usage_errors_are_one_line_and_status_2(words, message, capsys):
    assert main(words) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert message in said.err


@pytest.mark.parametrize("words", [
    ["eval", "--checkpoint", "nowhere"], ["report", "nowhere"], ["copy", "info", "--index", "nowhere"],
    ["train", "--resume", "nowhere"], ["merge", "out.h5", "nowhere.h5"], ["convert", "nowhere.h5", "--out", "x.h5"],
])
def test_refusals_are_one_line_and_status_1(words, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(words) == 1
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and "nowhere" in said.err
    assert list(tmp_path.iterdir()) == []


def test_settings_can_be_printed_and_given_back(capsys, tmp_path):
    assert main(["train", "--dataset", "scenes", "--model.embed-dim", "7", "--print_config"]) == 0
    printed = capsys.readouterr().out
    path = tmp_path / "mine.yaml"
    path.write_text(printed)
    assert main(["train", "--config", str(path), "--print_config"]) == 0
    assert capsys.readouterr().out == printed and "embed_dim: 7" in printed


def test_completion_knows_commands_and_their_options(capsys):
    assert main(["--print_completion", "shtab-bash"]) == 0
    script = capsys.readouterr().out
    assert "--false_positive_rate" in script and "--train.max_steps" in script


def test_a_completion_leaves_the_help_of_commands_as_it_is(capsys):
    """Parsers are built once and used again."""
    def usage() -> str:
        assert main(["copy", "query", "--help"]) == 0
        return capsys.readouterr().out.partition("\n")[0]

    before = usage()
    assert before.startswith("usage: ascl copy query --index DIR")
    assert main(["--print_completion", "shtab-bash"]) == 0
    capsys.readouterr()
    assert usage() == before


def test_head_ends_it_quietly():
    ran = subprocess.run(f"{sys.executable} -m ascl train --help | head -1", shell=True, capture_output=True, text=True)
    assert ran.stdout.startswith("usage: ascl train") and ran.stderr == ""


def test_tools_are_the_same_program(tmp_path):
    repository = os.path.dirname(os.path.dirname(ascl.__file__))
    ran = python(os.path.join(repository, "tools", "train.py"), "--help", cwd=tmp_path,
                 env={**os.environ, "PYTHONPATH": repository})
    assert ran.returncode == 0 and ran.stdout == python("-m", "ascl", "train", "--help").stdout


def test_json_is_json_alone(capsys, tmp_path):
    import numpy as np

    np.savez(tmp_path / "s.npz", scores=np.eye(3, dtype=np.float32), owner=np.arange(3))
    assert main(["eval", "--scores", str(tmp_path / "s.npz"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reports"]["full"]["rsum"] == 600


def test_choices_are_those_of_the_library():
    from ascl.data.stores.ids import FIELDS

    assert parser_of("convert").actions["id_field"].choices == list(FIELDS)


@pytest.mark.parametrize("environment", [{"RANK": "1"}, {"RANK": "high", "WORLD_SIZE": "many"},
                                         {"RANK": "1", "WORLD_SIZE": "2"}])
def test_a_rank_in_the_environment_silences_only_a_training(environment, monkeypatch, capsys):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{ascl.__version__}\n"
