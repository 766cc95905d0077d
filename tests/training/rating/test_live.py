"""Live snapshots: the same figures as out of sample, up to the newest price, once a slot."""

import json
from dataclasses import asdict, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

from feature_repo.market.calendar import price_grid
from feature_repo.market.costs import CostModel
from feature_repo.market.schema import Market, MarketInfo
from training.rating.engine import rate
from training.rating.live import (
    SnapshotError,
    SnapshotStore,
    live_fits,
    live_panel,
    newest_prices,
    slot_of,
    snapshot,
)
from training.rating.tracks import build_tracks
from training.signals import SignalStore
from training.simulate import simulate
from training.trainer import FoldResult

COSTS = CostModel()
NUM_BARS, FIRST = 130, 90
ENTITIES = ("A", "B", "C", "D")
AT = datetime(2024, 5, 10, 0, 7, 31, tzinfo=UTC)  # the last bar ended and was known 7 minutes ago
THRESHOLDS = {"momentum": {"m1": 0.0, "m2": 0.5}, "reversal": {"r1": 0.0}}


@pytest.fixture(scope="module")
def bars():
    rng = np.random.default_rng(0)
    ends = pd.date_range(end="2024-05-10", periods=NUM_BARS, tz="UTC")
    close_TN = 100 * np.exp(np.cumsum(0.02 * rng.standard_normal((NUM_BARS, 4)), axis=0))
    frame = pd.DataFrame(close_TN, index=pd.Index(ends, name="event_time"), columns=list(ENTITIES))
    frame = frame.melt(ignore_index=False, var_name="entity_key", value_name="close").reset_index()
    return frame.assign(ingest_time=frame["event_time"] + pd.Timedelta("2min"), volume=1e5)


@pytest.fixture(scope="module")
def grid(bars):
    return price_grid(bars, calendar="24/7", interval="1d")


@pytest.fixture
def signals(tmp_path, grid):
    """The same forecasts as live and as out-of-sample signals; momentum's model was refitted on the way."""
    store = SignalStore(root=tmp_path / "signals")
    scores = np.random.default_rng(1).standard_normal((2, NUM_BARS - FIRST, 4))
    rows = range(FIRST, NUM_BARS)
    parts = [("momentum", "m1", 0, rows[:25]), ("momentum", "m2", 0, rows[25:]), ("reversal", "r1", 1, rows)]
    for kind in ("oos", "live"):
        for variant, version, k, bars_of in parts:
            times = pd.DatetimeIndex(grid.sample_times_T[list(bars_of)]).tz_localize("UTC").repeat(4)
            ends = pd.DatetimeIndex(grid.event_times_T[list(bars_of)]).tz_localize("UTC").repeat(4)
            frame = {
                "variant": variant,
                "interval": "1d",
                "horizon": 1,
                "entity_key": list(ENTITIES) * len(bars_of),
                "event_time": ends,
                "made_at": times,
                "model_version": version,
                "kind": kind,
                "score": scores[k, [row - FIRST for row in bars_of]].ravel(),
                "confidence": 0.5,
            }
            store.write(pd.DataFrame(frame))
    return store


def closes(grid):
    return grid.close_TN[-1]


def take(signals, grid, history, *, at=AT, newest=None):
    panel = live_panel(grid, closes(grid) if newest is None else newest, horizon=1)
    return snapshot(
        history,
        signals,
        THRESHOLDS,
        panel,
        np.zeros((1, NUM_BARS)),
        at=at,
        costs=COSTS,
        periods_per_year=365,
        active=["reversal"],
        num_parameters={"momentum": 12},
    )


def test_live_and_out_of_sample_figures_agree_on_every_bar(signals, grid):
    panel = live_panel(grid, closes(grid), horizon=1)
    oos = build_tracks(signals, THRESHOLDS, panel, costs=COSTS, kind="oos")
    live = build_tracks(signals, THRESHOLDS, panel, costs=COSTS, kind="live")
    shared = len(oos.event_times_T)
    assert len(live.event_times_T) == shared + 1  # the decision that was executed at the last close is open
    for name in ("net_VT", "gross_VT", "turnover_VT", "ic_VT"):
        np.testing.assert_array_equal(getattr(live, name)[:, :shared], getattr(oos, name))
    np.testing.assert_array_equal(live.decay_VH, oos.decay_VH)
    assert np.isnan(live.ic_VT[:, -1]).all()


