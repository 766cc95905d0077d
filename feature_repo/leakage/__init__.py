"""The leak detector's feature side: what a market's future may not change, and what a store may not say early."""
