"""Econometric architectures."""
