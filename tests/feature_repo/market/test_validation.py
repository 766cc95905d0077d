"""Every bad row is kept aside with its reason, and no good one is."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from feature_repo.market.schema import MarketError
from feature_repo.market.validation import FLOAT_NOISE, validate

NOW = datetime(2024, 6, 1, tzinfo=UTC)
DAY = pd.Timedelta(days=1)
ORDER = "out of order in the file, and not known later: sort it, or date late data by its ingest_time"
REPEATS = "duplicate: repeats an earlier row"
CONTRADICTS = "duplicate: contradicts an earlier row of the same times (a correction is known later)"
OVERLAPS = "overlaps the bar before"
SLOW = "slow receive clock: ingest_time before event_time"


def bars(num: int = 6, entity: str = "A", interval: str = "1d", step: pd.Timedelta = DAY) -> pd.DataFrame:
    ends = pd.date_range("2024-01-02", periods=num, freq=step, tz="UTC", unit="us")
    close = np.arange(10.0, 10.0 + num)
    return pd.DataFrame(
        {
            "entity_key": entity,
            "interval": interval,
            "event_time": ends,
            "ingest_time": ends + timedelta(minutes=5),
            "open": close,
            "high": close + 1,
            "low": close - 1,
            "close": close,
            "volume": 100.0,
        }
    )


def with_cell(frame: pd.DataFrame, row: int, **cells: object) -> pd.DataFrame:
    frame = frame.copy()
    for name, value in cells.items():
        if isinstance(value, str) and frame[name].dtype != object:
            frame[name] = frame[name].astype(object)
        frame.loc[row, name] = value
    return frame


def check(frame: pd.DataFrame, table: str = "bars_1d", lag: timedelta | None = None):
    found = validate(table, frame, now=NOW, lag=lag)
    rows = sorted([*found.accepted.index, *found.quarantine["row"]])
    assert rows == list(range(len(frame)))
    assert set(found.flags["row"]) <= set(found.accepted.index)
    return found


def reasons(frame: pd.DataFrame, table: str = "bars_1d") -> dict[int, str]:
    quarantine = check(frame, table).quarantine
    return dict(zip(quarantine["row"], quarantine["reason"], strict=True))


def test_sound_bars_are_all_accepted_and_typed():
    found = check(bars().astype({"close": "float32", "volume": "int64"}))
    assert found.quarantine.empty
    assert found.flags.empty
    assert found.accepted.dtypes.astype(str).to_dict() == {
        "entity_key": "object",
        "event_time": "datetime64[us, UTC]",
        "ingest_time": "datetime64[us, UTC]",
        "interval": "object",
        **dict.fromkeys(["open", "high", "low", "close", "volume"], "float64"),
    }


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"close": 0.0, "low": 0.0}, "low is not positive"),
        ({"close": -1.0}, "close is not positive"),
        ({"close": np.nan}, "close is null"),
        ({"close": np.inf}, "close is not finite"),
        ({"open": -np.inf}, "open is not finite"),
        ({"open": "ten"}, "open is not a number"),
        ({"high": 5.0, "low": 12.0}, "high is below low"),
        ({"close": 20.0}, "close is above high"),
        ({"open": 1.0}, "open is below low"),
        ({"volume": -1.0}, "volume is negative"),
        ({"volume": np.inf}, "volume is not finite"),
        ({"entity_key": None}, "entity_key is null"),
        ({"entity_key": ""}, "entity_key is null"),
        ({"event_time": pd.NaT}, "event_time is null"),
        ({"ingest_time": pd.NaT}, "ingest_time is null"),
        ({"ingest_time": pd.Timestamp("2024-06-02", tz="UTC")}, "ingest_time is in the future"),
        ({"event_time": pd.Timestamp("2025-01-01", tz="UTC")}, "event_time is in the future"),
        (
            {"ingest_time": pd.Timestamp("2024-01-04T23:59:54", tz="UTC")},
            "ingest_time is more than 5 s before event_time",
        ),
        ({"interval": "1h"}, "interval is not 1d"),
        ({"interval": None}, "interval is not 1d"),
    ],
)
def test_one_bad_cell_quarantines_its_row_alone(cells, reason):
    assert reasons(with_cell(bars(), 3, **cells)) == {3: reason}


@pytest.mark.parametrize("name", ["open", "high", "low", "volume"])
def test_null_where_a_table_may_be_poor_is_absent(name):
    assert reasons(with_cell(bars(), 3, **{name: np.nan})) == {}
    assert reasons(bars().drop(columns=name)) == {}


def test_float_noise_around_high_and_low_is_no_fault():
    frame = bars()
    frame["close"] = frame["high"] * (1 + FLOAT_NOISE / 2)
    assert reasons(frame) == {}
    frame["close"] = frame["high"] * (1 + FLOAT_NOISE * 2)
    assert set(reasons(frame).values()) == {"close is above high"}


def test_a_row_has_the_first_reason_that_applies():
    assert reasons(with_cell(bars(), 2, entity_key=None, close=-1.0, interval="1h")) == {2: "entity_key is null"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("2024-01-04", "event_time has no time zone"),
        ("2024-01-04T00:00:00", "event_time has no time zone"),
        ("2024-01-04 00:00", "event_time has no time zone"),
        ("soon", "event_time is not an ISO 8601 time"),
        ("", "event_time is null"),
        (None, "event_time is null"),
    ],
)
def test_text_that_is_no_aware_time_is_quarantined(text, reason):
    frame = bars()
    frame["event_time"] = frame["event_time"].map(lambda time: time.isoformat())
    assert reasons(frame) == {}
    assert reasons(with_cell(frame, 2, event_time=text)) == {2: reason}


@pytest.mark.parametrize(
    "text", ["2024-01-04T00:00:00Z", "2024-01-03T19:00:00-05:00", "20240104T000000Z", "2024-01-04 01:00+01:00"]
)
def test_every_iso_form_with_a_zone_is_read_as_utc(text):
    frame = with_cell(bars().astype({"event_time": str}), 2, event_time=text)
    assert check(frame).accepted["event_time"][2] == pd.Timestamp("2024-01-04", tz="UTC")


def test_naive_and_numeric_times_are_never_guessed():
    frame = bars()
    naive = frame.assign(event_time=frame["event_time"].dt.tz_localize(None))
    assert set(reasons(naive).values()) == {"event_time has no time zone"}
    number = frame.assign(event_time=frame["event_time"].astype("int64"))
    assert set(reasons(number).values()) == {"event_time is not an ISO 8601 time"}


def test_nanoseconds_and_other_zones_become_utc_microseconds():
    frame = bars()
    other = frame.assign(event_time=frame["event_time"].dt.as_unit("ns").dt.tz_convert("Asia/Tokyo"))
    pd.testing.assert_series_equal(check(other).accepted["event_time"], frame["event_time"])


@pytest.mark.parametrize(
    ("slow_us", "accepted", "flagged"), [(0, 1, 0), (1, 1, 1), (5_000_000, 1, 1), (5_000_001, 0, 0)]
)
def test_receive_clocks_up_to_five_seconds_slow_are_flagged(slow_us, accepted, flagged):
    frame = bars(1)
    frame["ingest_time"] = frame["event_time"] - pd.Timedelta(slow_us, "us")
    found = check(frame)
    assert (len(found.accepted), len(found.flags)) == (accepted, flagged)
    assert set(found.flags["reason"]) <= {SLOW}


def test_duplicates_keep_the_first_row_and_say_whether_both_agree():
    again = bars().iloc[[2, 3]].assign(close=[12.0, 13.5])
    assert reasons(pd.concat([bars(), again])) == {6: REPEATS, 7: CONTRADICTS}


def test_nulls_agree_with_nulls_in_duplicates():
    frame = with_cell(bars(), 2, volume=np.nan)
    assert reasons(pd.concat([frame, frame.iloc[[2]]])) == {6: REPEATS}


def test_a_bad_first_row_does_not_make_the_sound_one_a_duplicate():
    bad = bars().iloc[[2]].assign(close=-1.0)
    assert reasons(pd.concat([bars().iloc[:2], bad, bars().iloc[2:]])) == {2: "close is not positive"}


def test_restatements_and_late_rows_are_legitimate():
    restated = bars().iloc[[1]].assign(close=11.5, ingest_time=pd.Timestamp("2024-02-01", tz="UTC"))
    late = bars().iloc[[2]].assign(ingest_time=pd.Timestamp("2024-02-02", tz="UTC"))
    frame = pd.concat([bars().drop(index=2), restated, late])
    assert reasons(frame) == {}


def test_whole_publications_one_after_another_are_in_order():
    first = bars().assign(ingest_time=pd.Timestamp("2024-02-01", tz="UTC"))
    second = bars().assign(ingest_time=pd.Timestamp("2024-03-01", tz="UTC"))
    assert reasons(pd.concat([first, second])) == {}
    mixed = pd.concat([second, first])  # the older publication after the newer
    assert reasons(mixed)


def test_a_row_that_goes_back_is_out_of_order_and_the_rest_is_not():
    frame = bars()
    assert reasons(frame.iloc[[0, 1, 3, 4, 2, 5]]) == {4: ORDER}


def test_one_row_too_far_ahead_costs_itself_not_all_that_follow():
    frame = bars(8)
    assert reasons(frame.iloc[[0, 7, 1, 2, 3, 4, 5, 6]]) == {1: ORDER}


def test_order_is_each_series_own():
    frame = pd.concat([bars(entity="A"), bars(entity="B")])
    assert reasons(frame) == {}
    assert reasons(frame.iloc[::-1])
    named = pd.DataFrame({"entity_key": "*", "event_time": bars()["event_time"], "value": 1.0})
    named = pd.concat([named.assign(name="greed"), named.assign(name="news")])
    assert check(named, "sentiment", lag=timedelta(hours=1)).quarantine.empty


def test_a_bar_inside_another_overlaps():
    inside = (
        bars()
        .iloc[[2]]
        .assign(
            event_time=pd.Timestamp("2024-01-04T12:00", tz="UTC"),
            ingest_time=pd.Timestamp("2024-01-04T12:05", tz="UTC"),
        )
    )
    frame = pd.concat([bars().iloc[:3], inside, bars().iloc[3:]])
    assert reasons(frame) == {3: OVERLAPS}


def test_all_versions_of_an_overlapping_bar_go():
    inside = bars().iloc[[2]].assign(event_time=pd.Timestamp("2024-01-04T12:00", tz="UTC"))
    inside = pd.concat([inside, inside]).assign(
        ingest_time=pd.to_datetime(["2024-01-04T12:05Z", "2024-03-01T00:00Z"]).as_unit("us")
    )
    assert reasons(pd.concat([bars().iloc[:3], inside, bars().iloc[3:]])) == {3: OVERLAPS, 4: OVERLAPS}


def test_early_closes_and_daylight_saving_do_not_overlap():
    ends = pd.to_datetime(
        ["2023-07-02T20:00Z", "2023-07-03T17:00Z", "2023-07-04T13:00Z", "2024-03-08T21:00Z", "2024-03-09T20:00Z"]
    )
    frame = pd.DataFrame({"entity_key": "A", "event_time": ends, "close": 1.0})
    assert check(frame, lag=timedelta(0)).quarantine.empty
    two = pd.to_datetime(["2024-01-02T21:00Z", "2024-01-03T15:00Z", "2024-01-04T08:59Z"])  # 18 h, then 17 h 59 min
    frame = pd.DataFrame({"entity_key": "A", "event_time": two, "close": 1.0})
    assert check(frame, lag=timedelta(0)).quarantine[["row", "reason"]].to_numpy().tolist() == [[2, OVERLAPS]]


def test_identical_ticks_are_flagged_but_identified_ones_are_duplicates():
    ticks = pd.DataFrame({"entity_key": "A", "event_time": bars(4)["event_time"], "price": 1.0, "size": 2})
    twice = pd.concat([ticks, ticks.iloc[[3]]])
    found = check(twice, "trades", lag=timedelta(0))
    assert found.quarantine.empty
    assert found.flags[["row", "reason"]].to_numpy().tolist() == [[4, "repeats an earlier tick to the last column"]]
    known = check(twice.assign(trade_id=["1", "2", "3", "4", "4"]), "trades", lag=timedelta(0))
    assert known.quarantine[["row", "reason"]].to_numpy().tolist() == [[4, REPEATS]]
    apart = check(twice.assign(trade_id=["1", "2", "3", "4", "5"]), "trades", lag=timedelta(0))
    assert apart.quarantine.empty
    assert apart.flags.empty
    anonymous = check(twice.assign(trade_id=None), "trades", lag=timedelta(0))
    assert anonymous.quarantine.empty


def test_quotes():
    quotes = pd.DataFrame(
        {"entity_key": "A", "event_time": bars(5)["event_time"], "bid": 1.0, "bid_size": 1, "ask": 2.0, "ask_size": 1.0}
    )
    quotes.loc[1, ["bid", "ask"]] = [3.0, 2.0]
    quotes.loc[2, "bid"] = np.nan
    quotes.loc[3, ["bid", "ask"]] = np.nan
    quotes.loc[4, "ask_size"] = -1.0
    found = check(quotes, "quotes", lag=timedelta(0))
    assert found.quarantine[["row", "reason"]].to_numpy().tolist() == [
        [3, "neither bid nor ask is there"],
        [4, "ask_size is negative"],
    ]
    assert found.flags[["row", "reason"]].to_numpy().tolist() == [[1, "bid is above ask"]]


def test_onchain_metrics_are_numbers_of_any_sign():
    frame = pd.DataFrame({"entity_key": "A", "event_time": bars(4)["event_time"], "flow": [-1.0, np.nan, np.inf, 2]})
    found = check(frame.assign(count=["1", "2", "3", "x"]), "onchain_1d", lag=timedelta(hours=13))
    assert found.quarantine[["row", "reason"]].to_numpy().tolist() == [
        [2, "flow is not finite"],
        [3, "count is not a number"],
    ]
    assert found.accepted["count"].tolist() == [1.0, 2.0]


def test_values_may_be_withdrawn():
    frame = pd.DataFrame(
        {"entity_key": "A", "event_time": bars(2)["event_time"], "name": "eps", "value": [1.0, np.nan]}
    )
    assert check(frame, "fundamentals", lag=timedelta(0)).quarantine.empty
    frame = pd.concat([frame, frame.iloc[[1]].assign(name=None)])
    assert check(frame, "fundamentals", lag=timedelta(0)).quarantine["reason"].tolist() == ["name is null"]


def test_what_is_announced_may_take_effect_later():
    start = pd.to_datetime(["2024-07-01T00:00Z", "2020-01-01T00:00Z", "2024-02-01T00:00Z"])
    end = pd.to_datetime([None, "2030-01-01T00:00Z", "2024-01-01T00:00Z"], utc=True)
    universe = pd.DataFrame(
        {"entity_key": "A", "from": start, "to": end, "ingest_time": pd.Timestamp("2024-05-01", tz="UTC")}
    )
    assert reasons(universe, "universe") == {2: "to is not after from"}
    split = pd.DataFrame(
        {"entity_key": "A", "event_time": start, "ingest_time": start[2], "kind": "split", "ratio": [2.0, 0.0, 3.0]}
    )
    assert reasons(split, "corporate_actions") == {1: "ratio is not positive"}


def test_the_record_says_what_the_file_said():
    frame = with_cell(bars(), 1, close=-np.inf, entity_key='A "quoted" one', open=np.nan)
    found = check(frame).quarantine.iloc[0]
    assert (found["table"], found["row"]) == ("bars_1d", 1)
    assert json.loads(found["record"]) == {
        "entity_key": 'A "quoted" one',
        "interval": "1d",
        "event_time": "2024-01-03 00:00:00.000000Z",
        "ingest_time": "2024-01-03 00:05:00.000000Z",
        "open": None,
        "high": 12.0,
        "low": 10.0,
        "close": "-inf",
        "volume": 100.0,
    }


def test_a_lag_dates_tables_without_ingest_time_and_nothing_is_guessed():
    frame = bars().drop(columns="ingest_time")
    accepted = check(frame, lag=timedelta(hours=2)).accepted
    assert (accepted["ingest_time"] - accepted["event_time"]).unique().tolist() == [pd.Timedelta(hours=2)]
    with pytest.raises(MarketError, match=r"no ingest_time.*lags: \{bars_1d: 15min\}"):
        validate("bars_1d", frame, now=NOW, lag=None)
    assert check(bars(), lag=timedelta(hours=2)).accepted["ingest_time"].equals(bars()["ingest_time"])


@pytest.mark.parametrize(
    ("table", "frame", "now", "message"),
    [
        ("bars_1d", bars().drop(columns="close"), NOW, r"lacks the columns \['close'\]"),
        ("bars_daily", bars(), NOW, "bars_<interval>, trades"),
        ("bars_0d", bars(), NOW, "no kind of table"),
        ("bars_<interval>", bars(), NOW, "no kind of table"),
        ("bars_1d", bars(), NOW.replace(tzinfo=None), "no time zone"),
        ("bars_1d", pd.concat([bars(), bars()[["close"]]], axis=1), NOW, r"\['close'\] more than once"),
    ],
)
def test_what_is_no_table_is_refused(table, frame, now, message):
    with pytest.raises(MarketError, match=message):
        validate(table, frame, now=now, lag=None)


def test_an_empty_table_is_fine_and_so_is_any_index():
    assert check(bars().iloc[:0]).accepted.empty
    assert reasons(with_cell(bars(), 3, close=-1.0).set_index(pd.Index(list("abcdef")))) == {3: "close is not positive"}


def test_strange_columns_do_no_harm():
    frame = bars().assign(
        tags=[["a"], ["b"], None, ["c"], ["d"], ["e"]], live=True, venue=pd.Categorical(list("xyxyxy"))
    )
    found = check(pd.concat([frame, frame.iloc[[5]]]))
    assert found.quarantine["reason"].tolist() == [REPEATS]
    assert found.accepted["venue"].tolist() == list("xyxyxy")


# Against a plain row-by-row reading of the rules.

HOUR = pd.Timedelta(hours=1)


def plain_reading(frame: pd.DataFrame) -> dict[int, str]:
    """Rules 6 to 8 of hourly bars without other faults, one row at a time."""
    said: dict[int, str] = {}
    rows = frame.to_dict("records")

    def sound(entity: str | None = None) -> list[int]:
        return [i for i in range(len(rows)) if i not in said and entity in (None, rows[i]["entity_key"])]

    first: dict[tuple, int] = {}
    for i, row in enumerate(rows):
        names = (row["entity_key"], row["event_time"], row["ingest_time"])
        if names in first:
            said[i] = REPEATS if rows[first[names]]["close"] == row["close"] else CONTRADICTS
        else:
            first[names] = i
    entities = sorted({row["entity_key"] for row in rows})
    for entity in entities:
        behind = blamed(rows, sound(entity), sign=1)
        ahead = blamed(rows, sound(entity)[::-1], sign=-1)
        said |= dict.fromkeys(ahead if len(ahead) < len(behind) else behind, ORDER)
    for entity in entities:
        last = None
        for end in sorted({rows[i]["event_time"] for i in sound(entity)}):
            if last is not None and end - last < 0.75 * HOUR:
                said |= {i: OVERLAPS for i in sound(entity) if rows[i]["event_time"] == end}
            else:
                last = end
    return said


def blamed(rows: list[dict], order: list[int], sign: int) -> list[int]:
    found, leader = [], None
    for i in order:
        event, ingest = rows[i]["event_time"], rows[i]["ingest_time"]
        if leader is None or (event > leader[0] if sign > 0 else event < leader[0]):
            leader = (event, ingest)
        elif event != leader[0] and (ingest <= leader[1] if sign > 0 else ingest >= leader[1]):
            found.append(i)
    return found


cells = st.tuples(st.sampled_from("AB"), st.integers(0, 16), st.integers(0, 8), st.sampled_from([1.0, 2.0]))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(cells, max_size=14))
def test_duplicates_order_and_overlaps_agree_with_a_plain_reading(drawn):
    start = pd.Timestamp("2024-01-01", tz="UTC")
    event = pd.Series([start + quarter * HOUR / 2 for _, quarter, _, _ in drawn], dtype="datetime64[us, UTC]")
    delay = pd.Series([late * HOUR for _, _, late, _ in drawn], dtype="timedelta64[us]")
    frame = pd.DataFrame(
        {
            "entity_key": [entity for entity, *_ in drawn],
            "event_time": event,
            "ingest_time": event + delay,
            "close": [price for *_, price in drawn],
        }
    ).astype({"entity_key": object, "close": float})
    assert reasons(frame, "bars_1h") == plain_reading(frame)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["A", "B", "", None]),
            st.sampled_from(["2024-01-02T00:00Z", "2024-01-03T00:00Z", "2024-01-02", "2099-01-01T00:00Z", "x", None]),
            st.sampled_from(["2024-01-03T00:00Z", "2024-01-02T00:00+00:00", "2024-01-01T23:59:57Z", "", None]),
            st.one_of(st.floats(allow_nan=True), st.sampled_from([1.0, 1.5])),
            st.one_of(st.none(), st.floats(min_value=-1, max_value=3)),
        ),
        max_size=12,
    )
)
def test_every_row_ends_in_exactly_one_place_and_what_is_accepted_is_sound(drawn):
    frame = pd.DataFrame(drawn, columns=["entity_key", "event_time", "ingest_time", "close", "high"])
    found = check(frame)  # asserts the partition
    sound = found.accepted
    assert sound["close"].gt(0).all()
    assert np.isfinite(sound["close"]).all()
    assert (~(sound["close"] > sound["high"] * (1 + FLOAT_NOISE))).all()
    assert sound["event_time"].le(pd.Timestamp(NOW)).all()
    assert sound["ingest_time"].ge(sound["event_time"] - pd.Timedelta(seconds=5)).all()
    assert not sound.duplicated(["entity_key", "event_time", "ingest_time"]).any()
