"""The full grid, the catalogue of 486 and the budget."""

from __future__ import annotations

import hashlib
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feature_repo.pipelines.catalog import CATALOGUE
from training import variants as module
from training.models.registry import architecture, architectures
from training.variants import LOOKBACKS, RULES, UnknownVariantError, catalogue, choose, explain, find, full_grid

PIPELINES = ("technical", "momentum", "volatility")


def test_ids_and_digests_are_unique():
    variants = full_grid(PIPELINES)
    assert len({variant.id for variant in variants}) == len(variants)
    assert len({variant.digest for variant in variants}) == len(variants)


def test_the_full_grid_is_the_full_product():
    sizes = dict.fromkeys(architectures(), 1)
    for name, spec in architectures().items():
        for _, choices in spec.grid.values():
            sizes[name] *= len(choices)
    assert Counter(v.architecture for v in full_grid(PIPELINES)) == {
        name: size * len(PIPELINES) * len(LOOKBACKS) for name, size in sizes.items()
    }


def test_ids_read_as_architecture_lookback_pipeline_and_parameters():
    assert "lstm-l30-technical-h64" in {variant.id for variant in full_grid(PIPELINES)}


def test_the_catalogue_holds_486_over_everything():
    variants = catalogue()
    assert len(variants) == len({variant.id for variant in variants}) == 486
    by_architecture = Counter(variant.architecture for variant in variants)
    assert set(by_architecture) == set(architectures())
    assert len(by_architecture) >= 25
    for name, count in by_architecture.items():
        assert count >= (6 if architecture(name).family == "agent" else 10), name
    by_pipeline = Counter(variant.pipeline for variant in variants)
    assert set(by_pipeline) == set(CATALOGUE)
    assert min(by_pipeline.values()) >= 40
    by_lookback = Counter(variant.lookback for variant in variants)
    assert set(by_lookback) == set(LOOKBACKS)
    assert min(by_lookback.values()) >= 60


def test_the_rules_account_for_every_variant_left_out():
    variants, cuts = explain()
    left = len(full_grid(list(CATALOGUE)))
    for cut in cuts:
        left -= cut.num_excluded
        assert cut.num_left == left
        assert cut.num_excluded > 0, f"{cut.rule} excludes nothing: delete it"
        assert len(cut.reason) > 20
    assert left == len(variants)
    assert not any(rule.excludes(variant) for rule in RULES for variant in variants)


DIGEST = "025ce5db92e0723c"


def test_the_catalogue_is_the_one_that_was_tried_before():
    """A change here starts the count of trials anew: change the digest only with the catalogue in mind."""
    ids = "\n".join(f"{variant.id} {variant.digest}" for variant in catalogue())
    assert hashlib.sha256(ids.encode()).hexdigest()[:16] == DIGEST


def test_a_new_architecture_enters_by_being_registered(monkeypatch: pytest.MonkeyPatch):
    import dataclasses

    more = architectures() | {"newcomer": dataclasses.replace(architecture("lstm"), name="newcomer")}
    monkeypatch.setattr(module, "architectures", lambda: more)
    monkeypatch.setattr(module, "architecture", lambda name: more[name])
    counts = Counter(variant.architecture for variant in catalogue())
    assert counts["newcomer"] >= 10
    assert counts.total() == 486


def test_a_variant_is_found_by_its_id():
    for variant in (catalogue()[0], full_grid(["technical"])[-1]):
        assert find(variant.id) == variant
    with pytest.raises(UnknownVariantError, match="factory list"):
        find("lstm-l31-technical-h64")


@settings(max_examples=25, deadline=None)
@given(budget=st.integers(1, 200))
def test_a_budget_takes_that_many_and_spreads_them(budget):
    variants = full_grid(PIPELINES)
    chosen = choose(variants, budget)
    assert len({variant.id for variant in chosen}) == min(budget, len(variants))
    waiting = Counter(v.architecture for v in variants)
    taken = Counter(v.architecture for v in chosen)
    open_ended = [taken[name] for name in waiting if taken[name] < waiting[name]]
    assert not open_ended or max(open_ended) - min(open_ended) <= 1


def test_a_small_budget_covers_all_families_pipelines_and_lookbacks():
    chosen = choose(catalogue(), 14)
    assert {v.family for v in chosen} == {"classical", "deep", "econometric", "agent"}
    assert {v.pipeline for v in chosen} == set(CATALOGUE)
    assert {v.lookback for v in chosen} == set(LOOKBACKS)


def test_a_smaller_budget_is_a_prefix_of_a_larger_one():
    variants = full_grid(PIPELINES)
    assert choose(variants, 9) == choose(variants, 14)[:9]
