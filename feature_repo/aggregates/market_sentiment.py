"""What is said of the whole market, beside every asset's bars; ``sentiment`` says how it is measured."""

from __future__ import annotations

from feature_repo.aggregates.base import Aggregate
from feature_repo.aggregates.sentiment import MEASURES, market_versions

AGGREGATE = Aggregate(
    name="market_sentiment", columns=tuple(f"market_{measure}" for measure in MEASURES), versions=market_versions
)
