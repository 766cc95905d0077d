"""The Redis backend of the online store: one string a key, compared and set by one script.

For a single Redis or a primary with replicas; a Redis Cluster would split the keys of one read. Redis replaces the
embedded file where several machines serve.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.connection import ConnectionInterface
from redis.exceptions import RedisError
from redis.retry import Retry

from feature_repo.store.packed import TIMES_AT, OnlineStoreError

_TIMEOUT_S: Final = 1.0
_ITEMS_AT_ONCE: Final = 1000
# Both times are compared as (high half, low half), exact in Lua's doubles; comparing them as text would depend on the
# server's locale.
_WRITE_NEWER: Final = f"""
    local old = redis.call('GETRANGE', KEYS[1], {TIMES_AT}, {TIMES_AT + 15})
    if #old == 16 then
        local old_time = {{struct.unpack('<I4i4I4i4', old)}}
        local new_time = {{struct.unpack('<I4i4I4i4', ARGV[1], {TIMES_AT + 1})}}
        for _, part in ipairs({{2, 1, 4, 3}}) do
            if new_time[part] < old_time[part] then return 0 end
            if new_time[part] > old_time[part] then break end
        end
    end
    if ARGV[2] == '' then
        redis.call('SET', KEYS[1], ARGV[1])
    else
        redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
    end
    return 1
"""


class RedisBackend:
    """Packed values in Redis, for any number of clients; an entry lives for ``entry_ttl``, or until it is replaced."""

    def __init__(self, client: Redis, *, entry_ttl: timedelta | None = None) -> None:
        self._client = client
        self._write_newer = client.register_script(_WRITE_NEWER)
        self._entry_ttl_ms = "" if entry_ttl is None else str(entry_ttl // timedelta(milliseconds=1))

    def read_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The value under each key, by one MGET."""
        return self._exchange(b"MGET", *keys) if keys else []

    def write_newer(self, items: Sequence[tuple[bytes, bytes]]) -> int:
        """Store each value under its key unless a later one is there; returns how many were stored.

        Each key is compared and set atomically; the items together are not, and may be written again.
        """
        written = 0
        with self._explained():
            for at in range(0, len(items), _ITEMS_AT_ONCE):
                with self._client.pipeline(transaction=False) as pipe:
                    for key, value in items[at : at + _ITEMS_AT_ONCE]:
                        self._write_newer(keys=[key], args=[value, self._entry_ttl_ms], client=pipe)
                    written += sum(pipe.execute())
        return written

    def drop(self, prefix: bytes) -> None:
        """Forget every key that starts with ``prefix``."""
        literal = b"".join(b"\\" + bytes([byte]) if byte in b"\\*?[]^-" else bytes([byte]) for byte in prefix)
        with self._explained():
            batch: list[bytes] = []
            for key in self._client.scan_iter(match=literal + b"*", count=_ITEMS_AT_ONCE):
                batch.append(key)
                if len(batch) == _ITEMS_AT_ONCE:
                    self._client.unlink(*batch)
                    batch.clear()
            if batch:
                self._client.unlink(*batch)

    def close(self) -> None:
        """Close the connections; the next call opens new ones."""
        self._client.close()

    def _exchange(self, *command: bytes) -> Any:
        """The reply to ``command``, by redis-py's pool, retries and errors.

        What else its ``execute_command`` does, mostly for metrics, is a tenth of a read's time.
        """
        pool = self._client.connection_pool
        with self._explained():
            connection = pool.get_connection()
            try:
                return connection.retry.call_with_retry(
                    partial(_reply_to, command, connection), lambda _: connection.disconnect()
                )
            finally:
                pool.release(connection)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except RedisError as error:
            raise OnlineStoreError(
                f"Redis did not answer ({type(error).__name__}: {error}); check the url and that the server runs"
            ) from error


def _reply_to(command: Sequence[bytes], connection: ConnectionInterface) -> Any:
    connection.send_command(*command)
    return connection.read_response()


def connect_redis(url: str, *, entry_ttl: timedelta | None = None) -> RedisBackend:
    """The backend at ``redis://[user:password@]host:port/db``, ``rediss://...`` or ``unix:///path``.

    A server that does not answer within a second is an error, after one more try; ``?socket_timeout=0.05`` in the url
    says otherwise.
    """
    try:
        client = Redis.from_url(
            url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S, retry=Retry(NoBackoff(), 1)
        )
    except ValueError as error:
        raise OnlineStoreError(f"the Redis url is not understood: {error}; give redis://host:port/db") from error
    return RedisBackend(client, entry_ttl=entry_ttl)
