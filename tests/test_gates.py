"""Two gates that keep evaluation honest, for ever: equivariance, and noise. Each is shown to catch a scorer that leaks.

The leaking scorer is the procedure of the released evaluation (`analysis.leakage`): it encodes every item together
with its own true partner. On noise it pays when the training has seen it too: a model trained on every pair's own score
has nothing by which to recognize its partner, and even the paired procedure then stays at chance. So the leak is
shown on a model that was trained as it is evaluated; the honest evaluation of that very model is at chance.
"""

import numpy as np
import pytest
import torch

from ascl.analysis.leakage import paired_global_scores, protocols
from ascl.data.pairs import Batch
from ascl.losses import info_nce
from ascl.models import AsCL, EncodedImages, EncodedTexts, RetrievalModel
from ascl.models.baselines import Clip, Dime, Dsran, Imram, Scan, TwoTower, Vse, VseInfinity
from ascl.retrieval import rank_report, score_all_pairs
from ascl.retrieval.objective import RetrievalObjective, TripletSettings
from ascl.samples.negatives import NoiseSettings

CAPTIONS_EACH = 2
PAIRED = "PAIRED (sees the answer)"


class RandomWords(torch.nn.Module):
    """Stands where a text encoder would: "caption 7" has fixed random words, independent of everything."""

    dim = 24

    def forward(self, texts):
        words = [torch.randn(6, self.dim, generator=torch.Generator().manual_seed(int(t.split()[1]))) for t in texts]
        return torch.stack(words), torch.ones(len(texts), 6, dtype=torch.bool)


def noise_batch(first: int, count: int, captions_each: int = 1) -> Batch:
    """Images and captions that have nothing to do with each other."""
    generator = torch.Generator().manual_seed(first)
    return Batch(torch.randn(count, 8, 24, generator=generator), torch.randn(count, 24, generator=generator), None,
                 [f"caption {first * 10 + i}" for i in range(count * captions_each)], None)


def ascl() -> AsCL:
    return AsCL(24, 24, RandomWords(), embed_dim=48, num_heads=4, local_weight=0.5)


BASELINES = {
    "two towers": lambda: TwoTower(24, 24, RandomWords(), 48),
    "VSE++": lambda: Vse(24, 24, RandomWords(), 48),
    "VSE-infinity": lambda: VseInfinity(24, 24, RandomWords(), 48, batch_norm=True),
    "CLIP": lambda: Clip(24, 24, RandomWords(), 48),
    "SCAN t2i": lambda: Scan(24, 24, RandomWords(), 48, direction="t2i"),
    "SCAN i2t": lambda: Scan(24, 24, RandomWords(), 48, direction="i2t", pooling="logsumexp"),
    "IMRAM": lambda: Imram(24, 24, RandomWords(), 48, steps=2),
    "DSRAN": lambda: Dsran(24, 24, RandomWords(), 48),
    "DIME": lambda: Dime(24, 24, RandomWords(), 16, num_heads=2, layers=2, direction="i2t"),
}


def train_on_noise(step_loss, steps: int, build=ascl) -> RetrievalModel:
    """A model after a short training on noise that is new in every step."""
    torch.manual_seed(0)
    model = build()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for step in range(steps):
        loss = step_loss(model, noise_batch(1000 * (1 + step), 32), step)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def honest() -> AsCL:
    """Trained as this project trains: every pair scored by the formula."""
    objective, generator = RetrievalObjective(0.05, NoiseSettings(), None), torch.Generator().manual_seed(0)
    return train_on_noise(lambda model, batch, step: objective(model, batch, step, generator)["loss"], 20)


@pytest.fixture(scope="module")
def leaking() -> AsCL:
    """Trained as it is then evaluated: global vectors made on true pairs, compared across pairs."""
    def loss(model, batch, step):
        images, texts = model.encode_images(batch.regions, batch.globals), model.encode_texts(batch.captions)
        scores = paired_global_scores(model, images, texts, np.arange(len(images)))
        return info_nce(scores, temperature=0.05) + info_nce(scores.T, temperature=0.05)

    return train_on_noise(loss, 60)


