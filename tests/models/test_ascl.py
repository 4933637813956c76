"""The model's door: what it refuses, what its normalization does and does not do, and its way through a checkpoint."""

import pytest
import torch
import torch.nn.functional as F

from ascl import AsCL
from ascl.models import EncodedTexts
from ascl.models.ascl import masked_mean
from ascl.models.fusion import UnprojectedAttention
from ascl.models.text import BertWords

D, HEADS = 8, 2


def model_and_items(**settings):
    """(model, images, texts) with the same weights and inputs, whatever the settings."""
    torch.manual_seed(0)
    model = AsCL(10, 6, None, embed_dim=D, num_heads=HEADS, **settings)
    generator = torch.Generator().manual_seed(1)
    mask = torch.tensor([[True, True, True, True], [True, True, False, False], [True, False, False, False]])
    images = model.encode_images(torch.randn(3, 4, 10, generator=generator), torch.randn(3, 6, generator=generator),
                                 mask)
    words = torch.randn(5, 7, D, generator=generator)
    lengths = torch.tensor([7, 1, 3, 2, 5])
    return model, images, EncodedTexts(words, torch.arange(7) < lengths[:, None])


@pytest.mark.parametrize(("settings", "message"), [
    ({"embed_dim": 10, "num_heads": 4}, r"num_heads \(4\) must divide embed_dim \(10\)"),
    ({"num_heads": 0}, "num_heads"),
    ({"num_heads": -2}, "num_heads"),
    ({"embed_dim": 0}, "embed_dim"),
    ({"local_weight": 1.1}, "local_weight must lie in .0, 1., got 1.1"),
    ({"local_weight": -0.1}, "local_weight"),
    ({"local_weight": float("nan")}, "local_weight"),
    ({"sharpness": -1.0}, "sharpness"),
    ({"sharpness": float("inf")}, "sharpness"),
    ({"tied_key_value": True, "projections": False}, "tied_key_value needs projections.*set"),
    ({"student_dim": 0}, "student_dim is 0: it must be at least 1"),
    ({"student_dim": 4, "fusion": False}, "student needs fusion.*set student_dim to null or fusion to true"),
    ({"student_weight": 1.5}, "student_weight must lie in .0, 1., got 1.5"),
])
def test_settings_that_make_no_model_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AsCL(10, 6, **{"embed_dim": D, "num_heads": HEADS, **settings})


@pytest.mark.parametrize(("regions", "globals_"), [
    ((2, 4, 9), (2, 6)), ((2, 4, 10), (2, 7)), ((2, 6), (2, 10)), ((4, 10), (2, 6)), ((2, 4, 10), (2, 1, 6)),
])
def test_features_of_other_dimensions_are_refused(regions, globals_):
    model, _, _ = model_and_items()
    with pytest.raises(ValueError, match=r"regions \(N, K, 10\) and globals \(N, 6\), got"):
        model.encode_images(torch.zeros(regions), torch.zeros(globals_))


def test_texts_need_an_encoder_and_at_least_one_text(tiny_bert):
    with pytest.raises(ValueError, match="no text encoder.*EncodedTexts"):
        model_and_items()[0].encode_texts(["a dog"])
    with pytest.raises(ValueError, match="no texts"):
        AsCL(10, 6, BertWords(str(tiny_bert)), embed_dim=D, num_heads=HEADS).encode_texts([])


