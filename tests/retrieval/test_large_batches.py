"""One batch in chunks, or spread over processes, is the one large batch: same loss, same gradients, less memory."""

import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ascl.core.errors import DataError
from ascl.data.pairs import Batch
from ascl.data.split import build_split
from ascl.losses import ascl_loss, hardest_triplet, info_nce
from ascl.models import AsCL, EncodedImages, EncodedTexts, RetrievalModel
from ascl.models.base import TextEncoder
from ascl.models.baselines import Clip, Dime, Imram, Scan, TwoTower, Vse, VseInfinity
from ascl.retrieval import build, score_batch
from ascl.retrieval.objective import RetrievalObjective, TripletSettings, encode_texts, noised, norm_order
from ascl.retrieval.scoring.attention import ON_CPU
from ascl.retrieval.scoring.candidates import hardest_pairs
from ascl.samples.negatives import NoiseSettings
from ascl.settings.retrieval import Config, DataConfig, TrainConfig
from ascl.training.log import read_metrics

NOISE = NoiseSettings()         # with shuffled captions, whose scores are those of their originals but for rounding
VOCABULARY = [f"word{number}" for number in range(30)]
BASELINES = {"two_tower": TwoTower, "vse": Vse, "vse_infinity": VseInfinity, "clip": Clip,
          "scan": partial(Scan, direction="t2i"), "imram": Imram, "dime": partial(Dime, num_heads=2, layers=2)}


class TableWords(TextEncoder):
    """A trained or frozen table of words, in float64."""

    dim = 10

    def __init__(self, *, trained: bool, dropout: float = 0.0) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(len(VOCABULARY), self.dim).requires_grad_(trained)
        self.dropout = torch.nn.Dropout(dropout)
        self.calls = 0

    def forward(self, texts):
        self.calls += 1
        ids = [[VOCABULARY.index(word) for word in text.split()] for text in texts]
        longest = max(map(len, ids))
        mask = torch.tensor([[place < len(row) for place in range(longest)] for row in ids])
        padded = torch.tensor([row + [0] * (longest - len(row)) for row in ids])
        return self.dropout(self.table(padded)), mask


def make_model(kind: str, *, trained: bool = True, dropout: float = 0.0, dim: int = 16) -> RetrievalModel:
    torch.manual_seed(1)
    text = TableWords(trained=trained, dropout=dropout)
    if kind in BASELINES:
        model = BASELINES[kind](8, 6, text, dim).double()
    else:
        model = AsCL(8, 6, text, dim, 4, 0.7, fusion=kind != "without fusion",
                     student_dim=5 if kind == "with a student" else None).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model


def make_batch(count: int, *, seed: int = 0, regions: int = 5, longest: int = 7, masked: bool = True) -> Batch:
    rng = np.random.default_rng(seed)

    def texts() -> list[str]:
        return [" ".join(rng.choice(VOCABULARY, rng.integers(1, longest + 1))) for _ in range(count)]

    mask = torch.from_numpy(rng.random((count, regions)) > 0.3)
    mask[:, 0] = True
    return Batch(torch.from_numpy(rng.normal(size=(count, regions, 8))), torch.from_numpy(rng.normal(size=(count, 6))),
                 mask if masked else None, texts(), texts(), torch.from_numpy(rng.integers(-1, 2, count)))


def gradients(model: RetrievalModel) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def step(model: RetrievalModel, batch: Batch, **settings):
    """Metrics and gradients of one step, always with the same draws."""
    model.zero_grad(set_to_none=True)
    given = {"noise": NOISE, "norm_ratio_weight": 0.5} | settings
    metrics = RetrievalObjective(0.05, **given)(model, batch, 3, torch.Generator().manual_seed(5))
    metrics["loss"].backward()
    return {name: value.item() for name, value in metrics.items()}, gradients(model)


