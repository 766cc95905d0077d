"""Small synthetic panels for tests."""

import numpy as np

from training.dataset import Panel
from training.labels import make_labels
from training.panels import build_panel


def make_panel(*, num_times=460, num_entities=5, num_features=3, signal=0.0, seed=0) -> Panel:
    """Daily panel whose first feature predicts the label with correlation about ``signal``."""
    rng = np.random.default_rng(seed)
    ends = np.datetime64("2018-01-01T21:00", "us") + np.arange(num_times) * np.timedelta64(1, "D")
    samples = ends + np.timedelta64(15, "m")
    x_TNF = rng.standard_normal((num_times, num_entities, num_features))
    noise_TN = rng.standard_normal((num_times, num_entities))
    # Decision i earns exec[i + 1] / exec[i] - 1: that is the return the first feature is made to know.
    hold_TN = 0.01 * (signal * x_TNF[..., 0] + np.sqrt(1 - signal**2) * noise_TN)
    price_TN = 100 * np.cumprod(np.vstack([np.ones(num_entities), 1 + hold_TN[:-1]]), axis=0)
    exec_times = np.append(ends[1:], np.datetime64("NaT"))
    exec_price_TN = np.where(np.isnat(exec_times)[:, None], np.nan, price_TN)
    known_returns = np.vstack([np.zeros(num_entities), hold_TN[:-1]])
    labels = make_labels(
        exec_times_T=exec_times, exec_price_TN=exec_price_TN, vol_TN=np.full_like(price_TN, 0.01), horizon=1
    )
    names = (*(f"toy_v1__f{i}" for i in range(num_features)), "bar_v1__ret_1", "bar_v1__vol_60")
    facts = np.stack([known_returns, np.full_like(known_returns, 0.01)], axis=-1)
    return build_panel(
        pipeline="toy",
        entities=tuple(f"E{i}" for i in range(num_entities)),
        event_times_T=ends,
        sample_times_T=samples,
        names=names,
        known_TNF=np.concatenate([x_TNF, facts], axis=-1),
        labels=labels,
        hold_TN=labels.forward_TN,
        bar_view="bar_v1",
    )
