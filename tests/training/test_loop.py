"""The loop: exact resume, clean stops, selection, and errors that lose nothing."""

import io
import json
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from ascl.core import checkpoint
from ascl.core.distributed import make_accelerator
from ascl.core.errors import DataError
from ascl.training.log import read_metrics
from ascl.training.loop import LoopSettings, TrainingInterrupted

from ..same_bits import same_bits
from ..warm_python import REPOSITORY, Program
from .conftest import make_tiny, tiny_batches, tiny_loss, tiny_validation


def lines_of(folder):
    """The lines of metrics.jsonl without the times."""
    times = ("time", "seconds", "steps_per_second", "data_wait")
    return [{k: v for k, v in line.items() if k not in times} for line in read_metrics(folder / "metrics.jsonl")]


def stopping_loss(at, number=signal.SIGINT):
    """The loss, with a signal to this process in the middle of step `at`."""

    def step_loss(model, batch, step, generator):
        if step == at:
            signal.raise_signal(number)
        return tiny_loss(model, batch, step, generator)

    return step_loss


# 7: in the middle of an epoch; 4: the step that ends one, so that the resume begins with a validation; 0: the first
@pytest.mark.parametrize("at", [0, 4, 7, 19])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stop_and_resume_equal_a_run_that_was_never_stopped(tmp_path, run_tiny, whole, at, number):
    handler = signal.getsignal(signal.SIGINT)
    folder, model, progress = whole
    assert progress.step == 20 and progress.best_step is not None
    with pytest.raises(TrainingInterrupted, match=rf"{number.name} after step {at + 1} of 20; saved to .*last\.pt"):
        run_tiny(tmp_path, step_loss=stopping_loss(at, number))
    assert checkpoint.load(tmp_path / "last.pt")["progress"]["step"] == at + 1
    torch.manual_seed(99)  # a new process starts with other generators
    np.random.seed(99)
    resumed, resumed_progress = run_tiny(tmp_path, resume=True)
    same_bits(model.state_dict(), resumed.state_dict())
    assert progress == resumed_progress and signal.getsignal(signal.SIGINT) is handler
    same_run(folder, tmp_path)


def same_run(whole, parts):
    for name in ("last.pt", "best.pt"):
        same_bits(checkpoint.load(whole / name), checkpoint.load(parts / name))
    assert lines_of(whole) == lines_of(parts)


def test_two_halves_equal_a_whole_after_a_hard_kill(tmp_path, run_tiny, whole):
    """Nothing is saved at the kill: the run goes back to the last checkpoint, and takes the steps again."""

    class Killed(BaseException):
        pass

    def killed_loss(model, batch, step, generator):
        if step == 14:  # taken 14, saved 12
            raise Killed
        return tiny_loss(model, batch, step, generator)

    with pytest.raises(Killed):
        run_tiny(tmp_path, checkpoint_every=4, step_loss=killed_loss)
    assert checkpoint.load(tmp_path / "last.pt")["progress"]["step"] == 12
    assert lines_of(tmp_path)[-1]["step"] == 14
    run_tiny(tmp_path, checkpoint_every=4, resume=True)
    same_run(whole[0], tmp_path)


def test_a_validation_that_fails_is_done_again_on_resume(tmp_path, run_tiny, whole):
    def failing(model):
        raise RuntimeError("no memory")

    with pytest.raises(RuntimeError, match="no memory"):
        run_tiny(tmp_path, validate=failing)
    run_tiny(tmp_path, resume=True)
    same_run(whole[0], tmp_path)


def test_the_comparison_above_would_see_another_dropout(tmp_path, run_tiny, whole):
    """The gate's own check: with generators in another state, a resumed run differs."""
    with pytest.raises(TrainingInterrupted):
        run_tiny(tmp_path, step_loss=stopping_loss(7))
    state = checkpoint.load(tmp_path / "last.pt")
    state["rng"][0]["torch"] = torch.Generator().manual_seed(99).get_state()
    checkpoint.save(tmp_path / "last.pt", state)
    run_tiny(tmp_path, resume=True)
    with pytest.raises(AssertionError):
        same_bits(checkpoint.load(whole[0] / "last.pt")["model"], checkpoint.load(tmp_path / "last.pt")["model"])


