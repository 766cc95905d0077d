"""The gates on worlds of which the truth is known: luck, the market, planted skill, and a year of nightly gates.

A world has 486 variants of eight families: net returns with fat tails (Student's t, 4 degrees) and correlations of 0.6
within a family and 0.2 across. Their autocorrelations are drawn as simple long-short strategies on 100 US stocks
2013-2018 have them: 0.01 on average, from -0.05 to 0.06. "Autocorr." gives all of them 0.1, harder than any of
those; "unlike" takes their correlation away. Planted skill is a true net Sharpe
ratio, as a mean added. The gate is the one that a cycle runs. The naive rule promotes the twelve best Sharpe ratios. A
year is 252 gates, one a night, on a track that grows from 500 days.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any, Final

import numpy as np
from scipy.signal import lfilter
from scipy.stats import binomtest

from bench.report import Bar, Report, Row, at_least, at_most, options, progress, publish
from training.metrics import performance as perf
from training.rating.effective_trials import effective_trials
from training.rating.gates import LEVEL, REPS, YEAR_LEVEL, deflated_sharpe, nightly_level, skilled
from training.rating.overfitting import overfitting
from training.rating.step_m import bootstrap_counts

YEAR: Final = 252
NUM_VARIANTS: Final = 486
NUM_FAMILIES: Final = 8
WITHIN, ACROSS = 0.6, 0.2
TAIL: Final = 4.0
REAL: Final = (0.01, 0.035)  # mean and deviation of the autocorrelation
HARD: Final = 0.1
NAIVE: Final = 12
COST: Final = 0.0005  # of what is traded
MARKET_DAYS: Final = 1000
MARKET_SHARPE: Final = 2.0  # what the market had, annually, when it rose
WORKERS: Final = 2

Figures = dict[str, float]
Each = Callable[[Callable[[Any], Any], Iterable[Any]], list[Any]]  # applies the first to each of the second

# Tensor suffixes: W worlds, V variants, T bars, R replications.


@dataclass(frozen=True, kw_only=True, slots=True)
class World:
    """A world to draw: ``num_skilled`` variants have the true ``sharpe`` (annual), the others none.

    ``autocorrelation`` is that of all returns; None gives each one such as real ones have.
    """

    seed: int
    num_bars: int
    num_skilled: int = 0
    sharpe: float = 0.0
    alike: bool = True
    autocorrelation: float | None = None

    def __str__(self) -> str:
        marks = ["unlike"] * (not self.alike) + ["autocorr."] * (self.autocorrelation is not None)
        return ", ".join([f"{self.num_bars} days", *marks])


@dataclass(frozen=True, kw_only=True, slots=True)
class Size:
    """How many worlds of each kind, and which."""

    noise: int
    year: int
    market: int
    skill: int
    strongest: int  # of the Sharpe ratio that the bars are about
    lengths: Sequence[int] = (500, 1000)
    sharpes: Sequence[float] = (1.0, 1.5, 2.0)
    planted: Sequence[int] = (5, 20)


FULL: Final = Size(noise=400, year=400, market=400, skill=40, strongest=100)
QUICK: Final = Size(noise=24, year=12, market=2, skill=4, strongest=12, lengths=(500,), sharpes=(2.0,), planted=(20,))


# ---- worlds ----------------------------------------------------------------------------------------------------------


def draw(world: World) -> tuple[np.ndarray, np.ndarray]:
    """Net returns (V, T) of unit variance, and which variants are skilled (V,)."""
    rng = np.random.default_rng([world.seed, world.num_skilled, round(10 * world.sharpe)])
    family_V = np.arange(NUM_VARIANTS) % NUM_FAMILIES
    shocks = partial(_shocks, rng, num_bars=world.num_bars, autocorrelation=world.autocorrelation)
    net_VT = shocks(NUM_VARIANTS)
    if world.alike:
        shared_T, family_FT = shocks(1), shocks(NUM_FAMILIES)
        net_VT *= np.sqrt(1.0 - WITHIN)
        net_VT += np.sqrt(ACROSS) * shared_T + (np.sqrt(WITHIN - ACROSS) * family_FT)[family_V]
    is_skilled = np.zeros(NUM_VARIANTS, dtype=bool)
    is_skilled[rng.choice(NUM_VARIANTS, world.num_skilled, replace=False)] = True
    net_VT[is_skilled] += world.sharpe / np.sqrt(YEAR)
    return net_VT, is_skilled


def _shocks(rng: np.random.Generator, num: int, num_bars: int, autocorrelation: float | None = None) -> np.ndarray:
    """Fat-tailed rows of unit variance with this autocorrelation, or one like that of real ones each."""
    drawn = rng.standard_t(TAIL, (num, num_bars + 50)) * np.sqrt((TAIL - 2.0) / TAIL)
    each = rng.normal(*REAL, num) if autocorrelation is None else np.full(num, autocorrelation)
    rows = [lfilter([np.sqrt(1.0 - phi**2)], [1.0, -phi], row) for phi, row in zip(each, drawn, strict=True)]
    return np.stack(rows)[:, 50:]  # the first bars, which start from nothing, are forgotten


def draw_market(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Variants (V, T) that are long a rising market or flat, by a coin tossed each 20 days or so, and it (1, T)."""
    rng = np.random.default_rng([seed, 1])
    market_T = _rising(rng)
    net_VT = np.stack([_long_or_flat(rng, market_T[:, None]) for _ in range(NUM_VARIANTS)])
    return net_VT, market_T[None]


