"""Cross-asset features against their definitions, and in two times from a market's bars to the feature rows."""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest

from feature_repo.aggregates.attach import attach
from feature_repo.aggregates.cross_section import cross_section_versions
from feature_repo.pipelines.build import NotApplicableError, build_features
from feature_repo.pipelines.cross_asset import PIPELINE
from tests.feature_repo.aggregates.market_makers import TIMES, known, toy_market

NUM_BARS = 200
NAMES = [feature.name for feature in PIPELINE.features]
INPUTS = sorted({name for feature in PIPELINE.features for name in feature.inputs})


def columns(seed: int = 0) -> dict[str, np.ndarray]:
    """Any bars with any columns of the cross-section."""
    rng = np.random.default_rng(seed)
    given = {name: rng.normal(0.0, 0.02, NUM_BARS) for name in INPUTS}
    given |= {name: rng.uniform(0.1, 0.9, NUM_BARS) for name in INPUTS if name.startswith(("market_", "return_rank"))}
    return given | {"close": 100.0 * np.exp(rng.normal(0.0, 0.02, NUM_BARS).cumsum())}


def plain(c: pd.DataFrame) -> dict[str, pd.Series]:
    """The definitions in pandas."""
    own, market, leaders = np.log(c.close).diff(), c.others_return, c.leader_return

    def beta(y: pd.Series, x: pd.Series, window: int) -> pd.Series:
        return y.rolling(window).cov(x) / x.rolling(window).var()

    slope = beta(own, market, 63)
    alpha = own.rolling(63).mean() - slope * market.rolling(63).mean()
    unexplained = own.rolling(63).var() * (1 - own.rolling(63).corr(market) ** 2) * 62 / 61
    absorption = c.market_absorption
    return {
        "beta_21": beta(own, market, 21),
        "beta_63": slope,
        "correlation_21": own.rolling(21).corr(market),
        "correlation_63": own.rolling(63).corr(market),
        "idiosyncratic_vol_63": np.sqrt(unexplained),
        "residual_return_1": own - slope * market,
        "residual_momentum_63": 63 * alpha / np.sqrt(63 * unexplained),
        "relative_strength_63": (own - market).rolling(63).sum(),
        "autocorrelation_63": own.rolling(63).corr(own.shift()),
        "lag_to_market_63": own.rolling(63).corr(market.shift()),
        "lead_of_market_63": market.rolling(63).corr(own.shift()),
        "lag_to_leaders_63": own.rolling(63).corr(leaders.shift()),
        "leader_pull_1": beta(own, leaders.shift(), 63) * leaders,
        **{name: c[name] for name in ("pc1_loading", "pc2_loading", "pc3_loading")},
        "pc_explained_63": c.pc1_loading**2 + c.pc2_loading**2 + c.pc3_loading**2,
        "pc_residual_1": c.pc_residual,
        "pc_residual_5": c.pc_residual.rolling(5).sum() / np.sqrt(5),
        "pc1_momentum_21": c.pc1_return.rolling(21).sum(),
        "pc_tilt_return_1": c.pc2_loading * c.pc2_return + c.pc3_loading * c.pc3_return,
        "market_vol_21": c.market_return.rolling(21).std(),
        "dispersion_21": c.market_dispersion.rolling(21).mean(),
        "breadth_5": c.market_breadth.rolling(5).mean(),
        "average_correlation_63": c.market_correlation,
        "correlation_change_21": c.market_correlation.diff(21),
        "pc1_share_63": c.market_pc1_share,
        "absorption_shift": (absorption.rolling(15).mean() - absorption.rolling(63).mean())
        / absorption.rolling(63).std(),
        **{f"return_rank_{lag}": c[f"return_rank_{lag}"] for lag in (1, 21, 63)},
    }


def test_features_equal_the_definition() -> None:
    got, want = PIPELINE.compute(columns()), plain(pd.DataFrame(columns()))
    assert set(got) == set(want) == set(NAMES)
    first = PIPELINE.warmup_bars - 1
    for name, series in want.items():
        assert np.isnan(got[name][:first]).all(), name
        np.testing.assert_allclose(got[name][first:], series.to_numpy()[first:], 1e-8, 1e-12, err_msg=name)


def test_value_is_a_function_of_exactly_the_last_warmup_bars() -> None:
    full = PIPELINE.compute(columns())
    for stop in (PIPELINE.warmup_bars, 130, NUM_BARS):
        cut = PIPELINE.compute({name: x[stop - PIPELINE.warmup_bars : stop].copy() for name, x in columns().items()})
        for name in NAMES:
            assert cut[name][-1] == full[name][stop - 1], name


def test_the_oldest_bar_of_the_warmup_matters_and_the_one_before_does_not() -> None:
    oldest, before = NUM_BARS - PIPELINE.warmup_bars, PIPELINE.compute(columns())
    for bar, matters in ((oldest, True), (oldest - 1, False)):
        changed = columns()
        for series in changed.values():
            series[bar] *= 1.5
        after = PIPELINE.compute(changed)
        assert any(after[name][-1] != before[name][-1] for name in NAMES) is matters


