"""A catalogue from a user's file: what it says, and the errors it gives."""

import pytest

from feature_repo.pipelines.catalog import CATALOGUE
from training.catalogue_file import CatalogueError, read_catalogue
from training.variants import LOOKBACKS, full_grid

GOOD = """
[[variants]]
architecture = "lstm"
lookbacks = [20, 30]
pipelines = ["technical"]
hidden_size = [64, 48]

[[variants]]
architecture = "elastic_net"

[[variants]]
architecture = "lstm"
lookbacks = [30]
pipelines = ["technical", "momentum"]
hidden_size = [64]
"""


def _file(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return path


def test_entries_are_small_grids_and_a_variant_is_there_once(tmp_path):
    variants = read_catalogue(_file(tmp_path, GOOD))
    ids = [variant.id for variant in variants]
    assert ids[:4] == [f"lstm-l{lookback}-technical-h{size}" for lookback in (20, 30) for size in (64, 48)]
    assert ids[-1] == "lstm-l30-momentum-h64"
    linear = [variant for variant in full_grid(list(CATALOGUE)) if variant.architecture == "elastic_net"]
    assert set(variants[4:-1]) == set(linear)
    assert len(linear) == len(LOOKBACKS) * len(CATALOGUE) * 3
    assert len(set(ids)) == len(ids)


def test_a_variant_of_the_default_catalogue_is_the_same_variant(tmp_path):
    [again] = [each for each in read_catalogue(_file(tmp_path, GOOD)) if each.id == "lstm-l30-technical-h64"]
    [own] = [each for each in full_grid(["technical"]) if each.id == again.id]
    assert again == own
    assert again.digest == own.digest


def test_ids_come_first_and_once(tmp_path):
    text = 'ids = ["svm-l7-ohlcv-krbf", "lstm-l30-technical-h64"]' + GOOD
    ids = [variant.id for variant in read_catalogue(_file(tmp_path, text))]
    assert ids[:3] == ["svm-l7-ohlcv-krbf", "lstm-l30-technical-h64", "lstm-l20-technical-h64"]
    assert ids.count("lstm-l30-technical-h64") == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ids = ['lstm-l31-technical-h64']", r"no variants \['lstm-l31-technical-h64'\]"),
        ("ids = 3", "ids = "),
        ("variants = 3", r"\[\[variants\]\] entries"),
        ("", r"\[\[variants\]\] entries"),
        ("[[variants]]\narchitecture = 'lstn'", "'lstn' is not one of .*'lstm'"),
        ("[[variants]]\narchitecture = 'lstm'\ndropout = [0.1]", r"has no \['dropout'\].*'hidden_size'"),
        ("[[variants]]\narchitecture = 'lstm'\nlookbacks = [1, 200]", r"\[1, 200\] are outside 2 to 90"),
        ("[[variants]]\narchitecture = 'lstm'\nlookbacks = 30", r"lookbacks is 30; it must be a list"),
        ("[[variants]]\narchitecture = 'lstm'\nhidden_size = ['64']", r"hidden_size is \['64'\]"),
        (
            "[[variants]]\narchitecture = 'lstm'\npipelines = ['macro']",
            r"can't be \['macro'\]; choose from .*'onchain'",
        ),
        ("[[variants]]\narchitecture = 'svm'\nkernel = ['cubic']", r"can't be \['cubic'\]"),
        ("[[variants]", "no catalogue in"),
    ],
)
def test_a_wrong_file_says_what_is_wrong(tmp_path, text, said):
    with pytest.raises(CatalogueError, match=said):
        read_catalogue(_file(tmp_path, text))


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CatalogueError, match=r"nowhere\.toml"):
        read_catalogue(tmp_path / "nowhere.toml")
