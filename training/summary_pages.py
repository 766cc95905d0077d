"""What a cycle's summary run shows: its conclusion in words, the ranking as a page, plots and reports."""

from __future__ import annotations

import shutil
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
import pandas as pd

from training import plots

if TYPE_CHECKING:
    from training.tracking import CycleSummary

# What is told of the ranking's best.
_TOLD: Final = {
    "score": "a score of {:.2f}",
    "sharpe_net": "a Sharpe ratio of {:+.2f} net of costs",
    "sharpe_residual": "{:+.2f} residual to the market",
    "max_drawdown": "a maximum drawdown of {:.1%}",
    "num_days": "{:.0f} bars out of sample",
}


def conclusion(summary: CycleSummary) -> str:
    """What came of a cycle, as the description (Markdown) of its summary run."""
    live, paper = summary.num_production, summary.num_staging
    parts = [
        f"**{live or 'No'} variant{'' if live == 1 else 's'} in Production, {paper} in Staging.** "
        f"Of {summary.num_variants} variants, tuned in {summary.num_trials} trials, {len(summary.ranking)} are rated.",
    ]
    if len(summary.ranking):
        parts.append(_best(summary.ranking.iloc[0]))
    reports = ", ".join(f"`reports/{report.name}`" for report in summary.reports)
    parts.append(
        "Under *Artifacts*: `ranking.html` with every variant and why it is where it is, `plots/`"
        f"{' and the reports ' if reports else ''}{reports}."
    )
    return "\n\n".join(parts)


def _best(row: pd.Series) -> str:
    figures = [words.format(row[name]) for name, words in _TOLD.items() if name in row and np.isfinite(row[name])]
    return f"The best is **{row['variant']}** ({row['stage']}) with {', '.join(figures) or 'no figure'}."


def write_summary(folder: Path, summary: CycleSummary) -> None:
    """Write the files of a summary run: the ranking as table and page, the plots, the reports."""
    summary.ranking.to_csv(folder / "ranking.csv", index=False)
    summary.ranking.to_parquet(folder / "ranking.parquet", index=False)
    (folder / "ranking.html").write_text(_page(summary), encoding="utf-8")
    figures = {
        "ranking": plots.ranking_bars(summary.ranking),
        "ic_by_fold": plots.fold_heat_map(summary.fold_ic),
        "equity": plots.equity_curves(summary.equity),
        "score_by_architecture_and_pipeline": plots.score_heat_map(summary.ranking),
    }
    (folder / "plots").mkdir()
    for name, figure in figures.items():
        figure.savefig(folder / "plots" / f"{name}.png")
    (folder / "reports").mkdir()
    for report in summary.reports:
        shutil.copy2(report, folder / "reports" / report.name)


def _page(summary: CycleSummary) -> str:
    """The whole table, its head and the variants' names in sight wherever one scrolls."""
    first = [name for name in ("variant", "rank", "score", "stage") if name in summary.ranking]
    ordered = summary.ranking[[*first, *summary.ranking.columns.drop(first)]]
    table = ordered.to_html(index=False, border=0, float_format="{:.3f}".format, na_rep="")
    return (
        '<!doctype html><meta charset="utf-8"><title>Ranking</title><style>body{font:14px system-ui;margin:2em}'
        "td,th{padding:.25em .8em;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap;background:#fff}"
        "th{position:sticky;top:0;z-index:1}td:first-child{position:sticky;left:0;text-align:left}</style>"
        f"<h1>Ranking of cycle {escape(summary.cycle_id)}</h1>{table}\n"
    )
