"""Toy panels: returns that follow an AR(1) the features show, or nothing at all."""

import numpy as np

from training.dataset import Labels, Panel, Window, window

VOL = 0.01


def toy_panel(*, memory, num_times=420, num_entities=6, num_features=4, seed=0) -> Panel:
    """Unit AR(1) returns of that ``memory``; the label is the return after the next, feature 0 the return just seen.

    The label's correlation with feature 0 is memory squared; the other features are noise. Arrays are read-only, as
    memory-mapped panels are.
    """
    rng = np.random.default_rng(seed)
    shocks = rng.standard_normal((num_times, num_entities)) * np.sqrt(1 - memory**2)
    z = np.zeros_like(shocks)
    for t in range(1, num_times):
        z[t] = memory * z[t - 1] + shocks[t]
    x = rng.standard_normal((num_times, num_entities, num_features)).astype(np.float32)
    x[..., 0] = z
    forward = np.full_like(z, np.nan)
    forward[:-2] = VOL * z[2:]
    return panel_of(x=x, returns=VOL * z, forward=forward)


def panel_of(*, x, returns, forward) -> Panel:
    num_times, num_entities, num_features = x.shape
    times = np.datetime64("2020-01-01T21:00", "us") + np.arange(num_times) * np.timedelta64(1, "D")
    ends = np.concatenate([times[2:], np.full(2, np.datetime64("NaT"))])
    arrays = {"x_TNF": x, "returns_TN": returns, "vol_TN": np.full_like(returns, VOL)}
    for array in arrays.values():
        array.setflags(write=False)
    return Panel(
        pipeline="toy",
        event_times_T=times,
        sample_times_T=times,
        entities=tuple(f"E{n}" for n in range(num_entities)),
        feature_names=tuple(f"f{f}" for f in range(num_features)),
        **arrays,
        hold_TN=forward,
        labels=Labels(horizon=1, start_T=times, end_T=ends, forward_TN=forward, y_TN=forward / VOL),
        fingerprint="toy",
    )


def learning_windows(panel: Panel, *, lookback: int) -> tuple[Window, Window]:
    """Train on targets 20..159, validate on 162..209: the label of 159 ends at 161."""
    learn = np.ones(len(panel.sample_times_T), dtype=bool)
    train = window(panel, 20, 160, lookback=lookback, learn_T=learn)
    return train, window(panel, 162, 210, lookback=lookback, learn_T=learn)
