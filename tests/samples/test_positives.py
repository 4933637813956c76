"""Generated positives: what stays, what goes, and that nothing has to be downloaded."""

import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ascl.data.captions import load_karpathy
from ascl.samples.positives import STRATEGIES, concatenate, generate_positive, truncate_keywords, truncate_prefix

SENTENCE = "A brown dog and two children are running quickly in front of a large wooden house ."
KEYWORDS = {"brown", "dog", "children", "running", "large", "wooden", "house"}  # by hand


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def is_subsequence(short: list[str], long: list[str]) -> bool:
    rest = iter(long)
    return all(word in rest for word in short)


captions_strategy = st.lists(st.sampled_from("a dog the red runs on grass . , Two ' tree-house 7 !".split()),
                             min_size=1).map(" ".join)


@pytest.mark.parametrize("first, joined", [
    ("A dog", "A dog. B"),
    ("A dog .", "A dog. B"),
    ("A dog.", "A dog. B"),
    ("A dog...", "A dog. B"),
    ("A dog !", "A dog! B"),
    ("Is it a dog?", "Is it a dog? B"),
    ("A dog ,", "A dog. B"),
    ("A 'dog'", "A 'dog'. B"),
    (" . ", "B"),
])
def test_concatenate_ends_the_first_sentence_once(first, joined):
    class FirstTwo:
        def choice(self, n: int, size: int, replace: bool) -> list[int]:
            assert (n, size, replace) == (2, 2, False)
            return [0, 1]

    assert concatenate([first, "B"], FirstTwo()) == joined


def test_concatenate_takes_two_different_captions_and_all_pairs_come_up():
    captions = [f"caption {i}" for i in range(4)]
    drawn = {concatenate(captions, rng(seed)) for seed in range(300)}
    assert drawn == {f"{a}. {b}" for a in captions for b in captions if a != b}


def test_concatenate_of_one_or_none():
    assert concatenate(["only one ."], rng()) == "only one ."
    with pytest.raises(ValueError, match="nothing to concatenate"):
        concatenate([], rng())


