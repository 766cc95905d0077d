"""Numba kernels; numpy and numba only."""
