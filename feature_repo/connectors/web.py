"""Plain HTTP for sources that are one document: paced, retried, its body read before it counts as an answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Final, TypeVar

import requests

from feature_repo.connectors.base import (
    ConnectorError,
    MalformedError,
    Runtime,
    TransientError,
    ask_patiently,
    is_transient,
    retry_after_s,
)

T = TypeVar("T")
_SHOWN: Final = 200  # characters of an answer that an error quotes


class Web:
    """Gets documents, at most one every ``min_gap_s`` seconds."""

    def __init__(self, runtime: Runtime, *, min_gap_s: float = 1.0, timeout_s: float = 30.0) -> None:
        self._runtime, self._min_gap_s, self._timeout_s = runtime, min_gap_s, timeout_s
        self._session = requests.Session()
        self._last_asked: datetime | None = None

    def get(self, url: str, read: Callable[[bytes], T]) -> T:
        """The document at ``url`` as ``read`` understands it; one it finds malformed is asked for again."""

        def ask() -> T:
            body = self._ask_once(url)
            try:
                return read(body)
            except MalformedError as error:
                raise TransientError(f"{url}: {error}") from error

        return ask_patiently(ask, self._runtime)

    def _ask_once(self, url: str) -> bytes:
        self._pace()
        try:
            response = self._session.get(url, timeout=self._timeout_s)
        except (requests.ConnectionError, requests.Timeout, requests.exceptions.ChunkedEncodingError) as error:
            raise TransientError(f"{url} can't be reached: {error}") from error
        except requests.RequestException as error:
            raise ConnectorError(f"{url} can't be asked: {error}; correct the address") from error
        if response.ok:
            return response.content
        said = f"{url} answers {response.status_code} {response.reason}: {response.text[:_SHOWN]!r}"
        if is_transient(response.status_code):
            wait_s = retry_after_s(response.headers.get("Retry-After"), now=self._runtime.clock())
            raise TransientError(said, retry_after_s=wait_s)
        raise ConnectorError(f"{said}; correct the address, or what it asks for")

    def _pace(self) -> None:
        if self._last_asked is not None:
            since_s = (self._runtime.clock() - self._last_asked).total_seconds()
            if 0 <= since_s < self._min_gap_s:
                self._runtime.sleep(self._min_gap_s - since_s)
        self._last_asked = self._runtime.clock()
