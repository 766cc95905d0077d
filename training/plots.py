"""The pictures of a cycle, as matplotlib figures without pyplot's global state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STAGE_COLOURS: Final = {"Production": "#1b7837", "Staging": "#2166ac"}
OTHER_COLOUR: Final = "#b0b0b0"
MAX_ROWS: Final = 40


def ranking_bars(ranking: pd.DataFrame) -> Figure:
    """Scores of the first 40 rows (columns ``variant, score, stage``), coloured by stage, in the table's order."""
    top = ranking.head(MAX_ROWS)[::-1]
    figure, axes = _figure(rows=len(top))
    axes.barh(top["variant"], top["score"], color=[STAGE_COLOURS.get(stage, OTHER_COLOUR) for stage in top["stage"]])
    for stage, colour in {**STAGE_COLOURS, "evaluated only": OTHER_COLOUR}.items():
        axes.barh([], [], color=colour, label=stage)
    axes.legend(loc="lower right")
    axes.set(title="Ranking", xlabel="composite score")
    return figure


def fold_heat_map(fold_ic: pd.DataFrame) -> Figure:
    """Information coefficient of the first 40 variants (rows) by fold (columns); NaN stays blank."""
    return _heat_map(fold_ic.head(MAX_ROWS), title="IC by fold", xlabel="fold")


def score_heat_map(ranking: pd.DataFrame) -> Figure:
    """Mean score by architecture (rows) and pipeline (columns); blank where nothing was trained."""
    table = ranking.pivot_table(index="architecture", columns="pipeline", values="score", aggfunc="mean")
    return _heat_map(table, title="Mean score: architecture x pipeline", xlabel="pipeline")


def equity_curves(equity: pd.DataFrame) -> Figure:
    """One curve a column: the compounded net return since the start, over the index's times."""
    figure, axes = _figure(rows=16)
    for variant in equity:
        axes.plot(equity.index.to_numpy(), equity[variant].to_numpy(), label=str(variant), linewidth=1.2)
    axes.set(title="Net equity of the top variants, out of sample", ylabel="growth of 1")
    if len(equity.columns):
        axes.legend(fontsize="small", loc="upper left")
    return figure


def _figure(*, rows: int) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2 + 0.25 * rows), dpi=100, layout="constrained")
    return figure, figure.add_subplot()


def _heat_map(table: pd.DataFrame, *, title: str, xlabel: str) -> Figure:
    figure, axes = _figure(rows=len(table))
    axes.set(title=title, xlabel=xlabel)
    if table.empty:
        return figure
    values = table.to_numpy(dtype=np.float64)
    finite = np.abs(values[np.isfinite(values)])
    limit = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    image = axes.imshow(np.ma.masked_invalid(values), cmap="RdBu", vmin=-limit, vmax=limit, aspect="auto")
    axes.set_xticks(range(table.shape[1]), [str(name) for name in table.columns])
    axes.set_yticks(range(table.shape[0]), [str(name) for name in table.index])
    for row, column in np.argwhere(np.isfinite(values)):
        shade = "white" if abs(values[row, column]) > 0.6 * limit else "black"
        text = f"{values[row, column]:.2f}"
        axes.text(column, row, text, ha="center", va="center", color=shade, fontsize="small")
    figure.colorbar(image, ax=axes)
    return figure
