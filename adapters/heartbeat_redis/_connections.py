"""Connections that a forked child does not inherit.

The broker takes a node for present as long as one of its sockets is open anywhere. A child that
was forked while the heartbeat runs (a Celery prefork pool) holds a copy of every socket, and
would make its dead parent look connected. So a child closes its copies first thing.
"""

import contextlib
import os
import socket
import weakref
from typing import Any

from redis.connection import AbstractConnection, ConnectionPool

__all__ = ("not_inherited",)

_open: "weakref.WeakSet[_NotInherited]" = weakref.WeakSet()


class _NotInherited(AbstractConnection):
    """Mixed into the connection class of a pool: is known to the process that opened it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _open.add(self)


def not_inherited(pool: ConnectionPool) -> None:
    """Make the connections that a pool opens from now on end with this very process.

    Does nothing where there is no fork.
    """
    kind = pool.connection_class
    if not issubclass(kind, _NotInherited):
        pool.connection_class = type(kind.__name__, (_NotInherited, kind), {})


def _close_copies() -> None:
    for connection in list(_open):
        sock = getattr(connection, "_sock", None)
        if isinstance(sock, socket.socket):
            with contextlib.suppress(OSError):
                sock.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_copies)
