"""A tiny task for the loop, whose every part that can break a resume is present: dropout, Adam, draws, a loader."""

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn

from ascl.core.distributed import make_accelerator
from ascl.training.checkpoints import RunFolder
from ascl.training.loop import LoopSettings, fit
from ascl.training.schedule import cosine, warmed_up

STEPS_PER_EPOCH = 5


class Tiny(nn.Module):
    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Dropout(0.3), nn.Linear(8, 1))
        self.register_buffer("seen", torch.zeros(()))


class Rows(torch.utils.data.Dataset):
    def __len__(self):
        return 40

    def __getitem__(self, index):
        features = np.random.default_rng(index).normal(size=6).astype(np.float32)
        return features, features[:1] * 2


def tiny_batches(epoch, first):
    """Drawn by a real DataLoader, whose creation takes a number from torch's global generator."""
    order = np.random.default_rng(epoch).permutation(40).reshape(-1, 8)[first:].tolist()
    return torch.utils.data.DataLoader(Rows(), batch_sampler=order)


def tiny_loss(model, batch, step, generator):
    features, target = (tensor.to(model.seen.device) for tensor in batch)
    model.seen += len(features)
    noise = torch.randn(features.shape, generator=generator, device=features.device)
    error = (model.layers(model.frozen(features + 0.1 * noise)) - target).square().mean()
    penalty = 1e-3 * sum(parameter.square().sum() for parameter in model.layers.parameters())
    return {"loss": error + penalty, "error": error.detach(), "penalty": penalty.detach()}


def tiny_validation(model):
    torch.rand(3)  # a validation that draws must not move the training
    assert not model.training and not torch.is_grad_enabled()
    features = torch.linspace(-1, 1, 24, device=model.seen.device).reshape(4, 6)
    return {"rsum": -float((model.layers(model.frozen(features)) - features[:, :1] * 2).square().mean())}


def is_saved(name):
    return not name.startswith("frozen.")


def make_tiny(seed=3):
    torch.manual_seed(seed)
    model = Tiny()
    optimizer = torch.optim.Adam(
        [{"params": model.layers[0].parameters(), "lr_factor": 0.5}, {"params": model.layers[3].parameters()}], lr=1e-2,
    )
    return model, optimizer


def open_and_fit(accelerator, made, folder, *, settings, resume=False, saved=is_saved, extra=None, **callables):
    """Open the folder and train what was made, as `train_run` does."""
    model, optimizer = made
    run = RunFolder(
        folder, accelerator, model, optimizer, conditions=settings.conditions(accelerator), resume=resume, saved=saved,
        extra=extra, average_decay=0.9,
    )
    return fit(accelerator, model, optimizer, run, settings=settings, **callables)


def train_tiny(folder, *, accelerator=None, made=None, **changes):
    """Train in a folder, with changes of the settings or of the callables; return (model, progress)."""
    made = made or make_tiny()
    handed = {
        "train_batches": tiny_batches, "step_loss": tiny_loss, "validate": tiny_validation,
        "learning_rate": warmed_up(cosine(1e-2, final=1e-4, total_steps=20), warmup_steps=3), "extra": {"name": "tiny"},
    }
    for name in (*handed, "saved", "resume", "clock"):
        if name in changes:
            handed[name] = changes.pop(name)
    settings = {"epochs": 4, "steps_per_epoch": STEPS_PER_EPOCH, "seed": 7, "clip_norm": 0.5, "log_every": 1}
    settings = LoopSettings(**(settings | changes))
    return made[0], open_and_fit(accelerator or make_accelerator(cpu=True), made, folder, settings=settings, **handed)


@pytest.fixture
def run_tiny():
    yield train_tiny
    AcceleratorState._reset_state(True)  # accelerate keeps one state for each process; tests differ in precision


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that was never stopped: its folder, its model and its progress."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    trained = train_tiny(folder)
    AcceleratorState._reset_state(True)
    return folder, *trained
