"""Benches: ours and its peers on the same data in one run; `python -m bench.NAME`."""
