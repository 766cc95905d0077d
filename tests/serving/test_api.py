"""The signal API on a real MLflow store and a real signal store."""

from __future__ import annotations

import shutil
import warnings
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandas as pd
import pytest

from serving.app import create_app
from serving.sources import ConfigError, ServingConfig
from tests.training.rating.stage_desk import Unaudited
from training.rating.moves import apply
from training.rating.promotion import StageChange, assignments
from training.signals import SignalStore
from training.tracking import connect, markets, model_name

with warnings.catch_warnings():  # on import, before pytest's own filters can tell it from others
    warnings.filterwarnings("ignore", "Using `httpx` with `starlette.testclient` is deprecated")
    from fastapi.testclient import TestClient

NOW = datetime(2024, 5, 6, 21, tzinfo=UTC)
BAR = NOW - timedelta(days=1)


class Desk:
    """A home with a registry, a signal store and an API that shares its clock."""

    def __init__(self, home: Path) -> None:
        self.home, self.now = home, NOW
        self.config = ServingConfig(home=home, mlflow_uri=f"sqlite:///{home / 'mlflow.db'}")
        self.registry = connect(self.config.mlflow_uri)
        self.api = TestClient(create_app(self.config, clock=lambda: self.now))

    def get(self, path: str, *, status: int = 200, **query: str) -> dict:
        answer = self.api.get(path, params=query)
        assert answer.status_code == status, answer.text
        return answer.json()

    def register(self, market: str, variant: str, *, stage: str = "None", key: str = "k1", allocation=0.25) -> None:
        name = model_name(market, variant)
        self.registry.create_registered_model(name, tags={"market": market})
        facts = {"train_from": "2019-01-02", "train_to": "2020-01-03", "checksum": "c0ffee", "training_key": key}
        tags = {**facts, "dataset_fingerprint": "f" * 64}
        self.registry.create_model_version(name, "file:///m", tags=tags, await_creation_for=0)
        way = {"None": [], "Staging": ["Staging"], "Production": ["Staging", "Production"]}[stage]
        for before, after in zip(["None", *way], way, strict=False):
            self.move(market, variant, before, after, allocation=allocation)

    def move(self, market: str, variant: str, before: str, after: str, allocation=0.25) -> None:
        change = StageChange(
            variant=variant,
            version=1,
            from_=before,
            to=after,
            allocation=allocation,
            reason="asked for",
            after=assignments(self.registry, market)[variant].change,
        )
        apply(change, self.registry, Unaudited(), market=market, now=NOW, actor="anna")

    def write(self, market: str, variant: str, *bars: datetime, key="k1", kind="live", made_at=BAR, score=0.5) -> None:
        times = pd.DatetimeIndex(bars).as_unit("us")
        frame = pd.DataFrame(
            {
                "variant": variant,
                "interval": "1d",
                "horizon": 1,
                "entity_key": "AAPL",
                "event_time": times,
                "made_at": made_at,
                "model_version": key,
                "kind": kind,
                "score": score,
                "confidence": 0.6,
            }
        )
        SignalStore(root=self.home / "signals" / market).write(frame)


@pytest.fixture(scope="module")
def empty_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home whose registry has no models; making one takes seconds, copying it nothing."""
    home = tmp_path_factory.mktemp("empty")
    assert markets(Desk(home).registry) == []
    return home


@pytest.fixture(scope="module")
def trading_home(empty_home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One live and one paper model with signals, and one that is only registered, though it has signals too."""
    made = Desk(shutil.copytree(empty_home, tmp_path_factory.mktemp("trading"), dirs_exist_ok=True))
    for variant, stage in [("lstm", "Production"), ("arima", "Staging"), ("dqn", "None")]:
        made.register("us", variant, stage=stage)
        made.write("us", variant, BAR - timedelta(days=1), BAR)
    return made.home


@pytest.fixture
def desk(empty_home: Path, tmp_path: Path) -> Desk:
    return Desk(shutil.copytree(empty_home, tmp_path, dirs_exist_ok=True))


@pytest.fixture
def trading(trading_home: Path, tmp_path: Path) -> Desk:
    return Desk(shutil.copytree(trading_home, tmp_path, dirs_exist_ok=True))


def test_before_the_first_cycle_it_is_healthy_and_empty(desk):
    health = desk.get("/health")
    assert (health["status"], health["registry_reachable"], health["markets"]) == ("ok", True, [])
    assert health["version"]
    assert desk.get("/models") == {"models": []}
    answer = desk.get("/signals")
    assert (answer["signals"], answer["problems"]) == ([], [])