def draw_survivors(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The same on each of the 20 assets of 100 that will have risen most, with the market and their mean (2, T).

    So a desk's assets are chosen: without any skill they beat the index that they came from.
    """
    rng = np.random.default_rng([seed, 2])
    market_T = _rising(rng)
    all_TN = (rng.uniform(0.6, 1.4, (100, 1)) * market_T + 0.015 * _shocks(rng, 100, len(market_T))).T
    asset_TN = all_TN[:, np.argsort(all_TN.mean(axis=0))[-20:]]
    net_VT = np.stack([_long_or_flat(rng, asset_TN) for _ in range(NUM_VARIANTS)])
    return net_VT, np.stack([market_T, asset_TN.mean(axis=1)])


def _rising(rng: np.random.Generator) -> np.ndarray:
    market_T = 0.01 * _shocks(rng, 1, MARKET_DAYS + perf.MIN_BETA_BARS)[0]
    return market_T + 0.01 * MARKET_SHARPE / np.sqrt(YEAR) - market_T.mean()


def _long_or_flat(rng: np.random.Generator, asset_TN: np.ndarray) -> np.ndarray:
    """Net returns (T,) of being long each asset or not, 70% of the time, decided anew each 20 days or so."""
    switch_TN = rng.random(asset_TN.shape) < 1.0 / 20.0
    switch_TN[0] = True
    since_TN = np.maximum.accumulate(np.where(switch_TN, np.arange(len(asset_TN))[:, None], 0), axis=0)
    is_long_TN = np.take_along_axis(rng.random(asset_TN.shape) < 0.7, since_TN, axis=0).astype(float)
    traded_TN = np.abs(np.diff(is_long_TN, axis=0, prepend=0.0))
    return np.asarray((is_long_TN * asset_TN - COST * traded_TN).mean(axis=1))


# ---- what is measured of a world -------------------------------------------------------------------------------------


def judge_noise(world: World) -> Figures:
    """One gate on a world, as a cycle runs it, and what each way of looking makes of it."""
    net_VT, _ = draw(world)
    gate = skilled(net_VT, seed=world.seed)
    trials = effective_trials(net_VT)
    sharpe_V = perf.sharpe(net_VT, periods_per_year=1.0)
    best_1T = net_VT[[sharpe_V.argmax()]]
    deflated = deflated_sharpe(best_1T, sharpe_std=trials.sharpe_std, num_trials=trials.num_trials)
    deflated_by_all = deflated_sharpe(net_VT)[int(sharpe_V.argmax())]
    return {
        "promotes": gate.superior.any(),
        "StepM at 5%": gate.p_value <= LEVEL,
        "best PSR > 0.95": perf.psr(best_1T)[0] > 1.0 - LEVEL,
        "best DSR > 0.95": deflated[0].ok,
        "best DSR of all > 0.95": deflated_by_all.ok,
        "effective": trials.num_trials,
        "PBO": overfitting(net_VT).pbo,
        "block": gate.block_size,
    }


def judge_market(seed: int, *, drawn: Callable[[int], tuple[np.ndarray, np.ndarray]]) -> Figures:
    """How many market-holders pass: on raw returns, on those residual to the index alone, and as a cycle asks."""
    net_VT, market_FT = drawn(seed)
    asked = {
        "raw": net_VT,
        "index": perf.beta_residual(net_VT, market_FT[:1]),
        "residual": perf.beta_residual(net_VT, market_FT),
    }
    return {name: skilled(each[:, perf.MIN_BETA_BARS :], seed=seed).superior.sum() for name, each in asked.items()}


def judge_skill(world: World) -> Figures:
    """Whom the gate and the naive rule promote, and who of those is skilled."""
    net_VT, is_skilled = draw(world)
    promoted = skilled(net_VT, seed=world.seed).superior
    naive = np.argsort(perf.sharpe(net_VT, periods_per_year=1.0))[-NAIVE:]
    return {
        "true": (promoted & is_skilled).sum(),
        "false": (promoted & ~is_skilled).sum(),
        "naive true": is_skilled[naive].sum(),
        "naive false": (~is_skilled[naive]).sum(),
    }


# ---- a year of nightly gates -----------------------------------------------------------------------------------------


def judge_nights(nights: Sequence[int], *, seeds: Sequence[int], first: int, last: int) -> list[Figures]:
    """Of each world, whether any of these nights' gates promoted anyone; a night is the number of its bars.

    The whole gate is run where ``may_promote`` leaves it open, and on every 20th world on every 42nd night besides, to
    see that it is right.
    """
    kind = World(seed=0, num_bars=last, autocorrelation=HARD)
    worlds = [draw(replace(kind, seed=seed))[0].astype(np.float32) for seed in seeds]
    promoted, wrong, checked = np.zeros(len(seeds), dtype=bool), 0, 0
    for num_bars in nights:
        counts = _Counts(num_bars)
        for w in np.flatnonzero(~promoted):
            is_sample = w % 20 == 0 and (num_bars - first) % 42 == 0
            is_open = may_promote(worlds[w][:, :num_bars], counts)
            if is_open or is_sample:
                promoted[w] = skilled(worlds[w][:, :num_bars].astype(np.float64), seed=_SEED).superior.any()
            checked += is_sample
            wrong += bool(promoted[w]) and not is_open
    return [
        {"promotes": promoted[w], "wrong": wrong * (w == 0), "checked": checked * (w == 0)} for w in range(len(seeds))
    ]


_SEED: Final = 7


class _Counts:
    """The bootstrap's draws for one night, made as far as they are asked for; all worlds share them."""

    def __init__(self, num_bars: int) -> None:
        self.limit = math.ceil(_level(num_bars) * (REPS - 1))
        block_size = math.ceil(np.cbrt(num_bars))
        self._source = bootstrap_counts(num_bars, reps=REPS, seed=_SEED, block_size=block_size)
        self._made: list[np.ndarray] = []

    def chunks(self) -> Iterable[np.ndarray]:
        """Replications by chunks (R, T), in single precision."""
        yield from list(self._made)
        for chunk in self._source:
            some = np.array_split(chunk.astype(np.float32) / np.float32(chunk.shape[1]), 4)
            self._made += some
            yield from some


def _level(num_bars: int) -> float:
    return min(LEVEL, nightly_level(YEAR_LEVEL, num_bars=num_bars, num_trials=NUM_VARIANTS, year_bars=YEAR))


def may_promote(net_VT: np.ndarray, counts: _Counts) -> bool:
    """Whether the gate might promote anyone: False once so many replications beat the best that it can't.

    Variants with a mean below zero are left out, which only makes luck look weaker than it is; of the others the gate's
    luck is the same, as long as its blocks are the shortest it uses (looked after by the sample above).
    """
    mean_V = net_VT.mean(axis=1)
    std_V = np.sqrt(np.einsum("vt,vt->v", net_VT, net_VT) / net_VT.shape[1] - mean_V**2)
    above = mean_V > 0
    if not above.any():
        return False
    best = float((mean_V / std_V).max())
    luck_TV = ((net_VT[above] - mean_V[above, None]) / std_V[above, None]).T
    beaten = 0
    for chunk_RT in counts.chunks():
        beaten += int(((chunk_RT @ luck_TV).max(axis=1) > best).sum())
        if beaten > counts.limit:
            return False
    return True


# ---- rows and bars ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """What one part of the bench adds to the report."""

    rows: list[Row]
    bars: list[Bar]
    facts: list[str]


def noise_part(size: Size, each: Each) -> Part:
    """One gate on worlds without skill."""
    kinds = [
        World(seed=0, num_bars=num_bars, autocorrelation=hard) for num_bars in size.lengths for hard in (None, HARD)
    ]
    kinds.append(World(seed=0, num_bars=size.lengths[-1], alike=False))
    rows, bars, facts = [], [], []
    for kind in kinds:
        started = time.perf_counter()
        num = size.noise if kind.alike else max(size.noise // 4, 10)
        found = each(judge_noise, [replace(kind, seed=seed) for seed in range(num)])
        name = f"noise, {kind}"
        promoting = _count(found, "promotes")
        more = {
            "worlds": num,
            "promoting": _share(promoting, num),
            "at 5%": f"{_mean(found, 'StepM at 5%'):.1%}",
            "naive false": "100%",
        }
        rows.append(Row(name=name, seconds=time.perf_counter() - started, more=more))
        bars.append(at_least(f"{name}: p that at most 5% promote", _p_at_most(LEVEL, promoting, num), 0.01))
        facts.append(
            f"{name}: of the best variants {_mean(found, 'best PSR > 0.95'):.0%} have a PSR above 0.95 and "
            f"{_mean(found, 'best DSR > 0.95'):.0%} a deflated one by {_mean(found, 'effective'):.0f} effective trials "
            f"({_mean(found, 'best DSR of all > 0.95'):.0%} by all {NUM_VARIANTS}); "
            f"PBO {_mean(found, 'PBO'):.2f} on average; mean blocks of up to {max(f['block'] for f in found):.0f} bars"
        )
    return Part(rows=rows, bars=bars, facts=facts)


def year_part(size: Size, each: Each) -> Part:
    """A year of nightly gates on worlds without skill."""
    started = time.perf_counter()
    first = 500
    nights = range(first, first + YEAR)
    # Each worker takes every other night: a night's bootstrap is made once for all worlds.
    night_after_night = partial(judge_nights, seeds=range(1000, 1000 + size.year), first=first, last=nights[-1])
    found = each(night_after_night, [nights[start::WORKERS] for start in range(WORKERS)])
    ever = sum(any(process[w]["promotes"] for process in found) for w in range(size.year))
    checks = {key: int(sum(process[0][key] for process in found)) for key in ("wrong", "checked")}
    name = f"noise, {YEAR} nights from {first} days, autocorr."
    more = {"worlds": size.year, "promoting": _share(ever, size.year)}
    return Part(
        rows=[Row(name=name, seconds=time.perf_counter() - started, more=more)],
        bars=[
            at_least(f"{name}: p that at most 10% ever promote", _p_at_most(YEAR_LEVEL, ever, size.year), 0.01),
            *([at_most(f"{name}: share that ever promote", ever / size.year, YEAR_LEVEL)] if size is FULL else []),
            at_most(f"{name}: short cut wrong, of {checks['checked']} gates run in full", checks["wrong"], 0),
        ],
        facts=[
            f"a night's own level: {_level(first):.2%} at {first} bars, {_level(nights[-1]):.2%} at {nights[-1]}, "
            f"{_level(1000):.2%} at 1000"
        ],
    )


def market_part(size: Size, each: Each) -> Part:
    """Variants that merely hold the market, as it rises."""
    rows, bars, facts = [], [], []
    for kind, drawn in {"one market": draw_market, "20 survivors of 100": draw_survivors}.items():
        started = time.perf_counter()
        found = each(partial(judge_market, drawn=drawn), range(size.market))
        name = f"long or flat, {kind}, {MARKET_DAYS} days"
        promoting = _count(found, "residual")
        more = {"worlds": size.market, "promoting": _share(promoting, size.market)}
        rows.append(Row(name=name, seconds=time.perf_counter() - started, more=more))
        bars += [
            at_least(f"{name}: p that at most 5% promote", _p_at_most(LEVEL, promoting, size.market), 0.01),
            at_most(f"{name}: variants promoted in the first world", found[0]["residual"], 0),
        ]
        passing = sum(figures["residual"] for figures in found)
        facts.append(
            f"{name}: {passing:.0f} of {size.market * NUM_VARIANTS:,} variants pass in {size.market} worlds; of "
            f"{NUM_VARIANTS} the same gate promotes {_mean(found, 'raw'):.0f} on raw returns, on average, and "
            f"{_mean(found, 'index'):.1f} on those residual to the index alone"
        )
    return Part(rows=rows, bars=bars, facts=facts)


def skill_part(size: Size, each: Each) -> Part:
    """Planted skill: who finds it, and at what price."""
    rows, bars = [], []
    for sharpe in size.sharpes:
        for planted in size.planted:
            num = size.strongest if sharpe == max(size.sharpes) else size.skill
            row, found = _planted(num, each, World(seed=0, num_bars=1000, num_skilled=planted, sharpe=sharpe))
            rows.append(row)
            if sharpe == max(size.sharpes):
                bars += _skill_bars(row.name, found, planted)
    usual = World(seed=0, num_bars=1000, num_skilled=20, sharpe=2.0)
    rows += [
        _planted(size.skill, each, kind)[0] for kind in (replace(usual, num_bars=500), replace(usual, alike=False))
    ]
    rows.append(_planted(size.strongest, each, replace(usual, autocorrelation=HARD))[0])
    return Part(rows=rows, bars=bars, facts=[])


def _planted(num: int, each: Each, kind: World) -> tuple[Row, list[Figures]]:
    started = time.perf_counter()
    found = each(judge_skill, [replace(kind, seed=seed) for seed in range(num)])
    good, bad, naive_good, naive_bad = (
        sum(figures[key] for figures in found) for key in ("true", "false", "naive true", "naive false")
    )
    more = {
        "worlds": num,
        "promoting": _share(_count(found, "true"), num),
        "found": f"{good / num / kind.num_skilled:.0%}",
        "false": f"{bad / max(good + bad, 1):.1%}",
        "any false": _share(_count(found, "false"), num),
        "naive found": f"{naive_good / num / kind.num_skilled:.0%}",
        "naive false": f"{naive_bad / (naive_good + naive_bad):.0%}",
    }
    name = f"{kind.num_skilled} of Sharpe {kind.sharpe:g}, {kind}"
    return Row(name=name, seconds=time.perf_counter() - started, more=more), found


def _skill_bars(name: str, found: Sequence[Figures], planted: int) -> list[Bar]:
    good, bad = (sum(figures[key] for figures in found) for key in ("true", "false"))
    return [
        at_least(f"{name}: cycles promoting a true one", _count(found, "true") / len(found), 0.95),
        at_least(f"{name}: share found", good / len(found) / planted, 0.5),
        at_most(f"{name}: false discoveries", bad / max(good + bad, 1), 0.05),
    ]


def _count(found: Sequence[Figures], key: str) -> int:
    return sum(bool(figures[key]) for figures in found)


def _mean(found: Sequence[Figures], key: str) -> float:
    return float(np.mean([figures[key] for figures in found]))


def _p_at_most(share: float, count: int, num: int) -> float:
    """How likely so many or more are where the true share is at most this one."""
    return float(binomtest(count, num, share, alternative="greater").pvalue)


def _share(count: int, num: int) -> str:
    """A share of worlds with its exact 95% interval."""
    interval = binomtest(count, num).proportion_ci(0.95, "exact")
    return f"{count / num:.1%} ({100 * interval.low:.0f}-{interval.high:.0%})"


PARTS: Final[Mapping[str, Callable[[Size, Each], Part]]] = {
    "noise": noise_part,
    "year": year_part,
    "market": market_part,
    "skill": skill_part,
}


# ---- running it ------------------------------------------------------------------------------------------------------


def bench(size: Size, parts: Sequence[str] = tuple(PARTS)) -> Report:
    """Measure the named parts, worlds side by side."""
    os.environ.update(dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"))
    with ProcessPoolExecutor(WORKERS, mp_context=get_context("spawn")) as pool:

        def each(measure: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
            return list(pool.map(measure, items))

        done = []
        for name in parts:
            progress(f"{name} ...")
            done.append(PARTS[name](size, each))
    rows, bars, facts = ([line for part in done for line in getattr(part, kind)] for kind in ("rows", "bars", "facts"))
    return Report(bench="gates", rows=rows, bars=bars, facts=facts)


def main() -> int:
    """Run the bench, or those of its parts that are named."""
    parser = options(__doc__)
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all unless given")
    chosen = parser.parse_args()
    report = bench(QUICK if chosen.quick else FULL, chosen.parts or tuple(PARTS))
    return publish(report, as_json=chosen.json)


if __name__ == "__main__":
    raise SystemExit(main())
