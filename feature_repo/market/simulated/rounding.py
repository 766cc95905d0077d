"""Values as an exchange publishes them, with so few digits that no processor's last bit shows."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]

LOT: Final = 1.0 / 128.0
"""Every volume is a whole number of lots; a power of two, so that sums of volumes are exact."""
_POWERS: Final = np.array([float(f"1e{k}") for k in range(31)])


def significant(values: FloatArray, digits: int = 6) -> FloatArray:
    """Positive values to so many significant digits; never decreasing, NaN where NaN."""
    exponent = np.floor(np.log10(np.where(values > 0, values, 1.0))).astype(np.int64)
    decimals = digits - 1 - exponent
    scale = _POWERS[np.abs(decimals)]
    return np.where(decimals >= 0, np.rint(values * scale) / scale, np.rint(values / scale) * scale)


def whole_lots(volume: FloatArray, least: int) -> FloatArray:
    """Volumes to whole lots, at least so many lots."""
    return np.maximum(np.rint(volume / LOT), least).astype(np.float64) * LOT