def test_its_address_lists_what_there_is_to_ask_for_without_the_registry(tmp_path):
    home = tmp_path / "gone"
    api = TestClient(create_app(ServingConfig(home=home, mlflow_uri=f"sqlite:///{home / 'mlflow.db'}")))
    routes = api.get("/").json()
    assert set(routes) == {"/health", "/models", "/signals", "/openapi.json", "/docs"}
    assert routes["/health"] == "Whether the registry answers, and how old each market's newest signal is."
    assert routes["/models"].endswith("Filters: market, stage.")
    assert all("\n" not in line and line.endswith(".") for line in routes.values())
    assert [api.get(path).status_code for path in ("/openapi.json", "/docs")] == [200, 200]
    assert api.get("/", params={"market": "us"}).status_code == 422
    assert not home.exists()


def test_health_tells_the_age_of_the_newest_signal(trading):
    (market,) = trading.get("/health")["markets"]
    assert market == {
        "market": "us",
        "num_staging": 1,
        "num_production": 1,
        "newest_event_time": "2024-05-05T21:00:00Z",
        "age_s": 86400.0,
        "stale": False,
        "num_problems": 0,
    }
    trading.now += timedelta(days=4)
    assert trading.get("/health")["markets"][0]["stale"] is True


def test_models_that_trade_are_labelled_and_carry_their_provenance(trading):
    live, paper = trading.get("/models")["models"]
    assert live == {
        "market": "us",
        "variant": "lstm",
        "version": 1,
        "stage": "Production",
        "label": "live",
        "allocation": 0.25,
        "trained_from": "2019-01-02",
        "trained_to": "2020-01-03",
        "dataset_fingerprint": "f" * 64,
        "since": "2024-05-06T21:00:00Z",
        "by": "anna",
        "reason": "asked for",
        "checksum": "c0ffee",
    }
    assert (paper["variant"], paper["stage"], paper["label"]) == ("arima", "Staging", "paper")
    (evaluated,) = trading.get("/models", stage="None")["models"]
    assert (evaluated["variant"], evaluated["label"]) == ("dqn", None)


def test_only_the_newest_signals_of_staged_models_are_served(trading):
    answer = trading.get("/signals")
    assert answer["problems"] == []
    assert [(each["variant"], each["label"]) for each in answer["signals"]] == [("lstm", "live"), ("arima", "paper")]
    assert answer["signals"][0] == {
        "market": "us",
        "variant": "lstm",
        "version": 1,
        "model_version": "k1",
        "stage": "Production",
        "label": "live",
        "entity_key": "AAPL",
        "event_time": "2024-05-05T21:00:00Z",
        "made_at": "2024-05-05T21:00:00Z",
        "interval": "1d",
        "horizon": 1,
        "score": 0.5,
        "confidence": 0.6,
        "stale": False,
        "reason": "",
    }


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"stage": "Staging"}, ["arima"]),
        ({"stage": "Production"}, ["lstm"]),
        ({"variant": "lstm"}, ["lstm"]),
        ({"variant": "lstm", "stage": "Staging"}, []),
        ({"market": "us"}, ["lstm", "arima"]),
    ],
)
def test_signals_can_be_narrowed(trading, query, expected):
    assert [each["variant"] for each in trading.get("/signals", **query)["signals"]] == expected


def test_markets_do_not_mix(trading):
    trading.register("crypto", "lstm", stage="Staging")
    trading.write("crypto", "lstm", BAR, score=-1.0)
    signals = trading.get("/signals", variant="lstm")["signals"]
    assert [(each["market"], each["label"], each["score"]) for each in signals] == [
        ("crypto", "paper", -1.0),
        ("us", "live", 0.5),
    ]
    assert {each["market"] for each in trading.get("/models", market="crypto")["models"]} == {"crypto"}


@pytest.mark.parametrize(("late", "stale"), [(timedelta(0), False), (timedelta(seconds=1), True)])
def test_a_signal_older_than_allowed_is_stale_and_says_why(trading, late, stale):
    trading.now = BAR + timedelta(days=4) + late
    signal = trading.get("/signals", variant="lstm")["signals"][0]
    assert signal["stale"] is stale
    assert signal["reason"].startswith("its bar ended 4.0 days ago") is stale


@pytest.mark.parametrize("wrong", [{"kind": "oos"}, {"key": "k2"}, {"made_at": NOW + timedelta(days=1)}])
def test_other_signals_are_never_taken_for_the_missing_ones(desk, wrong):
    """Neither out-of-sample ones, nor another fit's, nor such as nobody knows yet."""
    desk.register("us", "lstm", stage="Production")
    desk.write("us", "lstm", BAR, **wrong)
    answer = desk.get("/signals")
    assert answer["signals"] == []
    (problem,) = answer["problems"]
    assert (problem["variant"], problem["stage"]) == ("lstm", "Production")
    assert "run a cycle" in problem["reason"]
    (market,) = desk.get("/health")["markets"]
    assert (market["stale"], market["num_problems"], market["age_s"]) == (True, 1, None)


