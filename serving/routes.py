"""The routes of the signal API: ``/`` lists the others, ``/health``, ``/models``, ``/signals``."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any, Final, cast, get_args

import pandas as pd
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute

from serving.schemas import (
    Health,
    Label,
    MarketHealth,
    Model,
    Models,
    Problem,
    Refused,
    Signal,
    Signals,
    Unavailable,
)
from serving.sources import NoSignalsError, Registered, RegistryError, ServingError, Sources
from training.rating.promotion import Assignment, Stage

LABELS: Final[dict[Stage, Label]] = {"Staging": "paper", "Production": "live"}
STAGES: Final[tuple[Stage, ...]] = get_args(Stage)
_UNAVAILABLE: Final[dict[int | str, dict[str, Any]]] = {503: {"model": Unavailable}}
_ERRORS: Final[dict[int | str, dict[str, Any]]] = {404: {"model": Refused}, 422: {"model": Refused}, **_UNAVAILABLE}

router = APIRouter()


class RefusedError(ServingError):
    """A request for something unknown; carries its answer."""

    def __init__(self, status: HTTPStatus, answer: Refused) -> None:
        super().__init__(f"{answer.what} {answer.got!r}: {answer.next_step}; allowed: {answer.allowed}")
        self.status, self.answer = status, answer


def _sources(request: Request) -> Sources:
    return cast(Sources, request.app.state.sources)


From = Annotated[Sources, Depends(_sources)]
Market = Annotated[str | None, Query(description="One market; without it all of them")]
Variant = Annotated[str | None, Query(description="One variant; without it all that are staged")]
AnyStage = Annotated[
    str | None,
    Query(
        description="One stage; without it Staging and Production, which trade", json_schema_extra={"enum": [*STAGES]}
    ),
]
StagedStage = Annotated[
    str | None, Query(description="One stage; without it both", json_schema_extra={"enum": [*LABELS]})
]


@router.get("/")
def index(request: Request) -> dict[str, str]:
    """What there is to ask for; it reads nothing, so it answers also while the registry is down."""
    _check_parameters(request, ())
    described = [route for route in router.routes if isinstance(route, APIRoute) and route.path != "/"]
    return {
        **{route.path: _described(route) for route in described},
        "/openapi.json": "The schema of all answers.",
        "/docs": "The same to read and try out in a browser; its scripts come from the internet.",
    }


@router.get("/health", responses=_UNAVAILABLE)
def health(request: Request, sources: From) -> Health:
    """Whether the registry answers, and how old each market's newest signal is."""
    _check_parameters(request, ())
    now = sources.clock()
    return Health(
        markets=[
            _market_health(sources, market, list(held.values()), now)
            for market, held in sources.registry.read().items()
        ],
        max_age_s=sources.max_age.total_seconds(),
        version=request.app.version,
    )


@router.get("/models", responses=_ERRORS)
def models(request: Request, sources: From, market: Market = None, stage: AnyStage = None) -> Models:
    """The variants of a stage, or all that trade."""
    _check_parameters(request, ("market", "stage"))
    stages = _chosen_stages(stage, STAGES)
    chosen = _chosen_markets(sources.registry.read(), market)
    return Models(models=[_model(name, held) for name in chosen for held in _in_stages(chosen[name].values(), stages)])


@router.get("/signals", responses=_ERRORS)
def signals(
    request: Request, sources: From, market: Market = None, variant: Variant = None, stage: StagedStage = None
) -> Signals:
    """The newest live signal of each entity by each staged model; models without any are under ``problems``."""
    _check_parameters(request, ("market", "variant", "stage"))
    stages = _chosen_stages(stage, tuple(LABELS))
    chosen = _chosen_variant(_chosen_markets(sources.registry.read(), market), variant)
    now = sources.clock()
    read = [_read(sources, name, held, now) for name in chosen for held in _in_stages(chosen[name].values(), stages)]
    return Signals(
        as_of=now,
        max_age_s=sources.max_age.total_seconds(),
        signals=[_signal(found, row, now, sources.max_age) for found in read for row in _rows(found.frame)],
        problems=[_problem(found) for found in read if found.reason],
    )


def add_error_answers(app: FastAPI) -> None:
    """Answer what the routes raise."""

    def refused(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RefusedError)
        return JSONResponse(error.answer.model_dump(mode="json"), error.status)

    def unavailable(_: Request, error: Exception) -> JSONResponse:
        answer = Unavailable(
            reason=f"the model registry can't be read: {error}",
            next_step="see 'perennial status', start what is down with 'perennial up', then ask again",
            version=app.version,
        )
        return JSONResponse(answer.model_dump(mode="json"), HTTPStatus.SERVICE_UNAVAILABLE)

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(RegistryError, unavailable)


# ---- what was asked for ----------------------------------------------------------------------------------------------


def _check_parameters(request: Request, allowed: Collection[str]) -> None:
    """A misspelt filter must not widen the answer."""
    for name in request.query_params:
        if name not in allowed:
            raise _refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "parameter", name, allowed, "leave it out")


