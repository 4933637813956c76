"""The term that orders captions by the norms of their text vectors: value, order, effect, and absence."""

import math

import numpy as np
import pytest
import torch

from ascl.core import checkpoint
from ascl.data.pairs import Batch
from ascl.models import AsCL, EncodedTexts
from ascl.models.baselines.two_tower import TwoTower
from ascl.models.text import BertWords, CachedWords
from ascl.retrieval.objective import RetrievalObjective, norm_order
from ascl.samples.negatives import NoiseSettings
from ascl.samples.positives import generate_positive
from ascl.training.log import read_metrics

SUBJECTS, VERBS, PLACES = ["a red dog", "the blue cat", "a small man", "the big old dog"], ["runs", "sits", "jumps"], [
    "on grass", "in the snow", "on the street", "with a ball"]


def captions_and_positives(count: int, seed: int) -> tuple[list[str], list[str], torch.Tensor]:
    rng = np.random.default_rng(seed)
    captions, positives, order = [], [], []
    while len(captions) < count:
        siblings = [" ".join(rng.choice(part) for part in (SUBJECTS, VERBS, PLACES)) for _ in range(2)]
        positive = generate_positive("both", siblings, 0, rng)
        captions.append(siblings[0])
        positives.append(positive.text)
        order.append(positive.order)
    return captions, positives, torch.tensor(order)


def batch(count: int = 6, seed: int = 0) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    captions, positives, order = captions_and_positives(count, seed)
    regions, globals_ = torch.randn(count, 4, 8, generator=generator), torch.randn(count, 6, generator=generator)
    return Batch(regions, globals_, None, captions, positives, order)


def models(tiny_bert):
    torch.manual_seed(0)
    text = BertWords(str(tiny_bert))
    yield AsCL(8, 6, text, embed_dim=8, num_heads=2)
    yield AsCL(8, 6, text, embed_dim=8, num_heads=2, fusion=False)
    yield TwoTower(8, 6, text, embed_dim=8)


def step(model, batch, weight, seed=0):
    """Metrics and gradients of one step."""
    model.zero_grad(set_to_none=True)
    objective = RetrievalObjective(0.05, NoiseSettings(), None, weight)
    metrics = objective(model, batch, 0, torch.Generator().manual_seed(seed))
    metrics["loss"].backward()
    return metrics, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_a_cached_encoder_reads_captions_and_generated_positives_once(tiny_bert, tmp_path, monkeypatch, chunk_size):
    """Their noised copies need no encoder: noise is put on words."""
    asked = []
    encode = BertWords.forward
    monkeypatch.setattr(BertWords, "forward", lambda self, texts: asked.extend(texts) or encode(self, texts))
    data, losses = batch(), set()
    objective = RetrievalObjective(0.05, NoiseSettings("dropout"), chunk_size=chunk_size)
    for _ in range(2):                                              # the second as a run that is resumed
        torch.manual_seed(0)
        model = AsCL(8, 6, CachedWords(BertWords(str(tiny_bert)), tmp_path), embed_dim=8, num_heads=2)
        for _ in range(2):
            loss = objective(model, data, 0, torch.Generator().manual_seed(0))["loss"]
            loss.backward()
            losses.add(loss.item())
    assert sorted(asked) == sorted({*data.captions, *data.positives}) and len(losses) == 1


def test_without_weight_nothing_changes_bit_for_bit(tiny_bert):
    for model in models(tiny_bert):
        known = batch()
        unknown = Batch(known.regions, known.globals, None, known.captions, known.positives)
        (metrics, gradients), (others, other_gradients) = step(model, known, 0.0), step(model, unknown, 0.0)
        assert set(metrics) == {"loss", "score_true", "score_other"}
        assert all(torch.equal(metrics[name], others[name]) for name in metrics)
        assert gradients.keys() == other_gradients.keys()
        assert all(torch.equal(gradients[name], other_gradients[name]) for name in gradients)


def test_the_term_is_added_with_its_weight(tiny_bert):
    for model in models(tiny_bert):
        data = batch()
        (plain, _), (metrics, gradients) = step(model, data, 0.0), step(model, data, 0.5)
        captions, positives = (model.text_vectors(model.encode_texts(texts)).norm(dim=1).tolist()
                               for texts in (data.captions, data.positives))
        pairs = [(p, c) if order > 0 else (c, p)
                 for c, p, order in zip(captions, positives, data.positive_order.tolist(), strict=True) if order]
        expected = sum(math.exp(1 - more / less) for more, less in pairs) / len(pairs)
        assert metrics["norm_ratio"].item() == pytest.approx(expected, rel=1e-5)
        assert metrics["loss"].item() == pytest.approx(plain["loss"].item() + 0.5 * expected, rel=1e-5)
        assert metrics["norm_order"].item() == pytest.approx(sum(more > less for more, less in pairs) / len(pairs))
        assert not metrics["norm_ratio"].requires_grad and all(g.isfinite().all() for g in gradients.values())