def test_an_unreadable_file_and_a_version_without_a_key_are_problems_and_the_rest_is_served(trading):
    (trading.home / "signals" / "us" / "arima" / "k1-live.parquet").write_bytes(b"torn")
    trading.register("us", "gru", stage="Staging", key="")
    answer = trading.get("/signals")
    assert [each["variant"] for each in answer["signals"]] == ["lstm"]
    reasons = {each["variant"]: each["reason"] for each in answer["problems"]}
    assert reasons.keys() == {"arima", "gru"}
    assert "can't be read" in reasons["arima"]
    assert "training_key" in reasons["gru"]


def test_a_score_that_is_not_finite_is_null(desk):
    desk.register("us", "lstm", stage="Staging")
    desk.write("us", "lstm", BAR, score=float("inf"))
    assert desk.get("/signals")["signals"][0]["score"] is None


@pytest.mark.parametrize(
    ("path", "query", "status", "what", "allowed"),
    [
        ("/models", {"market": "mars"}, 404, "market", ["us"]),
        ("/signals", {"market": "mars"}, 404, "market", ["us"]),
        ("/signals", {"variant": "gru"}, 404, "variant", ["arima", "lstm"]),
        ("/signals", {"variant": "dqn"}, 404, "variant", ["arima", "lstm"]),
        ("/signals", {"stage": "None"}, 422, "stage", ["Staging", "Production"]),
        ("/models", {"stage": "paper"}, 422, "stage", ["None", "Staging", "Production", "Archived"]),
        ("/signals", {"markt": "us"}, 422, "parameter", ["market", "variant", "stage"]),
    ],
)
def test_what_is_unknown_is_refused_with_what_is_allowed(trading, path, query, status, what, allowed):
    answer = trading.get(path, status=status, **query)
    assert (answer["what"], answer["allowed"]) == (what, allowed)
    assert answer["got"] in {*query, *query.values()}
    assert answer["next_step"]


def test_the_registry_is_read_again_after_a_few_seconds_and_not_before(trading):
    assert len(trading.get("/models")["models"]) == 2
    trading.move("us", "arima", "Staging", "None", allocation=0.0)
    trading.now += timedelta(seconds=4)
    assert len(trading.get("/models")["models"]) == 2
    trading.now += timedelta(seconds=1)
    assert [each["variant"] for each in trading.get("/models")["models"]] == ["lstm"]


@pytest.mark.parametrize("path", ["/health", "/models", "/signals"])
def test_a_registry_that_fails_later_means_503_and_no_old_answer(trading, path):
    trading.get(path)
    database = trading.home / "mlflow.db"
    whole = database.read_bytes()
    database.write_bytes(b"no database at all" * 1000)
    trading.now += timedelta(seconds=5)
    answer = trading.get(path, status=503)
    assert (answer["status"], answer["registry_reachable"]) == ("unavailable", False)
    assert "can't be read" in answer["reason"]
    assert "perennial status" in answer["next_step"]
    database.write_bytes(whole)
    trading.get(path)


def test_a_registry_that_was_never_there_means_503(tmp_path):
    config = ServingConfig(home=tmp_path, mlflow_uri=f"sqlite:///{tmp_path}/nowhere/mlflow.db")
    answer = TestClient(create_app(config, clock=lambda: NOW)).get("/health")
    assert answer.status_code == 503
    assert "unable to open database file" in answer.json()["reason"]


def test_units_are_in_the_schema(desk):
    schemas = desk.get("/openapi.json")["components"]["schemas"]
    assert "0 to 1" in schemas["Signal"]["properties"]["confidence"]["description"]
    assert "Seconds" in schemas["MarketHealth"]["properties"]["age_s"]["description"]


def test_the_configuration_comes_from_the_environment():
    given = {"PERENNIAL_HOME": "/data", "PERENNIAL_MLFLOW_URI": "sqlite://"}
    assert ServingConfig.from_env(given) == ServingConfig(home=Path("/data"), mlflow_uri="sqlite://")
    shorter = ServingConfig.from_env({**given, "PERENNIAL_SIGNAL_MAX_AGE_DAYS": "0.5"})
    assert shorter.max_age == timedelta(hours=12)


@pytest.mark.parametrize(
    ("environ", "named"),
    [
        ({"PERENNIAL_HOME": "/data"}, "PERENNIAL_MLFLOW_URI"),
        ({"PERENNIAL_HOME": "/d", "PERENNIAL_MLFLOW_URI": "u", "PERENNIAL_SIGNAL_MAX_AGE_DAYS": "-1"}, "'-1'"),
        ({"PERENNIAL_HOME": "/d", "PERENNIAL_MLFLOW_URI": "u", "PERENNIAL_SIGNAL_MAX_AGE_DAYS": "nan"}, "'nan'"),
    ],
)
def test_a_wrong_environment_is_refused_at_the_start(environ, named):
    with pytest.raises(ConfigError, match=named):
        ServingConfig.from_env(environ)
