"""Variants of captions that people wrote: exact ones by hand, and what has to hold of every one on real captions."""

import re

import numpy as np
import pytest

from ascl.analysis.probes import lexicon
from ascl.analysis.probes.caption_variants import caption_variants
from ascl.analysis.probes.variants import KINDS, replaced, second_sentence, with_article
from ascl.data.captions import CaptionSet, load_captions

COMPANY = ["A cat sleeps on a sofa .", "There is a pizza on the table .", "A horse stands by a bus .", "A red kite ."]


def variants_of(*captions: str, company=COMPANY) -> dict[str, str]:
    """Kind -> variant of the first of an image's captions; `company` are captions of other images."""
    every = [*captions, *company]
    owner = np.array([0] * len(captions) + list(range(1, len(company) + 1)))
    known = CaptionSet([f"image{i}" for i in range(len(company) + 1)], every, owner, "test")
    return {kind: text for caption, kind, text in caption_variants(known) if caption == 0}


@pytest.mark.parametrize("caption, kind, expected", [
    ("A man rides a horse .", "roles swapped", "A horse rides a man ."),
    ("A small dog is chasing a cat over grass .", "roles swapped", "A cat is chasing a small dog over grass ."),
    ("a dog jumps over an apple", "roles swapped", "an apple jumps over a dog"),
    ("A cat sits behind a tree .", "relation swapped", "A cat sits in front of a tree ."),
    ("Under a tree sits a cat .", "relation swapped", "On top of a tree sits a cat ."),
    ("A boy stands outside a house .", "relation swapped", "A boy stands inside a house ."),
    ("A brown dog sits on the wet grass .", "truncated (prefix)", "A brown dog sits"),
    ("a man with a hat and a woman with an umbrella", "truncated (prefix)", "a man with a hat"),
    ("A tiny apple", "keywords removed", "An apple"),
    ("A dog runs along the beach .", "keywords removed", "A dog runs"),
    ("Nine dogs", "number swapped", None),                                  # no larger number is left
    ("A two year old boy", "number swapped", None),
    ("A dog with two eyes", "number swapped", None),
    ("A dog is on the phone", "relation swapped", None),
    ("A man talks to a woman", "roles swapped", None),                      # works both ways
    ("A hot dog", "noun swapped", None),
    ("A dog house", "noun swapped", None),
    ("white water rafting", "colour swapped", None),
    ("a black man", "colour swapped", None),
    ("a colorful red balloon", "colour swapped", None),
    ("dog", "truncated (prefix)", None),
    ("dog", "keywords removed", None),
    ("dog", "concatenated", None),
])
def test_by_hand(caption, kind, expected):
    assert variants_of(caption).get(kind) == expected


def test_a_number_grows_for_where_there_are_three_there_are_two():
    for word in lexicon.NUMBERS[:6]:
        text = variants_of(f"{word.capitalize()} dogs run .")["number swapped"]
        assert lexicon.NUMBERS.index(text.split()[0].lower()) >= lexicon.NUMBERS.index(word) + 2


@pytest.mark.parametrize("other, kept_out", [
    ("A blond girl .", {"girl", "girls"}), ("A child with a dog .", {"boy", "girl", "dog"}), ("", set()),
])
def test_what_any_caption_of_the_image_speaks_of_is_not_put_in(other, kept_out):
    captions = ["A boy holds a cat .", *([other] if other else [])]
    seen = {variants_of(*captions, company=[f"company {i}"]).get("noun swapped") for i in range(3)}
    words = {word for text in seen if text for word in re.findall(r"\w+", text.lower())} - {"a", "boy", "holds", "cat"}
    assert words.isdisjoint(kept_out)


