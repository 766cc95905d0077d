"""`perennial features`: pages of a real market's features, and the health of tables that a run left."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from feature_repo.pipelines.build import build_features
from feature_repo.pipelines.catalog import pipeline
from feature_repo.store.tables import append_rows
from flows.cycle import CycleConfig
from flows.features import FeaturesError, health, write_tear_sheets
from flows.settings import Settings
from flows.steps.data import load
from tests.flows.small_market import write_small_market

NOW = datetime(2021, 6, 14, tzinfo=UTC)


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> CycleConfig:
    return CycleConfig(market=str(write_small_market(tmp_path_factory.mktemp("market") / "small", num_days=300)))


def test_a_page_a_pipeline(config: CycleConfig, tmp_path: Path) -> None:
    [(name, page)] = write_tear_sheets(config, ["momentum"], tmp_path / "out").items()
    assert name == "momentum"
    text = page.read_text()
    assert "return_10" in text
    assert "5 entities" in text, "the benchmark is not traded"


def test_a_pipeline_that_does_not_exist_is_refused_at_once(config: CycleConfig, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no pipeline 'momentun'"):
        write_tear_sheets(config, ["momentun"], tmp_path)


def test_health_of_the_stored_tables(config: CycleConfig, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    market = load(config, NOW)
    last = market.bars("1d")["event_time"].max()
    with pytest.raises(FeaturesError, match="perennial run --market"):
        health(settings, config, NOW)
    how = {"producer": "test", "producer_version": "abc", "run_id": "r", "written_at": NOW}
    rows = build_features(pipeline("momentum"), market.traded_bars("1d"), **how)
    append_rows(settings.features / "small" / "1d" / "momentum_v1", rows)
    assert health(settings, config, last.to_pydatetime().replace(hour=23)) == ([], 1)
    findings, _ = health(settings, config, NOW)
    assert [(each["feature"], each["check"]) for each in findings] == [("*", "freshness")]
