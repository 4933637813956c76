"""Words of an encoder, and their cache: the same words whatever happens to the process or to the files."""

import itertools
import multiprocessing
import resource
import shutil
from types import SimpleNamespace

import pytest
import torch

from ascl.core.errors import DataError
from ascl.models import AsCL
from ascl.models.text import BertWords, CachedWords

TEXTS = ["a dog runs", "the small cats", "a red ball on the grass", "snow"]


class CountedWords(BertWords):
    """An encoder that remembers which texts it was asked for."""

    def __init__(self, *arguments, **settings):
        super().__init__(*arguments, **settings)
        self.asked = []

    def forward(self, texts):
        self.asked += texts
        return super().forward(texts)


def words_alone(encoder: BertWords, text: str) -> torch.Tensor:
    """(number of words, dim): the encoder's own output for one text without padding, special tokens cut by hand."""
    pieces = encoder.tokenizer.convert_tokens_to_ids(encoder.tokenizer.tokenize(text))[: encoder.max_words]
    ids = [encoder.tokenizer.cls_token_id, *pieces, encoder.tokenizer.sep_token_id]
    with torch.no_grad():
        return encoder.encoder(input_ids=torch.tensor([ids])).last_hidden_state[0, 1:-1]


def test_words_are_the_encoders_own_output_without_special_tokens(tiny_bert):
    encoder = BertWords(str(tiny_bert))
    hidden, mask = encoder(TEXTS)
    assert mask.dtype == torch.bool and mask.sum(dim=1).tolist() == [3, 4, 6, 1]       # "cats" is two pieces
    assert hidden.shape == (4, 6, encoder.dim) and mask.shape == (4, 6)
    for row, text in enumerate(TEXTS):
        assert mask[row].tolist() == sorted(mask[row].tolist(), reverse=True)
        torch.testing.assert_close(hidden[row][mask[row]], words_alone(encoder, text), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("asked", "limit"), [(None, 16), (3, 3), (99, 16)])
def test_longer_texts_are_cut_and_counted(tiny_bert, asked, limit):
    encoder = BertWords(str(tiny_bert), max_words=asked)
    long = " ".join(["red"] * 20)
    hidden, mask = encoder(["a dog sits", long, long])
    assert encoder.max_words == limit and mask.sum(dim=1).tolist() == [3, limit, limit] and encoder.truncated == 2
    torch.testing.assert_close(hidden[1], words_alone(encoder, long), atol=1e-5, rtol=1e-5)
    encoder(["a dog sits"])
    assert encoder.truncated == 2


@pytest.mark.parametrize("text", ["", "   ", "\u200b"])
def test_a_text_without_words_is_refused_by_its_content(tiny_bert, tmp_path, text):
    encoder = BertWords(str(tiny_bert))
    for words in (encoder, CachedWords(encoder, tmp_path)):
        with pytest.raises(DataError, match="has no words") as caught:
            words(["a dog", text])
        assert repr(text) in str(caught.value)


def test_a_frozen_encoder_stays_in_evaluation_and_gives_no_gradient(tiny_bert):
    model = AsCL(8, 6, BertWords(str(tiny_bert)), embed_dim=8, num_heads=2).train()
    assert model.training and not any(module.training for module in model.text.encoder.modules())
    hidden, _ = model.text(TEXTS)
    assert not hidden.requires_grad
    torch.testing.assert_close(hidden, model.text(TEXTS)[0], atol=0, rtol=0)            # no dropout
    model.encode_texts(TEXTS).words.sum().backward()
    assert all(parameter.grad is None for parameter in model.text.parameters())
    assert model.word_projection.weight.grad is not None


def test_a_fine_tuned_encoder_follows_the_mode_and_gets_gradients(tiny_bert):
    model = AsCL(8, 6, BertWords(str(tiny_bert), finetune=True), embed_dim=8, num_heads=2).train()
    assert model.text.encoder.training
    model.encode_texts(TEXTS).words.sum().backward()
    assert model.text.encoder.embeddings.word_embeddings.weight.grad.abs().sum() > 0
    model.eval()
    assert not model.text.encoder.training
    with torch.no_grad():
        assert not model.text(TEXTS)[0].requires_grad


