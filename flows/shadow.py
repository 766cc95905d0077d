"""Shadow and A/B: what every challenger in Staging has shown beside the Production book, on what both did live."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from rich.console import Console

from feature_repo.market.schema import Market
from flows import postgres
from flows.command import table
from flows.cycle import CycleConfig
from flows.settings import Settings
from flows.stages import open_log
from flows.steps import data
from flows.steps.live import read_live
from training.rating.audit import AuditLog
from training.rating.promotion import StageError, assignments, models_of
from training.rating.shadow import Shadow, line_up, shadow
from training.rating.tracks import build_tracks
from training.tracking import connect, model_name

if TYPE_CHECKING:
    from mlflow import MlflowClient

E_VALUE_TAG: Final = "challenger.e_value"
"""Tag of a registered model: the evidence now that it is better than the Production book."""
VERDICT_TAG: Final = "challenger.verdict"
"""Tag of a registered model: whose lead was shown (challenger, incumbent or neither), and in words what was found."""
_COLUMNS: Final = ("challenger", "since", "num_bars", "e_value", "peak", "asked", "better", "why")


def shadow_now(settings: Settings, config: CycleConfig, *, now: datetime) -> Shadow:
    """What the challengers of a market have shown up to ``now``; nothing is written."""
    if not postgres.exists(settings):
        raise StageError(f"nothing runs in the shadow of anything in {settings.home}: `perennial run` stages some")
    market = data.load(config, now)
    with postgres.Hold(settings) as hold, open_log(settings, hold.databases) as log:
        return beside_production(settings, config, market, connect(hold.databases.url("mlflow")), log, now=now)


def beside_production(
    settings: Settings, config: CycleConfig, market: Market, client: MlflowClient, log: AuditLog, *, now: datetime
) -> Shadow:
    """Test every challenger in Staging against the market's Production book, by their live forecasts up to ``now``."""
    name = market.info.name
    lineup = line_up(assignments(client, name), log.rows(name))
    live = read_live(settings, config, market, now=now)
    tracks = build_tracks(
        live.signals,
        live.thresholds({*lineup.challengers, *lineup.production}),
        live.panel,
        costs=market.info.costs,
        kind="live",
        traded_value_TN=live.traded_value_TN,
    )
    return shadow(lineup, tracks, live.panel, market=name)


def keep(client: MlflowClient, found: Shadow) -> None:
    """Write what each challenger has shown as tags of its registered model; who is none any more loses them."""
    told = {model_name(found.market, test.challenger): test for test in found.tests}
    for model in models_of(client, found.market):
        test = told.get(model.name)
        tags = {E_VALUE_TAG: f"{test.e_value:.4g}", VERDICT_TAG: f"{test.better}: {test.why}"} if test else {}
        for tag in (E_VALUE_TAG, VERDICT_TAG):
            if tag in tags:
                client.set_registered_model_tag(model.name, tag, tags[tag])
            elif tag in model.tags:
                client.delete_registered_model_tag(model.name, tag)


def render(console: Console, found: Shadow) -> None:
    """Print the tests, and what they come to."""
    if found.tests:
        rows = plain(found)["tests"]
        book = ", ".join(f"{variant} {share:.0%}" for variant, share in found.incumbent.items())
        shown = [{name: row[name] for name in _COLUMNS} for row in rows]
        console.print(table(f"Beside Production ({book}) of {found.market}", shown))
    console.print(f"{found.why}.", markup=False)


def plain(found: Shadow) -> dict[str, Any]:
    """The same as plain data; ``asked`` is the evidence that a test is asked for."""
    rows: dict[str, Any] = json.loads(json.dumps(asdict(found), default=_minutes))
    for row in rows["tests"]:
        row["asked"] = 1.0 / row["level"]
    return rows


def _minutes(time: datetime) -> str:
    return time.isoformat(timespec="minutes")
