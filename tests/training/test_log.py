"""metrics.jsonl: readable while it grows, and cut back to the checkpoint on resume."""

import json

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ascl.core.errors import DataError
from ascl.training.log import METRICS, RunLog, read_metrics


def write_run(folder, steps, resume_at=None):
    with RunLog(folder, total_steps=10, resume_at=resume_at) as log:
        for step in steps:
            log.advance()
            log.write("train", step, 0, {"loss": 1 / step})
            if step % 3 == 0:
                log.write("validation", step, 0, {"rsum": 10.0 * step})


def kinds(folder):
    return [(record["kind"], record["step"]) for record in read_metrics(folder / METRICS)]


def test_each_line_is_an_object_with_kind_step_epoch_and_time(tmp_path):
    with RunLog(tmp_path, total_steps=2, resume_at=None) as log:
        log.write("train", 1, 0, {"loss": 0.5, "gradient_norm": float("inf")})
        assert len(read_metrics(tmp_path / METRICS)) == 1  # before it is closed
    record = json.loads((tmp_path / METRICS).read_text(), parse_constant=pytest.fail)
    assert record.pop("time") > 1e9
    assert record == {"kind": "train", "step": 1, "epoch": 0, "loss": 0.5, "gradient_norm": None}


def test_a_resume_drops_what_is_done_again(tmp_path):
    write_run(tmp_path, range(1, 8))
    write_run(tmp_path, [6], resume_at=(5, 3))
    expected = [("train", 1), ("train", 2), ("train", 3), ("validation", 3), ("train", 4), ("train", 5)]
    assert kinds(tmp_path) == [*expected, ("train", 6), ("validation", 6)]
    # the checkpoint of step 6 was written before the validation of step 6
    write_run(tmp_path, [7], resume_at=(6, 3))
    assert kinds(tmp_path) == [*expected, ("train", 6), ("train", 7)]


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    write_run(tmp_path, range(1, 8))
    write_run(tmp_path, range(6, 10), resume_at=(5, 3))
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 10))
    assert events.Scalars("validation/rsum")[-1].value == 90


def test_a_new_run_starts_an_empty_file_and_a_silent_log_writes_nothing(tmp_path):
    write_run(tmp_path, range(1, 4))
    write_run(tmp_path, [1])
    assert kinds(tmp_path) == [("train", 1)]
    with RunLog(tmp_path / "other", total_steps=1, resume_at=None, enabled=False) as log:
        log.advance()
        log.write("train", 1, 0, {"loss": 1.0})
        log.message("nobody hears this")
    assert not (tmp_path / "other").exists()


def test_a_line_cut_short_by_a_kill_is_left_out_and_any_other_is_named(tmp_path):
    write_run(tmp_path, [1, 2])
    path = tmp_path / METRICS
    whole = path.read_text()
    path.write_text(whole + '{"kind": "tra')
    assert kinds(tmp_path) == [("train", 1), ("train", 2)]
    path.write_text("garbage\n" + whole)
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 1 is truncated or not JSON"):
        read_metrics(path)
    path.write_text("[1]\n" + whole)
    with pytest.raises(DataError, match="line 1 is not a record"):
        read_metrics(path)
    with pytest.raises(FileNotFoundError, match="no metrics at"):
        read_metrics(tmp_path / "none.jsonl")
