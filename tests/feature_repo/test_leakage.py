"""The leak detector catches every kind of leak we know how to plant in features, and clears what is causal."""

from __future__ import annotations

from datetime import timedelta
from functools import partial

import numpy as np
import pandas as pd
import pytest

from feature_repo.leakage.challenges import (
    changed_future,
    changed_past,
    known_times,
    newest,
    pick_moments,
    restated,
)
from feature_repo.leakage.checks import (
    check_features,
    check_reader,
    check_replay,
    feature_names,
    once_a_market,
    questions_at,
    rule_answers,
)
from feature_repo.leakage.findings import Checked, LeakageError, together
from feature_repo.market.assembly import known_at
from feature_repo.pipelines.build import NotApplicableError
from feature_repo.pipelines.catalog import PIPELINES
from tests.feature_repo import leak_makers as make

MARKET = make.make_market()
MOMENTS = pick_moments(MARKET, "1d", num_bars=55, num_moments=4)
RECENT = newest(MARKET, "1d", num_bars=60)


def check(build, market=RECENT, moments=MOMENTS) -> Checked:
    return check_features({"it": build}, market, moments, rng=np.random.default_rng(1))["it"]


LEAKS = {
    "one-bar shift": (make.builder(ret=make.next_return), make.builder(ret=make.trailing_return), "ret"),
    "centred window": (make.builder(mean_5=make.centred_mean), make.builder(mean_5=make.trailing_mean), "mean_5"),
    "full-sample z-score": (make.builder(z=make.full_sample_z), make.builder(z=make.trailing_z), "z"),
    "back-filled nulls": (make.builder(vol=make.filled_backward), make.builder(vol=make.filled_forward), "vol"),
    "restated values early": (make.restated_early, make.builder(mean_5=make.trailing_mean), "mean_5"),
    "dated too early": (make.dated_early, make.builder(mean_5=make.trailing_mean), "mean_5"),
    "join on event time only": (
        partial(make.active_level, by_event_time_only=True),
        partial(make.active_level, by_event_time_only=False),
        "AdrActCnt",
    ),
    "survivorship-dependent ranks": (
        partial(make.rank, among_survivors=True),
        partial(make.rank, among_survivors=False),
        "rank",
    ),
    "total of another table": (
        make.share_of_all_trades,
        make.builder(trade_share=lambda columns: columns["volume"]),
        "trade_share",
    ),
}


@pytest.mark.parametrize("kind", LEAKS)
def test_a_planted_leak_is_caught_and_its_causal_twin_is_not(kind: str) -> None:
    leaky, causal, feature = LEAKS[kind]
    caught = check(leaky)
    assert {finding.feature for finding in caught.findings} == {feature}
    first = caught.findings[0]
    assert first.moment in [moment.to_pydatetime() for moment in MOMENTS]
    for said in (first.feature, first.entity, first.moment.isoformat(), first.event_time.isoformat()):
        assert said in first.message
    clean = check(causal)
    assert clean.findings == ()
    assert clean.num_compared > 400


def test_resampling_with_the_wrong_edge_is_caught() -> None:
    market = make.hourly_market()
    moments = pick_moments(market, "1h", num_bars=300, num_moments=6)
    caught = check(partial(make.daily_range, edge="left"), market, moments)
    assert {finding.feature for finding in caught.findings} == {"daily_range"}
    clean = check(partial(make.daily_range, edge="right"), market, moments)
    assert clean.findings == ()
    assert clean.num_compared > 0


def test_restatement_alone_catches_values_used_before_they_were_known() -> None:
    """Without any restated row in the market, deleting the future can't show it: changing it does."""
    market = make.make_market(num_late=0, num_restated=0)
    found = check(make.restated_early, market, pick_moments(market, "1d", num_bars=90, num_moments=4)).findings
    assert "restatement" in {finding.check for finding in found}


def test_every_pipeline_of_the_catalogue_is_clean() -> None:
    """On bars with everything attached that the market's late and restated tables give."""
    market = make.make_market(num_bars=180, hours=4)
    moments = pick_moments(market, "1d", num_bars=40, num_moments=2)
    builders = {name: partial(make.build_pipeline, spec) for name, spec in PIPELINES.items()}
    builders = {name: build for name, build in builders.items() if applies(build, market)}
    assert set(builders) >= {"bar", "momentum", "technical", "volatility"}
    checked = check_features(builders, market, moments, rng=np.random.default_rng(2))
    assert {name: found.findings for name, found in checked.items()} == dict.fromkeys(builders, ())
    assert {name for name, found in checked.items() if found.num_compared < 2_000} == set()


