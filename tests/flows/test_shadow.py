"""Challengers beside Production as a desk sees them: on a market's files, a real registry and a real audit log."""

import io
import json
import uuid
from dataclasses import asdict, replace
from datetime import datetime, timedelta

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

from flows.cycle import CycleConfig
from flows.settings import Settings
from flows.shadow import E_VALUE_TAG, VERDICT_TAG, beside_production, keep, plain, render, shadow_now
from flows.stages import open_log
from flows.steps import data
from flows.steps.live import read_live, take_snapshot
from tests.flows.small_market import write_small_market
from tests.training.rating.stage_desk import Desk, change
from training.rating.promotion import StageError
from training.signals import SignalStore
from training.tracking import connect, model_name
from training.trainer import FoldResult

NUM_BARS, FIRST, ENTERED = 300, 60, 100
SKILL = {"live": 0.0, "clever": 2.0, "alike": 0.0, "late": 2.0, "rated": 0.0}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A market of a name of its own, since registry and signals are shared."""
    folder = write_small_market(tmp_path_factory.mktemp("markets") / "small", num_days=NUM_BARS)
    facts = (folder / "market.yaml").read_text().replace("name: small", f"name: m-{uuid.uuid4().hex}")
    (folder / "market.yaml").write_text(facts)
    return CycleConfig(market=str(folder))


@pytest.fixture(scope="module")
def market(config):
    return data.load(config, datetime.fromisoformat("2030-01-01T00:00+00:00"))


@pytest.fixture(scope="module")
def grid(market):
    return data.market_grid(market, "1d")


@pytest.fixture(scope="module")
def now(grid):
    """An hour after the newest bar."""
    return pd.Timestamp(grid.event_times_T[-1], tz="UTC").to_pydatetime() + timedelta(hours=1)


@pytest.fixture(scope="module")
def settings(databases, session_settings, market, grid):
    """A home in which every variant has one live fit and its forecasts; one made all of them at the end."""
    for k, (variant, skill) in enumerate(SKILL.items()):
        made_at = at(grid, NUM_BARS - 10) if variant == "late" else None
        write_forecasts(session_settings, market, grid, variant, skill=skill, made_at=made_at, seed=k)
    return session_settings


def write_forecasts(settings, market, grid, variant, *, skill, made_at, seed):
    traded = grid.only([entity for entity in grid.entities if entity != "INDEX"])
    hold_TN = np.zeros(traded.close_TN.shape)
    hold_TN[:-2] = traded.close_TN[2:] / traded.close_TN[1:-1] - 1.0
    score_TN = np.random.default_rng(seed).standard_normal(hold_TN.shape) + skill * hold_TN / 0.012
    of, num = range(FIRST, NUM_BARS), len(traded.entities)
    frame = {
        "variant": variant,
        "interval": "1d",
        "horizon": 1,
        "entity_key": list(traded.entities) * len(of),
        "event_time": pd.DatetimeIndex(traded.event_times_T[of]).tz_localize("UTC").repeat(num),
        "made_at": made_at or pd.DatetimeIndex(traded.sample_times_T[of]).tz_localize("UTC").repeat(num),
        "model_version": f"fit-{variant}",
        "kind": "live",
        "score": score_TN[of].ravel(),
        "confidence": 0.5,
    }
    SignalStore(root=settings.signals / market.info.name).write(pd.DataFrame(frame))
    fit = settings.cycles / "fits" / variant / f"fit-{variant}"
    fit.mkdir(parents=True, exist_ok=True)
    result = FoldResult(variant=variant, fold=-1, kind="live", key=fit.name, threshold=0.0, trained_to="2019")
    (fit / "result.json").write_text(json.dumps(asdict(result)))


def at(grid, bar):
    """Just after a bar was decided."""
    return pd.Timestamp(grid.sample_times_T[bar], tz="UTC").to_pydatetime() + timedelta(minutes=30)


@pytest.fixture(scope="module")
def log(settings, databases):
    with open_log(settings, databases) as opened:
        yield opened


@pytest.fixture(scope="module")
def desk(settings, databases, market, grid, log):
    """One variant live and three on paper; two were there early, refitted since, the third came late."""
    made = Desk(client=connect(databases.url("mlflow")), log=log, market=market.info.name)
    for variant in SKILL:
        made.register(variant, num_versions=2)
    early, later = at(grid, ENTERED - 10), at(grid, ENTERED)
    for variant, when in (("live", early), ("clever", later), ("alike", later), ("late", at(grid, NUM_BARS - 20))):
        made.step(change(variant), now=when)
    made.step(change("live", from_="Staging", to="Production", allocation=1.0), now=early)
    for variant, stage in (("live", "Production"), ("clever", "Staging")):
        made.step(change(variant, version=2, from_=stage, to=stage, allocation=0.5), now=at(grid, NUM_BARS - 3))
    return made


@pytest.fixture(scope="module")
def found(desk, settings, config, market, now):
    return beside_production(settings, config, market, desk.client, desk.log, now=now)


def test_the_clever_one_is_found_and_the_others_are_not(found, grid):
    tests = {test.challenger: test for test in found.tests}
    assert {name: test.better for name, test in tests.items()} == {
        "clever": "challenger",
        "alike": "neither",
        "late": "neither",
    }
    assert found.incumbent == {"live": 0.5}
    assert (found.num_tests, tests["alike"].level) == (3, pytest.approx(0.05 / 3))
    # decided after it entered, and before the open bar; the refit just before the end started nothing anew
    assert tests["clever"].since == at(grid, ENTERED)
    assert tests["clever"].num_bars == tests["alike"].num_bars == NUM_BARS - ENTERED - 3
    assert tests["late"].num_bars == 8  # of 17 since it entered: what its model said of bars before it is left out


def test_a_refit_alone_would_start_it_anew_if_the_log_were_not_asked(desk, found, settings, grid):
    from training.rating.promotion import current

    held = {each.variant: each.since for each in current(desk.client, desk.market)}
    assert held["clever"] == held["live"] == at(grid, NUM_BARS - 3)
    assert next(test for test in found.tests if test.challenger == "clever").since < held["clever"]


def test_the_open_bars_price_changes_nothing(desk, settings, config, market, now, found):
    bars = market.tables["bars_1d"]
    tick = bars[bars["event_time"] == bars["event_time"].max()][["entity_key", "close"]]
    tick = tick.assign(event_time=now - timedelta(minutes=1), ingest_time=now, price=2.0 * tick["close"])
    tick.loc[tick["entity_key"] == "A0", "price"] *= 9.0
    moved = replace(market, tables={**market.tables, "trades": tick.drop(columns="close")})
    assert (
        read_live(settings, config, moved, now=now).panel.hold_TN[-2]
        != read_live(settings, config, market, now=now).panel.hold_TN[-2]
    ).all()
    assert beside_production(settings, config, moved, desk.client, desk.log, now=now) == found


def test_the_command_says_the_same(desk, settings, config, now, found):
    assert shadow_now(settings, config, now=now) == found


def test_what_is_printed_has_every_test_and_the_plain_sentence(found):
    console = Console(file=io.StringIO(), width=200)
    render(console, found)
    printed = console.file.getvalue()
    for said in ("Beside Production (live 50%)", "clever", "alike", "late", "60 is asked for of 3 tests at once"):
        assert said in printed
    assert (
        "1 of 3 challengers shown to be better than Production (clever); over 3 tests, one that is no better" in printed
    )
    rows = plain(found)
    assert json.loads(json.dumps(rows)) == rows
    assert [row["challenger"] for row in rows["tests"]] == [test.challenger for test in found.tests]
    assert rows["tests"][0]["asked"] == pytest.approx(60)


def test_tags_say_it_in_mlflow_and_go_with_the_stage(desk, found):
    client = desk.client

    def tags(variant):
        model = client.get_registered_model(model_name(desk.market, variant))
        return {tag: value for tag, value in model.tags.items() if tag.startswith("challenger.")}

    client.set_registered_model_tag(model_name(desk.market, "rated"), E_VALUE_TAG, "from a stay that ended")
    keep(client, found)
    assert set(tags("clever")) == {E_VALUE_TAG, VERDICT_TAG}
    assert tags("clever")[VERDICT_TAG].startswith("challenger: after 197 closed bars side by side it has shown itself")
    shown = next(test for test in found.tests if test.challenger == "clever")
    assert float(tags("clever")[E_VALUE_TAG]) == pytest.approx(shown.e_value, rel=1e-3)
    assert tags("live") == tags("rated") == {}
    before = {variant: tags(variant) for variant in SKILL}
    keep(client, found)
    assert {variant: tags(variant) for variant in SKILL} == before
    assert desk.agree("clever")


def test_without_anyone_in_production_it_says_so(settings, config, market, databases, now, log):
    client = connect(databases.url("mlflow"))
    lonely = Desk(client=client, log=log)
    lonely.register("new")
    lonely.step(change("new"))
    elsewhere = replace(market, info=replace(market.info, name=lonely.market))
    nobody = beside_production(settings, config, elsewhere, client, log, now=now)
    assert nobody.why == (
        f"Nobody is in Production of {lonely.market}, so there is no incumbent to test 1 challenger in Staging against"
    )
    console = Console(file=io.StringIO(), width=200)
    render(console, nobody)
    assert console.file.getvalue() == f"{nobody.why}.\n"
    keep(client, nobody)


def test_before_the_first_cycle_there_is_nothing_to_look_at(tmp_path, config, now):
    with pytest.raises(StageError, match=r"nothing runs in the shadow of anything in .*perennial run"):
        shadow_now(Settings(home=tmp_path), config, now=now)


def test_the_snapshot_rates_the_same_live_tracks(settings, config, market, now):
    """Those of the fit made late are of the bars since: what it says of older ones is hindsight."""
    rows = take_snapshot(settings, config, market, active=["live"], now=now).set_index("variant")
    assert rows["num_days"].to_dict() == {**dict.fromkeys(SKILL, NUM_BARS - FIRST - 1), "late": 9}
    assert rows["sharpe_net"].drop("late").idxmax() == "clever"
