"""What a step computes and in which order; mixing; momentum; several processes."""

import json

import pytest
import torch
import torch.nn.functional as F

from ascl.core.errors import DataError
from ascl.image_copy.descriptors.teachers import load_teacher
from ascl.image_copy.edits.mixup import mixed_images
from ascl.image_copy.training.asl import AslModel, AslObjective
from ascl.image_copy.training.batch import IdentityBatch, ViewBatch
from ascl.image_copy.training.rdcd import RdcdModel, RdcdObjective, momentum_update, unit_rows
from ascl.image_copy.training.sampler import draw_pairs
from ascl.image_copy.training.sscd import SscdModel, SscdObjective
from ascl.losses import hard_negative_loss, soft_triplet_loss, sscd_loss

from ..training_cases import BACKBONE, calibrated, pictures, tiny

B = 4


def view_batch(seed=0):
    pixels = pictures(2 * B, seed=seed).unflatten(0, (2, B))
    return ViewBatch(pixels, torch.arange(seed * B, seed * B + B), [f"photo{i}" for i in range(B)])


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def teacher():
    return calibrated_teacher()


def calibrated_teacher():
    teacher = load_teacher(BACKBONE, weights="random:1")
    calibrated(teacher.network)
    return teacher


def rdcd(teacher, *, queue_size=10, feature_dim=1024, **changes):
    values = {
        "contrastive": "moco", "distillation": "rsd", "contrastive_weight": 1.0, "distillation_weight": 10.0,
        "hard_negative_weight": 5.0, "temperature": 0.07, "student_temperature": 0.07, "teacher_temperature": 0.04,
        "momentum": 0.9, "entropy_weight": 0.0, **changes,
    }
    used = None if values["distillation"] == "none" else teacher
    torch.manual_seed(0)
    model = RdcdModel(
        tiny(feature_dim=feature_dim), contrastive=values["contrastive"], distillation=values["distillation"],
        queue_size=queue_size, teacher_dim=None if used is None else used.dim,
    )
    calibrated(model.student)
    if model.key is not None:
        model.key.load_state_dict(model.student.state_dict())
    return model.eval(), RdcdObjective(teacher=used, **values)


def sscd_model():
    torch.manual_seed(0)
    model = SscdModel(tiny())
    calibrated(model.student)
    return model.eval()


def asl_model():
    torch.manual_seed(0)
    model = AslModel(tiny(dim=None, projector_dim=6, projector_hidden=5, norm_of="projector"), classes=5)
    calibrated(model.student)
    return model.eval()


def cosine(a, b):
    return F.normalize(a, dim=-1) @ F.normalize(b, dim=-1).T


def test_a_step_of_rdcd_by_hand_over_three_batches(teacher):
    """Evaluation mode, so that batch norm does not move: key encoder, keys, losses against the old queues, enqueue."""
    model, objective = rdcd(teacher)
    key = {name: value.clone() for name, value in model.key.named_parameters()}
    keys, rows = torch.zeros(0, 8), torch.zeros(0, 1024)
    for step in range(3):
        with torch.no_grad():  # something for the key encoder to follow
            model.student.head.weight += 0.05
        batch = view_batch(step)
        metrics = objective(model, batch, step, rng())
        for name, value in model.student.named_parameters():
            key[name] = 0.9 * key[name] + 0.1 * value.detach()
            assert torch.allclose(dict(model.key.named_parameters())[name], key[name], atol=1e-6), name
        with torch.no_grad():
            student, followed = model.student(batch.pixels[0]), model.key(batch.pixels[1]).embeddings
            taught = teacher.embed(batch.pixels[0], batch.ids)
        contrastive = hard = divergence = 0.0
        for i in range(B):
            own = cosine(student.embeddings[i : i + 1], followed[i : i + 1])[0]
            others = cosine(student.embeddings[i : i + 1], keys)[0]
            contrastive -= torch.log_softmax(torch.cat([own, others]) / 0.07, dim=0)[0] / B
            hard -= torch.log(1 - others.max()) / B if len(keys) else 0
            of_teacher = (cosine(taught[i : i + 1], rows)[0] / 0.04).softmax(0)
            of_student = (cosine(student.features[i : i + 1], rows)[0] / 0.07).softmax(0)
            divergence += (of_teacher * (of_teacher / of_student).log()).sum() / B
        assert metrics["contrastive"].item() == pytest.approx(float(contrastive), rel=1e-4, abs=1e-5)
        assert metrics["hard_negative"].item() == pytest.approx(float(hard), rel=1e-3, abs=1e-5)
        assert metrics["distillation"].item() == pytest.approx(float(divergence), rel=1e-3, abs=1e-5)
        total = metrics["contrastive"] + 5 * metrics["hard_negative"] + 10 * metrics["distillation"]
        assert metrics["loss"].item() == pytest.approx(total.item(), rel=1e-5)
        keys, rows = torch.cat([keys, F.normalize(followed, dim=1)]), torch.cat([rows, F.normalize(taught, dim=1)])
        if len(keys) > 10:  # the third batch begins to overwrite the first
            keys, rows = torch.cat([keys[10:], keys[2:10]]), torch.cat([rows[10:], rows[2:10]])
        assert torch.allclose(model.key_queue.rows, keys, atol=1e-6)
        assert torch.allclose(model.teacher_queue.rows, rows, atol=1e-6)


