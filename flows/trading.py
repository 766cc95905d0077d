"""What is trading now, on paper or live."""

from __future__ import annotations

from dataclasses import dataclass

from flows.postgres import Databases


@dataclass(frozen=True, kw_only=True, slots=True)
class TradingRow:
    """One variant in a stage; ``trained_on`` is the first and last day learned from, ``since`` is in UTC."""

    market: str
    variant: str
    version: int
    stage: str
    allocation: float
    trained_on: str
    dataset: str
    since: str
    by: str


def trading_now(databases: Databases) -> list[TradingRow]:
    """Every staged variant of every market, Production first; empty before the first cycle."""
    from training.rating.promotion import current
    from training.tracking import connect, markets

    client = connect(databases.url("mlflow"))
    return [
        TradingRow(
            market=market,
            variant=held.variant,
            version=held.version,
            stage=held.stage,
            allocation=held.allocation,
            trained_on="/".join(end[:10] for end in held.training_span),
            dataset=held.dataset_fingerprint[:12],
            since=f"{held.since:%Y-%m-%d %H:%M}",
            by=held.by,
        )
        for market in markets(client)
        for held in current(client, market)
    ]