def check_same(found, wanted) -> None:
    (metrics, of_found), (expected, of_wanted) = found, wanted
    assert metrics == pytest.approx(expected, rel=1e-12, abs=1e-14)
    assert of_found.keys() == of_wanted.keys()
    for name, gradient in of_wanted.items():
        torch.testing.assert_close(of_found[name], gradient, rtol=1e-9, atol=1e-11 * float(gradient.abs().max()))


# ---- in chunks


@pytest.mark.parametrize("chunk", [1, 3, 7, 64])                # 3 leaves a ragged last chunk; 7 and 64 are all at once
def test_chunks_give_the_loss_and_the_gradients_of_the_whole_batch(chunk):
    model, batch = make_model("ascl"), make_batch(7)
    check_same(step(model, batch, chunk_size=chunk), step(model, batch))


@pytest.mark.parametrize("kind", ["without fusion", "with a student", *BASELINES])
def test_chunks_of_every_model(kind):
    """In evaluation mode: what a model itself drops while training it draws for each chunk, so other numbers."""
    model, batch = make_model(kind).eval(), make_batch(7)
    check_same(step(model, batch, chunk_size=3), step(model, batch))


@pytest.mark.parametrize("settings", [
    {"noise": None}, {"triplet": TripletSettings(0.2, 0)}, {"triplet": TripletSettings(0.2, 10)},
    {"norm_ratio_weight": 0.0}, {"noise": NoiseSettings("gaussian")},
], ids=["no negatives", "hardest triplet", "eased triplet", "no norms", "gaussian"])
@pytest.mark.parametrize("trained", [True, False])
def test_chunks_of_every_loss(settings, trained):
    model, batch = make_model("ascl", trained=trained), make_batch(7, masked=False)
    check_same(step(model, batch, chunk_size=2, **settings), step(model, batch, **settings))


def test_a_student_is_trained_beside_the_score_of_pairs():
    """Its loss is added; the rest of the model takes the step that it takes without a student."""
    batch, alone, both = make_batch(7), make_model("ascl"), make_model("with a student")
    both.load_state_dict(alone.state_dict(), strict=False)
    both.text.table.weight.requires_grad_(False)                # a trained encoder would hear of both
    (metrics, gradients_of_both), (expected, of_alone) = step(both, batch), step(alone, batch)
    assert metrics["loss"] == pytest.approx(expected["loss"] + metrics["student"], rel=1e-12)
    for name in set(of_alone) - {"text.table.weight"}:
        torch.testing.assert_close(gradients_of_both[name], of_alone[name], rtol=1e-10, atol=1e-13)
    means = torch.stack([row[real].mean(dim=0) for row, real in zip(batch.regions, batch.region_mask, strict=True)])
    images = both.student_image(torch.cat([means, batch.globals], dim=1))
    cosines = [torch.cosine_similarity(images[:, None], torch.cat([both.student_text(both.text([text])[0].mean(dim=1))
                                                                   for text in texts])[None], dim=2)
               for texts in (batch.captions, batch.positives)]
    wanted = ascl_loss(cosines[0], None, cosines[1], None, temperature=0.05)
    assert metrics["student"] == pytest.approx(wanted.item(), rel=1e-9)
    assert all(gradients_of_both[f"student_{of}.weight"].abs().max() > 0 for of in ("image", "text"))


@pytest.mark.parametrize("settings", [
    {}, {"noise": None}, {"triplet": TripletSettings(0.2, 10)}, {"label_smoothing": 0.1},
], ids=["contrastive", "no negatives", "triplet", "smoothed"])
@pytest.mark.parametrize("learned", [False, True])
def test_with_every_item_a_candidate_a_step_is_that_on_all_pairs(settings, learned):
    model, batch = make_model("with a student"), make_batch(6)
    if learned and "triplet" not in settings:
        model.learn_temperature(0.05)
        model.double()
    check_same(step(model, batch, candidates=5, **settings), step(model, batch, **settings))


