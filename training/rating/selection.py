"""Selection: who trades on paper, who trades live, and why not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, Literal, get_args

import numpy as np
import pandas as pd

from training.rating.gates import Verdict

Policy = Literal["strict", "advisory", "manual"]

EXIT_FACTOR: Final = 1.5
"""Places times this is the rank down to which a member keeps its place."""
MARGIN: Final = 0.05
"""Score by which a newcomer must beat a member to take its place: five points of percentile, more than a bar moves."""
FAMILY_SHARE: Final = 0.5
"""Share of the places that one family may have: models of a family share what they assume, and fail together."""


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
        """The variants in neither stage, which go on being rated, and why."""
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
    active: Mapping[str, str] = MappingProxyType({}),
    families: Mapping[str, str] = MappingProxyType({}),
) -> Selection:
    """Choose from ratings (``Ratings.table``), the variants' correlations (a frame by name) and the gates' verdicts.

    ``active`` maps the present members, those in Staging or Production, to their stage; ``families`` the variants to
    their family.

    Staging: the best ``top`` by rank, never more than half of the rated. A variant that never traded, one whose
    correlation with another already chosen is above ``max_correlation``, and one whose family has half of the places
    already, gives way to the next. (An unknown correlation or family is no hindrance, nor is a family where there is
    no other.) So that noise doesn't make membership flap, a member keeps its place down to ``EXIT_FACTOR`` times the
    places, unless a newcomer that ranks within the places beats its score by more than ``MARGIN``; the two caps hold
    for members too. Without members this is the plain rule.

    Paper trading costs nothing, so neither profit nor a gate is asked for. Of the chosen, Production takes those that
    made money net of costs and, by ``policy``: ``strict``, have verdicts none of which vetoes; ``advisory``, all (the
    gates are shown, rank decides); ``manual``, only those that a person put there. Within a stage the capital falls
    linearly with rank: n, n-1, .. 1 parts.
    """
    if policy not in get_args(Policy):
        raise SelectionError(f"unknown policy {policy!r}; choose one of {', '.join(get_args(Policy))}")
    ranked = table.sort_values("rank")
    places = _Places.of(ranked, correlation, top=top, max_correlation=max_correlation, active=active, families=families)
    places.fill()
    staging: list[str] = []
    production: list[str] = []
    reasons = places.reasons
    for variant in sorted(places.chosen, key=places.rank_of):
        sharpe_net = float(ranked.loc[variant, "sharpe_net"])
        promoted, reason = _promotion(sharpe_net, verdicts.get(variant, ()), policy, active.get(variant))
        (production if promoted else staging).append(variant)
        reasons[variant] = f"rank {places.rank_of(variant)}{places.held(variant)}, {reason}"
    return Selection(policy=policy, staging=_shares(staging), production=_shares(production), reasons=reasons)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Places:
    """The places in the two stages, as they fill; ``reasons`` says why a variant got none."""

    ranked: pd.DataFrame
    correlation: pd.DataFrame
    max_correlation: float
    active: Mapping[str, str]
    families: Mapping[str, str]
    num: int
    chosen: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        ranked: pd.DataFrame,
        correlation: pd.DataFrame,
        *,
        top: int,
        max_correlation: float,
        active: Mapping[str, str],
        families: Mapping[str, str],
    ) -> _Places:
        """Empty places, no more than half of the rated; a family that is the only one has no cap."""
        known = {variant: families[variant] for variant in ranked.index if variant in families}
        return cls(
            ranked=ranked,
            correlation=correlation,
            max_correlation=max_correlation,
            active=active,
            families=known if len(set(known.values())) > 1 else {},
            num=min(top, max(1, len(ranked) // 2)),
        )

    @property
    def exit_rank(self) -> int:
        return int(self.num * EXIT_FACTOR)

    @property
    def family_places(self) -> int:
        return max(1, int(self.num * FAMILY_SHARE))

    def rank_of(self, variant: str) -> int:
        return int(self.ranked.loc[variant, "rank"])

    def fill(self) -> None:
        """Members that hold theirs and newcomers within the places compete; what is left goes to the next by rank."""
        first = [each for each in self.ranked.index if self._holds(each) or self.rank_of(each) <= self.num]
        self._seat(sorted(first, key=self._standing))
        self._seat(each for each in self.ranked.index if each not in first)

    def held(self, variant: str) -> str:
        """What to say of a member that only holds its place because it had one."""
        if not self._holds(variant) or self.rank_of(variant) <= self.num:
            return ""
        return f" (a member keeps its place down to rank {self.exit_rank})"

    def _holds(self, variant: str) -> bool:
        return variant in self.active and self.rank_of(variant) <= self.exit_rank

    def _standing(self, variant: str) -> tuple[float, bool, int]:
        """What to sort by, best first; of equals the member, then the better rank."""
        holds = self._holds(variant)
        return (
            -(float(self.ranked.loc[variant, "score"]) + (MARGIN if holds else 0.0)),
            not holds,
            self.rank_of(variant),
        )

    def _seat(self, variants: Iterable[str]) -> None:
        for variant in variants:
            if hindrance := self._hindrance(variant):
                self.reasons[variant] = f"rank {self.rank_of(variant)} of {len(self.ranked)}{hindrance}"
            else:
                self.chosen.append(variant)

    def _hindrance(self, variant: str) -> str:
        """Why a variant can't have the next place, or nothing."""
        if not np.isfinite(self.ranked.loc[variant, "sharpe_net"]):
            return ", but it never traded"
        if len(self.chosen) >= self.num:
            return self._crowded_out(variant)
        alike = next((each for each in self.chosen if self._likeness(variant, each) > self.max_correlation), None)
        if alike is not None:
            better = "ranks higher" if self.rank_of(alike) < self.rank_of(variant) else "has a place already"
            return (
                f", but too like {alike}, which {better}: correlation {self._likeness(variant, alike):.2f}, "
                f"at most {self.max_correlation:.2f} is allowed"
            )
        family = self.families.get(variant)
        if family and sum(self.families.get(each) == family for each in self.chosen) >= self.family_places:
            return f", but the family {family} has {self.family_places} of the {self.num} places, which is its most"
        return ""

    def _likeness(self, variant: str, other: str) -> float:
        return float(self.correlation.loc[variant, other])

    def _crowded_out(self, variant: str) -> str:
        if variant in self.active and not self._holds(variant):
            return f": it fell below rank {self.exit_rank} and gave up its place; it goes on being rated"
        if variant in self.active:
            return (
                f": it gave up its place; all {self.num} went to better members and to newcomers that beat its score "
                f"by more than {MARGIN}; it goes on being rated"
            )
        if self.rank_of(variant) <= self.num:
            return (
                f": the {self.num} places in Staging were taken, and it beats no member's score by more than {MARGIN}"
            )
        return f": the {self.num} places in Staging were taken"


def _promotion(sharpe_net: float, verdicts: Sequence[Verdict], policy: Policy, stage: str | None) -> tuple[bool, str]:
    """Whether a chosen variant, which is in this stage now, goes to Production, and why."""
    vetoes = "; ".join(f"{verdict.gate}: {verdict.why}" for verdict in verdicts if verdict.veto and not verdict.ok)
    if policy == "manual" and stage == "Production":
        return True, f"live: a person promoted it; {vetoes or 'no gate stands against it'}"
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
