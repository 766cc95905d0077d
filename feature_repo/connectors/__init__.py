"""Connectors: what outside sources say, landed in a market directory with the time it arrived."""