def test_a_detail_is_true_by_another_caption_and_its_false_twin_by_none():
    captions = ["A man smiles .", "A man on a bench eats an apple .", "People", "Two puppies and an apple", "A street"]
    known = CaptionSet(["a", "b"], captions, np.array([0, 0, 1, 1, 1]), "test")
    found = {kind: text for caption, kind, text in caption_variants(known) if caption == 0}
    assert found["true detail added"] in ("A man smiles. There is a bench.", "A man smiles. There is an apple.")
    assert found["false detail added"] == "A man smiles. There are puppies."    # all that other images have to offer
    # not where the caption itself has a thing of the group: the writers may have seen one thing in two ways
    assert "true detail added" not in variants_of("A man on a sofa .", "A man on a bench .")


def test_a_concatenation_holds_the_caption_and_another_of_its_image():
    text = variants_of("A dog runs .", "A puppy on grass .", "A dog runs .")["concatenated"]
    assert text in ("A dog runs. A puppy on grass .", "A puppy on grass. A dog runs .")


def test_small_things():
    assert with_article("this is A ", "apple") == "this is An " and with_article("an ", "unicycle") == "a "
    assert replaced("A dog", 2, 5, "elephant") == "An elephant" and replaced("Dog runs", 0, 3, "cat") == "Cat runs"
    assert second_sentence("A dog , ", "There is a cat.") == "A dog. There is a cat."


def test_every_variant_of_real_captions_is_what_its_kind_says(shared):
    captions = load_captions(shared / "data" / "flickr8k" / "dataset_flickr8k.json", "val").subset(range(150))
    variants = caption_variants(captions)
    count = dict.fromkeys(KINDS, 0)
    for index, kind, text in variants:
        count[kind] += 1
        caption = captions.captions[index]
        own = captions.captions_of(int(captions.owner[index]))
        known = {word for i in own for word in re.findall(r"[a-z]+", captions.captions[i].lower())}
        before, after = (re.findall(r"[\w'-]+", words.lower()) for words in (caption, text))
        new = [word for word in after if word not in before]
        assert text != caption and text == " ".join(text.split())
        if kind in ("noun swapped", "colour swapped", "number swapped"):
            assert len(after) == len(before) and 1 <= len(new) <= 2
            assert not known & {word for word in new if word not in ("a", "an")}, (caption, text)
        if kind == "false detail added":
            assert after[-1] not in known
        if kind in ("false detail added", "true detail added"):
            assert text.startswith(re.sub(r"[\s.,;:]+$", "", caption)) and re.search(r"\. There (is an?|are) ", text)
        if kind == "true detail added":
            assert after[-1] in known
        if KINDS[kind] == "III":
            rest = iter(word for word in before if word not in ("a", "an"))
            assert len(after) < len(before) and all(word in rest for word in after if word not in ("a", "an"))
            assert after[-1] not in ("a", "the", "on", "with", "and", "is")
        if kind == "roles swapped":
            assert sorted(before) == sorted(after)
    assert all(count[kind] for kind in count if kind not in (
        "size swapped", "texture swapped", "place swapped", "background swapped"))
    assert count["noun swapped"] > 0.6 * len(captions.captions) and count["concatenated"] == len(captions.captions)


def test_variants_repeat_and_depend_on_their_image_alone_but_for_false_details(shared):
    captions = load_captions(shared / "data" / "flickr8k" / "dataset_flickr8k.json", "val").subset(range(30))
    variants = caption_variants(captions)
    assert caption_variants(captions) == variants and caption_variants(captions, seed=1) != variants
    few = caption_variants(captions.subset(range(20, 30)))
    first = captions.captions_of(20)[0]

    def free(variants):
        return [variant for variant in variants if variant.kind != "false detail added"]

    assert [variant._replace(caption=variant.caption + first) for variant in free(few)] == [
        variant for variant in free(variants) if variant.caption >= first]


def test_no_noun_stands_in_two_things_of_a_group():
    for group in lexicon.GROUPS.values():
        names = [name for noun in group.nouns for pair in noun.names for name in set(pair)]
        assert len(names) == len(set(names)), group