def test_the_open_bar_earns_up_to_the_newest_price_and_nothing_else_moves(signals, grid, tmp_path):
    moved = closes(grid) * [1.02, 0.99, 1.0, 1.01]
    before, after = (
        build_tracks(signals, THRESHOLDS, live_panel(grid, newest, horizon=1), costs=COSTS, kind="live")
        for newest in (closes(grid), moved)
    )
    np.testing.assert_array_equal(after.net_VT[:, :-1], before.net_VT[:, :-1])
    np.testing.assert_array_equal(after.decay_VH, before.decay_VH)  # no forecast is held against half a bar
    np.testing.assert_array_equal(after.ic_VT, before.ic_VT)
    signs = signals.read("reversal", model_versions=["r1"], kind="live")
    score_TN = signs["score"].to_numpy().reshape(-1, 4)[:-1]  # the last decision isn't executed yet
    hold_TN = grid.close_TN[FIRST + 2 :] / grid.close_TN[FIRST + 1 : -1] - 1.0
    book = simulate(score_TN, np.vstack([hold_TN, moved / closes(grid) - 1.0]), threshold=0.0, costs=COSTS)
    np.testing.assert_allclose(after.net_VT[1], book.net_T, rtol=1e-12)
    assert after.gross_VT[1, -1] != 0 == before.gross_VT[1, -1]


def test_a_snapshot_is_the_rating_of_the_live_tracks(signals, grid, tmp_path):
    rows = take(signals, grid, SnapshotStore(root=tmp_path / "history"))
    panel = live_panel(grid, closes(grid), horizon=1)
    tracks = build_tracks(signals, THRESHOLDS, panel, costs=COSTS, kind="live")
    expected = rate(
        tracks, np.zeros((1, 39)), periods_per_year=365, active=["reversal"], num_parameters={"momentum": 12}
    ).table
    pd.testing.assert_frame_equal(rows.set_index("variant").drop(columns=["at", "bar"]), expected, check_names=False)
    assert rows["at"].unique().tolist() == [pd.Timestamp("2024-05-10 00:05", tz="UTC")]
    assert rows["bar"].unique().tolist() == [pd.Timestamp("2024-05-09", tz="UTC")]
    assert rows.loc[rows["variant"] == "momentum", "num_days"].tolist() == [39]
    assert np.isfinite(rows["sharpe_30"]).all()


def test_a_slots_first_snapshot_stays_and_the_next_slot_adds(signals, grid, tmp_path):
    history = SnapshotStore(root=tmp_path / "history")
    first = take(signals, grid, history)
    later = AT + timedelta(minutes=2)  # the same slot, other prices: as a retried flow would
    again = take(signals, grid, history, at=later, newest=closes(grid) * [1.1, 1, 1, 1])
    pd.testing.assert_frame_equal(again, first, check_dtype=False)
    history.write(first.assign(score=0.0), slot=slot_of(later))  # nor does a second writer of the slot win
    pd.testing.assert_frame_equal(history.at(slot_of(AT)), first, check_dtype=False)
    take(signals, grid, history, at=AT + timedelta(minutes=5), newest=closes(grid) * [1.1, 1, 1, 1])
    kept = history.read(AT - timedelta(days=1), AT + timedelta(days=1))
    assert len(kept) == 4
    assert not kept.duplicated(["at", "variant"]).any()
    assert kept["at"].is_monotonic_increasing
    assert kept.groupby("variant")["sharpe_net"].nunique().tolist() == [2, 2]
    assert [path.name for path in sorted(tmp_path.glob("history/*/*"))] == ["0005.parquet", "0010.parquet"]


def test_history_is_read_from_a_moment_up_to_another(tmp_path):
    history = SnapshotStore(root=tmp_path)
    slots = [datetime(2024, 5, day, hour, tzinfo=UTC) for day in (1, 2) for hour in (0, 23)]
    for slot in slots:
        rows = pd.DataFrame({"at": [pd.Timestamp(slot)], "variant": ["v"], "score": [0.5]})
        history.write(rows if slot != slots[3] else rows.assign(new=1.0), slot=slot)  # a later version's new column
    assert history.read(slots[1], slots[3])["at"].tolist() == [pd.Timestamp(slot) for slot in slots[1:3]]
    assert history.read(slots[2], slots[3] + timedelta(hours=1))["new"].isna().tolist() == [True, False]
    assert history.read(slots[3] + timedelta(hours=1), slots[3] + timedelta(days=9)).empty


