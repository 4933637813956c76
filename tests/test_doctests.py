"""The examples in the docstrings of the public API run, and the names that DESIGN and README promise have one."""

import doctest
import importlib
import pkgutil

import pytest

ROOMS = ("asymmetry", "losses", "models", "retrieval", "image_copy", "index")
PROMISED = {
    "ascl": ["AsCL", "CopyIndex", "load_descriptor", "load_model"],
    "ascl.models": ["EncodedImages", "EncodedTexts"],
    "ascl.retrieval": ["score_all_pairs", "rank_report", "rank_all_pairs", "top_pairs"],
    "ascl.losses": ["ascl_loss", "info_nce", "hardest_triplet"],
    "ascl.asymmetry": ["norm_ratio_loss", "direction"],
    "ascl.image_copy": ["micro_average_precision", "trapezoid_average_precision", "score_normalise",
                        "subtract_negatives", "capped_search"],
}


def modules():
    for room in ROOMS:
        package = importlib.import_module(f"ascl.{room}")
        yield package.__name__
        for found in pkgutil.walk_packages(getattr(package, "__path__", []), f"{package.__name__}."):
            yield found.name


@pytest.mark.parametrize("name", modules())
def test_examples_print_what_they_say(name):
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@pytest.mark.parametrize(("module", "name"), [(module, name) for module, names in PROMISED.items() for name in names])
def test_promised_names_have_an_example(module, name):
    promised = getattr(importlib.import_module(module), name)
    assert ">>>" in (promised.__doc__ or "") + (promised.__init__.__doc__ or "")
