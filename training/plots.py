"""The pictures of a cycle, as matplotlib figures without pyplot's global state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STAGE_COLOURS: Final = {"Production": "#1b7837", "Staging": "#2166ac"}
OTHER_COLOUR: Final = "#b0b0b0"
BLANK_COLOUR: Final = "#d9d9d9"  # not white: that is a colour of the scale, its middle
MAX_ROWS: Final = 40
MAX_NUMBERED: Final = 16  # columns of a heat map that leave room for numbers in the cells
MIDDLE_SCORE: Final = 0.5  # of the composite score: no better and no worse than the other variants


def ranking_bars(ranking: pd.DataFrame) -> Figure:
    """Scores of the first 40 rows (columns ``variant, score, stage``), coloured by stage, in the table's order."""
    from matplotlib.patches import Patch

    top = ranking.head(MAX_ROWS)[::-1]
    figure, axes = _figure(rows=len(top))
    axes.barh(top["variant"], top["score"], color=[STAGE_COLOURS.get(stage, OTHER_COLOUR) for stage in top["stage"]])
    stages = {**STAGE_COLOURS, "evaluated only": OTHER_COLOUR}
    handles = [Patch(color=colour, label=stage) for stage, colour in stages.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))  # beside the bars, never over them
    axes.set(title=f"Ranking{_shown(len(ranking))}", xlabel="composite score")
    axes.margins(y=0.01)
    return figure


def fold_heat_map(fold_ic: pd.DataFrame) -> Figure:
    """Information coefficient of the first 40 variants (rows) by fold (columns); NaN stays blank."""
    title = f"IC by fold{_shown(len(fold_ic))}"
    return _heat_map(fold_ic.head(MAX_ROWS), title=title, xlabel="fold", middle=0.0)


def score_heat_map(ranking: pd.DataFrame) -> Figure:
    """Mean score by architecture (rows) and pipeline (columns); blank where nothing was trained."""
    table = ranking.pivot_table(index="architecture", columns="pipeline", values="score", aggfunc="mean")
    title = "Mean score: architecture x pipeline"
    return _heat_map(table, title=title, xlabel="pipeline", middle=MIDDLE_SCORE)


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


def _shown(num_rows: int) -> str:
    """What a title adds where not all variants are in the picture."""
    return f", the first {MAX_ROWS} of {num_rows} variants" if num_rows > MAX_ROWS else ""


def _heat_map(table: pd.DataFrame, *, title: str, xlabel: str, middle: float) -> Figure:
    """Values as colours, ``middle`` as the palest; numbers in the cells where there is room."""
    figure, axes = _figure(rows=len(table))
    axes.set(title=title, xlabel=xlabel, facecolor=BLANK_COLOUR)
    if table.empty:
        return figure
    values = table.to_numpy(dtype=np.float64)
    far = np.abs(values[np.isfinite(values)] - middle)
    limit = float(far.max()) if far.size and far.max() > 0 else 1.0
    cells = np.ma.masked_invalid(values)
    image = axes.imshow(cells, cmap="RdBu", vmin=middle - limit, vmax=middle + limit, aspect="auto")
    every = -(-table.shape[1] // MAX_NUMBERED)
    axes.set_xticks(range(0, table.shape[1], every), [str(name) for name in table.columns[::every]])
    axes.set_yticks(range(table.shape[0]), [str(name) for name in table.index])
    if every == 1:
        _write_numbers(axes, values, dark=np.abs(values - middle) > 0.6 * limit)
    figure.colorbar(image, ax=axes)
    return figure


def _write_numbers(axes: Axes, values: NDArray[np.float64], *, dark: NDArray[np.bool_]) -> None:
    for row, column in np.argwhere(np.isfinite(values)):
        text = f"{round(values[row, column], 2) + 0.0:.2f}"  # the sum turns -0.00 into 0.00
        shade = "white" if dark[row, column] else "black"
        axes.text(column, row, text, ha="center", va="center", color=shade, fontsize="small")
