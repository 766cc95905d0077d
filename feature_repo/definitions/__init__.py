"""The Feast entities, sources, views and services."""
