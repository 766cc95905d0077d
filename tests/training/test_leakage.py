"""The leak detector catches what we plant in labels, panels, folds and stores, and its verdict can be relied on."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_repo.leakage.challenges import pick_moments
from feature_repo.leakage.checks import check_features, questions_at, rule_answers
from feature_repo.leakage.findings import Checked, LeakageError
from feature_repo.market.calendar import first_price_after, price_grid
from feature_repo.market.schema import Market
from feature_repo.store.tables import append_rows
from tests.feature_repo import leak_makers as make
from tests.training.panel_makers import make_panel
from training.dataset import Labels, Panel
from training.labels import make_labels
from training.leakage.canary import CANARY, canary_rows, check_canary, panel_reads, table_reads
from training.leakage.folds import check_folds, check_preparation
from training.leakage.panels import check_label_in_features, check_label_times, check_panels
from training.leakage.verdict import VERDICT, clean_verdict, make_verdict, read_verdict, write_verdict
from training.panels import build_panel, known_features
from training.splits.walk_forward import final_fold, walk_forward

MARKET = make.make_market(num_bars=90)
MOMENTS = pick_moments(MARKET, "1d", num_bars=60, num_moments=8)
FEATURES = make.builder(mean_5=make.trailing_mean, z=make.trailing_z)
FACTS = make.builder(ret_1=make.trailing_return, vol_60=lambda columns: make.rolling_std(columns["close"], 5, 1))


def known(table: pd.DataFrame, grid) -> np.ndarray:
    """What the rule answers at every sample time: (T, N, F)."""
    times = pd.DatetimeIndex(grid.sample_times_T).tz_localize("UTC")
    answers = rule_answers(table, questions_at(grid.entities, times)).drop(columns="event_time")
    return answers.to_numpy().reshape(len(times), len(grid.entities), -1)


def own_labels(grid, vol_TN: np.ndarray) -> Labels:
    times_T, price_TN = first_price_after(grid)
    return make_labels(exec_times_T=times_T, exec_price_TN=price_TN, vol_TN=vol_TN, horizon=1)


def panel(market: Market, *, labels=own_labels, features=FEATURES, read=known, entities=None) -> Panel:
    """From a market to a panel, as a cycle goes, each step to be replaced by a leaky one."""
    grid = price_grid(market.bars("1d"), calendar=market.info.calendar, interval="1d")
    grid = grid.only(entities(market)) if entities else grid
    table, facts = features(market), known(FACTS(market), grid)
    names = [f"planted_v1__{name}" for name in table.columns if name not in (*make.KEY, *PROVENANCE)]
    return build_panel(
        pipeline="planted",
        entities=grid.entities,
        event_times_T=grid.event_times_T,
        sample_times_T=grid.sample_times_T,
        names=(*names, "bar_v1__ret_1", "bar_v1__vol_60"),
        known_TNF=np.concatenate([read(table, grid), facts], axis=-1),
        labels=labels(grid, facts[..., 1]),
        hold_TN=np.zeros(grid.close_TN.shape),
        bar_view="bar_v1",
    )


PROVENANCE = ("written_at", "producer", "producer_version", "run_id")


def check(**broken) -> Checked:
    return check_panels({"it": partial(panel, **broken)}, MARKET, MOMENTS, rng=np.random.default_rng(3))["it"]


def test_a_causal_panel_is_clean_on_late_and_restated_bars() -> None:
    clean = check()
    assert clean.findings == ()
    assert clean.num_compared > 2_000


# Labels.


def test_an_opening_price_that_is_told_with_its_bar_is_no_leak() -> None:
    """The label's interval ends at the open, hours before the bar that tells it is known."""
    market = make.market_of({"bars_1d": MARKET.tables["bars_1d"]}, calendar="XNYS")
    moments = [end + make.LAG - pd.Timedelta("1us") for end in sorted(set(market.bars("1d")["event_time"]))[60::9]]
    clean = check_panels({"it": panel}, market, moments, rng=np.random.default_rng(3))["it"]
    assert clean.findings == ()
    leaky = partial(panel, labels=over_later_than_said)
    assert "label truncation" in {
        finding.check
        for finding in check_panels({"it": leaky}, market, moments, rng=np.random.default_rng(3))["it"].findings
    }


def from_own_close(grid, vol_TN):
    """The label starts at the close that the features used."""
    return make_labels(exec_times_T=grid.event_times_T, exec_price_TN=grid.close_TN, vol_TN=vol_TN, horizon=1)


def from_own_close_said_to_be_later(grid, vol_TN):
    honest = own_labels(grid, vol_TN)
    return replace(from_own_close(grid, vol_TN), start_T=honest.start_T, end_T=honest.end_T)


