"""Splitters by dates, purged and embargoed."""