@pytest.mark.parametrize("settings", [
    {}, {"triplet": TripletSettings(0.2, 10)}, {"label_smoothing": 0.1},
], ids=["contrastive", "triplet", "smoothed"])
def test_a_step_on_few_candidates_is_the_loss_of_their_scores(settings):
    """With generated samples too, whose candidates are those of their originals."""
    model, batch = make_model("with a student"), make_batch(7)
    found = step(model, batch, candidates=2, norm_ratio_weight=0.0, **settings)
    images = model.encode_images(batch.regions, batch.globals, batch.region_mask)
    generator, sets = torch.Generator().manual_seed(5), {}
    for name, texts in (("captions", batch.captions), ("positives", batch.positives)):
        sets[name] = model.encode_texts(texts)
    for name in ("captions", "positives"):
        sets[f"noised {name}"] = noised(sets[name], NOISE, generator)
    scores, cosines = {}, {}
    model.student_weight = 0.0
    for name in ("captions", "positives"):
        cosines[name] = images.student @ sets[name].student.T
        left_out = ~hardest_pairs(cosines[name], 2)
        for of_set in (name, f"noised {name}"):
            words = EncodedTexts(sets[of_set].words, sets[of_set].mask, sets[name].student)
            scores[of_set] = model.pair_scores(images, words).masked_fill(left_out, -torch.inf)
    contrast = partial(info_nce, temperature=0.05, label_smoothing=settings.get("label_smoothing", 0.0))
    if "triplet" in settings:
        contrast = partial(hardest_triplet, margin=0.2, hardness=0.3)
    loss = ascl_loss(scores["captions"], scores["noised captions"], scores["positives"], scores["noised positives"],
                     temperature=0.05, contrast=contrast)
    loss = loss + ascl_loss(cosines["captions"], None, cosines["positives"], None, temperature=0.05, contrast=contrast)
    assert found[0]["loss"] == pytest.approx(loss.item(), rel=1e-9)
    model.zero_grad(set_to_none=True)
    loss.backward()
    for name, gradient in gradients(model).items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-8, atol=1e-10 * float(gradient.abs().max()))


def test_candidates_of_a_batch_that_is_encoded_in_chunks():
    model, batch = make_model("with a student"), make_batch(7)
    check_same(step(model, batch, candidates=2, chunk_size=3), step(model, batch, candidates=2))


def test_a_step_on_candidates_in_half_precision_is_near_that_in_full():
    model, batch = make_model("with a student").float(), make_batch(7)
    batch.regions, batch.globals = batch.regions.float(), batch.globals.float()
    expected, _ = step(model, batch, candidates=3, noise=None)
    with torch.autocast("cpu", torch.bfloat16):
        found, of_found = step(model, batch, candidates=3, noise=None)
    assert found["loss"] == pytest.approx(expected["loss"], rel=0.2)
    assert all(gradient.isfinite().all() for gradient in of_found.values())


@pytest.mark.parametrize("learned", [False, True])
def test_a_step_on_few_candidates_is_finite_and_knows_no_other_pair(learned):
    """Its mean score of wrong pairs is that of the candidates."""
    model, batch = make_model("with a student"), make_batch(7)
    if learned:
        model.learn_temperature(0.05)
        model.double()
    metrics, found = step(model, batch, candidates=1, noise=None)
    assert all(gradient.isfinite().all() for gradient in found.values()) and np.isfinite(metrics["loss"])
    images = model.encode_images(batch.regions, batch.globals, batch.region_mask)
    texts = model.encode_texts(batch.captions)
    others = (images.student @ texts.student.T).fill_diagonal_(-1)
    pairs = {(i, int(others[i].argmax())) for i in range(7)} | {(int(others[:, j].argmax()), j) for j in range(7)}
    model.student_weight = 0.0
    scores = model.pair_scores(images, texts)
    assert metrics["score_other"] == pytest.approx(np.mean([scores[pair].item() for pair in pairs]), rel=1e-9)


