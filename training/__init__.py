"""The model factory: datasets, labels, splits, architectures, tracking, rating and stages."""
