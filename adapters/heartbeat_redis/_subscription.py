"""One subscription to one channel, over a connection of its own, read in worker threads."""

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any, Self, TypeVar

import anyio.to_thread
import redis

from heartbeat_core import TransportError, no_fork

__all__ = ("Subscription", "in_thread")

T = TypeVar("T")
Connection = Any
"""A connection of redis-py, of whatever kind. Its types differ from release to release."""

LARGEST_BATCH = 1000
LONGEST_WAIT = 5.0


async def in_thread(call: Callable[[], T]) -> T:
    """Run what blocks for a round trip in a worker thread; translate its errors."""

    def run() -> T:
        with no_fork():
            return call()

    return await _translated(run)


async def _translated(call: Callable[[], T]) -> T:
    try:
        return await anyio.to_thread.run_sync(call, abandon_on_cancel=True)
    except (redis.RedisError, OSError) as exc:
        raise TransportError(f"{type(exc).__name__}: {exc}") from exc


class Subscription:
    """Iterates what arrives on a channel, in batches. Making one blocks.

    It is redis-py's ``PubSub`` without its habit of connecting again by itself, of which nobody
    would know; and no generator, since nobody would close it.

    Raises:
        redis.RedisError: The server could not be reached, or refused.
    """

    def __init__(self, pool: Any, channel: str) -> None:
        self._pool = pool
        self._lock = threading.Lock()
        self._reading = False
        self._closed = threading.Event()
        try:
            self._connection: Connection = pool.get_connection()
        except TypeError:  # before redis-py 5.3
            self._connection = pool.get_connection("_")
        try:
            self._connection.send_command("SUBSCRIBE", channel)
            self._connection.read_response(push_request=True)
        except BaseException:
            self._tidy_up()
            raise

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[bytes]:
        # It waits for long, and holds nothing that anybody else could need.
        while not (batch := await _translated(self._read)):
            pass
        return batch

    def close(self) -> None:
        """Close the connection; a thread that still reads it is woken, and does it."""
        with self._lock:
            self._closed.set()
            if not self._reading:
                self._tidy_up()
                return
            sock = getattr(self._connection, "_sock", None)
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _read(self) -> list[bytes]:
        """Wait for a message; give it with all that have arrived behind it."""
        with self._lock:
            if self._closed.is_set():
                return []
            self._reading = True
        try:
            connection = self._connection
            batch: list[bytes] = []
            arrived = connection.can_read(timeout=LONGEST_WAIT)
            while arrived and len(batch) < LARGEST_BATCH:
                kind, _, data = connection.read_response(push_request=True)
                if kind == b"message":
                    batch.append(data)
                arrived = connection.can_read(timeout=0)
            return batch
        finally:
            with self._lock:
                self._reading = False
                if self._closed.is_set():
                    self._tidy_up()

    def _tidy_up(self) -> None:
        self._connection.disconnect()
        self._pool.release(self._connection)
