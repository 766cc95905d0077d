"""Tabular learners, one file each, over summaries of the lookback."""