def test_one_step_equals_one_step_by_hand(tmp_path, run_tiny):
    seen = {}

    def step_loss(model, batch, step, generator):
        seen["draws"] = torch.rand(4, generator=generator).tolist()
        return {"loss": (model.layers[0].weight * 3).sum() + model.layers[3].weight.sum()}

    made = make_tiny()
    before = {name: value.clone() for name, value in made[0].state_dict().items()}
    made = (made[0], torch.optim.SGD([p for p in made[0].parameters() if p.requires_grad]))
    model, progress = run_tiny(
        tmp_path, made=made, step_loss=step_loss, learning_rate=lambda step: 0.1, clip_norm=2.0, max_steps=1
    )
    norm = (48 * 9 + 8) ** 0.5  # 48 gradients of 3 and 8 of 1
    expected = before["layers.0.weight"] - 0.1 * 3 * 2.0 / norm
    assert torch.allclose(model.layers[0].weight, expected, atol=1e-6)
    assert progress.step == 1
    record = lines_of(tmp_path)[0]
    assert record["gradient_norm"] == pytest.approx(norm, rel=1e-5) and record["learning_rate"] == 0.1
    first = seen["draws"]
    run_tiny(tmp_path / "again", made=make_tiny(), step_loss=tiny_loss, max_steps=1)
    run_tiny(
        tmp_path / "third", made=make_tiny(), step_loss=lambda *a: seen.update(t=a[3]) or tiny_loss(*a), max_steps=2
    )
    assert torch.rand(4, generator=seen["t"]).tolist() != first  # the second step draws other numbers


def test_waiting_for_data_is_measured_from_line_to_line(tmp_path, run_tiny):
    """By a clock that moves only where time is said to pass."""
    now = [100.0]

    def batches(epoch, first):
        now[0] += 2  # as a loader's workers need to start
        for batch in tiny_batches(epoch, first):
            now[0] += 3 if epoch == 0 else 0.5
            yield batch

    def step_loss(*given):
        now[0] += 1
        return tiny_loss(*given)

    def validate(model):
        now[0] += 1000
        return tiny_validation(model)

    given = {"train_batches": batches, "step_loss": step_loss, "validate": validate, "clock": lambda: now[0]}
    run_tiny(tmp_path, epochs=2, log_every=2, **given)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    waited = [2 + 3 + 3, 3 + 3, 3 + 2 + 0.5, 0.5 + 0.5, 0.5 + 0.5]  # step 6 starts the second epoch
    for line, wait in zip(lines, waited, strict=True):
        assert line["data_wait"] == pytest.approx(wait / (wait + 2))
        assert line["steps_per_second"] == pytest.approx(2 / (wait + 2))
    assert [line["seconds"] for line in lines] == pytest.approx(np.cumsum(np.add(waited, 2)))


def test_seconds_of_training_go_on_after_a_resume_and_count_no_validation(tmp_path, run_tiny):
    """Steps take 1 s and validations 1000 s, by a clock of the test; the time between two processes does not count."""
    now = [0.0]

    def step_loss(model, batch, step, generator):
        now[0] += 1
        return stopping(model, batch, step, generator)

    def validate(model):
        now[0] += 1000
        return tiny_validation(model)

    given = {"step_loss": step_loss, "validate": validate, "clock": lambda: now[0], "epochs": 2, "log_every": 2}
    stopping = stopping_loss(6)
    with pytest.raises(TrainingInterrupted):
        run_tiny(tmp_path, **given)
    now[0] += 1e6
    _, progress = run_tiny(tmp_path, resume=True, **given)
    records = read_metrics(tmp_path / "metrics.jsonl")
    assert [(record["kind"], record["step"], record["seconds"]) for record in records] == [
        ("train", 2, 2), ("train", 4, 4), ("validation", 5, 5), ("train", 6, 6), ("train", 8, 8), ("train", 10, 10),
        ("validation", 10, 10)]
    assert progress.seconds == 10