def test_gradients_reach_the_student_alone(teacher):
    model, objective = rdcd(teacher)
    for step in range(2):
        metrics = objective(model.train(), view_batch(step), step, rng())
    metrics["loss"].backward()
    assert all(parameter.grad is not None for parameter in model.student.parameters())
    assert all(parameter.grad is None for parameter in [*model.key.parameters(), *teacher.parameters()])
    assert any(name.startswith("key_queue.") for name in model.state_dict())
    assert not any("teacher." in name for name in model.state_dict())


@pytest.mark.parametrize("changes", [
    {"distillation": "none"}, {"distillation": "seed"}, {"distillation": "fkd"},
    {"distillation": "fkd", "feature_dim": 16}, {"contrastive": "simclr", "entropy_weight": 3.0},
    {"contrastive": "simclr", "distillation": "none"},
])
def test_the_variants_of_rdcd(teacher, changes):
    model, objective = rdcd(teacher, **changes)
    for step in range(2):
        metrics = objective(model, view_batch(step), step, rng())
    assert metrics["loss"].isfinite() and ("distillation" in metrics) is (changes.get("distillation") != "none")
    metrics["loss"].backward()
    batch = view_batch(1)
    with torch.no_grad():
        out = [model.student(view) for view in batch.pixels]
        taught = teacher.embed(batch.pixels[0], ())
    if changes.get("distillation") == "fkd":
        features = out[0].features if model.bridge is None else model.bridge(out[0].features)
        expected = ((F.normalize(features, dim=1) - F.normalize(taught, dim=1)) ** 2).mean()
        assert metrics["distillation"].item() == pytest.approx(expected.item(), rel=1e-4)
        assert model.teacher_queue is None
    if changes.get("contrastive") == "simclr":
        both = torch.cat([view.embeddings for view in out])
        labels = torch.arange(B).repeat(2)
        expected = sscd_loss(both, labels, temperature=0.07, entropy_weight=changes.get("entropy_weight", 0.0))
        assert metrics["contrastive"].item() == pytest.approx(expected.item(), rel=1e-4)
        hard = [hard_negative_loss(both[i : i + 1], unit_rows(both[labels != i])) for i in range(B)]
        assert metrics["hard_negative"].item() == pytest.approx(sum(hard).item() / B, rel=1e-3)
        assert model.key is None and model.key_queue is None


def test_relations_need_a_teacher_of_the_students_dimension(teacher):
    with pytest.raises(DataError, match="needs a teacher"):
        RdcdModel(tiny(), contrastive="moco", distillation="rsd", queue_size=4, teacher_dim=None)
    with pytest.raises(DataError, match="1024 dimensions and the student's feature 16"):
        rdcd(teacher, feature_dim=16)