@pytest.mark.parametrize("n", [1, 2, 3, 10, 30])
@pytest.mark.parametrize("tenths", [1, 3, 5, 10])
def test_prefix_keeps_the_ceiling_of_the_share(n, tenths):
    words = [f"w{i}" for i in range(n)]
    expected = -(-n * tenths // 10)  # in whole numbers
    assert truncate_prefix(" ".join(words), ratio=tenths / 10) == " ".join(words[:expected])


def test_prefix_is_half_by_default():
    assert truncate_prefix("one two three four five") == "one two three"


@given(captions_strategy, st.integers(0, 99), st.floats(0.01, 0.99))
@settings(deadline=None)    # the first one imports nltk
def test_keyword_truncation_is_a_part_of_the_caption_and_never_empty(caption, seed, ratio):
    short = truncate_keywords(caption, rng(seed), ratio=ratio)
    assert short.split()
    assert is_subsequence(short.split(), caption.split())


@pytest.mark.parametrize("ratio, gone", [(0.01, 1), (0.3, 2), (0.5, 4), (0.99, 6)])
def test_the_share_counts_keywords_and_one_always_stays(ratio, gone):
    for seed in range(20):
        short = set(truncate_keywords(SENTENCE, rng(seed), ratio=ratio).split())
        assert len(KEYWORDS - short) == gone


def test_every_keyword_can_go_and_function_words_go_only_before_one():
    shorts = [truncate_keywords(SENTENCE, rng(seed), ratio=0.2) for seed in range(200)]
    assert all(any(word not in short.split() for short in shorts) for word in KEYWORDS)
    assert all("quickly" in short and short.endswith(".") for short in shorts)
    for short in shorts:
        if "house" in short.split() and "wooden" in short.split() and "large" in short.split():
            assert short.endswith("in front of a large wooden house .")
    assert truncate_keywords("a fence in front of a house", NoFirst(), ratio=0.5) == "a fence"


class NoFirst:
    """Draws the last of what it is offered."""

    def choice(self, items: list[int], size: int, replace: bool) -> np.ndarray:
        return np.array(items[-size:])


def test_punctuation_and_capitals_do_not_hide_a_function_word():
    assert truncate_keywords("The, (THE) the.", rng(), ratio=0.5) == "The, (THE) the."  # no keyword
    assert truncate_keywords("A dog.", rng(), ratio=0.5) == "A dog."  # the only keyword stays


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_positives_are_reproducible_and_of_their_kind(strategy):
    captions = ["A black cat sleeps on a mat", SENTENCE, "Something else happens here"]
    kinds = set()
    for seed in range(40):
        positive = generate_positive(strategy, captions, 1, rng(seed)).text
        assert positive == generate_positive(strategy, captions, 1, rng(seed)).text
        if positive == truncate_prefix(SENTENCE):
            kinds.add("prefix")
        elif is_subsequence(positive.split(), SENTENCE.split()):
            kinds.add("keywords")
        else:
            assert ". " in positive and any(positive.endswith(c) for c in captions)
            kinds.add("concatenate")
    expected = {"both": {"concatenate", "keywords"}, "both-prefix": {"concatenate", "prefix"}}
    assert kinds == expected.get(strategy, {strategy})


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_positive_says_more_where_it_is_a_concatenation_and_less_where_it_is_cut(strategy):
    captions = ["A black cat sleeps on a mat", SENTENCE, "Something else happens here"]
    for seed in range(40):
        positive = generate_positive(strategy, captions, 1, rng(seed))
        assert positive.order == (-1 if is_subsequence(positive.text.split(), SENTENCE.split()) else 1)


@pytest.mark.parametrize(("strategy", "captions"), [
    ("concatenate", ["A dog"]), ("concatenate", ["A dog", "."]), ("prefix", ["Dog"]), ("keywords", ["A dog ."]),
    ("prefix", ["  Dog "]),
])
def test_a_positive_that_is_a_caption_as_it_stands_says_neither_more_nor_less(strategy, captions):
    orders = {generate_positive(strategy, captions, 0, rng(seed)).order for seed in range(20)}
    assert 0 in orders and -1 not in orders and (orders == {0} or "." in captions)


def test_both_is_a_fair_coin():
    captions = [SENTENCE, "A cat"]
    longer = sum(len(generate_positive("both", captions, 0, rng(s)).text) > len(SENTENCE) for s in range(1000))
    assert 440 < longer < 560  # four standard deviations


def test_bad_arguments():
    with pytest.raises(ValueError, match="unknown strategy 'long' for positives: use one of concatenate, prefix"):
        generate_positive("long", ["a"], 0, rng())
    with pytest.raises(ValueError, match=r"ratio must be in \(0, 1\], got 0"):
        truncate_prefix("a b", ratio=0)
    with pytest.raises(ValueError, match="ratio must be between 0 and 1, got 1.0"):
        truncate_keywords("a b", rng(), ratio=1.0)
    with pytest.raises(ValueError, match="empty caption"):
        truncate_prefix(" ")


def test_no_corpus_of_nltk_is_needed(tmp_path):
    program = ("import nltk; nltk.data.path[:] = []\nimport numpy as np\nfrom ascl.samples.positives import "
               f"truncate_keywords\nprint(truncate_keywords({SENTENCE!r}, np.random.default_rng(0), ratio=0.5))")
    environment = {**os.environ, "NLTK_DATA": str(tmp_path), "HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == truncate_keywords(SENTENCE, rng(), ratio=0.5)


def test_real_captions_are_shortened(shared):
    captions = load_karpathy(shared / "data" / "flickr8k" / "dataset_flickr8k.json", "test").captions
    shorter = [truncate_keywords(c, rng(i), ratio=0.5) for i, c in enumerate(captions)]
    assert all(short for short in shorter)
    assert sum(len(short) < len(c) for short, c in zip(shorter, captions, strict=True)) > 0.99 * len(captions)