def over_later_than_said(grid, vol_TN):
    """The return over five bars, its interval said to be one bar."""
    times_T, price_TN = first_price_after(grid)
    return replace(
        own_labels(grid, vol_TN),
        forward_TN=make_labels(exec_times_T=times_T, exec_price_TN=price_TN, vol_TN=vol_TN, horizon=5).forward_TN,
    )


def scaled_by_the_whole_sample(grid, vol_TN):
    honest = own_labels(grid, vol_TN)
    return replace(honest, y_TN=honest.forward_TN / np.nanstd(honest.forward_TN))


@pytest.mark.parametrize(
    ("labels", "checked", "feature"),
    [
        (from_own_close, "label times", "label start"),
        (from_own_close_said_to_be_later, "label from the past", "forward"),
        (over_later_than_said, "label truncation", "forward"),
        (scaled_by_the_whole_sample, "label truncation", "y"),
    ],
)
def test_a_leaky_label_is_caught(labels, checked, feature) -> None:
    found = {(finding.check, finding.feature): finding for finding in check(labels=labels).findings}
    assert (checked, feature) in found
    assert found[checked, feature].moment.isoformat() in found[checked, feature].message


def test_label_intervals_that_end_before_they_start_are_caught() -> None:
    honest = make_panel(num_times=60)
    broken = replace(honest, labels=replace(honest.labels, end_T=honest.labels.start_T))
    assert [finding.feature for finding in check_label_times(broken).findings] == ["label end"]
    assert check_label_times(honest).findings == ()


# Samples.


def by_event_time_only(table, grid):
    blind = table.assign(ingest_time=table["event_time"]).drop_duplicates(make.KEY[:2], keep="last")
    return known(blind, grid)


def survivors(market: Market) -> list[str]:
    """Only assets that still trade at the end."""
    last = market.bars("1d").groupby("entity_key")["event_time"].max()
    return sorted(last.index[last >= last.max() - pd.Timedelta(days=10)])


@pytest.mark.parametrize(
    "broken",
    [
        {"read": by_event_time_only},
        {"features": make.builder(z=make.full_sample_z)},
        {"features": make.builder(vol=make.filled_backward)},
    ],
    ids=["join on event time only", "full-sample z-score", "back-filled nulls"],
)
def test_a_leaky_sample_is_caught(broken) -> None:
    found = check(**broken).findings
    assert {finding.check for finding in found} == {"panel"}
    assert all(finding.event_time is not None and finding.feature in finding.message for finding in found)


def test_a_panel_of_survivors_is_caught() -> None:
    early = pick_moments(MARKET, "1d", num_bars=50, num_moments=8)[:2]
    build = {"it": partial(panel, entities=survivors)}
    found = check_panels(build, MARKET, early, rng=np.random.default_rng(0))["it"].findings
    assert {finding.entity for finding in found if finding.check == "panel"} == {"DEAD"}


# The label in the features.


def with_feature(values_TN: np.ndarray, honest: Panel) -> Panel:
    x_TNF = honest.x_TNF.copy()
    x_TNF[..., 1] = values_TN
    return replace(honest, x_TNF=x_TNF)


@pytest.mark.parametrize("kind", ["y", "forward", "its sign and rank", "noisy", "in few samples"])
def test_a_label_in_the_features_is_caught(kind: str) -> None:
    honest = make_panel(num_times=120)
    y_TN, rng = honest.labels.y_TN, np.random.default_rng(0)
    disguised = {
        "y": y_TN,
        "forward": honest.labels.forward_TN,
        "its sign and rank": -(np.tanh(y_TN) ** 3),
        "noisy": y_TN + 0.2 * rng.standard_normal(y_TN.shape),
        "in few samples": np.where(rng.random(y_TN.shape) < 0.05, y_TN, rng.standard_normal(y_TN.shape)),
    }[kind]
    found = check_label_in_features(with_feature(disguised, honest)).findings
    assert [finding.feature for finding in found] == ["f1"]
    assert "f1" in found[0].message
    assert check_label_in_features(honest).findings == ()


def test_a_feature_of_signs_is_not_taken_for_a_label_of_signs() -> None:
    """Half of them agree by chance; the label itself is found by its correlation."""
    honest = make_panel(num_times=300)
    signs = replace(honest, labels=replace(honest.labels, y_TN=np.sign(honest.labels.y_TN), kind="sign"))
    rng = np.random.default_rng(2)
    chance = rng.choice([-1.0, 1.0], signs.labels.y_TN.shape)
    assert check_label_in_features(with_feature(chance, signs)).findings == ()
    [found] = check_label_in_features(with_feature(signs.labels.y_TN, signs)).findings
    assert "in disguise" in found.message


