"""The leak detector's training side: labels, panels, folds, the canary, and the verdict that a dataset carries."""
