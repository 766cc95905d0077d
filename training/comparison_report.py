"""The comparison for people: Markdown, one self-contained HTML page, and plain data. Out of sample only."""

from __future__ import annotations

import base64
import html as escaping
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from training.comparison import (
    IC,
    LEVEL,
    POWER,
    TESTED,
    Arm,
    Comparison,
    PairedTest,
    Setting,
    by_fold,
    figures,
    seed_range,
)
from training.metrics.forecast import mean_ic

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLOURS: Final = ("#2166ac", "#b2182b", "#4d4d4d", "#a6a6a6")


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """A finished comparison: ``arms`` by their role (A, B, the baselines), of ``pairs`` the first is the question's.

    ``facts`` say under what it was made, ``notes`` what to know when reading it.
    """

    title: str
    facts: Mapping[str, str]
    notes: Sequence[str]
    setting: Setting
    arms: Mapping[str, Arm]
    pairs: Sequence[Comparison]

    @property
    def verdict(self) -> str:
        """The answer to the question, in a line."""
        return answer_line(self.pairs[0])


@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A heading, paragraphs, and a table whose first row is its head."""

    title: str
    texts: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def answer_line(pair: Comparison) -> str:
    """The verdict of a pair with its reason, as a sentence."""
    said = {
        "first better": f"{pair.first} better",
        "second better": f"{pair.second} better",
        "each better at something": "each better at something",
        "no difference shown": "no difference shown",
    }
    return f"{said[pair.answer]}: {pair.why}."


def markdown(report: Report) -> str:
    """The report as Markdown."""
    parts = [f"# {report.title}", f"**{report.verdict}**"]
    for section in sections(report):
        parts.append(f"## {section.title}")
        parts += section.texts
        if section.rows:
            head, *body = section.rows
            rule = ["---", *["---:"] * (len(head) - 1)]
            parts.append("\n".join(f"| {' | '.join(row)} |" for row in (head, rule, *body)))
    return "\n\n".join(parts) + "\n"


def html(report: Report) -> str:
    """The report as one page that needs nothing from outside, with equity and cumulative IC difference."""
    text = escaping.escape
    parts = [f"<h1>{text(report.title)}</h1><p class=verdict>{text(report.verdict)}</p>", _pictures(report)]
    for section in sections(report):
        parts.append(f"<h2>{text(section.title)}</h2>")
        parts += [f"<p>{text(paragraph)}</p>" for paragraph in section.texts]
        if section.rows:
            head, *body = section.rows
            lines = ["".join(f"<td>{text(cell)}</td>" for cell in row) for row in body]
            parts.append(
                f"<table><tr>{''.join(f'<th>{text(cell)}</th>' for cell in head)}</tr>"
                + "".join(f"<tr>{line}</tr>" for line in lines)
                + "</table>"
            )
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{text(report.title)}</title><style>{_STYLE}</style>{''.join(parts)}</html>\n"
    )


def plain(report: Report) -> dict[str, Any]:
    """All of it as JSON-ready data; a figure that isn't defined is null."""
    return {
        "title": report.title,
        "answer": report.pairs[0].answer,
        "why": report.pairs[0].why,
        "facts": dict(report.facts),
        "notes": list(report.notes),
        "figures": {
            role: {
                "variant": arm.variant,
                **{name: _null(value) for name, value in figures(arm, report.setting).items()},
                "num_parameters": _null(arm.num_parameters),
                "fit_cpu_s": _null(arm.fit_cpu_s),
                "bar_cpu_ms": _null(arm.bar_cpu_ms),
                "num_fits": arm.num_fits,
                "failures": list(arm.failures),
            }
            for role, arm in report.arms.items()
        },
        "folds": {
            role: {metric.name: _nulls(by_fold(metric, arm, report.setting)) for metric in TESTED}
            for role, arm in report.arms.items()
        },
        "pairs": [
            {
                "first": pair.first,
                "second": pair.second,
                "answer": pair.answer,
                "why": pair.why,
                "tests": [_plain_test(test) for test in pair.tests],
            }
            for pair in report.pairs
        ],
    }


