"""Serves the flows to the Prefect server and watches the stages: ``python -m flows.deployments`` (``perennial up``)."""

from __future__ import annotations

import threading
import time
import traceback
from datetime import UTC, datetime
from typing import Any

WATCH_EVERY_S = 30.0
"""So that what a person moves in the MLflow UI is on record within a minute."""


def main() -> None:
    """Serve every deployment until stopped; a quick restart must not leave them paused."""
    from prefect import serve

    from flows.cycle_flow import cycle
    from flows.evaluate_flow import evaluate
    from flows.nightly_flow import nightly
    from flows.snapshot_flow import snapshot

    deployment: Any = cycle.to_deployment(  # typed as a coroutine too, which it is in async code only
        name="cycle", description="A market goes in, staged models and a drift report come out.", tags=["perennial"]
    )
    every_five_minutes: Any = snapshot.to_deployment(
        name="snapshot",
        description="The live figures of every variant, on all markets.",
        tags=["perennial"],
        cron="*/5 * * * *",
    )
    every_quarter: Any = evaluate.to_deployment(
        name="evaluate",
        description="New bars of all markets, forecast by every fitted variant.",
        tags=["perennial"],
        cron="*/15 * * * *",
    )
    every_night: Any = nightly.to_deployment(
        name="nightly",
        description="The newest cycle of every market, run again as it was asked.",
        tags=["perennial"],
        cron="0 23 * * *",
    )
    # a thread, not a flow: every run of a flow is a process that imports for seconds
    threading.Thread(target=_watch_stages, daemon=True).start()
    serve(deployment, every_five_minutes, every_quarter, every_night, pause_on_shutdown=False)


def _watch_stages() -> None:
    """Look at the stages for ever; what goes wrong once is told in the service's log and tried again."""
    from flows import stages
    from flows.settings import read_settings

    settings = read_settings()
    while True:
        try:
            stages.watch(settings, policy=settings.policy, now=datetime.now(UTC))
        except Exception:
            traceback.print_exc()
        time.sleep(WATCH_EVERY_S)


if __name__ == "__main__":
    main()
