"""Perennial's figures as Evidently metrics.

The figures are computed elsewhere and handed to the report as additional data; a metric has only the strategy's name as
its parameter, for Evidently's trend panels draw one line for every set of parameters.
"""

from __future__ import annotations

from typing import Any, Final

import pandas as pd
from evidently.core.datasets import Dataset
from evidently.core.metric_types import SingleValue, SingleValueCalculation, SingleValueMetric
from evidently.core.report import Context
from evidently.legacy.model.widget import BaseWidgetInfo
from evidently.legacy.renderers.html_widgets import CounterData, WidgetSize, counter, table_data
from evidently.presets import DataDriftPreset

OUTCOMES: Final = "outcomes"  # one row: ic
FEATURES: Final = "features"  # feature, psi, classic, calibrated, drifted, verdict
VERDICTS: Final = "verdicts"  # verdict

TABLE_HEADER: Final = ("Feature", "Quantile PSI", "Classic row (0.10 / 0.25)", "Calibrated threshold", "Verdict")


class InformationCoefficient(SingleValueMetric):
    """Mean rank IC of a strategy's variants over the current window."""

    strategy: str


class InformationCoefficientCalculation(SingleValueCalculation[InformationCoefficient]):
    """Takes the IC from the report's outcomes."""

    def calculate(self, context: Context, current_data: Dataset, reference_data: Dataset | None) -> SingleValue:  # noqa: ARG002
        ic = float(_table(context, OUTCOMES)["ic"].iloc[0])
        result = self.result(ic)
        result.widget = [_counter(f"{ic:+.4f}", self.display_name())]
        return result

    def display_name(self) -> str:
        return f"Information coefficient of {self.metric.strategy}"


class DriftedFeatures(SingleValueMetric):
    """Share, 0 to 1, of the features whose quantile PSI is beyond both the classic and calibrated threshold."""

    strategy: str


class DriftedFeaturesCalculation(SingleValueCalculation[DriftedFeatures]):
    """Takes the features' PSI from the report's table, which it shows with the verdicts."""

    def calculate(self, context: Context, current_data: Dataset, reference_data: Dataset | None) -> SingleValue:  # noqa: ARG002
        features = _table(context, FEATURES)
        result = self.result(float(features["drifted"].mean()))
        result.widget = [
            _counter(f"{features['drifted'].sum():.0f} of {len(features)}", self.display_name()),
            *_verdict_table(_table(context, VERDICTS)),
            _feature_table(features),
        ]
        return result

    def display_name(self) -> str:
        return f"Drifted features of {self.metric.strategy}"


class EvidentlyPsi(DataDriftPreset):
    """Evidently's own drift table by PSI, under a heading that tells it from ours."""

    def render(self, context: Context, child_widgets: Any = None) -> list[BaseWidgetInfo]:
        _, *table = super().render(context, child_widgets)
        heading = _counter(
            "Evidently's own PSI", "Its bins (Sturges, equal width) over both windows: shown, not alarmed on"
        )
        return [heading, *table]


def _table(context: Context, name: str) -> pd.DataFrame:
    return context.additional_data[name].as_dataframe()


def _counter(value: str, label: str) -> BaseWidgetInfo:
    return counter(counters=[CounterData(label, value)], size=WidgetSize.FULL)


def _verdict_table(verdicts: pd.DataFrame) -> list[BaseWidgetInfo]:
    if verdicts.empty:
        return []
    return [table_data(title="Verdicts", column_names=["What the monitor says"], data=verdicts.to_numpy())]


def _feature_table(features: pd.DataFrame) -> BaseWidgetInfo:
    shown = features[["feature", "psi", "classic", "calibrated", "verdict"]]
    title = "Perennial's PSI: ten quantile bins of the reference window (alarms are raised on this one)"
    return table_data(title=title, column_names=TABLE_HEADER, data=shown.to_numpy())
