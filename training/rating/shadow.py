"""Shadow tests: has a challenger in Staging shown itself better than the Production book it runs beside?

Both are taken as they ran: the book of a variant's live forecasts, net of costs, bar by bar. A bar counts where

- it was decided after the challenger entered its present stay in Staging, and after the present set in Production was
  in place: what got either of them there is no test of it. A refit or another share of the capital starts nothing anew;
- it is closed: what the open bar has earned so far will change;
- every variant in Production that had capital then had a track: else nobody knows what the book earned;
- and of the forecasts only those by models that were there before the first price that the bar could be traded at:
  what a model says of earlier bars may be what it learned from them. A bar without a forecast is a flat one.

**What is guaranteed.** Each test is an e-process (``training.rating.challenger``): evidence that, of a challenger that
is no better, ever reaches 1 / a in at most a share a of cases, however often and whenever one looks (Ville). Several
are tested at once, so each is at ``level / num_tests``, where ``num_tests`` counts every stay in Staging that has been
tested against the present set in Production, those that ended too: who drops out for doing badly must not lower the
bar for who is left. So when M tests have been begun, the chance that any of those that are no better is called better
at the bar for M is at most ``level`` (Bonferroni), however alike they are. It takes that M does not depend on how the
tests go. Where it may, and for all that was called on the way, when fewer had been begun, the chance is at most
``level * (1 + 1/2 + .. + 1/M)``: the i-th test never had a lower bar than i tests have. Both are said of one set in
Production: when that changes all tests begin again, and the chances of the sets add up.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import Final, Literal, TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from training.dataset import Panel, TimeArray
from training.rating.audit import AuditRow
from training.rating.challenger import Challenge, challenge
from training.rating.promotion import Assignment
from training.rating.tracks import Tracks

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
Better: TypeAlias = Literal["challenger", "incumbent", "neither"]

LEVEL: Final = 0.05  # chance that any challenger that is no better is called better, at most

# Tensor suffixes: V variants of the tracks, P variants in Production, T bars of the tracks.


@dataclass(frozen=True, kw_only=True, slots=True)
class Lineup:
    """Who runs beside whom.

    ``challengers`` maps a variant in Staging to when its present stay began. ``production`` maps a variant in
    Production to its shares of the capital and from when on it had each, oldest first; ``since`` is when the last one
    entered or left, None where nobody is there. ``num_tests`` counts the stays in Staging since then.
    """

    challengers: Mapping[str, datetime]
    production: Mapping[str, Sequence[tuple[datetime, float]]]
    since: datetime | None
    num_tests: int


@dataclass(frozen=True, kw_only=True, slots=True)
class ShadowTest:
    """What a challenger has shown beside the incumbent.

    ``num_bars`` bars decided after ``since`` count. ``e_value`` is the evidence now that the challenger is better, and
    ``peak`` the highest it ever was: 1 where there is none yet. ``better`` is whose lead was shown first, each at
    ``level``: where the incumbent's was, the challenger has lost.
    """

    challenger: str
    incumbent: str
    since: datetime
    num_bars: int
    e_value: float
    peak: float
    level: float
    better: Better
    why: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Shadow:
    """All challengers of a market beside its Production; ``incumbent`` maps its variants to their shares now.

    ``level`` is that of all ``num_tests`` together; ``tests`` are in the order of their evidence, most first.
    """

    market: str
    incumbent: Mapping[str, float]
    since: datetime | None
    num_tests: int
    level: float
    tests: Sequence[ShadowTest]
    why: str


# ---- who runs beside whom --------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class _Move:
    """A variant is in a stage, with this share of its capital, from this time on."""

    time: datetime
    stage: str
    allocation: float


def line_up(held: Mapping[str, Assignment], rows: Sequence[AuditRow]) -> Lineup:
    """Who runs beside whom now, by a market's ``assignments`` and all rows of its audit log, oldest first.

    An assignment's own ``since`` is its last change, and every refit is one; the log knows when a stay began. A move
    that isn't on record yet (made in the MLflow UI a moment ago) counts from when it was made.
    """
    stays = {variant: list(_stays(moves)) for variant, moves in _moves(held, rows).items()}
    now = {variant: each[-1] for variant, each in stays.items() if each and each[-1].end is None}
    production = {variant: stay for variant, stay in now.items() if stay.stage == "Production"}
    changed = [
        time
        for each in stays.values()
        for stay in each
        if stay.stage == "Production"
        for time in (stay.start, stay.end)
        if time is not None
    ]
    since = max(changed) if production else None
    on_paper = [stay for each in stays.values() for stay in each if stay.stage == "Staging"]
    return Lineup(
        challengers={variant: stay.start for variant, stay in now.items() if stay.stage == "Staging"},
        production={variant: stay.shares for variant, stay in production.items()},
        since=since,
        num_tests=sum(since is not None and (stay.end is None or stay.end > since) for stay in on_paper),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Stay:
    """The time that a variant spent in one stage without leaving it; ``end`` is None while it is there."""

    stage: str
    shares: Sequence[tuple[datetime, float]]
    end: datetime | None

    @property
    def start(self) -> datetime:
        return self.shares[0][0]


def _moves(held: Mapping[str, Assignment], rows: Sequence[AuditRow]) -> dict[str, list[_Move]]:
    moves: dict[str, list[_Move]] = {}
    for entry in (row.entry for row in rows):
        moves.setdefault(entry.variant, []).append(_Move(time=entry.time, stage=entry.to, allocation=entry.allocation))
    for variant, each in held.items():
        logged = moves[variant][-1].stage if variant in moves else "None"
        if each.stage != logged:
            moves.setdefault(variant, []).append(_Move(time=each.since, stage=each.stage, allocation=each.allocation))
    return moves


def _stays(moves: Sequence[_Move]) -> Iterator[_Stay]:
    """The stays in Staging and Production, oldest first."""
    starts = [0, *(i for i, (before, move) in enumerate(pairwise(moves), 1) if move.stage != before.stage), len(moves)]
    for first, stop in pairwise(starts):
        yield _Stay(
            stage=moves[first].stage,
            shares=[(move.time, move.allocation) for move in moves[first:stop]],
            end=moves[stop].time if stop < len(moves) else None,
        )


# ---- what ran --------------------------------------------------------------------------------------------------------


def closed_bars(panel: Panel) -> BoolArray:
    """Whether what a book holds over a bar is settled (T,): it ends with the next decision's execution."""
    executed_T = ~np.isnat(panel.labels.start_T)
    return np.append(executed_T[1:], False)


