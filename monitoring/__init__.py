"""Watching the models: drift statistics, Evidently reports and alerts."""
