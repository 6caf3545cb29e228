"""What a transport makes of a pool of connections, its own or one that it is given.

The broker takes a node for present as long as one of its sockets is open anywhere. A child that
was forked while the heartbeat runs (a Celery prefork pool) holds a copy of every socket, and
would make its dead parent look connected. So a child closes its copies first thing.
"""

import contextlib
import os
import socket
import weakref
from collections.abc import Iterator
from typing import Any, NoReturn

import redis
from redis.backoff import NoBackoff
from redis.connection import AbstractConnection, ConnectionPool
from redis.retry import Retry

__all__ = ("close", "own")

_open: "weakref.WeakSet[_Own]" = weakref.WeakSet()


class _Own(AbstractConnection):
    """Mixed into the connection class of a pool: is known to the process that opened it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _open.add(self)

    def connect(self) -> None:
        """Connect; if something else than Redis answers, say so, and keep no half of it."""
        try:
            super().connect()
        except (AttributeError, TypeError, ValueError) as exc:
            self._refuse(exc)
        if str(self.protocol) == "3" and not isinstance(self.handshake_metadata, dict):
            self._refuse(None)

    def _refuse(self, cause: Exception | None) -> NoReturn:
        self.disconnect()
        raise redis.ConnectionError("the handshake failed: is this a Redis server?") from cause

    def read_response(self, *args: Any, **kwargs: Any) -> Any:
        """Read a response; leave a master that has become a replica, so as to find the new one."""
        try:
            return super().read_response(*args, **kwargs)
        except redis.ResponseError as exc:
            # Servers before version 7 put the error of a script's command into one of their own.
            if isinstance(exc, redis.ReadOnlyError) or "-READONLY " in str(exc):
                self.disconnect()
            raise


def own(pool: ConnectionPool, timeout: float) -> None:
    """Make a pool's connections answer soon or raise, and end with this very process."""
    for each in _pools(pool):
        each.connection_kwargs.update(
            decode_responses=False,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=timeout,
            socket_connect_timeout=timeout,
            health_check_interval=0,
        )
        kind = each.connection_class
        if not issubclass(kind, _Own):
            each.connection_class = type(kind.__name__, (_Own, kind), {})


def close(pool: ConnectionPool) -> None:
    """Close the connections that nobody uses now: others would find them closed in their hands."""
    for each in _pools(pool):
        try:
            each.disconnect(inuse_connections=False)
        except TypeError:  # a BlockingConnectionPool of older releases
            each.disconnect()


def _pools(pool: Any) -> Iterator[Any]:
    """Give a pool, and those by which it asks its sentinels, if it has any."""
    yield pool
    manager = getattr(pool, "sentinel_manager", None)
    for sentinel in manager.sentinels if manager is not None else ():
        yield sentinel.connection_pool


def _close_copies() -> None:
    for connection in list(_open):
        sock = getattr(connection, "_sock", None)
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):
                # gevent's would wait for its hub, which is not here.
                getattr(sock, "_sock", sock).close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)