@pytest.mark.parametrize("projections", [True, False])
@pytest.mark.parametrize("normalize", [True, False])
def test_normalized_tokens_have_the_norm_that_gives_the_wanted_sharpness(tiny_bert, projections, normalize):
    """A token's logit against itself, averaged over heads, is `sharpness`; without projections norms are 1."""
    torch.manual_seed(0)
    model = AsCL(10, 6, BertWords(str(tiny_bert)), embed_dim=D, num_heads=HEADS, projections=projections, sharpness=3.0,
                 normalize_regions=normalize, normalize_words=normalize)
    regions = model.encode_images(torch.randn(3, 4, 10), torch.randn(3, 6)).regions
    texts = model.encode_texts(["a dog runs", "snow"])
    tokens = torch.cat([regions.flatten(0, 1), texts.words[texts.mask]]).detach()
    norms = tokens.norm(dim=-1)
    if not normalize:
        assert norms.std() > 1e-2
    elif not projections:
        torch.testing.assert_close(norms, torch.ones_like(norms))
    else:
        heads = tokens.unflatten(-1, (HEADS, D // HEADS))
        logits = (heads * heads).sum(dim=-1) / (D // HEADS) ** 0.5                      # query = key = token
        torch.testing.assert_close(logits.mean(dim=-1), torch.full_like(norms, 3.0))


def test_normalization_keeps_directions():
    plain, scaled = (model_and_items(normalize_regions=on)[1] for on in (False, True))
    torch.testing.assert_close(F.normalize(plain.regions, dim=-1), F.normalize(scaled.regions, dim=-1))
    assert torch.equal(plain.globals, scaled.globals)


@pytest.mark.parametrize("projections", [True, False])
def test_the_norm_of_tokens_acts_through_the_attention_alone(projections):
    """Scaling all regions of an image by one number changes no cosine: with uniform attention the score stays."""
    model, images, texts = model_and_items(projections=projections, normalize_regions=False)
    scaled = type(images)(images.regions * 3.0, images.globals, images.mask)
    model.local_weight = 1.0                # the gate mixes V_g1 with V_g2 by their size, cosines do not
    with torch.no_grad():
        assert (model.pair_scores(images, texts) - model.pair_scores(scaled, texts)).abs().max() > 1e-3
        for attention in (model.region_to_word, model.word_to_region):
            if projections:
                attention.in_proj_weight[: 2 * D] = 0.0
            else:
                attention.scale = 0.0
        torch.testing.assert_close(model.pair_scores(images, texts), model.pair_scores(scaled, texts))


def test_without_fusion_one_norm_for_all_tokens_of_a_text_changes_nothing():
    model, images, texts = model_and_items(fusion=False)
    assert not hasattr(model, "region_to_word")
    unit = F.normalize(texts.words, dim=-1)
    with torch.no_grad():
        scores = [model.pair_scores(images, EncodedTexts(unit * norm, texts.mask)) for norm in (1.0, 5.0, 0.01)]
    torch.testing.assert_close(scores[0], scores[1])
    torch.testing.assert_close(scores[0], scores[2])


def test_mean_over_real_entries_only():
    tokens = torch.arange(24.0).reshape(2, 3, 4)
    mask = torch.tensor([[True, True, False], [False, False, True]])
    expected = torch.stack([tokens[0, :2].mean(dim=0), tokens[1, 2]])
    torch.testing.assert_close(masked_mean(tokens, mask), expected)
    torch.testing.assert_close(masked_mean(tokens, None), tokens.mean(dim=1))
    torch.testing.assert_close(masked_mean(tokens[..., 0], mask), expected[:, 0])


def test_attention_without_projections_refuses_nothing_it_should_attend_to():
    """Against the definition: softmax of scaled head-wise products over the keys that are not padding."""
    attention, generator = UnprojectedAttention(D, HEADS, 4.0), torch.Generator().manual_seed(0)
    query, key, value = (torch.randn(1, n, D, generator=generator) for n in (2, 3, 3))
    result, weights = attention(query, key, value, torch.tensor([[False, True, False]]), need_weights=True)
    for head in range(HEADS):
        part = slice(head * D // HEADS, (head + 1) * D // HEADS)
        logits = query[0, :, part] @ key[0, [0, 2]][:, part].T * 4.0
        torch.testing.assert_close(weights[0, head][:, [0, 2]], logits.softmax(dim=1))
        torch.testing.assert_close(result[0, :, part], logits.softmax(dim=1) @ value[0, [0, 2]][:, part])
    assert not weights[..., 1].any()


def test_tied_key_and_value_are_one_parameter_of_torchs_attention():
    """Scores and gradients of a model with two equal matrices: the one matrix gets the sum of their gradients."""
    tied, images, texts = model_and_items(tied_key_value=True)
    separate, _, _ = model_and_items()
    names = ("region_to_word", "word_to_region")
    with torch.no_grad():
        for parameter in tied.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
        matrices = {name: matrix for name, matrix in tied.state_dict().items() if "parametrizations" not in name}
        for name in names:
            query, shared = tied.state_dict()[f"{name}.parametrizations.in_proj_weight.original"].split(D)
            matrices[f"{name}.in_proj_weight"] = torch.cat([query, shared, shared])
    separate.load_state_dict(matrices)
    scores = [model.pair_scores(images, texts) for model in (tied, separate)]
    torch.testing.assert_close(scores[0], scores[1], rtol=0, atol=0)
    for of_model in scores:
        of_model.square().sum().backward(retain_graph=True)
    for name in names:
        attention, other = getattr(tied, name), getattr(separate, name)
        assert type(other) is torch.nn.MultiheadAttention and isinstance(attention, torch.nn.MultiheadAttention)
        of_query, of_key, of_value = other.in_proj_weight.grad.split(D)
        actual = attention.parametrizations.in_proj_weight.original.grad
        torch.testing.assert_close(actual, torch.cat([of_query, of_key + of_value]))
    saved = sum(parameter.numel() for parameter in separate.parameters()) - len(names) * D * D
    assert sum(p.numel() for p in tied.parameters()) == sum(t.numel() for t in tied.state_dict().values()) == saved


def test_tying_starts_at_the_same_model():
    (tied, images, texts), (separate, *_) = model_and_items(tied_key_value=True), model_and_items()
    with torch.no_grad():
        torch.testing.assert_close(tied.pair_scores(images, texts), separate.pair_scores(images, texts))
