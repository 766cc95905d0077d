"""The tear sheet of a panel's features: what each is worth looking at before anyone trains on it.

In-sample by nature: every figure uses the whole history that the panel holds, so it is for throwing features out and
for understanding them, not for proving that they work.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from training.dataset import FloatArray, Panel
from training.metrics.forecast import Floats, ic_by_time, ic_t_stat, mean_ic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

HORIZONS: Final = (1, 2, 5, 10, 21)
TOP_SHARE: Final = 0.2

# Tensor suffixes: T sample times, N entities, F features, H horizons.


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureSheet:
    """One feature's figures over a panel.

    ``coverage`` is the share of (time, entity) pairs with a return that have a value. ``ic_H`` is the mean rank IC with
    the return over the next h bars, ``t_H`` its t-statistic over every h-th bar, so that returns don't overlap.
    ``autocorrelation`` is the mean rank correlation of the cross-section with that of the bar before. ``turnover`` is
    the share of the top fifth that was not in it a bar before. ``ic_T`` is the IC of each bar over one bar.
    """

    name: str
    coverage: float
    horizons: tuple[int, ...]
    ic_H: tuple[float, ...]
    t_H: tuple[float, ...]
    autocorrelation: float
    turnover: float
    ic_T: FloatArray


def feature_sheets(panel: Panel, horizons: Sequence[int] = HORIZONS) -> list[FeatureSheet]:
    """Every feature of the panel, in its order. Returns run from execution price to execution price."""
    outcomes = {h: compounded(panel.hold_TN, h) for h in horizons}
    tradable_TN = np.isfinite(panel.hold_TN)
    return [
        _sheet(name, np.asarray(panel.x_TNF[..., f], dtype=np.float64), outcomes, tradable_TN)
        for f, name in enumerate(panel.feature_names)
    ]


def compounded(hold_TN: Floats, horizon: int) -> FloatArray:
    """Return over the next ``horizon`` bars; NaN where one of them is missing or has not happened."""
    growth = np.lib.stride_tricks.sliding_window_view(1.0 + np.asarray(hold_TN), horizon, axis=0).prod(axis=-1)
    out = np.full(hold_TN.shape, np.nan)
    out[: len(growth)] = growth - 1.0
    return out


def top_turnover(x_TN: Floats) -> float:
    """Mean share of the top fifth (by value, at least one) that was not in it at the time before; NaN without any."""
    num_top = np.maximum((np.isfinite(x_TN).sum(axis=1) * TOP_SHARE).astype(int), 1)
    order = np.argsort(np.where(np.isfinite(x_TN), -x_TN, np.inf), axis=1, kind="stable")
    ranks = np.argsort(order, axis=1, kind="stable")
    top_TN = (ranks < num_top[:, None]) & np.isfinite(x_TN)
    held, new = top_TN[:-1].any(axis=1) & top_TN[1:].any(axis=1), (top_TN[1:] & ~top_TN[:-1]).sum(axis=1)
    return float((new[held] / top_TN[1:].sum(axis=1)[held]).mean()) if held.any() else float("nan")


def _sheet(
    name: str, x_TN: FloatArray, outcomes: dict[int, FloatArray], tradable_TN: NDArray[np.bool_]
) -> FeatureSheet:
    ics = {h: ic_by_time(x_TN, outcome) for h, outcome in outcomes.items()}
    return FeatureSheet(
        name=name,
        coverage=float((np.isfinite(x_TN) & tradable_TN).sum() / max(tradable_TN.sum(), 1)),
        horizons=tuple(outcomes),
        ic_H=tuple(float(mean_ic(ic)) for ic in ics.values()),
        t_H=tuple(float(ic_t_stat(ic[::h])) for h, ic in ics.items()),
        autocorrelation=float(mean_ic(ic_by_time(x_TN[1:], x_TN[:-1]))),
        turnover=top_turnover(x_TN),
        ic_T=ic_by_time(x_TN, outcomes[min(outcomes)]),
    )


def render(title: str, panel: Panel, sheets: Sequence[FeatureSheet]) -> str:
    """One self-contained HTML page: a table, and for each feature its cumulative IC and its IC's decay."""
    horizons = sheets[0].horizons if sheets else ()
    heads = ["feature", "coverage", *(f"IC {h}" for h in horizons), *(f"t {h}" for h in horizons)]
    heads += ["autocorrelation", "turnover of the top fifth"]
    lines = "".join(_line(sheet) for sheet in sorted(sheets, key=lambda sheet: -_strength(sheet)))
    first, last = (np.datetime_as_string(panel.sample_times_T[at], unit="D") for at in (0, -1))
    note = (
        f"{len(panel.sample_times_T):,} sample times from {first} to {last}, {len(panel.entities)} entities. "
        "In-sample: all figures use the whole history; expect the best of many features to look good by chance."
    )
    return (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(title)}</title><style>{_STYLE}</style>"
        f"<h1>{html.escape(title)}</h1><p>{note}</p>"
        f"<table><tr>{''.join(f'<th>{head}</th>' for head in heads)}</tr>{lines}</table>"
        + "".join(_picture(panel, sheet) for sheet in sheets)
    )


_STYLE: Final = (
    "body{font:14px system-ui;margin:2em}table{border-collapse:collapse}td,th{padding:2px 8px;text-align:right;"
    "border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def _strength(sheet: FeatureSheet) -> float:
    return float(np.nan_to_num(np.abs(sheet.t_H[0])))


def _line(sheet: FeatureSheet) -> str:
    figures = [f"{sheet.coverage:.0%}", *(f"{ic:+.3f}" for ic in sheet.ic_H), *(f"{t:+.1f}" for t in sheet.t_H)]
    cells = [html.escape(sheet.name), *figures, f"{sheet.autocorrelation:.2f}", f"{sheet.turnover:.0%}"]
    return f"<tr>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _picture(panel: Panel, sheet: FeatureSheet) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 2.2), dpi=80, layout="constrained")
    total, decay = figure.subplots(1, 2, width_ratios=(3, 1))
    _cumulative(total, panel, sheet)
    decay.bar([str(h) for h in sheet.horizons], sheet.ic_H, color="#2166ac")
    decay.set(title="IC by horizon, bars")
    file = io.BytesIO()
    figure.savefig(file, format="png")
    picture = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{html.escape(sheet.name)}" src="data:image/png;base64,{picture}">'


def _cumulative(axes: Axes, panel: Panel, sheet: FeatureSheet) -> None:
    axes.plot(panel.sample_times_T, np.nancumsum(sheet.ic_T), color="#2166ac", linewidth=1.0)
    axes.axhline(0.0, color="#b0b0b0", linewidth=0.5)
    axes.set(title=f"{sheet.name}: cumulative IC, one bar ahead")
