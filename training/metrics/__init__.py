"""Performance, forecast and distribution metrics."""
