"""The cross-section in two times: against a plain reading of its rule, at every kind of moment."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from feature_repo.aggregates.attach import aggregates, attach
from feature_repo.aggregates.cross_section import COLUMNS, WINDOW, cross_section, cross_section_versions
from feature_repo.market.directory import read_market_directory
from feature_repo.market.schema import Market, MarketInfo

ORIGIN = pd.Timestamp("2024-01-01", tz="UTC")
KEYS = ["entity_key", "event_time", "ingest_time"]
HOUR = pd.Timedelta(hours=1)
TICK = HOUR / 288
EQUITIES = Path(__file__).resolve().parents[3] / "../shared/data/us_equities_2013_2018"


def market_of(bars: pd.DataFrame, *, benchmark: str | None = None) -> Market:
    info = MarketInfo(name="test", calendar="24/7", benchmark=benchmark)
    tables = {"bars_1h": bars.astype(dict.fromkeys(KEYS[1:], "datetime64[us, UTC]"))}
    return Market(info=info, tables=tables, quarantine=pd.DataFrame(), flags=pd.DataFrame(), fingerprint="")


def versions(bars: pd.DataFrame, **facts: str) -> pd.DataFrame:
    found = cross_section_versions(market_of(bars, **facts), "1h")
    assert found is not None
    return found


def plain_bars(num_bars: int, entities: str = "ABCDE", *, lag: timedelta = timedelta(minutes=1)) -> pd.DataFrame:
    """Bars of every entity at every hour, all known at the same time after it."""
    rng = np.random.default_rng(len(entities))
    move = rng.normal(0.0, 0.01, (num_bars, 1)) + rng.normal(0.0, 0.01, (num_bars, len(entities)))
    event = ORIGIN + pd.to_timedelta(np.repeat(np.arange(num_bars), len(entities)), unit="h")
    return pd.DataFrame(
        {
            "entity_key": np.tile(list(entities), num_bars),
            "event_time": event,
            "ingest_time": event + lag,
            "close": 100.0 * np.exp(move.cumsum(axis=0)).ravel(),
            "volume": rng.integers(1, 1000, num_bars * len(entities)).astype(float),
        }
    )


def messy_bars(seed: int, *, num_bars: int = 84) -> pd.DataFrame:
    """Bars that come one by one, some late, restated, missing, stray, never known; one asset begins, one ends."""
    rng = np.random.default_rng(seed)
    bars = plain_bars(num_bars, "ABCDEFG")
    hour = (bars["event_time"] - ORIGIN) // HOUR
    bars = bars[~((bars["entity_key"] == "F") & (hour < 40)) & ~((bars["entity_key"] == "G") & (hour > 66))]
    bars = bars[rng.random(len(bars)) > 0.02]
    seconds = np.where(
        rng.random(len(bars)) < 0.03, rng.integers(0, 20_000, len(bars)), rng.integers(-2, 30, len(bars))
    )
    bars["ingest_time"] = bars["event_time"] + pd.to_timedelta(seconds, unit="s")
    again = bars.sample(n=12, random_state=seed)
    again = again.assign(
        close=again["close"] * rng.uniform(0.9, 1.1, 12),
        ingest_time=again["ingest_time"] + pd.to_timedelta(rng.integers(0, 90_000, 12), unit="s"),
    )
    stray = bars[bars["entity_key"] == "A"].sample(n=2, random_state=seed)
    stray = stray.assign(event_time=stray["event_time"] + HOUR / 3, ingest_time=stray["ingest_time"] + HOUR / 3)
    everything = pd.concat([bars, again, stray], ignore_index=True)
    everything.loc[rng.random(len(everything)) < 0.005, "ingest_time"] = pd.NaT
    return everything.sample(frac=1.0, random_state=seed, ignore_index=True)


def known(table: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """Of what is known the last row of each bar."""
    rows = table[(table["event_time"] <= moment) & (table["ingest_time"] <= moment)]
    return rows.sort_values(KEYS, kind="stable").drop_duplicates(KEYS[:2], keep="last")


def completions(bars: pd.DataFrame) -> list[pd.Timestamp]:
    """By the words of the rule, one bar time after the other."""
    bars = bars.dropna(subset=["ingest_time"])
    first = bars.assign(known=bars[KEYS[1:]].max(axis=1)).groupby(["event_time", "entity_key"])["known"].min()
    found = []
    for event in sorted(bars["event_time"].unique()):
        earlier = first[(first <= event) & (first.index.get_level_values(0) < event)]
        counts = earlier.groupby(level=0).size()
        if not (counts >= 3).any():
            continue
        expected = earlier[counts[counts >= 3].index.max()].index
        arrived = first[event].reindex(expected)
        if arrived.notna().all():
            found.append(arrived.max())
    return sorted(found)


def taken_in_by(moment: pd.Timestamp, completed: list[pd.Timestamp]) -> pd.Timestamp:
    """The last tick or completion up to the moment: what was known then is in the versions."""
    tick = ORIGIN + (moment - ORIGIN) // TICK * TICK
    return max([tick, *(at for at in completed if at <= moment)])


def direct(bars: pd.DataFrame, moment: pd.Timestamp) -> pd.DataFrame:
    """Each bar's columns from the panel of the bars known at the moment, one window at a time."""
    rows = known(bars, moment)
    close, turnover = (
        rows.assign(turnover=rows["close"] * rows["volume"]).pivot(
            index="event_time", columns="entity_key", values=name
        )
        for name in ("close", "turnover")
    )
    live = close.notna().sum(axis=1) >= 3
    close, turnover = close[live], turnover[live]
    parts = []
    for at in range(len(close)):
        window = slice(max(0, at - WINDOW), at + 1)
        columns = cross_section(close.iloc[window].to_numpy(), turnover.iloc[window].to_numpy(), num_rows=1)
        frame = pd.DataFrame({name: values[0] for name, values in columns.items()}, index=close.columns)
        parts.append(frame[close.iloc[at].notna()].assign(event_time=close.index[at]).reset_index())
    return pd.concat(parts) if parts else pd.DataFrame(columns=[*KEYS[:2], *COLUMNS])


