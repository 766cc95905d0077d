"""The nightly cycle as a Prefect flow: every market that a cycle was run on is trained, rated and staged anew."""

from __future__ import annotations

from dataclasses import asdict

from prefect import flow, get_run_logger

from flows.cycle import CycleConfig
from flows.cycle_flow import cycle
from flows.settings import read_settings
from flows.steps.run import RunError, remembered


@flow(name="nightly")
def nightly() -> int:
    """Run the newest cycle of each market, interval and horizon again, as it was asked; returns how many there were.

    On data that have not changed nothing is fitted again. One that fails holds up no other, and is named in the end.
    """
    log, configs = get_run_logger(), remembered(read_settings())
    if not configs:
        log.info("Nothing to do: no cycle has ended yet; `perennial run` runs one.")
    failed = [f"{config.market}: {why}" for config in configs if (why := _failure(config))]
    if failed:
        raise RunError(f"{len(failed)} of {len(configs)} cycles failed; {'; '.join(failed)}")
    return len(configs)


def _failure(config: CycleConfig) -> str:
    """Run a cycle; why it failed, empty where it did not."""
    try:
        cycle(**asdict(config))
    except Exception as error:  # whatever it was, the next market is not to blame
        get_run_logger().exception("the cycle on %s failed", config.market)
        return str(error) or type(error).__name__
    return ""
