"""Feature pipelines, one file each."""
