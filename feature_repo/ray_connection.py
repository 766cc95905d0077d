"""A connection to Ray for whoever computes on it; Ray itself is an extra."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_LISTENS_WITHIN_S: Final = 10.0


class RayConnectionError(RuntimeError):
    """Ray is not installed, or does not answer; the message says which, and what to do."""


@contextmanager
def connected(address: str | None, *, num_cpus: int | None = None) -> Iterator[None]:
    """A connection to Ray, closed if it was opened here; a Ray started here stops with it.

    Parameters
    ----------
    address
        ``ray.init``'s: ``HOST:6379`` from one of the cluster's own nodes, ``ray://HOST:10001`` from elsewhere; ``None``
        starts a Ray of this machine with ``num_cpus`` (by default all).
    """
    try:
        import ray
    except ImportError as error:
        raise RayConnectionError("Ray is not installed; pip install 'perennial[ray]'") from error
    if ray.is_initialized():
        yield
        return
    if address is not None and ":" in address:
        _require_listener(address)
    local = {"address": "local", "include_dashboard": False, "num_cpus": num_cpus}
    where = local if address is None else {"address": address}
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ImportError, ValueError) as error:
        raise _no_answer(address, error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _require_listener(address: str) -> None:
    """Ray itself waits for two minutes for a cluster that is not there."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=_LISTENS_WITHIN_S).close()
    except (OSError, ValueError) as error:
        raise _no_answer(address, error) from error


def _no_answer(address: str | None, error: Exception) -> RayConnectionError:
    return RayConnectionError(
        f"no Ray answers at {address!r} ({error}); start it or correct the address (a cluster with tokens wants "
        "RAY_AUTH_MODE=token and its token here, ray:// wants pip install 'ray[client]')"
    )
