"""Workers on Ray: each is an actor that keeps a worker process beside it, so that limits hold as they do locally."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, cast

from feature_repo.ray_connection import RayConnectionError, connected
from training.artifacts import code_fingerprint
from training.worker import AbortedError, EngineError, Gone, Limits, LocalWorker

_CODE: Final = ("feature_repo", "training")  # what a task imports


@contextmanager
def ray_workers(address: str | None, workers: int, *, shared: Path, limits: Limits) -> Iterator[Sequence[RayWorker]]:
    """Workers on the cluster at an address (``None``: a Ray of this machine), which let go of it on exit."""
    try:
        with connected(address, num_cpus=workers):
            _require_cpus(workers)
            code = code_fingerprint(_CODE)
            yield [RayWorker(limits, shared=shared, code=code) for _ in range(workers)]
    except RayConnectionError as error:
        raise EngineError(f"{error}; or take --engine local") from error


def _require_cpus(workers: int) -> None:
    import ray

    num_cpus = int(ray.cluster_resources().get("CPU", 0))
    if num_cpus < workers:
        raise EngineError(
            f"{workers} workers want a CPU each, the Ray cluster has {num_cpus}; set PERENNIAL_WORKERS to at most "
            "that, or add nodes"
        )


class RayWorker:
    """A worker of a Ray cluster; when its node dies the next one begins wherever there is room."""

    def __init__(self, limits: Limits, *, shared: Path, code: str) -> None:
        self._limits, self._shared, self._code = limits, shared, code
        self._guard = threading.Lock()
        self._aborted = False
        self._host: Any = None

    def ask(self, question: bytes) -> bytes | Gone:
        import ray

        try:
            answer: bytes | Gone = ray.get(self._begun().ask.remote(question))
        except ray.exceptions.RayActorError as error:
            self._host = None
            return Gone(f"its Ray actor died ({str(error).splitlines()[0]})", again=True)
        return answer

    def end(self) -> None:
        import ray

        if self._host is not None:
            with suppress(ray.exceptions.RayError):
                ray.get(self._host.end.remote())
            ray.kill(self._host)
            self._host = None

    def abort(self) -> None:
        import ray

        with self._guard:
            self._aborted = True
            if self._host is not None:
                ray.kill(self._host)

    def _begun(self) -> Any:
        import ray

        with self._guard:
            if self._aborted:
                raise AbortedError("the pool was aborted")
            if self._host is not None:
                return self._host
            self._host = host = cast(Any, ray.remote(num_cpus=1)(_Host)).remote(self._limits)
        try:
            fault: str = ray.get(host.fault.remote(self._shared, self._code))
        except ray.exceptions.RayError as error:
            fault = f"cannot begin a worker ({error})"
        if fault and not self._aborted:
            raise EngineError(
                f"a Ray node {fault}; every node needs this version of perennial installed, and must see "
                f"{self._shared} under this path"
            )
        return host


class _Host:
    """In the actor: a local worker, which dies with it."""

    def __init__(self, limits: Limits) -> None:
        import ray

        here = ray.get_runtime_context().get_node_id()
        [has] = [node["Resources"] for node in ray.nodes() if node["NodeID"] == here]
        self._worker = LocalWorker(limits, share_gib=has["memory"] / has["CPU"] / 2**30)

    def fault(self, shared: Path, code: str) -> str:
        """Why this node can't work, empty where it can."""
        if not shared.is_dir():
            return f"({socket.gethostname()}) has no folder {shared}"
        if code_fingerprint(_CODE) != code:
            return f"({socket.gethostname()}) has other source code of {' and '.join(_CODE)} than the one that asks"
        return ""

    def ask(self, question: bytes) -> bytes | Gone:
        return self._worker.ask(question)

    def end(self) -> None:
        self._worker.end()
