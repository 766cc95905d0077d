"""What a feature pipeline is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

FloatArray: TypeAlias = NDArray[np.float64]
Columns: TypeAlias = Mapping[str, FloatArray]
Formula: TypeAlias = Callable[[Columns], FloatArray]


class PipelineError(ValueError):
    """A pipeline that doesn't exist or can't be computed; the message says what, got, allowed and the next step."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Feature:
    """One feature: its name, the bar columns it needs, and what it is in a line (unit, source).

    ``optional`` names columns that make it better where the market has them (trades beside bars); a formula looks
    whether they are there.
    """

    name: str
    inputs: tuple[str, ...]
    description: str
    optional: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Pipeline:
    """A named, versioned set of features of one entity's bars.

    ``compute`` maps the bars' columns, each (num_bars,) float64 in event-time order with NaN for missing, to one
    (num_bars,) array a feature. The value at bar i is a function of exactly the bars i-warmup_bars+1 .. i, bit for
    bit, whatever came before: NaN until that many bars exist. A feature whose inputs are absent is left out.
    """

    name: str
    version: int
    warmup_bars: int
    features: tuple[Feature, ...]
    compute: Callable[[Columns], dict[str, FloatArray]]

    @property
    def view_name(self) -> str:
        """Name of its feature view and table."""
        return f"{self.name}_v{self.version}"

    def applicable(self, columns: frozenset[str]) -> tuple[Feature, ...]:
        """The features that bars with these columns can feed."""
        return tuple(feature for feature in self.features if set(feature.inputs) <= columns)


def pipeline_of(*, name: str, version: int, warmup_bars: int, formulas: Mapping[Feature, Formula]) -> Pipeline:
    """A pipeline whose features each have a formula of their own.

    A formula maps the columns to a (num_bars,) series and may look back over at most ``warmup_bars`` bars, the
    current one included; what it says of earlier bars is blanked.
    """
    compute = partial(_evaluate, formulas, warmup_bars)
    return Pipeline(name=name, version=version, warmup_bars=warmup_bars, features=tuple(formulas), compute=compute)


def _evaluate(formulas: Mapping[Feature, Formula], warmup_bars: int, columns: Columns) -> dict[str, FloatArray]:
    return {
        feature.name: _blanked(formula(columns), warmup_bars - 1)
        for feature, formula in formulas.items()
        if set(feature.inputs) <= columns.keys()
    }


def _blanked(series: FloatArray, num_bars: int) -> FloatArray:
    blanked = series.copy()  # a formula may hand back a column itself
    blanked[:num_bars] = np.nan
    return blanked