def _chosen_stages(stage: str | None, allowed: Collection[Stage]) -> Collection[Stage]:
    if stage is None:
        return tuple(LABELS)
    if stage not in allowed:
        raise _refusal(HTTPStatus.UNPROCESSABLE_ENTITY, "stage", stage, allowed, "ask for one of the allowed stages")
    return (cast(Stage, stage),)


def _chosen_markets(registered: Registered, market: str | None) -> Registered:
    if market is None:
        return registered
    if market not in registered:
        step = "ask for one of the allowed markets, or run a cycle on yours: perennial run --market DIR"
        raise _refusal(HTTPStatus.NOT_FOUND, "market", market, registered, step)
    return {market: registered[market]}


def _chosen_variant(registered: Registered, variant: str | None) -> Registered:
    """Only this variant, in the markets that trade it; one that is registered and doesn't trade is refused too."""
    if variant is None:
        return registered
    trading = sorted({name for held in registered.values() for name, each in held.items() if each.stage in LABELS})
    if variant not in trading:
        found = [f"{held[variant].stage} in {market}" for market, held in registered.items() if variant in held]
        step = f"it is {', '.join(found) or 'not registered'}; only staged variants have signals, see also /models"
        raise _refusal(HTTPStatus.NOT_FOUND, "variant", variant, trading, step)
    return {market: {variant: held[variant]} for market, held in registered.items() if variant in held}


def _refusal(status: HTTPStatus, what: str, got: str, allowed: Collection[str], next_step: str) -> RefusedError:
    return RefusedError(status, Refused(what=what, got=got, allowed=[*allowed], next_step=next_step))


def _in_stages(held: Collection[Assignment], stages: Collection[Stage]) -> list[Assignment]:
    """Production first, then by allocation."""
    chosen = [each for each in held if each.stage in stages]
    return sorted(chosen, key=lambda each: (each.stage != "Production", each.stage, -each.allocation, each.variant))


# ---- what is answered ------------------------------------------------------------------------------------------------


def _described(route: APIRoute) -> str:
    """In a line what a route answers, and by what to filter it."""
    filters = [parameter.name for parameter in route.dependant.query_params]
    says = route.description.splitlines()[0]
    return f"{says} Filters: {', '.join(filters)}." if filters else says


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """A staged model's newest signals, or the reason why there are none."""

    market: str
    held: Assignment
    frame: pd.DataFrame
    reason: str = ""


def _read(sources: Sources, market: str, held: Assignment, now: datetime) -> _Found:
    try:
        return _Found(market=market, held=held, frame=sources.signals.newest(market, held, as_of=now))
    except NoSignalsError as error:
        return _Found(market=market, held=held, frame=pd.DataFrame(), reason=str(error))


def _rows(frame: pd.DataFrame) -> Iterator[dict[str, Any]]:
    yield from cast("list[dict[str, Any]]", frame.to_dict("records"))


def _market_health(sources: Sources, market: str, held: Collection[Assignment], now: datetime) -> MarketHealth:
    read = [_read(sources, market, each, now) for each in _in_stages(held, tuple(LABELS))]
    newest = max((found.frame["event_time"].max() for found in read if not found.reason), default=None)
    age = now - newest.to_pydatetime() if newest is not None else None
    return MarketHealth(
        market=market,
        num_staging=sum(each.stage == "Staging" for each in held),
        num_production=sum(each.stage == "Production" for each in held),
        newest_event_time=newest,
        age_s=age.total_seconds() if age is not None else None,
        stale=age > sources.max_age if age is not None else bool(read),
        num_problems=sum(bool(found.reason) for found in read),
    )


def _model(market: str, held: Assignment) -> Model:
    trained_from, trained_to = held.training_span
    return Model(
        market=market,
        variant=held.variant,
        version=held.version,
        stage=held.stage,
        label=LABELS.get(held.stage),
        allocation=held.allocation,
        trained_from=trained_from,
        trained_to=trained_to,
        dataset_fingerprint=held.dataset_fingerprint,
        since=held.since,
        by=held.by,
        reason=held.reason,
        checksum=held.checksum,
    )


def _signal(found: _Found, row: dict[str, Any], now: datetime, max_age: timedelta) -> Signal:
    reason = _staleness(row["event_time"].to_pydatetime(), now, max_age)
    return Signal(
        market=found.market,
        variant=found.held.variant,
        version=found.held.version,
        model_version=row["model_version"],
        stage=found.held.stage,
        label=LABELS[found.held.stage],
        entity_key=row["entity_key"],
        event_time=row["event_time"],
        made_at=row["made_at"],
        interval=row["interval"],
        horizon=row["horizon"],
        score=_finite(row["score"]),
        confidence=_finite(row["confidence"]),
        stale=bool(reason),
        reason=reason,
    )


def _staleness(event_time: datetime, now: datetime, max_age: timedelta) -> str:
    age = now - event_time
    if age <= max_age:
        return ""
    day = timedelta(days=1)
    return f"its bar ended {age / day:.1f} days ago, allowed are {max_age / day:g}; bring newer bars and run a cycle"


def _finite(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _problem(found: _Found) -> Problem:
    held = found.held
    return Problem(
        market=found.market, variant=held.variant, version=held.version, stage=held.stage, reason=found.reason
    )