def test_learning_rates_follow_the_schedule_and_the_groups_factor(tmp_path, run_tiny):
    made = make_tiny()
    rates = []

    def step_loss(*given):
        rates.append([group["lr"] for group in made[1].param_groups])
        return tiny_loss(*given)

    run_tiny(tmp_path, made=made, step_loss=step_loss, learning_rate=lambda step: 0.1 * (step + 1), max_steps=3)
    assert rates == [pytest.approx([0.05 * n, 0.1 * n]) for n in (1, 2, 3)]


def test_best_is_chosen_by_the_metric_and_last_goes_on(tmp_path, run_tiny):
    given = iter([1.0, 5.0, 3.0, 5.0])
    weights = []

    def validate(model):
        weights.append(model.layers[0].weight.clone())
        return {"other": 100.0, "r": np.float32(next(given))}

    _, progress = run_tiny(tmp_path, validate=validate, select="r", extra={"dim": 8})
    assert (progress.best, progress.best_step, progress.best_metrics) == (5.0, 10, {"other": 100.0, "r": 5.0})
    best = checkpoint.load(tmp_path / "best.pt")
    assert best["extra"] == {"dim": 8} and best["progress"]["step"] == 10 and "optimizer" not in best
    assert torch.equal(best["model"]["layers.0.weight"], weights[1])
    assert not any(name.startswith("frozen.") for name in best["model"])
    last = checkpoint.load(tmp_path / "last.pt")  # the weights, and beside them their average
    assert torch.equal(last["average"]["averages"][0], weights[3])
    assert not torch.equal(last["model"]["layers.0.weight"], weights[3])


def validating(*values):
    """A validation that gives these values in turn."""
    given = iter(values)
    return lambda model: {"rsum": next(given)}


@pytest.mark.parametrize(("patience", "values", "steps"), [
    (None, [3, 2, 1, 0], 20), (1, [3, 4, 2], 15), (2, [1, 3, 3, 2], 20), (2, [3, 2, 3], 15), (3, [3, 2, 1, 4], 20),
])
def test_training_stops_after_validations_that_were_no_better(tmp_path, run_tiny, patience, values, steps):
    _, progress = run_tiny(tmp_path, patience=patience, validate=validating(*values))
    best = values.index(max(values))
    assert (progress.step, progress.best, progress.best_step) == (steps, max(values), 5 * (best + 1))
    assert progress.out_of_patience(patience) == (patience is not None and len(values) - 1 - best >= patience)
    assert checkpoint.load(tmp_path / "last.pt")["progress"]["step"] == steps


def test_the_count_of_validations_survives_a_resume_and_can_be_given_more(tmp_path, run_tiny):
    whole, _ = run_tiny(tmp_path / "whole", patience=2, validate=validating(3, 2, 1))
    with pytest.raises(TrainingInterrupted):
        run_tiny(tmp_path / "parts", patience=2, validate=validating(3, 2), step_loss=stopping_loss(11))
    parts, progress = run_tiny(tmp_path / "parts", patience=2, validate=validating(1), resume=True)
    assert (progress.step, progress.validations_since_best) == (15, 2)
    same_bits(whole.state_dict(), parts.state_dict())
    same_run(tmp_path / "whole", tmp_path / "parts")
    _, progress = run_tiny(tmp_path / "parts", patience=2, validate=validating(), resume=True)  # it has ended
    assert progress.step == 15
    _, progress = run_tiny(tmp_path / "parts", patience=3, validate=validating(9), resume=True)
    assert (progress.step, progress.best_step) == (20, 20)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [5, 10, 15, 20]), ({"validate_every": 8}, [8, 16, 20]), ({"max_steps": 7}, [5, 7]),
        ({"max_steps": 100}, [5, 10, 15, 20]),
    ],
)
def test_validations_come_at_the_ends_of_epochs_or_as_asked_and_at_the_end(tmp_path, run_tiny, changes, expected):
    run_tiny(tmp_path, **changes)
    assert [line["step"] for line in lines_of(tmp_path) if line["kind"] == "validation"] == expected


def test_validation_does_not_move_the_training(tmp_path, run_tiny):
    often, _ = run_tiny(tmp_path / "often", validate_every=1)
    rarely, _ = run_tiny(tmp_path / "rarely", validate_every=20)
    same_bits(often.state_dict(), rarely.state_dict())