@pytest.fixture(scope="module", params=BASELINES)
def baseline(request) -> RetrievalModel:
    """Each baseline, trained as its settings say: by triplets, or by the contrastive loss."""
    triplet = None if request.param in ("two towers", "CLIP") else TripletSettings(0.2, 10)
    objective, generator = RetrievalObjective(0.07, None, triplet), torch.Generator().manual_seed(0)
    return train_on_noise(
        lambda model, batch, step: objective(model, batch, step, generator)["loss"], 20, BASELINES[request.param]
    )


def held_out(model: RetrievalModel) -> tuple[EncodedImages, EncodedTexts, np.ndarray]:
    batch = noise_batch(900_000, 100, CAPTIONS_EACH)
    with torch.no_grad():
        images, texts = model.encode_images(batch.regions, batch.globals), model.encode_texts(batch.captions)
    return images, texts, np.repeat(np.arange(len(images)), CAPTIONS_EACH)


def above_chance(scores, owner) -> bool:
    """Whether recall at 10 lies more than five standard deviations above that of guessing, in either direction."""
    report = rank_report(scores, owner)
    hit = 10 / report.images
    miss_all = np.prod([1 - 10 / (report.texts - i) for i in range(CAPTIONS_EACH)])
    chances = [(report.t2i.r10 / 100, hit, report.texts), (report.i2t.r10 / 100, 1 - miss_all, report.images)]
    return any(recall > chance + 5 * (chance * (1 - chance) / n) ** 0.5 for recall, chance, n in chances)


def follows_permutations(scorer, images: EncodedImages, texts: EncodedTexts) -> bool:
    """Whether permuting images and captions permutes the score matrix and does nothing else."""
    generator = torch.Generator().manual_seed(1)
    rows = torch.randperm(len(images), generator=generator)
    columns = torch.randperm(len(texts), generator=generator)
    return torch.allclose(scorer(images[rows], texts[columns]), scorer(images, texts)[rows][:, columns], atol=1e-5)


@pytest.mark.parametrize("training", ["honest", "leaking"])
def test_noise_gate_every_pair_scored_alone_stays_at_chance(training, request):
    model = request.getfixturevalue(training)
    images, texts, owner = held_out(model)
    assert not above_chance(score_all_pairs(model, images, texts), owner)


def test_noise_gate_catches_the_leak(leaking):
    """On pure noise the released procedure finds the partner of most images; there is nothing to find."""
    images, texts, owner = held_out(leaking)
    with torch.no_grad():
        scores = protocols(leaking, images, texts, owner)
        assert above_chance(scores[PAIRED], owner)
        assert not any(above_chance(matrix, owner) for name, matrix in scores.items() if "honest" in name)
        report = rank_report(paired_global_scores(leaking, images, texts, owner), owner)
    assert report.i2t.r1 > 20 and report.t2i.r1 > 15            # chance is 2 and 1


def test_equivariance_gate_passes_for_every_pair_scored_alone(leaking):
    images, texts, _ = held_out(leaking)
    assert follows_permutations(lambda i, t: score_all_pairs(leaking, i, t), images, texts)
    with torch.no_grad():
        assert follows_permutations(leaking.pair_scores, images[:9], texts[:11])


def test_noise_gate_passes_for_the_baselines(baseline):
    images, texts, owner = held_out(baseline)
    assert not above_chance(score_all_pairs(baseline, images, texts), owner)


def test_equivariance_gate_passes_for_the_baselines(baseline):
    images, texts, _ = held_out(baseline)
    assert follows_permutations(lambda i, t: score_all_pairs(baseline, i, t), images, texts)
    with torch.no_grad():
        assert follows_permutations(baseline.pair_scores, images[:9], texts[:11])


def test_equivariance_gate_catches_the_leak(leaking):
    images, texts, owner = held_out(leaking)
    with torch.no_grad():
        assert not follows_permutations(lambda i, t: protocols(leaking, i, t, owner)[PAIRED], images, texts)
