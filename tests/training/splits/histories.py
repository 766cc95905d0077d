"""Sample times with the intervals of their labels, for splitters."""

import numpy as np
from hypothesis import strategies as st

from training.labels import make_labels


def history(num_times, *, horizon=1, lag_h=0, delay=1, seed=None):
    """Sample times, label starts and ends; executed ``delay`` bars later. A seed makes the calendar irregular."""
    gaps = np.ones(num_times, dtype=int)
    if seed is not None:
        gaps = np.random.default_rng(seed).integers(1, 5, num_times)
    closes = (np.datetime64("2015-01-01", "us") + np.cumsum(gaps) * np.timedelta64(1, "D")).astype("datetime64[us]")
    executed = np.full(num_times, np.datetime64("NaT"), dtype="datetime64[us]")
    executed[:-delay] = closes[delay:]
    ones = np.ones((num_times, 1))
    labels = make_labels(exec_times_T=executed, exec_price_TN=ones, vol_TN=ones, horizon=horizon)
    return closes + np.timedelta64(lag_h, "h"), labels.start_T, labels.end_T


def touching(learnt_T, later_T, starts, ends):
    """Brute force over all pairs: those (learnt, later) whose label intervals share a time."""
    learnt, later = np.flatnonzero(learnt_T), np.flatnonzero(later_T)
    shared = (starts[learnt, None] <= ends[later]) & (starts[later] <= ends[learnt, None])
    return [(learnt[i], later[j]) for i, j in np.argwhere(shared)]


def mask(part, num_times):
    """The (T,) mask of a range of sample times."""
    marked = np.zeros(num_times, dtype=bool)
    marked[part] = True
    return marked


CASES = st.fixed_dictionaries(
    {
        "horizon": st.integers(1, 5),
        "lag_h": st.integers(0, 23),
        "delay": st.integers(1, 2),
        "seed": st.one_of(st.none(), st.integers(0, 999)),
    }
)