@pytest.mark.parametrize("name", ["/no/such/folder", "../weights/none", "a/b/c"])
def test_a_missing_folder_says_what_to_give(name):
    with pytest.raises(FileNotFoundError, match=f"{name}.*does not exist.*text.encoder"):
        BertWords(name)


def test_what_cannot_be_loaded_is_named(tiny_bert, tmp_path):
    folder = tmp_path / "encoder"
    shutil.copytree(tiny_bert, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:200])
    with pytest.raises(DataError, match=f"{folder}.*cannot be loaded.*text.encoder"):
        BertWords(str(folder))
    with pytest.raises(DataError, match="max_words is 0"):
        BertWords(str(tiny_bert), max_words=0)


def test_a_name_with_its_owner_is_looked_for_on_the_hub(monkeypatch):
    import transformers

    asked = []

    def unreachable(name, **settings):
        asked.append(name)
        raise OSError("no connection\nand more")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(DataError, match=r"'sentence-transformers/all-MiniLM-L6-v2'.*\(no connection\)"):
        BertWords("sentence-transformers/all-MiniLM-L6-v2")
    assert asked == ["sentence-transformers/all-MiniLM-L6-v2"]


# The cache


def check_words(words, encoder, texts):
    """Each text's words are the encoder's, rounded to float16."""
    hidden, mask = words(texts)
    assert hidden.dtype == torch.float32 and not hidden.requires_grad
    assert not hidden[~mask].any()
    for row, text in enumerate(texts):
        expected = words_alone(encoder, text)
        assert int(mask[row].sum()) == len(expected)
        # one rounding to float16 of values that padding changes by float32's rounding
        torch.testing.assert_close(hidden[row][mask[row]], expected, atol=1e-5, rtol=2**-10)
    assert torch.equal(hidden, hidden.half().float())


def test_the_cache_gives_the_same_words_and_reads_them_back_without_encoding(tiny_bert, tmp_path):
    first, again = CountedWords(str(tiny_bert)), CountedWords(str(tiny_bert))
    cache = CachedWords(first, tmp_path)
    check_words(cache, first, TEXTS)
    check_words(cache, first, [TEXTS[2], TEXTS[2], TEXTS[0]])                          # repeats, another order
    check_words(cache, first, ["big hat", TEXTS[1], "big hat"])
    assert sorted(first.asked) == sorted([*TEXTS, "big hat"])                           # each once, ever
    check_words(CachedWords(again, tmp_path), again, ["big hat", *TEXTS])
    assert again.asked == []


def test_the_cache_behaves_as_its_encoder_in_a_model(tiny_bert, tmp_path):
    encoder = BertWords(str(tiny_bert), max_words=2)
    model = AsCL(8, 6, CachedWords(encoder, tmp_path), embed_dim=8, num_heads=2).train()
    assert not encoder.encoder.training and model.text.dim == encoder.dim
    model.encode_texts(TEXTS)
    assert model.text.truncated == encoder.truncated == 3


def cached(tiny_bert, folder):
    """(a new process's encoder, its cache)"""
    encoder = CountedWords(str(tiny_bert))
    return encoder, CachedWords(encoder, folder)


def numbered(number):
    return f"a dog and {'big ' * (number % 7)}hat {number // 7 * 'old '}"


def write_on(tiny_bert, folder, done):
    """Write text after text, and tell the number of each that is written."""
    torch.set_num_threads(1)
    cache = cached(tiny_bert, folder)[1]
    for number in itertools.count():
        cache([numbered(number)])
        done.send(number)


