"""What the signal API answers. Times are ISO 8601 in UTC, ages in seconds, shares and probabilities 0 to 1."""

from __future__ import annotations

from datetime import datetime
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from training.rating.promotion import Stage

Label: TypeAlias = Literal["paper", "live"]


class Answer(BaseModel):
    """Base of all answers: immutable, and no field that isn't declared."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Refused(Answer):
    """A request for something that isn't there (404), or isn't allowed (422)."""

    what: str = Field(description="The parameter that is wrong")
    got: str = Field(description="Its value in the request")
    allowed: list[str] = Field(description="The values it may have now")
    next_step: str = Field(description="What to ask instead")


class Unavailable(Answer):
    """The registry can't be read (503): nothing is served rather than something old."""

    status: Literal["unavailable"] = "unavailable"
    registry_reachable: Literal[False] = False
    reason: str = Field(description="What failed")
    next_step: str = Field(description="What to do about it")
    version: str = Field(description="Version of Perennial")


class MarketHealth(Answer):
    """What a market trades, and how old its newest signal is."""

    market: str
    num_staging: int = Field(description="Variants that trade on paper")
    num_production: int = Field(description="Variants that trade live")
    newest_event_time: datetime | None = Field(description="End of the newest bar with a signal; null without signals")
    age_s: float | None = Field(description="Seconds since that bar's end; null without signals")
    stale: bool = Field(description="The newest signal is older than allowed, or there is none though variants trade")
    num_problems: int = Field(description="Staged models whose signals are missing, see /signals")


class Health(Answer):
    """The API works and the registry answers; ``stale`` tells of each market whether its signals are fresh."""

    status: Literal["ok"] = "ok"
    registry_reachable: Literal[True] = True
    markets: list[MarketHealth] = Field(description="Markets with a registered model; empty before the first cycle")
    max_age_s: float = Field(description="Seconds after its bar's end at which a signal is stale")
    version: str = Field(description="Version of Perennial")


class Model(Answer):
    """A variant, its stage and the version that holds it."""

    market: str
    variant: str
    version: int = Field(description="Version of the MLflow registered model '<market>.<variant>'")
    stage: Stage
    label: Label | None = Field(description="paper in Staging, live in Production, else null")
    allocation: float = Field(description="Share of the stage's capital, 0 to 1")
    trained_from: str = Field(description="First sample time learned from, ISO 8601, UTC; empty if not recorded")
    trained_to: str = Field(description="Last sample time learned from, ISO 8601, UTC; empty if not recorded")
    dataset_fingerprint: str = Field(description="SHA-256 of the training data, hexadecimal")
    since: datetime = Field(description="When the variant got this stage, version and allocation")
    by: str = Field(description="Who moved it; 'mlflow-ui' for a person in the MLflow UI")
    reason: str
    checksum: str = Field(description="Hash of the fitted parameters; repeats when the fit is repeated")


class Models(Answer):
    """Variants by market; in each Production first, then by allocation."""

    models: list[Model]


class Signal(Answer):
    """The newest forecast of one staged variant for one entity."""

    market: str
    variant: str
    version: int = Field(description="Version of the MLflow registered model")
    model_version: str = Field(description="Training key of that version: the fit that made the forecast")
    stage: Stage
    label: Label = Field(description="paper: Staging, don't trade capital on it; live: Production")
    entity_key: str
    event_time: datetime = Field(description="End of the bar that the forecast was made on")
    made_at: datetime = Field(description="When the forecast was made")
    interval: str = Field(description="Bar interval, such as 1d")
    horizon: int = Field(description="Bars that the forecast looks ahead")
    score: float | None = Field(description="Expected return over the horizon by its volatility; null: not finite")
    confidence: float | None = Field(description="Probability that the score's sign is right, 0 to 1; null: not finite")
    stale: bool = Field(description="Not to be traded on, for this reason")
    reason: str = Field(description="Why it is stale; empty if it isn't")


class Problem(Answer):
    """A model that should have signals and has none that can be served."""

    market: str
    variant: str
    version: int
    stage: Stage
    reason: str


class Signals(Answer):
    """The newest live signals of the staged models, and the models that have none."""

    as_of: datetime = Field(description="The time at which staleness was judged")
    max_age_s: float = Field(description="Seconds after its bar's end at which a signal is stale")
    signals: list[Signal]
    problems: list[Problem]
