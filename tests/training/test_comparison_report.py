"""The report of a comparison: every figure is in it, in all its forms."""

import base64
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from tests.training.comparison_makers import make_arm, make_setting
from training.comparison import IC, TESTED, by_fold, compare, figures
from training.comparison_report import Report, html, markdown, plain

SETTING = make_setting()


@pytest.fixture(scope="module")
def report() -> Report:
    good = make_arm(SETTING, skill=0.35, name="good-l30-x", num_seeds=2)
    other = make_arm(SETTING, seed=2, name="other-l30-x", num_seeds=2)
    gone = replace(
        make_arm(SETTING, seed=3, name="gone-l30-x", num_seeds=2),
        **{
            name: np.full_like(getattr(good, name), np.nan)
            for name in ("score_STN", "confidence_STN", "net_ST", "gross_ST", "turnover_ST")
        },
        num_parameters=float("nan"),
        fit_cpu_s=float("nan"),
        bar_cpu_ms=float("nan"),
        failures=["ModelError: diverged <badly>"] * 24,
    )
    return Report(
        title="good-l30-x against other-l30-x",
        facts={"market": "toy & co"},
        notes=["nothing was tuned"],
        setting=SETTING,
        arms={"A": good, "B": other, "LSTM baseline": gone},
        pairs=[compare(first, second, SETTING, seed=1, reps=200) for first, second in ((good, other), (good, gone))],
    )


def rows_of(text: str) -> dict[str, list[str]]:
    """Table rows of a Markdown text by their first cell; the first of equals."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("|"):
            first, *rest = (cell.strip() for cell in line.strip("|").split("|"))
            found.setdefault(first, rest)
    return found


def test_markdown_holds_the_figures_the_tests_and_the_folds(report: Report) -> None:
    text = markdown(report)
    assert text.startswith("# good-l30-x against other-l30-x\n\n**good-l30-x better: ")
    rows = rows_of(text)
    expected = [figures(arm, SETTING) for arm in report.arms.values()]
    assert rows["net Sharpe ratio"] == [*(f"{each['sharpe_net']:.2f}" for each in expected[:2]), "-"]
    assert rows["balanced accuracy"] == [*(f"{each['accuracy']:.1%}" for each in expected[:2]), "-"]
    assert rows["parameters"] == ["1,234", "1,234", "-"]
    assert rows["failed fits"] == ["0 of 24", "0 of 24", "24 of 24"]
    assert " to " in rows["IC, by seed"][0]
    assert rows["A"] == ["good-l30-x"]
    [ic] = [test for test in report.pairs[0].tests if test.metric is IC]
    assert f"| IC | {ic.difference:+.3f} | {ic.low:+.3f} to {ic.high:+.3f} | {ic.t:.2f} |" in text
    assert "not tested: not defined" in text
    fold = by_fold(IC, report.arms["A"], SETTING)
    assert f"| 2020-01-01 to 2020-01-21 | {fold[0]:.3f} |" in text
    assert text.count("2020-01-01 to 2020-01-21") == len(TESTED)
    assert "other-l30-x" in text
    assert "ModelError: diverged" in text


def test_every_table_row_of_the_markdown_is_as_wide_as_its_head(report: Report) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", markdown(report), flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_html_holds_the_same_and_needs_nothing_from_outside(report: Report) -> None:
    page = html(report)
    for first, cells in rows_of(markdown(report)).items():
        if first and not set(first) <= {"-"}:
            assert f"<td>{first}</td>" in page or f"<th>{first}</th>" in page
            assert all(f"<td>{cell}</td>" in page or f"<th>{cell}</th>" in page for cell in cells if "&" not in cell)
    assert "toy &amp; co" in page
    assert "diverged &lt;badly&gt;" in page
    [picture] = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    assert base64.b64decode(picture).startswith(b"\x89PNG")
    assert "http" not in page


def test_plain_data_is_json_with_null_for_what_is_not_defined(report: Report) -> None:
    found = json.loads(json.dumps(plain(report), allow_nan=False))
    assert found["answer"] == "first better"
    assert found["figures"]["A"]["ic"] == pytest.approx(figures(report.arms["A"], SETTING)["ic"])
    assert found["figures"]["LSTM baseline"]["ic"] is None
    assert found["folds"]["A"]["ic"]["0"] == pytest.approx(by_fold(IC, report.arms["A"], SETTING)[0])
    [first, second] = found["pairs"]
    assert [test["metric"] for test in first["tests"]] == [metric.name for metric in TESTED]
    assert first["tests"][1]["favours"] == "first"
    assert second["tests"][0]["p_value"] is None