def test_a_kill_at_any_moment_loses_nothing_that_was_written(tiny_bert, tmp_path):
    _, cache = cached(tiny_bert, tmp_path)
    cache(TEXTS)
    forked = multiprocessing.get_context("fork")
    told, done = forked.Pipe(duplex=False)
    process = forked.Process(target=write_on, args=(tiny_bert, tmp_path, done), daemon=True)
    process.start()
    written = [numbered(told.recv()) for _ in range(9)]
    process.kill()
    process.join()
    encoder, cache = cached(tiny_bert, tmp_path)
    check_words(cache, encoder, [*TEXTS, *written])
    assert encoder.asked == []
    check_words(cache, encoder, ["big hat"])                                            # and it goes on


@pytest.mark.parametrize("content", [b"", b"no database"])
def test_a_foreign_file_is_refused_and_an_empty_one_is_a_new_cache(tiny_bert, tmp_path, content):
    encoder, cache = cached(tiny_bert, tmp_path)
    (cache.folder / "words.sqlite").write_bytes(content)
    if not content:
        return check_words(cache, encoder, TEXTS)
    with pytest.raises(DataError, match="file is not a database.*delete the folder.*text.cache"):
        cache(TEXTS)


def test_two_writers_at_once_do_not_disturb_each_other(tiny_bert, tmp_path):
    (one, left), (two, right) = cached(tiny_bert, tmp_path), cached(tiny_bert, tmp_path)
    # in turn, some texts in both
    for a, b in [(TEXTS[:2], TEXTS[1:3]), (TEXTS[2:], ["big hat"]), (["old man"], TEXTS)]:
        check_words(left, one, a)
        check_words(right, two, b)
    check_words(left, one, [*TEXTS, "old man"])
    reader, cache = cached(tiny_bert, tmp_path)
    check_words(cache, reader, [*TEXTS, "big hat", "old man"])
    assert reader.asked == []


def test_a_cache_of_a_fine_tuned_encoder_is_refused(tiny_bert, tmp_path):
    with pytest.raises(DataError, match="fine-tuned.*text.cache"):
        CachedWords(BertWords(str(tiny_bert), finetune=True), tmp_path)


def test_other_weights_or_another_limit_never_share_words(tiny_bert, tmp_path):
    changed = BertWords(str(tiny_bert))
    with torch.no_grad():
        changed.encoder.embeddings.word_embeddings.weight[7, 3] += 1e-3
    same = [CachedWords(BertWords(str(tiny_bert)), tmp_path).folder for _ in range(2)]
    shorter = BertWords(str(tiny_bert), max_words=5)
    others = [CachedWords(encoder, tmp_path).folder for encoder in (changed, shorter)]
    assert same[0] == same[1] and len({same[0], *others}) == 3


def test_a_cache_stops_growing_before_the_disk_is_full(tiny_bert, tmp_path, monkeypatch):
    encoder, cache = cached(tiny_bert, tmp_path)
    known = cache(TEXTS[:2])
    size = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(total=1000, used=960, free=40))
    with pytest.warns(UserWarning, match="new texts are no longer cached") as said:
        check_words(cache, encoder, [TEXTS[2], *TEXTS])                    # known ones and new ones, one of them twice
        check_words(cache, encoder, TEXTS)
    assert len(said) == 1
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) == size
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(total=1000, used=940, free=60))
    check_words(cache, encoder, TEXTS)
    assert sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file()) > size
    assert all(torch.equal(a, b) for a, b in zip(known, cache(TEXTS[:2]), strict=True))


def test_a_full_disk_is_said_and_loses_nothing(tiny_bert, tmp_path):
    _, cache = cached(tiny_bert, tmp_path)
    cache(TEXTS[:2])
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, usual[1]))
    try:
        with pytest.raises(DataError, match=f"the text cache {tmp_path}.*free disk space.*text.cache"):
            cache([" ".join(TEXTS * 2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    encoder, cache = cached(tiny_bert, tmp_path)
    check_words(cache, encoder, TEXTS[:2])
    assert encoder.asked == []
