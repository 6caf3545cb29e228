"""One subscription to one channel, over a connection of its own, read in worker threads."""

import contextlib
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Any, Self, TypeVar

import anyio
import anyio.to_thread
import redis

import heartbeat_core
from heartbeat_core import TransportError

__all__ = ("Subscription", "in_thread")

T = TypeVar("T")
Connection = Any
"""A connection of redis-py, of whatever kind. Its types differ from release to release."""

LARGEST_BATCH = 1000
LONGEST_SILENCE = 10.0
"""After so many seconds in which nothing came, the server is asked whether it is still there."""


async def in_thread(call: Callable[[], T], threads: anyio.CapacityLimiter) -> T:
    """Run what blocks for a round trip in a worker thread; translate its errors."""
    return await _translated(heartbeat_core.in_thread(call, threads))


async def _translated(result: Awaitable[T]) -> T:
    try:
        return await result
    except (redis.RedisError, OSError) as exc:
        raise TransportError(f"{type(exc).__name__}: {exc}") from exc


class Subscription:
    """Iterates what arrives on a channel, in batches.

    It is redis-py's ``PubSub`` without its habit of connecting again by itself, of which nobody
    would know; and no generator, since nobody would close it. Whoever makes one closes it, also
    if ``open`` was cancelled: a thread that still connects or reads then, tidies up.
    """

    def __init__(self, pool: Any, channel: str, *, sharded: bool) -> None:
        self._pool = pool
        self._channel = channel
        self._sharded = sharded
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._working = False
        self._closed = False
        self._thread = anyio.CapacityLimiter(1)

    async def open(self) -> None:
        """Connect and subscribe.

        Raises:
            TransportError: The server could not be reached, or refused.
        """
        await in_thread(self._subscribe, self._thread)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Sequence[bytes]:
        # It waits for long, and holds nothing that anybody else could need.
        while True:
            reading = anyio.to_thread.run_sync(
                self._read, abandon_on_cancel=True, limiter=self._thread
            )
            if batch := await _translated(reading):
                return batch

    def close(self) -> None:
        """Close the connection; a thread that is at work on it is woken, and does it."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            if not self._working:
                self._tidy_up()
                return
            sock = getattr(self._connection, "_sock", None)
            if sock is not None:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    # -- in threads ---------------------------------------------------------------------------

    def _subscribe(self) -> None:
        with self._at_work():
            try:
                self._connection = self._pool.get_connection()
            except TypeError:  # before redis-py 5.3
                self._connection = self._pool.get_connection("_")
            if self._closed:
                return
            subscribe = "SSUBSCRIBE" if self._sharded else "SUBSCRIBE"
            self._connection.send_command(subscribe, self._channel)
            self._connection.read_response(push_request=True)

    def _read(self) -> list[bytes]:
        """Wait for a message; give it with all that have arrived behind it."""
        with self._at_work():
            connection = self._connection
            assert connection is not None
            batch: list[bytes] = []
            arrived = connection.can_read(timeout=LONGEST_SILENCE) or self._answers(connection)
            while arrived and len(batch) < LARGEST_BATCH:
                # What answers a ping is read here as well, and is no message.
                kind, *rest = connection.read_response(push_request=True)
                if kind in {b"message", b"smessage"}:
                    batch.append(rest[1])
                elif kind == b"sunsubscribe":
                    raise redis.ConnectionError("another node of the cluster owns the channel")
                arrived = connection.can_read(timeout=0)
            return batch

    def _answers(self, connection: Connection) -> bool:
        """Ask for a sign of life: a server whose machine is gone ends no connection."""
        connection.send_command("PING")
        if not connection.can_read(timeout=connection.socket_timeout):
            raise redis.TimeoutError("the server does not answer")
        return True

    @contextlib.contextmanager
    def _at_work(self) -> Iterator[None]:
        """Have the connection to oneself; after an error it is closed, and stays so."""
        with self._lock:
            if self._closed or self._working:
                raise redis.ConnectionError("the subscription is over")
            self._working = True
        try:
            yield
        except BaseException:
            self._closed = True
            raise
        finally:
            with self._lock:
                self._working = False
                if self._closed:
                    self._tidy_up()

    def _tidy_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()
            self._pool.release(connection)