def comparable(rows: pd.DataFrame) -> pd.DataFrame:
    """By bar, without the bars of which all is null: a null and no row say the same."""
    return rows.set_index(KEYS[:2])[list(COLUMNS)].astype(float).dropna(how="all").sort_index()


def agrees(found: pd.DataFrame, bars: pd.DataFrame, moment: pd.Timestamp, completed: list[pd.Timestamp]) -> bool:
    """Bit for bit."""
    want, got = comparable(direct(bars, taken_in_by(moment, completed))), comparable(known(found, moment))
    return list(want.index) == list(got.index) and np.array_equal(want.to_numpy(), got.to_numpy(), equal_nan=True)


MOMENTS = [ORIGIN + hours * HOUR for hours in (-1, 3.002, 40, 63.0033, 70.5, 75.0061, 83.1, 100)]


@pytest.mark.parametrize("seed", range(2))
def test_at_every_moment_the_versions_say_what_the_panel_known_then_says(seed: int) -> None:
    bars = messy_bars(seed)
    found, completed = versions(bars), completions(bars)
    assert not found.duplicated(KEYS).any()
    assert len(completed) > 20
    for moment in [*MOMENTS, completed[-1], completed[-1] - pd.Timedelta(microseconds=1)]:
        assert agrees(found, bars, moment, completed), moment


def assert_deleting_the_future_changes_nothing(bars: pd.DataFrame, moment: pd.Timestamp) -> None:
    everything = versions(bars)
    past = versions(bars[(bars["event_time"] <= moment) & (bars["ingest_time"] <= moment)])
    pd.testing.assert_frame_equal(
        past[past["ingest_time"] <= moment].reset_index(drop=True),
        everything[everything["ingest_time"] <= moment].reset_index(drop=True),
        check_exact=True,
    )


def test_deleting_the_future_changes_nothing_that_was_known() -> None:
    bars = messy_bars(5)
    for moment in MOMENTS[2:]:
        assert_deleting_the_future_changes_nothing(bars, moment)


def test_what_a_bar_time_waits_for_is_settled_at_its_end() -> None:
    """Neither a bar nor a whole bar time before it that becomes known later decides when it is complete."""
    bars = plain_bars(6, lag=timedelta(seconds=1))
    is_late = (bars["entity_key"] == "E") & (bars["event_time"] >= ORIGIN + 3 * HOUR)
    late = bars.assign(ingest_time=bars["ingest_time"].where(~is_late, ORIGIN + 9 * HOUR))
    half_past = bars[bars["event_time"] == ORIGIN + 3 * HOUR]
    between = half_past.assign(event_time=half_past["event_time"] + HOUR / 2, ingest_time=ORIGIN + 9 * HOUR)
    moment = ORIGIN + 4 * HOUR + pd.Timedelta(seconds=1)
    for table, num_assets in ((late, 4), (pd.concat([bars, between]), 5)):
        assert_deleting_the_future_changes_nothing(table, moment)
        found = versions(table)
        is_newest = (found["event_time"] == ORIGIN + 4 * HOUR) & (found["ingest_time"] == moment)
        assert is_newest.sum() == num_assets


def test_of_two_restatements_within_a_tick_the_later_counts() -> None:
    bars = plain_bars(4, lag=timedelta(0))
    last = bars.iloc[[-1]]
    sooner, later = (
        last.assign(close=close, ingest_time=last["event_time"] + pd.Timedelta(seconds=seconds))
        for close, seconds in ((90.0, 1), (80.0, 2))
    )
    got, want = versions(pd.concat([later, sooner, bars])), versions(pd.concat([bars, later]))
    pd.testing.assert_frame_equal(got, want)


