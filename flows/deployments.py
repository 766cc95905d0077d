"""Serves the flows to the Prefect server: ``python -m flows.deployments`` (``perennial up`` does)."""

from __future__ import annotations

from typing import Any


def main() -> None:
    """Serve every deployment until stopped; a quick restart must not leave them paused."""
    from prefect import serve

    from flows.cycle_flow import cycle
    from flows.snapshot_flow import snapshot

    deployment: Any = cycle.to_deployment(  # typed as a coroutine too, which it is in async code only
        name="cycle", description="A market goes in, staged models and a drift report come out.", tags=["perennial"]
    )
    every_five_minutes: Any = snapshot.to_deployment(
        name="snapshot", description="The live figures of every variant.", tags=["perennial"], cron="*/5 * * * *"
    )
    serve(deployment, every_five_minutes, pause_on_shutdown=False)


if __name__ == "__main__":
    main()
