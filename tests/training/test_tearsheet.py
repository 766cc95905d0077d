"""Tear sheets: closed forms, scipy's rank correlation, and a page that stands alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import spearmanr

from tests.training.panel_makers import make_panel
from training.tearsheet import compounded, feature_sheets, render, top_turnover


def test_returns_over_several_bars_compound_and_end_where_the_history_does() -> None:
    hold = np.array([[0.1], [0.2], [np.nan], [0.5], [-0.5]])
    np.testing.assert_allclose(compounded(hold, 1)[:, 0], [0.1, 0.2, np.nan, 0.5, -0.5])
    np.testing.assert_allclose(compounded(hold, 2)[:, 0], [0.32, np.nan, np.nan, -0.25, np.nan])


def test_turnover_of_the_top_fifth() -> None:
    rising = np.tile(np.arange(10.0), (4, 1))
    assert top_turnover(rising) == 0.0
    flipped = rising.copy()
    flipped[1::2] *= -1.0
    assert top_turnover(flipped) == 1.0
    half = rising.copy()
    half[1, 0] = 100.0  # 9 and 0 instead of 9 and 8
    assert top_turnover(half[:2]) == 0.5
    assert np.isnan(top_turnover(np.full((3, 4), np.nan)))


def test_the_informed_feature_stands_out_and_its_ic_decays() -> None:
    informed, *noise = feature_sheets(make_panel(signal=0.3, num_entities=20))
    assert informed.ic_H[0] == pytest.approx(0.28, abs=0.04)
    assert informed.t_H[0] > 10
    assert informed.ic_H[0] > informed.ic_H[1] > informed.ic_H[-1]
    assert all(abs(sheet.t_H[0]) < 3.5 for sheet in noise)
    assert abs(informed.autocorrelation) < 0.05
    assert informed.coverage == 1.0


def test_figures_are_scipys() -> None:
    panel = make_panel(num_times=60, num_entities=12)
    sheet = feature_sheets(panel, horizons=(1, 3))[1]
    x, ahead = panel.x_TNF[..., 1].astype(float), compounded(panel.hold_TN, 3)
    by_hand = [spearmanr(x[t], ahead[t]).statistic for t in range(60) if np.isfinite(ahead[t]).all()]
    assert sheet.ic_H[1] == pytest.approx(np.mean(by_hand))
    spaced = [spearmanr(x[t], ahead[t]).statistic for t in range(0, 60, 3) if np.isfinite(ahead[t]).all()]
    assert sheet.t_H[1] == pytest.approx(np.mean(spaced) / (np.std(spaced, ddof=1) / np.sqrt(len(spaced))))
    repeats = [spearmanr(x[t], x[t - 1]).statistic for t in range(1, 60)]
    assert sheet.autocorrelation == pytest.approx(np.mean(repeats))


def test_missing_values_count_against_coverage_only() -> None:
    panel = make_panel(num_entities=10)
    x = np.array(panel.x_TNF)
    x[: len(x) // 2, :, 0] = np.nan
    sheet = feature_sheets(replace(panel, x_TNF=x))[0]
    assert sheet.coverage == pytest.approx(0.5, abs=0.01)
    assert np.isfinite(sheet.ic_H).all()


def test_the_page_names_every_feature_and_needs_nothing_from_outside() -> None:
    panel = make_panel(num_times=40)
    page = render("<Toy>", panel, feature_sheets(panel, horizons=(1, 2)))
    assert all(page.count(f">{name}<") == 1 for name in panel.feature_names)
    assert "&lt;Toy&gt;" in page
    assert "In-sample" in page
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page