def test_chunks_without_positives():
    model, batch = make_model("ascl"), make_batch(7)
    batch.positives = batch.positive_order = None
    check_same(step(model, batch, chunk_size=2, norm_ratio_weight=0), step(model, batch, norm_ratio_weight=0))


def test_the_comparison_would_see_a_block_that_is_missing(monkeypatch):
    """The gate's own check: with the gradient of one block lost, the comparison fails."""
    import ascl.retrieval.objective as objective

    model, batch = make_model("ascl"), make_batch(7)
    whole, scored, calls = step(model, batch), objective.score_batch, []

    def losing(*arguments):
        calls.append(arguments)
        return [scores.detach() if len(calls) == 4 else scores for scores in scored(*arguments)]

    monkeypatch.setattr(objective, "score_batch", losing)
    with pytest.raises(AssertionError):
        check_same(step(model, batch, chunk_size=3), whole)


@pytest.mark.parametrize("kind", ["two_tower", "vse_infinity"])
def test_what_a_model_drops_is_drawn_the_same_again(kind):
    """Going backward runs the encoders again: their gradient has to be that of what went forward."""
    model = make_model(kind, dropout=0.5).train()
    table = model.text.table.weight
    torch.manual_seed(2)
    metrics, found = step(model, make_batch(6), chunk_size=2, noise=None)
    after = torch.rand(3)
    with torch.no_grad():                                       # by a difference of losses along the gradient
        direction = found["text.table.weight"]
        losses = []
        for sign in (1, -1):
            table += sign * 1e-6 * direction
            torch.manual_seed(2)
            losses.append(step_loss(model, make_batch(6), 2))
            table -= sign * 1e-6 * direction
    assert (losses[0] - losses[1]) / 2e-6 == pytest.approx(float(direction.square().sum()), rel=1e-6)
    torch.manual_seed(2)
    step_loss(model, make_batch(6), 2)
    assert torch.equal(torch.rand(3), after)                    # going backward has not moved the generators


def step_loss(model: RetrievalModel, batch: Batch, chunk: int) -> float:
    objective = RetrievalObjective(0.05, None, norm_ratio_weight=0.5, chunk_size=chunk)
    return objective(model, batch, 3, torch.Generator())["loss"].item()


def test_a_frozen_text_encoder_is_run_once():
    for trained, calls in ((False, 6), (True, 12)):             # captions and positives, three chunks each
        model = make_model("ascl", trained=trained)
        step(model, make_batch(6), chunk_size=2)
        assert model.text.calls == calls


def test_texts_in_chunks_are_as_long_as_those_of_the_batch():
    """Noise is drawn by shape, so it would be other noise."""
    model, texts = make_model("ascl"), ["word1", "word2 word3", "word1 word2 word3 word4", "word5"]
    whole, chunked = (encode_texts(model, texts, torch.zeros(1), size) for size in (None, 2))
    assert torch.equal(whole.mask, chunked.mask)
    torch.testing.assert_close(whole.words[whole.mask], chunked.words[whole.mask], rtol=1e-12, atol=1e-12)


