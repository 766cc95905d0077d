"""The command line, the settings and the Prefect flows that tie the packages together."""