def test_values_that_become_known_later_break_the_rule() -> None:
    bars = messy_bars(0)
    completed = completions(bars)
    final = bars.dropna().sort_values("ingest_time").drop_duplicates(KEYS[:2], keep="last")
    first = bars.dropna().sort_values("ingest_time").drop_duplicates(KEYS[:2])
    as_if = final.drop(columns="ingest_time").merge(first[KEYS], on=KEYS[:2])
    assert not all(agrees(versions(as_if), bars, moment, completed) for moment in MOMENTS)


def test_ranks_among_the_final_survivors_break_the_rule() -> None:
    bars = messy_bars(0)
    completed = completions(bars)
    ended = bars["entity_key"] == "G"
    broken = pd.concat([versions(bars[~ended]), versions(bars)[lambda found: found["entity_key"] == "G"]])
    broken["return_rank_1"] = broken["return_rank_1"].fillna(0.5)
    assert not any(agrees(broken, bars, moment, completed) for moment in MOMENTS[2:])


def test_rounding_arrivals_down_breaks_the_rule() -> None:
    bars = messy_bars(0)
    completed = completions(bars)
    found = versions(bars)
    early = found.assign(ingest_time=np.maximum(found["ingest_time"] - TICK, found["event_time"]))
    assert not all(agrees(early, bars, moment, completed) for moment in MOMENTS)


def test_an_ordinary_bar_has_one_version_at_the_moment_its_last_asset_arrives() -> None:
    bars = plain_bars(5)
    rng = np.random.default_rng(0)
    bars["ingest_time"] = bars["event_time"] + pd.to_timedelta(rng.integers(100, 12_400, len(bars)), unit="ms")
    found = versions(bars)
    last = bars.groupby("event_time")["ingest_time"].max()
    assert len(found) == 4 * 5, "the first time has no return, and each other one version for each asset"
    assert (found["ingest_time"] == found["event_time"].map(last)).all()


def test_a_slow_bar_time_has_a_version_a_tick_not_one_an_asset() -> None:
    entities = "".join(map(chr, range(97, 117)))
    bars = plain_bars(3, entities)
    bars["ingest_time"] = bars["event_time"] + pd.to_timedelta(np.tile(np.arange(20) * 1.7 + 0.1, 3), unit="s")
    found = versions(bars)
    moments = found.groupby("event_time")["ingest_time"].unique().iloc[-1]
    assert list(moments - found["event_time"].max()) == [TICK, 2 * TICK, pd.Timedelta(seconds=19 * 1.7 + 0.1)]


def test_exact_ticks_stay_and_what_comes_after_completion_waits_for_the_next() -> None:
    bars = plain_bars(4, lag=timedelta(0))
    restated = bars.iloc[[-1]].assign(close=90.0, ingest_time=bars["event_time"].iloc[-1] + 1.5 * TICK)
    found = versions(pd.concat([bars, restated]))
    late = found[found["ingest_time"] > found["event_time"]]
    assert len(found) == 3 * 5 + 5
    assert (late["ingest_time"] - late["event_time"] == 2 * TICK).all()
    assert (late["event_time"] == bars["event_time"].max()).all()


def test_a_restated_bar_restates_its_windows_and_no_more() -> None:
    bars = plain_bars(170)
    when = ORIGIN + 200 * HOUR
    at = bars.index[(bars["entity_key"] == "B") & (bars["event_time"] == ORIGIN + 80 * HOUR)]
    restated = bars.loc[at].assign(close=lambda row: row["close"] * 1.1, ingest_time=when)
    before, after = versions(bars), versions(pd.concat([bars, restated]))
    pd.testing.assert_frame_equal(after[after["ingest_time"] < when].reset_index(drop=True), before)
    added = after[after["ingest_time"] >= when]
    assert sorted(added["event_time"].unique()) == [ORIGIN + hour * HOUR for hour in range(80, 80 + WINDOW + 1)]
    again = bars.loc[at].assign(ingest_time=when)
    pd.testing.assert_frame_equal(versions(pd.concat([bars, again])), before)


def test_a_stray_bar_cuts_no_return() -> None:
    bars = plain_bars(10)
    stray = bars.iloc[[22]].assign(event_time=lambda row: row["event_time"] + HOUR / 2)
    got = versions(pd.concat([bars, stray.assign(ingest_time=stray["event_time"])]))
    pd.testing.assert_frame_equal(got.drop(columns="ingest_time"), versions(bars).drop(columns="ingest_time"))