def applies(build, market) -> bool:
    try:
        return len(build(market)) > 0
    except NotApplicableError:
        return False


def test_a_builder_that_cannot_say_anything_yet_must_say_nothing_later() -> None:
    def by_last_column(market):
        table = make.builder(ret=make.trailing_return)(market)
        if "sentiment" not in market.tables:
            raise NotApplicableError("no sentiment yet")
        return table

    mood = MARKET.tables["sentiment"]
    tables = dict(MARKET.tables) | {"sentiment": mood[mood["event_time"] > MOMENTS[2]].reset_index(drop=True)}
    found = check(by_last_column, make.market_of(tables)).findings
    assert [finding.feature for finding in found if finding.check == "truncation"] == ["ret"]


def test_rows_of_nulls_count_for_they_hide_older_values() -> None:
    def forgetful(market):
        table = make.builder(mean_5=make.trailing_mean)(market)
        gone = table["event_time"] < market.bars("1d")["event_time"].max() - pd.Timedelta(days=3)
        return table.assign(mean_5=np.nan)[gone]

    found = check(forgetful).findings
    assert {(finding.feature, finding.check) for finding in found} >= {("*", "truncation")}


# Replay.


def test_replaying_the_batches_gives_what_was_built_at_once(tmp_path) -> None:
    causal = {"it": make.builder(mean_5=make.trailing_mean)}
    clean = check_replay(causal, MARKET, MOMENTS, folder=tmp_path)["it"]
    assert clean.findings == ()
    assert clean.num_compared > 400


@pytest.mark.parametrize("leaky", [make.restated_early, make.builder(z=make.full_sample_z)])
def test_replay_catches_a_table_that_would_have_answered_otherwise(leaky, tmp_path) -> None:
    often = pick_moments(MARKET, "1d", num_bars=110, num_moments=12)
    caught = check_replay({"it": leaky}, MARKET, often, folder=tmp_path)["it"]
    assert {finding.check for finding in caught.findings} == {"replay"}


# Reading: online stores and materialisation.

TABLE = make.builder(mean_5=make.trailing_mean, ret=make.trailing_return)(MARKET)
ASKED = questions_at(make.ASSETS, [*MOMENTS, MOMENTS[-1] + timedelta(days=20)])


def by_event_time(questions: pd.DataFrame) -> pd.DataFrame:
    """A store that materialises by event time: the newest row of the past, known or not."""
    blind = TABLE.assign(ingest_time=TABLE["event_time"]).sort_values("ingest_time", kind="stable")
    return rule_answers(blind, questions)


def test_a_reader_that_keeps_the_rule_is_clean() -> None:
    clean = check_reader(partial(rule_answers, TABLE), TABLE, ASKED)
    assert clean.findings == ()
    assert clean.num_compared > 50


def test_a_materialise_that_looks_ahead_is_caught() -> None:
    caught = check_reader(by_event_time, TABLE, ASKED).findings
    assert {finding.feature for finding in caught} == {"mean_5", "ret"}
    assert all(finding.check == "online" and finding.moment.isoformat() in finding.message for finding in caught)


def test_an_older_row_written_over_a_newer_one_is_caught() -> None:
    """What an online store does that keeps the row written last: a restatement of an old event wins."""

    def last_written(questions: pd.DataFrame) -> pd.DataFrame:
        rows = TABLE.sort_values("ingest_time", kind="stable").assign(event_time=TABLE["ingest_time"])
        return rule_answers(rows, questions)

    every_moment = questions_at(make.ASSETS, TABLE["ingest_time"].drop_duplicates())
    assert check_reader(last_written, TABLE, every_moment).findings


def test_a_stale_value_served_past_its_ttl_is_caught() -> None:
    caught = check_reader(partial(rule_answers, TABLE), TABLE, ASKED, ttl=timedelta(days=10)).findings
    assert {finding.expected for finding in caught} == {None}
    kept = partial(rule_answers, TABLE, ttl=timedelta(days=10))
    assert check_reader(kept, TABLE, ASKED, ttl=timedelta(days=10)).findings == ()


