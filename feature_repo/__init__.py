"""Features in two times: markets, kernels, pipelines, Feast definitions and the bitemporal stores."""
