"""The signal API."""
