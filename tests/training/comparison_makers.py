"""Settings and arms whose truth is known, for tests of comparisons."""

import numpy as np

from feature_repo.market.costs import CostModel
from training.comparison import Arm, Setting
from training.simulate import simulate


def make_setting(*, num_bars=252, num_entities=6, horizon=1, seed=0) -> Setting:
    """Independent daily returns, in folds of 21 bars."""
    rng = np.random.default_rng(seed)
    return Setting(
        event_times_T=np.datetime64("2020-01-01T21:00", "us") + np.arange(num_bars) * np.timedelta64(1, "D"),
        outcome_TN=0.01 * rng.standard_normal((num_bars, num_entities)),
        fold_T=np.arange(num_bars) // 21,
        horizon=horizon,
        bars_per_year=252.0,
    )


def make_arm(setting: Setting, *, skill=0.0, name="model-a", seed=1, num_seeds=1, confidence=0.5) -> Arm:
    """Scores that correlate with the outcome by about ``skill``, traded without costs, of constant confidence."""
    rng = np.random.default_rng(seed)
    shape = (num_seeds, *setting.outcome_TN.shape)
    score_STN = skill * setting.outcome_TN / 0.01 + np.sqrt(1 - skill**2) * rng.standard_normal(shape)
    costs = CostModel(fee_bps=0.0, half_spread_bps=0.0, borrow_bps_ann=0.0)
    books = [simulate(score_TN, setting.outcome_TN, threshold=0.0, costs=costs) for score_TN in score_STN]
    return Arm(
        variant=name,
        score_STN=score_STN,
        confidence_STN=np.full(shape, confidence),
        net_ST=np.stack([book.net_T for book in books]),
        gross_ST=np.stack([book.gross_T for book in books]),
        turnover_ST=np.stack([book.turnover_T for book in books]),
        num_parameters=1234.0,
        fit_cpu_s=0.5,
        bar_cpu_ms=2.0,
        num_fits=num_seeds * len(np.unique(setting.fold_T)),
    )