def test_a_run_that_ended_can_be_given_more_epochs(tmp_path, run_tiny, whole):
    run_tiny(tmp_path, epochs=2)
    _, progress = run_tiny(tmp_path, epochs=2, resume=True)  # nothing left to do
    assert progress.step == 10
    run_tiny(tmp_path, resume=True)
    same_bits(checkpoint.load(whole[0] / "last.pt"), checkpoint.load(tmp_path / "last.pt"))


@pytest.mark.parametrize("log_every", [1, 4, 100])  # read at once, at the line of step 16, before the validation
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_is_named_and_nothing_after_it_is_saved(tmp_path, run_tiny, value, log_every):
    taken = []

    def step_loss(model, batch, step, generator):
        taken.append(step)
        parts = tiny_loss(model, batch, step, generator)
        return parts if step != 12 else {**parts, "loss": parts["loss"] * value, "penalty": torch.tensor(value)}

    with pytest.raises(DataError, match=r"loss of step 13 \(epoch 3, batch 3\).*error = [\d.]+, penalty = (nan|inf)"):
        run_tiny(tmp_path, step_loss=step_loss, log_every=log_every, validate_every=10)
    assert taken[-1] == {1: 12, 4: 15, 100: 19}[log_every]  # the end of the run saves
    state = checkpoint.load(tmp_path / "last.pt")
    assert state["progress"]["step"] == 10
    assert all(torch.isfinite(tensor).all() for tensor in state["model"].values())


@pytest.mark.parametrize("log_every", [1, 100])
def test_a_gradient_that_is_not_finite_is_named_and_never_saved(tmp_path, run_tiny, log_every):
    def step_loss(model, batch, step, generator):
        parts = tiny_loss(model, batch, step, generator)
        if step == 6:  # the square root of zero: a finite loss with an infinite gradient
            parts["loss"] = parts["loss"] + (model.layers[3].bias * 0).abs().sqrt().sum()
        return parts

    with pytest.raises(DataError, match=r"gradient of step 7 .*loss is: loss = .*last\.pt is kept"):
        run_tiny(tmp_path, step_loss=step_loss, log_every=log_every)
    assert checkpoint.load(tmp_path / "last.pt")["progress"]["step"] == 5


def test_a_step_that_fails_on_spoilt_weights_and_a_stop_after_them_name_the_step_that_spoilt_them(tmp_path, run_tiny):
    def step_loss(model, batch, step, generator):
        if step == 8 and tmp_path.joinpath("refuses").exists():
            raise ValueError("rows of length 1, got nan")
        if step == 8:
            signal.raise_signal(signal.SIGINT)
        parts = tiny_loss(model, batch, step, generator)
        return parts if step < 7 else {**parts, "loss": parts["loss"] * float("nan")}

    for how in ("stops", "refuses"):
        (tmp_path / how).mkdir()
        with pytest.raises(DataError, match="loss of step 8"):
            run_tiny(tmp_path / "run" / how, step_loss=step_loss, log_every=100)
        assert checkpoint.load(tmp_path / "run" / how / "last.pt")["progress"]["step"] == 5


class Reads(TorchDispatchMode):
    """Runs `read` for each number that is read from a tensor, which waits for a GPU."""

    def __init__(self, read):
        super().__init__()
        self.read = read

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            self.read()
        return function(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device_but_where_something_is_logged_or_saved(tmp_path, run_tiny):
    model, _ = make_tiny()
    made = model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad])
    steps, read_after = [], set()
    ready = [list(tiny_batches(epoch, 0)) for epoch in range(4)]  # a loader reads the seed that it draws

    def step_loss(*given):
        steps.append(given[2])
        return tiny_loss(*given)

    with Reads(lambda: read_after.add(len(steps))):
        run_tiny(
            tmp_path, made=made, step_loss=step_loss, train_batches=lambda epoch, first: ready[epoch][first:],
            log_every=4, checkpoint_every=7, validate_every=20,
        )
    assert read_after == {4, 7, 8, 12, 14, 16, 20}


