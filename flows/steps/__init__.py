"""The steps of a cycle as plain functions; `cycle_flow` gives them names, retries and their order."""
