"""Markets: their schema, sources, validation and costs."""
