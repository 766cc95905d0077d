"""Shadow tests: only what ran counts, only after both were in place; and of many no more are called than it says."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from scipy.stats import binomtest

from feature_repo.market.calendar import price_grid
from feature_repo.market.costs import CostModel
from training.dataset import Labels, Panel
from training.rating.audit import AuditRow, Entry
from training.rating.challenger import challenge
from training.rating.live import live_panel, timely
from training.rating.promotion import Assignment
from training.rating.shadow import LEVEL, Lineup, closed_bars, line_up, shadow
from training.rating.tracks import Tracks, build_tracks
from training.signals import SignalStore

NUM_BARS, FIRST = 260, 90
ENTITIES = ("A", "B", "C", "D", "E", "F")
YEAR = 252
COSTS = CostModel()
START = datetime(2024, 1, 1, tzinfo=UTC)
LONG_AGO = START - timedelta(days=900)


def day(number, **more):
    return START + timedelta(days=number, **more)


# ---- who runs beside whom --------------------------------------------------------------------------------------------


def rows(*moves):
    """Log rows of (day, variant, from, to[, allocation]), numbered as they come."""
    return [
        AuditRow(
            seq=seq,
            entry=Entry(
                time=day(number),
                market="m",
                variant=variant,
                version=seq,
                from_=from_,
                to=to,
                allocation=allocation[0] if allocation else 0.5,
                actor="perennial",
                reason="asked for",
                change=f"c{seq}",
            ),
            previous="",
            hash="",
        )
        for seq, (number, variant, from_, to, *allocation) in enumerate(moves, 1)
    ]


def held(**stages):
    """Assignments of variant -> stage, last changed (refitted) on day 30."""
    return {
        variant: Assignment(
            variant=variant, version=1, stage=stage, allocation=0.5, since=day(30), by="perennial", reason=""
        )
        for variant, stage in stages.items()
    }


def test_a_stay_begins_where_the_stage_was_entered_and_no_refit_begins_another():
    log = rows(
        (1, "live", "None", "Staging"),
        (2, "live", "Staging", "Production", 1.0),
        (3, "new", "None", "Staging"),
        (4, "live", "Production", "Production", 0.75),
        (4, "new", "Staging", "Staging", 0.25),
        (5, "live", "Production", "Production", 1.0),
    )
    lineup = line_up(held(live="Production", new="Staging", other="None"), log)
    assert lineup == Lineup(
        challengers={"new": day(3)},
        production={"live": [(day(2), 1.0), (day(4), 0.75), (day(5), 1.0)]},
        since=day(2),
        num_tests=1,
    )
    assert held(live="Production")["live"].since == day(30)  # which is why the log is asked


def test_whoever_enters_or_leaves_production_makes_it_another_one():
    first = [(1, "a", "Staging", "Production"), (2, "b", "Staging", "Production")]
    lineup = line_up(held(a="Production", b="Production"), rows(*first))
    assert lineup.since == day(2)
    left = rows(*first, (7, "b", "Production", "Archived"))
    assert line_up(held(a="Production", b="Archived"), left).since == day(7)
    back = rows(*first, (7, "b", "Production", "Staging"))
    assert line_up(held(a="Production", b="Staging"), back).challengers == {"b": day(7)}


def test_a_second_stay_is_a_new_one_and_those_that_ended_are_counted():
    log = rows(
        (0, "early", "None", "Staging"),
        (1, "early", "Staging", "None"),  # before the present set: never tested against it
        (2, "live", "Staging", "Production"),
        (2, "at-once", "None", "Staging"),
        (2, "at-once", "Staging", "Archived"),
        (3, "again", "None", "Staging"),
        (4, "again", "Staging", "None"),
        (5, "gone", "None", "Staging"),
        (6, "gone", "Staging", "None"),
        (7, "again", "None", "Staging"),
    )
    lineup = line_up(held(live="Production", again="Staging", gone="None"), log)
    assert lineup.challengers == {"again": day(7)}
    assert lineup.num_tests == 3


def test_a_move_that_is_not_on_record_yet_counts_from_when_it_was_made():
    log = rows((1, "a", "Staging", "Production"), (2, "b", "None", "Staging"))
    lineup = line_up(held(a="Production", b="Production", c="Staging"), log)
    assert lineup.since == day(30)
    assert lineup.challengers == {"c": day(30)}
    assert list(lineup.production) == ["a", "b"]


def test_without_production_there_is_nothing_to_be_tested_against():
    lineup = line_up(held(new="Staging", old="None"), rows((1, "new", "None", "Staging")))
    assert (lineup.since, lineup.num_tests, lineup.production) == (None, 0, {})
    assert line_up({}, []).challengers == {}


# ---- from tracks -----------------------------------------------------------------------------------------------------


def bars_of(num_bars):
    """A panel of daily bars, decided an hour after their end and executed a day later; all are closed but the last."""
    ends = np.arange("2024-01-01", num_bars, dtype="datetime64[D]").astype("datetime64[us]")
    executed = np.append(ends[1:], [ends[-1] + np.timedelta64(1, "D")])
    empty = np.empty((num_bars, 0))
    labels = Labels(horizon=1, start_T=executed, end_T=executed, forward_TN=empty, y_TN=empty)
    return Panel(
        pipeline="live",
        event_times_T=ends,
        sample_times_T=ends + np.timedelta64(1, "h"),
        entities=(),
        feature_names=(),
        x_TNF=np.empty((num_bars, 0, 0), dtype=np.float32),
        returns_TN=empty,
        vol_TN=empty,
        hold_TN=empty,
        labels=labels,
        fingerprint="",
    )


def tracks_of(**net):
    net_VT = np.stack([np.asarray(each, dtype=float) for each in net.values()])
    num_bars = net_VT.shape[1]
    return Tracks(
        variants=tuple(net),
        event_times_T=bars_of(max(num_bars, 1)).event_times_T[:num_bars],
        net_VT=net_VT,
        gross_VT=net_VT,
        turnover_VT=net_VT,
        unit_impact_VT=net_VT,
        ic_VT=net_VT,
        decay_VH=np.zeros((len(net), 5)),
        capital=0.0,
    )


def lineup_of(challengers, *, production=None, since=LONG_AGO, num_tests=None):
    entered = challengers if isinstance(challengers, dict) else dict.fromkeys(challengers, LONG_AGO)
    return Lineup(
        challengers=entered,
        production=production or {"live": [(LONG_AGO, 1.0)]},
        since=since,
        num_tests=num_tests or len(entered),
    )


def run(lineup, **net):
    tracks = tracks_of(**net)
    return shadow(lineup, tracks, bars_of(len(tracks.event_times_T)), market="m")


def noise(num_bars=YEAR, *, sharpe=0.0, seed=0) -> np.ndarray:
    shock = np.random.default_rng(seed).standard_t(4, num_bars) / np.sqrt(2)
    return 0.01 * (shock + sharpe / np.sqrt(252))


def test_one_that_is_better_is_called_after_a_while_and_words_say_so():
    found = run(lineup_of(["new"]), live=noise(), new=noise(sharpe=8, seed=1))
    (test,) = found.tests
    assert test.better == "challenger"
    assert (test.num_bars, test.level, test.incumbent) == (YEAR - 1, LEVEL, "live")
    assert test.peak >= max(20, test.e_value)
    assert test.why.startswith("after 251 closed bars side by side it has shown itself better, with the bar of 2024-")
    assert "20 is asked for of 1 test at once" in test.why
    assert found.why.startswith("1 of 1 challenger shown to be better than Production (new); over 1 test, one that")
    early = run(lineup_of(["new"]), live=noise()[:40], new=noise(sharpe=8, seed=1)[:40])
    assert early.tests[0].better == "neither"
    assert "neither has shown itself better: the challenger's evidence reached" in early.tests[0].why


def test_one_that_is_worse_has_lost():
    found = run(lineup_of(["new"]), live=noise(sharpe=8), new=noise(seed=1))
    assert found.tests[0].better == "incumbent"
    assert "Production has shown itself better" in found.tests[0].why
    assert found.why.startswith("None of 1 challenger shown to be better than Production, 1 to be worse;")


def test_it_is_the_sequential_test_of_the_bars_that_count():
    live, new = noise(), noise(sharpe=3, seed=1)
    result = challenge(new[:-1], live[:-1], level=LEVEL / 4)
    (test,) = run(lineup_of(["new"], num_tests=4), live=live, new=new).tests
    assert (test.e_value, test.level) == (result.e_value_T[-1], LEVEL / 4)
    assert test.peak == result.e_value_T.max()


@pytest.mark.parametrize("late", ["challenger", "production"])
def test_what_got_it_selected_is_no_test_of_it(late):
    """Splendid up to day 200, when one of the two entered; from there on the two are alike."""
    splendid = np.append(noise(200, sharpe=12, seed=1), noise(100, seed=2))
    tracks = {"live": noise(300), "new": splendid}
    entered, since = (day(200), LONG_AGO) if late == "challenger" else (LONG_AGO, day(200))
    (test,) = run(lineup_of({"new": entered}, since=since), **tracks).tests
    assert (test.since, test.num_bars) == (day(200), 99)
    assert test.better == "neither"
    (hindsight,) = run(lineup_of({"new": LONG_AGO}), **tracks).tests
    assert hindsight.better == "challenger"


def test_a_bar_counts_from_the_first_decision_after_and_to_the_last_that_is_closed():
    net = {"live": noise(20), "new": noise(20, seed=1)}
    on_the_dot = lineup_of({"new": day(10, hours=1)})  # when bar 10 was decided
    before = lineup_of({"new": day(10, minutes=59)})
    assert run(on_the_dot, **net).tests[0].num_bars == 8
    assert run(before, **net).tests[0].num_bars == 9
    nothing = run(lineup_of({"new": day(18, hours=1)}), **net)
    assert nothing.tests[0].num_bars == 0
    assert (nothing.tests[0].e_value, nothing.tests[0].peak, nothing.tests[0].better) == (1.0, 1.0, "neither")
    assert nothing.tests[0].why == (
        "no bar counts yet: none that was decided after 2024-01-19 01:00 UTC has closed on both sides"
    )


def test_what_the_open_bar_has_earned_so_far_says_nothing():
    live, new = noise(), noise(sharpe=3, seed=1)
    windfall = np.append(new[:-1], 9.0)
    assert run(lineup_of(["new"]), live=live, new=windfall) == run(lineup_of(["new"]), live=live, new=new)


def test_the_book_is_the_mean_by_the_shares_that_were_in_force():
    first, second, new = noise(), noise(seed=1), noise(sharpe=5, seed=2)
    shares = {"a": [(LONG_AGO, 0.25), (day(100), 0.6)], "b": [(LONG_AGO, 0.25), (day(100), 0.2)]}
    weight = np.where(np.arange(YEAR) < 100, 0.5, 0.75)
    book = weight * first + (1 - weight) * second
    found = run(lineup_of(["new"], production=shares), a=first, b=second, new=new)
    assert found.incumbent == {"a": 0.6, "b": 0.2}
    assert found.tests[0].incumbent == "a, b"
    alone = run(lineup_of(["new"]), live=book, new=new)
    assert found.tests[0].e_value == pytest.approx(alone.tests[0].e_value)
    today = 0.75 * first + 0.25 * second  # as if today's shares had always been
    assert found.tests[0].e_value != pytest.approx(
        run(lineup_of(["new"]), live=today, new=new).tests[0].e_value, rel=1e-3
    )


def test_bars_on_which_one_in_production_has_no_return_do_not_count():
    late = np.append(np.full(100, np.nan), noise(152, seed=1))
    both = {"a": [(LONG_AGO, 0.5)], "b": [(LONG_AGO, 0.5)]}
    found = run(lineup_of(["new"], production=both), a=noise(), b=late, new=noise(seed=2))
    assert found.tests[0].num_bars == 151
    idle = {"a": [(LONG_AGO, 1.0)], "b": [(LONG_AGO, 0.0)]}  # without capital there is nothing to wait for
    assert run(lineup_of(["new"], production=idle), a=noise(), b=late, new=noise(seed=2)).tests[0].num_bars == 251


@pytest.mark.parametrize(("gone", "named"), [("b", "b"), ("new", "new"), ("both", "b, new")])
def test_who_has_no_track_is_named(gone, named):
    both = {"a": [(LONG_AGO, 0.5)], "b": [(LONG_AGO, 0.5)]}
    net = {"a": noise(), "b": noise(seed=1), "new": noise(seed=2)}
    known = {name: each for name, each in net.items() if gone not in (name, "both") or name == "a"}
    (test,) = run(lineup_of(["new"], production=both), **known).tests
    assert (test.num_bars, test.better) == (0, "neither")
    assert test.why == f"no bar counts yet: there is no live forecast by {named} that was there in time"


@pytest.mark.parametrize(
    ("production", "said"),
    [
        ({}, "Nobody is in Production of m"),
        ({"idle": [(LONG_AGO, 0.0)]}, "idle in Production of m has no capital"),
    ],
)
def test_no_production_no_test(production, said):
    lineup = Lineup(
        challengers={"new": LONG_AGO, "other": LONG_AGO},
        production=production,
        since=LONG_AGO if production else None,
        num_tests=2 if production else 0,
    )
    found = run(lineup, new=noise(sharpe=8), other=noise(), idle=noise())
    assert (found.tests, found.since, found.num_tests) == ((), None, 0)
    assert found.why == f"{said}, so there is no incumbent to test 2 challengers in Staging against"
    empty = run(replace(lineup, challengers={}), new=noise())
    assert empty.why == f"{said}, so there is no incumbent to test anyone against"


def test_before_any_live_bar_there_is_nothing_to_say():
    none = shadow(lineup_of(["new"]), tracks_of(live=[], new=[]), bars_of(3), market="m")
    assert none.tests[0].why.startswith("no bar counts yet: none that was decided after")
    assert run(replace(lineup_of(["new"]), challengers={}), live=noise()).why == (
        "Nobody is in Staging of m, so there is nobody to test beside Production"
    )


# ---- the error rate --------------------------------------------------------------------------------------------------

NUM_WORLDS, NUM_CHALLENGERS = 100, 30


@pytest.fixture(scope="module")
def alike():
    """Three years in worlds where Production earns nothing, and 30 challengers with luck of their own nothing too."""
    names = [f"new-{k}" for k in range(NUM_CHALLENGERS)]
    return [
        run(
            lineup_of(names),
            live=np.zeros(3 * YEAR),
            **{name: noise(3 * YEAR, seed=[world, k]) for k, name in enumerate(names)},
        )
        for world in range(NUM_WORLDS)
    ]


def exceeds_level(num):
    return binomtest(num, NUM_WORLDS, LEVEL, alternative="greater").pvalue < 0.01


def test_of_many_that_are_no_better_any_is_called_in_at_most_the_level_of_worlds(alike):
    assert not exceeds_level(sum(any(test.better == "challenger" for test in found.tests) for found in alike))


def test_each_at_the_whole_level_any_would_be_called_far_more_often(alike):
    assert exceeds_level(sum(any(test.peak >= 1 / LEVEL for test in found.tests) for found in alike))


def test_the_bar_is_that_of_all_tests_begun_those_that_ended_too():
    found = run(lineup_of(["new", "other"], num_tests=10), live=noise(), new=noise(sharpe=8, seed=1), other=noise())
    assert {test.level for test in found.tests} == {LEVEL / 10}
    assert [test.challenger for test in found.tests] == ["new", "other"]  # most evidence first
    assert "200 is asked for of 10 tests at once" in found.tests[0].why
    assert found.why.endswith(
        "over 10 tests, one that is no better is called better in at most 5% of cases, however often one looks"
    )


# ---- from live signals -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid():
    rng = np.random.default_rng(0)
    ends = pd.date_range(START, periods=NUM_BARS, tz="UTC")
    close_TN = 100 * np.exp(np.cumsum(0.02 * rng.standard_normal((NUM_BARS, len(ENTITIES))), axis=0))
    frame = pd.DataFrame(close_TN, index=pd.Index(ends, name="event_time"), columns=list(ENTITIES))
    frame = frame.melt(ignore_index=False, var_name="entity_key", value_name="close").reset_index()
    bars = frame.assign(ingest_time=frame["event_time"] + pd.Timedelta("2min"), volume=1e5)
    return price_grid(bars, calendar="24/7", interval="1d")


def write(store, grid, variant, *, skill, version="v1", made=timedelta(minutes=10), first=FIRST, seed=0):
    """Live forecasts: noise and, by ``skill``, what comes; made so long after each decision, or at that moment."""
    hold_TN = np.full(grid.close_TN.shape, np.nan)
    hold_TN[:-2] = grid.close_TN[2:] / grid.close_TN[1:-1] - 1.0
    score_TN = np.random.default_rng(seed).standard_normal(hold_TN.shape) + skill * np.nan_to_num(hold_TN) / 0.02
    of = range(first, NUM_BARS)
    times = pd.DatetimeIndex(grid.sample_times_T[of]).tz_localize("UTC").repeat(len(ENTITIES))
    frame = {
        "variant": variant,
        "interval": "1d",
        "horizon": 1,
        "entity_key": list(ENTITIES) * len(of),
        "event_time": pd.DatetimeIndex(grid.event_times_T[of]).tz_localize("UTC").repeat(len(ENTITIES)),
        "made_at": times + made if isinstance(made, timedelta) else pd.Timestamp(made),
        "model_version": version,
        "kind": "live",
        "score": score_TN[of].ravel(),
        "confidence": 0.5,
    }
    store.write(pd.DataFrame(frame))


def run_live(store, grid, lineup, *, newest=None):
    panel = live_panel(grid, grid.close_TN[-1] if newest is None else newest, horizon=1)
    names = [*lineup.challengers, *lineup.production]
    thresholds = {
        name: {path.stem.removesuffix("-live"): 0.0 for path in store.root.glob(f"{name}/*")} for name in names
    }
    tracks = build_tracks(timely(store, panel), thresholds, panel, costs=COSTS, kind="live")
    return shadow(lineup, tracks, panel, market="m")


@pytest.fixture
def store(tmp_path, grid):
    made = SignalStore(root=tmp_path)
    write(made, grid, "live", skill=0.0)
    write(made, grid, "clever", skill=1.0, seed=1)
    write(made, grid, "alike", skill=0.0, seed=2)
    return made


def test_among_live_forecasts_the_clever_one_is_found_net_of_costs(store, grid):
    lineup = lineup_of(["clever", "alike"])
    found = run_live(store, grid, lineup)
    assert {test.challenger: test.better for test in found.tests} == {"clever": "challenger", "alike": "neither"}
    # the last bar isn't executed yet and the one before it is open
    assert {test.num_bars for test in found.tests} == {NUM_BARS - FIRST - 2}
    assert run_live(store, grid, lineup, newest=grid.close_TN[-1] * [9, 1, 1, 1, 1, 1]) == found


def test_only_what_was_decided_after_it_entered_counts(store, grid):
    entered = {"clever": day(200), "alike": LONG_AGO}
    found = {test.challenger: test.num_bars for test in run_live(store, grid, lineup_of(entered)).tests}
    # bar 200 ended as day 200 began, and was decided two minutes later
    assert found == {"clever": NUM_BARS - 200 - 2, "alike": NUM_BARS - FIRST - 2}


def test_what_a_model_says_of_bars_before_it_was_there_does_not_count(tmp_path, grid):
    """A model that was made on day 200 and speaks of all bars since day 90, which it may have learned."""
    store = SignalStore(root=tmp_path)
    write(store, grid, "live", skill=0.0)
    write(store, grid, "prophet", skill=5.0, made=day(200, hours=12))
    found = run_live(store, grid, lineup_of(["prophet"])).tests[0]
    # bar 199 was executed as day 200 began, bar 200 is as it ends
    assert found.num_bars == NUM_BARS - 200 - 2
    store_as_it_is = build_tracks(
        store, {"prophet": {"v1": 0.0}}, live_panel(grid, grid.close_TN[-1], horizon=1), costs=COSTS, kind="live"
    )
    assert len(store_as_it_is.event_times_T) == NUM_BARS - FIRST - 1


def test_bars_caught_up_by_a_model_that_was_there_count_like_any(tmp_path, grid):
    store = SignalStore(root=tmp_path)
    write(store, grid, "live", skill=0.0)
    write(store, grid, "clever", skill=1.0)
    on_time = run_live(store, grid, lineup_of(["clever"]))
    frame = store.read("clever", model_versions=["v1"], kind="live")
    missed = frame["event_time"].between(pd.Timestamp(day(120)), pd.Timestamp(day(150)))
    frame.loc[missed, "made_at"] = pd.Timestamp(day(151))
    store.write(frame)
    assert run_live(store, grid, lineup_of(["clever"])) == on_time


def test_of_a_refitted_variant_the_first_word_on_each_bar_counts(store, grid):
    before = run_live(store, grid, lineup_of(["alike"]))
    write(store, grid, "alike", skill=5.0, version="v2", made=timedelta(minutes=20), seed=2)
    assert run_live(store, grid, lineup_of(["alike"])) == before


def test_a_bar_is_closed_once_the_next_decision_is_executed(grid):
    closed_T = closed_bars(live_panel(grid, grid.close_TN[-1], horizon=1))
    assert closed_T.sum() == NUM_BARS - 2
    assert closed_T[: NUM_BARS - 2].all()
