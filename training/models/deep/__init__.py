"""Networks, one file each, over the rows of the lookback."""
