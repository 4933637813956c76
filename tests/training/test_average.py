"""The moving average of the weights against its definition, and its place in a run."""

import pytest
import torch
from torch import nn

from ascl.core import checkpoint
from ascl.training.average import WeightAverage


def model():
    parts = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    parts[0].bias.requires_grad_(False)
    return parts


def test_each_average_keeps_a_share_of_itself_that_starts_small():
    torch.manual_seed(0)
    net = model()
    average = WeightAverage(net, 0.5)
    expected, bias = net[0].weight.detach().clone(), net[0].bias.clone()
    for step in range(1, 8):
        with torch.no_grad():
            net[0].weight += torch.randn(2, 3)
            net[0].bias += 1
        average.update()
        kept = min(0.5, (step + 1) / (step + 10))
        expected = kept * expected + (1 - kept) * net[0].weight.detach()
    own = net[0].weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(net[0].weight.detach(), expected)
        assert torch.equal(net[0].bias, bias + 7)                  # not trained, so not averaged
    assert torch.equal(net[0].weight, own)


def test_an_average_without_memory_is_the_weights_themselves():
    net = model()
    average = WeightAverage(net, 0.0)
    with torch.no_grad():
        net[0].weight.fill_(2.0)
    average.update()
    with average.applied():
        assert (net[0].weight == 2).all()


def test_an_error_in_the_block_gives_the_weights_back():
    net = model()
    average = WeightAverage(net, 0.9)
    with torch.no_grad():
        net[0].weight.fill_(2.0)
    with pytest.raises(ZeroDivisionError), average.applied():
        raise ZeroDivisionError
    assert (net[0].weight == 2).all()


def test_a_state_of_another_model_is_refused():
    with pytest.raises(ValueError, match="of another model"):
        WeightAverage(nn.Linear(2, 2), 0.9).load(WeightAverage(model(), 0.9).state())


@pytest.mark.parametrize("decay", [-0.1, 1.0, float("nan")])
def test_a_share_out_of_range_is_refused(decay):
    with pytest.raises(ValueError, match="at least 0 and below 1, or null"):
        WeightAverage(model(), decay)


def test_a_run_validates_and_keeps_its_average_and_goes_on_with_its_weights(whole):
    folder, trained, progress = whole
    best, last = (checkpoint.load(folder / name) for name in ("best.pt", "last.pt"))
    names = [name for name, parameter in trained.named_parameters() if parameter.requires_grad] + ["seen"]
    assert last["average"]["steps"] == progress.step == 20
    for name, weight in last["model"].items():
        assert torch.equal(weight, trained.state_dict()[name])
    if progress.best_step == progress.step:
        for name, average in zip(names, last["average"]["averages"], strict=True):
            assert torch.equal(best["model"][name], average)
    assert any(not torch.equal(best["model"][name], last["model"][name]) for name in names)