def test_a_disk_that_fills_up_while_training_keeps_the_last_checkpoint(tmp_path, run_tiny, monkeypatch):
    run_tiny(tmp_path, epochs=1)
    before = (tmp_path / "last.pt").read_bytes()

    really_save = torch.save

    def full(state, file):
        if isinstance(file, io.BytesIO):
            return really_save(state, file)
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(DataError, match=r"No space left on device; the previous last\.pt is intact"):
        run_tiny(tmp_path, resume=True)
    monkeypatch.undo()
    assert (tmp_path / "last.pt").read_bytes() == before
    _, progress = run_tiny(tmp_path, resume=True)
    assert progress.step == 20


def test_a_checkpoint_that_does_not_say_what_it_was_trained_on_goes_on(tmp_path, run_tiny):
    """Those of before the question."""
    run_tiny(tmp_path, epochs=1)
    state = checkpoint.load(tmp_path / "last.pt")
    del state["conditions"]["training data"]
    checkpoint.save(tmp_path / "last.pt", state)
    _, progress = run_tiny(tmp_path, resume=True, epochs=2, trained_on="others")
    assert progress.step == 10


def test_conditions_that_break_a_resume_are_refused(tmp_path, run_tiny):
    with pytest.raises(DataError, match=r"nothing to resume: .*last\.pt is missing"):
        run_tiny(tmp_path, resume=True)
    run_tiny(tmp_path, epochs=1)
    with pytest.raises(DataError, match="already holds a run"):
        run_tiny(tmp_path)
    with pytest.raises(DataError, match="trained with seed = 7, now it is 8"):
        run_tiny(tmp_path, resume=True, seed=8)
    with pytest.raises(DataError, match="trained with steps_per_epoch = 5, now it is 4"):
        run_tiny(tmp_path, resume=True, steps_per_epoch=4)
    with pytest.raises(DataError, match="trained with training data = , now it is others"):
        run_tiny(tmp_path, resume=True, trained_on="others")
    model, _ = make_tiny()
    model.layers[3] = nn.Linear(8, 2)
    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(DataError, match=r"another architecture.*layers\.3\.weight \(1, 8\) instead of \(2, 8\)"):
        run_tiny(tmp_path, resume=True, made=(model, adam))
    model, _ = make_tiny()
    one_group = torch.optim.Adam([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(DataError, match="state of another optimizer"):
        run_tiny(tmp_path, resume=True, made=(model, one_group))
    (tmp_path / "last.pt").write_bytes((tmp_path / "best.pt").read_bytes())
    with pytest.raises(DataError, match="no training state"):
        run_tiny(tmp_path, resume=True)


def test_mistakes_are_refused_before_the_first_step(tmp_path, run_tiny):
    model, _ = make_tiny()
    forgetful = torch.optim.Adam(model.layers[0].parameters())  # as the released follow-up forgets its gate
    with pytest.raises(ValueError, match=r"optimizer lacks trained parameters: layers\.3\.weight, layers\.3\.bias"):
        run_tiny(tmp_path, made=(model, forgetful))
    with pytest.raises(ValueError, match="trained parameters would be missing"):
        run_tiny(tmp_path, saved=lambda name: "3" not in name)
    with pytest.raises(TypeError, match="extra may hold only"):
        run_tiny(tmp_path, extra={"folder": Path("x")})
    assert not (tmp_path / "metrics.jsonl").exists()
    for name in ("epochs", "steps_per_epoch", "max_steps", "validate_every", "patience", "checkpoint_every",
                 "log_every"):
        with pytest.raises(DataError, match=f"{name} is 0"):
            LoopSettings(**({"epochs": 1, "steps_per_epoch": 1} | {name: 0}))
    for one in ({}, {"epochs": 9, "max_steps": 4}, {"epochs": 2, "validate_every": 10}):
        with pytest.raises(DataError, match="patience is 2, but the run validates only once.*lower validate_every"):
            LoopSettings(**({"epochs": 1, "steps_per_epoch": 5, "patience": 2} | one))
    with pytest.raises(DataError, match="clip_norm is 0"):
        LoopSettings(epochs=1, steps_per_epoch=1, clip_norm=0)
    with pytest.raises(DataError, match="seed is -1"):
        LoopSettings(epochs=1, steps_per_epoch=1, seed=-1)


def test_a_loader_that_ends_early_and_a_validation_without_its_metric_are_named(tmp_path, run_tiny):
    with pytest.raises(DataError, match="epoch 1 ended after 5, but steps_per_epoch is 9"):
        run_tiny(tmp_path / "a", steps_per_epoch=9)
    with pytest.raises(DataError, match="select is 'rsum', but the validation has the metrics loss, r1"):
        run_tiny(tmp_path / "b", validate=lambda model: {"loss": 1.0, "r1": 2.0})
    with pytest.raises(DataError, match="after step 5 gives rsum = nan"):
        run_tiny(tmp_path / "c", validate=lambda model: {"rsum": float("nan")})


def test_bf16_runs_the_step_under_autocast_and_keeps_the_weights_in_float32(tmp_path, run_tiny):
    seen = []

    def step_loss(model, batch, step, generator):
        seen.append(model.layers(batch[0]).dtype)
        return tiny_loss(model, batch, step, generator)

    accelerator = make_accelerator(mixed_precision="bf16", cpu=True)
    model, progress = run_tiny(tmp_path, accelerator=accelerator, step_loss=step_loss, epochs=1)
    assert seen[0] == torch.bfloat16 and progress.step == 5
    assert model.layers[0].weight.dtype == torch.float32
    with pytest.raises(DataError, match="fp16 needs a GPU"):
        make_accelerator(mixed_precision="fp16", cpu=True)
    with pytest.raises(DataError, match="choose no, bf16 or fp16"):
        make_accelerator(mixed_precision="half", cpu=True)


def test_a_process_that_loses_the_others_while_they_start_says_so(monkeypatch):
    """It depends on the time at which another one ends, so the error is made here."""
    def lost(**options):
        raise torch.distributed.DistNetworkError("Connection reset by peer\nframe #0")

    monkeypatch.setattr("accelerate.Accelerator", lost)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(DataError, match=r"^2 processes were started, but this one lost the others \(Connection reset "
                                        r"by peer\): .* accelerate launch --multi_gpu --num_processes 2 PROGRAM"):
        make_accelerator(cpu=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: fp16 and its scaler cannot be run")
def test_fp16_saves_its_scaler_and_resumes(tmp_path, run_tiny):
    with pytest.raises(TrainingInterrupted):
        run_tiny(tmp_path, accelerator=make_accelerator(mixed_precision="fp16"), step_loss=stopping_loss(7))
    assert checkpoint.load(tmp_path / "last.pt")["scaler"]["scale"] > 0
    _, progress = run_tiny(tmp_path, accelerator=make_accelerator(mixed_precision="fp16"), resume=True)
    assert progress.step == 20


WITH_WORKERS = """
import sys, time
sys.path.insert(0, sys.argv[2])
import torch
from tests.training.conftest import Rows, make_tiny, open_and_fit, tiny_loss, tiny_validation
from ascl.core.distributed import make_accelerator
from ascl.training.loop import LoopSettings, TrainingInterrupted

class SlowRows(Rows):
    def __getitem__(self, index):
        time.sleep(0.02)
        return super().__getitem__(index)

def batches(epoch, first):
    order = torch.arange(40).reshape(5, 8)[first:].tolist()
    return torch.utils.data.DataLoader(SlowRows(), batch_sampler=order, num_workers=2)

try:
    open_and_fit(make_accelerator(cpu=True), make_tiny(), sys.argv[1], train_batches=batches, step_loss=tiny_loss,
                 validate=tiny_validation, learning_rate=lambda step: 1e-3,
                 settings=LoopSettings(epochs=1000, steps_per_epoch=5, log_every=1))
except TrainingInterrupted as stop:
    print(stop)
    sys.exit(130)
"""


def test_ctrl_c_in_a_terminal_with_loader_workers_saves_and_exits_with_130(tmp_path):
    (tmp_path / "train.py").write_text(WITH_WORKERS)
    # it leads a group of its own, as in a terminal: Ctrl-C reaches the workers too
    program = Program(tmp_path / "train.py", tmp_path / "run", REPOSITORY)
    metrics = tmp_path / "run" / "metrics.jsonl"
    try:
        deadline = time.monotonic() + 60
        while program.status is None and (not metrics.exists() or metrics.read_text().count("\n") < 3):
            assert time.monotonic() < deadline, "the run did not start"
            time.sleep(0.05)
        os.killpg(program.pid, signal.SIGINT)
        assert program.wait(30) == 130, program.complained()
    finally:
        program.kill()
    assert "stopped by SIGINT after step" in program.said() and "Traceback" not in program.complained()
    saved = checkpoint.load(tmp_path / "run" / "last.pt")["progress"]["step"]
    assert saved == [line["step"] for line in lines_of(tmp_path / "run") if line["kind"] == "train"][-1]


TWO = """
import json, signal, sys
import torch
from tests.training.conftest import make_tiny, open_and_fit
from ascl.core.distributed import leave, make_accelerator
from ascl.training.loop import LoopSettings, TrainingInterrupted

draws = []

def train(resume):
    accelerator = make_accelerator(cpu=True)
    rank = accelerator.process_index
    assert accelerator.num_processes == 2

    def batches(epoch, first):
        return [torch.full((2, 6), float(10 * rank + step)) for step in range(first, 3)]

    def step_loss(model, batch, step, generator):
        draws.append(torch.rand((), generator=generator).item())
        if not resume and rank == 1 and step == 1:
            signal.raise_signal(signal.SIGTERM)
        return {"loss": model.layers[0](batch).mean(), "rank": torch.tensor(float(rank))}

    model, _ = make_tiny(seed=3 if rank == 0 else 4)  # DDP hands the first process's weights to the second
    model.layers[3].requires_grad_(False)
    optimizer = torch.optim.SGD(model.layers[0].parameters(), lr=0.1)
    progress = open_and_fit(
                 accelerator, (model, optimizer), sys.argv[1], train_batches=batches, step_loss=step_loss,
                 validate=lambda model: {"rsum": 1.0 + rank}, learning_rate=lambda step: 0.1, resume=resume,
                 settings=LoopSettings(epochs=1, steps_per_epoch=3, log_every=1))
    return rank, model, progress.best

try:
    train(resume=False)
except TrainingInterrupted as stop:
    assert "after step 2 of 3" in str(stop)
    rank, model, best = train(resume=True)
    with open(f"{sys.argv[1]}.{rank}", "w") as file:
        json.dump({"weight": model.layers[0].weight.tolist(), "draws": draws, "best": best}, file)
leave(0)
"""


def test_two_processes_average_their_gradients_stop_together_and_one_of_them_writes(tmp_path, two_processes):
    (tmp_path / "train.py").write_text(TWO)
    run = tmp_path / "run"
    two_processes(tmp_path / "train.py", run)
    # only the second process gets the signal, and both of them stop and resume: else neither file is there
    first, second = (json.loads(Path(f"{run}.{rank}").read_text()) for rank in (0, 1))

    model, _ = make_tiny()
    expected = model.layers[0].weight.detach().clone()
    for step in range(3):  # d mean / d weight: the mean row of the batch, over 8 outputs; averaged over both processes
        expected -= 0.1 * (step + (10 + step)) / 2 / 8
    assert first["weight"] == second["weight"]
    assert first["best"] == second["best"] == 1.0  # the first process's validation decides for both
    assert torch.allclose(torch.tensor(first["weight"]), expected, atol=1e-5)
    assert len(first["draws"]) == 3 and not set(first["draws"]) & set(second["draws"])  # each draws its own noise
    lines = [line for line in lines_of(run) if line["kind"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 3]  # written once, not by each process
    assert all(line["rank"] == 0.5 for line in lines)
    assert len(checkpoint.load(run / "last.pt")["rng"]) == 2


def test_the_tiny_task_is_learned(tmp_path, run_tiny):
    model, progress = run_tiny(tmp_path, epochs=40, learning_rate=lambda step: 1e-2, log_every=50, clip_norm=None)
    untrained, _ = make_tiny()
    untrained.eval()
    with torch.no_grad():
        assert progress.best > tiny_validation(untrained)["rsum"]
