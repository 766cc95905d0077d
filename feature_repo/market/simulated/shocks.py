"""What the world draws before any price: shocks within the day, latent series, traded volumes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from feature_repo.market.simulated.rounding import whole_lots
from feature_repo.market.simulated.spec import SimSpec, random_stream

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Tensor suffixes: T days with the burn-in, H hours of the day, N assets.

HOURS: Final = 24
MARKET_SHARE: Final = 0.35  # of a shock's variance
SECTOR_SHARE: Final = 0.15
PERSISTENCE: Final = {"volume": 0.9, "order_flow": 0.9, "sentiment": 0.92, "onchain": 0.95}
VOLUME_SIZE: Final = 0.5  # of a log volume's latent part
FLOW_SIZE: Final = 0.25  # half of what imbalance adds to the log volume of rising over falling hours
MIN_HOUR_LOTS: Final = 4_096  # enough for a few dozen trades in each quarter of an hour
_HOUR_PHASE: Final = 2 * np.pi * (np.arange(HOURS) - 15) / HOURS
HOUR_SHARE_H: Final[FloatArray] = (1 + 0.5 * np.cos(_HOUR_PHASE)) / HOURS
"""Each hour's share of a day's variance and volume; busiest at 15 to 16 UTC."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Shocks:
    """Draws that no price moves.

    ``hour_THN`` are Gaussian shocks of the hours whose sum has unit variance, ``mix_TN`` the variance (mean one) that
    makes the day's a Student-t: the day's shock is ``sqrt(mix) * sum of hours``. Given the mix the path is a Brownian
    motion, so what remains of a day can't be told from what has passed.
    """

    hour_THN: FloatArray
    mix_TN: FloatArray

    @property
    def day_TN(self) -> FloatArray:
        """The day's shock, of unit variance."""
        day: FloatArray = np.sqrt(self.mix_TN) * self.hour_THN.sum(axis=1)
        return day

    @property
    def reach_TN(self) -> FloatArray:
        """How far the path strays from the day's start at most."""
        reach: FloatArray = np.sqrt(self.mix_TN) * np.abs(self.hour_THN.cumsum(axis=1)).max(axis=1)
        return reach


def draw_shocks(spec: SimSpec, num_days: int, sector_N: IntArray) -> Shocks:
    """A market factor, sector factors and each asset's own shocks, hour by hour."""
    rng = random_stream(spec, "shocks")
    market = rng.standard_normal((num_days, HOURS, 1))
    sector = rng.standard_normal((num_days, HOURS, spec.num_sectors))[:, :, sector_N]
    own = rng.standard_normal((num_days, HOURS, spec.num_assets))
    shares = (MARKET_SHARE, SECTOR_SHARE, 1.0 - MARKET_SHARE - SECTOR_SHARE)
    hour_THN = sum(np.sqrt(share) * part for share, part in zip(shares, (market, sector, own), strict=True))
    mix_TN = (spec.tail_dof - 2.0) / rng.chisquare(spec.tail_dof, (num_days, spec.num_assets))
    return Shocks(hour_THN=hour_THN * np.sqrt(HOUR_SHARE_H)[:, None], mix_TN=mix_TN)


def autoregression_python(noise_TN: FloatArray, phi: float) -> FloatArray:
    """x[t] = phi x[t-1] + sqrt(1 - phi^2) noise[t], x[0] = noise[0]: unit variance throughout."""
    out_TN = noise_TN.copy()
    scale = np.sqrt(1.0 - phi * phi)
    for t in range(1, len(out_TN)):
        for i in range(out_TN.shape[1]):
            out_TN[t, i] = phi * out_TN[t - 1, i] + scale * noise_TN[t, i]
    return out_TN


autoregression = njit(cache=True, nogil=True)(autoregression_python)


def draw_latent(spec: SimSpec, name: str, num_days: int) -> FloatArray:
    """A latent series (T, N): unit variance, persistent, independent of everything else."""
    noise_TN = random_stream(spec, f"latent {name}").standard_normal((num_days, spec.num_assets))
    latent_TN: FloatArray = autoregression(noise_TN, PERSISTENCE[name])
    return latent_TN


def draw_volume(
    spec: SimSpec, shocks: Shocks, *, activity_TN: FloatArray, imbalance_TN: FloatArray, base_N: FloatArray
) -> FloatArray:
    """Traded volume of each hour (T, H, N), in whole lots.

    It rises with the latent activity, with the size of the day's and the hour's shocks, and with imbalance in rising
    hours and on rising days; in falling ones it falls with it.
    """
    noise_THN = random_stream(spec, "volume").standard_normal(shocks.hour_THN.shape)
    share_H1 = HOUR_SHARE_H[:, None]
    size_THN = np.log(np.abs(shocks.hour_THN) / np.sqrt(share_H1) + 0.1)
    flow_THN = FLOW_SIZE * imbalance_TN[:, None] * (np.sign(shocks.hour_THN) + np.sign(shocks.day_TN)[:, None])
    day_TN = VOLUME_SIZE * activity_TN + 0.15 * np.log(shocks.mix_TN)
    log_THN = day_TN[:, None] + flow_THN + 0.15 * size_THN + 0.3 * noise_THN
    return whole_lots(base_N * share_H1 * np.exp(log_THN), MIN_HOUR_LOTS)