def test_momentum_is_a_moving_average():
    slow, fast = torch.nn.Linear(3, 2), torch.nn.Linear(3, 2)
    before = slow.weight.detach().clone()
    momentum_update(slow, fast, 0.99)
    assert torch.allclose(slow.weight, 0.99 * before + 0.01 * fast.weight, atol=1e-7)
    momentum_update(slow, fast, 0.0)
    assert torch.equal(slow.weight, fast.weight)
    with pytest.raises(ValueError, match="momentum"):
        momentum_update(slow, fast, 1.5)


def test_a_zero_vector_becomes_a_unit_row():
    rows = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
    assert rows[0].tolist() == pytest.approx([0.6, 0.8]) and rows[1].tolist() == [1, 0]


# SSCD and mixup


def test_a_step_of_sscd_is_its_loss_on_both_views():
    model, batch = sscd_model(), view_batch()
    metrics = SscdObjective(temperature=0.05, entropy_weight=30.0)(model, batch, 0, rng())
    with torch.no_grad():
        embeddings = torch.cat([model.student(view).embeddings for view in batch.pixels])
    expected = sscd_loss(embeddings, torch.arange(B).repeat(2), temperature=0.05, entropy_weight=30.0)
    assert metrics["loss"].item() == pytest.approx(expected.item(), rel=1e-4)


def test_mixing_draws_from_the_generator_alone():
    model, batch = sscd_model(), view_batch()
    objective = SscdObjective(temperature=0.05, entropy_weight=1.0, mixup=1.0)
    first, again, other = (objective(model, batch, 0, rng(seed))["loss"].item() for seed in (1, 1, 2))
    assert first == again != other


@pytest.mark.parametrize("cut_share", [0.0, 1.0])
def test_shares_say_what_a_mixed_image_shows(cut_share):
    levels = torch.tensor([0.0, 1.0, 10.0, 100.0, 1000.0])
    pixels = levels.view(5, 1, 1, 1).expand(5, 3, 8, 8)
    mixed, shares = mixed_images(pixels, rng(3), probability=1.0, cut_share=cut_share)
    assert torch.allclose(shares.sum(dim=1), torch.ones(5)) and bool(((shares > 0).sum(dim=1) <= 2).all())
    assert torch.allclose(mixed.mean(dim=(1, 2, 3)), shares @ levels, rtol=1e-5)
    values = [len(row.unique()) for row in mixed]
    assert max(values) == (2 if cut_share else 1)
    assert torch.equal(pixels[:, 0, 0, 0], levels)  # the input is as it was


def test_without_mixing_labels_are_one_hot():
    pixels = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    mixed, shares = mixed_images(pixels, rng(), probability=0.0)
    assert torch.equal(shares, torch.eye(3)) and mixed.is_floating_point()
    assert torch.equal(mixed_images(pixels[:1], rng(), probability=1.0)[1], torch.eye(1))
    with pytest.raises(ValueError, match="probability"):
        mixed_images(pixels, rng(), probability=2.0)
    with pytest.raises(ValueError, match="pixels must be"):
        mixed_images(pixels[0], rng(), probability=1.0)


# ASL


def identity_batch():
    pixels = pictures(12, seed=5)
    scales = torch.rand(3, 4, generator=rng(6), dtype=torch.float64)
    scales[2] = 0.5  # an identity without an order
    return IdentityBatch(pixels, torch.tensor([4, 0, 2]), scales, torch.arange(4).expand(3, 4))