class LiveBytes(TorchDispatchMode):
    """The most bytes of tensors alive at any time that came into being inside."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known: dict[int, object] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self.known:
                    size, key = storage.nbytes(), id(storage)
                    self.known[key] = weakref.finalize(storage, self._gone, key, size)
                    self.now += size
                    self.most = max(self.most, self.now)
        return result

    def _gone(self, key: int, size: int) -> None:
        del self.known[key]
        self.now -= size


def peak(model: RetrievalModel, count: int, chunk: int | None) -> int:
    batch = make_batch(count, regions=12, longest=8, masked=False)
    with LiveBytes() as live:
        step(model, batch, chunk_size=chunk)
    return live.most


def test_memory_grows_by_encoded_items_and_scores_alone(monkeypatch):
    """Twice the batch is nearly four times the memory; in chunks it is little more, though the scores are all there."""
    model = make_model("ascl")
    small = partial(score_batch, chunks=replace(ON_CPU, entries=1 << 14))          # the same in all
    monkeypatch.setattr("ascl.retrieval.objective.score_batch", small)
    whole, twice = peak(model, 16, None), peak(model, 32, None)
    small, larger = peak(model, 16, 8), peak(model, 32, 8)
    assert twice > 2.5 * whole and larger < 1.5 * small and larger < 0.3 * twice, (whole, twice, small, larger)


def test_bad_chunks_are_refused():
    with pytest.raises(ValueError, match="chunk_size must be at least 1"):
        RetrievalObjective(0.05, None, chunk_size=0)


def test_bad_candidates_are_refused():
    with pytest.raises(ValueError, match="candidates must be at least 1, or null for all pairs, got 0"):
        RetrievalObjective(0.05, None, candidates=0)
    with pytest.raises(ValueError, match="this model has none: set model.student_dim"):
        step(make_model("ascl"), make_batch(4), candidates=1)


# ---- spread over processes

CASES = {
    "AsCL": {"kind": "ascl"},
    "AsCL in chunks": {"kind": "ascl", "chunk_size": 3},
    "without negatives": {"kind": "ascl", "noise": None},
    "hardest triplet": {"kind": "ascl", "triplet": TripletSettings(0.2, 0)},
    "with a student": {"kind": "with a student"},
    "candidates": {"kind": "with a student", "candidates": 2},
    "two towers": {"kind": "two_tower"},
    "two towers in chunks": {"kind": "two_tower", "chunk_size": 3},
    "each its own negatives": {"kind": "ascl", "gather": None},
}
OWN, PROCESSES = 4, 2

TWO = """
import sys
import torch
from ascl.core.distributed import leave, make_accelerator, rows_of_all_with_gradient
from ascl.retrieval.objective import RetrievalObjective
from ascl.training.checkpoints import RunFolder
from ascl.training.loop import LoopSettings, fit
from tests.retrieval.test_large_batches import CASES, NOISE, OWN, make_batch, make_model, part_of

seeds, after = {}, {}
for name, case in CASES.items():
    case = {"noise": NOISE, "norm_ratio_weight": 0.5, "gather": rows_of_all_with_gradient} | case
    accelerator = make_accelerator(cpu=True)
    assert accelerator.num_processes == 2
    model, batch = make_model(case.pop("kind")), part_of(make_batch(2 * OWN), accelerator.process_index)
    objective = RetrievalObjective(0.05, **case)

    def step_loss(model, batch, step, generator):
        seeds[name] = generator.initial_seed()
        return objective(model, batch, 3, generator)

    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    settings = LoopSettings(epochs=1, steps_per_epoch=1, log_every=1)
    run = RunFolder(f"{sys.argv[1]}/{name}", accelerator, model, optimizer, conditions=settings.conditions(accelerator))
    fit(accelerator, model, optimizer, run, train_batches=lambda epoch, first: [batch], step_loss=step_loss,
        validate=lambda model: {"rsum": 0.0}, learning_rate=lambda step: 1.0, settings=settings)
    after[name] = model.state_dict()
torch.save({"seeds": seeds, "after": after}, f"{sys.argv[1]}/{accelerator.process_index}.pt")
leave(0)
"""


def part_of(batch: Batch, process: int) -> Batch:
    """One process's pairs."""
    own = slice(process * OWN, (process + 1) * OWN)
    return Batch(batch.regions[own], batch.globals[own], batch.region_mask[own], batch.captions[own],
                 batch.positives[own], batch.positive_order[own])