def test_slots_are_five_minutes_of_utc():
    berlin = datetime.fromisoformat("2024-05-10T02:07:31.5+02:00")
    assert slot_of(berlin) == datetime(2024, 5, 10, 0, 5, tzinfo=UTC)
    assert slot_of(slot_of(berlin)) == slot_of(berlin)
    with pytest.raises(SnapshotError, match="needs a time zone"):
        slot_of(datetime(2024, 5, 10))  # noqa: DTZ001


def test_before_the_first_live_bar_everyone_is_listed_and_nothing_is_known(grid, tmp_path):
    signals = SignalStore(root=tmp_path / "none")
    panel = live_panel(grid, closes(grid), horizon=1)
    rows = snapshot(
        SnapshotStore(root=tmp_path),
        signals,
        {"momentum": {}, "reversal": {}},
        panel,
        np.zeros((1, NUM_BARS)),
        at=AT,
        costs=COSTS,
        periods_per_year=365,
    )
    assert rows["variant"].tolist() == ["momentum", "reversal"]
    assert rows["num_days"].tolist() == [0, 0]
    assert rows["bar"].isna().all()
    assert rows["sharpe_net"].isna().all()


def test_live_panel_knows_what_the_price_grid_says(grid):
    panel = live_panel(grid, closes(grid), horizon=2)
    np.testing.assert_allclose(panel.hold_TN[:-2], grid.close_TN[2:] / grid.close_TN[1:-1] - 1.0)
    np.testing.assert_allclose(panel.labels.forward_TN[:-3], grid.close_TN[3:] / grid.close_TN[1:-2] - 1.0)
    assert np.isnan(panel.labels.forward_TN[-3:]).all()
    returns = pd.DataFrame(grid.close_TN).pct_change()
    np.testing.assert_allclose(panel.vol_TN, returns.rolling(60).std(), rtol=1e-9)


def market_of(**tables):
    none = pd.DataFrame()
    return Market(info=MarketInfo(name="m"), tables=tables, quarantine=none, flags=none, fingerprint="")


def test_newest_price_is_the_newest_that_was_known(bars):
    at = pd.Timestamp("2024-05-09 12:00", tz="UTC")
    hourly = pd.DataFrame(
        {
            "entity_key": ["A", "A", "B", "B"],
            "event_time": at + pd.to_timedelta(["-2h", "-1h", "-1h", "-1h"]),
            "ingest_time": at + pd.to_timedelta(["-2h", "1h", "-50min", "-40min"]),  # A's newest comes too late
            "close": [10.0, 11.0, 20.0, 21.0],
        }
    )
    trades = pd.DataFrame(
        {
            "entity_key": ["C", "C"],
            "event_time": at + pd.to_timedelta(["-10s", "1s"]),
            "ingest_time": [at, pd.NaT],
            "price": [30.0, 31.0],
            "size": 1.0,
        }
    )
    market = market_of(bars_1d=bars, bars_1h=hourly, trades=trades)
    last_day = bars[(bars["entity_key"] == "D") & (bars["event_time"] == "2024-05-09")]["close"].item()
    found = newest_prices(market, ["D", "C", "B", "A", "Z"], at=at.to_pydatetime())
    np.testing.assert_array_equal(found, [last_day, 30.0, 21.0, 10.0, np.nan])


def test_live_fits_are_those_with_signals_of_this_interval_and_horizon(signals, tmp_path):
    fits = {}
    for version, trained_to in (("m1", "2024-04-01"), ("m2", "2024-03-01"), ("unused", "2024-05-01")):
        fits[version] = FoldResult(variant="momentum", fold=-1, kind="live", key=version, trained_to=trained_to)
        folder = tmp_path / "fits" / "momentum" / version
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps(asdict(replace(fits[version], threshold=0.25))))
    found = live_fits(signals, tmp_path / "fits", interval="1d", horizon=1)  # reversal is a desk's own
    assert found == {"momentum": [replace(fits[version], threshold=0.25) for version in ("m2", "m1")]}
    assert live_fits(signals, tmp_path / "fits", interval="1h", horizon=1) == {}
    assert live_fits(signals, tmp_path / "fits", interval="1d", horizon=5) == {}