def test_text_vectors_do_not_depend_on_padding_or_on_the_other_texts(tiny_bert):
    for model in models(tiny_bert):
        texts = ["a red dog", "the big old dog runs on the street with a ball"]
        together = model.text_vectors(model.encode_texts(texts))
        alone = torch.cat([model.text_vectors(model.encode_texts([text])) for text in texts])
        torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
        assert together.shape == (2, 8) and not torch.allclose(together.norm(dim=1), together.norm(dim=1)[0])


def test_the_vector_of_a_text_is_the_global_one_of_the_plain_score_before_it_is_normalised(tiny_bert):
    model = list(models(tiny_bert))[1]
    texts = EncodedTexts(torch.randn(2, 3, 8), torch.tensor([[True, True, True], [True, False, False]]))
    means = torch.stack([texts.words[0].mean(dim=0), texts.words[1, 0]])
    torch.testing.assert_close(model.text_vectors(texts), means @ model.text_global.weight.T)


# ---- the order


def test_concatenated_above_original_above_truncated():
    """Each gradient makes the norm of what says more grow and that of what says less shrink."""
    captions, positives = (torch.randn(3, 4).requires_grad_() for _ in range(2))
    term, _ = norm_order(captions, positives, torch.tensor([1, -1, 0]))
    term.backward()
    growth = torch.stack([-(x * x.grad).sum(dim=1).sign() for x in (captions.detach_(), positives.detach_())])
    assert growth.tolist() == [[-1, 1, 0], [1, -1, 0]]


def test_share_of_pairs_in_order():
    captions, positives = torch.tensor([[1.0], [1.0], [2.0], [1.0]]), torch.tensor([[2.0], [2.0], [1.0], [1.0]])
    assert norm_order(captions, positives, torch.tensor([1, -1, -1, 1]))[1].item() == 0.5        # a tie is not in order
    term, share = norm_order(captions.requires_grad_(), positives, torch.zeros(4, dtype=torch.long))
    term.backward()
    assert term.item() == share.item() == 0 and (captions.grad == 0).all()


@pytest.mark.parametrize(("weight", "learns"), [(3.0, True), (0.0, False)])
def test_a_short_training_learns_the_order_for_captions_it_has_not_seen(tiny_bert, weight, learns):
    torch.manual_seed(0)
    model = AsCL(8, 6, BertWords(str(tiny_bert), finetune=True), embed_dim=16, num_heads=2, fusion=False)
    captions, positives, order = captions_and_positives(100, seed=10_000)

    def share():
        with torch.no_grad():
            texts = (model.text_vectors(model.encode_texts(t)) for t in (captions, positives))
            return norm_order(*texts, order)[1].item()

    before = share()
    objective = RetrievalObjective(0.05, None, None, norm_ratio_weight=weight)
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-3)
    for number in range(80):
        loss = objective(model, batch(16, seed=number), number, torch.Generator().manual_seed(number))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert before < 0.5 and (share() > 0.95) == learns and (share() < 0.7) != learns


# ---- refusals, and the whole program


def test_bad_settings_are_refused_by_name(tiny_bert):
    for weight in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="norm_ratio_weight"):
            RetrievalObjective(0.05, None, None, weight)
    model, data = next(models(tiny_bert)), batch()
    with pytest.raises(ValueError, match="this batch has none"):
        step(model, Batch(data.regions, data.globals, None, data.captions, None), 0.1)


def test_a_run_logs_the_order_only_where_it_is_trained(tiny_data, tmp_path, tool, train_arguments, capsys):
    runs = {"default": [], "zero": ["--loss.norm_ratio_weight", "0"], "with": ["--loss.norm_ratio_weight", "0.5"]}
    for name, more in runs.items():
        assert tool("train")(train_arguments(tiny_data, tmp_path / name, *more)) == 0
    states = {name: checkpoint.load(tmp_path / name / "last.pt")["model"] for name in runs}
    assert all(torch.equal(value, states["zero"][name]) for name, value in states["default"].items())
    assert any(not torch.equal(value, states["with"][name]) for name, value in states["default"].items())
    logged = {name: [record for record in read_metrics(tmp_path / name / "metrics.jsonl") if record["kind"] == "train"]
              for name in runs}
    assert all("norm_order" not in record for record in logged["default"] + logged["zero"])
    assert all(0 <= record["norm_order"] <= 1 and record["norm_ratio"] > 0 for record in logged["with"])
    without = ["--loss.norm_ratio_weight", "1", "--samples.positives", "none"]
    assert tool("train")(train_arguments(tiny_data, tmp_path / "no", *without)) != 0
    assert "samples.positives is none" in capsys.readouterr().err and not (tmp_path / "no").exists()