@pytest.mark.parametrize(("reading", "margin"), [("all", 0.0), ("triplet", 0.2), ("crop", 0.0)])
def test_a_step_of_asl_by_hand(reading, margin):
    model, batch = asl_model(), identity_batch()
    objective = AslObjective(10.0, 0.1, 2.0, 3.0, reading, margin)
    metrics = objective(model, batch, 0, rng(9))
    with torch.no_grad():
        out = model.student(batch.pixels)
        logits = out.embeddings @ model.classifier.weight.T
    labels = torch.tensor([4] * 4 + [0] * 4 + [2] * 4)
    spread = -(0.9 * logits.log_softmax(1)[range(12), labels] + 0.1 * logits.log_softmax(1).mean(1)).mean()
    pairs = draw_pairs(batch.scales, rng(9), kinds=batch.kinds, selection="all" if reading == "triplet" else reading)
    terms = []
    for more, less in zip(pairs.more.tolist(), pairs.less.tolist(), strict=True):
        big, small = out.content[more].norm(), out.content[less].norm()
        terms.append((margin + small - big).clamp_min(0) if reading == "triplet" else torch.exp(1 - big / small))
    order = sum(terms) / 3
    assert metrics["classification"].item() == pytest.approx(spread.item(), rel=1e-5)
    assert metrics["norm_ratio"].item() == pytest.approx(order.item(), rel=1e-4)
    expected = 10 * spread + 2 * soft_triplet_loss(out.features, labels) + 3 * order
    assert metrics["loss"].item() == pytest.approx(expected.item(), rel=1e-4)
    assert metrics["tied_pairs"].item() >= 1 / 3 - 1e-6  # the third identity at least


def test_a_weight_of_zero_leaves_a_term_without_gradient():
    model = asl_model().train()
    objective = AslObjective(0.0, 0.1, 0.0, 1.0, "all", 0.0)
    objective(model, identity_batch(), 0, rng())["loss"].backward()
    assert model.classifier.weight.grad is None and model.student.projector[0].weight.grad is not None


# Several processes

TWO = """
import json, sys
import torch
from ascl.core.distributed import leave, make_accelerator
from ascl.image_copy.training.sscd import SscdObjective
from tests.image_copy.training.test_objective import calibrated_teacher, rdcd, rng, sscd_model, view_batch

accelerator = make_accelerator(cpu=True)
rank = accelerator.process_index
assert accelerator.num_processes == 2

class Step(torch.nn.Module):
    def __init__(self, model, objective):
        super().__init__()
        self.model, self.objective = model, objective
    def forward(self, batch, step, generator):
        return self.objective(self.model, batch, step, generator)

sscd = sscd_model()
step = accelerator.prepare(Step(sscd, SscdObjective(temperature=0.05, entropy_weight=3.0)))
accelerator.backward(step(view_batch(rank), 0, rng())["loss"])
model, objective = rdcd(calibrated_teacher())
objective(model, view_batch(rank), 0, rng())
with open(f"{sys.argv[1]}.{rank}", "w") as file:
    json.dump({"gradient": sscd.student.head.weight.grad.tolist(), "keys": model.key_queue.rows.tolist(),
               "teacher": model.teacher_queue.rows.tolist()}, file)
leave(0)
"""


def test_two_processes_are_one_with_both_batches(tmp_path, teacher, two_processes):
    (tmp_path / "step.py").write_text(TWO)
    two_processes(tmp_path / "step.py", tmp_path / "out")
    found = [json.loads((tmp_path / f"out.{rank}").read_text()) for rank in (0, 1)]
    assert found[0] == found[1]

    batches = [view_batch(rank) for rank in (0, 1)]
    whole = ViewBatch(
        torch.cat([batch.pixels for batch in batches], dim=1), torch.cat([batch.items for batch in batches]),
        [name for batch in batches for name in batch.ids],
    )
    model = sscd_model()
    SscdObjective(temperature=0.05, entropy_weight=3.0)(model, whole, 0, rng())["loss"].backward()
    expected = model.student.head.weight.grad
    scale = float(expected.abs().max())
    assert scale > 1e-3 and torch.allclose(torch.tensor(found[0]["gradient"]), expected, atol=1e-4 * scale)
    model, objective = rdcd(teacher)
    objective(model, whole, 0, rng())
    assert torch.allclose(torch.tensor(found[0]["keys"]), model.key_queue.rows, atol=1e-5)
    assert torch.allclose(torch.tensor(found[0]["teacher"]), model.teacher_queue.rows, atol=1e-5)