# ---- the tests -------------------------------------------------------------------------------------------------------


def shadow(lineup: Lineup, tracks: Tracks, panel: Panel, *, market: str, level: float = LEVEL) -> Shadow:
    """Test every challenger against the Production book; ``tracks`` are live ones over the panel's bars.

    The book's return is the mean of its variants' net returns by the shares of the capital they had when the bar was
    decided, so what comes of a share set later is not in it. See the module for which bars count.
    """
    decided_T, closed_T = _bars(tracks, panel)
    shares = {variant: shares[-1][1] for variant, shares in lineup.production.items()}
    if lineup.since is None or not any(shares.values()):
        why = _no_incumbent(market, shares, len(lineup.challengers))
        return Shadow(market=market, incumbent=shares, since=None, num_tests=0, level=level, tests=(), why=why)
    book_T, trackless = _book(lineup, tracks, decided_T)
    tests = []
    for variant, entered in lineup.challengers.items():
        since = max(entered, lineup.since)
        counts_T = closed_T & (decided_T > _utc(since))
        net_T = _net(tracks, variant)[counts_T]
        result = challenge(net_T, book_T[counts_T], level=level / lineup.num_tests)
        missing = [*trackless, *([] if np.isfinite(net_T).any() else [variant])] if counts_T.any() else []
        said = _why(result, since, tracks.event_times_T[counts_T], missing, lineup.num_tests)
        tests.append(_test(variant, shares, since, result, said))
    tests.sort(key=lambda test: (-test.peak, test.challenger))
    return Shadow(
        market=market,
        incumbent=shares,
        since=lineup.since,
        num_tests=lineup.num_tests,
        level=level,
        tests=tests,
        why=_summary(market, tests, level, lineup.num_tests),
    )


def _bars(tracks: Tracks, panel: Panel) -> tuple[TimeArray, BoolArray]:
    """When each bar of the tracks was decided, and whether it is closed (T,)."""
    at = np.searchsorted(panel.event_times_T, tracks.event_times_T)
    return panel.sample_times_T[at], closed_bars(panel)[at]


