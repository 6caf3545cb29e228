"""The connection for all calls of a transport, which one thread at a time uses."""

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from heartbeat_core import TransportError
from heartbeat_kombu._line import BLOCKED, BlockedError, Broker, Line

__all__ = ("Calls",)

T = TypeVar("T")

HEARTBEAT = 60.0
"""So rarely AMQP heartbeats go both ways: nobody sends them between two calls."""


class Calls:
    """Connects when it is first needed, and after each error.

    Args:
        broker: Where to connect.
        name: What the connection is called in the broker.
        begin: What to do with a new connection.
    """

    def __init__(self, broker: Broker, name: str, begin: Callable[[Line], None]) -> None:
        self._broker = broker
        self._name = name
        self._begin = begin
        self._line: Line | None = None
        self._used = 0.0
        self._lock = threading.Lock()
        self._closed = False

    def run(self, call: Callable[[Line], T]) -> T:
        """Do something with the connection. Blocks until it is done, or ``timeout`` has passed.

        Raises:
            TransportError: Something went wrong with the broker, or others wait for it.
        """
        if not self._lock.acquire(timeout=self._broker.timeout):
            raise TransportError("the broker does not answer")
        try:
            with self._broker.translated():
                return call(self._connected())
        except BlockedError:
            raise
        except BaseException:
            self._drop()
            raise
        finally:
            if self._closed:
                self._drop()
            self._used = time.monotonic()
            self._lock.release()

    def close(self) -> None:
        """Close the connection, for good. Blocks for half a second at most."""
        self._closed = True
        line = self._line
        if self._lock.acquire(blocking=False):
            line, self._line = self._line, None
            self._lock.release()
            if line is not None:
                line.close()
        elif line is not None:
            line.interrupt()

    def _connected(self) -> Line:
        if self._closed:
            raise TransportError("the transport was closed")
        if self._line is not None and not self._is_usable(self._line):
            self._drop()
        if self._line is None:
            line = self._broker.open(self._name, HEARTBEAT)
            try:
                self._begin(line)
            except BaseException:
                line.drop()
                raise
            self._line = line
        return self._line

    def _is_usable(self, line: Line) -> bool:
        was_blocked = line.blocked
        if not was_blocked and time.monotonic() - self._used > HEARTBEAT / 2:
            # The broker may have hung up, or is about to.
            return False
        try:
            with self._broker.translated():
                line.drain()
        except BlockedError:
            raise
        except TransportError:
            # It broke since it was used last. It is better to know now than to lose a beat.
            return False
        if line.blocked:
            raise BlockedError(BLOCKED)
        # What was sent then may yet be confirmed, which would be taken for the next one's word.
        return not was_blocked

    def _drop(self) -> None:
        line, self._line = self._line, None
        if line is not None:
            line.drop()