def test_a_reader_that_answers_something_else_proves_nothing() -> None:
    with pytest.raises(LeakageError, match=r"lacks the features \['ret'\]"):
        check_reader(lambda questions: rule_answers(TABLE.drop(columns="ret"), questions), TABLE, ASKED)


def test_the_rule_is_the_rule() -> None:
    for _, question in ASKED.sample(20, random_state=0).iterrows():
        own = TABLE[TABLE["entity_key"] == question["entity_key"]]
        known = own[(own[["event_time", "ingest_time"]] <= question["event_timestamp"]).all(axis=1)]
        got = rule_answers(TABLE, question.to_frame().T.astype({"event_timestamp": "datetime64[us, UTC]"})).iloc[0]
        if known.empty:
            assert np.isnan(got["mean_5"])
        else:
            wanted = known.sort_values(["event_time", "ingest_time"]).iloc[-1]
            assert (got["event_time"], got["mean_5"]) == (wanted["event_time"], wanted["mean_5"])


# Moments and challenges.


def test_moments_lie_before_and_at_bar_ends_and_ingest_times() -> None:
    bars = MARKET.bars("1d")
    ends, ingests = set(bars["event_time"]), set(bars["ingest_time"])
    tick = pd.Timedelta(1, "us")
    assert any(moment in ends for moment in MOMENTS)
    assert any(moment + tick in ends for moment in MOMENTS)
    assert any(moment in ingests for moment in MOMENTS)
    assert any(moment + tick in ingests for moment in MOMENTS)
    assert pick_moments(MARKET, "1d", num_bars=55, num_moments=4) == MOMENTS
    with pytest.raises(LeakageError, match=r"has 120 of interval 1d: bring a longer history"):
        pick_moments(MARKET, "1d", num_bars=500, num_moments=200)


@pytest.mark.parametrize("moment", MOMENTS[:-1:3])
@pytest.mark.parametrize("challenge", [restated, changed_future])
def test_challenges_leave_what_was_known_and_change_every_table(challenge, moment) -> None:
    other = challenge(MARKET, moment, rng=np.random.default_rng(0))
    before, after = known_at(MARKET, moment), known_at(other, moment)
    assert before.fingerprint == after.fingerprint
    for name, table in MARKET.tables.items():
        is_later = known_times(name, other.tables[name]) > np.datetime64(moment.tz_localize(None), "us")
        assert is_later.any()
        assert not other.tables[name].equals(table), name


def test_a_changed_past_leaves_what_comes_after() -> None:
    moment = MOMENTS[4]
    other = changed_past(MARKET, moment, rng=np.random.default_rng(0))
    for name, table in MARKET.tables.items():
        later = table["event_time"] > moment
        pd.testing.assert_frame_equal(other.tables[name][later], table[later])
        assert not other.tables[name][~later].equals(table[~later])


def test_prices_of_a_row_move_together() -> None:
    bars = changed_future(MARKET, MOMENTS[0], rng=np.random.default_rng(0)).bars("1d")
    assert (bars["high"] >= bars[["open", "close", "low"]].max(axis=1)).all()


def test_the_newest_part_of_a_market_has_that_many_bars() -> None:
    tail = newest(MARKET, "1d", num_bars=30)
    assert tail.bars("1d")["event_time"].nunique() == 30
    assert tail.fingerprint != MARKET.fingerprint


def test_the_first_finding_of_a_feature_stands_for_the_others() -> None:
    caught = check(make.builder(ret=make.next_return))
    assert together([caught, caught]).findings == caught.findings
    assert len({(finding.check, finding.feature) for finding in caught.findings}) == len(caught.findings)


def test_what_builders_share_is_made_once_a_market() -> None:
    made = []
    names = once_a_market(lambda market: made.append(market) or sorted(market.tables))
    assert names(MARKET) == names(MARKET) == names(RECENT) == sorted(MARKET.tables)
    assert len(made) == 2


def test_text_is_no_feature_to_compare() -> None:
    def wordy(market):
        return market.traded_bars("1d")[make.KEY].assign(mood="good")

    assert feature_names(wordy(MARKET)) == ["mood"]
    with pytest.raises(LeakageError, match="must be numbers"):
        check(wordy)