def sections(report: Report) -> list[Section]:
    """What both renderings say, in order."""
    failed = [f"{arm.variant}: {reason}" for arm in report.arms.values() for reason in arm.failures]
    return [
        Section(
            title="What was compared",
            texts=report.notes,
            rows=[
                ["", ""],
                *([name, value] for name, value in report.facts.items()),
                *([role, arm.variant] for role, arm in report.arms.items()),
            ],
        ),
        figure_section(report),
        Section(title="Paired tests", texts=[_TESTS_NOTE]),
        *(pair_section(pair) for pair in report.pairs),
        *(Section(title=f"By fold: {metric.title}", rows=_fold_rows(report, metric.name)) for metric in TESTED),
        *([Section(title="Fits that failed", texts=failed)] if failed else []),
    ]


_FIGURES_NOTE: Final = (
    "Accuracy is balanced: the mean of the shares told right of what rose and of what fell. The book is long and "
    "short, gross 1, with costs. A Brier score of 0.25 is knowing nothing; overconfidence is the mean confidence less "
    "the share of signs told right. CPU time is the median over the fits: of a fold's whole fit with calibration and "
    "threshold, and of forecasting one bar of all assets. Costs are shown, not tested."
)
_TESTS_NOTE: Final = (
    "Differences are the first less the second, on the dates that both were tested on, with intervals of "
    f"{1 - LEVEL:.0%} for each metric alone, from a studentised stationary block bootstrap. t is the Diebold-Mariano "
    f"statistic. A difference is shown where Holm's p, corrected for the metrics of the pair, is below {LEVEL:g}. "
    f"Detectable is the true difference found with {POWER:.0%} power. A date on which a side gives all assets the "
    "same score has an IC of 0. Each pair is a question of its own: looking at many pairs and keeping the best one "
    "wants the gates of the rating."
)
_STYLE: Final = (
    "body{font:14px system-ui;margin:2em;max-width:70em}table{border-collapse:collapse}td,th{padding:2px 10px;"
    "text-align:right;border-bottom:1px solid #ddd}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
    ".verdict{font-weight:600;font-size:16px}"
)

_SHOWN: Final[Sequence[tuple[str, str, Callable[[float], str]]]] = (
    *((metric.title, metric.name, metric.show) for metric in TESTED[:2]),
    ("t of IC", "ic_t", lambda value: _number(value, ".2f")),
    ("ICIR, a bar", "icir", lambda value: _number(value, ".3f")),
    *((metric.title, metric.name, metric.show) for metric in TESTED[2:3]),
    ("gross Sharpe ratio", "sharpe_gross", lambda value: _number(value, ".2f")),
    ("net return a year", "return_net", lambda value: _number(value, ".1%")),
    ("maximum drawdown", "max_drawdown", lambda value: _number(value, ".1%")),
    ("turnover a year, x capital", "turnover_ann", lambda value: _number(value, ".0f")),
    *((metric.title, metric.name, metric.show) for metric in TESTED[3:]),
    ("overconfidence", "overconfidence", lambda value: _number(value, "+.1%")),
    ("autocorrelation of scores", "score_autocorrelation", lambda value: _number(value, ".2f")),
    ("dates", "num_dates", lambda value: _number(value, ",.0f")),
)


def figure_section(report: Report) -> Section:
    """The pooled figures of all arms."""
    return Section(title="Figures, out of sample, all folds together", texts=[_FIGURES_NOTE], rows=_figure_rows(report))


def _figure_rows(report: Report) -> list[list[str]]:
    arms, setting = list(report.arms.values()), report.setting
    found = [figures(arm, setting) for arm in arms]
    rows = [[title, *(show(each[name]) for each in found)] for title, name, show in _SHOWN]
    if len(arms[0].net_ST) > 1:
        for metric in TESTED:
            ranges = [seed_range(metric, arm, setting) for arm in arms]
            rows.append(
                [f"{metric.title}, by seed", *(f"{metric.show(low)} to {metric.show(high)}" for low, high in ranges)]
            )
    return [
        ["", *report.arms],
        *rows,
        ["parameters", *(_number(arm.num_parameters, ",.0f") for arm in arms)],
        ["CPU seconds a fit", *(_number(arm.fit_cpu_s, ".2f") for arm in arms)],
        ["CPU ms a bar forecast", *(_number(arm.bar_cpu_ms, ".2f") for arm in arms)],
        ["failed fits", *(f"{len(arm.failures)} of {arm.num_fits}" for arm in arms)],
    ]


