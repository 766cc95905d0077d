"""Selection: who trades on paper, who trades live, and why not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd

from training.rating.gates import Verdict

Policy = Literal["strict", "advisory", "manual"]


class SelectionError(ValueError):
    """A selection that can't be made as asked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Selection:
    """Who goes where.

    ``staging`` and ``production`` map a variant to its share of that stage's capital, best rank first, each summing
    to 1 (or empty); a variant is in one of them at most. ``reasons`` says in plain words why every variant is where
    it is.
    """

    policy: Policy
    staging: Mapping[str, float]
    production: Mapping[str, float]
    reasons: Mapping[str, str]

    @property
    def refused(self) -> dict[str, str]:
        """The variants in neither stage, and why."""
        chosen = {*self.staging, *self.production}
        return {variant: reason for variant, reason in self.reasons.items() if variant not in chosen}


def select(
    table: pd.DataFrame,
    correlation: pd.DataFrame,
    verdicts: Mapping[str, Sequence[Verdict]],
    *,
    policy: Policy = "strict",
    top: int = 12,
    max_correlation: float = 0.9,
) -> Selection:
    """Choose from ratings (``Ratings.table``), the variants' correlations (a frame by name) and the gates' verdicts.

    Staging: the best ``top`` by rank, never more than half of the rated; a variant that never traded, or one whose
    correlation with a better one already chosen is above ``max_correlation``, gives way to the next (an unknown
    correlation doesn't). Paper trading costs nothing, so neither profit nor a gate is asked for. Of the chosen,
    Production takes those that made money net of costs and, by ``policy``: ``strict``, have verdicts none of which
    vetoes; ``advisory``, all (the gates are shown, rank decides); ``manual``, none (a person promotes). Within a
    stage the capital falls linearly with rank: n, n-1, .. 1 parts.
    """
    if policy not in get_args(Policy):
        raise SelectionError(f"unknown policy {policy!r}; choose one of {', '.join(get_args(Policy))}")
    ranked = table.sort_values("rank")
    chosen, reasons = _staged(ranked, correlation, top=min(top, max(1, len(ranked) // 2)), limit=max_correlation)
    staging: list[str] = []
    production: list[str] = []
    for variant in chosen:
        promoted, reason = _promotion(float(ranked.loc[variant, "sharpe_net"]), verdicts.get(variant, ()), policy)
        (production if promoted else staging).append(variant)
        reasons[variant] = f"rank {ranked.loc[variant, 'rank']}, {reason}"
    return Selection(policy=policy, staging=_shares(staging), production=_shares(production), reasons=reasons)


def _staged(
    ranked: pd.DataFrame, correlation: pd.DataFrame, *, top: int, limit: float
) -> tuple[list[str], dict[str, str]]:
    """The variants chosen for a stage, best first, and why the others were not."""
    chosen: list[str] = []
    reasons: dict[str, str] = {}
    for variant, row in ranked.iterrows():
        twin = next((other for other in chosen if correlation.loc[variant, other] > limit), None)
        if not np.isfinite(row["sharpe_net"]):
            reasons[variant] = f"rank {row['rank']:.0f}, but it never traded"
        elif len(chosen) == top:
            reasons[variant] = f"rank {row['rank']:.0f} of {len(ranked)}: the {top} places in Staging were taken"
        elif twin is not None:
            likeness = correlation.loc[variant, twin]
            reasons[variant] = (
                f"rank {row['rank']:.0f}, but too like {twin}, which ranks higher: "
                f"correlation {likeness:.2f}, at most {limit:.2f} is allowed"
            )
        else:
            chosen.append(variant)
    return chosen, reasons


def _promotion(sharpe_net: float, verdicts: Sequence[Verdict], policy: Policy) -> tuple[bool, str]:
    """Whether a chosen variant goes on to Production, and why."""
    vetoes = "; ".join(f"{verdict.gate}: {verdict.why}" for verdict in verdicts if verdict.veto and not verdict.ok)
    if policy == "manual":
        return False, f"on paper until a person promotes it; {vetoes or 'no gate stands against it'}"
    if sharpe_net <= 0:
        return False, f"on paper: it did not make money net of costs (Sharpe ratio {sharpe_net:.2f})"
    if policy == "advisory":
        return True, f"live by rank (advisory policy); {vetoes or 'no gate stands against it'}"
    if not verdicts:
        return False, "on paper: no gate has judged it"
    return not vetoes, f"on paper: {vetoes}" if vetoes else "live: every gate passed"


def _shares(variants: Sequence[str]) -> dict[str, float]:
    """Capital shares that fall linearly with rank: n, n-1, .. 1 parts."""
    parts = np.arange(len(variants), 0, -1)
    return {variant: float(part / parts.sum()) for variant, part in zip(variants, parts, strict=True)}
