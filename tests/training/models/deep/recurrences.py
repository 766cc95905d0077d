"""Recurrent layers row by row in plain numpy: what torch's should compute."""

import numpy as np
from scipy.special import expit

# Tensor suffixes: L rows, F features, H hidden units.


def gru_states(weights: dict, x_LF: np.ndarray) -> np.ndarray:
    """States (L, H) of a gated recurrent unit from torch's tensors of one layer (gates reset, update, new)."""
    state, states = np.zeros(weights["weight_hh_l0"].shape[1]), []
    for row in x_LF:
        reset_x, update_x, new_x = np.split(weights["weight_ih_l0"] @ row + weights["bias_ih_l0"], 3)
        reset_h, update_h, new_h = np.split(weights["weight_hh_l0"] @ state + weights["bias_hh_l0"], 3)
        update = expit(update_x + update_h)
        new = np.tanh(new_x + expit(reset_x + reset_h) * new_h)
        state = (1 - update) * new + update * state
        states.append(state)
    return np.array(states)


def lstm_states(weights: dict, x_LF: np.ndarray, *, suffix="") -> np.ndarray:
    """States (L, H) of a long short-term memory from torch's tensors of one layer (input, forget, new, output)."""
    w_x, w_h, b_x, b_h = (weights[f"{name}_l0{suffix}"] for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
    state, cell, states = np.zeros(w_h.shape[1]), np.zeros(w_h.shape[1]), []
    for row in x_LF:
        take, keep, new, show = np.split(w_x @ row + b_x + w_h @ state + b_h, 4)
        cell = expit(keep) * cell + expit(take) * np.tanh(new)
        state = expit(show) * np.tanh(cell)
        states.append(state)
    return np.array(states)


def tensors(module) -> dict:
    """A module's tensors as float64 arrays."""
    return {name: tensor.double().numpy() for name, tensor in module.state_dict().items()}