def test_ranks_are_places_among_the_assets_known_then() -> None:
    entities = ["A", "B", "C", "D"]
    close = np.array([[1.0, 1.0, 1.0, 1.0], [1.1, 1.2, 1.2, np.nan], [1.1, 1.1, 1.3, np.nan]])
    bars = pd.DataFrame(close, columns=entities, index=[ORIGIN + hour * HOUR for hour in range(3)])
    bars = bars.stack().rename("close").rename_axis(["event_time", "entity_key"]).reset_index()
    bars["ingest_time"] = bars["event_time"]
    ranks = versions(bars).pivot(index="event_time", columns="entity_key", values="return_rank_1")
    np.testing.assert_allclose(ranks.to_numpy()[0], [1 / 6, 4 / 6, 4 / 6])
    np.testing.assert_allclose(ranks.to_numpy()[1], [3 / 6, 1 / 6, 5 / 6])
    assert list(ranks.columns) == ["A", "B", "C"]


def test_leaders_are_the_most_traded_fifth() -> None:
    bars = plain_bars(80, "ABCDEFGHIJ")
    bars["volume"] *= np.tile([1.0, 1.0, 1e6, 1.0, 1.0, 1.0, 1.0, 1e5, 1.0, 1.0], 80)
    got = versions(bars).drop_duplicates("event_time").set_index("event_time")["leader_return"]
    close = bars.pivot(index="event_time", columns="entity_key", values="close")
    want = np.log(close / close.shift())[["C", "H"]].mean(axis=1)
    assert got.isna().sum() == WINDOW - 2, "its turnover is known a bar sooner than its return"
    np.testing.assert_allclose(got.dropna(), want[got.dropna().index], rtol=1e-9)


def columns_of(found: pd.DataFrame, name: str) -> np.ndarray:
    return found.pivot(index="event_time", columns="entity_key", values=name).to_numpy()


def test_the_market_is_the_mean_and_the_others_leave_one_out() -> None:
    bars = plain_bars(6)
    found = versions(bars)
    close = bars.pivot(index="event_time", columns="entity_key", values="close")
    returns = np.log(close / close.shift()).to_numpy()[1:]
    np.testing.assert_allclose(columns_of(found, "market_return")[:, 0], returns.mean(axis=1))
    np.testing.assert_allclose(columns_of(found, "market_dispersion")[:, 0], returns.std(axis=1, ddof=1))
    np.testing.assert_allclose(columns_of(found, "market_breadth")[:, 0], (returns > 0).mean(axis=1))
    for n in range(5):
        np.testing.assert_allclose(columns_of(found, "others_return")[:, n], np.delete(returns, n, axis=1).mean(axis=1))


def test_the_benchmark_is_no_asset_and_two_assets_are_no_cross_section() -> None:
    bars = plain_bars(6, "ABCDX")
    without = bars[bars["entity_key"] != "X"]
    pd.testing.assert_frame_equal(versions(bars, benchmark="X"), versions(without))
    assert cross_section_versions(market_of(plain_bars(6, "AB")), "1h") is None
    assert cross_section_versions(market_of(plain_bars(6, "ABX"), benchmark="X"), "1h") is None


def test_without_volumes_there_are_no_leaders_and_nothing_else_is_missing() -> None:
    bars = plain_bars(70)
    with_volume, without = versions(bars), versions(bars.drop(columns="volume"))
    assert list(with_volume.columns) == [*KEYS, *COLUMNS]
    pd.testing.assert_frame_equal(without, with_volume.drop(columns="leader_return"))


def test_it_is_found_and_attaches_to_its_bars() -> None:
    assert aggregates()["cross_section"].versions is cross_section_versions
    bars = plain_bars(5).astype(dict.fromkeys(KEYS[1:], "datetime64[us, UTC]"))
    attached = attach(bars, [versions(bars)])
    assert len(attached) == 25, "all is known with the last bar, so no bar is restated"
    assert attached[attached["event_time"] > ORIGIN]["others_return"].notna().all()


def test_real_stocks_are_known_with_their_bars() -> None:
    if not EQUITIES.is_dir():
        pytest.skip("the shared data set us_equities_2013_2018 is not beside the repository")
    market = read_market_directory(EQUITIES, now=datetime(2026, 1, 1, tzinfo=UTC))
    found = cross_section_versions(market, "1d")
    assert found is not None
    bars = market.bars("1d")
    assert len(found) == len(bars) - 100
    assert (found["ingest_time"] - found["event_time"] == pd.Timedelta(minutes=15)).all()
    assert found["market_return"].notna().all()
    assert found[list(COLUMNS)].isna().mean().max() < 0.05
    shares = found.drop_duplicates("event_time").set_index("event_time")["market_pc1_share"]
    assert 0.1 < shares.min() < shares.max() < 0.7
    assert shares["2015-09"].mean() > 1.5 * shares["2014-07"].mean(), "August 2015 moved everything together"