def test_a_good_forecast_is_not_taken_for_the_label() -> None:
    assert check_label_in_features(make_panel(num_times=400, signal=0.5)).findings == ()


# Folds and what is fitted for them.


def long_labels(horizon: int = 4) -> Panel:
    honest = make_panel(num_times=120)
    times = np.append(honest.event_times_T[1:], np.datetime64("NaT"))
    ones = np.ones(honest.hold_TN.shape)
    return replace(honest, labels=make_labels(exec_times_T=times, exec_price_TN=ones, vol_TN=ones, horizon=horizon))


def cut(of: Panel, *, embargo: int = 0):
    times = (of.sample_times_T, of.labels.start_T, of.labels.end_T)
    sizes = {"train": 40, "validate": 20, "embargo": embargo}
    return [*walk_forward(*times, test=10, step=10, **sizes), final_fold(*times, **sizes)]


def test_purged_folds_are_clean_and_unpurged_ones_are_caught() -> None:
    of = long_labels()
    folds = cut(of)
    assert check_folds(of, folds).findings == ()
    for purged, feature in (("learn_T", "train label in fold 1"), ("validate_T", "validation label in fold 1")):
        everything = np.zeros(len(of.sample_times_T), dtype=bool)
        everything[folds[1].train if purged == "learn_T" else folds[1].validate] = True
        found = check_folds(of, [folds[0], replace(folds[1], **{purged: everything}), *folds[2:]]).findings
        assert {finding.feature for finding in found} == {feature}
        assert "must be purged" in found[0].message


def test_a_sample_learnt_from_whose_label_never_ended_is_caught() -> None:
    of = long_labels()
    ends = of.labels.end_T.copy()
    ends[5] = np.datetime64("NaT")
    learn_T = np.arange(len(ends)) < 20
    broken = replace(cut(of)[0], learn_T=learn_T)
    assert check_folds(replace(of, labels=replace(of.labels, end_T=ends)), [broken]).findings


def scaled(of: Panel, fold, *, until: str) -> np.ndarray:
    seen = of.x_TNF[fold.train.start : getattr(fold, until).stop]
    return (of.x_TNF[fold.train] - np.nanmean(seen, axis=(0, 1))) / np.nanstd(seen, axis=(0, 1))


def test_a_scaler_fitted_on_the_validation_set_is_caught() -> None:
    of = make_panel(num_times=120)
    fold = cut(of)[0]
    rng = np.random.default_rng(0)
    caught = check_preparation(partial(scaled, until="validate"), of, fold, rng=rng).findings
    assert {finding.feature for finding in caught} == {"f0", "f1", "f2"}
    clean = check_preparation(partial(scaled, until="train"), of, fold, rng=rng)
    assert clean.findings == ()
    assert clean.num_compared == 40 * 5 * 3


# The canary.

CANARIES = canary_rows(MARKET.bars("1d"), horizon=3, rng=np.random.default_rng(0))


def test_the_canary_is_the_future_return_and_known_when_that_has_happened() -> None:
    bars = MARKET.bars("1d").drop_duplicates(make.KEY[:2])
    own = bars[bars["entity_key"] == "A"].set_index("event_time").sort_index()
    rows = CANARIES[CANARIES["entity_key"] == "A"].set_index("event_time")
    want = (own["close"].shift(-3) / own["close"] - 1).dropna()
    np.testing.assert_allclose(rows[CANARY], want, atol=2e-6)
    assert rows[CANARY].is_unique
    known_bar = own["ingest_time"]
    ends = pd.concat([known_bar, known_bar.shift(-3)], axis=1).max(axis=1)[: len(rows)]
    assert list(rows["ingest_time"]) == list(ends)


def canary_panel(read) -> Panel:
    return panel(MARKET, features=lambda market: CANARIES, read=read)


def test_the_canary_goes_through_a_panel_unread_before_its_time() -> None:
    clean = check_canary(panel_reads(canary_panel(known)), CANARIES)
    assert clean.findings == ()
    assert clean.num_compared > 200


def test_a_join_on_event_time_only_reads_the_canary_early() -> None:
    caught = check_canary(panel_reads(canary_panel(by_event_time_only)), CANARIES).findings
    assert [finding.feature for finding in caught] == [CANARY]
    assert "became known at" in caught[0].message


