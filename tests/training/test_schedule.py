"""Learning rates against values worked out by hand."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ascl.training.schedule import cosine, step_decay, warmed_up


def test_step_decay_multiplies_at_the_boundaries_of_epochs():
    rate = step_decay(5e-4, gamma=0.1, after_epochs=[10, 20], steps_per_epoch=7)
    assert rate(0) == rate(69) == 5e-4
    assert rate(70) == rate(139) == pytest.approx(5e-5)
    assert rate(140) == rate(1400) == pytest.approx(5e-6)
    assert step_decay(1.0, gamma=0.1, after_epochs=[], steps_per_epoch=7)(1000) == 1.0


@pytest.mark.parametrize("after", [[0], [3, 2], [2, 2]])
def test_epochs_of_decays_rise(after):
    with pytest.raises(ValueError, match="give rising numbers of at least 1"):
        step_decay(1.0, gamma=0.1, after_epochs=after, steps_per_epoch=7)


def test_cosine_starts_at_base_and_ends_at_final():
    rate = cosine(1.0, final=0.1, total_steps=11)
    assert rate(0) == 1.0
    assert rate(5) == pytest.approx(0.55)
    assert rate(2) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 5)) / 2)
    assert rate(10) == rate(11) == rate(1000) == pytest.approx(0.1)
    assert cosine(1.0, final=0.0, total_steps=1)(0) == 1.0


def test_warm_up_is_linear_and_leaves_the_schedule_where_it_was():
    decay = step_decay(1.0, gamma=0.5, after_epochs=[1, 2], steps_per_epoch=10)
    rate = warmed_up(decay, warmup_steps=4)
    assert [rate(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rate(9) == 1.0 and rate(10) == 0.5
    assert warmed_up(decay, warmup_steps=0)(0) == 1.0


@given(st.integers(0, 5000), st.integers(1, 4000), st.integers(0, 100))
def test_rates_never_leave_their_range(step, total, warmup):
    rate = warmed_up(cosine(2e-4, final=1e-5, total_steps=total), warmup_steps=warmup)(step)
    assert 0 < rate <= 2e-4
    assert step < warmup or rate >= 1e-5 * (1 - 1e-9)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: step_decay(0, gamma=0.1, after_epochs=[1], steps_per_epoch=1), "base learning rate is 0"),
        (lambda: step_decay(1, gamma=1.5, after_epochs=[1], steps_per_epoch=1), "gamma is 1.5"),
        (lambda: step_decay(1, gamma=0.1, after_epochs=[1], steps_per_epoch=0), "at least 1"),
        (lambda: cosine(1e-4, final=1e-3, total_steps=5), "final <= base"),
        (lambda: cosine(1e-4, final=0, total_steps=0), "total_steps is 0"),
        (lambda: warmed_up(lambda step: 1.0, warmup_steps=-1), "warmup_steps is -1"),
    ],
)
def test_numbers_that_make_no_schedule_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