def test_a_turned_component_turns_its_loadings_and_no_other_feature() -> None:
    turned = columns()
    for name in ("pc2_loading", "pc2_return", "pc3_loading", "pc3_return"):
        turned[name] *= np.where(np.arange(NUM_BARS) % 2, -1.0, 1.0)
    before, after = PIPELINE.compute(columns()), PIPELINE.compute(turned)
    changed = {name for name in NAMES if not np.array_equal(before[name], after[name], equal_nan=True)}
    assert changed == {"pc2_loading", "pc3_loading"}


def test_who_follows_has_a_lag_and_who_leads_a_lead() -> None:
    given = columns(1)
    market = given["others_return"]
    follower = np.append(0.0, market[:-1])
    leader = np.append(market[1:], 0.0)
    for own, name in ((follower, "lag_to_market_63"), (leader, "lead_of_market_63")):
        got = PIPELINE.compute(given | {"close": np.exp(own.cumsum())})
        np.testing.assert_allclose(got[name][70:-1], 1.0, rtol=1e-9)


def bars(seed: int = 0, *, entities: str = "ABCDEF", num_bars: int = 145) -> pd.DataFrame:
    """Daily bars that arrive within minutes, a few of them days late or restated."""
    rng = np.random.default_rng(seed)
    move = rng.normal(0.0, 0.01, (num_bars, 1)) + rng.normal(0.0, 0.01, (num_bars, len(entities)))
    event = pd.Timestamp("2024-01-01", tz="UTC") + pd.to_timedelta(np.repeat(np.arange(num_bars), len(entities)), "D")
    table = pd.DataFrame(
        {
            "entity_key": np.tile(list(entities), num_bars),
            "event_time": event,
            "ingest_time": event + pd.to_timedelta(rng.integers(0, 900, len(event)), unit="s"),
            "close": 100.0 * np.exp(move.cumsum(axis=0)).ravel(),
            "volume": rng.integers(1, 1000, len(event)).astype(float),
        }
    )
    late = rng.choice(len(table), 4, replace=False)
    table.loc[late, "ingest_time"] += pd.Timedelta(days=2)
    again = table.sample(n=4, random_state=seed)
    restated = again.assign(close=again["close"] * 1.05, ingest_time=again["ingest_time"] + pd.Timedelta(days=5))
    return pd.concat([table, restated], ignore_index=True).astype(TIMES)


def attached(table: pd.DataFrame) -> pd.DataFrame:
    found = cross_section_versions(toy_market(bars_1d=table), "1d")
    return attach(table, [] if found is None else [found])


def build(table: pd.DataFrame) -> pd.DataFrame:
    return build_features(
        PIPELINE, table, producer="test", producer_version="a", run_id="r", written_at=datetime(2026, 1, 1, tzinfo=UTC)
    )


def test_rows_known_at_any_time_are_the_features_of_the_bars_known_then() -> None:
    """Bit for bit, through the aggregate, the joined bars and the feature rows."""
    table = bars()
    features, market = build(attached(table)), attached(table)
    complete = features.dropna()
    assert complete["event_time"].nunique() > 10, "absorption_shift needs 64 times and 63 windows"
    for hours in (24 * 130.0, 24 * 139 + 0.2):
        moment = table["event_time"].min() + pd.Timedelta(hours=hours)
        past = market_at(table, moment)
        got = known(features, moment).set_index(["entity_key", "event_time"])
        for entity, rows in known(market, moment).sort_values("event_time").groupby("entity_key"):
            window = rows.tail(PIPELINE.warmup_bars)
            computed = PIPELINE.compute({name: window[name].to_numpy(float) for name in INPUTS})
            row = got.loc[(entity, window["event_time"].iloc[-1])]
            np.testing.assert_array_equal([computed[name][-1] for name in NAMES], row[NAMES].to_numpy(float))
        pd.testing.assert_frame_equal(
            past[past["ingest_time"] <= moment].reset_index(drop=True),
            features[features["ingest_time"] <= moment].reset_index(drop=True),
            check_exact=True,
        )


def market_at(table: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """The feature rows of a market from which the future is deleted."""
    return build(attached(table[(table["event_time"] <= moment) & (table["ingest_time"] <= moment)]))


def test_two_assets_are_no_cross_section_and_closes_only_leave_the_leaders_out() -> None:
    with pytest.raises(NotApplicableError, match="others_return"):
        build(attached(bars(entities="AB", num_bars=70)))
    few = build(attached(bars(num_bars=70).drop(columns="volume")))
    newest = few.sort_values("event_time").iloc[-1]
    assert np.isnan([newest["lag_to_leaders_63"], newest["leader_pull_1"]]).all()
    assert np.isfinite(newest["lag_to_market_63"])