def reads_canary(market: Market, *, early: bool) -> pd.DataFrame:
    """A builder whose input is the planted column, as one more table of the market."""
    rows = market.tables["onchain_1d"]
    bars = market.traded_bars("1d")[make.KEY]
    if early:
        return bars.merge(rows.drop(columns="ingest_time"), on=make.KEY[:2], how="left")
    return make.attach(bars, [rows])[[*make.KEY, CANARY]]


@pytest.mark.parametrize("early", [True, False])
def test_a_builder_that_reads_the_canary_early_is_caught_twice(early: bool) -> None:
    planted = make.market_of({**MARKET.tables, "onchain_1d": CANARIES})
    build = partial(reads_canary, early=early)
    by_value = check_canary(table_reads(build(planted)), CANARIES)
    by_truncation = check_features({"it": build}, planted, MOMENTS, rng=np.random.default_rng(0))["it"]
    assert bool(by_value.findings) is early
    assert bool(by_truncation.findings) is early


def test_a_canary_that_does_not_come_through_proves_nothing() -> None:
    with pytest.raises(LeakageError, match="so nothing was checked"):
        check_canary(panel_reads(panel(MARKET)), CANARIES)


def feast_store(folder: Path):
    """Feast over the canary's table, by the platform's own offline store."""
    from feast import Entity, FeatureService, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
    from feast.types import Float64, String

    ticker = Entity(name="asset", join_keys=["entity_key"], value_type=ValueType.STRING)
    source = FileSource(
        name="canary_table",
        path=str(folder / "canary"),
        timestamp_field="event_time",
        created_timestamp_column="ingest_time",
    )
    view = FeatureView(
        name="canary",
        entities=[ticker],
        schema=[Field(name="entity_key", dtype=String), Field(name=CANARY, dtype=Float64)],
        source=source,
        ttl=timedelta(days=10),
    )
    config = RepoConfig(
        project="canary",
        provider="local",
        registry={"registry_type": "sql", "path": f"sqlite:///{folder / 'registry.db'}"},
        offline_store={"type": "feature_repo.store.offline.BitemporalOfflineStore"},
        online_store=None,
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    store.apply([ticker, view, FeatureService(name="canary", features=[view])])
    return store


def test_the_canary_goes_the_whole_way_through_feast(tmp_path) -> None:
    rows = CANARIES.assign(written_at=pd.Timestamp(make.WRITTEN_AT), producer="test", producer_version="1", run_id="1")
    append_rows(tmp_path / "canary", rows)
    store = feast_store(tmp_path)

    def through_feast(_table, grid):
        return known_features(store, "canary", entities=grid.entities, sample_times_T=grid.sample_times_T)[1]

    clean = check_canary(panel_reads(canary_panel(through_feast)), CANARIES)
    assert clean.findings == ()
    assert clean.num_compared > 200


# The verdict.


LEAK = make_panel(num_times=60)


def leaking() -> Panel:
    return with_feature(LEAK.labels.y_TN, LEAK)


def verdict_of(checked: Checked):
    return make_verdict("planted_v1", checked, fingerprint="abc", checks=("panel",), moments=MOMENTS)


def test_a_verdict_is_read_back_as_it_was_written(tmp_path) -> None:
    for checked in (check_label_times(LEAK), check_label_in_features(leaking()), Checked()):
        verdict = verdict_of(checked)
        write_verdict(tmp_path, verdict)
        assert read_verdict(tmp_path) == verdict
        assert clean_verdict(tmp_path) is (bool(checked.num_compared) and not checked.findings)
    assert [path.name for path in tmp_path.iterdir()] == [VERDICT]


def test_only_a_clean_verdict_about_these_data_counts(tmp_path) -> None:
    assert not clean_verdict(tmp_path)
    write_verdict(tmp_path, verdict_of(Checked(num_compared=5)))
    assert clean_verdict(tmp_path)
    assert clean_verdict(tmp_path, fingerprint="abc")
    assert not clean_verdict(tmp_path, fingerprint="other data")
    write_verdict(tmp_path, verdict_of(Checked()))
    assert not clean_verdict(tmp_path), "nothing was compared"


@pytest.mark.parametrize("change", [{"clean": True}, {"findings": "none"}, {"num_compared": None}, {"extra": 1}])
def test_a_verdict_that_was_tampered_with_is_no_verdict(change, tmp_path) -> None:
    path = write_verdict(tmp_path, verdict_of(check_label_in_features(leaking())))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert not clean_verdict(tmp_path)
    with pytest.raises(LeakageError, match="not a leak verdict of this version"):
        read_verdict(tmp_path)


def test_no_verdict_says_what_to_do(tmp_path) -> None:
    with pytest.raises(LeakageError, match=f"has no {VERDICT}: nobody checked"):
        read_verdict(tmp_path)
