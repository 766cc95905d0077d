"""The nightly cycle as a Prefect flow: every market that a cycle was run on is trained, rated and staged anew."""

from __future__ import annotations

from dataclasses import asdict

from prefect import flow, get_run_logger

from flows.cycle import CycleConfig
from flows.cycle_flow import cycle
from flows.settings import read_settings
from flows.steps.run import one_by_one, remembered


@flow(name="nightly")
def nightly() -> int:
    """Run the newest cycle of each market, interval and horizon again, as it was asked; returns how many there were.

    On data that have not changed nothing is fitted again. One that fails holds up no other, and is named in the end.
    """
    log, configs = get_run_logger(), remembered(read_settings())
    if not configs:
        log.info("Nothing to do: no cycle has ended yet; `perennial run` runs one.")
    return one_by_one(configs, _run, log)


def _run(config: CycleConfig) -> int:
    cycle(**asdict(config))
    return 1