def _book(lineup: Lineup, tracks: Tracks, decided_T: TimeArray) -> tuple[FloatArray, list[str]]:
    """Net returns of the Production book (T,), NaN where they aren't known, and its variants without any track."""
    net_PT = np.stack([_net(tracks, variant) for variant in lineup.production])
    share_PT = np.stack([_shares(shares, decided_T) for shares in lineup.production.values()])
    total_T = share_PT.sum(axis=0)
    held_PT = np.where(share_PT > 0, share_PT * net_PT, 0.0)  # NaN where one with capital has no track
    book_T: FloatArray = held_PT.sum(axis=0) / np.where(total_T > 0, total_T, np.nan)
    trackless = [
        variant
        for variant, net_T, share_T in zip(lineup.production, net_PT, share_PT, strict=True)
        if share_T.any() and not np.isfinite(net_T).any()
    ]
    return book_T, trackless


def _shares(shares: Sequence[tuple[datetime, float]], decided_T: TimeArray) -> FloatArray:
    """The share in force at each decision (T,), 0 before the first."""
    from_T = np.array([_utc(time) for time, _ in shares])
    return np.array([0.0, *(share for _, share in shares)])[np.searchsorted(from_T, decided_T)]


def _net(tracks: Tracks, variant: str) -> FloatArray:
    """A variant's net returns (T,), NaN where it has no track."""
    if variant in tracks.variants:
        return tracks.net_VT[tracks.variants.index(variant)]
    return np.full(len(tracks.event_times_T), np.nan)


def _utc(time: datetime) -> np.datetime64:
    return np.datetime64(time.astimezone(UTC).replace(tzinfo=None), "us")


# ---- in words --------------------------------------------------------------------------------------------------------


def _test(variant: str, shares: Mapping[str, float], since: datetime, result: Challenge, why: str) -> ShadowTest:
    return ShadowTest(
        challenger=variant,
        incumbent=", ".join(shares),
        since=since,
        num_bars=result.num_bars,
        e_value=float(result.e_value_T[-1]) if len(result.e_value_T) else 1.0,
        peak=_peak(result.e_value_T),
        level=result.level,
        better=result.better,
        why=why,
    )


def _peak(e_value_T: FloatArray) -> float:
    return float(e_value_T.max(initial=1.0))


def _why(result: Challenge, since: datetime, event_times_T: TimeArray, missing: Sequence[str], num_tests: int) -> str:
    """The outcome in plain words; ``event_times_T`` are the counted bars' ends."""
    if missing:
        return f"no bar counts yet: there is no live forecast by {', '.join(missing)} that was there in time"
    if not result.num_bars:
        return f"no bar counts yet: none that was decided after {since:%Y-%m-%d %H:%M} UTC has closed on both sides"
    beside = f"after {_count(result.num_bars, 'closed bar')} side by side"
    asked = f"{1.0 / result.level:,.0f} is asked for of {_count(num_tests, 'test')} at once"
    if result.first_bar is None:
        peak = _peak(result.e_value_T)
        return f"{beside} neither has shown itself better: the challenger's evidence reached {peak:,.1f}, and {asked}"
    won, evidence_T = "it has", result.e_value_T
    if result.better == "incumbent":
        won, evidence_T = "Production has", result.incumbent_e_value_T
    shown = pd.Timestamp(event_times_T[result.first_bar])
    return (
        f"{beside} {won} shown itself better, with the bar of {shown:%Y-%m-%d %H:%M} UTC: the evidence reached "
        f"{_peak(evidence_T):,.0f}, and {asked}"
    )


def _summary(market: str, tests: Sequence[ShadowTest], level: float, num_tests: int) -> str:
    won = [test.challenger for test in tests if test.better == "challenger"]
    lost = sum(test.better == "incumbent" for test in tests)
    if not tests:
        return f"Nobody is in Staging of {market}, so there is nobody to test beside Production"
    said = f"{len(won) or 'None'} of {_count(len(tests), 'challenger')} shown to be better than Production"
    if won:
        said += f" ({', '.join(won)})"
    if lost:
        said += f", {lost} to be worse"
    return (
        f"{said}; over {_count(num_tests, 'test')}, one that is no better is called better in at most {level:.0%} of "
        "cases, however often one looks"
    )


def _no_incumbent(market: str, shares: Mapping[str, float], num_challengers: int) -> str:
    production = f"Production of {market}"
    lacking = f"{', '.join(shares)} in {production} has no capital" if shares else f"Nobody is in {production}"
    to_test = f"{_count(num_challengers, 'challenger')} in Staging" if num_challengers else "anyone"
    return f"{lacking}, so there is no incumbent to test {to_test} against"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
