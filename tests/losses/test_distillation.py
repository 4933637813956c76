"""Distillation: published numbers, scalar loops, SEED's variant, and who gets a gradient."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.losses import feature_distillation_loss, relational_distillation_loss

from .copy_cases import cosine, softmax, unit_rows, vectors

TEMPERATURES = {"student_temperature": 0.07, "teacher_temperature": 0.04}


def relational_oracle(student, teacher, queue, student_temperature, teacher_temperature, own_column):
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        columns = [*([t] if own_column else []), *queue]
        of_student = softmax([cosine(s, c) / student_temperature for c in columns]) if columns else []
        of_teacher = softmax([cosine(t, c) / teacher_temperature for c in columns]) if columns else []
        total += sum(p * math.log(p / q) for p, q in zip(of_teacher, of_student, strict=True) if p > 0)
    return total / len(student)


def test_published_numbers_and_gradient(shared):
    numbers = np.load(shared / "oracles" / "rsd_paper_temps.npz")
    student = torch.from_numpy(numbers["student"]).requires_grad_()
    loss = relational_distillation_loss(
        student, torch.from_numpy(numbers["teacher"]), torch.from_numpy(numbers["queue"]),
        student_temperature=numbers["T_student"].item(), teacher_temperature=numbers["T_teacher"].item(),
    )
    loss.backward()
    assert loss.item() == pytest.approx(numbers["exp_loss"].item(), abs=1e-9)
    np.testing.assert_allclose(student.grad, numbers["exp_grad_student"], atol=1e-9)


@given(st.integers(1, 4), st.integers(0, 7), st.integers(2, 6), st.integers(0, 10**6), st.booleans())
@settings(max_examples=40, deadline=None)
def test_it_is_the_divergence_of_the_definition(count, places, dim, seed, own_column):
    student, teacher, queue = vectors(count, dim, seed), vectors(count, dim, seed + 1), unit_rows(places, dim, seed + 2)
    loss = relational_distillation_loss(
        student, teacher, queue, student_temperature=0.2, teacher_temperature=0.1, own_column=own_column)
    expected = relational_oracle(student.tolist(), teacher.tolist(), queue.tolist(), 0.2, 0.1, own_column)
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_a_student_at_the_teachers_place_and_temperature_has_nothing_to_learn():
    teacher, queue = vectors(3, 5), unit_rows(8, 5, 1)
    for own_column in (False, True):
        loss = relational_distillation_loss(
            3 * teacher, teacher, queue, student_temperature=0.05, teacher_temperature=0.05, own_column=own_column)
        assert loss.item() == pytest.approx(0, abs=1e-12)


def test_the_own_column_draws_the_student_to_the_teacher():
    """Rotated around the queue's only axis the relations stay as they are: only SEED's variant sees the difference."""
    queue, teacher = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 1.0]])
    student = torch.tensor([[0.0, 1.0, 1.0]], requires_grad=True)
    temperatures = {"student_temperature": 0.5, "teacher_temperature": 0.5}
    assert relational_distillation_loss(student, teacher, queue, **temperatures).item() == pytest.approx(0, abs=1e-6)
    loss = relational_distillation_loss(student, teacher, queue, **temperatures, own_column=True)
    loss.backward()
    assert loss.item() > 0.1 and student.grad[0, 0] < 0           # towards the teacher's first axis


def test_only_the_student_gets_a_gradient():
    student, teacher, queue = (x.requires_grad_() for x in (vectors(3, 4), vectors(3, 4, 1), unit_rows(6, 4, 2)))
    for own_column in (False, True):
        relational_distillation_loss(student, teacher, queue, **TEMPERATURES, own_column=own_column).backward()
    feature_distillation_loss(student, teacher).backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None and queue.grad is None
    assert torch.autograd.gradcheck(
        lambda s: relational_distillation_loss(s, teacher, queue, student_temperature=0.3, teacher_temperature=0.2,
                                               own_column=True), [student])
    assert torch.autograd.gradcheck(lambda s: feature_distillation_loss(s, teacher), [student])


def test_an_empty_queue_costs_nothing():
    student = vectors(2, 4).requires_grad_()
    for own_column in (False, True):
        loss = relational_distillation_loss(
            student, vectors(2, 4, 1), torch.zeros(0, 4), **TEMPERATURES, own_column=own_column)
        loss.backward()
        assert loss.item() == 0
    assert (student.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_raised_inside(dtype):
    student, teacher, queue = (x.to(dtype) for x in (vectors(6, 16), vectors(6, 16, 1), unit_rows(30, 16, 2)))
    loss = relational_distillation_loss(student, teacher, queue, **TEMPERATURES)
    exact = relational_distillation_loss(student.double(), teacher.double(), queue.double(), **TEMPERATURES)
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact.item(), rel=1e-4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = relational_distillation_loss(student.float(), teacher.float(), queue.float(), **TEMPERATURES)
    assert under.item() == pytest.approx(exact.item(), rel=1e-4)
    assert feature_distillation_loss(student, teacher).dtype == torch.float32


def test_feature_distillation_is_the_mean_squared_error_of_unit_vectors():
    student, teacher = vectors(3, 5), vectors(3, 5, 1)
    expected = sum(2 - 2 * cosine(s, t) for s, t in zip(student.tolist(), teacher.tolist(), strict=True)) / 15
    assert feature_distillation_loss(student, 7 * teacher).item() == pytest.approx(expected, rel=1e-9)
    assert feature_distillation_loss(2 * teacher, teacher).item() == pytest.approx(0, abs=1e-12)


def test_bad_input_is_refused_by_name():
    rows, queue = torch.ones(2, 4), torch.ones(3, 4)
    with pytest.raises(ValueError, match=r"student \(2, 4\), teacher \(2, 5\)"):
        relational_distillation_loss(rows, torch.ones(2, 5), queue, **TEMPERATURES)
    with pytest.raises(ValueError, match=r"student \(2, 4\), teacher \(2, 5\)"):
        feature_distillation_loss(rows, torch.ones(2, 5))
    with pytest.raises(ValueError, match="queue"):
        relational_distillation_loss(rows, rows, torch.ones(3, 5), **TEMPERATURES)
    with pytest.raises(ValueError, match="teacher_temperature"):
        relational_distillation_loss(rows, rows, queue, student_temperature=0.1, teacher_temperature=0)
