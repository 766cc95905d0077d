"""The catalogue and the budget."""

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from training.models.registry import architectures
from training.variants import LOOKBACKS, catalogue, choose

PIPELINES = ("technical", "momentum", "volatility")


def test_ids_and_digests_are_unique():
    variants = catalogue(PIPELINES)
    assert len({variant.id for variant in variants}) == len(variants)
    assert len({variant.digest for variant in variants}) == len(variants)


def test_the_catalogue_is_the_full_product():
    sizes = dict.fromkeys(architectures(), 1)
    for name, spec in architectures().items():
        for _, choices in spec.grid.values():
            sizes[name] *= len(choices)
    assert Counter(v.architecture for v in catalogue(PIPELINES)) == {
        name: size * len(PIPELINES) * len(LOOKBACKS) for name, size in sizes.items()
    }


def test_ids_read_as_architecture_lookback_pipeline_and_parameters():
    assert "lstm-l30-technical-h64" in {variant.id for variant in catalogue(PIPELINES)}


@settings(max_examples=25, deadline=None)
@given(budget=st.integers(1, 200))
def test_a_budget_takes_that_many_and_spreads_them(budget):
    variants = catalogue(PIPELINES)
    chosen = choose(variants, budget)
    assert len({variant.id for variant in chosen}) == min(budget, len(variants))
    waiting = Counter(v.architecture for v in variants)
    taken = Counter(v.architecture for v in chosen)
    open_ended = [taken[name] for name in waiting if taken[name] < waiting[name]]
    assert not open_ended or max(open_ended) - min(open_ended) <= 1


def test_a_small_budget_covers_all_families_pipelines_and_lookbacks():
    chosen = choose(catalogue(PIPELINES), 14)
    assert {v.family for v in chosen} == {"classical", "deep", "econometric", "agent"}
    assert {v.pipeline for v in chosen} == set(PIPELINES)
    assert {v.lookback for v in chosen} == set(LOOKBACKS)


def test_a_smaller_budget_is_a_prefix_of_a_larger_one():
    variants = catalogue(PIPELINES)
    assert choose(variants, 9) == choose(variants, 14)[:9]