@pytest.fixture(scope="module")
def left_by_two(tmp_path_factory, two_processes) -> tuple[Path, list[dict]]:
    """What two processes left after one step of plain descent with rate 1, for each of `CASES`."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "train.py").write_text(TWO)
    two_processes(folder / "train.py", folder)
    return folder, [torch.load(folder / f"{process}.pt", weights_only=True) for process in range(PROCESSES)]


def padded(parts: list[torch.Tensor]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([row for part in parts for row in part], batch_first=True)


def loss_of_one_process(model: RetrievalModel, batches: list[Batch], seeds: list[int], case: dict) -> torch.Tensor:
    """The loss of all pairs by the plain reference of the score, each part with the noise that its process drew."""
    noise, triplet = case.get("noise", NOISE), case.get("triplet")
    images = EncodedImages.cat([model.encode_images(b.regions, b.globals, b.region_mask) for b in batches])
    sets: dict[str, list[EncodedTexts]] = {}
    for batch, seed in zip(batches, seeds, strict=True):
        generator = torch.Generator().manual_seed(seed)
        own = {"captions": model.encode_texts(batch.captions), "positives": model.encode_texts(batch.positives)}
        if noise is not None:
            own |= {f"noised {name}": noised(texts, noise, generator) for name, texts in own.items()}
        for name, texts in own.items():
            sets.setdefault(name, []).append(texts)
    joined = {name: EncodedTexts(padded([p.words for p in parts]), padded([p.mask for p in parts]))
              for name, parts in sets.items()}
    without_student = EncodedImages(images.regions, images.globals, images.mask)
    scores = {name: model.pair_scores(without_student, texts) for name, texts in joined.items()}
    if "candidates" in case:
        for name in ("captions", "positives"):
            cosines = images.student @ torch.cat([texts.student for texts in sets[name]]).T
            left_out = ~hardest_pairs(cosines, case["candidates"])
            for of_set in (name, f"noised {name}"):
                scores[of_set] = scores[of_set].masked_fill(left_out, -torch.inf)
    contrast = None if triplet is None else partial(hardest_triplet, margin=triplet.margin, hardness=1.0)
    loss = ascl_loss(scores["captions"], scores.get("noised captions"), scores["positives"],
                     scores.get("noised positives"), temperature=0.05, contrast=contrast)
    if images.student is not None:
        cosines = [images.student @ torch.cat([texts.student for texts in sets[name]]).T
                   for name in ("captions", "positives")]
        loss = loss + ascl_loss(cosines[0], None, cosines[1], None, temperature=0.05)
    order = torch.cat([batch.positive_order for batch in batches])
    return loss + 0.5 * norm_order(*(model.text_vectors(joined[name]) for name in ("captions", "positives")), order)[0]


@pytest.mark.parametrize("name", CASES)
def test_two_processes_descend_as_one_with_all_the_pairs(left_by_two, name):
    folder, left = left_by_two
    case = dict(CASES[name])
    model, batch = make_model(case["kind"]), make_batch(PROCESSES * OWN)
    batches, seeds = [part_of(batch, process) for process in range(PROCESSES)], [of["seeds"][name] for of in left]
    longest = [max(len(text.split()) for text in part.captions + part.positives) for part in batches]
    assert longest[0] != longest[1] and seeds[0] != seeds[1]
    if "gather" in case:                                        # DDP's mean of two losses, each of its own pairs
        losses = [loss_of_one_process(model, [b], [s], case) for b, s in zip(batches, seeds, strict=True)]
        loss = sum(losses) / PROCESSES
    else:
        loss = loss_of_one_process(model, batches, seeds, case)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    loss.backward()
    for key, gradient in gradients(model).items():
        for of in left:
            scale = float(gradient.abs().max())
            torch.testing.assert_close(before[key] - of["after"][name][key], gradient, rtol=1e-8, atol=1e-9 * scale)
    logged = read_metrics(folder / name / "metrics.jsonl")[0]
    assert logged["loss"] == pytest.approx(loss.item(), rel=1e-12)


def config_of(data: Path, **train) -> Config:
    features = [str(data / "regions.h5"), str(data / "globals.h5")]
    return Config(data=DataConfig(captions=str(data / "captions.json"), features=features), train=TrainConfig(**train))


@pytest.mark.parametrize(("gather", "neighbors"), [(True, None), (False, None), (True, 3), (False, 2)])
def test_batches_are_dealt_to_processes(tiny_data, gather, neighbors):
    """Gathered: one batch of the sampler for all, so that no process has another caption of an image as a negative."""
    own, processes = 3, 3
    config = config_of(tiny_data, batch_size=own, gather_negatives=gather, workers=0, neighbors=neighbors)
    captions, store = build_split(config, "train")
    pairs = build.build_pairs(config, captions, store)
    image_of = {text: int(owner) for text, owner in zip(captions.captions, captions.owner, strict=True)}
    dealt = [build.build_batches(config, pairs, process, processes) for process in range(processes)]
    steps = dealt[0].steps_per_epoch
    assert steps == 2 and {batches.steps_per_epoch for batches in dealt} == {steps}     # 25 captions, 9 a step
    together = []
    for epoch in range(4):
        drawn = [[batch.captions for batch in batches(epoch, 0)] for batches in dealt]
        assert [len(batches) for batches in drawn] == [steps] * processes
        assert [batch.captions for batch in dealt[1](epoch, 1)] == drawn[1][1:]         # a resume
        for step_ in zip(*drawn, strict=True):
            assert all(len({image_of[caption] for caption in batch}) == own for batch in step_)
            everything = [caption for batch in step_ for caption in batch]
            assert len(set(everything)) == own * processes
            together.append(len({image_of[caption] for caption in everything}) == own * processes)
    assert all(together) == gather                                                      # else chance decides


def test_workers_stay_and_change_nothing(tiny_data):
    """Over several epochs, and after one that was left in its middle."""
    drawn = {}
    for workers in (0, 2):
        config = config_of(tiny_data, batch_size=4, workers=workers)
        pairs = build.build_pairs(config, *build_split(config, "train"))
        batches = build.build_batches(config, pairs, 0, 1)
        left = batches(1, 0)
        next(left)
        left.close()
        drawn[workers] = [(batch.captions, batch.positives, batch.regions.sum().item())
                          for epoch, first in ((0, 0), (1, 0), (1, 2), (2, 0)) for batch in batches(epoch, first)]
    assert drawn[0] == drawn[2] and len(drawn[0]) == 6 + 6 + 4 + 6


def test_a_batch_of_all_processes_that_needs_more_images_than_there_are_is_refused(tiny_data):
    config = config_of(tiny_data, batch_size=5)
    pairs = build.build_pairs(config, *build_split(config, "train"))
    assert build.build_batches(config, pairs, 1, 2).steps_per_epoch == 2
    with pytest.raises(DataError, match="batch_size 5 in each of 3 processes.*takes 15 images, but only 12 have"):
        build.build_batches(config, pairs, 0, 3)


def test_a_run_of_two_processes_is_that_of_one_with_twice_the_batch(
    tiny_data, tmp_path, tool, train_arguments, two_processes
):
    """The whole program: which pairs come in which step, what the loss makes of them, and how both steps compare."""
    def arguments(name: str, *more: str) -> list[str]:
        return train_arguments(tiny_data, tmp_path / name, "--samples.negatives", "none", *more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_USE_CPU", "true")
        assert tool("train")(arguments("one", "--train.batch_size", "8")) == 0
    two_processes("tools/train.py", *arguments("two", "--train.batch_size", "4", "--train.chunk_size", "3"))
    one, two = (read_metrics(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert [(line["kind"], line["step"]) for line in one] == [(line["kind"], line["step"]) for line in two]
    for ours, theirs in zip(one, two, strict=True):
        for name in {"loss", "score_true", "score_other", "gradient_norm", "rsum"} & ours.keys():
            assert ours[name] == pytest.approx(theirs[name], rel=1e-4, abs=1e-6), name
