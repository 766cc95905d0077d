"""Shadow and A/B: has a challenger shown itself better than the incumbent it runs beside? Look as often as you like."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

BLOCK_BARS: Final = 5
GAIN_CLIP: Final = 2.5
LOSS_CLIP: Final = 4.0
"""How far a block's difference counts, in its past standard deviations: losses farther, against sellers of tails."""
MIN_SCALE_BLOCKS: Final = 4
_STAKES_S: Final = np.linspace(0.1, 0.9, 9) / LOSS_CLIP

# Tensor suffixes: T bars, P paired bars, B blocks, S stakes.


class ChallengeError(ValueError):
    """Tracks that can't be compared as asked; the message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Challenge:
    """What the tracks have shown.

    ``better`` is whose lead was shown first. ``e_value_T`` is the running evidence that the challenger is better,
    ``incumbent_e_value_T`` that the incumbent is; evidence of 20 shows it at a level of 5%. ``first_bar`` is the bar
    at whose end it was first shown, ``num_bars`` how many bars both have.
    """

    better: Literal["challenger", "incumbent", "neither"]
    e_value_T: FloatArray
    incumbent_e_value_T: FloatArray
    first_bar: int | None
    num_bars: int
    level: float

    @property
    def why(self) -> str:
        """The outcome in plain words."""
        if self.first_bar is None:
            best = max(1.0, float(self.e_value_T.max(initial=1.0)), float(self.incumbent_e_value_T.max(initial=1.0)))
            return (
                f"after {self.num_bars} bars side by side neither has shown itself better: the evidence reached "
                f"{best:.1f}, and {1.0 / self.level:.0f} is asked for"
            )
        return (
            f"the {self.better} has shown itself better at bar {self.first_bar + 1} of their {len(self.e_value_T)}: "
            f"evidence above {1.0 / self.level:.0f}, which one that is no better ever reaches in at most "
            f"{self.level:.0%} of cases"
        )


def challenge(
    challenger_T: FloatArray, incumbent_T: FloatArray, *, level: float = 0.05, block_bars: int = BLOCK_BARS
) -> Challenge:
    """Test net returns of the same bars against each other, at every bar anew.

    The chance that the challenger is ever called better, however long and often one looks, is at most ``level`` where
    it is not: where the mean of the paired differences, given the past, is not above 0. The same holds of the
    incumbent, and swapping the two swaps the outcome. Bars that one of the two lacks (NaN) are left out.

    A bettor stakes a constant share of its wealth on every difference: its wealth is a supermartingale where there is
    no edge, so it ever reaches ``1 / level`` in at most ``level`` of cases (Ville). The evidence is the mean wealth of
    bettors with nine stakes. What it rests on:

    - Blocks: one difference is the mean of ``block_bars`` bars (a week of days), so that what returns of one day say of
      the next counts little. Dependence between blocks is not accounted for.
    - Scale: the standard deviation of all blocks before it. Blocks before the fifth are not bet on.
    - Winsorising: of a block at most 2.5 such deviations are won and 4 lost, so what is tested is the mean of that. Fat
      tails don't harm, and one freak day can't decide; a crash that has not happened yet is not seen by any test.

    Row t uses rows up to t. Source: Waudby-Smith & Ramdas (2023), Estimating means of bounded random variables by
    betting, section 4; the mixture over stakes is Robbins' (1970) method of mixtures.
    """
    _check(challenger_T, incumbent_T, level, block_bars)
    difference_T = challenger_T - incumbent_T
    paired = np.flatnonzero(np.isfinite(difference_T))
    e_value_T = _on_bars(_e_values(difference_T[paired], block_bars), paired, len(difference_T), block_bars)
    against_T = _on_bars(_e_values(-difference_T[paired], block_bars), paired, len(difference_T), block_bars)
    first, first_against = _first(e_value_T, level), _first(against_T, level)
    better: Literal["challenger", "incumbent", "neither"] = "neither"
    if first is not None or first_against is not None:
        better = "challenger" if _before(first, first_against) else "incumbent"
    return Challenge(
        better=better,
        e_value_T=e_value_T,
        incumbent_e_value_T=against_T,
        first_bar=first if better == "challenger" else first_against,
        num_bars=len(paired),
        level=level,
    )


def _e_values(difference_P: FloatArray, block_bars: int) -> FloatArray:
    """The mean wealth of the bettors after each whole block (B,)."""
    num_blocks = len(difference_P) // block_bars
    block_B = difference_P[: num_blocks * block_bars].reshape(num_blocks, block_bars).mean(axis=1)
    scale_B = _past_scale(block_B)
    bet = scale_B > 0  # False for NaN: too early
    unit_B = np.where(bet, block_B, 0.0) / np.where(bet, scale_B, 1.0)
    won_SB = 1.0 + _STAKES_S[:, None] * np.clip(unit_B, -LOSS_CLIP, GAIN_CLIP)
    wealth_B: FloatArray = np.exp(np.cumsum(np.log(won_SB), axis=1)).mean(axis=0)
    return wealth_B


def _past_scale(block_B: FloatArray) -> FloatArray:
    """Standard deviation of all blocks before each one (B,), NaN where there are too few."""
    from_first_B = block_B - block_B[:1]  # keeps the digits of a small spread, and a constant's exactly 0
    count_B = np.arange(len(block_B))
    total_B, square_B = (np.cumsum(values) - values for values in (from_first_B, from_first_B**2))
    with np.errstate(divide="ignore", invalid="ignore"):
        variance_B = (square_B - total_B**2 / count_B) / (count_B - 1)
    return np.where(count_B >= MIN_SCALE_BLOCKS, np.sqrt(np.maximum(variance_B, 0.0)), np.nan)


def _on_bars(e_value_B: FloatArray, paired: NDArray[np.intp], num_bars: int, block_bars: int) -> FloatArray:
    """The evidence after each bar: that of the last block that was whole by then, 1 before the first."""
    ends = paired[block_bars - 1 :: block_bars][: len(e_value_B)]
    whole_T = np.searchsorted(ends, np.arange(num_bars), side="right")
    return np.concatenate([[1.0], e_value_B])[whole_T]


def _first(e_value_T: FloatArray, level: float) -> int | None:
    shown = np.flatnonzero(e_value_T >= 1.0 / level)
    return int(shown[0]) if len(shown) else None


def _before(first: int | None, other: int | None) -> bool:
    return first is not None and (other is None or first < other)


def _check(challenger_T: FloatArray, incumbent_T: FloatArray, level: float, block_bars: int) -> None:
    if challenger_T.ndim != 1 or challenger_T.shape != incumbent_T.shape:
        raise ChallengeError(
            f"the tracks have shapes {challenger_T.shape} and {incumbent_T.shape}; give net returns of the same bars, "
            "one a bar, NaN where one has none"
        )
    if not 0.0 < level < 1.0 or block_bars < 1:
        raise ChallengeError(f"level {level} must be between 0 and 1, and block_bars {block_bars} at least 1")