def pair_section(pair: Comparison) -> Section:
    """The tests of a pair."""
    head = ["", "difference", f"{1 - LEVEL:.0%} interval", "t", "p", "Holm p", "detectable", "dates", "block", "shown"]
    better = {"first": pair.first, "second": pair.second, "neither": "no"}
    rows = [[*_test_cells(test), better[test.favours]] for test in pair.tests]
    return Section(title=f"{pair.first} less {pair.second}", texts=[answer_line(pair)], rows=[head, *rows])


def _test_cells(test: PairedTest) -> list[str]:
    show = test.metric.show_difference
    if not np.isfinite(test.p_value):
        return [test.metric.title, "-", f"not tested: {test.reason}", *["-"] * 4, str(test.num_dates), "-"]
    return [
        test.metric.title,
        show(test.difference),
        f"{show(test.low)} to {show(test.high)}",
        f"{test.t:.2f}",
        f"{test.p_value:.3f}",
        f"{test.p_holm:.3f}",
        test.metric.show(test.detectable),
        str(test.num_dates),
        str(test.block) if test.block else "-",
    ]


def _fold_rows(report: Report, name: str) -> list[list[str]]:
    metric = next(metric for metric in TESTED if metric.name == name)
    setting = report.setting
    found = [by_fold(metric, arm, setting) for arm in report.arms.values()]
    rows = []
    for fold in found[0]:
        days = np.datetime_as_string(setting.event_times_T[setting.fold_T == fold], unit="D")
        rows.append([f"{days[0]} to {days[-1]}", *(metric.show(each[fold]) for each in found)])
    return [["test window", *report.arms], *rows]


def _pictures(report: Report) -> str:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), dpi=90, layout="constrained")
    equity, difference = figure.subplots(1, 2)
    _plot_equity(equity, report)
    _plot_ic_difference(difference, report)
    file = io.BytesIO()
    figure.savefig(file, format="png")
    picture = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="equity and cumulative IC difference" src="data:image/png;base64,{picture}">'


def _plot_equity(axes: Axes, report: Report) -> None:
    for (role, arm), colour in zip(report.arms.items(), _COLOURS, strict=False):
        growth = np.cumprod(1.0 + np.nan_to_num(mean_ic(arm.net_ST.T)))
        axes.plot(report.setting.event_times_T, growth, label=role, color=colour, linewidth=1.2)
    axes.set(title="Net of costs, out of sample", ylabel="growth of 1")
    axes.tick_params(axis="x", labelrotation=30)
    axes.legend(fontsize="small")


def _plot_ic_difference(axes: Axes, report: Report) -> None:
    pair, arms = report.pairs[0], {arm.variant: arm for arm in report.arms.values()}
    first, second = (mean_ic(IC.contributions(arms[name], report.setting).T) for name in (pair.first, pair.second))
    axes.plot(report.setting.event_times_T, np.nancumsum(first - second), color=_COLOURS[0], linewidth=1.2)
    axes.axhline(0.0, color="#b0b0b0", linewidth=0.5)
    axes.set(title="Cumulative difference in IC, A less B")
    axes.tick_params(axis="x", labelrotation=30)


def _plain_test(test: PairedTest) -> dict[str, Any]:
    fields = {
        name: _null(value) if isinstance(value, float) else value
        for name, value in asdict(test).items()
        if name != "metric"
    }
    return {"metric": test.metric.name, **fields}


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if np.isfinite(value) else "-"


def _null(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _nulls(values: Mapping[int, float]) -> dict[str, float | None]:
    return {str(fold): _null(value) for fold, value in values.items()}
