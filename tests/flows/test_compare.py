"""`perennial compare`: two variants and the baselines, trained alike on a small market, tested and told."""

from __future__ import annotations

import io
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from rich.progress import Progress

from feature_repo.market.costs import CostModel
from flows.compare import CompareError, TimedFit, choose_arms, compare_variants, make_arm, render, write_report
from flows.cycle import CycleConfig
from flows.steps.data import TEST
from tests.flows.small_market import write_small_market
from tests.training.panel_makers import make_panel
from training.comparison import TESTED, by_fold
from training.comparison_report import Report
from training.engine import Lost
from training.models.spec import Budget
from training.panels import save_panel
from training.signals import SignalStore
from training.splits.walk_forward import walk_forward
from training.trainer import FoldTask, train_fold
from training.variants import full_grid

NOW = datetime(2023, 1, 1, tzinfo=UTC)
LIGHTGBM = "lightgbm-l7-momentum-n7"


def compared(folder: Path, first: str, second: str, *, num_seeds: int = 1, folds: int = 3) -> Report:
    config = CycleConfig(market=str(folder), folds=folds)
    with Progress(disable=True) as bars:
        return compare_variants(first, second, config, num_seeds=num_seeds, workers=1, now=NOW, bars=bars)


@pytest.fixture(scope="module")
def market(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_market(tmp_path_factory.mktemp("markets") / "small", num_assets=4, num_days=470)


@pytest.fixture(scope="module")
def report(market: Path) -> Report:
    return compared(market, LIGHTGBM, "elastic_net", num_seeds=2)


def ids(first: str, second: str) -> dict[str, str]:
    return {role: variant.id for role, variant in choose_arms(first, second).items()}


def test_an_architecture_is_its_default_variant() -> None:
    assert ids("lightgbm", "gru") == {
        "A": "lightgbm-l30-technical-n7",
        "B": "gru-l30-technical-h64",
        "LSTM baseline": "lstm-l30-technical-h64",
        "linear baseline": "elastic_net-l30-technical-s0.5",
    }


def test_an_architecture_and_the_baselines_take_the_traits_of_the_variant_named() -> None:
    assert ids("tcn", "lstm-l60-momentum-h128") == {
        "A": "tcn-l60-momentum-h64",
        "B": "lstm-l60-momentum-h128",
        "LSTM baseline": "lstm-l60-momentum-h64",
        "linear baseline": "elastic_net-l60-momentum-s0.5",
    }


def test_a_model_that_reads_no_features_keeps_its_pipeline() -> None:
    found = ids("garch", "lstm")
    assert (found["A"], found["B"]) == ("garch-l30-ohlcv-p1-q1", "lstm-l30-technical-h64")


def test_a_name_that_is_none_is_refused() -> None:
    with pytest.raises(CompareError, match=r"no architecture and no variant 'lstmm'; architectures are a2c, arima"):
        choose_arms("lstmm", "lstm")


def test_all_are_tested_on_the_same_bars_of_the_newest_folds(report: Report) -> None:
    assert list(report.arms) == ["A", "B, linear baseline", "LSTM baseline"]
    assert len(report.setting.event_times_T) == 3 * TEST
    for arm in report.arms.values():
        assert arm.failures == []
        assert arm.num_fits == 2 * 3
        assert np.isfinite(arm.net_ST).all()
        assert arm.fit_cpu_s > 0
        assert arm.bar_cpu_ms > 0
        assert arm.num_parameters > 0
        np.testing.assert_array_equal(np.isfinite(arm.score_STN), np.isfinite(arm.confidence_STN))
    assert np.isfinite(report.setting.outcome_TN).any(axis=1).all(), "a bar without an outcome was not tested"


def test_the_pairs_are_the_question_and_each_side_with_each_baseline(report: Report) -> None:
    elastic_net, lstm = "elastic_net-l7-momentum-s0.5", "lstm-l7-momentum-h64"
    assert [(pair.first, pair.second) for pair in report.pairs] == [
        (LIGHTGBM, elastic_net),
        (LIGHTGBM, lstm),
        (elastic_net, lstm),
    ]


def test_another_seed_is_another_fit_of_a_network_only(report: Report) -> None:
    lstm, linear = report.arms["LSTM baseline"].score_STN, report.arms["B, linear baseline"].score_STN
    assert not np.allclose(lstm[0], lstm[1], equal_nan=True)
    np.testing.assert_array_equal(linear[0], linear[1])


def test_the_scores_are_those_of_the_walk_forward_fits(report: Report) -> None:
    """Each fold is another model: its scores are not those of its neighbour's on the same features."""
    per_fold = by_fold(TESTED[1], report.arms["A"], report.setting)
    assert len(per_fold) == 3
    assert len(set(per_fold.values())) == 3


def test_the_files_hold_the_figures(report: Report, tmp_path: Path) -> None:
    files = write_report(report, tmp_path / "out")
    stem = f"{LIGHTGBM}_vs_elastic_net-l7-momentum-s0.5"
    assert [files[kind].name for kind in ("markdown", "html")] == [f"{stem}.md", f"{stem}.html"]
    text = files["markdown"].read_text()
    assert "`elastic_net` stands for `elastic_net-l7-momentum-s0.5`" in text
    assert "small, 1d bars, 3 assets" in text
    assert f"63 bars from {np.datetime_as_string(report.setting.event_times_T[0], unit='D')}" in text
    for test in report.pairs[0].tests:
        difference = test.metric.show_difference(test.difference)
        assert f"| {test.metric.title} | {difference} |" in text or f"| {test.metric.title} | - |" in text
        assert f"<td>{difference}</td>" in files["html"].read_text()
    shown = io.StringIO()
    render(Console(file=shown, width=160), report)
    assert report.verdict in " ".join(shown.getvalue().split())


def test_a_pipeline_that_does_not_apply_is_refused_with_those_that_do(market: Path) -> None:
    with pytest.raises(CompareError, match=r"name variants of another pipeline: .*momentum"):
        compared(market, "lightgbm-l7-onchain-n7", "elastic_net")


def test_a_comparison_without_seeds_is_refused(market: Path) -> None:
    with pytest.raises(CompareError, match="at least one seed"):
        compared(market, LIGHTGBM, "elastic_net", num_seeds=0)


def test_bars_of_a_failed_fold_are_missing_and_the_others_as_they_were(tmp_path: Path) -> None:
    panel = make_panel(num_times=260, signal=0.5)
    times = (panel.sample_times_T, panel.labels.start_T, panel.labels.end_T)
    folds = walk_forward(*times, train=120, validate=40, test=20, step=20, num_folds=3)
    variant = next(v for v in full_grid(["toy"]) if (v.architecture, v.lookback) == ("lightgbm", 7))
    task = FoldTask(
        variant=variant,
        params=dict(variant.params),
        panel=save_panel(panel, tmp_path / "panels"),
        panel_fingerprint=panel.fingerprint,
        fold=folds[0],
        kind="oos",
        interval="1d",
        seed=3,
        budget=Budget(max_trees=5),
        costs=CostModel(),
        code="code",
        git_sha="sha",
        folder=tmp_path / "fits",
        signals=tmp_path / "signals",
    )
    tasks = [replace(task, fold=fold) for fold in folds]
    fits = [TimedFit(result=train_fold(each), fit_cpu_s=1.0, bar_cpu_ms=1.0) for each in tasks]
    store = SignalStore(root=task.signals)
    whole = make_arm(variant.id, [fits], folds, panel, store, task.costs)
    assert np.isfinite(whole.net_ST).all()
    assert (whole.num_fits, list(whole.failures)) == (3, [])
    failed = replace(fits[1], result=replace(fits[1].result, reason="ModelError: diverged"))
    broken = [fits[0], failed, fits[2]], [Lost(tasks[0], "its worker process died twice"), *fits[1:]]
    arm = make_arm(variant.id, broken, folds, panel, store, task.costs)
    assert list(arm.failures) == ["ModelError: diverged", "its worker process died twice"]
    gone = np.zeros((2, 60), dtype=bool)
    gone[0, 20:40] = gone[1, :20] = True
    for name in ("score_STN", "confidence_STN", "net_ST", "gross_ST", "turnover_ST"):
        found, before = getattr(arm, name), getattr(whole, name)
        assert np.isnan(found[gone]).all()
        if name not in ("turnover_ST", "net_ST"):  # entering anew trades more
            np.testing.assert_array_equal(found[~gone], np.repeat(before, 2, axis=0)[~gone])
