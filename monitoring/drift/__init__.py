"""Drift statistics and their calibration."""
