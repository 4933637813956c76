"""The ring buffer against a list that forgets, the published wrap-around, resume, and what a loss sees of it."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.image_copy.training.queue import EmbeddingQueue
from ascl.losses import hard_negative_loss, info_nce_queue


def unit_rows(count, dim, seed=0):
    return torch.nn.functional.normalize(torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_published_wrap_around(shared):
    """The next place is 21 of 24 and six rows come: three at the end, three at the beginning."""
    numbers = np.load(shared / "oracles" / "rsd_paper_temps.npz")
    before, teacher = torch.from_numpy(numbers["queue"]), torch.from_numpy(numbers["teacher"])
    queue = EmbeddingQueue(24, 9).double()
    queue.enqueue(unit_rows(21, 9))
    queue.enqueue(before[torch.arange(21, 45) % 24])                # fills every place with its row of `before`
    assert torch.equal(queue.rows, before)
    queue.enqueue(torch.nn.functional.normalize(teacher, dim=1))
    expected = before.numpy().copy()
    for i, row in enumerate(teacher.numpy()):
        expected[(21 + i) % 24] = row / np.sqrt((row**2).sum())
    np.testing.assert_allclose(queue.rows, expected, atol=1e-12)


@given(st.integers(1, 9), st.lists(st.integers(0, 25), max_size=8), st.integers(0, 10**6))
@settings(max_examples=60, deadline=None)
def test_it_is_a_list_of_places_written_in_turn(size, batches, seed):
    queue, places, turn = EmbeddingQueue(size, 3), [None] * size, 0
    for number, count in enumerate(batches):
        rows = unit_rows(count, 3, seed + number)
        queue.enqueue(rows)
        for row in rows.tolist():
            places[turn % size] = row
            turn += 1
        assert queue.rows.tolist() == [row for row in places if row is not None]
        assert len(queue) == min(turn, size) == len(queue.rows)


def test_a_new_queue_has_no_rows_and_the_losses_take_that():
    queue = EmbeddingQueue(8, 4)
    assert queue.rows.shape == (0, 4)
    query = unit_rows(2, 4)
    assert info_nce_queue(query, query, queue.rows, temperature=0.1).item() == 0
    assert hard_negative_loss(query, queue.rows).item() == 0


def test_backward_of_a_loss_against_the_old_queue_comes_after_enqueue():
    queue = EmbeddingQueue(4, 4)
    queue.enqueue(unit_rows(4, 4))
    query = unit_rows(2, 4, 1).requires_grad_()
    expected, = torch.autograd.grad(hard_negative_loss(query, queue.rows.clone()), query)
    loss = hard_negative_loss(query, queue.rows)
    queue.enqueue(query)                                            # also: what is kept has no graph
    loss.backward()
    assert torch.equal(query.grad, expected) and not queue.rows.requires_grad


def test_a_resumed_queue_goes_on_bit_for_bit():
    whole = EmbeddingQueue(7, 3)
    for number in range(4):
        whole.enqueue(unit_rows(3, 3, number))
    file = io.BytesIO()
    torch.save(whole.state_dict(), file)
    file.seek(0)
    resumed = EmbeddingQueue(7, 3)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    for number in range(4, 8):
        for queue in (whole, resumed):
            queue.enqueue(unit_rows(3, 3, number))
        assert torch.equal(whole.rows, resumed.rows)
    with pytest.raises(RuntimeError, match="size mismatch"):
        EmbeddingQueue(8, 3).load_state_dict(whole.state_dict())


def test_it_is_saved_with_the_model_that_holds_it():
    model = torch.nn.ModuleDict({"queue": EmbeddingQueue(5, 3)})
    assert set(model.state_dict()) == {"queue.storage", "queue.written"}
    assert list(model.parameters()) == []


def test_half_precision_rows_are_taken():
    queue = EmbeddingQueue(5, 64)
    queue.enqueue(unit_rows(5, 64).bfloat16())
    assert queue.rows.dtype == torch.float32


def test_bad_input_is_refused_by_name():
    queue = EmbeddingQueue(5, 3)
    with pytest.raises(ValueError, match=r"rows \(B, 3\), got \(2, 4\)"):
        queue.enqueue(unit_rows(2, 4))
    with pytest.raises(ValueError, match="length 1, got lengths from 2 to 2"):
        queue.enqueue(2 * torch.eye(3))
    with pytest.raises(ValueError, match="length 1"):
        queue.enqueue(torch.full((1, 3), float("nan")))
    assert len(queue) == 0
    for size, dim in ((0, 3), (3, 0)):
        with pytest.raises(ValueError, match="at least 1"):
            EmbeddingQueue(size, dim)
